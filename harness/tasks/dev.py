"""A data folder whose test sets are held-out training rows: settings are chosen there, never on a test set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import new_directory, write_text
from harness.data.rows import read_rows
from harness.tasks import dolly_hub
from harness.tasks.dolly import SPLITS

# Data set -> its training files, of which the first one there is split, and what the parts are called below the folder.
_SPLIT: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "gsm8k": (("gsm8k/train.jsonl",), "gsm8k/train.jsonl", "gsm8k/test.jsonl"),
    "dolly": (SPLITS["dskd"].train_files, "dolly/train.jsonl", "dolly/test.jsonl"),
    "dolly_hub": (SPLITS["hub"].train_files, dolly_hub.TRAIN, dolly_hub.TEST),
}
_DEV_OF_ITS_OWN = {"dolly": "dolly/dev.jsonl", "dolly_hub": dolly_hub.DEV}


def write_dev_folder(root: Path, folder: Path, items: int = 500) -> list[str]:
    """Split the training sets of ``root``; with ``data.root=folder`` a recipe evaluates on held-out rows.

    Every n-th row is held out, so that both parts are of all parts of the file; of Dolly, a split's own development
    rows are taken where they are. Code is left out: its training rows have no tests.

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
    sources = {
        task: next((root / name for name in names if (root / name).is_file()), None)
        for task, (names, _, _) in _SPLIT.items()
    }
    if not any(sources.values()):
        raise HarnessError(str(root), "neither GSM8K nor Dolly", "a folder of data sets, as in data.root")
    said = []
    with new_directory(folder) as made:
        for task, source in sources.items():
            if source is None:
                continue
            _, train, test = _SPLIT[task]
            rows = read_rows(source, {})
            own = root / _DEV_OF_ITS_OWN.get(task, "-")
            if own.is_file():
                kept, held = rows, read_rows(own, {}, items)
            else:
                every = max(5, len(rows) // items)
                held = rows[every - 1 :: every][:items]
                chosen = {id(row) for row in held}
                kept = [row for row in rows if id(row) not in chosen]
            _write(made / train, kept)
            _write(made / test, held)
            said.append(f"{task}: {len(kept):,} rows to train on, {len(held):,} held out")
    return said


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({k: v for k, v in row.items() if k != "source"}, ensure_ascii=False) for row in rows]
    write_text(path, "\n".join(lines) + "\n")
