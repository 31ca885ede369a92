"""Alignments of test responses: a method's groups, those of shared bytes where it needs a model, and their names."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest

from harness.data.tokens import STUDENT
from harness.models.resolve import is_downloaded
from harness.plan.alignments import SHOWN, shown
from harness.plan.builder import make_plan
from harness.recipe.load import validate
from harness.run.alignments import aligned
from harness.run.workbench import Pairs
from methods.base import Method, Need, Rows, TeacherKind, registered
from methods.library.alignment import group_bytes
from tests.harness.run.place import Place
from tests.harness.training.test_traces import DISTILLING, sides
from tests.methods.contract import bench
from tests.patches import replace_everywhere


@pytest.mark.parametrize("method", DISTILLING, ids=lambda m: f"{m.name}-{m.options.fidelity}")
def test_groups_are_the_methods_own_or_those_of_shared_bytes(method: Method) -> None:
    made = bench(method)
    (term,) = made.objective.terms
    examples = [aligned.example for aligned in made.examples]
    found = aligned(examples, method, made.role, sides(made.role))
    assert (found["of"], found["method"]) == (len(examples), method.name)
    for example, item in zip(examples, found["items"], strict=True):
        response = example.aligned(term.teacher)
        stand_in = Need.ENTROPY in method.needs
        groups = group_bytes(response.student_ends, response.teacher_ends) if stand_in else method.align(response)
        whole = method.rows is Rows.ALL and not stand_in
        first = [example.sides[role].prompt.size if whole else 0 for role in (STUDENT, made.role)]
        expected = [
            [[int(i) - f for i in members if i >= f] for f, members in zip(first, group, strict=True)]
            for group in zip(*groups.to_lists(), strict=True)
        ]
        assert [list(group) for group in item["groups"]] == [group for group in expected if all(group)]
        assert item["stand_in"] == stand_in
        assert item["item"] == example.id
        assert item["student"]["ends"] == example.sides[STUDENT].ends.tolist()


def test_only_the_first_are_kept_and_how_many_there_are_is_said() -> None:
    made = bench(registered()["uld"]())
    examples = [made.examples[0].example] * (SHOWN + 1)
    found = aligned(examples, made.objective.terms[0].method, made.role, sides(made.role))
    assert (len(found["items"]), found["of"]) == (SHOWN, SHOWN + 1)


def names(recipe: dict[str, Any], **changes: Any) -> dict[tuple[str, str, int], list[str]]:
    plan = make_plan(validate("tiny", copy.deepcopy(recipe) | {"name": "tiny"} | changes))
    return {
        (cell.task, cell.objective.name, cell.seed): [one.identity for one in shown(plan, cell)] for cell in plan.cells
    }


def test_identities_hold_what_decides_an_alignment_and_nothing_else(tiny_recipe: dict[str, Any]) -> None:
    base = names(tiny_recipe)
    distilling = {name for name in tiny_recipe["methods"] if registered()[name].teacher is not TeacherKind.NONE}
    assert {method for (_, method, _), made in base.items() if made} == distilling
    known = [identity for made in base.values() for identity in made]
    assert len(set(known)) == len(known)
    train = tiny_recipe["train"] | {"steps": 3, "learning_rate": 0.1}
    seeds = names(tiny_recipe, train=train, seeds=[0, 1], methods=["uld", "dual(fkd, uld)"])
    assert seeds["dolly", "uld", 0] == base["dolly", "uld", 0]
    assert seeds["dolly", "uld", 1] == []
    own = names(tiny_recipe, dolly=tiny_recipe["dolly"] | {"seeds": [3, 4]}, methods=["uld"])
    assert own["dolly", "uld", 3] == base["dolly", "uld", 0]
    assert own["dolly", "uld", 4] == []
    dual = seeds["dolly", "dual(fkd, uld)", 0]
    assert dual == base["dolly", "fkd", 0] + base["dolly", "uld", 0]
    for changes in (
        {"limits": {"length": 300, "overlong": "drop"}},
        {"dolly": tiny_recipe["dolly"] | {"test_items": 2}},
        {"method_options": {"uld": {"pairing": "bytes"}}},
        {"student": tiny_recipe["student"] | {"layers": 1}},
    ):
        assert names(tiny_recipe, **changes)["dolly", "uld", 0] != base["dolly", "uld", 0]
    assert names(tiny_recipe, evaluation={"bits_per_byte": False})["dolly", "uld", 0] == []


def test_alignments_that_are_lost_are_made_again_where_the_models_are(
    place: Place, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is made with them, and nothing is downloaded for them."""
    (folder,) = place.stored("alignments", method="one_to_one", task="dolly")
    before = (folder / "alignments.json").read_text()
    shutil.rmtree(folder)
    replace_everywhere(monkeypatch, is_downloaded, lambda uri: False)
    assert place.run("methods=[one_to_one]").code == 0
    assert not folder.exists()
    monkeypatch.undo()
    assert place.run("methods=[one_to_one]").code == 0
    assert (folder / "alignments.json").read_text() == before
    monkeypatch.setattr(Pairs, "of", None)  # what breaks is a message
    shutil.rmtree(folder)
    done = place.run("methods=[one_to_one]")
    assert done.code == 0
    assert "no alignments to show" in done.out
    assert made == []
