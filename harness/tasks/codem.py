"""Code: Python functions from instructions (CodeM; here any Alpaca-like rows), judged by EvalPlus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.batches import Example
from harness.errors import HarnessError
from harness.files import sha256_file
from harness.tasks.alpaca import alpaca_prompt
from harness.tasks.base import ItemScores, Metric, Request, Task, TaskSettings, read_rows

Benchmark = Literal["humaneval", "mbpp"]


class CodeMSettings(TaskSettings):
    benchmarks: tuple[Benchmark, ...] = Field(("humaneval",), min_length=1, description="EvalPlus data sets")
    prompt: Literal["completion", "alpaca"] = Field(
        "completion", description="continue the function's head (as published), or answer an Alpaca instruction"
    )
    new_tokens: int = Field(768, ge=1, description="the most tokens that a student may answer with")


class CodeM(Task):
    name = "codem"
    source = (
        "CodeM's rows are not public; CodeAlpaca stands in (github.com/sahil280114/codealpaca, CC BY-NC 4.0); tests "
        "from github.com/evalplus/evalplus, Apache-2.0"
    )
    summary = "Python functions, EvalPlus pass@1"
    Settings = CodeMSettings
    train_files = ("codem/train.jsonl", "codealpaca/code_alpaca_2k.jsonl")
    test_files = ("codem/test.jsonl", "evalplus/HumanEvalPlus.jsonl.gz")
    mbpp_files = ("codem/mbpp_test.jsonl", "evalplus/MbppPlus.jsonl.gz")
    libraries = ("evalplus",)
    scorers = ("harness.evaluate.code", "harness.evaluate.sandbox")
    askers = ("harness.evaluate.code",)

    @classmethod
    def files(cls) -> tuple[str, ...]:
        return (*super().files(), *cls.mbpp_files)

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        made = []
        for benchmark in self.settings.benchmarks:
            made += [Metric(benchmark, headline=False), Metric(f"{benchmark}_plus")]
        return tuple(made)

    def training_examples(self) -> list[Example]:
        """Rows to train on; two of CodeAlpaca's have no output and are left out."""
        rows = read_rows(self.train_file, {"instruction": str, "output": str}, self.settings.train_items)
        return [
            Example(
                f"codem/train/{number}",
                alpaca_prompt(row["instruction"], row.get("input") or ""),
                row["output"],
                row["source"],
            )
            for number, row in enumerate(rows)
            if row["output"].strip()
        ]

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
        from harness.evaluate import code

        requests = []
        for benchmark in self.settings.benchmarks:
            for task_id, problem in self._problems(benchmark).items():
                if self.settings.prompt == "completion":
                    prompt, stop = code.generation_prompt(problem), code.stop_strings(benchmark)
                else:
                    prompt = alpaca_prompt(code.generation_prompt(problem, "response"))
                    stop = code.stop_strings(benchmark, "response")
                requests.append(Request(task_id, prompt, stop, rendered=self.settings.prompt == "completion"))
        return requests

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        from harness.evaluate import code, sandbox

        status = sandbox.probe()
        unsafe = unsafe and not status.available  # the flag never switches off a sandbox that works
        style: code.Style = "completion" if self.settings.prompt == "completion" else "response"
        values: dict[str, dict[str, dict[str, float]]] = {student: {} for student in outputs}
        for benchmark in self.settings.benchmarks:
            problems = self._problems(benchmark)
            solutions = [
                code.Solution(student, item, code.solution_code(problem, answers[item], dataset=benchmark, style=style))
                for student, answers in outputs.items()
                for item, problem in problems.items()
            ]
            path = self._problem_file(benchmark)
            for verdict in code.evaluate(path, solutions, dataset=benchmark, work=work, sandbox=status, unsafe=unsafe):
                mine = values[verdict.owner]
                mine.setdefault(benchmark, {})[verdict.task_id] = 100.0 * verdict.base
                mine.setdefault(f"{benchmark}_plus", {})[verdict.task_id] = 100.0 * verdict.plus
        return {student: ItemScores(scores) for student, scores in values.items()}

    def protocol(self) -> list[str]:
        import os
        from importlib.metadata import version

        from harness.evaluate import code

        asked = {
            "completion": "the model continues the function's head (students are trained on Alpaca prompts: a "
            "mismatch that the published numbers share)",
            "alpaca": "EvalPlus's instruction inside the Alpaca prompt",
        }[self.settings.prompt]
        lines = []
        for benchmark in self.settings.benchmarks:
            problems = self._problems(benchmark)
            ceiling = len(problems) - len(code.CANNOT_PASS & problems.keys())
            lines.append(
                f"EvalPlus {version('evalplus')}, {benchmark} format, base and plus tests, pass@1, greedy; {asked}; "
                f"at most {self.settings.new_tokens} new tokens; {len(problems)} problems, {ceiling} can be passed; "
                f"time limit of one input the larger of {code.MIN_TIME_LIMIT_S:g} s and "
                f"{code.TIME_LIMIT_FACTOR:g} times the canonical solution's, {code.WORKERS} processes on "
                f"{os.cpu_count()} cores."
            )
        return lines

    def test_digests(self) -> list[str]:
        return [sha256_file(self._problem_file(benchmark)) for benchmark in self.settings.benchmarks]

    def _problem_file(self, benchmark: Benchmark) -> Path:
        return self._first(self.test_files if benchmark == "humaneval" else self.mbpp_files)

    def _problems(self, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
        from harness.evaluate import code

        problems = code.read_problems(self._problem_file(benchmark))
        if not problems:
            raise HarnessError(str(self._problem_file(benchmark)), "no problems", "at least one")
        return dict(list(problems.items())[: self.settings.test_items])
