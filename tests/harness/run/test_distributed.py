"""Two processes compute what one does: the loss lives in the wrapped module, and is divided by the global window."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from methods.base import find
from tests.conftest import Command
from tests.methods import contract
from tests.processes import torchrun

pytestmark = pytest.mark.slow
METHODS = ["control", "uld", "cdm", "gold", "mined"]
WORKER = str(Path(__file__).parent / "distributed_worker.py")


def _work(mode: str, method: str, folder: Path) -> None:
    done = torchrun(WORKER, mode, method, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("method", METHODS)
def test_two_ddp_processes_train_like_one(method: str, tmp_path: Path) -> None:
    """Ranks hold different numbers of tokens: only a global normalisation gives the same losses."""
    _work("ddp", method, tmp_path)
    double = json.loads((tmp_path / "steps.json").read_text())
    single = contract.run(find(method)(), tmp_path / "single", batch_size=4, micro_batch_size=4)
    assert len(double) == len(single) == 4
    for left, right in zip(double, single, strict=True):
        assert left["tokens"] == right["tokens"]
        for key in ("ce", "grad_norm", *(["kd_0"] if "kd_0" in right else [])):
            assert left[key] == pytest.approx(right[key], rel=2e-5, abs=1e-7), (key, left["step"])


def test_two_processes_with_pieces_of_a_model_train_like_one(tmp_path: Path) -> None:
    """Layers are units of their own; embedding and head are whole for all chunks and micro-batches of a step."""
    _work("pieces", "", tmp_path)
    found, seen = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("steps", "seen"))
    layers = {f"student.model.layers.{number}": "FSDPQwen2DecoderLayer" for number in (0, 1)}
    assert seen["units"] == {"": "FSDPDistiller", **layers}
    assert seen["head"] == [4, 4]  # of four steps, of two micro-batches each
    assert seen["all"] == [4 + 4 * 2 * len(layers) * 2, 4 + 4 * 2 * len(layers)]
    assert all(here == pytest.approx(seen["whole"] / 2, rel=0.01) for here in seen["here"])
    for name, method in {"uld": "uld", "dskd_v2": "dskd_v2", "resumed": "cdm", "ended": "cdm"}.items():
        single = contract.run(find(method)(), tmp_path / f"single-{name}", batch_size=4)
        assert len(found[name]) == len(single) == 4
        for left, right in zip(found[name], single, strict=True):
            for key in ("tokens", "loss", "ce", "grad_norm", "kd_0"):
                assert left[key] == pytest.approx(right[key], rel=2e-5, abs=1e-7), (name, key, left["step"])


@pytest.mark.parametrize("bucket", ["none", "length"])
def test_two_processes_resume_in_the_second_epoch(bucket: str, tmp_path: Path) -> None:
    """Stopped after the third of four steps, two of which make an epoch; the checkpoint is found by all ranks."""
    _work("resume", f"uld,{bucket}", tmp_path)
    resumed = json.loads((tmp_path / "steps.json").read_text())
    straight = contract.run(find("uld")(), tmp_path / "single", batch_size=2, micro_batch_size=2, bucket=bucket)
    assert [step["tokens"] for step in resumed] == [step["tokens"] for step in straight]
    assert [step["loss"] for step in resumed] == pytest.approx([step["loss"] for step in straight], rel=2e-5)


# --- Whole runs -------------------------------------------------------------------------------------------------------


def _recipe(folder: Path, fields: dict[str, Any], **changed: Any) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields | {"tasks": ["dolly"], "methods": ["sft", "uld", "cdm"]} | changed))
    return f"recipe={path}"


def _scores(runs: Path) -> dict[tuple[str, str], float]:
    (path,) = runs.glob("*/results.csv")
    with path.open() as file:
        return {(row["method"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}


def test_two_processes_make_the_table_of_one(tiny_recipe: dict[str, Any], harness: Command, tmp_path: Path) -> None:
    """Rank 0 does all that is no training and speaks for both; identities know nothing of the number of processes."""
    recipe = _recipe(tmp_path, tiny_recipe)
    double = torchrun("-m", "harness", "run", recipe, "--runs", str(tmp_path / "double"))
    assert double.returncode == 0, double.stderr[-3000:]
    single = harness("run", recipe, "--runs", str(tmp_path / "single"))
    assert single.code == 0
    assert _scores(tmp_path / "double") == pytest.approx(_scores(tmp_path / "single"), rel=1e-4)
    assert len(_scores(tmp_path / "double")) == 6
    for line in ("3 cells, ", "training of uld", "done  dolly · uld", "Files: "):
        assert double.stdout.count(line) == single.out.count(line) == 1
    assert not list((tmp_path / "double").glob("store/*/.*"))
    again = harness("run", recipe, "--runs", str(tmp_path / "double"))
    assert "stages to run" not in again.out


def test_models_in_pieces_make_the_table_of_whole_ones(
    tiny_recipe: dict[str, Any], harness: Command, tmp_path: Path
) -> None:
    """Adapters, all weights, the best on held-out rows; what is stored is read as if it had been trained whole."""
    changed = {"methods": ["sft", "uld"], "dev": {"rows": 2}}
    for section in ("teacher", "warm_start", "train"):
        changed[section] = dict(tiny_recipe[section])
    changed["teacher"] |= {"lora": {"rank": 3, "alpha": 6}}
    changed["train"] |= {"select": "best_dev", "evaluations": 2}
    whole = _recipe(tmp_path, tiny_recipe, **changed)
    single = harness("run", whole, "--runs", str(tmp_path / "single"))
    assert single.code == 0
    shards = [f"{section}.shard=true" for section in ("teacher", "warm_start", "train")]
    double = torchrun("-m", "harness", "run", whole, *shards, "--runs", str(tmp_path / "double"))
    assert double.returncode == 0, double.stderr[-3000:]
    assert _scores(tmp_path / "double") == pytest.approx(_scores(tmp_path / "single"), rel=1e-4)
    again = harness("run", whole, "--runs", str(tmp_path / "double"))
    assert "stages to run" not in again.out
    for stored in (tmp_path / "single" / "store").rglob("*.safetensors"):
        name = stored.relative_to(tmp_path / "single")
        ours, theirs = load_file(tmp_path / "double" / name), load_file(stored)
        assert {key: value.shape for key, value in ours.items()} == {k: value.shape for k, value in theirs.items()}


def test_a_method_that_fails_on_all_ranks_is_a_row(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Noted by rank 0, while the other waits for the next training."""
    recipe = _recipe(tmp_path, tiny_recipe, methods=["uld", "sft"])
    done = torchrun(WORKER, "fail", "0,1", "run", recipe, "--runs", str(tmp_path / "runs"))
    assert done.returncode == 1
    assert done.stdout.count("ZeroDivisionError") >= 1
    (path,) = (tmp_path / "runs").glob("*/results.csv")
    with path.open() as file:
        status = {row["method"]: row["status"] for row in csv.DictReader(file)}
    assert status == {"uld": "failed", "sft": "done"}


def test_a_rank_that_fails_alone_ends_the_run_with_its_reason(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Rank 0 would wait for its gradients for ever; what is stored by then is kept."""
    recipe = _recipe(tmp_path, tiny_recipe, methods=["uld"])
    done = torchrun(WORKER, "fail", "1", "run", recipe, "--runs", str(tmp_path / "runs"))
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert len(list((tmp_path / "runs").glob("store/rows/*/manifest.json"))) == 1
