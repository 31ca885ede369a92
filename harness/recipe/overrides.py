"""Fields of a recipe as a notebook gives them, in the form of the command line's overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError


def as_overrides(overrides: Sequence[str], fields: Mapping[str, Any]) -> list[str]:
    """Overrides as text, those given as values of Python behind them.

    Raises:
        HarnessError: a value that YAML can't hold.
    """
    return [*overrides, *(f"{key}={_as_yaml(key, value)}" for key, value in fields.items())]


def _as_yaml(key: str, value: Any) -> str:
    """A value of Python as overrides have it. JSON is YAML, and says of a value that it can't hold what it is."""

    def plain(other: Any) -> Any:
        if isinstance(other, Path):
            return str(other)
        if isinstance(other, Mapping):
            return dict(other)
        if isinstance(other, Sequence | set | frozenset | range):
            return list(other)
        if hasattr(other, "item"):  # a number of NumPy
            return other.item()
        raise HarnessError(f"override {key}", repr(other), "a value that YAML can hold: text, number, list, mapping")

    return json.dumps(value, default=plain, ensure_ascii=False)
