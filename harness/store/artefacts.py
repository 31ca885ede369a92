"""The files that stages store, by name, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.store.store import Store

TIMING = "timing.json"  # seconds of a training, without loading and storing
TRACES = "traces.json"  # of a student: what it compared in a few responses
ALIGNMENTS = "alignments.json"


def stored_json(store: Store, kind: str, cell: Mapping[str, Any], name: str) -> Any | None:
    """A JSON file of a cell's stage; None where there is none, or a damaged one."""
    artefact = store.find(kind, cell["stages"][kind])
    if artefact is None or name not in artefact.manifest["outputs"] or not artefact.is_whole():
        return None
    return artefact.json(name)


@dataclass(frozen=True)
class Failure:
    """Why a stage has no result: printed as a footnote, never cached."""

    stage: str
    reason: str
    skipped: bool = False
