"""Which settings a tuning tries, and the stages that try them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scipy.stats import qmc

from harness.base.errors import HarnessError
from harness.data.rows import held_out
from harness.plan.builder import make_plan
from harness.plan.objectives import make_objectives
from harness.plan.tuning import TuningPlan, TuningSettings, configurations, digests, make_tuning_plan, overlay
from harness.recipe.load import validate
from harness.recipe.schema import Recipe
from methods.base import registered
from tests.harness.plan.changed import changed

Loader = Callable[..., Recipe]


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any]) -> Loader:
    """The tiny recipe on one task, with fields changed by dotted names."""

    def load(**changes: Any) -> Recipe:
        fields = changed(tiny_recipe, changes, name="tiny", tasks=["dolly"])
        return validate("tiny", fields)

    return load


def tried(recipe: Recipe, row: str, budget: int = 6) -> list[dict[str, float]]:
    objectives = dict(zip(recipe.methods, make_objectives(recipe), strict=True))
    return [dict(point) for point in configurations(recipe, row, objectives[row], budget)]


# --- What is tried ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "names", "values"),
    [
        ("fkd", ("kd_share", "rate"), [(0.5, 1), (0.5, 0.5), (0.5, 2), (0.9, 0.5), (0.9, 1), (0.9, 2)]),
        ("uld", ("kd_share", "rate"), [(0.5, 1), (0.5, 0.5), (0.5, 2), (0.9, 0.5), (0.9, 1), (0.9, 2)]),
        ("control", ("rate", "label_smoothing"), [(1, 0), (0.5, 0), (0.5, 0.1), (1, 0.1), (2, 0), (2, 0.1)]),
        ("dual(fkd, uld)", ("kd_share", "rate"), [(0.5, 1), (0.5, 0.5), (0.5, 2), (0.9, 0.5), (0.9, 1), (0.9, 2)]),
    ],
)  # fmt: skip
def test_six_settings_are_the_grid_with_the_recipes_own_first(
    recipe: Loader, row: str, names: tuple[str, ...], values: list[tuple[float, ...]]
) -> None:
    asked = recipe(methods=[row])
    assert tried(asked, row) == [dict(zip(names, one, strict=True)) for one in values]


def test_every_row_has_as_many_whatever_it_has_to_tune(recipe: Loader) -> None:
    """Also one whose own setting is not in the grid: it is tried first, and the grid's last is not."""
    asked = recipe(method_options={"all": {"ce_weight": 0.7, "kd_weight": 0.3}})
    for row in asked.methods:
        for budget in (1, 2, 6, 9):
            points = tried(asked, row, budget)
            assert len(points) == budget
            assert len({tuple(point.items()) for point in points}) == budget
    assert tried(asked, "uld")[0] == {"kd_share": 0.3, "rate": 1.0}
    assert tried(asked, "uld")[-1] == {"kd_share": 0.9, "rate": 1.0}


def test_every_row_may_change_its_learning_rate(recipe: Loader) -> None:
    """Where the control alone could, it won short trainings by that: known truth, fresh text, all 16 others worse."""
    asked = recipe(methods=list(registered()))
    for row in asked.methods:
        assert {point["rate"] for point in tried(asked, row)} == {0.5, 1.0, 2.0}


def test_other_numbers_of_settings_fill_the_ranges(recipe: Loader) -> None:
    """Sobol's sequence, as scipy makes it; factors are spaced by ratios."""
    unit = qmc.Sobol(2, scramble=False).random_base2(4)[1:9]
    asked = recipe(methods=["fkd", "control"])
    found = tried(asked, "fkd", 9)[1:]
    expected = [(0.5 + 0.4 * a, 0.5 * 4**b) for a, b in unit]
    assert [tuple(point.values()) for point in found] == [pytest.approx(pair, rel=1e-3) for pair in expected]
    rates = [point["rate"] for point in tried(asked, "control", 9)[1:]]
    assert rates == pytest.approx([0.5 * 4**a for a, _ in unit], rel=1e-3)


def test_a_row_may_say_what_is_tuned_of_it(recipe: Loader) -> None:
    asked = recipe(
        methods=["cdm", "mine"],
        method_options={"cdm": {"tune": {"k": [10, 20], "length": [1, 2, 4]}}},
        variants={"mine": {"method": "cdm", "tune": {"theta": 0.2}}},
    )
    points = tried(asked, "cdm")
    assert points[0] == {"k": 100.0, "length": 1.0}
    assert {point["k"] for point in points[1:]} == {10.0, 20.0}
    assert tried(asked, "mine", 2) == [{"theta": 0.3}, {"theta": 0.2}]
    (objective, _) = make_objectives(asked)
    made = overlay(asked, objective, points[1])
    assert (made["k"], type(made["k"])) == (10, int)


@pytest.mark.parametrize("tune", [{"rates": [1, 2]}, {"k": []}, {"k": ["many"]}, {"k": [True]}])
def test_what_a_row_does_not_have_can_not_be_tuned(recipe: Loader, tune: dict[str, Any]) -> None:
    asked = recipe(methods=["cdm"], method_options={"cdm": {"tune": tune}})
    with pytest.raises(HarnessError, match=r"tune of cdm: found .*expected a list of numbers under one of .*kd_share"):
        tried(asked, "cdm")


@pytest.mark.parametrize(
    ("name", "settings"), [("budget", {"budget": 0}), ("share", {"share": 0}), ("share", {"share": 2})]
)
def test_how_much_is_tried_has_bounds(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=f"^{name}: found"):
        TuningSettings(**settings)


# --- A setting as a recipe has it -------------------------------------------------------------------------------------


def test_an_overlay_changes_weights_rate_and_length(recipe: Loader) -> None:
    asked = recipe(
        methods=["fkd", "control"],
        method_options={"all": {"ce_weight": 1, "kd_weight": 3}, "control": {"train": {"epochs": 2}}},
        train__steps=9,
        train__warmup=4,
    )
    fkd, control = make_objectives(asked)
    found = overlay(asked, fkd, {"kd_share": 0.8, "temperature": 2.0}, share=0.5)
    assert found == {
        "temperature": 2.0,
        "ce_weight": pytest.approx(0.8),
        "kd_weight": pytest.approx(3.2),
        "train": {"steps": 4, "warmup": 2.0},
    }
    found = overlay(asked, control, {"rate": 2.0, "length": 0.5, "label_smoothing": 0.1}, share=0.5)
    assert found["label_smoothing"] == 0.1
    assert found["train"] == {"learning_rate": 2e-3, "epochs": 0.5, "warmup": 1.0}


def test_a_rows_own_setting_on_all_steps_is_the_row(recipe: Loader) -> None:
    """So that a tuned recipe whose rows all keep their own settings has the stages that it had."""
    asked = recipe(methods=["fkd", "uld", "control", "sft", "dual(fkd, uld)"])
    plain = {cell.name: cell.student.identity for cell in make_plan(asked).cells}
    tuned = {
        row: overlay(asked, one, configurations(asked, row, one, 1)[0])
        for row, one in zip(asked.methods, make_objectives(asked), strict=True)
    }
    again = make_plan(asked.model_copy(update={"tuned": tuned}))
    assert {cell.name: cell.student.identity for cell in again.cells} == plain


# --- The stages that try them -----------------------------------------------------------------------------------------


@pytest.fixture
def plan(recipe: Loader) -> TuningPlan:
    return make_tuning_plan(recipe(methods=["control", "fkd", "uld"], dolly__train_items=40), TuningSettings(3))


def test_trials_share_teachers_warm_start_and_rows(plan: TuningPlan) -> None:
    kinds = [stage.kind for stage in plan.stages()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "teacher": 2, "rows": 2, "warm_start": 1, "student": 9, "bits": 9,
    }  # fmt: skip
    assert [(trial.row, trial.number) for trial in plan.trials] == [
        (row, number) for number in range(3) for row in ("control", "fkd", "uld")
    ]
    assert plan.ends == [trial.dev for trial in plan.trials]
    assert not plan.evaluated


def test_no_trial_reads_a_test_set(plan: TuningPlan) -> None:
    for stage in plan.stages():
        assert "references" not in stage.values
        assert "requests" not in stage.values
    assert {trial.dev.values["dev"]["dev"] for trial in plan.trials} == {4}  # a tenth of the rows


def test_a_run_on_the_same_rows_shares_what_comes_before_the_students(plan: TuningPlan) -> None:
    run = make_plan(plan.recipe)
    known = {stage.identity for stage in plan.stages()}
    before = {stage.identity for stage in run.stages() if stage.kind in ("teacher", "rows", "warm_start")}
    assert len(before) == 5
    assert before <= known


def test_half_the_steps_unless_a_share_is_asked_for(recipe: Loader) -> None:
    asked = recipe(methods=["control", "sft"], train__steps=6, warm_start__steps=3, dolly__train_items=40)
    control, sft = make_tuning_plan(asked, TuningSettings(1)).trials
    assert (control.cell.student.steps, sft.cell.student.steps) == (3, 6)
    whole = make_tuning_plan(asked, TuningSettings(1, share=1.0))
    assert [trial.cell.student.steps for trial in whole.trials] == [6, 9]


def test_held_out_rows_are_in_no_training(recipe: Loader) -> None:
    asked = recipe(dolly__train_items=40, dev__rows=5)
    task = asked.task("dolly")
    train, dev = held_out(task.training_examples(), 5, task.question)
    assert len(dev) == 5
    assert not {one.prompt for one in train} & {one.prompt for one in dev}
    with_dev, without = make_plan(asked), make_plan(recipe(dolly__train_items=40))
    shared = {stage.identity for stage in with_dev.stages()} & {stage.identity for stage in without.stages()}
    assert not shared


# --- What a trial comes from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        pytest.param({"seeds": [0, 1, 2]}, set(), id="more seeds"),
        pytest.param({"title": "Another", "evaluation": {"bits_per_byte": False}}, set(), id="words and test scores"),
        pytest.param({"dolly__test_items": 2}, set(), id="fewer test items"),
        pytest.param({"train__learning_rate": 3e-3}, {"recipe"}, id="rate"),
        pytest.param({"teacher__steps": 3}, {"recipe"}, id="teacher"),
        pytest.param({"method_options": {"uld": {"sort": "exact", "top_k": 5}}}, {"recipe"}, id="an option"),
        pytest.param({"dolly__train_items": 39}, {"recipe"}, id="rows"),
    ],
)
def test_digests_tell_what_changed(recipe: Loader, changes: dict[str, Any], parts: set[str]) -> None:
    fields = {"methods": ["uld"], "dolly__train_items": 40, "dev__rows": 4}
    before, after = (
        digests(make_tuning_plan(recipe(**(fields | more)), TuningSettings(1)).trials[0]) for more in ({}, changes)
    )
    assert {part for part in before if before[part] != after[part]} == parts


def test_a_methods_own_code_counts_and_the_engines_does_not(recipe: Loader) -> None:
    uld, fkd = make_tuning_plan(recipe(methods=["uld", "fkd"], dolly__train_items=40), TuningSettings(1)).trials
    assert digests(uld)["code"] != digests(fkd)["code"]
    assert any(file.startswith("harness/") for file in uld.cell.student.code)
    assert "methods/uld.py" in uld.cell.student.code
