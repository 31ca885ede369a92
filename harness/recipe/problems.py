"""Every problem of a recipe at once, each with its path, what was found and the nearest name that exists."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.base.errors import suggest
from harness.base.installation import folder_beside
from harness.base.schema import as_list, as_names, field_at, fields_of, schema_of, types_of
from harness.recipe.schema import BESIDE_OPTIONS, ROLE_OF_KIND, own_tasks
from harness.recipe.training import RowTraining
from harness.tasks import tasks
from harness.tasks.custom import Custom
from methods.base import Method, Need, TeacherKind, UnknownMethodError, registered
from methods.library.dual import DualOptions, is_dual, parts_of
from methods.library.rollout_share import TAGS

ALL = "all"


def problem_line(error: ErrorDetails, schema: type[BaseModel], own: Collection[str] = ()) -> str:
    """One line of a pydantic error: path, what was found, what was expected, the nearest name.

    Args:
        schema: of the recipe.
        own: names of tasks that the recipe makes itself.
    """
    inside = ("function-", "tuple[", "literal[", "task_settings")  # what the schema adds to what was written
    path = [part for part in error["loc"] if not (isinstance(part, str) and part.startswith(inside))]
    where = ".".join(str(part) for part in path) or "recipe"
    known_path = ["custom" if place == 0 and part in own else part for place, part in enumerate(path)]
    if error["type"] == "extra_forbidden":
        field = field_at(schema, known_path[:-1])
        part = schema if field is None else schema_of(field)
        known = list(fields_of(part)) if part is not None else []
        above = "".join(f"{part}." for part in path[:-1])
        hint = suggest(str(path[-1]), known, above) or f"There are {', '.join(sorted(known))}."
        return f"{where}: unknown key (value {error['input']!r:.60}). {hint}"
    if error["type"] == "missing":
        field = field_at(schema, known_path)
        said = f"It says: {field.description}." if field is not None and field.description else ""
        return f"{where}: missing. {said}".rstrip()
    message = str(error["msg"]).removeprefix("Value error, ")
    hint = ""
    if error["type"] == "literal_error":
        hint = suggest(str(error["input"]), _quoted(error["ctx"]["expected"]))
    end = "" if message.endswith((".", "?")) else "."
    return f"{where}: found {error['input']!r:.60}; {message[:1].lower()}{message[1:]}{end} {hint}".rstrip()


def _quoted(expected: str) -> list[str]:
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]


def truth_problems(schema: type[BaseModel], values: object, above: str = "") -> list[str]:
    """Where true or false stands for a number: pydantic takes them for 1 and 0."""
    problems: list[str] = []
    if not isinstance(values, Mapping):
        return problems
    for name, field in fields_of(schema).items():
        value, types = values.get(name), list(types_of(field.annotation))
        if (part := schema_of(field)) is not None and isinstance(value, Mapping):
            problems += truth_problems(part, value, f"{above}{name}.")
        elif bool not in types and (int in types or float in types):
            inside = value if isinstance(value, list) else [value]
            problems += [f"{above}{name}: found {one}; expected a number." for one in inside if isinstance(one, bool)]
    return problems


def name_problems(values: object) -> list[str]:
    """Unknown methods and tasks, wrong method options: checked beside the schema, so that all errors come at once."""
    if not isinstance(values, Mapping):
        return []
    known_methods, own = registered(), own_tasks(values)
    known_tasks = [*tasks(), *own]
    variants = values.get("variants")
    rows = [*known_methods, *_named(variants)]
    problems = _own_problems(values, own)
    for key, known in (("methods", rows), ("tasks", known_tasks)):
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
    problems += _primary_problems(values.get("primary"), as_names(values.get("tasks")))
    problems += _evaluation_problems(_named(values.get("evaluation"))) + _dev_problems(values)
    problems += _tuned_problems(values, known_methods)
    return problems + _option_problems(values, known_methods) + _variant_problems(variants, known_methods)


def _own_problems(values: Mapping[object, object], own: Sequence[str]) -> list[str]:
    """Tasks that a recipe makes itself are called so that they can be fields, columns and folders."""
    problems = [
        f"{name}: found a task of this name; expected letters, digits and _, at most 40, a letter first."
        for name in own
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,39}", name)
    ]
    if _named(values.get("evaluation")).get("bits_per_byte") is False:
        problems += [
            f"{name}.metric: found 'none' beside evaluation.bits_per_byte=false; expected something that is measured."
            for name in own
            if _named(values[name]).get("metric") == "none"
        ]
    return problems + [line for name in own for line in truth_problems(Custom.Settings, values[name], f"{name}.")]


def _baseline_problems(name: object, known: Iterable[str]) -> list[str]:
    """Any method will do: where a run leaves it out, its report says that there is nothing to compare with."""
    if not isinstance(name, str) or name in known:
        return []
    return _dual_problems("baseline", name) if is_dual(name) else [_unknown("baseline", "method", name, known)]


def _primary_problems(names: object, chosen: object) -> list[str]:
    """Columns of tasks that the recipe has; which metrics a task has, its data says."""
    problems = []
    for place, name in enumerate(names if isinstance(names, list) else [names] if isinstance(names, str) else []):
        task, _, metric = str(name).partition(".")
        if isinstance(chosen, list) and (task not in chosen or not metric):
            there = ", ".join(f"{one}.bits_per_byte" for one in chosen)
            problems.append(f"primary.{place}: found {name!r}; expected TASK.METRIC of a task of the recipe: {there}.")
    return problems


def all_rows(values: Mapping[object, object]) -> list[str]:
    """What `methods: all` stands for: every method whose teacher the recipe has, and the recipe's variants.

    Methods that learn by rewards are named where they are meant: few tasks say one.
    """
    there = {kind for kind, role in ROLE_OF_KIND.items() if _named(values.get("teachers")).get(role)} | {
        TeacherKind.NONE
    }
    taught = [name for name, kind in registered().items() if kind.teacher in there and Need.REWARDS not in kind().needs]
    return [*taught, *_named(values.get("variants"))]


def _evaluation_problems(evaluation: Mapping[str, object]) -> list[str]:
    if evaluation.get("answers", True) is not False or evaluation.get("bits_per_byte", True) is not False:
        return []
    return [
        "evaluation: found neither answers nor bits_per_byte; expected one of them at least, or nothing is measured."
    ]


def _dev_problems(values: Mapping[object, object]) -> list[str]:
    """Where weights are chosen on held-out rows, some must be held out."""
    if _named(values.get("dev")).get("rows"):
        return []
    sections = {name: values.get(name) for name in ("teacher", "warm_start", "train")}
    for above in ("method_options", "variants", "tuned"):
        sections |= {f"{above}.{row}.train": _named(its).get("train") for row, its in _named(values.get(above)).items()}
    return [
        f"{name}.select: found 'best_dev', but no training rows are held out; set dev.rows, such as dev.rows=64."
        for name, section in sections.items()
        if _named(section).get("select") == "best_dev"
    ]


def _paper_problems(name: object) -> list[str]:
    if not isinstance(name, str):
        return []
    known = _published_pairs()
    return [] if name in known else [_unknown("paper", "pair of models", name, known)]


@cache
def _published_pairs() -> tuple[str, ...]:
    """As reports.published_pairs, without the pandas and matplotlib of reports, for which a plan need not wait."""
    papers = (
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder_beside("reports").glob("paper/*.yaml")
    )
    return tuple(sorted(pair for paper in papers for pair in paper["pairs"]))


def _unknown(where: str, what: str, name: str, known: Iterable[str]) -> str:
    hint = suggest(name, known) or f"There are {', '.join(known)}."
    return f"{where}: unknown {what} {name!r}. {hint}"


def _dual_problems(where: str, name: str) -> list[str]:
    try:
        parts_of(name)
    except UnknownMethodError as error:
        hint = f'Did you mean "{error.suggestion}"?' if error.suggestion else ""
        return [f"{where}: unknown method {error.name!r} in {name!r}. {hint}".rstrip()]
    except ValueError as error:
        return [f"{where}: {error}."]
    return []


def _option_problems(values: Mapping[object, object], known: Mapping[str, type[Method]]) -> list[str]:
    problems = []
    for method, given in _named(values.get("method_options")).items():
        where = f"method_options.{method}"
        if not isinstance(given, Mapping):
            problems.append(f"{where}: found {given!r:.60}; expected a mapping of options.")
        elif method == "dual" or is_dual(method):
            problems += _row_problems(where, DualOptions, given)
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
        elif method in _named(values.get("variants")):
            problems.append(f"{where}: found a variant; expected a method. Its own options stand in variants.{method}.")
        elif method not in known:
            problems.append(f"{where}: unknown method. {suggest(str(method), [*known, 'all'])}".rstrip())
        else:
            problems += _row_problems(where, known[method].Options, given)
    return problems


def _methods_asked(values: Mapping[object, object]) -> list[object]:
    """The methods that a recipe trains, those behind variants among them."""
    listed, variants = as_list(values.get("methods")), _named(values.get("variants"))
    rows = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    return [*rows, *(_named(variants.get(name)).get("method") for name in rows)]


def _named(value: object) -> Mapping[str, object]:
    """What stands under names, as far as it does; what else stands there the schema finds wrong."""
    return {key: one for key, one in value.items() if isinstance(key, str)} if isinstance(value, Mapping) else {}


_OTHER_ROWS = ("untrained", "warm_start", "teacher")  # of tables, by no method: see `evaluation.references`


def _variant_problems(variants: object, known: Mapping[str, type[Method]]) -> list[str]:
    """A variant is called like no method, names one, and has options that the method has."""
    problems = []
    for name, given in _named(variants).items():
        where = f"variants.{name}"
        if name in (*known, *_OTHER_ROWS, "all", "dual") or not re.fullmatch(r"[\w.-]{1,100}", name):
            problems.append(f"{where}: found {name!r}; expected a name of its own, of letters, digits and _ . -")
        if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
            problems.append(f"{where}: found {given!r:.60}; expected a mapping with the method and options of its own.")
        elif given["method"] not in known:
            problems.append(_unknown(f"{where}.method", "method", given["method"], known))
        else:
            own = {key: value for key, value in given.items() if key != "method"}
            problems += _row_problems(where, known[given["method"]].Options, own)
    return problems


def _row_problems(where: str, options: type[BaseModel], given: Mapping[str, object]) -> list[str]:
    """Of a row's options, and of what stands beside them: fields of its training, and what is tuned of it."""
    problems = _wrong_options(where, options, {key: one for key, one in given.items() if key not in BESIDE_OPTIONS})
    for name in BESIDE_OPTIONS:
        part = given.get(name, {})
        if not isinstance(part, Mapping):
            problems.append(f"{where}.{name}: found {part!r:.60}; expected a mapping.")
        elif name == "train":
            problems += _wrong_options(f"{where}.{name}", RowTraining, part)
    return problems


def _tuned_problems(values: Mapping[object, object], known: Mapping[str, type[Method]]) -> list[str]:
    """What was tuned is a row's, and has options that its method has."""
    problems, variants = [], _named(values.get("variants"))
    for row, given in _named(values.get("tuned")).items():
        where, method = f"tuned.{row}", _named(variants.get(row)).get("method", row)
        if not isinstance(given, Mapping):
            problems.append(f"{where}: found {given!r:.60}; expected a mapping of options.")
        elif is_dual(row):
            problems += _row_problems(where, DualOptions, given)
        elif method in known:
            problems += _row_problems(where, known[str(method)].Options, given)
        else:
            problems.append(_unknown(where, "row", row, [*known, *variants]))
    return problems


def _fields_inside(schema: type[BaseModel], name: str) -> list[str]:
    """Fields of all that an option may be where it has fields of its own."""
    inside = [each for each in types_of(schema.model_fields[name].annotation) if isinstance(each, type)]
    return [field for each in inside if issubclass(each, BaseModel) for field in each.model_fields]


def _wrong_options(where: str, schema: type[BaseModel], given: Mapping[str, object]) -> list[str]:
    problems = truth_problems(schema, given, f"{where}.")
    try:
        schema.model_validate(given)
    except ValidationError as error:
        for entry in error.errors():
            written = [str(part) for part in entry["loc"] if part not in TAGS]
            path = ".".join(written)
            if entry["type"] == "extra_forbidden":
                known = schema.model_fields if len(written) == 1 else _fields_inside(schema, written[0])
                above = "".join(f"{part}." for part in written[:-1])
                hint = suggest(written[-1], known, above) or f"There are {', '.join(sorted(known))}."
                problems.append(f"{where}.{path}: unknown option (value {entry['input']!r:.60}). {hint}")
            else:
                problems.append(f"{where}.{path}: found {entry['input']!r:.60}; {entry['msg'].lower()}.")
    return problems
