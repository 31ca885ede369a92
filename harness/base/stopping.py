"""A run that is asked to stop: by Ctrl-C, by the system (SIGTERM, as Slurm and containers send it), by a closed shell.

All stop it in the same way, with a KeyboardInterrupt where it stands: what is half-written goes, the run's record is
written, and the same command goes on later.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

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
