"""reports: what the table says for hand-made frames, worked out by hand."""

import csv
import io
import math
import statistics
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from rich.console import Console

from reports import (
    ReportContext,
    Row,
    Score,
    Table,
    TableCell,
    analyse,
    build_table,
    checked,
    csv_wide,
    html,
    latex,
    markdown,
    read_results,
    terminal,
    write,
)
from reports.to_markdown import escape

PERCENT = {"unit": "%", "higher_is_better": True, "headline": True}
METRICS: dict[str, dict[str, Any]] = {
    "rouge_l": {"task": "dolly", **PERCENT},
    "rouge_l_hub": {"task": "dolly", **PERCENT},
    "rouge_l_vicuna": {"task": "dolly", **PERCENT},
    "humaneval": {"task": "codem", **PERCENT},
    "exact_match_strict": {"task": "gsm8k", **PERCENT},
    "exact_match_flexible": {"task": "gsm8k", **PERCENT, "headline": False},
    "bits_per_byte": {"task": "gsm8k", "unit": "bits/byte", "higher_is_better": False, "headline": False},
}


def score(method: str, value: float = math.nan, metric: str = "rouge_l", seed: int = 0, **other: Any) -> dict[str, Any]:
    """One row of a frame; a `reason` alone makes it a failure."""
    row = {
        "student": "small",
        "teacher": "",
        "teacher_kind": "none",
        "method": method,
        "fidelity": "",
        "role": "student",
        "metric": metric,
        "seed": seed,
        "value": value,
        "n_items": 100,
        "status": "failed" if "reason" in other else "done",
        "reason": "",
        **METRICS[metric],
        **other,
    }
    return {field.name: row[field.name] for field in fields(Score)}


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def context(**other: Any) -> ReportContext:
    protocol = {"dolly": ["greedy"], "gsm8k": ["5-shot"], "codem": ["EvalPlus"]}
    return ReportContext(**{"title": "Report", "recipe": "smoke", "protocol": protocol, **other})


def rows_of(table: Table) -> dict[str, Row]:
    return {row.label: row for group in table.groups for row in group.rows}


def cell(table: Table, label: str, key: str = "dolly.rouge_l") -> TableCell:
    return rows_of(table)[label].cells[[column.key for column in table.columns].index(key)]


def note(table: Table, label: str, key: str = "dolly.rouge_l") -> str | None:
    number = cell(table, label, key).note
    return None if number is None else table.footnotes[number - 1]


# Layout


def test_groups_are_students_in_order_of_appearance_then_kinds_of_teacher_in_the_papers_order() -> None:
    kinds = ["both", "cross-tokenizer", "none", "same-tokenizer"]
    table = build_table(
        frame(*(score("m", 1.0, student=student, teacher_kind=kind) for student in ("b", "a") for kind in kinds))
    )
    in_order = ["none", "same-tokenizer", "cross-tokenizer", "both"]
    assert [(g.student, g.teacher_kind) for g in table.groups] == [(s, kind) for s in ("b", "a") for kind in in_order]
    assert [student for student, _ in table.students()] == ["b", "a"]
    assert table.groups[2].heading == "cross-tokenizer teacher"


def test_methods_keep_the_frames_order_with_teachers_and_references_on_top() -> None:
    cross = {"teacher_kind": "cross-tokenizer", "teacher": "big"}
    table = build_table(
        frame(
            score("zeta", 1.0, **cross),
            score("alpha", 1.0, **cross),
            score("sft", 9.0, role="teacher", **cross),
            score("untrained", 0.0, role="reference", **cross),
            score("zeta", 1.0, student="other"),
            score("alpha", 1.0, student="other"),
        )
    )
    assert [row.label for row in table.groups[0].rows] == ["teacher (sft)", "untrained", "zeta", "alpha"]
    assert table.groups[0].teachers == ("big",)


def test_columns_keep_the_order_of_tasks_and_a_tasks_metrics_stand_together() -> None:
    table = build_table(
        frame(
            score("sft", 1.0, "exact_match_strict"),
            score("sft", 1.0, "rouge_l"),
            score("sft", 0.7, "bits_per_byte"),
            score("sft", 1.0, "exact_match_flexible"),
        )
    )
    assert [c.key for c in table.columns] == [
        "gsm8k.exact_match_strict",
        "gsm8k.bits_per_byte",
        "dolly.rouge_l",
        "average",
    ]
    assert [c.key for c in table.hidden] == ["gsm8k.exact_match_flexible"]
    assert [c.header for c in table.columns] == [
        ("gsm8k", "EM strict", "% ↑"),
        ("gsm8k", "bits/byte", "↓"),
        ("dolly", "ROUGE-L", "% ↑"),
        ("average", "% ↑"),
    ]


def test_all_metrics_shows_those_outside_the_headline_without_changing_the_average() -> None:
    scores = frame(
        score("sft", 10.0), score("sft", 20.0, "exact_match_strict"), score("sft", 90.0, "exact_match_flexible")
    )
    table = build_table(scores, all_metrics=True)
    assert table.hidden == ()
    assert cell(table, "sft", "gsm8k.exact_match_flexible").text == "90.00"
    assert cell(table, "sft", "average").text == cell(build_table(scores), "sft", "average").text == "15.00"


def test_released_is_said_only_beside_described() -> None:
    table = build_table(
        frame(
            score("cdm", 1.0, fidelity="described"),
            score("uld", 1.0, fidelity="released"),
            score("cdm", 2.0, fidelity="released"),
        )
    )
    assert [row.label for row in table.groups[0].rows] == ["cdm", "cdm (released)", "uld"]


def test_several_teachers_in_one_group_are_told_apart() -> None:
    kind = {"teacher_kind": "cross-tokenizer"}
    table = build_table(frame(score("uld", 1.0, teacher="A", **kind), score("uld", 2.0, teacher="B", **kind)))
    assert [row.label for row in table.groups[0].rows] == ["uld, A", "uld, B"]


# Numbers


def test_mean_and_sample_standard_deviation_by_hand() -> None:
    # (10 + 20 + 60) / 3 = 30; squares of the differences 400 + 100 + 900 = 1400; over n - 1: 700; its root: 26.4575
    table = build_table(frame(*(score("sft", value, seed=seed) for seed, value in enumerate([10.0, 20.0, 60.0]))))
    got = cell(table, "sft")
    assert got.text == "30.00 ± 26.46"
    assert got.mean == 30
    assert got.std == pytest.approx(math.sqrt(700))
    assert (got.n_seeds, got.values, got.status) == (3, ((0, 10.0), (1, 20.0), (2, 60.0)), "done")
    assert rows_of(table)["sft"].n_seeds == 3


def test_one_seed_has_no_spread() -> None:
    got = cell(build_table(frame(score("sft", 12.3456))), "sft")
    assert (got.text, got.std) == ("12.35", None)


def test_bits_per_byte_has_three_decimals() -> None:
    table = build_table(frame(score("sft", 0.74649, "bits_per_byte"), score("sft", 0.74851, "bits_per_byte", seed=1)))
    assert cell(table, "sft", "gsm8k.bits_per_byte").text == "0.748 ± 0.001"


def test_without_item_scores_nothing_is_tested_and_nothing_is_bold() -> None:
    table = build_table(frame(*(score(m, v, seed=seed) for m, v in (("a", 10.0), ("b", 90.0)) for seed in (0, 1))))
    assert not any(cell.best or cell.mark for *_, cell in table.cells())
    assert table.pairwise == ()
    assert "Verdict" not in markdown(table, context())


# What is missing


def test_a_failure_is_a_dash_with_its_reason() -> None:
    table = build_table(frame(score("sft", 1.0), score("uld", reason="out of memory")))
    got = cell(table, "uld")
    assert (got.text, got.mean, got.std, got.n_seeds, got.status, got.note) == ("–", None, None, 0, "failed", 1)
    assert table.footnotes == ("failed: out of memory",)
    assert rows_of(table)["uld"].n_seeds == 0


def test_identical_reasons_share_a_footnote_and_numbers_follow_the_reading_order() -> None:
    table = build_table(
        frame(
            score("z", reason="slow", teacher_kind="both"),
            score("b", reason="slow", status="skipped"),
            score("a", reason="oom"),
            score("c", reason="slow"),
        )
    )
    assert table.footnotes == ("skipped: slow", "failed: oom", "failed: slow")
    assert [(label, cell(table, label).note) for label in "bacz"] == [("b", 1), ("a", 2), ("c", 3), ("z", 3)]
    assert cell(table, "b").status == "skipped"


def test_some_failed_seeds_leave_the_mean_of_the_others_and_a_footnote() -> None:
    table = build_table(frame(score("uld", 10.0), score("uld", seed=1, reason="oom"), score("uld", 14.0, seed=2)))
    got = cell(table, "uld")
    assert (got.text, got.n_seeds, got.status) == ("12.00 ± 2.83", 2, "partial")
    assert table.footnotes == ("2 of 3 seeds; seed 1: oom",)


def test_different_reasons_are_listed_by_seed() -> None:
    table = build_table(
        frame(*(score("uld", seed=seed, reason=reason) for seed, reason in enumerate(["oom", "nan", "oom"])))
    )
    assert table.footnotes == ("failed: seeds 0, 2: oom; seed 1: nan",)


def test_a_seed_without_a_row_is_not_passed_over() -> None:
    flexible = [score("sft", 6.0, "exact_match_flexible", seed=seed) for seed in (0, 1)]
    table = build_table(frame(score("b", 1.0), score("sft", 1.0), score("sft", 5.0, "exact_match_strict"), *flexible))
    assert note(table, "sft", "gsm8k.exact_match_strict") == "1 of 2 seeds; seed 1: no result"
    assert note(table, "b", "gsm8k.exact_match_strict") == "no result"
    assert cell(table, "b", "gsm8k.exact_match_strict").status == "missing"


def with_seeds_of_their_own(*more: dict[str, Any]) -> pd.DataFrame:
    """Two seeds of dolly, one of codem, as a recipe may have it; a teacher is scored once."""
    teacher = {"role": "teacher", "teacher": "big", "teacher_kind": "cross-tokenizer"}
    return frame(
        score("sft", 10.0),
        score("sft", 50.0, seed=1),
        score("sft", 20.0, "humaneval"),
        score("teacher", 60.0, **teacher),
        score("teacher", 70.0, "humaneval", **teacher),
        *more,
    )


def test_a_seed_that_a_task_was_not_to_have_is_not_missing() -> None:
    # The average: seed 0 alone, (10 + 20) / 2.
    table = build_table(with_seeds_of_their_own())
    assert table.footnotes == ()
    assert [column.seeds for column in table.columns if not column.is_average] == [(0, 1), (0,)]
    assert [c.text for c in rows_of(table)["sft"].cells] == ["30.00 ± 28.28", "20.00", "15.00"]
    assert {c.status for _, _, _, c in table.cells()} == {"done"}
    average = "Average: of dolly ROUGE-L, codem HumanEval, seed by seed over seed 0, the only one that "
    average += "all of them have, only"
    assert average in markdown(table, context())


def test_a_failure_among_seeds_of_their_own_is_still_said() -> None:
    uld = [score("uld", 12.0), score("uld", seed=1, reason="oom"), score("uld", metric="humaneval", reason="slow")]
    table = build_table(with_seeds_of_their_own(*uld))
    assert [note(table, "uld", key) for key in ("dolly.rouge_l", "codem.humaneval", "average")] == [
        "1 of 2 seeds; seed 1: oom",
        "failed: slow",
        "no average, as a score is missing",
    ]
    assert [c.note for c in rows_of(table)["sft"].cells] == [None, None, None]


def test_tasks_without_a_seed_in_common_have_no_average() -> None:
    table = build_table(frame(score("sft", 10.0, seed=1), score("sft", 20.0, "humaneval")))
    assert [c.text for c in rows_of(table)["sft"].cells] == ["10.00", "20.00", "–"]
    assert table.footnotes == ("no average, as its tasks have no seed in common",)
    assert "seed by seed (its tasks have no seed in common), only" in markdown(table, context())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_counts_as_missing(value: float) -> None:
    table = build_table(frame(score("sft", 4.0), score("sft", value, seed=1)))
    assert cell(table, "sft").text == "4.00"
    assert note(table, "sft") == f"1 of 2 seeds; seed 1: the score is {value}"


# The average


def test_the_average_is_over_headline_percentages_seed_by_seed() -> None:
    # Seed 0: (10 + 30) / 2 = 20; seed 1: (20 + 24) / 2 = 22. Mean 21, deviation sqrt(2).
    table = build_table(
        frame(
            score("sft", 10.0),
            score("sft", 20.0, seed=1),
            score("sft", 30.0, "exact_match_strict"),
            score("sft", 24.0, "exact_match_strict", seed=1),
            score("sft", 99.0, "exact_match_flexible"),
            score("sft", 0.7, "bits_per_byte"),
        )
    )
    assert cell(table, "sft", "average").text == "21.00 ± 1.41"
    assert [c.key for c in table.columns if c.in_average] == ["dolly.rouge_l", "gsm8k.exact_match_strict"]


def test_the_average_is_only_there_where_all_its_scores_are() -> None:
    table = build_table(
        frame(
            score("whole", 10.0),
            score("whole", 20.0, "humaneval"),
            score("half", 90.0),
            score("half", metric="humaneval", reason="no sandbox"),
        )
    )
    assert cell(table, "whole", "average").text == "15.00"
    assert not cell(table, "whole", "average").best
    assert (cell(table, "half", "average").text, cell(table, "half", "average").mean) == ("–", None)
    assert note(table, "half", "average") == "no average, as a score is missing"


def test_the_average_leaves_out_a_seed_that_lacks_a_score_and_says_so() -> None:
    table = build_table(
        frame(
            score("sft", 10.0),
            score("sft", 50.0, seed=1),
            score("sft", 20.0, "humaneval"),
            score("sft", metric="humaneval", seed=1, reason="oom"),
        )
    )
    assert cell(table, "sft", "average").text == "15.00"
    assert note(table, "sft", "average") == "1 of 2 seeds; seed 1: no average, as a score is missing"


def test_one_percentage_or_a_percentage_of_errors_makes_no_average() -> None:
    errors = score("sft", 90.0, "humaneval", higher_is_better=False)
    table = build_table(frame(score("sft", 10.0), errors, score("sft", 0.7, "bits_per_byte")))
    assert [c.key for c in table.columns] == ["dolly.rouge_l", "codem.humaneval", "gsm8k.bits_per_byte"]


# Wrong frames


@pytest.mark.parametrize("items", [2, 29, 30])
def test_an_interval_over_few_items_comes_with_a_warning(items: int) -> None:
    results = frame(score("sft", 50.0, n_items=items)).assign(cell="a")
    values = [0.0, 100.0] * (items // 2) + [50.0] * (items % 2)
    scored = pd.DataFrame(
        {"cell": "a", "metric": "rouge_l", "item": map(str, range(items)), "value": values, "weight": 1.0}
    )
    said = f"Fewer than 30 items bound little (dolly ROUGE-L {items})"
    assert (said in markdown(build_table(results, analyse(results, scored)), context())) == (items < 30)
    assert "bound little" not in markdown(build_table(results), context())  # there is no interval


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        build_table(frame(score("sft", 1.0)).iloc[:0])


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match="lack the columns: seed, unit"):
        build_table(frame(score("sft", 1.0)).drop(columns=["seed", "unit"]))


def test_a_score_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="rows 1 and 2 are the same score"):
        build_table(frame(score("sft", 1.0), score("sft", 2.0)))


@pytest.mark.parametrize(("column", "other"), [("unit", "bits/byte"), ("higher_is_better", False), ("headline", False)])
def test_a_metric_that_contradicts_itself_is_refused(column: str, other: object) -> None:
    with pytest.raises(ValueError, match=f"'dolly', metric 'rouge_l': rows differ in '{column}'"):
        build_table(frame(score("a", 1.0), score("b", 1.0, **{column: other})))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("seed", "two"),
        ("seed", 1.5),
        ("seed", True),
        ("value", "high"),
        ("higher_is_better", "yes"),
        ("headline", 1.0),
        ("status", "ok"),
        ("teacher_kind", "some"),
        ("method", 3),
    ],
)
def test_a_wrong_value_is_named_by_column_and_row(column: str, value: object) -> None:
    results = frame(score("a", 1.0), score("b", 1.0)).astype({column: object})
    results.loc[1, column] = value
    with pytest.raises(ValueError, match=f"column '{column}', row 2: "):
        checked(results)


def test_missing_text_and_integers_that_pandas_made_floats_are_accepted() -> None:
    results = frame(score("a", 1.0, reason=None, status="done", seed=2.0, n_items=np.int32(7)))
    got = checked(results).iloc[0]
    assert (got["reason"], got["seed"], got["n_items"]) == ("", 2, 7)


# Renderings

NEARLY_EVERYTHING = frame(
    score("sft", 10.0),
    score("sft", 14.0, seed=1),
    score("sft", 0.75, "bits_per_byte"),
    score("sft", 0.75, "bits_per_byte", seed=1),
    score("sft", 20.0, teacher="big", teacher_kind="cross-tokenizer", role="teacher"),
    score("sft", 0.5, "bits_per_byte", teacher="big", teacher_kind="cross-tokenizer", role="teacher"),
    score("uld", 13.0, teacher="big", teacher_kind="cross-tokenizer"),
    score("uld", seed=1, reason="a|b", teacher="big", teacher_kind="cross-tokenizer"),
    score("uld", 0.7, "bits_per_byte", teacher="big", teacher_kind="cross-tokenizer"),
    score("uld", 0.71, "bits_per_byte", seed=1, teacher="big", teacher_kind="cross-tokenizer"),
    score("cdm", reason="no <pad>\ntoken", status="skipped", teacher="big", teacher_kind="cross-tokenizer"),
    score("cdm", 0.9, "bits_per_byte", teacher="big", teacher_kind="cross-tokenizer"),
)
GOLDEN = r"""# Report

Recipe: smoke

## small

| method | seeds | dolly<br>ROUGE-L<br>% ↑ | gsm8k<br>bits/byte<br>↓ |
| :-- | --: | --: | --: |
| *no teacher* |  |  |  |
| sft | 2 | 12.00 ± 2.83 | 0.750 ± 0.000 |
| *cross-tokenizer teacher: big* |  |  |  |
| teacher (sft) | 1 | 20.00 | 0.500 |
| uld | 2 | 13.00 <sup>1</sup> | 0.705 ± 0.007 |
| cdm | 1 | – <sup>2</sup> | 0.900 |

↑ higher is better, ↓ lower is better.

±: sample standard deviation over training seeds.

A number without ±: one training seed, and no item-level scores to tell how sure it is.

1. 1 of 2 seeds; seed 1: a\|b
2. skipped: no \<pad> token

## Notes

- Few steps.

## How the numbers were made

**dolly**

- greedy
- ROUGE-L: 100 items

**gsm8k**

- 5-shot
- bits/byte: 100 items

## Settings

| setting | value |
| :-- | :-- |
| lr | 1e-4 |

## Appendix: diagnostics

| method | aligned 1-1 | masked |
| :-- | --: | --: |
| uld | 0.9658 | – |
"""


def test_golden_markdown() -> None:
    diagnostics = pd.DataFrame({"method": ["uld"], "aligned 1-1": [0.96578], "masked": [math.nan]})
    said = context(settings=[("lr", "1e-4")], notes=["Few steps."], appendix=diagnostics)
    assert markdown(build_table(NEARLY_EVERYTHING), said) == GOLDEN


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<class 'x'>", r"\<class 'x'>"),
        ("2 * 3 * 4", r"2 \* 3 \* 4"),
        ("rouge_l", "rouge_l"),
        ("__init__", r"\_\_init\_\_"),
        ("C:\\x", r"C:\\x"),
        ("two\r\nlines", "two lines"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_every_line_of_a_markdown_table_has_the_same_number_of_cells() -> None:
    results = frame(score("a | b", 1.0, teacher="x|y", teacher_kind="both"), score("c", reason="p | q"))
    lines = [line for line in markdown(build_table(results), context()).splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in lines} == {4}


@pytest.mark.parametrize("render", [html, latex, markdown, terminal])
def test_no_number_without_its_protocol(render: Any) -> None:
    with pytest.raises(ValueError, match="'gsm8k' has no protocol"):
        render(build_table(NEARLY_EVERYTHING), context(protocol={"dolly": ["greedy"], "gsm8k": []}))


def test_rows_scored_on_different_numbers_of_items_are_pointed_out() -> None:
    table = build_table(frame(score("a", 1.0), score("b", 1.0, n_items=80), score("c", reason="oom", n_items=0)))
    assert "ROUGE-L: 80 to 100 items, not the same number for every score" in markdown(table, context())


def printed(results: pd.DataFrame, width: int = 100) -> str:
    said = context(protocol={task: ["greedy [not markup]"] for task in results["task"]}, notes=["Few steps."])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal(build_table(results), said))
    return console.export_text()


def test_terminal_says_what_markdown_says() -> None:
    text = printed(NEARLY_EVERYTHING)
    for words in [
        "12.00 ± 2.83",
        "13.00¹",
        "–²",
        "¹ 1 of 2 seeds; seed 1: a|b",
        "cross-tokenizer teacher",
        "Few steps.",
    ]:
        assert words in text
    assert "dolly: greedy [not markup]; ROUGE-L: 100 items" in text


@pytest.mark.parametrize("tasks", [1, 5, 12])
def test_terminal_never_cuts_a_number_at_100_columns(tasks: int) -> None:
    results = frame(
        *(
            score(method, 10.0 + task + seed, "humaneval", seed=seed, task=f"task {task}", student="s" * 40)
            for method in ("sft", "a method with a name of more than thirty characters")
            for task in range(tasks)
            for seed in range(2)
        )
    )
    text = printed(results)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text
    for task in range(tasks):
        assert text.count(f"{10.5 + task:.2f}") >= 2
    assert text.count("0.71") >= 2 * tasks


# Files


def test_write_leaves_whole_files_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    paths = write(NEARLY_EVERYTHING, context(), folder)
    names = ["report.html", "report.md", "report.tex", "table.tex", "table.csv", "results.csv"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "figures"])
    table = build_table(NEARLY_EVERYTHING)
    assert (folder / "report.md").read_text(encoding="utf-8") == markdown(table, context())
    assert (folder / "table.csv").read_text(encoding="utf-8") == csv_wide(table)
    write(NEARLY_EVERYTHING, context(title="Second"), folder)
    assert (folder / "report.md").read_text(encoding="utf-8").startswith("# Second\n")


def test_table_csv_holds_the_metrics_that_the_report_does_not_print(tmp_path: Path) -> None:
    results = frame(score("sft", 1.0, "exact_match_strict"), score("sft", 77.0, "exact_match_flexible"))
    _, report, _, _, table, _ = write(results, context(), tmp_path)
    assert "77" not in report.read_text(encoding="utf-8")
    assert "Not printed, but in table.csv: gsm8k EM flexible." in report.read_text(encoding="utf-8")
    assert pd.read_csv(table)["gsm8k.exact_match_flexible.mean"].tolist() == [77.0]


def test_without_a_protocol_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="protocol"):
        write(NEARLY_EVERYTHING, context(protocol={}), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_write_that_breaks_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(NEARLY_EVERYTHING, context(), tmp_path)

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write(NEARLY_EVERYTHING, context(title="Second"), tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# Report\n")
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 6


def test_results_csv_round_trip(tmp_path: Path) -> None:
    results = frame(
        score("NA", 0.1 + 0.2),
        score('dual("a", b)', reason='said "no",\r\nand a bar:\r 50%', seed=3),
        score("mined", reason="a bar:\r 50%"),
        score("ü–", 1e-17, "bits_per_byte", seed=2**53 + 1),
    ).assign(cell=["a1", "", "b", "nan"])
    write(results, context(), tmp_path)
    back = read_results(tmp_path / "results.csv")
    assert_frame_equal(back, results, check_exact=True)
    assert build_table(back) == build_table(results)


def test_no_text_of_a_csv_is_a_formula_to_a_spreadsheet(tmp_path: Path) -> None:
    """And whoever reads the files back finds the names as they were; numbers stay numbers."""
    names = ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\tx", "'quoted", "plain"]
    made = frame(*(score(name, -1.5, student=name) for name in names), score("=fails", reason="=1+1"))
    write(made, context(), tmp_path)
    for file in ("results.csv", "table.csv"):
        with (tmp_path / file).open(encoding="utf-8", newline="") as lines:
            cells = [value for row in csv.reader(lines) for value in row]
        assert not [value for value in cells if value[:1] in "=+@\t" and value]
        assert {value for value in cells if value[:1] == "-"} == {"-1.5"}
        assert "'=HYPERLINK(1)" in cells
    back = read_results(tmp_path / "results.csv")
    assert back["method"].tolist() == [*names, "=fails"]
    assert back["reason"].tolist()[-1] == "=1+1"


def test_read_results_names_file_column_and_row(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    frame(score("a", 1.0), score("b", 1.0)).astype({"seed": object}).assign(seed=[0, "x"]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"results\.csv: column 'seed', row 2: 'x' is not an integer"):
        read_results(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.csv"):
        read_results(path)


def test_an_empty_results_csv_keeps_its_types(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    frame(score("a", 1.0)).iloc[:0].to_csv(path, index=False)
    back = read_results(path)
    assert len(back) == 0
    assert [str(back[name].dtype) for name in ("seed", "value", "headline")] == ["int64", "float64", "bool"]


# Properties

VALUES = st.floats(min_value=0, max_value=100, allow_subnormal=False)
CELL = st.lists(st.one_of(VALUES, st.sampled_from(["oom", "slow"])), min_size=1, max_size=5)


def cell_rows(method: str, metric: str, content: list[float | str]) -> list[dict[str, Any]]:
    """A cell's rows: a number is a seed that is done, a text the reason why it failed."""
    return [
        score(method, metric=metric, seed=seed, reason=entry)
        if isinstance(entry, str)
        else score(method, entry, metric, seed=seed)
        for seed, entry in enumerate(content)
    ]


@settings(deadline=None, max_examples=60)
@given(content=CELL, data=st.data())
def test_the_order_of_a_cells_rows_changes_nothing(content: list[float | str], data: st.DataObject) -> None:
    first, *others = [cell_rows("uld", metric, content) for metric in ("rouge_l", "humaneval", "bits_per_byte")]
    shuffled = data.draw(st.permutations(first))
    original = build_table(frame(*first, *others[0], *others[1]))
    assert build_table(frame(*shuffled, *others[0], *others[1])) == original


@settings(deadline=None, max_examples=60)
@given(cells=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4))
def test_csv_wide_holds_the_means_of_its_inputs(cells: list[tuple[list[float | str], list[float | str]]]) -> None:
    metrics = {"rouge_l": "dolly.rouge_l", "bits_per_byte": "gsm8k.bits_per_byte"}
    rows = [
        row
        for number, pair in enumerate(cells)
        for metric, content in zip(metrics, pair, strict=True)
        for row in cell_rows(f"m{number}", metric, content)
    ]
    lines = list(csv.DictReader(io.StringIO(csv_wide(build_table(frame(*rows))))))
    assert [line["method"] for line in lines] == [f"m{number}" for number in range(len(cells))]
    for line, pair in zip(lines, cells, strict=True):
        for key, content in zip(metrics.values(), pair, strict=True):
            done = [entry for entry in content if not isinstance(entry, str)]
            assert line[f"{key}.n"] == str(len(done))
            assert line[f"{key}.mean"] == (repr(statistics.fmean(done)) if done else "")
            assert line[f"{key}.std"] == (repr(statistics.stdev(done)) if len(done) > 1 else "")
            expected = "failed" if not done else "done" if len(done) == len(content) else "partial"
            assert line[f"{key}.status"] == expected


def test_reports_imports_no_other_folder() -> None:
    code = "import sys, reports; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "reports" in loaded
    assert not loaded & {"harness", "methods", "recipes", "torch", "transformers"}
