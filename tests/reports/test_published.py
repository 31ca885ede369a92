"""reports.published: the papers' numbers are whole, and stand beside ours as a reader would do it by hand."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from harness.base.schema import field_at
from harness.recipe.schema import Recipe
from harness.tasks import tasks
from reports import ReportContext, Table, beside_published, markdown, published_pairs, terminal
from reports.published import PAPERS, PaperComparison, csv_published, published
from tests.reports.test_analysis import Frames

PHI_QWEN: dict[str, Any] = {
    "student": {"model": "hf:Qwen/Qwen2-0.5B@0123abc", "layers": None},
    "teachers": {
        "same": {"model": "hf:Qwen/Qwen2-7B-Instruct"},
        "cross": {"model": "hf:microsoft/Phi-3-mini-4k-instruct"},
    },
    "warm_start": {"epochs": 3, "steps": None},
    "train": {"epochs": 7, "steps": None, "batch_size": 32, "learning_rate": 2e-5},
    "dolly": {"split": "dskd", "decoding": "sampling", "sampling_seeds": [10], "train_items": None, "bos": False},
}


def dolly(items: int = 500, **means: float) -> Table:
    """A table of Dolly alone: half of a method's items score 5 above its mean, half 5 below."""
    frames = Frames()
    for method, mean in means.items():
        frames.add(method, [mean - 5, mean + 5] * (items // 2))
    return frames.table("")


def compared(table: Table, **changes: Any) -> PaperComparison:
    return beside_published(table, "phi_qwen", PHI_QWEN | changes)


def differences(comparison: PaperComparison) -> list[tuple[str, str, str]]:
    return [(d.name, d.ours, d.theirs) for d in comparison.differences]


# --- The data ---------------------------------------------------------------------------------------------------------


def tables() -> list[tuple[str, list[str], str, list[float]]]:
    """Every row of the paper: pair, columns, row, numbers."""
    paper = yaml.safe_load((PAPERS / "cdm.yaml").read_text(encoding="utf-8"))
    return [
        (name, table["columns"], row, numbers)
        for name, pair in paper["pairs"].items()
        for table in pair["tables"]
        for row, numbers in table["rows"].items()
    ]


def test_every_average_is_that_of_its_row() -> None:
    """A digit that was copied wrongly would show."""
    averaged = [numbers for _, columns, _, numbers in tables() if columns[-1] == "average"]
    assert len(averaged) == 3 * 8
    for *numbers, average in averaged:
        assert average == pytest.approx(sum(numbers) / 5, abs=0.0065)  # some are rounded, some cut


def test_the_doubtful_cells_are_those_that_greedy_decoding_can_not_give() -> None:
    """pass@1 is a multiple of 1/164 or 1/378, printed with two decimals or one and a zero, rounded or cut."""
    doubtful = []
    for _, columns, _, numbers in tables():
        for column, number in zip(columns, numbers, strict=True):
            if problems := {"humaneval_plus": 164, "mbpp_plus": 378}.get(column):
                digits = 1 if round(number, 1) == number else 2
                near = [100 * k / problems - number for k in range(problems + 1)]
                if not any(-0.5 * 10**-digits <= gap < 10**-digits for gap in near):
                    doubtful.append((column, number))
    assert doubtful == [("mbpp_plus", 21.34), ("humaneval_plus", 20.40), ("mbpp_plus", 23.38)]
    for _, number in doubtful:
        assert f"{number:.2f}" in " ".join(published("phi_qwen").notes)


def test_pairs_and_rows() -> None:
    assert published_pairs() == ["llama_gemma", "llama_opt", "phi_qwen", "qwen_llama_countdown"]
    numbers = published("phi_qwen").numbers
    assert numbers["cdm", "gsm8k.exact_match_strict"] == 28.13
    assert numbers["teacher cross-tokenizer", "codem.humaneval_plus"] == 51.83
    assert ("cdm", "codem.mbpp_plus") not in published("llama_opt").numbers  # instruction following only
    assert "greedy" in published("phi_qwen").columns["codem.mbpp_plus"].protocol
    with pytest.raises(ValueError, match="no published numbers for 'gemma_smol'; there are llama_gemma"):
        published("gemma_smol")


@pytest.mark.parametrize("pair", published_pairs())
def test_every_setting_is_a_field_of_recipes(pair: str) -> None:
    """A misspelt one would differ in every run."""
    for name in published(pair).settings:
        assert field_at(Recipe, name.split(".")) is not None, name


# --- Beside ours ------------------------------------------------------------------------------------------------------


def test_ours_theirs_difference_and_inside_by_hand() -> None:
    # The standard error of 500 items at ±5 is 5 / √500 = 0.224; twice that is 0.44 to either side.
    comparison = compared(dolly(sft=25.0, uld=27.0, top_one=99.0))
    assert [(b.row.label, b.theirs, round(b.difference, 2), b.inside) for b in comparison.rows] == [
        ("sft", 24.66, 0.34, True),
        ("uld", 26.43, 0.57, False),
    ]
    assert "cdm" in comparison.not_run
    assert "uld" not in comparison.not_run


def test_a_teachers_row_is_found_by_its_kind() -> None:
    frames = Frames()
    for kind, mean in (("same-tokenizer", 29.0), ("cross-tokenizer", 30.0)):
        other = {"role": "teacher", "teacher_kind": kind, "teacher": kind, "fidelity": ""}
        frames.add(f"sft {kind}", [mean, mean + 1], **other)
    assert [b.theirs for b in compared(frames.table("")).rows] == [29.07, 29.19]


def test_settings_that_are_the_papers_do_not_differ() -> None:
    assert differences(compared(dolly(sft=25.0))) == []
    assert "No known setting differs." in compared(dolly(sft=25.0)).lines()


def test_settings_that_differ_are_named_with_both_values() -> None:
    comparison = compared(
        dolly(sft=25.0, items=16),
        student={"model": "hf:Qwen/Qwen2.5-0.5B", "layers": None},
        train={"steps": 20, "batch_size": 32, "learning_rate": 2e-5},
        dolly={"split": "dskd", "decoding": "greedy", "sampling_seeds": [10], "bos": True},
    )
    assert differences(comparison) == [
        ("train.epochs", "none", "7"),
        ("train.steps", "20", "none"),
        ("dolly.decoding", "greedy", "sampling"),
        ("dolly.bos", "True", "False"),
        ("student.model", "hf:Qwen/Qwen2.5-0.5B", "hf:Qwen/Qwen2-0.5B or hf:Qwen/Qwen2-0.5B-Instruct"),
        ("dolly ROUGE-L items", "16", "500"),
    ]
    said = "train.epochs none (theirs 7); train.steps 20 (theirs none); dolly.decoding greedy (theirs sampling)"
    assert f"Settings differ: {said}" in " ".join(comparison.lines())


@pytest.mark.parametrize(
    ("split", "beside", "differ"),
    [
        ("dskd", ["dolly.rouge_l", "dolly.rouge_l_vicuna"], []),
        ("hub", ["dolly.rouge_l_vicuna"], [("dolly.split", "hub", "dskd")]),
    ],
)
def test_no_published_number_stands_beside_the_hubs_dolly(
    tmp_path: Path, split: str, beside: list[str], differ: list[tuple[str, str, str]]
) -> None:
    """Papers tested on DSKD's split; beside their further test sets stands what students were trained on otherwise."""
    for file in ("dolly/test", "dolly_hub/test", "vicuna/valid"):
        path = tmp_path / f"{file}.jsonl"
        path.parent.mkdir()
        path.write_text('{"instruction": "a", "output": "b"}\n')
    kind = tasks()["dolly"]
    frames = Frames()
    for metric in kind(kind.Settings(split=split, sets=["dolly", "vicuna"]), tmp_path).metrics:
        frames.add("sft", [25.0, 26.0], metric.name)
    comparison = compared(frames.table(""), dolly=PHI_QWEN["dolly"] | {"split": split})
    assert [row.column.key for row in comparison.rows] == beside
    assert [found for found in differences(comparison) if not found[0].endswith(" items")] == differ


def test_the_hub_split_has_no_published_column() -> None:
    assert not [key for pair in published_pairs() for key in published(pair).columns if "hub" in key]
    table = Frames().add("sft", [25.0, 26.0], "rouge_l_hub").table("")
    assert compared(table, dolly=PHI_QWEN["dolly"] | {"split": "hub"}).rows == ()
    assert [column.full_label for column in table.columns] == ["dolly ROUGE-L (hub split)"]


def test_without_a_common_cell_one_line_says_so() -> None:
    comparison = compared(dolly(top_one=25.0))
    assert comparison.rows == ()
    assert comparison.lines()[1:] == ["No cell of this run has a published number.", *comparison.source.notes]


def test_what_is_published_in_words_alone_is_said() -> None:
    """GOLD's study gives shares of the teacher, and no accuracies."""
    said = " ".join(beside_published(dolly(gold=25.0), "qwen_llama_countdown", {}).lines())
    assert all(words in said for words in ("about 60 %", "about 10 %", "over 80 %", "92 %"))


def test_without_items_nothing_is_inside() -> None:
    comparison = compared(Frames().add("sft", [25.0, 25.0]).table(""))
    assert [b.inside for b in comparison.rows] == [None]
    assert any(line.startswith("– for inside") for line in comparison.lines())


# --- Renderings -------------------------------------------------------------------------------------------------------


def said(**other: Any) -> ReportContext:
    return ReportContext("Report", "smoke", {"dolly": ["greedy"]}, paper="phi_qwen", recipe_values=PHI_QWEN, **other)


def test_markdown_has_the_table_its_source_and_what_differs() -> None:
    text = markdown(dolly(sft=25.0, uld=27.0), said()).partition("## Beside the published numbers")[2]
    rows = [
        [part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| dolly")
    ]
    assert [[*row[:3], *row[4:]] for row in rows] == [
        ["dolly ROUGE-L", "sft", "25.00", "24.66", "+0.34", "yes"],
        ["dolly ROUGE-L", "uld", "27.00", "26.43", "+0.57", "no"],
    ]
    assert "arXiv 2502.11104" in text
    assert "Their protocol: dolly ROUGE-L: sampling at T=1" in text


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_has_it_too(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal(dolly(sft=25.0, uld=27.0), said(), width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    line = next(line for line in text.splitlines() if "24.66" in line)
    assert line.split()[:2] == ["sft", "25.00"]
    assert line.split()[-3:] == ["24.66", "+0.34", "yes"]


def test_a_report_that_names_no_paper_does_not_mention_one() -> None:
    text = markdown(dolly(sft=25.0), ReportContext("Report", "smoke", {"dolly": ["greedy"]}))
    assert "ublished" not in text


def test_the_csv_has_full_precision() -> None:
    (row,) = csv.DictReader(io.StringIO(csv_published(compared(dolly(sft=25.0)))))
    assert (row["column"], row["ours"], row["theirs"], row["inside"]) == ("dolly.rouge_l", "25.0", "24.66", "True")
    assert float(row["difference"]) == 25.0 - 24.66
    assert float(row["low"]) < 24.66 < float(row["high"])
