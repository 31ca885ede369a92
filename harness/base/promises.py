"""What a method or a task promises, and what became of it when it was held to it."""

from __future__ import annotations

from typing import NamedTuple


class Checked(NamedTuple):
    """What became of a promise.

    Attributes:
        promise: as a sentence.
        ok: whether it is kept; None where it was not checked.
        detail: what breaks it, or why it was not checked; "" where it is kept.
    """

    promise: str
    ok: bool | None
    detail: str = ""


class BrokenPromiseError(Exception):
    """A method or a task does not keep a promise; the message says how."""
