"""What a task is: its rows, its prompts and its measure, and all that other rooms have to know of them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal

from pydantic import Field
from typing_extensions import TypeVar

from harness.base.errors import HarnessError
from harness.base.files import is_file, sha256_file
from harness.base.schema import Strict
from harness.data.rows import Request, read_rows
from harness.tasks.sets import TRAINING, DataNeed, DevSplit, HubSet, PublishedSet, Reader

if TYPE_CHECKING:
    from harness.data.rows import Example


Split = Literal["train", "test"]


class TaskSettings(Strict):
    """Settings that every task has."""

    train_items: int | None = Field(None, ge=1, description="train on the first N rows; null for all")
    test_items: int | None = Field(None, ge=1, description="evaluate on the first N items; null for all")
    new_tokens: int = Field(256, ge=1, description="the most tokens that a student may answer with")
    seeds: tuple[int, ...] | None = Field(
        None, min_length=1, description="repetitions of this task; null: the recipe's"
    )


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
        values: metric -> item -> value (0 to 100 where the unit is %). An item that no answer could score is left out.
        details: what else is worth keeping of how they came about, as JSON: stored beside the scores.
        caveat: what a reader must be told of these scores; printed with the task's protocol.
    """

    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    caveat: str = ""


S_co = TypeVar("S_co", bound=TaskSettings, default=TaskSettings, covariant=True)


class Task(ABC, Generic[S_co]):
    """A data set with its prompt layout and its measure: a file of this folder, or of a plug-in with an entry point.

    Nothing outside its file names a task. What other rooms must know of it, it says itself.

    It is generic over its settings: ``class GSM8K(Task[GSM8KSettings])``.

    Args:
        settings: the task's part of the recipe.
        root: folder of data; None for the samples that come with the task.
    """

    name: str  # no ClassVar, as a recipe may name several of one class
    """How recipes call it: its settings are a field of the recipe under this name."""
    summary: ClassVar[str]
    source: str
    """Where its data comes from, and under which licence."""
    Settings: type[S_co]  # no ClassVar, which can't be generic
    metrics: ClassVar[tuple[Metric, ...]]
    train_files: ClassVar[tuple[str, ...]]
    """Below the data folder; the first one there is read. None for a task that makes its rows."""
    test_files: ClassVar[tuple[str, ...]]
    fields: ClassVar[tuple[str, str]] = ("", "")
    """Fields of a row of the training files, and of one of the test files, in words."""
    readers: ClassVar[tuple[Reader, Reader]] = (read_rows, read_rows)
    """What reads the rows of a training file, and those of a test file: `harness data` counts rows with them."""
    published: ClassVar[Mapping[str, PublishedSet]] = {}
    """Sizes of the published sets of rows, by the first file that each is read from."""
    hub_sets: ClassVar[Mapping[str, HubSet]] = {}
    """Sets of the hub that `harness data --download NAME` puts into a data folder, by that name."""
    dev_splits: ClassVar[Mapping[str, DevSplit]] = {}
    """What `harness data --dev FOLDER` holds out, by the name that it is listed under."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version decides scores."""
    scoring: ClassVar[frozenset[str]] = frozenset()
    """Settings that decide scores and no answer: with others, stored answers are scored again."""
    text: ClassVar[str] = ""
    """What responses read like, for a plan's costs: "mathematics", "instructions" or "code"; "" for anything else."""
    rewards: ClassVar[bool] = False
    """Whether :meth:`reward` says something: methods that learn by it are refused elsewhere."""
    judge_seconds: float = 1e-3
    """What scoring one answer takes, for a plan's costs."""

    def __init__(self, settings: S_co, root: Path | None) -> None:
        self.settings = settings
        self.root = root if root is not None else self.samples()

    @property
    def train_file(self) -> Path:
        return self._first(self.train_files)

    @property
    def test_file(self) -> Path:
        return self._first(self.test_files)

    @property
    def prompt_tokens(self) -> int | None:
        """Longer prompts are cut at so many tokens, at evaluation; None leaves them whole."""
        return None

    @property
    def samples_answers(self) -> bool:
        """Whether answers are sampled; else the likeliest token is taken."""
        return False

    @classmethod
    def samples(cls) -> Path:
        """The folder of samples in the layout that ``data.root`` must have: beside the file that defines the task."""
        return Path(inspect.getfile(cls)).parent / "samples"

    @classmethod
    def data_needs(cls, settings: TaskSettings | None = None) -> list[DataNeed]:
        """The sets of rows that settings ask for; without settings, all there can be. Empty where it makes rows."""
        files, whats = (cls.train_files, cls.test_files), (TRAINING, "test")
        both = map(DataNeed, whats, files, cls.fields, cls.readers)
        return [one for one in both if one.files]

    @classmethod
    def how_to_get(cls, files: Iterable[str]) -> str:
        """The command that downloads one of these files, as a sentence; empty where none does."""
        name = next((name for name, known in cls.hub_sets.items() if known.made & set(files)), None)
        return f"`harness data --root FOLDER --download {name}` puts it there." if name else ""

    @classmethod
    def made_up_row(cls, file: str, number: int, prompt: str, response: str) -> dict[str, Any]:
        """A row as ``file`` holds them; its number tells it from the others where rows have ids."""
        return {"instruction": prompt, "output": response}

    @abstractmethod
    def training_examples(self) -> list[Example]:
        """Rows to train on, in the order of the file."""

    def question(self, example: Example) -> str:
        """What a row asks. Where one is held out of training, so are all that ask the same."""
        return example.prompt

    @abstractmethod
    def reference_examples(self) -> list[Example]:
        """Held-out prompts and references whose bits per byte are measured, rendered as in training."""

    @abstractmethod
    def requests(self) -> list[Request]:
        """Prompts of the test items."""

    def training_count(self) -> int:
        """How many rows :meth:`training_examples` gives."""
        return len(self.text_sizes("train"))

    def text_sizes(self, split: Split) -> Sequence[tuple[int, int]]:
        """Bytes of prompt and response of each training row or reference, about: what a plan reckons with."""
        if split not in self._sizes:
            examples = self.training_examples() if split == "train" else self.reference_examples()
            self._sizes[split] = [(len(one.prompt.encode()), len(one.response.encode())) for one in examples]
        return self._sizes[split]

    @cached_property
    def _sizes(self) -> dict[Split, Sequence[tuple[int, int]]]:
        return {}

    def request_sizes(self) -> Sequence[int]:
        """Bytes of each prompt, about: what a plan reckons with, without the libraries that make prompts."""
        return [len(request.prompt.encode()) for request in self.requests()]

    @abstractmethod
    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        """Scores by student from stored outputs, ``outputs[student][Request.key]``; all students at once.

        Args:
            work: an empty folder for temporary files.
            unsafe: whether generated code may run without a sandbox where none is available.
        """

    def reward(self, row: str, response: str) -> float:
        """What a response to a training row is worth, from 0 to 1, by a rule that needs no model.

        Args:
            row: its id, as :meth:`training_examples` gives it.
        """
        raise NotImplementedError(f"{self.name} says no reward")

    def warnings(self, unsafe: bool) -> list[str]:
        """What will keep this machine from scoring, or make it dangerous: said before anything is trained."""
        return []

    @abstractmethod
    def protocol(self) -> list[str]:
        """How the numbers are made, in words: printed under every table that shows them."""

    def identity(self) -> dict[str, Any]:
        """Settings that decide prompts and answers."""
        return self.settings.model_dump(mode="json", exclude={"train_items", "seeds", *self.scoring})

    def scoring_identity(self) -> dict[str, Any]:
        """Settings that decide what answers score."""
        return self.settings.model_dump(mode="json", include=set(self.scoring))

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
            if is_file(self.root / name):
                return self.root / name
        raise HarnessError(
            f"data of task {self.name}",
            f"none of {', '.join(names)} under {self.root}",
            "one of these files",
            f"{self.how_to_get(names)} Set data.root to the folder that holds it, or leave it out for the built-in "
            "samples; `harness data` says where each data set comes from.".lstrip(),
        )


def samples_folder() -> Path:
    """The samples that the project ships, in the layout that ``data.root`` must have."""
    return Path(__file__).parent / "samples"
