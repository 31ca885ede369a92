"""Run by torchrun in test_distributed.py: trains the tiny pair and writes what each step did."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from harness import train as training_module
from methods.base import find
from tests import method_contract as contract


def train_with_ddp(method: str, folder: Path) -> None:
    """The trainer's own path; fails unless the module that computes the loss is the one that DDP wraps."""
    wrapped: list[type] = []
    original = training_module.DistillationTrainer.compute_loss

    def spy(self, model, *args, **kwargs):  # type: ignore[no-untyped-def]
        wrapped.append(type(model))
        return original(self, model, *args, **kwargs)

    training_module.DistillationTrainer.compute_loss = spy  # type: ignore[method-assign]
    rank = int(os.environ["RANK"])
    steps = contract.run(find(method)(), folder / f"work-{rank}", batch_size=4, micro_batch_size=1)
    assert set(wrapped) == {DistributedDataParallel}, wrapped
    if rank == 0:
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


if __name__ == "__main__":
    {"ddp": train_with_ddp, "fsdp": gradients_with_fsdp}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
