"""What the publisher of a model says beside its weights: the tokens that end an answer, and whether BOS comes first."""

from __future__ import annotations

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
