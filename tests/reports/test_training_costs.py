"""reports.training_costs: sums and means by hand, as a table, in the CSVs and in every report."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pandas as pd
import pytest

from reports import build_table, csv_wide, html, markdown, write
from reports.training_costs import COST_COLUMNS, by_row, cost_table, shared_device
from tests.reports.test_reports import context, frame, score

COSTS = pd.DataFrame(
    [
        ("sft", "dolly", 0, 10.0, 500, 100, 1, 2.0, 3.0, "GPU A"),
        ("sft", "dolly", 1, 30.0, 1500, 300, 1, 2.5, 4.0, "GPU A"),
        ("uld", "dolly", 0, 36.0, 900, math.nan, 2, 4.0, 5.0, "GPU A"),
    ],
    columns=list(COST_COLUMNS),
)
RESULTS = frame(
    score("sft", 1.0), score("sft", 2.0, seed=1), score("uld", 3.0), score("sft", 5.0, role="teacher", teacher="big")
)


def test_numbers_by_hand() -> None:
    sft, uld = by_row(COSTS).to_dict("records")
    assert sft["seconds"] == 20
    assert sft["tokens_per_second"] == 2000 / 40
    assert sft["sampled_tokens"] == 200
    assert math.isnan(uld["sampled_tokens"])
    assert sft["gpu_hours"] == pytest.approx(40 / 3600)
    assert (sft["gpu_gib"], sft["process_gib"], sft["seeds"], sft["device"]) == (2.5, 4, 2, "GPU A")
    assert uld["gpu_hours"] == pytest.approx(72 / 3600)  # on two of them


def test_what_is_not_known_is_no_number() -> None:
    partly = COSTS.assign(tokens=[500, math.nan, 900], gpu_gib=math.nan)
    sft, uld = by_row(partly).to_dict("records")
    assert math.isnan(sft["tokens_per_second"])
    assert uld["tokens_per_second"] == 25
    assert "GPU memory, GiB" not in cost_table(partly)
    assert "sampled tokens" not in cost_table(COSTS.drop(columns="sampled"))  # of a run before it was counted


def test_a_device_that_all_share_is_said_once() -> None:
    assert "device" not in cost_table(COSTS)
    assert shared_device(COSTS) == "GPU A"
    two = COSTS.assign(device=["GPU A", "GPU A", "GPU B"])
    assert cost_table(two)["device"].tolist() == ["GPU A", "GPU B"]
    assert shared_device(two) == ""


def test_costs_are_columns_of_the_table_for_trained_rows() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_wide(build_table(RESULTS), COSTS))))
    by_name = {(line["role"], line["method"]): line for line in lines}
    assert by_name["student", "sft"]["dolly.seconds"] == "20.0"
    assert by_name["student", "uld"]["dolly.gpu_hours"] == repr(0.02)
    assert by_name["student", "uld"]["dolly.device"] == "GPU A"
    assert by_name["teacher", "sft"]["dolly.seconds"] == ""
    assert "dolly.seconds" not in csv_wide(build_table(RESULTS))


def test_reports_have_the_table_and_a_file_each_seed(tmp_path: Path) -> None:
    table, said = build_table(RESULTS), context(costs=COSTS)
    text = markdown(table, said)
    assert "## Appendix: costs of training" in text
    assert "Device: GPU A." in text
    assert "| dolly | sft | 2 | 20 | 50 | 200 | 0.01111 | 2.5 | 4 |" in text
    assert "Costs of training" in html(table, said)
    write(RESULTS, said, tmp_path)
    assert pd.read_csv(tmp_path / "costs.csv").equals(COSTS)
    assert "Costs" not in markdown(table, context())
