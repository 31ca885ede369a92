"""What another machine must know to do jobs of a run, and what it tells afterwards: plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.markup import escape

from harness.base.device import compute_dtype
from harness.base.errors import HarnessError
from harness.base.files import Json
from harness.base.heard_warnings import hear_warnings
from harness.base.identity import environment
from harness.base.progress import Progress
from harness.plan.builder import make_plan
from harness.plan.jobs import Job, failed
from harness.plan.stages import Plan, with_inputs
from harness.recipe.load import recipe_from
from harness.results.record import run_folder
from harness.run.runner import Runner
from harness.store.artefacts import Failure
from harness.store.store import Store
from harness.tasks import tasks
from methods.base import registered


@dataclass(frozen=True)
class Order:
    """A run whose jobs other machines do. They plan it anew, which shows whether they have the same code and data.

    Attributes:
        recipe: plain values, every default included.
        identity: of the plan.
        runs: absolute path of the folder of results, which all machines see.
        unsafe: whether generated code may run without a sandbox.
    """

    recipe: Mapping[str, Json]
    identity: str
    runs: str
    unsafe: bool

    @classmethod
    def of(cls, plan: Plan, runs: Path, unsafe: bool) -> Order:
        """That of a plan."""
        return cls(plan.recipe.model_dump(mode="json"), plan.identity, str(runs.absolute()), unsafe)

    def plan(self) -> Plan:
        """The plan, made on this machine.

        Raises:
            HarnessError: it means something else here than where the order was given.
        """
        plan = make_plan(recipe_from(str(self.recipe["name"]), dict(self.recipe)))
        if plan.identity != self.identity:
            raise HarnessError(
                "plan",
                "other stages than where the run was started",
                "the same code, libraries, models and data on all machines",
                "`harness plan` on both says what differs. What was changed since? Start the run again.",
            )
        return plan


@dataclass(frozen=True)
class Told:
    """What a machine tells of its job.

    Attributes:
        failures: by the identity of the stage.
        warnings: that were heard.
        environment: where it was done.
    """

    failures: Mapping[str, Failure]
    warnings: Sequence[str] = ()
    environment: Mapping[str, Json] = field(default_factory=dict)

    def plain(self) -> dict[str, Json]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Json]) -> Told:
        """From what :meth:`plain` gave."""
        failures = {identity: Failure(**failure) for identity, failure in values["failures"].items()}
        return cls(failures, tuple(values["warnings"]), values["environment"])


def environment_of(told: Iterable[Told]) -> Mapping[str, Json]:
    """Where a run's cells were made: that of the first machine that said so; else this one."""
    return next((one.environment for one in told if one.environment), environment())


def do(order: Order, plan: Plan, job: Job, known: Mapping[str, Failure], progress: Progress) -> Told:
    """Do a job of an order's plan on this machine.

    Args:
        known: failures of other jobs.

    Returns:
        All that was told; its failures are those that are known now.

    Raises:
        HarnessError: bad input.
    """
    store = Store(Path(order.runs))
    if lost := _lost(plan, store, job, known):
        return Told(failed(job, f"what it reads was not made: {', '.join(lost)}"))
    with hear_warnings(lambda text: progress.message(f"[yellow]{escape(text)}[/]")) as heard:
        tasks(), registered()  # a plug-in that can't be used is said in every run
        runner = Runner(plan, store, run_folder(Path(order.runs), plan), progress, order.unsafe)
        runner.failures.update(known)
        with store.in_use():
            runner.make(job)
    return Told(dict(runner.failures), heard, environment())


def _lost(plan: Plan, store: Store, job: Job, known: Mapping[str, Failure]) -> list[str]:
    """What a job reads and nobody made or failed at: the process died, and would die at it again."""
    needed = [stage for stage in plan.stages() if stage.identity in job.needs]
    failing = {one.identity for stage in needed for one in with_inputs(stage)} & known.keys()
    missing = [stage for stage in needed if store.read_manifest(stage.kind, stage.identity) is None]
    return [] if failing else [stage.title for stage in missing]


def check_cluster(plan: Plan, seconds: float | None, processes: int, gpus: int) -> None:
    """Whether a cluster can make a plan.

    Args:
        seconds: that the run has.
        processes: that a launcher has started.
        gpus: of a job.

    Raises:
        HarnessError: it is asked for beside something that one machine does, or other machines would plan otherwise.
    """
    launch = plan.recipe.launch
    found = f"{launch.executor}, beside"
    if processes > 1:
        raise HarnessError("launch.executor", f"{found} a launcher of {processes} processes", "one or the other")
    if launch.workers > 1:
        raise HarnessError("launch.executor", f"{found} launch.workers={launch.workers}", "one or the other")
    if seconds is not None:
        raise HarnessError("launch.executor", f"{found} --stop-after", "one or the other", "A cluster has its limits.")
    if plan.ends_alone:
        raise HarnessError("launch.executor", f"{found} stages={list(plan.recipe.stages)}", "local, for stages alone")
    sections = {name: getattr(plan.recipe, name).precision for name in ("teacher", "warm_start", "train")}
    open_ones = [name for name, precision in sections.items() if precision == "auto"]
    if gpus and open_ones and compute_dtype("auto") != "bfloat16":
        said = " ".join(f"{name}.precision=bfloat16" for name in open_ones)
        raise HarnessError(
            f"{open_ones[0]}.precision",
            "auto, which is float32 on this machine and something else on a GPU",
            "one precision on all machines",
            f"Say which: {said}; or launch.job.gpus=0, for jobs on CPUs.",
        )
