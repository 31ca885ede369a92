"""Traces: the groups that a method makes, and KD by token that adds up to the engine's own sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data.teacher_rows import StoredRows, store_rows
from harness.data.templates import TextSide
from harness.data.tokens import STUDENT
from harness.models.heads import Head
from harness.training.traces import TRACED, Tracer, chosen
from methods.base import Method, Need, Rows, TeacherKind, registered
from tests import tiny
from tests.methods.contract import Bench, bench

DISTILLING = [
    kind(fidelity=fidelity)
    for kind in registered().values()
    if kind.teacher is not TeacherKind.NONE
    for fidelity in (("described", "released") if kind.fidelities_differ else ("described",))
]


def sides(role: str) -> dict[str, TextSide]:
    families = {STUDENT: "byte_level", role: "byte_level" if role == "same" else "byte_fallback"}
    return {name: TextSide(tiny.tokenizer(family), template="plain", name=name) for name, family in families.items()}


def tracer(made: Bench, live: bool = True, stored: Any = None) -> Tracer:
    heads = {} if live else {made.role: Head.of(made.teacher)}
    models = {made.role: made.teacher} if live else {}
    return Tracer(made.student, models, heads, stored or {}, {STUDENT: 0, made.role: 0}, sides(made.role))


@pytest.mark.parametrize("method", DISTILLING, ids=lambda m: f"{m.name}-{m.options.fidelity}")
def test_kd_by_token_adds_up_to_the_engines_sum(method: Method) -> None:
    made = bench(method, dtype=torch.float32)
    (term,) = made.objective.terms
    made.distiller()  # which builds what a method trains of its own
    for aligned in made.examples:
        trace = tracer(made).trace_one(aligned.example, term)
        expected = float(made.loss(made.batch([aligned])).kd[0])
        if not trace["kd"]:
            assert {Need.WHOLE_RESPONSE, Need.ROW_SCALARS, Need.SURVEY} & method.needs
            assert (method.name, method.options.fidelity) != ("alm", "described")  # a sum over groups
            continue
        assert len(trace["kd"]) == aligned.example.sides[STUDENT].response.size
        if method.rows is Rows.ALL:  # the prompt's share is not shown
            assert sum(value or 0 for value in trace["kd"]) < expected
        else:
            assert sum(value or 0 for value in trace["kd"]) == pytest.approx(expected, rel=2e-3)
        grouped = {i for student, _ in trace["groups"] for i in student}
        assert {i for i, value in enumerate(trace["kd"]) if value is not None} == grouped


def test_tokens_spell_the_response_and_groups_are_the_methods() -> None:
    made = bench(registered()["one_to_one"](), dtype=torch.float32)
    (term,) = made.objective.terms
    for (_, response), aligned in zip(tiny.SAMPLES, made.examples, strict=True):
        trace = tracer(made).trace_one(aligned.example, term)
        text = response.encode()
        for role in ("student", "teacher"):
            side = trace[role]
            assert side["ends"][-1] == aligned.example.response_bytes
            starts = [0, *side["ends"][:-1]]
            for token, start, end in zip(side["tokens"], starts, side["ends"], strict=True):
                if end > start:
                    assert token == text[start:end].decode(errors="backslashreplace")
                else:
                    assert token  # the end of the sequence has a name
        (groups,) = aligned.groups
        assert [list(pair) for pair in zip(*groups.to_lists(), strict=True)] == [list(pair) for pair in trace["groups"]]


def test_stored_rows_give_the_trace_of_a_live_teacher_and_others_rows_give_none(tmp_path: Path) -> None:
    made = bench(registered()["uld"](), dtype=torch.float32)
    examples = chosen([aligned.example for aligned in made.examples])
    store_rows(made.teacher, made.role, examples[:1], tmp_path, pad=0)
    rows = {made.role: StoredRows(tmp_path)}
    found = tracer(made, live=False, stored=rows).trace(examples, made.objective.terms)
    live = tracer(made).trace(examples, made.objective.terms)
    assert [trace["item"] for trace in live] == [aligned.example.id for aligned in made.examples[:TRACED]]
    assert [trace["item"] for trace in found] == [trace["item"] for trace in live[:1]]
    for one, other in zip(found, live, strict=False):
        assert one["groups"] == other["groups"]
        assert one["kd"] == pytest.approx(other["kd"], rel=2e-3)


def test_chosen_are_short_few_and_named_by_their_tokens() -> None:
    made = bench(registered()["uld"](), dtype=torch.float32)
    examples = [aligned.example for aligned in made.examples]
    names = [example.id for example in chosen(examples * 3)]
    assert len(names) == TRACED
    assert [name.partition("@")[0] for name in names] == [example.id for example in (examples * 3)[:TRACED]]
    assert len({name.partition("@")[2] for name in names}) == len(set(names))
