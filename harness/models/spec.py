"""A model's entry in a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from harness.base.errors import HarnessError
from harness.base.schema import Strict
from harness.models.uri import parse_uri


class ModelSpec(Strict):
    """A model of the pair."""

    model: str = Field(description="hf:org/name[@revision], path:dir, pypi:package==version#sha256=... or tiny:llama")
    name: str = Field("", description="how tables call it; the URI's last part by default")
    layers: int | None = Field(None, ge=1, description="keep N evenly spaced decoder layers")
    template: Literal["plain", "chat"] = Field(
        "plain", description="chat: the model's chat template goes round prompts"
    )
    attention: Literal["sdpa", "eager"] = Field(
        "sdpa", description="implementation of attention; eager for architectures without the other"
    )

    @field_validator("model")
    @classmethod
    def _is_a_uri(cls, text: str) -> str:
        try:
            parse_uri(text)
        except HarnessError as error:
            raise ValueError(f"expected {error.expected}. {error.fix}".strip()) from error
        return text


class Lora(Strict):
    """Low-rank adapters (peft), merged before the model is used."""

    rank: int = Field(16, ge=1, description="of the adapters")
    alpha: float = Field(32, gt=0, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into adapters, in training")
    targets: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="names of the matrices with adapters; all-linear: all but the head"
    )
