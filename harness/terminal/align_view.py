"""How two tokenizers cut a text, and what methods make of it: groups on shared bytes, an exact map, CDM's links.

A block shows the tokens of both sides above one another, group by group, so that it reads in a pipe too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.base.errors import HarnessError, unknown
from harness.data.rows import Example
from harness.data.templates import load_sides
from harness.data.tokens import STUDENT, SideTokens, tokenize
from harness.models.cache import Report
from harness.models.heads import Head, entropies, hidden_states
from harness.models.load import load_model
from harness.models.resolve import resolve
from harness.models.uri import parse_uri
from harness.recipe.schema import Recipe
from harness.terminal.align_block import PairView, ShownSide, visible
from methods.library.alignment import AlignedResponse, IntArray, group_bytes
from methods.library.maps import UNMAPPED, VocabularyMap, exact_map
from methods.library.vocabulary import TokenizerPair, TokenKind, Vocabulary
from methods.library.warping import EditCosts, FloatArray, confirmed_links, entropy_weights, warp

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec

BUILT_IN = Example(
    "built-in text",
    "How many clips did Zoë sell altogether?",
    "Zoë sold 48/2 = <<48/2=24>>24 clips in Malmö 🌈, and 1,024 online.\n#### 1048",
)


# --- what is shown ----------------------------------------------------------------------------------------------------


def chosen_text(recipe: Recipe, task: str | None, row: int | None, text: str | None, prompt: str | None) -> Example:
    """The text that a user asks for: one of their own, a training row of a task, or the built-in one.

    Raises:
        HarnessError: no such task or row, an empty text, or more than one of them.
    """
    if task is None and row is not None:
        raise HarnessError("--row", str(row), "task=NAME beside it", "Rows are those of a task's training file.")
    if task is None:
        if text is None:
            return BUILT_IN if prompt is None else replace(BUILT_IN, prompt=prompt)
        if not text:
            raise HarnessError("--text", "an empty text", "text to cut into tokens")
        return Example("text", "\n" if prompt is None else prompt, text)
    if text is not None or prompt is not None:
        raise HarnessError("--text", f"a text beside task={task}", "either of them")
    if task not in recipe.task_settings:
        raise unknown("task", task, recipe.task_settings)
    examples = recipe.task(task).training_examples()
    if not 0 <= (row or 0) < len(examples):
        raise HarnessError("--row", str(row), f"0 to {len(examples) - 1}, the training rows of {task}")
    return examples[row or 0]


def shown_pairs(recipe: Recipe, example: Example, with_entropies: bool, report: Report) -> list[PairView]:
    """The text for the student and each teacher with another tokenizer.

    Args:
        with_entropies: load the models, and weight CDM's costs by their entropies.
        report: called with a line where a model is downloaded.

    Raises:
        HarnessError: no teacher has another tokenizer; a tokenizer changes the text; a limit leaves nothing of it.
    """
    specs: dict[str, ModelSpec] = recipe.models_by_role()
    sides = load_sides(specs, report)
    student = sides[STUDENT].vocabulary
    pairs = {role: TokenizerPair(student, side.vocabulary) for role, side in sides.items() if role != STUDENT}
    others = [role for role, pair in pairs.items() if not pair.same_tokenizer]
    if not others:
        raise HarnessError(
            "teachers",
            f"{', '.join(sides[role].name for role in pairs) or 'none'} beside the student {student.name}",
            "a teacher with another tokenizer",
            "One tokenizer cuts a text in one way.",
        )
    tokens = tokenize([example], {role: sides[role] for role in (STUDENT, *others)}, recipe.limits.length)[0]
    note = f"{example.id}, {tokens.response_bytes:,} bytes"
    if tokens.cut:
        note += f", cut at limits.length={recipe.limits.length}, so that no EOS follows"
    found = {r: _entropies(specs[r], tokens.sides[r]) for r in (STUDENT, *others)} if with_entropies else {}
    return [
        _shown(pairs[role], tokens.aligned(role), [found[side] for side in (STUDENT, role)] if found else None, note)
        for role in others
    ]


def _shown(pair: TokenizerPair, response: AlignedResponse, of_rows: Sequence[FloatArray] | None, note: str) -> PairView:
    groups = group_bytes(response.student_ends, response.teacher_ends)
    costs = EditCosts(pair.student, pair.teacher).costs(response.student_ids, response.teacher_ids)
    weights = "flat, since no model is loaded"
    if of_rows is not None:
        costs = costs * np.outer(entropy_weights(of_rows[1]), entropy_weights(of_rows[0]))
        weights = "from entropies of the models as published"
    teacher, student = warp(costs)
    to_teacher, to_student = exact_map(pair.student, pair.teacher), exact_map(pair.teacher, pair.student)
    return PairView(
        _side(pair.student, to_teacher, response.student_ids, groups.student_index, groups.student_group),
        _side(pair.teacher, to_student, response.teacher_ids, groups.teacher_index, groups.teacher_group),
        groups.count,
        int((to_student != UNMAPPED).sum()),
        tuple(zip(teacher.tolist(), student.tolist(), strict=True)),
        confirmed_links(teacher, student, response.student_ends, response.teacher_ends),
        weights,
        note,
    )


def _side(own: Vocabulary, mapped: VocabularyMap, ids: IntArray, index: IntArray, group: IntArray) -> ShownSide:
    of_token = np.full(ids.size, -1, dtype=np.int64)
    of_token[index] = group
    tokens = tuple(visible(own.token_bytes[i], special=own.kinds[i] == TokenKind.SPECIAL) for i in ids)
    return ShownSide(own.name, tokens, of_token, mapped[ids] == UNMAPPED, len(own))


@torch.inference_mode()
def _entropies(spec: ModelSpec, tokens: SideTokens) -> FloatArray:
    """float64 [n], in nats, of the rows that predict the response."""
    local = resolve(parse_uri(spec.model))
    model = load_model(local.folder, attention=spec.attention, layers=spec.layers).eval()
    ids = torch.from_numpy(tokens.sequence)[None]
    hidden = hidden_states(model, ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None])
    first = tokens.prompt.size - 1
    found = entropies(Head.of(model), hidden[0, first : first + tokens.response.size], 256)
    return found.numpy()
