"""What every schema of the harness shares: unknown keys are errors, one value may stand for a list of it."""

from __future__ import annotations

from typing import Any


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


def as_names(value: Any) -> Any:
    """A list of names; ``[dual(fkd, cdm)]``, which YAML cuts at the comma, is put together again."""
    listed = as_list(value)
    if not isinstance(listed, list):
        return listed
    names: list[Any] = []
    for part in listed:
        if (
            names
            and isinstance(part, str)
            and isinstance(names[-1], str)
            and names[-1].count("(") > names[-1].count(")")
        ):
            names[-1] += f", {part}"
        else:
            names.append(part)
    return names
