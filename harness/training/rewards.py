"""Rewards: what a task says of responses that the student samples, and the groups of a term that learns from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.base.errors import HarnessError
from harness.data.templates import TextSide
from harness.data.terms import Term
from harness.data.tokens import STUDENT, TokenizedExample
from harness.tasks.base import Task
from methods.library.alignment import Groups

Reward = Callable[[str, str], float]
"""Of a response to a training row: its id, and the text."""


def reward_of(task: Task) -> Reward:
    """What a task says of responses to its training rows."""
    return lambda row, response: task.reward(row, response)


def rewarded_groups(
    term: Term, examples: Sequence[TokenizedExample], reward: Reward | None, side: TextSide
) -> list[Groups]:
    """A term's groups of sampled responses.

    Args:
        examples: as many behind one another as the method samples to a prompt.
        side: the student's tokenizer.

    Raises:
        HarnessError: nobody says a reward.
    """
    if reward is None:
        raise HarnessError(f"method {term.method.name}", "no reward", "a task that says one of a response")
    responses = []
    for example in examples:
        ids = example.sides[STUDENT].response.tolist()
        text = side.answer_text([token for token in ids if token not in side.eos_ids])
        responses.append(replace(example.aligned(term.teacher), reward=reward(example.id, text)))
    return term.method.align_all(responses)
