"""Decoding: prompts in tokens -> tokens. The engine under generated answers and under sampled training responses.

What is saved: a prompt that is there several times (samples, sampling seeds) is read once, answers that have ended
leave the batch every ``SEGMENT`` tokens, and the next prompts take their rows. transformers takes rows out of any cache
of keys and values; to put rows in, two caches are joined here, which needs all columns to be there: where a layer's
window slides, the next prompts wait until the batch is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from harness.base.device import rows_at_a_time
from harness.data.templates import TextSide
from harness.generation.per_row import FREE_SHARE, SEGMENT, PerRow, StopStrings
from harness.generation.slots import cache_of, continue_in_slots, slot_bytes, takes_slots

Decoding = Literal["auto", "batch", "slots"]


def continue_prompts(
    model: Any,
    side: TextSide,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    processors: Sequence[LogitsProcessor],
    stopping: Sequence[StopStrings] = (),
    batch_size: int | Literal["auto"] = "auto",
    decoding: Decoding = "auto",
    on_done: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Generated ids of each prompt, with padding or other tokens after the end.

    Args:
        prompts: come into the batch in this order; longest first pads least.
        new_tokens: the most of each.
        processors: of logits; what keeps something of each row is a ``PerRow``.
        batch_size: the most rows at a time; auto for what free memory holds.
        decoding: batch: transformers' own `generate`, whose batch grows and shrinks; slots:
            :mod:`harness.generation.slots`; auto: slots on a GPU, for models that allow it.
        on_done: called with the number of answers that have ended, whenever some have.
    """
    if not prompts:
        return []
    device = next(model.parameters()).device
    columns = max(map(len, prompts)) + new_tokens
    size = min(rows_at_a_time(batch_size, slot_bytes(model, columns), device), len(prompts))
    if (decoding == "slots" or (decoding == "auto" and device.type == "cuda")) and takes_slots(model):
        return continue_in_slots(
            model,
            side,
            prompts,
            new_tokens=new_tokens,
            processors=processors,
            stopping=stopping,
            size=size,
            on_done=on_done,
        )
    made: list[list[int]] = [[] for _ in prompts]
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
        self.cache = cache_of(model)
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
            self.cache = cache_of(self.model)
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
        cache = cache_of(self.model)
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
