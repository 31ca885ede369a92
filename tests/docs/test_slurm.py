"""The Slurm script of docs/start.md with stand-ins of Slurm: stopped jobs are queued again, failed ones are not."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

# Slurm's part: TERM to the job's step some time after it began, and a queue of one job.
STANDINS = {
    "srun": """
import os, signal, subprocess, sys
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE) as step:
    if step.stdout.read(5) == b"begun":
        step.send_signal(signal.SIGTERM)
sys.exit(step.returncode)
""",
    "scontrol": """
import os, sys
open("requeued", "a").write(" ".join(sys.argv[1:]))
os.execvp("bash", ["bash", "run.sbatch"])
""",
    "harness": """
import os, sys, time
from harness.base.stopping import stopping
open("calls", "a").write(" ".join(sys.argv[1:]) + "\\n")
if os.environ["FAILS"]: sys.exit(2)
if not os.path.exists("requeued"):
    with stopping() as asked:
        try:
            print("begun", end="", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            sys.exit(asked.status)
""",
}


@pytest.mark.parametrize("fails", [False, True])
def test_a_stopped_job_is_queued_again_and_a_failed_one_is_not(tmp_path: Path, fails: bool) -> None:
    (script,) = (block.text for block in blocks(ROOT / "docs" / "start.md") if block.title == "run.sbatch")
    (tmp_path / "run.sbatch").write_text(script)
    for name, text in STANDINS.items():
        (tmp_path / f"{name}_stand_in.py").write_text(text)
        # no "#!" before Python's own path: it may have spaces, and be longer than a kernel reads
        called = shlex.join([sys.executable, str(tmp_path / f"{name}_stand_in.py")])
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {called} "$@"\n')
        (tmp_path / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "17",
        "FAILS": "yes" * fails,
    }
    done = subprocess.run(["bash", "run.sbatch"], cwd=tmp_path, env=env, check=False)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["run recipe=quickstart --runs runs"] * (1 if fails else 2)
    if fails:
        assert done.returncode == 2
        assert not (tmp_path / "requeued").exists()
    else:
        assert done.returncode == 0
        assert (tmp_path / "requeued").read_text() == "requeue 17"
