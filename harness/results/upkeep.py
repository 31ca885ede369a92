"""What a store holds, which of it runs name, and how the rest goes."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.base.files import read_json, remove_abandoned
from harness.results.record import RECORD
from harness.store.contents import State, StoredFolder
from harness.store.store import Store


def store_contents(store: Store) -> list[StoredFolder]:
    """All folders of a store, kind by kind. Checkpoints belong to trainings that were not finished."""
    records = store.root.parent.glob(f"*/{RECORD}")
    named = {store.folder_of(*stage) for record in records for stage in stages_named_by(record, store)}
    other = {folder for folders in store.other_formats().values() for folder in folders}
    found = []
    for path in sorted(path for path in store.root.glob("*/*") if path.is_dir() and not path.is_symlink()):
        state: State = "named by a run" if path in named else "named by no run"
        if path in other:
            state = "another format"
        elif store.is_work(path):
            state = "checkpoints"
        elif path.name.startswith("."):
            state = "left by a killed process"
        found.append(StoredFolder(path, path.parent.name, state, size_of(path)))
    return found


def damaged_files(store: Store) -> list[str]:
    """What differs from the digest in its manifest, a line each; reads every file. A run makes such stages again."""
    damaged = []
    for path in sorted(store.root.glob("*/[!.]*")):
        if path.is_dir() and path.parent != store.scratch:
            damaged += store.complaints(path)
    return damaged


def prune_store(store: Store, *, dry: bool = True) -> list[StoredFolder]:
    """Remove what no run names: stages, checkpoints of unfinished trainings, what killed processes left.

    Other formats stay: this version can't read which of them are needed.

    Args:
        dry: only say what would go.

    Returns:
        What went, or would go.

    Raises:
        HarnessError: a run is at work on the store.
    """
    if dry:
        return _superfluous(store)
    with store.alone():
        found = _superfluous(store)
        for folder in found:
            if folder.state == "left by a killed process":
                remove_abandoned(folder.path)
            else:
                shutil.rmtree(folder.path, ignore_errors=True)
    return found


def _superfluous(store: Store) -> list[StoredFolder]:
    return [folder for folder in store_contents(store) if folder.state not in ("named by a run", "another format")]


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def stages_named_by(record: Path, store: Store) -> set[tuple[str, str]]:
    """Kind and identity of the stages that a run's record names, and of what these were made from."""
    pending = _stages_of(record)
    named: set[tuple[str, str]] = set()
    while pending:
        stage = pending.pop()
        if stage not in named:
            named.add(stage)
            inputs = (store.read_manifest(*stage) or {}).get("inputs", {})
            pending += [(needed["kind"], needed["identity"]) for needed in inputs.values()]
    return named


def _stages_of(path: Path) -> list[tuple[str, str]]:
    """What a run's record names; nothing where it can't be read."""
    try:
        cells = read_json(path)["cells"]
        named = [(kind, identity) for cell in cells for kind, identity in cell["stages"].items()]
        named += [("alignments", identity) for cell in cells for identity in cell.get("alignments", ())]
        return named + [("apart", identity) for cell in cells for identity in cell.get("apart", {}).values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
