"""Every task keeps what tasks promise, and each promise is one that a task can break."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest

import harness.tasks.contract as contract
from harness.base.errors import HarnessError
from harness.data.rows import Example, Request, read_rows
from harness.evaluate.programs.sandbox import probe
from harness.tasks import tasks
from harness.tasks.base import ItemScores, Metric, Split, Task, TaskSettings
from harness.tasks.contract import PROMISES, check_task, promise_of
from harness.tasks.sets import PublishedSet

NAMES = [name for name in tasks() if name != "codem" or probe().available]


@cache
def checked(name: str) -> dict[str, tuple[bool | None, str]]:
    return {promise: (ok, detail) for promise, ok, detail in check_task(name)}


@pytest.mark.parametrize("promise", [promise_of(check) for check in PROMISES])
@pytest.mark.parametrize("name", NAMES)
def test_tasks_keep_their_promises(name: str, promise: str) -> None:
    assert checked(name)[promise] == (True, "")


def test_a_task_that_is_not_there_is_named() -> None:
    with pytest.raises(HarnessError, match=r"found 'gsm8'; .* Did you mean .gsm8k"):
        check_task("gsm8")


# --- Tasks that break one promise each --------------------------------------------------------------------------------


class Settings(TaskSettings):
    pass


class Reversal(Task[Settings]):
    """Keeps every promise: words to be written backwards."""

    name, summary, source = "reversal", "words backwards", "a test"
    Settings = Settings
    metrics: Any = (Metric("same"), Metric("wrong_letters", "letters", higher_is_better=False))
    train_files = ("reversal/train.jsonl",)
    test_files = ("reversal/test.jsonl",)
    fields = ("word, backwards", "word, backwards")
    published: ClassVar[Mapping[str, PublishedSet]] = {
        file: PublishedSet("a set", 9, (9, 1), (9, 1)) for file in ("reversal/train.jsonl", "reversal/test.jsonl")
    }

    @classmethod
    def made_up_row(cls, file: str, number: int, prompt: str, response: str) -> dict[str, Any]:
        return {"word": prompt, "backwards": response}

    def training_examples(self) -> list[Example]:
        return self._examples(self.train_file, self.settings.train_items)

    def reference_examples(self) -> list[Example]:
        return self._examples(self.test_file, self.settings.test_items)

    def requests(self) -> list[Request]:
        return [Request(example.id, example.prompt) for example in self.reference_examples()]

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        right = {example.id: example.response for example in self.reference_examples()}
        return {
            student: ItemScores(
                {
                    "same": {item: 100.0 * (answers[item] == text) for item, text in right.items()},
                    "wrong_letters": {
                        item: float(sum(a != b for a, b in itertools.zip_longest(answers[item], text)))
                        for item, text in right.items()
                    },
                }
            )
            for student, answers in outputs.items()
        }

    def protocol(self) -> list[str]:
        return [f"{len(self.requests())} words."]

    def _examples(self, path: Path, limit: int | None) -> list[Example]:
        rows = read_rows(path, {"word": str, "backwards": str}, limit)
        return [
            Example(f"{path.stem}/{number}", f"Backwards: {row['word']}\n", row["backwards"], row["source"])
            for number, row in enumerate(rows)
        ]


class Undescribed(Reversal):
    class Settings(Settings):
        shout: bool = False


class Empty(Reversal):
    def training_examples(self) -> list[Example]:
        return [Example(each.id, each.prompt, "") for each in super().training_examples()]


class Twins(Reversal):
    def requests(self) -> list[Request]:
        return [Request("test/0", request.prompt) for request in super().requests()]


class Moody(Reversal):
    asked: ClassVar[Any] = itertools.count()

    def requests(self) -> list[Request]:
        return [Request(request.id, f"{request.prompt}{next(self.asked)}") for request in super().requests()]


class FromTheEnd(Reversal):
    def training_examples(self) -> list[Example]:
        rows = self._examples(self.train_file, None)
        return rows[-self.settings.train_items :] if self.settings.train_items else rows


class Harsh(Reversal):
    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        scores = super().score(outputs, work, unsafe)
        return {
            who: ItemScores({m: {i: x / 2 for i, x in v.items()} for m, v in s.values.items()})
            for who, s in scores.items()
        }


class Kind(Reversal):
    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        kinder = {who: {i: a or "oops" for i, a in answers.items()} for who, answers in outputs.items()}
        scores = super().score(kinder, work, unsafe)
        return {
            who: ItemScores({m: {i: max(x, 1.0) for i, x in v.items()} for m, v in s.values.items()})
            for who, s in scores.items()
        }


class OnACurve(Reversal):
    """Where another student is better, one gets less."""

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        scores = super().score(outputs, work, unsafe)
        for scored in scores.values():
            same: Any = scored.values["same"]
            for place, item in enumerate(same):
                same[item] = same[item] if place % 4 or len(outputs) == 1 or all(same.values()) else 0.0
        return scores


class TooMuch(Reversal):
    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        scores = super().score(outputs, work, unsafe)
        return {who: ItemScores({**s.values, "more": s.values["same"]}) for who, s in scores.items()}


class Constant(Reversal):
    def training_digest(self) -> str:
        return "0" * 64


class Forgetful(Reversal):
    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in super().identity().items() if name != "new_tokens"}


class Silent(Reversal):
    def protocol(self) -> list[str]:
        return ["Words."]


class OtherRows(Reversal):
    @classmethod
    def made_up_row(cls, file: str, number: int, prompt: str, response: str) -> dict[str, Any]:
        return {"instruction": prompt, "output": response}


class Crashing(Reversal):
    def training_examples(self) -> list[Example]:
        if not any((self.root / file).is_file() for file in self.train_files):
            raise FileNotFoundError("no idea where")
        return super().training_examples()


class Wordy(Reversal):
    def request_sizes(self) -> list[int]:
        return [10 * size for size in super().request_sizes()]


class Miscounted(Reversal):
    def training_count(self) -> int:
        return super().training_count() + 1


class Swapped(Reversal):
    def text_sizes(self, split: Split) -> Sequence[tuple[int, int]]:
        return [(response, prompt) for prompt, response in super().text_sizes(split)]


BROKEN: Mapping[type[Reversal], Any] = {
    Undescribed: contract.settings_have_defaults,
    Empty: contract.rows_render,
    Twins: contract.names_are_unique,
    Moody: contract.everything_is_repeatable,
    FromTheEnd: contract.fewer_items_are_the_first,
    Harsh: contract.references_score_best,
    Kind: contract.empty_answers_score_worst,
    OnACurve: contract.scores_stand_alone,
    TooMuch: contract.every_metric_is_scored,
    Constant: contract.digests_follow_the_rows,
    Forgetful: contract.identities_hold_what_decides,
    Silent: contract.protocol_says_how,
    OtherRows: contract.made_up_rows_are_read,
    Crashing: contract.missing_files_are_named,
    Wordy: contract.prompts_are_as_long_as_said,
    Miscounted: contract.prompts_are_as_long_as_said,
    Swapped: contract.prompts_are_as_long_as_said,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "reversal").mkdir()
    for split in ("train", "test"):
        words = [f"{split} word {number}" for number in range(9)]
        rows = [json.dumps({"word": word, "backwards": word[::-1]}) + "\n" for word in words]
        (tmp_path / f"reversal/{split}.jsonl").write_text("".join(rows))
    return tmp_path


def test_one_that_keeps_all_breaks_none(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "tasks", lambda: {"reversal": Reversal})
    assert [(one.promise, one.detail) for one in check_task("reversal", data) if not one.ok] == []


def test_data_that_can_not_be_written_is_copied_to_be_changed(data: Path, tmp_path: Path) -> None:
    """Shared data, or a checkout, of which an ordinary user may not write a file."""
    for path in data.rglob("*.jsonl"):
        path.chmod(0o444)
    (tmp_path / "scratch").mkdir()
    copied = list(contract.Trial(Reversal, data, tmp_path / "scratch").copied_data().rglob("*.jsonl"))
    assert len(copied) == 2
    assert all(path.stat().st_mode & 0o200 for path in copied)


def test_every_promise_is_broken_by_one_of_these() -> None:
    assert set(BROKEN.values()) == set(PROMISES)


@pytest.mark.parametrize("kind", BROKEN)
def test_who_breaks_a_promise_is_told(kind: type[Reversal], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "tasks", lambda: {"reversal": kind})
    found = {one.promise: one for one in check_task("reversal", data)}
    broken = found[promise_of(BROKEN[kind])]
    assert broken.ok is False
    assert broken.detail
    if kind not in (Empty, Twins, Moody):  # what else these break follows from it
        assert [one.promise for one in found.values() if not one.ok] == [broken.promise]


def test_what_a_machine_cannot_score_is_not_checked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unscorable(Reversal):
        def warnings(self, unsafe: bool) -> list[str]:
            return ["no sandbox"]

    monkeypatch.setattr(contract, "tasks", lambda: {"reversal": Unscorable})
    unknown = [one for one in check_task("reversal", data) if one.ok is None]
    assert {one.detail for one in unknown} == {"no sandbox"}
    assert len(unknown) == 4
