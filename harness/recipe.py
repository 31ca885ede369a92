"""What may be asked for: a typed schema, YAML files that extend one another, ``key=value`` overrides.

Every error of a recipe is reported at once, with its path, the value found and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from harness import models
from harness.device import Precision
from harness.errors import HarnessError
from harness.tasks import tasks
from harness.top_rows import packed_bytes

Role = Literal["same", "cross"]


class RecipeError(HarnessError):
    """Everything that is wrong with a recipe, a line each."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = f"{len(self.problems)} error" + ("s" if len(self.problems) > 1 else "")
        Exception.__init__(self, "\n".join([f"recipe {name}: {count}", *(f"  {line}" for line in self.problems)]))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Strict):
    """A model of the pair."""

    model: str = Field(description="hf:org/name[@revision], path:dir, pypi:package==version#sha256=... or tiny:llama")
    name: str = Field("", description="how tables call it; the URI's last part by default")
    layers: int | None = Field(None, ge=1, description="keep N evenly spaced decoder layers")
    template: Literal["plain", "chat"] = Field(
        "plain", description="chat: the model's chat template goes round prompts"
    )
    attention: Literal["sdpa", "eager"] = "sdpa"

    @field_validator("model")
    @classmethod
    def _is_a_uri(cls, text: str) -> str:
        try:
            models.parse_uri(text)
        except HarnessError as error:
            raise ValueError(f"expected {error.expected}. {error.fix}".strip()) from error
        return text


class Teachers(_Strict):
    """Teachers by what they share with the student."""

    same: ModelSpec | None = Field(None, description="teacher with the student's tokenizer: FKD, RKD")
    cross: ModelSpec | None = Field(None, description="teacher with another tokenizer: ULD and the other methods")


class Lora(_Strict):
    """Low-rank adapters (peft), merged before the model is used."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


def _on_or_off(value: Any) -> Any:
    """YAML reads the words as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Training(_Strict):
    """A training stage. What only changes speed or memory is marked; it is not part of a stage's identity."""

    steps: int | None = Field(None, ge=0, description="optimiser steps; wins over epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the training rows")
    batch_size: int = Field(8, ge=1, description="responses per optimiser step, over all devices")
    micro_batch_size: int | None = Field(None, ge=1, description="(speed) responses per forward pass and device")
    learning_rate: float = Field(2e-5, gt=0)
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup: float = Field(0.0, ge=0, description="steps of warm-up, or a share of all steps where below 1")
    weight_decay: float = Field(0.01, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    bucket: Literal["none", "length"] = Field(
        "none", description="length: steps of responses of like length, so that batches pad little; another order"
    )
    packing: bool = Field(
        False, description="(speed) sequences one behind the other instead of padded, where the model can"
    )
    precision: Precision = Field("auto", description="auto: bf16 where the GPU has it")
    lora: Lora | None = Field(None, description="train adapters only")
    gradient_checkpointing: bool = Field(False, description="(memory) recompute activations")
    chunk_rows: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="(memory) response rows whose logits exist at once; auto: by vocabularies and free memory"
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        "auto", description="(speed) losses through torch.compile; auto: on a GPU"
    )
    checkpoint_every: int | None = Field(None, ge=1, description="(safety) steps between checkpoints; null for none")
    report_to: tuple[str, ...] = Field((), description="trackers of transformers' Trainer, such as tensorboard")

    @model_validator(mode="after")
    def _has_length(self) -> Training:
        if self.steps is None and self.epochs is None:
            raise ValueError("set steps or epochs")
        return self

    def total_steps(self, rows: int) -> int:
        """Optimiser steps over ``rows`` training rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * rows / self.batch_size))

    def identity(self) -> dict[str, Any]:
        """What changes results."""
        # precision "auto" means something only on a machine: plans say what it comes to
        speed = {
            "precision",
            "micro_batch_size",
            "packing",
            "gradient_checkpointing",
            "chunk_rows",
            "compile",
            "checkpoint_every",
            "report_to",
        }
        return self.model_dump(mode="json", exclude=speed)


class Limits(_Strict):
    """Lengths, in tokens."""

    length: int = Field(512, ge=2, description="prompt and response together, EOS included, on every side")
    overlong: Literal["error", "drop"] = Field(
        "error", description="a prompt that leaves no room: stop, or leave it out"
    )


class TeacherRows(_Strict):
    """What is stored of a teacher at each position of a response, once for all methods."""

    keep: Literal["hidden", "top_k"] = Field(
        "hidden", description="hidden: the last hidden row, exact; top_k: the likeliest k tokens, the rest as one mass"
    )
    k: int = Field(256, ge=1, description="tokens of a position with top_k, 6 bytes each, and 8 for the rest")

    def row_bytes(self, hidden: int, itemsize: int) -> int:
        """Bytes of a position, of hidden rows with so many numbers of so many bytes."""
        return hidden * itemsize if self.keep == "hidden" else packed_bytes(self.k)

    def identity(self) -> dict[str, Any]:
        """What changes results; nothing where rows are exact."""
        return {} if self.keep == "hidden" else self.model_dump(mode="json")


class Data(_Strict):
    """Where the data is."""

    root: str | None = Field(None, description="folder of the data sets; null for the samples that the project ships")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


References = Annotated[tuple[Literal["untrained", "warm_start", "teachers"], ...], BeforeValidator(_as_list)]


class Evaluation(_Strict):
    """How students are evaluated, beyond each task's own settings."""

    batch_size: int = Field(16, ge=1, description="(speed) answers that are generated at a time")
    engine: Literal["hf", "vllm"] = Field("hf", description="what generates: transformers, or vLLM where installed")
    bits_per_byte: bool = Field(True, description="measure held-out bits per byte of the reference responses")
    references: References = Field(
        (), description="rows to compare with: untrained (the student as it was), warm_start, teachers (fine-tuned)"
    )


def _as_names(value: Any) -> Any:
    """A list of names; ``[dual(fkd, cdm)]``, which YAML cuts at the comma, is put together again."""
    listed = _as_list(value)
    if not isinstance(listed, list):
        return listed
    names: list[Any] = []
    for part in listed:
        if (
            names
            and isinstance(part, str)
            and isinstance(names[-1], str)
            and names[-1].count("(") > names[-1].count(")")
        ):
            names[-1] += f", {part}"
        else:
            names.append(part)
    return names


Names = Annotated[tuple[str, ...], BeforeValidator(_as_names), Field(min_length=1)]
Only = Annotated[tuple[Literal["teacher"], ...], BeforeValidator(_as_list)]
Seeds = Annotated[tuple[int, ...], BeforeValidator(_as_list), Field(min_length=1)]
Fidelities = Annotated[tuple[Literal["described", "released"], ...], BeforeValidator(_as_list), Field(min_length=1)]


class _RecipeBase(_Strict):
    """A comparison: one pair of models, and the methods, tasks and seeds to cross."""

    name: str = Field(description="how runs of it are called")
    title: str = Field("", description="heading of the report")
    notes: tuple[str, ...] = Field((), description="sentences printed under the table")
    student: ModelSpec
    teachers: Teachers
    tasks: Names
    methods: Names
    fidelity: Fidelities = ("described",)
    method_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="options by method; those under `all` go to every method that starts from the warm start",
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="further names for `methods`: {gold_on_policy: {method: gold, rollout_share: 0.5}} is a row with "
        "gold's options and these",
    )
    seeds: Seeds = (0,)
    baseline: str | None = Field(
        "control", description="the method that tests compare all others with; null for no tests"
    )
    paper: str | None = Field(None, description="the pair of models whose published numbers stand beside ours")
    data: Data = Data()
    limits: Limits = Limits()
    teacher: Training = Field(description="fine-tuning of the teachers on the task")
    warm_start: Training = Field(description="fine-tuning of the student before distillation")
    train: Training = Field(description="distillation")
    teacher_rows: TeacherRows = TeacherRows()
    evaluation: Evaluation = Evaluation()
    stages: Only = Field((), description="[teacher]: make the teachers and their rows, and stop; empty: everything")
    keep_students: bool = Field(True, description="keep trained weights; their scores are kept in any case")

    def models_by_role(self) -> dict[str, ModelSpec]:
        """The models of the pair: "student", and "same" and "cross" where there is such a teacher."""
        roles = {"student": self.student, "same": self.teachers.same, "cross": self.teachers.cross}
        return {role: spec for role, spec in roles.items() if spec is not None}

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """The repetitions of a task: its own, else the recipe's."""
        own: tuple[int, ...] | None = getattr(self, task).seeds
        return self.seeds if own is None else own

    def method_of(self, row: str) -> tuple[str, dict[str, Any]]:
        """The method behind a name in ``methods``, and the options that the recipe gives to it beyond `all`'s."""
        variant = self.variants.get(row, {"method": row})
        own = {name: value for name, value in variant.items() if name != "method"}
        return str(variant["method"]), self.method_options.get(variant["method"], {}) | own


# The tasks' own settings are fields of the recipe under the tasks' names: dolly.new_tokens=64.
Recipe = create_model(  # type: ignore[call-overload]
    "Recipe",
    __base__=_RecipeBase,
    __module__=__name__,
    **{name: (task.Settings, Field(default_factory=task.Settings)) for name, task in tasks().items()},
)


def recipes_folder() -> Path:
    """The recipes that the project ships."""
    import importlib.util

    spec = importlib.util.find_spec("recipes")
    if spec is None or not spec.submodule_search_locations:
        raise HarnessError("package recipes", "no such package", "an installed ctkd-harness", "Install it again.")
    return Path(next(iter(spec.submodule_search_locations)))


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
        problems += [_problem(entry, values) for entry in error.errors()]
    problems += _name_problems(values)
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


def suggest(name: str, known: Iterable[str], above: str = "") -> str:
    """'Did you mean "gold"?', or nothing; with what stands above a key, 'Did you mean "train.steps"?'."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f'Did you mean "{above}{near[0]}"?' if near else ""


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


def _problem(error: Mapping[str, Any], values: Any) -> str:
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


def _name_problems(values: Any) -> list[str]:
    """Unknown methods and tasks, wrong method options: checked beside the schema, so that all errors come at once."""
    from methods.base import registered
    from methods.dual import is_dual

    if not isinstance(values, Mapping):
        return []
    known_methods, known_tasks = registered(), tasks()
    variants = values.get("variants")
    rows = [*known_methods, *(variants if isinstance(variants, Mapping) else ())]
    problems = []
    for key, known in (("methods", rows), ("tasks", list(known_tasks))):
        listed = _as_names(values.get(key))
        for place, name in enumerate(listed if isinstance(listed, list) else []):
            if key == "methods" and isinstance(name, str) and is_dual(name):
                problems += _dual_problems(f"{key}.{place}", name)
            elif isinstance(name, str) and name not in known:
                problems.append(_unknown(f"{key}.{place}", key[:-1], name, known))
    for key in ("methods", "tasks", "seeds", "fidelity"):
        listed = _as_names(values.get(key))
        if isinstance(listed, list) and len(set(map(str, listed))) < len(listed):
            problems.append(f"{key}: found {listed!r}; one of them stands there twice.")
    problems += _baseline_problems(values.get("baseline"), rows) + _paper_problems(values.get("paper"))
    return problems + _option_problems(values, known_methods) + _variant_problems(variants, known_methods)


def _baseline_problems(name: Any, known: Iterable[str]) -> list[str]:
    """Any method will do: where a run leaves it out, its report says that there is nothing to compare with."""
    from methods.dual import is_dual

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
    from methods.dual import parts_of

    try:
        parts_of(name)
    except UnknownMethodError as error:
        hint = f'Did you mean "{error.suggestion}"?' if error.suggestion else ""
        return [f"{where}: unknown method {error.name!r} in {name!r}. {hint}".rstrip()]
    except ValueError as error:
        return [f"{where}: {error}."]
    return []


def _option_problems(values: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    from methods.dual import DualOptions, is_dual

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
    listed, variants = _as_list(values.get("methods")), values.get("variants")
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
