"""A run's record: what it was, and where its results are stored; from both to two tidy tables, without a model."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from harness.base.errors import HarnessError
from harness.base.files import read_json, write_json
from harness.evaluate.bits_per_byte import corpus_bits_per_byte
from harness.generation import vllm as vllm_engine
from harness.models.spec import ModelSpec
from harness.plan.alignments import shown
from harness.plan.apart import distances, teachers_of
from harness.plan.builder import is_baseline, model_sources
from harness.plan.objectives import ObjectiveSpec
from harness.plan.stages import Cell, Plan, Reference, Stage
from harness.recipe.schema import Recipe
from harness.results.citation import bibtex, command_line
from harness.results.evidence import SHOWN_ITEMS
from harness.results.layout import CellRecord, FailureRecord, MetricRecord, Record, RowRecord
from harness.results.settings import settings_in_words
from harness.store.artefacts import BITS, SCORES, Failure
from harness.store.store import Store
from harness.tasks.base import Metric
from reports import ITEM_COLUMNS, Score

RECORD = "run.json"
FORMAT = 2

BITS_PER_BYTE: MetricRecord = {
    "name": "bits_per_byte",
    "unit": "bits/byte",
    "headline": False,
    "higher_is_better": False,
}


@dataclass(frozen=True)
class RunRecord:
    """A run's folder and record.

    Attributes:
        folder: holds run.json, the report's files and tracebacks of failures.
        record: cells with the identities of their stages, protocol, notes, settings, failures, baseline, paper.
    """

    folder: Path
    record: Record


def run_folder(runs: Path, plan: Plan) -> Path:
    """Where a plan's run is kept: its recipe's name and its identity."""
    return runs / f"{plan.recipe.name}-{plan.identity[:10]}"


def write_record(
    folder: Path,
    plan: Plan,
    failures: Mapping[str, Failure],
    environment: Mapping[str, object],
    heard: Sequence[str] = (),
    readings: Mapping[str, int] | None = None,
) -> RunRecord:
    """Write run.json: all that a report needs beside the store.

    Args:
        heard: warnings of this call; those of earlier ones stay, as what they were about is stored.
        readings: see :func:`harness.results.readings.note_readings`.
    """
    recipe, trained = plan.recipe, teachers_of(plan)
    warnings = list(dict.fromkeys([*_earlier_warnings(folder), *heard]))
    record: Record = {
        "format": FORMAT,
        "identity": plan.identity,
        "recipe": recipe.model_dump(mode="json"),
        "title": recipe.title or recipe.name,
        "notes": list(recipe.notes) + _caveats(plan) + warnings,
        "warnings": warnings,
        "protocol": {name: _protocol(plan, name) for name in plan.tasks},
        "baseline": _baseline(plan),
        "primary": list(recipe.primary),
        "readings": dict(readings or {}),
        "teachers": _teachers_of(plan),
        "paper": recipe.paper or "",
        "settings": settings_in_words(plan),
        "environment": dict(environment),
        "sources": sources_of(plan),
        "references": _references(plan),
        "command": command_line(),
        "bibtex": bibtex((m.name, m.paper) for cell in plan.cells for m in cell.objective.methods),
        "cells": [_cell(plan, cell, failures, trained) for cell in plan.evaluated],
    }
    write_json(folder / RECORD, record)
    return RunRecord(folder, record)


def sources_of(plan: Plan) -> dict[str, object]:
    """Digests of what results are made from: models by role, data by task."""
    data = {name: {"train": task.training_digest(), "test": task.test_digests()} for name, task in plan.tasks.items()}
    return {"models": model_sources(plan.recipe), "data": data}


def _teachers_of(plan: Plan) -> dict[str, dict[str, int]]:
    """Which training of the teachers each repetition had; empty where there is one for all."""
    if plan.recipe.teacher.seeds is None:
        return {}
    found: dict[str, dict[str, int]] = {}
    for name in plan.tasks:
        for seed in plan.recipe.seeds_of(name):
            if (own := plan.recipe.teacher_seed(name, seed)) is not None:
                found.setdefault(name, {})[str(seed)] = own
    return found


def _earlier_warnings(folder: Path) -> list[str]:
    """What earlier calls of the same run heard."""
    try:
        return list(read_record(folder).record.get("warnings", ()))
    except HarnessError:  # none, or one of another version
        return []


def read_record(folder: Path) -> RunRecord:
    """A run from its folder.

    Raises:
        HarnessError: there is no run there, or an other version of the harness wrote it.
    """
    try:
        record = read_json(folder / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{RECORD}"))
        known = inside or sorted(path.parent.name for path in folder.parent.glob(f"*/{RECORD}"))
        there = f"There are {', '.join(known)}." if known else ""
        raise HarnessError("run", f"no {RECORD} in {folder}", "the folder of a run", there) from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, str(error)) from error
    form = record.get("format") if isinstance(record, dict) else None
    if form != FORMAT:
        raise HarnessError(str(folder / RECORD), f"format {form}", f"format {FORMAT}", "Run the recipe again.")
    try:
        TypeAdapter(Record).validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged(folder, f"{place}: {first['msg']}") from error
    parts = ("name", "task", "method", "fidelity", "role", "teacher_kind", "student", "teacher")
    names = [record["title"], record["baseline"], *(cell[part] for cell in record["cells"] for part in parts)]
    for name in names:  # a recipe has none of them: a record that does was written by somebody else
        if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in name):
            raise _damaged(folder, f"control characters in {name!r:.80}")
    return RunRecord(folder, record)


def _damaged(folder: Path, found: str) -> HarnessError:
    return HarnessError(str(folder / RECORD), f"a damaged file ({found})", "a run's record", "Run the recipe again.")


def collect(run: RunRecord, store: Store) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tidy tables: one row per cell and metric, failures included; one row per cell, metric and item."""
    rows: list[dict[str, object]] = []
    items: list[tuple[str, str, str, float, float]] = []
    for cell in run.record["cells"]:
        for score, scored in _scores(cell, store):
            rows.append(asdict(score) | {"cell": cell["name"]})
            if score.status == "done" and math.isfinite(score.value):
                items += [(cell["name"], score.metric, name, *scored[name]) for name in scored]
    return pd.DataFrame(rows), pd.DataFrame(items, columns=list(ITEM_COLUMNS))


def _cell(plan: Plan, cell: Reference | Cell, failures: Mapping[str, Failure], trained: Sequence[Stage]) -> CellRecord:
    """What a report must know of a cell or a reference: labels, stage identities, metrics, failures.

    Args:
        trained: the teachers of the plan.
    """
    recipe = plan.recipe
    stages: dict[str, Stage | None] = {"scores": cell.scores, "bits": cell.bits, "answers": cell.answers}
    if isinstance(cell, Cell):
        stages["student"] = cell.student
        roles, row = cell.objective.learns_from, _row_of_method(cell)
    else:
        roles = (cell.teacher,) if cell.teacher else ()
        row = {"method": cell.label, "fidelity": "", "role": cell.role, "teacher_kind": cell.teacher_kind}
    return {
        **row,
        "name": cell.name,
        "task": cell.task,
        "seed": cell.seed,
        "student": recipe.student.name or recipe.student.model,
        "teacher": " + ".join(_called(recipe, role) for role in roles),
        "metrics": [_metric(metric) for metric in plan.tasks[cell.task].metrics if cell.scores is not None],
        "weights": _weights(cell.objective) if isinstance(cell, Cell) else [],
        "stages": {name: stage.identity for name, stage in stages.items() if stage is not None},
        "alignments": [one.identity for one in shown(plan, cell)] if isinstance(cell, Cell) else [],
        "apart": {_called(recipe, one.teacher.role): one.identity for one in distances(plan, cell, trained)},
        "failures": {
            name: FailureRecord(stage=failure.stage, reason=failure.reason, skipped=failure.skipped)
            for name, stage in stages.items()
            if stage is not None and (failure := failures.get(stage.identity)) is not None
        },
    }


def _called(recipe: Recipe, role: str) -> str:
    """A teacher as tables call it."""
    teacher: ModelSpec = getattr(recipe.teachers, role)
    return teacher.name or teacher.model


def _metric(metric: Metric) -> MetricRecord:
    return {
        "name": metric.name,
        "unit": metric.unit,
        "headline": metric.headline,
        "higher_is_better": metric.higher_is_better,
    }


def _references(plan: Plan) -> dict[str, dict[str, str]]:
    """Reference answers of the test items that a page shows, by task and item."""
    return {
        name: {example.id: example.response.strip() for example in task.reference_examples()[:SHOWN_ITEMS]}
        for name, task in plan.tasks.items()
    }


def _protocol(plan: Plan, task: str) -> list[str]:
    """How a task's numbers are made, bits per byte included."""
    lines = plan.tasks[task].protocol()
    if not plan.recipe.evaluation.answers:
        lines.append("Nobody answers in this run: what is said of answers is how they would be taken.")
    if plan.recipe.evaluation.engine == "vllm":
        version = vllm_engine.installed() or "(not installed)"
        lines.append(f"Answers generated by vLLM {version}, with a seed for each that is sampled.")
    if plan.recipe.evaluation.bits_per_byte:
        lines += [
            "bits/byte: Σ -log2 p over Σ UTF-8 bytes of the test items' reference responses (the first of several), "
            "prompts as in training, end of sequence left out; responses that "
            f"{plan.recipe.limits.length} tokens would cut are left out."
        ]
    return lines


def _baseline(plan: Plan) -> str:
    """The recipe's baseline as the table labels it; a dual teacher may be written with or without the space."""
    found = (cell.objective.label for cell in plan.cells if is_baseline(plan.recipe, cell.objective))
    return next(found, plan.recipe.baseline or "")


def _row_of_method(cell: Cell) -> RowRecord:
    objective = cell.objective
    return {
        "method": objective.label,
        "fidelity": objective.fidelity if objective.fidelities_differ else "",
        "role": "student",
        "teacher_kind": objective.teacher_kind,
    }


def _weights(objective: ObjectiveSpec) -> list[float]:
    """Of the cross-entropy and of each teacher's term."""
    return [objective.ce_weight, *(part.weight for part in objective.taught)]


def _caveats(plan: Plan) -> list[str]:
    """What methods want a reader to know of their rows."""
    methods = {(o.name, m) for o in (cell.objective for cell in plan.cells) for m in o.methods}
    return sorted({f"{name}: {method.caveat}" for name, method in methods if method.caveat})


def _scores(cell: CellRecord, store: Store) -> Iterator[tuple[Score, dict[str, tuple[float, float]]]]:
    """All numbers of a cell, or why they are not there, each with its items' values and weights."""
    stored = SCORES.find(store, "scores", cell["stages"].get("scores", ""))
    for metric in cell["metrics"]:
        items = stored.get(metric["name"], {}) if stored else {}
        value = sum(items.values()) / len(items) if items else math.nan
        score = _score(cell, "scores", metric, value, len(items), stored is not None)
        yield score, {name: (value, 1.0) for name, value in items.items()}
    if "bits" in cell["stages"]:
        found = BITS.find(store, "bits", cell["stages"]["bits"])
        bits = found or []
        score = _score(cell, "bits", BITS_PER_BYTE, corpus_bits_per_byte(bits), len(bits), found is not None)
        yield score, {item.id: (item.bits / item.bytes, float(item.bytes)) for item in bits if item.bytes}


def _score(cell: CellRecord, stage: str, metric: MetricRecord, value: float, items: int, stored: bool) -> Score:
    failure = cell["failures"].get(stage)
    status, reason = "done", ""
    if math.isnan(value):
        status = "skipped" if failure and failure["skipped"] else "failed"
        if stored and items:
            reason = "not a number: the training diverged"
        elif stored:
            status = "skipped"
            reason = "no item that any answer scores on" if stage == "scores" else "no item that the limits do not cut"
        else:
            reason = failure["reason"] if failure else "no stored result: run the recipe (again)"
    return Score(
        student=cell["student"],
        teacher=cell["teacher"],
        teacher_kind=cell["teacher_kind"],
        method=cell["method"],
        fidelity=cell["fidelity"],
        role=cell["role"],
        task=cell["task"],
        metric=metric["name"],
        seed=cell["seed"],
        value=value,
        n_items=items,
        higher_is_better=metric["higher_is_better"],
        headline=metric["headline"],
        status=status,
        reason=reason,
        unit=metric["unit"],
    )
