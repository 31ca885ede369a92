"""A split of this project of the hub's databricks/databricks-dolly-15k: not DSKD's, whose rows it divides otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from harness.base.errors import HarnessError

REPOSITORY = "databricks/databricks-dolly-15k"
TRAIN, DEV, TEST = FILES = ("dolly_hub/train.jsonl", "dolly_hub/dev.jsonl", "dolly_hub/test.jsonl")
FIELDS = ("instruction", "input", "output", "category")
TEST_ROWS, DEV_ROWS = 500, 1000
RULE = (
    f"prompts (instruction and context) sorted by SHA-256, each with all its rows: test takes them until it has "
    f"{TEST_ROWS:,} rows or more, then development until it has {DEV_ROWS:,} or more, and training the others"
)


def split_rows(rows: Iterable[Mapping[str, Any]]) -> list[list[dict[str, str]]]:
    """The rows of `FILES`, the same in whatever order the hub gives its rows.

    Rows without instruction or response are left out; of rows whose instruction, context and response are the same, the
    one whose category comes first stays. Prompts that differ in white space around them alone count as one, so that a
    test or development set has more rows than its number where its last prompt has several.

    Args:
        rows: with instruction, context, response and category, as the hub has them.

    Returns:
        Rows with `FIELDS`, in the order of the digests.

    Raises:
        HarnessError: too few rows to leave any for training.
    """
    distinct: dict[tuple[str, ...], dict[str, str]] = {}
    renamed = [_renamed(row) for row in rows]
    for row in sorted((row for row in renamed if row["instruction"].strip() and row["output"].strip()), key=_place):
        distinct.setdefault((row["instruction"], row["input"], row["output"]), row)
    train: list[dict[str, str]] = []
    dev: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for _, prompt in groupby(distinct.values(), key=_digest):
        part = test if len(test) < TEST_ROWS else dev if len(dev) < DEV_ROWS else train
        part += prompt
    if not train:
        found = f"{len(distinct):,} different rows with an instruction and a response"
        raise HarnessError(REPOSITORY, found, f"more than {TEST_ROWS + DEV_ROWS:,}: the others are to train on")
    return [train, dev, test]


def _renamed(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of the hub with the fields that DSKD's rows have."""
    values = (row[name] or "" for name in ("instruction", "context", "response", "category"))
    return dict(zip(FIELDS, values, strict=True))


def _place(row: Mapping[str, str]) -> tuple[str, ...]:
    return (_digest(row), *(row[name] for name in FIELDS))


def _digest(row: Mapping[str, str]) -> str:
    prompt = json.dumps([row["instruction"].strip(), row["input"].strip()])  # no two prompts are one text
    return hashlib.sha256(prompt.encode()).hexdigest()
