"""What a run tells while it works, whoever listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a run tells while it works."""

    def message(self, text: str) -> None:
        """A line that stays."""

    def begin(self, stage: str, total: int) -> None:
        """A stage starts; ``total`` in the stage's own units."""

    def advance(self, done: int) -> None:
        """So many units of the stage are done."""

    def finish(self) -> None:
        """The stage is done."""


class Silent:
    """A :class:`Progress` that tells nobody."""

    def message(self, text: str) -> None: ...

    def begin(self, stage: str, total: int) -> None: ...

    def advance(self, done: int) -> None: ...

    def finish(self) -> None: ...
