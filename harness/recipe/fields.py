"""Every field that a recipe may set, as plain data from the schemas: type, default, description."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness.base.errors import HarnessError, suggest
from harness.base.schema import fields_of, schema_of
from harness.recipe.schema import Recipe
from harness.tasks import tasks
from methods.base import registered
from methods.library.dual import DualOptions


@dataclass(frozen=True)
class FieldLine:
    """A field.

    Attributes:
        name: within its part.
        type: what may stand there, in words.
        default: as YAML, or "as below" of fields that are listed there; "" where the field must be set.
        description: what it does.
    """

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class FieldsPart:
    """Fields that stand together.

    Attributes:
        paths: where in a recipe; several where parts are alike, such as teacher, warm_start and train; "" for the top.
        about: what the part is, a sentence.
        fields: its fields.
    """

    paths: tuple[str, ...]
    about: str
    fields: tuple[FieldLine, ...]


def parts(asked: str | None = None) -> list[FieldsPart]:
    """The parts of a recipe with their fields: first the recipe's own, then tasks' settings and methods' options.

    Args:
        asked: a part or field by its path (``train``, ``train.lora``, ``dolly``, ``limits.length``), or a method, for
            its options; None for everything.

    Raises:
        HarnessError: there is no such part; names the nearest.
    """
    every = [*_of_recipe(), *_of_methods()]
    if asked is None:
        return every
    path = f"method_options.{asked}" if asked in registered() or asked == "dual" else asked
    found = [FieldsPart((path,), part.about, part.fields) for part in every if path in part.paths]
    if found:
        return found + [
            FieldsPart((one,), part.about, part.fields)
            for part in every
            for one in part.paths
            if one.startswith(f"{path}.") and part.fields
        ]
    above, _, name = path.rpartition(".")
    for part in every:
        if above in part.paths and (lines := tuple(line for line in part.fields if line.name == name)):
            return [FieldsPart((above,), part.about, lines)]
    known = [one for part in every for one in part.paths]
    known += [f"{one}.{line.name}".lstrip(".") for part in every for one in part.paths for line in part.fields]
    known += [*registered(), "dual"]
    hint = suggest(asked, known) or "`harness fields` prints all of them."
    raise HarnessError("field", repr(asked), "a field or part of a recipe, or a method", hint)


def _of_recipe() -> Iterator[FieldsPart]:
    """The recipe and its parts, each schema once with all the places where it stands."""
    places: dict[type[BaseModel], list[str]] = {}
    pending: list[tuple[type[BaseModel], str]] = [(Recipe, "")]
    while pending:
        schema, path = pending.pop(0)
        places.setdefault(schema, []).append(path)
        for name, field in fields_of(schema).items():
            if (part := schema_of(field)) is not None:
                pending.append((part, f"{path}.{name}".lstrip(".")))
    settings: dict[type[BaseModel], str] = {task.Settings: task.summary for task in tasks().values()}
    for schema, paths in places.items():
        yield _part(schema, tuple(paths), settings.get(schema, ""))


def _of_methods() -> Iterator[FieldsPart]:
    for name, method in registered().items():
        yield _part(method.Options, (f"method_options.{name}",), f"{method.summary} ({method.paper})")
    yield _part(DualOptions, ("method_options.dual",), "two teachers: dual(METHOD, METHOD)")


def _part(schema: type[BaseModel], paths: tuple[str, ...], about: str) -> FieldsPart:
    return FieldsPart(
        paths, about or _about(schema), tuple(_line(name, field) for name, field in fields_of(schema).items())
    )


def _line(name: str, field: FieldInfo) -> FieldLine:
    part, default = schema_of(field), field.get_default(call_default_factory=True)
    described = field.description or (_about(part) if part is not None else "")
    written = "" if field.is_required() else _as_yaml(default)
    return FieldLine(name, _words(field.annotation, field.metadata), written, described)


def _about(schema: type[BaseModel]) -> str:
    """The first sentences of a schema's description."""
    return " ".join((schema.__doc__ or "").partition("\n\n")[0].split())


def _as_yaml(value: object) -> str:
    """A default as a recipe writes it."""
    if isinstance(value, BaseModel):
        return "as below"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)


_NAMES: Mapping[object, str] = {
    int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null", object: "anything",
}  # fmt: skip
_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def _words(annotation: object, metadata: list[object]) -> str:
    """A type in words, with its bounds."""
    bounds = [f"{sign} {getattr(one, key):,}" for one in metadata for key, sign in _BOUNDS if hasattr(one, key)]
    some = ["at least one"] if any(hasattr(one, "min_length") for one in metadata) else []
    return ", ".join([_plain_words(annotation), *bounds, *some])


def _plain_words(annotation: object) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inside[0], [one for meta in inside[1:] for one in getattr(meta, "metadata", [meta])])
    if origin is Literal:
        return " | ".join(map(str, inside))
    if origin in (Union, UnionType):
        return " | ".join(_plain_words(one) for one in inside)
    if origin is tuple and inside[-1] is not Ellipsis:
        return f"list of {len(inside)}: {', '.join(map(_plain_words, inside))}"
    if origin in (tuple, list):
        one = _plain_words(inside[0])
        return f"list of {one}" if " | " not in one else f"list of ({one})"
    if origin in (dict, Mapping):
        return f"mapping of {_plain_words(inside[0])} to {_plain_words(inside[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "fields of its own"
    return _NAMES.get(annotation, str(annotation))
