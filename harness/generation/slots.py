"""Decoding in slots: each answer has a row of its own in a cache of fixed size, and each token is the same few kernels.

A small model's token costs the launches of some hundred kernels and next to no arithmetic. Where no tensor of a token's
forward pass changes its shape or place, a GPU replays all of them as one CUDA graph. So a row's keys stand from column
0 of its slot on, whatever the other rows hold, a mask says how many of them there are, and the next prompt takes the
slot of an answer that has ended. The host looks at what was made every ``SEGMENT`` tokens and waits for nothing else.

On a CPU, or where a graph can't be recorded, the same passes run one kernel at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from harness.data.templates import TextSide
from harness.generation.per_row import FREE_SHARE, SEGMENT, PerRow, StopStrings

READ_TOKENS = 2**15
"""Tokens of prompts, with padding, that are read in one forward pass."""

ATTENTION = ("eager", "sdpa")
"""Implementations of attention that take any mask."""


def cache_of(model: Any) -> Any:
    """An empty cache whose rows can be taken out and repeated; None for a model that keeps more than keys and values.

    A state of linear attention, say: transformers leaves it as it is where it selects rows.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if known else None


def takes_slots(model: Any) -> bool:
    """Whether a model keeps nothing but keys and values, and attends by any mask."""
    config = model.config.get_text_config(decoder=True)
    return config._attn_implementation in ATTENTION and bool(getattr(cache_of(model), "layers", None))


def slot_bytes(model: Any, columns: int) -> int:
    """Bytes of one answer: keys and values of so many tokens, and logits with what is made of them."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    return int(columns * keys + 4 * 4 * config.vocab_size)


@torch.no_grad()
def continue_in_slots(
    model: Any,
    side: TextSide,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    processors: Sequence[LogitsProcessor],
    stopping: Sequence[StopStrings],
    size: int,
    on_done: Callable[[int], None],
) -> list[list[int]]:
    """Generated ids of each prompt, with other tokens after the end.

    Args:
        size: slots, at most as many as there are prompts.
        prompts, new_tokens, processors, stopping, on_done: see :func:`harness.generation.decoding.continue_prompts`.
    """
    made: list[list[int]] = [[] for _ in prompts]
    slots = _Slots(model, size, max(map(len, prompts)) + new_tokens, processors, stopping)
    held: dict[int, int] = {}  # slots whose answer is under way, with the place of its prompt
    entered = done = 0
    while done < len(prompts):
        free = [slot for slot in range(size) if slot not in held]
        if entered < len(prompts) and (not held or len(free) >= FREE_SHARE * size):
            places = range(entered, min(entered + len(free), len(prompts)))
            slots.enter(free[: len(places)], places, [prompts[place] for place in places])
            held |= zip(free, places, strict=False)
            entered = places.stop
        tokens = slots.decode(min(SEGMENT, new_tokens - min(len(made[place]) for place in held.values())))
        under_way = len(held)
        for slot, place in list(held.items()):
            new = tokens[slot][: new_tokens - len(made[place])]
            made[place] += new
            stopped = [one.see(slot, new) for one in stopping]
            if any(stopped) or len(made[place]) == new_tokens or not set(side.eos_ids).isdisjoint(new):
                del held[slot]
        if len(held) < under_way:
            done += under_way - len(held)
            on_done(done)
    return made


class _Slots:
    """Rows of a fixed number and size, each with the text of one prompt and its answer.

    Args:
        model: whose tokens they are.
        size: slots.
        columns: tokens of the longest text.
        processors: of logits.
        stopping: that keeps something of each row.

    Attributes:
        token: int64 [slots, 1], what is read next; its key is not in the cache yet.
        position: int64 [slots, 1], the column of that token.
    """

    def __init__(
        self,
        model: Any,
        size: int,
        columns: int,
        processors: Sequence[LogitsProcessor],
        stopping: Sequence[StopStrings],
    ) -> None:
        self.model, self.processors, self.device = model, processors, next(model.parameters()).device
        self.per_row = [each for each in (*processors, *stopping) if isinstance(each, PerRow)]
        self.filled = False
        self.token = torch.zeros(size, 1, dtype=torch.int64, device=self.device)
        self.position = torch.zeros_like(self.token)
        config = model.config.get_text_config(decoder=True)
        room = getattr(config, "max_position_embeddings", None) or columns
        self.last = min(columns, room) - 1  # where answers that have ended write until they are looked at
        layers = cache_of(model).layers
        self.windows = [getattr(layer, "sliding_window", None) for layer in layers]
        self.kinds = getattr(config, "layer_types", None) or [None] * len(layers)
        self.column = torch.arange(columns, device=self.device)
        self.cache = Cache(layers=[_SlotLayer(size, columns, self.position) for _ in layers])
        self.graph: Any = None
        self.logits: Tensor | None = None

    def enter(self, slots: Sequence[int], places: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Let prompts take slots, the first time all of them.

        Args:
            places: of the prompts, among the caller's.
        """
        for each in self.per_row:
            if self.filled:
                each.replace(slots, places)
            else:
                each.add(places)
        self.filled = True
        read = sorted({tuple(prompt[:-1]) for prompt in prompts}, key=len, reverse=True)
        while read and read[0]:
            part, read = read[: max(1, READ_TOKENS // len(read[0]))], read[max(1, READ_TOKENS // len(read[0])) :]
            row_of = {prompt: row for row, prompt in enumerate(part)}
            mine = [
                (slot, row_of[tuple(p[:-1])]) for slot, p in zip(slots, prompts, strict=True) if tuple(p[:-1]) in row_of
            ]
            self._read(part, *map(list, zip(*mine, strict=True)))
        at = torch.tensor(slots, device=self.device)
        self.token[at] = torch.tensor([[prompt[-1]] for prompt in prompts], device=self.device)
        self.position[at] = torch.tensor([[len(prompt) - 1] for prompt in prompts], device=self.device)

    def _read(self, texts: Sequence[Sequence[int]], slots: Sequence[int], rows: Sequence[int]) -> None:
        """Put the keys and values of texts, padded on the right, where no token looks, into slots, row by row."""
        width = len(texts[0])
        ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=self.device)
        lengths = torch.tensor([[len(text)] for text in texts], device=self.device)
        cache = DynamicCache()
        self.model(
            input_ids=ids,
            attention_mask=(torch.arange(width, device=self.device) < lengths).long(),
            position_ids=torch.arange(width, device=self.device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        into, of = torch.tensor(slots, device=self.device), torch.tensor(rows, device=self.device)
        for layer, read in zip(self.cache.layers, cache.layers, strict=True):
            layer.put(into, read.keys[of], read.values[of])

    def decode(self, tokens: int) -> list[list[int]]:
        """The next tokens of each slot, [slots][tokens]."""
        if self.device.type == "cuda" and self.logits is None:
            self._record()
        made = []
        for _ in range(tokens):
            if self.graph is None:
                self.logits = self._forward()
            else:
                self.graph.replay()
            assert self.logits is not None
            scores = self.logits.to(torch.float32, copy=True)  # as `generate` does
            for processor in self.processors:
                scores = processor(self.token, scores)
            self.token.copy_(scores.argmax(-1, keepdim=True))
            self.position.add_(1).clamp_(max=self.last)
            made.append(self.token.clone())
        found: list[list[int]] = torch.cat(made, dim=1).tolist()
        return found

    def _forward(self) -> Tensor:
        """Logits behind each slot's next token, [slots, vocabulary]; its keys and values are kept."""
        output = self.model(
            input_ids=self.token,
            attention_mask=self._mask(),
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _mask(self) -> Tensor | dict[str, Tensor]:
        """What a token looks at, [slots, 1, 1, columns]: of each kind of layers where they differ."""
        found = {kind: self._mask_of(window) for kind, window in zip(self.kinds, self.windows, strict=True)}
        return next(iter(found.values())) if len(found) == 1 else found

    def _mask_of(self, window: int | None) -> Tensor:
        seen = self.column <= self.position
        if window is not None:
            seen &= self.column > self.position - window
        seen = seen[:, None, None]
        if self.model.config.get_text_config(decoder=True)._attn_implementation == "sdpa":
            return seen
        dtype = self.model.dtype
        return torch.zeros((), dtype=dtype, device=self.device).where(seen, torch.finfo(dtype).min)

    def _record(self) -> None:
        """Record a token's forward pass; to run it more than once for one token changes nothing."""
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries set up what they do not set up while a graph is recorded
                self.logits = self._forward()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.logits = self._forward()
        except RuntimeError as error:
            warnings.warn(
                f"no CUDA graph could be recorded of a pass through {type(self.model).__name__}, which now runs one "
                f"kernel at a time: {str(error).splitlines()[0]}",
                stacklevel=2,
            )
            return
        self.graph = graph


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, [slots, heads, columns, width]; each slot's next ones go to a column of its own.

    Args:
        position: int64 [slots, 1], that column.
    """

    is_sliding = False  # the mask says which columns are too far back

    def __init__(self, slots: int, columns: int, position: Tensor) -> None:
        super().__init__()
        self.columns, self.position = columns, position
        self.slot = torch.arange(slots, device=position.device)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros: what a mask hides is multiplied by nothing, and must be a number.
        self.keys, self.values = (
            one.new_zeros(len(self.slot), one.shape[1], self.columns, one.shape[3])
            for one in (key_states, value_states)
        )
        self.is_initialized = True

    def put(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Fill slots from column 0 on; keys, values: [slots given, heads, tokens, width]."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._write((slots, slice(None), slice(keys.shape[2])), keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._write((self.slot, slice(None), self.position[:, 0]), key_states[:, :, 0], value_states[:, :, 0])
        return self.keys, self.values

    def _write(self, where: tuple[Any, ...], keys: Tensor, values: Tensor) -> None:  # Any: what tensors are indexed by
        """Put keys and values where they belong; under autocast a token's may be less precise than a prompt's."""
        self.keys[where] = keys.to(self.keys.dtype)
        self.values[where] = values.to(self.values.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns, 0

    def get_seq_length(self) -> int:
        return self.columns

    def get_max_length(self) -> int:
        return self.columns
