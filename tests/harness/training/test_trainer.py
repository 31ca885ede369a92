"""The training loop beyond what the contract checks: checkpoints, gradient checkpointing, adapters, settings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import Trainer

from harness.base.errors import HarnessError
from harness.data.batches import Batch, Collator
from harness.data.read_ahead import ReadAhead
from harness.data.terms import AlignedExample
from harness.data.tokens import STUDENT
from harness.models.heads import check_packing
from harness.models.lora import add_lora, merge_lora
from harness.models.spec import Lora
from harness.recipe.training import Training
from harness.training.checkpoints import COMPLETE, latest_checkpoint
from harness.training.order import LengthBuckets
from harness.training.trainer import DivergedError, train
from methods.base import Method
from methods.cdm import CDM
from methods.fkd import FKD
from methods.rkd import RKD
from methods.sft import SFT
from methods.uld import ULD
from tests import tiny
from tests.methods import contract


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


def test_micro_batches_that_do_not_fit_into_a_batch_shrink_and_change_nothing(tmp_path: Path) -> None:
    whole = contract.run(ULD(), tmp_path / "a", batch_size=4, micro_batch_size=2)
    for size in (3, 8):
        shrunk = contract.run(ULD(), tmp_path / str(size), batch_size=4, micro_batch_size=size)
        assert _losses(shrunk) == pytest.approx(_losses(whole), rel=1e-5)


def test_the_precision_is_the_recipes_whatever_the_launcher_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate launch hands down the one of its file of settings."""
    plain = contract.run(ULD(), tmp_path / "a", precision="float32")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()  # else the first run's is kept
    assert _losses(contract.run(ULD(), tmp_path / "b", precision="float32")) == _losses(plain)


@pytest.mark.parametrize("way", ["fsdp", "deepspeed"])
def test_sharded_weights_are_refused(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Trainer.create_accelerator_and_postprocess

    def sharded(self: Trainer) -> None:
        own(self)
        setattr(self, f"is_{way}_enabled", True)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(HarnessError, match=r"accelerate launch: found .*, which shards weights.*Use torchrun"):
        contract.run(ULD(), tmp_path)


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
    slow = Training(
        steps=3, micro_batch_size=1, chunk_rows=8, compile="on", gradient_checkpointing=True, checkpoint_every=1
    )
    assert slow.identity() == Training(steps=3).identity()
    assert Training(steps=3, learning_rate=1e-3).identity() != Training(steps=3).identity()


# --- Reading ahead ----------------------------------------------------------------------------------------------------


class _Spied(Collator):
    """Notes which examples it was given, and in which thread. The last are those that the result is checked with."""

    def collate(self, examples: Sequence[AlignedExample], sampled: frozenset[str] | None = None) -> Batch:
        self.seen = [*getattr(self, "seen", []), [aligned.example.id for aligned in examples]]
        self.threads = [*getattr(self, "threads", []), threading.current_thread().name]
        return super().collate(examples, sampled)


def _trained(folder: Path, **settings: Any) -> tuple[list[Any], _Spied]:
    made = contract.bench(ULD(), dtype=torch.float32)
    collator = _Spied(made.objective.terms, {STUDENT: 0, made.role: 0})
    training = Training(**({"steps": 4, "learning_rate": 1e-3, "batch_size": 2, "micro_batch_size": 1} | settings))
    steps = train(made.distiller(), made.examples, collator, training, steps=training.steps or 0, seed=3, work=folder)
    return steps, collator


class _AtOnce(ReadAhead):
    """Makes each batch where it is asked for."""

    def __call__(self, examples: Sequence[AlignedExample]) -> dict[str, Any]:
        return self.collator(examples)


def test_a_thread_makes_the_same_batches_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, far = _trained(tmp_path / "a")
    monkeypatch.setattr("harness.training.trainer.ReadAhead", _AtOnce)
    at_once, near = _trained(tmp_path / "b")
    assert ahead == at_once
    assert far.seen == near.seen
    assert len(far.seen) >= 8
    *ahead_of_it, checked = far.threads
    assert "MainThread" not in ahead_of_it
    assert {checked, *near.threads} == {"MainThread"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_what_a_thread_meets_stops_the_training(tmp_path: Path) -> None:
    made = contract.bench(ULD(), dtype=torch.float32)

    def rows(example: str) -> torch.Tensor:
        raise OSError(f"no rows of {example}")

    collator = Collator(made.objective.terms, {STUDENT: 0}, stored={made.role: rows})
    with pytest.raises(OSError, match="no rows of x/"):
        train(made.distiller(), made.examples, collator, Training(steps=2), steps=2, seed=3, work=tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


# --- Length buckets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (7, 4), (8, 4), (1003, 8), (500, 1)])
def test_a_bucketed_epoch_holds_every_row_once_in_an_order_of_its_own(rows: int, batch_size: int) -> None:
    sampler = LengthBuckets([row % 97 for row in range(rows)], batch_size, seed=3)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert len(sampler) == rows
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(rows))
        assert list(sampler) == orders[-1]
    again = LengthBuckets([row % 97 for row in range(rows)], batch_size, seed=4)
    if rows > 8:
        assert len({tuple(order) for order in [*orders, list(again)]}) == 3


@pytest.mark.parametrize("batch_size", [2, 8, 32])
def test_steps_of_like_length_pad_little_and_come_in_no_order_of_length(batch_size: int) -> None:
    """Long-tailed lengths, as of Dolly's rows: a tenth of the padding at most, whatever the step's place."""
    lengths = (np.random.default_rng(0).lognormal(4.8, 0.8, 4000) + 1).astype(int).tolist()

    def padding(order: Sequence[int]) -> tuple[float, list[int]]:
        steps = [[lengths[row] for row in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
        padded = sum(max(step) * len(step) for step in steps)
        return 1 - sum(map(sum, steps)) / padded, [max(step) for step in steps]

    plain, _ = padding(np.random.default_rng(1).permutation(4000).tolist())
    bucketed, longest = padding(list(LengthBuckets(lengths, batch_size, seed=0)))
    assert plain > 0.25
    assert bucketed < plain / 4
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.2


def test_buckets_decide_the_order_of_training(tmp_path: Path) -> None:
    """Two epochs of 4 rows in steps of 2: like lengths stand together; micro-batches and threads don't matter."""
    _, bucketed = _trained(tmp_path / "a", bucket="length", micro_batch_size=2)
    lengths = {a.example.id: a.example.sides[STUDENT].length for a in contract.bench(ULD()).examples}
    pairs = {frozenset(step) for step in bucketed.seen[:-1]}
    ascending = sorted(lengths, key=lengths.__getitem__)
    assert pairs == {frozenset(ascending[:2]), frozenset(ascending[2:])}
    _, one_by_one = _trained(tmp_path / "b", bucket="length", micro_batch_size=1)
    orders = [[row for step in spied.seen[:-1] for row in step] for spied in (one_by_one, bucketed)]
    assert orders[0] == orders[1]


@pytest.mark.parametrize("method", [SFT, ULD], ids=lambda kind: kind.name)
def test_a_bucketed_training_resumes_in_its_second_epoch(method: type[Method], tmp_path: Path) -> None:
    settings = {"bucket": "length", "checkpoint_every": 1, "batch_size": 2}
    straight = contract.run(method(), tmp_path / "a", **settings)
    with contextlib.suppress(contract.StoppedError):
        contract.run(method(), tmp_path / "b", stop_after=4, **settings)
    assert latest_checkpoint(tmp_path / "b") == tmp_path / "b" / "checkpoint-3"
    resumed = contract.run(method(), tmp_path / "b", **settings)
    assert _losses(resumed) == _losses(straight)
    assert [step["tokens"] for step in resumed] != [
        step["tokens"] for step in contract.run(method(), tmp_path / "c", batch_size=2)
    ]


# --- Packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SFT(), ULD(), FKD(), RKD(fidelity="released"), CDM()], ids=lambda m: m.name)
@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma2"])
def test_packed_sequences_give_the_loss_and_the_gradient_of_padded_ones(architecture: str, method: Method) -> None:
    """The masks see to it: Gemma-2's window is shorter than the sequences here, and its attention no sdpa."""
    made = contract.bench(method, dtype=torch.float32)
    made.student = tiny.model(architecture, len(made.sides[STUDENT].vocabulary))
    if architecture == "gemma2":
        made.student.config.sliding_window = 8
        for layer in made.student.model.layers:
            layer.self_attn.sliding_window = 8 if layer.self_attn.sliding_window else None
    found = {}
    for packing in (False, True):
        made.student.zero_grad()
        parts = made.loss(made.batch(packing=packing))
        parts.loss.backward()
        found[packing] = parts.loss.detach(), [p.grad.clone() for p in made.student.parameters()]
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-5, atol=0)
    for packed, padded in zip(found[True][1], found[False][1], strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-3, atol=1e-5 * float(padded.abs().max()) + 1e-8)


def test_a_packed_training_is_a_padded_one(tmp_path: Path) -> None:
    padded, packed = (
        contract.run(ULD(), tmp_path / name, packing=name == "packed", batch_size=4) for name in ("padded", "packed")
    )
    assert [step["tokens"] for step in packed] == [step["tokens"] for step in padded]
    assert _losses(packed) == pytest.approx(_losses(padded), rel=1e-4)


def test_a_model_that_can_not_keep_packed_sequences_apart_is_refused(tmp_path: Path) -> None:
    """OPT's learnt positions follow the mask."""
    for architecture in tiny.ARCHITECTURES:
        model = tiny.model(architecture, 100)
        if architecture == "opt":
            with pytest.raises(HarnessError, match=r"OPTForCausalLM .* set packing to false"):
                check_packing(model)
        else:
            check_packing(model)
    made = contract.bench(ULD(), dtype=torch.float64)  # OPT
    collator, training = made.collator(packing=True), Training(steps=1)
    with pytest.raises(HarnessError, match="packing"):
        train(made.distiller(), made.examples, collator, training, steps=1, seed=0, work=tmp_path)


def test_buckets_change_results_and_packing_does_not() -> None:
    assert Training(steps=3, bucket="length").identity() != Training(steps=3).identity()
    assert Training(steps=3, packing=True).identity() == Training(steps=3).identity()


# --- Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SFT(), ULD(), CDM(), RKD()], ids=lambda m: m.name)
def test_bfloat16_computes_nearly_the_same_and_trains_float32_weights(method: Method, tmp_path: Path) -> None:
    exact = contract.run(method, tmp_path / "a")
    made = contract.bench(method, dtype=torch.float32)
    before = made.student.get_input_embeddings().weight.detach().clone()
    distiller = made.distiller()
    training = Training(steps=4, learning_rate=1e-3, batch_size=2, precision="bfloat16")
    rounded = train(distiller, made.examples, made.collator(), training, steps=4, seed=3, work=tmp_path / "b")
    assert _losses(rounded) == pytest.approx(_losses(exact), rel=0.03)
    assert _losses(rounded) != pytest.approx(_losses(exact), rel=1e-5)  # it did compute in bf16
    assert {p.dtype for p in distiller.parameters()} == {torch.float32}
    moved = (made.student.get_input_embeddings().weight.detach() - before).abs()
    assert 0 < float(moved[moved > 0].min()) < 1e-4  # steps that bf16 weights would lose


# --- Ends of trainings ------------------------------------------------------------------------------------------------


class _KilledError(Exception):
    pass


def _weights(
    folder: Path, *, killed_at: int | None = None, steps: int = 4, **settings: Any
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """What a training logged, and the student's weights after it; with a checkpoint at each step."""
    made = contract.bench(ULD(), dtype=torch.float32)
    distiller = made.distiller()

    def on_step(step: dict[str, float]) -> None:
        if step["step"] == killed_at:
            raise _KilledError

    logged: list[dict[str, float]] = []
    with contextlib.suppress(_KilledError):
        logged = train(
            distiller,
            made.examples,
            made.collator(chunk_rows=16),
            Training(steps=steps, **({"batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 1} | settings)),
            steps=steps,
            seed=3,
            work=folder,
            on_step=on_step,
        )
    return logged, {name: value.clone() for name, value in distiller.student.state_dict().items()}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_training_resumed_at_any_step_ends_with_the_same_weights(schedule: str, tmp_path: Path) -> None:
    """A checkpoint at step k, for every k: the last one's too, as where a kill comes between training and storing."""
    straight, expected = _weights(tmp_path / "straight", schedule=schedule)
    assert len(straight) == 4
    for k in range(1, 5):
        _weights(tmp_path / str(k), schedule=schedule, killed_at=k + 1)  # in the step after: checkpoint k is the last
        assert (latest_checkpoint(tmp_path / str(k)) or tmp_path).name == f"checkpoint-{k}"
        resumed, found = _weights(tmp_path / str(k), schedule=schedule)
        assert [step["step"] for step in resumed] == [1, 2, 3, 4]
        assert _losses(resumed) == _losses(straight)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), k


def test_a_training_that_came_apart_is_no_result(tmp_path: Path) -> None:
    """A loss that is no number ends it at its step; so does a last step that threw the model away."""
    with pytest.raises(DivergedError, match="of step 2 is"):
        _weights(tmp_path / "loss", learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"after the last step \(1\)"):
        _weights(tmp_path / "weights", learning_rate=1e30, steps=1)
    with pytest.raises(DivergedError, match="not finite"):
        _weights(tmp_path / "infinite", learning_rate=3e38, steps=1, weight_decay=1e3)


def test_weights_that_a_norm_hides_are_no_result(tmp_path: Path) -> None:
    """RMSNorm makes zeros of rows that overflow: each token is as likely as the next, which is the loss of guessing."""
    made = contract.bench(ULD(), dtype=torch.float32)
    made.student = tiny.model("llama", len(made.sides[STUDENT].vocabulary))
    training = Training(steps=1, batch_size=2, learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"holds 1e\+30 after the last step \(1\)"):
        train(made.distiller(), made.examples, made.collator(chunk_rows=16), training, steps=1, seed=3, work=tmp_path)


def test_a_training_that_learns_badly_is_a_result(tmp_path: Path) -> None:
    """Only what no reader would take for a model is refused."""
    logged, _ = _weights(tmp_path, learning_rate=0.1)
    assert len(logged) == 4
