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
    Comparison,
    ReportContext,
    Table,
    TableCell,
    analyse,
    build_table,
    csv_wide,
    markdown,
    read_items,
    read_results,
    terminal,
    write,
)
from reports.statistics import bootstrap_interval, holm, paired_bootstrap, paired_interval, seed_of
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


def cells(table: Table) -> dict[tuple[str, str], TableCell]:
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


def test_these_students_are_compared_over_items_by_the_paired_bootstrap() -> None:
    got = comparisons(Frames().add("control", EASY).add("uld", BETTER).add("cdm", ALIKE).analyse())
    differences = np.column_stack([BETTER - EASY, ALIKE - EASY])
    seed = seed_of("paired test", "dolly", "rouge_l")
    p = paired_bootstrap(differences, seed=seed)
    low, high = paired_interval(differences, seed=seed)
    uld, cdm = got["uld"].items, got["cdm"].items
    assert uld is not None
    assert cdm is not None
    assert [uld.p, cdm.p] == pytest.approx(p)
    assert [uld.difference, cdm.difference] == pytest.approx(differences.mean(0))
    # Holm over two rows: the smaller p twice, the larger one once, but not below
    assert uld.p_corrected == pytest.approx(2 * p[0])
    assert cdm.p_corrected == pytest.approx(max(2 * p[0], p[1]))
    assert [uld.interval, cdm.interval] == [pytest.approx(ends) for ends in zip(low, high, strict=True)]
    assert (uld.test, got["uld"].n_items, got["uld"].seeds) == ("bootstrap", 60, (0,))
    assert (uld.better, uld.worse) == ((BETTER > EASY).sum(), (BETTER < EASY).sum())
    assert set(got) == {"uld", "cdm"}


def test_right_and_wrong_answers_of_these_students_are_compared_by_mcnemar() -> None:
    control = [100.0] * 4 + [0.0] * 26
    uld = [0.0] * 1 + [100.0] * 3 + [100.0] * 11 + [0.0] * 15  # loses 1, wins 11
    analysis = Frames().add("control", control, "humaneval").add("uld", uld, "humaneval").analyse()
    got = comparisons(analysis, "humaneval")["uld"].items
    assert got is not None
    assert (got.test, got.p) == ("McNemar", pytest.approx(stats.binomtest(11, 12).pvalue))
    assert (got.better, got.worse, got.interval) == (11, 1, None)
    assert got.difference == pytest.approx(100 * 10 / 30)


def test_items_are_better_in_the_metrics_direction() -> None:
    frames = Frames().add("control", EASY / 50, "bits_per_byte").add("uld", BETTER / 50, "bits_per_byte")
    got = comparisons(frames.analyse(), "bits_per_byte")["uld"].items
    assert got is not None
    assert (got.better, got.worse) == ((BETTER < EASY).sum(), (BETTER > EASY).sum())


def test_methods_are_compared_over_what_training_again_would_change() -> None:
    """Two rows whose items agree in all but the seed: the paired t-test, with next to nothing from items."""
    frames = Frames()
    for seed in range(3):
        frames.add("control", EASY + 7 * seed, seed=seed).add("uld", EASY + 7 * seed + [2.5, 3.0, 4.2][seed], seed=seed)
    got = comparisons(frames.analyse())["uld"]
    expected = stats.ttest_1samp([2.5, 3.0, 4.2], 0)
    assert (got.p, got.p_corrected, got.p_pooled) == (pytest.approx(expected.pvalue),) * 3
    interval = expected.confidence_interval()
    assert got.interval == pytest.approx((interval.low, interval.high))
    assert got.difference == pytest.approx(np.mean([2.5, 3.0, 4.2]))
    assert (got.seeds, got.n_items, got.df) == ((0, 1, 2), 60, pytest.approx(2))


def test_methods_are_compared_over_items_too() -> None:
    frames = Frames()
    luck = RNG.normal(0, 4, 60)  # of the row with each item, the same in every training
    for seed in range(3):
        frames.add("control", EASY, seed=seed).add("uld", EASY + luck + [2.5, 3.0, 4.2][seed], seed=seed)
    got = comparisons(frames.analyse())["uld"]
    seeds = np.var([2.5, 3.0, 4.2], ddof=1) / 3
    items = luck.var(ddof=1) / 60
    assert got.error == pytest.approx(np.sqrt(seeds + items))
    assert got.df == pytest.approx((seeds + items) ** 2 / (seeds**2 / 2 + items**2 / 59))


def test_one_seed_tells_nothing_of_methods() -> None:
    got = comparisons(Frames().add("control", EASY).add("uld", BETTER).analyse())["uld"]
    assert got.difference == pytest.approx((BETTER - EASY).mean())
    assert (got.p, got.p_corrected, got.interval, got.error, got.mark) == (None, None, None, None, "")


@pytest.mark.parametrize("items", [9, 10])
def test_a_test_needs_ten_items(items: int) -> None:
    """A row that is right on all of four items in all seeds has no spread over items, and no mark either."""
    frames, rng = Frames(), np.random.default_rng(1)
    for seed in range(3):
        for method, effect in (("control", 0), ("uld", 30), ("cdm", 0.1)):
            frames.add(method, EASY[:items] + effect + rng.normal(0, 1), seed=seed)
    table = frames.table()
    assert [cell.mark for cell in cells(table).values()] == (["", "†", ""] if items == 10 else [""] * 3)
    assert ("No mark where fewer than 10 items were scored (dolly ROUGE-L)." in explained(table)) == (items == 9)
    assert (f"dolly ROUGE-L: {items} test items, so that no row can be told" in explained(table)) == (items == 9)
    assert bool(frames.analyse().noise) == (items == 10)


def three_seeds(**effects: float) -> Frames:
    """Rows that differ from the baseline by these amounts, in both metrics, with noise of 1 between trainings."""
    frames, rng = Frames(), np.random.default_rng(3)
    for seed in range(3):
        block = rng.normal(0, 10)
        for method, effect in {"control": 0.0, **effects}.items():
            items = EASY + effect + block + rng.normal(0, 1) + rng.normal(0, 1, 60)
            frames.add(method, items, seed=seed).add(method, items / 50, "bits_per_byte", seed=seed)
    return frames


def test_the_correction_is_over_rows_and_named_columns_together() -> None:
    frames = three_seeds(up=20, same=0.1, down=-20)
    both, one = frames.analyse(), analyse(*frames.frames, "control", ["dolly.rouge_l"])
    p = {
        (metric, row): made.p
        for metric in ("rouge_l", "bits_per_byte")
        for row, made in comparisons(both, metric).items()
    }
    expected = dict(zip(p, holm(list(p.values())), strict=True))
    assert len(p) == 6
    for (metric, row), corrected in expected.items():
        assert comparisons(both, metric)[row].p_corrected == pytest.approx(corrected)
    alone = holm([p["rouge_l", row] for row in ("up", "same", "down")])
    assert [made.p_corrected for made in comparisons(one).values()] == pytest.approx(alone.tolist())
    others = comparisons(one, "bits_per_byte").values()
    assert [(made.p_corrected, made.mark) for made in others] == [(None, "")] * 3
    assert [made.p for made in others] == [p["bits_per_byte", row] for row in ("up", "same", "down")]


def test_a_name_that_is_no_column_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no column 'dolly\.rouge' to test; there are dolly\.rouge_l"):
        analyse(*Frames().add("control", EASY).add("uld", EASY).frames, "control", ["dolly.rouge"])


def test_all_rows_are_compared_with_all_and_agree_with_the_baselines_marks() -> None:
    analysis = three_seeds(up=20, same=0.1, down=-20).analyse()
    pairs = analysis.pairs["small", "dolly", "rouge_l"]
    assert len(pairs) == 6
    by_name = {frozenset((a.method, b.method)): made for (a, b), made in pairs.items()}
    against = comparisons(analysis)
    for row, made in against.items():
        assert by_name[frozenset((row, "control"))] == made
    others = [made.p for (a, b), made in pairs.items() if "control" not in (a.method, b.method)]
    others += [
        made.p
        for (a, b), made in analysis.pairs["small", "gsm8k", "bits_per_byte"].items()
        if "control" not in (a.method, b.method)
    ]
    known = [made.p_corrected for (a, b), made in pairs.items() if "control" not in (a.method, b.method)]
    assert known == pytest.approx(holm(others)[:3].tolist())


def test_a_pair_is_the_same_from_both_sides() -> None:
    analysis = three_seeds(up=20).analyse()
    column = ("small", "dolly", "rouge_l")
    ((up, control),) = analysis.pairs[column]
    there, back = analysis.between(column, up, control), analysis.between(column, control, up)
    assert there.interval is not None
    assert back.interval == (-there.interval[1], -there.interval[0])
    assert (back.difference, back.p, back.better) == (-there.difference, there.p, False)
    assert (there.mark, back.mark) == ("†", "‡")


def test_a_control_with_more_seeds_is_compared_on_all_of_them() -> None:
    frames = three_seeds(up=3, down=-3)
    fewer = comparisons(frames.analyse())["up"]
    for seed in (3, 4, 5):
        frames.add("control", EASY + seed, seed=seed)
    more = comparisons(frames.analyse())["up"]
    assert more.seeds == fewer.seeds == (0, 1, 2)
    assert more.difference != fewer.difference
    assert more.error is not None
    assert fewer.error is not None
    assert more.error < fewer.error


def test_what_a_column_varies_by() -> None:
    frames = Frames()
    y = {"control": [1.0, 2.0, 3.0], "uld": [1.5, 2.0, 3.5], "cdm": [0.0, 2.0, 1.0]}
    for method, scores in y.items():
        for seed, value in enumerate(scores):
            frames.add(method, EASY + value, seed=seed)
    noise = frames.analyse().noise["small", "dolly", "rouge_l"]
    values = np.array(list(y.values()))
    residuals = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    assert (noise.rows, noise.seeds, noise.df, noise.n_items) == (3, 3, 4, 60)
    assert noise.training == pytest.approx(np.sqrt((residuals**2).sum() / 4))
    assert noise.items == pytest.approx(0, abs=1e-6)


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
    marks = {key: cell.mark for key, cell in cells(three_seeds(up=20, same=0.1, down=-20).table()).items() if cell.mark}
    assert marks == {
        ("up", "dolly.rouge_l"): "†",
        ("down", "dolly.rouge_l"): "‡",
        ("up", "gsm8k.bits_per_byte"): "‡",
        ("down", "gsm8k.bits_per_byte"): "†",
    }


def test_bold_is_what_can_not_be_told_from_the_best() -> None:
    table = three_seeds(top=20, close=19.9, down=-20).table()
    bold = {key for key, cell in cells(table).items() if cell.best}
    assert bold == {("top", "dolly.rouge_l"), ("close", "dolly.rouge_l"), ("down", "gsm8k.bits_per_byte")}
    assert "Bold: the best of its column within a student, and what can't be told from it" in explained(table)


def test_bold_is_sought_over_all_kinds_of_one_student_and_only_methods_compete() -> None:
    frames, rng = Frames(), np.random.default_rng(4)
    for seed in range(3):
        for method, effect, other in (
            ("control", 0, {}),
            ("fkd", 20, {"teacher_kind": "same-tokenizer", "teacher": "near"}),
            ("uld", 5, {"teacher_kind": "cross-tokenizer", "teacher": "far"}),
            ("sft", 40, {"teacher_kind": "same-tokenizer", "teacher": "near", "role": "teacher"}),
            ("warm start", 30, {"role": "reference"}),
            ("control", 9, {"student": "second"}),
            ("fkd", 0, {"student": "second", "teacher_kind": "same-tokenizer", "teacher": "near"}),
        ):
            frames.add(method, EASY + effect + rng.normal(0, 0.2) + rng.normal(0, 1, 60), seed=seed, **other)
    table = frames.table()
    best = [(group.student, row.label) for group in table.groups for row in group.rows if row.cells[0].best]
    assert best == [("small", "fkd"), ("second", "control")]


def test_where_no_row_can_be_told_from_the_best_none_is_bold() -> None:
    for frames in (three_seeds(a=0.1, b=-0.1), Frames().add("control", EASY).add("uld", BETTER)):
        table = frames.table()
        assert not any(cell.best for cell in cells(table).values())
        assert "Nothing is bold: in no column can a row be told from the best." in explained(table)


def test_a_row_that_training_throws_about_has_no_mark() -> None:
    """Over the items of these students both are far above the control."""
    frames = Frames()
    rng = np.random.default_rng(1)
    for seed, (steady, shaky) in enumerate([(6.0, 1.0), (6.2, 16.0), (5.9, 2.0)]):
        for method, effect in {"control": 0.0, "alike": 0.1, "same": -0.1, "steady": steady, "shaky": shaky}.items():
            frames.add(method, EASY + effect + rng.normal(0, 1, 60), seed=seed)
    table = frames.table()
    got = {label: cell for (label, _), cell in cells(table).items()}
    assert {label: cell.mark for label, cell in got.items() if cell.mark} == {}
    for row in ("steady", "shaky"):
        made = got[row].comparison
        assert made is not None
        assert made.items is not None
        assert made.items.p_corrected < 0.01
    steady_alone = Frames()
    steady_alone.rows = [row for row in frames.rows if row["method"] != "shaky"]
    steady_alone.items = [item for item in frames.items if not item[0].startswith("shaky")]
    assert {label: cell.mark for (label, _), cell in cells(steady_alone.table()).items() if cell.mark} == {
        "steady": "†"
    }


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
    said = explained(three_seeds(up=20, down=-20).table())
    assert (
        "† better, ‡ worse than control: a test of methods, 5 % level after Holm's correction over the rows and 2"
        in said
    )
    assert "columns together (dolly ROUGE-L, gsm8k bits/byte)" in said
    assert "## Appendix: tests against control: would training again show it?" in said
    assert "## Appendix: all with all: dolly ROUGE-L" in said
    assert "## Appendix: other items, these students" in said
    (line,) = [
        line for line in said.splitlines() if line.startswith("| dolly ROUGE-L | up |") and "bootstrap" not in line
    ]
    assert line.endswith("| 3 | 60 |")
    (matrix,) = [line for line in said.splitlines() if line.startswith("| up | +")][:1]
    assert matrix.count("†") == 2  # than control and than down


def test_one_seed_is_said_and_only_its_items_are_tested() -> None:
    frames = Frames().add("control", EASY).add("uld", BETTER)
    frames.add("control", [0.0, 100.0] * 9, "humaneval").add("uld", [0.0, 100.0] * 9, "humaneval")
    said = explained(frames.table())
    assert "No mark where a row has one training seed (dolly ROUGE-L, codem HumanEval)" in said
    assert "†" not in said
    assert "tests against" not in said
    assert "all with all" not in said
    rows = [line for line in said.splitlines() if line.startswith(("| dolly ROUGE-L |", "| codem HumanEval |"))]
    assert [row.split(" | ")[1] for row in rows] == ["uld", "uld"]
    assert "| +0.00 | McNemar | – | 0 | 0 | 1.0000 | 1.0000 | 18 | 1 |" in rows[1]


def test_columns_that_are_not_named_are_said() -> None:
    frames = three_seeds(up=20)
    table = build_table(frames.frames[0], analyse(*frames.frames, "control", ["dolly.rouge_l"]))
    assert "Not named for the test, and without marks: gsm8k bits/byte." in explained(table)
    assert "correction over the rows (dolly ROUGE-L)" in explained(table)


def test_a_column_that_is_named_is_printed() -> None:
    frames = Frames()
    for method, scores in (("control", [0.0, 100.0] * 9), ("uld", [100.0] * 18)):
        frames.add(method, scores, "exact_match_flexible")
    table = build_table(frames.frames[0], analyse(*frames.frames, "control", ["gsm8k.exact_match_flexible"]))
    assert [column.key for column in table.columns] == ["gsm8k.exact_match_flexible"]


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
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_terminal_prints_marks_and_intervals(width: int, seeds: int) -> None:
    frames = three_seeds(up=20, down=-20)
    if seeds == 1:
        frames.rows = [row for row in frames.rows if row["seed"] == 0]
        frames.items = [item for item in frames.items if item[0].endswith(" 0")]
    table = frames.table()
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal(table, context(), width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for cell in cells(table).values():
        assert f"{cell.number}{cell.mark}" in text
        assert cell.spread.strip("()±").strip() in text
    assert ("better, ‡ worse than control" in text) == (seeds == 3)


def test_the_csv_has_the_whole_comparison() -> None:
    table = three_seeds(up=20, down=-20).table()
    control, up, _ = csv.DictReader(io.StringIO(csv_wide(table)))
    got = cells(table)["up", "dolly.rouge_l"]
    made = got.comparison
    assert made is not None
    assert made.items is not None
    assert got.interval is not None
    parts = {"low": got.interval[0], "high": got.interval[1], "difference": made.difference, "error": made.error}
    parts |= {"df": made.df, "p": made.p, "p_corrected": made.p_corrected}
    parts |= {"p_pooled": made.p_pooled, "p_welch": made.p_welch}
    parts |= {"items_p": made.items.p, "items_p_corrected": made.items.p_corrected}
    assert {part: up[f"dolly.rouge_l.{part}"] for part in parts} == {part: repr(v) for part, v in parts.items()}
    assert up["dolly.rouge_l.mark"] == "†"
    assert [control[f"dolly.rouge_l.{part}"] for part in ("mark", "difference", "p", "items_p")] == [""] * 4


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
    """From frames with items to marks: at most 5 % of columns, within the error of 150 of them."""
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
