"""Layers by graphs: micro-batches padded to few lengths; passes between tensors that stay, replayed by a stand-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.data.batches import Batch
from harness.recipe.training import Training
from harness.training import graphs
from harness.training.contract_bench import Bench, tiny_model
from harness.training.distil import TeacherSources, distil
from harness.training.graphs import LayerGraphs, Pass, bucket, unfit
from harness.training.loss import Distiller
from harness.training.room import DoesNotFitError, Room
from harness.training.trainer import train
from methods.sft import SFT
from methods.uld import ULD
from tests.methods import contract

GPU = torch.device("cuda", 0)
REPLAYED = 9 - 3 + 3
"""Of nine micro-batches of three shapes: all but the first of each; and one of each is compared."""


class Replays:
    """Runs the passes themselves where a GPU would replay what it recorded of them; both read and write what stays."""

    def __init__(self) -> None:
        self.replayed = 0

    def record(self, forward: Pass, backward: Pass) -> tuple[Pass, Pass]:
        def counted() -> None:
            self.replayed += 1
            forward()

        return counted, backward


def made_of(method: SFT | ULD | None = None) -> Bench:
    return contract.bench(method or SFT(), dtype=torch.float32)


def replaying(made: Bench, recorder: Replays | None = None) -> Distiller:
    distiller = made.distiller()
    distiller.graphs = LayerGraphs(made.student, recorder or Replays())
    return distiller


def micro_batches(made: Bench, padding_side: str = "right") -> list[Batch]:
    """Of 1, 3 and 2 rows, in changing order; all shapes come up more than once."""
    collator = made.collator(padding_side=padding_side)
    parts = [made.examples[:1], made.examples[1:], made.examples[:2]]
    return [collator.collate(parts[at]) for at in (0, 1, 0, 1, 2, 1, 2, 0, 2)]


def gradients(distiller: Distiller, batches: Sequence[Batch], window: int = 3, low: bool = False) -> list[Tensor]:
    """Losses of all, and what all parameters' gradients are after each window of micro-batches."""
    found, divisors = [], distiller.objective.divisors(batches[0].counts)
    for start in range(0, len(batches), window):
        distiller.zero_grad()
        for batch in batches[start : start + window]:
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = distiller(batch, divisors).loss
            loss.backward()
            found.append(loss.detach())
        found += [each.grad.clone() for each in distiller.parameters() if each.grad is not None]
    return found


def equal(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_lengths_are_few_and_pad_little() -> None:
    lengths = range(1, 8193)
    padded = [bucket(length) for length in lengths]
    assert all(p % 64 == 0 and 0 <= p - n < max(64, n / 8) for n, p in zip(lengths, padded, strict=True))
    assert padded == sorted(padded)
    assert len({p for n, p in zip(lengths, padded, strict=True) if n <= 1024}) == 16
    assert len(set(padded)) == 16 + 3 * 8


@pytest.mark.parametrize(("kind", "method"), [("qwen2", ULD), ("llama", SFT), ("phi3", SFT)])
def test_padding_to_such_a_length_changes_nothing(kind: str, method: type[SFT | ULD]) -> None:
    """Against batches as they are; tied embeddings (Qwen2) and heads of their own."""
    made = made_of(method())
    made.student = tiny_model(kind, len(made.sides["student"].vocabulary))
    batches = micro_batches(made)
    wanted, recorder = gradients(made.distiller(), batches), Replays()
    found = gradients(replaying(made, recorder), batches)
    assert recorder.replayed == REPLAYED
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_replayed_passes_are_those_of_kernels_bit_for_bit(low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are added up over micro-batches of several shapes, in an order that changes."""
    made, recorder = made_of(ULD()), Replays()
    found = gradients(replaying(made, recorder), micro_batches(made), low=low)
    assert recorder.replayed == REPLAYED
    monkeypatch.setattr(graphs, "MOST_SHAPES", 0)
    assert equal(found, gradients(replaying(made, recorder), micro_batches(made), low=low))
    assert recorder.replayed == REPLAYED


def test_what_a_gpu_recorded_is_fed_and_read_through_tensors_that_stay() -> None:
    """A recording knows nothing but places in memory: here they are all that the replays touch."""
    made = made_of()
    distiller = replaying(made)
    gradients(distiller, micro_batches(made))
    assert distiller.graphs is not None
    passes = distiller.graphs._recorded[(1, 64)]
    before = [each.data_ptr() for each in (passes.ids, passes.positions, passes.upstream, *passes.results)]
    gradients(distiller, micro_batches(made))
    assert before == [each.data_ptr() for each in (passes.ids, passes.positions, passes.upstream, *passes.results)]
    kept = {each.data_ptr() for each in passes.results}
    assert kept.isdisjoint(each.grad.data_ptr() for each in made.student.parameters() if each.grad is not None)


def test_frozen_weights_have_no_gradient() -> None:
    made = made_of()
    for name, weight in made.student.named_parameters():
        weight.requires_grad_("self_attn.q_proj" in name)
    found = gradients(replaying(made), micro_batches(made))
    assert equal(found[:1], gradients(made.distiller(), micro_batches(made))[:1])
    assert {n for n, w in made.student.named_parameters() if w.grad is not None} == {
        n for n, w in made.student.named_parameters() if "self_attn.q_proj" in n
    }
    wanted = gradients(made.distiller(), micro_batches(made))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def test_other_batches_run_as_they_are() -> None:
    """Padded in front, of more tokens than asked for, without gradients."""
    made, recorder = made_of(), Replays()
    distiller = replaying(made, recorder)
    left = micro_batches(made, "left")
    assert equal(gradients(distiller, left), gradients(made.distiller(), left))
    distiller.graphs = LayerGraphs(made.student, recorder, most_tokens=63)
    assert equal(gradients(distiller, micro_batches(made)), gradients(made.distiller(), micro_batches(made)))
    distiller.graphs = LayerGraphs(made.student, recorder)
    for batch in micro_batches(made):
        assert distiller.cross_entropy(batch) == made.distiller().cross_entropy(batch)
    assert recorder.replayed == 0


def test_so_many_shapes_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_SHAPES", 2)
    made = made_of()
    distiller = replaying(made)
    found = gradients(distiller, micro_batches(made))
    assert distiller.graphs is not None
    assert len(distiller.graphs.shapes) == 2
    monkeypatch.undo()
    assert equal(found, gradients(replaying(made), micro_batches(made)))


def test_a_pass_whose_memory_another_has_taken_is_refused() -> None:
    made = made_of()
    distiller = replaying(made)
    gradients(distiller, micro_batches(made))
    first, second = (distiller(batch, [1.0]).loss for batch in micro_batches(made)[:2])
    with pytest.raises(RuntimeError, match="another pass"):
        first.backward()
    second.backward()


class Breaks(Replays):
    def record(self, forward: Pass, backward: Pass) -> tuple[Pass, Pass]:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nat line 3")
        finally:
            raise RuntimeError("invalidated")


class Forgets(Replays):
    """As if what is read were not what was copied in."""

    def record(self, forward: Pass, backward: Pass) -> tuple[Pass, Pass]:
        return forward, lambda: None


@pytest.mark.parametrize(
    ("recorder", "cause"), [(Breaks, "RuntimeError: operation not permitted"), (Forgets, "gradients of weights differ")]
)
def test_what_can_not_be_recorded_runs_without(recorder: Callable[[], Replays], cause: str) -> None:
    made = made_of()
    distiller = replaying(made, recorder())
    with pytest.warns(UserWarning, match=cause) as told:
        gradients(distiller, micro_batches(made))
    assert len(told) == 1
    assert equal(gradients(distiller, micro_batches(made)), gradients(made.distiller(), micro_batches(made)))


def test_graphs_go_before_anything_is_halved() -> None:
    made, told, tries = made_of(), list[str](), list[int]()
    distiller = replaying(made)
    gradients(distiller, micro_batches(made))
    assert distiller.graphs is not None
    room = Room(made.collator(chunk_rows=4096), told.append, spare=distiller.graphs.end)
    sample = {"batch": made.batch(), "examples": tuple(made.examples)}

    def attempt(samples: object) -> Tensor:
        tries.append(len(distiller.graphs.shapes) if distiller.graphs else -1)
        if len(tries) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.zeros(())

    room.begin(torch.device("cpu"))
    room.within([sample], attempt, 7)
    assert tries == [3, 0, 0]
    assert list(room.halved) == ["chunk_rows"]
    assert told[0] == "out of memory in step 7, which was done again without CUDA graphs"
    assert distiller.graphs.ended == "out of memory in step 7"
    assert not distiller.graphs.takes(made.batch())
    room.collator.chunk_rows = 8
    with pytest.raises(DoesNotFitError):
        room.within([{**sample, "examples": sample["examples"][:1]}], lambda samples: attempt(tries.clear()), 8)


def trained(
    folder: Path, stop_after: int = 99, recorder: Replays | None = None
) -> tuple[list[dict[str, float]], Bench]:
    made = made_of(ULD())

    def on_step(step: dict[str, float]) -> None:
        if step["step"] >= stop_after:
            raise contract.StoppedError

    distiller = replaying(made, recorder)
    training = Training(steps=4, learning_rate=1e-3, batch_size=2, micro_batch_size=1, checkpoint_every=1)
    collator = made.collator(chunk_rows=16)
    steps = train(distiller, made.examples, collator, training, steps=4, seed=3, work=folder, on_step=on_step)
    return steps, made


def test_a_training_that_is_resumed_comes_to_the_same(tmp_path: Path) -> None:
    """What was recorded before the stop is recorded anew, later."""
    recorder = Replays()
    whole, made = trained(tmp_path / "whole", recorder=recorder)
    assert recorder.replayed > 4
    with pytest.raises(contract.StoppedError):
        trained(tmp_path / "cut", stop_after=2)
    steps, resumed = trained(tmp_path / "cut")
    assert steps == whole
    assert equal([*resumed.student.parameters()], [*made.student.parameters()])


def test_what_rules_graphs_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = tiny_model("llama", 50), Training(steps=1)
    assert unfit(model, plain, GPU) is None
    assert unfit(model, plain, torch.device("cpu")) == "there is no GPU"
    assert "gradient_checkpointing" in str(unfit(model, Training(steps=1, gradient_checkpointing=True), GPU))
    assert "packing" in str(unfit(model, Training(steps=1, packing=True), GPU))
    assert "masks" in str(unfit(tiny_model("gemma2", 50), plain, GPU))
    model.config.attention_dropout = 0.1
    assert unfit(model, plain, GPU) == "attention_dropout draws random numbers"
    model.config.attention_dropout = 0.0
    model.base_model.layers[1].mlp.act_fn = torch.nn.Dropout(0.2)
    assert unfit(model, plain, GPU) == "layers.1.mlp.act_fn draws random numbers"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several processes" in str(unfit(model, plain, GPU))


@pytest.mark.parametrize(("asked", "warns"), [("auto", False), (False, False), (True, True)])
def test_a_cpu_has_none_and_says_so_where_they_are_asked_for(asked: object, warns: bool, tmp_path: Path) -> None:
    made = made_of()
    training = Training(steps=1, batch_size=2, cuda_graphs=asked)
    assert "cuda_graphs" not in training.identity()
    with pytest.warns(UserWarning, match="there is no GPU") if warns else nullcontext():
        distil(
            made.student,
            made.objective,
            TeacherSources(),
            made.examples,
            training,
            sides=made.sides,
            max_length=128,
            steps=1,
            seed=0,
            work=tmp_path,
        )
