"""What trainings cost on the machine that ran them, by row of the table: seconds, tokens, memory, hours of a GPU."""

import math
from typing import Any

import pandas as pd

COST_COLUMNS = ("row", "task", "seed", "seconds", "tokens", "sampled", "gpus", "gpu_gib", "process_gib", "device")
"""One line per trained student. ``seconds`` of its training, without loading and storing; ``tokens`` of responses that
it trained on, and those of them that it ``sampled`` itself; ``gpus`` it ran on (0: the CPU); ``gpu_gib``,
``process_gib``: peak memory of one GPU and of the process, which earlier stages of it may have set. NaN where a number
is not known."""
PARTS = ("seconds", "tokens_per_second", "gpu_hours", "gpu_gib", "process_gib", "device")
EXPLAINED = (
    "Students' trainings, without loading, storing and what all rows share (teachers and their rows); wall-clock times "
    "of a machine that may have had other work. Seconds, and tokens that the student sampled: means over seeds. "
    "GPU-hours: all seeds. Memory: the most of a seed; that of a process may have been set by an earlier stage."
)


def empty_costs() -> pd.DataFrame:
    return pd.DataFrame(columns=list(COST_COLUMNS))


def by_row(costs: pd.DataFrame) -> pd.DataFrame:
    """`row`, `task`, `seeds`, `PARTS` and `sampled_tokens` of each row of the table and task, in their order."""
    if costs.empty:
        return pd.DataFrame(columns=["row", "task", "seeds", *PARTS, "sampled_tokens"])
    lines = [
        {"row": row, "task": task, "seeds": len(part), **_summed(part)}
        for (row, task), part in costs.groupby(["row", "task"], sort=False)
    ]
    return pd.DataFrame(lines)


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """`by_row` as a reader sees it: without what is not known of any row, nor a device that all rows share."""
    frame = by_row(costs).dropna(axis="columns", how="all")
    if "device" in frame and frame["device"].nunique() == 1:
        frame = frame.drop(columns="device")
    frame = frame.rename(
        columns={
            "tokens_per_second": "tokens/s",
            "sampled_tokens": "sampled tokens",
            "gpu_hours": "GPU-hours",
            "gpu_gib": "GPU memory, GiB",
            "process_gib": "process memory, GiB",
        }
    )
    return frame[["task", *(name for name in frame if name != "task")]] if not frame.empty else frame


def shared_device(costs: pd.DataFrame) -> str:
    """The device that all trainings ran on, "" where they differ or it is not known."""
    devices = [device for device in dict.fromkeys(costs["device"]) if isinstance(device, str)]
    return devices[0] if len(devices) == 1 else ""


def _summed(part: pd.DataFrame) -> dict[str, Any]:
    numbers = part.drop(columns=["row", "task", "device"]).astype("float64")
    devices = dict.fromkeys(device for device in part["device"] if isinstance(device, str) and device)
    return {
        "seconds": numbers["seconds"].mean(),
        "tokens_per_second": numbers["tokens"].sum(min_count=len(part)) / numbers["seconds"].sum(),
        # runs that were stored before it was counted have no such column
        "sampled_tokens": numbers["sampled"].mean() if "sampled" in numbers else math.nan,
        "gpu_hours": (numbers["seconds"] * numbers["gpus"]).sum(min_count=len(part)) / 3600,
        "gpu_gib": numbers["gpu_gib"].max(),
        "process_gib": numbers["process_gib"].max(),
        "device": ", ".join(devices) or None,
    }
