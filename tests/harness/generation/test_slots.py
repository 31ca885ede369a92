"""Decoding in slots: greedy answers and samples are those of plain `generate`, whatever shares the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.device import rows_at_a_time
from harness.data.rows import Request
from harness.data.templates import TextSide
from harness.generation import per_row, slots
from harness.generation.answers import generate
from harness.generation.per_row import SEGMENT, GumbelNoise, StopStrings, _Ending, text_until_stop
from harness.plan.costs.decoding import ANSWERS_AT_A_TIME
from tests import tiny
from tests.harness.generation.test_answers import LETTERS, Watched, asking, speller

NEW = SEGMENT + 4
TEXTS = [" ".join(text for text, _ in tiny.SAMPLES[: i % 4])[: 15 * i] or "x" for i in range(9)]
REQUESTS = [Request(f"x/{i}", text, ("e", "t") if i % 3 else ()) for i, text in enumerate([*TEXTS, TEXTS[8]])]


@pytest.fixture(scope="module")
def side() -> TextSide:
    """With two tokens that end an answer, one of which tiny models often make."""
    made = TextSide(tiny.tokenizer("byte_level"), template="plain", name="tiny")
    made.eos_ids = (*made.eos_ids, made.tokenizer.convert_tokens_to_ids("s"))
    return made


@pytest.fixture(scope="module", params=[*tiny.ARCHITECTURES, "gemma2, window 12", "phi3, window 12"])
def model(request: pytest.FixtureRequest, side: TextSide) -> Any:
    """The last ones: all layers, or every other one, look back 12 tokens, fewer than most prompts have."""
    architecture, _, window = request.param.partition(", window ")
    made = tiny.model(architecture, len(side.vocabulary))
    if window:
        made.config.sliding_window = int(window)
        for layer in made.model.layers if architecture == "gemma2" else ():
            if layer.self_attn.sliding_window is not None:
                layer.self_attn.sliding_window = int(window)
    return made.eval()


@torch.no_grad()
def plain(model: Any, side: TextSide, request: Request) -> tuple[str, int]:
    """Text and tokens of a greedy answer by transformers alone: one prompt, no padding."""
    ids = torch.tensor(side.plain_prompts([request.prompt]))
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=list(side.eos_ids),
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    ends = [n for n, token in enumerate(made) if token in side.eos_ids]
    own = made[: ends[0]] if ends else made
    for n in range(1, len(own) + 1):
        text, stopped = text_until_stop(side, request, own[:n])
        if stopped:
            return text, n
    return side.answer_text(own), len(own) + bool(ends)


def test_greedy_answers_are_those_of_plain_generate(model: Any, side: TextSide) -> None:
    """Prompts of 1 to 41 tokens, one of them twice; slots for one, some and all of them."""
    assert slots.takes_slots(model)
    texts = [plain(model, side, replace(request, stop=()))[0] for request in REQUESTS]
    # every other one stops at what it says itself, sooner or later
    stops = [(text[2 * i : 2 * i + 2], "\n\n\n") if i % 2 else () for i, text in enumerate(texts)]
    requests = [replace(request, stop=stop) for request, stop in zip(REQUESTS, stops, strict=True)]
    expected = [plain(model, side, request) for request in requests]
    assert len({tokens for _, tokens in expected}) > 2
    for size in (1, 3, len(requests)):
        watched = Watched(model)
        found = generate(model, side, requests, new_tokens=NEW, batch_size=size, decoding="slots")
        assert [(answer.output, answer.tokens) for answer in found] == expected
        assert {rows for rows, columns in watched.shapes if columns == 1 and rows > 1} <= {size}
        model.forward = model.forward.__wrapped__
    assert {answer.stop for answer in found} >= {"stop string"}


@pytest.mark.parametrize("size", [1, 4])
def test_keys_and_values_may_differ_in_precision_as_under_autocast(model: Any, side: TextSide, size: int) -> None:
    """Float32 weights in bfloat16: values of a prompt's tokens are float32, as rotated keys are, later ones bfloat16.

    Logits are bfloat16 and may be level, so that another shape of the same sums may choose another token.
    """
    with torch.autocast("cpu", torch.bfloat16):
        expected = generate(model, side, REQUESTS, new_tokens=NEW, batch_size=1, decoding="batch")
        found = generate(model, side, REQUESTS, new_tokens=NEW, batch_size=size, decoding="slots")
    same = sum(ours.output == theirs.output for ours, theirs in zip(found, expected, strict=True))
    assert same >= len(REQUESTS) // 3


def test_samples_are_those_of_the_batch_that_grows_and_shrinks(side: TextSide) -> None:
    model = tiny.model("llama", len(side.vocabulary))
    requests = [replace(request, id=f"{request.id}#{seed}", seed=seed) for seed in (1, 2) for request in REQUESTS]
    expected = generate(model, side, requests, new_tokens=NEW, batch_size=len(requests), decoding="batch")
    assert generate(model, side, requests, new_tokens=NEW, batch_size=7, decoding="slots") == expected


def test_prompts_take_the_slots_of_answers_that_have_ended() -> None:
    """Four slots: one answer of 60 tokens, and eleven of 2 that take turns in the other three."""
    side = FAMILY_SIDES[0]
    model = speller(side, LETTERS)
    watched = Watched(model)
    sizes = [60, *[2] * 11]
    requests = [
        Request(f"x/{i}", asking(side, size, 3 + (size == 60))) for i, size in enumerate(sizes)
    ]  # longest first
    found = generate(model, side, requests, new_tokens=62, batch_size=4, decoding="slots")
    assert [answer.tokens for answer in found] == sizes
    assert [rows for rows, columns in watched.shapes if columns == 1] == [4] * 4 * SEGMENT
    assert sum(columns > 1 for _, columns in watched.shapes) == 4  # readings: four at first, then thrice three


def test_a_model_that_keeps_more_than_keys_takes_no_slots(side: TextSide, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("qwen2", len(side.vocabulary))
    expected = generate(model, side, REQUESTS, new_tokens=NEW, batch_size=4, decoding="batch")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    assert not slots.takes_slots(model)
    monkeypatch.undo()
    monkeypatch.setattr(slots, "cache_of", lambda model: None)
    assert not slots.takes_slots(model)
    monkeypatch.undo()
    assert generate(model, side, REQUESTS, new_tokens=NEW, batch_size=4, decoding="slots") == expected


# --- Stop strings among the newest bytes ------------------------------------------------------------------------------

FAMILY_SIDES = [TextSide(tiny.tokenizer(family), template="plain", name=family) for family in tiny.FAMILIES]


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    side=st.sampled_from(FAMILY_SIDES),
    stops=st.lists(st.sampled_from(["a", " a", "the", "\n\n", "e t", "é", "�", "</s>", "", "  "]), max_size=3),
    continues=st.booleans(),
    step=st.sampled_from([1, 1, 5]),
)
def test_the_newest_bytes_tell_what_the_whole_text_tells(
    data: st.DataObject, side: TextSide, stops: list[str], continues: bool, step: int
) -> None:
    """Against spelling all of the answer after each look, for tokens of any kind, special and unknown ones included."""
    frequent = [i for text in (" a the", "et\n\n", "é e t") for i in side.responses([text])[0].tolist()]
    token = st.one_of(st.sampled_from(frequent), st.integers(0, len(side.vocabulary) + 3))
    ids = data.draw(st.lists(token, max_size=15))
    request = Request("x", "", tuple(stops), continues=continues)
    ending = _Ending(side, request)
    for start in range(0, len(ids), step):
        ending.see(ids[start : start + step])
        assert ending.done == any(
            text_until_stop(side, request, ids[: end + step])[1] for end in range(0, start + 1, step)
        )


def test_an_answer_is_not_spelled_for_each_token(side: TextSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, where a stop string comes at last."""
    spelled = []
    own = TextSide.answer_text
    monkeypatch.setattr(TextSide, "answer_text", lambda *args: spelled.append(len(args[1])) or own(*args))
    stopping = StopStrings(side, [Request("x", "", ("Question:", "\n\n"))])
    stopping.add([0])
    ids = side.responses(["It is a long answer. Is it? " * 20 + "Question: no"])[0]
    assert [stopping.see(0, [token]) for token in np.asarray(ids).tolist()].index(True) == spelled[0] - 1
    assert len(spelled) == 1


# --- How many at a time -----------------------------------------------------------------------------------------------


def test_auto_takes_what_half_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * 2**30)
    for free_gib, expected in ((3, 32), (1.2, 16), (0.5, 8), (-0.5, 4), (-1, 1), (63, 256)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free_gib: (int(free * 2**30), 0))
        assert rows_at_a_time("auto", 2**26, gpu) == expected  # 16 of them are a GiB, of which half is taken
    assert rows_at_a_time("auto", 2**26, cpu) == 16
    assert rows_at_a_time(3, 2**40, gpu) == 3
    assert ANSWERS_AT_A_TIME == 256


def test_bytes_of_an_answer_are_those_of_its_cache(side: TextSide) -> None:
    """Counted in the cache of one pass: keys and values of all layers, of a model whose heads share keys."""
    for architecture in ("gemma2", "qwen2", "opt"):
        made = tiny.model(architecture, len(side.vocabulary))
        cache = made(torch.ones(1, 7, dtype=torch.int64), use_cache=True).past_key_values
        kept = sum(one.keys.nbytes + one.values.nbytes for one in cache.layers)
        assert slots.slot_bytes(made, 7) - slots.slot_bytes(made, 0) == kept


def test_draws_of_many_rows_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn by threads or one after the other."""
    draws = [(f"x/{i}", 7) for i in range(5)]
    scores, alone = torch.zeros(5, 40), []
    for many in (10**9, 0, 0):
        monkeypatch.setattr(per_row, "MANY", many)
        noise = GumbelNoise(draws)
        noise.add(range(5))
        alone.append(torch.stack([noise(scores, scores) for _ in range(3)]))
    assert torch.equal(alone[0], alone[1])
    assert torch.equal(alone[0], alone[2])
    single = GumbelNoise(draws)
    single.add([3])
    assert torch.equal(single(scores[:1], scores[:1])[0], alone[0][0, 3])
