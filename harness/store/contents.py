"""What a folder of the store is there for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["named by a run", "named by no run", "checkpoints", "left by a killed process", "another format"]


@dataclass(frozen=True)
class StoredFolder:
    """A folder of the store.

    Attributes:
        path: of it.
        kind: of its stage.
        state: what it is there for.
        size: bytes of its files.
    """

    path: Path
    kind: str
    state: State
    size: int
