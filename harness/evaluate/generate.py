"""Generation: prompts -> stored answers. Scores are computed later, from what was stored.

Sampling draws from one generator per example, seeded by (example id, seed), so that batching and order can't change
an answer: adding Gumbel noise to log-probabilities and taking the largest is a draw from the distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from harness.errors import HarnessError
from harness.identity import seed_of
from harness.tasks import Request
from harness.tokens import TextSide


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
    prompts = _prompts(side, requests)
    answers: dict[int, Answer] = {}
    model.eval()
    for seed in dict.fromkeys(request.seed for request in requests):
        mine = [place for place, request in enumerate(requests) if request.seed == seed]
        # Longest first: batches pad little, and memory runs out in the first batch or never.
        order = sorted(mine, key=lambda place: -len(_cut(prompts[place], requests[place])))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            made = _generate_batch(
                model, side, [requests[p] for p in places], [prompts[p] for p in places], new_tokens, seed
            )
            answers.update(zip(places, made, strict=True))
            on_batch(len(answers))
    return [answers[place] for place in range(len(requests))]


def _prompts(side: TextSide, requests: Sequence[Request]) -> list[list[int]]:
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


def _cut(prompt: list[int], request: Request) -> list[int]:
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
    for request, prompt in zip(requests, _prompts(side, requests), strict=True):
        length = len(_cut(prompt, request))
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
    sampling_seed: int | None,
) -> list[Answer]:
    prompts = [_cut(prompt, request) for prompt, request in zip(whole_prompts, requests, strict=True)]
    width = max(map(len, prompts))
    stops = _StopStrings(side.tokenizer, [request.stop for request in requests], width)
    noise = [] if sampling_seed is None else [GumbelNoise([request.id for request in requests], sampling_seed)]
    made = continue_prompts(model, side, prompts, new_tokens=new_tokens, processors=noise, stopping=[stops])
    return [
        _answer(side.tokenizer, side.eos_ids, request, ids, prompt_cut=len(prompt) < len(whole))
        for request, ids, prompt, whole in zip(requests, made, prompts, whole_prompts, strict=True)
    ]


def continue_prompts(
    model: Any,
    side: TextSide,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    processors: Sequence[LogitsProcessor],
    stopping: Sequence[StoppingCriteria] = (),
) -> list[list[int]]:
    """Generated ids of each prompt, padding after the end included. One batch, padded on the left."""
    pad, device = side.tokenizer.pad_token_id, next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with _own_settings_off(model):
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=list(side.eos_ids),
            pad_token_id=pad,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList(stopping),
        )
    made: list[list[int]] = output[:, width:].tolist()
    return made


@contextmanager
def _own_settings_off(model: Any) -> Iterator[None]:
    """Without what a model's publisher set for chats (a repetition penalty, say): it is no part of a protocol."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _answer(tokenizer: Any, eos_ids: Sequence[int], request: Request, ids: list[int], prompt_cut: bool) -> Answer:
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


class _StopStrings(StoppingCriteria):  # type: ignore[misc]
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


class GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling at T=1: argmax(log p + Gumbel noise) is distributed as p."""

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        self.generators = [torch.Generator().manual_seed(seed_of("sampling", item, seed)) for item in ids]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # On the CPU and in float64 everywhere, so that a device does not change the draw.
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=g, dtype=torch.float64) for g in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
        return scores.float() + noise.to(scores.device, torch.float32)
