"""Settings that were tried on held-out rows before the run: all of them, the one that each row has, and its test."""

import math

import pandas as pd

from reports.table import DASH

TUNING_COLUMNS = ("row", "setting", "dev", "chosen", "test", "metric")
_MEASURES = {
    "bits_per_byte": "Bits per byte.",
    "score": "What answers are worth, in percent: dev by the task's rule for single answers, test by its metrics.",
}
EXPLAINED = (
    "dev: of a short training with one seed, on training rows that were held out; test: of the row as it stands in the "
    "table. A dev number that is far better than its neighbours may be luck: the test set was not looked at."
)


def empty_tuning() -> pd.DataFrame:
    """Of a run whose rows were not tuned."""
    return pd.DataFrame(columns=list(TUNING_COLUMNS))


def tuning_tables(tuning: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(heading, what to know, frame) of what was tried; nothing where nothing was.

    Args:
        tuning: with `TUNING_COLUMNS`: labels, numbers (NaN where there is none), whether the row has the setting, and
            what the numbers are: bits_per_byte, or score.
    """
    if tuning.empty:
        return []
    shown = pd.DataFrame(
        {
            "row": tuning["row"],
            "setting": tuning["setting"],
            "dev": [_number(value) for value in tuning["dev"]],
            "chosen": ["yes" if chosen else "" for chosen in tuning["chosen"]],
            "test": [
                _number(value) if chosen else "" for chosen, value in zip(tuning["chosen"], tuning["test"], strict=True)
            ],
        }
    )
    return [("Settings that were tried", f"{_MEASURES[tuning['metric'].iloc[0]]} {EXPLAINED}", shown)]


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else DASH
