"""Run by torchrun in test_distributed.py: trains the tiny pair and writes what each step did."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from harness.base import ranks as ranks_module
from harness.cli import main
from harness.training.trainer import DistillationTrainer
from methods.base import find
from methods.uld import ULD
from tests.methods import contract


def train_with_ddp(method: str, folder: Path) -> None:
    """The trainer's own path; fails unless the module that computes the loss is the one that DDP wraps."""
    wrapped: list[type] = []
    original = DistillationTrainer.compute_loss

    def spy(self, model, *args, **kwargs):  # type: ignore[no-untyped-def]
        wrapped.append(type(model))
        return original(self, model, *args, **kwargs)

    DistillationTrainer.compute_loss = spy  # type: ignore[method-assign]
    rank = int(os.environ["RANK"])
    steps = contract.run(find(method)(), folder / f"work-{rank}", batch_size=4, micro_batch_size=1)
    assert set(wrapped) == {DistributedDataParallel}, wrapped
    if rank == 0:
        (folder / "steps.json").write_text(json.dumps(steps))


def resume(asked: str, folder: Path) -> None:
    """Stop in the second epoch and go on, in the same two processes and one folder of checkpoints."""
    method, bucket = asked.split(",")
    settings = {"batch_size": 2, "micro_batch_size": 1, "checkpoint_every": 1, "bucket": bucket}
    with contextlib.suppress(contract.StoppedError):
        contract.run(find(method)(), folder / "work", stop_after=4, **settings)
    steps = contract.run(find(method)(), folder / "work", **settings)
    if int(os.environ["RANK"]) == 0:
        (folder / "steps.json").write_text(json.dumps(steps))


def gradients_with_fsdp(method: str, folder: Path) -> None:
    """One backward pass under torch's fully_shard; gradients are gathered and written by rank 0."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    made = contract.bench(find(method)(), dtype=torch.float64)
    divisors = made.objective.divisors(made.batch().counts)
    distiller = made.distiller()
    for layer in made.student.model.decoder.layers:
        fully_shard(layer)
    fully_shard(distiller)
    assert all(isinstance(parameter, DTensor) for parameter in distiller.parameters())
    parts = distiller(made.batch(made.examples[rank::2]), divisors)
    (parts.loss * dist.get_world_size()).backward()
    gradients = {name: p.grad.full_tensor() for name, p in distiller.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")
    dist.destroy_process_group()


def fail(ranks: str) -> None:
    """A run whose ULD fails on some ranks."""
    if os.environ["RANK"] in ranks.split(","):
        ULD.loss = lambda self, chunk: 1 / 0  # type: ignore[method-assign]
    ranks_module._MEETING = timedelta(seconds=10)
    sys.argv = ["harness", *sys.argv[3:]]
    main()


if __name__ == "__main__":
    if sys.argv[1] == "fail":
        fail(sys.argv[2])
    {"ddp": train_with_ddp, "fsdp": gradients_with_fsdp, "resume": resume}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
