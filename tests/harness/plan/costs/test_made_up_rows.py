"""Plans before the data is there: rows of the published sizes, and what is said of them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from harness.plan.builder import make_plan
from harness.plan.costs.devices import DEVICES
from harness.plan.costs.made_up_rows import in_words, with_made_up_rows
from harness.plan.costs.stages import Coster
from harness.recipe.load import load_recipe
from harness.tasks import tasks
from harness.tasks.base import samples_folder
from tests.conftest import Command
from tests.copies import copy_to_change

PAPERS = ("phi_qwen_all", "llama_gemma_all", "llama_opt_all")
EVERY_SET = ["dolly.sets=[dolly,selfinst,vicuna,sinst,unni]", "codem.benchmarks=[humaneval,mbpp]"]
SIZES = {
    "dolly": (11_435, 500 + 242 + 80 + 1_694 + 1_000),
    "codem": (2_017, 164 + 378),
    "gsm8k": (7_473, 1_319),
}
"""Rows to train on and items to test on, as DSKD, the CDM paper, GSM8K and EvalPlus count them."""


def test_every_set_of_rows_has_a_published_size() -> None:
    for kind in tasks().values():
        assert {one.files[0] for one in kind.data_needs()} == set(kind.published)


@pytest.mark.parametrize("name", SIZES)
def test_rows_that_stand_in_are_as_many_and_as_long_as_published(name: str, tmp_path: Path) -> None:
    fields = [f"tasks=[{name}]", "dolly.decoding=greedy", *EVERY_SET, f"data.root={tmp_path}/nothing"]
    with with_made_up_rows(load_recipe("phi_qwen_all", fields)) as (made, unseen):
        rows = made[name].training_examples()
        assert (len(rows), len(made[name].request_sizes())) == SIZES[name]
        mean = fmean(len(row.response.encode()) for row in rows)
        assert mean == pytest.approx(unseen[name][0].responses[0], rel=0.05)
        assert len({row.response for row in rows}) > 100  # padding depends on how lengths differ
    again = load_recipe("phi_qwen_all", fields)
    with with_made_up_rows(again) as (once, _), with_made_up_rows(again) as (twice, _):
        assert once[name].training_digest() == twice[name].training_digest()


def test_files_that_are_there_are_read_and_tasks_that_run_stay_as_they_are(tmp_path: Path) -> None:
    root = copy_to_change(samples_folder(), tmp_path / "data")
    (root / "gsm8k/test.jsonl").unlink()
    recipe = load_recipe("phi_qwen_all", [f"data.root={root}", "tasks=[dolly,gsm8k,countdown]", *EVERY_SET])
    with with_made_up_rows(recipe) as (made, unseen):
        assert {name: [each.name for each in sets] for name, sets in unseen.items()} == {"gsm8k": ["GSM8K's test set"]}
        assert len(made["gsm8k"].training_examples()) == 200
        assert len(made["gsm8k"].reference_examples()) == 1_319
        assert made["dolly"].root == root  # a run leaves UnNI out, and so does the plan
        (line,) = in_words(recipe, unseen)
    assert line.startswith(f"{root}/ has not all files of gsm8k: a run stops here.")
    assert "1,319 of GSM8K's test set." in line
    assert "Dolly" not in line


def test_a_plan_needs_no_data_and_says_what_it_counted(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fields = ["recipe=phi_qwen_all", "methods=[sft]", "seeds=[0]", "evaluation.references=[]"]
    shown = harness("plan", *fields)
    assert shown.code == 0, shown.err
    text = " ".join(shown.out.split())
    assert "data/ is not there: a run stops here." in text
    for counted in ("11,435 of Dolly's", "1,000 of UnNI", "2,017 of CodeAlpaca (CodeM's number is unknown)"):
        assert counted in text
    assert "`harness data recipe=phi_qwen_all` says how to get them" in text
    assert re.search(r"gsm8k: [\d.,]+ PFLOP; [\d.]+ (h|min) on H100", text)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_claims_no_identity_that_data_decides(harness: Command, tmp_path: Path) -> None:
    root = copy_to_change(samples_folder(), tmp_path / "data")
    shutil.rmtree(root / "gsm8k")
    fields = ["recipe=quickstart", f"data.root={root}", "tasks=[dolly,gsm8k]", "methods=[control]", "seeds=[0]"]
    fields += ["evaluation.references=[]"]
    lines = [line for line in harness("plan", *fields, "--runs", tmp_path).out.splitlines() if "warm start" in line]
    identities = {line.split("│")[1].strip(): line.split("│")[4].strip() for line in lines}
    assert identities["gsm8k"] == "unknown"
    assert re.fullmatch("[0-9a-f]{12}", identities["dolly"])


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipes_have_costs_before_their_data(name: str, tmp_path: Path) -> None:
    """The student's trainings fit the one GPU of 80 GB that the recipes ask for."""
    costs = costs_of(name, tmp_path, "seeds=[0]", "methods=[control,cdm]", "fidelity=[described]")
    assert max(cost.memory for _, cost in costs) <= DEVICES[0].memory


def test_gemma_smol_all_fits_a_small_gpu_and_takes_two_hours_a_task_at_most(tmp_path: Path) -> None:
    """What EvalPlus takes on the CPU, whatever the GPU, is no part of the two hours."""
    costs = costs_of("gemma_smol_all", tmp_path)
    h100, small = DEVICES[0], DEVICES[-1]
    assert (small.name, max(cost.memory for _, cost in costs) <= small.memory) == ("RTX 4090 24 GB", True)
    hours: dict[str, float] = {}
    for stage, cost in costs:
        judged = stage.kind == "scores"
        hours[stage.task] = hours.get(stage.task, 0) + (0 if judged else cost.seconds(h100) / 3600)
    assert set(hours) == {"dolly", "codem", "gsm8k"}
    assert all(0.2 < each < 2 for each in hours.values()), hours


def costs_of(name: str, folder: Path, *fields: str) -> list[tuple[Any, Any]]:
    """Stages and costs of a recipe whose data is not there."""
    recipe = load_recipe(name, [f"data.root={folder}/nothing", *fields])
    with with_made_up_rows(recipe) as (made, unseen):
        assert list(unseen) == list(recipe.tasks)
        plan = make_plan(recipe, made)
        coster = Coster(plan)
        return [(stage, coster.cost(stage)) for stage in plan.stages()]
