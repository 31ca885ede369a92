"""The science: alignment, vocabulary maps, divergences and one file for each distillation method.

``methods.loss`` gives the loss of any method on logits that you made (docs/python_losses.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.library.on_logits import Alignment, loss, loss_sums

__all__ = ["Alignment", "loss", "loss_sums"]


def __getattr__(name: str) -> Any:
    """What is exported, once it is asked for: ``import methods`` alone loads no torch."""
    if name in __all__:
        return getattr(importlib.import_module("methods.library.on_logits"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
