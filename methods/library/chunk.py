"""One chunk of rows as a method's loss sees it, and what the loss returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from methods.library.alignment import Groups, IntArray
from methods.library.closed_form import IGNORED, with_gradient
from methods.library.reading import RowFunction, added, blocks, by_rows


@dataclass(frozen=True)
class LossSums:
    """What a method returns for a chunk.

    Attributes:
        kd: scalar, the SUM of the distillation loss over the chunk (the engine divides by the window's count).
        diagnostics: by name, without gradient, a sum over the chunk and what it is a share of: another sum, or None
            for the response tokens.
        gradient: of ``kd`` at the chunk's student logits, [rows, vocabulary], where the method has it in closed form;
            then ``kd`` needs no graph. See :meth:`LossSums.closed`.
        squared_norm: scalar, of that gradient, where :meth:`Method.loss_into` has added it already.
    """

    kd: Tensor
    diagnostics: Mapping[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    gradient: Tensor | None = None
    squared_norm: Tensor | None = None

    @classmethod
    def closed(
        cls,
        logits: Tensor,
        kd: Tensor,
        gradient: Tensor,
        diagnostics: Mapping[str, tuple[Tensor, Tensor | None]] | None = None,
    ) -> LossSums:
        """A loss whose gradient at ``logits`` is known; autograd finds it too."""
        return cls(with_gradient(logits, kd, gradient), diagnostics or {}, gradient)


class Members(NamedTuple):
    """What :class:`Side` holds of groups, as a loss in closed form takes it."""

    logits: Tensor
    row: Tensor
    group: Tensor
    tokens: Tensor
    in_order: bool


class OutputHead(Protocol):
    """A model's output head: ``logits(rows)`` is a function of ``scale * (rows @ weight.T + bias)``."""

    @property
    def weight(self) -> Tensor:
        """[vocabulary, width]."""

    @property
    def bias(self) -> Tensor | None:
        """[vocabulary]."""

    @property
    def scale(self) -> float:
        """Factor of the logits."""

    def logits(self, rows: Tensor) -> Tensor:
        """[n, vocabulary] from hidden rows [n, width]."""

    def embedded(self, tokens: Tensor) -> Tensor:
        """[n, width]: what the model's embedding layer makes of tokens, int64 [n], without gradient.

        A teacher whose rows are stored may be read for it once more, which :meth:`Method.build` has the room for.
        """


@dataclass(frozen=True)
class Hidden:
    """What the logits of a side were made of.

    Attributes:
        rows: [rows, width], last hidden states, in float32 at least; requires grad on the student's side. What passes
            through it comes to the student's layers beside the gradient at the logits.
        head: held fixed: no gradient reaches it here. Its weights may be of lower precision.
        read: int64 [rows], the token that each row has read.
    """

    rows: Tensor
    head: OutputHead
    read: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """[n, vocabulary], what the head makes of any hidden rows [n, width], in their precision."""
        return self.head.logits(rows.to(self.head.weight.dtype)).to(rows.dtype)

    def products(self, rows: Tensor) -> Tensor:
        """[n, vocabulary], of hidden rows with the head's weight alone, in their precision."""
        return nn.functional.linear(rows.to(self.head.weight.dtype), self.head.weight).to(rows.dtype)

    def embedded(self, index: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings, without gradient, of what some rows have read and of the tokens that they predict.

        Args:
            index, tokens: int64 [n], of the rows, and their tokens.

        Returns:
            Two of [n, width], in the rows' precision.
        """
        read = self.read.index_select(0, index)
        return self.head.embedded(read).to(self.rows.dtype), self.head.embedded(tokens).to(self.rows.dtype)


class RowSource(Protocol):
    """Rows whose logits are made a block at a time, whenever they are read: see :meth:`Side.read`."""

    def read(self, function: RowFunction) -> Tensor:
        """As :meth:`Side.read`."""

    def total(self, function: RowFunction) -> Tensor:
        """As :meth:`Side.total`."""


class Side:
    """One model's rows of a chunk.

    Attributes:
        logits: [rows, vocabulary], the head's output; requires grad on the student's side. [0, vocabulary] for methods
            with ``Need.ROW_SCALARS``, whose rows are there for :meth:`read` and :meth:`total` alone.
        targets: int64 [rows], the token that each row predicts, -100 where it predicts no response token.
        index: int64 [members], row of each member of a group.
        group: int64 [members], group of each member, ascending.
        tokens: int64 [members], the response token that each member is (-100: one of the prompt). Where rows are
            PREDICTING, the member's row predicts it.
        in_order: True where ``index`` is 0, 1, ..., rows - 1, so that rows need no gathering.
        weight: [members], how much each counts, see :class:`~methods.library.alignment.Groups`; None: all alike.
    """

    def __init__(
        self,
        logits: Tensor,
        targets: Tensor,
        index: Tensor,
        group: Tensor,
        tokens: Tensor,
        in_order: bool,
        weight: Tensor | None = None,
    ) -> None:
        self.logits, self.targets, self.index, self.group, self.tokens = logits, targets, index, group, tokens
        self.in_order, self.weight = in_order, weight
        self._log_probs: dict[float, Tensor] = {}
        self._hidden: Hidden | None = None
        self._source: RowSource | None = None

    def read(self, function: RowFunction) -> Tensor:
        """[rows, c]: a few numbers of each row, differentiable, without logits of all rows at once.

        Args:
            function: [n, c] of logits [n, vocabulary], in float32 at least, and of which rows they are: each row's
                numbers from that row alone. It is asked once more where gradients are made, which reach the logits and
                no parameter that it may use.
        """
        if self._source is not None:
            return self._source.read(function)
        return by_rows(function, self.logits, torch.arange(len(self.logits), device=self.logits.device))

    @torch.no_grad()
    def total(self, function: RowFunction) -> Tensor:
        """The sum of what a function makes of some rows at a time, without gradient: what columns are chosen by."""
        if self._source is not None:
            return self._source.total(function)
        return added(function(self.logits[rows], rows) for rows in blocks(len(self.logits)))

    def with_source(self, source: RowSource) -> Side:
        """The same, read from a source."""
        made = self.with_logits(self.logits)
        made._source = source
        return made

    @property
    def hidden(self) -> Hidden:
        """The hidden rows behind the logits, and the head.

        Raises:
            ValueError: the method does not ask for them.
        """
        if self._hidden is None:
            raise ValueError("no hidden rows here: a method that reads them has Need.HIDDEN among its needs")
        return self._hidden

    @classmethod
    def of(cls, logits: Tensor, tokens: IntArray, index: IntArray, group: IntArray, predicting: bool) -> Side:
        """One side of :meth:`AlignedChunk.of`."""
        targets = tokens if predicting else np.append(tokens[1:], IGNORED)
        found = [torch.from_numpy(part).to(logits.device) for part in (targets, index, group, tokens[index])]
        return cls(logits, found[0], found[1], found[2], found[3], np.array_equal(index, np.arange(len(logits))))

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """[rows, vocabulary] log-probabilities of ``logits / temperature``; computed once per temperature."""
        if temperature not in self._log_probs:
            logits = self.logits if temperature == 1.0 else self.logits / temperature
            self._log_probs[temperature] = logits.log_softmax(-1)
        return self._log_probs[temperature]

    def first_columns(self, columns: int) -> Side:
        """The same rows over the first ``columns`` entries of the vocabulary."""
        return self.with_logits(self.logits[:, :columns])

    def over_columns(self, columns: Tensor) -> Side:
        """The same rows over chosen entries of the vocabulary, int64 [columns], in their order."""
        chosen = self.logits.index_select(1, columns.to(self.logits.device))
        return self.with_logits(chosen)

    def with_logits(self, logits: Tensor) -> Side:
        """The same rows and groups over other logits."""
        made = Side(logits, self.targets, self.index, self.group, self.tokens, self.in_order, self.weight)
        made._hidden = self._hidden
        return made

    def with_hidden(self, hidden: Hidden) -> Side:
        """The same with the hidden rows that the logits were made of."""
        made = self.with_logits(self.logits)
        made._hidden = hidden
        return made

    def paired_logits(self) -> Tensor:
        """[members, vocabulary]: the logits of the groups' members, in the order of the groups."""
        return self.logits if self.in_order else self.logits.index_select(0, self.index)

    def members(self) -> Members:
        """The rows and their groups as tensors, without gradient."""
        return Members(self.logits.detach(), self.index, self.group, self.tokens, self.in_order)

    def spread(self, gradient: Tensor) -> Tensor:
        """[rows, vocabulary]: the gradient at the logits of one at :meth:`paired_logits`, or at their first columns."""
        columns = self.logits.shape[-1]
        if not self.in_order:
            gradient = gradient.new_zeros(len(self.logits), gradient.shape[-1]).index_add_(0, self.index, gradient)
        missing = columns - gradient.shape[-1]
        return nn.functional.pad(gradient, (0, missing)) if missing else gradient

    def mean_logits(self, groups: int) -> Tensor:
        """[groups, vocabulary]: the mean of the logits of each group's members, weighted where there are weights."""
        logits = self.paired_logits()
        weight = self.logits.new_ones(self.index.shape) if self.weight is None else self.weight.to(self.logits.dtype)
        total = weight.new_zeros(groups).index_add(0, self.group, weight)
        share = (weight / total[self.group]).unsqueeze(-1)
        return logits.new_zeros(groups, logits.shape[-1]).index_add(0, self.group, logits * share)

    def paired_log_probs(self, temperature: float = 1.0) -> Tensor:
        """[members, vocabulary]: the rows of the groups' members, in the order of the groups."""
        rows = self.log_probs(temperature)
        return rows if self.in_order else rows.index_select(0, self.index)


@dataclass(frozen=True)
class AlignedChunk:
    """Rows of both models, closed under the method's groups: every member of a group is in the same chunk.

    Attributes:
        student: rows with gradient. Rows outside every group may stand between the members.
        teacher: rows without gradient.
        groups: number of groups in the chunk.
        within: number of groups in the response of the chunk, where the method asks for ``Need.ONE_RESPONSE``; None:
            all of them are in the chunk.
        known: what a survey says of the response, see ``Need.SURVEY``; None: the chunk is all of it.
        paired: bool [groups], which groups there are, where :meth:`Method.pair_all` made them: then each member of the
            student's is a group beside a row of the teacher, and of those that are none nothing counts. None: all are.
    """

    student: Side
    teacher: Side
    groups: int
    within: int | None = None
    known: Any = None
    paired: Tensor | None = None

    @property
    def response_groups(self) -> int:
        """What a mean over the groups of the chunk's response divides by, for a method with ``Need.ONE_RESPONSE``."""
        return self.groups if self.within is None else self.within

    @classmethod
    def of(
        cls,
        groups: Groups,
        student_logits: Tensor,
        teacher_logits: Tensor,
        student_tokens: IntArray,
        teacher_tokens: IntArray,
        predicting: bool = True,
    ) -> AlignedChunk:
        """A chunk of logits that somebody made: row i is the one that the groups call i.

        Args:
            groups: as :meth:`~methods.library.method.Method.align` gives them.
            student_logits, teacher_logits: [rows, vocabulary], float32 or float64; the teacher's get no gradient.
            student_tokens, teacher_tokens: int64 [rows], the response token of each row; -100 for one of the prompt.
            predicting: whether row i predicts token i, else it has consumed it.
        """
        student = Side.of(student_logits, student_tokens, groups.student_index, groups.student_group, predicting)
        teacher = Side.of(
            teacher_logits.detach(), teacher_tokens, groups.teacher_index, groups.teacher_group, predicting
        )
        if groups.teacher_weight is not None:
            teacher.weight = torch.from_numpy(groups.teacher_weight).to(teacher_logits.device)
        return cls(student, teacher, groups.count)

    def of_means(self) -> AlignedChunk:
        """A chunk of a row a group and side: the means of their members' logits."""
        number = torch.arange(self.groups, device=self.student.group.device)
        nothing = torch.full_like(number, IGNORED)  # a mean predicts no token
        student, teacher = (
            Side(side.mean_logits(self.groups), nothing, number, number, nothing, True)
            for side in (self.student, self.teacher)
        )
        return replace(self, student=student, teacher=teacher)

    def paired_over_shared_columns(self, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Paired log-probabilities of student and teacher over one vocabulary, both [members, columns].

        Sizes of one model family pad their logits differently (Qwen2: 151,936 and 152,064 for 151,646 tokens); the
        columns that both have are kept and renormalised.
        """
        student, teacher = self._over_shared_columns()
        return student.paired_log_probs(temperature), teacher.paired_log_probs(temperature)

    def paired_logits_over_shared_columns(self) -> tuple[Tensor, Tensor]:
        """The logits of :meth:`paired_over_shared_columns`, without gradient, for a loss in closed form."""
        student, teacher = self._over_shared_columns()
        return student.paired_logits().detach(), teacher.paired_logits()

    def members(self) -> tuple[Members, Members]:
        """Both sides as tensors, without gradient, for a loss in closed form."""
        return self.student.members(), self.teacher.members()

    def _over_shared_columns(self) -> tuple[Side, Side]:
        columns = min(self.student.logits.shape[-1], self.teacher.logits.shape[-1])
        student, teacher = (
            side if side.logits.shape[-1] == columns else side.first_columns(columns)
            for side in (self.student, self.teacher)
        )
        return student, teacher
