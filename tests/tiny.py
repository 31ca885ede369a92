"""Tiny models of real architectures and small tokenizers of every family, made on the fly: no network, no files."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from harness.models import tiny

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May. She sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
    "def add(first, second):\n    return first + second\n",
    "Zürich, Malmö and São Paulo are cities; 北京 is one too. Crème brûlée costs 7 €.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\nName three colours of the rainbow.\n\n### Response:\nRed, green and violet 🌈.",
    "Question: A farmer has 201 sheep and buys 19 more. How many sheep has he now?\nAnswer: 201 + 19 = 220",
    "for index in range(10):\n    if index % 2 == 0:\n        print(index, index ** 2)\n",
]
SAMPLES = [
    ("What is 2 + 2?", "It is 4."),
    ("Name a city in Switzerland.", "Zürich, or maybe Genève 🇨🇭!"),
    ("Write a function that adds.", "def add(first, second):\n    return first + second\n"),
    ("How many sheep?", "201 + 19 = <<201+19=220>>220 sheep.\n#### 220"),
]
FAMILIES = ("byte_level", "byte_fallback", "unigram")
MORE_FAMILIES = (*FAMILIES, "byte_level_prefix", "byte_level_digits", "byte_fallback_bare")
"""Also: a space before every text, as GPT-2 may put it; digits alone, as in Qwen; no space in front, as in Gemma."""
ARCHITECTURES = ("qwen2", "phi3", "gemma2", "llama", "opt")


@cache
def tokenizer(family: str, size: int = 400, texts: tuple[str, ...] = tuple(TEXT)) -> PreTrainedTokenizerFast:
    """A tokenizer of the family, trained on some texts, with BOS, EOS and padding."""
    special = list(tiny.SPECIAL)
    if family == "byte_level_prefix":
        made = copy.deepcopy(tokenizer("byte_level", size).backend_tokenizer)
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif family == "byte_fallback_bare":
        made = copy.deepcopy(tokenizer("byte_fallback", size).backend_tokenizer)
        made.normalizer = normalizers.Replace(" ", "▁")
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    elif family == "byte_level":
        made = tiny.byte_level(texts * 4, size)
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
    elif family == "byte_fallback":
        made = tiny.byte_fallback(texts * 4, size)
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


def model(
    architecture: str, vocabulary: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 2
) -> Any:
    """A randomly initialised causal language model: 2 layers of width 64."""
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    wide = shape | {"intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config: Any = {
        "qwen2": lambda: Qwen2Config(**wide, tie_word_embeddings=True),
        "phi3": lambda: Phi3Config(**wide, tie_word_embeddings=False),
        "gemma2": lambda: Gemma2Config(**wide, head_dim=16, sliding_window=256),
        "llama": lambda: LlamaConfig(**wide, tie_word_embeddings=False),
        "opt": lambda: OPTConfig(
            **shape, ffn_dim=128, max_position_embeddings=512, word_embed_proj_dim=64, dropout=0.0
        ),
    }[architecture]()
    config.attention_dropout = 0.0
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if architecture == "gemma2" else "sdpa", dtype=dtype
    )
    with torch.no_grad():  # larger weights than usual, so that distributions differ visibly
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return made
