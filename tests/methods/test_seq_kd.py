"""seq_kd: whose answers it learns, of which prompts, and what is left as it was."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import HarnessError
from harness.data.rows import Example
from harness.data.tokens import STUDENT
from harness.plan.builder import make_plan
from harness.plan.objectives import ObjectiveSpec, make_objectives
from harness.recipe.load import validate
from harness.recipe.schema import Limits
from harness.recipe.training import Training
from harness.run.workbench import AlignedRows, Texts
from harness.store.artefacts import ANSWERS, Answer
from methods.base import find
from tests.harness.evaluate.test_divergence import side

PROMPTS = [Example(f"t/{n}", f"Ask {n}", f"reference {n}", bos=True) for n in range(40)]
SIDES = {STUDENT: side("byte_level"), "cross": side("unigram")}


def answer(number: int, output: str = "", stop: str = "eos") -> Answer:
    return Answer(f"t/{number}", None, f"Ask {number}", output or f"said {number}", 3, stop, False)


def texts() -> Texts:
    task = SimpleNamespace(training_examples=lambda: PROMPTS, question=lambda one: one.prompt)
    return Texts({"t": task}, SimpleNamespace(sides=SIDES), Limits(length=40))  # type: ignore[dict-item, arg-type]


def spelled(example: Any, role: str) -> str:
    return str(SIDES[role].tokenizer.decode(example.sides[role].response, skip_special_tokens=True)).strip()


def objective(**options: Any) -> ObjectiveSpec:
    return ObjectiveSpec.of("seq_kd", find("seq_kd")(**options))


def test_weights_say_of_how_many_prompts_the_teacher_is_heard() -> None:
    assert objective().answers_share == 1
    mixed = objective(ce_weight=0.5, kd_weight=1.5)
    assert (mixed.ce_weight, mixed.answers_share, mixed.weights) == (2.0, 0.75, (0.5, 1.5))
    assert (mixed.roles, mixed.learns_from, mixed.teacher_kind) == ((), ("cross",), "cross-tokenizer")
    assert objective(answers_of="same").teacher_kind == "same-tokenizer"
    assert objective(kd_weight=0, ce_weight=1).answers_share == 0
    assert objective(kd_weight=0.5).identity() != objective(kd_weight=1).identity()


def test_answers_stand_in_for_references_on_every_side() -> None:
    made = texts().said("t", [answer(n) for n in range(40)], 1.0)
    assert [example.id for example in made] == [example.id for example in PROMPTS]
    for role in SIDES:
        assert [spelled(example, role) for example in made] == [f"said {n}" for n in range(40)]
    whole = texts().examples("t", "train")
    assert all((a.sides[STUDENT].prompt == b.sides[STUDENT].prompt).all() for a, b in zip(made, whole, strict=True))
    assert made[0].sides[STUDENT].response[-1] == SIDES[STUDENT].eos


def test_an_answer_without_an_end_leaves_the_reference() -> None:
    said = [answer(0, stop="length"), answer(1, " \n"), *(answer(n) for n in range(3, 40))]
    made = [spelled(example, STUDENT) for example in texts().said("t", said, 1.0)]
    assert made[:4] == ["reference 0", "reference 1", "reference 2", "said 3"]


def test_a_share_is_of_prompts_and_always_the_same_ones() -> None:
    said = [answer(n) for n in range(40)]
    half, more, none = (
        {example.id for example in texts().said("t", said, share) if spelled(example, STUDENT).startswith("said")}
        for share in (0.5, 0.75, 0.0)
    )
    assert 12 <= len(half) <= 28
    assert half < more
    assert not none


def test_rows_are_made_once_for_the_answers_of_one_teacher() -> None:
    stages = [SimpleNamespace(identity=name) for name in ("one", "other")]
    read = {"one": [answer(n) for n in range(40)], "other": [answer(n, "else") for n in range(40)]}
    kept = AlignedRows(texts(), lambda stage: read[stage.identity])  # type: ignore[arg-type, return-value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ANSWERS), "read", lambda self, found: found)
        training = Training(steps=1)
        asked = [
            SimpleNamespace(task="t", objective=objective(), training=training, inputs={"said": one}) for one in stages
        ]
        first, second = (kept.of(stage, STUDENT, ()) for stage in asked)  # type: ignore[arg-type]
    assert spelled(first[0].example, STUDENT) == "said 0"
    assert spelled(second[0].example, STUDENT) == "else"


def test_a_plan_asks_the_teacher_once_for_all_seeds_and_rows(tiny_recipe: dict[str, Any]) -> None:
    changes = {
        "name": "tiny",
        "tasks": ["dolly"],
        "methods": ["seq_kd", "mixed", "of_same", "control"],
        "seeds": [0, 1],
    }
    variants = {
        "mixed": {"method": "seq_kd", "ce_weight": 0.5, "kd_weight": 0.5},
        "of_same": {"method": "seq_kd", "answers_of": "same"},
    }
    recipe = validate("tiny", copy.deepcopy(tiny_recipe) | changes | {"variants": variants, "method_options": {}})
    cells = {(cell.objective.name, cell.seed): cell.student for cell in make_plan(recipe).cells}
    said = {name: student.inputs["said"] for (name, _), student in cells.items() if "said" in student.inputs}
    assert said.keys() == {"seq_kd", "mixed", "of_same"}
    assert said["seq_kd"].identity == said["mixed"].identity != said["of_same"].identity
    assert len({cells[name, 0].inputs["said"].identity for name in said}) == 2
    assert cells["seq_kd", 0].inputs["said"].identity == cells["seq_kd", 1].inputs["said"].identity
    assert said["seq_kd"].inputs["teacher"].role == "cross"
    assert len({student.identity for student in cells.values()}) == len(cells)


def test_without_that_teacher_there_is_one_error(tiny_recipe: dict[str, Any]) -> None:
    teachers = {"same": tiny_recipe["teachers"]["same"]}
    recipe = validate("tiny", copy.deepcopy(tiny_recipe) | {"name": "t", "methods": ["seq_kd"], "teachers": teachers})
    with pytest.raises(HarnessError, match=r"teachers.cross: found none; expected a teacher for method seq_kd"):
        make_objectives(recipe)
