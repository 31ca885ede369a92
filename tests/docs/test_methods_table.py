"""The table of all methods in docs/methods.md has every method, and the numbers of the files that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from methods.base import registered

ROOT = Path(__file__).parents[2]
NONE = "–"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def the_table() -> dict[str, dict[str, str]]:
    """Its rows by method, cells by column."""
    section = (ROOT / "docs/methods.md").read_text(encoding="utf-8").split("## All in one table")[1]
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| ")]
    names, *rows = (cells(line) for line in lines)
    return {row[0].strip("`"): dict(zip(names, row, strict=True)) for row in rows}


TABLE = the_table()


def test_every_method_has_a_row() -> None:
    assert set(TABLE) == set(registered())
    assert all(row["compares"] for row in TABLE.values())


def test_steps_are_those_that_were_measured() -> None:
    found = json.loads((ROOT / "benchmarks/results/every-method-cpu.json").read_text(encoding="utf-8"))["methods"]
    seconds = {row["name"]: row["seconds"] for row in found}
    expected = {name: f"{taken / seconds['control']:.1f}" for name, taken in seconds.items()}
    assert {name: row["step"] for name, row in TABLE.items()} == {name: expected.get(name, NONE) for name in TABLE}


def test_outcomes_are_those_of_the_litmus() -> None:
    section = (ROOT / "reports/results/litmus.md").read_text(encoding="utf-8").split("**Claims")[1].split("\n**")[0]
    expected = {}
    for line in section.splitlines():
        if line.startswith("| ") and "%" in line:
            name, _, found, outcome, *_ = cells(line)
            expected[name] = found if outcome == "kept" else f"{found}, fails"
    assert len(expected) > 15
    assert {name: row["litmus"] for name, row in TABLE.items()} == {name: expected.get(name, NONE) for name in TABLE}


@pytest.mark.parametrize(
    ("column", "study"),
    [("gap, many passes", "known_truth_tuned"), ("gap, fresh text", "known_truth_tuned_fresh")],
    ids=["many passes", "fresh text"],
)
def test_gaps_are_those_of_the_studies(column: str, study: str) -> None:
    report = (ROOT / f"reports/results/{study}/report.md").read_text(encoding="utf-8")
    lines = report.split("## What was learnt")[1].split("\n## ")[0].splitlines()
    names, *rows = (cells(line) for line in lines if line.startswith("| "))
    place = names.index("bits/byte: gap closed")
    expected = {row[0]: row[place].split(" (")[0] for row in rows if row[place]}
    assert len(expected) > 15
    assert {name: row[column] for name, row in TABLE.items()} == {name: expected.get(name, NONE) for name in TABLE}


def test_claims_are_those_of_the_papers() -> None:
    """In their words, or by the numbers of the CDM paper's table."""
    claims = yaml.safe_load((ROOT / "reports/paper/rivals.yaml").read_text(encoding="utf-8"))["claims"]
    tables = yaml.safe_load((ROOT / "reports/paper/cdm.yaml").read_text(encoding="utf-8"))["pairs"]["phi_qwen"][
        "tables"
    ]
    dolly = {name: row[0] for name, row in tables[0]["rows"].items()}
    for name, row in TABLE.items():
        if name in claims:
            assert row["claim"] == claims[name]["says"], name
        elif name in dolly:
            said = [float(number) for number in re.findall(r"\d+\.\d+", row["claim"])]
            assert said == ([dolly[name]] if name == "sft" else [dolly[name], dolly["sft"]]), name
        else:
            assert row["claim"] == NONE, name
