"""From stored steps to what training showed, per method and task: the table's appendix."""

from __future__ import annotations

import math

import pandas as pd

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


_STEP_FIELDS = frozenset({"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "ce"}).union(
    *({f"kd_{term}", f"kd_ce_ratio_{term}"} for term in (0, 1))
)
