"""EvalPlus's problems: how they are read, and what is asked of a model for each."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import HarnessError
from harness.base.files import parse_json
from harness.data.rows import checked_text

CANNOT_PASS = frozenset({"HumanEval/32"})  # its oracle in 0.3.1 never marks an input as passed
NEEDS_MEMORY = frozenset({"Mbpp/255"})  # its answers take gigabytes

Dataset = Literal["humaneval", "mbpp"]
PromptStyle = Literal["completion", "response"]
Problem = dict[str, Any]

_INSTRUCTION = (  # EvalPlus's wording for models that follow instructions (evalplus/codegen.py)
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
)
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "task_id": str,
    "prompt": str,
    "entry_point": str,
    "contract": str,
    "canonical_solution": str,
    "base_input": list,
    "plus_input": (list, dict),  # Mbpp/793 has {}: no additional inputs
    "atol": (int, float),
}


def read_problems(path: Path) -> dict[str, Problem]:
    """Problems in EvalPlus's format (.jsonl or .jsonl.gz) by task id, in the order of the file.

    Raises:
        HarnessError: the file is missing or unreadable, or a row lacks a field, has it in another type, or repeats an
            id; it names the line and the field.
    """
    return {problem["task_id"]: problem for _, problem in read_rows(path)}


def generation_prompt(problem: Problem, style: PromptStyle = "completion") -> str:
    """What to ask for one problem, as EvalPlus does.

    ``completion``: the head of the function, which the model goes on writing. ``response``: an instruction, to be put
    into the template that the model was trained on.
    """
    head = str(problem["prompt"]).strip()
    return f"{head}\n" if style == "completion" else f"{_INSTRUCTION}\n```\n{head}\n```"


def stop_strings(dataset: Dataset, style: PromptStyle = "completion") -> tuple[str, ...]:
    """EvalPlus's own: an output ends before the first of these.

    A response has no further ones: EvalPlus's "\\n```\\n" supposes that the answer was begun for the model.
    """
    from evalplus.provider.utility import EOS, extra_eos_for_direct_completion

    further = extra_eos_for_direct_completion(dataset) if style == "completion" else []
    return (*EOS, *further)


def read_rows(path: Path) -> Iterator[tuple[str, Problem]]:
    """Each row of a problems file: its line as it stands, and what it says, checked."""
    seen: set[str] = set()
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise HarnessError(str(path), f"no readable file ({error})", "a .jsonl or .jsonl.gz of EvalPlus") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        problem = _check_problem(f"{path} line {number}", line)
        if problem["task_id"] in seen:
            raise HarnessError(f"{path} line {number}, field task_id", f"{problem['task_id']!r} again", "a new one")
        seen.add(problem["task_id"])
        yield line, problem
    if not seen:
        raise HarnessError(str(path), "no problems", "a .jsonl or .jsonl.gz of EvalPlus")


def _check_problem(where: str, line: str) -> Problem:
    try:
        problem = parse_json(line)
    except ValueError as error:
        raise HarnessError(where, "text that is not JSON", "one JSON object a line") from error
    if not isinstance(problem, dict):
        raise HarnessError(where, type(problem).__name__, "a JSON object")
    for field, kind in _FIELDS.items():
        value = problem.get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            found = f"a {type(value).__name__}" if field in problem else "nothing"
            expected = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise HarnessError(f"{where}, field {field}", found, expected)
        if isinstance(value, str):
            checked_text(value, f"{where}, field {field}")
    return problem
