"""Trajectories of the recipe `smoke` on this machine, and how far they are from others."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from harness.files import write_json
from harness.identity import environment
from harness.plan import Cell, Stage, make_plan, order_seed
from harness.recipe import load_recipe
from harness.run import Runner, Silent
from harness.store import Store

RECORDED = Path(__file__).parent / "recorded.json"

# Relative to the largest value of a trajectory. What micro-batches, chunks and threads move is noise in recorded.json,
# as record.py observed it; a constant that is off by 1 % moves a trajectory by 1e-2.
MAXIMUM, MEAN = 1e-3, 2e-4

TASK = "countdown"  # whose rows are made here too; tasks differ in their text only
Trajectory = dict[str, list[float]]


def smoke(folder: Path, *overrides: str) -> Runner:
    """A runner of the recipe's cells on `TASK`; its stages are stored below ``folder``."""
    recipe = load_recipe("smoke", [f"tasks=[{TASK}]", *overrides])
    return Runner(make_plan(recipe), Store(folder), folder, Silent())


def run(runner: Runner) -> dict[str, Trajectory]:
    """Make all cells that are not stored, and read the trajectory of each."""
    runner.run()
    assert not runner.failures, runner.failures
    return {cell.name: trajectory_of(runner, cell) for cell in runner.plan.cells}


def trajectory_of(runner: Runner, cell: Cell) -> Trajectory:
    """Step by step what training did, and the cell's final scores."""
    steps = _stored(runner, cell.student, "steps.json")
    found = of_steps(steps)
    for metric, items in _stored(runner, cell.scores, "scores.json").items():
        found[f"score {metric}"] = [sum(items.values()) / len(items)]
    if cell.bits is not None:
        bits = _stored(runner, cell.bits, "bits.json")
        found["bits of each item"] = [float(item["bits"]) for item in bits]
    return found


def of_steps(steps: Sequence[Mapping[str, float]]) -> Trajectory:
    """Loss, KD parts and gradient norm of each step."""
    names = [name for name in ("loss", "grad_norm", "kd_0", "kd_1") if name in steps[0]]
    return {name: [step[name] for step in steps] for name in names}


def trained(runner: Runner, stage: Stage) -> Trajectory:
    """Train the student of a stage again, whatever is stored; its inputs are read from the store."""
    for needed in stage.inputs.values():
        runner._need(needed)
    with tempfile.TemporaryDirectory() as folder, runner.store.work(stage.kind, stage.identity):
        set_seed(order_seed(stage))
        runner._make_student(stage, Path(folder))
        return of_steps(json.loads((Path(folder) / "steps.json").read_text()))


def _stored(runner: Runner, stage: Stage, name: str) -> Any:
    artefact = runner.store.find(stage.kind, stage.identity)
    assert artefact is not None, stage.title
    return json.loads((artefact.folder / name).read_text())


@dataclass(frozen=True)
class Deviation:
    """How far one quantity of a cell is from another run's, relative to its largest value."""

    cell: str
    quantity: str
    maximum: float
    mean: float

    @property
    def too_far(self) -> bool:
        return self.maximum > MAXIMUM or self.mean > MEAN

    def __str__(self) -> str:
        return f"{self.cell}, {self.quantity}: {self.maximum:.1e} at most, {self.mean:.1e} in the mean"


def deviations(cell: str, found: Trajectory, expected: Trajectory) -> Iterator[Deviation]:
    """Of each quantity; infinite where one side has none, or another number of steps."""
    for quantity in dict.fromkeys((*expected, *found)):
        mine, theirs = found.get(quantity, []), expected.get(quantity, [])
        if len(mine) != len(theirs):
            yield Deviation(cell, quantity, float("inf"), float("inf"))
            continue
        scale = max(map(abs, theirs)) or 1.0
        gaps = [abs(a - b) / scale for a, b in zip(mine, theirs, strict=True)]
        yield Deviation(cell, quantity, max(gaps), sum(gaps) / len(gaps))


def recorded() -> dict[str, Any]:
    """``environment``, ``noise`` and ``cells`` as `write_recorded` wrote them."""
    read: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return read


def write_recorded(cells: Mapping[str, Trajectory], noise: Mapping[str, float]) -> None:
    """Nine digits of each value, with the environment that made them."""
    rounded = {
        cell: {quantity: [float(f"{value:.9g}") for value in values] for quantity, values in trajectory.items()}
        for cell, trajectory in cells.items()
    }
    write_json(RECORDED, {"environment": environment(), "noise": dict(noise), "cells": rounded})
