"""From stored stages to counts of what became of answers, programs and rows. No model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from harness.results.evidence import labelled
from harness.results.layout import CellRecord, Record
from harness.store import artefacts
from harness.store.store import Store
from reports.counts import ANSWERS, CUT, JUDGED, LEFT_OUT, OUTCOME_COLUMNS, PROMPTS, REFERENCES, TRAINING, UNREADABLE

_ENDS = {"eos": "EOS", "length": "length limit"}  # as tables say it


def collect_outcomes(record: Record, store: Store) -> pd.DataFrame:
    """Counts by row, task and seed, as :data:`reports.counts.OUTCOME_COLUMNS`."""
    rows = [
        (cell["row"], cell["task"], cell["seed"], *counted)
        for cell in labelled(record["cells"])
        for counted in _of_cell(cell, store)
    ]
    return pd.DataFrame(rows, columns=list(OUTCOME_COLUMNS))


def scoring_lines(cells: Sequence[CellRecord], store: Store) -> list[str]:
    """Where a task's programs ran: the sandbox, cores, and how busy the machine was."""
    places, cores, loads = [], set(), []
    for cell in cells:
        details = artefacts.DETAILS.find(store, "scores", cell["stages"].get("scores", ""))
        if not details or "ran_in" not in details:  # no programs
            continue
        places.append(details["ran_in"])
        machine = (store.read_manifest("scores", cell["stages"].get("scores", "")) or {}).get("machine")
        if machine:
            cores.add(int(machine["cores"]))
            loads += machine["load"]
    if not places:
        return []
    line = f"Programs ran in {', '.join(dict.fromkeys(places))}"
    if cores:
        counts = " or ".join(map(str, sorted(cores)))
        line += f", on {counts} core{'s' * (counts != '1')} at a load of {min(loads):.1f} to {max(loads):.1f}"
    return [line + "."]


def set_aside_lines(cells: Sequence[CellRecord], store: Store) -> list[str]:
    """What the publishers of models ask of decoding, once for each model; answers were decoded without it."""
    manifests = (store.read_manifest("answers", cell["stages"].get("answers", "")) for cell in cells)
    models: dict[str, dict[str, str]] = next((m["models"] for m in manifests if m is not None), {})
    wishes = [f"{model['set_aside']} ({role})" for role, model in models.items() if "set_aside" in model]
    return [f"Set aside, though generation_config.json asks for it: {'; '.join(wishes)}."] if wishes else []


def _of_cell(cell: CellRecord, store: Store) -> Iterator[tuple[str, str, int]]:
    """(of, outcome, count) of one cell."""
    answers = artefacts.ANSWERS.find(store, "answers", cell["stages"].get("answers", "")) or []
    yield from _listed(ANSWERS, Counter(_ENDS.get(answer.stop, answer.stop) for answer in answers))
    yield from _listed(PROMPTS, Counter(CUT if answer.prompt_cut else "whole" for answer in answers))
    details = artefacts.DETAILS.find(store, "scores", cell["stages"].get("scores", "")) or {}
    for metric, statuses in details.get("statuses", {}).items():
        yield from _listed(metric, Counter(statuses.values()))
    yield from _listed(JUDGED, details.get("outcomes", {}))
    for of, kind in ((TRAINING, "student"), (REFERENCES, "bits")):
        manifest = store.read_manifest(kind, cell["stages"][kind]) if kind in cell["stages"] else None
        if manifest is not None and (rows := manifest.get("rows")) is not None:
            counts = {CUT: rows["cut"], LEFT_OUT: rows["left_out"]}
            if unreadable := rows.get("unreadable"):
                counts[UNREADABLE] = unreadable
            yield from _listed(of, {"whole": rows["read"] - sum(counts.values()), **counts})


def _listed(of: str, counts: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
    for outcome, count in counts.items():
        yield of, outcome, count
