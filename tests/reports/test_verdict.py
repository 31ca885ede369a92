"""reports.verdict: what the first lines of a report say, word by word, and that tables and marks say the same."""

from __future__ import annotations

from typing import Any

import pytest

from reports import Table, analyse, build_table, markdown, verdict, write
from reports.verdict import amount, listed, p_text
from tests.reports.test_analysis import BETTER, EASY, Frames, cells, three_seeds
from tests.reports.test_reports import context


def said(table: Table, column: str) -> str:
    (line,) = [line for line in verdict(table) if line.startswith(column)]
    return line


def test_who_is_better_by_how_much_and_how_surely() -> None:
    table = three_seeds(up=20, same=0.1, down=-20).table()
    line = said(table, "dolly ROUGE-L: ")
    up, down = (cells(table)[row, "dolly.rouge_l"].comparison for row in ("up", "down"))
    assert up is not None
    assert up.interval is not None
    assert up.p_corrected is not None
    assert down is not None
    low, high = up.interval
    assert (
        f"Better than control: up by {up.difference:.2f} points (95 % interval {low:.2f} to {high:.2f}, "
        f"p {p_text(up.p_corrected)} after correction)."
    ) in line
    assert f"Worse than control: down by {-down.difference:.2f} points (95 % interval " in line
    assert "Not told apart from control: same (differences under " in line
    assert line.endswith("Best: up, told from every other row.")


def test_lower_bits_are_better_and_have_no_points() -> None:
    line = said(three_seeds(up=20, down=-20).table(), "gsm8k bits/byte: ")
    assert "Better than control: down by 0.3" in line
    assert "points" not in line


def test_what_can_not_be_told_apart_is_said() -> None:
    line = said(three_seeds(a=0.3, b=-0.1).table(), "dolly ROUGE-L: ")
    assert line.startswith("dolly ROUGE-L: Not told apart from control: a and b (differences under ")
    assert line.endswith("No row can be told from the best.")
    close = said(three_seeds(top=20, close=19.9).table(), "dolly ROUGE-L: ")
    assert close.endswith("can't be told from it.")


def test_one_seed_settles_nothing() -> None:
    line = said(Frames().add("control", EASY).add("uld", BETTER).table(), "dolly")
    assert line.startswith("dolly ROUGE-L: one training seed, so that no row can be told from another")


def test_columns_that_say_the_same_share_a_line() -> None:
    frames = Frames()
    for metric in ("rouge_l", "bits_per_byte"):
        frames.add("control", EASY, metric).add("uld", BETTER, metric)
    (line,) = verdict(frames.table())
    assert line.startswith("dolly ROUGE-L, gsm8k bits/byte: one training seed")


def test_seeds_that_agree_settle_nothing() -> None:
    frames = Frames()
    for seed in (0, 1):
        frames.add("control", EASY, seed=seed).add("uld", EASY + 1, seed=seed)
    assert "the same in every seed" in said(frames.table(), "dolly")


def test_without_a_baseline_the_best_is_still_said() -> None:
    lines = verdict(three_seeds(up=20, down=-20).table(""))
    assert lines[0] == "dolly ROUGE-L: Best: up, told from every other row."


def test_only_named_columns_are_judged_and_students_are_told_apart() -> None:
    frames = three_seeds(up=20)
    assert len(verdict(build_table(frames.frames[0], analyse(*frames.frames, "control", ["dolly.rouge_l"])))) == 1
    for seed in range(3):
        for method in ("control", "up"):
            frames.add(method, EASY + seed + len(method) * seed, seed=seed, student="other")
    lines = verdict(frames.table())
    assert [line.partition(":")[0] for line in lines] == [
        "small, dolly ROUGE-L",
        "small, gsm8k bits/byte",
        "other, dolly ROUGE-L",
    ]


def test_markdown_begins_with_it_and_shows_the_figures(tmp_path: Any) -> None:
    frames = three_seeds(up=20, down=-20)
    write(frames.frames[0], context(), tmp_path, frames.analyse(), frames.frames[1])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    begin = text[: text.index("## small")]
    assert "## Verdict" in begin
    for path in ("figures/differences-dolly-rouge-l.svg", "figures/differences-gsm8k-bits-byte.svg"):
        assert f"]({path})" in begin
        assert (tmp_path / path).read_text(encoding="utf-8").startswith("<svg")


def test_without_items_there_is_no_verdict() -> None:
    table = build_table(Frames().add("control", EASY).frames[0])
    assert verdict(table) == []
    assert "Verdict" not in markdown(table, context())


@pytest.mark.parametrize(
    ("names", "words"),
    [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c"), (list("abcdefghijklmn"), "l and 2 more")],
)
def test_lists_read_as_sentences(names: list[str], words: str) -> None:
    assert listed(names).endswith(words)


def test_amounts_have_no_sign() -> None:
    table = three_seeds(up=20).table()
    percent, bits = table.columns
    assert (amount(-1.234, percent), amount(-0.0123, bits)) == ("1.23 points", "0.012")
    assert (amount(-0.00041, bits), amount(0.0, bits)) == ("0.0004", "0.000")  # some difference does not read as none
