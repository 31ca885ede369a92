"""reports.gap: what a row closed of the gap to its teacher, against simulation and a search; and what is said of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from reports import markdown, verdict
from reports.analysis import Comparison
from reports.drawn import GAPS, draw
from reports.exhibits import NO_EVIDENCE
from reports.frame import RowKey
from reports.gap import Certainty, Gap, gap
from reports.item_tests import ScoresByItem
from reports.learnt import learnt_tables
from reports.method_tests import contrasts, item_variance
from reports.training_costs import empty_costs
from tests.reports.test_analysis import EASY, Frames
from tests.reports.test_reports import context

CROSS = {"teacher_kind": "cross-tokenizer", "teacher": "big"}
ROWS = [
    ("control", "student", "none", ""),
    *((name, "student", "cross-tokenizer", "big") for name in ("a", "b", "c")),
    ("teacher", "teacher", "cross-tokenizer", "big"),
]
ENDED = {"uld": "98", "teacher big": "50", "warm start": "7"}


def study(effects: dict[str, float], lead: float, seeds: int = 3, metric: str = "rouge_l", **of: Any) -> Frames:
    """A control, rows that differ from it, and a teacher that leads it; noise of 1 between trainings and items."""
    rng = np.random.default_rng(of.get("seed", 0))
    frames = Frames().add("teacher", EASY + lead + rng.normal(0, 1, 60), metric, role="teacher", **CROSS)
    for seed in range(seeds):
        block = rng.normal(0, 0.3)
        frames.add("warm start", EASY - 2 + block, metric, seed=seed, role="reference", teacher_kind="none", teacher="")
        for name, effect in {"control": 0.0, **effects}.items():
            own = {"teacher_kind": "none", "teacher": ""} if name == "control" else CROSS
            items = EASY + effect + block + rng.normal(0, of.get("noise", 1.0)) + rng.normal(0, 1, 60)
            frames.add(name, items, metric, seed=seed, **own)
    return frames


def gaps(frames: Frames) -> dict[str, Gap]:
    return {row.method: found for (row, *_), found in frames.analyse().gaps.items()}


def test_a_share_is_the_ratio_of_both_differences() -> None:
    frames = study({"uld": 5, "gold": -2}, lead=10)
    table = frames.table()
    means: dict[str, Any] = {row.method: row.cells[0].mean for group in table.groups for row in group.rows}
    for name, found in gaps(frames).items():
        assert found.lead == pytest.approx(means["teacher"] - means["control"])
        assert found.share == pytest.approx((means[name] - means["control"]) / found.lead)
        assert found.teacher == "big"


def test_the_interval_ends_where_the_test_begins_to_refuse() -> None:
    """Each end by a search of its own for the share at which the contrast is t standard errors from 0."""
    frames = study({"uld": 5, "gold": 2}, lead=10)
    analysis = frames.analyse()
    ((key, made),) = [(key, made) for key, made in analysis.gaps.items() if key[0].method == "uld"]
    comparison: Comparison = analysis.comparisons[key]
    _, items = frames.frames
    scores = {
        name: np.stack(
            [part["value"] for cell, part in items.groupby("cell", sort=False) if cell.startswith(f"{name} ")]
        )
        for name in ("uld", "control", "teacher")
    }
    assert comparison.training is not None
    assert comparison.df is not None
    assert made.interval is not None
    v, t = comparison.training, stats.t.ppf(0.975, comparison.df)

    def beyond(share: float) -> float:
        contrast = scores["uld"].mean(0) - (1 - share) * scores["control"].mean(0) - share * scores["teacher"].mean(0)
        error = math.sqrt(v / 2 * (1 + (1 - share) ** 2) + contrast.var(ddof=1) / len(contrast))
        return float(abs(contrast.mean()) / error - t)

    assert made.share is not None
    low, high = optimize.brentq(beyond, -5, made.share), optimize.brentq(beyond, made.share, 5)
    assert made.interval == pytest.approx((low, high), rel=1e-6)


def test_the_interval_holds_the_true_share_as_often_as_it_says() -> None:
    """150 studies of four rows, three seeds and 60 items, whose teacher leads by 6; the first row closes half of it."""
    rng, held = np.random.default_rng(1), []
    rows = [RowKey("s", kind, role, name, teacher, "") for name, role, kind, teacher in ROWS]
    effects = np.array([0, 3, 3, 3])
    for _ in range(150):
        blocks, trainings = rng.normal(0, 0.3, 3), rng.normal(0, 1, (4, 3))
        items = EASY[:, None, None] + effects[:, None] + trainings + blocks + rng.normal(0, 3, (60, 4, 3))
        frames = {row: pd.DataFrame(items[:, place]) for place, row in enumerate(rows[:4])}
        frames[rows[4]] = pd.DataFrame({0: EASY + 6 + rng.normal(0, 3, 60)})
        column = ScoresByItem("dolly", "rouge_l", True, True, frames, pd.Series(1.0, index=range(60)))
        over_items = item_variance(items[:, 1] - items[:, 0], np.ones(60))
        made = contrasts(items.mean(0), [(1, 0)], [over_items], 59)
        found = gap(column, rows[1], rows[0], Certainty(float(made.seed_variance[0]), float(made.df[0])))
        assert found is not None
        if found.interval is not None:
            held.append(found.interval[0] <= 0.5 <= found.interval[1])
    assert len(held) > 140
    assert 0.9 <= np.mean(held) <= 0.995  # Monte-Carlo error 0.018


@pytest.mark.parametrize("lead", [-5, 0.1])
def test_a_teacher_that_does_not_lead_teaches_nothing(lead: float) -> None:
    frames = study({"uld": 5, "gold": 1}, lead=lead)
    for found in gaps(frames).values():
        assert (found.leads, found.share, found.interval) == (False, None, None)
    first, *_ = verdict(frames.table())
    assert first.startswith("dolly ROUGE-L: no teacher is told from control as the better one (ahead: big by ")
    assert first.endswith("so that this pair of models can't rank methods there.")


def test_where_lower_is_better_a_lead_is_still_positive() -> None:
    frames = study({"uld": -5, "gold": -1}, lead=-10, metric="bits_per_byte")
    assert all(found.leads and found.lead > 8 for found in gaps(frames).values())
    assert gaps(frames)["uld"].share == pytest.approx(0.5, abs=0.2)


def test_one_seed_has_a_share_without_an_interval() -> None:
    found = gaps(study({"uld": 5, "gold": 1}, lead=10, seeds=1))["uld"]
    assert found.leads
    assert found.share is not None
    assert found.interval is None


def test_two_teachers_give_the_better_one() -> None:
    frames = study({"uld": 5}, lead=10)
    same = {"teacher_kind": "same-tokenizer", "teacher": "small one"}
    frames.add("teacher", EASY + 4, role="teacher", fidelity="described", **same)
    for seed in range(3):
        both = {"teacher_kind": "both", "teacher": "small one + big"}
        frames.add("dual", EASY + 5 + seed, seed=seed, **both).add("fkd", EASY + 2 - seed, seed=seed, **same)
    found = gaps(frames)
    assert (found["dual"].teacher, found["fkd"].teacher, found["uld"].teacher) == ("big", "small one", "big")


def test_without_a_teachers_row_there_is_no_gap() -> None:
    frames = Frames()
    for seed in (0, 1):
        frames.add("control", EASY, seed=seed).add("uld", EASY + 1 + seed, seed=seed)
    assert frames.analyse().gaps == {}


def test_the_verdict_says_what_was_learnt_and_from_whom() -> None:
    lines = verdict(study({"uld": 5, "gold": 0, "away": -6}, lead=10, noise=0.1).table())
    learnt = lines[0][lines[0].index("Learnt: ") : lines[0].index("Best: ")]
    share = gaps(study({"uld": 5, "gold": 0, "away": -6}, lead=10, noise=0.1))["uld"].share
    assert share is not None
    assert learnt.startswith(f"Learnt: uld {100 * share:.0f} % (")
    assert "of the way to big. Moved away from the teacher: away -" in learnt
    assert "gold" not in learnt


def test_the_table_has_gap_start_and_what_else_is_known() -> None:
    frames = study({"uld": 5, "gold": -6}, lead=10, noise=0.1)
    more = pd.DataFrame(
        [(row, "dolly", "ended, %", value) for row, value in ENDED.items()],
        columns=["row", "task", "measure", "value"],
    )
    ((heading, explained, frame),) = learnt_tables(frames.table(), more)
    rows = frame.set_index("row")
    assert heading == "What was learnt: dolly"
    assert "(row - control) / (teacher - control)" in explained
    assert rows.loc["uld", "ROUGE-L: gap closed"].startswith("5")
    assert float(rows.loc["control", "ROUGE-L: since start"]) == pytest.approx(2, abs=0.3)
    ended = {name: value for name, value in rows["ended, %"].items() if value}
    assert ended == {"uld": "98", "teacher": "50", "warm start (reference)": "7"}
    assert "## What was learnt: dolly" in markdown(frames.table(), context(learnt=more))


def test_a_figure_shows_shares_where_they_have_intervals() -> None:
    frames = study({"uld": 5, "gold": -6}, lead=10, noise=0.1)
    (part,) = [part for part in draw(frames.table(), NO_EVIDENCE, empty_costs()) if part.heading == GAPS]
    ((caption, svg),) = part.figures
    assert caption == "dolly ROUGE-L"
    assert "% of the gap to the own teacher closed" in svg
    assert not [
        one for one in draw(study({"uld": 5}, 10, 1).table(), NO_EVIDENCE, empty_costs()) if one.heading == GAPS
    ]
