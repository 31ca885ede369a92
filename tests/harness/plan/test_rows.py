"""What rows of the table have of their own: repetitions, trainings, teachers trained anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.plan.builder import make_plan
from harness.plan.stages import Plan, order_seed
from harness.recipe.load import RecipeError, load_recipe, validate
from harness.recipe.training import RowTraining, Training
from tests.harness.plan.changed import changed

Planner = Callable[..., Plan]


@pytest.fixture
def planned(tiny_recipe: dict[str, Any]) -> Planner:
    """A plan of the tiny recipe with fields changed by dotted names."""

    def make(**changes: Any) -> Plan:
        fields = changed(tiny_recipe, changes, name="tiny", tasks=["dolly"], methods=["control", "uld"])
        return make_plan(validate("tiny", fields))

    return make


def seeds_by_row(plan: Plan) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for cell in plan.cells:
        found.setdefault(cell.objective.name, []).append(cell.seed)
    return found


# --- Repetitions of the baseline --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "control"),
    [
        pytest.param({"seeds": [0]}, [0], id="one seed tests nothing"),
        pytest.param({"seeds": [3, 1]}, [3, 1, 4, 5], id="twice"),
        pytest.param({"seeds": [0, 1], "baseline_seeds": "same"}, [0, 1], id="the same"),
        pytest.param({"seeds": [0, 1], "baseline_seeds": [1, 7]}, [0, 1, 7], id="listed"),
    ],
)
def test_the_baseline_has_more_repetitions(planned: Planner, asked: dict[str, Any], control: list[int]) -> None:
    assert seeds_by_row(planned(**asked)) == {"control": control, "uld": asked["seeds"]}


def test_they_are_the_baselines_alone_and_come_last(planned: Planner) -> None:
    plan = planned(seeds=[0, 1], baseline="uld", methods=["control", "uld", "fkd"])
    assert seeds_by_row(plan) == {"control": [0, 1], "uld": [0, 1, 2, 3], "fkd": [0, 1]}
    assert [cell.seed for cell in plan.cells] == [0, 0, 0, 1, 1, 1, 2, 3]
    assert seeds_by_row(planned(seeds=[0, 1], baseline=None)) == {"control": [0, 1], "uld": [0, 1]}


def test_each_has_a_warm_start_of_its_own_and_they_change_no_other_cell(planned: Planner) -> None:
    twice, same = (planned(seeds=[0, 1], baseline_seeds=how) for how in ("twice", "same"))
    assert len({cell.student.inputs["start"].identity for cell in twice.cells}) == 4
    assert [cell.scores.identity for cell in twice.cells[:4]] == [cell.scores.identity for cell in same.cells]


# --- Trainings of their own -------------------------------------------------------------------------------------------


def test_a_row_trains_with_fields_of_its_own(planned: Planner) -> None:
    """Those of its method, then its variant's; all else is train's, and a length of either kind replaces the other."""
    plan = planned(
        methods=["control", "uld", "fast"],
        method_options={"uld": {"train": {"learning_rate": 5e-4, "steps": 7}}},
        variants={"fast": {"method": "uld", "train": {"epochs": 2}}},
        dolly__train_items=8,
        train__batch_size=2,
    )
    control, uld, fast = (cell.student for cell in plan.cells)
    trainings = [stage.training for stage in (control, uld, fast)]
    assert [training.learning_rate for training in trainings if training] == [1e-3, 5e-4, 5e-4]
    assert [stage.steps for stage in (control, uld, fast)] == [2, 7, 8]
    assert len({stage.identity for stage in (control, uld, fast)}) == 3
    assert uld.values["training"] != control.values["training"]
    assert {stage.inputs["start"].identity for stage in (control, uld, fast)} == {control.inputs["start"].identity}


def test_the_fields_are_no_options_and_change_no_other_row(planned: Planner) -> None:
    plain = planned(methods=["control", "uld"])
    own = planned(methods=["control", "uld"], method_options__control={"train": {"learning_rate": 1e-3}})
    assert [cell.student.identity for cell in own.cells][1] == [cell.student.identity for cell in plain.cells][1]
    assert own.cells[0].student.identity == plain.cells[0].student.identity  # the rate that it has anyway


def test_sft_keeps_the_warm_starts_length(planned: Planner) -> None:
    plan = planned(
        methods=["sft"],
        method_options={"sft": {"train": {"steps": 5, "learning_rate": 2e-3}}},
        warm_start__steps=3,
        warm_start__learning_rate=1e-4,
    )
    student = plan.cells[0].student
    assert student.steps == 8
    assert student.training is not None
    assert (student.training.learning_rate, student.training.steps) == (2e-3, 3)


def test_a_dual_teacher_has_them_too_and_its_parts_lend_none(planned: Planner) -> None:
    plan = planned(
        methods=["fkd", "dual(fkd, uld)"],
        method_options={"fkd": {"train": {"steps": 9}}, "dual(fkd,uld)": {"train": {"steps": 3}, "same_weight": 0.25}},
    )
    assert [cell.student.steps for cell in plan.cells] == [9, 3]
    assert plan.cells[1].objective.parts[0].weight == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method_options.uld.train={batch_size: 4}", "method_options.uld.train.batch_size: unknown option"),
        ("method_options.uld.train=3", "method_options.uld.train: found 3; expected a mapping"),
        ("method_options.uld.tune=[1]", "method_options.uld.tune: found [1]; expected a mapping"),
        ("tuned={uld: {tau: 2}}", "tuned.uld.tau: unknown option"),
        ("tuned={nobody: {}}", "tuned.nobody: unknown row 'nobody'"),
        ("tuned={'dual(fkd, cdm)': {train: {rate: 1}}}", "tuned.dual(fkd, cdm).train.rate: unknown option"),
        ("method_options.uld.train={learning_rate: -1}", "method_options.uld.train.learning_rate: found -1"),
        ("method_options.all.train={steps: 1}", "method_options.all.train: unknown option"),
        ("variants={x: {method: uld, train: {rate: 1}}}", "variants.x.train.rate: unknown option"),
    ],
)
def test_what_can_not_be_a_rows_own_is_an_error(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("quickstart", [override])
    assert said in str(error.value)


def test_what_is_tuned_wins_and_is_the_rows_alone(planned: Planner) -> None:
    tuned = {"fkd": {"temperature": 3.0, "kd_weight": 0.9, "train": {"learning_rate": 7e-4}}}
    plan = planned(methods=["fkd", "dual(fkd, uld)"], method_options={"fkd": {"temperature": 2.0}}, tuned=tuned)
    fkd, dual = (cell.objective for cell in plan.cells)
    assert fkd.methods[0].options.model_dump()["temperature"] == 3.0
    assert fkd.parts[0].weight == 0.9
    assert fkd.training == RowTraining(learning_rate=7e-4)
    assert dual.methods[0].options.model_dump()["temperature"] == 2.0
    assert dual.training == RowTraining()


def test_selecting_the_last_weights_is_part_of_no_identity() -> None:
    assert Training(steps=3, evaluations=9).identity() == Training(steps=3).identity()
    assert Training(steps=3, select="best_dev").identity() != Training(steps=3).identity()


# --- Teachers trained anew --------------------------------------------------------------------------------------------


def test_repetitions_take_the_teachers_trainings_in_turn(planned: Planner) -> None:
    plan = planned(seeds=[5, 6, 7], teacher__seeds=[0, 1], evaluation={"references": ["teachers"]})
    uld = [cell.student for cell in plan.cells if cell.objective.name == "uld"]
    teachers = [student.inputs["cross"].inputs["teacher"] for student in uld]
    assert [teacher.seed for teacher in teachers] == [0, 1, 0]
    assert teachers[0].identity == teachers[2].identity != teachers[1].identity
    assert order_seed(teachers[0]) != order_seed(teachers[1])
    assert [(r.teacher, r.seed) for r in plan.references] == [("same", 0), ("same", 1), ("cross", 0), ("cross", 1)]
    assert teachers[1].title == "fine-tuning of the cross-tokenizer teacher 1"


def test_without_them_there_is_one_teacher(planned: Planner) -> None:
    plan = planned(seeds=[5, 6], evaluation={"references": ["teachers"]})
    assert len([stage for stage in plan.stages() if stage.kind == "teacher"]) == 2
    assert [(r.teacher, r.seed) for r in plan.references] == [("same", 5), ("cross", 5)]
