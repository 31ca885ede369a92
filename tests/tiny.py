"""Tiny models of real architectures and small tokenizers of every family, made on the fly: no network, no files."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harness.models import tiny
from harness.training.contract_bench import SAMPLES, TEXTS, tiny_tokenizer
from harness.training.contract_bench import tiny_model as model

__all__ = ["ARCHITECTURES", "FAMILIES", "MORE_FAMILIES", "SAMPLES", "TEXT", "model", "tokenizer"]

TEXT = list(TEXTS)
FAMILIES = ("byte_level", "byte_fallback", "unigram")
MORE_FAMILIES = (*FAMILIES, "byte_level_prefix", "byte_level_digits", "byte_fallback_bare")
"""Also: a space before every text, as GPT-2 may put it; digits alone, as in Qwen; no space in front, as in Gemma."""
ARCHITECTURES = ("qwen2", "phi3", "gemma2", "llama", "opt")


@cache
def tokenizer(family: str, size: int = 400, texts: tuple[str, ...] = tuple(TEXT)) -> PreTrainedTokenizerFast:
    """A tokenizer of the family, trained on some texts, with BOS, EOS and padding."""
    if family in tiny.TOKENIZERS:
        return tiny_tokenizer(family, size, texts)
    special = list(tiny.SPECIAL)
    if family == "byte_level_prefix":
        made = copy.deepcopy(tokenizer("byte_level", size).backend_tokenizer)
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif family == "byte_fallback_bare":
        made = copy.deepcopy(tokenizer("byte_fallback", size).backend_tokenizer)
        made.normalizer = normalizers.Replace(" ", "▁")
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    elif family == "byte_level_digits":
        made = Tokenizer(models.BPE())
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        made.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=size - 60,  # the last merges are missing
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        made.train_from_iterator(texts * 4, trainer)
    elif family == "unigram":
        trained = Tokenizer(models.Unigram())
        trained.pre_tokenizer = pre_tokenizers.Metaspace()
        trained.train_from_iterator(
            texts * 4,
            trainers.UnigramTrainer(vocab_size=size, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
        )
        parts = __import__("json").loads(trained.to_str())["model"]
        fallback_pieces = [(f"<0x{byte:02X}>", -30.0) for byte in range(256)]
        pieces = [(token, 0.0) for token in [*special, "<unk>"]] + fallback_pieces
        pieces += [(piece, score) for piece, score in parts["vocab"] if piece not in dict(pieces)]
        made = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    else:
        raise ValueError(family)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
