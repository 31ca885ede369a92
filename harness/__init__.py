"""Reproducibility harness for cross-tokenizer knowledge distillation; from Python, see ``harness.api``."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``harness.api`` and ``harness.align``, imported when they are asked for: ``import harness`` loads no torch."""
    if name == "api":
        return importlib.import_module("harness.api")
    if name == "align":
        return importlib.import_module("harness.data.align").align
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
