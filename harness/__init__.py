"""Reproducibility harness for cross-tokenizer knowledge distillation; from Python, see ``harness.api``."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``harness.api``, imported when it is asked for."""
    if name == "api":
        return importlib.import_module("harness.api")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
