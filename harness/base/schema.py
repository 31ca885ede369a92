"""What every schema of the harness shares: unknown keys are errors, null unsets, one value may stand for a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo


class Strict(BaseModel):
    """A part of a recipe: unknown keys are errors, and ``field: null`` is the default of a field that has no null."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def written_fields(cls) -> Mapping[str, FieldInfo]:
        """The fields as a recipe writes them."""
        return cls.model_fields

    @model_validator(mode="before")
    @classmethod
    def _null_unsets(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None or not cls._is_unset_by_null(key)}

    @classmethod
    def _is_unset_by_null(cls, name: object) -> bool:
        field = cls.model_fields.get(str(name))
        return field is not None and not field.is_required() and type(None) not in get_args(field.annotation)


def fields_of(schema: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The fields of a schema, of a method's options too, as a recipe writes them."""
    return schema.written_fields() if issubclass(schema, Strict) else schema.model_fields


def types_of(annotation: object) -> Iterator[object]:
    """A type and all that it is made of: of ``tuple[int, ...] | None`` the union, the tuple, int and None."""
    yield annotation
    for part in get_args(annotation):
        yield from types_of(part)


def schema_of(field: FieldInfo) -> type[BaseModel] | None:
    """The schema of a field that is a part of its own, such as ``train``; None for a value."""
    schemas = (part for part in types_of(field.annotation) if isinstance(part, type) and issubclass(part, BaseModel))
    return next(schemas, None)


def field_at(schema: type[BaseModel], path: Sequence[object]) -> FieldInfo | None:
    """The field that stands at a path; None where there is none."""
    found: FieldInfo | None = None
    part: type[BaseModel] | None = schema
    for name in path:
        found = fields_of(part).get(str(name)) if part is not None else None
        part = schema_of(found) if found is not None else None
    return found


def as_list(value: object) -> object:
    """A text or number alone as a list of one."""
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


def as_names(value: object) -> object:
    """A list of names; ``[dual(fkd, cdm)]``, which YAML cuts at the comma, is put together again."""
    listed = as_list(value)
    if not isinstance(listed, list):
        return listed
    names: list[object] = []
    for part in listed:
        last = names[-1] if names else None
        if isinstance(part, str) and isinstance(last, str) and last.count("(") > last.count(")"):
            names[-1] = f"{last}, {part}"
        else:
            names.append(part)
    return names
