"""Why a plan calls stages new: one line a setting, a library or a file of code."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base import identity
from harness.plan.builder import make_plan
from harness.plan.reasons import differences, reasons
from harness.plan.stages import Plan, Stage
from harness.recipe.load import validate
from harness.store.store import Store
from tests.harness.plan.changed import changed

Planner = Callable[..., Plan]


@pytest.fixture
def planned(tiny_recipe: dict[str, Any]) -> Planner:
    def make(**changes: Any) -> Plan:
        fields = changed(tiny_recipe, changes, name="tiny", tasks=["dolly"], methods=["uld", "fkd"])
        return make_plan(validate("tiny", fields))

    return make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def manifest_of(stage: Stage) -> dict[str, Any]:
    return {
        "title": stage.title, "task": stage.task, "values": dict(stage.values), "code": dict(stage.code),
        "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


def keep(store: Store, plan: Plan) -> None:
    for stage in plan.stages():
        with store.create(stage.kind, stage.identity, manifest_of(stage)):
            pass


def texts(plan: Plan, store: Store) -> dict[str, dict[str, int]]:
    return {reason.text: dict(reason.kinds) for reason in reasons(plan, store)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train__learning_rate": 3e-4}, {"train.learning_rate 0.001 -> 0.0003": {"student": 2}}),
        ({"warm_start__batch_size": 4}, {"warm_start.batch_size 2 -> 4": {"warm_start": 1}}),
        ({"method_options__uld": {"sort": "top_k"}}, {"uld.sort auto -> top_k": {"student": 1}}),
        (
            {"method_options__uld": {"kd_weight": 0.9}},
            {"weights of CE and KD [0.5, 0.5] -> [0.5, 0.9]": {"student": 1}},
        ),
        ({"dolly__new_tokens": 9}, {"dolly.new_tokens 8 -> 9": {"answers": 2, "bits": 2}}),
        ({"teachers__cross__layers": 1}, {"teachers.cross.layers null -> 1": {"teacher": 1, "student": 1}}),
        ({"teacher__lora": None}, {"teacher.lora": {}}),
    ],
    ids=str,
)
def test_a_setting_is_told_by_its_name_in_the_recipe(
    planned: Planner, store: Store, change: dict[str, Any], expected: dict[str, dict[str, int]]
) -> None:
    keep(store, planned())
    told = texts(planned(**change), store)
    if expected == {"teacher.lora": {}}:  # a setting with settings of its own
        assert all(text.startswith(("teacher.lora", "code of", "peft")) for text in told)
        assert told
    else:
        assert told == expected


def test_of_several_stored_ones_the_most_alike_is_told_of(planned: Planner, store: Store) -> None:
    keep(store, planned(train__learning_rate=1e-2, train__weight_decay=0.5))
    keep(store, planned())
    assert texts(planned(train__learning_rate=3e-4), store) == {"train.learning_rate 0.001 -> 0.0003": {"student": 2}}


def test_what_is_stored_or_has_nothing_alike_has_no_reason(planned: Planner, store: Store) -> None:
    assert reasons(planned(), store) == []
    keep(store, planned())
    assert reasons(planned(), store) == []
    assert reasons(planned(methods=["gold", "uld"]), store) == []  # there never was a gold


def test_a_library_is_told_with_its_versions(planned: Planner, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(store, planned())
    own = importlib.metadata.version
    now = own("rouge-score")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0" if name == "rouge-score" else own(name))
    identity.versions.cache_clear()
    told = texts(planned(), store)
    monkeypatch.undo()
    identity.versions.cache_clear()
    assert told == {f"rouge-score {now} -> 0": {"scores": 2}}


def test_code_is_told_by_the_files_that_changed(planned: Planner) -> None:
    student = planned().cells[0].student
    before = manifest_of(student)
    moved = {name.replace("methods/", "science/"): digest for name, digest in student.code.items()}
    before |= {"values": before["values"] | {"code": "another"}, "code": moved | {"science/uld.py": "another"}}
    assert differences(student, before) == ["code of methods/uld.py"]
    many = replace(student, code=dict.fromkeys("abcde", "new"))
    assert differences(many, before) == ["code of a, b, c and 2 more"]
    assert differences(replace(student, code={}), before | {"code": {}}) == ["code"]
