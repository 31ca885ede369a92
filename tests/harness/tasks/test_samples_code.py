"""The code samples of the quickstart: they are small, distinct and correct, and EvalPlus can run them."""

import ast
import doctest
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import harness

FOLDER = Path(harness.__file__).parent / "tasks" / "samples" / "codem"
TEST_KEYS: dict[str, type | tuple[type, ...]] = {
    "task_id": str,
    "prompt": str,
    "contract": str,
    "canonical_solution": str,
    "entry_point": str,
    "base_input": list,
    "plus_input": list,
    "atol": (int, float),
}

# These run in a process of their own, so that a slow or wrong sample cannot disturb pytest. They read the rows as
# JSON from stdin and print a JSON list of failures.
RUN_TRAIN = """
import json, sys
failures = []
for row in json.load(sys.stdin):
    try:
        exec(compile("\\n".join([row["input"], row["output"], row["test"]]), row["instruction"][:60], "exec"), {})
    except BaseException as error:
        failures.append([row["instruction"], repr(error)])
print(json.dumps(failures))
"""
RUN_TEST = """
import copy, doctest, json, sys
failures = []
for row in json.load(sys.stdin):
    name = row["entry_point"]
    try:
        space = {}
        exec(row["prompt"] + row["canonical_solution"], space)
        examples = doctest.DocTestParser().get_doctest(space[name].__doc__, space, name, None, 0)
        result = doctest.DocTestRunner(verbose=False).run(examples, out=lambda text: None)
        assert result.attempted >= 2 and result.failed == 0, result
        exec(row["prompt"] + row["contract"] + row["canonical_solution"], space)
        for arguments in row["base_input"] + row["plus_input"]:
            before = copy.deepcopy(arguments)
            space[name](*arguments)
            assert arguments == before, "changes its arguments"
    except BaseException as error:
        failures.append([row["task_id"], repr(error)])
print(json.dumps(failures))
"""


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return read("train.jsonl")


@pytest.fixture(scope="module")
def problems() -> list[dict[str, Any]]:
    return read("test.jsonl")


def failures(program: str, rows: list[dict[str, Any]]) -> list[list[str]]:
    """What one of the programs above reports about the rows."""
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, timeout=60, check=True)
    return list(json.loads(done.stdout))


def defined_name(code: str) -> str:
    """The name of the last function or class at the top level, which is the one a row is about."""
    names = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return names[-1]


def whole(row: dict[str, Any]) -> str:
    """The function of a training row: its head may be the input."""
    return f"{row['input']}\n{row['output']}" if row["input"] else row["output"]


def repeated(items: list[str]) -> list[str]:
    return [item for item, count in Counter(items).items() if count > 1]


def test_files_are_small() -> None:
    """They go into the wheel, so they stay small."""
    for name in ("train.jsonl", "test.jsonl"):
        assert (FOLDER / name).stat().st_size < 300_000


def test_train_rows(train: list[dict[str, Any]]) -> None:
    """The rows have the keys that the reader of the data set expects, and the output is plain Python, not Markdown."""
    assert len(train) >= 192
    for row in train:
        assert set(row) == {"instruction", "input", "output", "test"}
        assert all(isinstance(value, str) for value in row.values())
        assert "```" not in row["output"]
        assert 2 <= len([line for line in whole(row).splitlines() if line.strip()]) <= 12
        assert "assert" in row["test"]
        if not row["input"]:
            assert re.search(rf"`{defined_name(row['output'])}\b", row["instruction"])


def test_half_of_the_train_rows_ask_as_the_test_does(train: list[dict[str, Any]]) -> None:
    """Else a teacher learns to begin each answer with a head, and reads the references' bodies worse than before."""
    heads = [row for row in train if row["input"]]
    assert len(heads) == len(train) / 2 == len([row for row in train[:40] if row["input"]]) * len(train) / 40
    for row in heads:
        assert row["instruction"] == "Complete this Python function."
        assert row["output"].startswith("    return ")
        space: dict[str, Any] = {}
        exec(whole(row), space)
        name = defined_name(whole(row))
        examples = doctest.DocTestParser().get_doctest(space[name].__doc__, space, name, None, 0)
        result = doctest.DocTestRunner(verbose=False).run(examples, out=lambda text: None)
        assert (result.attempted, result.failed) == (1, 0)


def test_test_rows(problems: list[dict[str, Any]]) -> None:
    """The rows follow EvalPlus's format; their ids start at 1000, so that they are not taken for HumanEval's own."""
    assert [row["task_id"] for row in problems] == [f"HumanEval/{1000 + i}" for i in range(len(problems))]
    assert len(problems) >= 32
    for row in problems:
        assert set(row) == set(TEST_KEYS)
        assert all(isinstance(row[key], kind) for key, kind in TEST_KEYS.items())
        assert row["atol"] in (0, 1e-6)
        assert row["prompt"].endswith('"""\n')
        assert defined_name(row["prompt"]) == row["entry_point"]
        assert 1 <= len(row["canonical_solution"].splitlines()) <= 8
        assert len(row["base_input"]) >= 3
        assert len(row["plus_input"]) >= 8
        inputs = [json.dumps(arguments) for arguments in row["base_input"] + row["plus_input"]]
        assert repeated(inputs) == []


def test_no_duplicates(train: list[dict[str, Any]], problems: list[dict[str, Any]]) -> None:
    """No task occurs twice, and above all no test problem occurs in training: its number is another at least."""
    names = [defined_name(whole(row)) for row in train] + [row["entry_point"] for row in problems]
    assert repeated(names) == []
    bodies = [row["output"].splitlines()[-1].strip() for row in train]
    assert repeated([*bodies, *(row["canonical_solution"].strip() for row in problems)]) == []


def test_train_outputs_pass_their_asserts(train: list[dict[str, Any]]) -> None:
    """A student must not learn from wrong code."""
    assert failures(RUN_TRAIN, train) == []


def test_canonical_solutions_run(problems: list[dict[str, Any]]) -> None:
    """Each satisfies the examples in its docstring, and all inputs meet its contract and leave no error."""
    assert failures(RUN_TEST, problems) == []


@pytest.mark.slow
def test_evalplus_passes_the_canonical_solutions(problems: list[dict[str, Any]], tmp_path: Path) -> None:
    """The file works as EvalPlus's override of HumanEval+: its own solutions pass all base and plus tests.

    EvalPlus lingers for up to 20 seconds after it has written its results, so it is killed once they are complete.
    """
    samples, results, log = (tmp_path / name for name in ("s.jsonl", "s_eval_results.json", "log.txt"))
    rows = [{"task_id": p["task_id"], "solution": p["prompt"] + p["canonical_solution"]} for p in problems]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if not key.startswith("EVALPLUS_")}
    env |= {
        "HUMANEVAL_OVERRIDE_PATH": str(FOLDER / "test.jsonl"),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "evalplus.evaluate", "--dataset", "humaneval", "--samples", str(samples)]
    report: dict[str, Any] = {}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=tmp_path, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while not report and time.monotonic() < deadline:
            running = process.poll() is None
            try:
                report = json.loads(results.read_text(encoding="utf-8"))
            except (FileNotFoundError, json.JSONDecodeError):
                if not running:
                    break
                time.sleep(0.2)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert report, log.read_text(encoding="utf-8", errors="replace")[-2000:]
    statuses = {
        task: [(row["base_status"], row["plus_status"]) for row in tries] for task, tries in report["eval"].items()
    }
    assert statuses == {problem["task_id"]: [("pass", "pass")] for problem in problems}
