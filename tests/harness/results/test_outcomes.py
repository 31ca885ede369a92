"""Outcomes: what became of answers, programs and rows, counted by hand; in every format of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness.results.outcomes import set_aside_lines
from harness.store.store import Store
from reports import build_table, html, latex, markdown, write
from reports.counts import OUTCOME_COLUMNS, outcome_tables, verdict_lines
from tests.reports.test_reports import context, frame, score

COUNTED = pd.DataFrame(
    [
        ("sft", "codem", 0, "humaneval_plus", "pass", 1),
        ("sft", "codem", 0, "humaneval_plus", "fail", 6),
        ("sft", "codem", 0, "humaneval_plus", "timeout", 1),
        ("sft", "codem", 1, "humaneval_plus", "fail", 8),
        ("uld", "codem", 0, "humaneval_plus", "pass", 8),
        ("sft", "codem", 0, "answers", "EOS", 3),
        ("sft", "codem", 0, "answers", "length limit", 5),
        ("sft", "codem", 1, "answers", "stop string", 8),
        ("sft", "codem", 0, "prompts", "whole", 7),
        ("sft", "codem", 0, "prompts", "cut", 1),
        ("sft", "countdown", 0, "judged answers", "right", 2),
        ("sft", "countdown", 1, "judged answers", "no answer", 3),
        ("uld", "countdown", 0, "judged answers", "right", 1),
        *(
            (row, "codem", seed, "training rows", outcome, count)
            for row in ("sft", "uld")
            for seed in (0, 1)
            for outcome, count in (("whole", 90), ("cut", 7), ("left out", 3))
        ),
        ("sft", "codem", 0, "references", "whole", 8),
        ("uld", "codem", 0, "references", "whole", 7),
        ("uld", "codem", 0, "references", "left out", 1),
    ],
    columns=list(OUTCOME_COLUMNS),
)
RESULTS = frame(score("sft", 6.25, "humaneval", seed=0), score("uld", 100.0, "humaneval", seed=0))


def tables() -> dict[str, list[dict[str, object]]]:
    return {heading: table.to_dict("records") for heading, _, table in outcome_tables(COUNTED)}


def test_seeds_are_added_up_and_what_did_not_happen_is_zero() -> None:
    assert tables()["Verdicts on code"] == [
        {"task": "codem", "metric": "HumanEval+", "row": "sft", "pass": 1, "fail": 14, "timeout": 1},
        {"task": "codem", "metric": "HumanEval+", "row": "uld", "pass": 8, "fail": 0, "timeout": 0},
    ]
    assert tables()["How answers were judged"] == [
        {"task": "countdown", "row": "sft", "right": 2, "no answer": 3},
        {"task": "countdown", "row": "uld", "right": 1, "no answer": 0},
    ]
    ends = {"EOS": 3, "stop string": 8, "length limit": 5}
    assert tables()["How answers ended"] == [
        {"task": "codem", "row": "sft", "answers": 16, **ends, "prompts cut": 1}
    ]  # fmt: skip


def test_rows_that_all_read_the_same_stand_once() -> None:
    assert tables()["Rows read"] == [
        {"task": "codem", "what": "training rows", "rows of the table": "all", "whole": 90, "cut": 7, "left out": 3},
        {"task": "codem", "what": "references", "rows of the table": "sft", "whole": 8, "cut": 0, "left out": 0},
        {"task": "codem", "what": "references", "rows of the table": "uld", "whole": 7, "cut": 0, "left out": 1},
    ]


def test_verdicts_are_a_line_of_the_protocol_in_every_format(tmp_path: Path) -> None:
    line = "HumanEval+, pass/fail/timeout: sft 1/14/1, uld 8/0/0; 1 timeout in all"
    assert list(verdict_lines(COUNTED, "codem")) == [line]
    assert list(verdict_lines(COUNTED, "dolly")) == []
    table, said = build_table(RESULTS), context(outcomes=COUNTED)
    assert line in markdown(table, said)
    assert line in html(table, said)
    assert line in latex(table, said)
    for heading in tables():
        assert f"## Appendix: {heading[0].lower()}{heading[1:]}" in markdown(table, said)
        assert f"<summary><h3>{heading}</h3></summary>" in html(table, said)
    files = {path.name: path for path in write(RESULTS, said, tmp_path)}
    pd.testing.assert_frame_equal(pd.read_csv(files["outcomes.csv"]), COUNTED, check_dtype=False)


def test_nothing_counted_is_nothing_said(tmp_path: Path) -> None:
    table = build_table(RESULTS)
    assert outcome_tables(context().outcomes) == []
    assert "timeout" not in markdown(table, context()) + html(table, context())
    assert "outcomes.csv" not in {path.name for path in write(RESULTS, context(), tmp_path)}


def test_what_publishers_ask_of_decoding_is_a_line_of_the_protocol(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cell: Any = {"stages": {"answers": "a" * 64}}
    assert set_aside_lines([cell], store) == []  # nothing was answered
    models = {"student": {"uri": "x", "set_aside": "temperature 0.6, top_k 20"}, "cross": {"uri": "y"}}
    with store.create("answers", "a" * 64, {"models": models}):
        pass
    (line,) = set_aside_lines([cell, cell], store)
    assert "asks for it: temperature 0.6, top_k 20 (student)." in line
