"""Two processes that train together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes (gloo) of a script, or of ``-m module``, with one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
