"""Records the trajectories of the recipe `smoke` again and prints what moved: ``python -m tests.regression.record``.

Also measures the noise that tolerances must allow: the largest relative deviation between trainings of one row that
should be the same.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from tests.regression import trajectories as t

NOISY = ("uld", "gold", "dual(fkd, cdm)")
VARIANTS = {
    "micro-batches of 1": ("train.micro_batch_size=1",),
    "micro-batches of 4, chunks of 7 rows": ("train.micro_batch_size=4", "train.chunk_rows=7"),
    "two threads": (),
}


def main() -> None:
    """Exit status 1 where something moved by more than the tolerance."""
    with tempfile.TemporaryDirectory() as folder:
        found = t.run(t.smoke(Path(folder)))
        noise = {name: _noise(Path(folder), found, name) for name in VARIANTS}
    before = t.recorded()["cells"] if t.RECORDED.is_file() else {}
    moved = [
        deviation
        for cell in dict.fromkeys((*before, *found))
        for deviation in t.deviations(cell, found.get(cell, {}), before.get(cell, {}))
        if deviation.maximum > 1e-8
    ]
    for deviation in sorted(moved, key=lambda one: -one.maximum):
        print("moved too far:" if deviation.too_far else "moved:", deviation)
    for name, largest in noise.items():
        print(f"noise, {name}: {largest:.1e}")
    t.write_recorded(found, noise)
    print(f"{len(found)} cells recorded, {len({one.cell for one in moved})} of them moved")
    sys.exit(any(deviation.too_far for deviation in moved))


def _noise(folder: Path, found: dict[str, t.Trajectory], variant: str) -> float:
    """The largest deviation of any training of `NOISY`."""
    torch.set_num_threads(2 if variant == "two threads" else 1)
    runner = t.smoke(folder, *VARIANTS[variant])
    cells = [cell for cell in runner.plan.cells if cell.objective.name in NOISY]
    again = {cell.name: t.trained(runner, cell.student) for cell in cells}
    return max(
        deviation.maximum
        for cell, steps in again.items()
        for deviation in t.deviations(cell, steps, {name: found[cell][name] for name in steps})
    )


if __name__ == "__main__":
    main()
