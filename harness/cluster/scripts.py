"""The scripts that Slurm is given: text of them, from what a recipe and a plan say."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.plan.costs.jobs import JobNeeds
from harness.recipe.launch import JobResources, Slurm

SUBMIT = "submit.sh"
SUBMITTED = "submitted"
"""What :data:`SUBMIT` writes when all is queued: the numbers of the jobs, a line each."""
COLLECT = "collect"
LOGS = "logs"
STOPPED = 143  # exit code of a process that SIGTERM stopped


@dataclass(frozen=True)
class Step:
    """Jobs of one array.

    Attributes:
        name: such as "shared-1" or "cells-2".
        count: of its jobs.
        after: steps that must have ended before.
        needs: of each job.
    """

    name: str
    count: int
    after: tuple[str, ...]
    needs: JobNeeds


def array_script(step: Step, folder: Path, asked: JobResources, slurm: Slurm) -> str:
    """The script of a step: its jobs are numbered from 0.

    Args:
        folder: of the scripts.
        asked: what a recipe says of the resources.
        slurm: what it says of Slurm.
    """
    at_once = f"%{slurm.at_once}" if slurm.at_once else ""
    lines = [f"array=0-{step.count - 1}{at_once}", *_resources(step.needs, asked, slurm)]
    lines += ["requeue", "open-mode=append", f"signal=TERM@{slurm.grace}", *_where(slurm)]
    return "\n".join(
        [
            *_head(step.name, lines),
            _call(folder, step.name, '"$SLURM_ARRAY_TASK_ID"'),
            "code=$?",
            f"# {STOPPED}: stopped by the signal above, before its time was over. It goes on from its last checkpoint.",
            f'if [ "$code" -eq {STOPPED} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {slurm.requeues} ]; then',
            '    exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
            "fi",
            'exit "$code"',
            "",
        ]
    )


def collecting_script(folder: Path, slurm: Slurm) -> str:
    """The script of the last job, which needs no GPU: results of all become the run's table."""
    lines = ["ntasks=1", "cpus-per-task=1", "mem=4G", "requeue", "open-mode=append", *_where(slurm)]
    return "\n".join([*_head(COLLECT, lines), _call(folder, COLLECT), ""])


def submit_script(steps: Sequence[Step], folder: Path, title: str) -> str:
    """The script that submits all: each step waits until those before have ended, well or not.

    A teacher that fails is a reason in a few rows; "afterok" would keep all other cells from starting, too.
    """
    logs = str(folder / LOGS).replace("%", "%%")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", title)[:60]
    place = shlex.quote(str(Path.cwd()))
    calls = []
    for step in steps:
        waits = "".join(f' "${_variable(other)}"' for other in step.after)
        calls.append(f"submit {step.name}{waits}; {_variable(step.name)}=$id")
    last = "".join(f' "${_variable(step.name)}"' for step in steps)
    return "\n".join(
        [
            "#!/bin/bash",
            "# Submits the jobs of a run: a step starts when those before it have ended, well or not.",
            "set -Eeuo pipefail",
            f"folder={shlex.quote(str(folder))}",
            "ids=()",
            """trap '[ "${#ids[@]}" -eq 0 ] || scancel "${ids[@]}"' ERR  # all of them or none""",
            "submit() {  # a step, then the numbers of the jobs that it waits for",
            "    local step=$1 after=() log='%x-%A_%a'",
            f"    [ $step != {COLLECT} ] || log=%x",
            "    shift",
            '    [ $# -eq 0 ] || after=("--dependency=afterany:$(IFS=:; echo "$*")")',
            f'    id=$(sbatch --parsable --job-name={name}-"$step" --chdir={place} \\',
            f'        --output={shlex.quote(logs)}/"$log.log" ${{after[@]+"${{after[@]}}"}} "$folder/$step.sbatch")',
            "    id=${id%%;*}",
            '    ids+=("$id")',
            "}",
            *calls,
            f"submit {COLLECT}{last}",
            f"""printf '%s\\n' "${{ids[@]}}" > "$folder/{SUBMITTED}\"""",
            "",
        ]
    )


def _head(name: str, options: Sequence[str]) -> list[str]:
    return [
        "#!/bin/bash",
        f"# {name}: written by harness run launch.executor=slurm",
        *(f"#SBATCH --{option}" for option in options),
    ]


def _resources(needs: JobNeeds, asked: JobResources, slurm: Slurm) -> list[str]:
    lines = ["ntasks=1", f"cpus-per-task={asked.cpus}"]
    if asked.gpus != 0:
        lines.append(f"gres=gpu:{slurm.gpu_type}:1" if slurm.gpu_type else "gres=gpu:1")
    if (gibibytes := asked.memory or needs.gibibytes) is not None:
        lines.append(f"mem={gibibytes}G")
    if (minutes := asked.minutes or needs.minutes) is not None:
        lines.append(f"time={minutes // 60:02}:{minutes % 60:02}:00")
    return lines


def _where(slurm: Slurm) -> list[str]:
    own = {"partition": slurm.partition, "account": slurm.account, **slurm.options}
    given = {name: value for name, value in own.items() if value is not None and value is not False}
    return [name if value is True else f"{name}={value}" for name, value in given.items()]


def _call(folder: Path, *arguments: str) -> str:
    """The step's processes get the signal that a batch script does not: srun starts them."""
    python = shlex.join([sys.executable, "-m", "harness", "slurm-job", str(folder)])
    return f'srun --ntasks=1 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" {python} {" ".join(arguments)}'


def _variable(step: str) -> str:
    return step.replace("-", "_")
