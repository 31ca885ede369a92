"""What a run's folder still holds where the store beside it does not: numbers are never replaced by fewer."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pandas as pd

from harness.base.errors import HarnessError
from reports import read_items, read_results, unguarded_frame

REBUILT = "rebuilt"  # within a run's folder: a report without all that the run's own had
REBUILT_NOTE = (
    "Built from results.csv and items.csv.gz, as the store that the numbers came from lacks some or all of them: "
    "answers, alignments and training curves may be missing. The run's own report was left as it is."
)


def with_kept(
    folder: Path, results: pd.DataFrame, items: pd.DataFrame, *, failed: bool
) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Results and items of the store, and where it lacks numbers that results.csv has, those of the folder's files.

    Args:
        folder: of the run.
        results, items: what the store gives.
        failed: whether the run's record knows of failures: then a run without any number is what it is.

    Returns:
        Results, items, and whether any came from the files.

    Raises:
        HarnessError: there is no number anywhere, or a file of the folder is damaged.
    """
    fresh, file = _by_key(results), folder / "results.csv"
    if not file.is_file():
        if not failed and all(line["status"] == "failed" for line in fresh.values()):
            raise HarnessError(
                str(folder),
                "no stored result of this run, and no results.csv",
                "the store beside the run's folder, or the files of its report",
                "Run the recipe (again), or copy the folder together with its store.",
            )
        return results, items, False
    try:
        old = _by_key(read_results(file))
        old_items = read_items(folder / "items.csv.gz") if (folder / "items.csv.gz").is_file() else items.iloc[:0]
    except ValueError as error:
        raise HarnessError(
            str(folder), f"a damaged file ({error})", "the files of a report", "Run the recipe again."
        ) from error
    lost = [
        key
        for key, line in old.items()
        if line["status"] == "done" and fresh.get(key, {"status": ""})["status"] != "done"
    ]
    if not lost:
        return results, items, False
    merged = [old[key] if key in set(lost) else fresh[key] for key in dict.fromkeys([*fresh, *lost])]
    of_lost = [key in set(lost) for key in zip(old_items["cell"], old_items["metric"], strict=True)]
    return pd.DataFrame(merged), pd.concat([items, old_items[of_lost]], ignore_index=True), True


def kept_frame(folder: Path, name: str, fresh: pd.DataFrame) -> pd.DataFrame:
    """A CSV of the folder where it has more lines than what the store gives now."""
    file = folder / name
    if not file.is_file():
        return fresh
    old = unguarded_frame(pd.read_csv(file, float_precision="round_trip"))
    return old if len(old) > len(fresh) else fresh


def _by_key(results: pd.DataFrame) -> dict[tuple[str, str], dict[Hashable, object]]:
    """Each line by its cell and metric."""
    return {(line["cell"], line["metric"]): line for line in results.to_dict("records")}
