"""Merging: one row of masses for a group of tokens, so that groups of different sizes can be compared.

Two tokenisations of the same bytes need different numbers of tokens. p_i is the distribution in the row of the group's
i-th token, token_i that token, m(y) the merged mass of y. A group of one keeps its row, m = p.

bayesian   m(y) = p_last(y) · Π_{i before the last} p_i(token_i)     the chain rule: what comes before is given
observed   m(y) = p_first(y) · Π_{i after the first} p_i(token_i)    TRL's default
product    m = softmax(Σ_i log p_i)                                  TRL until January 2026

Masses of the first two are joint probabilities: they are not normalised, and groups of different sizes differ in mass
even where both models agree. ``observed`` counts rows that stand one position later (``Rows.AFTER``), so that
p_i(token_i) is the probability of repeating token_i: TRL's known off-by-one.

Only the row that a group keeps is worked on over the whole vocabulary; of the others one number is gathered.

:func:`merge` is differentiable; :func:`merge_with_pullback` gives the same, and the gradient in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from methods.base import Side

Merge = Literal["bayesian", "observed", "product"]
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
    merged = {"bayesian": bayesian, "observed": observed, "product": product}[how]
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


def _times_realised(log_probs: Tensor, index: Tensor, group: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
    """The rows of the ``kept`` members, int64 [groups], times the probabilities of all other members' own tokens."""
    realised = log_probs[index, tokens].clamp_min(LOG_FLOOR).index_fill(0, kept, 0.0)
    joint = log_probs.new_zeros(kept.shape).index_add(0, group, realised)
    return log_probs.index_select(0, index[kept]) + joint.unsqueeze(-1)


def kept_members(group: Tensor, groups: int, how: Merge) -> Tensor:
    """int64 [groups]: the member of each group whose row stays, the last one or the first."""
    numbers = torch.arange(groups, device=group.device)
    if how == "bayesian":
        return torch.searchsorted(group, numbers, right=True) - 1
    return torch.searchsorted(group, numbers)


Pullback = Callable[[Tensor], Tensor]
"""From the gradient at log-masses [groups, vocabulary], which it may overwrite, to the one at logits."""


def merge_with_pullback(
    logits: Tensor,
    index: Tensor,
    group: Tensor,
    tokens: Tensor,
    in_order: bool,
    groups: int,
    how: Merge,
    temperature: float = 1.0,
) -> tuple[Tensor, Pullback]:
    """Log-masses as by :func:`merge`, and how a gradient goes back through them; builds no graph.

    A row's log-probabilities log p = z - logsumexp(z) pass a gradient G on as G - p · sum(G). G of a row that stays is
    the group's own; G of another member's row is the group's sum at its own token, 0 where the floor holds.

    Args:
        logits: [rows, vocabulary].
        index, group, tokens: as in :func:`bayesian`.
        in_order: whether ``index`` is 0, 1, ..., rows - 1.
    """
    log_probs = (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)
    alone = index.numel() == groups
    if alone and in_order:

        def through_rows(gradient: Tensor) -> Tensor:
            total = gradient.sum(-1, keepdim=True)
            return _over_temperature(gradient.sub_(log_probs.exp().mul_(total)), temperature)

        return log_probs, through_rows
    if how == "product" and not alone:
        rows = log_probs.index_select(0, index)
        masses = log_probs.new_zeros(groups, log_probs.shape[-1]).index_add_(0, group, rows).log_softmax(-1)

        def through_product(gradient: Tensor) -> Tensor:
            centred = gradient.sub_(masses.exp().mul_(gradient.sum(-1, keepdim=True)))  # its rows add up to 0
            spread = torch.zeros_like(log_probs).index_add_(0, index, centred.index_select(0, group))
            return _over_temperature(spread, temperature)

        return masses, through_product
    kept = torch.arange(groups, device=group.device) if alone else kept_members(group, groups, how)
    own = index[kept]
    masses = log_probs.index_select(0, own)
    ids = tokens.clamp_min(0)
    realised = log_probs[index, ids]
    others = torch.ones_like(realised).index_fill_(0, kept, 0.0)
    if not alone:
        clamped = realised.clamp_min(LOG_FLOOR).mul_(others)
        masses += realised.new_zeros(groups).index_add_(0, group, clamped).unsqueeze(-1)

    def through_members(gradient: Tensor) -> Tensor:
        total = gradient.sum(-1)
        of_token = others.mul(realised >= LOG_FLOOR).mul_(total[group])
        of_row = realised.new_zeros(len(log_probs)).index_add_(0, own, total).index_add_(0, index, of_token)
        spread = log_probs.exp().mul_(of_row.neg().unsqueeze(-1))
        spread.index_add_(0, own, gradient)
        spread.index_put_((index, ids), of_token, accumulate=True)
        return _over_temperature(spread, temperature)

    return masses, through_members


def _over_temperature(gradient: Tensor, temperature: float) -> Tensor:
    return gradient if temperature == 1.0 else gradient.div_(temperature)
