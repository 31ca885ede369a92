"""From a recipe's name or file to a recipe: what it extends, overrides, and all its problems at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from harness.base.errors import HarnessError, unknown
from harness.base.files import is_file
from harness.base.installation import folder_beside
from harness.recipe.problems import ALL, all_rows, name_problems, problem_line, truth_problems
from harness.recipe.references import MAX_DEPTH, resolved, resolved_at
from harness.recipe.schema import Recipe, own_tasks
from harness.recipe.yaml_text import MAX_BYTES, YamlError, parse_yaml

Values = dict[str, object]

_MODELS = (("student",), ("teachers", "same"), ("teachers", "cross"))
_ITS_OWN = ("name", "title", "notes")  # of a recipe, not of those that extend it
_LONGEST_CHAIN = 20


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


def name_to_call(recipe: Recipe) -> str:
    """What the user calls the recipe; NAME where it is a file of theirs."""
    return recipe.name if recipe.name in recipe_names() else "NAME"


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, with what it extends, apply overrides, and validate all of it.

    Args:
        name: of a recipe that the project ships, or the path of a YAML file.
        overrides: ``key=value`` with dots in the key; the value is YAML.

    Raises:
        RecipeError: with every problem at once.
        HarnessError: no such recipe, or a file that is not YAML.
    """
    return recipe_from(name, _read(find_recipe(name), ()), overrides)


def recipe_from(name: str, values: Values, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from plain values, such as those of a run's record, with overrides applied.

    Raises:
        RecipeError: with every problem at once.
        HarnessError: an override is no ``key=value``.
    """
    asked: Values = {}
    for text in overrides:
        asked = _merged(asked, _override(text))
    return validate(name, _extended(values, asked))


def validate(name: str, values: object) -> Recipe:
    """A recipe from plain values.

    Raises:
        RecipeError: with every problem at once.
    """
    plain, problems = resolved(values) if isinstance(values, Mapping) else (values, [])
    if problems:
        raise RecipeError(name, problems)
    if isinstance(plain, Mapping) and plain.get("methods") == ALL:
        plain = {**plain, "methods": all_rows(plain)}
    recipe = None
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        problems += [problem_line(entry, Recipe, own_tasks(plain)) for entry in error.errors()]
    problems += [*truth_problems(Recipe, plain), *name_problems(plain)]
    if problems or recipe is None:
        raise RecipeError(name, list(dict.fromkeys(problems)))
    return recipe


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        HarnessError: there is none; names the nearest.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if is_file(Path(name)):
            return Path(name)
        raise HarnessError("recipe", f"no file {name!r}", "a YAML file or the name of a recipe")
    if name not in recipe_names():
        raise unknown("recipe", name, recipe_names())
    return recipes_folder() / f"{name}.yaml"


def _read(path: Path, seen: tuple[Path, ...]) -> Values:
    """A YAML file merged over the recipe that it ``extends``."""
    path = path.resolve()
    if path in seen or len(seen) >= _LONGEST_CHAIN:
        found = "a recipe that extends itself" if path in seen else f"a chain of more than {_LONGEST_CHAIN} recipes"
        raise HarnessError(str(path), found, "a chain that ends")
    values = _values_in(path)
    base = values.pop("extends", None)
    values.setdefault("name", path.stem)
    if base is None:
        return values
    if not isinstance(base, str) or "\0" in base:
        raise HarnessError(f"{path}: extends", f"{base!r:.60}", "the name of a recipe, or a file")
    beside = [file for file in (path.parent / base, path.parent / f"{base}.yaml") if is_file(file)]
    below = _read(beside[0] if beside else find_recipe(base), (*seen, path))
    return _extended({key: value for key, value in below.items() if key not in _ITS_OWN}, values)


def _values_in(path: Path) -> Values:
    """What stands in a YAML file.

    Raises:
        HarnessError: something else than the mapping of a recipe.
    """
    try:
        with path.open("rb") as file:  # no more than can be a recipe, whatever the file is
            text = file.read(MAX_BYTES + 1).decode("utf-8-sig")
        values = parse_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(str(path), f"what can't be read as text ({error})", "a YAML file in UTF-8") from error
    except YamlError as error:
        where = f"{path} line {error.line}" if error.line else str(path)
        raise HarnessError(where, error.found, "YAML") from error
    if not isinstance(values, dict):
        raise HarnessError(str(path), f"a YAML {type(values).__name__}", "a mapping of fields")
    return values


def _extended(base: Values, over: Values) -> Values:
    """A recipe over the one that it extends. Where it names another model, what was said of the first is left out."""
    merged = _merged(base, over)
    for place in _MODELS:
        model = ".".join((*place, "model"))
        before, after = resolved_at(base, model), resolved_at(merged, model)
        if before is not None and after is not None and before != after:
            own = {"model": _part(merged, place).get("model")}
            merged = _with(merged, place, own | _part(over, place))
    return merged


def _part(values: Values, place: Sequence[str]) -> Values:
    """The mapping at a place; an empty one where there is none."""
    for name in place:
        values = _mapping(values.get(name))
    return values


def _mapping(value: object) -> Values:
    return value if isinstance(value, dict) else {}


def _with(values: Values, place: Sequence[str], value: object) -> Values:
    """The values with another one at a place."""
    first, *rest = place
    return values | {first: _with(_mapping(values.get(first)), rest, value) if rest else value}


def _merged(base: Values, over: Values) -> Values:
    """Mappings merge key by key, but an empty one empties; whatever else stands in ``over`` replaces what was there."""
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merged(_mapping(below), _mapping(value)) if both and value else value
    return merged


def _override(text: str) -> Values:
    key, equals, value = text.partition("=")
    *above, last = key.split(".")
    if not equals or not key or len(above) > MAX_DEPTH:
        raise HarnessError("override", f"{text!r:.60}", "key=value, such as train.steps=20")
    try:
        nested = parse_yaml(value) if value else None
    except YamlError as error:
        raise HarnessError(
            f"override {key}", f"{value!r:.60}: {error.found}", "a YAML value, such as 20, true or [sft,uld]"
        ) from error
    made: Values = {last: nested}
    for part in reversed(above):
        made = {part: made}
    return made
