"""What tasks want of the data: files, fields, numbers of rows; and what of it is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.data.rows import read_rows
from harness.tasks.base import Task
from harness.tasks.codem import CodeM
from harness.tasks.dolly import SETS, SPLITS, Dolly
from harness.tasks.hub import how_to_get

TRAINING = "training"
_ALPACA = "instruction, output, optionally input; or prompt, output; or prefix, text"
FIELDS: Mapping[str, tuple[str, str]] = {
    "dolly": (_ALPACA, "instruction, output (a text, or a list of references), optionally input"),
    "codem": (
        _ALPACA,
        "task_id, prompt, entry_point, contract, canonical_solution, base_input, plus_input, atol (EvalPlus's)",
    ),
    "gsm8k": ("question, answer", "question, answer"),
}
"""Fields of the rows of each task's training and test files, as readers of the files hold them to it."""


@dataclass(frozen=True)
class DataNeed:
    """A set of rows.

    Attributes:
        what: "training", with the split where several are listed, or a test set as tables call it.
        files: below the data folder; the first one there is read.
        fields: of a row, in words.
    """

    what: str
    files: tuple[str, ...]
    fields: str

    def there(self, root: Path) -> Path | None:
        """The file that is read."""
        return next((root / file for file in self.files if (root / file).is_file()), None)


def data_needs(kind: type[Task], task: Task | None = None) -> list[DataNeed]:
    """The sets of rows of a kind of task: those that a task's settings ask for, or all that there can be."""
    train, test = FIELDS.get(kind.name, ("", ""))
    training, sets = {TRAINING: kind.train_files}, {"test": kind.test_files}
    if isinstance(task, Dolly):
        training = {TRAINING: task.split.train_files}
        sets = {f"test, {SETS[name].label}": SETS[name].files for name in task.sets}
    elif issubclass(kind, Dolly):
        training = {f"{TRAINING}, {SETS[each.own_set].label}": each.train_files for each in SPLITS.values()}
        sets = {f"test, {each.label}": each.files for each in SETS.values()}
    elif issubclass(kind, CodeM):
        benchmarks = {"humaneval": kind.test_files, "mbpp": kind.mbpp_files}
        asked = task.settings.benchmarks if isinstance(task, CodeM) else benchmarks
        sets = {f"test, {name}": benchmarks[name] for name in asked}
    found = [DataNeed(what, files, train) for what, files in training.items()]
    found += [DataNeed(what, files, test) for what, files in sets.items()]
    return [one for one in found if one.files]  # a task that makes its rows has no files


def shortfalls(tasks: Mapping[str, Task]) -> Iterator[str]:
    """A line for each set of rows that is asked for and not there, and for each number that is more than there are."""
    for name, task in tasks.items():
        for one in data_needs(type(task), task):
            path = one.there(task.root)
            setting = "train_items" if one.what == TRAINING else "test_items"
            asked = getattr(task.settings, setting)
            if path is None:
                missing = f"{name}: no rows of {one.what}, as the data folder has no {' or '.join(one.files)}"
                yield f"{missing}. {how}" if (how := how_to_get(one.files)) else missing
            elif asked is not None and (there := len(read_rows(path, {}, asked))) < asked:
                yield f"{name}.{setting}={asked}: {path} has {there} rows, and all of them are taken"
