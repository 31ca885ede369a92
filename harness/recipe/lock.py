"""The file beside a recipe that says how its rows were tuned: `harness tune` writes it, `harness run` reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from harness.base.errors import HarnessError
from harness.base.files import write_json
from harness.base.schema import Strict
from harness.recipe.load import recipe_names
from harness.recipe.schema import Options, Recipe

SUFFIX = ".lock.json"

TuningMetric = Literal["bits_per_byte", "score"]
"""What a tuning goes by: bits per byte of held-out rows, or what answers to them are worth, in percent."""


class TrialRecord(Strict):
    """A configuration of a row."""

    setting: dict[str, float] = Field(description="what was tuned, by name; the first is the recipe's own")
    dev: dict[str, float] = Field(
        description="on the held-out rows of each task, by the metric; those that failed lack"
    )
    failed: str = Field("", description="why there is no number")


class TunedRow(Strict):
    """The trials of a row."""

    trials: tuple[TrialRecord, ...]
    winner: int = Field(ge=0, description="number of the trial whose setting the row has")
    digests: dict[str, dict[str, str]] = Field(description="by task: of the recipe's fields, training rows and code")


class Lock(Strict):
    """How the rows of a recipe were tuned."""

    format: Literal[1] = 1
    recipe: str
    budget: int = Field(ge=1, description="configurations of each row")
    seed: int = Field(description="of the one repetition")
    share: float = Field(gt=0, le=1, description="of the recipe's steps that a trial trained")
    dev_rows: int = Field(ge=1, description="training rows of each task that were held out")
    metric: TuningMetric = "bits_per_byte"
    rows: dict[str, TunedRow]
    tuned: dict[str, Options] = Field(description="the winners, as the recipe's field of that name has them")


def edges_line(lock: Lock) -> str:
    """Which rows have the least or most that was tried of a setting with three values or more; empty where none has.

    Better settings may lie beyond: a comparison whose rows all stand there has not been tuned to its end.
    """
    found: dict[tuple[str, str, float], list[str]] = {}
    for row, tuned in lock.rows.items():
        for name, value in tuned.trials[tuned.winner].setting.items():
            tried = {trial.setting[name] for trial in tuned.trials if name in trial.setting}
            if len(tried) > 2 and value in (min(tried), max(tried)):
                found.setdefault((name, "most" if value == max(tried) else "least", value), []).append(row)
    said = [
        f"{name} {value:g}, the {end} that was tried, in {', '.join(rows)}"
        for (name, end, value), rows in found.items()
    ]
    return f"Better settings may lie beyond what was tried: the best have {'; '.join(said)}." if said else ""


def lock_beside(name: str) -> Path:
    """Where the lock of a recipe is: beside its file; in the working folder for a recipe that the project ships."""
    path = Path(name)
    return Path(f"{name}{SUFFIX}") if name in recipe_names() else path.with_name(f"{path.stem}{SUFFIX}")


def write_lock(path: Path, lock: Lock) -> None:
    """Write the whole file, or nothing."""
    write_json(path, lock.model_dump(mode="json"))


def read_lock(path: Path) -> Lock:
    """A lock from its file.

    Raises:
        HarnessError: it is no lock that this version understands.
    """
    try:
        return Lock.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HarnessError(
            str(path), f"what is no lock ({reason})", "a file that `harness tune` wrote", "Tune again, or remove it."
        ) from error


def with_lock(recipe: Recipe, lock: Lock) -> Recipe:
    """The recipe with the settings that were found, on the rows that were trained on."""
    dev = recipe.dev.model_copy(update={"rows": lock.dev_rows})
    tuning = lock.model_dump(mode="json", exclude={"tuned", "format"})
    return recipe.model_copy(update={"tuned": dict(lock.tuned), "tuning": tuning, "dev": dev})
