"""A smaller cut of the litmus: every row's claim, a method broken in every way, and a plug-in from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.base.progress import Silent
from harness.data.teacher_rows import StoredRows
from harness.litmus.claims import KNOWN_FAILURES
from harness.litmus.mutants import MUTANTS, Mutant
from harness.litmus.settings import Setting, expanded, recipes_of, rows_of
from harness.litmus.trial import LitmusRun
from harness.plan.builder import make_plan
from harness.store.store import Store
from methods.base import TeacherKind, find
from reports.known_truth import Claim, Learnt

ROOT = Path(__file__).parents[3]
SMALLER = ("teacher.steps=150", "train.steps=80", "known_truth.test_items=60")
RECIPE = recipes_of(SMALLER)["many passes"]
ROWS = [row for row in rows_of(RECIPE) if find(RECIPE.method_of(row)[0]).teacher is not TeacherKind.NONE]
BROKEN = [(mutant.of or "fkd", mutant) for mutant in MUTANTS if mutant.of not in KNOWN_FAILURES]  # these lose nothing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> LitmusRun:
    """Every row's KD term alone, at τ 1."""
    folder = tmp_path_factory.mktemp("litmus")
    softened = {row: "temperature" in find(RECIPE.method_of(row)[0]).Options.model_fields for row in ROWS}
    settings = [Setting(row, "KD alone", 1.0 if softened[row] else None) for row in ROWS]
    plan = make_plan(expanded(RECIPE, settings))
    made = LitmusRun("many passes", plan, {one.label: one for one in settings}, Store(folder), folder, Silent())
    made.train()
    return made


@pytest.fixture(scope="module")
def learnt(trial: LitmusRun) -> list[Learnt]:
    return list(trial.learnt())


@pytest.fixture(scope="module")
def shares(trial: LitmusRun, learnt: list[Learnt]) -> dict[str, float]:
    return trial.shares(learnt)


@pytest.fixture(scope="module")
def claims(trial: LitmusRun, shares: dict[str, float]) -> dict[str, Claim]:
    return {claim.row: claim for claim in trial.claims(shares)}


def test_teachers_know_the_source_and_the_student_does_not(trial: LitmusRun) -> None:
    assert all(0 < distance < 0.1 for distance in trial.teachers().values())
    assert trial.start > 5 * max(trial.teachers().values())


def test_teachers_rows_are_stored_of_what_students_read(trial: LitmusRun) -> None:
    for stage in trial.plan.stages():
        if stage.kind == "rows":
            index = StoredRows(trial.runner.demand.need(stage).folder).index
            trained = {int(name.rpartition("/")[2]) for name in index if "/train/" in name}
            assert trained == set(range(48))


@pytest.mark.parametrize("row", ROWS)
def test_every_claim_is_kept_or_known_to_fail(row: str, claims: dict[str, Claim]) -> None:
    claim = claims[row]
    assert claim.kept == (RECIPE.method_of(row)[0] not in KNOWN_FAILURES), claim


def test_nobody_knows_more_than_the_truth(learnt: list[Learnt]) -> None:
    assert all(one.truth > 0 for one in learnt)
    assert all(one.teacher is not None and one.teacher > 0 for one in learnt)


@pytest.mark.parametrize(("row", "mutant"), BROKEN, ids=[f"{row}: {mutant.how}" for row, mutant in BROKEN])
def test_a_broken_method_is_noticed(
    row: str, mutant: Mutant, trial: LitmusRun, shares: dict[str, float], claims: dict[str, Claim]
) -> None:
    (cell,) = (cell for cell in trial.cells if trial.settings[cell.objective.label].row == row)
    assert claims[row].kept
    found = trial.broken_row(cell, mutant, shares[row])
    assert found.caught != bool(found.elsewhere), found


MINE = """
from methods.base import KDOptions, LossSums, Method, TeacherKind, register
from methods.library.alignment import group_bytes


@register
class Mine(Method):
    name, paper, teacher = "mine", "none", TeacherKind.CROSS_TOKENIZER
    summary = "a plug-in that asks for nothing"

    def align(self, response):
        return group_bytes(response.student_ends, response.teacher_ends)

    def loss(self, chunk):
        return LossSums(kd=0.001 * chunk.student.logits.square().sum())
"""


def test_a_plug_in_that_teaches_nothing_is_told_so(tmp_path: Path) -> None:
    site = tmp_path / "site"
    information = site / "mine-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[ctkd_harness.methods]\nmine = my_methods:Mine\n")
    (site / "my_methods.py").write_text(MINE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "COLUMNS": "200"}
    fields = ["teacher.steps=2", "warm_start.steps=2", "train.steps=2", "known_truth.test_items=5"]
    command = [sys.executable, "-m", "harness", "litmus", "mine", *fields, "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    assert "improves on the start" in done.stdout
    assert "FAILS" in done.stdout
    assert "see what stands in capitals" in done.stdout
