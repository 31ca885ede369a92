"""Code: Python functions from instructions (CodeM; here any Alpaca-like rows), judged by EvalPlus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.base.files import sha256_file
from harness.data.rows import Example, Request, answer_key
from harness.tasks.alpaca import FIELDS, alpaca_examples, alpaca_prompt, read_training
from harness.tasks.base import ItemScores, Metric, Task, TaskSettings
from harness.tasks.sets import TRAINING, DataNeed, PublishedSet

if TYPE_CHECKING:
    from harness.evaluate.programs.evalplus import Verdict
    from harness.evaluate.programs.sandbox import SandboxStatus

Benchmark = Literal["humaneval", "mbpp"]


class CodeMSettings(TaskSettings):
    benchmarks: tuple[Benchmark, ...] = Field(
        ("humaneval",), min_length=1, description="EvalPlus data sets: humaneval, mbpp; two columns each"
    )
    prompt: Literal["completion", "alpaca"] = Field(
        "completion", description="continue the function's head (as published), or answer an Alpaca instruction"
    )
    new_tokens: int = Field(768, ge=1, description="the most tokens that a student may answer with")
    samples: int = Field(1, ge=1, description="programs per problem: 1 greedy one, or more, sampled at T=1")
    sampling_seed: int = Field(10, description="seed of the sampled programs")
    pass_at: tuple[int, ...] = Field((1,), min_length=1, description="values of k in pass@k, each at most samples")

    @model_validator(mode="after")
    def _enough_samples(self) -> CodeMSettings:
        if not all(1 <= k <= self.samples for k in self.pass_at) or len(set(self.pass_at)) < len(self.pass_at):
            raise ValueError(f"pass_at must hold different numbers from 1 to samples, which is {self.samples}")
        return self


def _read_problems(path: Path) -> list[str]:
    from harness.evaluate.programs.problems import read_problems

    return list(read_problems(path))


class CodeM(Task[CodeMSettings]):
    name = "codem"
    source = (
        "CodeM is from github.com/NL2Code/CodeM; of the CDM paper's selection 50 rows are public; CodeAlpaca stands in "
        "(github.com/sahil280114/codealpaca, CC BY-NC 4.0); tests from github.com/evalplus/evalplus, Apache-2.0"
    )
    summary = "Python functions, EvalPlus pass@k"
    Settings = CodeMSettings
    train_files = ("codem/train.jsonl", "codealpaca/code_alpaca_2k.jsonl")
    test_files = ("codem/test.jsonl", "evalplus/HumanEvalPlus.jsonl.gz")
    mbpp_files = ("codem/mbpp_test.jsonl", "evalplus/MbppPlus.jsonl.gz")
    fields = (
        FIELDS,
        "task_id, prompt, entry_point, contract, canonical_solution, base_input, plus_input, atol (EvalPlus's)",
    )
    # EvalPlus's releases of HumanEval+ (0.1.10) and MBPP+ (0.2.0), CodeAlpaca's of 2,017 rows; lengths of these files.
    # The CDM paper does not say how many rows of CodeM it trains on.
    published: ClassVar[Mapping[str, PublishedSet]] = {
        "codem/train.jsonl": PublishedSet("CodeAlpaca (CodeM's number is unknown)", 2017, (93, 48), (195, 194)),
        "codem/test.jsonl": PublishedSet("HumanEval+", 164, (451, 230), (167, 117)),
        "codem/mbpp_test.jsonl": PublishedSet("MBPP+", 378, (158, 55), (121, 102)),
    }
    libraries = ("evalplus",)
    scoring = frozenset({"pass_at"})
    text = "code"
    judge_seconds = 0.35  # of one program in EvalPlus, on 2 cores

    readers = (read_training, _read_problems)

    @classmethod
    def data_needs(cls, settings: TaskSettings | None = None) -> list[DataNeed]:
        (train, test), (read, read_test) = cls.fields, cls.readers
        benchmarks = {"humaneval": cls.test_files, "mbpp": cls.mbpp_files}
        asked = settings.benchmarks if isinstance(settings, CodeMSettings) else benchmarks
        tests = [DataNeed(f"test, {name}", benchmarks[name], test, read_test) for name in asked]
        return [DataNeed(TRAINING, cls.train_files, train, read), *tests]

    @property
    def samples_answers(self) -> bool:
        return self._seed is not None

    @property
    def _seed(self) -> int | None:
        """Of the sampling; one program a problem is the greedy one."""
        return self.settings.sampling_seed if self.settings.samples > 1 else None

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        first, *_ = self.settings.pass_at
        return tuple(
            Metric(_metric(column, k), headline=column != benchmark and k == first)
            for benchmark in self.settings.benchmarks
            for column in (benchmark, _plus(benchmark))
            for k in self.settings.pass_at
        )

    @classmethod
    def made_up_row(cls, file: str, number: int, prompt: str, response: str) -> dict[str, Any]:
        if file in cls.train_files:
            return super().made_up_row(file, number, prompt, response)
        named = {"task_id": str(number), "entry_point": "f", "contract": ""}
        return named | {
            "prompt": prompt,
            "canonical_solution": response,
            "base_input": [[0]],
            "plus_input": [[0]],
            "atol": 0,
        }

    def training_examples(self) -> list[Example]:
        """Rows to train on; two of CodeAlpaca's have no output and are left out."""
        rows = alpaca_examples(self.train_file, "codem/train", self.settings.train_items)
        return [row for row in rows if row.response.strip()]

    def reference_examples(self) -> list[Example]:
        """The canonical solutions as answers to an instruction with the function's head as its input."""
        examples = []
        for benchmark in self.settings.benchmarks:
            path = self._problem_file(benchmark)
            for task_id, problem in self._problems(benchmark).items():
                prompt = alpaca_prompt("Complete this Python function.", problem["prompt"].strip())
                response = problem["canonical_solution"].strip("\n")
                examples.append(Example(task_id, prompt, response, f"{path}, {task_id}"))
        return examples

    def requests(self) -> list[Request]:
        from harness.evaluate.programs.problems import generation_prompt, stop_strings

        requests, seed = [], self._seed
        for benchmark in self.settings.benchmarks:
            for task_id, problem in self._problems(benchmark).items():
                if self.settings.prompt == "completion":
                    prompt, stop = generation_prompt(problem), stop_strings(benchmark)
                else:
                    prompt = alpaca_prompt(generation_prompt(problem, "response"))
                    stop = stop_strings(benchmark, "response")
                rendered = self.settings.prompt == "completion"
                requests += [
                    Request(item, prompt, stop, rendered, seed=seed, continues=rendered)
                    for item in self._items(task_id)
                ]
        return requests

    def warnings(self, unsafe: bool) -> list[str]:
        from harness.evaluate.programs import sandbox

        return sandbox.warnings(unsafe)

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        from harness.evaluate.programs import sandbox

        status = sandbox.probe()
        unsafe = unsafe and not status.available  # the flag never switches off a sandbox that works
        statuses: dict[str, dict[str, dict[str, str]]] = {student: {} for student in outputs}
        for benchmark in self.settings.benchmarks:
            for (student, item), verdict in self._verdicts(benchmark, outputs, work, status, unsafe).items():
                statuses[student].setdefault(benchmark, {})[item] = verdict.base
                statuses[student].setdefault(_plus(benchmark), {})[item] = verdict.plus
        ran_in = "no sandbox" if unsafe else status.version
        caveat = "Generated code ran without a sandbox (--unsafe-execution)." if unsafe else ""
        return {
            student: ItemScores(self._pass_at(mine), {"ran_in": ran_in, "statuses": mine}, caveat)
            for student, mine in statuses.items()
        }

    def _verdicts(
        self,
        benchmark: Benchmark,
        outputs: Mapping[str, Mapping[str, str]],
        work: Path,
        status: SandboxStatus,
        unsafe: bool,
    ) -> dict[tuple[str, str], Verdict]:
        """By student and item. To EvalPlus each of a student's samples is another owner's."""
        from harness.evaluate.programs import evalplus as code
        from harness.evaluate.programs.extraction import solution_code
        from harness.evaluate.programs.problems import PromptStyle

        style: PromptStyle = "completion" if self.settings.prompt == "completion" else "response"
        problems = self._problems(benchmark)
        asked: list[tuple[str, str]] = []
        solutions = []
        for student, answers in outputs.items():
            for task_id, problem in problems.items():
                for number, item in enumerate(self._items(task_id)):
                    answer = answers[answer_key(item, self._seed)]
                    text = solution_code(problem, answer, dataset=benchmark, style=style)
                    asked.append((student, item))
                    solutions.append(code.Solution(f"{student} {number}", task_id, text))
        verdicts = code.evaluate(
            self._problem_file(benchmark),
            solutions,
            dataset=benchmark,
            work=work,
            sandbox=status,
            unsafe=unsafe,
            cache=expected_answers_folder(),
        )
        return dict(zip(asked, verdicts, strict=True))

    def _pass_at(self, statuses: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, float]]:
        """Metrics of one student: for each problem, pass@k in %; nothing where no program could pass any."""
        from harness.evaluate.programs import evalplus as code
        from harness.evaluate.programs.problems import CANNOT_PASS

        values: dict[str, dict[str, float]] = {}
        for column, by_item in statuses.items():
            passed: Counter[str] = Counter()
            for item, said in by_item.items():
                passed[_task_id(item)] += said == "pass"
            for k in self.settings.pass_at:
                values[_metric(column, k)] = {
                    task_id: 100.0 * code.pass_at_k(self.settings.samples, count, k)
                    for task_id, count in (passed.items() if passed.keys() - CANNOT_PASS else ())
                }
        return values

    def protocol(self) -> list[str]:
        import os
        from importlib.metadata import version

        from harness.evaluate.programs import evalplus as code
        from harness.evaluate.programs.problems import CANNOT_PASS, NEEDS_MEMORY

        asked = {
            "completion": "the model continues the function's head (students are trained on Alpaca prompts: a "
            "mismatch that the published numbers share)",
            "alpaca": "EvalPlus's instruction inside the Alpaca prompt",
        }[self.settings.prompt]
        decoding = "greedy"
        if self.settings.samples > 1:
            decoding = f"{self.settings.samples} samples at T=1, seed {self.settings.sampling_seed}, unbiased estimator"
        measured = ", ".join(f"pass@{k}" for k in self.settings.pass_at)
        lines = []
        for benchmark in self.settings.benchmarks:
            problems = self._problems(benchmark)
            impossible = sorted(CANNOT_PASS & problems.keys())
            ceiling = f"{len(problems)} problems, of which {len(problems) - len(impossible)} can be passed"
            if impossible:
                ceiling += f" ({', '.join(impossible)} can't in this version of EvalPlus)"
            if hungry := sorted(NEEDS_MEMORY & problems.keys()):
                share = (len(problems) - len(impossible) - len(hungry)) / len(problems)
                ceiling += f" ({', '.join(hungry)} can fail elsewhere, at EvalPlus's default of 4 GB: {share:.3f})"
            lines.append(
                f"EvalPlus {version('evalplus')}, {benchmark} format, base and plus tests, {measured}, {decoding}; "
                f"{asked}; at most {self.settings.new_tokens} new tokens; {ceiling}; time limit of one input the "
                f"larger of {code.MIN_TIME_LIMIT_S:g} s and {code.TIME_LIMIT_FACTOR:g} times the canonical solution's, "
                f"{code.WORKERS} processes on {os.cpu_count()} cores."
            )
        return [*lines, _limits_of_programs()]

    def identity(self) -> dict[str, Any]:
        """Settings that decide generation and scores: the seed where something is sampled."""
        unused = set() if self.samples_answers else {"sampling_seed"}
        return {name: value for name, value in super().identity().items() if name not in unused}

    def test_digests(self) -> list[str]:
        return [sha256_file(self._problem_file(benchmark)) for benchmark in self.settings.benchmarks]

    def _items(self, task_id: str) -> list[str]:
        """Ids of a problem's answers."""
        many = self.settings.samples > 1
        return [f"{task_id}#{number}" if many else task_id for number in range(self.settings.samples)]

    def _problem_file(self, benchmark: Benchmark) -> Path:
        return self._first(self.test_files if benchmark == "humaneval" else self.mbpp_files)

    def _problems(self, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
        from harness.evaluate.programs.problems import read_problems

        return dict(list(read_problems(self._problem_file(benchmark)).items())[: self.settings.test_items])


def _limits_of_programs() -> str:
    from harness.evaluate.programs.evalplus import default_limits

    limits = default_limits()
    resident = f", {limits.resident_bytes / 2**30:.1f} GiB of memory" if limits.resident_bytes else ""
    return (
        f"Limits of one program: {limits.memory_bytes / 2**30:g} GiB of addresses{resident}, "
        f"{limits.cpu_s:g} s of CPU time, {limits.wall_s:g} s in all, {limits.processes} processes, "
        f"files of {limits.file_bytes / 2**20:g} MiB."
    )


def expected_answers_folder() -> Path:
    """Where EvalPlus's expected answers are kept: they take a minute to compute, and 1 GB."""
    from harness.models.cache import cache_folder

    return cache_folder() / "expected-answers"


def _plus(benchmark: Benchmark) -> str:
    """Column of a benchmark's base and additional tests; the benchmark's own name is that of its base tests."""
    return f"{benchmark}_plus"


def _metric(column: str, k: int) -> str:
    """Pass@1 is what is meant where none is said."""
    return column if k == 1 else f"{column}_pass_at_{k}"


def _task_id(item: str) -> str:
    return item.partition("#")[0]
