"""Speculative KD: what a student writes and its teacher corrects, against a transcription in plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.tokens import STUDENT
from harness.generation.decoding import continue_prompts
from harness.generation.per_row import GumbelNoise
from harness.training.rollouts import Rollouts, RolloutSettings
from harness.training.speculative import BLOCK
from methods.base import Method
from tests.harness.training.test_rollouts import OnPolicyFKD, OnPolicyULD
from tests.methods import contract

LENGTH = 13
PAIRS = pytest.mark.parametrize("kind", [OnPolicyFKD, OnPolicyULD], ids=["same", "cross"])


def method(kind: type[Method], top: int | None, **more: Any) -> Method:
    source = {"rollouts": "student"} if top is None else {"rollouts": "skd", "skd_top": top}
    return kind(**{"rollout_share": 1.0, "rollout_tokens": LENGTH, **source, **more})


def rollouts(made: contract.Bench) -> Rollouts:
    found = made.rollouts(made.collator())
    assert found is not None
    return found


def written(made: contract.Bench, step: int = 2) -> list[list[int]]:
    drafts = rollouts(made)._sample(made.student, [each.example for each in made.examples], step)
    return [draft.ids for draft in drafts]


def draws(made: contract.Bench, step: int = 2) -> list[tuple[str, int]]:
    """As plain rollouts name them: nothing of this is read from what is tested."""
    seen: list[tuple[str, int]] = []
    own = GumbelNoise.__init__

    def spied(self: GumbelNoise, given: Any) -> None:
        seen.extend(given)
        own(self, given)

    plain = contract.bench(method(type(made.method), None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GumbelNoise, "__init__", spied)
        written(plain, step)
    return [(example.example.id, dict(seen)[example.example.id]) for example in made.examples]


@PAIRS
def test_a_teacher_that_takes_everything_leaves_what_the_student_samples(kind: type[Method]) -> None:
    corrected, plain = (written(contract.bench(method(kind, top))) for top in (10**6, None))
    assert corrected == plain
    assert max(map(len, plain)) == LENGTH


def test_a_teacher_that_takes_nothing_writes_alone() -> None:
    made = contract.bench(method(OnPolicyFKD, 0))
    side = made.sides["same"]
    noise = GumbelNoise([(f"{name} teacher", seed) for name, seed in draws(made)])
    prompts = [each.example.sides["same"].prompt.tolist() for each in made.examples]
    alone = continue_prompts(made.teacher, side, prompts, new_tokens=LENGTH, processors=[noise])
    for found, expected in zip(written(made), alone, strict=True):
        assert found == expected[: len(found)]
        assert len(found) == LENGTH or found[-1] in side.eos_ids


def test_a_likeliest_token_of_the_same_model_is_never_refused() -> None:
    made = contract.bench(method(OnPolicyFKD, 1, rollout_temperature=1e-6), identical=True)
    drafts = rollouts(made)._sample(made.student, [each.example for each in made.examples], 0)
    assert [draft.corrected for draft in drafts] == [0, 0, 0, 0]
    assert all(draft.ids for draft in drafts)


# --- a transcription --------------------------------------------------------------------------------------------------


class Stream:
    """One response's noise, a vector a draw; a draw can be put back."""

    def __init__(self, name: str, seed: int) -> None:
        self.noise = GumbelNoise([(name, seed)])
        self.noise.add([0])

    def pick(self, logits: torch.Tensor) -> int:
        return int(self.noise(torch.zeros(0), logits[None])[0].argmax())


@torch.no_grad()
def behind(model: Any, ids: list[int]) -> torch.Tensor:
    """[length, vocabulary], of one text, unpadded."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits


def one_by_one(made: contract.Bench, example: Any, draw: tuple[str, int], top: int) -> list[int]:
    """One tokenizer: token for token, each judged as it comes."""
    ours, theirs = Stream(*draw), Stream(f"{draw[0]} teacher", draw[1])
    prompts = [example.sides[role].prompt.tolist() for role in (STUDENT, "same")]
    ids: list[int] = []
    while len(ids) < LENGTH and not (ids and ids[-1] in made.sides[STUDENT].eos_ids):
        token = ours.pick(behind(made.student, prompts[0] + ids)[-1])
        judged = behind(made.teacher, prompts[1] + ids)[-1]
        if int((judged > judged[token]).sum()) >= top:
            judged[[0, 1]] = -torch.inf  # padding and BOS are no text
            token = theirs.pick(judged)
        ids.append(token)
    return ids


def test_one_tokenizer_is_corrected_token_by_token() -> None:
    """Blocks, padding and what is dropped behind a refusal change nothing."""
    made = contract.bench(method(OnPolicyFKD, 120))
    expected = [
        one_by_one(made, each.example, draw, 120) for each, draw in zip(made.examples, draws(made), strict=True)
    ]
    drafts = rollouts(made)._sample(made.student, [each.example for each in made.examples], 2)
    assert [draft.ids for draft in drafts] == expected
    assert 0 < sum(draft.corrected for draft in drafts) < sum(map(len, expected))


def block_by_block(made: contract.Bench, example: Any, draw: tuple[str, int], top: int) -> tuple[list[int], int]:
    """Two tokenizers: the text is cut anew for the teacher at each block."""
    own, other = made.sides[STUDENT], made.sides["cross"]
    ours, theirs = Stream(*draw), Stream(f"{draw[0]} teacher", draw[1])
    prompts = [example.sides[role].prompt.tolist() for role in (STUDENT, "cross")]
    ids: list[int] = []
    refused = 0
    while len(ids) < LENGTH and not (ids and ids[-1] in own.eos_ids):
        block: list[int] = []
        states = []
        while len(block) < min(BLOCK, LENGTH - len(ids)) and not (block and block[-1] in own.eos_ids):
            block.append(ours.pick(behind(made.student, prompts[0] + ids + block)[-1]))
            states.append(ours.noise.generators[0].get_state())
        said = [token for token in ids + block if token not in own.eos_ids]
        text, ends = own.vocabulary.spell(np.asarray(said))
        cut = other.responses_of_bytes([text])[0]
        tokens, their_ends = cut.ids.tolist(), cut.ends.tolist()
        our_ends = ends.tolist()
        if len(said) < len(ids + block):
            tokens, their_ends, our_ends = [*tokens, other.eos], [*their_ends, len(text)], [*our_ends, len(text)]
        rows = behind(made.teacher, prompts[1] + tokens)[len(prompts[1]) - 1 :]
        good = [int((row > row[token]).sum()) < top for row, token in zip(rows, tokens, strict=False)]
        kept = len(block)
        for mine, yours in contract.chunks_by_walking(our_ends, their_ends):
            if mine[-1] >= len(ids) and not all(good[token] for token in yours):
                kept = max(mine[0] - len(ids), 0)
                break
        ids += block[:kept]
        if kept == len(block):
            continue
        ours.noise.generators[0].set_state(states[kept])
        text, _ = own.vocabulary.spell(np.asarray(ids, dtype=np.int64))
        begun = other.responses_of_bytes([text])[0].ids.tolist()
        logits = behind(made.teacher, prompts[1] + begun)[-1]
        logits[[0, 1]] = -torch.inf
        token = theirs.pick(logits)
        if token == other.eos:
            new = [own.eos]
        else:
            whole = other.vocabulary.spell(np.asarray([*begun, token]))[0]
            assert whole.startswith(text)
            fresh = whole[len(text) :]
            new = own.going_on(fresh) if ids else own.responses_of_bytes([fresh])[0].ids.tolist()
        refused += 1
        ids += new[: LENGTH - len(ids)]
        if not new:
            break
    return ids, refused


def test_two_tokenizers_are_corrected_at_the_bytes_that_they_share() -> None:
    made = contract.bench(method(OnPolicyULD, 200))
    expected = [
        block_by_block(made, each.example, draw, 200) for each, draw in zip(made.examples, draws(made), strict=True)
    ]
    assert written(made) == [ids for ids, _ in expected]
    assert any(refused for _, refused in expected)
    assert any(len(ids) > refused for ids, refused in expected)


# --- in a training ----------------------------------------------------------------------------------------------------


def test_a_training_tells_how_much_its_teacher_wrote(tmp_path: Path) -> None:
    steps = contract.run(method(OnPolicyULD, 200, rollout_tokens=4), tmp_path)
    assert all(0 <= step["tokens of the teacher"] <= 1 for step in steps)
    assert any(0 < step["tokens of the teacher"] < 1 for step in steps)


@pytest.mark.slow
@PAIRS
def test_a_resumed_training_is_corrected_as_a_straight_one(kind: type[Method], tmp_path: Path) -> None:
    contract.resumed_equals_straight(method(kind, 200), tmp_path)


def test_one_teacher_corrects() -> None:
    terms = [*contract.bench(method(OnPolicyFKD, 5)).objective.terms]
    terms += contract.bench(method(OnPolicyULD, 5)).objective.terms
    with pytest.raises(ValueError, match="one teacher corrects"):
        RolloutSettings.of(terms)


def test_bytes_that_go_on_with_a_text_have_no_space_before_them() -> None:
    made = contract.bench(method(OnPolicyULD, 5))
    for side in made.sides.values():
        begun = side.responses_of_bytes([b"It is"])[0].ids
        for more in (b" 201", b"sheep", " Zürich".encode(), b"\xf0\x9f"):
            assert side.vocabulary.spell(np.append(begun, side.going_on(more)))[0] == b"It is" + more
