"""What a method compares in the test responses, for the report's viewer: from tokenizers, without a model.

A small artefact for each task, method and teacher, apart from the training whose row it explains: it is made in
seconds, and again where it is lost. What trained models add (KD by token, alignments by entropies) is in
:mod:`harness.training.traces`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.files import write_text
from harness.data.terms import pairs
from harness.data.text_side import TextSide
from harness.data.tokens import STUDENT, TokenizedExample, token_side
from harness.plan.alignments import SHOWN
from methods.base import Method, Need, Rows
from methods.library.alignment import group_bytes


def aligned(examples: Sequence[TokenizedExample], method: Method, role: str, sides: Mapping[str, TextSide]) -> Any:
    """The first responses through a prepared method, as plain values for JSON.

    Returns:
        ``of``: number of responses. ``method``. ``items``, each with ``item``, ``cut``, ``student``, ``teacher`` and
        ``groups`` as in a trace, and ``stand_in``: whether the groups are those of shared bytes, since the method's own
        depend on what the models make of the response.
    """
    return {
        "of": len(examples),
        "method": method.name,
        "items": [_aligned(example, method, role, sides) for example in examples[:SHOWN]],
    }


def write_aligned(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, ensure_ascii=False, separators=(",", ":")))


def _aligned(example: TokenizedExample, method: Method, role: str, sides: Mapping[str, TextSide]) -> dict[str, Any]:
    response, stand_in = example.aligned(role), Need.ENTROPY in method.needs
    groups = group_bytes(response.student_ends, response.teacher_ends) if stand_in else method.align(response)
    whole = method.rows is Rows.ALL and not stand_in  # then positions of the whole sequence are counted
    return {
        "item": example.id,
        "cut": example.cut,
        "student": token_side(sides[STUDENT], example, STUDENT),
        "teacher": token_side(sides[role], example, role),
        "groups": pairs(groups, [example.sides[r].prompt.size if whole else 0 for r in (STUDENT, role)]),
        "stand_in": stand_in,
    }
