"""Two runs side by side: every difference, every number of either, and what keeps them from being comparable."""

from __future__ import annotations

import copy
import hashlib
import io
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

from harness.results.record import read_record
from reports import RunComparison, Score, compare, comparison_terminal
from reports.two_runs import Difference, differences
from tests.conftest import Command, Done

# --- Hand-made frames -------------------------------------------------------------------------------------------------


def score(method: str, value: float = math.nan, *, seed: int = 0, metric: str = "rouge_l", **other: Any) -> Any:
    unit = "bits/byte" if metric == "bits_per_byte" else "%"
    row = {
        "student": "small", "teacher": "", "teacher_kind": "none", "method": method, "fidelity": "", "role": "student",
        "task": "dolly", "metric": metric, "seed": seed, "value": value, "n_items": 10, "headline": True, "unit": unit,
        "higher_is_better": unit == "%", "status": "failed" if "reason" in other else "done", "reason": "", **other,
    }  # fmt: skip
    return {field.name: row[field.name] for field in fields(Score)}


def beside(first: list[Any], second: list[Any], *settings: dict[str, Any]) -> RunComparison:
    one, other = settings or ({}, {})
    return compare(("one", "other"), (one, other), (pd.DataFrame(first), pd.DataFrame(second)))


def text_of(comparison: RunComparison, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison_terminal(comparison))
    return console.export_text()


def test_differences_name_the_field_and_both_values() -> None:
    first = {"train": {"steps": 2, "lora": None, "same": [1, 2]}, "seeds": [0, 1], "only": {"one": True}, "empty": {}}
    second = {"train": {"steps": 3, "lora": {"rank": 4}, "same": [1, 2]}, "seeds": [0], "empty": {}, "new": "x"}
    assert differences(first, second) == [
        Difference("train.steps", ("2", "3")),
        Difference("train.lora", ("null", "–")),
        Difference("seeds", ("[0, 1]", "[0]")),
        Difference("only.one", ("True", "–")),
        Difference("train.lora.rank", ("–", "4")),
        Difference("new", ("–", "x")),
    ]
    assert differences(first, copy.deepcopy(first)) == []


def test_numbers_are_means_over_seeds_and_the_difference_is_the_second_minus_the_first() -> None:
    first = [score("uld", 10.0), score("uld", 20.0, seed=1), score("uld", 0.8, metric="bits_per_byte")]
    second = [score("uld", 18.0), score("uld", 20.0, seed=1), score("uld", 0.7, metric="bits_per_byte")]
    rouge, bits = beside(first, second).pairs
    assert [side.mean for side in rouge.sides] == [15.0, 19.0]
    assert rouge.difference == 4.0
    assert rouge.notes == bits.notes == []
    assert bits.difference == pytest.approx(-0.1)
    text = text_of(beside(first, second))
    assert "15.00" in text
    assert "+4.00" in text
    assert "-0.100" in text


def test_what_one_run_lacks_is_named() -> None:
    comparison = beside(
        [score("sft", 1.0), score("uld", reason="out of memory"), score("mined", 3.0)],
        [score("sft", 2.0), score("uld", 5.0), score("cdm", 4.0)],
    )
    found = {pair.row: (pair.difference, pair.notes) for pair in comparison.pairs}
    assert found == {
        "sft": (1.0, []),
        "uld": (None, ["A: seed 0 failed: out of memory"]),
        "mined": (None, ["B: no such row"]),
        "cdm": (None, ["A: no such row"]),
    }
    text = text_of(comparison)
    assert "out of memory" in text
    lines = text.splitlines()
    for name, row in (("A", "mined 3.00"), ("B", "cdm 4.00")):
        assert lines[lines.index(f"Only in {name}") + 1] == f"dolly ROUGE-L, % ↑: {row}"


def test_a_mean_that_is_no_number_is_missing() -> None:
    (pair,) = beside([score("sft", math.nan)], [score("sft", 2.0)]).pairs
    assert (pair.sides[0].mean, pair.difference, pair.notes) == (None, None, ["A: seed 0 is nan"])


def test_other_seeds_and_other_items_are_said() -> None:
    first = [score("sft", 1.0), score("sft", 3.0, seed=1)]
    second = [score("sft", 2.0, n_items=500), score("sft", seed=2, reason="boom")]
    (pair,) = beside(first, second).pairs
    assert pair.difference == 0.0
    assert pair.notes == ["B: seed 2 failed: boom", "seeds 0, 1 against 0", "items 10 against 500"]
    (turned,) = beside(second, [score("sft", 5.0)]).pairs
    assert turned.difference == 3.0


def test_rows_are_the_same_where_method_fidelity_role_and_kind_of_teacher_are() -> None:
    """Not where the models' names are: another teacher is one of the settings that differ."""
    cross = {"teacher_kind": "cross-tokenizer"}
    rows = [
        score("uld", 1.0, fidelity="described", teacher="x", **cross),
        score("uld", 2.0, fidelity="released", teacher="x", **cross),
        score("teacher", 9.0, role="teacher", teacher="x", **cross),
        score("teacher", 8.0, role="teacher", teacher="z", teacher_kind="same-tokenizer"),
        score("untrained", 0.5, role="reference"),
    ]
    renamed = [row | {"teacher": "y", "student": "other", "value": row["value"] + 1} for row in rows]
    pairs = beside(rows, renamed[::-1]).pairs
    assert [(pair.row, pair.difference) for pair in pairs] == [
        ("uld", 1.0),
        ("uld (released)", 1.0),
        ("cross-tokenizer teacher", 1.0),
        ("same-tokenizer teacher", 1.0),
        ("untrained", 1.0),
    ]


def test_the_same_run_twice_differs_in_nothing() -> None:
    rows = [score("sft", 1.0)]
    comparison = beside(rows, rows, {"a": 1}, {"a": 1})
    assert comparison.settings == ()
    assert comparison.pairs[0].difference == 0.0
    assert "Nothing differs" in text_of(comparison)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_numbers_are_never_cut_and_digests_are_short(width: int) -> None:
    settings = ({"digest": "a" * 64, "path": "/long" * 30}, {"digest": "b" * 64, "path": "/other" * 30})
    text = text_of(beside([score("a long method name " * 3, 12.345)], [score("b", 1.0)], *settings), width)
    assert "12.35" in text or "12.34" in text
    assert "a" * 12 in text
    assert "a" * 13 not in text
    assert all(len(line) <= width for line in text.splitlines())


# --- Two runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(
    tiny_recipe: dict[str, Any], harness: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str]:
    """A runs folder and the names of two runs in it: more steps, one more method, one task less, other data."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe | {"methods": ["control"], "seeds": [3]}))
    run = ["run", f"recipe={folder / 'tiny.yaml'}", "--runs", str(folder / "runs")]
    data = folder / "data" / "gsm8k"
    data.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [f'{{"question": "{split} {i}?", "answer": "So {i}.\\n#### {i}"}}' for i in range(9)]
        (data / f"{split}.jsonl").write_text("\n".join(rows))
    second = ["train.steps=3", "tasks=[gsm8k]", "methods=[control,uld]", f"data.root={data.parent}"]
    names = []
    for overrides in ([], second):
        done: Done = harness(*run, *overrides)
        assert done.code == 0, done.out + done.err
        names.append(Path(done.out.replace("\n", "").partition("Files: ")[2].partition(", ")[0]).parent.name)
    return folder / "runs", names[0], names[1]


@pytest.mark.slow
def test_two_runs_side_by_side(two: tuple[Path, str, str], harness: Command) -> None:
    runs, first, second = two
    done = harness("compare", first, second, "--runs", runs)
    assert done.code == 0, done.out + done.err
    lines = done.out.splitlines()
    assert lines[:2] == [f"A: {first}", f"B: {second}"]
    assert "\x1b" not in done.out  # no colours in a pipe
    settings, numbers = done.out.split("Numbers")
    named = {line.split()[0]: line.split() for line in settings.splitlines()[3:] if line.strip()}
    assert named["train.steps"] == ["train.steps", "2", "3"]
    assert {"tasks", "methods", "data.root", "sources.data.gsm8k.train"} <= named.keys()
    alone = " ".join(settings.split()).partition("Only in A: ")[2]
    assert "sources.data.dolly.train" in alone
    assert not {"seeds", "warm_start.steps", "environment.torch", "sources.models.student.source"} & named.keys()
    table = {row: results(runs / name) for name, row in ((first, 0), (second, 1))}
    value = {row: table[row]["gsm8k", "bits_per_byte", "control"] for row in table}
    (line,) = [line for line in numbers.split("Only in")[0].splitlines() if "gsm8k bits/byte" in line]
    assert line.split()[3:] == ["control", f"{value[0]:.3f}", f"{value[1]:.3f}", f"{value[1] - value[0]:+.3f}"]
    both, only_first = numbers.split("Only in A")
    only_first, only_second = only_first.split("Only in B")
    rouge = table[0]["dolly", "rouge_l", "control"]
    assert f"dolly ROUGE-L, % ↑: control {rouge:.2f}" in only_first
    assert "dolly" not in both + only_second
    assert only_second.count("uld") == 3  # its three metrics
    assert "uld" not in both + only_first


def results(folder: Path) -> dict[tuple[str, str, str], float]:
    frame = pd.read_csv(folder / "results.csv")
    return {(row.task, row.metric, row.method): row.value for row in frame.itertuples()}


def test_the_digests_of_a_record_are_those_of_the_files(two: tuple[Path, str, str]) -> None:
    runs, _, second = two
    record = read_record(runs / second).record
    data = Path(record["recipe"]["data"]["root"]) / "gsm8k"
    expected = {
        split: hashlib.sha256((data / f"{split}.jsonl").read_bytes()).hexdigest() for split in ("train", "test")
    }
    assert record["sources"]["data"]["gsm8k"] == {"train": expected["train"], "test": [expected["test"]]}


def test_a_run_beside_itself_by_its_path(two: tuple[Path, str, str], harness: Command) -> None:
    runs, first, _ = two
    done = harness("compare", runs / first, runs / first)
    assert done.code == 0
    assert "Nothing differs" in done.out
    assert "+0.000" in done.out


def test_a_run_that_is_not_there(two: tuple[Path, str, str], harness: Command) -> None:
    runs, first, _ = two
    done = harness("compare", first, "nowhere", "--runs", runs)
    assert done.code == 2
    assert "nowhere" in done.err


def test_settings_with_the_same_two_values_share_a_row_and_long_sections_end_with_a_count() -> None:
    first = {f"a{number}": number for number in range(40)} | {"x": 1, "y": 1} | {f"only{n}": 0 for n in range(30)}
    second = {f"a{number}": -number - 1 for number in range(40)} | {"x": 2, "y": 2}
    text = text_of(beside([score("sft", 1.0)], [score("sft", 2.0)], first, second))
    rows = [line.split() for line in text.splitlines()]
    assert ["a24", "24", "-25"] in rows
    assert "a25 " not in text
    assert "… and 16 more that differ." in text  # fifteen of a, and x with y in one row
    assert "only24 and 5 more." in " ".join(text.split())
    short = text_of(beside([score("sft", 1.0)], [score("sft", 2.0)], {"x": 1, "y": 1}, {"x": 2, "y": 2}))
    lines = [line.split() for line in short.splitlines()]
    assert lines[lines.index(["x", "1", "2"]) + 1] == ["y"]
