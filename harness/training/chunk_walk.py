"""One pass over the chunks of a batch: logits, losses and gradients, a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.data.batches import Batch
from harness.models.heads import LOW_PRECISION, Head, widened
from harness.training.batch_sums import BatchSums
from harness.training.head_gradient import add_through_head
from harness.training.objective import LossParts, Objective
from harness.training.rollout_share import ACCEPTED, accepted, follows_acceptance
from harness.training.row_scalars import ReadResponse, ReadRows, in_blocks
from methods.base import AlignedChunk, Hidden, LossSums, Method, Need, Side
from methods.library.closed_form import add_smoothing, compiling, cross_entropy
from methods.library.kernels import kernels_for


class ChunkWalk:
    """One pass over the chunks of a batch. Nothing in it waits for the device.

    Args:
        objective: what is minimised.
        student_head: the head whose logits it is minimised over.
        teacher_heads, teacher_rows: by role.
        batch: where chunks and groups are.
        divisors: of CE and of each term.
        scales: further factors of the terms; none: 1.
        compiled: whether losses in closed form run through ``torch.compile``.
    """

    def __init__(
        self,
        objective: Objective,
        student_head: Head,
        teacher_heads: dict[str, Head],
        teacher_rows: dict[str, Tensor],
        batch: Batch,
        divisors: Sequence[float],
        scales: Sequence[float] = (),
        compiled: bool = False,
    ) -> None:
        self.objective, self.student_head, self.teacher_heads = objective, student_head, teacher_heads
        self.teacher_rows, self.batch, self.divisors, self.compiled = teacher_rows, batch, divisors, compiled
        self.scales = scales or [1.0] * len(objective.terms)

    def run(
        self, rows: Tensor, parameters: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[LossParts, list[Tensor | None]]:
        """Sums of the loss, and the gradients of rows and parameters where wanted.

        Args:
            rows: [rows, hidden], of the student.
            parameters: the head's weight, its bias where it has one, and the methods' own.
            wanted: for rows and each parameter, whether its gradient is.
        """
        of_head = 1 if self.student_head.bias is None else 2
        own = list(parameters[of_head:])
        given = replace(self.student_head, weight=parameters[0], bias=parameters[1] if of_head == 2 else None)
        # Products run in one precision; casts of whole heads are made here once, not in every chunk.
        head = given.to(_precision(rows))
        roles = {term.teacher for term in self.objective.terms} & self.teacher_rows.keys()
        teachers = {role: self.teacher_heads[role].to(_precision(self.teacher_rows[role])) for role in roles}
        # Parameter gradients are added up over chunks: in float32, so that bf16 does not lose the small ones.
        gradients: list[Tensor | None] = [torch.zeros_like(rows) if wanted[0] else None]
        gradients += [_accumulator(p) if want else None for p, want in zip(parameters, wanted[1:], strict=True)]
        total = BatchSums(rows.device, self.batch)
        precision = torch.float32 if head.weight.dtype in LOW_PRECISION else head.weight.dtype
        self._known: dict[int, Any] = {}
        self._ce_scale = rows.new_full((), self.objective.ce_weight / self.divisors[0], dtype=precision)
        self._largest = max((stop - start for start, stop in self.batch.chunks), default=1)
        self._responses = self._read_responses(rows, head, teachers, total)
        with compiling(self.compiled):
            for number in range(len(self.batch.chunks)):
                self._survey(number, rows, head, teachers)
                self._through_chunk(
                    number, rows, head, teachers, own, gradients[: 1 + of_head], gradients[1 + of_head :], total
                )
        cast = [None if g is None else g.to(like.dtype) for g, like in zip(gradients, [rows, *parameters], strict=True)]
        return total.parts(self.objective, self.divisors, self.scales), cast

    @torch.no_grad()
    def _survey(self, number: int, rows: Tensor, head: Head, teachers: dict[str, Head]) -> None:
        """Where a response begins: what losses must know of all its chunks."""
        for k, (term, groups) in enumerate(zip(self.objective.terms, self.batch.terms, strict=True)):
            if Need.SURVEY not in term.method.needs or not (pieces := groups.pieces(number)):
                continue
            self._known[k] = None
            if len(pieces) > 1:
                surveys = [self._surveyed(k, each, rows, head, teachers) for each in pieces]
                self._known[k] = term.method.conclude([each for each in surveys if each is not None])

    # Any: whatever the method makes of it
    def _surveyed(self, k: int, number: int, rows: Tensor, head: Head, teachers: dict[str, Head]) -> Any:
        """What a method says of one chunk; None where the chunk has no group."""
        method, (start, stop) = self.objective.terms[k].method, self.batch.chunks[number]
        logits = head.logits(rows[start:stop].to(head.weight.dtype))
        chunk = self._aligned(k, number, logits, self.batch.targets[start:stop], teachers)
        if chunk is None:
            return None
        leaves = _Leaves(logits, rows[start:stop], head, self._tokens_read(start, stop))
        with _precision_of(method, rows.device):
            return method.survey(_by_torch(method, chunk, leaves))

    def _through_chunk(
        self,
        number: int,
        rows: Tensor,
        head: Head,
        teachers: dict[str, Head],
        own: list[Tensor],
        of_head: list[Tensor | None],
        of_own: list[Tensor | None],
        total: BatchSums,
    ) -> None:
        """Add one chunk to the sums and to all gradients; nothing of its size is left when the next one begins.

        Args:
            of_head: gradients of rows, weight and bias.
            of_own: of the methods' own parameters.
        """
        start, stop = self.batch.chunks[number]
        piece = rows[start:stop].to(head.weight.dtype)
        with torch.no_grad():
            logits = head.logits(piece)
        leaves = _Leaves(logits, rows[start:stop], head, self._tokens_read(start, stop))
        upstream = self._chunk(number, leaves, teachers, own, of_own, total)
        if any(gradient is not None for gradient in of_head):
            with torch.no_grad():
                add_through_head(head, piece, logits, upstream, of_head, start)
                if of_head[0] is not None and leaves.at_hidden is not None:
                    of_head[0][start:stop] += leaves.at_hidden.to(rows.dtype)

    def _chunk(
        self,
        number: int,
        full: _Leaves,
        teachers: dict[str, Head],
        own: list[Tensor],
        of_own: list[Tensor | None],
        total: BatchSums,
    ) -> Tensor:
        """Add one chunk to the sums and to the gradients of the methods' own parameters.

        Returns:
            [rows, vocabulary], the gradient of the weighted, normalised loss at the logits.
        """
        logits = full.raw
        start, stop = self.batch.chunks[number]
        targets = self.batch.targets[start:stop]
        kernels, scale = kernels_for(logits), self._ce_scale
        found: list[tuple[Tensor, float]] = []
        upstream = lse = None
        if kernels is not None:  # what has a kernel adds to the gradient of the cross-entropy
            ce, norm, upstream, lse = kernels.cross_entropy(logits, targets, scale)
        for k in range(len(self.objective.terms)):
            by_response = self.batch.terms[k].responses is not None
            chunk = None if by_response else self._aligned(k, number, logits, targets, teachers)
            if chunk is None:
                continue
            gradient, share = self._term(k, chunk, full, lse, upstream, own, of_own, total)
            if gradient is not None and upstream is not None:
                upstream.add_(gradient, alpha=share)
            elif gradient is not None:
                found.append((gradient, share))
            del chunk, gradient  # the next teacher's logits need the room
        if upstream is None:
            ce, norm, upstream = cross_entropy(full.logits.detach(), targets, scale)
        total.ce.append(ce)
        total.ce_gradient.append(norm)
        if smoothed := self.objective.label_smoothing:
            total.smoothing.append(smoothed * add_smoothing(logits, targets, upstream, smoothed * scale))
        for gradient, share in found:
            upstream.add_(gradient, alpha=share)
        for k, response in self._responses:
            total.kd_gradient[k] += response.add_gradient(
                logits, upstream, start, in_blocks(self._largest), self._share(k)
            )
        return upstream

    def _share(self, k: int) -> float:
        """Of a term in the loss."""
        term = self.objective.terms[k]
        return term.weight / self.divisors[1 + k] * self.scales[k]

    def _term(
        self,
        k: int,
        chunk: AlignedChunk,
        full: _Leaves,
        lse: Tensor | None,
        upstream: Tensor | None,
        own: list[Tensor],
        of_own: list[Tensor | None],
        total: BatchSums,
    ) -> tuple[Tensor | None, float]:
        """Add a term's loss of one chunk to the sums.

        Returns:
            Its gradient at the logits, None where a kernel has added it to ``upstream`` or there is none, and its
            share of the loss.
        """
        term, share = self.objective.terms[k], self._share(k)
        sums = _sums(term.method, chunk, full, lse, upstream, share)
        total.kd[k].append(sums.kd.detach())
        total.note(sums.diagnostics)
        if self.batch.sampled and follows_acceptance(term.method):
            total.note({ACCEPTED: accepted(chunk)})
        gradient, squares = sums.gradient, sums.squared_norm
        if gradient is None and sums.kd.requires_grad:
            read = [full.hidden] if Need.HIDDEN in term.method.needs else []
            leaves = [*own, *read, *([full.logits] if squares is None else [])]
            found_at = [*torch.autograd.grad(sums.kd, leaves, allow_unused=True)]
            gradient = found_at.pop() if squares is None else None
            rest = found_at[: len(own)]
            if read:
                full.add_at_hidden(found_at[-1], share)
            for place, of_parameter in zip(of_own, rest, strict=True):
                if place is not None and of_parameter is not None:
                    place.add_(of_parameter, alpha=share)
        if gradient is not None:
            squares = torch.linalg.vector_norm(gradient).square()
        if squares is not None:
            total.kd_gradient[k].append(squares)
        return gradient, share

    def _read_responses(
        self, rows: Tensor, head: Head, teachers: dict[str, Head], total: BatchSums
    ) -> list[tuple[int, ReadResponse]]:
        """Losses of whole responses that read numbers of rows, each with its term: they go into the sums at once."""
        found = []
        for k, (term, groups) in enumerate(zip(self.objective.terms, self.batch.terms, strict=True)):
            for number, (start, stop) in enumerate(groups.responses or ()):
                *_, span, theirs = groups.slices[number]
                if span[0] == span[1]:
                    continue
                student = ReadRows(head, rows[start:stop], self._largest, differentiable=True)
                taught = head, student.hidden  # where nobody teaches
                if term.teacher in teachers:
                    taught = teachers[term.teacher], self.teacher_rows[term.teacher][slice(*theirs)]
                teacher = ReadRows(*taught, self._largest, differentiable=False)
                chunk = self._of(k, number, student.none, self.batch.targets[start:stop], teacher.none)
                ours, of_teacher = chunk.student.with_source(student), chunk.teacher.with_source(teacher)
                read = ReadResponse(term.method, replace(chunk, student=ours, teacher=of_teacher), student, start)
                total.kd[k].append(read.sums.kd)
                total.note(read.sums.diagnostics)
                found.append((k, read))
        return found

    def _tokens_read(self, start: int, stop: int) -> Tensor | None:
        """int64 [rows]: the token that each of these rows of the student has read; None where no method asks."""
        if all(teacher.read is None for teacher in self.batch.teachers.values()):
            return None
        return self.batch.input_ids.flatten().index_select(0, self.batch.row_index[start:stop])

    def _aligned(
        self, k: int, number: int, logits: Tensor, targets: Tensor, teachers: dict[str, Head]
    ) -> AlignedChunk | None:
        """One term's groups of one chunk over logits as the heads give them; None where the chunk has no group."""
        term, groups = self.objective.terms[k], self.batch.terms[k]
        *_, span, rows = groups.slices[number]
        if span[0] == span[1]:
            return None
        if term.teacher in teachers:
            with torch.no_grad():
                head, taught = teachers[term.teacher], groups.of_teacher(number, self.teacher_rows[term.teacher])
                teacher_logits = head.logits(taught.to(head.weight.dtype))
        else:  # nobody teaches: the student's own
            first = self.batch.chunks[number][0]
            teacher_logits = logits[rows[0] - first : rows[1] - first]
        chunk = self._of(k, number, logits, targets, teacher_logits)
        if Need.HIDDEN in term.method.needs:
            read = self.batch.teachers[term.teacher].read
            assert read is not None
            hidden = Hidden(widened(taught), head, groups.of_teacher(number, read))
            chunk = replace(chunk, teacher=chunk.teacher.with_hidden(hidden))
        return chunk

    def _of(self, k: int, number: int, logits: Tensor, targets: Tensor, teacher_logits: Tensor) -> AlignedChunk:
        """One term's groups of one chunk, or of one response where they are cut by response."""
        term, groups = self.objective.terms[k], self.batch.terms[k]
        student_members, teacher_members, span, _ = groups.slices[number]
        in_order = groups.in_order[number]
        student = Side(
            logits,
            targets,
            groups.student_index[slice(*student_members)],
            groups.student_group[slice(*student_members)],
            groups.student_tokens[slice(*student_members)],
            in_order[0],
        )
        teacher = Side(
            teacher_logits,
            groups.of_teacher(number, self.batch.teachers[term.teacher].targets),
            groups.teacher_index[slice(*teacher_members)],
            groups.teacher_group[slice(*teacher_members)],
            groups.teacher_tokens[slice(*teacher_members)],
            in_order[1],
            None if groups.teacher_weight is None else groups.teacher_weight[slice(*teacher_members)],
        )
        paired = None if groups.paired is None else groups.paired[slice(*span)]
        return AlignedChunk(student, teacher, span[1] - span[0], groups.within[number][1], self._known.get(k), paired)


class _Leaves:
    """What a chunk's losses are differentiated at: in float32 at least, made when one asks for it.

    Attributes:
        raw: [rows, vocabulary], logits as the head gives them.
        read: see :class:`~methods.library.chunk.Hidden`.
        at_hidden: [rows, hidden], what losses of hidden rows add to the gradient there; None: nothing.
    """

    def __init__(self, raw: Tensor, rows: Tensor, head: Head, read: Tensor | None) -> None:
        self.raw, self._rows, self.head, self.read = raw, rows, head, read
        self.at_hidden: Tensor | None = None

    @cached_property
    def logits(self) -> Tensor:
        return widened(self.raw.detach()).requires_grad_()

    @cached_property
    def hidden(self) -> Tensor:
        """[rows, hidden]."""
        return widened(self._rows.detach()).requires_grad_()

    def add_at_hidden(self, gradient: Tensor | None, share: float) -> None:
        if gradient is not None:
            gradient = share * gradient
            self.at_hidden = gradient if self.at_hidden is None else self.at_hidden + gradient


def _sums(
    method: Method, chunk: AlignedChunk, full: _Leaves, lse: Tensor | None, upstream: Tensor | None, share: float
) -> LossSums:
    """A method's loss, by a kernel where it has one; then its gradient is in ``upstream`` already."""
    if lse is not None and upstream is not None:
        with torch.no_grad(), _precision_of(method, full.raw.device):
            sums = method.loss_into(_with_hidden(method, chunk, full), lse, upstream, share)
        if sums is not None:
            return sums
    # Losses without a gradient of their own differentiate to the logits, or to the hidden rows, no further.
    with torch.enable_grad(), _precision_of(method, full.raw.device):
        return method.loss(_by_torch(method, chunk, full))


def _by_torch(method: Method, chunk: AlignedChunk, full: _Leaves) -> AlignedChunk:
    """A chunk as losses without kernels take it."""
    chunk = _with_hidden(method, chunk, full)
    student, teacher = chunk.student.with_logits(full.logits), chunk.teacher.with_logits(widened(chunk.teacher.logits))
    return replace(chunk, student=student, teacher=teacher)


def _with_hidden(method: Method, chunk: AlignedChunk, full: _Leaves) -> AlignedChunk:
    if Need.HIDDEN not in method.needs:
        return chunk
    assert full.read is not None
    return replace(chunk, student=chunk.student.with_hidden(Hidden(full.hidden, full.head, full.read)))


def _precision_of(method: Method, device: torch.device) -> AbstractContextManager[object]:
    """Of hidden rows' products, only those with heads run in bf16."""
    own = Need.HIDDEN in method.needs
    return torch.autocast(device.type, enabled=False) if own else nullcontext()


def _precision(rows: Tensor) -> torch.dtype:
    """In which dtype the products of rows and head run: autocast's where it is on, as ``nn.functional.linear`` does."""
    kind = rows.device.type
    autocast = torch.is_autocast_enabled(kind) and rows.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if autocast else rows.dtype


def _accumulator(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.float32 if parameter.dtype in LOW_PRECISION else parameter.dtype)
