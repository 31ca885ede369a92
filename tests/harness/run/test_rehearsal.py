"""The paper's three recipes, rehearsed: their models at full width on the meta device, and whole runs with tiny ones.

The tiny models have the recipes' architectures and vocabulary sizes, and random weights; see tests/stand_ins.py.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.evaluate.programs.sandbox import probe
from harness.models.heads import Head
from harness.models.uri import parse_uri
from harness.plan.objectives import make_objectives
from harness.recipe.load import load_recipe
from tests.conftest import Command
from tests.stand_ins import KNOWN, fields_of, tiny_folder

RECIPES = ("phi_qwen_all", "llama_gemma_all", "llama_opt_all")


@pytest.mark.parametrize("name", RECIPES)
def test_models_at_full_width_are_what_the_engine_expects(name: str) -> None:
    """On the meta device: the head is found, Gemma-2's soft cap with it, and texts fit the positions."""
    recipe = load_recipe(name)
    for role, spec in recipe.models_by_role().items():
        kind, fields, _ = fields_of(spec.model)
        config = AutoConfig.for_model(kind, **fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=spec.attention)
        head = Head.of(model)
        assert head.weight.shape == (fields["vocab_size"], fields["hidden_size"])
        assert (head.soft_cap is not None) == (kind == "gemma2")
        assert recipe.limits.length <= config.max_position_embeddings
        assert model.num_parameters() == KNOWN[parse_uri(spec.model).repository]["parameters"], role
        assert (spec.attention == "eager") == (kind == "gemma2")  # its scores are capped


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_whole_with_tiny_models(name: str, tmp_path: Path, harness: Command) -> None:
    """Every stage and every row: teachers, warm start, stored rows, all methods in both fidelities, all scores."""
    tokenizers = Path(os.environ.get("HARNESS_TEST_TOKENIZERS", "-"))
    if not tokenizers.is_dir():
        pytest.skip("HARNESS_TEST_TOKENIZERS does not name a folder of real tokenizers")
    recipe = load_recipe(name)
    paths = {"student": "student.model", "same": "teachers.same.model", "cross": "teachers.cross.model"}
    made = [
        f"{paths[role]}=path:{tiny_folder(tmp_path / role, spec.model, tokenizers, seed)}"
        for seed, (role, spec) in enumerate(recipe.models_by_role().items())
    ]
    tasks = [task for task in recipe.tasks if task != "codem" or probe().available]
    small = [f"{task}.{limit}" for task in tasks for limit in ("train_items=6", "test_items=2", "new_tokens=4")]
    speed = ("steps=2", "batch_size=2", "micro_batch_size=1")
    short = [f"{stage}.{value}" for stage in ("teacher", "warm_start", "train") for value in speed]
    limits = ["limits.length=400", "seeds=[0]", "data.root=", "gsm8k.few_shot=1", "codem.benchmarks=[humaneval]"]
    sampled = "variants.gold_on_policy.rollout_tokens=8"
    asked = [f"recipe={name}", *made, f"tasks=[{','.join(tasks)}]", *small, *short, *limits, sampled]
    done = harness("run", *asked, "--runs", tmp_path / "runs")
    assert done.code == 0, done.out + done.err
    folder = next(path.parent for path in (tmp_path / "runs").glob("*/run.json"))
    record = json.loads((folder / "run.json").read_text())
    assert [cell["name"] for cell in record["cells"] if cell["failures"]] == []
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    names = {row["method"] for row in rows if row["role"] == "student"}
    assert names == {objective.label for objective in make_objectives(recipe)}
    results = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert {row["status"] for row in results} == {"done"}
    students = {(row["task"], row["method"], row["fidelity"]) for row in results if row["role"] == "student"}
    assert len(students) == len(tasks) * len(make_objectives(recipe))
    kinds = {path.name for path in (tmp_path / "runs/store").iterdir()}
    assert kinds >= {"teacher", "warm_start", "rows", "student", "answers", "bits", "scores"}
    again = harness("plan", *asked, "--runs", tmp_path / "runs")
    assert " would run" not in again.out.rpartition("stages:")[2]
