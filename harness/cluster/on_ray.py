"""A plan whose jobs are tasks of Ray: it decides where and when each runs, and tries again what a lost node had."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from harness.base.errors import HarnessError
from harness.base.files import Json
from harness.base.progress import Silent
from harness.cluster.order import Order, Told, check_cluster, do
from harness.cluster.runner import ClusterRunner
from harness.plan.costs.devices import GIB
from harness.plan.costs.jobs import NeedsOfJobs
from harness.plan.jobs import Job, failed
from harness.recipe.launch import Launch
from harness.run.leaders import Leaders

HOW = "Install it: pip install -e '.[ray]'."


class RayRunner(ClusterRunner):
    """Has a plan's stages and cells made by Ray's tasks."""

    def run(self, seconds: float | None = None) -> None:
        if all(self.demand.find(end) is not None for end in self.plan.ends):
            super().run(seconds)
            return
        self._ray = _installed()
        with _connected(self._ray, self.plan.recipe.launch):
            asked = self.plan.recipe.launch.job.gpus
            self._gpus = int(self._ray.cluster_resources().get("GPU", 0) > 0) if asked is None else asked
            check_cluster(self.plan, seconds, self.ranks.world, self._gpus)
            super().run()

    def _hand_out(self, jobs: list[Job]) -> None:
        leaders = Leaders(self.plan, self.store, self.progress)
        waiting = self._submitted(jobs)
        self.progress.begin("jobs of the cluster", len(jobs))
        while waiting:
            (ended, *_), _ = self._ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ended)
            self._hear(job, ended)
            if job.place is not None:
                leaders.look(self.plan.evaluated[job.place])
            self.progress.advance(len(jobs) - len(waiting))
        self.progress.finish()

    # Any: references of Ray, which is not there where types are checked
    def _submitted(self, jobs: list[Job]) -> dict[Any, Job]:
        """All jobs as tasks; those that a task reads are among its arguments, so that Ray has it wait for them."""
        launch = self.plan.recipe.launch
        needs = NeedsOfJobs(self.plan, self.store, self._gpus)
        order = self._ray.put(asdict(Order.of(self.plan, self.store.root.parent, self.unsafe)))
        makers: dict[str, Any] = {}
        tasks: dict[Any, Job] = {}
        for job in jobs:
            gibibytes = launch.job.memory or needs.of([job]).gibibytes
            asked = {"CPU": float(launch.job.cpus), "GPU": float(self._gpus), "memory": (gibibytes or 0) * GIB}
            _check_room(self._ray, job, asked)
            task = self._ray.remote(done_by_ray).options(
                name=job.name,
                num_cpus=asked["CPU"],
                num_gpus=asked["GPU"],
                memory=asked["memory"] or None,
                max_retries=launch.ray.retries,
                scheduling_strategy="SPREAD",
            )
            before = [makers[identity] for identity in sorted(job.needs) if identity in makers]
            ended = task.remote(order, job, *before)
            makers |= dict.fromkeys(job.ends, ended)
            tasks[ended] = job
        return tasks

    # Any: a reference of Ray
    def _hear(self, job: Job, ended: Any) -> None:
        """What a task told; or why Ray has given it up."""
        try:
            said = self._ray.get(ended)
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0] if lines else 'its process or node was lost'}"
            self.failures.update(failed(job, reason))
            self.progress.message(f"[red]failed[/] {escape(f'{job.name}: {reason}')}")
            return
        if "refused" in said:
            raise HarnessError(*said["refused"])
        told = Told.of(said)
        self._told = (*self._told, told)
        self.failures.update(told.failures)
        for line in said["messages"]:
            self.progress.message(line)
        self.progress.message(f"{escape(job.name)}: done on {said['node']}")


class _Kept(Silent):
    """A progress that keeps messages, to be told elsewhere."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def done_by_ray(order: Mapping[str, Json], job: Job, *before: Mapping[str, Json]) -> dict[str, Json]:
    """A task: does a job, and gives what is told of it.

    Args:
        before: what the tasks have given whose stages it reads.
    """
    import ray

    given, kept = Order(**order), _Kept()
    known = {identity: failure for one in before for identity, failure in Told.of(one).failures.items()}
    try:
        told = do(given, given.plan(), job, known, kept)
    except HarnessError as error:
        return {"refused": [error.where, error.found, error.expected, error.fix], "failures": {}}
    where = f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
    return told.plain() | {"messages": kept.messages, "node": where}


# Any: a module that is not there where types are checked
def _installed() -> Any:
    """Ray, which tells nobody that it is used.

    Raises:
        HarnessError: it is not there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise HarnessError("launch.executor", f"ray, which can't be imported ({error})", "Ray", HOW) from error
    return ray


@contextlib.contextmanager
def _connected(ray: Any, launch: Launch) -> Iterator[None]:
    """A block of a program that belongs to a cluster; one that does already stays in it."""
    if ray.is_initialized():
        yield
        return
    heeded = signal.getsignal(signal.SIGTERM)
    own = {"include_dashboard": False} if launch.ray.address == "local" else {}
    try:
        ray.init(launch.ray.address, log_to_driver=False, logging_level=logging.WARNING, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise HarnessError(
            "launch.ray.address",
            f"{launch.ray.address!r} ({lines[0] if lines else type(error).__name__})",
            "the address of a cluster that runs",
            "Start one: ray start --head --include-dashboard=false; or launch.ray.address=local.",
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, heeded)  # Ray puts its own there, which ends the program without a word
        yield
    finally:
        ray.shutdown()


def _check_room(ray: Any, job: Job, asked: Mapping[str, float]) -> None:
    """Whether some node has room: Ray would wait for one for ever.

    Raises:
        HarnessError: none has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0.0) >= amount for name, amount in asked.items()) for node in nodes):
        wanted = f"{asked['CPU']:g} cores, {asked['GPU']:g} GPUs, {asked['memory'] / GIB:g} GiB"
        there = "; ".join(
            f"{node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} GPUs, {node.get('memory', 0) / GIB:.0f} GiB"
            for node in nodes
        )
        raise HarnessError(
            "launch.job", f"{wanted} for {job.name}", f"what a node has ({there})", "Set launch.job.cpus or .memory."
        )
