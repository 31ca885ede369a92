"""Rows before the data is there: as many as were published and as long, for a plan to reckon costs with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.base.errors import HarnessError
from harness.base.files import expanded, is_file, is_folder
from harness.recipe.load import name_to_call
from harness.recipe.schema import Recipe
from harness.tasks.base import Task
from harness.tasks.sets import PublishedSet

MadeUp = Mapping[str, Sequence[PublishedSet]]
"""The sets of rows that stand in for files, by task."""


@contextmanager
def with_made_up_rows(recipe: Recipe) -> Iterator[tuple[dict[str, Task], MadeUp]]:
    """A recipe's tasks; one whose files a run would miss reads made-up rows of the published sizes in their place.

    Yields:
        The tasks by name, and what is made up; its files are there until the block ends.
    """
    tasks = {name: recipe.task(name) for name in recipe.tasks}
    with TemporaryDirectory(prefix="harness-plan.") as folder:
        made_up = {}
        for name, task in tasks.items():
            needed = task.data_needs(task.settings)
            if all(one.files[0] in task.published for one in needed) and not _has_files(task):
                made_up[name] = _make_up(task, Path(folder))
                tasks[name] = type(task)(task.settings, Path(folder))
        yield tasks, made_up


def in_words(recipe: Recipe, made_up: MadeUp) -> Iterator[str]:
    """What a plan has to say of made-up rows; nothing where there are none."""
    if not made_up or recipe.data.root is None:  # without a folder the samples are read
        return
    root, names = Path(recipe.data.root), ", ".join(made_up)
    missing = f"has not all files of {names}" if is_folder(expanded(recipe.data.root)) else "is not there"
    counted = ", ".join(f"{each.rows:,} of {each.name}" for sets in made_up.values() for each in sets)
    yield (
        f"{root}/ {missing}: a run stops here. Counted with rows as many and about as long as published: {counted}. "
        f"`harness data recipe={name_to_call(recipe)}` says how to get them; what is stored of {names} can't be known "
        "before."
    )


def _has_files(task: Task) -> bool:
    """Whether a run finds what it needs; a test set among several may be missing."""
    if not task.data_needs(task.settings):
        return True  # it makes its rows
    try:
        return is_file(task.train_file) and bool(task.test_digests())
    except HarnessError:
        return False


def _make_up(task: Task, folder: Path) -> list[PublishedSet]:
    """Write the files that are missing, and link to those that are there."""
    made = []
    for one in task.data_needs(task.settings):
        there = one.there(task.root)
        name = one.files[0] if there is None else str(there.relative_to(task.root))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if there is not None:
            path.symlink_to(there.absolute())
            continue
        published = task.published[name]
        rows = [
            task.made_up_row(name, number, "x" * prompt, "x" * response)
            for number, (prompt, response) in enumerate(published.sizes())
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made.append(published)
    return made
