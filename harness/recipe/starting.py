"""A recipe to begin with, for somebody's own pair and data: written as text with comments, to be read and changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import expanded, is_folder
from harness.data.pair import TEACHER, PairFacts, pair_facts
from harness.data.rows import Example
from harness.data.tables import first_row
from harness.data.templates import TextSide, load_sides
from harness.data.tokens import STUDENT
from harness.models.cache import Report
from harness.models.load import load_config, load_tokenizer
from harness.models.resolve import resolve
from harness.models.spec import ModelSpec
from harness.models.uri import KNOWN_MODELS, parse_uri
from harness.recipe.load import validate
from harness.recipe.schema import Recipe
from harness.recipe.yaml_text import parse_yaml

PROMPTS = ("prompt", "question", "instruction", "input", "query", "problem")
RESPONSES = ("response", "answer", "output", "completion", "reply", "solution", "target")
CHATS = ("messages", "conversation", "conversations", "chat")
METHODS = {"cross": ["control", "uld", "gold", "cdm", "one_to_one"], "same": ["control", "fkd", "rkd"]}


@dataclass(frozen=True)
class OwnPair:
    """What somebody wants to compare.

    Attributes:
        teacher, student: URIs of models.
        train, test: places of rows.
        gpu: GiB of memory of the GPU that trains; 0 for none.
        prompt, response, messages: columns, where they are not to be guessed.
        metric: of own.
        licence, origin: of the data.
    """

    teacher: str
    student: str
    train: str
    test: str
    gpu: int
    prompt: str = ""
    response: str = ""
    messages: str = ""
    metric: str = "rouge_l"
    licence: str = ""
    origin: str = ""


@dataclass(frozen=True)
class FirstRecipe:
    """A recipe to begin with.

    Attributes:
        text: to be written into a file.
        facts: of the pair on the data's own rows.
        notes: what else was found, a line each.
    """

    text: str
    facts: PairFacts
    notes: tuple[str, ...]


def model_uri(text: str) -> str:
    """A model as recipes call it: a folder and the name of a small model are understood, too.

    Raises:
        HarnessError: it is none.
    """
    if text in KNOWN_MODELS:
        return KNOWN_MODELS[text].uri
    if is_folder(expanded(text)):
        return f"path:{text}"
    return parse_uri(text).text


def readable_rows(place: str) -> str:
    """The place of rows, of which the first can be read.

    Raises:
        HarnessError: it can't.
    """
    first_row(expanded(place))
    return place


def columns_of(place: str, own: OwnPair | None = None) -> dict[str, str]:
    """Which columns hold prompt and response, or a chat: as said, else by the names that others give them.

    Raises:
        HarnessError: the file can't be read; or no column has such a name.
    """
    if own is not None and own.messages:
        return {"messages": own.messages}
    _, row = first_row(expanded(place))
    said = (own.prompt, own.response) if own is not None else ("", "")
    if not any(said) and (chat := next((name for name in CHATS if isinstance(row.get(name), list)), "")):
        return {"messages": chat}
    found = [
        name or next((one for one in known if one in row), "")
        for name, known in zip(said, (PROMPTS, RESPONSES), strict=True)
    ]
    if not all(found):
        there = ", ".join(row)
        missing = " and ".join(name for name, one in zip(("prompt", "response"), found, strict=True) if not one)
        expected = f"one that is called {', '.join(PROMPTS)}, and one called {', '.join(RESPONSES)}"
        fix = "Name them: --prompt-column and --response-column, or --messages for a chat."
        raise HarnessError(f"columns of {place}", f"none for the {missing} ({there})", expected, fix)
    return dict(zip(("prompt", "response"), found, strict=True))


def first_recipe(name: str, own: OwnPair, report: Report) -> FirstRecipe:
    """A recipe for these answers, which a plan and a run take as it stands.

    Args:
        name: of the file, without its ending.
        report: called with a line where a model is downloaded.

    Raises:
        HarnessError: a model, or a row of the data, is wrong.
    """
    models = {TEACHER: _model(own.teacher, report), STUDENT: _model(own.student, report)}
    sides = load_sides({role: ModelSpec.model_validate(fields) for role, fields in models.items()}, report)
    columns = columns_of(own.train, own)
    task = _task_name(own.train)
    settings: dict[str, object] = {"task": "custom", "train": own.train, "test": own.test, "metric": own.metric}
    settings |= {"messages": columns["messages"]} if "messages" in columns else {"columns": columns}
    if any(fields["template"] == "plain" for fields in models.values()):
        settings["template"] = "{prompt}\n"
    examples = _checked(name, task, settings, models)
    facts = pair_facts(examples, sides[STUDENT], sides[TEACHER])
    notes = tuple(
        f"{role}: prompts go into its chat template" for role, one in models.items() if one["template"] == "chat"
    )
    text = _written(name, own, task, settings, models, facts, len(examples))
    values = parse_yaml(text)
    assert isinstance(values, dict)
    validate(name, {"name": name, **values})
    return FirstRecipe(text, facts, notes)


def _model(uri: str, report: Report) -> dict[str, object]:
    """Fields of a model: its chat template is used where it has one that works."""
    folder = resolve(parse_uri(uri), report=report).folder
    fields: dict[str, object] = {"model": uri, "name": _short(uri), "template": "plain"}
    if getattr(load_config(folder), "attn_logit_softcapping", None):
        fields["attention"] = "eager"
    try:
        TextSide(load_tokenizer(folder), template="chat", name=_short(uri))
    except HarnessError:
        return fields
    return fields | {"template": "chat"}


def _short(uri: str) -> str:
    """How tables call a model."""
    scheme, _, rest = uri.partition(":")
    if scheme == "pypi":
        return next((name for name, known in KNOWN_MODELS.items() if known.uri == uri), rest.partition("==")[0])
    return (
        f"tiny {re.split('[?&]', rest)[0]}" if scheme == "tiny" else rest.partition("@")[0].rstrip("/").split("/")[-1]
    )


def _task_name(place: str) -> str:
    """The task is called like its file, where that can be a field of a recipe."""
    stem = re.sub(r"\W", "_", Path(place.partition("#")[0]).name.partition(".")[0]).lower()
    fine = re.fullmatch(r"[a-z][a-z0-9_]{0,39}", stem) and stem not in Recipe.written_fields()
    return stem if fine else "mine"


def _checked(name: str, task: str, settings: Mapping[str, object], models: Mapping[str, object]) -> Sequence[Example]:
    """Training rows; those of the test are read, too."""
    stages = {stage: {"steps": 1} for stage in ("teacher", "warm_start", "train")}
    teachers = {"cross": models[TEACHER]}
    fields = {"student": models[STUDENT], "teachers": teachers, "methods": ["control"], "tasks": [task]}
    made = validate(name, {"name": name, **fields, **stages, task: settings}).task(task)
    made.requests()
    return made.training_examples()


def _written(
    name: str,
    own: OwnPair,
    task: str,
    settings: Mapping[str, object],
    models: Mapping[str, Mapping[str, object]],
    facts: PairFacts,
    rows: int,
) -> str:
    role = "same" if facts.same_tokenizer else "cross"
    length, new_tokens = _rounded(facts.longest, 64, 1024), _rounded(facts.response, 16, 512)
    few = {"train_items": 256, "test_items": 50} if not own.gpu and rows > 256 else {}
    data = {**settings, **few, "new_tokens": new_tokens}
    said = "\n".join(f"#   {line}" for line in facts.lines())
    where = f"a GPU of {own.gpu} GiB" if own.gpu else "CPU cores"
    return f"""\
# {name}: {models[TEACHER]["name"]} teaches {models[STUDENT]["name"]}; for {where}.
#
#   harness plan recipe={name}.yaml      # what would run, and what it costs
#   harness run recipe={name}.yaml       # trains and evaluates; prints a table
#   harness fields                       # what else a recipe may set
#
# Found of the pair, on the training rows:
{said}

student:
{_fields(models[STUDENT])}
teachers:
  {role}:   # {_ROLES[role]}
{_fields(models[TEACHER], 4)}

tasks: [{task}]
# `harness methods` lists them; control has no teacher, and all are compared with it.
methods: [{", ".join(METHODS[role])}]
# `harness tune recipe={name}.yaml` looks for better weights on held-out rows.
method_options:
  all: {{ce_weight: 0.5, kd_weight: 0.5}}
# Two seeds are the least that tell methods apart; control has twice as many.
seeds: [0, 1]
# In tokens, prompt and response together; longer responses are cut.
limits: {{length: {length}, overlong: drop{", unreadable: drop" if facts.unreadable else ""}}}
# Rows to compare with, beside the methods.
evaluation: {{references: [untrained, warm_start, teachers]}}

# The data: docs/own_data.md. Licence and origin are printed as they stand here.
{task}:
{_fields(data)}
  licence: {_quoted(own.licence)}
  origin: {_quoted(own.origin)}

{_stages(own.gpu)}"""


_ROLES = {"same": "has the student's tokenizer", "cross": "has another tokenizer than the student"}


def _stages(gpu: int) -> str:
    """The trainings: a few steps on a CPU, a pass over the rows on a GPU, whose memory says what is kept."""
    length = "epochs: 1" if gpu else "steps: 20"
    batch = f"batch_size: {32 if gpu else 4}" + (", gradient_checkpointing: true" if 0 < gpu < 40 else "")
    few = "" if gpu else " A first look: too few steps to say which method is better."
    return f"""\
# Rates are common ones, and none was tuned for this pair.{few}
teacher: {{{length}, {batch}, learning_rate: 2.0e-4, warmup: 0.05, lora: {{rank: 16, alpha: 32}}}}
warm_start: {{{length}, {batch}, learning_rate: 5.0e-5, warmup: 0.05}}
train: {{{length}, {batch}, learning_rate: 5.0e-5, warmup: 0.05}}
"""


def _fields(values: Mapping[str, object], indent: int = 2) -> str:
    return "\n".join(f"{' ' * indent}{name}: {_quoted(value)}" for name, value in values.items())


def _quoted(value: object) -> str:
    """A value as JSON, which is YAML: whatever a name holds, it stays one text. Mappings, too."""
    return json.dumps(value, ensure_ascii=False)


def _rounded(tokens: int, step: int, most: int) -> int:
    """Up to whole steps; at least two, for prompts that are longer than those that were seen."""
    return min(max(-(-tokens // step) * step, 2 * step), most)
