"""Generation: prompts -> stored answers. Scores are computed later, from what was stored.

Sampling draws from one generator per example, seeded by (example id, seed), so that batching and order can't change
an answer: adding Gumbel noise to log-probabilities and taking the largest is a draw from the distribution.

What is saved: batches hold prompts of like length, a prompt that is answered several times (samples, sampling seeds) is
read once, and answers that have ended leave the batch every ``SEGMENT`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.errors import HarnessError
from harness.identity import seed_of
from harness.tasks import Request
from harness.tokens import TextSide

SEGMENT = 16
"""New tokens between two looks at which answers have ended; taking rows out costs about as much as one token."""


@dataclass(frozen=True)
class Answer:
    """What a student said.

    Attributes:
        id: of the test item.
        seed: of the sampling; None for a greedy answer.
        prompt: what it was given, in text, before the model's own template.
        output: decoded answer, cut before the first stop string; special tokens left out.
        tokens: generated tokens, the one that ended the answer included.
        stop: "eos", "stop string" or "length".
        prompt_cut: whether the prompt was longer than the request allows, and lost its end.
    """

    id: str
    seed: int | None
    prompt: str
    output: str
    tokens: int
    stop: str
    prompt_cut: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def generate(
    model: Any,
    side: TextSide,
    requests: Sequence[Request],
    *,
    new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answers in the order of the requests.

    Args:
        requests: greedy ones and sampled ones, the same item with several seeds too.
        new_tokens: the most tokens of an answer.
        on_batch: called with the number of requests done.
    """
    prompts = prompt_tokens(side, requests)
    answers: dict[int, Answer] = {}
    model.eval()
    cut = [cut_prompt(prompt, request) for prompt, request in zip(prompts, requests, strict=True)]
    for greedy in (True, False):
        mine = [place for place, request in enumerate(requests) if (request.seed is None) is greedy]
        # Longest first: batches pad little, and memory runs out in the first batch or never. Equal ones come together.
        order = sorted(mine, key=lambda place: (-len(cut[place]), cut[place]))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            made = _generate_batch(model, side, [requests[p] for p in places], [prompts[p] for p in places], new_tokens)
            answers.update(zip(places, made, strict=True))
            on_batch(len(answers))
    return [answers[place] for place in range(len(requests))]


def prompt_tokens(side: TextSide, requests: Sequence[Request]) -> list[list[int]]:
    """Token ids of whole prompts, BOS included where the request does not refuse it."""
    texts = [request.prompt for request in requests]
    plain = [
        ids if request.bos else ids[len(side.bos) :]
        for ids, request in zip(side.plain_prompts(texts), requests, strict=True)
    ]
    if side.template == "plain":
        return plain
    templated = side.prompts(texts)
    return [plain[i] if request.rendered else templated[i] for i, request in enumerate(requests)]


def cut_prompt(prompt: list[int], request: Request) -> list[int]:
    """What the model reads: a prompt over the limit loses its end, as in DSKD's evaluation."""
    return prompt[: request.prompt_tokens]


def check_room(config: Any, side: TextSide, requests: Sequence[Request], new_tokens: int) -> None:
    """Check, before a model is trained, that it can read each prompt and what it may answer.

    Args:
        config: of the model.

    Raises:
        HarnessError: a prompt that leaves the model no room.
    """
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    for request, prompt in zip(requests, prompt_tokens(side, requests), strict=True):
        length = len(cut_prompt(prompt, request))
        if room is not None and length + new_tokens > room:
            raise HarnessError(
                f"test item {request.id}",
                f"a prompt of {length} tokens and {new_tokens} new ones",
                f"at most {room} together, which is what {side.name} reads",
                "Lower the task's new_tokens, its prompt_tokens or its few_shot.",
            )


def _generate_batch(
    model: Any,
    side: TextSide,
    requests: Sequence[Request],
    whole_prompts: Sequence[list[int]],
    new_tokens: int,
) -> list[Answer]:
    """Answers of one batch, all of them greedy or all of them sampled."""
    prompts = [cut_prompt(prompt, request) for prompt, request in zip(whole_prompts, requests, strict=True)]
    width = max(map(len, prompts))
    stops = _StopStrings(side.tokenizer, [request.stop for request in requests], width)
    draws = [(request.id, request.seed) for request in requests if request.seed is not None]
    noise = [GumbelNoise(draws)] if draws else []
    made = continue_prompts(model, side, prompts, new_tokens=new_tokens, processors=noise, stopping=[stops])
    return [
        answer_of(side.tokenizer, side.eos_ids, request, ids, prompt_cut=len(prompt) < len(whole))
        for request, ids, prompt, whole in zip(requests, made, prompts, whole_prompts, strict=True)
    ]


def continue_prompts(
    model: Any,
    side: TextSide,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    processors: Sequence[LogitsProcessor],
    stopping: Sequence[_StopStrings] = (),
) -> list[list[int]]:
    """Generated ids of each prompt, padding after the end included. One batch, padded on the left.

    Args:
        processors: of logits; what keeps something of each row is a ``PerRow``.
    """
    pad, device = side.tokenizer.pad_token_id, next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    made: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # those whose answers go on
    cache = _cache(model)
    segment = new_tokens if cache is None else SEGMENT
    with _own_settings_off(model):
        if cache is not None:
            _read_once(model, prompts, ids, mask, cache)
        while rows and len(made[rows[0]]) < new_tokens:
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=min(segment, new_tokens - len(made[rows[0]])),
                do_sample=False,
                eos_token_id=list(side.eos_ids),
                pad_token_id=pad,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList(stopping),
                return_dict_in_generate=True,
            )
            new = output.sequences[:, ids.shape[1] :]
            for row, tokens in zip(rows, new.tolist(), strict=True):
                made[row] += tokens
            if cache is None:
                break
            ids, mask = output.sequences, torch.cat([mask, torch.ones_like(new)], dim=1)
            ended = torch.isin(new, torch.tensor(side.eos_ids, device=device)).any(1).tolist()
            kept = [place for place, eos in enumerate(ended) if not (eos or any(one.done[place] for one in stopping))]
            if len(kept) < len(rows):
                rows = [rows[place] for place in kept]
                ids, mask = ids[kept], mask[kept]
                cache.batch_select_indices(torch.tensor(kept, dtype=torch.int64, device=device))
                for each in (*processors, *stopping):
                    if isinstance(each, PerRow):
                        each.keep(kept)
    return made


def _cache(model: Any) -> DynamicCache | None:
    """An empty cache whose rows can be taken out and repeated; None for a model that keeps more than keys and values.

    A state of linear attention, say: transformers leaves it as it is where it selects rows.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if known else None


def _read_once(model: Any, prompts: Sequence[Sequence[int]], ids: Tensor, mask: Tensor, cache: DynamicCache) -> None:
    """Where prompts of a padded batch repeat: fill the cache but for the last tokens, reading each prompt once."""
    place = {tuple(prompt): row for row, prompt in reversed(list(enumerate(prompts)))}  # of the first of equals
    if len(place) == len(prompts) or ids.shape[1] == 1:
        return
    first = sorted(place.values())
    model.generate(
        input_ids=ids[first, :-1],
        attention_mask=mask[first, :-1],
        past_key_values=cache,
        max_new_tokens=1,  # which is not kept: the cache ends with what was read
        do_sample=False,
    )
    copies = [first.index(place[tuple(prompt)]) for prompt in prompts]
    cache.batch_select_indices(torch.tensor(copies, dtype=torch.int64, device=ids.device))


class PerRow:
    """What keeps something of each row of a batch."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        raise NotImplementedError


@contextmanager
def _own_settings_off(model: Any) -> Iterator[None]:
    """Without what a model's publisher set for chats (a repetition penalty, say): it is no part of a protocol."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def answer_of(tokenizer: Any, eos_ids: Sequence[int], request: Request, ids: list[int], prompt_cut: bool) -> Answer:
    """The answer that generated ids are; what comes after its end does not count."""
    end = next((place for place, token in enumerate(ids) if token in eos_ids), None)
    ended, own = end is not None, ids[:end]
    text, stopped = cut_at_stop(tokenizer.decode(own, skip_special_tokens=True), request.stop)
    if stopped:
        tokens, reason = _tokens_until_stop(tokenizer, own, request.stop), "stop string"
    else:
        tokens, reason = len(own) + ended, "eos" if ended else "length"
    return Answer(request.id, request.seed, request.prompt, text, tokens, reason, prompt_cut)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    places = [place for string in stop if string and (place := text.find(string)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _tokens_until_stop(tokenizer: Any, ids: list[int], stop: Sequence[str]) -> int:
    """How many tokens it took until a stop string was complete; the batch may have gone on for other rows."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if cut_at_stop(tokenizer.decode(ids[:middle], skip_special_tokens=True), stop)[1]:
            high = middle
        else:
            low = middle + 1
    return low


class _StopStrings(PerRow, StoppingCriteria):  # type: ignore[misc]
    """Ends each row of a batch at its own stop strings."""

    def __init__(self, tokenizer: Any, stop: Sequence[tuple[str, ...]], prompt_width: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, prompt_width
        self.done = [False] * len(stop)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        for row, stop in enumerate(self.stop):
            if stop and not self.done[row]:
                text = self.tokenizer.decode(input_ids[row, self.start :], skip_special_tokens=True)
                self.done[row] = cut_at_stop(text, stop)[1]
        return torch.tensor(self.done, dtype=torch.bool, device=input_ids.device)

    def keep(self, rows: Sequence[int]) -> None:
        self.stop, self.done = [self.stop[row] for row in rows], [self.done[row] for row in rows]


class GumbelNoise(PerRow, LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling at T=1: argmax(log p + Gumbel noise) is distributed as p.

    Args:
        draws: the id and the seed of each row.
    """

    def __init__(self, draws: Sequence[tuple[str, int]]) -> None:
        self.generators = [torch.Generator().manual_seed(seed_of("sampling", item, seed)) for item, seed in draws]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # On the CPU and in float64 everywhere, so that a device does not change the draw.
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=g, dtype=torch.float64) for g in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
        return scores.float() + noise.to(scores.device, torch.float32)

    def keep(self, rows: Sequence[int]) -> None:
        self.generators = [self.generators[row] for row in rows]
