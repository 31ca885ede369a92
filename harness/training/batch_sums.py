"""What the chunks of a batch add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.data.batches import Batch
from harness.training.objective import LossParts, Objective


class BatchSums:
    """What the chunks of a batch add up to, without gradient. Kept in lists, and added up once at the end."""

    def __init__(self, device: torch.device, batch: Batch) -> None:
        self.device, self.batch = device, batch
        self.ce: list[Tensor] = []
        self.smoothing: list[Tensor] = []
        self.ce_gradient: list[Tensor] = []
        self.kd: list[list[Tensor]] = [[] for _ in batch.terms]
        self.kd_gradient: list[list[Tensor]] = [[] for _ in batch.terms]
        self.diagnostics: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        for term in batch.terms:
            self.note({name: (self._number(part), self._number(whole)) for name, (part, whole) in term.notes.items()})

    def note(self, diagnostics: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
        for name, (part, whole) in diagnostics.items():
            self.diagnostics.setdefault(name, []).append((part.detach(), None if whole is None else whole.detach()))

    def parts(self, objective: Objective, divisors: Sequence[float], scales: Sequence[float]) -> LossParts:
        ce = self._sum(self.ce)
        kd = [self._sum(values) for values in self.kd]
        loss = objective.ce_weight / divisors[0] * (ce + self._sum(self.smoothing))
        for term, value, divisor, scale in zip(objective.terms, kd, divisors[1:], scales, strict=True):
            loss = loss + term.weight / divisor * scale * value
        of_kd = zip(self.kd_gradient, divisors[1:], strict=True)
        return LossParts(
            loss,
            ce,
            self.batch.targets.ne(-100).sum(),
            torch.stack(kd) if kd else ce.new_zeros(0),
            self._sum(self.ce_gradient) / divisors[0] ** 2,
            torch.stack([self._sum(v) / d**2 for v, d in of_kd]) if kd else ce.new_zeros(0),
            {name: self._pair(pairs) for name, pairs in self.diagnostics.items()},
        )

    def _pair(self, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """[2]: the sum of the parts and that of the wholes, NaN where there are none."""
        wholes = [whole for _, whole in pairs if whole is not None]
        whole = self._sum(wholes) if wholes else self._number(torch.nan)
        return torch.stack([self._sum([part for part, _ in pairs]), whole])

    def _sum(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack([*values]).double().sum() if values else self._number(0.0)

    def _number(self, value: float | Tensor) -> Tensor:
        """A scalar that is there or is filled in on the device: a copy from the host would wait for all that runs."""
        if isinstance(value, Tensor):
            return value
        return torch.full((), value, dtype=torch.float64, device=self.device)
