"""How often a test set was read with other settings of the same recipe: who looks again, chooses on the test set."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from harness.base.files import digest_of, write_json
from harness.plan.stages import Plan
from harness.results.layout import Record
from harness.store.store import Store

FOLDER = "readings"
_NO_SETTINGS = {  # fields of a recipe that change no row, or that no row is chosen by
    *("name", "title", "notes", "paper", "stages", "keep_students", "evaluation", "data"),
    *("tasks", "seeds", "baseline", "baseline_seeds", "primary", "tuning"),
}


def note_readings(plan: Plan, store: Store) -> dict[str, int]:
    """Write down that a plan's test sets were read, as far as something of them is stored.

    More seeds, other columns or a repetition of the run are no new reading.

    Returns:
        For each task, the how-manyth setting of the recipe this is that has read its test set.
    """
    readings = {}
    for name in plan.tasks:
        ends = [end for cell in plan.evaluated if cell.task == name for end in cell.ends]
        if not any(store.find(end.kind, end.identity) for end in ends):
            continue
        task = plan.tasks[name]
        folder = store.root.parent / FOLDER / plan.recipe.name / f"{name}-{digest_of(task.test_digests())[:12]}"
        mine = folder / f"{_settings(plan, name)[:16]}.json"
        if not mine.exists():
            write_json(mine, {"plan": plan.identity, "read": datetime.now(UTC).isoformat()})
        earlier = sorted(folder.glob("*.json"), key=lambda path: (_when(path), path.name))
        readings[name] = earlier.index(mine) + 1
    return readings


def reading_line(record: Record) -> str:
    """What a reader must know of test sets that were read with other settings before; empty where none was."""
    again = {task: number for task, number in record.get("readings", {}).items() if number > 1}
    if not again:
        return ""
    said = ", ".join(f"{task}'s is the {_ordinal(number)}" for task, number in again.items())
    return (
        f"The test set was read before with other settings of this recipe: this reading of {said}. Marks do not count "
        "that: settings that were chosen after a look at a test set fit it better than they are."
    )


def _settings(plan: Plan, task: str) -> str:
    """Digest of what a recipe sets that could have been chosen by its results on a task."""
    values = plan.recipe.model_dump(mode="json")
    others = set(values) & (set(plan.recipe.task_settings) - {task})
    kept = {name: value for name, value in values.items() if name not in _NO_SETTINGS | others}
    kept[task] = {name: value for name, value in kept[task].items() if name not in ("seeds", "test_items")}
    return digest_of(kept)


def _when(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["read"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _ordinal(number: int) -> str:
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number // 10 % 10 == 1 else ends.get(number % 10, 'th')}"
