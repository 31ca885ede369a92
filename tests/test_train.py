"""The training loop beyond what the contract checks: checkpoints, gradient checkpointing, adapters, settings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.ahead import ReadAhead
from harness.batches import AlignedExample, Batch, Collator
from harness.errors import HarnessError
from harness.recipe import Lora, Training
from harness.teacher import add_lora, merge_lora
from harness.tokens import STUDENT
from harness.train import COMPLETE, latest_checkpoint, train
from methods.uld import ULD
from tests import method_contract as contract
from tests import tiny


def _losses(steps: list[dict[str, float]]) -> list[float]:
    return [step["loss"] for step in steps]


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    """It recomputes activations; the losses are the same to the last bit."""
    plain = contract.run(ULD(), tmp_path / "a")
    checkpointed = contract.run(ULD(), tmp_path / "b", gradient_checkpointing=True)
    assert _losses(plain) == _losses(checkpointed)


def test_broken_checkpoint_is_never_resumed(tmp_path: Path) -> None:
    """The newest whole checkpoint counts; one with a changed file or without its mark is removed."""
    contract.run(ULD(), tmp_path, checkpoint_every=1)
    newest, older = tmp_path / "checkpoint-4", tmp_path / "checkpoint-3"
    assert latest_checkpoint(tmp_path) == newest
    weights = next(newest.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert latest_checkpoint(tmp_path) == older
    assert not newest.exists()
    (older / COMPLETE).unlink()
    assert latest_checkpoint(tmp_path) is None
    assert not older.exists()


def test_a_run_goes_on_from_an_older_checkpoint_when_the_newest_is_broken(tmp_path: Path) -> None:
    straight = contract.run(ULD(), tmp_path / "a")
    contract.run(ULD(), tmp_path / "b", checkpoint_every=1)
    (tmp_path / "b" / "checkpoint-4" / COMPLETE).write_text("{")
    again = contract.run(ULD(), tmp_path / "b", checkpoint_every=1)
    assert _losses(again) == _losses(straight)


def test_steps_log_what_the_report_shows(tmp_path: Path) -> None:
    """loss = ce_weight * CE + kd_weight * KD, with the weights of the contract's objective (0.3 and 0.7)."""
    for step in contract.run(ULD(), tmp_path):
        assert step["loss"] == pytest.approx(0.3 * step["ce"] + 0.7 * step["kd_0"], rel=1e-6)
        assert step["kd_ce_ratio_0"] > 0
        assert step["tokens"] == int(step["tokens"]) > 0


def test_batch_size_must_fit_the_micro_batches(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"train\.batch_size: found 4.*multiple of 3"):
        contract.run(ULD(), tmp_path, batch_size=4, micro_batch_size=3)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_merged_adapters_compute_what_trained_ones_did(architecture: str, tmp_path: Path) -> None:
    """A teacher is stored as adapters and merged when it is loaded: the same logits, and different from before."""
    ids = torch.arange(3, 12).unsqueeze(0)
    base: Any = tiny.model(architecture, 100)
    untouched = tiny.model(architecture, 100)(input_ids=ids).logits
    wrapper, inner = add_lora(base, Lora(rank=4))
    with torch.no_grad():
        for name, parameter in wrapper.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    trained = inner.eval()(input_ids=ids).logits
    wrapper.save_pretrained(str(tmp_path))
    merged = merge_lora(tiny.model(architecture, 100), tmp_path).eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-4)
    assert (trained - untouched).abs().max() > 1e-2


def test_speed_settings_are_no_part_of_the_identity() -> None:
    slow = Training(steps=3, micro_batch_size=1, chunk_rows=8, gradient_checkpointing=True, checkpoint_every=1)
    assert slow.identity() == Training(steps=3).identity()
    assert Training(steps=3, learning_rate=1e-3).identity() != Training(steps=3).identity()


# --- Reading ahead ----------------------------------------------------------------------------------------------------


class _Spied(Collator):
    """Notes which examples it was given, and in which thread."""

    def collate(self, examples: Sequence[AlignedExample], sampled: frozenset[str] | None = None) -> Batch:
        self.seen = [*getattr(self, "seen", []), [aligned.example.id for aligned in examples]]
        self.threads = getattr(self, "threads", set()) | {threading.current_thread().name}
        return super().collate(examples, sampled)


def _trained(folder: Path, examples: Sequence[Any] | None = None, **settings: Any) -> tuple[list[Any], _Spied]:
    made = contract.bench(ULD(), dtype=torch.float32)
    collator = _Spied(made.objective.terms, {STUDENT: 0, made.role: 0})
    training = Training(**({"steps": 4, "learning_rate": 1e-3, "batch_size": 2, "micro_batch_size": 1} | settings))
    given = made.examples if examples is None else examples
    steps = train(made.distiller(), given, collator, training, steps=training.steps or 0, seed=3, work=folder)
    return steps, collator


class _AtOnce(ReadAhead):
    """Makes each batch where it is asked for."""

    def __call__(self, examples: Sequence[AlignedExample]) -> dict[str, Any]:
        return self.collator(examples)


def test_a_thread_makes_the_same_batches_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, far = _trained(tmp_path / "a")
    monkeypatch.setattr("harness.train.ReadAhead", _AtOnce)
    at_once, near = _trained(tmp_path / "b")
    assert ahead == at_once
    assert far.seen == near.seen
    assert len(far.seen) >= 8
    assert "MainThread" not in far.threads
    assert near.threads == {"MainThread"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_what_a_thread_meets_stops_the_training(tmp_path: Path) -> None:
    made = contract.bench(ULD(), dtype=torch.float32)

    def rows(example: str) -> torch.Tensor:
        raise OSError(f"no rows of {example}")

    collator = Collator(made.objective.terms, {STUDENT: 0}, stored={made.role: rows})
    with pytest.raises(OSError, match="no rows of x/"):
        train(made.distiller(), made.examples, collator, Training(steps=2), steps=2, seed=3, work=tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
