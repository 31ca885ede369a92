"""A run that is asked to stop: by Ctrl-C, by the system (SIGTERM, as Slurm and containers send it), by a closed shell.

All stop it in the same way, with a KeyboardInterrupt where it stands: what is half-written goes, the run's record is
written, and the same command goes on later.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from harness.base.errors import HarnessError

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 5.0  # further signals within it are of the same request (a closed shell sends several)


@dataclass
class Stopping:
    """What asked this process to stop.

    Attributes:
        terminals: descriptors of what this process writes to a terminal by (a closed one no longer says what it was).
        by: the signal; SIGINT unless one of the others came.
        at: when it came, by ``time.monotonic``.
    """

    terminals: tuple[int, ...] = ()
    by: signal.Signals = signal.SIGINT
    at: float = -_AGAIN_S

    @property
    def status(self) -> int:
        """The exit status that shells and schedulers know it by."""
        return 128 + self.by

    def heed(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if time.monotonic() - self.at < _AGAIN_S:
            return  # else it would stop what the first has the run do before it ends
        self.by, self.at = signal.Signals(number), time.monotonic()
        if self.by == signal.SIGHUP:
            _leave(self.terminals)
        raise KeyboardInterrupt


class OutOfTimeError(KeyboardInterrupt):
    """The time that a run was given is over: an interrupt that its caller expects."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """A block that is interrupted after so many seconds; only in a process's main thread.

    Raises:
        OutOfTimeError: they are over.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def seconds_of(text: str) -> float:
    """Seconds of a time such as ``90s``, ``11m``, ``1h30m``.

    Raises:
        HarnessError: it is none.
    """
    parts = re.findall(r"(\d{1,6}(?:\.\d{1,6})?)([hms])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or seconds == 0:
        raise HarnessError("--stop-after", repr(text), "a time such as 90s, 11m or 1h30m")
    return seconds


def check_stop_after(seconds: float | None, processes: int) -> None:
    """Whether a run can be stopped in time.

    Raises:
        HarnessError: several processes train together, of which one can't stop alone; or it is not in the main thread.
    """
    if seconds is None:
        return
    if processes > 1:
        raise HarnessError("--stop-after", f"{processes} processes", "one", "Let the launcher's time limit stop them.")
    if threading.current_thread() is not threading.main_thread():
        raise HarnessError("stop_after", "a call in another thread", "one in the main thread")


_UNITS = {"h": 3600, "m": 60, "s": 1}


@contextmanager
def stopping() -> Iterator[Stopping]:
    """A block that SIGTERM and SIGHUP stop as Ctrl-C does. One that is ignored (``nohup``) stays ignored."""
    asked = Stopping(tuple(number for number in (1, 2) if os.isatty(number)))
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in heeded:
        signal.signal(number, asked.heed)
    try:
        yield asked
    finally:
        for number in heeded:
            signal.signal(number, signal.SIG_DFL)


def _leave(terminals: Sequence[int]) -> None:
    """A terminal that was closed can't be written to: what is still said there goes nowhere, and raises nothing."""
    for terminal in terminals:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, terminal)
        os.close(nowhere)
