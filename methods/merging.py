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
"""

from __future__ import annotations

import math
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
    last = torch.searchsorted(group, torch.arange(groups, device=group.device), right=True) - 1
    return _times_realised(log_probs, index, group, tokens, last)


def observed(log_probs: Tensor, index: Tensor, group: Tensor, tokens: Tensor, groups: int) -> Tensor:
    """The first member's row, times the probabilities of the members after it; as :func:`bayesian`."""
    first = torch.searchsorted(group, torch.arange(groups, device=group.device))
    return _times_realised(log_probs, index, group, tokens, first)


def product(log_probs: Tensor, index: Tensor, group: Tensor, tokens: Tensor, groups: int) -> Tensor:
    """The normalised product of the members' rows, whatever their tokens; as :func:`bayesian`."""
    rows = log_probs.index_select(0, index)
    return log_probs.new_zeros(groups, log_probs.shape[-1]).index_add(0, group, rows).log_softmax(-1)


def _times_realised(log_probs: Tensor, index: Tensor, group: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
    """The rows of the ``kept`` members, int64 [groups], times the probabilities of all other members' own tokens."""
    realised = log_probs[index, tokens].clamp_min(LOG_FLOOR).index_fill(0, kept, 0.0)
    joint = log_probs.new_zeros(kept.shape).index_add(0, group, realised)
    return log_probs.index_select(0, index[kept]) + joint.unsqueeze(-1)
