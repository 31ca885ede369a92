"""A data folder whose test sets are held-out training rows: settings are chosen there, never on a test set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import new_directory, write_text
from harness.data.rows import read_rows
from harness.tasks import tasks


def write_dev_folder(root: Path, folder: Path, items: int = 500) -> list[str]:
    """Split the training sets of ``root``; with ``data.root=folder`` a recipe evaluates on held-out rows.

    Every n-th row is held out, so that both parts are of all parts of the file; a set's own development rows are taken
    where they are. A task says what of its data can be held out (:attr:`harness.tasks.base.Task.dev_splits`).

    Args:
        root: folder of data sets.
        folder: is made; must not exist.
        items: rows to hold out, at most a fifth of the training rows.

    Returns:
        What was written, a line each.

    Raises:
        HarnessError: ``folder`` exists, or ``root`` holds none of these sets.
    """
    if folder.exists():
        raise HarnessError(str(folder), "something there already", "a folder that does not exist yet")
    splits = {name: split for kind in tasks().values() for name, split in kind.dev_splits.items()}
    sources = {
        name: next((root / file for file in split.source if (root / file).is_file()), None)
        for name, split in splits.items()
    }
    if not any(sources.values()):
        found = f"no training rows of {', '.join(splits)}"
        raise HarnessError(str(root), found, "a folder of data sets, as in data.root")
    said = []
    with new_directory(folder) as made:
        for name, source in sources.items():
            if source is None:
                continue
            split, rows = splits[name], read_rows(source)
            if split.own is not None and (root / split.own).is_file():
                kept, held = rows, read_rows(root / split.own, limit=items)
            else:
                every = max(5, len(rows) // items)
                held = rows[every - 1 :: every][:items]
                chosen = {id(row) for row in held}
                kept = [row for row in rows if id(row) not in chosen]
            _write(made / split.train, kept)
            _write(made / split.test, held)
            said.append(f"{name}: {len(kept):,} rows to train on, {len(held):,} held out")
    return said


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({k: v for k, v in row.items() if k != "source"}, ensure_ascii=False) for row in rows]
    write_text(path, "\n".join(lines) + "\n")
