"""A step that does not fit into memory, on an allocator that refuses: smaller pieces, and the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.data.batches import Batch
from harness.data.tokens import STUDENT
from harness.recipe.training import Training
from harness.training.loss import Distiller
from harness.training.room import DoesNotFitError, Room
from harness.training.trainer import train
from methods.base import Method
from methods.cdm import CDM
from methods.gold import GOLD
from methods.sft import SFT
from methods.uld import ULD
from tests.methods import contract

VOCABULARY = len(contract.bench(SFT()).sides[STUDENT].vocabulary)
HIDDEN = 64
Refuses = Callable[[torch.Size], bool]


class Allocator(TorchDispatchMode):
    """One that gives no memory for tensors of some shapes, from the n-th that it is asked for on."""

    def __init__(self, refuses: Refuses, after: int = 0) -> None:
        super().__init__()
        self.refuses, self.after, self.refused = refuses, after, 0

    # Any: torch's own
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and self.refuses(made.shape):
            self.after -= 1
            if self.after < 0:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return made


def logits_over(rows: int) -> Refuses:
    return lambda shape: len(shape) == 2 and shape[1] == VOCABULARY and rows < shape[0] != HIDDEN


def passes_over(responses: int) -> Refuses:
    """In training: responses are sampled without gradients."""
    return lambda shape: torch.is_grad_enabled() and len(shape) == 3 and shape[2] == HIDDEN and shape[0] > responses


def nothing(shape: torch.Size) -> bool:
    return False


class Trained:
    """Two steps of a tiny training, and what it left behind."""

    def __init__(
        self,
        method: Method,
        folder: Path,
        refuses: Refuses = nothing,
        after: int = 0,
        trial: bool = False,
        **fields: Any,
    ) -> None:
        made = contract.bench(method, dtype=torch.float32)
        collator = made.collator(chunk_rows=4096)
        torch.manual_seed(5)
        made.student.config.attention_dropout = fields.pop("dropout", 0.0)
        for layer in made.student.model.layers:
            layer.self_attn.attention_dropout = made.student.config.attention_dropout
        self.told: list[str] = []
        self.room = Room(collator, self.told.append, trial=trial)
        training = Training(**({"steps": 2, "learning_rate": 1e-3, "batch_size": 4, "schedule": "linear"} | fields))
        with Allocator(refuses, after) as self.allocator:
            self.steps = train(
                made.distiller(),
                made.examples,
                collator,
                training,
                steps=2,
                seed=3,
                work=folder,
                rollouts=made.rollouts(collator),
                room=self.room,
            )
        self.weights = {name: weight.detach().clone() for name, weight in made.student.named_parameters()}
        self.next_draw = torch.rand(3)

    def equals(self, other: Trained, tolerance: float) -> None:
        """Losses, learning rates, weights; where nothing was drawn otherwise, the next random numbers."""
        for mine, theirs in zip(self.steps, other.steps, strict=True):
            assert mine.keys() == theirs.keys()
            for name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=tolerance, abs=1e-7, nan_ok=True), name
        for name, weight in self.weights.items():
            torch.testing.assert_close(weight, other.weights[name], rtol=0, atol=tolerance * 10)


@cache
def whole(method: type[Method], **fields: Any) -> Trained:
    """With memory for all."""
    with TemporaryDirectory() as folder:
        return Trained(method(), Path(folder), **fields)


@pytest.mark.parametrize("method", [ULD, pytest.param(CDM, marks=pytest.mark.slow)])
def test_chunks_are_halved_until_the_step_fits(method: type[Method], tmp_path: Path) -> None:
    halved = Trained(method(), tmp_path, logits_over(20))
    halved.equals(whole(method), 3e-5)
    before, after = halved.room.halved["chunk_rows"]
    assert after <= 20 < before
    assert list(halved.room.halved) == ["chunk_rows"]
    assert halved.allocator.refused == (before // after).bit_length() - 1  # the steps after the first fit at once
    assert len(halved.told) == 1
    assert halved.told[0].startswith(f"out of memory in step 1, which was done again with {after} rows of logits")


@pytest.mark.parametrize("fields", [{}, pytest.param({"micro_batch_size": 2}, marks=pytest.mark.slow)], ids=str)
def test_passes_are_halved_when_chunks_are_small(fields: dict[str, Any], tmp_path: Path) -> None:
    halved = Trained(ULD(), tmp_path, passes_over(1), **fields)
    halved.equals(whole(ULD), 3e-5)
    assert halved.room.halved["responses_a_pass"] == (fields.get("micro_batch_size", 4), 1)
    assert halved.room.halved["chunk_rows"][1] == 8
    assert len(halved.told) == 1


@pytest.mark.parametrize("at", [40, *(pytest.param(at, marks=pytest.mark.slow) for at in (3, 61, 130, 700, 1500))])
def test_a_step_that_breaks_off_anywhere_has_run_once(at: int, tmp_path: Path) -> None:
    """In a forward or backward pass of a later micro-batch or step, too: gradients of those before are there."""
    calls = 0

    def once(shape: torch.Size) -> bool:
        nonlocal calls
        calls += len(shape) == 3
        return len(shape) == 3 and calls == at

    broken = Trained(ULD(), tmp_path, once, micro_batch_size=1)
    assert broken.allocator.refused == 1
    broken.equals(whole(ULD), 3e-5)


def test_dropout_is_drawn_once(tmp_path: Path) -> None:
    """What is repeated drops what the first try dropped, and what follows draws as if there had been one."""
    fields: dict[str, Any] = {"dropout": 0.5, "micro_batch_size": 2}
    halved = Trained(SFT(), tmp_path, logits_over(20), **fields)
    halved.equals(whole(SFT, **fields), 3e-5)
    assert halved.room.halved.keys() == {"chunk_rows"}
    assert halved.steps[0]["loss"] != pytest.approx(whole(SFT).steps[0]["loss"], rel=1e-3)
    assert torch.equal(halved.next_draw, whole(SFT, **fields).next_draw)


@pytest.mark.slow
def test_sampled_responses_stay_themselves(tmp_path: Path) -> None:
    made = [
        Trained(GOLD(rollout_share=0.5, rollout_tokens=24), tmp_path / name, refuses, micro_batch_size=2)
        for name, refuses in (("a", nothing), ("b", passes_over(1)))
    ]
    assert {step["sampled micro-batches"] for step in made[0].steps} != {0.0}
    made[1].equals(made[0], 3e-5)


def test_what_can_not_be_halved_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError) as error:
        Trained(ULD(), tmp_path, passes_over(0))
    assert str(error.value) == (
        "step 1 does not fit into memory, one response at a time, in chunks of 8 rows: "
        "CUDA out of memory. Tried to allocate 2.00 GiB."
    )


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    def fails(shape: torch.Size) -> bool:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Trained(ULD(), tmp_path, fails)


def test_a_trial_of_the_longest_responses_finds_what_fits_before_the_first_step(tmp_path: Path) -> None:
    """Whatever batch comes first; and it leaves weights, random numbers and losses as they were."""
    fields: dict[str, Any] = {"batch_size": 1, "dropout": 0.5}
    tried = Trained(ULD(), tmp_path / "a", trial=True, **fields)
    tried.equals(whole(ULD, **fields), 0)
    assert torch.equal(tried.next_draw, whole(ULD, **fields).next_draw)
    longest = max(response.example.sides[STUDENT].response.size for response in contract.bench(ULD()).examples)
    halved = Trained(ULD(), tmp_path / "b", logits_over(longest - 1), trial=True, **fields)
    assert halved.room.halved["chunk_rows"] == (longest, longest // 2)
    assert [text.partition(",")[0] for text in halved.told] == ["out of memory in step 1"]


@pytest.mark.parametrize("trial", [False, True], ids=["plain", "trial"])
@pytest.mark.parametrize("refused", [False, True], ids=["whole", "halved"])
def test_every_batch_that_is_passed_over_was_moved_to_the_device(
    trial: bool, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU would not notice: there a batch is where the model is before anything moves it."""
    moved: list[Batch] = []  # which keeps them all, so that no two have one identity
    plain = Batch.to

    def noted(batch: Batch, *to: Any, **how: Any) -> Batch:
        found = replace(plain(batch, *to, **how))
        moved.append(found)
        return found

    monkeypatch.setattr(Batch, "to", noted)
    passed: list[bool] = []
    forward = Distiller.forward

    def looked(distiller: Distiller, batch: Batch, *more: Any) -> Any:
        passed.append(any(batch is each for each in moved))
        return forward(distiller, batch, *more)

    monkeypatch.setattr(Distiller, "forward", looked)
    Trained(ULD(), tmp_path, logits_over(20) if refused else nothing, trial=trial, batch_size=2)
    assert passed
    assert all(passed)
