"""Loading models: what is in a folder is what computes, to the last weight and the last bit."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM

from harness.base.errors import HarnessError
from harness.models.cache import damaged_file
from harness.models.load import load_config, load_model, load_tokenizer
from harness.models.resolve import resolve
from harness.models.spec import ModelSpec
from harness.models.uri import parse_uri
from harness.plan.costs.shapes import shape_of
from harness.run.workbench import PublishedModels
from tests import tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = tiny.tokenizer("byte_level")
    tiny.model("llama", len(tokenizer), seed=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, how: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(how(load_file(file)), file, metadata={"format": "pt"})


def test_a_whole_folder_loads(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())


def test_missing_weights_are_named(folder: Path) -> None:
    """transformers fills them with random numbers and only warns."""
    change(folder, lambda w: {name: value for name, value in w.items() if "mlp" not in name})
    with pytest.raises(
        HarnessError, match=r"weights without model\.layers\.0\.mlp\.down_proj\.weight, .* and \d+ more"
    ):
        load_model(folder)


def test_renamed_weights_are_named_on_both_sides(folder: Path) -> None:
    change(folder, lambda w: {name.replace("model.norm", "model.final_norm"): value for name, value in w.items()})
    found = r"weights without model\.norm\.weight; with unknown model\.final_norm\.weight"
    with pytest.raises(HarnessError, match=found):
        load_model(folder)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    change(folder, lambda w: w | {"model.norm.weight": w["model.norm.weight"][:-1].clone()})
    with pytest.raises(HarnessError, match=r"with other shapes than its config\.json's of model\.norm\.weight"):
        load_model(folder)


def test_a_tied_head_need_not_be_stored(tmp_path: Path) -> None:
    model = tiny.model("qwen2", 64, seed=1)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_an_architecture_without_sdpa_computes_eagerly_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no attention 'sdpa'; 'eager' computes it"):
        model = load_model(tmp_path, attention="sdpa")
    assert model.config._attn_implementation == "eager"


# --- Damage in the cache ----------------------------------------------------------------------------------------------


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    before = file.stat()
    file.write_bytes(content)
    assert file.stat().st_size == before.st_size


def test_a_damaged_cache_is_made_again_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit of a weight that flips on the disk gives other results, under the same identity."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    uri = parse_uri("tiny:llama?layers=1")
    weights = resolve(uri).folder / "model.safetensors"
    whole = weights.read_bytes()
    flip_a_bit(weights)
    said: list[str] = []
    assert resolve(uri, report=said.append).folder == weights.parent
    assert weights.read_bytes() == whole
    assert "damaged: model.safetensors of" in said[0]
    said.clear()
    resolve(uri, report=said.append)
    assert said == []


def test_files_of_the_hub_are_held_to_the_digests_that_they_are_called_by(folder: Path, tmp_path: Path) -> None:
    """The hub's cache: blobs called by SHA-256 (weights) or git's digest (small files), and links to them."""
    import hashlib

    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for file in folder.iterdir():
        content = file.read_bytes()
        name = hashlib.sha256(content).hexdigest()
        if file.suffix == ".json":
            name = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        shutil.copy(file, blobs / name)
        (snapshot / file.name).symlink_to(blobs / name)
    assert damaged_file(snapshot) == ""
    for name in ("config.json", "model.safetensors"):
        blob = (snapshot / name).resolve()
        flip_a_bit(blob)
        assert damaged_file(snapshot) == name
        flip_a_bit(blob)
    assert damaged_file(snapshot) == ""


# --- Code of a folder -------------------------------------------------------------------------------------------------

CODE = "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
CODE += "Path(__file__).with_name('ran').touch()\n"
CODE += "class Config(LlamaConfig):\n    model_type = 'its_own'\n"
CODE += "class Model(LlamaForCausalLM):\n    config_class = Config\n"
CODE += "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"


@pytest.fixture
def with_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose config, classes and tokenizer ask for a module that says that it ran; to every question "y"."""
    (folder / "code.py").write_text(CODE.replace("Path(__file__).with_name('ran')", f"Path({str(tmp_path / 'ran')!r})"))
    for file, name, more in (
        ("config.json", "AutoConfig", {"model_type": "its_own", "architectures": ["Model"]}),
        ("tokenizer_config.json", "AutoTokenizer", {"tokenizer_class": "Tokenizer"}),
    ):
        values = json.loads((folder / file).read_text()) | more
        classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
        values["auto_map"] = {name: ["code.Tokenizer", "code.Tokenizer"]} if file.startswith("tok") else classes
        (folder / file).write_text(json.dumps(values))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    return folder


def test_no_code_of_a_folder_runs_and_nobody_is_asked(
    with_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ModelSpec(model=f"path:{with_code}")
    published = PublishedModels({"student": spec}, lambda line: None)
    for call in (
        lambda: load_config(with_code),
        lambda: load_model(with_code),
        lambda: published.config("student"),
        lambda: shape_of(spec),
    ):
        with pytest.raises(HarnessError, match="without running code from the folder") as error:
            call()
        assert str(with_code) in str(error.value)
    with contextlib.suppress(HarnessError):  # its fast tokenizer needs none of the code
        load_tokenizer(with_code)
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in capsys.readouterr().out
    assert sys.stdin.read() == "y\n" * 9  # and whoever called can still read


def test_transformers_reads_folders_through_one_function() -> None:
    """Adapters, which stages store themselves, are peft's to read; torch's layers read no folder."""
    calls = {}
    for package in ("harness", "methods", "reports", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            called = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            if found := sum(
                node.attr == "from_pretrained" and ast.unparse(node.value) != "nn.Embedding" for node in called
            ):
                calls[path.relative_to(ROOT).as_posix()] = found
    assert calls == {"harness/models/load.py": 1, "harness/models/lora.py": 1}
