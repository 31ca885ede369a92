"""The rows of a recipe, each in the settings that a litmus trains it in, as two recipes: many passes and fresh text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.base.errors import HarnessError, suggest
from harness.recipe.load import load_recipe, recipe_from
from harness.recipe.schema import Recipe
from methods.base import TeacherKind, find, registered

TEXTS: Mapping[str, str] = {"many passes": "known_truth", "fresh text": "known_truth_fresh"}
"""What a student reads, and the recipe that has it so."""
WEIGHTS: Mapping[str, tuple[float, float]] = {"KD alone": (0.0, 1.0), "with CE": (0.5, 0.5)}
"""Weights of CE and KD."""
TEMPERATURES = (1.0, 2.0)
CONTROL = "control"


@dataclass(frozen=True)
class Setting:
    """A row as it is trained.

    Attributes:
        row: of the recipe: a method or a variant.
        weights: of :data:`WEIGHTS`; empty for a row without a teacher.
        temperature: τ; None for a method that has none.
    """

    row: str
    weights: str = ""
    temperature: float | None = None

    @property
    def label(self) -> str:
        """What the recipe calls it."""
        tau = "" if self.temperature is None else f"_t{self.temperature:g}"
        return f"{self.row}_{self.weights.replace(' ', '_').lower()}{tau}" if self.weights else self.row


def rows_of(recipe: Recipe, method: str | None = None) -> list[str]:
    """The recipe's rows and every registered method that has a teacher and no row there; or those of one method.

    Args:
        method: a method, also a plug-in's, or a row of the recipe.

    Raises:
        HarnessError: there is no such method, or it learns from no teacher.
    """
    behind = {row: recipe.method_of(row)[0] for row in recipe.methods}
    known = {name: kind for name, kind in registered().items() if kind.teacher is not TeacherKind.NONE}
    every = [*behind, *(name for name in known if name not in behind.values())]
    if method is None:
        return every
    if method not in {*registered(), *every}:
        names = [*known, *every]
        raise HarnessError("method", repr(method), f"one of {', '.join(dict.fromkeys(names))}", suggest(method, names))
    if behind.get(method, method) not in known:
        raise HarnessError("method", method, "a method that learns from a teacher")
    chosen = [method] if method in every else [row for row, name in behind.items() if name == method]
    return [CONTROL, *dict.fromkeys([*chosen, *(row for row, name in behind.items() if name == method)])]


def settings_of(recipe: Recipe, rows: Sequence[str]) -> Iterator[Setting]:
    """Each row alone and with CE, at each temperature; all rows of one setting before the next."""
    kinds = {row: find(recipe.method_of(row)[0]) for row in rows}
    taught = [row for row, kind in kinds.items() if kind.teacher is not TeacherKind.NONE]
    softened = {row for row in taught if "temperature" in kinds[row].Options.model_fields}
    yield from (Setting(row) for row in rows if row not in taught)
    for temperature in TEMPERATURES:
        for weights in WEIGHTS:
            for row in taught:
                if row in softened:
                    yield Setting(row, weights, temperature)
                elif temperature == TEMPERATURES[0]:
                    yield Setting(row, weights)


def expanded(recipe: Recipe, settings: Sequence[Setting]) -> Recipe:
    """The recipe with a row for each setting, as a variant of its method.

    Raises:
        HarnessError: it is no recipe.
    """
    variants: dict[str, dict[str, object]] = {}
    for setting in settings:
        if not setting.weights:
            continue
        method, own = recipe.method_of(setting.row)
        ce, kd = WEIGHTS[setting.weights]
        softened = {} if setting.temperature is None else {"temperature": setting.temperature}
        variants[setting.label] = {**own, "method": method, "ce_weight": ce, "kd_weight": kd, **softened}
    values: dict[str, Any] = recipe.model_dump(mode="json")
    values |= {"methods": [setting.label for setting in settings], "variants": variants}
    values["method_options"] = {"all": recipe.method_options.get("all", {})}
    values["baseline"] = CONTROL if any(setting.row == CONTROL for setting in settings) else None
    return recipe_from(recipe.name, values)


def recipes_of(overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """The recipes of :data:`TEXTS`, by what a student reads.

    Args:
        overrides: ``key=value``, for both.
    """
    return {text: load_recipe(name, overrides) for text, name in TEXTS.items()}
