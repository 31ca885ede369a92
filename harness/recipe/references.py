"""``${train.steps}`` in a recipe: the value of another of its fields. Nothing outside the recipe can be named."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping

MAX_DEPTH, MAX_VALUES, MAX_TEXT = 20, 10_000, 10**6
_REFERENCE = re.compile(r"\$\{([^{}$]*)\}")


class RecipeValueError(ValueError):
    """A value that no recipe can hold, with its path."""

    def __init__(self, path: str, said: str) -> None:
        super().__init__(f"{path}: {said}" if path else said)


def resolved(values: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """The values with each ``${path.of.a.field}`` replaced by what stands there; a line for each field where none can.

    That is one with a reference that leads nowhere, in a circle, or outside the recipe; with values that no recipe
    holds (numbers that are infinite or have more than 64 bits, text that is no Unicode or moves a terminal's cursor,
    lists and mappings nested too deep); or with too many of them.
    """
    reader, made, problems = _Reader(values), {}, []
    for key, value in values.items():
        try:
            made[key] = reader.read(value, (str(key),), ())
        except RecipeValueError as problem:
            problems.append(str(problem))
    return made, problems


def resolved_at(values: Mapping[str, object], path: str) -> object:
    """What stands at a path, references followed; None where nothing can be found."""
    try:
        return _Reader(values).read(_value_at(values, path), tuple(path.split(".")), ())
    except (LookupError, RecipeValueError):
        return None


def _value_at(values: object, path: str) -> object:
    """What stands at a path of mappings and lists.

    Raises:
        LookupError: nothing does.
    """
    for part in path.split("."):
        if isinstance(values, list) and part.isdecimal():
            values = values[int(part)]
        elif isinstance(values, Mapping):
            values = values[part]
        else:
            raise LookupError(part)
    return values


class _Reader:
    """Reads values, and counts them: references can make many of few."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values, self.left, self.text_left = values, MAX_VALUES, MAX_TEXT

    def read(self, value: object, path: tuple[str, ...], followed: tuple[str, ...]) -> object:
        """A value as it is meant; ``followed``: the references on the way to it."""
        self.left -= 1
        if self.left < 0 or len(path) + len(followed) > MAX_DEPTH:
            limit = f"{MAX_VALUES} values" if self.left < 0 else f"{MAX_DEPTH} levels"
            raise RecipeValueError(
                ".".join(path[:3]), f"found more than {limit}; expected a recipe, which needs far fewer."
            )
        if isinstance(value, Mapping):
            return {self._key(key, path): self.read(one, (*path, str(key)), followed) for key, one in value.items()}
        if isinstance(value, list):
            return [self.read(one, (*path, str(place)), followed) for place, one in enumerate(value)]
        if isinstance(value, str):
            return self._follow(self._text(value, path), path, followed)
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeValueError(".".join(path), f"found {value}; expected a number that is finite.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise RecipeValueError(".".join(path), f"found a number of {value.bit_length()} bits; expected at most 63.")
        return value

    def _key(self, key: object, path: tuple[str, ...]) -> object:
        return self._text(key, path) if isinstance(key, str) else key

    def _text(self, text: str, path: tuple[str, ...]) -> str:
        self.text_left -= len(text)
        if self.text_left < 0:
            raise RecipeValueError(".".join(path), f"found more than {MAX_TEXT} characters; expected a recipe.")
        if odd := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None):
            raise RecipeValueError(
                ".".join(path), f"found the character U+{ord(odd):04X}; expected text without control characters."
            )
        return text

    def _follow(self, text: str, path: tuple[str, ...], followed: tuple[str, ...]) -> object:
        if "${" not in text:
            return text
        whole = _REFERENCE.fullmatch(text)
        if whole is not None:
            return self._target(whole[1], path, followed)
        said = "".join(self._pieces(text, path, followed))
        return self._text(said, path)

    def _pieces(self, text: str, path: tuple[str, ...], followed: tuple[str, ...]) -> Iterator[str]:
        end = 0
        for match in _REFERENCE.finditer(text):
            yield self._outside(text[end : match.start()], path)
            target = self._target(match[1], path, followed)
            if isinstance(target, Mapping | list):
                raise RecipeValueError(
                    ".".join(path), f"found {match[0]}, which is no value that can stand inside a text."
                )
            yield self._text(str(target), path)
            end = match.end()
        yield self._outside(text[end:], path)

    def _outside(self, text: str, path: tuple[str, ...]) -> str:
        if "${" in text:
            raise RecipeValueError(".".join(path), f"found {text!r:.60}; expected ${{path.of.a.field}}, closed.")
        return text

    def _target(self, named: str, path: tuple[str, ...], followed: tuple[str, ...]) -> object:
        where, name = ".".join(path), named.strip()
        if ":" in name:
            raise RecipeValueError(
                where, f"found ${{{name}}}; expected a field of the recipe: nothing outside it is read."
            )
        if name in followed:
            raise RecipeValueError(where, f"found ${{{name}}}, which leads back to itself.")
        try:
            value = _value_at(self.values, name)
        except LookupError:
            raise RecipeValueError(where, f"found ${{{name}}}, but the recipe sets no such field.") from None
        return self.read(value, path, (*followed, name))
