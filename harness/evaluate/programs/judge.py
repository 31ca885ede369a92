"""EvalPlus's side of an evaluation: expected answers, and the verdict on recorded ones. No solution ever runs here.

EvalPlus compares what a function returns with what it expects in the process that runs the function. So here it gets a
function that returns the recorded answers one by one (``recorded``): its comparison, its special oracles and its
tolerances apply as they are, to plain data. The process that compares is a child of this one; this one never reads an
answer.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from harness.evaluate.programs import plain
from harness.evaluate.programs.solve import answer_line

_replay: Iterator[tuple[bytes, Any, str]] = iter(())  # lines of the record at hand, expected answers, their digests


def main() -> None:
    """Do what the JSON on stdin says: see ``write_tests`` and ``write_verdicts``."""
    command = json.load(sys.stdin)
    memory = resource.getrlimit(resource.RLIMIT_AS)[0]
    if memory != resource.RLIM_INFINITY:
        os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(memory)  # it fails all solutions where it can't set its limit
    do = write_tests if command.pop("do") == "tests" else write_verdicts
    do(**command)


def write_tests(dataset: str, keys: Mapping[str, str], suffix: str) -> None:
    """For each problem: EvalPlus's file of expected answers (by key), and a file for each test set.

    The first line of a test set's file holds what is known from running the data set's own solution: ``reference_s``,
    its seconds for each input, ``digests``, that of each large answer and "" for others, ``answer_bytes``, the size of
    its answers as ``solve.py`` writes them, and ``writing_s``, what that took. The second line holds the inputs.

    Args:
        dataset: "humaneval" or "mbpp".
        keys: names of the files, by task id.
        suffix: of the names of test sets' files.
    """
    problems = _problems(dataset)
    for task_id, key in keys.items():
        expected = _expected_answers(dataset, problems[task_id], key)
        for test_set in ("base", "plus"):
            start = time.monotonic()
            digests, size = [], 0
            for answer in expected[test_set]:
                line = answer_line(answer)
                digests.append(json.loads(line)[1] if line.startswith(b'["large"') else "")
                size += len(line)
            about = {
                "reference_s": expected[f"{test_set}_time"],
                "digests": digests,
                "answer_bytes": size,
                "writing_s": time.monotonic() - start,
            }
            inputs = plain.to_plain(list(problems[task_id][f"{test_set}_input"]))
            lines = f"{json.dumps(about)}\n{json.dumps(inputs)}\n"
            _tests_file(key, test_set, suffix).write_text(lines, encoding="ascii")


def write_verdicts(
    dataset: str,
    keys: Mapping[str, str],
    suffix: str,
    test_set: str,
    records: Sequence[tuple[str, str]],
    results: str,
) -> None:
    """Judge records of a test set.

    Args:
        dataset: "humaneval" or "mbpp".
        keys: names of the files of expected answers, by task id.
        suffix: of the names of test sets' files.
        test_set: "base" or "plus".
        records: task id and file of each.
        results: file for a JSON list: of each record EvalPlus's status and how many answers are right.
    """
    _check_evalplus()
    problems = _problems(dataset)
    verdicts: dict[str, tuple[str, int]] = {}
    for task_id in dict.fromkeys(task_id for task_id, _ in records):  # one problem's expected answers at a time
        expected = _expected_answers(dataset, problems[task_id], keys[task_id])
        with _tests_file(keys[task_id], test_set, suffix).open(encoding="ascii") as file:
            digests = json.loads(next(file))["digests"]
        for path in [path for other, path in records if other == task_id]:
            verdicts[path] = _verdict(dataset, problems[task_id], test_set, expected, digests, Path(path))
    Path(results).write_text(json.dumps([verdicts[path] for _, path in records]), encoding="utf-8")


def recorded(*_: Any) -> Any:
    """The next answer of the record at hand, in place of the function that gave it."""
    line, expected, digest = next(_replay)
    kind, value = json.loads(line)
    if kind == "large":
        return expected if digest and value == digest else plain.Unknown()
    if kind != "answer":
        raise ValueError(kind)
    return plain.from_plain(value)


def _verdict(
    dataset: str,
    problem: Mapping[str, Any],
    test_set: str,
    expected: Mapping[str, Any],
    digests: Sequence[str],
    record: Path,
) -> tuple[str, int]:
    global _replay
    with record.open("rb") as lines:
        answers = islice(lines, 2, None)  # after ["begun"] and ["defined"]
        _replay = zip(answers, expected[test_set], digests, strict=False)
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
    status, details = untrusted_check(  # its limits are not for a solution here, which has kept to them
        dataset, code, inputs, entry_point, expected, atol, reference_s, fast_check=True, min_time_limit=60.0
    )
    return str(status), int(sum(details))


def _check_evalplus() -> None:
    """A machine on which EvalPlus fails whatever it is shown must not pass for a bad student."""
    global _replay
    _replay = iter([(b'["answer", 1]', 1, "")])
    if _evalplus("humaneval", "control", [[1]], [1], 0, [0.0]) != ("pass", 1):
        raise RuntimeError("EvalPlus does not pass a right answer on this machine")


def _expected_answers(dataset: str, problem: Mapping[str, Any], key: str) -> dict[str, Any]:
    """From EvalPlus's file of that name, which it writes if it is not there."""
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.evaluate import get_groundtruth

    whether_any = MBPP_OUTPUT_NOT_NONE_TASKS if dataset == "mbpp" else []
    found: dict[str, Any] = get_groundtruth({problem["task_id"]: problem}, key, whether_any)[problem["task_id"]]
    return found


def _tests_file(key: str, test_set: str, suffix: str) -> Path:
    from evalplus.data.utils import CACHE_DIR  # $XDG_CACHE_HOME/evalplus

    return Path(CACHE_DIR, f"{key}.{test_set}.{suffix}")


def _problems(dataset: str) -> dict[str, Any]:
    from evalplus import data  # reads the file that HUMANEVAL_OVERRIDE_PATH or MBPP_OVERRIDE_PATH names

    problems: dict[str, Any] = {"humaneval": data.get_human_eval_plus, "mbpp": data.get_mbpp_plus}[dataset]()
    return problems
