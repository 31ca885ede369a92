"""Data sets that the Hugging Face hub has in the form that a task reads: downloaded when asked for, never by a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.tasks import dolly_hub

HubRows = Iterable[Mapping[str, Any]]


def _as_they_are(rows: HubRows) -> Sequence[HubRows]:
    return [rows]


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub.

    Attributes:
        repository, config: as ``datasets.load_dataset`` takes them.
        files: split of the hub -> files below the data folder that are made of it.
        fields: of every row of a file; others are left out.
        make: the rows of a split of the hub -> those of each of its files.
        digests: file -> SHA-256 of its rows, as the authors published them, written as here.
        otherwise: what rows are that have no such digest.
    """

    repository: str
    config: str | None
    files: Mapping[str, tuple[str, ...]]
    fields: tuple[str, ...]
    make: Callable[[HubRows], Sequence[HubRows]] = _as_they_are
    digests: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = "other rows than its authors published: a set of its own"


SETS = {
    "gsm8k": HubSet(
        "openai/gsm8k",
        "main",
        {"train": ("gsm8k/train.jsonl",), "test": ("gsm8k/test.jsonl",)},
        ("question", "answer"),
        # of github.com/openai/grade-school-math, commit 3101c7d5
        digests={
            "gsm8k/train.jsonl": "6043ef64147b59871f4fd3adf669c306fe0a4c27e5a5c4bfb761f3f084895a13",
            "gsm8k/test.jsonl": "752adc99f23132275139f1f7be57126b08735a55daf0c56859ee6df70abafbac",
        },
    ),
    "dolly_hub": HubSet(
        dolly_hub.REPOSITORY,
        None,
        {"train": dolly_hub.FILES},
        dolly_hub.FIELDS,
        make=dolly_hub.split_rows,
        otherwise="a split of this project, not DSKD's",
    ),
}


def download(name: str, root: Path) -> list[str]:
    """Write a data set's files below ``root``; a file that is there stays as it is.

    Returns:
        A line for each file: how many rows, and whether they are those that the authors published.

    Raises:
        HarnessError: a set that is not on the list, a hub that does not give it or gives other rows, or a file that is
            there and no part of the same split as those that are missing.
    """
    if name not in SETS:
        raise HarnessError("--download", repr(name), f"one of {', '.join(SETS)}", "Others: `harness data` says where.")
    wanted, lines = SETS[name], []
    for split, files in wanted.files.items():
        there = [file for file in files if (root / file).exists()]
        texts = _texts(wanted, split) if len(there) < len(files) else {}
        if texts:
            _check_parts(root, there, texts)
        for file in files:
            if file in there:
                lines.append(f"{root / file} is there already")
                continue
            write_text(root / file, texts[file])
            same = hashlib.sha256(texts[file].encode()).hexdigest() == wanted.digests.get(file)
            known = "as its authors published them" if same else wanted.otherwise
            lines.append(f"{root / file}: {texts[file].count(chr(10)):,} rows, {known}")
    return lines


def how_to_get(files: Iterable[str]) -> str:
    """The command that downloads one of these files, as a sentence; empty where none does."""
    for name, known in SETS.items():
        if set(files) & {file for made in known.files.values() for file in made}:
            return f"`harness data --root FOLDER --download {name}` puts it there."
    return ""


def rows_text(rows: HubRows, fields: tuple[str, ...]) -> str:
    """Rows as JSON lines with these fields, in this order."""
    return "".join(json.dumps({name: row[name] for name in fields}, ensure_ascii=False) + "\n" for row in rows)


def _texts(wanted: HubSet, split: str) -> dict[str, str]:
    """What stands in each file that is made of a split of the hub."""
    rows = _rows(wanted, split)
    try:
        made = wanted.make(rows)
        return {file: rows_text(own, wanted.fields) for file, own in zip(wanted.files[split], made, strict=True)}
    except KeyError as error:
        found = f"a row without the field {error}"
        raise HarnessError(f"the hub's {wanted.repository}", found, "one in every row") from error


def _check_parts(root: Path, there: Sequence[str], texts: Mapping[str, str]) -> None:
    """Parts of two splits must not mix: what one trains on, the other may test on."""
    for file in there:
        if (root / file).read_bytes() != texts[file].encode():
            raise HarnessError(
                str(root / file),
                "other rows than the hub's split has there now",
                "files of one download",
                f"Move {', '.join(there)} away, or download into another folder.",
            )


def _rows(wanted: HubSet, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(wanted.repository, wanted.config, split=split)
    except Exception as error:  # whatever the hub's client raises: no network, no such set, a proxy's page
        reason = " ".join(str(error).split())[:200]
        found = f"no answer for {wanted.repository} ({type(error).__name__}: {reason})"
        fix = "Check the network, or put the files there yourself."
        raise HarnessError("the hub", found, "a download", fix) from error
