"""Costs of a plan as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.text import Text

from harness.base.errors import HarnessError
from harness.base.files import gigabytes
from harness.plan.costs.devices import DEVICES, GIB, LAYER_SECONDS, UTILISATION, Cost, Device
from harness.plan.costs.measured import Measured, costs_here
from harness.plan.costs.stages import Coster
from harness.plan.jobs import jobs_of, wall_seconds
from harness.plan.stages import Plan, Stage
from harness.store.store import Store
from harness.terminal.columns import Listing

# --- As a table -------------------------------------------------------------------------------------------------------


def costs_table(plan: Plan, store: Store, demanded: set[str]) -> Group | Text:
    """What the stages that would run cost, by what they are; what does not fit, and what would make it fit.

    Args:
        demanded: identities of the stages that would run.
    """
    try:
        coster = Coster(plan)
    except HarnessError as error:
        return Text(f"No estimate of costs: {error}", "dim")
    stages = [stage for stage in plan.stages() if stage.identity in demanded]
    costs = {stage.identity: coster.cost(stage) for stage in stages}
    by_title: dict[str, list[Stage]] = {}
    for stage in stages:
        by_title.setdefault(_title(stage), []).append(stage)
    here = costs_here(stages, costs, Measured(store))
    columns = ["n", "operations", "GiB", "disk", *(f"h, {device.name}" for device in DEVICES)]
    columns += ["h, this machine"] if here else []
    table = Listing("stages", *columns, title="Estimated costs of what would run", numbers=columns)
    for title, group in by_title.items():
        memory = max(costs[stage.identity].memory for stage in group)
        table.add_row(
            title,
            str(len(group)),
            _operations(_total(costs, group, "flops")),
            f"{memory / GIB:.1f}",
            gigabytes(_total(costs, group, "disk")),
            *(f"{_hours(costs, group, device):.2f}" if memory <= device.memory else "no room" for device in DEVICES),
            *([f"{sum(here[stage.identity] for stage in group) / 3600:.2f}"] if here else []),
        )
    return Group(table, *_summary(plan, coster, stages, costs), *_by_workers(plan, store, costs))


def _summary(plan: Plan, coster: Coster, stages: Sequence[Stage], costs: Mapping[str, Cost]) -> list[Text]:
    lines = []
    for name in plan.tasks:
        group = [stage for stage in stages if stage.task == name]
        hours = ", ".join(f"{_time_or_misfit(costs, group, device)} on {device.name}" for device in DEVICES)
        rows = gigabytes(_total(costs, [stage for stage in group if stage.kind == "rows"], "disk"))
        lines.append(
            f"{name}: {_operations(_total(costs, group, 'flops'))}; {hours}, one GPU, one after the other; "
            f"{rows} of teacher rows."
        )
    disk = {kind: _total(costs, [s for s in stages if s.kind == kind], "disk") for kind in ("rows", "teacher")}
    lines.append(
        f"Disk: {gigabytes(disk['rows'])} of teacher rows, {gigabytes(disk['teacher'])} of teachers, "
        f"{gigabytes(_total(costs, stages, 'disk'))} in all; checkpoints of what trains come on top."
    )
    lines += _in_pieces(plan, coster.gpus)
    lines += _misfits(coster, stages, costs)
    lines.append(
        f"Assumed: {100 * UTILISATION:.0f} % of the dense peak in matrix products, {1e3 * LAYER_SECONDS:g} ms a layer "
        "and pass, generated tokens as an H100 took them in slots, answers as long as they may get, tokens from bytes. "
        "Expect a factor of two either way; hours of a CPU are not guessed. Run a few steps (train.steps=20) on your "
        "device, and the plan goes by what they took."
    )
    return [Text(line) for line in lines]


def _by_workers(plan: Plan, store: Store, costs: Mapping[str, Cost]) -> list[Text]:
    """How long the processes take that the recipe asks for."""
    count = plan.recipe.launch.workers
    if count == 1 or plan.ends_alone:
        return []
    jobs = jobs_of(plan, store)

    def hours(device: Device) -> float:
        return wall_seconds(jobs, count, lambda job: sum(costs[made].seconds(device) for made in job.makes)) / 3600

    fitting = [device for device in DEVICES if all(cost.memory <= device.memory for cost in costs.values())]
    times = ", ".join(f"{_in_words(hours(device))} on {device.name}" for device in fitting)
    return [
        Text(f"launch.workers: {count} processes at a time, each on a GPU of its own: {times or 'no room'} in all.")
    ]


def _misfits(coster: Coster, stages: Sequence[Stage], costs: Mapping[str, Cost]) -> list[str]:
    lines = []
    for device in DEVICES:
        found: dict[str, list[str]] = {}
        largest: dict[str, Stage] = {}
        for stage in stages:
            if costs[stage.identity].memory > device.memory:
                title = _title(stage)
                if title not in largest or costs[stage.identity].memory > costs[largest[title].identity].memory:
                    largest[title] = stage
        for title, stage in largest.items():
            found.setdefault(coster.remedy(stage, device), []).append(title)
        for remedy, titles in found.items():
            end = (
                f"fits with {remedy}" if remedy else "no setting makes it fit on one: a larger device, or another model"
            )
            lines.append(f"No room on {device.name}: {', '.join(titles)}; {end}.")
        lines += _to_share(coster, largest, device)
    return lines


def _to_share(coster: Coster, misfits: Mapping[str, Stage], device: Device) -> list[str]:
    """Trainings that no setting but other weights makes fit on one device: how they fit on several."""
    found: dict[tuple[str, int], list[str]] = {}
    for title, stage in misfits.items():
        remedy = coster.remedy(stage, device)
        if (not remedy or ".lora=" in remedy) and (shared := coster.shared(stage, device)) is not None:
            found.setdefault(shared, []).append(title)
    return [
        f"Larger than one {device.name}: {', '.join(titles)}; all weights can be trained in pieces on {gpus} of them, "
        f"with {settings} under torchrun --nproc-per-node {gpus}."
        for (settings, gpus), titles in found.items()
    ]


def _in_pieces(plan: Plan, gpus: int) -> list[str]:
    """On how many GPUs a plan's sharded trainings are reckoned."""
    sections = {s.section: s.training for s in plan.stages() if s.training is not None and s.training.shard}
    return [f"In pieces on {gpus} GPUs (shard): {', '.join(sections)}; GiB of each of them."] if sections else []


def _title(stage: Stage) -> str:
    named = {
        "teacher": f"teacher, {stage.role}",
        "warm_start": "warm start",
        "rows": f"rows of teacher, {stage.role}",
        "said": f"training prompts answered by teacher, {stage.role}",
        "student": stage.objective.name if stage.objective else "",
    }
    return named.get(stage.kind) or f"{stage.kind} of {f'teacher, {stage.role}' if stage.role else 'students'}"


def _total(costs: Mapping[str, Cost], stages: Sequence[Stage], field: str) -> float:
    return sum(float(getattr(costs[stage.identity], field)) for stage in stages)


def _operations(flops: float) -> str:
    """In words, to three digits: PFLOP, below one TFLOP."""
    if flops >= 1e15:
        return f"{flops / 1e15:,.0f} PFLOP" if flops >= 1e17 else f"{flops / 1e15:.3g} PFLOP"
    return f"{flops / 1e12:.0f} TFLOP" if flops >= 1e14 else f"{flops / 1e12:.3g} TFLOP"


def _time_or_misfit(costs: Mapping[str, Cost], stages: Sequence[Stage], device: Device) -> str:
    """Hours of all stages together, minutes below one; a total that nobody can run there is none."""
    if any(costs[stage.identity].memory > device.memory for stage in stages):
        return "does not fit"
    return _in_words(_hours(costs, stages, device))


def _in_words(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if 60 * hours >= 1 else "< 1 min"


def _hours(costs: Mapping[str, Cost], stages: Sequence[Stage], device: Device) -> float:
    return sum(costs[stage.identity].seconds(device) for stage in stages) / 3600
