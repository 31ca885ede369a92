"""The tables of what methods learnt where the truth is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from reports.known_truth import Broken, Claim, Learnt, Litmus

LEARNT = (
    Learnt("control", "", "many passes", None, 0.9),
    Learnt("fkd", "KD alone", "many passes", 1.0, 0.0625, 0.125),
    Learnt("fkd", "KD alone", "many passes", 2.0, 0.0725, 0.135),
    Learnt("fkd", "with CE", "many passes", 1.0, 0.2, 0.4),
    Learnt("fkd", "KD alone", "fresh text", 1.0, 0.3, 0.5),
    Learnt("mine", "KD alone", "many passes", None, 0.4, 0.6),
)
CLAIMS = (Claim("fkd", "reaches", "93%", True), Claim("uld", "improves", "-20%", False, "it can't"))
BROKEN = (Broken("fkd", "sign", math.inf, True), Broken("fkd", "scale", 0.06, False, "values"))
FOUND = Litmus(0.6, 0.61, 0.55, {"same": 0.01}, {"same": 1.5}, LEARNT, CLAIMS, BROKEN)


def test_a_line_a_row_and_a_column_a_setting() -> None:
    title, cells = FOUND.tables()[0]
    assert "truth" in title
    assert cells == [
        ["row", "many passes, KD alone, τ 1", "many passes, KD alone, τ 2", "many passes, with CE, τ 1",
         "fresh text, KD alone, τ 1"],
        ["control", "–", "–", "0.900", "–"],
        ["fkd", "0.062", "0.072", "0.200", "0.300"],
        ["mine", "0.400", "–", "–", "–"],
    ]  # fmt: skip


def test_rows_without_a_teacher_have_no_distance_to_one() -> None:
    rows = [line[0] for line in FOUND.tables()[1][1]]
    assert rows == ["row", "fkd", "mine"]


def test_outcomes_are_in_words() -> None:
    claims, broken = (cells for _, cells in FOUND.tables()[2:])
    assert [line[3] for line in claims[1:]] == ["kept", "fails, as known"]
    assert [line[2:] for line in broken[1:]] == [["–", "caught", ""], ["0.060", "not here", "values"]]


@pytest.mark.parametrize(
    "changed",
    [
        {"claims": [replace(CLAIMS[0], kept=False)]},
        {"claims": [replace(CLAIMS[1], kept=True)]},  # a failure that is expected must be there
        {"broken": [replace(BROKEN[0], caught=False)]},
    ],
)
def test_what_is_not_as_it_must_be_is_told(changed: dict[str, object]) -> None:
    assert FOUND.as_expected
    other = replace(FOUND, **changed)  # type: ignore[arg-type]
    assert not other.as_expected
    outcomes = [cell for _, cells in other.tables() for line in cells[1:] for cell in line]
    assert {"FAILS", "KEPT", "NOT CAUGHT"} & set(outcomes)


def test_markdown_holds_every_cell() -> None:
    text = FOUND.to_markdown()
    for line in FOUND.lines():
        assert line in text
    for title, cells in FOUND.tables():
        assert f"**{title}**" in text
        for line in cells:
            assert f"| {' | '.join(line)} |" in text
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
