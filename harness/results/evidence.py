"""From a run's record and the store to what its page shows besides the table. No model: all of it is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import yaml

from harness.plan.alignments import KIND
from harness.results.layout import CellRecord, Record, RowCell
from harness.store.artefacts import (
    ALIGNMENTS,
    ANSWERS,
    SCORES,
    STEPS,
    TRACES,
    Answer,
    ShownPair,
    ShownTokens,
)
from harness.store.store import Store
from reports import Evidence, Item, ShownAlignment, ShownAnswer, TokenSide
from reports.exhibits import STEP_COLUMNS

SHOWN_ITEMS = 12  # of a task, with every row's answer


def collect_evidence(record: Record, store: Store) -> Evidence:
    """What a page shows besides the table: steps, answers, alignments, manifests, failures. No model."""
    cells = labelled(record["cells"])
    trained = [cell for cell in cells if "student" in cell["stages"]]  # nothing is trained for a reference alone
    alignments, aligned = _alignments(trained, store)
    return Evidence(
        steps=_steps(trained, store),
        items=_items(cells, store, record.get("references", {})),
        alignments=alignments,
        aligned=aligned,
        recipe=yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True, width=110),
        manifest=_manifest(record, store),
        stages=_stages(cells, store),
        failures=_failures(record),
    )


def labelled(cells: Sequence[CellRecord]) -> list[RowCell]:
    """The cells of a record with their row's name under "row": "released" is said beside "described", as in tables."""
    described = {cell["method"] for cell in cells if cell["fidelity"] == "described"}
    return [{**cell, "row": _row(cell, cell["method"] in described)} for cell in cells]


def _row(cell: CellRecord, described: bool) -> str:
    if cell["role"] == "teacher":
        return f"teacher {cell['teacher']}"
    released = cell["fidelity"] == "released" and described
    return str(cell["method"]) + (" (released)" if released else "")


def _steps(cells: Sequence[RowCell], store: Store) -> pd.DataFrame:
    """What training showed, one row a step; kept where students were dropped."""
    names = {"kd": "kd_0", "ratio": "kd_ce_ratio_0", "second kd": "kd_1", "second ratio": "kd_ce_ratio_1"}
    rows = []
    for cell in cells:
        own = {"row": cell["row"], "task": cell["task"], "seed": cell["seed"]}
        for step in STEPS.kept(store, "student", cell["stages"]["student"]) or []:
            rows.append(
                own
                | {name: step[name] for name in ("step", "loss", "ce")}
                | {name: step.get(stored, math.nan) for name, stored in names.items()}
            )
    return pd.DataFrame(rows, columns=list(STEP_COLUMNS))


def _items(cells: Sequence[RowCell], store: Store, references: Mapping[str, Mapping[str, str]]) -> list[Item]:
    """The first test items of each task with their reference and the answers of every row's first seed."""
    items: dict[tuple[str, str], tuple[str, list[ShownAnswer]]] = {}
    for cell in _first_seeds(cells):
        scores = SCORES.find(store, "scores", cell["stages"].get("scores", "")) or {}
        units = {metric["name"]: metric["unit"] for metric in cell["metrics"]}
        for answer in _first_answers(ANSWERS.find(store, "answers", cell["stages"].get("answers", "")) or []):
            own = [
                (name, scores[name][answer.id], unit)
                for name, unit in units.items()
                if answer.id in scores.get(name, {})
            ]
            said = ShownAnswer(cell["row"], answer.output, answer.stop, tuple(own))
            items.setdefault((cell["task"], answer.id), (answer.prompt, []))[1].append(said)
    return [
        Item(task, name, prompt, tuple(answers), references.get(task, {}).get(name, ""))
        for (task, name), (prompt, answers) in items.items()
    ]


def _first_answers(answers: Sequence[Answer]) -> list[Answer]:
    """One answer, of the first sampling seed, to each of the first items."""
    first: dict[str, Answer] = {}
    for answer in answers:
        first.setdefault(answer.id, answer)
    return list(first.values())[:SHOWN_ITEMS]


def _first_seeds(cells: Sequence[RowCell]) -> list[RowCell]:
    """One cell of each row and task."""
    first: dict[tuple[str, str], RowCell] = {}
    for cell in cells:
        first.setdefault((cell["task"], cell["row"]), cell)
    return list(first.values())


def _alignments(cells: Sequence[RowCell], store: Store) -> tuple[list[ShownAlignment], list[tuple[str, int, int]]]:
    """Every alignment that is stored, and of how many responses of each task: (task, shown, all)."""
    found: list[ShownAlignment] = []
    counts: dict[str, tuple[int, int]] = {}
    for cell in _first_seeds(cells):
        traces = TRACES.kept(store, "student", cell["stages"]["student"]) or []
        made = {
            (trace["method"], trace["item"]): _alignment(cell, trace["method"], trace, kd=trace["kd"])
            for trace in traces
        }
        places: dict[str, int] = {}  # of the test responses
        for identity in cell.get("alignments", ()):
            stored = ALIGNMENTS.kept(store, KIND, identity)
            if stored is None:
                continue
            counts[cell["task"]] = len(stored["items"]), stored["of"]
            for item in stored["items"]:
                places.setdefault(item["item"], len(places))
                shown = _alignment(cell, stored["method"], item, stand_in=item["stand_in"])
                made.setdefault((stored["method"], item["item"]), shown)
        found += sorted(made.values(), key=lambda alignment: places.get(alignment.item, -1))
    return found, [(task, *numbers) for task, numbers in counts.items()]


def _alignment(
    cell: RowCell,
    method: str,
    stored: ShownPair,
    kd: Sequence[float | None] | None = None,
    stand_in: bool = False,
) -> ShownAlignment:
    return ShownAlignment(
        task=cell["task"],
        item=stored["item"],
        row=cell["row"],
        method=method,
        student=_token_side(stored["student"]),
        teacher=_token_side(stored["teacher"]),
        groups=tuple((tuple(student), tuple(teacher)) for student, teacher in stored["groups"]),
        kd=() if kd is None else tuple(kd),
        teacher_kind=cell["teacher_kind"],
        traced=kd is not None,
        stand_in=stand_in,
    )


def _token_side(side: ShownTokens) -> TokenSide:
    return TokenSide(side["name"], tuple(side["tokens"]), tuple(side["ends"]))


def _manifest(record: Record, store: Store) -> list[tuple[str, str]]:
    """The run's identity, what its models came to on the machine that trained, and the versions in use."""
    lines = [("run", str(record["identity"]))]
    manifests = (
        store.read_manifest(kind, cell["stages"].get(kind, ""))
        for kind in ("scores", "bits")
        for cell in record["cells"]
    )
    for role, model in next((m["models"] for m in manifests if m is not None), {}).items():
        lines.append((f"{role} model", model["uri"]))
        lines += [(f"{role} {name}", model[name]) for name in ("commit", "sha256") if name in model]
    return lines + [(name, str(value)) for name, value in record["environment"].items()]


def _stages(cells: Sequence[RowCell], store: Store) -> pd.DataFrame:
    """What is stored of each cell, to find it in the store and to check it."""
    rows = []
    for cell in cells:
        for kind, identity in cell["stages"].items():
            manifest = store.read_manifest(kind, identity)
            if manifest is not None:
                row = {"cell": cell["name"], "stage": kind, "identity": identity[:24], "made": manifest["created"]}
                rows.append(row | {"seconds": manifest["seconds"]})
    return pd.DataFrame(rows)


def _failures(record: Record) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for cell in record["cells"]:
        for failure in cell["failures"].values():
            found[f"{cell['name']}: {failure['stage']}", failure["reason"]] = None
    return list(found)
