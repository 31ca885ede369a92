"""What of the data that tasks ask for is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.tasks.base import Task
from harness.tasks.sets import TRAINING


def shortfalls(tasks: Mapping[str, Task]) -> Iterator[str]:
    """A line for each set of rows that is asked for and not there, and for each number that is more than there are."""
    for name, task in tasks.items():
        for one in task.data_needs(task.settings):
            path = one.there(task.root)
            setting = "train_items" if one.what == TRAINING else "test_items"
            asked = getattr(task.settings, setting)
            if path is None:
                missing = f"{name}: no rows of {one.what}, as the data folder has no {' or '.join(one.files)}"
                yield f"{missing}. {how}" if (how := task.how_to_get(one.files)) else missing
            elif asked is not None and (there := one.count(path, asked)) < asked:
                yield f"{name}.{setting}={asked}: {path} has {there} rows, and all of them are taken"
