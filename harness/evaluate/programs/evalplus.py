"""HumanEval+ and MBPP+ through EvalPlus: which prompts to generate for, what code an output holds, does it pass.

Prompts, stop strings, the extraction of code and the verdict are EvalPlus's own (Liu et al. 2023); its time limit for
one input is the larger of 4 s and 4 times what the data set's own solution took, in seconds of wall clock: a loaded
machine can turn a pass into a timeout.

EvalPlus runs a solution, compares its answers and keeps the result in one process, so that a solution written to cheat
can reach all three. Here they are apart:

1. ``judge.py`` has EvalPlus compute the expected answers, once for a problem; they are kept (``cache``).
2. ``solve.py`` runs one solution, alone in a sandbox without expected answers, and its answers come out as plain data.
3. ``judge.py``, in a fresh process that never sees a solution, has EvalPlus judge the recorded answers.

The base tests come first; the additional ones are run for what passed them. Differences to EvalPlus: an answer of a
class that is not Python's or NumPy's own equals nothing, and an answer of over 16 MiB must be equal type by type.

What to know about the scores of EvalPlus 0.3.1: HumanEval/32 can't be passed (``CANNOT_PASS``), so 163 of 164 is the
ceiling. What no test can see: a solution that has learnt the tests' answers by heart.
"""

import hashlib
import json
import math
import os
import platform
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
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
from harness.evaluate.programs.mounts import site_folders
from harness.evaluate.programs.problems import Dataset, Problem, read_rows
from harness.evaluate.programs.sandbox import SandboxStatus, SandboxUnavailable, read_untrusted, run
from harness.evaluate.programs.watch import Completed, SandboxLimits

MAX_NEW_TOKENS = 768  # EvalPlus's own limit for a generation
MIN_TIME_LIMIT_S = 4.0  # for one input; given to EvalPlus in so many words, because its default varies (0.3.1: 1 s)
TIME_LIMIT_FACTOR = 4.0  # times what the data set's own solution takes
MEMORY_BYTES = 8 * 2**30  # Mbpp/255 fails at EvalPlus's default of 4 GiB
WORKERS = 2
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


def evaluate(
    problems: Path,
    solutions: Sequence[Solution],
    *,
    dataset: Dataset,
    work: Path,
    sandbox: SandboxStatus,
    unsafe: bool = False,
    cache: Path | None = None,
    limits: SandboxLimits | None = None,
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
        raise SandboxUnavailable(sandbox.reason)
    rows = {problem["task_id"]: (line, problem) for line, problem in read_rows(problems)}
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


def default_limits() -> SandboxLimits:
    """Limits of one solution, beside the time it may take."""
    return SandboxLimits(
        memory_bytes=MEMORY_BYTES,
        cpu_s=300,
        processes=32,
        file_bytes=64 * 2**20,
        wall_s=_RUN_S,
        resident_bytes=min(MEMORY_BYTES, psutil.virtual_memory().total // (WORKERS + 1)),
        scratch_bytes=256 * 2**20,
    )


CodeSample = tuple[str, str]  # task id, code
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
        sandbox: SandboxStatus,
        unsafe: bool,
        limits: SandboxLimits,
    ) -> None:
        self.dataset, self.folder, self.limits = dataset, folder, limits
        self.run = partial(run, sandbox=sandbox, unsafe=unsafe)
        self.problems = {task_id: problem for task_id, (_, problem) in asked.items()}
        self.keys = {task_id: _key(dataset, line) for task_id, (line, _) in asked.items()}
        self.cache = (cache or folder / "cache").absolute()
        # EvalPlus's own layout: it looks for its files in a folder of its name.
        self.expected = self.cache / "evalplus"
        self.expected.mkdir(parents=True, exist_ok=True)
        self.expected.chmod(0o755)  # read by the user inside
        self._expect({task_id: line for task_id, (line, _) in asked.items()})

    def statuses(self, test_set: TestSet, samples: Sequence[CodeSample]) -> dict[CodeSample, Status]:
        """Run and judge samples on one test set."""
        folder = self.folder / test_set
        folder.mkdir()
        pool, stop = ThreadPoolExecutor(WORKERS), threading.Event()
        try:
            each = [(sample, folder / f"{number}.jsonl") for number, sample in enumerate(samples)]
            jobs = [pool.submit(self._record, test_set, sample, path, stop) for sample, path in each]
            records = {sample: job.result() for sample, job in zip(samples, jobs, strict=True)}
        finally:
            stop.set()  # an interrupted run does not wait for the time limits of those at work
            pool.shutdown(cancel_futures=True)
        judged = self._judge(test_set, {sample: record for sample, record in records.items() if record.defined})
        return {sample: _status(record, *judged.get(sample, ("fail", 0))) for sample, record in records.items()}

    def _record(self, test_set: TestSet, sample: CodeSample, path: Path, stop: threading.Event) -> _Record:
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
                stop=stop,
            )
        return _look_at(path, done)

    def _judge(self, test_set: TestSet, records: Mapping[CodeSample, _Record]) -> dict[CodeSample, tuple[str, int]]:
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
        content = read_untrusted(self.folder / results, 2**26)
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
            limits=SandboxLimits(MEMORY_BYTES, cpu_s=3600, processes=64, file_bytes=2 * 2**30, wall_s=wall_s),
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
    "PYTHONPATH": os.pathsep.join(map(str, [_OWN_FOLDER.parent, *site_folders()])),
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


def _look_at(path: Path, done: Completed) -> _Record:
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
