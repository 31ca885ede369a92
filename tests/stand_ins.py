"""Random models of the recipes' architectures, and real tokenizers that stand in for theirs.

Llama-2's stands in for Phi-3's, Qwen3's for Qwen2's, Gemma-3's for Gemma-2's, and for OPT's a byte-level BPE that is
trained on the samples. Their files (`qwen3.json`, `llama2.json`, `llama3.json`, `gemma3.json`) lie in one folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from harness.models.uri import parse_uri
from harness.plan.costs.shapes import architectures
from harness.tasks.base import samples_folder

KNOWN = architectures()["models"]
NARROW = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "head_dim": 16,
}
FILES = {
    "qwen": ("qwen3.json", {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}),
    "llama2": ("llama2.json", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}),
    "llama3": (
        "llama3.json",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"},
    ),
    "gemma": ("gemma3.json", {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}),
}


def fields_of(uri: str) -> tuple[str, dict[str, Any], str]:
    """Model type, config fields and tokenizer family of a recipe's model."""
    entry = KNOWN[parse_uri(uri).repository]
    fields = dict(entry["config"])
    return fields.pop("model_type"), fields, entry["tokenizer"]


def tokenizer_of(uri: str, folder: Path) -> PreTrainedTokenizerFast:
    """What stands in for the tokenizer of a recipe's model."""
    _, _, family = fields_of(uri)
    if family == "opt":
        return opt_like()
    file, special = FILES[family]
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / file), **special)


def opt_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE like GPT-2's, trained on the samples, with `</s>` in front of every text as OPT has it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    files = [str(path) for path in sorted(samples_folder().glob("*/train.jsonl"))]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train(files, trainers.BpeTrainer(vocab_size=4000, special_tokens=special, initial_alphabet=alphabet))
    made.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def config_of(uri: str, tokenizer: PreTrainedTokenizerFast, narrow: bool) -> Any:
    """The config of a recipe's model for a tokenizer that stands in; narrow: 2 layers, 32 wide, the same vocabulary."""
    kind, fields, _ = fields_of(uri)
    if narrow:
        grouped = fields.get("num_key_value_heads", 0) < fields["num_attention_heads"]
        smaller = NARROW | {"num_key_value_heads": 1 if grouped else 2}
        fields |= {name: value for name, value in smaller.items() if name in fields}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind, **fields, **ids)
    config.vocab_size = max(fields["vocab_size"], len(tokenizer))  # Gemma-3's has more tokens than Gemma-2's
    return config


def tiny_folder(folder: Path, uri: str, tokenizers: Path, seed: int) -> Path:
    """A model folder: a random model of a recipe's architecture, narrow, with the vocabulary of the real one."""
    tokenizer = tokenizer_of(uri, tokenizers)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config_of(uri, tokenizer, narrow=True)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
