"""From hidden rows to the loss, a chunk of rows at a time; gradients are made inside the chunk.

No tensor of shape [batch, length, vocabulary] exists: a chunk's logits are made, used for every term, turned into
gradients of the rows and of the head, and dropped before the next chunk begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.batches import Batch, EntropyArray, TeacherBatch, Term
from harness.heads import Head, hidden_states
from methods.base import AlignedChunk, Need, Side

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
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        teachers: dict[str, nn.Module] | None = None,
        teacher_heads: dict[str, Head] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
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
        walk = ChunkWalk(self.objective, Head.of(self.student), self._teachers[1], teacher_rows, batch, divisors)
        head = walk.student_head
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
    """One pass over the chunks of a batch."""

    def __init__(
        self,
        objective: Objective,
        student_head: Head,
        teacher_heads: dict[str, Head],
        teacher_rows: dict[str, Tensor],
        batch: Batch,
        divisors: Sequence[float],
    ) -> None:
        self.objective, self.student_head, self.teacher_heads = objective, student_head, teacher_heads
        self.teacher_rows, self.batch, self.divisors = teacher_rows, batch, divisors

    def run(
        self, rows: Tensor, parameters: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[LossParts, list[Tensor | None]]:
        """Sums of the loss, and the gradients of rows and parameters where wanted."""
        leaves = [p if p.requires_grad else p.requires_grad_(w) for p, w in zip(parameters, wanted[1:], strict=True)]
        # Parameter gradients are added up over chunks: in float32, so that bf16 does not lose the small ones.
        gradients: list[Tensor | None] = [torch.zeros_like(rows) if wanted[0] else None]
        gradients += [_accumulator(leaf) if want else None for leaf, want in zip(leaves, wanted[1:], strict=True)]
        total = _Sums(rows.device, len(self.objective.terms))
        total.ce_tokens = self.batch.targets.ne(-100).sum()
        for term in self.batch.terms:
            sums = torch.tensor(list(term.notes.values()), dtype=torch.float64, device=rows.device)
            total.note({name: pair.unbind() for name, pair in zip(term.notes, sums, strict=True)})
        for number in range(len(self.batch.chunks)):
            start, stop = self.batch.chunks[number]
            piece = rows[start:stop].detach().requires_grad_(wanted[0])
            made = self._chunk(number, piece, leaves, total, need_gradient=any(wanted))
            if made is None:
                continue
            inputs = [leaf for leaf, want in zip([piece, *leaves], wanted, strict=True) if want]
            grads = iter(made(inputs))
            if wanted[0]:
                assert gradients[0] is not None
                gradients[0][start:stop] = next(grads)
            for place, want in enumerate(wanted[1:], start=1):
                accumulated = gradients[place]
                if want and accumulated is not None:
                    accumulated += next(grads)
        cast = [None if g is None else g.to(like.dtype) for g, like in zip(gradients, [rows, *leaves], strict=True)]
        return total.parts(self.objective, self.divisors), cast

    def _chunk(
        self, number: int, rows: Tensor, leaves: Sequence[Tensor], total: _Sums, need_gradient: bool
    ) -> Callable[[list[Tensor]], Sequence[Tensor]] | None:
        """Add one chunk to the sums; give a function from inputs to their gradients, or None without gradients."""
        start, stop = self.batch.chunks[number]
        targets = self.batch.targets[start:stop]
        has_bias = self.student_head.bias is not None
        with torch.set_grad_enabled(need_gradient):
            logits = self.student_head.logits(rows, leaves[0], leaves[1] if has_bias else None)
            # Every term differentiates to a detached copy of the logits; the head is walked back once for their sum.
            surface = logits.detach().float() if logits.dtype in _LOW else logits.detach()
            surface.requires_grad_(need_gradient)
            ce = nn.functional.cross_entropy(surface, targets, ignore_index=-100, reduction="sum")
            kd = [self._term(k, number, surface, targets, total) for k in range(len(self.objective.terms))]
        total.add(ce, kd)
        if not need_gradient:
            return None
        own = list(leaves[1 + has_bias :])
        upstream, own_gradients = self._logit_gradients(surface, ce, kd, own, total)

        def gradients(inputs: list[Tensor]) -> Sequence[Tensor]:
            through_head = [tensor for tensor in inputs if not any(tensor is leaf for leaf in own)]
            found = list(torch.autograd.grad(logits, through_head, upstream.to(logits.dtype)))
            return found + own_gradients

        return gradients

    def _logit_gradients(
        self, surface: Tensor, ce: Tensor, kd: Sequence[Tensor], own: list[Tensor], total: _Sums
    ) -> tuple[Tensor, list[Tensor]]:
        """Gradient of the weighted, normalised chunk loss at the logits, and at the methods' own parameters."""
        (of_ce,) = torch.autograd.grad(ce, surface)
        total.ce_gradient += _squared_norm(of_ce) / self.divisors[0] ** 2
        upstream = of_ce.mul_(self.objective.ce_weight / self.divisors[0])
        of_own = [torch.zeros_like(parameter) for parameter in own]
        for k, (term, value) in enumerate(zip(self.objective.terms, kd, strict=True)):
            if not value.requires_grad:
                continue
            of_kd, *rest = torch.autograd.grad(value, [surface, *own], allow_unused=True)
            divisor = self.divisors[1 + k]
            if of_kd is not None:
                total.kd_gradient[k] += _squared_norm(of_kd) / divisor**2
                upstream.add_(of_kd, alpha=term.weight / divisor)
            for place, gradient in enumerate(rest):
                if gradient is not None:
                    of_own[place].add_(gradient, alpha=term.weight / divisor)
        return upstream, of_own

    def _term(self, k: int, number: int, logits: Tensor, targets: Tensor, total: _Sums) -> Tensor:
        """The KD sum of one term over one chunk."""
        term, groups = self.objective.terms[k], self.batch.terms[k]
        student_members, teacher_members, span, rows = groups.slices[number]
        if span[0] == span[1]:
            return logits.new_zeros(())
        with torch.no_grad():
            head = self.teacher_heads[term.teacher]
            teacher_logits = head.logits(self.teacher_rows[term.teacher][slice(*rows)])
            if teacher_logits.dtype in _LOW:
                teacher_logits = teacher_logits.float()
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
        sums = term.method.loss(AlignedChunk(student, teacher, span[1] - span[0]))
        total.note(sums.diagnostics)
        return sums.kd


class _Sums:
    """Running sums over chunks; all without gradient."""

    def __init__(self, device: torch.device, terms: int) -> None:
        self.ce = torch.zeros((), dtype=torch.float64, device=device)
        self.ce_tokens = torch.zeros((), dtype=torch.int64, device=device)
        self.kd = torch.zeros(terms, dtype=torch.float64, device=device)
        self.ce_gradient = torch.zeros((), dtype=torch.float64, device=device)
        self.kd_gradient = torch.zeros(terms, dtype=torch.float64, device=device)
        self.diagnostics: dict[str, Tensor] = {}

    def add(self, ce: Tensor, kd: Sequence[Tensor]) -> None:
        self.ce += ce.detach()
        for k, value in enumerate(kd):
            self.kd[k] += value.detach()

    def note(self, diagnostics: Any) -> None:
        for name, value in diagnostics.items():
            part, whole = value
            pair = torch.stack([part, torch.full_like(part, torch.nan) if whole is None else whole]).detach().double()
            self.diagnostics[name] = self.diagnostics.get(name, 0) + pair

    def parts(self, objective: Objective, divisors: Sequence[float]) -> LossParts:
        weights = torch.tensor([term.weight for term in objective.terms], dtype=torch.float64, device=self.kd.device)
        scale = torch.tensor(divisors, dtype=torch.float64, device=self.kd.device)
        loss = objective.ce_weight * self.ce / scale[0] + (weights * self.kd / scale[1:]).sum()
        return LossParts(loss, self.ce, self.ce_tokens, self.kd, self.ce_gradient, self.kd_gradient, self.diagnostics)


def entropies(head: Head, rows: Tensor, chunk_rows: int) -> EntropyArray:
    """float64 [rows]: entropy, in nats, of the next-token distribution of each row; logits exist for a chunk only."""
    found = []
    for start in range(0, len(rows), chunk_rows):
        logits = head.logits(rows[start : start + chunk_rows])
        log_probs = (logits.float() if logits.dtype in _LOW else logits).log_softmax(-1)
        found.append(-(log_probs.exp() * log_probs).sum(-1))
    joined: EntropyArray = torch.cat(found).double().cpu().numpy()
    return joined


_LOW = (torch.bfloat16, torch.float16)


def _squared_norm(gradient: Tensor) -> Tensor:
    """Sum of squares, without a copy of the gradient."""
    norm: Tensor = torch.linalg.vector_norm(gradient)
    return norm.square()


def _accumulator(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.float32 if parameter.dtype in _LOW else parameter.dtype)
