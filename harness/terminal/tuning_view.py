"""What a tuning found, as a table."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Group
from rich.text import Text

from harness.recipe.lock import Lock, edges_line
from harness.terminal.columns import Listing


def tuning_view(lock: Lock, path: Path) -> Group:
    """Every setting that was tried, and which one each row has."""
    measure = "dev bits/byte" if lock.metric == "bits_per_byte" else "dev score, %"
    table = Listing("row", "setting", measure, "", title=f"{lock.recipe}: {lock.budget} settings for each row")
    for row, tuned in lock.rows.items():
        for number, trial in enumerate(tuned.trials):
            said = ", ".join(f"{name} {value:g}" for name, value in trial.setting.items())
            mean = math.fsum(trial.dev.values()) / len(trial.dev) if trial.dev and not trial.failed else math.nan
            found = trial.failed or f"{mean:.4f}"
            own = " (the recipe's own)" if number == 0 else ""
            chosen = Text("chosen", "green") if number == tuned.winner else Text("")
            table.add_row(row, said + own, found, chosen)
    lines = [
        f"Seed {lock.seed}, {100 * lock.share:g} % of the steps, {lock.dev_rows} training rows of each task held out; "
        "no test set was read.",
        *filter(None, [edges_line(lock)]),
        f"Written to {path}: `harness run` of the recipe takes these settings.",
    ]
    return Group(table, Text("\n".join(lines)))
