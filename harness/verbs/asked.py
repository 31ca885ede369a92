"""What a command line asks for: a recipe with its overrides, and with the settings of its lock file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.base.errors import HarnessError

if TYPE_CHECKING:
    from harness.api import Recipe, TuningMetric


def taken(fields: Sequence[str] | None, *names: str) -> tuple[list[str], dict[str, str]]:
    """The fields of a recipe, and beside them those of these names, which a verb reads itself; the last of each."""
    own = [field for field in fields or () if "=" in field and field.partition("=")[0] in names]
    return [field for field in fields or () if field not in own], dict(field.split("=", 1) for field in own)


def without_budget(fields: list[str] | None) -> tuple[list[str], int, TuningMetric]:
    """The fields of a recipe; how many settings each of its rows is to try, and by what: `budget=6 metric=score`."""
    rest, own = taken(fields, "budget", "metric")
    metric: Any = own.get("metric", "bits_per_byte")  # Any: whether it is one, the plan says
    try:
        return rest, int(own.get("budget", "6")), metric
    except ValueError as error:
        raise HarnessError("budget", repr(own["budget"]), "a whole number of settings") from error


def without_profile(fields: list[str] | None) -> tuple[list[str], str, int]:
    """The fields of a recipe, and which method's steps are traced, and how many: `method=gold steps=5`."""
    rest, own = taken(fields, "method", "steps")
    steps = own.get("steps", "5")
    if not steps.isdecimal() or steps == "0":
        raise HarnessError("steps", repr(steps), "how many steps to trace, such as steps=5")
    return rest, own.get("method", ""), int(steps)


def name_in(fields: list[str] | None) -> str:
    """The recipe's name or file on a command line."""
    return _named(fields)[0]


def tuned_recipe(fields: list[str] | None, *, untuned: bool, stale: bool, say: Callable[[str], None]) -> Recipe:
    """The recipe that a command line names, with the settings of its lock file where there is one."""
    from harness import api

    recipe = asked_recipe(fields)
    path = api.lock_beside(name_in(fields))
    if untuned or recipe.tuned or not path.is_file():
        return recipe
    if api.leads():
        say(f"Settings of {path}; --untuned leaves them out.")
    return api.tuned(recipe, path, stale=stale)


def asked_recipe(fields: list[str] | None) -> Recipe:
    """The recipe that a command line names, with its overrides."""
    from harness import api

    name, overrides = _named(fields)
    return api.load_recipe(name, *overrides)


def _named(fields: list[str] | None) -> tuple[str, list[str]]:
    """A recipe's name or file, which may stand first without its `recipe=`, and the other fields."""
    from harness import api

    first, *others = fields or [""]
    rest, own = taken([f"recipe={first}" if first and "=" not in first else first, *others], "recipe")
    if "recipe" not in own:
        raise HarnessError("recipe", "none", f"recipe=NAME, one of {', '.join(api.recipe_names())}")
    return own["recipe"], rest
