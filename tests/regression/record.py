"""Records the trajectories of the recipe `smoke` again and prints what moved: ``python -m tests.regression.record``.

Also measures the noise that tolerances must allow, row by row: the largest relative deviation between trainings that
should be the same. ``python -m tests.regression.record --noise``, on a processor of another kind with code that still
makes what is recorded, adds to it what that processor makes of all tasks; the cells stay as they are. To record again
begins without that, so that the other processor has to follow.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.regression import trajectories as t

BATCHINGS = {
    "micro-batches of 1": ("train.micro_batch_size=1",),
    "micro-batches of 4, chunks of 7 rows": ("train.micro_batch_size=4", "train.chunk_rows=7"),
}
OLDER_CPU = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}


def main() -> None:
    """Exit status 1 where something moved by more than the tolerance."""
    torch.set_num_threads(1)
    found: dict[str, t.Trajectory] = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in t.TASKS:
            found |= t.run(t.smoke(Path(folder), task=task))
        noise = noise_of(Path(folder), found)
    before = t.recorded() if t.RECORDED.is_file() else {"cells": {}, "noise": {}}
    moved = [
        deviation
        for cell in dict.fromkeys((*before["cells"], *found))
        for deviation in t.deviations(cell, found.get(cell, {}), before["cells"].get(cell, {}), before["noise"])
        if not deviation.maximum <= 1e-8  # NaN has moved
    ]
    for deviation in sorted(moved, key=lambda one: -one.maximum):
        print("moved too far:" if deviation.too_far else "moved:", deviation)
    t.write_recorded(found, noise)
    print(f"{len(found)} cells recorded, {len({one.cell for one in moved})} of them moved")
    sys.exit(any(deviation.too_far for deviation in moved))


def widen() -> None:
    """Add this processor's deviations from the record to the noise."""
    torch.set_num_threads(1)
    before = t.recorded()
    noise: t.Noise = before["noise"]
    with tempfile.TemporaryDirectory() as folder:
        for task in t.TASKS:
            made = {name: t.of_training(cell) for name, cell in t.run(t.smoke(Path(folder), task=task)).items()}
            print(f"noise, {task} on this processor:", add(noise, made, before["cells"]), flush=True)
    t.write_recorded(before["cells"], noise, before["environment"])


def add(noise: t.Noise, made: dict[str, t.Trajectory], expected: dict[str, t.Trajectory]) -> t.Deviation:
    """Widen the noise to hold what was made beside what should be the same; the largest deviation."""
    found: list[t.Deviation] = []
    for cell, steps in made.items():
        for one in t.deviations(cell, steps, {name: expected[cell][name] for name in steps}):
            if not math.isfinite(one.maximum):
                raise ValueError(f"noise would allow anything: {one}")
            so_far = noise.setdefault(cell.split(" · ")[1], {}).setdefault(one.quantity, [0.0, 0.0])
            new = [max(so_far[0], one.maximum), max(so_far[1], one.mean)]
            so_far[:] = [float(f"{value:.1e}") for value in new]
            found.append(one)
    return max(found, key=lambda one: one.maximum)


def noise_of(folder: Path, found: dict[str, t.Trajectory]) -> t.Noise:
    """Of each row on `TASK` and each quantity of its steps: the largest deviation, and the largest mean."""
    noise: t.Noise = {}
    for variant, cells in _variants(folder):
        print(f"noise, {variant}:", add(noise, cells, found), flush=True)
    return noise


def _variants(folder: Path) -> Iterator[tuple[str, dict[str, t.Trajectory]]]:
    for name, overrides in BATCHINGS.items():
        yield name, trainings(folder, *overrides, sampled=False)
    torch.set_num_threads(2)
    yield "two threads", trainings(folder)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as other:
        made = t.with_two_processes(Path(other))
        yield "two processes", {name: t.of_training(cell) for name, cell in made.items()}
    with tempfile.TemporaryDirectory() as other:
        command = [sys.executable, "-m", "tests.regression.record", other]
        subprocess.run(command, env=os.environ | OLDER_CPU, check=True)
        yield "another instruction set", json.loads((Path(other) / "trainings.json").read_text())


def trainings(folder: Path, *overrides: str, sampled: bool = True) -> dict[str, t.Trajectory]:
    """Every row's training on `TASK`.

    Args:
        sampled: rows whose responses are sampled a micro-batch at a time too.
    """
    runner = t.smoke(folder, *overrides)
    cells = [cell for cell in runner.plan.cells if sampled or not cell.objective.samples]
    return {cell.name: t.trained(runner, cell.student) for cell in cells}


if __name__ == "__main__":
    if sys.argv[1:] == ["--noise"]:
        widen()
    elif len(sys.argv) > 1:  # by `_variants`, for a process of its own
        torch.set_num_threads(1)
        made = trainings(Path(sys.argv[1]))
        (Path(sys.argv[1]) / "trainings.json").write_text(json.dumps(made))
    else:
        main()
