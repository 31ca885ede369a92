"""The benchmark scripts: each reads its options, each ends at its smallest size, none overwrites what was published."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.models import tiny
from harness.models.heads import hidden_states, reads_masks
from harness.tasks.base import samples_folder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts' shared module; importable by its short name, as it is for them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("common")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.usefixtures("common")
def test_a_script_tells_its_options(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "--out" in capsys.readouterr().out
    assert f"benchmarks/{script}.py" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ([], "made-cpu.json"),
        (["--device", "cpu"], "made-cpu.json"),
        (["--preset", "h100"], "made-h100.json"),
        (["--preset", "h100", "--device", "cpu"], "made-h100-with-device.json"),
        (["--steps", "2", "--data", "FOLDER"], "made-cpu-with-data-steps.json"),
    ],
)
def test_a_changed_command_does_not_write_the_published_file(
    given: list[str], file: str, common: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["made", *given])
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "machine", lambda device: device)
    parser: argparse.ArgumentParser = common.preset_parser("", ["cpu", "h100"])
    common.add_real_inputs(parser)
    parser.add_argument("--steps", type=int)
    arguments = common.parsed(parser)
    written = common.write(arguments, f"made-{arguments.preset}", {"numbers": [1]})
    assert [path.name for path in tmp_path.iterdir()] == [written.name] == [file]
    found = json.loads(written.read_text())
    assert found.pop("trl", None) == common.peer_version()
    assert found == {"machine": arguments.device, "numbers": [1]}


def test_a_run_that_goes_on_finds_the_rows_that_it_had(
    common: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was cut has written each row; --resume names the same file."""
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    paths = []
    for given in ([], ["--resume"]):
        monkeypatch.setattr(sys, "argv", ["made", *given])
        parser: argparse.ArgumentParser = common.preset_parser("", ["cpu"])
        parser.add_argument("--resume", action="store_true")
        paths.append(common.result_path(common.parsed(parser), "made").with_suffix(".jsonl"))
    assert paths[0] == paths[1]
    first = common.Lines(paths[0], resume=False)
    first.add("a", {"seconds": 1.5}, "a: 1.5 s")
    first.add("b", {"error": "no room"}, "")
    assert capsys.readouterr().out == "# a: 1.5 s\n"
    again = common.Lines(paths[0], resume=True)
    assert [again.find(key) for key in "abc"] == [{"seconds": 1.5}, {"error": "no room"}, None]
    assert common.Lines(paths[0], resume=False).find("a") is None
    assert paths[0].read_text(encoding="utf-8") == ""


def test_what_is_left_is_told_by_what_was_done(common: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.time, "monotonic", lambda: 130.0)
    assert common.left(100.0, 2, 5) == "about 45 s left"
    assert common.left(100.0, 5, 5) == "the last one"


def test_an_unknown_way_is_refused_with_the_ways_that_there_are(
    common: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = importlib.import_module("loss")
    monkeypatch.setattr(sys, "argv", ["loss", "--ways", "gold", "golden"])
    with pytest.raises(SystemExit):
        loss.command_line()
    said = capsys.readouterr().err
    assert "golden" in said
    assert all(repr(name) in said for name in (*loss.OURS, *loss.PEERS, "gold compiled"))


def test_no_logits_are_narrower_than_a_given_tokenizer_asks_for(
    common: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = importlib.import_module("loss")
    made = tmp_path / "tokenizer.json"
    common.trained_tokenizer("student", 20_500).backend_tokenizer.save(str(made))
    monkeypatch.setattr(sys, "argv", ["loss", "--student-tokenizer", str(made), "--out", str(tmp_path / "loss.json")])
    arguments, preset = loss.command_line(), loss.PRESETS["cpu"]
    setting = loss.Setting("cpu", loss.torch.float32, folder=tmp_path, **preset.setting)
    bench = loss.Bench(arguments, preset, setting, ["gold"])
    swept: list[dict[int, Any]] = []
    monkeypatch.setattr(bench, "sweep", lambda key, title, points, names, **kwargs: swept.append(points))
    bench.tokens()
    bench.vocabulary()
    assert bench.setting.student_size == 20_500
    assert {point.student_size for point in swept[0].values()} == {20_500}
    assert [point.student_size for point in swept[1].values()] == [32_000, 151_936]
    assert "no vocabulary of 8,000: the student's tokenizer has 20,500 ids" in capsys.readouterr().out


TRIED = "--preset h100 --device cpu"
SMALL = {
    "loss": f"{TRIED} --tokens 64 --student-size 3000 --teacher-size 2500 --seconds 0.01 --parts methods",
    "step": f"{TRIED} --steps 1",
    "every_method": f"{TRIED} --steps 1 --methods fkd x_token",
    "generation": TRIED,
    "alignment": "--repeats 1 --responses 2",
    "comparison": "--methods sft gold",
    "spans": "--size 1500",
    "plan": "--recipes gemma_smol_cpu",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [pytest.param(one, marks=pytest.mark.nightly) if one in ("comparison", "spans") else one for one in SMALL]
)
def test_a_script_ends_at_its_smallest_size(script: str, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    done = ended(script, *SMALL[script].split(), "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    assert json.loads(out.read_text())["machine"]


@pytest.mark.slow
def test_every_kind_of_training_of_a_recipe_ends_at_full_size_but_narrow(tmp_path: Path) -> None:
    """Without a teacher, with stored rows, with live teachers, with two of them, and with sampled responses."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(samples_folder().glob("*/train.jsonl"))]
    tiny.byte_level(texts, 1000).save(str(tmp_path / "qwen3.json"))
    tiny.byte_fallback(texts, 1500).save(str(tmp_path / "llama2.json"))
    out = tmp_path / "numbers.json"
    methods = ["sft", "fkd", "gold", "gold_on_policy", "dual(fkd, cdm)"]
    small = [f"{stage}.{size}=2" for stage in ("train", "warm_start") for size in ("batch_size", "micro_batch_size")]
    options = ["--tokenizers", tmp_path, "--narrow", "--steps", "2", "--out", out]
    sampled = ["variants.gold_on_policy.rollout_tokens=4", "variants.gold_on_policy.rollout_share=1"]
    done = ended("full_size", "phi_qwen_all", *options, f"methods=[{','.join(methods)}]", *small, *sampled)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["method"]: row for row in json.loads(out.read_text())["methods"]}
    assert rows.keys() == {*methods, "fkd (released)", "gold (released)"}
    assert all(row["seconds"] > 0 < row["planned GiB"] for row in rows.values())


def ended(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A script that was run as a command is, without a GPU."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(FOLDER / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("common")
def test_the_stand_in_for_a_student_has_what_a_gpu_asks_a_model_for() -> None:
    loss = importlib.import_module("loss")
    rows = loss.Rows(torch.ones(1, 2, 4), torch.ones(3, 4))
    assert not reads_masks(rows, torch.device("cuda"))
    ids = torch.zeros(1, 2, dtype=torch.long)
    assert hidden_states(rows, ids, torch.ones_like(ids), ids, padded_behind=True) is rows.hidden
