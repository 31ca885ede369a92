"""What makes a run's cells, by `launch.executor`."""

from __future__ import annotations

from harness.cluster.slurm import SlurmRunner
from harness.recipe.launch import Launch
from harness.run.runner import Runner
from harness.run.shared import SharedRunner


def runner_for(launch: Launch) -> type[Runner]:
    """The kind of runner that a recipe asks for."""
    if launch.executor == "slurm":
        return SlurmRunner
    if launch.executor == "ray":
        from harness.cluster.on_ray import RayRunner  # Ray itself is an extra

        return RayRunner
    return SharedRunner if launch.workers > 1 else Runner
