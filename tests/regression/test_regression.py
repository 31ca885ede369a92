"""The recipe `smoke` follows its recorded trajectories, however it is batched, and a fault of 1 % doesn't get through.

On one task; by default a few methods, `-m slow` for all. Equivalences that need no recording are held elsewhere:
resumed equals straight, accumulation, padding sides and chunks to the last digits (tests/method_contract.py), two gloo
processes (tests/test_distributed.py). What is meant to change is recorded again: ``python -m tests.regression.record``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from harness.plan import Cell, ObjectiveSpec
from harness.recipe import load_recipe
from harness.run import Runner
from harness.tasks import tasks
from methods.base import LossSums, Method, TeacherKind, registered
from tests.regression import trajectories as t

RECORDED = t.recorded()["cells"]
ROWS = [name.split(" · ")[1] for name in RECORDED if name.startswith(f"{t.TASK} · ")]
QUICK = ("sft", "uld", "gold", "dual(fkd, cdm)")


def rows(*quick: str) -> Any:
    """Every row of the table; those that are not quick run with `-m slow`."""
    marks = {row: () if row in (quick or ROWS) else (pytest.mark.slow,) for row in ROWS}
    return pytest.mark.parametrize("row", [pytest.param(row, marks=marks[row]) for row in ROWS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For runs and generated models."""
    made = tmp_path_factory.mktemp("regression")
    with mock.patch.dict(os.environ, {"HARNESS_CACHE": str(made / "cache")}):
        yield made


@pytest.fixture(scope="module")
def runner(folder: Path) -> Runner:
    return t.smoke(folder)


def cell_of(runner: Runner, row: str) -> Cell:
    (cell,) = (cell for cell in runner.plan.cells if cell.objective.name == row)
    return cell


def expected(row: str) -> t.Trajectory:
    """The recorded steps, without what only evaluation gives."""
    (cell,) = (cell for name, cell in RECORDED.items() if name == f"{t.TASK} · {row} · seed 0")
    return {name: values for name, values in cell.items() if name in ("loss", "grad_norm", "kd_0", "kd_1")}


def too_far(row: str, found: t.Trajectory) -> list[str]:
    return [str(one) for one in t.deviations(row, found, expected(row)) if one.too_far]


# --- Recorded ---------------------------------------------------------------------------------------------------------


def test_smoke_has_every_method_and_task() -> None:
    recipe = load_recipe("smoke")
    assert set(recipe.tasks) == set(tasks())
    assert {recipe.method_of(row)[0] for row in recipe.methods} >= set(registered())
    assert any(row.startswith("dual(") for row in recipe.methods)
    assert {task: len(recipe.seeds_of(task)) for task in tasks()} == dict.fromkeys(tasks(), 1) | {"gsm8k": 2}
    on_policy = [row for row in recipe.methods if recipe.method_of(row)[1].get("rollout_share")]
    assert on_policy
    assert len(RECORDED) == len(ROWS) > len(recipe.methods)  # released forms are rows of their own


@rows(*QUICK)
def test_trainings_follow_the_record(runner: Runner, row: str) -> None:
    assert too_far(row, t.trained(runner, cell_of(runner, row).student)) == []


@pytest.mark.slow
def test_all_cells_and_their_scores_follow_the_record(folder: Path) -> None:
    found = t.run(t.smoke(folder))
    assert found.keys() == RECORDED.keys()
    far = [str(d) for cell in found for d in t.deviations(cell, found[cell], RECORDED[cell]) if d.too_far]
    assert far == []


# --- Equivalences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(1, 256), (4, 7)], ids=["4 times 1", "chunks of 7 rows"])
@rows("uld", "gold")
def test_micro_batches_and_chunks_change_nothing(folder: Path, row: str, settings: tuple[int, int]) -> None:
    micro, chunk = settings
    if row == "gold_on_policy":
        pytest.skip("responses are sampled a micro-batch at a time: its size is part of the identity")
    made = t.smoke(folder, f"train.micro_batch_size={micro}", f"train.chunk_rows={chunk}")
    if row == "sft":
        made = t.smoke(folder, f"warm_start.micro_batch_size={micro}")
    assert too_far(row, t.trained(made, cell_of(made, row).student)) == []


@rows("uld", "gold")
def test_live_teachers_give_what_stored_rows_give(folder: Path, row: str) -> None:
    if not cell_of(t.smoke(folder), row).objective.roles:
        pytest.skip(f"{row} has no teacher")
    with mock.patch.object(ObjectiveSpec, "needs_live", return_value=True):
        made = t.smoke(folder)
        stage = cell_of(made, row).student
        assert {needed.kind for name, needed in stage.inputs.items() if name != "start"} == {"teacher"}
        assert too_far(row, t.trained(made, stage)) == []


# --- Faults -----------------------------------------------------------------------------------------------------------


def scaled(method: Method) -> Any:
    """The method with a loss that is 1 % larger."""
    original = type(method).loss

    def loss(self: Method, chunk: Any) -> LossSums:
        sums = original(self, chunk)
        return replace(sums, kd=1.01 * sums.kd)

    return mock.patch.object(type(method), "loss", loss)


@rows(*QUICK)
def test_a_loss_that_is_one_percent_off_is_caught(runner: Runner, row: str) -> None:
    stage = cell_of(runner, row).student
    objective = stage.objective
    assert objective is not None
    (*_, last) = objective.methods
    if last.teacher is TeacherKind.NONE:
        faulty = replace(stage, objective=replace(objective, ce_weight=1.01 * objective.ce_weight))
        found = t.trained(runner, faulty)
    else:
        with scaled(last):
            found = t.trained(runner, stage)
    assert too_far(row, found)


def test_deviations_by_hand() -> None:
    found, theirs = {"loss": [2.0, 4.04], "kd_0": [1.0]}, {"loss": [2.0, 4.0], "grad_norm": [1.0]}
    loss, norm, kd = t.deviations("cell", found, theirs)
    assert (loss.quantity, round(loss.maximum, 12), round(loss.mean, 12)) == ("loss", 0.01, 0.005)
    assert loss.too_far
    assert norm.maximum == kd.maximum == float("inf")  # one side has none
    (same,) = t.deviations("cell", {"loss": [0.0]}, {"loss": [0.0]})
    assert not same.too_far


def test_tolerances_are_far_above_the_noise_and_far_below_one_percent() -> None:
    noise = t.recorded()["noise"]
    assert 10 * max(noise.values()) < t.MAXIMUM < 0.01 / 5
    assert t.MEAN < t.MAXIMUM
