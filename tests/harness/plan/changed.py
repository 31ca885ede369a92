"""A recipe's values with fields changed by dotted names."""

from __future__ import annotations

import copy
from typing import Any


def changed(recipe: dict[str, Any], changes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A copy with ``fields`` replaced, then ``train__steps`` and the like set inside of their parts."""
    made = copy.deepcopy(recipe) | fields
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = made
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made
