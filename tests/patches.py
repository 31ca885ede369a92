"""A function replaced wherever it is called, whichever modules imported it by name."""

from __future__ import annotations

import sys
from typing import Any

import pytest


def replace_everywhere(monkeypatch: pytest.MonkeyPatch, function: Any, replacement: Any) -> None:
    """Put ``replacement`` under every name of the project's loaded modules that is bound to ``function``."""
    places = [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.partition(".")[0] in {"harness", "methods", "reports"}
        for name, value in list(vars(module).items())
        if value is function
    ]
    assert places, f"nobody holds {function!r}"
    for module, name in places:
        monkeypatch.setattr(module, name, replacement)
