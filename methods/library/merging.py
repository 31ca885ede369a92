"""Merging: one row of masses for a group of tokens, so that groups of different sizes can be compared.

Two tokenisations of the same bytes need different numbers of tokens. p_i is the distribution in the row of the group's
i-th token, token_i that token, m(y) the merged mass of y. A group of one keeps its row, m = p.

bayesian   m(y) = p_last(y) · Π_{i before the last} p_i(token_i)     the chain rule: what comes before is given
observed   m(y) = p_first(y) · Π_{i after the first} p_i(token_i)    TRL's default
product    m = softmax(Σ_i log p_i)                                  TRL until January 2026
mean_log   m = exp(mean_i log p_i)                                   X-Token's H-KL; not normalised

Masses of the first two are joint probabilities: they are not normalised, and groups of different sizes differ in mass
even where both models agree. ``observed`` counts rows that stand one position later (``Rows.AFTER``), so that
p_i(token_i) is the probability of repeating token_i: TRL's known off-by-one.

Only the row that a group keeps is worked on over the whole vocabulary; of the others one number is gathered.

:func:`merge` is the definition, and differentiable; :class:`Merged` gives the same and its gradient in closed form,
which losses run on. Tests hold the two equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from methods.library.chunk import Members, Side
from methods.library.closed_form import Softmax
from methods.library.columns import add, take

Merge = Literal["bayesian", "observed", "product", "mean_log"]
LOG_FLOOR = math.log(1e-8)
"""Log of the least probability of a realised token, as in TRL: one unlikely token does not wipe out its group."""


def merge(side: Side, groups: int, how: Merge, temperature: float = 1.0) -> Tensor:
    """Log-masses of each group of a chunk's side, [groups, vocabulary]; differentiable where the side's logits are.

    Args:
        groups: number of groups; each has a member.
        temperature: divides the logits first, those of the realised tokens too.
    """
    if side.index.numel() == groups:  # one member each: nothing to merge
        return side.paired_log_probs(temperature)
    merged = {"bayesian": bayesian, "observed": observed, "product": product, "mean_log": mean_log}[how]
    return merged(side.log_probs(temperature), side.index, side.group, side.tokens, groups)


def bayesian(log_probs: Tensor, index: Tensor, group: Tensor, tokens: Tensor, groups: int) -> Tensor:
    """The last member's row, times the probabilities of the members before it.

    Args:
        log_probs: [rows, vocabulary], row of each token.
        index, group, tokens: int64 [members], row, group and own token of each member, groups ascending.
        groups: number of groups; each has a member.

    Returns:
        [groups, vocabulary], log-masses.
    """
    return _times_realised(log_probs, index, group, tokens, kept_members(group, groups, "bayesian"))


def observed(log_probs: Tensor, index: Tensor, group: Tensor, tokens: Tensor, groups: int) -> Tensor:
    """The first member's row, times the probabilities of the members after it; as :func:`bayesian`."""
    return _times_realised(log_probs, index, group, tokens, kept_members(group, groups, "observed"))


def product(log_probs: Tensor, index: Tensor, group: Tensor, tokens: Tensor, groups: int) -> Tensor:
    """The normalised product of the members' rows, whatever their tokens; as :func:`bayesian`."""
    rows = log_probs.index_select(0, index)
    return log_probs.new_zeros(groups, log_probs.shape[-1]).index_add(0, group, rows).log_softmax(-1)


def mean_log(log_probs: Tensor, index: Tensor, group: Tensor, tokens: Tensor, groups: int) -> Tensor:
    """The means of the members' log-probabilities, whatever their tokens; as :func:`bayesian`."""
    rows = log_probs.index_select(0, index)
    total = log_probs.new_zeros(groups, log_probs.shape[-1]).index_add(0, group, rows)
    return total / group_sizes(group, groups).unsqueeze(-1)


def group_sizes(group: Tensor, groups: int) -> Tensor:
    """int64 [groups]: members of each group; unlike torch.bincount it doesn't wait for the device."""
    return group.new_zeros(groups).index_add_(0, group, torch.ones_like(group))


def _times_realised(log_probs: Tensor, index: Tensor, group: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
    """The rows of the ``kept`` members, int64 [groups], times the probabilities of all other members' own tokens."""
    realised = log_probs[index, tokens].clamp_min(LOG_FLOOR).index_fill(0, kept, 0.0)
    joint = log_probs.new_zeros(kept.shape).index_add(0, group, realised)
    return log_probs.index_select(0, index[kept]).add_(joint.unsqueeze(-1))


def kept_members(group: Tensor, groups: int, how: Merge) -> Tensor:
    """int64 [groups]: the member of each group whose row stays, the last one or the first."""
    if how == "bayesian":
        return torch.searchsorted(group, torch.arange(groups, device=group.device), right=True) - 1
    return first_places(group, groups)


def first_places(group: Tensor, groups: int) -> Tensor:
    """int64 [groups]: the first member of each group, of members that are listed group by group."""
    return torch.searchsorted(group, torch.arange(groups, device=group.device))


class Merged:
    """:func:`merge` in closed form: the same masses, all or of some columns, and how a gradient at their logs goes back
    to the logits. No graph.

    A row's log-probabilities log p = z - logsumexp(z) pass a gradient G on as G - p · sum(G). G of a row that stays is
    the group's own; G of another member's row is the group's sum at its own token, 0 where the floor holds.
    """

    def __init__(self, side: Members, groups: int, how: Merge, temperature: float = 1.0) -> None:
        self._side, self._groups, self._temperature = side, groups, temperature
        self._logits = side.logits if temperature == 1.0 else side.logits / temperature
        self._softmax = Softmax(self._logits)
        self._is_alone = side.row.numel() == groups  # each member is a group
        self._is_joint = how in ("product", "mean_log") and not self._is_alone
        self._own: Tensor | None = None
        """The row that each group keeps; None where these are the rows in their order."""
        if self._is_joint:
            self._joint = self._joined(how)
        elif not (self._is_alone and side.in_order):
            kept = torch.arange(groups, device=side.group.device)
            kept = kept if self._is_alone else kept_members(side.group, groups, how)
            self._own, self._ids = side.row[kept], side.tokens.clamp_min(0)
            self._realised = self._softmax.log_probs_at(side.row, self._ids)
            self._others = torch.ones_like(self._realised).index_fill_(0, kept, 0.0)
            clamped = self._realised.clamp_min(LOG_FLOOR).mul_(self._others)
            self._added = clamped.new_zeros(groups).index_add_(0, side.group, clamped).unsqueeze(-1)
            """[groups, 1]: the sum of the log-probabilities of each group's other tokens."""

    def _joined(self, how: Merge) -> Tensor:
        """Log-masses of groups whose members' rows all count."""
        side, rows = self._side, self._logits.index_select(0, self._side.row).log_softmax(-1)
        total = self._zeros(self._groups).index_add_(0, side.group, rows)
        self._sizes = total.new_zeros(self._groups).index_add_(0, side.group, torch.ones_like(rows[:, 0])).unsqueeze(-1)
        self._is_normal = how == "product"
        return total.log_softmax(-1) if self._is_normal else total.div_(self._sizes)

    def log_masses(self, columns: Tensor | None = None) -> Tensor:
        """[groups, columns], to be overwritten; of all where none are named, int64."""
        if self._is_joint:
            return self._joint.clone() if columns is None else take(self._joint, columns=columns)
        found = self._softmax.log_probs(self._own, columns)
        return found if self._is_alone else found.add_(self._added)

    def masses(self, columns: Tensor | None = None) -> Tensor:
        """[groups, columns]: their exponentials; others may read them too where no columns are named."""
        if self._is_joint:
            return self.log_masses(columns).exp_()
        found = take(self._softmax.probs, self._own, columns)
        return found if self._is_alone else found.mul_(self._added.exp())

    def likeliest(self) -> Tensor:
        """int64 [groups]: the column of the largest mass, which may be too small for a float."""
        return (self._joint if self._is_joint else take(self._softmax.probs, self._own)).argmax(-1)

    def at_logits(self, *gradients: tuple[Tensor | None, Tensor]) -> Tensor:
        """[rows, vocabulary]: the gradient at the logits of one at the log-masses.

        Args:
            gradients: [groups, columns], each with its columns, int64, or None for all; what no one names has none.
                All is overwritten, masses too: nothing is read after this.
        """
        spread = self._through_joint(gradients) if self._is_joint else self._through_rows(gradients)
        return spread if self._temperature == 1.0 else spread.div_(self._temperature)

    def _through_joint(self, gradients: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor:
        gradient = self._zeros(self._groups)
        for columns, part in gradients:
            add(gradient, None, columns, part)
        if self._is_normal:  # then each of its rows adds up to 0
            gradient.addcmul_(self._joint.exp_(), gradient.sum(-1, keepdim=True), value=-1)
        else:
            gradient.div_(self._sizes)
        of_members = gradient.index_select(0, self._side.group)
        spread = self._zeros(len(self._side.logits)).index_add_(0, self._side.row, of_members)
        return spread if self._is_normal else self._centred(spread, spread.sum(-1))

    def _through_rows(self, gradients: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor:
        total = torch.stack([part.sum(-1) for _, part in gradients]).sum(0)
        if self._own is None:
            (columns, first), *others = gradients
            if columns is None and not others:
                return self._centred(first, total)
            spread = self._scaled(total.neg())
        else:
            of_token = self._others.mul(self._realised >= LOG_FLOOR).mul_(total[self._side.group])
            of_row = total.new_zeros(len(self._side.logits)).index_add_(0, self._own, total)
            spread = self._scaled(of_row.index_add_(0, self._side.row, of_token).neg_())
            spread.index_put_((self._side.row, self._ids), of_token, accumulate=True)
        for columns, part in gradients:
            add(spread, self._own, columns, part)
        return spread

    def _centred(self, gradient: Tensor, total: Tensor) -> Tensor:
        """The gradient of each row, less its sum's share in each column."""
        return gradient.addcmul_(self._softmax.probs, total.unsqueeze(-1), value=-1)

    def _scaled(self, factor: Tensor) -> Tensor:
        """The probabilities of each row times its factor."""
        return self._softmax.probs.mul_(factor.unsqueeze(-1))

    def _zeros(self, rows: int) -> Tensor:
        return self._logits.new_zeros(rows, self._logits.shape[-1])
