"""Which rows a litmus trains, and in which settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.base.errors import HarnessError
from harness.litmus.settings import TEXTS, Setting, expanded, recipes_of, rows_of, settings_of
from harness.plan.builder import make_plan
from harness.recipe.schema import Recipe
from methods.base import LossSums, Method, TeacherKind, registered
from methods.library import registry

RECIPES = recipes_of()
RECIPE = RECIPES["many passes"]


@pytest.fixture
def plug_in() -> Iterator[type[Method]]:
    """A method that no recipe knows, without a temperature."""

    class Mine(Method):
        name, paper, summary, teacher = "mine", "none", "a test's", TeacherKind.CROSS_TOKENIZER

        def loss(self, chunk: object) -> LossSums:
            raise NotImplementedError

    registry.register(Mine)
    yield Mine
    del registry._REGISTRY["mine"]


def test_every_method_with_a_teacher_has_a_row(plug_in: type[Method]) -> None:
    behind = {RECIPE.method_of(row)[0] for row in rows_of(RECIPE)}
    assert behind - {"control"} == {name for name, kind in registered().items() if kind.teacher is not TeacherKind.NONE}
    assert "mine" in behind
    assert {"cdm", "cdm_bytes", "gold", "gold_trl", "uld", "uld_bytes"} <= set(rows_of(RECIPE))


def test_one_method_brings_its_variants_and_the_control(plug_in: type[Method]) -> None:
    assert rows_of(RECIPE, "gold") == ["control", "gold", "gold_trl"]
    assert rows_of(RECIPE, "cdm_bytes") == ["control", "cdm_bytes"]
    assert rows_of(RECIPE, "mine") == ["control", "mine"]
    assert list(settings_of(RECIPE, ["mine"])) == [Setting("mine", "KD alone"), Setting("mine", "with CE")]


@pytest.mark.parametrize(("name", "found"), [("golf", "Did you mean"), ("sft", "learns from a teacher")])
def test_a_method_that_can_teach_nothing_is_refused(name: str, found: str) -> None:
    with pytest.raises(HarnessError, match=found):
        rows_of(RECIPE, name)


def test_a_row_keeps_its_options_in_every_setting() -> None:
    settings = list(settings_of(RECIPE, ["control", "gold_trl"]))
    made = expanded(RECIPE, settings)
    assert len(settings) == 1 + 2 * 2
    assert made.method_of("gold_trl_kd_alone_t2") == (
        "gold",
        {"matched_weight": None, "unmatched_weight": None, "beta": 0.5}
        | {"ce_weight": 0.0, "kd_weight": 1.0, "temperature": 2.0},
    )
    objectives = {cell.objective.label: cell.objective for cell in make_plan(made).cells}
    assert objectives["gold_trl_with_ce_t1"].ce_weight == 0.5
    assert objectives["gold_trl_kd_alone_t1"].methods[0].options.temperature == 1.0  # type: ignore[attr-defined]
    assert objectives["control"].ce_weight == 0.5


def test_both_texts_share_teachers_and_the_start() -> None:
    plans = [make_plan(recipe) for recipe in RECIPES.values()]
    assert list(RECIPES) == list(TEXTS)
    for kind, same in (("teacher", True), ("warm_start", True), ("rows", False), ("student", False)):
        first, second = ({stage.identity for stage in made.stages() if stage.kind == kind} for made in plans)
        assert (first == second) == same, kind


def read_by(recipe: Recipe) -> dict[str, set[int]]:
    """Numbers of the training rows that each section reads."""
    every = range(recipe.settings_of("known_truth").train_items or 0)
    return {name: set(getattr(recipe, name).chosen(every)) for name in ("teacher", "warm_start", "train")}


def test_nobody_reads_what_the_teachers_read() -> None:
    many, fresh = (read_by(recipe) for recipe in RECIPES.values())
    assert many["warm_start"] == many["train"] == fresh["warm_start"]
    assert len(many["train"]) == 48
    assert not fresh["train"] & fresh["warm_start"]
    assert len(fresh["train"]) == fresh_responses(RECIPES["fresh text"])  # each once
    assert not many["teacher"] & (many["train"] | fresh["train"])


def fresh_responses(recipe: Recipe) -> int:
    assert recipe.train.steps is not None
    return recipe.train.steps * recipe.train.batch_size
