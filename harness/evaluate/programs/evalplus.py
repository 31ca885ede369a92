"""HumanEval+ and MBPP+ through EvalPlus: which prompts to generate for, what code an output holds, does it pass.

Prompts, stop strings, the extraction of code and the verdict are EvalPlus's own (Liu et al. 2023); its time limit for
one input is the larger of 4 s and 4 times what the data set's own solution took, in seconds of wall clock: a loaded
machine can turn a pass into a timeout.

EvalPlus runs a solution, compares its answers and keeps the result in one process, so that a solution written to cheat
can reach all three. Here they are apart:

1. ``judge.py`` has EvalPlus compute the expected answers, once for a problem; they are kept (``cache``).
2. ``record.py`` runs one solution, alone in a sandbox without expected answers, and its answers come out as plain data.
3. ``judge.py``, in a fresh process that never sees a solution, has EvalPlus judge the recorded answers.

The base tests come first; the additional ones are run for what passed them. Differences to EvalPlus: an answer of a
class that is not Python's or NumPy's own equals nothing, and an answer of over 16 MiB must be equal type by type.

What to know about the scores of EvalPlus 0.3.1: HumanEval/32 can't be passed (``CANNOT_PASS``), so 163 of 164 is the
ceiling. What no test can see: a solution that has learnt the tests' answers by heart.
"""

import ast
import gzip
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import psutil

import harness
from harness.base.errors import HarnessError
from harness.base.identity import code_digest
from harness.evaluate.programs import sandbox as box

Dataset = Literal["humaneval", "mbpp"]
Style = Literal["completion", "response"]
Problem = dict[str, Any]

MAX_NEW_TOKENS = 768  # EvalPlus's own limit for a generation
MIN_TIME_LIMIT_S = 4.0  # for one input; given to EvalPlus in so many words, because its default varies (0.3.1: 1 s)
TIME_LIMIT_FACTOR = 4.0  # times what the data set's own solution takes
MEMORY_BYTES = 8 * 2**30  # Mbpp/255 fails at EvalPlus's default of 4 GiB
WORKERS = 2
CANNOT_PASS = frozenset({"HumanEval/32"})  # its oracle in 0.3.1 never marks an input as passed
NEEDS_MEMORY = frozenset({"Mbpp/255"})  # its answers take gigabytes

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
_RUN_S = 60.0  # EvalPlus gives one test run at most this, and 2 s to end it
_STARTING_S = 20.0
_EXPECTED_ANSWERS_S = 900.0  # of a whole data set; MBPP+ takes one minute


@dataclass(frozen=True)
class Solution:
    """A program to judge: whose it is (the identity of a cell), for which problem, and its text."""

    owner: str
    task_id: str
    code: str


Status = Literal["pass", "fail", "timeout"]


@dataclass(frozen=True)
class Verdict:
    """EvalPlus's judgement of one solution.

    Attributes:
        owner: as in the ``Solution``.
        task_id: as in the ``Solution``.
        base: the tests of the original data set (HumanEval, MBPP).
        plus: those, and EvalPlus's additional ones (HumanEval+, MBPP+): where base is no pass, the same as base.

    A ``timeout`` is a failure like any other, of an input or of a whole run that took too long while all answers before
    were right; it is told apart because a loaded machine can cause it.
    """

    owner: str
    task_id: str
    base: Status
    plus: Status


class EvaluationFailed(HarnessError):  # noqa: N818  an outcome: the engine makes a row of it
    """A process of the evaluation did not come to its end; ``output`` is the last of what it said."""

    def __init__(self, found: str, output: str) -> None:
        self.output = output
        super().__init__("EvalPlus", found, "its results", f"It said last:\n{output.strip()[-2000:]}")


def protocol() -> dict[str, str | int | float]:
    """What a score depends on beside the data: part of the identity of a scoring stage, and printed with the score."""
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
    cache: Path | None = None,
    limits: box.SandboxLimits | None = None,
) -> list[Verdict]:
    """Judge all solutions of all owners; verdicts in the order of the solutions.

    The same code for the same problem is run once. Problems that nobody has a solution for are left out.

    Args:
        problems: file in EvalPlus's format.
        solutions: at most one for an owner and a problem; empty code fails.
        dataset: whose oracles apply.
        work: existing folder for temporary files; nothing is left in it.
        sandbox: from ``sandbox.probe``.
        unsafe: run without a sandbox, on a user's explicit wish.
        cache: folder where expected answers are kept, by a digest of the problem (1 GB for HumanEval+ and MBPP+);
            None to compute them anew.
        limits: of one solution; ``wall_s`` and ``stdout_bytes`` follow from the problem. Default: ``default_limits``.

    Raises:
        SandboxUnavailable: there is no sandbox and ``unsafe`` was not asked for.
        HarnessError: a solution for an unknown problem, or two of one owner for the same.
        EvaluationFailed: a sandbox did not start, or EvalPlus did not end as it should: never a bad solution's doing.
    """
    if not unsafe and not sandbox.available:
        raise box.SandboxUnavailable(sandbox.reason)
    rows = {problem["task_id"]: (line, problem) for line, problem in _read_rows(problems)}
    _check_solutions(solutions, rows, problems)
    if not solutions:
        return []
    samples = list(dict.fromkeys((solution.task_id, solution.code) for solution in solutions))
    # Always a new folder: no older result can be taken for a new one.
    with TemporaryDirectory(dir=work, prefix="evalplus.", ignore_cleanup_errors=True) as folder:
        asked = {task_id: rows[task_id] for task_id, _ in samples}
        run = _Evaluation(dataset, asked, Path(folder), cache, sandbox, unsafe, limits or default_limits())
        base = run.statuses("base", samples)
        plus = base | run.statuses("plus", [sample for sample in samples if base[sample] == "pass"])
    keys = [(solution.task_id, solution.code) for solution in solutions]
    return [
        Verdict(solution.owner, solution.task_id, base[key], plus[key])
        for solution, key in zip(solutions, keys, strict=True)
    ]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that one of k programs drawn from a problem's samples passes, without bias (Chen et al. 2021, eq. 1).

    Args:
        samples: programs of the problem, at least k.
        passed: how many of them pass.
    """
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def default_limits() -> box.SandboxLimits:
    """Limits of one solution, beside the time it may take."""
    return box.SandboxLimits(
        memory_bytes=MEMORY_BYTES,
        cpu_s=300,
        processes=32,
        file_bytes=64 * 2**20,
        wall_s=_RUN_S,
        resident_bytes=min(MEMORY_BYTES, psutil.virtual_memory().total // (WORKERS + 1)),
        scratch_bytes=256 * 2**20,
    )


Sample = tuple[str, str]  # task id, code
TestSet = Literal["base", "plus"]


@dataclass(frozen=True)
class _Record:
    """What is known of a solution's run without reading its answers."""

    path: Path
    defined: bool  # the program ran through and has the function
    answers: int
    timed_out: bool


class _Evaluation:
    """One call of ``evaluate``: its temporary folder, its expected answers, its settings."""

    def __init__(
        self,
        dataset: Dataset,
        asked: Mapping[str, tuple[str, Problem]],
        folder: Path,
        cache: Path | None,
        sandbox: box.SandboxStatus,
        unsafe: bool,
        limits: box.SandboxLimits,
    ) -> None:
        self.dataset, self.folder, self.limits = dataset, folder, limits
        self.run = partial(box.run, sandbox=sandbox, unsafe=unsafe)
        self.problems = {task_id: problem for task_id, (_, problem) in asked.items()}
        self.keys = {task_id: _key(dataset, line) for task_id, (line, _) in asked.items()}
        self.cache = (cache or folder / "cache").absolute()
        # EvalPlus's own layout: it looks for its files in a folder of its name.
        self.expected = self.cache / "evalplus"
        self.expected.mkdir(parents=True, exist_ok=True)
        self.expected.chmod(0o755)  # read by the user inside
        self._expect({task_id: line for task_id, (line, _) in asked.items()})

    def statuses(self, test_set: TestSet, samples: Sequence[Sample]) -> dict[Sample, Status]:
        """Run and judge samples on one test set."""
        folder = self.folder / test_set
        folder.mkdir()
        pool = ThreadPoolExecutor(WORKERS)
        try:
            jobs = [
                pool.submit(self._record, test_set, sample, folder / f"{number}.jsonl")
                for number, sample in enumerate(samples)
            ]
            records = {sample: job.result() for sample, job in zip(samples, jobs, strict=True)}
        finally:
            pool.shutdown(cancel_futures=True)
        judged = self._judge(test_set, {sample: record for sample, record in records.items() if record.defined})
        return {sample: _status(record, *judged.get(sample, ("fail", 0))) for sample, record in records.items()}

    def _record(self, test_set: TestSet, sample: Sample, path: Path) -> _Record:
        """Run one solution, alone."""
        task_id, code = sample
        tests = self.expected / f"{self.keys[task_id]}.{test_set}.{_suffix()}"
        about, inputs = tests.read_bytes().splitlines()
        known = json.loads(about)
        limits_s = [max(MIN_TIME_LIMIT_S, TIME_LIMIT_FACTOR * seconds) for seconds in known["reference_s"]]
        run_s = min(_RUN_S, sum(limits_s)) + 2
        settings = {
            "code": code,
            "entry_point": self.problems[task_id]["entry_point"],
            "limits_s": limits_s,
            "run_s": run_s,
        }
        limits = replace(
            self.limits,
            wall_s=run_s + _STARTING_S + TIME_LIMIT_FACTOR * known["writing_s"],
            # Wrong answers may be longer than right ones, but nobody needs to read all of them.
            stdout_bytes=2**20 + 4 * known["answer_bytes"],
        )
        with path.open("wb") as file:
            done = self.run(
                [*_PYTHON, "from harness.evaluate.programs.solve import main; main()"],
                work=None,
                read_only=_OWN_FILES,
                hidden=[_OWN_FOLDER],  # installed, it holds sample problems with their solutions
                limits=limits,
                env=_ENVIRONMENT,
                stdin=json.dumps(settings).encode() + b"\n" + inputs + b"\n",
                stdout=file,
            )
        return _look_at(path, done)

    def _judge(self, test_set: TestSet, records: Mapping[Sample, _Record]) -> dict[Sample, tuple[str, int]]:
        """EvalPlus's status of each record, and how many answers are right."""
        if not records:
            return {}
        results = f"{test_set}.json"
        command = {
            "do": "verdicts",
            "dataset": self.dataset,
            "keys": self.keys,
            "test_set": test_set,
            "suffix": _suffix(),
            "records": [(task_id, f"{test_set}/{record.path.name}") for (task_id, _), record in records.items()],
            "results": results,
        }
        wall_s = _EXPECTED_ANSWERS_S + len(records) * (_RUN_S + 2)
        output = self._evalplus(command, self.cache, wall_s)
        content = box.read_untrusted(self.folder / results, 2**26)
        if content is None:
            raise EvaluationFailed("no result file", output)
        verdicts = [(str(status), int(right)) for status, right in json.loads(content)]
        return dict(zip(records, verdicts, strict=True))

    def _expect(self, lines: Mapping[str, str]) -> None:
        """Have the expected answers computed that are not there yet."""
        missing = {
            task_id: key
            for task_id, key in self.keys.items()
            if not all((self.expected / name).is_file() for name in _files(key))
        }
        (self.folder / "problems.jsonl").write_text("".join(f"{line}\n" for line in lines.values()), encoding="utf-8")
        if not missing:
            return
        new = self.folder / "new" / "evalplus"
        new.mkdir(parents=True)
        names = [name for key in missing.values() for name in _files(key)]
        for name in names:
            if (known := self.expected / name).is_file():
                (new / name).symlink_to(known)
        command = {"do": "tests", "dataset": self.dataset, "keys": missing, "suffix": _suffix()}
        self._evalplus(command, Path("new"), _EXPECTED_ANSWERS_S)
        for name in names:
            # Copied, so that they belong to us; renamed last, so that no half of a file is ever read.
            copy = self.expected / f"{name}.{os.getpid()}"
            shutil.copyfile(new / name, copy)
            copy.chmod(0o644)
            copy.replace(self.expected / name)
        shutil.rmtree(self.folder / "new")

    def _evalplus(self, command: Mapping[str, Any], cache: Path, wall_s: float) -> str:
        """Run ``judge.py`` in a fresh process; what it said."""
        override = {"humaneval": "HUMANEVAL_OVERRIDE_PATH", "mbpp": "MBPP_OVERRIDE_PATH"}[self.dataset]
        done = self.run(
            [*_PYTHON, "from harness.evaluate.programs.judge import main; main()"],
            work=self.folder,
            read_only=[*_OWN_FILES, self.expected],
            limits=box.SandboxLimits(MEMORY_BYTES, cpu_s=3600, processes=64, file_bytes=2 * 2**30, wall_s=wall_s),
            env=_ENVIRONMENT | {override: "problems.jsonl", "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"},
            stdin=json.dumps(command).encode(),
        )
        if done.killed_for:
            raise EvaluationFailed(f"no end after {wall_s:.0f} s", done.output)
        if done.returncode != 0:
            raise EvaluationFailed(f"exit status {done.returncode}", done.output)
        return done.output


_OWN_FOLDER = Path(harness.__file__).parent.absolute()
_PROGRAMS = "evaluate/programs"
_OWN_FILES = [
    *(_OWN_FOLDER / folder / "__init__.py" for folder in ("", "evaluate", _PROGRAMS)),
    *(_OWN_FOLDER / _PROGRAMS / f"{name}.py" for name in ("plain", "solve", "judge")),
]
_PYTHON = (sys.executable, "-S", "-P", "-c")
_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(map(str, [_OWN_FOLDER.parent, *box.site_folders()])),
    # EvalPlus runs the data set's own solution and a student's in the same process, so with the same order of sets
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",  # threads count as processes, and their stacks as address space
    "OPENBLAS_NUM_THREADS": "1",
}


def _key(dataset: Dataset, line: str) -> str:
    """Name of the files of expected answers: of all that decides what EvalPlus computes."""
    parts = [dataset, line, version("evalplus"), version("numpy"), platform.python_version()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _suffix() -> str:
    """Of files that this project's code writes, and not EvalPlus."""
    return code_digest(
        "harness.evaluate.programs.plain", "harness.evaluate.programs.solve", "harness.evaluate.programs.judge"
    )[:8]


def _files(key: str) -> tuple[str, ...]:
    return (f"{key}.pkl", f"{key}.base.{_suffix()}", f"{key}.plus.{_suffix()}")


def _look_at(path: Path, done: box.Completed) -> _Record:
    """The outline of a record; its answers are not read.

    Raises:
        EvaluationFailed: the process ended before the solution's turn.
    """
    with path.open("rb") as lines:
        if next(lines, b"") != b'["begun"]\n':
            raise EvaluationFailed(f"a solution's process that did not begin (status {done.returncode})", done.output)
        answers, last = 0, next(lines, b"")
        defined = last == b'["defined"]\n'
        for last in lines:
            answers += last.startswith((b'["answer"', b'["large"'))
    return _Record(path, defined, answers, done.killed_for == "time" or last == b'["timeout"]\n')


def _status(record: _Record, judged: str, right: int) -> Status:
    if judged == "pass":
        return "pass"
    return "timeout" if record.timed_out and right == record.answers else "fail"


def _check_solutions(solutions: Sequence[Solution], known: Mapping[str, Any], problems: Path) -> None:
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
