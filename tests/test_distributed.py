"""Two processes compute what one does: the loss lives in the wrapped module, and is divided by the global window."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from methods.base import find
from tests import method_contract as contract

pytestmark = pytest.mark.slow
METHODS = ["control", "uld", "cdm", "gold", "mined"]


def _torchrun(mode: str, method: str, folder: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(root / "tests" / "distributed_worker.py"), mode, method, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("method", METHODS)
def test_two_ddp_processes_train_like_one(method: str, tmp_path: Path) -> None:
    """Ranks hold different numbers of tokens: only a global normalisation gives the same losses."""
    _torchrun("ddp", method, tmp_path)
    double = json.loads((tmp_path / "steps.json").read_text())
    single = contract.run(find(method)(), tmp_path / "single", batch_size=4, micro_batch_size=4)
    assert len(double) == len(single) == 4
    for left, right in zip(double, single, strict=True):
        assert left["tokens"] == right["tokens"]
        for key in ("ce", "grad_norm", *(["kd_0"] if "kd_0" in right else [])):
            assert left[key] == pytest.approx(right[key], rel=2e-5, abs=1e-7), (key, left["step"])


@pytest.mark.parametrize("method", ["uld"])
def test_sharded_gradients_equal_those_of_one_process(method: str, tmp_path: Path) -> None:
    """fully_shard's root holds embeddings and head: the chunked loss must see and return whole ones."""
    _torchrun("fsdp", method, tmp_path)
    sharded = torch.load(tmp_path / "gradients.pt", weights_only=True)
    made = contract.bench(find(method)(), dtype=torch.float64)
    distiller = made.distiller()
    distiller(made.batch(), made.objective.divisors(made.batch().counts)).loss.backward()
    expected = {name: p.grad for name, p in distiller.named_parameters()}
    assert sharded.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(sharded[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
