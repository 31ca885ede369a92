"""From stored trainings to what they cost: seconds, tokens, memory, device. No model."""

from __future__ import annotations

import math

import pandas as pd

from harness.results.evidence import labelled
from harness.results.layout import Record
from harness.store.artefacts import STEPS, TIMING
from harness.store.store import Store
from reports.training_costs import COST_COLUMNS

GIB = 2**30


def collect_costs(record: Record, store: Store) -> pd.DataFrame:
    """A line for each trained student, as :data:`reports.training_costs.COST_COLUMNS`; dropped ones too."""
    rows = []
    for cell in labelled(record["cells"]):
        if "student" not in cell["stages"]:  # a reference: nothing trained for it alone
            continue
        identity = cell["stages"]["student"]
        timing = TIMING.kept(store, "student", identity)
        if timing is None:  # an interrupted training does not know its seconds
            continue
        steps = STEPS.kept(store, "student", identity) or []
        manifest = store.read_manifest("student", identity) or {}
        rows.append(
            {
                "row": cell["row"],
                "task": cell["task"],
                "seed": cell["seed"],
                "seconds": timing.seconds,
                "tokens": sum(step["tokens"] for step in steps) if steps else math.nan,
                "sampled": sum(step["sampled tokens"] for step in steps if "sampled tokens" in step) or math.nan,
                "gpus": math.nan if timing.gpus is None else timing.gpus,
                "gpu_gib": math.nan if timing.gpu_peak_bytes is None else timing.gpu_peak_bytes / GIB,
                "process_gib": manifest.get("process_peak_memory_bytes", math.nan) / GIB,
                "device": manifest.get("environment", {}).get("device", ""),
            }
        )
    return pd.DataFrame(rows, columns=list(COST_COLUMNS))
