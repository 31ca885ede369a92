"""Countdown: problems are solvable, apart and the same everywhere; the judge agrees with Python and brute force."""

from __future__ import annotations

import ast
import hashlib
import json
import operator
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.base.errors import HarnessError
from harness.tasks import countdown, tasks
from harness.tasks.countdown import (
    DEEPEST,
    LONGEST,
    Countdown,
    CountdownProblem,
    CountdownSettings,
    ExpressionError,
    evaluate,
    generate,
    judge,
)


def made(**changes: Any) -> Countdown:
    return Countdown(CountdownSettings(**{"train_items": 300, "test_items": 60} | changes), None)


# --- The judge --------------------------------------------------------------------------------------------------------

SIGNS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def by_python(text: str) -> Fraction | None:
    """The value as Python's own parser reads the text; None for what is no expression of ours or has no value."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
            found: Fraction = SIGNS[type(node.op)](value(node.left), value(node.right))
            return found
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return Fraction(node.value)
        raise ValueError(node)

    if re.search("(?<![0-9])00+(?![0-9])", text):  # Python reads it as 0
        return None
    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


@settings(max_examples=600, deadline=None)
@given(st.text("0123456789+-*/() ", max_size=24))
@example("1)+(2")
@example("2**3")
@example("7//2")
@example("-3")
@example("3--3")
@example("0")
@example("1 2")
@example("()")
@example("")
def test_any_text_is_read_as_python_reads_it(text: str) -> None:
    try:
        found, _ = evaluate(text)
    except ExpressionError:
        assert by_python(text) is None
    else:
        assert found == by_python(text)


Built = tuple[str, Fraction, list[int]]  # a text, its value computed while it is built, its integers
KINDS = dict(zip("+-*/", SIGNS.values(), strict=True))


def combined(left: Built, sign: str, blank: str, right: Built) -> Built:
    sign = "-" if sign == "/" and right[1] == 0 else sign
    return f"({left[0]}){blank}{sign}{blank}({right[0]})", KINDS[sign](left[1], right[1]), left[2] + right[2]


built = st.recursive(
    st.integers(0, 99).map(lambda number: (str(number), Fraction(number), [number])),
    lambda parts: st.builds(combined, parts, st.sampled_from("+-*/"), st.sampled_from(["", " ", "\n"]), parts),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(built)
def test_values_are_exact_and_every_integer_is_seen(expression: Built) -> None:
    text, value, integers = expression
    assume(len(text) <= LONGEST)
    assert evaluate(text) == (value, integers)


def test_precedence_and_association() -> None:
    assert evaluate("8-4-2")[0] == 2
    assert evaluate("8/4/2")[0] == 1
    assert evaluate("2+3*4-6/2")[0] == 11
    assert evaluate("1/3*3")[0] == 1  # 0.333... in floating point would do too; this would not:
    assert evaluate("(1/49)*49")[0] == 1
    assert evaluate("(2+3)*4")[0] == 20


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1+", "+1", "-1", "-(1)", "1+-2", "1 2", "(1", "1)", "()", "1()", "(1)(2)", "1(2)",  # no expression
        "01", "00", "007+1", "1e5", "1.0", ".5", "1_000", "0x10", "1j", "True", "x", "1,2", "1=1", "1+2=3", "[1]",
        "1/0", "1/(2-2)", "0/0",  # no value
        "2**3", "7//2", "7%2", "1<<2", "~1", "1^2", "1×2", "1÷2", "1−2", "１", "٣", "²", "1\u00a0+1", "1\x00",
        "__import__('os').system('true')", "(lambda:1)()", "exec('1')", "9**9**9**9",
        "(" * 10**6, "(" * (LONGEST // 2) + "1" + ")" * (LONGEST // 2 - 1),
        "1+" * 10**6 + "1", "9" * 10**6, "1/" * 10**5,
        "(" * (DEEPEST + 1) + "1" + ")" * (DEEPEST + 1),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text)
    assert judge(f"<answer>{text}</answer>", (1,), 1) == "no expression"


def test_the_bounds_leave_room() -> None:
    assert evaluate("(" * DEEPEST + "1" + ")" * DEEPEST)[0] == 1
    assert evaluate("9*" * (LONGEST // 2 - 1) + "9")[0] == 9 ** (LONGEST // 2)
    six = "((((10000 * 10000) * 10000) * 10000) * 10000) / 10000"
    assert len(six) < LONGEST // 4


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("<answer>(4 - 2) * 3</answer>", "right"),
        ("4 - 2 = 2\n<answer>\n3 * (4 - 2)\n</answer> and more", "right"),
        ("<answer>6</answer> no, <answer>3*(4-2)</answer>", "right"),  # the last one counts
        ("<answer>3*(4-2)</answer> or <answer>6</answer>", "wrong numbers"),
        ("<answer>3*(4-2)</answer> or <answer>3*(4", "right"),  # cut off: the last whole one
        ("<answer><answer>3*(4-2)</answer></answer>", "no expression"),
        ("<answer>or <answer>3*(4-2)</answer>", "right"),
        ("<answer>3*(4-2)", "no answer"),
        ("3*(4-2)</answer>", "no answer"),
        ("</answer><answer>3*(4-2)", "no answer"),
        ("3*(4-2)", "no answer"),
        ("<Answer>3*(4-2)</Answer>", "no answer"),
        ("<answer></answer>", "no expression"),
        ("<answer>3*(4-2) = 6</answer>", "no expression"),
        ("<answer>3+4-2</answer>", "wrong value"),
        ("<answer>3+3</answer>", "wrong numbers"),
        ("<answer>3*2</answer>", "wrong numbers"),
        ("<answer>3*(4-2)*1</answer>", "wrong numbers"),
        ("<answer>3*(4-2)+4-4</answer>", "wrong numbers"),
        ("<answer>34-28</answer>", "wrong numbers"),
        ("", "no answer"),
        ("<answer>" * 10**5, "no answer"),
        ("</answer>" * 10**5, "no answer"),
    ],
)
def test_outcomes(response: str, outcome: str) -> None:
    assert judge(response, (2, 3, 4), 6) == outcome


def test_equal_numbers_are_used_as_often_as_they_are_given() -> None:
    assert judge("<answer>5*5-5</answer>", (5, 5, 5), 20) == "right"
    assert judge("<answer>5*4</answer>", (5, 5, 5), 20) == "wrong numbers"
    assert judge("<answer>5*5-5</answer>", (5, 5), 20) == "wrong numbers"


def test_a_value_that_is_no_integer_on_the_way_counts() -> None:
    assert judge("<answer>8/(3-8/3)</answer>", (3, 3, 8, 8), 24) == "right"  # the classic of the 24 game


# --- Problems ---------------------------------------------------------------------------------------------------------


def reachable(numbers: tuple[int, ...], signs: str) -> set[Fraction]:
    """All values, by brute force: any two of what is there become one."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    values: set[Fraction] = set()

    def combine(parts: tuple[Fraction, ...]) -> None:
        if len(parts) == 1:
            values.add(parts[0])
        for first, second in permutations(range(len(parts)), 2):
            rest = tuple(part for place, part in enumerate(parts) if place not in (first, second))
            a, b = parts[first], parts[second]
            for sign in signs:
                if sign != "/" or b:
                    combine((*rest, KINDS[sign](a, b)))

    combine(tuple(map(Fraction, numbers)))
    return values


@pytest.mark.parametrize("signs", ["+-*/", "+-", "*"])
def test_every_problem_can_be_solved_by_brute_force_and_by_its_own_solution(signs: str) -> None:
    task = made(train_items=20, test_items=5, numbers=3, operators=signs, largest_number=20)
    for problem in (*task._problems["train"], *task._problems["test"]):
        assert problem.target in reachable(problem.numbers, signs)
        assert judge(problem.response, problem.numbers, problem.target) == "right"
        assert set(problem.expression) <= set(f"0123456789() {signs}")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=3, unique=True),
    st.integers(10, 200),
    st.integers(30, 1000),
    st.sampled_from(["+", "+-", "+-*", "-+*/"]),
    st.integers(0, 10**9),
)
def test_settings_are_kept(sizes: list[int], largest: int, target: int, signs: str, seed: int) -> None:
    asked = CountdownSettings(
        numbers=sizes,
        largest_number=largest,
        largest_target=target,
        operators=signs,
        seed=seed,  # type: ignore[arg-type]
    )
    for problem, _ in zip(generate(asked), range(10), strict=False):
        assert len(problem.numbers) in sizes
        assert all(1 <= number <= largest for number in problem.numbers)
        assert 1 <= problem.target <= target
        assert judge(problem.response, problem.numbers, problem.target) == "right"
        assert set(problem.expression) & set("+-*/") <= set(signs)
        for step in problem.steps:  # what is taught as work is true
            left, _, right = step.partition(" = ")
            assert evaluate(left)[0] == int(right) > 0
        assert problem.steps[-1].endswith(f" = {problem.target}")


def test_no_problem_is_in_both_splits_or_twice() -> None:
    task = made(train_items=3000, test_items=400, largest_number=20)
    keys = [
        (tuple(sorted(problem.numbers)), problem.target)
        for split in ("train", "test")
        for problem in task._problems[split]  # type: ignore[index]
    ]
    assert len(set(keys)) == len(keys) == 3400


def test_the_split_heeds_neither_sizes_nor_seeds() -> None:
    """A model trained with one seed is not tested on what it saw with another."""
    small = {"numbers": 3, "largest_number": 9}
    trained = {(*sorted(p.numbers), p.target) for p in made(train_items=1500, **small)._problems["train"]}
    tested = {(*sorted(p.numbers), p.target) for p in made(test_items=150, seed=1, **small)._problems["test"]}
    assert len(tested) == 150
    assert not trained & tested


def test_settings_are_chosen_on_training_problems_alone() -> None:
    """countdown.split=dev trains and tests on what countdown.split=test may train on, and never on both."""

    def keys(role: str, **changes: Any) -> set[tuple[int, ...]]:
        task = made(train_items=1200, test_items=150, numbers=3, largest_number=9, **changes)
        return {(*sorted(p.numbers), p.target) for p in task._problems[role]}  # type: ignore[index]

    dev, dev_trained, trained, tested = (
        keys("test", split="dev"),
        keys("train", split="dev"),
        keys("train"),
        keys("test"),
    )
    assert len(dev) == 150
    assert not dev & dev_trained
    assert not tested & (dev | dev_trained)
    assert len(trained & dev) > 75  # they are training problems otherwise


def test_sizes_are_asked_for_equally_often() -> None:
    """Calculations with more numbers fail more often."""
    counts = Counter(len(problem.numbers) for problem in made(train_items=2000)._problems["train"])
    assert abs(counts[3] - 1000) < 4 * 500**0.5


def test_a_size_that_runs_out_leaves_the_others() -> None:
    """There are 15 pairs of numbers up to 5, each with one sum."""
    task = made(train_items=60, test_items=3, numbers=(2, 3, 4), operators="+", largest_number=5)
    counts = Counter(len(problem.numbers) for split in task._problems.values() for problem in split)
    assert counts[2] <= 15 < counts[3]
    assert sum(counts.values()) == 63


def test_a_larger_set_begins_with_the_smaller_one() -> None:
    small, large = made(train_items=20, test_items=5), made(train_items=200, test_items=50)
    assert large.training_examples()[:20] == small.training_examples()
    assert large.reference_examples()[:5] == small.reference_examples()
    assert made(seed=1).training_examples()[:20] != small.training_examples()


def test_problems_are_the_same_with_every_version_of_python() -> None:
    """Recorded with 3.11, the same with 3.12 and 3.13: a change is a change of the task."""
    task = made(train_items=100, test_items=20)
    digests = []
    for split in ("train", "test"):
        rows = [[each.numbers, each.target, each.response] for each in task._problems[split]]  # type: ignore[index]
        digests.append(hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16])
    assert (*digests, task.training_examples()[0].response) == RECORDED


def test_a_plan_needs_few_of_many_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counted(settings: CountdownSettings) -> Iterator[CountdownProblem]:
        for problem in generate(settings):
            drawn.append(problem)
            yield problem

    monkeypatch.setattr(countdown, "generate", counted)
    task = made(train_items=80_000, test_items=10_000)
    assert (task.training_count(), len(task.request_sizes())) == (80_000, 10_000)
    sizes = task.text_sizes("train")
    assert task.training_digest() != made(train_items=80_001, test_items=10_000).training_digest()
    assert task.test_digests() == made(train_items=80_001, test_items=10_000).test_digests()
    assert len(drawn) < 10_000
    some = made(train_items=2_000, test_items=1).training_examples()  # others than the sizes are of, but for the first
    real = [(len(row.prompt), len(row.response)) for row in some]
    assert np.mean(sizes, axis=0) == pytest.approx(np.mean(real, axis=0), rel=0.03)


RECORDED = (
    "790d3aebe481c49a",
    "6f0c100da7f6bf8d",
    "91 + 17 = 108, 108 - 83 = 25, 73 - 25 = 48\n<answer>73 - ((91 + 17) - 83)</answer>",
)


def test_too_few_problems_are_an_error_with_the_dials() -> None:
    with pytest.raises(HarnessError, match="Lower train_items and test_items, or widen numbers") as error:
        made(numbers=2, operators="+", largest_number=5).requests()
    assert error.value.expected == "300 and 60"
    # 15 pairs of 1 to 5, each with one sum
    assert sum(int(word) for word in error.value.found.split() if word.isdigit()) == 15


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"numbers": 1}, "greater than or equal to 2"),
        ({"numbers": 7}, "less than or equal to 6"),
        ({"numbers": (3, 3)}, "stands there twice"),
        ({"numbers": ()}, "at least 1"),
        ({"operators": "+%"}, "operators"),
        ({"operators": "++"}, "stands there twice"),
        ({"operators": ""}, "at least 1"),
        ({"largest_number": 1}, "greater than or equal to 2"),
        ({"train_items": "many"}, "valid integer"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        made(**changes)


# --- The task ---------------------------------------------------------------------------------------------------------


def test_prompts_responses_and_scores() -> None:
    task = made(train_items=5, test_items=4)
    for split, examples in (("train", task.training_examples()), ("test", task.reference_examples())):
        for row, problem in zip(examples, task._problems[split], strict=True):  # type: ignore[index]
            assert f"Reach {problem.target} with the numbers {', '.join(map(str, problem.numbers))}." in row.prompt
            assert row.response == f"{', '.join(problem.steps)}\n<answer>{problem.expression}</answer>"
            assert problem.expression not in row.prompt
    requests = task.requests()
    assert [(r.id, r.prompt) for r in requests] == [(e.id, e.prompt) for e in task.reference_examples()]
    assert not any(r.rendered or r.stop or r.seed is not None for r in requests)
    right = {e.id: e.response for e in task.reference_examples()}
    mixed = right | {"countdown/1": "<answer>1/0</answer>", "countdown/3": ""}
    scores = task.score({"right": right, "mixed": mixed}, Path(), False)
    assert scores["right"].values == {"accuracy": dict.fromkeys(right, 100.0)}
    assert list(scores["mixed"].values["accuracy"].values()) == [100.0, 0.0, 100.0, 0.0]
    assert scores["mixed"].details == {"outcomes": {"right": 2, "no expression": 1, "no answer": 1}}
    assert json.loads(json.dumps(scores["mixed"].details)) == scores["mixed"].details


def test_settings_of_the_generator_decide_both_identities() -> None:
    plain = made()
    for change in (
        {"seed": 1},
        {"numbers": 3},
        {"largest_number": 50},
        {"largest_target": 50},
        {"operators": "+-"},
        {"split": "dev"},
    ):
        other = made(**change)
        assert other.identity() != plain.identity()
        assert other.training_identity() != plain.training_identity()
        assert other.training_digest() != plain.training_digest()
        assert other.test_digests() != plain.test_digests()
        assert other.protocol() != plain.protocol()


def test_it_needs_no_files_and_loads_fast() -> None:
    assert tasks()["countdown"] is Countdown
    assert Countdown.data_needs() == []
    code = "import sys; import harness.tasks.countdown; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
