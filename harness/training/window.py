"""What the micro-batches of one optimiser step add up to."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from harness.data.read_ahead import Sample
from harness.training.objective import LossParts


class Window:
    """Sums over the micro-batches of one optimiser step.

    Args:
        terms: of the objective.

    Attributes:
        passed: micro-batches that the step has passed over.
    """

    def __init__(self, terms: int) -> None:
        self.terms = terms
        self.divisors: list[float] | None = None
        self.scales: list[float] = []

    def begin(self, divisors: list[float], counts: Tensor, scales: list[float], device: torch.device) -> None:
        self.divisors, self.counts, self.scales, self.device = divisors, counts, scales, device
        self.facts: dict[str, float] = {}
        self.passed: list[Sample] = []
        self.restart()

    def restart(self) -> None:
        """Forget what was added."""
        self.sums: Tensor | None = None
        self.diagnostics: dict[str, Tensor] = {}

    def add(self, parts: LossParts) -> None:
        loss = parts.loss.detach().to(torch.float64).reshape(1)
        ce = torch.stack([parts.ce, parts.ce_tokens.to(torch.float64), parts.ce_gradient])
        values = torch.cat([loss, ce, parts.kd, parts.kd_gradient])
        self.sums = values if self.sums is None else self.sums + values
        for name, value in parts.diagnostics.items():
            self.diagnostics[name] = self.diagnostics.get(name, torch.zeros_like(value)) + value

    def send(self) -> None:
        """Copy the sums to the host, without waiting for them."""
        assert self.sums is not None
        self.sums = self.sums.to("cpu", non_blocking=True)
        self.diagnostics = {name: value.to("cpu", non_blocking=True) for name, value in self.diagnostics.items()}
        self.device = torch.device("cpu")

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Loss, mean CE and KD of the window, KD/CE gradient-norm ratios, the methods' own diagnostics.

        Without a token that carries CE there is no mean of it: NaN.
        """
        assert self.sums is not None
        assert self.divisors is not None
        loss, ce, ce_tokens, ce_gradient, *of_terms = accelerator.reduce(
            self.sums.to(torch.float32), reduction="sum"
        ).tolist()
        tokens = float(self.counts[0])
        values = {"loss": loss, "ce": ce / ce_tokens if ce_tokens else math.nan, "tokens": tokens, **self.facts}
        for term, divisor in enumerate(self.divisors[1:]):
            values[f"kd_{term}"] = of_terms[term] / divisor
            gradient = of_terms[self.terms + term]
            values[f"kd_ce_ratio_{term}"] = math.sqrt(gradient / ce_gradient) if ce_gradient else math.nan
        return values | self._shares(accelerator, tokens)

    def _shares(self, accelerator: Accelerator, tokens: float) -> dict[str, float]:
        """The methods' own diagnostics. Ranks may know different ones: a chunk without groups has none."""
        names = sorted(set(gather_object(list(self.diagnostics))))
        if not names:
            return {}
        nothing = torch.zeros(2, dtype=torch.float64, device=self.device)
        stacked = torch.stack([self.diagnostics.get(name, nothing) for name in names]).to(torch.float32)
        sums = accelerator.reduce(stacked, reduction="sum").tolist()
        return {
            name: part / (tokens if math.isnan(whole) else max(whole, 1.0))
            for name, (part, whole) in zip(names, sums, strict=True)
        }
