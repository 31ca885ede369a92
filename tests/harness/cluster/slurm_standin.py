"""Slurm's commands as far as scripts of a run call them; jobs wait in a folder until :func:`run_queue` runs them.

Called as a program it is the command that it is called like; it imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest import Done

COMMANDS = ("sbatch", "squeue", "srun", "scontrol", "scancel")


def install(folder: Path) -> Path:
    """Put the commands into a folder's ``bin``, for PATH; its ``jobs`` is the queue."""
    (folder / "bin").mkdir()
    (folder / "jobs").mkdir()
    for name in COMMANDS:
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "{folder}/jobs" "$@"\n')
        script.chmod(0o755)
    return folder / "bin"


def jobs(queue: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(queue.glob("*.json"))}


def run_queue(
    queue: Path, apart: Mapping[str, Callable[[subprocess.Popen[bytes]], None]], inside: Callable[..., Done]
) -> list[str]:
    """Run what is queued in the order of dependencies, one job after the other.

    Args:
        apart: jobs, such as "tiny-cells-1 0", whose scripts run; called with each process.
        inside: the command line in this process, which does the others sooner.

    Returns:
        The names in the order of their starts.
    """
    ran = []
    while waiting := {number: job for number, job in jobs(queue).items() if not job["ended"]}:
        number, job = next((n, j) for n, j in waiting.items() if not set(j["after"]) & waiting.keys())
        first, last = job["array"] or (0, 0)
        pending = [(index, 0) for index in range(first, last + 1)]
        while pending:
            index, restarts = pending.pop(0)
            ran.append(f"{job['name']} {index}")
            log = Path(job["output"].replace("%x", job["name"]).replace("%A", number).replace("%a", str(index)))
            with log.open("ab") as output:
                if watch := apart.get(ran[-1]):
                    task = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(index)}
                    own = {"SLURM_JOB_ID": number, "SLURM_CPUS_PER_TASK": "1", "SLURM_RESTART_COUNT": str(restarts)}
                    environment = {**os.environ, **own, **task}
                    call = ["bash", job["script"]]
                    with subprocess.Popen(
                        call, cwd=job["chdir"], env=environment, stdout=output, stderr=output
                    ) as process:
                        watch(process)
                else:
                    done = inside(*_arguments(Path(job["script"]), index))
                    output.write(f"{done.out}{done.err}".encode())
            if (requeued := queue / f"requeue-{number}_{index}").exists():
                requeued.unlink()
                pending.append((index, restarts + 1))
        (queue / f"{number}.json").write_text(json.dumps(job | {"ended": True}))
    return ran


def _arguments(script: Path, index: int) -> list[str]:
    """What a script calls the command line with."""
    line = next(line for line in script.read_text().splitlines() if line.startswith("srun "))
    words = shlex.split(line.replace('"$SLURM_ARRAY_TASK_ID"', str(index)))
    return words[words.index("harness") + 1 :]


def _sbatch(queue: Path, arguments: list[str]) -> None:
    *given, script = arguments
    written = re.findall(r"^#SBATCH --(\S+)$", Path(script).read_text(), re.MULTILINE)
    options = dict(part.partition("=")[::2] for part in (*written, *(one.removeprefix("--") for one in given)))
    if options.get("partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = str(100 + len(list(queue.glob("*.json"))))
    array = options.get("array", "").partition("%")[0]
    job = {
        "name": options["job-name"],
        "script": script,
        "array": [int(end) for end in array.split("-")] if array else None,
        "after": options.get("dependency", "").removeprefix("afterany").strip(":").split(":"),
        "options": options,
        "output": options["output"],
        "chdir": options["chdir"],
        "ended": False,
    }
    (queue / f"{number}.json").write_text(json.dumps(job))
    print(f"{number};standin")


def main(command: str, queue: Path, arguments: list[str]) -> None:
    if command == "sbatch":
        _sbatch(queue, arguments)
    elif command == "squeue":
        print(*(number for number, job in jobs(queue).items() if not job["ended"]), sep="\n")
    elif command == "srun":
        program = next(place for place, word in enumerate(arguments) if not word.startswith("--"))
        os.execv(arguments[program], arguments[program:])
    elif command == "scontrol":
        (queue / f"requeue-{arguments[1]}").touch()
    elif command == "scancel":
        for number in arguments:
            path = queue / f"{number}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"ended": True, "cancelled": True}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
