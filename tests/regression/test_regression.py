"""The recipe `smoke` follows its recorded trajectories, however it is batched, and a fault of 1 % doesn't get through.

By default a few rows on one task; `-m "not nightly"` for the scores of all tasks too, as tox and CI do on each push;
`-m "slow or not slow"` for all rows, which only nightly runs do.
What is meant to change is recorded again: ``python -m tests.regression.record``. How tolerances follow from noise:
trajectories.py.

Equivalences that need no recording are held elsewhere too, for every registered method: resumed equals straight,
accumulation, padding sides and chunks in float64 to the last digits (tests/methods/contract.py); one and two gloo
processes, and two that resume (tests/harness/run/test_distributed.py).

Constants that decide between discrete choices are out of reach: 1 % of CDM's θ, or of the temperature at which the
student samples, changes none of the choices on this task.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from harness.base.progress import Silent
from harness.data.batches import Collator
from harness.plan.objectives import ObjectiveSpec, make_objectives
from harness.plan.stages import Cell
from harness.recipe.load import load_recipe
from harness.run.runner import Runner
from harness.tasks import tasks
from harness.training import distil
from methods.base import TeacherKind, registered
from methods.gold import GOLD
from tests.processes import torchrun
from tests.regression import record
from tests.regression import trajectories as t

RECORDED, NOISE = t.recorded()["cells"], t.recorded()["noise"]
OBJECTIVES = make_objectives(load_recipe("smoke"))
TASKS = list(dict.fromkeys(name.split(" · ")[0] for name in RECORDED))
ROWS = [name.split(" · ")[1] for name in RECORDED if name.startswith(f"{t.TASK} · ")]
SAMPLED = {objective.name for objective in OBJECTIVES if objective.samples}
QUICK = ("sft", "uld", "gold", "dual(fkd, cdm)")
NIGHTLY = (pytest.mark.slow, pytest.mark.nightly)


def rows(*quick: str) -> Any:
    """Every row of the table; those that are not quick run nightly."""
    marks = {row: () if row in (quick or ROWS) else NIGHTLY for row in ROWS}
    return pytest.mark.parametrize("row", [pytest.param(row, marks=marks[row]) for row in ROWS])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As recorded: with more threads sums are added up in another order, beyond the noise that tolerances come from."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    return t.of_training(RECORDED[f"{t.TASK} · {row} · seed 0"])


def too_far(row: str, found: t.Trajectory, wanted: t.Trajectory | None = None) -> list[str]:
    return [str(one) for one in t.deviations(row, found, wanted or expected(row), NOISE) if one.too_far]


def assert_all_follow_the_record(found: dict[str, t.Trajectory], task: str) -> None:
    """Every cell of a task, its scores too."""
    assert found.keys() == {name for name in RECORDED if name.startswith(f"{task} · ")}
    far = [str(d) for cell in found for d in t.deviations(cell, found[cell], RECORDED[cell], NOISE) if d.too_far]
    assert far == []


def trained_with(folder: Path, row: str, **settings: int) -> t.Trajectory:
    """The row's training with other settings of what trains it."""
    part = "warm_start" if row == "sft" else "train"
    made = t.smoke(folder, *(f"{part}.{name}={value}" for name, value in settings.items()))
    return t.trained(made, cell_of(made, row).student)


# --- Recorded ---------------------------------------------------------------------------------------------------------


def test_smoke_has_every_task_and_method_but_those_of_rivals_alone() -> None:
    recipe, rivals = load_recipe("smoke"), load_recipe("rivals")
    known = set(tasks()) - {"known_truth", "custom"}  # which the litmus trains, and which is what a recipe makes of it
    assert set(recipe.tasks) == known
    assert {recipe.method_of(row)[0] for row in recipe.methods} > {"sft", "control", "fkd", "rkd", "uld", "gold"}
    found = {each.method_of(row)[0] for each in (recipe, rivals) for row in each.methods}
    assert {name for name in found if not name.startswith("dual(")} == set(registered())
    assert any(row.startswith("dual(") for row in recipe.methods)
    assert {task: len(recipe.seeds_of(task)) for task in known} == dict.fromkeys(known, 1) | {"gsm8k": 2}
    on_policy = [row for row in recipe.methods if recipe.method_of(row)[1].get("rollout_share")]
    assert on_policy
    assert {objective.name for objective in OBJECTIVES} == set(ROWS)
    assert RECORDED.keys() == {f"{task} · {row} · seed 0" for task in TASKS for row in ROWS}
    assert set(t.TASKS) == known


@rows(*QUICK)
def test_trainings_follow_the_record(runner: Runner, row: str) -> None:
    assert too_far(row, t.trained(runner, cell_of(runner, row).student)) == []


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_all_cells_and_their_scores_follow_the_record(folder: Path, task: str) -> None:
    found = t.run(t.smoke(folder, task=task))
    assert_all_follow_the_record(found, task)


# --- Equivalences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(1, 256), (4, 7)], ids=["4 times 1", "chunks of 7 rows"])
@rows("uld", "gold")
def test_micro_batches_and_chunks_change_nothing(folder: Path, row: str, settings: tuple[int, int]) -> None:
    if row in SAMPLED:
        pytest.skip("responses are sampled a micro-batch at a time: its size is part of the identity")
    micro, chunk = settings
    assert too_far(row, trained_with(folder, row, micro_batch_size=micro, chunk_rows=chunk)) == []


@rows("uld")
def test_eight_at_once_are_four_times_two(folder: Path, row: str) -> None:
    if row in SAMPLED:
        pytest.skip("responses are sampled a micro-batch at a time: its size is part of the identity")
    at_once, in_parts = (trained_with(folder, row, batch_size=8, micro_batch_size=micro) for micro in (8, 2))
    assert too_far(row, in_parts, at_once) == []
    assert too_far(row, at_once)  # not what batches of four give


@rows("uld")
def test_left_padding_gives_what_right_padding_gives(runner: Runner, row: str) -> None:
    with mock.patch.object(distil, "Collator", partial(Collator, padding_side="left")):
        assert too_far(row, t.trained(runner, cell_of(runner, row).student)) == []


@rows("uld")
def test_stopped_and_resumed_equals_straight(folder: Path, row: str) -> None:
    """Digit by digit. A stage that was stopped keeps its checkpoints, and the next attempt finds them."""
    straight = trained_with(folder, row, checkpoint_every=1)
    with mock.patch.object(Silent, "advance", stop_after(2)), pytest.raises(InterruptedError):
        trained_with(folder, row, checkpoint_every=1)
    seen: list[int] = []
    with mock.patch.object(Silent, "advance", lambda self, step, loss=None: seen.append(step)):
        resumed = trained_with(folder, row, checkpoint_every=1)
    assert seen[0] > 1
    assert len(resumed["loss"]) > len(seen)
    assert resumed == straight


def stop_after(steps: int) -> Any:
    """Of a training: its progress fails once as many steps are done."""

    def advance(self: Silent, step: int, loss: float | None = None) -> None:
        if step > steps:
            raise InterruptedError

    return advance


@rows("uld", "gold")
def test_live_teachers_give_what_stored_rows_give(folder: Path, row: str) -> None:
    if not cell_of(t.smoke(folder), row).objective.roles:
        pytest.skip(f"{row} has no teacher")
    with mock.patch.object(ObjectiveSpec, "needs_live", return_value=True):
        made = t.smoke(folder)
        stage = cell_of(made, row).student
        assert {needed.kind for name, needed in stage.inputs.items() if name != "start"} == {"teacher"}
        assert too_far(row, t.trained(made, stage)) == []


@pytest.mark.slow
@pytest.mark.nightly
def test_two_processes_follow_the_record(folder: Path) -> None:
    """All rows under torchrun with gloo, from the teachers' fine-tuning on."""
    found = t.with_two_processes(folder / "two processes")
    assert_all_follow_the_record(found, t.TASK)


@pytest.mark.slow
def test_two_processes_of_which_one_draws_nothing_follow_the_record(folder: Path) -> None:
    """A window's samples are drawn by chance: one process may have some and the other none."""
    row, there = "gold_on_policy", folder / "two sample"
    done = torchrun("-m", "harness", "run", "recipe=smoke", *t.cut(t.TASK), f"methods=[{row}]", "--runs", str(there))
    assert done.returncode == 0, done.stderr[-3000:]
    runner = t.smoke(there, f"methods=[{row}]")
    assert too_far(row, t.trained(runner, cell_of(runner, row).student)) == []


# --- Faults -----------------------------------------------------------------------------------------------------------


CONSTANTS = ("temperature", "k", "beta")


def faults_of(objective: ObjectiveSpec) -> dict[str, ObjectiveSpec]:
    """The row with each of its constants 1 % off: weights, and options of its methods."""
    made = {"cross-entropy's weight": replace(objective, ce_weight=1.01 * objective.ce_weight)}
    for place, part in enumerate(objective.parts):
        method, parts = part.method, list(objective.parts)
        if method.teacher is TeacherKind.NONE:
            continue
        parts[place] = replace(part, weight=1.01 * part.weight)
        made[f"weight of {method.name}"] = replace(objective, parts=tuple(parts))
        for name in CONSTANTS:
            if value := getattr(method.options, name, None):
                off = round(1.01 * value) if isinstance(value, int) else 1.01 * value
                assert off != value
                parts[place] = replace(part, method=type(method)(method.options.model_copy(update={name: off})))
                made[f"{name} of {method.name}"] = replace(objective, parts=tuple(parts))
    return made


def faults() -> Any:
    quick = [("fkd", "temperature of fkd")]
    params = []
    for objective in OBJECTIVES:
        for name in faults_of(objective):
            fast = objective.name in QUICK or (objective.name, name) in quick
            marks = () if fast else NIGHTLY
            params.append(pytest.param(objective.name, name, marks=marks, id=f"{objective.name}, {name}"))
    return pytest.mark.parametrize(("row", "fault"), params)


@faults()
def test_a_constant_that_is_one_percent_off_is_caught(runner: Runner, row: str, fault: str) -> None:
    cell = cell_of(runner, row)
    assert too_far(row, t.trained(runner, replace(cell.student, objective=faults_of(cell.objective)[fault])))


@pytest.mark.parametrize("part", [0, 1], ids=["matched", "unmatched"])
def test_a_part_of_gold_that_is_one_percent_off_is_caught(runner: Runner, part: int) -> None:
    """Its weights are shares of the vocabulary, not numbers of the recipe."""
    original = GOLD._weights

    def off(self: GOLD, columns: Any) -> tuple[float, float]:
        matched, unmatched = original(self, columns)
        return (1.01 * matched, unmatched) if part == 0 else (matched, 1.01 * unmatched)

    with mock.patch.object(GOLD, "_weights", off):
        assert too_far("gold", t.trained(runner, cell_of(runner, "gold").student))


def test_deviations_by_hand() -> None:
    found, theirs = {"loss": [2.0, 4.04], "kd_0": [1.0]}, {"loss": [2.0, 4.0], "grad_norm": [1.0]}
    loss, norm, kd = t.deviations("cell", found, theirs)
    assert (loss.quantity, round(loss.maximum, 12), round(loss.mean, 12)) == ("loss", 0.01, 0.005)
    assert loss.too_far
    assert norm.maximum == kd.maximum == float("inf")  # one side has none
    (same,) = t.deviations("cell", {"loss": [0.0]}, {"loss": [0.0]})
    assert not same.too_far


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_number_is_too_far_from_any_and_from_itself(bad: float, place: int) -> None:
    """At any step, on either side: max() of Python overlooks NaN behind a number."""
    plain, broken = [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]
    broken[place] = bad
    for found, theirs in ((broken, plain), (plain, broken), (broken, broken)):
        (one,) = t.deviations("cell", {"loss": found}, {"loss": theirs})
        assert one.too_far
        assert one.maximum == math.inf  # which record.py tells as moved
    assert t.Deviation("cell", "loss", math.nan, 0.0).too_far
    assert t.Deviation("cell", "loss", 0.0, math.nan).too_far


def test_a_step_without_a_number_is_no_noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its tolerance would be infinite."""
    cell = f"{t.TASK} · sft · seed 0"
    monkeypatch.setattr(record, "_variants", lambda folder: iter([("broken", {cell: {"loss": [math.nan]}})]))
    with pytest.raises(ValueError, match="noise would allow anything"):
        record.noise_of(tmp_path, {cell: {"loss": [1.0]}})


def test_tolerances_are_above_the_noise() -> None:
    assert NOISE.keys() == set(ROWS)
    for row, quantities in NOISE.items():
        for quantity, noise in quantities.items():
            limits = t.allowed(f"gsm8k · {row} · seed 0", quantity, NOISE)
            assert all(limit >= 4 * observed for limit, observed in zip(limits, noise, strict=True))
    assert t.allowed("codem · cdm · seed 0", "bits of each item", NOISE) == t.EVALUATED
    assert t.allowed("fkd", "kd_0", NOISE) == t.FLOOR  # smooth: fkd's temperature 1 % off moves it by 2e-4
