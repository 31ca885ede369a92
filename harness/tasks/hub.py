"""Data sets that the Hugging Face hub has in the form that a task reads: downloaded when asked for, never by a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.data.tables import load_hub_split
from harness.tasks import tasks
from harness.tasks.sets import HubRows, HubSet


def hub_sets() -> dict[str, HubSet]:
    """All sets of the hub that tasks read, by the name that `harness data --download` takes."""
    return {name: known for kind in tasks().values() for name, known in kind.hub_sets.items()}


def download(name: str, root: Path) -> list[str]:
    """Write a data set's files below ``root``; a file that is there stays as it is.

    Returns:
        A line for each file: how many rows, and whether they are those that the authors published.

    Raises:
        HarnessError: a set that is not on the list, a hub that does not give it or gives other rows, or a file that is
            there and no part of the same split as those that are missing.
    """
    known = hub_sets()
    if name not in known:
        raise HarnessError("--download", repr(name), f"one of {', '.join(known)}", "Others: `harness data` says where.")
    hub_set, lines = known[name], []
    for split, files in hub_set.files.items():
        there = [file for file in files if (root / file).exists()]
        texts = _texts(hub_set, split) if len(there) < len(files) else {}
        if texts:
            _check_parts(root, there, texts)
        for file in files:
            if file in there:
                lines.append(f"{root / file} is there already")
                continue
            write_text(root / file, texts[file])
            same = hashlib.sha256(texts[file].encode()).hexdigest() == hub_set.digests.get(file)
            whose = "as its authors published them" if same else hub_set.otherwise
            lines.append(f"{root / file}: {texts[file].count(chr(10)):,} rows, {whose}")
    return lines


def rows_text(rows: HubRows, fields: tuple[str, ...]) -> str:
    """Rows as JSON lines with these fields, in this order."""
    return "".join(json.dumps({name: row[name] for name in fields}, ensure_ascii=False) + "\n" for row in rows)


def _texts(hub_set: HubSet, split: str) -> dict[str, str]:
    """What stands in each file that is made of a split of the hub."""
    rows = load_hub_split(hub_set.repository, hub_set.config, split)
    try:
        made = hub_set.make(rows)
        return {file: rows_text(own, hub_set.fields) for file, own in zip(hub_set.files[split], made, strict=True)}
    except KeyError as error:
        found = f"a row without the field {error}"
        raise HarnessError(f"the hub's {hub_set.repository}", found, "one in every row") from error


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
