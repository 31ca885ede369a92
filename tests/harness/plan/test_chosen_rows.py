"""`rows` of a training: which of a task's training rows it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.base.errors import HarnessError
from harness.data.tokens import STUDENT
from harness.plan.builder import make_plan
from harness.plan.stages import Plan
from harness.recipe.load import load_recipe
from harness.recipe.schema import Training
from harness.run.workbench import PublishedModels, Workbench

FEW = ("known_truth.train_items=200", "known_truth.test_items=5", "methods=[control,fkd]")


def planned(*overrides: str) -> Plan:
    return make_plan(load_recipe("known_truth", [*FEW, "teacher.rows=[100,180]", *overrides]))


def test_all_rows_where_none_are_named() -> None:
    training = Training(steps=1)
    assert list(training.chosen("abc")) == list("abc")
    assert "rows" not in training.identity()


def test_rows_count_from_nought_and_leave_out_the_last() -> None:
    training = Training(epochs=2, batch_size=4, rows=(2, 12))
    assert training.chosen(range(100)) == range(2, 12)
    assert training.total_steps(100) == 6  # 10 rows are 3 steps
    assert training.total_steps(5) == 2  # 3 are there
    assert training.identity()["rows"] == [2, 12]


@pytest.mark.parametrize("rows", [(3, 3), (4, 2), (-1, 2)])
def test_no_rows_are_an_error(rows: tuple[int, int]) -> None:
    with pytest.raises(ValidationError):
        Training(steps=1, rows=rows)


def test_rows_beyond_the_last_are_an_error_before_anything_runs() -> None:
    with pytest.raises(HarnessError, match=r"train\.rows: found \[200, 210\]; expected rows below 200"):
        planned("train.rows=[200,210]")


def identities(plan: Plan) -> dict[str, set[str]]:
    stages = plan.stages()
    return {kind: {stage.identity for stage in stages if stage.kind == kind} for kind in {s.kind for s in stages}}


def test_other_rows_make_what_reads_them_new() -> None:
    first, second = identities(planned()), identities(planned("train.rows=[48,96]"))
    assert {kind for kind in first if first[kind] == second[kind]} >= {"teacher", "warm_start"}
    assert not first["student"] & second["student"]
    assert not first["rows"] & second["rows"]  # a teacher's rows are stored of what students read


def test_each_training_reads_its_rows(tmp_path: Path) -> None:
    plan = planned()
    never: Any = None
    bench = Workbench.of(plan, PublishedModels(plan.recipe.models_by_role(), print), never, tmp_path)
    found = {}
    for stage in plan.stages():
        if stage.training is not None and stage.kind in ("teacher", "warm_start"):
            rows = bench.aligned.of(stage, stage.role or STUDENT, ())
            found[stage.kind] = [int(row.example.id.rpartition("/")[2]) for row in rows]
    assert found == {"teacher": list(range(100, 180)), "warm_start": list(range(48))}
