"""GRPO: advantages by hand, the loss against a naive transcription and TRL's own, groups of samples, rewards."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from harness.base.errors import HarnessError
from harness.data.terms import AlignedExample
from harness.data.tokens import STUDENT
from harness.plan.builder import make_plan
from harness.recipe.load import load_recipe
from harness.recipe.training import Training
from harness.run.preflight import _check_rewards
from harness.tasks.countdown import Countdown, CountdownSettings
from harness.training.contract_bench import SAMPLES
from harness.training.rewards import reward_of
from harness.training.rollouts import Rollouts, RolloutSettings
from harness.training.trainer import train
from methods.grpo import GRPO, advantages
from methods.library.alignment import AlignedResponse
from tests.conftest import Command
from tests.methods import contract


def test_advantages_by_hand() -> None:
    """Of rewards 1, 0, 0, 1 the mean is 1/2 and the standard deviation √(1/3): 0.5 / 0.577450."""
    assert advantages([1, 0, 0, 1]) == pytest.approx([0.865875, -0.865875, -0.865875, 0.865875], abs=1e-6)
    assert advantages([0.3, 0.3, 0.3]) == pytest.approx([0, 0, 0], abs=1e-12)
    assert advantages([1]).tolist() == [0]


def response(tokens: int, reward: float | None) -> AlignedResponse:
    ids = np.arange(tokens)
    return AlignedResponse(ids, ids, ids + 1, ids + 1, reward=reward)


def test_responses_are_compared_with_those_to_the_same_prompt_alone() -> None:
    made = GRPO(group_size=2).align_all([response(3, 1), response(1, 0), response(2, 0.25), response(2, 0.25)])
    weights = [groups.teacher_weight for groups in made]
    share = 0.5 / (0.5**0.5 + 1e-4)
    assert [weight.tolist() for weight in weights if weight is not None] == [
        pytest.approx([share] * 3), pytest.approx([-share]), [0, 0], [0, 0],
    ]  # fmt: skip
    assert [groups.notes["rewards differ"][0] for groups in made] == [1, 1, 0, 0]
    assert [groups.notes["reward"] for groups in made] == [(1, 1), (0, 1), (0.25, 1), (0.25, 1)]
    assert [groups.count for groups in made] == [3, 1, 2, 2]
    assert GRPO().align(response(3, None)).count == 0


@pytest.mark.parametrize("share", [0, {"target": "acceptance"}])
def test_without_samples_there_is_nothing_to_reward(share: Any) -> None:
    with pytest.raises(ValidationError, match="only samples are rewarded"):
        GRPO(rollout_share=share)


# --- the loss ---------------------------------------------------------------------------------------------------------


def realised(model: Any, example: AlignedExample, temperature: float) -> Tensor:
    """[tokens], log-probability of each, of the whole model, with its graph."""
    side = example.example.sides[STUDENT]
    logits = model(input_ids=torch.from_numpy(side.sequence)[None]).logits[0] / temperature
    rows = logits.log_softmax(-1)[side.prompt.size - 1 : -1]
    return rows.gather(1, torch.from_numpy(side.response)[:, None])[:, 0]


@pytest.mark.parametrize("normalize", ["tokens", "samples"])
def test_gradients_are_those_of_the_clipped_ratio_as_it_is_written(normalize: str) -> None:
    """Term by term in float64, with ρ to the policy as it is and k3 to another model as the start."""
    made = bench_of(GRPO(beta=0.4, normalize=normalize, group_size=4, rollout_temperature=0.7))
    found = gradient(made, made.loss(made.batch(chunk_rows=7)).loss)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for example, advantage in zip(made.examples, advantages(rewards_of(made)), strict=True):
        own = realised(made.student, example, 0.7)
        ratio = (own - own.detach()).exp()
        with torch.no_grad():
            start = realised(made.teacher, example, 0.7)
        kl = (start - own).exp() - (start - own) - 1
        each = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) + 0.4 * kl
        total = total + (each.mean() if normalize == "samples" else each.sum())
        tokens += len(own)
    total = total / (len(made.examples) if normalize == "samples" else tokens)
    expected = gradient(made, 0.7 * total)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def bench_of(method: GRPO) -> contract.Bench:
    """Without a cross-entropy."""
    made = contract.bench(method)
    made.objective = replace(made.objective, ce_weight=0.0)
    return made


def gradient(made: contract.Bench, loss: Tensor) -> Tensor:
    """At all of the student's parameters."""
    made.student.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in made.student.parameters()])


def rewards_of(made: contract.Bench) -> list[float]:
    """The bench's: the length of a response, of eight, in eighths."""
    return [len(response) % 8 / 8 for _, response in SAMPLES]


@pytest.mark.parametrize(("loss_type", "normalize"), [("dapo", "tokens"), ("grpo", "samples")])
def test_trl_has_the_same_gradient(loss_type: str, normalize: str) -> None:
    """GRPOTrainer's own loss of the same responses: where nothing tells it who sampled, ρ is to the model as it is."""
    trl = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL, the peer, is not installed")
    made = bench_of(GRPO(beta=0.3, normalize=normalize, group_size=4))
    found = gradient(made, made.loss(made.batch(chunk_rows=7)).loss)
    with torch.no_grad():
        start = padded([realised(made.teacher, example, 1.0) for example in made.examples])
    own = padded([realised(made.student, example, 1.0) for example in made.examples])
    mask, ids = (own.detach() != 0).double(), torch.zeros(own.shape, dtype=torch.int64)
    one = SimpleNamespace(num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x)
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *given, **more: (own, torch.zeros_like(own), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level="token", beta=0.3, loss_type=loss_type, epsilon_low=0.2, epsilon_high=0.2,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1), accelerator=one,
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    rewards = torch.as_tensor(rewards_of(made), dtype=torch.float64)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask,
        "advantages": (rewards - rewards.mean()) / (rewards.std() + 1e-4),
        "ref_per_token_logps": start, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    theirs = trl.GRPOTrainer._compute_loss(stub, None, inputs)
    torch.testing.assert_close(found, gradient(made, 0.7 * theirs), rtol=1e-8, atol=1e-10)


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


# --- samples ----------------------------------------------------------------------------------------------------------


def sampler(made: contract.Bench, reward: Any) -> Rollouts:
    settings = RolloutSettings.of(made.objective.terms)
    assert settings is not None
    return Rollouts(settings, made.objective.terms, made.sides, made.collator(), 128, 5, reward)


def test_a_group_answers_the_first_of_its_prompts_in_as_many_ways() -> None:
    made = contract.bench(GRPO(group_size=2, rollout_tokens=6))
    asked: list[tuple[str, str]] = []

    def reward(row: str, text: str) -> float:
        asked.append((row, text))
        return float(len(asked))

    parts = sampler(made, reward).samples(made.student, [made.examples[:2], made.examples[2:]], step=3)
    ids = [each.example.id for part in parts for each in part["examples"]]
    assert ids == ["x/0", "x/0", "x/2", "x/2"] == [row for row, _ in asked]
    sampled = [each.example.sides[STUDENT].response.tolist() for part in parts for each in part["examples"]]
    assert sampled[0] != sampled[1]
    assert sampled[2] != sampled[3]
    side = made.sides[STUDENT]
    assert asked[0][1] == side.answer_text([token for token in sampled[0] if token not in side.eos_ids])
    weights = parts[0]["batch"].terms[0].teacher_weight
    assert weights[0] == pytest.approx(-(0.5 / (0.5**0.5 + 1e-4)))  # the first of two has the smaller reward
    again = sampler(made, reward).samples(made.student, [made.examples[:2]], step=3)[0]["examples"]
    assert [each.example.sides[STUDENT].response.tolist() for each in again] == sampled[:2]
    alone = contract.bench(GRPO(group_size=2, rollout_tokens=6))
    alone.method.options.__dict__["group_size"] = 1  # the first of a group is what a row alone would have drawn
    first = sampler(alone, reward).samples(alone.student, [alone.examples[:1]], step=3)[0]["examples"]
    assert first[0].example.sides[STUDENT].response.tolist() == sampled[0]


def test_a_reward_that_can_be_had_is_had_more_often(tmp_path: Path) -> None:
    """Each response is one token, of which a hundred are good: about half of those that an untrained model says."""
    made = contract.bench(GRPO(group_size=4, rollout_tokens=1), dtype=torch.float32)
    side, collator = made.sides[STUDENT], made.collator()
    texts = {token: side.answer_text([token]) for token in range(3, 120)}
    good = {text for text in texts.values() if text}
    settings = RolloutSettings.of(made.objective.terms)
    assert settings is not None
    rollouts = Rollouts(settings, made.objective.terms, made.sides, collator, 128, 5, lambda row, text: text in good)
    before = mass_of(made, [token for token in texts if texts[token]])
    steps = train(
        made.distiller(),
        made.examples * 4,
        collator,
        Training(steps=15, batch_size=16, learning_rate=3e-3, schedule="constant"),
        steps=15,
        seed=0,
        work=tmp_path,
        rollouts=rollouts,
    )
    after = mass_of(made, [token for token in texts if texts[token]])
    assert after > 1.1 * before  # by a sixth here
    assert {step["sampled tokens"] for step in steps} == {16} == {step["tokens"] for step in steps}
    assert all(0 <= step["rewards differ"] <= 1 and 0 < step["reward"] <= 1 for step in steps)


@torch.no_grad()
def mass_of(made: contract.Bench, tokens: list[int]) -> float:
    """What the student gives to these as first tokens, a mean over the prompts."""
    prompts = [torch.from_numpy(example.example.sides[STUDENT].prompt)[None] for example in made.examples]
    masses = [made.student(input_ids=prompt).logits[0, -1].softmax(-1)[tokens].sum() for prompt in prompts]
    return float(torch.stack(masses).mean())


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_countdowns_verifier_is_the_reward() -> None:
    task = Countdown(CountdownSettings(train_items=3, test_items=1, numbers=2), None)
    rows = task.training_examples()
    reward = reward_of(task)
    assert [reward(row.id, row.response) for row in rows] == [1, 1, 1]
    assert reward(rows[0].id, rows[1].response) == 0
    assert reward(rows[1].id, "<answer></answer>") == reward(rows[1].id, "") == 0


@pytest.mark.slow
def test_the_whole_way_with_a_start_to_stay_near_to(harness: Command, tmp_path: Path) -> None:
    """Warm start, groups of samples, the verifier, and the KL to the warm start that is held beside the student."""
    done = harness(
        "run", "recipe=smoke", "methods=[control,grpo]", "tasks=[countdown]", "fidelity=[described]",
        "method_options.grpo={beta: 0.1, group_size: 4, rollout_tokens: 8}", "evaluation.references=[]",
        "train.batch_size=8", "train.micro_batch_size=4", "--runs", str(tmp_path),
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    (costs,) = tmp_path.glob("*/costs.csv")
    sampled = pd.read_csv(costs).set_index("row")["sampled"]
    assert np.isnan(sampled["control"])
    assert 0 < sampled["grpo"] <= 4 * 8 * 8
    (steps,) = (path for path in tmp_path.glob("store/student/*/steps.json") if "reward" in path.read_text())
    shown = json.loads(steps.read_text())
    assert shown[0]["KL to the start"] == pytest.approx(0, abs=1e-6)
    assert shown[-1]["KL to the start"] > 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["tasks=[codem]"], r"methods: grpo: found task codem, which can't say.*countdown"),
        (
            ["train.batch_size=12", "train.micro_batch_size=12"],
            r"train.batch_size.*found 12 responses.*a multiple of 8, which grpo",
        ),
        (["train.micro_batch_size=4"], r"found 4 responses"),
        ([], ""),
    ],
)
def test_what_grpo_can_not_do_is_said_before_anything_runs(asked: list[str], said: str) -> None:
    recipe = load_recipe(
        "smoke", ["methods=[control,grpo]", "tasks=[countdown]", "train.batch_size=16", "train.micro_batch_size=8",
                  "countdown.train_items=8", "countdown.test_items=2", *asked]
    )  # fmt: skip
    plan = make_plan(recipe)
    if not said:
        _check_rewards(plan)
        return
    with pytest.raises(HarnessError, match=said):
        _check_rewards(plan)
