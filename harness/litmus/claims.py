"""What a KD term alone must do, where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping

from methods.base import TeacherKind
from reports.known_truth import Claim

REACHES = 0.8
"""The share of the way from the start to its teacher that a same-tokenizer method goes at least, in bits per byte."""
IMPROVES = 0.1
"""The share that a cross-tokenizer method goes at least, to have taught something."""
NOTICED = 0.75
"""A broken method goes less than this share of the way that the whole one goes, or fails its claim."""
KNOWN_FAILURES: Mapping[str, str] = {
    "uld": "it compares sorted masses alone: a student that is as sure as its teacher, of other tokens, has no loss",
    "multilevelot": "it pairs tokens by rank, as ULD does, whichever tokens they are",
    "dskd": "at their own rate its maps find the student's token at one place in fourteen, and only there its head "
    "learns; at a rate of 0.03 the claim holds, but noise for a teacher teaches as much: the maps are shown the text",
    "dskd_v2": "at the student's rate its projector agrees with the teacher at a quarter of the tokens, and only there "
    "the student's own head learns; at a rate of 0.03 the claim holds",
}
"""Methods whose claim fails, with the reason; the failure is asserted like the others' success."""


def least_share(kind: TeacherKind) -> float:
    """Of the way to the teacher."""
    return REACHES if kind is TeacherKind.SAME_TOKENIZER else IMPROVES


def share_closed(start: float, end: float, teacher: float) -> float:
    """Of the distance between the start's and the teacher's bits per byte; negative for a student that got worse.

    NaN where the teacher knows no more than the start: then nothing can be learnt from it.
    """
    return (start - end) / (start - teacher) if teacher < start else math.nan


def is_noticed(closed: float, whole: float, kind: TeacherKind) -> bool:
    """Whether a broken method is told from the whole one.

    Args:
        closed, whole: share of the way to the teacher that the broken and the whole method go.
    """
    return closed < max(least_share(kind), NOTICED * whole)


def claim_of(row: str, method: str, kind: TeacherKind, closed: float) -> Claim:
    """What became of a row's claim.

    Args:
        method: behind the row.
        closed: share of the way to its teacher, by its KD term alone.
    """
    least = least_share(kind)
    aim = "reaches its teacher" if kind is TeacherKind.SAME_TOKENIZER else "improves on the start"
    return Claim(
        row,
        f"{aim}: goes {least:.0%} of the way to its teacher at least",
        "the teacher knows no more than the start" if math.isnan(closed) else f"{closed:.0%}",
        closed >= least,
        KNOWN_FAILURES.get(method, ""),
    )
