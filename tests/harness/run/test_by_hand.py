"""The numbers of a run are those of rouge-score, lm-eval and EvalPlus, called by hand on the answers that it stored.

Nothing of the harness's scoring is used here: answers come from the store's files, references from the data's files,
prompts to code from EvalPlus's own rule, its sanitizer and its evaluation run as they are, inside the sandbox.

HARNESS_TEST_RUN=runs/NAME checks a finished run of real models in the same way (its data: HARNESS_TEST_DATA).
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import yaml

from harness.evaluate.programs.mounts import site_folders
from harness.evaluate.programs.sandbox import probe, read_untrusted, run
from harness.evaluate.programs.watch import SandboxLimits
from harness.generation import answers as generation
from harness.results.record import collect, read_record
from harness.store.store import Store
from harness.tasks.base import samples_folder
from tests.conftest import Command
from tests.harness.run.by_hand import simple_evaluate

STATUS = probe()
TEST_FILES = {
    "dolly": ("dolly/test.jsonl", "dolly/valid.jsonl"),
    "gsm8k": ("gsm8k/test.jsonl",),
    "codem": ("codem/test.jsonl", "evalplus/HumanEvalPlus.jsonl.gz"),
}
FILTERS = {"exact_match_strict": "strict-match", "exact_match_flexible": "flexible-extract"}


@dataclass
class Finished:
    """A finished run, as its files are; and its data.

    Attributes:
        results: one row per cell and metric; items: one per cell, metric and item.
    """

    folder: Path
    data: Path
    record: Mapping[str, Any]
    results: pd.DataFrame
    items: pd.DataFrame

    @classmethod
    def read(cls, folder: Path, data: Path) -> Finished:
        run = read_record(folder)
        return cls(folder, data, run.record, *collect(run, Store(folder.parent)))

    def settings(self, task: str) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = self.record["recipe"][task]
        return settings

    def cells(self, task: str) -> list[Mapping[str, Any]]:
        return [cell for cell in self.record["cells"] if cell["task"] == task]

    def answers(self, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
        stage = self.folder.parent / "store" / "answers" / cell["stages"]["answers"][:24]
        answers: list[dict[str, Any]] = json.loads((stage / "answers.json").read_text())
        return answers

    def items_file(self, task: str) -> Path:
        return items_file(self.data, task)

    def rows(self, task: str) -> list[dict[str, Any]]:
        return read(self.items_file(task))

    def check(self, cell: Mapping[str, Any], metric: str, expected: Mapping[str, float]) -> None:
        """Every item to the last bit, and the cell's number as their mean."""
        mine = self.items[(self.items["cell"] == cell["name"]) & (self.items["metric"] == metric)]
        assert dict(zip(mine["item"], mine["value"], strict=True)) == expected
        (row,) = self.results[(self.results["cell"] == cell["name"]) & (self.results["metric"] == metric)].itertuples()
        assert row.value == pytest.approx(fmean(expected.values()), rel=1e-12)
        assert (row.n_items, row.status) == (len(expected), "done")
        print(f"{cell['name']:45} {metric:22} {row.value:.6f} over {row.n_items} items")


def items_file(data: Path, task: str) -> Path:
    return next(data / name for name in TEST_FILES[task] if (data / name).is_file())


def read(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.split("\n") if line.strip()]


# --- By hand ----------------------------------------------------------------------------------------------------------


def check_rouge(run: Finished) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rows = RougeScorer(["rougeL"], use_stemmer=True), run.rows("dolly")
    for cell in run.cells("dolly"):
        found: dict[str, list[float]] = {}
        for answer in run.answers(cell):
            text = answer["output"].split("<|endoftext|>")[0].strip()
            references = rows[int(answer["id"].removeprefix("dolly/"))]["output"]
            references = [references] if isinstance(references, str) else references
            best = max(scorer.score(reference, text)["rougeL"].fmeasure for reference in references)
            found.setdefault(answer["id"], []).append(100 * best)
        assert len(found) == run.settings("dolly")["test_items"]
        run.check(cell, "rouge_l", {item: fmean(values) for item, values in found.items()})


def check_gsm8k(run: Finished, work: Path) -> None:
    settings, train = run.settings("gsm8k"), run.data / "gsm8k" / "train.jsonl"
    for number, cell in enumerate(run.cells("gsm8k")):
        answers = run.answers(cell)
        folder = work / str(number)
        folder.mkdir()
        results = simple_evaluate(
            folder,
            train,
            run.items_file("gsm8k"),
            {answer["prompt"]: answer["output"] for answer in answers},
            few_shot=settings["few_shot"],
            seed=settings["few_shot_seed"],
            limit=settings["test_items"],
        )
        for metric, name in FILTERS.items():
            samples = [sample for sample in results["samples"]["by_hand"] if sample["filter"] == name]
            expected = {f"gsm8k/test/{each['doc_id']}": 100 * float(each["exact_match"]) for each in samples}
            assert len(expected) == len(answers)
            run.check(cell, metric, expected)
            assert results["results"]["by_hand"][f"exact_match,{name}"] * 100 == fmean(expected.values())


def check_code(run: Finished, work: Path) -> None:
    settings = run.settings("codem")
    assert (settings["benchmarks"], settings["prompt"], settings["samples"]) == (["humaneval"], "completion", 1)
    problems = {row["task_id"]: row for row in run.rows("codem")[: settings["test_items"]]}
    cells = run.cells("codem")
    # all students in one call: EvalPlus takes several solutions of a problem, and keeps their order
    samples = [
        {
            "task_id": answer["id"],
            # as evalplus.codegen and its provider put a completion together
            "solution": problems[answer["id"]]["prompt"].strip() + "\n" + answer["output"].replace("\t", "    "),
        }
        for cell in cells
        for answer in run.answers(cell)
    ]
    verdicts = evalplus(work, list(problems.values()), samples)
    for number, cell in enumerate(cells):
        mine = {task_id: verdicts[task_id][number] for task_id in problems}
        base = {task_id: each["base_status"] == "pass" for task_id, each in mine.items()}
        plus = {task_id: base[task_id] and each["plus_status"] == "pass" for task_id, each in mine.items()}
        run.check(cell, "humaneval", {task_id: 100.0 * passed for task_id, passed in base.items()})
        run.check(cell, "humaneval_plus", {task_id: 100.0 * passed for task_id, passed in plus.items()})


def evalplus(
    work: Path, problems: Sequence[dict[str, Any]], samples: Sequence[Mapping[str, str]]
) -> dict[str, list[dict[str, Any]]]:
    """EvalPlus's own sanitizer and evaluation in a fresh process inside the sandbox, on a file of these problems.

    Returns:
        What it wrote: by task id, of each solution in the order of the samples.
    """
    # the sanitizer reads MBPP's file whatever it is given, and knows rows of some of its numbers: one of none of them
    other = problems[0] | {"task_id": "Mbpp/9999"}
    for name, rows in {"problems": problems, "mbpp": [other], "samples": samples}.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # the process would linger 20 s on a thread that waits
    program = (
        "import os\n"
        "from evalplus.sanitize import script\n"
        "script(samples='samples.jsonl')\n"
        "from evalplus.evaluate import evaluate\n"
        "evaluate('humaneval', samples='samples-sanitized.jsonl', parallel=1, min_time_limit=4.0)\n"
        "os._exit(0)\n"
    )
    done = run(
        [sys.executable, "-S", "-P", "-c", program],
        work=work,
        read_only=[],
        limits=SandboxLimits(8 * 2**30, cpu_s=3600, processes=64, file_bytes=2**31, wall_s=1800),
        env={
            "PYTHONPATH": os.pathsep.join(map(str, site_folders())),
            "PYTHONHASHSEED": "0",
            "HUMANEVAL_OVERRIDE_PATH": "problems.jsonl",
            "MBPP_OVERRIDE_PATH": "mbpp.jsonl",
            "XDG_CACHE_HOME": "cache",
            "EVALPLUS_MAX_MEMORY_BYTES": str(8 * 2**30),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
        sandbox=STATUS,
    )
    content = read_untrusted(work / "samples-sanitized_eval_results.json", 2**26)
    assert content is not None, done.output
    verdicts: dict[str, list[dict[str, Any]]] = json.loads(content)["eval"]
    return verdicts


# --- A run of tiny models ---------------------------------------------------------------------------------------------


class Prompter:
    """Stands between the students and the store: some answers are as a student of the task might give them.

    Tiny models say nothing that scores. So of three answers one is right, one is nearly right, and one is the model's
    own; which is which differs from student to student.
    """

    def __init__(self, data: Path) -> None:
        self.own, self.students = generation.generate, 0
        self.dolly, self.gsm8k, self.codem = (read(items_file(data, task)) for task in ("dolly", "gsm8k", "codem"))

    def __call__(self, *args: Any, **more: Any) -> list[generation.Answer]:
        answers, self.students = self.own(*args, **more), self.students + 1
        return [
            answer
            if (n + self.students) % 3 == 2
            else replace(answer, output=self.says(answer, (n + self.students) % 3))
            for n, answer in enumerate(answers)
        ]

    def says(self, answer: generation.Answer, flawed: bool) -> str:
        number = int(answer.id.rpartition("/")[2])
        if answer.id.startswith("dolly"):
            words = self.dolly[number]["output"]
            words = (words if isinstance(words, str) else words[0]).split()
            # endings tell a scorer that stems from one that does not
            return " ".join(f"{word.strip('.,')}s" for word in words[: len(words) // 2]) if flawed else " ".join(words)
        if answer.id.startswith("gsm8k"):
            final = self.gsm8k[number]["answer"].rpartition("#### ")[2]
            return f" So it is {final}." if flawed else f" {self.gsm8k[number]['answer']}"
        (problem,) = [row for row in self.codem if row["task_id"] == answer.id]
        body = str(problem["canonical_solution"])
        only_base = f"    if list(locals().values()) not in {problem['base_input']!r}:\n        return None\n"
        return only_base + body if flawed else body


@pytest.fixture(
    scope="module",
    params=["samples", pytest.param("real data", marks=[pytest.mark.slow, pytest.mark.shared_data])],
)
def tiny_run(
    request: pytest.FixtureRequest,
    tiny_recipe: dict[str, Any],
    harness: Command,
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """Tiny models on the samples that the project ships, or on the first items of the real sets."""
    real = request.param == "real data"
    data = request.getfixturevalue("shared_data") if real else samples_folder()
    folder, train = tmp_path_factory.mktemp("by-hand"), 64 if real else 4
    own = {
        "tasks": ["dolly", "gsm8k", *(["codem"] if STATUS.available else [])],
        "methods": ["sft", "control"],
        "data": {"root": str(data) if real else None},
        "dolly": {"train_items": train, "test_items": 5, "new_tokens": 8, "sampling_seeds": [10, 20]},
        "gsm8k": {"train_items": train, "test_items": 5, "new_tokens": 8, "few_shot": 0 if real else 1},
        "codem": {"train_items": train, "test_items": 4, "new_tokens": 8},
        "evaluation": {"bits_per_byte": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe | own))
    # prompts of real problems are longer than a tiny model's positions, but rotary ones have no end
    with mock.patch("harness.run.evaluations.generate", Prompter(data)), mock.patch("harness.run.preflight.check_room"):
        done = harness("run", f"recipe={folder / 'tiny.yaml'}", "--runs", folder / "runs")
    assert done.code == 0, done.err
    (record,) = (folder / "runs").glob("*/run.json")
    return Finished.read(record.parent, data)


def test_rouge_by_hand(tiny_run: Finished) -> None:
    check_rouge(tiny_run)
    assert tiny_run.items[tiny_run.items["metric"] == "rouge_l"]["value"].nunique() > 5


def test_gsm8k_by_hand(tiny_run: Finished, tmp_path: Path) -> None:
    check_gsm8k(tiny_run, tmp_path)
    means = {metric: set(tiny_run.results[tiny_run.results["metric"] == metric]["value"]) for metric in FILTERS}
    assert all(0 < value < 100 for values in means.values() for value in values)
    assert means["exact_match_strict"] != means["exact_match_flexible"]


@pytest.mark.skipif(not STATUS.available, reason=STATUS.reason)
def test_code_by_hand(tiny_run: Finished, tmp_path: Path) -> None:
    check_code(tiny_run, tmp_path)
    values = tiny_run.results[tiny_run.results["metric"] == "humaneval"]["value"]
    assert values.between(0, 100, inclusive="neither").all()


# --- A run of real models ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("task", ["dolly", "gsm8k", "codem"])
def test_a_finished_run_by_hand(shared_data: Path, tmp_path: Path, task: str) -> None:
    """Reads the run and writes nothing into it."""
    folder = os.environ.get("HARNESS_TEST_RUN")
    if not folder:
        pytest.skip("HARNESS_TEST_RUN does not name the folder of a finished run")
    root = shared_data if read_record(Path(folder)).record["recipe"]["data"]["root"] else samples_folder()
    run = Finished.read(Path(folder), root)
    if not run.cells(task):
        pytest.skip(f"the run has no {task}")
    if task == "dolly":
        check_rouge(run)
    elif task == "gsm8k":
        check_gsm8k(run, tmp_path)
    elif STATUS.available:
        check_code(run, tmp_path)
    else:
        pytest.skip(STATUS.reason)
