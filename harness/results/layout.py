"""What stands in run.json: types of what a record of a run holds."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class MetricRecord(TypedDict):
    """See :class:`harness.tasks.base.Metric`."""

    name: str
    unit: str
    headline: bool
    higher_is_better: bool


class FailureRecord(TypedDict):
    """See :class:`harness.store.artefacts.Failure`."""

    stage: str
    reason: str
    skipped: bool


class RowRecord(TypedDict):
    """The row of the table that a cell is of: "method" is what it is called there, "role" whether a method made it."""

    method: str
    fidelity: str
    role: str
    teacher_kind: str


class CellRecord(RowRecord):
    """A cell, or a reference to compare with.

    ``stages`` has the identities of its stages by kind ("answers", "scores", "bits", and "student" where one was
    trained), ``alignments`` those of the alignments that are shown of it, ``failures`` what has no result, by kind;
    ``weights`` of the cross-entropy and of each teacher's term; ``apart`` has those of its distances from
    teachers, by the teacher's name.
    """

    name: str
    task: str
    seed: int
    student: str
    teacher: str
    metrics: list[MetricRecord]
    weights: NotRequired[list[float]]
    stages: dict[str, str]
    alignments: NotRequired[list[str]]
    apart: NotRequired[dict[str, str]]
    failures: dict[str, FailureRecord]


class RowCell(CellRecord):
    """A cell with the label of its row in tables."""

    row: str


class Record(TypedDict):
    """A run: ``recipe`` is the recipe as it was read, ``protocol`` how numbers are made, in words, by task.

    ``readings``: see :func:`harness.results.readings.note_readings`; ``teachers``: by task and seed, which training of
    the teachers it had, where there are several.
    """

    format: int
    identity: str
    recipe: dict[str, object]
    title: str
    notes: list[str]
    warnings: NotRequired[list[str]]
    protocol: dict[str, list[str]]
    baseline: str
    primary: NotRequired[list[str]]
    readings: NotRequired[dict[str, int]]
    teachers: NotRequired[dict[str, dict[str, int]]]
    paper: str
    command: NotRequired[str]
    bibtex: NotRequired[list[str]]
    settings: list[tuple[str, str]]
    environment: dict[str, object]
    sources: dict[str, object]
    references: dict[str, dict[str, str]]
    cells: list[CellRecord]
