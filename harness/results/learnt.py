"""What is known of each row beside its scores: how far from its teachers, how answers ended, what training showed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from harness.plan.apart import KIND
from harness.results.evidence import labelled
from harness.results.layout import Record
from harness.store.artefacts import APART, Apart
from harness.store.store import Store
from reports.counts import ANSWERS, ENDS
from reports.learnt import LEARNT_COLUMNS

COVERED = 0.9
"""Share of a teacher's probability under which a map leaves out more than a reader expects."""

_RATIO, _MASS = "KD/CE gradient norm", "teacher mass covered"  # columns of the diagnostics


def collect_learnt(
    record: Record, store: Store, outcomes: pd.DataFrame, diagnostics: pd.DataFrame | None
) -> pd.DataFrame:
    """All measures, as :data:`reports.learnt.LEARNT_COLUMNS`.

    Args:
        outcomes: see :func:`harness.results.outcomes.collect_outcomes`.
        diagnostics: see :func:`harness.results.diagnostics.diagnostics`.
    """
    found = [*_distances(record, store), *_ended(outcomes)]
    if diagnostics is not None:
        found += _of_training(diagnostics)
    return pd.DataFrame(found, columns=list(LEARNT_COLUMNS))


def hardly_covered(diagnostics: pd.DataFrame | None) -> list[str]:
    """Footnotes on rows whose vocabulary map holds less than :data:`COVERED` of the teacher's probability."""
    if diagnostics is None or _MASS not in diagnostics:
        return []
    rows: dict[str, list[str]] = {}
    for _, line in diagnostics[diagnostics[_MASS] < COVERED].iterrows():
        rows.setdefault(str(line["method"]), []).append(f"{line[_MASS]:.2f} on {line['task']}")
    return [
        f"{row}: its map covers a share of the teacher's probability under {COVERED:g} ({', '.join(found)}); "
        "of the rest it learns nothing, or something else."
        for row, found in rows.items()
    ]


def cut_answers(outcomes: pd.DataFrame) -> list[str]:
    """A footnote for each task some of whose answers the length limit cut: how many of each row's."""
    given: Counter[tuple[str, str]] = Counter()
    cut: Counter[tuple[str, str]] = Counter()
    for line in outcomes[outcomes["of"] == ANSWERS].to_dict("records"):
        named = str(line["task"]), str(line["row"])
        given[named] += int(line["count"])
        cut[named] += int(line["count"]) if line["outcome"] == ENDS[-1] else 0
    tasks: dict[str, list[str]] = {}
    for (task, row), some in cut.items():
        if some:
            tasks.setdefault(task, []).append(f"{row} {some} of {given[task, row]}")
    return [
        f"{task}: answers that the length limit cut, which are scored as far as they go: {', '.join(rows)}."
        for task, rows in tasks.items()
    ]


def _distances(record: Record, store: Store) -> Iterator[tuple[str, str, str, str]]:
    """Means over seeds of each student's distance from each teacher."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for cell in labelled(record["cells"]):
        for teacher, identity in cell.get("apart", {}).items():
            items = APART.find(store, KIND, identity) or []
            for measure, of in _MEASURES.items():
                if math.isfinite(value := of(items)):
                    found.setdefault((cell["row"], cell["task"], measure.format(teacher)), []).append(value)
    for place, values in found.items():
        yield *place, f"{sum(values) / len(values):.3f}"


def _chunks(items: list[Apart]) -> float:
    total = sum(item.bytes for item in items)
    return sum(item.chunks for item in items) / total if total else math.nan


def _kl(items: list[Apart]) -> float:
    known = [item for item in items if item.kl is not None]
    total = sum(item.tokens for item in known)
    return sum(item.kl or 0.0 for item in known) / total if total else math.nan


_MEASURES: Mapping[str, Callable[[list[Apart]], float]] = {
    "apart from {}, bits/byte": _chunks,
    "KL from {}, bits/token": _kl,
}


def _ended(outcomes: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    for (row, task), part in outcomes[outcomes["of"] == ANSWERS].groupby(["row", "task"], sort=False):
        ended = part[part["outcome"] != ENDS[-1]]["count"].sum()
        yield str(row), str(task), "answers that ended, %", f"{100 * ended / part['count'].sum():.0f}"


def _of_training(diagnostics: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    for _, line in diagnostics.iterrows():
        place = str(line["method"]), str(line["task"])
        ratios = [line[name] for name in (_RATIO, f"second {_RATIO}") if name in line and math.isfinite(line[name])]
        if ratios:
            yield *place, "KD/CE gradients", " + ".join(f"{ratio:.2g}" for ratio in ratios)
        if _MASS in line and math.isfinite(line[_MASS]):
            yield *place, _MASS, f"{line[_MASS]:.2f}"
