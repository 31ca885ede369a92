"""What is checked before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.base.errors import HarnessError
from harness.base.progress import Silent
from harness.run.preflight import preflight
from tests.harness.run.place import alone


@pytest.mark.parametrize(
    ("packed", "stages", "checked"),
    [
        (["warm_start", "train"], ["teacher"], []),
        (["teacher"], ["teacher"], ["cross", "same"]),
        (["warm_start"], [], ["student"]),
        (["train"], [], ["student"]),
        ([], [], []),
    ],
)
def test_packing_is_checked_with_the_models_that_it_trains(
    packed: list[str],
    stages: list[str],
    checked: list[str],
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("harness.run.preflight.check_packing", lambda model: seen.append(Path(model.name_or_path).name))
    runner = alone(tiny_recipe, tmp_path, stages=stages, packed=packed)
    preflight(runner.plan, runner.bench, Silent(), unsafe=False)
    assert seen == checked


class Heard(Silent):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def checked(recipe: dict[str, Any], tmp_path: Path) -> list[str]:
    heard, runner = Heard(), alone(recipe, tmp_path, stages=[], packed=[])
    preflight(runner.plan, runner.bench, heard, unsafe=False)
    return heard.messages


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    tiny_recipe: dict[str, Any], tiny_models: Path, tmp_path: Path
) -> None:
    """Else a run goes well until a text holds one of the tokens beyond."""
    folder = Path(shutil.copytree(tiny_models / "cross", tmp_path / "cross"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})  # as Gemma 3's: no text holds it
    tokenizer.save_pretrained(folder)
    teachers = {"cross": tiny_recipe["teachers"]["cross"] | {"model": f"path:{folder}"}}
    recipe = tiny_recipe | {"teachers": tiny_recipe["teachers"] | teachers}
    assert not [text for text in checked(recipe, tmp_path) if "tokenizer" in text]
    tokenizer.add_tokens(["sheep"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        HarnessError,
        match=r"model of cross teacher: found .* 1 tokens of its tokenizer",
    ):
        checked(recipe, tmp_path / "again")


def test_a_cross_teacher_with_the_students_tokenizer_is_told(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    teachers = tiny_recipe["teachers"]
    same = tiny_recipe | {"teachers": teachers | {"cross": teachers["same"]}, "methods": ["uld"]}
    assert [text for text in checked(same, tmp_path) if "has the student's own tokenizer" in text]


def test_what_a_publisher_asks_of_decoding_is_named_and_set_aside(
    tiny_recipe: dict[str, Any], tiny_models: Path, tmp_path: Path
) -> None:
    """Qwen's file asks for sampling and a penalty; ids of tokens, and settings that are off, ask for nothing."""
    folder = Path(shutil.copytree(tiny_models / "student", tmp_path / "student"))
    asked = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05, "num_beams": 1}
    known = {"eos_token_id": [2, 3], "transformers_version": "5.0.0", "top_p": 1.0, "suppress_tokens": None}
    (folder / "generation_config.json").write_text(json.dumps(asked | known))
    told = checked(tiny_recipe | {"student": {"model": f"path:{folder}"}}, tmp_path)
    (line,) = (text for text in told if "generation_config.json" in text)
    wishes = "do_sample true, repetition_penalty 1.05, temperature 0.7, top_k 20"
    assert line.startswith(f"student: its generation_config.json asks for {wishes}; set aside")


@pytest.mark.parametrize("section", ["teacher", "warm_start", "train"])
def test_a_batch_that_processes_can_not_share_is_told_before_anything_runs(
    section: str, tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {name: tiny_recipe[name] | {"batch_size": 8} for name in ("teacher", "warm_start", "train")}
    sizes[section] |= {"batch_size": 12}
    runner = alone(tiny_recipe, tmp_path, stages=[], **sizes)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(
        HarnessError, match=rf"^{section}\.batch_size: found 12, for 8 processes; expected a multiple of 8"
    ):
        preflight(runner.plan, runner.bench, Silent(), unsafe=False)


def test_pieces_of_a_model_want_processes_and_no_sampled_responses(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that samples reads all of its weights for as many tokens as its own process has, and no other."""
    options = {"method_options": tiny_recipe["method_options"] | {"gold": {"rollout_share": 0.5}}}
    recipe = tiny_recipe | options | {"train": tiny_recipe["train"] | {"shard": True}}
    (line,) = (text for text in checked(recipe, tmp_path) if ".shard" in text)
    assert line.startswith("[yellow]train.shard[/]: one process has nobody to share weights with")
    monkeypatch.setenv("WORLD_SIZE", "2")
    whole, sampled = (alone(recipe, tmp_path / name, stages=[], methods=[name]) for name in ("uld", "gold"))
    preflight(whole.plan, whole.bench, Silent(), unsafe=False)
    with pytest.raises(HarnessError, match=r"^train\.shard: found true, with gold, whose student samples .* to false"):
        preflight(sampled.plan, sampled.bench, Silent(), unsafe=False)
