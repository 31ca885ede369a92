"""Tables of anybody's data: each format gives the same rows, and what is wrong is named with file, line and column."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from harness.base.errors import HarnessError
from harness.data.tables import read_table

ROWS = [
    {"question": "Où, exactly?", "answer": "line 1\nline 2", "source": "a column of theirs"},
    {"question": 'Who said "so"?', "answer": "I, she said", "source": ""},
]
WANTED = ["question", "answer", "source"]


def as_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # as Excel writes it
        writer = csv.DictWriter(file, WANTED, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_text("".join(f"{json.dumps(row)}\n\n" for row in ROWS)),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "rows.csv": as_csv,
    "rows.tsv": lambda path: as_csv(path, "\t"),
    "rows.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "saved#train": lambda path: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(
        path.with_name("saved")
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    read = read_table(tmp_path / name, WANTED)
    assert [dict(values) for _, values in read] == ROWS
    assert all(where.startswith(str(tmp_path / name)) for where, _ in read)


def test_a_row_of_csv_is_found_by_the_line_that_it_ends_on(tmp_path: Path) -> None:
    as_csv(tmp_path / "rows.csv")
    assert [where.rpartition(" ")[2] for where, _ in read_table(tmp_path / "rows.csv", WANTED)] == ["3", "4"]


BAD: list[tuple[str, bytes, str]] = [
    ("a.csv", b"question,answer\nq,a\nq\n", "a.csv line 3: found 1 values; expected 2, one a column"),
    ("a.csv", b"question,answer\nq,a,b\n", "a.csv line 2: found 3 values"),
    ("a.csv", b'question,answer\nq,"a\n', r"a.csv line 2: found no row of CSV"),
    ("a.csv", b"question,question\nq,a\n", "a.csv line 1: found two columns of the name 'question'"),
    ("a.csv", b"question,reply\nq,a\n", r"column 'answer': found no such column \(there are question, reply\)"),
    ("a.csv", b"question,answer\n\xff,a\n", "a.csv: found a file that can't be read"),
    ("a.csv", b"question,answer\n", "a.csv: found no rows"),
    ("a.json", b'{"question": 1}', "a.json: found a JSON dict; expected an array"),
    ("a.json", b'[{"question": "q"}, 3]', "a.json row 2: found a JSON int"),
    (
        "a.json",
        b'{"question": "q"}\n{"question": "r"}',
        "can't be read .* A row a line is .jsonl",
    ),
    ("a.json", b"[" * 200_000, "a.json: found a file that can't be read"),
    ("a.jsonl", b'{"question": "q"}\n{"question"\n', "a.jsonl line 2: found"),
    ("a.parquet", b"PAR1 and no more", "a.parquet: found a file that can't be read"),
    ("a.xlsx", b"", "a.xlsx: found a file whose name ends with '.xlsx'; expected .jsonl"),
    ("a.csv.gz", b"", "a.csv.gz: found a file whose name ends with '.gz'"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD)
def test_what_can_not_be_read_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HarnessError, match=said):
        read_table(tmp_path / name, ["question", "answer"])


def test_places_that_are_not_there_are_named(tmp_path: Path) -> None:
    datasets.DatasetDict({"a": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "several")
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("none.csv", "none.csv: found no such file"),
        ("several", "several: found a data set of several splits; expected one of them: .*several#a"),
        ("several#b", "several#b: found a data set of several splits"),
        ("empty", "empty: found a folder that can't be read"),
    ):
        with pytest.raises(HarnessError, match=said):
            read_table(tmp_path / place, WANTED)
    with pytest.raises(HarnessError, match="expected hf:OWNER/NAME"):
        read_table(Path("hf:somebody/something"), WANTED)


def test_a_set_of_the_hub_is_asked_for_as_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*names: Any, **options: Any) -> Any:
        asked.append((names, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    read = read_table(Path("hf:org/set:main@0a1b#train"), ["question"])
    assert [values for _, values in read] == [{"question": row["question"]} for row in ROWS]
    assert asked == [(("org/set", "main"), {"split": "train", "revision": "0a1b"})]
