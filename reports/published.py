"""Published numbers (the YAML files in `paper/`) beside ours: the difference, and what was not done alike."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from reports.analysis import INTERVAL
from reports.spreadsheets import guarded
from reports.table import Column, Group, Row, Table, TableCell

PAPERS = Path(__file__).parent / "paper"


@dataclass(frozen=True)
class PublishedColumn:
    """A column of a paper that we have a counterpart of: its items, and how its numbers were made."""

    items: int
    protocol: str


@dataclass(frozen=True)
class Published:
    """A paper's numbers for one pair of models."""

    citation: str
    found_in: str
    notes: tuple[str, ...]
    columns: Mapping[str, PublishedColumn]  # by our column's key, e.g. "dolly.rouge_l"
    settings: Mapping[str, Any]  # dotted field of a recipe -> the value, or a list of values, that repeats the paper
    numbers: Mapping[tuple[str, str], float]  # (row, our column's key) -> number in the column's unit


@dataclass(frozen=True)
class Beside:
    """One of our cells with its published number."""

    group: Group
    row: Row
    column: Column
    ours: TableCell  # has a mean
    theirs: float

    @property
    def difference(self) -> float:
        """Ours minus theirs."""
        assert self.ours.mean is not None
        return self.ours.mean - self.theirs

    @property
    def inside(self) -> bool | None:
        """Whether theirs lies in our interval over items; None where we have no interval."""
        return None if self.ours.interval is None else self.ours.interval[0] <= self.theirs <= self.ours.interval[1]


@dataclass(frozen=True)
class PaperDifference:
    """A setting that is not the paper's, as a reader sees both."""

    name: str
    ours: str
    theirs: str


@dataclass(frozen=True)
class PaperComparison:
    """All of ours that the paper has too, column by column; what differs; rows of the paper that we did not run."""

    source: Published
    rows: tuple[Beside, ...]
    differences: tuple[PaperDifference, ...]
    not_run: tuple[str, ...]

    def lines(self) -> list[str]:
        """What has to be said with the table; the same in every format."""
        said = [f"Published: {self.source.citation}; {self.source.found_in}."]
        if not self.rows:
            return [*said, "No cell of this run has a published number.", *self.source.notes]
        said.append(
            f"Difference: ours minus theirs. Inside: whether theirs lies in our {INTERVAL} (bootstrap over test items, "
            "of the mean over seeds), which leaves out what training again would change on either side."
        )
        if any(beside.inside is None for beside in self.rows):
            said.append("– for inside: there is no interval, as item-level scores are missing or all the same.")
        differing = "; ".join(f"{d.name} {d.ours} (theirs {d.theirs})" for d in self.differences)
        said.append(f"Settings differ: {differing}." if differing else "No known setting differs.")
        keys = dict.fromkeys(beside.column for beside in self.rows)
        protocols = [f"{column.full_label}: {self.source.columns[column.key].protocol}" for column in keys]
        said.append(f"Their protocol: {'. '.join(protocols)}.")
        if self.not_run:
            said.append(f"Published, but not in this run: {', '.join(self.not_run)}.")
        return said + list(self.source.notes)


def published_pairs() -> list[str]:
    """Names of the pairs of models whose published numbers we have."""
    return sorted(pair for paper in _papers() for pair in paper["pairs"])


def published(pair: str) -> Published:
    """The published numbers of a pair. Raises ValueError for a name that is none of `published_pairs`."""
    for paper in _papers():
        if pair in paper["pairs"]:
            return _published(paper, paper["pairs"][pair])
    raise ValueError(f"no published numbers for {pair!r}; there are {', '.join(published_pairs())}")


def beside_published(table: Table, pair: str, recipe: Mapping[str, Any]) -> PaperComparison:
    """Our table beside a pair's published numbers.

    Args:
        recipe: the run's recipe as plain values; settings are looked up in it.

    Raises:
        ValueError: there is no such pair.
    """
    source = published(pair)
    rows = tuple(sorted(_beside(table, source), key=lambda beside: table.columns.index(beside.column)))
    columns = dict.fromkeys(beside.column for beside in rows)
    shown = {_published_row(beside.group, beside.row) for beside in rows}
    comparable = {row for row, key in source.numbers if key in {column.key for column in columns}}
    return PaperComparison(
        source,
        rows,
        tuple(_differences(source, recipe, tuple(columns))) if rows else (),
        tuple(row for row in dict.fromkeys(row for row, _ in source.numbers) if row in comparable - shown),
    )


def csv_published(comparison: PaperComparison) -> str:
    """One line per cell that has a published number, at full precision; the interval is ours."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["student", "row", "column", "ours", "std", "n", "low", "high", "theirs", "difference", "inside"])
    for b in comparison.rows:
        low, high = b.ours.interval or (None, None)
        ours = (b.ours.mean, b.ours.std, b.ours.n_seeds, low, high)
        numbers = (*ours, b.theirs, b.difference, b.inside)
        writer.writerow(map(guarded, (b.group.student, b.row.label, b.column.key, *numbers)))
    return text.getvalue()


@cache
def _papers() -> tuple[dict[str, Any], ...]:
    return tuple(yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(PAPERS.glob("*.yaml")))


def _published(paper: Mapping[str, Any], pair: Mapping[str, Any]) -> Published:
    ours = {name: column["column"] for name, column in paper["columns"].items() if column["column"] is not None}
    return Published(
        citation=paper["citation"],
        found_in=paper["found_in"],
        notes=tuple(paper["notes"]),
        columns={
            ours[name]: PublishedColumn(column["items"], column["protocol"])
            for name, column in paper["columns"].items()
            if name in ours
        },
        settings=paper["settings"] | pair["settings"],
        numbers={
            (row, ours[name]): float(value)
            for table in pair["tables"]
            for row, values in table["rows"].items()
            for name, value in zip(table["columns"], values, strict=True)
            if name in ours
        },
    )


def _beside(table: Table, source: Published) -> Iterator[Beside]:
    for group, row, column, cell in table.cells():
        theirs = source.numbers.get((_published_row(group, row), column.key))
        if theirs is not None and cell.mean is not None:
            yield Beside(group, row, column, cell, theirs)


def _published_row(group: Group, row: Row) -> str:
    return f"teacher {group.teacher_kind}" if row.role == "teacher" else row.method


def _differences(
    source: Published, recipe: Mapping[str, Any], columns: tuple[Column, ...]
) -> Iterator[PaperDifference]:
    tasks = {column.task for column in columns}
    other_tasks = {key.partition(".")[0] for key in source.columns} - tasks
    for name, theirs in source.settings.items():
        if name.partition(".")[0] not in other_tasks:
            accepted = theirs if isinstance(theirs, list) else [theirs]
            ours = _lookup(recipe, name)
            if ours not in accepted:
                yield PaperDifference(name, _shown(ours), " or ".join(_shown(value) for value in accepted))
    for column in columns:
        theirs_items = source.columns[column.key].items
        if column.items != (theirs_items,):
            yield PaperDifference(f"{column.full_label} items", ", ".join(map(str, column.items)), str(theirs_items))


def _lookup(recipe: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted field, None where a part of the path is; a hub model without its revision."""
    value: Any = recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value.partition("@")[0] if isinstance(value, str) and value.startswith("hf:") else value


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
