"""Which weights a training keeps: the last, or the best on held-out rows of those that were looked at.

A look measures the model without dropout, and draws nothing, so that the training goes as it would without. Weights
that are the best so far are written beside the checkpoints; what each look found stands in the steps, and so in every
checkpoint: a resumed training knows which weights were the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from accelerate.utils import wait_for_everyone
from safetensors.torch import load_file, save_file
from torch import nn

from harness.data.tokens import TokenizedExample
from harness.evaluate.bits_per_byte import corpus_bits_per_byte, measure
from harness.training.sharding import read, set_whole, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEV = "dev_bits_per_byte"  # of a step's record, where there was a look after it


def bits_per_byte_of(model: PreTrainedModel, dev: Sequence[TokenizedExample], pad: int) -> Callable[[], float]:
    """What a look measures: bits per byte of a model, as it is then, on held-out rows.

    Args:
        dev: tokenised for the model under the role "student".
        pad: padding token id.
    """
    return lambda: corpus_bits_per_byte(measure(model, dev, pad=pad))


class Looks:
    """The looks of one training.

    Args:
        model: that is trained.
        bits_per_byte: of the model as it is, on held-out rows.
        steps: of the whole training.
        evaluations: how many looks, the one after the last step included.
        work: folder of the training's checkpoints.
    """

    def __init__(
        self, model: nn.Module, bits_per_byte: Callable[[], float], steps: int, evaluations: int, work: Path
    ) -> None:
        self._model, self._measure, self._work = model, bits_per_byte, work
        self._after = {round(steps * look / evaluations) for look in range(1, evaluations + 1)}

    def look(self, step: int, before: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """What a step's record says of held-out rows; nothing where it is not time to look.

        Args:
            before: records of the steps before.
        """
        if step not in self._after:
            return {}
        was_training = self._model.training
        found = read(self._model, self._measure)
        self._model.train(was_training)
        least = min((known[DEV] for known in before if DEV in known), default=math.inf)
        if found < least:
            self._keep(step)
        return {DEV: found}

    def _keep(self, step: int) -> None:
        """Write the weights as they are; all processes gather them, one of them writes."""
        writes, kept = PartialState().is_main_process, {}
        for name, weight in self._trained().items():
            gathered = whole(weight)
            if writes:  # gathered one after the other, and kept where there is room for all
                kept[name] = gathered.contiguous().cpu()
        if writes:
            self._work.mkdir(parents=True, exist_ok=True)
            save_file(kept, self._file(step))

    def take_best(self, steps: Sequence[Mapping[str, float]]) -> int | None:
        """Give the model the weights of the best look; the number of its step, or None where no look gave a number."""
        best = kept_step(steps)
        if best is not None and best != steps[-1]["step"]:
            wait_for_everyone()
            stored = load_file(self._file(best))
            for name, weight in self._trained().items():
                set_whole(weight, stored[name])
        return best

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}

    def _file(self, step: int) -> Path:
        return self._work / f"best-{step}.safetensors"


def kept_step(steps: Sequence[Mapping[str, float]]) -> int | None:
    """The step whose weights a training kept, by its records; None where it kept the last without a look."""
    looks = [step for step in steps if step.get(DEV, math.inf) < math.inf]
    return int(min(looks, key=lambda step: step[DEV])["step"]) if looks else None  # the earliest of several
