"""What a task is, and how its files are read."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from pydantic import Field
from typing_extensions import TypeVar

from harness.base.errors import HarnessError
from harness.base.files import sha256_file
from harness.base.schema import Strict
from harness.data.rows import Request

if TYPE_CHECKING:
    from harness.data.rows import Example


class TaskSettings(Strict):
    """Settings that every task has."""

    train_items: int | None = Field(None, ge=1, description="train on the first N rows; null for all")
    test_items: int | None = Field(None, ge=1, description="evaluate on the first N items; null for all")
    new_tokens: int = Field(256, ge=1, description="the most tokens that a student may answer with")
    seeds: tuple[int, ...] | None = Field(
        None, min_length=1, description="repetitions of this task; null: the recipe's"
    )


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
        draw = random.Random(0)
        for _ in range(self.rows):
            yield _log_normal(draw, *self.prompts), _log_normal(draw, *self.responses)


def _log_normal(draw: random.Random, mean: float, deviation: float) -> int:
    variance = math.log1p((deviation / mean) ** 2)
    return max(1, round(draw.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))))


@dataclass(frozen=True)
class Metric:
    """A number that a task gives.

    Attributes:
        name: as in results.
        unit: "%" or "bits/byte".
        headline: whether it is part of the table's average.
        higher_is_better: direction.
    """

    name: str
    unit: str = "%"
    headline: bool = True
    higher_is_better: bool = True


@dataclass(frozen=True)
class ItemScores:
    """Scores of one student on one task.

    Attributes:
        values: metric -> item -> value (0 to 100 where the unit is %).
        details: what else is worth keeping of how they came about, as JSON: stored beside the scores.
        caveat: what a reader must be told of these scores; printed with the task's protocol.
    """

    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    caveat: str = ""


S_co = TypeVar("S_co", bound=TaskSettings, default=TaskSettings, covariant=True)


class Task(ABC, Generic[S_co]):
    """A data set with its prompt layout and its measure.

    It is generic over its settings: ``class GSM8K(Task[GSM8KSettings])``.

    Args:
        settings: the task's part of the recipe.
        root: folder of data; None for the samples that the project ships.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Settings: type[S_co]  # no ClassVar, which can't be generic
    metrics: ClassVar[tuple[Metric, ...]]
    train_files: ClassVar[tuple[str, ...]]
    test_files: ClassVar[tuple[str, ...]]
    published: ClassVar[Mapping[str, PublishedSet]] = {}
    """Sizes of the published sets of rows, by the first file that each is read from."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version decides scores."""
    scorers: ClassVar[tuple[str, ...]]
    """Modules of ours that decide scores."""
    askers: ClassVar[tuple[str, ...]] = ()
    """Modules of ours that decide prompts, with the libraries above."""

    def __init__(self, settings: S_co, root: Path | None) -> None:
        self.settings = settings
        self.root = root if root is not None else samples_folder()
        self.built_in = root is None

    @property
    def train_file(self) -> Path:
        return self._first(self.train_files)

    @property
    def test_file(self) -> Path:
        return self._first(self.test_files)

    @classmethod
    def files(cls) -> tuple[str, ...]:
        """Every file that the task may read, below the data folder."""
        return (*cls.train_files, *cls.test_files)

    @classmethod
    def made_up_row(cls, file: str, number: int, prompt: str, response: str) -> dict[str, Any]:
        """A row as ``file`` holds them; its number tells it from the others where rows have ids."""
        return {"instruction": prompt, "output": response}

    @abstractmethod
    def training_examples(self) -> list[Example]:
        """Rows to train on, in the order of the file."""

    @abstractmethod
    def reference_examples(self) -> list[Example]:
        """Held-out prompts and references whose bits per byte are measured, rendered as in training."""

    @abstractmethod
    def requests(self) -> list[Request]:
        """Prompts of the test items."""

    def request_sizes(self) -> list[int]:
        """Bytes of each prompt, about: what a plan reckons with, without the libraries that make prompts."""
        return [len(request.prompt.encode()) for request in self.requests()]

    @abstractmethod
    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        """Scores by student from stored outputs, ``outputs[student][Request.key]``; all students at once.

        Args:
            work: an empty folder for temporary files.
            unsafe: whether generated code may run without a sandbox where none is available.
        """

    def warnings(self, unsafe: bool) -> list[str]:
        """What will keep this machine from scoring, or make it dangerous: said before anything is trained."""
        return []

    @abstractmethod
    def protocol(self) -> list[str]:
        """How the numbers are made, in words: printed under every table that shows them."""

    def identity(self) -> dict[str, Any]:
        """Settings that decide generation and scores."""
        return dict(self.settings.model_dump(mode="json", exclude={"train_items", "seeds"}))

    def training_identity(self) -> dict[str, Any]:
        """Settings that decide the training rows."""
        return {"train_items": self.settings.train_items}

    def training_digest(self) -> str:
        """SHA-256 of the training rows: of the file that they are read from."""
        return sha256_file(self.train_file)

    def test_digests(self) -> list[str]:
        """SHA-256 of the files that evaluation reads."""
        return [sha256_file(self.test_file)]

    def _first(self, names: Sequence[str]) -> Path:
        for name in names:
            if (self.root / name).is_file():
                return self.root / name
        raise HarnessError(
            f"data of task {self.name}",
            f"none of {', '.join(names)} under {self.root}",
            "one of these files",
            "Set data.root to the folder that holds it, or leave it out for the built-in samples; `harness data` "
            "says where each data set comes from.",
        )


def samples_folder() -> Path:
    """The samples that the project ships, in the layout that ``data.root`` must have."""
    return Path(__file__).parent / "samples"
