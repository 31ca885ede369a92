"""Generation: prompts -> stored answers. Scores are computed later, from what was stored.

Sampling draws from one generator per example, seeded by (example id, seed), so that batching and order can't change
an answer: adding Gumbel noise to log-probabilities and taking the largest is a draw from the distribution.

What is saved: the longest prompts come first, so that neighbours pad little; a prompt that is answered several times is
read once, and answers that have ended leave their rows to the next prompts (:mod:`harness.generation.decoding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from harness.base.errors import HarnessError
from harness.data.rows import Request
from harness.data.templates import TextSide
from harness.generation.decoding import Decoding, continue_prompts
from harness.generation.per_row import GumbelNoise, StopStrings, text_until_stop
from harness.store.artefacts import Answer


@torch.no_grad()
def generate(
    model: Any,
    side: TextSide,
    requests: Sequence[Request],
    *,
    new_tokens: int,
    batch_size: int | Literal["auto"],
    decoding: Decoding = "auto",
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answers in the order of the requests.

    Args:
        requests: greedy ones and sampled ones, the same item with several seeds too.
        new_tokens: the most tokens of an answer.
        batch_size, decoding: see :func:`harness.generation.decoding.continue_prompts`.
        on_batch: called with the number of requests done, whenever some are.
    """
    prompts = prompt_tokens(side, requests)
    answers: dict[int, Answer] = {}
    model.eval()
    cut = [cut_prompt(prompt, request) for prompt, request in zip(prompts, requests, strict=True)]
    for greedy in (True, False):
        mine = [place for place, request in enumerate(requests) if (request.seed is None) is greedy]
        # Longest first: batches pad little, and memory runs out among the first or never. Equal ones come together.
        order = sorted(mine, key=lambda place: (-len(cut[place]), cut[place]))
        asked = [requests[place] for place in order]
        draws = [(request.id, request.seed) for request in asked if request.seed is not None]
        made = continue_prompts(
            model,
            side,
            [cut[place] for place in order],
            new_tokens=new_tokens,
            processors=[GumbelNoise(draws)] if draws else [],
            stopping=[StopStrings(side, asked)],
            batch_size=batch_size,
            decoding=decoding,
            on_done=lambda done: on_batch(len(answers) + done),
        )
        for place, request, ids in zip(order, asked, made, strict=True):
            was_cut = len(cut[place]) < len(prompts[place])
            answers[place] = answer_of(side, request, ids, prompt_cut=was_cut)
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


def answer_of(side: TextSide, request: Request, ids: list[int], prompt_cut: bool) -> Answer:
    """The answer that generated ids are; what comes after its end does not count."""
    end = next((place for place, token in enumerate(ids) if token in side.eos_ids), None)
    ended, own = end is not None, ids[:end]
    text, stopped = text_until_stop(side, request, own)
    if stopped:
        tokens, reason = _tokens_until_stop(side, request, own), "stop string"
    else:
        tokens, reason = len(own) + ended, "eos" if ended else "length"
    return Answer(request.id, request.seed, request.prompt, text, tokens, reason, prompt_cut)


def _tokens_until_stop(side: TextSide, request: Request, ids: list[int]) -> int:
    """How many tokens it took until a stop string was complete; the batch may have gone on for other rows."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if text_until_stop(side, request, ids[:middle])[1]:
            high = middle
        else:
            low = middle + 1
    return low
