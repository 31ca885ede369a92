"""What a run tells a log or a pipe, which has no bars: a line when a stage starts, now and then, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

QUIET_S = 60.0
"""A stage that takes longer than this says how far it is, and again after as long."""


class StageLog:
    """Lines with the time of day.

    Args:
        write: prints a line.
        clock: seconds that only go up.
        now: the time of day.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._write, self._clock, self._now = write, clock, now
        self._run_started = self._started = self._said = clock()
        self._stage, self._total, self._loss = "", 0, ""

    def begin(self, stage: str, total: int) -> None:
        """A stage starts."""
        self._started = self._said = self._clock()
        self._stage, self._total, self._loss = stage, total, ""
        self._line(f"{stage}, {total:,} to do" if total else stage)

    def advance(self, done: int, loss: float | None = None) -> None:
        """So many of the stage's units are done; the loss is that of the step, where it trains."""
        if loss is not None:
            self._loss = f", loss {loss:.4g}"
        moment = self._clock()
        if moment - self._said < QUIET_S or not done:
            return
        self._said = moment
        left = (moment - self._started) / done * (self._total - done)
        self._line(f"  {done:,} of {self._total:,}{self._loss}, {in_words(left)} left")

    def finish(self, done: float, stages: str) -> None:
        """The stage is done.

        Args:
            done: share of the whole run, from 0 to 1.
            stages: how many of how many, in words.
        """
        if not self._stage:
            return
        took = in_words(self._clock() - self._started)
        self._stage = ""
        left = (self._clock() - self._run_started) / done * (1 - done) if done else 0.0
        rest = f"; about {in_words(left)} left" if done < 1 else ""
        self._line(f"  took {took}{self._loss}; {stages}{rest}")

    def _line(self, text: str) -> None:
        self._write(f"{self._now():%H:%M:%S}  {text}")


def in_words(seconds: float) -> str:
    """A time to two figures or so: 8 s, 4 min, 2.5 h."""
    if seconds < 0.5:
        return "under 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
