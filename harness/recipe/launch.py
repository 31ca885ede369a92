"""How a run uses machines: a recipe's `launch`. Nothing of it is part of any stage's identity."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from harness.base.errors import HarnessError, suggest
from harness.base.schema import Strict
from harness.base.stopping import seconds_of

SLURM_OPTIONS = (
    "clusters",
    "comment",
    "constraint",
    "cores-per-socket",
    "deadline",
    "exclude",
    "exclusive",
    "gres-flags",
    "hint",
    "licenses",
    "mail-type",
    "mem-bind",
    "mem-per-gpu",
    "nice",
    "nodelist",
    "prefer",
    "priority",
    "qos",
    "reservation",
    "switches",
    "tmp",
)
"""Of sbatch, what a recipe may set: nothing that names a file to write or read, or sets the environment of a job."""

_PLAIN = r"[\w.,:@%+/=*&|()\[\]-]{1,200}"


def _as_one_word(text: str) -> str:
    """It stands in a line of a script, which must end where we end it."""
    if not re.fullmatch(_PLAIN, text, re.ASCII):
        raise ValueError("expected one word of letters, digits and . , : @ % + / = * & | ( ) [ ] _ -")
    return text


def _as_time(text: str) -> str:
    try:
        seconds_of(text)
    except HarnessError:
        raise ValueError("expected a time such as 90m, 4h or 1h30m") from None
    return text


def _as_options(options: Mapping[str, str | int | bool]) -> Mapping[str, str | int | bool]:
    for name, value in options.items():
        if name not in SLURM_OPTIONS:
            hint = suggest(name, SLURM_OPTIONS) or f"There are {', '.join(SLURM_OPTIONS)}."
            raise ValueError(f"unknown option {name!r:.60}. {hint}")
        if isinstance(value, str):
            try:
                _as_one_word(value)
            except ValueError as error:
                raise ValueError(f"of {name}, {error}") from None
    return options


Word = Annotated[str, AfterValidator(_as_one_word)]
TimeLimit = Annotated[str, AfterValidator(_as_time)]


class JobResources(Strict):
    """What a cluster gives to each job: one stage that others read, or one cell."""

    gpus: int | None = Field(
        None, ge=0, le=1, description="(speed) 1 or 0; null: 1, but 0 on a Ray cluster that has no GPUs"
    )
    cpus: int = Field(4, ge=1, le=1024, description="(speed) cores")
    memory: int | None = Field(
        None, ge=1, le=10**5, description="GiB of main memory; null: 4, and what the plan needs on a device"
    )
    time: TimeLimit | None = Field(
        None,
        description="Slurm's limit, such as 4h; null: 15 minutes, and twice what the plan estimates for the slowest "
        "GPU that has room, or measured on CPUs; the partition's where it can't say",
    )

    @property
    def minutes(self) -> int | None:
        """The limit, in whole minutes."""
        return None if self.time is None else math.ceil(seconds_of(self.time) / 60)


class Slurm(Strict):
    """Jobs of Slurm, where `launch.executor` is slurm."""

    submit: bool = Field(True, description="submit them; false: write the scripts, and `submit.sh` does it")
    partition: Word | None = Field(None, description="to run in; null: the cluster's default")
    account: Word | None = Field(None, description="to charge; null: yours by default")
    gpu_type: Word | None = Field(None, description="as in --gres=gpu:a100:1; null: any")
    at_once: int | None = Field(None, ge=1, le=10**5, description="the most jobs of an array at a time; null: any")
    grace: int = Field(120, ge=10, le=3600, description="seconds before the time is over at which a job is stopped")
    requeues: int = Field(
        20, ge=0, le=1000, description="how often a job whose time is over is queued again, to go on where it stopped"
    )
    options: Annotated[Mapping[str, str | int | bool], AfterValidator(_as_options)] = Field(
        {}, description="further options of sbatch, such as {qos: high, constraint: a100}; true: one without a value"
    )


class RayCluster(Strict):
    """Tasks of Ray, where `launch.executor` is ray."""

    address: Word = Field("auto", description="of the cluster; auto: the one of this node; local: one of this machine")
    retries: int = Field(3, ge=0, le=100, description="how often a task is tried again whose process or node is lost")


class Launch(Strict):
    """How a run uses machines; no part of any stage's identity."""

    executor: Literal["local", "slurm", "ray"] = Field(
        "local", description="(speed) what makes cells: processes of this machine, jobs of Slurm, or tasks of Ray"
    )
    workers: int = Field(
        1,
        ge=1,
        le=1024,
        description="(speed) processes that make cells at the same time, each on a GPU of its own where there are GPUs",
    )
    job: JobResources = JobResources()
    slurm: Slurm = Slurm()
    ray: RayCluster = RayCluster()
