"""What a model's publisher says beside its weights: what ends an answer, whether BOS comes first, how to decode."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.files import read_json


@dataclass(frozen=True)
class PublisherSettings:
    """Settings of a model folder that neither the tokenizer's own file nor transformers' fast tokenizers know.

    Attributes:
        ends: ids that end an answer, as generation_config.json lists them (Qwen: two, Llama 3: three), or config.json.
        adds_bos: whether tokenizer_config.json asks for BOS before a text (DeepSeek); the file of a fast tokenizer
            says so itself, as a rule.
    """

    ends: tuple[int, ...] = ()
    adds_bos: bool = False

    @classmethod
    def of(cls, folder: Path) -> PublisherSettings:
        """Read from a model folder; files that are missing or damaged say nothing."""
        ends = _ends(folder / "generation_config.json") or _ends(folder / "config.json")
        return cls(ends, _json(folder / "tokenizer_config.json").get("add_bos_token") is True)


def decoding_wishes(folder: Path) -> str:
    """What generation_config.json asks for beside tokens that end an answer, in words; "" where it asks for nothing.

    A protocol says itself how answers are decoded, so that no penalty or temperature of one publisher changes a row.
    """
    asked = {
        name: value
        for name, value in _json(folder / "generation_config.json").items()
        if name not in _NO_WISHES and not name.startswith(("_", "output_")) and json.dumps(value) not in _OFF
    }
    return ", ".join(f"{name} {json.dumps(value)[:60]}" for name, value in sorted(asked.items()))


_NO_WISHES = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "transformers_version",
    "use_cache",
    "cache_implementation",
    "return_dict_in_generate",
}
# in JSON: a temperature of 1 is none, and a penalty of 1 neither
_OFF = {"null", "false", "0", "0.0", "1", "1.0", "[]", "{}", '""'}


def _ends(path: Path) -> tuple[int, ...]:
    value = _json(path).get("eos_token_id")
    listed = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(each for each in listed if isinstance(each, int) and not isinstance(each, bool)))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
