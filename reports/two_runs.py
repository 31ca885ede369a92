"""Two runs side by side: what differs in their settings first, then each number of both, and the difference."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from reports.frame import Score, scores
from reports.table import DASH, DIGITS, KIND_HEADINGS, METRIC_LABELS, OTHER_DIGITS

NAMES = ("A", "B")

ScoreKey = tuple[str, str, str, str, str, str]  # task, metric, kind of teacher, role, method, fidelity


@dataclass(frozen=True)
class Difference:
    """A setting in which two runs differ.

    Attributes:
        name: a recipe's field as it is written (``train.steps``), or e.g. ``environment.torch``.
        values: of the two runs, as text; a dash where a run has no such setting.
    """

    name: str
    values: tuple[str, str]


@dataclass(frozen=True)
class RunSide:
    """A number of one run: the mean over its seeds, or why there is none.

    Attributes:
        mean: None where no seed has a number.
        seeds: those that have one.
        items: numbers of items that the seeds were scored on.
        reason: why a number is missing, of the first seed without one; empty where every seed has one.
        there: whether the run has such a row at all.
    """

    mean: float | None
    seeds: tuple[int, ...] = ()
    items: tuple[int, ...] = ()
    reason: str = ""
    there: bool = True


@dataclass(frozen=True)
class Pair:
    """One metric of one row of the table in both runs."""

    task: str
    metric: str
    unit: str
    higher_is_better: bool
    row: str
    sides: tuple[RunSide, RunSide]

    @property
    def difference(self) -> float | None:
        """The second minus the first, where both are there."""
        first, second = (side.mean for side in self.sides)
        return None if first is None or second is None else second - first

    @property
    def notes(self) -> list[str]:
        """What else than the settings may make the difference, and why a number is missing."""
        notes = [f"{name}: {side.reason}" for name, side in zip(NAMES, self.sides, strict=True) if side.reason]
        first, second = self.sides
        if self.difference is not None and first.seeds != second.seeds:
            notes.append(f"seeds {_listed(first.seeds)} against {_listed(second.seeds)}")
        if self.difference is not None and first.items != second.items:
            notes.append(f"items {_listed(first.items)} against {_listed(second.items)}")
        return notes


@dataclass(frozen=True)
class RunComparison:
    """Two runs: their names, the settings in which they differ, all numbers that at least one of them has."""

    runs: tuple[str, str]
    settings: tuple[Difference, ...]
    pairs: tuple[Pair, ...]


def compare(
    runs: tuple[str, str],
    settings: tuple[Mapping[str, Any], Mapping[str, Any]],
    results: tuple[pd.DataFrame, pd.DataFrame],
) -> RunComparison:
    """Put two runs beside each other.

    Args:
        runs: what to call them.
        settings: nested mappings of plain values; names of fields are joined by dots.
        results: tidy frames, see :class:`reports.frame.Score`. Rows are the same where task, metric, kind of teacher,
            role, method and fidelity are: the models may differ, which the settings say.

    Raises:
        ValueError: a frame is empty, has a wrong value or a score twice.
    """
    return RunComparison(runs, tuple(differences(*settings)), tuple(_pairs(*map(scores, results))))


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Settings that differ, in the order of the first run, then those that only the second has."""
    one, other = dict(_flat(first)), dict(_flat(second))
    return [
        Difference(name, (one.get(name, DASH), other.get(name, DASH)))
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    ]


def _flat(values: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, name)
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "{}"
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list | tuple) else str(value)


def _pairs(first: Sequence[Score], second: Sequence[Score]) -> Iterable[Pair]:
    """Task by task, metric by metric; rows in the order of the first run, then those that only the second has."""
    by_key: tuple[dict[ScoreKey, list[Score]], dict[ScoreKey, list[Score]]] = ({}, {})
    for records, found in zip((first, second), by_key, strict=True):
        for s in records:
            found.setdefault(_key(s), []).append(s)
    keys = list(dict.fromkeys([*by_key[0], *by_key[1]]))
    tasks, metrics = (list(dict.fromkeys(part)) for part in ((key[0] for key in keys), (key[:2] for key in keys)))
    for key in sorted(keys, key=lambda key: (tasks.index(key[0]), metrics.index(key[:2]))):  # stable
        sides = tuple(found.get(key, []) for found in by_key)
        known = [*sides[0], *sides[1]][0]
        yield Pair(
            known.task,
            known.metric,
            known.unit,
            known.higher_is_better,
            _row(known),
            (_side(sides[0]), _side(sides[1])),
        )


def _key(s: Score) -> ScoreKey:
    return s.task, s.metric, s.teacher_kind, s.role, s.method, s.fidelity


def _row(s: Score) -> str:
    """The row as a reader calls it, teachers by their kind."""
    if s.role == "teacher":
        return KIND_HEADINGS[s.teacher_kind]
    return f"{s.method} (released)" if s.fidelity == "released" else s.method


def _side(records: Sequence[Score]) -> RunSide:
    if not records:
        return RunSide(None, reason="no such row", there=False)
    done = [s for s in records if s.status == "done" and math.isfinite(s.value)]
    missing = [s for s in records if s not in done]
    reason = f"seed {missing[0].seed} {_problem(missing[0])}" if missing else ""
    if not done:
        return RunSide(None, reason=reason)
    items = tuple(sorted({s.n_items for s in done}))
    return RunSide(statistics.fmean(s.value for s in done), tuple(sorted(s.seed for s in done)), items, reason)


def _problem(s: Score) -> str:
    if s.status == "done":
        return f"is {s.value}"
    return f"{s.status}: {' '.join(s.reason.split()) or 'no reason given'}"


def comparison_terminal(comparison: RunComparison) -> Group:
    """For a terminal or a pipe, through `rich`'s `Console.print`: names, settings that differ, numbers."""
    parts: list[RenderableType] = [
        Text(f"{name}: {run}", overflow="fold") for name, run in zip(NAMES, comparison.runs, strict=True)
    ]
    if comparison.settings:
        parts += _settings_parts(comparison.settings)
    else:
        parts.append(Text("\nNothing differs in settings, protocols, data, models and versions."))
    both = [pair for pair in comparison.pairs if all(side.there for side in pair.sides)]
    if both:
        parts.append(_numbers_table(both))
    for place, name in enumerate(NAMES):
        parts += _numbers_alone(name, place, [p for p in comparison.pairs if p not in both and p.sides[place].there])
    parts.append(Text("Means over seeds. ↑ higher is better, ↓ lower is better.", "dim"))
    return Group(*parts)


MOST_ROWS = 25  # of a section
_SECTIONS = {"sources": "What differs in data and models", "protocol": "What differs in protocols"}
_SECTIONS |= {"environment": "What differs in versions and machines"}


def _settings_parts(settings: Sequence[Difference]) -> list[RenderableType]:
    """Section by section: a row for all settings with the same two values, then what only one run has, by name."""
    sections: dict[str, list[Difference]] = {}
    for difference in settings:
        heading = _SECTIONS.get(difference.name.partition(".")[0], "What differs in the recipe")
        sections.setdefault(heading, []).append(difference)
    parts: list[RenderableType] = []
    for heading in sorted(sections, key=["What differs in the recipe", *_SECTIONS.values()].index):
        alike: dict[tuple[str, str], list[str]] = {}
        for difference in sections[heading]:
            if DASH not in difference.values:
                alike.setdefault(difference.values, []).append(difference.name)
        parts.append(_settings_table(heading, alike) if alike else Text(f"\n{heading}", "bold"))
        if len(alike) > MOST_ROWS:
            parts.append(Text(f"… and {len(alike) - MOST_ROWS} more that differ."))
        for place, name in enumerate(NAMES):
            alone = [d.name for d in sections[heading] if d.values[1 - place] == DASH]
            if alone:
                more = f" and {len(alone) - MOST_ROWS} more" if len(alone) > MOST_ROWS else ""
                parts.append(Text(f"Only in {name}: {', '.join(alone[:MOST_ROWS])}{more}.", overflow="fold"))
    return parts


def _settings_table(heading: str, alike: Mapping[tuple[str, str], Sequence[str]]) -> RichTable:
    table = _grid(heading)
    table.add_column("setting", overflow="fold")
    for name in NAMES:
        table.add_column(name, overflow="fold")
    for values, names in list(alike.items())[:MOST_ROWS]:
        table.add_row(Text("\n".join(names)), *(Text(_shown(value)) for value in values))
    return table


def _numbers_alone(name: str, place: int, pairs: Sequence[Pair]) -> list[RenderableType]:
    """Numbers of rows that the other run hasn't got, a line for each metric."""
    lines: dict[str, list[str]] = {}
    for pair in pairs:
        mean = pair.sides[place].mean
        number = DASH if mean is None else f"{mean:.{DIGITS.get(pair.unit, OTHER_DIGITS)}f}"
        lines.setdefault(_heading(pair), []).append(f"{pair.row} {number}")
    if not lines:
        return []
    shown = [Text(f"{metric}: {', '.join(rows)}", overflow="fold") for metric, rows in list(lines.items())[:MOST_ROWS]]
    more = [Text(f"… and {len(lines) - MOST_ROWS} more metrics.")] if len(lines) > MOST_ROWS else []
    return [Text(f"\nOnly in {name}", "bold"), *shown, *more]


def _numbers_table(pairs: Sequence[Pair]) -> RichTable:
    table = _grid("Numbers")
    table.add_column("task, metric", overflow="fold")
    table.add_column("method", overflow="fold")
    for name in (*NAMES, f"{NAMES[1]} - {NAMES[0]}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    heading = ""
    for pair in pairs:
        named = _heading(pair)
        if named != heading:
            table.add_section()
        digits = DIGITS.get(pair.unit, OTHER_DIGITS)
        numbers = [DASH if side.mean is None else f"{side.mean:.{digits}f}" for side in pair.sides]
        numbers.append(DASH if pair.difference is None else f"{pair.difference:+.{digits}f}")
        table.add_row(
            Text(named if named != heading else ""), Text(pair.row), *map(Text, numbers), Text("; ".join(pair.notes))
        )
        heading = named
    return table


def _heading(pair: Pair) -> str:
    label = METRIC_LABELS.get(pair.metric, pair.metric.replace("_", " "))
    unit = "" if pair.unit == label else f", {pair.unit}"
    return f"{pair.task} {label}{unit} {'↑' if pair.higher_is_better else '↓'}"


def _grid(title: str) -> RichTable:
    return RichTable(box=box.SIMPLE_HEAD, title=Text(title, "bold"), title_justify="left", pad_edge=False)


def _shown(value: str) -> str:
    """SHA-256 digests by their first digits; that they differ is seen there."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", value)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
