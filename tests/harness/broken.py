"""Methods whose loss is another one than their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from methods.base import Method


def replace_loss(patch: pytest.MonkeyPatch, kind: type[Method[Any]], loss: Callable[..., Any]) -> None:
    """Let a kind of method have this loss, and no kernel that would be asked in its place."""
    patch.setattr(kind, "loss", loss)
    patch.setattr(kind, "loss_into", lambda *_: None)
