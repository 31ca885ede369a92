"""EvalPlus's side of an evaluation: expected answers, and the verdict on recorded ones. No solution ever runs here.

EvalPlus compares what a function returns with what it expects in the process that runs the function. So here it gets a
function that returns the recorded answers one by one (``recorded``): its comparison, its special oracles and its
tolerances apply as they are, to plain data. The process that compares is a child of this one; this one never reads an
answer.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.evaluate import plain
from harness.evaluate.record import answer_line

_answers: Iterator[bytes] = iter(())  # of the record at hand, with the answers that EvalPlus expects
_expected: Iterator[Any] = iter(())


def main() -> None:
    """Do what the JSON of the first argument says: see ``write_tests`` and ``write_verdicts``."""
    command = json.loads(sys.argv[1])
    memory = resource.getrlimit(resource.RLIMIT_AS)[0]
    if memory != resource.RLIM_INFINITY:
        os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(memory)  # it fails all solutions where it can't set its limit
    do = write_tests if command.pop("do") == "tests" else write_verdicts
    do(**command)


def write_tests(dataset: str, keys: Mapping[str, str]) -> None:
    """For each problem: EvalPlus's file of expected answers (by key), and a file for each test set.

    The first line of a test set's file holds what is known from running the data set's own solution: ``reference_s``,
    its seconds for each input, ``answer_bytes``, the size of its answers as ``record.py`` writes them, and
    ``writing_s``, what that took. The second line holds the inputs.

    Args:
        dataset: "humaneval" or "mbpp".
        keys: names of the files, by task id.
    """
    from evalplus.data.utils import CACHE_DIR

    problems = _problems(dataset)
    for task_id, key in keys.items():
        expected = _expected_answers(dataset, problems[task_id], key)
        for test_set in ("base", "plus"):
            start = time.monotonic()
            size = sum(len(answer_line(answer)) for answer in expected[test_set])
            about = {"reference_s": expected[f"{test_set}_time"], "answer_bytes": size}
            about["writing_s"] = time.monotonic() - start
            inputs = plain.to_plain(list(problems[task_id][f"{test_set}_input"]))
            Path(CACHE_DIR, f"{key}.{test_set}").write_text(f"{json.dumps(about)}\n{json.dumps(inputs)}\n")


def write_verdicts(
    dataset: str, keys: Mapping[str, str], test_set: str, records: Sequence[tuple[str, str]], results: str
) -> None:
    """Judge records of a test set.

    Args:
        dataset: "humaneval" or "mbpp".
        keys: names of EvalPlus's files of expected answers, by task id.
        test_set: "base" or "plus".
        records: task id and file of each.
        results: file for a JSON list: of each record EvalPlus's status and how many answers are right.
    """
    _check_evalplus()
    problems = _problems(dataset)
    verdicts: dict[str, tuple[str, int]] = {}
    for task_id in dict.fromkeys(task_id for task_id, _ in records):  # one problem's expected answers at a time
        expected = _expected_answers(dataset, problems[task_id], keys[task_id])
        for path in [path for other, path in records if other == task_id]:
            verdicts[path] = _verdict(dataset, problems[task_id], test_set, expected, Path(path))
    Path(results).write_text(json.dumps([verdicts[path] for _, path in records]), encoding="utf-8")


def recorded(*_: Any) -> Any:
    """The next answer of the record at hand, in place of the function that gave it."""
    expected = next(_expected)
    kind, value = json.loads(next(_answers))
    if kind == "large":
        return expected if value == hashlib.sha256(marshal.dumps(expected, 2)).hexdigest() else plain.Unknown()
    if kind != "answer":
        raise ValueError(kind)
    return plain.from_plain(value)


def _verdict(
    dataset: str, problem: Mapping[str, Any], test_set: str, expected: Mapping[str, Any], record: Path
) -> tuple[str, int]:
    global _answers, _expected
    with record.open("rb") as lines:
        _answers, _expected = iter(lines), iter(expected[test_set])
        next(_answers), next(_answers)  # ["begun"], ["defined"]
        return _evalplus(
            dataset,
            problem["entry_point"],
            problem[f"{test_set}_input"],
            expected[test_set],
            problem["atol"],
            expected[f"{test_set}_time"],
        )


def _evalplus(
    dataset: str, entry_point: str, inputs: Any, expected: Any, atol: float, reference_s: Sequence[float]
) -> tuple[str, int]:
    from evalplus.eval import untrusted_check

    code = f"from {__name__} import recorded as {entry_point}"
    status, details = untrusted_check(
        dataset, code, inputs, entry_point, expected, atol, reference_s, fast_check=True, min_time_limit=10.0
    )
    return str(status), int(sum(details))


def _check_evalplus() -> None:
    """A machine on which EvalPlus fails whatever it is shown must not pass for a bad student."""
    global _answers, _expected
    _answers, _expected = iter([b'["answer", 1]']), iter([1])
    if _evalplus("humaneval", "control", [[1]], [1], 0, [0.0]) != ("pass", 1):
        raise RuntimeError("EvalPlus does not pass a right answer on this machine")


def _expected_answers(dataset: str, problem: Mapping[str, Any], key: str) -> dict[str, Any]:
    """From EvalPlus's file of that name, which it writes if it is not there."""
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.evaluate import get_groundtruth

    whether_any = MBPP_OUTPUT_NOT_NONE_TASKS if dataset == "mbpp" else []
    found: dict[str, Any] = get_groundtruth({problem["task_id"]: problem}, key, whether_any)[problem["task_id"]]
    return found


def _problems(dataset: str) -> dict[str, Any]:
    from evalplus import data  # reads the file that HUMANEVAL_OVERRIDE_PATH or MBPP_OVERRIDE_PATH names

    problems: dict[str, Any] = {"humaneval": data.get_human_eval_plus, "mbpp": data.get_mbpp_plus}[dataset]()
    return problems
