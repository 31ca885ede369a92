"""The same chance for every row: configurations to try, and the stages that try them on held-out training rows.

For each row of a recipe the same number of configurations, one seed, a share of the steps; the first is the row as the
recipe has it. They share teachers, warm starts and rows with one another, and are planned, stored and resumed as the
stages of a run are. Nothing reads a test set.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch.quasirandom import SobolEngine

from harness.base.errors import HarnessError
from harness.base.files import Json, digest_of
from harness.plan.builder import StageBuilder
from harness.plan.objectives import ObjectiveSpec, make_objectives
from harness.plan.stage_code import own_codes
from harness.plan.stages import Cell, Plan, Stage, with_inputs
from harness.recipe.lock import TuningMetric
from harness.recipe.schema import Options, Recipe
from methods.library.dual import is_dual

KD_SHARE, RATE, LENGTH = "kd_share", "rate", "length"
FACTORS = (RATE, LENGTH)  # 1 is what the recipe has; in between, values are spaced by ratios
MOST_DEV_ROWS = 200
BUDGET, SHARE = 6, 0.5

Point = Mapping[str, float]
Space = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class TuningSettings:
    """How rows are tuned.

    Attributes:
        budget: configurations of each row.
        seed: of the one repetition.
        share: of the recipe's steps that a trial trains.
        metric: of the student on held-out rows: its bits per byte, or what the task says its answers are worth.
    """

    budget: int = BUDGET
    seed: int = 0
    share: float = SHARE
    metric: TuningMetric = "bits_per_byte"

    def __post_init__(self) -> None:
        for name, value, low, high in (("budget", self.budget, 1, 1000), ("share", self.share, 0.01, 1)):
            if not low <= value <= high:
                raise HarnessError(name, str(value), f"a number from {low:g} to {high:g}")
        if self.metric not in get_args(TuningMetric):
            raise HarnessError("metric", repr(self.metric), f"one of {', '.join(get_args(TuningMetric))}")


@dataclass(frozen=True)
class TuningTrial:
    """A configuration of a row on a task.

    Attributes:
        row: as the recipe's `methods` call it.
        number: of the configuration; 0 is the row as the recipe has it.
        point: what is tuned, by name.
        cell: with the student that is trained; its test scores are asked for by nobody.
        dev: bits per byte of that student on held-out training rows, or its answers to them.
    """

    row: str
    number: int
    point: Point
    cell: Cell
    dev: Stage


@dataclass(frozen=True, eq=False)
class TuningPlan(Plan):
    """All trials of a recipe; what is asked for are their dev bits, or answers.

    Attributes:
        settings: how rows are tuned.
        trials: by task, then configuration, then row, so that a tuning that is cut short leaves whole rounds.
    """

    settings: TuningSettings = TuningSettings()
    trials: tuple[TuningTrial, ...] = ()

    @property
    def ends_alone(self) -> bool:
        return True

    @property
    def evaluated(self) -> tuple[Cell, ...]:
        return ()

    @property
    def ends(self) -> list[Stage]:
        return [trial.dev for trial in self.trials]

    def stages(self) -> list[Stage]:
        return list({stage.identity: stage for end in self.ends for stage in with_inputs(end)}.values())


def make_tuning_plan(recipe: Recipe, settings: TuningSettings) -> TuningPlan:
    """The trials of a recipe. Of two fidelities the first is tuned; both rows then have its settings.

    Raises:
        HarnessError: as :func:`harness.plan.builder.make_plan`; or a row's space is wrong; or a task can't say what
            answers to training rows are worth, where settings ask for that.
    """
    tasks = {name: recipe.task(name) for name in recipe.tasks}
    silent = [name for name, task in tasks.items() if not task.rewards]
    if settings.metric == "score" and silent:
        found = f"score, which {', '.join(silent)} can't say of answers to training rows"
        raise HarnessError("metric", found, "bits_per_byte, or tasks with a rule for single answers")
    if not recipe.dev.rows:
        fewest = min(len(task.training_examples()) for task in tasks.values())
        rows = max(1, min(MOST_DEV_ROWS, fewest // 10))
        recipe = recipe.model_copy(update={"dev": recipe.dev.model_copy(update={"rows": rows})})
    bare = recipe.model_copy(update={"tuned": {}, "tuning": {}, "fidelity": recipe.fidelity[:1], "stages": ()})
    objectives = dict(zip(bare.methods, make_objectives(bare), strict=True))
    points = {row: configurations(bare, row, one, settings.budget) for row, one in objectives.items()}
    codes, trials = own_codes(), []
    for task in tasks.values():
        builder = StageBuilder(bare, task, codes)
        for number in range(settings.budget):
            tuned = {row: overlay(bare, one, points[row][number], settings.share) for row, one in objectives.items()}
            changed = bare.model_copy(update={"tuned": tuned})
            for row, one in zip(bare.methods, make_objectives(changed), strict=True):
                cell, dev = builder.trial(changed, _numbered(one, number), settings.seed, settings.metric)
                trials.append(TuningTrial(row, number, points[row][number], cell, dev))
    codes.keep()
    return TuningPlan(recipe, tuple(trial.cell for trial in trials), tasks, (), settings, tuple(trials))


def _numbered(objective: ObjectiveSpec, number: int) -> ObjectiveSpec:
    """Called by the configuration, so that trials of a row can be told apart; names decide no result."""
    return ObjectiveSpec(f"{objective.label} [{number + 1}]", objective.parts, objective.ce_weight, objective.training)


# --- What is tried ----------------------------------------------------------------------------------------------------


def configurations(recipe: Recipe, row: str, objective: ObjectiveSpec, budget: int) -> list[Point]:
    """As many configurations of a row: itself, then the points of its grid where that has as many, else Sobol points.

    Raises:
        HarnessError: the recipe's `tune` names what the row does not have.
    """
    space = space_of(recipe, row, objective)
    default = {name: _value(objective, name) for name in space}
    grid: list[Point] = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    others = [point for point in grid if point != default] if len(grid) == budget else _sobol(space, budget)
    return [default, *(point for point in others if point != default)][:budget]


def space_of(recipe: Recipe, row: str, objective: ObjectiveSpec) -> Space:
    """What is tuned of a row: what the recipe says, else what its method does.

    Raises:
        HarnessError: the recipe names what the row does not have, or no numbers.
    """
    asked = recipe.tuning_of(row)
    if not asked:
        return objective.methods[0].tunes
    known = {KD_SHARE, *FACTORS, *(name for name in _options(objective) if not is_dual(row))}
    space: dict[str, Sequence[float]] = {}
    for name, values in asked.items():
        listed = values if isinstance(values, list | tuple) else [values]
        numbers = [float(one) for one in listed if isinstance(one, int | float) and not isinstance(one, bool)]
        if name not in known or not numbers or len(numbers) < len(listed):
            expected = f"a list of numbers under one of {', '.join(sorted(known))}"
            raise HarnessError(f"tune of {row}", f"{name}: {values!r:.60}", expected)
        space[name] = numbers
    return space


def _options(objective: ObjectiveSpec) -> dict[str, object]:
    return objective.methods[0].options.model_dump() | {"same_weight": _same_share(objective)}


def _same_share(objective: ObjectiveSpec) -> float:
    total = _kd_weight(objective)
    return objective.parts[0].weight / total if total else 0.5


def _kd_weight(objective: ObjectiveSpec) -> float:
    return sum(part.weight for part in objective.parts)


def _value(objective: ObjectiveSpec, name: str) -> float:
    """What a row has of a tuned value as it stands."""
    if name in FACTORS:
        return 1.0
    if name == KD_SHARE:
        kd = _kd_weight(objective)
        return round(kd / (objective.ce_weight + kd), 12) if kd else 0.0
    found = _options(objective)[name]
    return float(found) if isinstance(found, int | float) else math.nan


def _sobol(space: Space, count: int) -> list[Point]:
    """Points that fill the ranges of a space evenly, whatever their number; the same ones at each call."""
    engine = SobolEngine(len(space), scramble=False)  # type: ignore[no-untyped-call]
    unit = engine.draw(count + 1, dtype=torch.float64)[1:].tolist()  # the first is a corner
    return [
        {name: _between(name, values, place) for (name, values), place in zip(space.items(), row, strict=True)}
        for row in unit
    ]


def _between(name: str, values: Sequence[float], place: float) -> float:
    low, high = min(values), max(values)
    found = low * (high / low) ** place if name in FACTORS else low + place * (high - low)
    return float(f"{found:.4g}")


def overlay(recipe: Recipe, objective: ObjectiveSpec, point: Point, share: float = 1.0) -> Options:
    """A configuration as the recipe's `tuned` has it for a row.

    Args:
        share: of the steps.
    """
    made: Options = {name: value for name, value in point.items() if name not in (KD_SHARE, *FACTORS)}
    if KD_SHARE in point:
        kd = _kd_weight(objective)
        total = objective.ce_weight + kd
        if point[KD_SHARE] != _value(objective, KD_SHARE):  # else to the last digit as the recipe has them
            made |= {"ce_weight": total * (1 - point[KD_SHARE]), "kd_weight": total * point[KD_SHARE]}
    whole = {name for name, value in _options(objective).items() if isinstance(value, int)}
    made |= {name: int(value) for name, value in point.items() if name in whole}
    training = objective.training.over(recipe.train)
    train: Options = {}
    if (rate := point.get(RATE, 1.0)) != 1:
        train["learning_rate"] = training.learning_rate * rate
    if (factor := share * point.get(LENGTH, 1.0)) != 1:
        if training.steps is not None:
            train["steps"] = max(1, round(training.steps * factor)) if training.steps else 0
        elif training.epochs is not None:
            train["epochs"] = training.epochs * factor
        if training.warmup >= 1:
            train["warmup"] = max(1.0, round(training.warmup * factor))
    return made | ({"train": train} if train else {})


# --- What it hangs on -------------------------------------------------------------------------------------------------


def digests(trial: TuningTrial) -> dict[str, str]:
    """What a row's trials come from, part by part: fields of the recipe, training rows, the code of its methods."""
    chain = list(with_inputs(trial.cell.student))
    settings = [_settings(stage) for stage in chain]
    data = [_data(stage).get("file") for stage in chain]
    own = {file: digest for file, digest in trial.cell.student.code.items() if not file.startswith("harness/")}
    return {"recipe": digest_of(settings), "data": digest_of(data), "code": digest_of(own)}


def _data(stage: Stage) -> Mapping[str, Json]:
    found = stage.values.get("data")
    return found if isinstance(found, Mapping) else {}


def _settings(stage: Stage) -> dict[str, Json]:
    """Values of a stage that stand in a recipe; how a machine computes is none of them."""
    kept = {name: value for name, value in stage.values.items() if name not in ("code", "versions", "dtype", "data")}
    return {**kept, "kind": stage.kind, "data": {name: value for name, value in _data(stage).items() if name != "file"}}
