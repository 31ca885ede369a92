"""Decoding: prompts in tokens -> tokens. The engine under generated answers and under sampled training responses.

What is saved: a prompt that is there several times (samples, sampling seeds) is read once, answers that have ended
leave the batch every ``SEGMENT`` tokens, and the next prompts take their rows. transformers takes rows out of any cache
of keys and values; to put rows in, two caches are joined here, which needs all columns to be there: where a layer's
window slides, the next prompts wait until the batch is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
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

from harness.base.identity import seed_of
from harness.data.rows import Request
from harness.data.templates import TextSide

SEGMENT = 16
"""New tokens between two looks at which answers have ended; taking rows out costs about as much as one token."""

FREE_SHARE = 0.25
"""Share of a batch that must be free for prompts to come in: each time, be it for one prompt, the others wait for a
forward pass and their cache is copied."""


def continue_prompts(
    model: Any,
    side: TextSide,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    processors: Sequence[LogitsProcessor],
    stopping: Sequence[StopStrings] = (),
    batch_size: int | None = None,
    on_done: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Generated ids of each prompt, padding after the end included.

    Args:
        prompts: come into the batch in this order; longest first pads least.
        new_tokens: the most of each.
        processors: of logits; what keeps something of each row is a ``PerRow``.
        batch_size: the most rows at a time; None for all of them.
        on_done: called with the number of answers that have ended, whenever some have.
    """
    made: list[list[int]] = [[] for _ in prompts]
    size = batch_size or len(prompts)
    batch = _Batch(model, side, processors, stopping, size, refill=size < len(prompts))
    entered = 0
    with _own_settings_off(model):
        while batch.places or entered < len(prompts):
            if places := range(entered, min(entered + batch.room, len(prompts))):
                batch.add(places, [prompts[place] for place in places])
                entered = places.stop
            new = batch.decode(new_tokens - max(len(made[place]) for place in batch.places))
            for place, tokens in zip(batch.places, new.tolist(), strict=True):
                made[place] += tokens
            ended = batch.ended(new)
            kept = [row for row, place in enumerate(batch.places) if not ended[row] and len(made[place]) < new_tokens]
            if len(kept) < len(batch.places):
                batch.keep(kept)
                on_done(entered - len(kept))
    return made


class _Batch:
    """Rows that are decoded together, padded on the left.

    Args:
        size: the most rows.
        refill: whether prompts may come in beside rows that go on, if the model's cache allows it. Then columns that
            are padding in every row are taken out, too: the batch is never wider than a prompt and its answer.

    Attributes:
        places: of each row's prompt, among the caller's.
        ids: [rows, columns].
        mask: [rows, columns], 0 at padding.
        cache: of all columns but the last, between two segments; None where it can't lose rows.
    """

    def __init__(
        self,
        model: Any,
        side: TextSide,
        processors: Sequence[LogitsProcessor],
        stopping: Sequence[StopStrings],
        size: int,
        *,
        refill: bool,
    ) -> None:
        self.model, self.side, self.processors, self.stopping, self.size = model, side, processors, stopping, size
        self.per_row = [each for each in (*processors, *stopping) if isinstance(each, PerRow)]
        self.pad, self.device = side.tokenizer.pad_token_id, next(model.parameters()).device
        self.places: list[int] = []
        self.ids = self.mask = torch.empty(0, 0, dtype=torch.int64)
        self.cache = _cache(model)
        self.refill = refill and self.cache is not None and all(type(one) is DynamicLayer for one in self.cache.layers)

    @property
    def room(self) -> int:
        """How many prompts may come in now."""
        free = self.size - len(self.places)
        return free if not self.places or (self.refill and free >= FREE_SHARE * self.size) else 0

    def add(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Let prompts in as the last rows."""
        if self.places:
            self._join(prompts)
        else:
            self.cache = _cache(self.model)
            self.ids, self.mask = self._padded(prompts)
            repeated = len(set(map(tuple, prompts))) < len(prompts)
            if self.cache is not None and repeated and self.ids.shape[1] > 1:
                _read(self.model, prompts, self.ids, self.mask, self.cache)
        self.places += places
        for each in self.per_row:
            each.add(places)

    def _padded(self, prompts: Sequence[Sequence[int]], least: int = 1) -> tuple[Tensor, Tensor]:
        """Ids and mask of prompts, at least so many columns wide."""
        width = max(least, *map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def _join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read prompts and put them below the rows that go on: a key knows its place in its text, not its column."""
        ids, mask = self._padded(prompts, least=2)  # all but the last column are read, and that can't be nothing
        cache = _cache(self.model)
        _read(self.model, prompts, ids, mask, cache)
        self.ids, self.mask = _below(self.ids, ids, dim=-1, padding=self.pad), _below(self.mask, mask, dim=-1)
        for layer, read in zip(self.cache.layers, cache.layers, strict=True):
            layer.keys, layer.values = _below(layer.keys, read.keys), _below(layer.values, read.values)

    def decode(self, most: int) -> Tensor:
        """New tokens of each row, [rows, at most `most`]: no more than a segment where rows can leave."""
        output = self.model.generate(
            input_ids=self.ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            max_new_tokens=most if self.cache is None else min(SEGMENT, most),
            do_sample=False,
            eos_token_id=list(self.side.eos_ids),
            pad_token_id=self.pad,
            logits_processor=LogitsProcessorList(self.processors),
            stopping_criteria=StoppingCriteriaList(self.stopping),
            return_dict_in_generate=True,
        )
        new: Tensor = output.sequences[:, self.ids.shape[1] :]
        self.ids, self.mask = output.sequences, torch.cat([self.mask, torch.ones_like(new)], dim=1)
        return new

    def ended(self, new: Tensor) -> list[bool]:
        """Whether each row's answer came to its end among these tokens, [rows, new]."""
        at_eos = torch.isin(new, torch.tensor(self.side.eos_ids, device=new.device)).any(1).tolist()
        return [eos or any(one.done[row] for one in self.stopping) for row, eos in enumerate(at_eos)]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self.places = [self.places[row] for row in rows]
        for each in self.per_row:
            each.keep(rows)
        if self.cache is None or not rows:
            return
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        if self.refill:
            self._trim()
        self.cache.batch_select_indices(torch.tensor(rows, dtype=torch.int64, device=self.device))

    def _trim(self) -> None:
        """Take out the columns that are padding in every row."""
        spare = self.mask.shape[1] - int(self.mask.sum(1).max())
        self.ids, self.mask = self.ids[:, spare:], self.mask[:, spare:]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[..., spare:, :], layer.values[..., spare:, :]


def _cache(model: Any) -> Any:
    """An empty cache whose rows can be taken out and repeated; None for a model that keeps more than keys and values.

    A state of linear attention, say: transformers leaves it as it is where it selects rows.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if known else None


def _read(model: Any, prompts: Sequence[Sequence[int]], ids: Tensor, mask: Tensor, cache: DynamicCache) -> None:
    """Fill the cache of a padded batch but for the last tokens, reading a prompt that is there several times once."""
    place = {tuple(prompt): row for row, prompt in reversed(list(enumerate(prompts)))}  # of the first of equals
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


def _below(upper: Tensor, lower: Tensor, dim: int = -2, padding: int = 0) -> Tensor:
    """Rows below rows, [rows, ...]; columns are of dimension `dim`, the last or the one before, padded on the left."""
    width = max(upper.shape[dim], lower.shape[dim])
    behind = [0, 0] * (-1 - dim)
    return torch.cat([F.pad(one, [*behind, width - one.shape[dim], 0], value=padding) for one in (upper, lower)])


@contextmanager
def _own_settings_off(model: Any) -> Iterator[None]:
    """Without what a model's publisher set for chats (a repetition penalty, say): it is no part of a protocol."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class PerRow:
    """What keeps something of each row of a batch, of none at first."""

    def add(self, places: Sequence[int]) -> None:
        """Take in prompts, by their places among all of them, as the last rows."""
        raise NotImplementedError

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        raise NotImplementedError


class StopStrings(PerRow, StoppingCriteria):  # type: ignore[misc]
    """Ends each row of a batch at its own stop strings.

    Args:
        side: whose tokens they are.
        requests: of each prompt.

    Attributes:
        done: whether a row has ended, of each row.
    """

    def __init__(self, side: TextSide, requests: Sequence[Request]) -> None:
        self.side, self.of_prompts = side, requests
        self.requests: list[Request] = []
        self.made: list[int] = []  # tokens of each row; columns come and go with the batch's padding
        self.done: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Once for each new token; input_ids: [rows, columns]."""
        self.made = [count + 1 for count in self.made]
        for row, request in enumerate(self.requests):
            if request.stop and not self.done[row]:
                made = input_ids[row, -self.made[row] :].tolist()
                self.done[row] = text_until_stop(self.side, request, made)[1]
        return torch.tensor(self.done, dtype=torch.bool, device=input_ids.device)

    def add(self, places: Sequence[int]) -> None:
        self.requests += [self.of_prompts[place] for place in places]
        self.made += [0] * len(places)
        self.done += [False] * len(places)

    def keep(self, rows: Sequence[int]) -> None:
        self.requests, self.made = [self.requests[row] for row in rows], [self.made[row] for row in rows]
        self.done = [self.done[row] for row in rows]


def text_until_stop(side: TextSide, request: Request, ids: Sequence[int]) -> tuple[str, bool]:
    """The text of generated tokens before the first stop string, and whether there was one.

    A stop string can be the name of a special token, which stands for no text: it ends an answer all the same.
    """
    names = map(side.control_text, ids)
    named = next((place for place, name in enumerate(names) if name and name in request.stop), None)
    text, stopped = cut_at_stop(side.answer_text(ids[:named], request.continues), request.stop)
    return text, stopped or named is not None


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    places = [place for string in stop if string and (place := text.find(string)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


class GumbelNoise(PerRow, LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling at T=1: argmax(log p + Gumbel noise) is distributed as p.

    Args:
        draws: the id and the seed of each prompt.
    """

    def __init__(self, draws: Sequence[tuple[str, int]]) -> None:
        self.draws = draws
        self.generators: list[torch.Generator] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # On the CPU and in float64 everywhere, so that a device does not change the draw.
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=g, dtype=torch.float64) for g in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
        return scores.float() + noise.to(scores.device, torch.float32)

    def add(self, places: Sequence[int]) -> None:
        for item, seed in (self.draws[place] for place in places):
            self.generators.append(torch.Generator().manual_seed(seed_of("sampling", item, seed)))

    def keep(self, rows: Sequence[int]) -> None:
        self.generators = [self.generators[row] for row in rows]
