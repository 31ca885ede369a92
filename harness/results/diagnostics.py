"""From stored steps to what training showed, per method and task: the table's appendix."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from harness.base.files import Json
from harness.results.evidence import labelled
from harness.results.layout import Record
from harness.store.artefacts import STEPS
from harness.store.store import Store


def diagnostics(record: Record, store: Store) -> pd.DataFrame | None:
    """What training showed, per method and task, means over steps and seeds: the table's appendix."""
    rows = []
    for cell in labelled(record["cells"]):
        if "student" not in cell["stages"]:  # a reference: nothing trained for it alone
            continue
        steps = STEPS.kept(store, "student", cell["stages"]["student"])
        if not steps:
            continue
        frame = pd.DataFrame(steps)
        row = {
            "method": cell["row"],
            "task": cell["task"],
            "steps": len(frame),
            "passes": _passes(store.read_manifest("student", cell["stages"]["student"])),
            "CE, last step": frame["ce"].dropna().tail(1).sum() if frame["ce"].notna().any() else math.nan,
        }
        for term, which in ((0, ""), (1, "second ")):  # the second is the cross-tokenizer term of a dual teacher
            if f"kd_{term}" in frame:
                row[f"{which}KD, last step"] = frame[f"kd_{term}"].iloc[-1]
                row[f"{which}KD/CE gradient norm"] = frame[f"kd_ce_ratio_{term}"].mean()
        # what methods report of themselves
        own = [name for name in frame.columns if name not in _STEP_FIELDS]
        rows.append(row | {name: frame[name].mean() for name in own})
    if not rows:
        return None
    table = pd.DataFrame(rows).groupby(["method", "task"], sort=False).mean(numeric_only=True).reset_index()
    table["steps"] = table["steps"].astype(int)
    return table


def _passes(manifest: Mapping[str, Json] | None) -> float:
    """How often a training went through the rows that were not left out; NaN where they were not counted."""
    rows = (manifest or {}).get("rows")
    if manifest is None or rows is None:
        return math.nan
    kept = rows["read"] - rows["left_out"] - rows.get("unreadable", 0)
    steps_a_pass: int = -(-kept // int(manifest["values"]["training"]["batch_size"]))
    return float(manifest["values"]["steps"]) / max(steps_a_pass, 1)


def hardly_heard(record: Record, store: Store) -> list[str]:
    """Footnotes on rows whose teacher is hardly heard: a weighted KD gradient under a tenth of the cross-entropy's.

    Means over steps and seeds of the ratio of both gradients' norms at the student's logits; the terms of two teachers
    are added.
    """
    shares: dict[tuple[str, str], list[float]] = {}
    for cell in labelled(record["cells"]):
        ce_weight, *kd_weights = cell.get("weights") or [0.0]
        steps = STEPS.kept(store, "student", cell["stages"]["student"]) if ce_weight and any(kd_weights) else None
        if not steps:
            continue
        frame = pd.DataFrame(steps)
        ratios = [weight * frame[f"kd_ce_ratio_{term}"].mean() for term, weight in enumerate(kd_weights)]
        shares.setdefault((cell["row"], cell["task"]), []).append(sum(ratios) / ce_weight)
    rows: dict[str, list[str]] = {}
    for (row, task), found in shares.items():
        if (share := sum(found) / len(found)) < _HEARD:
            rows.setdefault(row, []).append(f"{share:.2g} on {task}")
    return [
        f"{row}: the gradient of its KD term, weighted, is small beside the cross-entropy's ({', '.join(found)}), so "
        "that its teacher is hardly heard; a larger kd_weight changes that."
        for row, found in rows.items()
    ]


_HEARD = 0.1  # of the cross-entropy's gradient
_STEP_FIELDS = frozenset({"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "ce"}).union(
    *({f"kd_{term}", f"kd_ce_ratio_{term}"} for term in (0, 1))
)
