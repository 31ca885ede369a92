"""Methods that are broken on purpose, each in one place: a litmus that lets one pass would show nothing.

Most breaks are of any method: what it is handed, or what it gives back, is changed. Some are of one method, among them
two rules that this project had and that taught nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.base import AlignedChunk, Hidden, LossSums, Method, Need, RowFunction, Side
from methods.library.alignment import AlignedResponse, Groups
from methods.library.maps import UNMAPPED, Tables
from methods.library.vocabulary import TokenizerPair

Changed = Callable[[Method], dict[str, Any]]
"""What of a method's class is replaced, by name."""

_VALUES = "values of the loss by hand (tests/methods/test_values.py): AdamW divides by the gradient's size"
_PIECES = "rows of a piece by hand (tests/methods/test_cdm.py): here few pieces have several tokens"
_CONTROL_TOKENS = 3  # padding, and what begins and ends a text: no break is about these
_FACTOR = 10.0


@dataclass(frozen=True)
class Mutant:
    """A way to break a method.

    Attributes:
        how: in words.
        changes: see :data:`Changed`.
        options: that it has instead of what was asked for.
        of: the one method that can be broken so; empty for any.
        blind: methods that it leaves whole, with the reason.
        elsewhere: what catches it where this litmus can't.
    """

    how: str
    changes: Changed = lambda method: {}
    options: Mapping[str, object] = field(default_factory=dict)
    of: str = ""
    blind: tuple[tuple[str, str], ...] = ()
    elsewhere: str = ""

    def broken(self, method: Method) -> Method:
        """A method of the same name and options that is broken."""
        kind = type(method)
        broken = type(f"Broken{kind.__name__}", (kind,), {"loss_into": _no_kernel, **self.changes(method)})
        made: Method = broken(method.options.model_copy(update=dict(self.options)))
        return made

    def reason(self, method: Method) -> str:
        """Why it can't be caught here; empty where it must be."""
        return dict(self.blind).get(method.name, self.elsewhere)


def mutants_of(method: Method) -> Iterator[Mutant]:
    """Those that can be made of a method."""
    for mutant in MUTANTS:
        if mutant.of in ("", method.name):
            yield mutant


# --- Of any method ----------------------------------------------------------------------------------------------------


def _aligned(change: Callable[[Groups], Groups]) -> Changed:
    """Other groups than the method makes, whichever of its forms is asked: pairs that stay on a device are none."""

    def changes(method: Method) -> dict[str, Any]:
        def prepare(self: Method, pair: TokenizerPair) -> None:
            type(method).prepare(self, pair)
            method.prepare(pair)

        def align(self: Method, response: AlignedResponse) -> Groups:
            return change(method.align(response))

        def align_all(self: Method, responses: Sequence[AlignedResponse]) -> list[Groups]:
            return [change(groups) for groups in method.align_all(responses)]

        return {"prepare": prepare, "align": align, "align_all": align_all, "pair_all": Method.pair_all}

    return changes


def _handed(change: Callable[[Tensor], Tensor]) -> Changed:
    """Other logits of the teacher, [rows, vocabulary], than the method is handed."""

    def changes(method: Method) -> dict[str, Any]:
        kind = type(method)

        def loss(self: Method, chunk: AlignedChunk) -> LossSums:
            teacher = chunk.teacher
            if Need.ROW_SCALARS in self.needs:
                changed = teacher.with_source(_Changed(teacher, change))
            else:
                changed = teacher.with_logits(change(teacher.logits))
            return kind.loss(self, replace(chunk, teacher=changed))

        return {"loss": loss}

    return changes


class _Changed:
    """A side whose rows are read with other logits."""

    def __init__(self, side: Side, change: Callable[[Tensor], Tensor]) -> None:
        self.side, self.change = side, change

    def read(self, function: RowFunction) -> Tensor:
        return self.side.read(lambda logits, rows: function(self.change(logits), rows))

    def total(self, function: RowFunction) -> Tensor:
        return self.side.total(lambda logits, rows: function(self.change(logits), rows))


def _scaled(factor: float) -> Changed:
    """The term times a number."""

    def changes(method: Method) -> dict[str, Any]:
        kind = type(method)

        def loss(self: Method, chunk: AlignedChunk) -> LossSums:
            made = kind.loss(self, chunk)
            return LossSums(
                factor * made.kd, made.diagnostics, None if made.gradient is None else factor * made.gradient
            )

        return {"loss": loss}

    return changes


def _no_kernel(self: Method, *given: object) -> None:
    """What is changed is the loss: no other form of it may be asked."""


def _teacher_rows_later(groups: Groups) -> Groups:
    last = groups.teacher_index.max(initial=0)
    return replace(groups, teacher_index=np.minimum(groups.teacher_index + 1, last))


def _student_rows_earlier(groups: Groups) -> Groups:
    return replace(groups, student_index=np.maximum(groups.student_index - 1, 0))


def _next_group(groups: Groups) -> Groups:
    """Each group of the student's with the teacher's part of the next one."""
    if groups.count < 2:
        return groups
    ours, theirs = groups.student_group < groups.count - 1, groups.teacher_group > 0
    return Groups(
        groups.student_index[ours],
        groups.student_group[ours],
        groups.teacher_index[theirs],
        groups.teacher_group[theirs] - 1,
        groups.count - 1,
        None if groups.teacher_weight is None else groups.teacher_weight[theirs],
        groups.notes,
    )


def _of_another_response(logits: Tensor) -> Tensor:
    """Rows from half a chunk away: a chunk holds many short responses."""
    return logits.roll(len(logits) // 2, 0)


def _swapped_ids(logits: Tensor) -> Tensor:
    """Every two neighbours in the vocabulary have each other's logit."""
    order = torch.arange(logits.shape[1])
    stop = _CONTROL_TOKENS + (len(order) - _CONTROL_TOKENS) // 2 * 2
    order[_CONTROL_TOKENS:stop] = torch.arange(_CONTROL_TOKENS, stop).view(-1, 2).flip(1).flatten()
    return logits.index_select(1, order.to(logits.device))


def _random_map(logits: Tensor) -> Tensor:
    """Every token but the control tokens has some other token's logit."""
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(logits.shape[1])
    order[_CONTROL_TOKENS:] = _CONTROL_TOKENS + torch.randperm(len(order) - _CONTROL_TOKENS, generator=generator)
    return logits.index_select(1, order.to(logits.device))


# --- Of one method ----------------------------------------------------------------------------------------------------


def _lowest_id(method: Method) -> dict[str, Any]:
    """MinED's former rule: of several teacher tokens that reach one student token the lowest id counts.

    That is a piece of byte fallback wherever there is one, which its tokenizer never writes.
    """
    kind = type(method)

    def prepare(self: Any, pair: TokenizerPair) -> None:
        kind.prepare(self, pair)
        counted = self.student_of_teacher.numpy().copy()
        reached = np.flatnonzero(counted != UNMAPPED)
        _, first = np.unique(counted[reached], return_index=True)
        reaching = np.sort(reached[first])
        columns, place = np.unique(counted[reaching], return_inverse=True)
        self.tables = Tables(
            student_of_teacher=self.student_of_teacher,
            columns=torch.from_numpy(columns),
            reaching=torch.from_numpy(reaching),
            place=torch.from_numpy(place),
        )

    return {"prepare": prepare}


def _of_noise(method: Method) -> dict[str, Any]:
    """Nothing of the teacher is left but its embeddings."""
    kind = type(method)

    def loss(self: Method, chunk: AlignedChunk) -> LossSums:
        teacher, hidden = chunk.teacher, chunk.teacher.hidden
        generator = torch.Generator().manual_seed(len(hidden.rows))
        noise = torch.randn(hidden.rows.shape, generator=generator).to(hidden.rows)
        blank = teacher.with_logits(torch.zeros_like(teacher.logits))
        return kind.loss(self, replace(chunk, teacher=blank.with_hidden(Hidden(noise, hidden.head, hidden.read))))

    return {"loss": loss}


_ONE = "every token of dskd looks at all of the other side's: a response is one group"
_IDS = "uld sorts both distributions: it never asks which token is which (test-method holds that it does not)"
MUTANTS = (
    Mutant("the teacher's rows once the token is read, for those that predict it", _aligned(_teacher_rows_later)),
    Mutant("the student's rows one position early", _aligned(_student_rows_earlier)),
    Mutant("alignment off by one group", _aligned(_next_group), blind=(("dskd", _ONE),)),
    Mutant("the teacher's rows of another response", _handed(_of_another_response)),
    Mutant("neighbouring ids swapped in the vocabulary map", _handed(_swapped_ids), blind=(("uld", _IDS),)),
    Mutant("a random vocabulary map", _handed(_random_map), blind=(("uld", _IDS),)),
    Mutant("a teacher that finds all tokens alike", _handed(torch.zeros_like)),
    Mutant("τ = 4 on the teacher's side only", _handed(lambda logits: logits / 4)),
    Mutant("the gradient's sign flipped", _scaled(-1.0)),
    Mutant(f"the term {_FACTOR:g} times as large", _scaled(_FACTOR), elsewhere=_VALUES),
    Mutant("MinED's former rule: the lowest id counts", _lowest_id, of="mined"),
    Mutant("CDM's pieces by their first tokens", options={"pieces": "first"}, of="cdm", elsewhere=_PIECES),
    Mutant("GOLD without its matched part", options={"matched_weight": 0.0}, of="gold"),
    Mutant("a teacher of noise that finds all tokens alike", _of_noise, of="dskd"),
)
