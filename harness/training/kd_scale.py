"""What the KD terms of a step are multiplied by, so that they count like the cross-entropy: `kd_scale` of a method.

    loss = w_CE · CE + w_KD · s · KD,   s = sg(CE / KD)  (match_ce),   s = sg(‖∂CE‖ / ‖∂KD‖)  (match_gradient)

CE and KD are the means of a whole step, over its accumulation window and all ranks; the norms are those at the
student's logits, which every step measures. They are known once the step is done, so that s is that of the step before;
the first step has s = 1. It follows from what the steps showed, which a checkpoint holds: a resumed training goes on
with the same s.

Balancing by CE/KD: X-Token (methods/references.bib) and CSD compute it in the step itself; here it is a step late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MOST = 1e4
"""Beyond it, and below its inverse, the scale before is kept: a KD that has nearly vanished is not blown up."""


def scales_after(modes: Sequence[str], steps: Sequence[Mapping[str, float]]) -> list[float]:
    """Factors of the KD terms at the next step.

    Args:
        modes: `kd_scale` of each term.
        steps: what the steps so far showed, as :func:`harness.training.trainer.train` gives it.
    """
    last = steps[-1] if steps else {}
    return [_scale(mode, term, last) for term, mode in enumerate(modes)]


def _scale(mode: str, term: int, last: Mapping[str, float]) -> float:
    if mode == "fixed" or not last:
        return 1.0
    if mode == "match_ce":
        ce, kd = last["ce"], last[f"kd_{term}"]
    else:
        ce, kd = 1.0, last[f"kd_ce_ratio_{term}"]
    # a window without cross-entropy (every response sampled) has none to match, nor has a KD that is 0 or negative
    found = ce / kd if kd else math.nan
    return found if 1 / MOST <= found <= MOST else last[name_of(term)]


def name_of(term: int) -> str:
    """How a step's record calls the factor that it used."""
    return f"kd_scale_{term}"
