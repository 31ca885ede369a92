"""Warnings that a person should see, each once; those of libraries are left to who writes code with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

SILENT = (
    "absl",
    "accelerate",
    "datasets",
    "evalplus",
    "fsspec",
    "huggingface_hub",
    "lm_eval",
    "matplotlib",
    "multiprocess",
    "nltk",
    "numpy",
    "pandas",
    "peft",
    "pydantic",
    "rouge_score",
    "safetensors",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "vllm",
)
"""Libraries whose warnings speak to who writes code with them. Plug-ins are none of these: what they say is shown."""

_FOR_PROGRAMMERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
_LONGEST = 400
_listening: list[dict[str, None]] = []  # texts that each of the open blocks has heard


@contextmanager
def hear_warnings(say: Callable[[str], None]) -> Iterator[list[str]]:
    """Within, each warning goes to ``say`` once, on one line, unless a block around this one has said it before.

    Yields:
        What this block and those around it have heard so far, in order; complete when the block ends.
    """
    heard: dict[str, None] = {}
    texts = list(dict.fromkeys(text for block in _listening for text in block))

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = _in_one_line(str(message))
        if text in heard:
            return
        heard[text] = None
        if text not in texts:
            texts.append(text)
            say(text)

    _listening.append(heard)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for category in _FOR_PROGRAMMERS:
                warnings.simplefilter("ignore", category)
            for library in SILENT:
                warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
            warnings.showwarning = show
            yield texts
    finally:
        _listening.remove(heard)


def _in_one_line(text: str) -> str:
    """Without line breaks, and no longer than a note may be: compilers put whole programs into their messages."""
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"
