"""What steps of a training spend their time on: torch's trace, the longest operations, gaps and waits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import profiler
from torch.profiler import ProfilerActivity

from harness.base.device import device
from harness.base.errors import HarnessError
from harness.base.profiled import Operation, Profiled
from harness.base.progress import Progress, Silent, StageProgress
from harness.plan.builder import make_plan
from harness.plan.stages import Cell, stage_line
from harness.recipe.schema import Recipe
from harness.run.preflight import preflight
from harness.run.runner import Runner
from harness.run.trainings import train_student
from harness.store.store import Store
from harness.training.late_log import reading_at_once

WARM_UP = 3
"""Steps before those that are traced: they load, compile and set up what later ones find ready."""

LONGEST = 10

WAITS = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
"""Where the host waits for the device: a number that is read, and whatever asks for all to be done."""


def profile(recipe: Recipe, method: str, *, steps: int = 5, folder: Path | str = "profile") -> Profiled:
    """Trace some steps of the training of one of a recipe's methods, on the first task that has it; stores no stage.

    Nothing is trained before: teacher and student are as they were published, which costs a step the same.

    Args:
        steps: that are traced, behind `WARM_UP` others.
        folder: for torch's trace.

    Raises:
        HarnessError: the recipe has no such method, or anything that a run would find bad.
    """
    changes = {name: getattr(recipe, name).model_copy(update={"steps": 0}) for name in ("teacher", "warm_start")}
    train = recipe.train.model_copy(update={"steps": WARM_UP + steps, "checkpoint_every": None, "report_to": ()})
    plan = make_plan(recipe.model_copy(update={**changes, "train": train}))
    cell = next((cell for cell in plan.cells if cell.objective.name == method), None)
    if cell is None:
        raise HarnessError("method", repr(method), ", ".join(dict.fromkeys(c.objective.name for c in plan.cells)))
    with tempfile.TemporaryDirectory(prefix="harness-profile-") as work:
        runner = Runner(replace(plan, cells=(cell,)), Store(Path(work)), Path(work) / "run", Silent())
        preflight(runner.plan, runner.bench, runner.progress, unsafe=False)
        for needed in cell.student.inputs.values():
            runner.demand.need(needed)
        runner.makers.free(cell.student)
        Path(folder).mkdir(parents=True, exist_ok=True)
        return _traced(cell, runner, steps, Path(folder) / f"{_as_file(cell)}.json")


def _as_file(cell: Cell) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in f"{cell.task} {cell.objective.name}")


class _Ticks(StageProgress):
    """Tells the profiler that a step is over."""

    # Any: torch's profiler
    def __init__(self, progress: Progress, line: str, prof: Any, ends: list[float]) -> None:
        super().__init__(progress, line)
        object.__setattr__(self, "_told", (prof, ends))

    def advance(self, done: int, loss: float | None = None) -> None:
        prof, ends = self._told  # type: ignore[attr-defined]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        prof.step()
        super().advance(done, loss)


def _traced(cell: Cell, runner: Runner, steps: int, trace: Path) -> Profiled:
    gpu = device().type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    ends: list[float] = []
    turns = profiler.schedule(wait=WARM_UP - 1, warmup=1, active=steps)
    with profiler.profile(activities=activities, schedule=turns) as prof:
        told = _Ticks(runner.demand.progress, stage_line(cell.student), prof, ends)
        with reading_at_once():
            train_student(cell.student, runner.makers.tools, runner.makers.lessons, told)
    runner.demand.progress.finish()
    prof.export_chrome_trace(str(trace))
    seconds = ends[WARM_UP + steps - 1] - ends[WARM_UP - 1]
    kernels = sorted(
        (one.time_range.start, one.time_range.end)
        for one in prof.events()
        if one.device_type.name == "CUDA" and not one.name.startswith("ProfilerStep")
    )
    busy, gaps = _busy(kernels)
    named = [one for one in prof.key_averages() if not one.key.startswith("ProfilerStep")]
    of = [
        (one.key, one.count, (one.self_device_time_total if gpu else one.self_cpu_time_total) / 1e6)
        for one in named
        if (one.device_type.name == "CUDA") is gpu
    ]
    whole = sum(took for *_, took in of)
    longest = [Operation(*one, one[2] / whole if whole else 0.0) for one in sorted(of, key=lambda one: -one[2])]
    waits = {one.key: (one.count, one.cpu_time_total / 1e6) for one in named if one.key in WAITS}
    title, name = stage_line(cell.student), torch.cuda.get_device_name() if gpu else "CPU"
    return Profiled(title, name, steps, seconds, busy if gpu else whole, gaps, waits, tuple(longest[:LONGEST]), trace)


def _busy(kernels: Sequence[tuple[float, float]]) -> tuple[float, tuple[int, float]]:
    """Seconds in which some kernel ran, and the gaps between: how many, and their seconds.

    Args:
        kernels: begins and ends in microseconds, in the order of their begins.
    """
    busy = idle = 0.0
    gaps, until = 0, None
    for begin, end in kernels:
        if until is not None and begin > until:
            gaps, idle = gaps + 1, idle + begin - until
        busy += max(0.0, end - (begin if until is None else max(begin, until)))
        until = end if until is None else max(until, end)
    return busy / 1e6, (gaps, idle / 1e6)
