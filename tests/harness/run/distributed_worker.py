"""Run by torchrun in test_distributed.py: trains the tiny pair and writes what each step did."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from harness.base import ranks as ranks_module
from harness.cli import main
from harness.data.batches import Batch
from harness.training.sharding import set_whole, whole
from harness.training.trainer import DistillationTrainer
from methods.base import find
from methods.uld import ULD
from tests.harness.broken import replace_loss
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


def in_pieces(asked: str, folder: Path) -> None:
    """Sharded trainings, one after the other: of a method, of one with weights of its own, and one that is resumed."""
    seen = _Seen()
    steps = {method: _sharded(method, folder / method, gradient_checkpointing=method != "uld") for method in METHODS}
    of_uld = seen.facts
    with contextlib.suppress(contract.StoppedError):
        _sharded("cdm", folder / "work", stop_after=3, checkpoint_every=1)
    steps["resumed"] = _sharded("cdm", folder / "work", checkpoint_every=1)
    steps["ended"] = _sharded("cdm", folder / "work", checkpoint_every=1)  # nothing is left but to read the weights
    assert "ACCELERATE_USE_FSDP" not in os.environ
    if int(os.environ["RANK"]) == 0:
        (folder / "steps.json").write_text(json.dumps(steps))
        (folder / "seen.json").write_text(json.dumps(of_uld))


METHODS = ("uld", "dskd_v2")


def _sharded(method: str, folder: Path, **settings: Any) -> list[dict[str, float]]:
    return contract.run(find(method)(), folder, shard=True, batch_size=4, micro_batch_size=1, **settings)


class _Seen:
    """What the first training shows of how its weights lie.

    Attributes:
        facts: types by module that FSDP wraps; gathers and reductions of the head, of all units; weights and moments
            of this process, and weights of all.
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        gathered, reduced = self._count("foreach_all_gather"), self._count("foreach_reduce")
        check = DistillationTrainer.check_result

        def spy(trainer: DistillationTrainer, sample: Batch) -> None:
            model = trainer.model
            moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
            assert all(isinstance(each, DTensor) for each in [*model.parameters(), *moments])
            self.facts = self.facts or {
                "units": {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, FSDPModule)},
                "head": [sum(any("embed" in name for name in names) for names in of) for of in (gathered, reduced)],
                "all": [len(gathered), len(reduced)],
                "here": [sum(each.to_local().numel() for each in every) for every in (model.parameters(), moments)],
                "whole": sum(each.numel() for each in model.parameters()),
            }
            check(trainer, sample)
            for parameter in model.parameters():  # as where the best weights on held-out rows are kept and taken
                value = whole(parameter) + 1
                set_whole(parameter, value)
                assert torch.equal(whole(parameter), value)

        DistillationTrainer.check_result = spy  # type: ignore[method-assign]

    @staticmethod
    def _count(function: str) -> list[list[str]]:
        """Names of the weights of each call of a collective of FSDP's."""
        called: list[list[str]] = []
        own = getattr(_fsdp_param_group, function)

        def spy(parameters: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            called.append([parameter._param_fqn for parameter in parameters])
            return own(parameters, *args, **kwargs)

        setattr(_fsdp_param_group, function, spy)
        return called


def fail(ranks: str) -> None:
    """A run whose ULD fails on some ranks."""
    if os.environ["RANK"] in ranks.split(","):
        replace_loss(pytest.MonkeyPatch(), ULD, lambda self, chunk: 1 / 0)
    ranks_module._MEETING = timedelta(seconds=10)
    sys.argv = ["harness", *sys.argv[3:]]
    main()


if __name__ == "__main__":
    if sys.argv[1] == "fail":
        fail(sys.argv[2])
    {"ddp": train_with_ddp, "pieces": in_pieces, "resume": resume}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
