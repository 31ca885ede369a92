"""The best weights on held-out rows: which they are, that looking changes nothing, and that it survives resuming."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.errors import HarnessError
from harness.data.rows import Example, held_out
from harness.evaluate.bits_per_byte import corpus_bits_per_byte, measure
from harness.recipe.load import RecipeError, load_recipe
from harness.recipe.training import Training
from harness.training.selection import DEV, kept_step
from harness.training.trainer import train
from methods.uld import ULD
from tests.methods import contract

Weights = list[torch.Tensor]


class _KilledError(Exception):
    pass


def _run(
    folder: Path, values: Sequence[float] | None, *, killed_after: int | None = None, **settings: Any
) -> tuple[list[dict[str, float]], Weights, list[Weights]]:
    """Four steps with a look after each, that finds these values; steps, weights that are left, and those at each step.

    Without values nothing is looked at.
    """
    made = contract.bench(ULD(), dtype=torch.float32)
    seen: list[Weights] = []
    given: Iterator[float] = iter(values or ())

    def look() -> float:
        return next(given)

    def on_step(step: dict[str, float]) -> None:
        seen.append([weight.detach().clone() for weight in made.student.parameters()])
        if step["step"] == killed_after:
            raise _KilledError

    asked = {"batch_size": 2, "learning_rate": 1e-3, "select": "best_dev", "checkpoint_every": 1} | settings
    steps: list[dict[str, float]] = []
    with contextlib.suppress(_KilledError):
        steps = train(
            made.distiller(),
            made.examples,
            made.collator(chunk_rows=16),
            Training(steps=4, **asked),
            steps=4,
            seed=3,
            work=folder,
            on_step=on_step,
            dev_bits_per_byte=None if values is None else look,
        )
    return steps, [weight.detach().clone() for weight in made.student.parameters()], seen


def _equal(one: Weights, other: Weights) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("found", "best"),
    [([4.0, 2.0, 3.0, 2.0], 2), ([4.0, 3.0, 2.0, 1.0], 4), ([1.0, 2.0, float("nan"), 3.0], 1)],
    ids=["the earlier of two", "the last", "nothing better than the first"],
)
def test_the_weights_of_the_best_look_are_left(found: list[float], best: int, tmp_path: Path) -> None:
    steps, left, seen = _run(tmp_path, found)
    assert kept_step(steps) == best
    assert _equal(left, seen[best - 1])
    assert [_equal(left, other) for other in seen].count(True) == 1


def test_looking_changes_no_step(tmp_path: Path) -> None:
    plain, last, _ = _run(tmp_path / "plain", None)
    looked, _, seen = _run(tmp_path / "looked", [1.0, 2.0, 3.0, 4.0])
    assert [{k: v for k, v in step.items() if k != DEV} for step in looked] == plain
    assert _equal(seen[-1], last)


def test_looks_are_evenly_spaced_and_the_last_is_after_the_last_step(tmp_path: Path) -> None:
    steps, _, _ = _run(tmp_path, [3.0, 2.0], evaluations=2)
    assert [step["step"] for step in steps if DEV in step] == [2, 4]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_training_keeps_what_was_best_before_it_stopped(stop: int, tmp_path: Path) -> None:
    """Killed in the step after; the next run begins at its checkpoint with a model that knows nothing."""
    found = [2.0, 1.0, 3.0, 4.0]
    straight, left, _ = _run(tmp_path / "straight", found)
    _run(tmp_path / "broken", found[: stop + 1], killed_after=stop + 1)
    resumed, again, _ = _run(tmp_path / "broken", found[stop:])
    assert resumed == straight
    assert _equal(again, left)


def test_the_look_is_bits_per_byte_of_the_model_as_it_is(tmp_path: Path) -> None:
    """Measured while it trains, and after: the same number, dropout off."""
    made = contract.bench(ULD(), dtype=torch.float32)
    dev = [aligned.example for aligned in made.examples[:2]]

    def bits() -> float:
        return corpus_bits_per_byte(measure(made.student, dev, pad=0))

    steps = train(
        made.distiller(),
        made.examples[2:],
        made.collator(),
        Training(steps=2, learning_rate=1e-2, batch_size=2, select="best_dev", evaluations=2),
        steps=2,
        seed=3,
        work=tmp_path,
        dev_bits_per_byte=bits,
    )
    assert min(step[DEV] for step in steps) == bits()


def test_held_out_rows_are_evenly_spaced_and_their_questions_are_not_trained_on() -> None:
    examples = [Example(str(i), f"question {i % 8}", f"answer {i}") for i in range(10)]
    train_rows, dev = held_out(examples, 2, attrgetter("prompt"))
    assert [one.id for one in dev] == ["4", "9"]
    assert [one.id for one in train_rows] == ["0", "2", "3", "5", "6", "7", "8"]  # 1 asks what 9 asks
    apart, dev = held_out(examples, 2, question=lambda one: one.prompt + one.response)  # as a task may say
    assert [one.id for one in apart + dev] == ["0", "1", "2", "3", "5", "6", "7", "8", "4", "9"]
    assert held_out(examples, 0, attrgetter("prompt")) == (examples, [])
    with pytest.raises(HarnessError, match=r"dev.rows: found 6 of 10 training rows; expected at most half"):
        held_out(examples, 6, attrgetter("prompt"))


@pytest.mark.parametrize(
    "override",
    ["train.select=best_dev", "method_options.uld.train={select: best_dev}", "warm_start.select=best_dev"],
)
def test_without_held_out_rows_nothing_can_be_chosen_on_them(override: str) -> None:
    with pytest.raises(RecipeError, match=r"select: found 'best_dev', but no training rows are held out; set dev.rows"):
        load_recipe("quickstart", [override])
    load_recipe("quickstart", [override, "dev.rows=8"])
