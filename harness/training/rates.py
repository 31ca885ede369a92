"""Learning rates of what methods train beside the student, such as a projector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def give_rates(optimizer: torch.optim.Optimizer, rates: Mapping[nn.Parameter, float]) -> None:
    """Move parameters to groups with learning rates of their own, and else the settings of those that they leave."""
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if parameter in rates]
        group["params"] = [parameter for parameter in group["params"] if parameter not in rates]
        for rate in sorted({rates[parameter] for parameter in own}):
            moved = [parameter for parameter in own if rates[parameter] == rate]
            optimizer.add_param_group({**group, "params": moved, "lr": rate})
