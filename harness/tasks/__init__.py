"""Tasks: where their rows come from, how a prompt reads, and what is measured."""

from __future__ import annotations

import importlib
import inspect
import keyword
import pkgutil
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING

from harness.base.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.tasks.base import Task

ENTRY_POINT_GROUP = "ctkd_harness.tasks"


@cache
def tasks() -> Mapping[str, type[Task]]:
    """All tasks by name: the files of this folder, then entry points of group ``ctkd_harness.tasks``.

    Raises:
        HarnessError: two of them have one name.
    """
    found: dict[str, type[Task]] = {}
    for kind in (*_built_in(), *_plug_ins()):
        other = found.setdefault(kind.name, kind)
        if other is not kind:
            both = " and ".join(f"{one.__module__}.{one.__qualname__}" for one in (other, kind))
            fix = "Uninstall one of them, or give it another name."
            raise HarnessError("tasks", f"two of the name {kind.name!r}: {both}", "a name of its own for each", fix)
    return MappingProxyType(found)


def _built_in() -> Iterator[type[Task]]:
    """The tasks that the files of this folder define; other files define none."""
    from harness.tasks.base import Task

    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, Task) and kind.__module__ == module.__name__
            if own and not inspect.isabstract(kind):
                yield kind


def _plug_ins() -> Iterator[type[Task]]:
    """Tasks of other packages; a broken one must not take the others with it."""
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            yield _loaded(entry)
        except Exception as error:
            package = f" of {entry.dist.name}" if entry.dist is not None else ""
            message = f"plug-in {entry.name} ({entry.value}){package} can't be used: {error or type(error).__name__}"
            warnings.warn(message, stacklevel=2)


def _loaded(entry: EntryPoint) -> type[Task]:
    """The task behind an entry point.

    Raises:
        TypeError: it is no task, or an unfinished one.
    """
    from harness.tasks.base import Task

    kind = entry.load()
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise TypeError(f"{kind!r} is no class of tasks (harness.tasks.base.Task)")
    said = ("name", "summary", "source", "Settings", "metrics", "train_files", "test_files")
    missing = sorted({*kind.__abstractmethods__, *(name for name in said if not hasattr(kind, name))})
    if missing:
        raise TypeError(f"{kind.__qualname__} lacks {', '.join(missing)}")
    if not kind.name.isidentifier() or keyword.iskeyword(kind.name):
        raise TypeError(f"{kind.name!r} can't be a field of a recipe: letters, digits and _ make a name")
    return kind
