"""Data sets that the Hugging Face hub has in the form that a task reads: downloaded when asked for, never by a run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import write_text


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub.

    Attributes:
        repository, config: as ``datasets.load_dataset`` takes them.
        files: file below the data folder -> split that it holds.
        fields: of every row; others are left out.
        digests: file -> SHA-256 of its rows, as the authors published them, written as here.
    """

    repository: str
    config: str
    files: dict[str, str]
    fields: tuple[str, ...]
    digests: dict[str, str]


SETS = {
    "gsm8k": HubSet(
        "openai/gsm8k",
        "main",
        {"gsm8k/train.jsonl": "train", "gsm8k/test.jsonl": "test"},
        ("question", "answer"),
        # of github.com/openai/grade-school-math, commit 3101c7d5
        {
            "gsm8k/train.jsonl": "6043ef64147b59871f4fd3adf669c306fe0a4c27e5a5c4bfb761f3f084895a13",
            "gsm8k/test.jsonl": "752adc99f23132275139f1f7be57126b08735a55daf0c56859ee6df70abafbac",
        },
    )
}


def download(name: str, root: Path) -> list[str]:
    """Write a data set's files below ``root``; a file that is there stays as it is.

    Returns:
        A line for each file: how many rows, and whether they are those that the authors published.

    Raises:
        HarnessError: a set that is not on the list, or a hub that does not give it.
    """
    if name not in SETS:
        raise HarnessError("--download", repr(name), f"one of {', '.join(SETS)}", "Others: `harness data` says where.")
    wanted, lines = SETS[name], []
    for file, split in wanted.files.items():
        path = root / file
        if path.exists():
            lines.append(f"{path} is there already")
            continue
        text = rows_text(_rows(wanted, split), wanted.fields)
        write_text(path, text)
        same = hashlib.sha256(text.encode()).hexdigest() == wanted.digests[file]
        known = "as its authors published them" if same else "other rows than its authors published: a set of its own"
        lines.append(f"{path}: {text.count(chr(10)):,} rows, {known}")
    return lines


def rows_text(rows: Any, fields: tuple[str, ...]) -> str:
    """Rows as JSON lines with these fields, in this order."""
    return "".join(json.dumps({field: row[field] for field in fields}, ensure_ascii=False) + "\n" for row in rows)


def _rows(wanted: HubSet, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(wanted.repository, wanted.config, split=split)
    except Exception as error:  # whatever the hub's client raises: no network, no such set, a proxy's page
        reason = " ".join(str(error).split())[:200]
        found = f"no answer for {wanted.repository} ({type(error).__name__}: {reason})"
        fix = "Check the network, or put the files there yourself."
        raise HarnessError("the hub", found, "a download", fix) from error
