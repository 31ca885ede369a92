"""Generation through vLLM, against a stand-in with vLLM's interface: what it is asked, and what becomes of its answers.

vLLM itself needs a GPU, and is not run by these tests.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.base.identity import seed_of
from harness.data.rows import Request
from harness.data.templates import TextSide
from harness.generation import vllm as vllm_engine
from harness.generation.answers import generate
from harness.plan.builder import make_plan
from harness.plan.stages import Plan
from harness.recipe.load import validate
from tests import tiny
from tests.conftest import Command


@dataclass
class SamplingParams:
    """The fields of vLLM's that are used, with its defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True


@dataclass
class CompletionOutput:
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: int | str | None


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


class LLM:
    """Greedy decoding of the model in a folder, which ends as vLLM's does."""

    made: list[LLM] = []  # noqa: RUF012

    def __init__(self, model: str, **settings: Any) -> None:
        LLM.made.append(self)
        self.settings = settings
        self.files = sorted(path.name for path in Path(model).iterdir())
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings["dtype"]))
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        assert not use_tqdm
        self.prompts, self.params = [prompt["prompt_token_ids"] for prompt in prompts], sampling_params
        return [
            RequestOutput([self._one(prompt, params)]) for prompt, params in zip(self.prompts, self.params, strict=True)
        ]

    @torch.no_grad()
    def _one(self, prompt: list[int], params: SamplingParams) -> CompletionOutput:
        made: list[int] = []
        assert params.max_tokens is not None
        while len(made) < params.max_tokens:
            made.append(int(self.model(torch.tensor([prompt + made])).logits[0, -1].argmax()))
            text = self.tokenizer.decode(made, skip_special_tokens=params.skip_special_tokens)
            if made[-1] in (params.stop_token_ids or []):
                return CompletionOutput(text, tuple(made), "stop", made[-1])
            for stop in params.stop or []:
                if stop in text:
                    return CompletionOutput(text.split(stop)[0], tuple(made), "stop", stop)
        return CompletionOutput(text, tuple(made), "length", None)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """The stand-in, installed."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    own: Callable[[str], str] = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.99.0" if name == "vllm" else own(name))
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM


@pytest.fixture(scope="module")
def side() -> TextSide:
    return TextSide(tiny.tokenizer("byte_level"), template="plain", name="tiny")


REQUESTS = [
    Request("x/0", "Hello"),
    Request("x/1", "What is 2 + 2?", ("e", "")),
    Request("x/2", "The quick brown fox jumps over the lazy dog", ("zzz",), prompt_tokens=9),
    Request("x/3", "Name a city", seed=10),
    Request("x/3", "Name a city", seed=20),
]


def test_what_is_asked_of_it(vllm: type[LLM], side: TextSide) -> None:
    """Prompts as tokens, cut as ever; ends, limits and seeds of our own, nothing of the publisher's."""
    model = tiny.model("llama", len(side.vocabulary), dtype=torch.bfloat16)
    done: list[int] = []
    vllm_engine.generate(model, side, REQUESTS, new_tokens=5, on_batch=done.append)
    (engine,) = vllm.made
    prompts = [side.plain_prompts([request.prompt])[0][: request.prompt_tokens] for request in REQUESTS]
    assert engine.prompts == prompts
    assert len(prompts[2]) == 9
    assert engine.settings == {
        "dtype": "bfloat16",
        "generation_config": "vllm",
        "max_model_len": max(map(len, prompts)) + 5,
        "gpu_memory_utilization": 0.8,
        "seed": 0,
    }
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(engine.files)
    greedy = SamplingParams(
        temperature=0.0, seed=None, max_tokens=5, stop=[], stop_token_ids=[2], ignore_eos=True, skip_special_tokens=True
    )
    seeds = [seed_of("sampling", "x/3", seed) for seed in (10, 20)]
    assert engine.params == [
        greedy,
        replace(greedy, stop=["e"]),
        replace(greedy, stop=["zzz"]),
        *(replace(greedy, temperature=1.0, seed=seed) for seed in seeds),
    ]
    assert seeds[0] != seeds[1]
    assert done == [5]


@pytest.mark.parametrize("new_tokens", [4, 30])
def test_answers_are_those_of_transformers_for_the_same_tokens(
    vllm: type[LLM], side: TextSide, new_tokens: int
) -> None:
    """Text, count of tokens, how it ended, whether the prompt was cut."""
    model = tiny.model("llama", len(side.vocabulary))
    greedy = [replace(request, seed=None) for request in REQUESTS[:4]]
    found = vllm_engine.generate(model, side, greedy, new_tokens=new_tokens)
    assert found == generate(model, side, greedy, new_tokens=new_tokens, batch_size=4)
    assert [answer.prompt_cut for answer in found] == [False, False, True, False]
    # on each end of sequence, whether vLLM counts its token or not
    eos = CompletionOutput("", (5, 6, 2), "stop", 2)
    assert vllm_engine._ids(eos) == vllm_engine._ids(replace(eos, token_ids=(5, 6))) == [5, 6, 2]
    assert vllm_engine._ids(CompletionOutput("", (5, 6), "length", None)) == [5, 6]


def planned(tiny_recipe: dict[str, Any], engine: str) -> Plan:
    fields = copy.deepcopy(tiny_recipe) | {"name": "tiny", "methods": ["sft"], "evaluation": {"engine": engine}}
    return make_plan(validate("tiny", fields))


def test_the_engine_is_part_of_what_an_answer_is(
    vllm: type[LLM], tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [planned(tiny_recipe, "hf"), planned(tiny_recipe, "vllm")]
    monkeypatch.setattr(vllm_engine, "installed", lambda: "0.99.1")
    plans.append(planned(tiny_recipe, "vllm"))
    stages = [{stage.kind: stage.identity for stage in plan.stages()} for plan in plans]
    for kind, different in (("student", 1), ("bits", 1), ("answers", 3), ("scores", 3)):
        assert len({by_kind[kind] for by_kind in stages}) == different


def test_a_run_says_what_generated(
    vllm: type[LLM], tiny_recipe: dict[str, Any], harness: Command, tmp_path: Path
) -> None:
    fields = tiny_recipe | {"methods": ["sft"], "tasks": ["gsm8k"], "evaluation": {"engine": "vllm"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(fields))
    done = harness("run", f"recipe={tmp_path / 'tiny.yaml'}", "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    assert len(vllm.made) == 1
    (record,) = (tmp_path / "runs").glob("*/run.json")
    assert any("by vLLM 0.99.0" in line for line in json.loads(record.read_text())["protocol"]["gsm8k"])
    assert "by vLLM 0.99.0" in (record.parent / "report.md").read_text()


def test_without_it_a_plan_says_how_to_get_it_and_a_run_stops(
    tiny_recipe: dict[str, Any], harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "installed", lambda: None)
    fields = tiny_recipe | {"methods": ["fkd"], "tasks": ["gsm8k"], "evaluation": {"engine": "vllm"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(fields))
    asked = [f"recipe={tmp_path / 'tiny.yaml'}", "--runs", tmp_path / "runs"]
    shown = harness("plan", *asked)
    assert shown.code == 0, shown.err
    assert "a run stops here, as vLLM is not installed. Install it: pip install -e '.[vllm]'" in " ".join(
        shown.out.split()
    )
    done = harness("run", *asked)
    assert done.code == 2
    assert "evaluation.engine: found vllm, which is not installed" in " ".join(done.err.split())
    assert not list((tmp_path / "runs").glob("store/*/*/manifest.json"))
    assert harness("run", *asked, "stages=[teacher]").code == 0  # which generates nothing
