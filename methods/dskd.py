"""DSKD: each model's hidden rows through the other's head, brought to its tokens by attention over embeddings.

Zhang et al., arXiv 2406.17328 (cross-model attention):

    L = CE + w · {Σ_i [-log z_i(y_i) + 1(argmax z_i = y_i) KL(z_i || p_S(i))] + Σ_j KL(p_T(j) || r_j)}

    z = softmax(A) M_t→s (h_T / σ + e_T / σ),   r = softmax(Aᵀ) M_s→t h_S,   each through its reader's head
    A = M_q [a_S; e_S] ([a_T; e_T] / σ)ᵀ / √(2D)

i, j: the response's tokens as student and teacher cut them; y_i: the student's own. h: last hidden rows, of which D is
the teacher's width; a, e: each model's embeddings of the token that a row has read and of the one that it predicts,
held fixed. σ: the standard deviation of all numbers of the matrix that it divides. The maps M have a bias and are
trained, M_q and M_t→s by the first part, M_q and M_s→t by the last, at a learning rate of their own; they begin as
torch's linear layers do. Heads are held fixed. Both KL are softened at τ, without a factor τ². The first part sees
e_T, and so the answer: that is why the second counts only where z finds y.

Of the paper only summaries were read: the equations are its code's (songmzhang/DSKD, dual_space_kd_with_cma, with its
forward KL), and so are embeddings as the model's layer gives them, with a factor where the layer has one (Gemma-3, not
Gemma-2). Ours, in both fidelities: σ, with n - 1 in its divisor, is of the response's rows; in the code it is of a
padded batch with its prompts, so that a row's loss depends on those beside it. What is measured at the student's logits
(the column "KD/CE gradient norm", ``kd_scale: match_gradient``) does not see the last part, which reaches the student
through its hidden rows.

``released``: z and r are products with the heads' weights alone. ``described`` takes the heads' bias, factor and bound
too, without which z and r are not what these heads make of rows (Gemma-2, Cohere). Nothing else differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import (
    AlignedChunk,
    Held,
    Hidden,
    KDOptions,
    LossSums,
    Method,
    Need,
    OutputHead,
    Positive,
    Side,
    TeacherKind,
    register,
)
from methods.library.alignment import AlignedResponse, Groups
from methods.library.closed_form import forward_kl_towards, towards, with_gradient

_PIECES = 16  # of a response: of what heads make of other rows, a sixteenth exists at a time


class DSKDOptions(KDOptions):
    temperature: Positive = Field(2.0, description="τ of both KL parts, divides the logits of both sides")
    projector_learning_rate: Positive | None = Field(
        1e-3, description="of the maps between both models' spaces; none: as the student's"
    )


@register
class DSKD(Method[DSKDOptions]):
    name, paper, teacher = "dskd", "arXiv 2406.17328", TeacherKind.CROSS_TOKENIZER
    summary = "KL in both models' spaces: hidden rows through the other model's head, brought there by attention"
    fidelities_differ = True
    Options = DSKDOptions
    zero_at_identity = False  # the cross-entropy of what the maps make remains
    projectors = 6  # M_q is of twice both widths

    maps: nn.ModuleDict | None = None

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.HIDDEN, Need.WHOLE_RESPONSE})

    @property
    def held(self) -> Held:
        return Held(2.5, 0.5)

    @property
    def held_into(self) -> Held | None:
        """Without kernels: :meth:`loss_into` runs by torch."""
        return Held(0.5, 0.5)

    @property
    def held_by_loops(self) -> Held | None:
        return self.held_into

    @property
    def own_learning_rate(self) -> float | None:
        return self.options.projector_learning_rate

    def trainable(self) -> nn.Module | None:
        return self.maps

    def build(self, student: OutputHead, teacher: OutputHead) -> None:
        """M_q, M_t→s and M_s→t."""
        weight, ours, theirs = student.weight, student.weight.shape[1], teacher.weight.shape[1]
        sizes = {"query": (2 * ours, 2 * theirs), "to_student": (theirs, ours), "to_teacher": (ours, theirs)}
        dtype = torch.promote_types(weight.dtype, torch.float32)
        made = nn.ModuleDict({name: nn.Linear(*size, dtype=dtype) for name, size in sizes.items()})
        self.maps = made.to(weight.device)
        teacher.embedded(weight.new_zeros(1, dtype=torch.int64))  # its layer is read here, where there is room for it

    def align(self, response: AlignedResponse) -> Groups:
        """One group: every token looks at all of the other side's."""
        ours, theirs = response.student_ids.size, response.teacher_ids.size
        if not ours or not theirs:
            return Groups.one_to_one([], [])
        return Groups(
            np.arange(ours),
            np.zeros(ours, dtype=np.int64),
            np.arange(theirs),
            np.zeros(theirs, dtype=np.int64),
            1,
        )

    def loss(self, chunk: AlignedChunk) -> LossSums:
        logits = chunk.student.logits
        gradient = torch.zeros_like(logits)
        parts = self._parts(chunk, gradient, 1.0)
        return LossSums(parts.of_rows + with_gradient(logits, parts.in_student, gradient), parts.diagnostics)

    def loss_into(self, chunk: AlignedChunk, lse: Tensor, upstream: Tensor, scale: float) -> LossSums | None:
        """Without a kernel, but also without float32 logits of the whole response."""
        with torch.enable_grad():  # for the maps, and for the hidden rows
            parts = self._parts(chunk, upstream, scale)
            kd = parts.of_rows + parts.in_student
        return LossSums(kd, parts.diagnostics, squared_norm=parts.squared_norm)

    def _parts(self, chunk: AlignedChunk, upstream: Tensor, scale: float) -> _Parts:
        """Adds ``scale`` times the gradient at the student's logits to ``upstream``."""
        tau, student, teacher, labels = self.options.temperature, chunk.student, chunk.teacher, chunk.student.tokens
        brought, returned = self._attended(chunk)
        found = []

        def into_student(rows: Tensor, part: slice) -> Tensor:
            projected, index = self._through(student.hidden, rows), student.index[part]
            agrees = projected.argmax(-1) == labels[part]
            ours = student.logits[index].to(projected.dtype)
            values, gradient = towards(ours, projected.detach(), agrees.to(projected.dtype), tau)
            found.append(torch.stack([values.sum(), gradient.square().sum(), agrees.sum().to(values.dtype)]))
            upstream[index] = upstream[index].add(gradient, alpha=scale).to(upstream.dtype)  # a token is there once
            return nn.functional.cross_entropy(projected, labels[part], reduction="sum")

        def into_teacher(rows: Tensor, part: slice) -> Tensor:
            made, index = self._through(teacher.hidden, rows), teacher.index[part]
            every = torch.arange(len(made), device=made.device)
            theirs = teacher.logits[index].to(made.dtype)
            return forward_kl_towards(made, every, theirs, every, torch.ones_like(made[:, 0]), tau)

        of_rows = _by_pieces(into_student, brought) + _by_pieces(into_teacher, returned)
        in_student, squared_norm, agreeing = torch.stack(found).sum(0)
        tokens = agreeing.new_full((), len(labels))
        return _Parts(of_rows, in_student, squared_norm, {"projection agrees": (agreeing, tokens)})

    def _attended(self, chunk: AlignedChunk) -> tuple[Tensor, Tensor]:
        """Rows for the student's head, one for each of its tokens, and for the teacher's, one for each of its."""
        ours, our_embeddings = _rows(chunk.student)
        theirs, their_embeddings = _rows(chunk.teacher)
        keys = _scaled(torch.cat(their_embeddings, -1))
        scores = self._mapped("query", torch.cat(our_embeddings, -1)) @ keys.T / math.sqrt(keys.shape[1])
        values = self._mapped("to_student", _scaled(theirs) + _scaled(their_embeddings[1]))
        return scores.softmax(-1) @ values, scores.T.softmax(-1) @ self._mapped("to_teacher", ours)

    def _mapped(self, name: str, rows: Tensor) -> Tensor:
        """Rows through one of the maps, in its precision."""
        assert self.maps is not None
        made: Tensor = self.maps[name](rows.to(next(self.maps.parameters()).dtype))
        return made.to(rows.dtype)

    def _through(self, side: Hidden, rows: Tensor) -> Tensor:
        """[n, vocabulary]: logits that a side's head makes of rows [n, width]."""
        return side.products(rows) if self._released else side.logits(rows)


class _Parts(NamedTuple):
    """Sums over a response.

    Attributes:
        of_rows: scalar, the first part and the last, which reach the maps and the student's rows.
        in_student: scalar, the second part, and ``squared_norm`` of its gradient at the student's logits.
    """

    of_rows: Tensor
    in_student: Tensor
    squared_norm: Tensor
    diagnostics: dict[str, tuple[Tensor, Tensor | None]]


def _by_pieces(function: Callable[[Tensor, slice], Tensor], rows: Tensor) -> Tensor:
    """The sum of what a function makes of rows, a piece of them at a time; the gradient is made with the value."""
    values: list[Tensor] = []
    gradients: list[Tensor] = []
    size = -(-len(rows) // _PIECES)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        piece = rows[part].detach().requires_grad_()
        value = function(piece, part)
        gradients += torch.autograd.grad(value, piece)
        values.append(value.detach())
    return with_gradient(rows, torch.stack(values).sum(), torch.cat(gradients))


def _rows(side: Side) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Hidden rows of the response's tokens, and the embeddings of what each has read and predicts: [n, width] each."""
    hidden = side.hidden
    return hidden.rows.index_select(0, side.index), hidden.embedded(side.index, side.tokens)


def _scaled(rows: Tensor) -> Tensor:
    """Divided by the standard deviation of all their numbers."""
    return rows / rows.std()
