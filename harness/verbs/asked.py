"""What a command line asks for: a recipe with its overrides, and with the settings of its lock file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.base.errors import HarnessError

if TYPE_CHECKING:
    from harness.api import Recipe


def without_budget(fields: list[str] | None) -> tuple[list[str], int]:
    """The fields of a recipe, and how many settings each of its rows is to try: `budget=6`."""
    asked = [field.removeprefix("budget=") for field in fields or [] if field.startswith("budget=")]
    try:
        budget = int(asked[-1]) if asked else 6
    except ValueError as error:
        raise HarnessError("budget", repr(asked[-1]), "a whole number of settings") from error
    return [field for field in fields or [] if not field.startswith("budget=")], budget


def without_profile(fields: list[str] | None) -> tuple[list[str], str, int]:
    """The fields of a recipe, and which method's steps are traced, and how many: `method=gold steps=5`."""
    own = {"method": "", "steps": "5"}
    rest = [field for field in fields or [] if field.partition("=")[0] not in own]
    own |= dict(field.partition("=")[::2] for field in fields or [] if field not in rest)
    if not own["steps"].isdecimal() or own["steps"] == "0":
        raise HarnessError("steps", repr(own["steps"]), "how many steps to trace, such as steps=5")
    return rest, own["method"], int(own["steps"])


def name_in(fields: list[str] | None) -> str:
    """The recipe's name or file on a command line."""
    fields = fields or []
    given = [field.removeprefix("recipe=") for field in fields if field.startswith("recipe=")]
    return given[-1] if given else fields[0]


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

    fields = [
        f"recipe={field}" if place == 0 and "=" not in field else field for place, field in enumerate(fields or [])
    ]
    given = dict(field.partition("=")[::2] for field in fields if field.startswith("recipe="))
    if "recipe" not in given:
        raise HarnessError("recipe", "none", f"recipe=NAME, one of {', '.join(api.recipe_names())}")
    return api.load_recipe(given["recipe"], *(field for field in fields if not field.startswith("recipe=")))
