"""Fields given from Python as the overrides that a command line has: one way into a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError


# Any: whatever a caller has in hand
def as_overrides(overrides: Sequence[str], fields: Mapping[str, Any]) -> list[str]:
    """``key=value`` of both, in their order.

    Raises:
        HarnessError: a value that YAML can't hold.
    """
    return [*overrides, *(f"{key}={_as_yaml(key, value)}" for key, value in fields.items())]


# Any: as above
def _as_yaml(key: str, value: Any) -> str:
    """A value of Python as overrides have it. JSON is YAML, and says of a value that it can't hold what it is."""

    # Any: what JSON can't hold by itself
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
