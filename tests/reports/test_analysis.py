"""reports.analysis: which items, seeds and rows are compared, by hand on small frames; what the table says of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from rich.console import Console
from scipy import stats

from reports import (
    ITEM_COLUMNS,
    Analysis,
    Cell,
    Comparison,
    ReportContext,
    Table,
    analyse,
    build_table,
    csv_wide,
    markdown,
    read_items,
    read_results,
    terminal,
    write,
)
from reports.statistics import bootstrap_interval, paired_bootstrap, seed_of
from tests.reports.test_reports import METRICS, context, frame, score

# of one cell: its scores by item, or (score, weight) by item
Items = Mapping[str, float | tuple[float, float]] | Sequence[float]


class Frames:
    """Results and items that belong together, cell by cell."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.items: list[tuple[str, str, str, float, float]] = []

    def add(self, method: str, items: Items, metric: str = "rouge_l", seed: int = 0, **other: Any) -> Frames:
        """A cell whose score is the weighted mean of its items."""
        named = items if isinstance(items, Mapping) else {f"item {n:03d}": value for n, value in enumerate(items)}
        pairs = {name: value if isinstance(value, tuple) else (value, 1.0) for name, value in named.items()}
        total = sum(weight for _, weight in pairs.values())
        row = score(method, sum(v * w for v, w in pairs.values()) / total, metric, seed, n_items=len(pairs), **other)
        cell = f"{method} {other.get('student', '')} {other.get('fidelity', '')} {row['role']} {row['task']} {seed}"
        self.rows.append(row | {"cell": cell})
        self.items += [(cell, metric, name, float(value), float(weight)) for name, (value, weight) in pairs.items()]
        return self

    @property
    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return frame(*self.rows), pd.DataFrame(self.items, columns=list(ITEM_COLUMNS))

    def analyse(self, baseline: str = "control") -> Analysis:
        return analyse(*self.frames, baseline)

    def table(self, baseline: str = "control") -> Table:
        return build_table(self.frames[0], self.analyse(baseline))


def comparisons(analysis: Analysis, metric: str = "rouge_l") -> dict[str, Comparison]:
    """By method."""
    return {row.method: made for (row, _, name), made in analysis.comparisons.items() if name == metric}


def cells(table: Table) -> dict[tuple[str, str], Cell]:
    return {(row.label, column.key): cell for _, row, column, cell in table.cells()}


def explained(table: Table) -> str:
    """What is printed below the table."""
    protocol = {metric["task"]: ["as always"] for metric in METRICS.values()}
    return markdown(table, ReportContext("Report", "smoke", protocol))


RNG = np.random.default_rng(0)
EASY = RNG.uniform(10, 60, 60)  # scores of the baseline
BETTER = EASY + RNG.normal(6, 5, 60)
ALIKE = EASY + RNG.normal(0, 5, 60)
WORSE = EASY - RNG.normal(6, 5, 60)


# --- Intervals --------------------------------------------------------------------------------------------------------


def test_an_interval_is_the_bootstrap_of_the_cells_items() -> None:
    analysis = Frames().add("sft", EASY).analyse("")
    low, high = bootstrap_interval(EASY, seed=seed_of("interval", "dolly", "rouge_l"))
    assert list(analysis.intervals.values()) == [pytest.approx((low, high))]
    assert low < EASY.mean() < high
    assert analysis.comparisons == {}


def test_an_interval_over_several_seeds_keeps_an_items_seeds_together() -> None:
    """The mean of an item's seeds is resampled: three copies of one seed are as sure as one."""
    one = Frames().add("sft", EASY)
    three = Frames().add("sft", EASY).add("sft", EASY, seed=1).add("sft", EASY, seed=2)
    assert list(three.analyse().intervals.values()) == [
        pytest.approx(pair) for pair in one.analyse().intervals.values()
    ]


def test_bits_per_byte_weighs_items_by_their_bytes() -> None:
    items = {f"{n}": (0.5 + 0.01 * n, 10.0 + n) for n in range(20)}
    ((low, high),) = Frames().add("sft", items, "bits_per_byte").analyse().intervals.values()
    bits = sum(value * weight for value, weight in items.values())
    assert low < bits / sum(weight for _, weight in items.values()) < high
    plain = bootstrap_interval([value for value, _ in items.values()], seed=1)
    assert low > plain[0]  # long responses need more bits per byte here


@pytest.mark.parametrize("items", [[0.0] * 9, [100.0] * 9, [33.0]])
def test_where_all_items_are_the_same_there_is_no_interval(items: list[float]) -> None:
    assert Frames().add("sft", items).analyse().intervals == {}


def test_seeds_on_different_items_have_no_common_interval() -> None:
    frames = Frames().add("sft", {"a": 1, "b": 2, "c": 5}).add("sft", {"a": 1, "b": 2, "d": 5}, seed=1)
    assert frames.analyse().intervals == {}


def test_the_order_of_rows_changes_nothing() -> None:
    frames = Frames().add("control", EASY).add("uld", BETTER).add("cdm", ALIKE).frames
    shuffled = frames[1].sample(frac=1, random_state=1)
    assert analyse(frames[0], shuffled, "control") == analyse(*frames, "control")


# --- Comparisons ------------------------------------------------------------------------------------------------------


def test_scores_are_compared_by_the_paired_bootstrap() -> None:
    got = comparisons(Frames().add("control", EASY).add("uld", BETTER).add("cdm", ALIKE).analyse())
    differences = np.column_stack([BETTER - EASY, ALIKE - EASY])
    p = paired_bootstrap(differences, seed=seed_of("paired test", "dolly", "rouge_l"))
    assert [got["uld"].p, got["cdm"].p] == pytest.approx(p)
    assert [got["uld"].difference, got["cdm"].difference] == pytest.approx(differences.mean(0))
    # Holm over two rows: the smaller p twice, the larger one once, but not below
    assert got["uld"].p_corrected == pytest.approx(2 * p[0])
    assert got["cdm"].p_corrected == pytest.approx(max(2 * p[0], p[1]))
    assert (got["uld"].test, got["uld"].n_items, got["uld"].seeds, got["uld"].p_seeds) == ("bootstrap", 60, (0,), None)
    assert got["uld"].interval is not None
    assert got["uld"].interval[0] < got["uld"].difference < got["uld"].interval[1]
    assert set(got) == {"uld", "cdm"}


def test_right_and_wrong_answers_are_compared_by_mcnemar() -> None:
    control = [100.0] * 4 + [0.0] * 26
    uld = [0.0] * 1 + [100.0] * 3 + [100.0] * 11 + [0.0] * 15  # loses 1, wins 11
    analysis = Frames().add("control", control, "humaneval").add("uld", uld, "humaneval").analyse()
    got = comparisons(analysis, "humaneval")["uld"]
    assert (got.test, got.p) == ("McNemar", pytest.approx(stats.binomtest(11, 12).pvalue))
    assert got.difference == pytest.approx(100 * 10 / 30)


def test_several_seeds_are_compared_seed_by_seed_and_item_by_item() -> None:
    frames = Frames()
    for seed in range(3):
        frames.add("control", EASY + seed, seed=seed).add("uld", BETTER + seed + [0.1, 0.0, -0.1][seed], seed=seed)
    got = comparisons(frames.analyse())["uld"]
    d = (BETTER - EASY).mean()
    assert got.p_seeds == pytest.approx(stats.ttest_1samp([d + 0.1, d, d - 0.1], 0).pvalue)
    assert got.difference == pytest.approx(d)
    assert got.seeds == (0, 1, 2)


def test_only_common_seeds_and_items_are_compared() -> None:
    frames = Frames()
    frames.add("control", {"a": 1, "b": 2, "c": 4}).add("control", {"a": 50, "b": 50, "c": 50}, seed=1)
    frames.add("uld", {"b": 4, "c": 5, "d": 99}).add("uld", {"b": 9, "c": 9, "d": 9}, seed=2)
    got = comparisons(frames.analyse())["uld"]
    assert (got.difference, got.n_items, got.seeds) == (pytest.approx((2 + 1) / 2), 2, (0,))


@pytest.mark.parametrize("uld", [{"x": 3.0, "y": 4.0}, {"a": 3.0, "y": 4.0}])
def test_without_common_items_nothing_is_compared(uld: Items) -> None:
    assert Frames().add("control", {"a": 1, "b": 2}).add("uld", uld).analyse().comparisons == {}


def test_only_students_are_compared_each_with_its_own_baseline() -> None:
    frames = Frames().add("sft", BETTER, role="teacher").add("untrained", WORSE, role="reference")
    for student, scores in (("small", EASY), ("large", BETTER)):
        frames.add("control", scores, student=student).add("uld", BETTER, student=student)
    got = {(row.student, row.method): made.difference for (row, *_), made in frames.analyse().comparisons.items()}
    expected = {("small", "uld"): pytest.approx((BETTER - EASY).mean()), ("large", "uld"): pytest.approx(0)}
    assert got == expected


def test_failed_seeds_are_no_part_of_a_comparison() -> None:
    frames = Frames().add("control", EASY).add("control", EASY, seed=1).add("uld", BETTER)
    frames.rows.append(score("uld", seed=1, reason="oom") | {"cell": "uld 1"})
    assert comparisons(frames.analyse())["uld"].seeds == (0,)
    assert comparisons(frames.analyse("uld"))["control"].seeds == (0,)


def test_marks_point_in_the_metrics_direction() -> None:
    frames = Frames().add("control", EASY).add("up", BETTER).add("same", ALIKE).add("down", WORSE)
    for method, scores in (("control", EASY), ("up", BETTER), ("same", ALIKE), ("down", WORSE)):
        frames.add(method, scores / 50, "bits_per_byte")
    marks = {key: cell.mark for key, cell in cells(frames.table()).items() if cell.mark}
    assert marks == {
        ("up", "dolly.rouge_l"): "†",
        ("down", "dolly.rouge_l"): "‡",
        ("up", "gsm8k.bits_per_byte"): "‡",
        ("down", "gsm8k.bits_per_byte"): "†",
    }


def test_a_star_says_that_training_seeds_agree() -> None:
    frames = Frames()
    for seed, (steady, shaky) in enumerate([(6.0, 1.0), (6.2, 16.0), (5.9, 2.0)]):
        frames.add("control", EASY, seed=seed)
        frames.add("steady", EASY + steady + RNG.normal(0, 1, 60), seed=seed)
        frames.add("shaky", EASY + shaky + RNG.normal(0, 1, 60), seed=seed)
    marks = {label: cell.mark for (label, _), cell in cells(frames.table()).items()}
    assert marks == {"control": "", "steady": "†*", "shaky": "†"}
    said = explained(frames.table())
    assert "Each item's seeds are kept together." in said
    assert r"\*: a paired t-test over seeds finds the same" in said
    assert "| p over seeds, Holm |" in said


# --- Wrong frames -----------------------------------------------------------------------------------------------------


def test_items_that_contradict_their_score_are_refused() -> None:
    results, items = Frames().add("sft", [1.0, 2.0, 4.0]).frames
    items.loc[0, "value"] = 1.5
    with pytest.raises(ValueError, match="the items do not give the score"):
        analyse(results, items)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda items: items.drop(columns="weight"), "lack the columns: weight"),
        (lambda items: pd.concat([items, items.iloc[:1]]), "'item 000' stands twice"),
        (lambda items: items.assign(value=[1.0, np.nan, 4.0]), "finite values"),
        (lambda items: items.assign(weight=[1.0, 0.0, 1.0]), "positive weights"),
    ],
)
def test_wrong_items_are_refused(change: Any, words: str) -> None:
    results, items = Frames().add("sft", [1.0, 2.0, 4.0]).frames
    with pytest.raises(ValueError, match=words):
        analyse(results, change(items))


def test_results_that_name_no_cell_are_refused() -> None:
    results, items = Frames().add("sft", [1.0, 2.0, 4.0]).frames
    with pytest.raises(ValueError, match="lack the column cell"):
        analyse(results.drop(columns="cell"), items)


def test_an_item_with_two_weights_is_refused() -> None:
    frames = Frames().add("a", {"x": (0.5, 10.0), "y": (0.7, 10.0)}, "bits_per_byte")
    frames.add("b", {"x": (0.5, 10.0), "y": (0.7, 11.0)}, "bits_per_byte")
    with pytest.raises(ValueError, match="metric 'bits_per_byte': an item has different weights"):
        frames.analyse()


# --- What is printed --------------------------------------------------------------------------------------------------


def test_one_seed_prints_its_interval_and_several_their_deviation() -> None:
    frames = Frames().add("sft", [10.0, 20.0, 30.0, 40.0]).add("uld", EASY).add("uld", EASY + 2, seed=1)
    table = frames.table("")
    got = cells(table)
    low, high = got["sft", "dolly.rouge_l"].interval or (0, 0)
    assert got["sft", "dolly.rouge_l"].text == f"25.00 ({low:.1f}–{high:.1f})"
    assert got["uld", "dolly.rouge_l"].spread == "± 1.41"
    assert got["uld", "dolly.rouge_l"].interval is not None
    said = explained(table)
    assert "±: sample standard deviation over training seeds." in said
    assert "(low–high): one training seed, 95 % interval by bootstrap over test items (10,000 resamples)" in said
    assert "no interval" not in said


def test_only_the_spreads_that_are_there_are_explained() -> None:
    one = explained(Frames().add("sft", EASY).table())
    assert "±" not in one
    assert "(low–high)" in one
    several = explained(Frames().add("sft", EASY).add("sft", EASY + 1, seed=1).table())
    assert "±" in several
    assert "(low–high)" not in several


def test_a_number_without_spread_is_explained() -> None:
    said = explained(Frames().add("sft", EASY).add("uld", [0.0] * 60).table(""))
    assert "One seed and no interval: all items scored the same" in said
    assert "no item-level scores" in explained(build_table(frame(score("sft", 1.0))))


def test_tests_and_their_correction_are_named() -> None:
    frames = Frames().add("control", EASY).add("uld", BETTER)
    frames.add("control", [0.0, 100.0] * 9, "humaneval").add("uld", [0.0, 100.0] * 9, "humaneval")
    said = explained(frames.table())
    assert "† better, ‡ worse than control on the same items and seeds, 5 % level after Holm's correction" in said
    assert "exact McNemar test (codem HumanEval), paired bootstrap test (dolly ROUGE-L)" in said
    assert "one seed can't tell" in said
    assert "## Appendix: tests against control" in said
    rows = [line for line in said.splitlines() if line.startswith(("| dolly ROUGE-L |", "| codem HumanEval |"))]
    assert [row.split(" | ")[1] for row in rows] == ["uld", "uld"]
    assert "| +0.00 | – | McNemar | 1.0000 | 1.0000 | 18 | 1 |" in rows[1]


def test_a_baseline_that_is_not_there_is_said() -> None:
    said = explained(Frames().add("sft", EASY).table("control"))
    assert "No marks of significance: no row here has item-level scores to compare" in said
    assert "Appendix" not in said
    assert "significance" not in explained(Frames().add("sft", EASY).table(""))


def test_the_average_has_neither_interval_nor_test() -> None:
    frames = Frames().add("control", EASY).add("uld", BETTER)
    frames.add("control", [0.0, 100.0] * 9, "humaneval").add("uld", [0.0, 100.0] * 9, "humaneval")
    table = frames.table()
    assert cells(table)["uld", "average"].text == f"{(BETTER.mean() + 50) / 2:.2f}"
    assert "no interval, no test" in explained(table)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_terminal_prints_marks_and_intervals(width: int) -> None:
    frames = Frames()
    for metric, scale in (("rouge_l", 1.0), ("bits_per_byte", 1 / 50)):
        for method, scores in (("control", EASY), ("uld", BETTER), ("cdm", WORSE)):
            frames.add(method, scores * scale, metric)
    table = frames.table()
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal(table, context(), width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for cell in cells(table).values():
        assert f"{cell.number}{cell.mark}" in text
        assert cell.spread.strip("()") in text
    assert "better, ‡ worse than control" in text


def test_the_csv_has_the_whole_comparison() -> None:
    table = Frames().add("control", EASY).add("uld", BETTER).table()
    control, uld = csv.DictReader(io.StringIO(csv_wide(table)))
    got = cells(table)["uld", "dolly.rouge_l"]
    assert got.comparison is not None
    assert got.interval is not None
    parts = {"low": got.interval[0], "high": got.interval[1], "difference": got.comparison.difference}
    parts |= {"p": got.comparison.p, "p_corrected": got.comparison.p_corrected}
    assert {part: uld[f"dolly.rouge_l.{part}"] for part in parts} == {part: repr(v) for part, v in parts.items()}
    assert (uld["dolly.rouge_l.mark"], uld["dolly.rouge_l.p_seeds"]) == ("†", "")
    assert [control[f"dolly.rouge_l.{part}"] for part in ("mark", "difference", "p")] == ["", "", ""]


def test_a_folder_holds_all_that_the_report_was_made_of(tmp_path: Path) -> None:
    frames = Frames().add("control", EASY).add("uld", BETTER)
    frames.add("uld", {"ä,": (0.1 + 0.2, 10.0), "NA": (1e-17, 3.0)}, "bits_per_byte")
    results, items = frames.frames
    for folder in ("first", "second"):
        write(results, context(), tmp_path / folder, frames.analyse(), items)
    assert_frame_equal(read_items(tmp_path / "first" / "items.csv.gz"), items, check_exact=True)
    again = analyse(
        read_results(tmp_path / "first" / "results.csv"), read_items(tmp_path / "first" / "items.csv.gz"), "control"
    )
    assert again == frames.analyse()
    written = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file()]
    for path in written:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()


# --- By simulation ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["rouge_l", "humaneval", "bits_per_byte"])
def test_a_table_without_true_differences_seldom_has_a_mark(metric: str) -> None:
    """From frames to marks: at most 5 % of columns, within the error of 150 of them."""
    marked = 0
    for trial in range(150):
        rng = np.random.default_rng([trial, len(metric)])
        difficulty, size = rng.normal(0, 1, 80), np.ceil(rng.lognormal(5, 0.5, 80))
        frames = Frames()
        for method in ("control", "fkd", "uld", "cdm"):
            luck = difficulty + rng.normal(0, 0.7, 80)
            for seed in range(2):
                scores = luck + rng.normal(0, 0.5, 80)
                if metric == "humaneval":
                    scores = 100.0 * (scores > 0)
                weights = size if metric == "bits_per_byte" else np.ones(80)
                items = {f"{n}": pair for n, pair in enumerate(zip(scores, weights, strict=True))}
                frames.add(method, items, metric, seed)
        marked += any(made.mark for made in frames.analyse().comparisons.values())
    assert marked <= 150 * 0.05 + 3.5 * np.sqrt(150 * 0.05 * 0.95)
