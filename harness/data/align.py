"""Text, aligned for two tokenizers, without a recipe: what ``methods.loss`` takes."""

from __future__ import annotations

import sys
from copy import copy
from functools import lru_cache
from typing import Literal

import torch
from transformers import PreTrainedTokenizerFast

from harness.base.errors import HarnessError
from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.tokens import STUDENT, tokenize
from methods.library.on_logits import Alignment
from methods.library.vocabulary import TokenizerPair

_TEACHER = "teacher"


def align(
    text: str,
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    *,
    prompt: str = "",
    template: Literal["plain", "chat"] = "plain",
    max_length: int | None = None,
) -> Alignment:
    """A response as student and teacher cut it, with the byte at which each of its tokens ends.

    Both responses end with their model's own end token, unless a limit cuts them.

    Args:
        text: the response, which the loss is about.
        student, teacher: fast tokenizers, as ``AutoTokenizer.from_pretrained`` gives them.
        prompt: what comes before, which each model sees in its own tokens. Where it is empty, the response comes
            behind BOS, or behind EOS for a tokenizer without one.
        template: ``plain``: the prompt as it stands, behind BOS where the tokenizer puts one; ``chat``: as a user's
            message in each model's own chat template.
        max_length: the most tokens of prompt and response on either side; a longer response is cut on both sides at
            the last byte where both have a boundary.

    Raises:
        HarnessError: an empty text, a prompt that leaves no room, a tokenizer that is not fast or that changes text.
    """
    sides = {STUDENT: _side(student, template), _TEACHER: _side(teacher, template)}
    pair = _pair(*sides.values())
    if not prompt:
        sides = {role: _begins(side) for role, side in sides.items()}
    (made,) = tokenize([Example("text", prompt, text)], sides, sys.maxsize if max_length is None else max_length)
    read = [torch.from_numpy(made.sides[role].sequence) for role in (STUDENT, _TEACHER)]
    return Alignment(pair, made.aligned(_TEACHER), *read)


@lru_cache(maxsize=16)
def _side(tokenizer: PreTrainedTokenizerFast, template: Literal["plain", "chat"]) -> TextSide:
    """Kept, since reading a vocabulary takes a second."""
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise HarnessError(name, "a tokenizer in Python", "a fast one, of the tokenizers library")
    return TextSide(tokenizer, template=template, name=name)


def _begins(side: TextSide) -> TextSide:
    """The side for a response without a prompt: something has to predict its first token."""
    if side.template == "plain" and not side.bos:
        side, bos = copy(side), side.tokenizer.bos_token_id
        side.bos = [side.tokenizer.eos_token_id if bos is None else bos]
    return side


@lru_cache(maxsize=16)
def _pair(student: TextSide, teacher: TextSide) -> TokenizerPair:
    """One for all texts, so that methods prepare their vocabulary maps once."""
    return TokenizerPair(student.vocabulary, teacher.vocabulary)
