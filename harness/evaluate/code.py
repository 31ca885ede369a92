"""HumanEval+ and MBPP+ through EvalPlus: which prompts to generate for, what code an output holds, does it pass.

EvalPlus (Liu et al. 2023) runs in a fresh process in the sandbox, once for all owners (students) of a task. Prompts,
stop strings, the extraction of code and the verdict are EvalPlus's own; its time limit for one input is the larger of
4 s and 4 times what the data set's own solution took, in seconds of wall clock: a loaded machine can turn a pass into
a timeout.

What to know about the scores of EvalPlus 0.3.1: HumanEval/32 can't be passed (``CANNOT_PASS``), so 163 of 164 is the
ceiling. The generated code runs beside EvalPlus, as the same user inside the sandbox: it can't reach the host, but code
written to cheat could forge its verdict, or break the evaluation of all owners, which is then an error.
"""

import ast
import gzip
import json
import math
import re
import sys
import warnings
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from harness.errors import HarnessError
from harness.evaluate import sandbox as box

Dataset = Literal["humaneval", "mbpp"]
Style = Literal["completion", "response"]
Problem = dict[str, Any]

MAX_NEW_TOKENS = 768  # EvalPlus's own limit for a generation
MIN_TIME_LIMIT_S = 4.0  # for one input; given to EvalPlus in so many words, because its default varies (0.3.1: 1 s)
TIME_LIMIT_FACTOR = 4.0  # times what the data set's own solution takes
MEMORY_BYTES = 8 * 2**30  # Mbpp/255 fails at EvalPlus's default of 4 GiB
WORKERS = 2
CANNOT_PASS = frozenset({"HumanEval/32"})  # its oracle in 0.3.1 never marks an input as passed

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
_RESULT_BYTES = 2**30
# EvalPlus gives one test run at most 60 s (+ 2 s to end it), and runs the base tests and the plus tests.
_WORST_S_PER_SOLUTION = 2 * 62
_STARTUP_AND_EXPECTED_OUTPUTS_S = 600


@dataclass(frozen=True)
class Solution:
    """A program to judge: whose it is (the identity of a cell), for which problem, and its text."""

    owner: str
    task_id: str
    code: str


@dataclass(frozen=True)
class Verdict:
    """EvalPlus's judgement of one solution.

    Attributes:
        owner: as in the ``Solution``.
        task_id: as in the ``Solution``.
        base: it passes the tests of the original data set (HumanEval, MBPP).
        plus: it passes them and EvalPlus's additional ones (HumanEval+, MBPP+).
        status: ``pass``, or of the first of base and plus that is not: ``fail``, also for an input that took too long,
            or ``timeout``, if the run ended without a word: it had to be killed, or ended itself.
    """

    owner: str
    task_id: str
    base: bool
    plus: bool
    status: str


class EvaluationFailed(HarnessError):  # noqa: N818  an outcome: the engine makes a row of it
    """EvalPlus did not come to its end; ``output`` is the last of what it said."""

    def __init__(self, found: str, output: str) -> None:
        self.output = output
        super().__init__("EvalPlus", found, "its results", f"It said last:\n{output.strip()[-2000:]}")


def protocol() -> dict[str, str | int | float]:
    """What a score depends on beside the data: part of the identity of a scoring stage, and printed with the score."""
    from importlib.metadata import version

    return {
        "evalplus": version("evalplus"),
        "min_time_limit_s": MIN_TIME_LIMIT_S,
        "time_limit_factor": TIME_LIMIT_FACTOR,
        "memory_bytes": MEMORY_BYTES,
        "workers": WORKERS,
    }


def read_problems(path: Path) -> dict[str, Problem]:
    """Problems in EvalPlus's format (.jsonl or .jsonl.gz) by task id, in the order of the file.

    Raises:
        HarnessError: the file is missing or unreadable, or a row lacks a field, has it in another type, or repeats an
            id; it names the line and the field.
    """
    return {problem["task_id"]: problem for _, problem in _read_rows(path)}


def generation_prompt(problem: Problem, style: Style = "completion") -> str:
    """What to ask for one problem, as EvalPlus does.

    ``completion``: the head of the function, which the model goes on writing. ``response``: an instruction, to be put
    into the template that the model was trained on.
    """
    head = str(problem["prompt"]).strip()
    return f"{head}\n" if style == "completion" else f"{_INSTRUCTION}\n```\n{head}\n```"


def stop_strings(dataset: Dataset, style: Style = "completion") -> tuple[str, ...]:
    """EvalPlus's own: an output ends before the first of these.

    A response has no further ones: EvalPlus's "\\n```\\n" supposes that the answer was begun for the model.
    """
    from evalplus.provider.utility import EOS, extra_eos_for_direct_completion

    further = extra_eos_for_direct_completion(dataset) if style == "completion" else []
    return (*EOS, *further)


def solution_code(problem: Problem, output: str, *, dataset: Dataset, style: Style = "completion") -> str:
    """The program in an output, as EvalPlus takes it: cut at the stop strings, then its ``sanitize``.

    For a ``completion`` the prompt stands before it. Of a ``response``, fenced or not, the first code block that
    defines the function asked for is taken, else the first block, else all of the text.
    """
    for stop in stop_strings(dataset, style):
        output = output.split(stop, 1)[0]
    output = output.replace("\t", "    ")  # as EvalPlus does after decoding
    entry_point = str(problem["entry_point"])
    text = generation_prompt(problem) + output if style == "completion" else _code_block(output, entry_point)
    return _sanitize(text, entry_point)


def evaluate(
    problems: Path,
    solutions: Sequence[Solution],
    *,
    dataset: Dataset,
    work: Path,
    sandbox: box.SandboxStatus,
    unsafe: bool = False,
    limits: box.Limits | None = None,
) -> list[Verdict]:
    """Judge all solutions of all owners in one fresh process; verdicts in the order of the solutions.

    The same code for the same problem is run once. Problems that nobody has a solution for are left out.

    Args:
        problems: file in EvalPlus's format.
        solutions: at most one for an owner and a problem; empty code fails.
        dataset: whose oracles apply.
        work: existing folder for temporary files (up to 1 GB for all of MBPP+); nothing is left in it.
        sandbox: from ``sandbox.probe``.
        unsafe: run without a sandbox, on a user's explicit wish.
        limits: default: see ``default_limits``.

    Raises:
        SandboxUnavailable: there is no sandbox and ``unsafe`` was not asked for.
        HarnessError: a solution for an unknown problem, or two of one owner for the same.
        EvaluationFailed: EvalPlus ended without complete results.
    """
    if not unsafe and not sandbox.available:
        raise box.SandboxUnavailable(sandbox.reason)
    rows = {problem["task_id"]: line for line, problem in _read_rows(problems)}
    _check_solutions(solutions, rows, problems)
    if not solutions:
        return []
    samples = list(dict.fromkeys((solution.task_id, solution.code) for solution in solutions))
    # Always a new folder: EvalPlus would take an older result for its own.
    with TemporaryDirectory(dir=work, prefix="evalplus.", ignore_cleanup_errors=True) as folder:
        asked = {task_id: rows[task_id] for task_id, _ in samples}
        judged = _run_evalplus(Path(folder), asked, samples, dataset, sandbox, unsafe, limits)
    return [_verdict(solution, judged[solution.task_id, solution.code]) for solution in solutions]


def default_limits(solutions: int) -> box.Limits:
    """Limits for a whole evaluation; the wall limit is what EvalPlus can take at worst, so it cuts nothing short."""
    return box.Limits(
        memory_bytes=MEMORY_BYTES,
        cpu_s=900,
        processes=128,
        file_bytes=2 * 2**30,
        wall_s=_STARTUP_AND_EXPECTED_OUTPUTS_S + math.ceil(solutions / WORKERS) * _WORST_S_PER_SOLUTION,
    )


# A fresh process around EvalPlus's `evaluate`, which ends as soon as that returns or fails: `main` of EvalPlus stays up
# to 20 s longer on a thread that watches for stuck samples, and after a crash for ever.
_RUN_EVALPLUS = """
import json, os, sys, traceback
code = 1
try:
    from evalplus.evaluate import evaluate
    evaluate(**json.loads(sys.argv[1]))
    code = 0
except BaseException:
    traceback.print_exc()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""

Sample = tuple[str, str]  # task id, code


def _run_evalplus(
    folder: Path,
    problem_lines: Mapping[str, str],
    samples: Sequence[Sample],
    dataset: Dataset,
    sandbox: box.SandboxStatus,
    unsafe: bool,
    limits: box.Limits | None,
) -> dict[Sample, dict[str, Any]]:
    """Write EvalPlus's two input files, run it, read its results: by task id and code."""
    limits = limits or default_limits(len(samples))
    # EvalPlus insists on a sample for every problem it knows, so it is shown those with samples only, byte for byte.
    (folder / "problems.jsonl").write_text("".join(f"{line}\n" for line in problem_lines.values()), encoding="utf-8")
    lines = [json.dumps({"task_id": task_id, "solution": code}) + "\n" for task_id, code in samples]
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    call = {
        "dataset": dataset,
        "samples": "samples.jsonl",
        "parallel": WORKERS,
        "min_time_limit": MIN_TIME_LIMIT_S,
        "gt_time_limit_factor": TIME_LIMIT_FACTOR,
    }
    done = box.run(
        [sys.executable, "-P", "-c", _RUN_EVALPLUS, json.dumps(call)],
        work=folder,
        read_only=[],
        limits=limits,
        env=_environment(dataset, limits),
        sandbox=sandbox,
        unsafe=unsafe,
    )
    if done.timed_out:
        raise EvaluationFailed(f"no end after {limits.wall_s:.0f} s", done.output)
    if done.returncode != 0:
        raise EvaluationFailed(f"exit status {done.returncode}", done.output)
    try:
        return _read_results(folder / "samples_eval_results.json", samples)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise EvaluationFailed(f"results that do not fit the samples ({error!r})", done.output) from error


def _environment(dataset: Dataset, limits: box.Limits) -> dict[str, str]:
    override = {"humaneval": "HUMANEVAL_OVERRIDE_PATH", "mbpp": "MBPP_OVERRIDE_PATH"}[dataset]
    return {
        override: "problems.jsonl",
        "EVALPLUS_MAX_MEMORY_BYTES": str(limits.memory_bytes),
        "XDG_CACHE_HOME": "cache",  # the expected outputs go here, as a pickle that only this process reads
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # threads count as processes, and their stacks as address space
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TQDM_DISABLE": "1",
    }


def _read_results(path: Path, samples: Sequence[Sample]) -> dict[Sample, dict[str, Any]]:
    """EvalPlus's results by sample: it keeps, for each task id, the order of the samples file.

    Raises:
        ValueError, KeyError, TypeError: not exactly one result for each sample.
    """
    content = box.read_untrusted(path, _RESULT_BYTES)
    if content is None:
        raise ValueError("no result file")
    by_task = json.loads(content)["eval"]
    expected: dict[str, list[str]] = defaultdict(list)
    for task_id, code in samples:
        expected[task_id].append(code)
    if {task_id: [row["solution"] for row in rows] for task_id, rows in by_task.items()} != expected:
        raise ValueError("other solutions than those sent")
    return {(task_id, row["solution"]): row for task_id, rows in by_task.items() for row in rows}


def _verdict(solution: Solution, row: Mapping[str, Any]) -> Verdict:
    base, plus = str(row["base_status"]), str(row["plus_status"])
    status = plus if base == "pass" else base
    return Verdict(solution.owner, solution.task_id, base=base == "pass", plus=status == "pass", status=status)


def _check_solutions(solutions: Sequence[Solution], known: Mapping[str, str], problems: Path) -> None:
    seen: set[tuple[str, str]] = set()
    for solution in solutions:
        where = f"solution of {solution.owner}"
        if solution.task_id not in known:
            raise HarnessError(where, f"task id {solution.task_id!r}", f"one of those in {problems}")
        if (solution.owner, solution.task_id) in seen:
            raise HarnessError(where, f"two for {solution.task_id}", "one for each problem")
        seen.add((solution.owner, solution.task_id))


def _read_rows(path: Path) -> Iterator[tuple[str, Problem]]:
    """Each row of a problems file: its line as it stands, and what it says, checked."""
    seen: set[str] = set()
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
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
        problem = json.loads(line)
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
    return problem


_FENCED = re.compile(r"^[ ]*```[^\n]*\n(.*?)(?:^[ ]*```|\Z)", re.DOTALL | re.MULTILINE)


def _code_block(response: str, entry_point: str) -> str:
    """The part of an answer that holds the function: see ``solution_code``."""
    blocks = _FENCED.findall(response)
    defining = [block for block in blocks if re.search(rf"\bdef\s+{re.escape(entry_point)}\b", block)]
    return str([*defining, *blocks, response][0])


def _sanitize(text: str, entry_point: str) -> str:
    """EvalPlus's ``sanitize``, with the same result in bearable time, and for any text.

    Its ``code_extract`` parses every range of lines: 18 s for 768 empty lines, 86 s for 384 lines ``x``, and small
    students do write that. ``_longest_valid_range`` finds the same range in about a second at worst.
    """
    from evalplus import sanitize as evalplus

    evalplus.code_extract = _longest_valid_range
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bad escape in generated code is no news
        try:
            return str(evalplus.sanitize(text, entry_point))
        except Exception:  # it parses whatever a model wrote, e.g. lone surrogates: as it stands, that fails its tests
            return text


def _longest_valid_range(text: str) -> str:
    """What EvalPlus's ``code_extract`` gives: of the ranges of two or more lines that parse, that with the most lines
    that are not blank, the first of equals; the first line if there is none."""
    from evalplus.syncheck import syntax_check

    lines = text.split("\n")
    filled = [0]  # lines that are not blank before line i
    for line in lines:
        filled.append(filled[-1] + bool(line.strip()))
    pairs = [(i, j) for i in range(len(lines)) for j in range(i + 1, len(lines)) if filled[j + 1] > filled[i]]
    pairs.sort(key=lambda pair: filled[pair[0]] - filled[pair[1] + 1])  # stable: the first of equals stays first
    last: dict[int, int] = {}  # for a first line: the last line after which what is there could still become valid
    for i, j in pairs:
        if j > last.get(i, j):
            continue
        if syntax_check(candidate := "\n".join(lines[i : j + 1])):
            return candidate
        if i not in last:
            last[i] = i - 1 + bisect_left(range(i, len(lines)), True, key=lambda end: _hopeless(lines[i : end + 1]))
    return lines[0]


def _hopeless(lines: Sequence[str]) -> bool:
    """These lines don't parse, and nor do they with any more lines after them: Python stopped before it read the last.

    Python says "incomplete input" where it stopped at the end; what else it says there is told by its words.
    """
    try:
        compile("\n".join(lines), "", "exec", ast.PyCF_ONLY_AST | _ALLOW_INCOMPLETE_INPUT)
    except SyntaxError as error:
        return not any(word in str(error.msg) for word in ("incomplete", "unterminated", "EOF"))
    except (ValueError, MemoryError, RecursionError):
        pass
    return False


_ALLOW_INCOMPLETE_INPUT = 0x4000  # codeop.PyCF_ALLOW_INCOMPLETE_INPUT, since Python 3.11
