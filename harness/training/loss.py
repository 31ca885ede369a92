"""From hidden rows to the loss, a chunk of rows at a time; gradients are made inside the chunk.

No tensor of shape [batch, length, vocabulary] exists: a chunk's logits are made, used for every term, turned into
gradients of the rows and of the head, and dropped before the next chunk begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.data.batches import Batch, TeacherBatch
from harness.data.terms import Term
from harness.models.heads import LOW_PRECISION, Head, entropies, hidden_states
from methods.base import AlignedChunk, LossSums, Need, Side
from methods.library.closed_form import compiling, cross_entropy

NORMALIZERS = {"tokens": 0, "samples": 1}  # places in Batch.counts; the groups of term k stand at 2 + k


@dataclass(frozen=True)
class Objective:
    """What a run minimises: ``ce_weight * CE + sum of weight_k * KD_k``.

    Attributes:
        name: label in tables, such as "uld".
        ce_weight: factor of the mean cross-entropy of the response tokens.
        terms: distillation terms; none for plain fine-tuning.
    """

    name: str
    ce_weight: float
    terms: tuple[Term, ...] = ()

    def divisors(self, counts: Tensor) -> list[float]:
        """What CE and each KD sum are divided by, from the summed counts of the window; waits for the device once."""
        places = [NORMALIZERS["tokens"]]
        places += [NORMALIZERS.get(term.method.normalize, 2 + k) for k, term in enumerate(self.terms)]
        known = counts.tolist()
        return [max(known[place], 1.0) for place in places]


@dataclass(frozen=True)
class LossParts:
    """A batch's loss and what it is made of. All but ``loss`` are without gradient.

    Attributes:
        loss: scalar, weighted and normalised.
        ce: scalar, sum of the cross-entropy over response tokens.
        ce_tokens: scalar, how many carry it: none of a response that the student sampled.
        kd: [terms], sum of each term's distillation loss.
        ce_gradient, kd_gradient: squared norms, at the student's logits, of the gradients of the normalised but
            unweighted CE and KD terms; scalar and [terms].
        diagnostics: by name, [2]: a sum, and the sum that it is a share of (NaN: the response tokens).
    """

    loss: Tensor
    ce: Tensor
    ce_tokens: Tensor
    kd: Tensor
    ce_gradient: Tensor
    kd_gradient: Tensor
    diagnostics: dict[str, Tensor]


class Distiller(nn.Module):
    """The module that is trained: the student and the loss in one forward, so that DDP and FSDP see every gradient.

    Args:
        student: causal language model.
        objective: what to minimise.
        teachers: live teachers by role; a role whose rows are stored needs none, only its head.
        teacher_heads: heads of all teachers by role.
        compiled: whether losses in closed form run through ``torch.compile``.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        teachers: dict[str, nn.Module] | None = None,
        teacher_heads: dict[str, Head] | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.compiled = student, compiled
        self.own = nn.ModuleList(m for term in objective.terms if (m := term.method.trainable()) is not None)
        self.objective = objective
        # Plain dictionaries in a tuple: teachers must be no submodules, or they would be wrapped, saved and trained.
        teachers = teachers or {}
        heads = {role: Head.of(model) for role, model in teachers.items()} | (teacher_heads or {})
        self._teachers: tuple[dict[str, nn.Module], dict[str, Head]] = (teachers, heads)
        for model in teachers.values():
            model.eval().requires_grad_(False)

    def forward(self, batch: Batch, divisors: Sequence[float]) -> LossParts:
        """Loss of a batch.

        Args:
            batch: see :class:`Batch`, on the student's device.
            divisors: from :meth:`Objective.divisors` of the whole window.
        """
        hidden = hidden_states(self.student, batch.input_ids, batch.attention_mask, batch.position_ids)
        rows = hidden.flatten(0, 1).index_select(0, batch.row_index)
        teacher_rows = {role: self._teacher_rows(role, part) for role, part in batch.teachers.items()}
        if batch.unaligned is not None:
            batch = self._align(batch, rows, teacher_rows)
        head = Head.of(self.student)
        walk = ChunkWalk(self.objective, head, self._teachers[1], teacher_rows, batch, divisors, compiled=self.compiled)
        own = [parameter for parameter in self.own.parameters() if parameter.requires_grad]
        parameters = [head.weight, *([] if head.bias is None else [head.bias]), *own]
        sink: list[LossParts] = []
        loss = _Chunked.apply(walk, sink, rows, *parameters)  # type: ignore[no-untyped-call]
        parts = sink[0]
        return replace(parts, loss=loss)

    @torch.no_grad()
    def _align(self, batch: Batch, rows: Tensor, teacher_rows: dict[str, Tensor]) -> Batch:
        """The batch with the groups of methods that align by entropies, from a first pass over all rows."""
        assert batch.unaligned is not None
        size = batch.unaligned.layout.chunk_rows
        student = entropies(Head.of(self.student), rows.detach(), size)
        asked = {term.teacher for term in self.objective.terms if Need.ENTROPY in term.method.needs}
        asked &= teacher_rows.keys()  # a sampled batch has only the teachers that score it
        teachers = {role: entropies(self._teachers[1][role], teacher_rows[role], size) for role in asked}
        chunks, terms = batch.unaligned.place(self.objective.terms, student, teachers)
        device = rows.device
        return replace(batch, chunks=chunks, terms=[term.to(device) for term in terms], unaligned=None)

    @torch.no_grad()
    def _teacher_rows(self, role: str, part: TeacherBatch) -> Tensor:
        if part.stored is not None:
            weight = self._teachers[1][role].weight
            return part.stored.to(device=weight.device, dtype=weight.dtype)
        assert part.input_ids is not None
        assert part.attention_mask is not None
        assert part.position_ids is not None
        # In the precision of its weights, as stored rows are made: autocast is the student's.
        with torch.autocast(part.input_ids.device.type, enabled=False):
            hidden = hidden_states(self._teachers[0][role], part.input_ids, part.attention_mask, part.position_ids)
        return hidden.flatten(0, 1).index_select(0, part.row_index)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters without the second name of tied ones, since safetensors refuses shared memory."""
        kept: dict[str, Any] = {}
        seen: set[int] = set()
        for name, value in super().state_dict(*args, **kwargs).items():
            if isinstance(value, Tensor) and value.numel() and value.data_ptr() in seen:
                continue
            if isinstance(value, Tensor):
                seen.add(value.data_ptr())
            kept[name] = value
        return kept

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        """Names that :meth:`state_dict` leaves out; transformers' Trainer does not miss them when it resumes."""
        return sorted(super().state_dict().keys() - self.state_dict().keys())

    def tie_weights(self) -> None:
        """Nothing to do: a tied parameter is one tensor under two names. Called by the Trainer after loading."""

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute the student's activations in the backward pass; called by the Trainer."""
        student: Any = self.student
        student.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """The same under the name that transformers before 5.23 calls."""
        student: Any = self.student
        student.gradient_checkpointing_enable(**settings)


class _Chunked(torch.autograd.Function):
    """Runs a walk in the forward pass, gradients included; the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, walk: ChunkWalk, sink: list[LossParts], rows: Tensor, *parameters: Tensor) -> Tensor:
        wanted = list(ctx.needs_input_grad[2:])
        # The head is a function of the tensors that it is given; a method uses its own parameters as they are.
        of_head = 1 if walk.student_head.bias is None else 2
        leaves = [*(parameter.detach() for parameter in parameters[:of_head]), *parameters[of_head:]]
        parts, gradients = walk.run(rows.detach(), leaves, wanted)
        ctx.gradients = gradients
        sink.append(parts)
        return parts.loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        scaled = [None if gradient is None else gradient * scale for gradient in ctx.gradients]
        ctx.gradients = None
        return None, None, *scaled


class ChunkWalk:
    """One pass over the chunks of a batch. Nothing in it waits for the device.

    Args:
        objective: what is minimised.
        student_head: the head whose logits it is minimised over.
        teacher_heads, teacher_rows: by role.
        batch: where chunks and groups are.
        divisors: of CE and of each term.
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
        compiled: bool = False,
    ) -> None:
        self.objective, self.student_head, self.teacher_heads = objective, student_head, teacher_heads
        self.teacher_rows, self.batch, self.divisors, self.compiled = teacher_rows, batch, divisors, compiled

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
        total = _Sums(rows.device, self.batch)
        with compiling(self.compiled):
            for number, (start, stop) in enumerate(self.batch.chunks):
                piece = rows[start:stop].to(head.weight.dtype)
                with torch.no_grad():
                    logits = _full(head.logits(piece))
                upstream = self._chunk(number, logits, teachers, own, gradients[1 + of_head :], total)
                if any(wanted[: 1 + of_head]):
                    with torch.no_grad():
                        _through_head(head, piece, logits, upstream, gradients[: 1 + of_head], start)
        cast = [None if g is None else g.to(like.dtype) for g, like in zip(gradients, [rows, *parameters], strict=True)]
        return total.parts(self.objective, self.divisors), cast

    def _chunk(
        self,
        number: int,
        logits: Tensor,
        teachers: dict[str, Head],
        own: list[Tensor],
        of_own: list[Tensor | None],
        total: _Sums,
    ) -> Tensor:
        """Add one chunk to the sums and to the gradients of the methods' own parameters.

        Returns:
            [rows, vocabulary], the gradient of the weighted, normalised loss at the logits.
        """
        targets = self.batch.targets[slice(*self.batch.chunks[number])]
        found: list[tuple[Tensor, float]] = []
        for k, term in enumerate(self.objective.terms):
            sums = self._term(k, number, logits, targets, teachers)
            if sums is None:
                continue
            total.kd[k].append(sums.kd.detach())
            total.note(sums.diagnostics)
            share = term.weight / self.divisors[1 + k]
            gradient = sums.gradient
            if gradient is None and sums.kd.requires_grad:
                gradient, *rest = torch.autograd.grad(sums.kd, [logits, *own], allow_unused=True)
                for place, of_parameter in zip(of_own, rest, strict=True):
                    if place is not None and of_parameter is not None:
                        place.add_(of_parameter, alpha=share)
            if gradient is not None:
                total.kd_gradient[k].append(torch.linalg.vector_norm(gradient).square() / self.divisors[1 + k] ** 2)
                found.append((gradient, share))
        scale = logits.new_full((), self.objective.ce_weight / self.divisors[0])
        ce, norm, upstream = cross_entropy(logits.detach(), targets, scale)
        total.ce.append(ce)
        total.ce_gradient.append(norm / self.divisors[0] ** 2)
        for gradient, share in found:
            upstream.add_(gradient, alpha=share)
        return upstream

    def _term(self, k: int, number: int, logits: Tensor, targets: Tensor, teachers: dict[str, Head]) -> LossSums | None:
        """The KD sum of one term over one chunk; None where the chunk has no group."""
        term, groups = self.objective.terms[k], self.batch.terms[k]
        student_members, teacher_members, span, rows = groups.slices[number]
        if span[0] == span[1]:
            return None
        with torch.no_grad():
            head = teachers[term.teacher]
            teacher_logits = _full(head.logits(self.teacher_rows[term.teacher][slice(*rows)].to(head.weight.dtype)))
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
            self.batch.teachers[term.teacher].targets[slice(*rows)],
            groups.teacher_index[slice(*teacher_members)],
            groups.teacher_group[slice(*teacher_members)],
            groups.teacher_tokens[slice(*teacher_members)],
            in_order[1],
            None if groups.teacher_weight is None else groups.teacher_weight[slice(*teacher_members)],
        )
        with torch.enable_grad():  # losses without a gradient of their own differentiate to the logits, no further
            logits.requires_grad_()
            return term.method.loss(AlignedChunk(student, teacher, span[1] - span[0]))


def _through_head(
    head: Head, rows: Tensor, logits: Tensor, upstream: Tensor, gradients: Sequence[Tensor | None], start: int
) -> None:
    """Add a chunk's share to the gradients of rows, weight and bias; the gradient at the logits is overwritten."""
    at_linear = head.at_linear(upstream, logits.detach())
    low = at_linear.to(rows.dtype)
    of_rows, of_weight, *of_bias = gradients
    if of_rows is not None:
        of_rows[start : start + len(rows)] = low @ head.weight
    if of_weight is not None:
        if of_weight.dtype == low.dtype:
            of_weight.addmm_(low.T, rows)  # adds inside of the product: no second [vocabulary, hidden] matrix
        else:
            of_weight.add_(low.T @ rows)
    for gradient in of_bias:
        if gradient is not None:
            gradient.add_(at_linear.sum(0))


class _Sums:
    """What the chunks of a batch add up to, without gradient. Kept in lists, and added up once at the end."""

    def __init__(self, device: torch.device, batch: Batch) -> None:
        self.device, self.batch = device, batch
        self.ce: list[Tensor] = []
        self.ce_gradient: list[Tensor] = []
        self.kd: list[list[Tensor]] = [[] for _ in batch.terms]
        self.kd_gradient: list[list[Tensor]] = [[] for _ in batch.terms]
        self.diagnostics: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        for term in batch.terms:
            self.note({name: (self._number(part), self._number(whole)) for name, (part, whole) in term.notes.items()})

    def note(self, diagnostics: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
        for name, (part, whole) in diagnostics.items():
            self.diagnostics.setdefault(name, []).append((part.detach(), None if whole is None else whole.detach()))

    def parts(self, objective: Objective, divisors: Sequence[float]) -> LossParts:
        ce = self._sum(self.ce)
        kd = [self._sum(values) for values in self.kd]
        loss = objective.ce_weight / divisors[0] * ce
        for term, value, divisor in zip(objective.terms, kd, divisors[1:], strict=True):
            loss = loss + term.weight / divisor * value
        return LossParts(
            loss,
            ce,
            self.batch.targets.ne(-100).sum(),
            torch.stack(kd) if kd else ce.new_zeros(0),
            self._sum(self.ce_gradient),
            torch.stack([self._sum(values) for values in self.kd_gradient]) if kd else ce.new_zeros(0),
            {name: self._pair(pairs) for name, pairs in self.diagnostics.items()},
        )

    def _pair(self, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """[2]: the sum of the parts and that of the wholes, NaN where there are none."""
        wholes = [whole for _, whole in pairs if whole is not None]
        whole = self._sum(wholes) if wholes else self._number(torch.nan)
        return torch.stack([self._sum([part for part, _ in pairs]), whole])

    def _sum(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack([*values]).double().sum() if values else self._number(0.0)

    def _number(self, value: float) -> Tensor:
        """A scalar that is filled in on the device: a copy from the host would wait for all that runs there."""
        return torch.full((), value, dtype=torch.float64, device=self.device)


def _full(logits: Tensor) -> Tensor:
    """Losses are computed in float32 at least."""
    return logits.float() if logits.dtype in LOW_PRECISION else logits


def _precision(rows: Tensor) -> torch.dtype:
    """In which dtype the products of rows and head run: autocast's where it is on, as ``nn.functional.linear`` does."""
    kind = rows.device.type
    autocast = torch.is_autocast_enabled(kind) and rows.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if autocast else rows.dtype


def _accumulator(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.float32 if parameter.dtype in LOW_PRECISION else parameter.dtype)
