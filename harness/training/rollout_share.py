"""λ of a step, the share of its micro-batches that the student samples: `rollout_share` of a method.

    λ_t = start + (end - start) · min(1, t / (over · T))                         {start, end, over}; T optimiser steps
    λ_t = min(max(a_t, least), most),   a_t+1 = 0.9 a_t + 0.1 s_t,   a_0 = start       {target: acceptance}

s_t: of the tokens that the student sampled at step t, over all ranks, those that are among the teacher's 25 likeliest
at their place, as far as both tokenizers cut them alike: sample where the teacher can still judge. A step that samples
nothing leaves a as it is. The rule is ours; 25 is what speculative KD takes for accepted (arXiv 2410.11325).

λ of a step depends on the steps before it only, and on what they showed, which a checkpoint holds: a resumed training
goes on with the same one, and all ranks have the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from methods.base import AlignedChunk, Method
from methods.library.rollout_share import AcceptedShare, LinearShare

TOP = 25
DECAY = 0.9
SHARE, MEAN, ACCEPTED = "rollout share", "mean acceptance", "accepted"
"""How a step's record calls λ, a and s. A training with one λ has none of them."""


def share_at(
    asked: float | LinearShare | AcceptedShare, step: int, steps: int, shown: Sequence[Mapping[str, float]]
) -> tuple[float, dict[str, float]]:
    """λ of a step, and what its record says of it.

    Args:
        step: from 0.
        steps: of the whole training.
        shown: what the steps so far showed, as :func:`harness.training.trainer.train` gives it.
    """
    if isinstance(asked, LinearShare):
        share = asked.start + (asked.end - asked.start) * min(1.0, step / (asked.over * steps))
        return share, {SHARE: share}
    if isinstance(asked, AcceptedShare):
        last = shown[-1] if shown else {}
        mean = last.get(MEAN, asked.start)
        if ACCEPTED in last:
            mean = DECAY * mean + (1 - DECAY) * last[ACCEPTED]
        share = min(max(mean, asked.least), asked.most)
        return share, {SHARE: share, MEAN: mean}
    return asked, {}


def follows_acceptance(method: Method) -> bool:
    """Whether a method asks how many sampled tokens its teacher would have taken."""
    return method.sampling is not None and isinstance(method.sampling.rollout_share, AcceptedShare)


@torch.no_grad()
def accepted(chunk: AlignedChunk, top: int = TOP) -> tuple[Tensor, Tensor]:
    """Of groups of one token a side, how many have one of the teacher's likeliest, and how many there are. Scalars.

    Rows predict the tokens of their groups.
    """
    side, ones = chunk.teacher, torch.ones_like
    members = [
        each.group.new_zeros(chunk.groups).index_add(0, each.group, ones(each.group))
        for each in (chunk.student, chunk.teacher)
    ]
    whole = (members[0] == 1) & (members[1] == 1)
    alone = (whole if chunk.paired is None else whole & chunk.paired).index_select(0, side.group)
    logits = side.paired_logits()
    own = logits.gather(1, side.tokens.clamp_min(0)[:, None])
    likely = (logits > own).sum(-1) < top
    return (likely & alone).sum().float(), alone.sum().float()
