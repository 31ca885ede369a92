"""What every task promises: held against the files of this folder, and against a plug-in by `harness test-task NAME`.

No model is loaded: a task's rows, prompts, digests, identities and scores are made on the samples that come with it.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError, unknown
from harness.base.promises import BrokenPromiseError, Checked
from harness.data.rows import Example, Request
from harness.tasks import tasks
from harness.tasks.base import ItemScores, Metric, Split, Task, TaskSettings

ITEMS = 6
"""Rows to train on, and items to test on."""


class NotCheckedError(Exception):
    """This machine can't tell whether a promise is kept; the message says why."""


def check_task(name: str, root: Path | None = None) -> list[Checked]:
    """Hold a task to every promise.

    Args:
        name: as recipes call it.
        root: folder of its data; None for the samples that come with it.

    Raises:
        HarnessError: there is no such task.
    """
    if name not in tasks():
        raise unknown("task", name, tasks())
    with tempfile.TemporaryDirectory(prefix="harness-task-") as scratch:
        trial = Trial(tasks()[name], root, Path(scratch))
        return [_checked(promise, trial) for promise in PROMISES]


def promise_of(check: Callable[[Trial], None]) -> str:
    """The sentence that a check stands for."""
    return (check.__doc__ or "").partition("\n")[0].removesuffix(".")


def _checked(check: Callable[[Trial], None], trial: Trial) -> Checked:
    try:
        check(trial)
    except NotCheckedError as error:
        return Checked(promise_of(check), None, str(error))
    except BrokenPromiseError as error:
        return Checked(promise_of(check), False, str(error))
    except Exception as error:  # whatever a task of somebody else's raises
        return Checked(promise_of(check), False, f"{type(error).__name__}: {error}")
    return Checked(promise_of(check), True, "")


class Trial:
    """A task with few rows and items, and its scores of three students, made once.

    Args:
        kind: the task's class.
        root: folder of its data; None for its samples.
        scratch: an empty folder.
    """

    def __init__(self, kind: type[Task], root: Path | None, scratch: Path) -> None:
        self.kind, self.root, self.scratch = kind, root, scratch

    def settings(self, **values: Any) -> TaskSettings:
        """Few rows and items, the other settings as they are by default."""
        return self.kind.Settings(**{"train_items": ITEMS, "test_items": ITEMS} | values)

    def make(self, root: Path | None = None, /, **values: Any) -> Task:
        """A task of its own; nothing is shared with another."""
        return self.kind(self.settings(**values), root or self.root)

    @cached_property
    def task(self) -> Task:
        return self.make()

    @cached_property
    def references(self) -> list[Example]:
        return self.task.reference_examples()

    @cached_property
    def requests(self) -> list[Request]:
        """Of the items that have a reference."""
        named = {example.id for example in self.references}
        return [request for request in self.task.requests() if request.id in named]

    @cached_property
    def right(self) -> dict[str, str]:
        """The references as answers."""
        responses = {example.id: example.response for example in self.references}
        return {request.key: responses[request.id] for request in self.requests}

    @cached_property
    def mixed(self) -> dict[str, str]:
        """Every other answer is empty."""
        return {key: "" if place % 2 else answer for place, (key, answer) in enumerate(self.right.items())}

    def score(self, outputs: Mapping[str, Mapping[str, str]]) -> Mapping[str, ItemScores]:
        if warned := self.task.warnings(unsafe=False):
            raise NotCheckedError("; ".join(warned))
        with tempfile.TemporaryDirectory(dir=self.scratch) as work:
            return self.task.score(outputs, Path(work), False)

    @cached_property
    def scores(self) -> Mapping[str, ItemScores]:
        """Of a student whose answers are the references, of one that says nothing, and of one between them."""
        return self.score({"right": self.right, "empty": dict.fromkeys(self.right, ""), "mixed": self.mixed})

    def copied_data(self) -> Path:
        """A folder with the files that the task reads, to be changed."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        for one in self.kind.data_needs(self.task.settings):
            if (there := one.there(self.task.root)) is not None:
                copy = folder / there.relative_to(self.task.root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(there, copy)  # without its mode: data may be read-only
        return folder


def _hold(kept: bool, detail: str) -> None:
    if not kept:
        raise BrokenPromiseError(detail)


# --- Promises ---------------------------------------------------------------------------------------------------------


def settings_have_defaults(trial: Trial) -> None:
    """Its settings are those of every task and its own, each with a default and a description."""
    kind = trial.kind.Settings
    _hold(issubclass(kind, TaskSettings), f"{kind.__name__} is no TaskSettings")
    kind()
    bare = [name for name, field in kind.model_fields.items() if not field.description]
    _hold(not bare, f"no description of {', '.join(bare)}")


def rows_render(trial: Trial) -> None:
    """Training rows, references and prompts are texts, and none is empty."""
    made: dict[str, Sequence[Example | Request]] = {
        "training rows": trial.task.training_examples(),
        "references": trial.references,
        "requests": trial.task.requests(),
    }
    for what, rows in made.items():
        _hold(bool(rows), f"no {what}")
        for row in rows:
            texts = [row.prompt, *([row.response] if isinstance(row, Example) else [])]
            whole = all(isinstance(text, str) and text for text in texts)
            _hold(whole, f"{what}: {row.id} has {texts!r:.80}")


def names_are_unique(trial: Trial) -> None:
    """Every row and every answer has a name of its own; a reference has that of the item it answers."""
    trained = [example.id for example in trial.task.training_examples()]
    held_out, answers = [example.id for example in trial.references], [r.key for r in trial.task.requests()]
    for what, names in (("training rows", trained), ("references", held_out), ("answers", answers)):
        twice = sorted({name for name in names if names.count(name) > 1})
        _hold(not twice, f"{what}: {', '.join(twice)} more than once")
    _hold(not set(trained) & set(held_out), "a training row and a reference of one name")
    asked = {request.id for request in trial.task.requests()}
    _hold(set(held_out) <= asked, f"references that nothing asks for: {', '.join(sorted(set(held_out) - asked))}")


def everything_is_repeatable(trial: Trial) -> None:
    """The same settings give the same rows, prompts, digests and protocol."""
    first, second = trial.make(), trial.make()
    for call in (
        "training_examples",
        "reference_examples",
        "requests",
        "training_digest",
        "test_digests",
        "identity",
        "training_identity",
        "protocol",
    ):
        _hold(getattr(first, call)() == getattr(second, call)(), f"{call}() differs between two tasks of one kind")


def fewer_items_are_the_first(trial: Trial) -> None:
    """Fewer rows are the first of more, and no more than asked for."""
    for call, setting in (("training_examples", "train_items"), ("reference_examples", "test_items")):
        more, fewer = (getattr(trial.make(**{setting: count}), call)() for count in (ITEMS, ITEMS - 2))
        _hold(fewer == more[: len(fewer)], f"{setting}: fewer are not the first of more")
        _hold(len(fewer) <= ITEMS - 2, f"{setting}={ITEMS - 2} gives {len(fewer)} rows")


def references_score_best(trial: Trial) -> None:
    """A reference as the answer gets the best mark there is."""
    _hold_marks(trial, "right", lambda metric: metric.higher_is_better)


def empty_answers_score_worst(trial: Trial) -> None:
    """An empty answer gets the worst mark there is."""
    _hold_marks(trial, "empty", lambda metric: not metric.higher_is_better)


def _hold_marks(trial: Trial, student: str, is_highest: Callable[[Metric], bool]) -> None:
    """In percent the marks are 0 and 100; in other units right answers are better than empty ones."""
    for metric in trial.task.metrics:
        values = trial.scores[student].values[metric.name]
        for item, value in values.items():
            if metric.unit == "%":
                expected = 100.0 if is_highest(metric) else 0.0
                _hold(math.isclose(value, expected, abs_tol=1e-9), f"{metric.name} of {item}: {value:g}")
            else:
                right, empty = (trial.scores[who].values[metric.name][item] for who in ("right", "empty"))
                better = right > empty if metric.higher_is_better else right < empty
                _hold(better, f"{metric.name} of {item}: {right:g} where it is right, {empty:g} where it is empty")


def scores_stand_alone(trial: Trial) -> None:
    """An answer's score depends neither on other students nor on the order of answers."""
    alone = trial.score({"mixed": dict(reversed(trial.mixed.items()))})["mixed"].values
    together = trial.scores["mixed"].values
    for metric, values in together.items():
        for item, value in values.items():
            _hold(alone[metric][item] == value, f"{metric} of {item}: {value:g}, and {alone[metric][item]:g} alone")


def every_metric_is_scored(trial: Trial) -> None:
    """Each metric has a number for items of each student, in percent from 0 to 100, and no other name is scored."""
    names = [metric.name for metric in trial.task.metrics]
    _hold(bool(names) and len(set(names)) == len(names), f"metrics: {', '.join(names) or 'none'}")
    for student, scores in trial.scores.items():
        _hold(set(scores.values) == set(names), f"{student}: {', '.join(scores.values)} for {', '.join(names)}")
        for metric in trial.task.metrics:
            values = scores.values[metric.name]
            _hold(bool(values), f"{metric.name}: no item")
            top = 100.0 if metric.unit == "%" else math.inf
            wrong = [f"{item}: {value}" for item, value in values.items() if not 0 <= value <= top]
            _hold(not wrong, f"{metric.name} of {', '.join(wrong)}")
        json.dumps(dict(scores.details))


def digests_follow_the_rows(trial: Trial) -> None:
    """Digests change with the rows they are of."""
    if not trial.kind.data_needs(trial.task.settings):
        other = trial.make(train_items=ITEMS + 1, test_items=ITEMS + 1)
        _hold(other.training_digest() != trial.task.training_digest(), "training_digest() of one row more is the same")
        _hold(other.test_digests() != trial.task.test_digests(), "test_digests() of one item more are the same")
        return
    for changed in ("train_file", "test_file"):
        folder = trial.copied_data()
        before, file = trial.make(folder), getattr(trial.make(folder), changed)
        made = before.training_digest(), before.test_digests()
        file.write_bytes(file.read_bytes() + b"\n")
        after = trial.make(folder)
        trained, tested = after.training_digest() != made[0], after.test_digests() != made[1]
        _hold(trained if changed == "train_file" else tested, f"{changed} changed, and its digest did not")


def identities_hold_what_decides(trial: Trial) -> None:
    """Identities are JSON, hold what decides a result, and leave out what does not."""
    plain = trial.make()
    json.dumps([plain.identity(), plain.training_identity()])
    settings: Any = plain.settings
    for values, trains, tests in (
        ({"seeds": (7,)}, False, False),
        ({"train_items": ITEMS - 2}, True, False),
        ({"test_items": ITEMS - 2}, False, True),
        ({"new_tokens": settings.new_tokens + 1}, False, True),
    ):
        other = trial.make(**values)
        said = ", ".join(values)
        moved = other.training_identity() != plain.training_identity(), other.identity() != plain.identity()
        _hold(moved[0] == trains, f"training_identity(): {said} {'is left out' if trains else 'is in it'}")
        _hold(moved[1] == tests, f"identity(): {said} {'is left out' if tests else 'is in it'}")


def protocol_says_how(trial: Trial) -> None:
    """Its protocol says how numbers are made, on how many items."""
    lines = trial.task.protocol()
    _hold(bool(lines) and all(isinstance(line, str) and line.strip() for line in lines), f"{lines!r:.80}")
    count = len({request.id for request in trial.requests})
    _hold(str(count) in " ".join(lines), f"it does not name the {count} items")


def made_up_rows_are_read(trial: Trial) -> None:
    """Rows of its published sizes, which a plan makes up where files are missing, are rows that it reads."""
    needs = trial.kind.data_needs(trial.task.settings)
    if needs and not trial.kind.published:
        raise NotCheckedError("it says no published sizes, so a plan needs its files")
    folder = Path(tempfile.mkdtemp(dir=trial.scratch))
    for one in needs:
        _hold(one.files[0] in trial.kind.published, f"no published size of {one.files[0]}")
        path = folder / one.files[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [trial.kind.made_up_row(one.files[0], number, "x" * 20, "x" * 30) for number in range(ITEMS)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = trial.make(folder)
    counts = len(task.training_examples()), len(task.reference_examples()), len(task.request_sizes())
    _hold(min(counts) >= ITEMS, f"of {ITEMS} rows of each file it reads {', '.join(map(str, counts))}")


def missing_files_are_named(trial: Trial) -> None:
    """A file that is not there is named by one clear error."""
    needs = trial.kind.data_needs(trial.task.settings)
    empty = Path(tempfile.mkdtemp(dir=trial.scratch))
    for call in ("training_examples", "reference_examples") if needs else ():
        try:
            getattr(trial.make(empty), call)()
        except HarnessError as error:
            named = any(file in str(error) for one in needs for file in one.files)
            _hold(named, f"{call}() names none of its files: {error}")
        else:
            raise BrokenPromiseError(f"{call}() reads something in an empty folder")


def prompts_are_as_long_as_said(trial: Trial) -> None:
    """What a plan takes rows and prompts to be, in number and length, is about what they are."""
    task = trial.task
    rows = task.training_examples()
    _hold(task.training_count() == len(rows), f"training_count() is {task.training_count()} of {len(rows)} rows")
    _hold_sizes("prompts", task.request_sizes(), [request.prompt for request in task.requests()])
    texts: list[tuple[str, Split, Sequence[Example]]] = [
        ("training rows", "train", rows),
        ("references", "test", trial.references),
    ]
    for what, split, examples in texts:
        sizes = task.text_sizes(split)
        _hold_sizes(f"prompts of {what}", [prompt for prompt, _ in sizes], [each.prompt for each in examples])
        _hold_sizes(f"responses of {what}", [response for _, response in sizes], [e.response for e in examples])


def _hold_sizes(what: str, sizes: Sequence[int], texts: Sequence[str]) -> None:
    real = sum(len(text.encode()) for text in texts)
    _hold(len(sizes) == len(texts), f"{len(sizes)} sizes of {len(texts)} {what}")
    _hold(0.5 <= sum(sizes) / real <= 2, f"{sum(sizes)} bytes of {what} where there are {real}")


PROMISES: tuple[Callable[[Trial], None], ...] = (
    settings_have_defaults,
    rows_render,
    names_are_unique,
    everything_is_repeatable,
    fewer_items_are_the_first,
    references_score_best,
    empty_answers_score_worst,
    scores_stand_alone,
    every_metric_is_scored,
    digests_follow_the_rows,
    identities_hold_what_decides,
    protocol_says_how,
    made_up_rows_are_read,
    missing_files_are_named,
    prompts_are_as_long_as_said,
)
