"""What a training minimises, and what a batch's loss is made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.data.terms import Term

NORMALIZERS = {"tokens": 0, "samples": 1}  # places in Batch.counts; the groups of term k stand at 2 + k


@dataclass(frozen=True)
class Objective:
    """What a run minimises: ``ce_weight * CE + sum of weight_k * KD_k``.

    Attributes:
        name: label in tables, such as "uld".
        ce_weight: factor of the mean cross-entropy of the response tokens.
        terms: distillation terms; none for plain fine-tuning.
        label_smoothing: share of the cross-entropy's target that is spread evenly over the vocabulary.
    """

    name: str
    ce_weight: float
    terms: tuple[Term, ...] = ()
    label_smoothing: float = 0.0

    def divisors(self, counts: Tensor) -> list[float]:
        """What CE and each KD sum are divided by, from the summed counts of the window, on the CPU."""
        places = [NORMALIZERS["tokens"]]
        places += [NORMALIZERS.get(term.method.normalize, 2 + k) for k, term in enumerate(self.terms)]
        known = counts.tolist()
        return [max(known[place], 1.0) for place in places]


@dataclass(frozen=True)
class LossParts:
    """A batch's loss and what it is made of. All but ``loss`` are without gradient.

    Attributes:
        loss: scalar, weighted and normalised.
        ce: scalar, sum of the cross-entropy over response tokens; without label smoothing, whatever is minimised.
        ce_tokens: scalar, how many carry it: none of a response that the student sampled.
        kd: [terms], sum of each term's distillation loss.
        ce_gradient, kd_gradient: squared norms, at the student's logits, of the gradients of the normalised but
            unweighted CE and KD terms; scalar and [terms].
        diagnostics: by name, [2]: a sum, and the sum that it is a share of (NaN: the response tokens).
    """

    loss: Tensor
    ce: Tensor
    ce_tokens: Tensor
    kd: Tensor
    ce_gradient: Tensor
    kd_gradient: Tensor
    diagnostics: dict[str, Tensor]
