"""What is kept of each row of a batch that is decoded: its draws, and whether its stop strings have come."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from harness.base.identity import seed_of
from harness.data.rows import Request
from harness.data.templates import TextSide

SEGMENT = 16
"""New tokens between two looks at which answers have ended; taking rows out costs about as much as one token."""

FREE_SHARE = 0.25
"""Share of a batch that must be free for prompts to come in: each time, be it for one prompt, the others wait for a
forward pass."""


MANY = 2**20
"""Numbers for which it pays to wake threads."""


class PerRow:
    """What keeps something of each row of a batch, of none at first."""

    def add(self, places: Sequence[int]) -> None:
        """Take in prompts, by their places among all of them, as the last rows."""
        raise NotImplementedError

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        raise NotImplementedError

    def replace(self, rows: Sequence[int], places: Sequence[int]) -> None:
        """Let prompts take the rows of others, whose answers have ended."""
        raise NotImplementedError


class StopStrings(PerRow, StoppingCriteria):  # type: ignore[misc]
    """Ends each row of a batch at its own stop strings.

    Args:
        side: whose tokens they are.
        requests: of each prompt.
    """

    def __init__(self, side: TextSide, requests: Sequence[Request]) -> None:
        self.side, self.of_prompts = side, requests
        self.rows: list[_Ending] = []

    @property
    def done(self) -> list[bool]:
        """Whether a row has ended, of each row."""
        return [row.done for row in self.rows]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Once for each new token; input_ids: [rows, columns]."""
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            row.see([token])
        return torch.tensor(self.done, dtype=torch.bool, device=input_ids.device)

    def see(self, row: int, tokens: Sequence[int]) -> bool:
        """Take in a row's next tokens; whether its answer has ended."""
        self.rows[row].see(tokens)
        return self.rows[row].done

    def add(self, places: Sequence[int]) -> None:
        self.rows += [_Ending(self.side, self.of_prompts[place]) for place in places]

    def keep(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    def replace(self, rows: Sequence[int], places: Sequence[int]) -> None:
        for row, place in zip(rows, places, strict=True):
            self.rows[row] = _Ending(self.side, self.of_prompts[place])


class _Ending:
    """Whether one answer has come to a stop string, by the bytes of its newest tokens.

    The whole answer is spelled only where those bytes, or a special token's name, say that it may have: a text has a
    string in it where its bytes have the string's.

    Attributes:
        ids: of the answer so far.
        done: whether a stop string is in it.
    """

    def __init__(self, side: TextSide, request: Request) -> None:
        self.side, self.request = side, request
        # Where bytes are no UTF-8 the text has U+FFFD: a stop string with it is looked for in the text at each token.
        self._sought = [b"" if "\ufffd" in stop else stop.encode("utf-8", "replace") for stop in request.stop if stop]
        self._kept = max(map(len, self._sought), default=0) - 1
        self._tail = b""
        self._doubted = False  # found among bytes, but for a first space of which later tokens decide whether it is one
        self.ids: list[int] = []
        self.done = False

    def see(self, tokens: Sequence[int]) -> None:
        """Take in the next tokens."""
        if self.done or not self._sought:
            return
        self.ids += tokens
        bytes_ = self._tail + self.side.vocabulary.spell_on(np.asarray(tokens, dtype=np.int64))
        named = any((name := self.side.control_text(token)) and name in self.request.stop for token in tokens)
        if self._doubted or named or any(sought in bytes_ for sought in self._sought):
            self.done = text_until_stop(self.side, self.request, self.ids)[1]
            self._doubted = not self.done
        self._tail = bytes_[-self._kept :] if self._kept > 0 else b""


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
        # Drawn on the CPU and in float64 everywhere, so that a device does not change the draw; logarithms, which take
        # most of the time, are the device's.
        on_gpu = scores.device.type == "cuda"
        uniform = torch.empty(scores.shape, dtype=torch.float64, pin_memory=on_gpu)
        if uniform.numel() < MANY:
            list(map(_draw, uniform, self.generators))
        else:
            list(_threads().map(_draw, uniform, self.generators))
        noise = -torch.log(-torch.log(uniform.to(scores.device, non_blocking=True).clamp_min(1e-300)))
        return scores.float() + noise.float()

    def add(self, places: Sequence[int]) -> None:
        self.generators += map(self._generator, places)

    def keep(self, rows: Sequence[int]) -> None:
        self.generators = [self.generators[row] for row in rows]

    def replace(self, rows: Sequence[int], places: Sequence[int]) -> None:
        for row, place in zip(rows, places, strict=True):
            self.generators[row] = self._generator(place)

    def _generator(self, place: int) -> torch.Generator:
        return generator_of(*self.draws[place])


def generator_of(item: str, seed: int) -> torch.Generator:
    """What a sampled answer draws from."""
    return torch.Generator().manual_seed(seed_of("sampling", item, seed))


def _draw(row: Tensor, generator: torch.Generator) -> None:
    torch.rand(len(row), generator=generator, dtype=torch.float64, out=row)


@cache
def _threads() -> ThreadPoolExecutor:
    """Rows of large vocabularies are drawn beside one another: each has a generator of its own."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="harness-draws")
