"""On-policy micro-batches: what is sampled, how it is tokenised for the teacher, what it adds to the loss."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from harness.data.batches import Collator
from harness.data.read_ahead import ReadAhead
from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.terms import AlignedExample, Term, align
from harness.data.tokens import STUDENT, join_sampled, tokenize
from harness.recipe.training import Training
from harness.training.loss import Distiller
from harness.training.objective import Objective
from harness.training.rollout_share import accepted, share_at
from harness.training.rollouts import Rollouts, RolloutSettings
from harness.training.trainer import DistillationTrainer, train
from harness.training.window import Window
from methods.base import AlignedChunk, Method, Need, OnPolicyOptions
from methods.fkd import FKD
from methods.library.alignment import Groups
from methods.library.rollout_share import mean_share
from methods.uld import ULD
from tests import tiny
from tests.harness.generation.test_answers import bigram
from tests.methods import contract


class OnPolicyULD(ULD):
    class Options(OnPolicyOptions, ULD.Options):
        pass


class OnPolicyFKD(FKD):
    class Options(OnPolicyOptions, FKD.Options):
        pass


SIDES = {
    STUDENT: TextSide(tiny.tokenizer("byte_level"), template="plain", name="student"),
    "same": TextSide(tiny.tokenizer("byte_level"), template="plain", name="same"),
    "cross": TextSide(tiny.tokenizer("byte_fallback"), template="plain", name="cross"),
}


def rollouts(made: contract.Bench) -> Rollouts:
    found = made.rollouts(made.collator())
    assert found is not None
    return found


def sampled(maker: Rollouts, student: Any, examples: Sequence[AlignedExample], step: int) -> list[list[int]]:
    """Ids of each response."""
    return [draft.ids for draft in maker._sample(student, [aligned.example for aligned in examples], step)]


# --- from sampled ids to every model's tokens -------------------------------------------------------------------------


def joined(ids: list[int], max_length: int = 64) -> dict[str, Any]:
    example = tokenize([Example("x", "How many sheep?", "201")], SIDES, 64)[0]
    (made,) = join_sampled([example], [ids], SIDES, max_length)
    for role in SIDES:
        assert np.array_equal(made.sides[role].prompt, example.sides[role].prompt)
    return {"made": made, **{role: side.response.tolist() for role, side in made.sides.items()}}


def ids_of(role: str, text: str) -> list[int]:
    return SIDES[role].responses([text])[0].tolist()


@pytest.mark.parametrize("text", ["It is 201 + 19.", "Zürich 🌈", " a", ""])
def test_an_ended_response_ends_for_every_model(text: str) -> None:
    found = joined([*ids_of(STUDENT, text), SIDES[STUDENT].eos])
    assert found[STUDENT] == found["same"] == [*ids_of(STUDENT, text), SIDES[STUDENT].eos]
    assert found["cross"] == ([*ids_of("cross", text), SIDES["cross"].eos] if text else [SIDES["cross"].eos])
    made = found["made"]
    assert {int(side.ends[-1]) for side in made.sides.values()} == {len(text.encode())} == {made.response_bytes}
    assert not made.cut


def test_the_end_that_was_sampled_is_kept_where_tokens_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat model may end with its end of turn or with its EOS."""
    other = SIDES[STUDENT].tokenizer.convert_tokens_to_ids("<s>")
    monkeypatch.setattr(SIDES[STUDENT], "eos_ids", (SIDES[STUDENT].eos, other))
    found = joined([*ids_of(STUDENT, "It is"), other])
    assert found[STUDENT][-1] == found["same"][-1] == other
    assert found["cross"][-1] == SIDES["cross"].eos


def test_a_response_that_its_length_cut_ends_for_no_model() -> None:
    found = joined(ids_of(STUDENT, "It is 201"))
    assert found[STUDENT] == ids_of(STUDENT, "It is 201")
    assert found["cross"] == ids_of("cross", "It is 201")
    assert found["made"].cut


def test_the_students_own_tokens_are_kept_where_its_tokenizer_would_cut_otherwise() -> None:
    """A student may spell "201" byte by byte; its teacher reads the text, a model with its tokenizer the tokens."""
    ids = [SIDES[STUDENT].tokenizer.convert_tokens_to_ids(letter) for letter in "sheep"]
    assert ids != ids_of(STUDENT, "sheep")
    found = joined([*ids, SIDES[STUDENT].eos])
    assert found["same"] == found[STUDENT] == [*ids, SIDES[STUDENT].eos]
    assert found["cross"] == [*ids_of("cross", "sheep"), SIDES["cross"].eos]


def test_bytes_that_are_no_text_reach_the_teacher_as_bytes() -> None:
    """The first two bytes of a rainbow and an A: byte fallback spells any byte."""
    first, second, letter = (SIDES[STUDENT].tokenizer.convert_tokens_to_ids(piece) for piece in ("ð", "Ł", "A"))
    made = joined([first, second, letter])["made"]
    pieces = SIDES["cross"].tokenizer.convert_ids_to_tokens(made.sides["cross"].response.tolist())
    assert [piece for piece in pieces if piece != "▁"][:2] == ["<0xF0>", "<0x9F>"]
    assert int(made.sides["cross"].ends[-1]) == 3


def test_a_limit_cuts_all_sides_at_a_shared_byte() -> None:
    prompt = max(side.prompt.size for side in joined([SIDES[STUDENT].eos])["made"].sides.values())
    made = joined([*ids_of(STUDENT, "def add(first, second): return first + second"), SIDES[STUDENT].eos], prompt + 8)[
        "made"
    ]
    assert made.cut
    assert len({int(side.ends[-1]) for side in made.sides.values()}) == 1
    assert all(0 < side.length <= prompt + 7 for side in made.sides.values())


def test_a_limit_without_room_leaves_an_empty_response() -> None:
    made = joined(ids_of(STUDENT, "It is 201"), max_length=3)["made"]
    assert all(side.response.size == 0 for side in made.sides.values())


# --- what is sampled --------------------------------------------------------------------------------------------------


def test_a_share_of_the_micro_batches_is_drawn() -> None:
    made = contract.bench(OnPolicyULD(rollout_share=0.3))
    first, again = (
        [maker.drawn(step, place, 0.3) for step in range(500) for place in range(4)]
        for maker in (rollouts(made), rollouts(made))
    )
    assert np.mean(first) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 2000) ** 0.5)
    assert first == again
    always = rollouts(contract.bench(OnPolicyULD(rollout_share=1.0)))
    assert all(always.drawn(step, 0, 1.0) for step in range(200))


def test_without_a_share_nothing_is_sampled() -> None:
    assert OnPolicyULD().needs == frozenset()
    assert OnPolicyULD(rollout_share=0.1).needs == {Need.ROLLOUTS}
    assert RolloutSettings.of(contract.bench(OnPolicyULD()).objective.terms) is None
    assert RolloutSettings.of(contract.bench(ULD()).objective.terms) is None


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(value: float) -> None:
    with pytest.raises(ValidationError, match="rollout_share"):
        OnPolicyULD(rollout_share=value)


def test_a_response_depends_on_its_example_and_the_step_only() -> None:
    made = contract.bench(OnPolicyULD(rollout_share=1.0, rollout_tokens=9))
    maker = rollouts(made)
    together = sampled(maker, made.student, made.examples, step=3)
    assert together == [sampled(maker, made.student, [one], step=3)[0] for one in made.examples]
    assert together == sampled(maker, made.student, made.examples[::-1], step=3)[::-1]
    assert together != sampled(maker, made.student, made.examples, step=4)
    assert all(len(ids) <= 9 for ids in together)


def test_a_window_is_drawn_at_once_and_each_micro_batch_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses are those of a micro-batch that is drawn alone; the model reads all prompts together."""
    made = contract.bench(OnPolicyULD(rollout_share=1.0, rollout_tokens=9))
    maker = rollouts(made)
    parts = [made.examples[2:], made.examples[:1], made.examples[1:2]]
    alone = [maker.samples(made.student, [part], step=3)[0]["batch"] for part in parts]
    calls: list[int] = []
    own = maker._sample
    monkeypatch.setattr(
        maker, "_sample", lambda student, all_, step: calls.append(len(all_)) or own(student, all_, step)
    )
    together = [sample["batch"] for sample in maker.samples(made.student, parts, step=3)]
    assert calls == [len(made.examples)]
    assert [batch.counts.tolist() for batch in together] == [batch.counts.tolist() for batch in alone]
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"rollout_temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"rollout_top_p": 0.75}, [0.5, 0.3, 0, 0]),
        ({"rollout_top_p": 0.81}, [0.5, 0.3, 0.15, 0]),
        ({"rollout_temperature": 2.0, "rollout_top_p": 0.6}, [0.5**0.5, 0.3**0.5, 0, 0]),
    ],
)
def test_samples_come_from_the_distribution_asked_for(options: dict[str, float], expected: list[float]) -> None:
    """A model whose next token is always one of four, with known probabilities, or a padding column of its head."""
    side = SIDES[STUDENT]
    table = torch.full((len(side.vocabulary) + 5, len(side.vocabulary) + 5), -torch.inf)
    table[:, 10:14] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    table[:, -1] = 5.0
    made = contract.bench(OnPolicyULD(rollout_share=1.0, rollout_tokens=60, **options))
    first = made.examples[0]
    examples = [replace(first, example=replace(first.example, id=f"x/{number}")) for number in range(80)]
    found = sampled(rollouts(made), bigram(side, table), examples, step=0)
    counts = Counter(token for ids in found for token in ids)
    total = sum(counts.values())
    assert total == 4800
    wanted = np.asarray(expected) / sum(expected)
    seen = np.asarray([counts[token] for token in range(10, 14)]) / total
    assert np.all(np.abs(seen - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / total)), (seen, wanted)


# --- what it adds to the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OnPolicyULD, OnPolicyFKD])
def test_a_sampled_batch_is_scored_without_cross_entropy(kind: type[Method]) -> None:
    """The loss on a sampled batch is the KD term of the same responses as reference text, tokens and all."""
    made = contract.bench(kind(rollout_share=1.0, rollout_tokens=12))
    batch = rollouts(made).samples(made.student, [made.examples], step=1)[0]["batch"]
    parts = made.loss(batch)
    assert float(parts.ce) == 0
    assert float(parts.kd[0]) > 0
    responses = sampled(rollouts(made), made.student, made.examples, step=1)
    again = join_sampled([aligned.example for aligned in made.examples], responses, made.sides, 128)
    plain = made.batch([align(example, made.objective.terms) for example in again])
    as_reference = made.loss(plain)
    assert float(as_reference.ce) > 0
    assert float(as_reference.kd[0]) == pytest.approx(float(parts.kd[0]), rel=1e-12)
    divisor = float(plain.counts[0])
    assert divisor == sum(len(ids) for ids in responses)
    assert float(parts.loss.detach()) == pytest.approx(0.7 * float(parts.kd[0]) / divisor, rel=1e-12)


def test_only_terms_that_ask_for_samples_see_them() -> None:
    """In dual(fkd, on-policy uld) FKD's teacher scores references only."""
    made = contract.bench(OnPolicyULD(rollout_share=1.0, rollout_tokens=8))
    same = contract.bench(FKD())
    terms = (Term(same.method, "same", 0.5), *made.objective.terms)
    sides = same.sides | made.sides
    collator = Collator(terms, {STUDENT: 0, "same": 0, "cross": 0})
    settings = RolloutSettings.of(terms)
    assert settings is not None
    texts = [Example(f"x/{i}", prompt, response) for i, (prompt, response) in enumerate(tiny.SAMPLES)]
    examples = [align(example, terms) for example in tokenize(texts, sides, 128)]
    batch = Rollouts(settings, terms, sides, collator, 128, 5).samples(made.student, [examples], step=0)[0]["batch"]
    assert set(batch.teachers) == {"cross"}
    objective = Objective("dual", 0.3, terms)
    distiller = Distiller(made.student, objective, {"same": same.teacher, "cross": made.teacher})
    parts = distiller(batch, objective.divisors(batch.counts))
    assert float(parts.kd[0]) == 0
    assert float(parts.kd[1]) > 0


def test_cross_entropy_is_a_mean_over_the_tokens_that_carry_it(tmp_path: Path) -> None:
    """A window of sampled and given responses: as the same window without its sampled part, but for the divisor."""
    made = contract.bench(OnPolicyULD(rollout_share=0.5, rollout_tokens=6))
    sampled = rollouts(made).samples(made.student, [made.examples[:2]], step=0)[0]["batch"]
    plain = made.batch(made.examples[2:])
    divisors = made.objective.divisors(sampled.counts + plain.counts)
    parts = [made.loss(batch, divisors) for batch in (sampled, plain)]
    assert [int(part.ce_tokens) for part in parts] == [0, int(plain.counts[0])]
    steps = contract.run(OnPolicyULD(rollout_share=0.5, rollout_tokens=6), tmp_path, micro_batch_size=1)
    mixed = [step for step in steps if 0 < step["sampled micro-batches"] < 1]
    assert mixed
    assert all(2 < step["ce"] < 20 for step in mixed)  # about log(400), however much was sampled beside it


def test_only_full_windows_of_samples_have_no_cross_entropy(tmp_path: Path) -> None:
    steps = contract.run(OnPolicyULD(rollout_share=0.5, rollout_tokens=6), tmp_path)
    assert {bool(np.isnan(step["ce"])) == (step["sampled micro-batches"] == 1) for step in steps} == {True}


def test_a_window_of_sampled_and_given_micro_batches_moves_its_counts_once() -> None:
    """To a device that holds no values: whatever else of the window is there already, its counts are not."""
    made = contract.bench(OnPolicyULD(rollout_share=0.5))
    given, device = ReadAhead(made.collator()), torch.device("meta")
    reduced: list[torch.Tensor] = []

    def reduce(tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        reduced.append(tensor)
        return torch.ones(tensor.shape)

    stub: Any = SimpleNamespace(
        _order=None,
        _draws_share=1,
        _rollouts=SimpleNamespace(
            settings=SimpleNamespace(share=0.5),
            drawn=lambda step, place, share: place == 0,
            samples=lambda student, parts, step: [{"batch": made.batch(part), "examples": part} for part in parts],
        ),
        accelerator=SimpleNamespace(num_processes=1, process_index=0, reduce=reduce, autocast=contextlib.nullcontext),
        state=SimpleNamespace(global_step=0, max_steps=4),
        steps=[],
        model=SimpleNamespace(objective=made.objective, student=None),
        _window=Window(1),
    )
    stub._sampled = partial(DistillationTrainer._sampled, stub)
    parts = [given(made.examples[:2]), given(made.examples[2:])]
    window = [part | {"batch": part["batch"].to(device)} for part in parts]
    try:
        samples, counts = DistillationTrainer.get_batch_samples(stub, iter(window), 2, device)
    finally:
        given.close()
    assert [type(sample["batch"]).__name__ for sample in samples] == ["Batch", "AheadBatch"]
    assert samples[0]["batch"].targets.device == device
    *_, moved = reduced
    assert (moved.device, moved.dtype, moved.shape) == (device, torch.float32, counts.shape)
    there = torch.stack([sample["batch"].counts for sample in samples]).sum(0)
    assert there.tolist() == made.batch().counts.tolist()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_responses_are_sampled_in_the_precision_of_the_training(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autocast: list[bool] = []
    own = Rollouts.samples

    def spied(*args: Any) -> Any:
        autocast.append(torch.is_autocast_enabled("cpu"))
        return own(*args)

    monkeypatch.setattr(Rollouts, "samples", spied)
    method = OnPolicyULD(rollout_share=1.0, rollout_tokens=4)
    steps = contract.run(method, tmp_path, precision=precision)
    assert set(autocast) == {precision == "bfloat16"}
    assert all(np.isfinite(step["loss"]) for step in steps)


def test_terms_of_one_objective_sample_alike() -> None:
    terms = [Term(OnPolicyULD(rollout_share=share), "cross", 1.0) for share in (0.2, 0.4)]
    with pytest.raises(ValueError, match="sample alike"):
        RolloutSettings.of(terms)


def test_a_resumed_run_samples_what_a_straight_one_does(tmp_path: Path) -> None:
    method = OnPolicyULD(rollout_share=0.5, rollout_tokens=6)
    contract.resumed_equals_straight(method, tmp_path)
    steps = contract.run(method, tmp_path / "c", batch_size=4, micro_batch_size=1)
    assert 0 < np.mean([step["sampled micro-batches"] for step in steps]) < 1


def test_on_policy_training_brings_the_student_nearer_to_its_teacher(tmp_path: Path) -> None:
    """Forward KL on the student's own samples alone, without a reference response."""
    made = contract.bench(OnPolicyFKD(rollout_share=1.0, rollout_tokens=12), dtype=torch.float32)
    collator = made.collator()
    steps = train(
        made.distiller(),
        made.examples,
        collator,
        Training(steps=30, batch_size=4, learning_rate=3e-3),
        steps=30,
        seed=0,
        work=tmp_path,
        rollouts=made.rollouts(collator),
    )
    assert all(np.isnan(step["ce"]) for step in steps)
    assert np.mean([step["kd_0"] for step in steps[-3:]]) < 0.5 * steps[0]["kd_0"]


# --- a share that changes ---------------------------------------------------------------------------------------------

LINE = {"start": 0.2, "end": 1.0, "over": 0.5}
FOLLOWED = {"target": "acceptance", "start": 0.6, "least": 0.25, "most": 0.9}


def test_a_line_goes_by_the_step_and_stays_where_it_comes_to() -> None:
    asked = OnPolicyULD(rollout_share=LINE)
    found = [share_at(asked.options.rollout_share, step, 8, [])[0] for step in range(8)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])
    assert mean_share(asked.options.rollout_share) == pytest.approx(0.8)  # of (0.2 + 1) / 2 and 1
    assert asked.needs == {Need.ROLLOUTS}
    assert share_at(0.3, 5, 8, [{"accepted": 1.0}]) == (0.3, {})


def test_acceptance_is_a_running_mean_that_steps_without_samples_leave() -> None:
    """0.6, then 0.9 · 0.6 + 0.1 · 0 and once more; 0.25 is the least share."""
    asked = OnPolicyULD(rollout_share=FOLLOWED).options.rollout_share
    shown: list[dict[str, float]] = []
    for accepted_ in (0.0, None, 0.0, 1.0):
        _, said = share_at(asked, len(shown), 9, shown)
        shown.append(said if accepted_ is None else said | {"accepted": accepted_})
    assert [step["mean acceptance"] for step in shown] == pytest.approx([0.6, 0.54, 0.54, 0.486])
    assert share_at(asked, 4, 9, shown)[0] == pytest.approx(0.9 * 0.486 + 0.1)
    assert share_at(asked, 1, 9, [{"mean acceptance": 0.1}])[0] == 0.25
    assert share_at(asked, 1, 9, [{"mean acceptance": 1.0}])[0] == 0.9


def test_what_a_teacher_would_have_taken_by_hand() -> None:
    """Three groups: a token that is second of four, two tokens for one, and a token that is last."""
    logits = torch.tensor([[1.0, 3, 2, 0], [9, 0, 0, 0], [9, 0, 0, 0], [1, 2, 3, 0]])
    groups = Groups.from_lists([[0], [1], [2]], [[0], [1, 2], [3]])
    tokens = np.array([5, 6, 7]), np.array([2, 0, 0, 3])
    chunk = AlignedChunk.of(groups, torch.zeros(3, 9), logits, *tokens)
    assert [float(each) for each in accepted(chunk, top=2)] == [1, 2]
    assert [float(each) for each in accepted(chunk, top=1)] == [0, 2]
    assert [float(each) for each in accepted(chunk, top=4)] == [2, 2]


def test_a_steered_training_measures_its_samples_and_goes_on_from_them_when_resumed(tmp_path: Path) -> None:
    method = OnPolicyULD(pairing="bytes", rollout_share=FOLLOWED | {"least": 0.6}, rollout_tokens=6)
    contract.resumed_equals_straight(method, tmp_path)
    steps = contract.run(method, tmp_path / "again", micro_batch_size=1)
    for before, after in pairwise(steps):
        assert ("accepted" in before) == (before["sampled micro-batches"] > 0)
        moved = 0.9 * before["mean acceptance"] + 0.1 * before.get("accepted", before["mean acceptance"])
        assert after["mean acceptance"] == pytest.approx(moved)
        assert after["rollout share"] == max(after["mean acceptance"], 0.6)
    assert any(0 <= step["accepted"] < 1 for step in steps if "accepted" in step)


def test_a_line_that_stands_still_is_the_number(tmp_path: Path) -> None:
    """Step by step the same draws, samples and losses, to the last bit."""
    number, line = (
        contract.run(OnPolicyULD(rollout_share=share, rollout_tokens=6), tmp_path / name, micro_batch_size=1)
        for name, share in (("number", 0.5), ("line", {"start": 0.5, "end": 0.5}))
    )
    assert [step["rollout share"] for step in line] == [0.5] * 4
    assert not any("rollout share" in step for step in number)
    for left, right in zip(number, line, strict=True):
        for name in ("loss", "grad_norm", "sampled micro-batches"):
            assert left[name] == right[name], name


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"start": 0, "end": 0}, "start and end are 0"),
        ({"start": 0}, "end"),
        ({"start": 0, "end": 2}, "less than or equal to 1"),
        ({"target": "gap"}, "acceptance"),
        ({"target": "acceptance", "least": 0.5, "most": 0.2}, "least 0.5 is above most 0.2"),
    ],
)
def test_a_share_that_is_none_says_why(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OnPolicyULD(rollout_share=value)
