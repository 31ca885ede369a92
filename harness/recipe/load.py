"""From a recipe's name or file to a recipe: what it extends, overrides, and all its problems at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from harness.base.beside import folder_beside
from harness.base.errors import HarnessError, suggest
from harness.recipe.problems import name_problems, problem_line
from harness.recipe.schema import Recipe


def name_to_call(recipe: Any) -> str:
    """What the user calls the recipe; NAME where it is a file of theirs."""
    return recipe.name if recipe.name in recipe_names() else "NAME"


class RecipeError(HarnessError):
    """Everything that is wrong with a recipe, a line each."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = f"{len(self.problems)} error" + ("s" if len(self.problems) > 1 else "")
        Exception.__init__(self, "\n".join([f"recipe {name}: {count}", *(f"  {line}" for line in self.problems)]))


def recipes_folder() -> Path:
    """The recipes that the project ships."""
    return folder_beside("recipes")


def recipe_names() -> list[str]:
    """Names of the recipes that the project ships."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Any:
    """Read a recipe by name or path, with what it extends, apply overrides, and validate all of it.

    Args:
        name: of a recipe that the project ships, or the path of a YAML file.
        overrides: ``key=value`` with dots in the key; the value is YAML.

    Raises:
        RecipeError: with every problem at once.
        HarnessError: no such recipe, or a file that is not YAML.
    """
    values: Any = _read(find_recipe(name), ())
    for text in overrides:
        values = _merge(values, _override(text))
    try:
        plain = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise RecipeError(name, [f"{where}{str(error).splitlines()[0]}."]) from error
    return validate(name, plain)


def validate(name: str, values: Any) -> Any:
    """A :class:`Recipe` from plain values.

    Raises:
        RecipeError: with every problem at once.
    """
    problems: list[str] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [problem_line(entry, values) for entry in error.errors()]
    problems += name_problems(values)
    if problems or recipe is None:
        raise RecipeError(name, list(dict.fromkeys(problems)))
    return recipe


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        HarnessError: there is none; names the nearest.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise HarnessError("recipe", f"no file {name!r}", "a YAML file or the name of a recipe")
    path = recipes_folder() / f"{name}.yaml"
    if not path.is_file():
        raise HarnessError("recipe", repr(name), f"one of {', '.join(recipe_names())}", suggest(name, recipe_names()))
    return path


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A YAML file merged over the recipe that it ``extends``."""
    path = path.resolve()
    if path in seen:
        raise HarnessError(str(path), "a recipe that extends itself", "a chain that ends")
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HarnessError(str(path), f"text that is no YAML ({' '.join(str(error).split())})", "YAML") from error
    if not isinstance(values, dict):
        raise HarnessError(str(path), f"a YAML {type(values).__name__}", "a mapping of fields")
    base = values.pop("extends", None)
    values.setdefault("name", path.stem)
    if base is None:
        return values
    beside = [file for file in (path.parent / str(base), path.parent / f"{base}.yaml") if file.is_file()]
    merged: dict[str, Any] = _merge(_read(beside[0] if beside else find_recipe(str(base)), (*seen, path)), values)
    return merged


def _merge(base: Any, over: Any) -> Any:
    """Mappings merge key by key; whatever else stands in ``over`` replaces what was there."""
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: _merge(base.get(key), value) for key, value in over.items()}
    return over


def _override(text: str) -> Any:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise HarnessError("override", repr(text), "key=value, such as train.steps=20")
    try:
        nested = _parse_yaml(value) if value else None
    except yaml.YAMLError as error:
        raise HarnessError(f"override {key}", repr(value), "a YAML value, such as 20, true or [sft,uld]") from error
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 2e-5 is a number, as a person means it, and not text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)
