"""Reproducibility harness for cross-tokenizer knowledge distillation."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``harness.align``, once it is asked for: ``harness --help`` loads neither torch nor transformers."""
    if name == "align":
        return importlib.import_module("harness.data.align").align
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
