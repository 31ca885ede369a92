"""Sets of rows as tasks declare them: files and fields, sizes as published, the hub's copies, what is held out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.base.files import is_file
from harness.data.rows import read_rows

TRAINING = "training"
HubRows = Iterable[Mapping[str, Any]]
Reader = Callable[[Path], Sequence[Any]]
"""Reads all rows of a file, and raises a HarnessError with file, line and field for the first that is wrong."""


@dataclass(frozen=True)
class DataNeed:
    """A set of rows that a task reads.

    Attributes:
        what: "training", with the split where several are listed, or a test set as tables call it.
        files: below the data folder; the first one there is read.
        fields: of a row, in words.
        read: holds each row of a file to what the task reads.
    """

    what: str
    files: tuple[str, ...]
    fields: str
    read: Reader = read_rows

    def there(self, root: Path) -> Path | None:
        """The file that is read."""
        return next((root / file for file in self.files if is_file(root / file)), None)

    def count(self, path: Path, asked: int) -> int:
        """How many rows of so many that are asked for a file has."""
        return len(read_rows(path, limit=asked))


@dataclass(frozen=True)
class PublishedSet:
    """Size of a set of rows as it was published: what a plan reckons with where the file is not there.

    Attributes:
        name: of the set, in words.
        rows: how many.
        prompts, responses: bytes of one: mean and standard deviation.
    """

    name: str
    rows: int
    prompts: tuple[float, float]
    responses: tuple[float, float]

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Bytes of each row's prompt and response: log-normal, as lengths of texts are, and the same at each call."""
        draw = random.Random(0).lognormvariate
        prompts, responses = _log_normal(*self.prompts), _log_normal(*self.responses)
        for _ in range(self.rows):
            yield max(1, round(draw(*prompts))), max(1, round(draw(*responses)))


def _log_normal(mean: float, deviation: float) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm, of those of the number."""
    variance = math.log1p((deviation / mean) ** 2)
    return math.log(mean) - variance / 2, math.sqrt(variance)


def _as_they_are(rows: HubRows) -> Sequence[HubRows]:
    return [rows]


@dataclass(frozen=True)
class HubSet:
    """A data set of the Hugging Face hub, in the form that a task reads.

    Attributes:
        repository, config: as ``datasets.load_dataset`` takes them.
        files: split of the hub -> files below the data folder that are made of it.
        fields: of every row of a file; others are left out.
        make: the rows of a split of the hub -> those of each of its files.
        digests: file -> SHA-256 of its rows, as the authors published them, written as :mod:`harness.tasks.hub` does.
        otherwise: what rows are that have no such digest.
    """

    repository: str
    config: str | None
    files: Mapping[str, tuple[str, ...]]
    fields: tuple[str, ...]
    make: Callable[[HubRows], Sequence[HubRows]] = _as_they_are
    digests: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = "other rows than its authors published: a set of its own"

    @property
    def made(self) -> frozenset[str]:
        """All files that are made of it."""
        return frozenset(file for files in self.files.values() for file in files)


@dataclass(frozen=True)
class DevSplit:
    """How training rows are held out to choose settings on.

    Attributes:
        source: training files, of which the first one there is split.
        train, test: what the parts are called in the folder that is written.
        own: a file of development rows that the set has itself; it is taken where it is there.
    """

    source: tuple[str, ...]
    train: str
    test: str
    own: str | None = None
