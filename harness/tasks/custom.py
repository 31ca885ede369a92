"""Data of a recipe's own, without code: files, columns, a prompt's layout and a metric, all named in the recipe.

A recipe may have several, each called as it likes: ``tickets: {task: custom, train: a.csv, test: b.csv}`` is the task
``tickets``. What is said of the rows' origin and licence is what the recipe says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.base.errors import HarnessError
from harness.base.files import digest_of, expanded, is_file, sha256_file
from harness.data.rows import Example, Request
from harness.data.tables import is_file_there, is_on_hub, names_no_revision
from harness.evaluate.rouge import Tokens
from harness.tasks.base import ItemScores, Metric, Task, TaskSettings
from harness.tasks.own_metrics import (
    IN_WORDS,
    MetricKind,
    can_score,
    check_programs,
    check_reference,
    score_programs,
    score_texts,
    takes_several,
)
from harness.tasks.own_rows import OwnColumns, OwnLayout, OwnRow, placeholders
from harness.tasks.sets import TRAINING, DataNeed, PublishedSet

SAMPLES = ("custom/train.jsonl", "custom/test.jsonl")
_NO_RESULT = {"task", "train", "test", "licence", "origin"}
"""Settings that decide nothing: what files hold has a digest."""


class CustomSettings(TaskSettings):
    """Settings of a task whose data a recipe describes."""

    task: Literal["custom"] | None = Field(
        None, description="custom: makes any name in a recipe a task of this kind, `tickets: {task: custom, ...}`"
    )
    train: str | None = Field(
        None, description="training rows: a file below data.root, else below the working folder; see docs/own_data.md"
    )
    test: str | None = Field(
        None, description="test rows; null, for both, reads custom/train.jsonl and custom/test.jsonl"
    )
    columns: OwnColumns = Field(OwnColumns(), description="which columns of a row hold what")
    messages: str | None = Field(None, description="the column with a chat, in place of columns.prompt and .response")
    template: str = Field(
        "{prompt}", description="how a prompt reads: any column in braces; {prompt} is columns.prompt, or the chat"
    )
    metric: MetricKind = Field("rouge_l", description="how answers are scored; none: bits per byte alone")
    metric_name: str = Field(
        "", pattern=r"^([a-z][a-z0-9_]{0,39})?$", description="how tables call it; the metric's by default"
    )
    rouge_tokens: Tokens = Field("rouge_score", description="words of ROUGE-L, as dolly.rouge_tokens")
    stop: tuple[str, ...] = Field((), description="texts that end an answer, beside the model's own end")
    licence: str = Field("", description="of the data, to be printed")
    origin: str = Field("", description="of the data, to be printed")

    @model_validator(mode="after")
    def _has_data(self) -> CustomSettings:
        if (self.train is None) != (self.test is None) or (self.task and self.train is None):
            raise ValueError("set train and test: files of rows to train on, and of rows to test on")
        if not placeholders(self.template):
            raise ValueError("template names no column; expected one in braces, such as {prompt}")
        if self.metric_name == "bits_per_byte":
            raise ValueError("metric_name can't be bits_per_byte, which is measured in any case")
        return self


class Custom(Task[CustomSettings]):
    """A task of a recipe's own.

    Args:
        name: how the recipe calls it.
    """

    name, summary = "custom", "rows of your own, without code: see docs/own_data.md"
    source = "the recipe says; the samples were written for this project, Apache-2.0"
    Settings = CustomSettings
    train_files, test_files = SAMPLES[:1], SAMPLES[1:]
    fields = ("columns that the recipe names", "columns that the recipe names")
    published: ClassVar[Mapping[str, PublishedSet]] = {
        file: PublishedSet("a sample", 12, (60, 20), (40, 15)) for file in SAMPLES
    }
    libraries = ("rouge-score", "lm-eval", "evalplus")
    scoring = frozenset({"metric", "metric_name", "rouge_tokens"})

    def __init__(self, settings: CustomSettings, root: Path | None, name: str = "custom") -> None:
        own = settings.train is not None
        super().__init__(settings, Path() if own and root is None else root)
        self.name = name
        if own:
            self.source = f"{settings.origin or 'origin not given'}, {settings.licence or 'licence not given'}"
        if settings.metric == "code":
            self.judge_seconds = 0.35  # as codem's programs

    @classmethod
    def data_needs(cls, settings: TaskSettings | None = None) -> list[DataNeed]:
        given = settings if isinstance(settings, CustomSettings) else CustomSettings()
        train, test = _layouts(given)
        files = (given.train or SAMPLES[0], given.test or SAMPLES[1])
        words = [", ".join(layout.wanted) for layout in (train, test)]
        return [
            OwnNeed(TRAINING, files[:1], words[0], train.read),
            OwnNeed("test", files[1:], words[1], lambda path: _read_tests(test, given.metric, path)),
        ]

    @classmethod
    def made_up_row(cls, file: str, number: int, prompt: str, response: str) -> dict[str, Any]:
        return {"prompt": prompt, "response": response}

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        return () if self.settings.metric == "none" else (Metric(self._metric_name),)

    @property
    def _metric_name(self) -> str:
        return self.settings.metric_name or {"code": "passed"}.get(self.settings.metric, self.settings.metric)

    @property
    def train_file(self) -> Path:
        return self._place(self.settings.train, SAMPLES[0])

    @property
    def test_file(self) -> Path:
        return self._place(self.settings.test, SAMPLES[1])

    def training_examples(self) -> list[Example]:
        return self._examples("train", self._training[: self.settings.train_items])

    def reference_examples(self) -> list[Example]:
        return self._examples("test", self._tests[: self.settings.test_items])

    def requests(self) -> list[Request]:
        return [Request(example.id, example.prompt, self.settings.stop) for example in self.reference_examples()]

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        kind, name, rows = self.settings.metric, self._metric_name, self._scored()
        if kind == "none":
            return {student: ItemScores() for student in outputs}
        if kind == "code":
            return score_programs(name, outputs, rows, work, unsafe)
        scored = score_texts(kind, outputs, rows, self.settings.rouge_tokens)
        return {student: ItemScores({name: values}) for student, values in scored.items()}

    def warnings(self, unsafe: bool) -> list[str]:
        """With metric ``code`` the references are run, so that one that fails is found before anything is trained."""
        from harness.evaluate.programs import sandbox

        own = [place for place in (self.train_file, self.test_file) if names_no_revision(place)]
        said = [f"{place} names no revision: whether rows change, only their digest says" for place in own]
        if self.settings.metric != "code":
            return said
        if not (no_sandbox := sandbox.warnings(unsafe)):
            check_programs(self._scored())
        return said + no_sandbox

    def protocol(self) -> list[str]:
        settings, rows = self.settings, self._tests[: self.settings.test_items]
        scored, words = self._scored(), ""
        if settings.metric == "rouge_l" and settings.rouge_tokens == "unicode":
            words = ", words of every script"
        layout = "a chat's last answer after what came before it" if settings.messages else "prompt and response"
        lines = [
            f"{len(rows)} items; {IN_WORDS[settings.metric]}{words}; {layout}, the prompt as {settings.template!r}; "
            f"greedy; at most {settings.new_tokens} new tokens."
        ]
        if settings.train is not None:
            said = f"origin: {settings.origin or 'not given'}; licence: {settings.licence or 'not given'}"
            lines.append(f"Data as the recipe describes it: {said}.")
        if left_out := len(rows) - len(scored):
            lines.append(f"{left_out} items not scored: their references have no word that ROUGE-L could find.")
        trained = {row.prompt for row in self._training[: settings.train_items]}
        if seen := sum(row.prompt in trained for row in rows):
            lines.append(f"{seen} of the {len(rows)} test prompts are training prompts too: what they score was shown.")
        return lines

    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in super().identity().items() if name not in _NO_RESULT}

    def training_identity(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", include={"train_items", "columns", "messages", "template"})

    def training_digest(self) -> str:
        return _digest(self.train_file, self._training)

    def test_digests(self) -> list[str]:
        return [_digest(self.test_file, self._tests)]

    @cached_property
    def _training(self) -> list[OwnRow]:
        return _layouts(self.settings)[0].read(self.train_file)

    @cached_property
    def _tests(self) -> list[OwnRow]:
        return _read_tests(_layouts(self.settings)[1], self.settings.metric, self.test_file)

    def _scored(self) -> dict[str, OwnRow]:
        """Test rows by item, without those that no answer could score on."""
        rows = {f"{self.name}/test/{place}": row for place, row in enumerate(self._tests[: self.settings.test_items])}
        kind, tokens = self.settings.metric, self.settings.rouge_tokens
        return {item: row for item, row in rows.items() if can_score(kind, row, tokens)}

    def _examples(self, split: str, rows: Sequence[OwnRow]) -> list[Example]:
        named = (f"{self.name}/{split}/{place}" for place in range(len(rows)))
        return [Example(name, row.prompt, row.responses[0], row.source) for name, row in zip(named, rows, strict=True)]

    def _place(self, given: str | None, sample: str) -> Path:
        if given is None:
            return self._first((sample,))
        return Path(given) if is_on_hub(given) else self.root / expanded(given)


class OwnNeed(DataNeed):
    """Rows that need not be a file below the data folder."""

    def there(self, root: Path) -> Path | None:
        (name,) = self.files
        place = Path(name) if is_on_hub(name) else root / expanded(name)
        return place if is_file_there(place) else None

    def count(self, path: Path, asked: int) -> int:
        try:
            return len(self.read(path))
        except HarnessError:  # which is said where rows are read
            return asked


def _layouts(settings: CustomSettings) -> tuple[OwnLayout, OwnLayout]:
    """Of training rows and of test rows, which may have several references, and what a metric asks for."""
    train = OwnLayout(settings.columns, settings.messages, settings.template)
    several, functions = takes_several(settings.metric), settings.metric == "code"
    return train, OwnLayout(settings.columns, settings.messages, settings.template, several, functions)


def _read_tests(layout: OwnLayout, metric: MetricKind, place: Path) -> list[OwnRow]:
    rows = layout.read(place)
    for row in rows:
        check_reference(metric, row)
    return rows


def _digest(place: Path, rows: Sequence[OwnRow]) -> str:
    """SHA-256 of a file; of what is read, where rows come from many files or from the hub."""
    if is_file(place):
        return sha256_file(place)
    return digest_of([[row.prompt, list(row.responses), row.entry_point, list(row.inputs)] for row in rows])
