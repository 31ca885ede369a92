"""Countdown: reach a target with given numbers, each used once. A generator makes problems, a parser judges answers.

The task of GOLD's study (Hugging Face, "Unlocking On-Policy Distillation for Any Model Family", 2025-10-29), which took
its 80,000 training and 10,000 test problems from a data set; ours are made. A problem is the result of a random
calculation, so each has a solution. Whether it is a training or a test problem is decided by a digest of its numbers
and its target: no problem is ever in both, whatever the sizes. Settings are chosen on ``countdown.split=dev``, which
tests on a share of the training problems, trains on the others, and makes no use of test problems.

Answers are never evaluated as code: a recursive descent over + - * / and parentheses, in exact rational arithmetic.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from harness.base.errors import HarnessError
from harness.base.files import digest_of
from harness.data.rows import Example, Request
from harness.tasks.base import ItemScores, Metric, Split, Task, TaskSettings

Operator = Literal["+", "-", "*", "/"]
ProblemShare = Literal["train", "dev", "test"]
_ROLES: tuple[Split, ...] = ("train", "test")
Outcome = Literal["right", "wrong value", "wrong numbers", "no expression", "no answer"]

LONGEST = 256  # characters of an expression; six numbers with all their parentheses need a quarter
DEEPEST = 32  # nested parentheses

_SHARES = 9  # one problem in so many is for the test, another for choosing settings
_DEV = " (a share of the training problems, to choose settings with: countdown.split=dev)"
_SAMPLE = 300  # problems whose sizes stand for those of all
_PATIENCE = 100_000  # calculations without a new problem after which there are taken to be no more


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


def _characters(value: Any) -> Any:
    return list(value) if isinstance(value, str) else value


class CountdownSettings(TaskSettings):
    train_items: int = Field(80_000, ge=1, description="training problems")
    test_items: int = Field(10_000, ge=1, description="test problems")
    numbers: Annotated[tuple[Annotated[int, Field(ge=2, le=6)], ...], BeforeValidator(_as_list)] = Field(
        (3, 4), min_length=1, description="how many numbers a problem has; each equally often, while there are any"
    )
    largest_number: int = Field(99, ge=2, le=10_000, description="numbers are from 1 to this")
    largest_target: int = Field(99, ge=1, le=1_000_000, description="targets are from 1 to this")
    operators: Annotated[tuple[Operator, ...], BeforeValidator(_characters)] = Field(
        ("+", "-", "*", "/"), min_length=1, description="of solutions and in the prompt: a text such as '+-' will do"
    )
    seed: int = Field(0, description="of the generator: another one gives other problems")
    split: Literal["test", "dev"] = Field(
        "test", description="what is tested on; dev: a share of the training problems, to choose settings with"
    )

    @field_validator("numbers", "operators")
    @classmethod
    def _are_distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("one of them stands there twice")
        return values


@dataclass(frozen=True)
class CountdownProblem:
    """Numbers, a target, and one way to it.

    Attributes:
        numbers: in the order in which they are shown.
        target: a positive integer.
        steps: the calculation, e.g. ``("19 - 4 = 15", "15 * 2 = 30")``.
        expression: the same as one expression, e.g. ``(19 - 4) * 2``.
    """

    numbers: tuple[int, ...]
    target: int
    steps: tuple[str, ...]
    expression: str

    @property
    def response(self) -> str:
        """What is trained on: the steps in words of arithmetic, then the answer."""
        return f"{', '.join(self.steps)}\n<answer>{self.expression}</answer>"

    @property
    def share(self) -> ProblemShare:
        """Which part of the world it belongs to: decided by its numbers, whatever their order, and its target."""
        key = f"{sorted(self.numbers)} {self.target}"
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % _SHARES
        return "test" if place == 0 else "dev" if place == 1 else "train"

    def role(self, split: Literal["test", "dev"]) -> Split | None:
        """What it is used for where ``split`` is tested on; None: for nothing."""
        if self.share == split:
            return "test"
        return None if self.share == "test" else "train"


class Countdown(Task[CountdownSettings]):
    name = "countdown"
    source = "made by the harness, in any number; countdown.seed draws others"
    summary = "arithmetic puzzles, accuracy"
    Settings = CountdownSettings
    metrics = (Metric("accuracy"),)
    rewards = True
    train_files = ()
    test_files = ()

    def training_examples(self) -> list[Example]:
        return self._examples("train", "countdown/train")

    def reference_examples(self) -> list[Example]:
        return self._examples("test", "countdown")

    def requests(self) -> list[Request]:
        return [Request(example.id, example.prompt) for example in self.reference_examples()]

    def training_count(self) -> int:
        return self.settings.train_items

    def text_sizes(self, split: Split) -> Sequence[tuple[int, int]]:
        """Those of the first problems, over and over: making all of them takes many seconds."""
        problems, operators = self._sample[split], self.settings.operators
        sizes = [(len(_prompt(problem, operators)), len(problem.response)) for problem in problems]  # all of it ASCII
        count = self._asked_for(split)
        return (sizes * -(-count // len(sizes)))[:count]

    def request_sizes(self) -> Sequence[int]:
        return [prompt for prompt, _ in self.text_sizes("test")]

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        scores = {}
        for student, answers in outputs.items():
            outcomes = {
                f"countdown/{place}": judge(answers[f"countdown/{place}"], problem.numbers, problem.target)
                for place, problem in enumerate(self._problems["test"])
            }
            scores[student] = ItemScores(
                {"accuracy": {item: 100.0 * (outcome == "right") for item, outcome in outcomes.items()}},
                {"outcomes": dict(Counter(outcomes.values()).most_common())},
            )
        return scores

    def reward(self, row: str, response: str) -> float:
        problem = self._problems["train"][int(row.rpartition("/")[2])]
        return float(judge(response, problem.numbers, problem.target) == "right")

    def protocol(self) -> list[str]:
        settings = self.settings
        return [
            f"{settings.test_items} generated problems of {' or '.join(map(str, settings.numbers))} numbers up to "
            f"{settings.largest_number}, targets up to {settings.largest_target}, operators "
            f"{' '.join(settings.operators)}, seed {settings.seed}, none of them trained on"
            f"{_DEV if settings.split == 'dev' else ''}; greedy, at most "
            f"{settings.new_tokens} new tokens; right: between the last <answer> tags an expression of integers, "
            "+ - * / and parentheses that uses each number exactly once and is the target exactly."
        ]

    def training_identity(self) -> dict[str, Any]:
        unused = {"test_items", "new_tokens", "seeds"}
        return {name: value for name, value in self.settings.model_dump(mode="json").items() if name not in unused}

    def training_digest(self) -> str:
        return self._digest("train")

    def test_digests(self) -> list[str]:
        return [self._digest("test")]

    def _digest(self, role: Split) -> str:
        """Of what makes the problems: these settings, and the generator, which is in every stage's code."""
        unused = {"train_items", "test_items", "new_tokens", "seeds"}
        return digest_of([role, self._asked_for(role), self.settings.model_dump(mode="json", exclude=unused)])

    def _asked_for(self, role: Split) -> int:
        return self.settings.train_items if role == "train" else self.settings.test_items

    def _examples(self, role: Split, prefix: str) -> list[Example]:
        made = f"countdown.seed={self.settings.seed}, {role} problem"
        return [
            Example(f"{prefix}/{place}", _prompt(problem, self.settings.operators), problem.response, f"{made} {place}")
            for place, problem in enumerate(self._problems[role])
        ]

    @cached_property
    def _problems(self) -> Mapping[Split, Sequence[CountdownProblem]]:
        return self._first_of_each({role: self._asked_for(role) for role in _ROLES})

    @cached_property
    def _sample(self) -> Mapping[Split, Sequence[CountdownProblem]]:
        return self._first_of_each({role: min(self._asked_for(role), _SAMPLE) for role in _ROLES})

    def _first_of_each(self, counts: Mapping[Split, int]) -> Mapping[Split, Sequence[CountdownProblem]]:
        """The first so many of each role in one stream: a larger set begins with the smaller one."""
        settings = self.settings
        made: dict[Split, list[CountdownProblem]] = {role: [] for role in _ROLES}
        for problem in generate(settings):
            role = problem.role(settings.split)
            if role and len(made[role]) < counts[role]:
                made[role].append(problem)
            if all(len(made[role]) == counts[role] for role in made):
                return made
        raise HarnessError(
            "countdown",
            f"{len(made['train'])} training and {len(made['test'])} test problems with these settings",
            f"{counts['train']} and {counts['test']}",
            "Lower train_items and test_items, or widen numbers, largest_number, largest_target or operators.",
        )


def _prompt(problem: CountdownProblem, operators: Sequence[str]) -> str:
    return (
        f"Reach {problem.target} with the numbers {', '.join(map(str, problem.numbers))}. Use every number exactly "
        f"once and no other, with {' '.join(operators)} and parentheses. Show how you calculate, then put the whole "
        "expression between answer tags, like this: <answer>(1 + 2) + 3</answer>\n"
    )


# --- Making problems --------------------------------------------------------------------------------------------------


def generate(settings: CountdownSettings) -> Iterator[CountdownProblem]:
    """Different problems without end, or until there seem to be no more; of all shares, in one stream.

    Every value on the way is a positive integer, so that a solution reads as a person would write it.
    """
    source = random.Random(settings.seed).random  # alone of random's methods the same in every version of Python

    def below(count: int) -> int:
        return int(source() * count)

    seen: set[tuple[tuple[int, ...], int]] = set()

    def another(size: int) -> CountdownProblem | None:
        for _ in range(_PATIENCE):
            numbers = tuple(1 + below(settings.largest_number) for _ in range(size))
            problem = _calculate(numbers, settings.operators, below)
            if problem is not None and problem.target <= settings.largest_target:
                key = tuple(sorted(numbers)), problem.target
                if key not in seen:
                    seen.add(key)
                    return problem
        return None

    sizes = list(settings.numbers)
    while sizes:
        # The size first, then calculations until one fits: those with more numbers fail more often.
        size = sizes[below(len(sizes))]
        problem = another(size)
        if problem is None:
            sizes.remove(size)
        else:
            yield problem


def _calculate(
    numbers: tuple[int, ...], operators: Sequence[str], below: Callable[[int], int]
) -> CountdownProblem | None:
    """Combine two random parts at a time until one is left; None where a value is no positive integer.

    Args:
        below: a random integer from 0 to its argument, exclusive.
    """
    parts = [(number, str(number)) for number in numbers]  # what is left to combine, and how it reads
    steps: list[str] = []
    while len(parts) > 1:
        left, left_text = parts.pop(below(len(parts)))
        right, right_text = parts.pop(below(len(parts)))
        sign = operators[below(len(operators))]
        value = _combined(left, sign, right)
        if value is None:
            return None
        steps.append(f"{left} {sign} {right} = {value}")
        parts.append((value, f"({left_text} {sign} {right_text})"))
    ((target, expression),) = parts
    return CountdownProblem(numbers, target, tuple(steps), expression[1:-1])  # the outermost parentheses say nothing


def _combined(left: int, sign: str, right: int) -> int | None:
    """The value, where it is a positive integer."""
    if sign == "+":
        return left + right
    if sign == "*":
        return left * right
    if sign == "-":
        return left - right if left > right else None
    return left // right if left % right == 0 else None


# --- Judging answers --------------------------------------------------------------------------------------------------


def judge(response: str, numbers: Sequence[int], target: int) -> Outcome:
    """What is right or wrong with the expression between the last ``<answer>`` and ``</answer>`` of a response."""
    end = response.rfind("</answer>")
    start = response.rfind("<answer>", 0, max(end, 0))
    if start < 0:
        return "no answer"
    try:
        value, used = evaluate(response[start + len("<answer>") : end])
    except ExpressionError:
        return "no expression"
    if sorted(used) != sorted(numbers):
        return "wrong numbers"
    return "right" if value == target else "wrong value"


class ExpressionError(ValueError):
    """A text that is no expression, or one without a value."""


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression, and the integers in it from left to right.

    ``expression = term {("+" | "-") term}; term = factor {("*" | "/") factor}; factor = integer | "(" expression ")"``.
    Integers are ASCII digits without a sign or leading zeros; blanks may stand between symbols.

    Raises:
        ExpressionError: anything else, a division by zero, or more than `LONGEST` characters or `DEEPEST` parentheses.
    """
    if len(text) > LONGEST:
        raise ExpressionError(f"{len(text)} characters")
    parser = _Parser(text)
    value = parser.expression(0)
    if parser.next:
        raise ExpressionError(f"{parser.next!r} behind the end")
    return value, parser.integers


class _Parser:
    """One symbol ahead: ``next`` is an integer, one of ``+-*/()``, or empty at the end."""

    def __init__(self, text: str) -> None:
        self.symbols = _symbols(text)
        self.next = next(self.symbols, "")
        self.integers: list[int] = []

    def step(self) -> str:
        """The symbol that stood ahead; the one after it stands ahead now."""
        taken, self.next = self.next, next(self.symbols, "")
        return taken

    def expression(self, depth: int) -> Fraction:
        value = self.term(depth)
        while self.next in ("+", "-"):
            value = value + self.term(depth) if self.step() == "+" else value - self.term(depth)
        return value

    def term(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while self.next in ("*", "/"):
            if self.step() == "*":
                value *= self.factor(depth)
            elif divisor := self.factor(depth):
                value /= divisor
            else:
                raise ExpressionError("a division by zero")
        return value

    def factor(self, depth: int) -> Fraction:
        symbol = self.step()
        if symbol == "(" and depth < DEEPEST:
            value = self.expression(depth + 1)
            if self.step() != ")":
                raise ExpressionError("an open parenthesis")
            return value
        if not symbol.isdigit():
            raise ExpressionError(f"{symbol!r} for a number")
        self.integers.append(int(symbol))
        return Fraction(self.integers[-1])


def _symbols(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        start, character = place, text[place]
        place += 1
        if character in "+-*/()":
            yield character
        elif character in "0123456789":
            while place < len(text) and text[place] in "0123456789":
                place += 1
            if character == "0" and place > start + 1:
                raise ExpressionError("a leading zero")
            yield text[start:place]
        elif character not in " \t\r\n":
            raise ExpressionError(repr(character))
