"""Generation: an answer depends on its prompt, its id and the seed, and on nothing else that runs beside it."""

from __future__ import annotations

import copy
import functools
import itertools
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, DynamicLayer

from harness.base.errors import HarnessError
from harness.base.identity import seed_of
from harness.data.rows import Request
from harness.data.templates import TextSide
from harness.generation.answers import Answer, check_room, generate
from harness.generation.per_row import SEGMENT, cut_at_stop
from harness.models.publisher import PublisherSettings
from tests import tiny

REQUESTS = [Request(f"x/{i}", prompt * (1 + i % 3)) for i, (prompt, _) in enumerate([*tiny.SAMPLES, *tiny.SAMPLES])]


@pytest.fixture(scope="module")
def side() -> TextSide:
    return TextSide(tiny.tokenizer("byte_level"), template="plain", name="tiny")


@pytest.fixture(scope="module", params=["qwen2", "opt"])
def model(request: pytest.FixtureRequest, side: TextSide) -> Any:
    return tiny.model(request.param, len(side.vocabulary))


def answers(
    model: Any, side: TextSide, requests: Sequence[Request] = REQUESTS, *, seed: int | None = None, **more: Any
) -> list[Answer]:
    seeded = [replace(request, seed=seed) for request in requests]
    return generate(model, side, seeded, **({"new_tokens": 12, "batch_size": 8} | more))


def bigram(side: TextSide, table: torch.Tensor) -> Any:
    """A model whose next token depends on the last one only: [vocabulary, vocabulary] logits."""
    made = tiny.model("qwen2", len(side.vocabulary))
    own = made.forward

    @functools.wraps(own)
    def forward(*args: Any, **inputs: Any) -> Any:
        output = own(*args, **inputs)
        output.logits = table[inputs["input_ids"]][:, -output.logits.shape[1] :]
        return output

    made.forward = forward
    return made


def speller(side: TextSide, text: str, end: str = "</s>") -> Any:
    """A model that spells a text, one byte a token; each byte stands in it once."""
    ids = [side.tokenizer.convert_tokens_to_ids(letter) for letter in [*text, end]]
    table = torch.zeros(len(side.vocabulary), len(side.vocabulary))
    table[:, ids[0]] = 1.0
    for here, there in itertools.pairwise(ids):
        table[here] = 0.0
        table[here, there] = 1.0
    return bigram(side, 100 * table)


# --- Greedy decoding --------------------------------------------------------------------------------------------------


def test_greedy_is_transformers_own_and_padding_changes_nothing(model: Any, side: TextSide) -> None:
    """Each prompt alone, without padding and through transformers only, against all of them in one padded batch."""
    for request, answer in zip(REQUESTS, answers(model, side), strict=True):
        ids = torch.tensor(side.plain_prompts([request.prompt]))
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        assert answer.output == side.tokenizer.decode(alone[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer.prompt == request.prompt


def test_a_publishers_settings_are_no_part_of_the_protocol(model: Any, side: TextSide) -> None:
    """Qwen2.5's repetition penalty of 1.1 would change greedy answers, its top_p what T=1 means."""
    expected = answers(model, side), answers(model, side, seed=3)
    own = model.generation_config
    changed = copy.deepcopy(own)
    changed.update(repetition_penalty=5.0, no_repeat_ngram_size=1, top_k=1, temperature=0.1, max_length=5)
    model.generation_config = changed
    try:
        assert (answers(model, side), answers(model, side, seed=3)) == expected
        assert model.generation_config is changed
    finally:
        model.generation_config = own


# --- Sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_batching_and_order_do_not_change_a_sample(model: Any, side: TextSide, batch_size: int) -> None:
    expected = {answer.id: answer for answer in answers(model, side, seed=10)}
    for requests in (REQUESTS, REQUESTS[::-1], REQUESTS[2:5]):
        found = answers(model, side, requests, seed=10, batch_size=batch_size)
        assert [answer.id for answer in found] == [request.id for request in requests]
        assert found == [expected[request.id] for request in requests]


def test_samples_differ_between_seeds_and_between_ids(model: Any, side: TextSide) -> None:
    assert answers(model, side, seed=1) != answers(model, side, seed=2)
    twins = [Request(name, "Hello") for name in "abcd"]
    assert len({answer.output for answer in answers(model, side, twins, seed=1)}) > 1


def test_several_seeds_and_greedy_answers_in_one_call_stay_themselves(model: Any, side: TextSide) -> None:
    """Each is what it would be in a call of its own, and comes where it was asked for."""
    mixed = [replace(request, seed=seed) for seed in (10, None, 20) for request in REQUESTS]
    found = generate(model, side, mixed, new_tokens=12, batch_size=5)
    assert [(answer.id, answer.seed) for answer in found] == [(request.id, request.seed) for request in mixed]
    for start, seed in zip(range(0, len(mixed), len(REQUESTS)), (10, None, 20), strict=True):
        assert found[start : start + len(REQUESTS)] == answers(model, side, seed=seed)
    assert len({request.key for request in mixed}) == len(mixed)


def test_sampling_leaves_the_global_generator_alone(model: Any, side: TextSide) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    answers(model, side, seed=1)
    assert torch.rand(1) == expected


def test_samples_follow_the_models_distribution(side: TextSide) -> None:
    """Pearson's chi-square over two successive tokens: right probabilities, and draws that are independent."""
    letters = "abcde"
    ids = side.tokenizer.convert_tokens_to_ids(list(letters))
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.08, 0.02])
    table = torch.full((len(side.vocabulary), len(side.vocabulary)), -1e9)
    table[:, ids] = probabilities.log() + 3.0  # an offset that the softmax takes out
    count = 3000
    requests = [Request(f"draw/{i}", "x") for i in range(count)]
    found = Counter(
        answer.output for answer in answers(bigram(side, table), side, requests, seed=0, new_tokens=2, batch_size=1000)
    )
    expected = {
        first + second: count * float(p * q)
        for first, p in zip(letters, probabilities, strict=True)
        for second, q in zip(letters, probabilities, strict=True)
    }
    assert set(found) <= set(expected)
    chi_square = sum((found[pair] - mean) ** 2 / mean for pair, mean in expected.items())
    assert chi_square < 51.2  # 24 degrees of freedom: a right sampler is above in 1 of 1,000 seeds


# --- What is saved ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[*tiny.ARCHITECTURES, "gemma2, window 12"])
def any_model(request: pytest.FixtureRequest, side: TextSide) -> Any:
    """The last one: layers that look back 12 tokens, fewer than any prompt here has, take turns with others."""
    architecture, _, window = request.param.partition(", window ")
    made = tiny.model(architecture, len(side.vocabulary))
    if window:
        made.config.sliding_window = int(window)
        for layer in made.model.layers:
            if layer.self_attn.sliding_window is not None:
                layer.self_attn.sliding_window = int(window)
    return made


class Watched:
    """What a model is asked: sizes of the batches, tokens of each, and columns that its cache holds already."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.cached: list[int] = []
        own = model.forward

        @functools.wraps(own)
        def forward(*args: Any, **inputs: Any) -> Any:
            self.shapes.append(tuple(inputs["input_ids"].shape))
            self.cached.append(inputs["past_key_values"].get_seq_length())
            return own(*args, **inputs)

        model.forward = forward

    @property
    def rows(self) -> list[int]:
        return [rows for rows, _ in self.shapes]

    @property
    def readings(self) -> list[int]:
        """Rows of each pass that reads prompts."""
        return [rows for rows, cached in zip(self.rows, self.cached, strict=True) if not cached]


def alone(model: Any, side: TextSide, request: Request, new_tokens: int) -> list[int]:
    """Ids of an answer by transformers' forward alone: all of the text again for each token, no cache, no padding."""
    ids = side.plain_prompts([request.prompt])[0]
    seed = None if request.seed is None else seed_of("sampling", request.id, request.seed)
    generator = torch.Generator().manual_seed(seed or 0)
    made: list[int] = []
    while len(made) < new_tokens:
        logits = model(torch.tensor([ids + made])).logits[0, -1]
        if seed is not None:
            uniform = torch.rand(logits.shape[-1], generator=generator, dtype=torch.float64)
            logits = logits - (-uniform.log()).log()
        made.append(int(logits.argmax()))
        text = side.tokenizer.decode(made, skip_special_tokens=True)
        if made[-1] in side.eos_ids or any(stop in text for stop in request.stop):
            break
    return made


@torch.no_grad()
def test_an_answer_is_what_it_would_be_alone(any_model: Any, side: TextSide) -> None:
    """Rows that end at different times, at several lengths of prompts; some prompts are there several times."""
    prompts = [" ".join(text for text, _ in tiny.SAMPLES[: 1 + i % 3]) for i in range(5)]
    stops = [(), ("e",), ("t", "o"), ("n",), ("a",)]
    requests = [
        Request(f"x/{i}", prompt, stops[i], seed=seed) for seed in (None, 1, 2) for i, prompt in enumerate(prompts)
    ]
    expected = [alone(any_model, side, request, 24) for request in requests]
    found = generate(any_model, side, requests, new_tokens=24, batch_size=5)
    for request, answer, ids in zip(requests, found, expected, strict=True):
        text, stopped = cut_at_stop(side.tokenizer.decode(ids, skip_special_tokens=True), request.stop)
        reason = "stop string" if stopped else "eos" if ids[-1] in side.eos_ids else "length"
        assert (answer.output, answer.tokens, answer.stop) == (text, len(ids), reason)
    assert {"stop string", "length"} <= {answer.stop for answer in found}


def test_answers_that_have_ended_leave_the_batch(side: TextSide) -> None:
    """With the segment in which they end: the last one goes on alone."""
    model = speller(side, "abc")
    requests = [Request(f"x/{i}", "Hello, you" * (1 + i)) for i in range(4)]
    watched = Watched(model)
    assert [answer.output for answer in generate(model, side, requests, new_tokens=60, batch_size=4)] == ["abc"] * 4
    assert len(watched.shapes) == 4  # all ended at once
    endless = torch.zeros(len(side.vocabulary), len(side.vocabulary))
    endless[:, side.tokenizer.convert_tokens_to_ids("a")] = 1.0
    model = bigram(side, endless)
    watched = Watched(model)
    requests = [Request(f"x/{i}", "Hello", ("aaa",) if i else ()) for i in range(4)]
    found = generate(model, side, requests, new_tokens=60, batch_size=4)
    assert [(answer.tokens, answer.stop) for answer in found] == [(60, "length")] + [(3, "stop string")] * 3
    assert [rows for rows, _ in watched.shapes[-60:]] == [4] * SEGMENT + [1] * (60 - SEGMENT)


def test_a_prompt_with_many_answers_is_read_once(any_model: Any, side: TextSide) -> None:
    requests = [Request(f"x/{i}#{n}", prompt, seed=7) for i, (prompt, _) in enumerate(tiny.SAMPLES) for n in range(5)]
    watched = Watched(any_model)
    found = generate(any_model, side, requests, new_tokens=3, batch_size=20)
    longest = max(map(len, side.plain_prompts([request.prompt for request in requests])))
    assert watched.shapes == [(4, longest - 1), (20, 1), (20, 1), (20, 1)]
    assert len({answer.output for answer in found}) > 4


def test_a_cache_that_can_not_lose_rows_is_left_alone(
    model: Any, side: TextSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of linear attention: one call of transformers, as if nothing could be saved."""
    requests = [Request(f"x/{i}", prompt, ("e",) if i % 2 else ()) for i, (prompt, _) in enumerate(tiny.SAMPLES * 2)]
    expected = generate(model, side, requests, new_tokens=40, batch_size=8)

    class Layer(DynamicLayer):
        def batch_select_indices(self, indices: torch.Tensor) -> None:
            raise AssertionError("rows were taken out")

    monkeypatch.setitem(DYNAMIC_LAYER_TYPE_MAPPING, "full_attention", Layer)
    watched = Watched(model)
    assert generate(model, side, requests, new_tokens=40, batch_size=8) == expected
    assert {rows for rows, _ in watched.shapes} == {8}


# --- Prompts that take the rows of answers that have ended ------------------------------------------------------------

LETTERS = string.ascii_letters + string.digits


def asking(side: TextSide, tokens: int, words: int) -> str:
    """A prompt of some words that a speller of LETTERS answers with so many tokens, EOS included."""
    prompt = "Hello, " * words + "?" + LETTERS[-tokens]
    last = side.plain_prompts([prompt])[0][-1]
    assert side.tokenizer.decode([last]) == LETTERS[-tokens]
    return prompt


@torch.no_grad()
def test_an_answer_is_what_it_would_be_alone_in_a_row_that_another_left(any_model: Any, side: TextSide) -> None:
    """Prompts of 1 to 41 tokens; answers of a few tokens up to two segments and a half."""
    # Eager attention's softmax is of float32, which has no number as low as float64's mask.
    model = any_model if any_model.config._attn_implementation == "eager" else any_model.double()
    texts = [" ".join(text for text, _ in tiny.SAMPLES[: i % 4])[: 15 * i] or "x" for i in range(12)]
    stops = [(), ("e",), ("a", "t"), ("o", "i", "n"), ()]
    requests = [Request(f"x/{i}", text, stops[i % 5], seed=seed) for seed in (None, 1) for i, text in enumerate(texts)]
    lengths = [len(prompt) for prompt in side.plain_prompts(texts)]
    assert (min(lengths), max(lengths)) == (1, 41)
    expected = [alone(model, side, request, 40) for request in requests]
    assert len({len(ids) for ids in expected}) > 6
    watched = Watched(model)
    found = generate(model, side, requests, new_tokens=40, batch_size=4)
    for request, answer, ids in zip(requests, found, expected, strict=True):
        assert answer.output == cut_at_stop(side.tokenizer.decode(ids, skip_special_tokens=True), request.stop)[0]
        assert answer.tokens == len(ids)
    assert max(watched.rows) == 4
    if model.config.model_type == "gemma2":  # whose windows have no room for columns of others
        assert len(watched.readings) == 6
    else:
        assert len(watched.readings) > 6
        assert max(watched.cached) < max(lengths) + 40


def test_prompts_come_in_where_answers_have_ended(side: TextSide) -> None:
    """Three answers end within the first segment, and three prompts are read; they end in their second segment."""
    model = speller(side, LETTERS)
    sizes = [60, 3, 3, 3, 20, 20, 20, 3, 3]
    requests = [Request(f"x/{i}", asking(side, size, 20 - i)) for i, size in enumerate(sizes)]
    watched, done = Watched(model), list[int]()
    found = generate(model, side, requests, new_tokens=61, batch_size=4, on_batch=done.append)
    assert [(answer.output, answer.tokens, answer.stop) for answer in found] == [
        (LETTERS[len(LETTERS) - size + 1 :], size, "eos") for size in sizes
    ]
    assert watched.rows == [4] * SEGMENT + [3] + [4] * (2 * SEGMENT) + [2] + [3] * (60 - 3 * SEGMENT)
    assert watched.readings == [4, 3, 2]
    assert done == [3, 6, 9]


def test_prompts_wait_for_a_quarter_of_the_batch(side: TextSide) -> None:
    """One free row of eight is too few; with a second one, two prompts come in, which are equal and read once."""
    model = speller(side, LETTERS)
    sizes = [60, 60, 60, 60, 60, 60, 20, 4, 5, 5]
    requests = [Request(f"x/{i}", asking(side, size, 20 - min(i, 8))) for i, size in enumerate(sizes)]
    watched = Watched(model)
    assert [answer.tokens for answer in generate(model, side, requests, new_tokens=60, batch_size=8)] == sizes
    assert watched.rows == [8] * SEGMENT + [7] * SEGMENT + [1] + [8] * SEGMENT + [6] * (60 - 3 * SEGMENT)


def test_each_answer_has_its_own_limit(side: TextSide) -> None:
    """It counts from where the prompt came in, which for others is in the middle of their answers."""
    endless = torch.zeros(len(side.vocabulary), len(side.vocabulary))
    endless[:, side.tokenizer.convert_tokens_to_ids("a")] = 1.0
    model = bigram(side, endless)
    requests = [Request(f"x/{i}", "Hello, " * (9 - i), ("aaa",) if i == 1 else ()) for i in range(4)]
    watched = Watched(model)
    found = generate(model, side, requests, new_tokens=24, batch_size=2)
    assert [(answer.output, answer.tokens) for answer in found] == [("a" * 24, 24), ("", 3), *[("a" * 24, 24)] * 2]
    # The first two; the third until the first is at its limit; the fourth until the third is, then alone.
    assert watched.rows == [2] * 16 + [1] + [2] * 8 + [1] + [2] * 16 + [1] * 8


def test_a_batch_is_no_wider_than_its_longest_text(side: TextSide) -> None:
    """However many prompts pass through: padding that no row needs any more goes."""
    model = speller(side, LETTERS)
    sizes = [7, 40, 55, *[40] * 6]  # no two of them end in the same segment
    requests = [Request(f"x/{i}", asking(side, size, 12 - i if i else 60)) for i, size in enumerate(sizes)]
    long, short = (len(prompt) for prompt in side.plain_prompts([request.prompt for request in requests[:2]]))
    assert long > short + 64
    watched = Watched(model)
    assert [answer.tokens for answer in generate(model, side, requests, new_tokens=64, batch_size=2)] == sizes
    assert watched.readings == [2, *[1] * 7]
    assert max(watched.cached[:SEGMENT]) == long + SEGMENT - 2
    assert max(watched.cached[SEGMENT:]) < short + 64


def test_answers_of_windows_wait_for_an_empty_batch(side: TextSide) -> None:
    """Gemma-2's: rows leave, and the next prompts come in when all have."""
    model = tiny.model("gemma2", len(side.vocabulary))
    requests = [Request(f"x/{i}", "Hello, " * (9 - i), tuple(LETTERS) if i % 2 else ()) for i in range(8)]
    watched = Watched(model)
    found = answers(model, side, requests, new_tokens=40, batch_size=4)
    assert [answer.stop for answer in found[1::2]] == ["stop string"] * 4
    assert watched.readings == [4, 4]
    assert min(watched.rows) <= 2


# --- How answers end --------------------------------------------------------------------------------------------------


def test_an_answer_ends_at_eos(side: TextSide) -> None:
    (answer,) = answers(speller(side, "abc"), side, REQUESTS[:1])
    assert (answer.output, answer.tokens, answer.stop) == ("abc", 4, "eos")


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("end", ["</s>", "<|im_end|>"])
def test_an_answer_ends_at_each_of_its_ends(side: TextSide, template: Literal["plain", "chat"], end: str) -> None:
    """At EOS and at the end of turn, whichever was trained; without the template the publisher's settings name it."""
    tokenizer = copy.deepcopy(side.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    both = TextSide(tokenizer, template=template, name="tiny", publisher=PublisherSettings(ends=(end_of_turn,)))
    assert set(both.eos_ids) == {2, end_of_turn}
    (answer,) = answers(speller(both, "abc", end), both, REQUESTS[:1])
    assert (answer.output, answer.tokens, answer.stop) == ("abc", 4, "eos")


def test_an_answer_ends_at_the_limit(side: TextSide) -> None:
    (answer,) = answers(speller(side, "abc"), side, REQUESTS[:1], new_tokens=2)
    assert (answer.output, answer.tokens, answer.stop) == ("ab", 2, "length")


def test_each_row_ends_at_its_own_stop_strings(side: TextSide) -> None:
    """The string is cut off, wherever token boundaries fall; rows that go on do not lengthen those that ended."""
    stops = [("cd", "zzz"), ("ef", "c"), (), ("",), ("xyz",)]
    requests = [Request(f"x/{i}", "Hello" * (i + 1), stop) for i, stop in enumerate(stops)]
    found = answers(speller(side, "abcdef"), side, requests)
    assert [(a.output, a.tokens, a.stop) for a in found] == [
        ("ab", 4, "stop string"),
        ("ab", 3, "stop string"),
        ("abcdef", 7, "eos"),
        ("abcdef", 7, "eos"),
        ("abcdef", 7, "eos"),
    ]


def test_a_stop_string_of_the_prompt_is_none_of_the_answer(side: TextSide) -> None:
    """Not of prompts that come in late either, when columns have gone; what the answer begins with is one."""
    model = speller(side, LETTERS)
    sizes = [3, 40, 30, 4]
    stops = [(), (), (LETTERS[-30],), (LETTERS[-3:-1],)]
    requests = [Request(f"x/{i}", asking(side, size, 20 - 4 * i), stops[i]) for i, size in enumerate(sizes)]
    found = generate(model, side, requests, new_tokens=60, batch_size=2)
    assert [(answer.tokens, answer.stop) for answer in found] == [(size, "eos") for size in sizes[:3]] + [
        (2, "stop string")
    ]


def test_padding_that_is_eos_does_not_hide_a_stop_string(side: TextSide) -> None:
    """SmolLM2 pads with EOS: rows that a stop string ended are filled up with it."""
    tokenizer = copy.deepcopy(side.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    same = TextSide(tokenizer, template="plain", name="tiny")
    requests = [Request("stopped", "Hello", ("c",)), Request("ended", "Hello, you")]
    found = answers(speller(same, "abcdef"), same, requests)
    assert [(a.output, a.tokens, a.stop) for a in found] == [("ab", 3, "stop string"), ("abcdef", 7, "eos")]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("b",), ("a", True)), (("d", "c"), ("ab", True)), (("", "x"), ("abcd", False)), (("abcd",), ("", True)),
        ((), ("abcd", False)),
    ],
)  # fmt: skip
def test_the_first_stop_string_cuts(stop: tuple[str, ...], expected: tuple[str, bool]) -> None:
    assert cut_at_stop("abcd", stop) == expected


# --- Prompts ----------------------------------------------------------------------------------------------------------


def test_a_chat_template_goes_round_prompts_that_are_not_rendered(model: Any, side: TextSide) -> None:
    tokenizer = copy.deepcopy(side.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'USER ' + m.content + ' BOT' if m.role == 'user' else m.content }}{% endfor %}"
    )
    chat = TextSide(tokenizer, template="chat", name="tiny")
    texts = ["Hello", "USER Hello BOT"]
    asked, plain, rendered = answers(model, chat, [Request("a", texts[0])]), *(
        answers(model, chat, [Request("a", text, rendered=True)]) for text in texts
    )  # fmt: skip
    assert asked[0].output == rendered[0].output != plain[0].output


@pytest.mark.parametrize("seed", [None, 3])
def test_a_prompt_over_the_limit_loses_its_end(model: Any, side: TextSide, seed: int | None) -> None:
    """Tokens, not characters, and as many as asked for: the answer is that to the shorter text."""
    words = ["The quick brown fox", "jumps over the lazy dog, and the dog does not mind at all."]
    whole = Request("x/0", " ".join(words), prompt_tokens=len(side.plain_prompts(words[:1])[0]))
    assert side.plain_prompts([whole.prompt])[0][: whole.prompt_tokens] == side.plain_prompts(words[:1])[0]
    short, other = Request("x/0", words[0]), Request("x/1", "Hello", prompt_tokens=100)
    (cut, untouched), (expected,) = (answers(model, side, asked, seed=seed) for asked in ([whole, other], [short]))
    assert (cut.output, cut.tokens, cut.stop) == (expected.output, expected.tokens, expected.stop)
    assert (cut.prompt_cut, untouched.prompt_cut, expected.prompt_cut) == (True, False, False)
    assert cut.prompt == whole.prompt  # what was asked stays on record whole


def test_a_prompt_without_bos_is_the_text_alone(model: Any) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer("byte_level"))
    bare = TextSide(tokenizer, template="plain", name="tiny")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    with_bos = TextSide(tokenizer, template="plain", name="tiny")
    cut = [replace(request, prompt_tokens=5) for request in REQUESTS]
    without = answers(model, with_bos, [replace(request, bos=False) for request in cut])
    assert without == answers(model, bare, cut) != answers(model, with_bos, cut)


def test_a_cut_prompt_needs_less_room(model: Any, side: TextSide) -> None:
    long = Request("x/9", "Hello " * 2000)
    room = model.config.max_position_embeddings
    with pytest.raises(HarnessError, match=r"x/9: found a prompt of"):
        check_room(model.config, side, [long], 5)
    check_room(model.config, side, [replace(long, prompt_tokens=room - 5)], 5)
    with pytest.raises(HarnessError, match=rf"x/9: found a prompt of {room - 4} tokens and 5 new ones"):
        check_room(model.config, side, [replace(long, prompt_tokens=room - 4)], 5)


def test_a_prompt_that_leaves_no_room_is_an_error(model: Any, side: TextSide) -> None:
    """Before a model is trained: not after hours, and not as nonsense beyond the positions that it knows."""
    long = Request("x/9", "Hello " * 200)
    room = len(side.plain_prompts([long.prompt])[0])
    model.config.max_position_embeddings, own = room + 5, model.config.max_position_embeddings
    try:
        check_room(model.config, side, [long], 5)
        with pytest.raises(HarnessError, match=rf"x/9: found a prompt of {room} tokens and 6 new ones"):
            check_room(model.config, side, [*REQUESTS, long], 6)
    finally:
        model.config.max_position_embeddings = own
