"""Every problem of a recipe at once, each with its path, what was found and the nearest name that exists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from harness.base.errors import suggest
from harness.base.schema import as_list, as_names
from harness.recipe.schema import Recipe
from harness.tasks import tasks


def problem_line(error: Mapping[str, Any], values: Any) -> str:
    """One line of a pydantic error: path, what was found, what was expected, the nearest name."""
    inside = ("function-", "tuple[", "literal[")  # what pydantic adds for the branches of a type
    path = [part for part in error["loc"] if not (isinstance(part, str) and part.startswith(inside))]
    where = ".".join(str(part) for part in path) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        above = "".join(f"{part}." for part in path[:-1])
        hint = suggest(str(path[-1]), known, above) or f"There are {', '.join(sorted(known))}."
        return f"{where}: unknown key (value {error['input']!r:.60}). {hint}"
    if error["type"] == "missing":
        return f"{where}: missing. {_description(path)}".rstrip()
    message = str(error["msg"]).removeprefix("Value error, ")
    hint = ""
    if error["type"] == "literal_error":
        hint = suggest(str(error["input"]), _quoted(error["ctx"]["expected"]))
    end = "" if message.endswith((".", "?")) else "."
    return f"{where}: found {error['input']!r:.60}; {message[:1].lower()}{message[1:]}{end} {hint}".rstrip()


def _quoted(expected: str) -> list[str]:
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]


def _model_at(path: Sequence[Any]) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The schema that stands at a path, and the field that leads to it."""
    model: type[BaseModel] | None = Recipe
    field: FieldInfo | None = None
    for part in path:
        if model is None or part not in model.model_fields:
            return None, None
        field = model.model_fields[part]
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return model, field


def _fields_at(path: Sequence[Any]) -> list[str]:
    model, _ = _model_at(path)
    return list(model.model_fields) if model is not None else []


def _description(path: Sequence[Any]) -> str:
    _, field = _model_at(path)
    return f"It says: {field.description}." if field is not None and field.description else ""


def name_problems(values: Any) -> list[str]:
    """Unknown methods and tasks, wrong method options: checked beside the schema, so that all errors come at once."""
    from methods.base import registered
    from methods.library.dual import is_dual

    if not isinstance(values, Mapping):
        return []
    known_methods, known_tasks = registered(), tasks()
    variants = values.get("variants")
    rows = [*known_methods, *(variants if isinstance(variants, Mapping) else ())]
    problems = []
    for key, known in (("methods", rows), ("tasks", list(known_tasks))):
        listed = as_names(values.get(key))
        for place, name in enumerate(listed if isinstance(listed, list) else []):
            if key == "methods" and isinstance(name, str) and is_dual(name):
                problems += _dual_problems(f"{key}.{place}", name)
            elif isinstance(name, str) and name not in known:
                problems.append(_unknown(f"{key}.{place}", key[:-1], name, known))
    for key in ("methods", "tasks", "seeds", "fidelity"):
        listed = as_names(values.get(key))
        if isinstance(listed, list) and len(set(map(str, listed))) < len(listed):
            problems.append(f"{key}: found {listed!r}; one of them stands there twice.")
    problems += _baseline_problems(values.get("baseline"), rows) + _paper_problems(values.get("paper"))
    return problems + _option_problems(values, known_methods) + _variant_problems(variants, known_methods)


def _baseline_problems(name: Any, known: Iterable[str]) -> list[str]:
    """Any method will do: where a run leaves it out, its report says that there is nothing to compare with."""
    from methods.library.dual import is_dual

    if not isinstance(name, str) or name in known:
        return []
    return _dual_problems("baseline", name) if is_dual(name) else [_unknown("baseline", "method", name, known)]


def _paper_problems(name: Any) -> list[str]:
    if not isinstance(name, str):
        return []
    from reports import published_pairs

    known = published_pairs()
    return [] if name in known else [_unknown("paper", "pair of models", name, known)]


def _unknown(where: str, what: str, name: str, known: Iterable[str]) -> str:
    hint = suggest(name, known) or f"There are {', '.join(known)}."
    return f"{where}: unknown {what} {name!r}. {hint}"


def _dual_problems(where: str, name: str) -> list[str]:
    from methods.base import UnknownMethodError
    from methods.library.dual import parts_of

    try:
        parts_of(name)
    except UnknownMethodError as error:
        hint = f'Did you mean "{error.suggestion}"?' if error.suggestion else ""
        return [f"{where}: unknown method {error.name!r} in {name!r}. {hint}".rstrip()]
    except ValueError as error:
        return [f"{where}: {error}."]
    return []


def _option_problems(values: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    from methods.library.dual import DualOptions, is_dual

    problems = []
    options = values.get("method_options")
    for method, given in (options if isinstance(options, Mapping) else {}).items():
        where = f"method_options.{method}"
        if not isinstance(given, Mapping):
            problems.append(f"{where}: found {given!r:.60}; expected a mapping of options.")
        elif method == "dual" or is_dual(method):
            problems += _wrong_options(where, DualOptions, given)
        elif method == "all":
            everything = sorted({field for m in known.values() for field in m.Options.model_fields})
            problems += [
                f"{where}.{key}: unknown option. {suggest(str(key), everything)}".rstrip()
                for key in given
                if key not in everything
            ]
            asked = _methods_asked(values)
            for kind in [known[name] for name in known if name in asked]:
                fitting = {key: value for key, value in given.items() if key in kind.Options.model_fields}
                problems += _wrong_options(where, kind.Options, fitting)
        elif method in (values.get("variants") or ()):
            problems.append(f"{where}: found a variant; expected a method. Its own options stand in variants.{method}.")
        elif method not in known:
            problems.append(f"{where}: unknown method. {suggest(str(method), [*known, 'all'])}".rstrip())
        else:
            problems += _wrong_options(where, known[method].Options, given)
    return problems


def _methods_asked(values: Mapping[str, Any]) -> list[Any]:
    """The methods that a recipe trains, those behind variants among them."""
    listed, variants = as_list(values.get("methods")), values.get("variants")
    named = variants if isinstance(variants, Mapping) else {}
    rows = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    behind = [named[name].get("method") for name in rows if isinstance(named.get(name), Mapping)]
    return [*rows, *behind]


_OTHER_ROWS = ("untrained", "warm_start", "teacher")  # of tables, by no method: see `evaluation.references`


def _variant_problems(variants: Any, known: Mapping[str, Any]) -> list[str]:
    """A variant is called like no method, names one, and has options that the method has."""
    problems = []
    for name, given in (variants if isinstance(variants, Mapping) else {}).items():
        where = f"variants.{name}"
        if name in (*known, *_OTHER_ROWS, "all", "dual") or not re.fullmatch(r"[\w.-]+", str(name)):
            problems.append(f"{where}: found {name!r}; expected a name of its own, of letters, digits and _ . -")
        if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
            problems.append(f"{where}: found {given!r:.60}; expected a mapping with the method and options of its own.")
        elif given["method"] not in known:
            problems.append(_unknown(f"{where}.method", "method", given["method"], known))
        else:
            own = {key: value for key, value in given.items() if key != "method"}
            problems += _wrong_options(where, known[given["method"]].Options, own)
    return problems


def _wrong_options(where: str, schema: type[BaseModel], given: Mapping[str, Any]) -> list[str]:
    try:
        schema.model_validate(given)
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            path = ".".join(str(part) for part in entry["loc"])
            if entry["type"] == "extra_forbidden":
                hint = suggest(path, schema.model_fields) or f"There are {', '.join(sorted(schema.model_fields))}."
                problems.append(f"{where}.{path}: unknown option (value {entry['input']!r:.60}). {hint}")
            else:
                problems.append(f"{where}.{path}: found {entry['input']!r:.60}; {entry['msg'].lower()}.")
        return problems
    return []
