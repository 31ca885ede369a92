"""What a run tells while it works, whoever listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """What a run tells while it works."""

    def message(self, text: str) -> None:
        """A line that stays; it may hold markup of rich."""

    def begin(self, stage: str, total: int) -> None:
        """A stage starts; ``total`` in the stage's own units."""

    def advance(self, done: int, loss: float | None = None) -> None:
        """So many units of the stage are done; ``loss`` is that of the last step, where it trains."""

    def finish(self) -> None:
        """The stage is done."""


class Silent:
    """A :class:`Progress` that tells nobody."""

    def message(self, text: str) -> None: ...

    def begin(self, stage: str, total: int) -> None: ...

    def advance(self, done: int, loss: float | None = None) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class StageProgress:
    """What one stage tells while it is made.

    Attributes:
        progress: whoever listens.
        line: what the stage is called there.
    """

    progress: Progress
    line: str

    def begin(self, total: int) -> None:
        """The stage starts; ``total`` in its own units."""
        self.progress.begin(self.line, total)

    def advance(self, done: int, loss: float | None = None) -> None:
        """So many units are done; ``loss`` is that of the last step, where the stage trains."""
        self.progress.advance(done, loss)

    def message(self, text: str) -> None:
        """A line that stays."""
        self.progress.message(text)
