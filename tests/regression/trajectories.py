"""Trajectories of the recipe `smoke` on this machine, and how far they are from others."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.files import write_json
from harness.base.identity import environment
from harness.base.progress import Silent
from harness.plan.builder import make_plan
from harness.plan.stages import Cell, Stage
from harness.recipe.load import load_recipe
from harness.run.runner import Runner
from harness.store.store import Store
from tests.processes import torchrun

RECORDED = Path(__file__).parent / "recorded.json"

TASK = "countdown"  # whose rows are made in the tests of equivalences and faults too; tasks differ in their text only
TASKS = ("countdown", "gsm8k", "dolly", "codem")

# What a quantity of a trajectory may move, at most and in the mean over its steps, relative to its largest value.
#
# For what training does: FACTOR times the noise that record.py observed for the row on TASK, and no less than FLOOR.
# Everything is made with one thread. Noise is the largest of micro-batches, chunks, a training with two threads, and of
# teachers, warm start and student all made by two processes, all made with another instruction set (SSE4 in place of
# AVX-512), and all tasks made by a processor of another maker, last by compiled loops where torch made the record.
# Where a loss is smooth it stays below 1e-5 on TASK, and FLOOR is 3 times that; where it ranks or warps (ULD, CDM,
# GOLD), a tie that falls the other way is seen: 2e-4 of CDM's KD part, 1.4e-3 of its gradient norm, 3e-3 of ULD's. A
# constant that is 1 % off moves some quantity by more than that, the least by 4e-5 (the weight of released MinED, whose
# KD part is 1 % of the loss).
FACTOR = 4.0
FLOOR = (3e-5, 2e-5)
EVALUATED = (1e-3, 2e-4)  # for scores and bits, which follow from weights that have moved already

STEPS = ("loss", "grad_norm", "kd_0", "kd_1")

Trajectory = dict[str, list[float]]
Noise = dict[str, dict[str, list[float]]]  # of each row and quantity: [at most, in the mean]


def smoke(folder: Path, *overrides: str, task: str = TASK) -> Runner:
    """A runner of the recipe's cells on a task, one seed each; its stages are stored below ``folder``."""
    recipe = load_recipe("smoke", [*cut(task), *overrides])
    return Runner(make_plan(recipe), Store(folder), folder, Silent())


def cut(task: str) -> tuple[str, ...]:
    """Overrides of the recipe that leave its cells on one task, one seed each."""
    return (f"tasks=[{task}]", "evaluation.references=[]", "gsm8k.seeds=[0]")


def run(runner: Runner) -> dict[str, Trajectory]:
    """Make all cells that are not stored, and read the trajectory of each."""
    runner.run()
    assert not runner.failures, runner.failures
    return {cell.name: trajectory_of(runner, cell) for cell in runner.plan.cells}


def with_two_processes(folder: Path) -> dict[str, Trajectory]:
    """All cells on `TASK`, made by torchrun with gloo from the teachers' fine-tuning on."""
    done = torchrun("-m", "harness", "run", "recipe=smoke", *cut(TASK), "--runs", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    runner = smoke(folder)
    assert all(runner.store.find(stage.kind, stage.identity) for stage in runner.plan.stages())
    return run(runner)


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
    return {name: [step[name] for step in steps] for name in STEPS if name in steps[0]}


def of_training(cell: Trajectory) -> Trajectory:
    """What training did, without what only evaluation gives."""
    return {name: cell[name] for name in STEPS if name in cell}


def trained(runner: Runner, stage: Stage) -> Trajectory:
    """Train the student of a stage again, whatever is stored; its inputs are read from the store."""
    for needed in stage.inputs.values():
        runner.demand.need(needed)
    with tempfile.TemporaryDirectory() as folder, runner.store.work(stage.kind, stage.identity):
        runner.makers.make(stage, Path(folder))
        steps = of_steps(json.loads((Path(folder) / "steps.json").read_text()))
    shutil.rmtree(runner.store.work_folder(stage.kind, stage.identity))  # the next begins at step 1
    return steps


def _stored(runner: Runner, stage: Stage, name: str) -> Any:
    artefact = runner.store.find(stage.kind, stage.identity)
    assert artefact is not None, stage.title
    return json.loads((artefact.folder / name).read_text())


@dataclass(frozen=True)
class Deviation:
    """How far one quantity of a cell is from another run's, relative to its largest value, and how far it may be."""

    cell: str
    quantity: str
    maximum: float
    mean: float
    allowed: tuple[float, float] = FLOOR

    @property
    def too_far(self) -> bool:
        return not (self.maximum <= self.allowed[0] and self.mean <= self.allowed[1])  # NaN is not within anything

    def __str__(self) -> str:
        return f"{self.cell}, {self.quantity}: {self.maximum:.1e} at most, {self.mean:.1e} in the mean; allowed: " + (
            ", ".join(f"{limit:.1e}" for limit in self.allowed)
        )


def allowed(cell: str, quantity: str, noise: Noise) -> tuple[float, float]:
    """What a quantity may move, at most and in the mean. A cell is named ``task · row · seed 0``."""
    if quantity.startswith(("score", "bits")):
        return EVALUATED
    row = cell.split(" · ")[1] if " · " in cell else cell
    most, mean = noise.get(row, {}).get(quantity, (0.0, 0.0))
    return max(FLOOR[0], FACTOR * most), max(FLOOR[1], FACTOR * mean)


def deviations(cell: str, found: Trajectory, expected: Trajectory, noise: Noise | None = None) -> Iterator[Deviation]:
    """Of each quantity; infinite where one side has none, another number of steps, or a step without a number."""
    noise = noise or {}
    for quantity in dict.fromkeys((*expected, *found)):
        mine, theirs = found.get(quantity, []), expected.get(quantity, [])
        if len(mine) != len(theirs) or not all(map(math.isfinite, (*mine, *theirs))):
            yield Deviation(cell, quantity, float("inf"), float("inf"))
            continue
        limits = allowed(cell, quantity, noise)
        scale = max(map(abs, theirs)) or 1.0
        gaps = [abs(a - b) / scale for a, b in zip(mine, theirs, strict=True)]
        yield Deviation(cell, quantity, max(gaps), sum(gaps) / len(gaps), limits)


def recorded() -> dict[str, Any]:
    """``environment``, ``noise`` and ``cells`` as `write_recorded` wrote them."""
    read: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return read


def write_recorded(cells: Mapping[str, Trajectory], noise: Noise, made_by: Mapping[str, object] | None = None) -> None:
    """Nine digits of each value, two of noise, with the environment that made them, this one if none is given."""
    rounded = {
        cell: {quantity: [float(f"{value:.9g}") for value in values] for quantity, values in trajectory.items()}
        for cell, trajectory in cells.items()
    }
    write_json(RECORDED, {"environment": made_by or environment(), "noise": noise, "cells": rounded})
