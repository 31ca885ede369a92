"""Methods by name: the files of ``methods/``, and what plug-ins declare as entry points."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from methods.library.method import Method

ENTRY_POINT_GROUP = "ctkd_harness.methods"

_REGISTRY: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


class UnknownMethodError(KeyError):
    """No method of that name; ``suggestion`` is the nearest name there is, or None."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
        self.suggestion = next(iter(difflib.get_close_matches(name, registered(), n=1)), None)


def register(method: M) -> M:
    """Class decorator: make a method known by its ``name``.

    Raises:
        ValueError: another class holds that name already.
    """
    known = _REGISTRY.setdefault(method.name, method)
    if (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"two methods are called {method.name!r}: {known!r} and {method!r}")
    return method


def registered() -> dict[str, type[Method]]:
    """All methods, sorted by name: the files of ``methods/``, and entry points of group ``ctkd_harness.methods``."""
    for module in pkgutil.iter_modules([str(Path(__file__).parents[1])]):
        if not module.ispkg:  # library/ holds what methods are built of
            importlib.import_module(f"methods.{module.name}")
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            register(entry.load())
        except Exception as error:  # a broken plug-in must not take the other methods with it
            warnings.warn(f"plug-in {entry.name} ({entry.value}) can't be used: {error}", stacklevel=2)
    return dict(sorted(_REGISTRY.items()))


def find(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        UnknownMethodError: there is none.
    """
    try:
        return _REGISTRY[name] if name in _REGISTRY else registered()[name]  # who looks for plug-ins reads many files
    except KeyError:
        raise UnknownMethodError(name) from None
