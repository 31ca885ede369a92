"""harness.models.tiny: the same models everywhere, of real architectures, with tokenizers that lose nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.errors import HarnessError
from harness.base.files import sha256_file
from harness.data.templates import TextSide
from harness.models import tiny
from harness.models.cache import source_digest
from harness.models.gguf import ROUND_TRIP_TEXT
from harness.models.heads import check_head
from harness.models.load import load_model, load_tokenizer
from harness.models.resolve import is_downloaded, resolve
from harness.models.uri import parse_uri


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def test_a_uri_says_what_is_generated() -> None:
    assert parse_uri("tiny:llama").generated == tiny.TinyModel("llama")
    full = parse_uri("tiny:gemma2?tokenizer=byte_fallback&tokens=700&width=32&layers=3&seed=4").generated
    assert full == tiny.TinyModel("gemma2", "byte_fallback", 700, 32, 3, 4)


@pytest.mark.parametrize(
    "text",
    [
        "tiny:", "tiny:bert", "tiny:llama?tokenizer=bytes", "tiny:llama?tokens=299", "tiny:llama?tokens=many",
        "tiny:llama?layers=0", "tiny:llama?width=40", "tiny:llama?size=3", "tiny:llama?tokens=", "tiny:llama?seed=-1",
        "tiny:llama?architecture=opt", "tiny:llama?tokens=4_00", "tiny:llama?tokens=٣٣٣",
        "tiny:qwen2?tokenizer=byte_fallback",
    ],
)  # fmt: skip
def test_a_wrong_uri_is_refused(text: str) -> None:
    with pytest.raises(HarnessError):
        parse_uri(text)


def test_a_tokenizer_may_be_trained_on_the_word_chain() -> None:
    first, second = (parse_uri(f"tiny:llama?tokens=312&text={text}").generated for text in tiny.TEXTS)
    assert first is not None
    assert second is not None
    assert first != second
    _, tokenizer = tiny.make(second)
    assert tokenizer.tokenize(" the stone") == ["Ġthe", "Ġstone"]
    with pytest.raises(HarnessError, match="samples, word_chain"):
        parse_uri("tiny:llama?text=news")


def test_digests_tell_models_apart() -> None:
    uris = (
        "tiny:llama",
        "tiny:opt",
        "tiny:llama?seed=1",
        "tiny:llama?tokens=600",
        "tiny:llama?tokenizer=byte_fallback",
    )
    assert len({source_digest(parse_uri(uri)) for uri in uris}) == len(uris)
    assert source_digest(parse_uri("tiny:llama?seed=0")) == source_digest(parse_uri("tiny:llama"))


KINDS = [(a, f) for a in tiny.ARCHITECTURES for f in tiny.TOKENIZERS if (a, f) != ("qwen2", "byte_fallback")]


@pytest.mark.parametrize(("architecture", "family"), KINDS)
def test_models_load_and_their_tokenizers_lose_nothing(architecture: str, family: str) -> None:
    uri = parse_uri(f"tiny:{architecture}?tokenizer={family}&width=32&layers=1")
    assert is_downloaded(uri)  # needs no network
    folder = resolve(uri).folder
    model = load_model(folder, attention="eager" if architecture == "gemma2" else "sdpa")
    tokenizer = load_tokenizer(folder)
    assert type(model).__name__.lower().startswith(architecture)
    assert len(tokenizer) == 512 + (architecture == "qwen2") < model.config.vocab_size
    check_head(model, architecture)
    ids = tokenizer(ROUND_TRIP_TEXT, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == ROUND_TRIP_TEXT
    sample = next(iter(tiny._texts()))
    assert len(tokenizer(sample, add_special_tokens=False).input_ids) < 0.8 * len(sample.encode())  # it has learnt


def test_another_process_makes_the_same_files(tmp_path: Path) -> None:
    """Whatever the state of its generators, and of hashing."""
    uris = ("tiny:qwen2?layers=1", "tiny:gemma2?tokenizer=byte_fallback&layers=1")
    torch.manual_seed(5)
    here = [resolve(parse_uri(uri)).folder for uri in uris]
    code = (
        "import sys; from harness.models.resolve import resolve; from harness.models.uri import parse_uri\n"
        f"for uri in {uris!r}: print(resolve(parse_uri(uri)).folder)"
    )
    environment: Any = __import__("os").environ | {"HARNESS_CACHE": str(tmp_path / "other"), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for mine, other in zip(here, map(Path, done.stdout.splitlines()), strict=True):
        assert mine.name == other.name
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            assert sha256_file(mine / name) == sha256_file(other / name), name


def test_a_model_is_made_once_and_a_broken_one_again() -> None:
    folder = resolve(parse_uri("tiny:llama?layers=1")).folder
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve(parse_uri("tiny:llama?layers=1")).folder == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    (folder / "model.safetensors").unlink()
    resolve(parse_uri("tiny:llama?layers=1"))
    assert (folder / "model.safetensors").is_file()


def test_seeds_change_weights_only() -> None:
    (one, tokenizer), (two, other) = (tiny.make(tiny.TinyModel("llama", layers=1, seed=seed)) for seed in (0, 1))
    assert tokenizer.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert not torch.equal(one.get_input_embeddings().weight, two.get_input_embeddings().weight)


def test_chats_end_with_the_token_that_ends_responses() -> None:
    _, tokenizer = tiny.make(tiny.TinyModel("llama", layers=1))
    side = TextSide(tokenizer, template="chat", name="tiny")
    assert side.eos == tokenizer.eos_token_id
    (prompt,) = side.prompts(["Hello!"])
    assert tokenizer.decode(prompt) == "<s>user\nHello!</s>\n<s>assistant\n"
