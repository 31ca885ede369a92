"""Text in CSV files that a spreadsheet would take for a formula: names come from recipes and data of other people."""

from collections.abc import Callable
from typing import TypeVar

import pandas as pd

T = TypeVar("T")

_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r", "'")  # a spreadsheet computes what begins so; the last marks ours


def guarded(value: T) -> T | str:
    """A cell's value, behind an apostrophe where it is a text that a spreadsheet would compute."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_BEGINNINGS) else value


def unguarded(value: T) -> T | str:
    """What :func:`guarded` was given."""
    return value[1:] if isinstance(value, str) and value.startswith("'") else value


def guarded_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose texts are guarded."""
    return _over_texts(frame, guarded)


def unguarded_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame that was guarded."""
    return _over_texts(frame, unguarded)


def _over_texts(frame: pd.DataFrame, change: Callable[[object], object]) -> pd.DataFrame:
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    return frame.assign(**{str(name): frame[name].map(change) for name in texts})
