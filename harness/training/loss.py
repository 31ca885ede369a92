"""From hidden rows to the loss, a chunk of rows at a time; gradients are made inside the chunk.

No tensor of shape [batch, length, vocabulary] exists: a chunk's logits are made, used for every term, turned into
gradients of the rows and of the head, and dropped before the next chunk begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harness.data.batches import Batch, TeacherBatch
from harness.data.tokens import STUDENT
from harness.models.heads import Head, entropies, hidden_states
from harness.training.chunk_walk import ChunkWalk
from harness.training.graphs import LayerGraphs
from harness.training.objective import LossParts, Objective
from harness.training.sharding import read
from methods.base import Need

T = TypeVar("T")


class Distiller(nn.Module):
    """The module that is trained: the student and the loss in one forward, so that DDP and FSDP see every gradient.

    Args:
        student: causal language model.
        objective: what to minimise.
        teachers: live teachers by role; a role whose rows are stored needs none, only its head.
        teacher_heads: heads of all teachers by role.
        compiled: whether losses in closed form run through ``torch.compile``.
        graphs: replays the student's layers in training, where they can be; None runs them kernel by kernel.
        seed: of the numbers with which parameters of methods' own begin.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        teachers: dict[str, nn.Module] | None = None,
        teacher_heads: dict[str, Head] | None = None,
        compiled: bool = False,
        graphs: LayerGraphs | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student, self.compiled, self.graphs = student, compiled, graphs
        self.objective = objective
        # Plain dictionaries in a tuple: teachers must be no submodules, or they would be wrapped, saved and trained.
        teachers = teachers or {}
        heads = {role: Head.of(model) for role, model in teachers.items()} | (teacher_heads or {})
        self._teachers: tuple[dict[str, nn.Module], dict[str, Head]] = (teachers, heads)
        with torch.random.fork_rng(devices=[]):  # of the CPU alone, whose numbers are the same on every device
            torch.default_generator.manual_seed(seed)
            for term in objective.terms:
                if term.teacher in heads:  # a method that learns from rewards has none
                    term.method.build(Head.of(student), heads[term.teacher])
        self.own = nn.ModuleList(m for term in objective.terms if (m := term.method.trainable()) is not None)
        for model in teachers.values():
            model.eval().requires_grad_(False)

    def forward(self, batch: Batch, divisors: Sequence[float], scales: Sequence[float] = ()) -> LossParts:
        """Loss of a batch.

        Args:
            batch: see :class:`Batch`, on the student's device.
            divisors: from :meth:`Objective.divisors` of the whole window.
            scales: further factors of the terms, as of :mod:`harness.training.kd_scale`; none: 1.
        """
        rows = self._student_rows(batch)
        teacher_rows = {
            role: self._teacher_rows(role, part, batch.padded_behind)
            for role, part in batch.teachers.items()
            if role != STUDENT or role in self._teachers[0]  # else its own rows are the teacher's
        }
        if batch.unaligned is not None:
            batch = self._align(batch, rows, teacher_rows)
        head = Head.of(self.student)
        heads = self._teachers[1]
        walk = ChunkWalk(self.objective, head, heads, teacher_rows, batch, divisors, scales, compiled=self.compiled)
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
        return replace(batch, chunks=chunks, terms=[term.sent(rows.device) for term in terms], unaligned=None)

    def _student_rows(self, batch: Batch) -> Tensor:
        """[rows, hidden], of those that go through the head."""
        if self.graphs is not None and self.graphs.takes(batch):
            hidden = self.graphs.hidden_states(batch.input_ids, batch.position_ids)
        else:
            hidden = hidden_states(
                self.student,
                batch.input_ids,
                batch.attention_mask,
                batch.position_ids,
                padded_behind=batch.padded_behind,
            )
        return hidden.flatten(0, 1).index_select(0, batch.row_index)

    @torch.no_grad()
    def _teacher_rows(self, role: str, part: TeacherBatch, padded_behind: bool) -> Tensor:
        if part.stored is not None:
            weight = self._teachers[1][role].weight
            return part.stored.to(device=weight.device, dtype=weight.dtype)
        assert part.input_ids is not None
        assert part.attention_mask is not None
        assert part.position_ids is not None
        # In the precision of its weights, as stored rows are made: autocast is the student's.
        with torch.autocast(part.input_ids.device.type, enabled=False):
            hidden = hidden_states(
                self._teachers[0][role],
                part.input_ids,
                part.attention_mask,
                part.position_ids,
                padded_behind=padded_behind,
            )
        return hidden.flatten(0, 1).index_select(0, part.row_index)

    def own_rates(self) -> dict[nn.Parameter, float]:
        """The learning rate of each parameter that has one of its own: those of methods that ask for it."""
        asked = [(term.method.trainable(), term.method.own_learning_rate) for term in self.objective.terms]
        return {
            parameter: rate
            for module, rate in asked
            if module is not None and rate is not None
            for parameter in module.parameters()
        }

    @property
    def vocabulary(self) -> int:
        """How many tokens the student chooses from."""
        return int(Head.of(self.student).weight.shape[0])

    def reading(self, work: Callable[[], T]) -> T:
        """What work gives: see :func:`harness.training.sharding.read`."""
        return work()

    @torch.no_grad()
    def cross_entropy(self, batch: Batch, chunk_rows: int = 256) -> float:
        """Mean cross-entropy of a batch's response tokens, in nats, as the student is now; dropout is off."""
        return read(self, lambda: self._cross_entropy(batch, chunk_rows))

    def _cross_entropy(self, batch: Batch, chunk_rows: int) -> float:
        was_training, head = self.student.training, Head.of(self.student)
        self.student.eval()
        rows = self._student_rows(batch)
        self.student.train(was_training)
        total = 0.0
        for piece, targets in zip(torch.split(rows, chunk_rows), torch.split(batch.targets, chunk_rows), strict=True):
            logits = head.logits(piece).float()
            total += float(nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"))
        return total / max(int(batch.targets.ne(-100).sum()), 1)

    # Any: whatever torch's own takes and gives
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters without the second name of tied ones: safetensors refuses shared memory. Pieces have both."""
        kept: dict[str, Any] = {}
        seen: set[int] = set()
        for name, value in super().state_dict(*args, **kwargs).items():
            is_whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
            if is_whole and value.numel() and value.data_ptr() in seen:
                continue
            if is_whole:
                seen.add(value.data_ptr())
            kept[name] = value
        return kept

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        """Names that :meth:`state_dict` leaves out; transformers' Trainer does not miss them when it resumes."""
        return sorted(super().state_dict().keys() - self.state_dict().keys())

    def tie_weights(self) -> None:
        """Nothing to do: a tied parameter is one tensor under two names. Called by the Trainer after loading."""

    def activation_checkpointing_enable(self, **settings: object) -> None:
        """Recompute the student's activations in the backward pass; called by the Trainer."""
        student: Any = self.student
        student.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, **settings: object) -> None:
        """The same under the name that transformers before 5.23 calls."""
        student: Any = self.student
        student.gradient_checkpointing_enable(**settings)


class _Chunked(torch.autograd.Function):
    """Runs a walk in the forward pass, gradients included; the backward pass only scales them."""

    @staticmethod  # Any: torch's context, which takes what is put on it
    def forward(ctx: Any, walk: ChunkWalk, sink: list[LossParts], rows: Tensor, *parameters: Tensor) -> Tensor:
        wanted = list(ctx.needs_input_grad[2:])
        # The head is a function of the tensors that it is given; a method uses its own parameters as they are.
        of_head = 1 if walk.student_head.bias is None else 2
        leaves = [*(parameter.detach() for parameter in parameters[:of_head]), *parameters[of_head:]]
        parts, gradients = walk.run(rows.detach(), leaves, wanted)
        ctx.gradients = gradients
        sink.append(parts)
        return parts.loss

    @staticmethod  # Any: as above
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # in place: they are nobody else's, and a second gradient of the head is half a GiB at 150,000 tokens
        scaled = [None if gradient is None else gradient.mul_(scale) for gradient in ctx.gradients]
        ctx.gradients = None
        return None, None, *scaled
