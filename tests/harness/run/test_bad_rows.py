"""Rows that can't be trained on or scored, from the data folder to the report: they stop it, or are counted."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Command, Done

CHANGED = "so\u2581what"  # SentencePiece reads its mark for a space as one
TRAINING = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(9)]
TESTS = [
    {"instruction": "Say so.", "output": CHANGED},
    {"instruction": "Say ten.", "output": "It is ten."},
    {"instruction": "Say sky.", "output": "天空"},
]


class Place:
    """A recipe of one method, with data of its own and runs below a folder."""

    def __init__(self, folder: Path, fields: dict[str, Any], harness: Command) -> None:
        self.folder, self.harness = folder, harness
        epochs = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
        own = {"name": "rows", "tasks": ["dolly"], "methods": ["control"], "data": {"root": str(folder)}}
        own |= {"train": epochs, "warm_start": epochs, "dolly": {"new_tokens": 4, "decoding": "greedy"}}
        fields = {name: value for name, value in fields.items() if name != "method_options"}
        (folder / "rows.yaml").write_text(yaml.safe_dump(copy.deepcopy(fields) | own))

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        (self.folder / "dolly").mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / f"dolly/{name}.jsonl").write_text(text, encoding="utf-8")

    def run(self, *fields: str) -> Done:
        return self.harness("run", f"recipe={self.folder / 'rows.yaml'}", *fields, "--runs", self.folder / "runs")

    @property
    def report(self) -> str:
        (path,) = (self.folder / "runs").glob("rows-*/report.md")
        return path.read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, tiny_recipe: dict[str, Any], harness: Command) -> Place:
    return Place(tmp_path, tiny_recipe, harness)


def cells(report: str, heading: str) -> list[dict[str, str]]:
    """The rows of the table under a heading."""
    part = report.partition(f"## Appendix: {heading}\n")[2]
    lines = [line.strip("|").split("|") for line in re.findall(r"^\|.*\|$", part.partition("\n#")[0], re.M)]
    names = [name.strip() for name in lines[0]]
    return [dict(zip(names, (value.strip() for value in line), strict=True)) for line in lines[2:]]


def test_a_row_that_a_tokenizer_changes_stops_or_is_left_out_and_counted(place: Place) -> None:
    place.write("train", [*TRAINING, {"instruction": "Say so.", "output": CHANGED}])
    place.write("test", TESTS[:2])
    stopped = place.run()
    assert stopped.code == 2
    assert "dolly/train.jsonl line 10: " in stopped.err
    assert "limits.unreadable=drop" in stopped.err
    done = place.run("limits.unreadable=drop")
    assert done.code == 0, done.err
    trained, references = cells(place.report, "rows read")
    assert (trained["whole"], trained["unreadable"]) == ("9", "1")
    assert (references["whole"], references["unreadable"]) == ("1", "1")


def test_a_reference_that_only_bits_per_byte_reads_stops_no_other_score(place: Place) -> None:
    """One of Super-NaturalInstructions' stopped the whole table; passes are of the rows that are there."""
    place.write("train", TRAINING)
    place.write("test", TESTS)
    done = place.run()
    assert done.code == 0, done.err
    assert "Dolly 2 items" in place.report  # the Chinese one is not scored
    (_, references) = cells(place.report, "rows read")
    assert (references["whole"], references["unreadable"]) == ("2", "1")
    (trained,) = cells(place.report, "diagnostics")
    assert (trained["steps"], trained["passes"]) == ("4", "2")


def test_a_set_that_no_answer_scores_on_has_no_number(place: Place) -> None:
    """It was 0.00, in bold."""
    place.write("train", TRAINING)
    place.write("test", TESTS[2:])
    done = place.run("evaluation.bits_per_byte=false")
    assert done.code == 0, done.err
    assert "no item that any answer scores on" in place.report
    assert "0.00" not in place.report.partition("## ")[0]
    assert "Not scored, as their references have no word" in place.report
