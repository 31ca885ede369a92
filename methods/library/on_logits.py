"""A method's loss on logits that somebody else made: no engine, no recipe, any training loop.

alignment = harness.align(text, student_tokenizer, teacher_tokenizer, prompt=prompt)
kd = methods.loss("gold", student_logits, teacher_logits, alignment)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.library.alignment import AlignedResponse, Groups
from methods.library.chunk import AlignedChunk, LossSums
from methods.library.closed_form import IGNORED
from methods.library.method import Method, Need, Rows, TeacherKind
from methods.library.registry import find
from methods.library.vocabulary import TokenizerPair

_LOW_PRECISION = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Alignment:
    """A prompt and its response as two tokenizers cut them; ``harness.align`` makes it of text.

    Attributes:
        pair: both vocabularies; alignments of the same tokenizers share one, and what methods prepare for it.
        response: the response's tokens and where each ends, in bytes.
        student_ids, teacher_ids: int64 [length], what each model reads: the prompt, the response and its end.
    """

    pair: TokenizerPair
    response: AlignedResponse
    student_ids: Tensor
    teacher_ids: Tensor


def loss(
    method: str,
    student_logits: Tensor | Sequence[Tensor],
    teacher_logits: Tensor | Sequence[Tensor],
    alignment: Alignment | Sequence[Alignment],
    /,
    **options: Any,
) -> Tensor:
    """The distillation term of one response, or of several: the part of the total loss that a teacher gives.

    Its sum is divided as the method's option ``normalize`` says: by the student's response tokens (the default), by the
    groups of tokens, or by the responses, of all that is given. Neither the cross-entropy nor a weight is in it:
    ``ce_weight`` and ``kd_weight`` are the caller's. For gradients that are accumulated, or several processes,
    :func:`loss_sums` leaves the division to the caller.

    Args:
        method: name of a method with one teacher.
        student_logits, teacher_logits: [length, vocabulary], what each model says at every position of its own
            ``student_ids`` or ``teacher_ids``; of several responses a list, or [batch, length, vocabulary] padded on
            the right.
        alignment: of the response, or of each.
        options: of the method, as in a recipe.

    Returns:
        Scalar, in float32 at least; differentiable with respect to the student's logits.

    Raises:
        UnknownMethodError: no such method.
        ValidationError: an option that the method does not have, or a wrong value.
        ValueError: the method has no teacher, does not apply to these tokenizers or reads hidden rows, or logits
            and alignment differ in length or number.
    """
    found = loss_sums(method, student_logits, teacher_logits, alignment, **options)
    return found.sums.kd / max(found.counts[found.normalize], 1)


@dataclass(frozen=True)
class Summed:
    """The distillation term before it is divided.

    Attributes:
        sums: the sum over all responses, and the method's diagnostics.
        counts: of ``tokens`` (of the student, in the responses), ``rows`` (groups) and ``samples`` (responses).
        normalize: by which of them the method wants the sum to be divided.
    """

    sums: LossSums
    counts: Mapping[str, int]
    normalize: str


def loss_sums(
    method: str,
    student_logits: Tensor | Sequence[Tensor],
    teacher_logits: Tensor | Sequence[Tensor],
    alignment: Alignment | Sequence[Alignment],
    /,
    **options: Any,
) -> Summed:
    """The sum that :func:`loss` divides, and the counts; the same arguments and errors."""
    several = not isinstance(alignment, Alignment)
    alignments: Sequence[Alignment] = alignment if isinstance(alignment, Sequence) else [alignment]
    sides = [list(logits) if several else [logits] for logits in (student_logits, teacher_logits)]
    if not len(sides[0]) == len(sides[1]) == len(alignments) > 0:
        numbers = f"{len(sides[0])} student and {len(sides[1])} teacher logits for {len(alignments)} alignments"
        raise ValueError(f"expected logits of both models for each of one or more alignments; found {numbers}")
    found, rows, tokens = [], 0, 0
    for student, teacher, one in zip(*sides, alignments, strict=True):
        prepared = _prepared(method, one.pair, student.shape[-1], teacher.shape[-1], options)
        sums, groups = _sums_of(prepared, student, teacher, one)
        found.append(sums)
        rows, tokens = rows + groups.count, tokens + one.response.student_ids.size
    return Summed(
        _added(found), {"tokens": tokens, "rows": rows, "samples": len(alignments)}, normalize=prepared.normalize
    )


def _sums_of(method: Method, student: Tensor, teacher: Tensor, alignment: Alignment) -> tuple[LossSums, Groups]:
    """One response is one chunk."""
    response, kind = alignment.response, method.rows
    lead = 1 if kind is Rows.AFTER else 0  # the row before the response is one that groups may name, as -1
    logits, tokens = [], []
    for name, made, ids, prompt, own in (
        ("student", student, alignment.student_ids, response.student_prompt, response.student_ids),
        ("teacher", teacher, alignment.teacher_ids, response.teacher_prompt, response.teacher_ids),
    ):
        if made.dim() != 2 or len(made) < len(ids):
            raise ValueError(
                f"{name}_logits: found {list(made.shape)}, expected [length, vocabulary] with a row for each of "
                f"the {len(ids)} tokens that the {name} reads"
            )
        before = prompt if kind is Rows.ALL else lead
        first = 0 if kind is Rows.ALL else prompt - 1
        rows = made[first : first + before + own.size]
        logits.append(rows.float() if rows.dtype in _LOW_PRECISION else rows)
        tokens.append(np.concatenate([np.full(before, IGNORED), own]))
    if Need.ENTROPY in method.needs:
        entropies = [_entropies(rows[lead:]) for rows in logits]
        response = replace(response, student_entropy=entropies[0], teacher_entropy=entropies[1])
    groups = method.align(response)
    if not groups.count:
        return LossSums(_nothing(logits[0])), groups
    placed = replace(groups, student_index=groups.student_index + lead, teacher_index=groups.teacher_index + lead)
    predicting = kind is Rows.PREDICTING
    sums = method.loss(AlignedChunk.of(placed, logits[0], logits[1], tokens[0], tokens[1], predicting))
    diagnostics = {**sums.diagnostics, **_as_tensors(groups.notes, logits[0])}
    return LossSums(sums.kd + _nothing(logits[0]), diagnostics), groups


def _nothing(logits: Tensor) -> Tensor:
    """A scalar 0 that autograd traces to the logits, since a term may have no gradient of its own (released MinED)."""
    return logits[:0].sum()


def _entropies(logits: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """float64 [rows], in nats."""
    log_probs = logits.detach().log_softmax(-1)
    found: np.ndarray[Any, np.dtype[np.float64]] = -(log_probs.exp() * log_probs).sum(-1).double().cpu().numpy()
    return found


def _as_tensors(notes: Mapping[str, tuple[float, float]], like: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    return {name: (like.new_tensor(part), like.new_tensor(whole)) for name, (part, whole) in notes.items()}


def _added(parts: Sequence[LossSums]) -> LossSums:
    """The sums of several responses as one."""
    diagnostics: dict[str, tuple[Tensor, Tensor | None]] = {}
    for sums in parts:
        for name, (part, whole) in sums.diagnostics.items():
            before = diagnostics.get(name)
            if before is not None:
                part = before[0] + part
                whole = whole if before[1] is None or whole is None else before[1] + whole
            diagnostics[name] = part, whole
    return LossSums(torch.stack([sums.kd for sums in parts]).sum(), diagnostics)


class _Prepared(dict[tuple[Any, ...], Method]):
    """Methods that are prepared for a pair, by name, options and widths of the logits."""


def _prepared(name: str, pair: TokenizerPair, student: int, teacher: int, options: Mapping[str, Any]) -> Method:
    kind = find(name)
    if kind.teacher is TeacherKind.NONE:
        raise ValueError(f"{name} has no teacher, so it has no distillation term")
    made = kind(**options)
    known = pair.shared(_Prepared)
    key = kind, made.options.model_dump_json(), student, teacher
    if key not in known:
        within = replace(pair, student=pair.student.within(student), teacher=pair.teacher.within(teacher))
        if (reason := made.refuses(within)) is not None:
            raise ValueError(reason)
        if Need.HIDDEN in made.needs:
            raise ValueError(f"{name} reads hidden rows, which only the engine hands over")
        made.prepare(within)
        if made.trainable() is not None:
            raise ValueError(f"{name} trains parameters of its own, which only the engine does")
        known[key] = made
    return known[key]
