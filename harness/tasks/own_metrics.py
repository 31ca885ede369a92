"""What answers to a recipe's own data may be measured by: the metrics that other tasks have, on any rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from harness.base.errors import HarnessError
from harness.base.files import scratch_folder
from harness.evaluate import gsm8k, rouge
from harness.tasks.base import ItemScores
from harness.tasks.own_rows import OwnRow

MetricKind = Literal["rouge_l", "exact_match", "numeric_match", "code", "none"]

IN_WORDS: Mapping[MetricKind, str] = {
    "rouge_l": "ROUGE-L F1 with stemmer, best over references, × 100",
    "exact_match": "the answer is the reference, or one of several, but for white space around it",
    "numeric_match": "the answer's last number is the reference's (lm-evaluation-harness's gsm8k, flexible filter)",
    "code": "the function gives what the reference gives on every input of its row (EvalPlus, in a sandbox)",
    "none": "no score of answers",
}

Answers = Mapping[str, Mapping[str, str]]
"""By student and item."""
OwnScores = dict[str, dict[str, float]]
"""By student and item, 0 to 100."""


def takes_several(kind: MetricKind) -> bool:
    """Whether an item may have several references."""
    return kind in ("rouge_l", "exact_match")


def check_reference(kind: MetricKind, row: OwnRow) -> None:
    """Hold a test row to what its metric reads.

    Raises:
        HarnessError: no answer could score on it.
    """
    if kind == "numeric_match" and gsm8k.final_number(row.responses[0]) is None:
        raise HarnessError(
            f"{row.source}, the response", f"{row.responses[0]!r:.60}", "a text with a number, the last counts"
        )


def can_score(kind: MetricKind, row: OwnRow, tokens: rouge.Tokens) -> bool:
    """Whether some answer scores more than nothing."""
    return kind != "rouge_l" or rouge.can_score(row.responses, tokens)


def score_texts(kind: MetricKind, answers: Answers, rows: Mapping[str, OwnRow], tokens: rouge.Tokens) -> OwnScores:
    """Scores by what an answer's text is: every kind but ``code``."""
    if kind == "numeric_match":
        numbers = {item: str(gsm8k.final_number(row.responses[0])) for item, row in rows.items()}
        return {student: gsm8k.score_numbers(said, numbers) for student, said in answers.items()}

    def one(answer: str, row: OwnRow) -> float:
        if kind == "rouge_l":
            return rouge.score(answer, row.responses, tokens)
        return 100.0 * (answer.strip() in {response.strip() for response in row.responses})

    return {student: {item: one(said[item], row) for item, row in rows.items()} for student, said in answers.items()}


def score_programs(
    metric: str, answers: Answers, rows: Mapping[str, OwnRow], work: Path, unsafe: bool
) -> dict[str, ItemScores]:
    """Scores by what an answer's function does, run in the sandbox.

    Args:
        metric: how they are called.

    Raises:
        HarnessError: nothing here can contain a program; or a reference itself does not run.
    """
    from harness.evaluate.programs import evalplus, sandbox
    from harness.evaluate.programs.extraction import solution_code

    status = sandbox.probe()
    unsafe = unsafe and not status.available  # the flag never switches off a sandbox that works
    problems = {item: _problem(item, row) for item, row in rows.items()}
    (path := work / "problems.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in problems.values()), "utf-8")
    solutions = [
        evalplus.Solution(student, item, solution_code(problem, said[item], dataset="humaneval", style="response"))
        for student, said in answers.items()
        for item, problem in problems.items()
    ]
    found = evalplus.evaluate(path, solutions, dataset="humaneval", work=work, sandbox=status, unsafe=unsafe)
    verdicts = {(one.owner, one.task_id): one.base for one in found}
    caveat = "Generated code ran without a sandbox (--unsafe-execution)." if unsafe else ""
    ran_in = "no sandbox" if unsafe else status.version
    made = {}
    for student in answers:
        statuses = {item: verdicts[student, item] for item in problems}
        passed = {item: 100.0 * (said == "pass") for item, said in statuses.items()}
        made[student] = ItemScores({metric: passed}, {"ran_in": ran_in, "statuses": {metric: statuses}}, caveat)
    return made


def check_programs(rows: Mapping[str, OwnRow]) -> None:
    """Hold references to their own tests, in the sandbox: each has to run, and to give the same twice.

    Raises:
        HarnessError: one does not; names file and line.
    """

    from harness.evaluate.programs.evalplus import EvaluationFailed

    def fail(rows: Mapping[str, OwnRow]) -> list[str]:
        with scratch_folder("references") as work:
            said = {item: row.responses[0] for item, row in rows.items()}
            try:
                (found,) = score_programs("passed", {"the references": said}, rows, work, unsafe=False).values()
            except EvaluationFailed:  # one of them keeps EvalPlus from any verdict
                return list(rows) if len(rows) == 1 else [item for item in rows if fail({item: rows[item]})]
        return [item for item, value in found.values["passed"].items() if not value]

    for item in fail(rows)[:1]:
        expected = (
            f"Python that defines {rows[item].entry_point} and takes each of its inputs, to the same result twice"
        )
        raise HarnessError(f"{rows[item].source}, the response", f"{rows[item].responses[0]!r:.60}", expected)


def _problem(item: str, row: OwnRow) -> dict[str, object]:
    """A row in EvalPlus's format: what is expected is what the reference gives, found in the sandbox."""
    from harness.evaluate.programs.extraction import solution_code

    named = {"task_id": item, "prompt": "", "entry_point": row.entry_point, "contract": ""}
    reference = solution_code(named, row.responses[0], dataset="humaneval", style="response")
    return named | {"canonical_solution": reference, "base_input": row.inputs, "plus_input": [], "atol": 0}
