"""GGUF files turned into a model and a tokenizer that transformers loads, checked against each other."""

import importlib.metadata
import itertools
import math
import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import HarnessError
from harness.models.cache import first_line
from harness.models.load import from_folder, load_model, load_tokenizer, save_model, silent_libraries
from harness.models.uri import KnownModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHECK_TEXT = """\
The distance between two towns is 150 kilometres. A train leaves the first town at 9 o'clock in the morning and travels
at 60 kilometres per hour, so it arrives two and a half hours later, at half past eleven.

Question: A baker sells 24 loaves of bread in the morning and half as many in the afternoon. Each loaf costs 3 dollars.
How much money does the baker earn in one day?
Answer: In the afternoon the baker sells 24 / 2 = 12 loaves. In the whole day that makes 24 + 12 = 36 loaves. Each loaf
costs 3 dollars, so the baker earns 36 * 3 = 108 dollars.
"""
"""English and arithmetic on which a converted model must reach its bits per byte."""

ROUND_TRIP_TEXT = (
    "Plain words, punctuation; and 1234567890 digits: 3.14, 50%.\n\n12 starts a paragraph,  two  spaces do too.\n"
    "def area(r):\n\tif r < 0:\n        raise ValueError(f'{r!r}')\n\treturn 3.14159 * r**2  # ok\n"
    "naïve café, Straße, Ωμέγα, жизнь; 中文字符。日本語かな、한국어; 😀👩‍🚀🇫🇷 \u00a0€≈∑\n"
)
"""Text of varied kind that a converted tokenizer must give back unchanged."""

BITS_PER_BYTE_MARGIN = 1.1
"""Machines and versions of torch change the bits per byte by far below 1 %, a tokenizer gone wrong by 10 to 1000 %."""

UNKNOWN_MODEL_BOUND = 2.5
"""Bits per byte for a package that is not in `KNOWN_MODELS`: small models stay below it, a broken one is above 4."""


# --- Conversion -------------------------------------------------------------------------------------------------------


def convert_gguf(gguf: Path, folder: Path, where: str, known: KnownModel | None) -> dict[str, Any]:
    """GGUF -> config, safetensors and tokenizer in ``folder``, then check what was written.

    Weights are stored in float32, as dequantised: `load_model` casts. Gives back notes for the manifest.

    Raises:
        HarnessError: transformers can't read the file, or the result fails the check.
    """
    try:
        with silent_libraries():
            tokenizer = _gguf_tokenizer(gguf)
            save_model(_gguf_model(gguf), tokenizer, folder)
    except (ValueError, KeyError, NotImplementedError, RuntimeError, ImportError) as error:
        version = importlib.metadata.version("transformers")
        raise HarnessError(
            where, f"a GGUF file that transformers {version} can't convert ({first_line(error)})", "one that it can"
        ) from error
    return _check_conversion(folder, tokenizer, where, known)


def _gguf_model(gguf: Path) -> "PreTrainedModel":
    """The dequantised model, as one that can be saved.

    transformers takes a model loaded from GGUF for a quantised one and refuses to save it, although its weights are
    float32 by then. So: a second model of the same class and configuration, with the same weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded = from_folder(AutoModelForCausalLM, gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()  # a GGUF file without an output matrix has set tie_word_embeddings
    return plain


_DIGITS_ALONE = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Pre-tokenizers, as llama.cpp names them, that split GPT-2's way after taking every digit out on its own."""


def _gguf_tokenizer(gguf: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that transformers builds from a GGUF file, and what it leaves out.

    transformers 5.23 knows no pre-tokenizer named "smollm" and falls back to GPT-2's. The merges hold no digits, so
    numbers come out the same, but white space before a number does not: ``\\n\\n12`` starts with two newline tokens
    where the model was trained on one (a numbered list: 1.40 bits per byte instead of 1.24).
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast = from_folder(AutoTokenizer, gguf.parent, gguf_file=gguf.name)
    backend = tokenizer.backend_tokenizer
    if _gguf_text(gguf, "tokenizer.ggml.pre") in _DIGITS_ALONE and type(backend.pre_tokenizer).__name__ == "ByteLevel":
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    for machine_dependent in ("is_local", "local_files_only", "name_or_path", "trust_remote_code"):
        tokenizer.init_kwargs.pop(machine_dependent, None)
    return tokenizer


def _gguf_text(gguf: Path, key: str) -> str:
    """A text value from a GGUF file's header, or "" (the gguf package takes 20 s to read a vocabulary of 262,144)."""
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        entry = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)  # 8: a string follows
        start = data.find(entry)
        if start < 0:
            return ""
        start += len(entry)
        (length,) = struct.unpack_from("<Q", data, start)
        return data[start + 8 : start + 8 + length].decode("utf-8", "replace")


def _check_conversion(
    folder: Path, converted: "PreTrainedTokenizerFast", where: str, known: KnownModel | None
) -> dict[str, Any]:
    """Load what was written and try it: the tokenizer gives text back, the model predicts text.

    Token counts and bits per byte catch what nothing else does: with a tokenizer that splits in other places than the
    one the model was trained with, every text still comes back whole, but the model's loss doubles.
    """
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    ids = _tokens(tokenizer, ROUND_TRIP_TEXT)
    count = len(ids) + len(_tokens(tokenizer, CHECK_TEXT))
    bound = known.bits_per_byte * BITS_PER_BYTE_MARGIN if known else UNKNOWN_MODEL_BOUND
    bits = _bits_per_byte(model, tokenizer, CHECK_TEXT)
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    fix = f"transformers {importlib.metadata.version('transformers')} converts this model wrongly: try another version."
    if back != ROUND_TRIP_TEXT:
        found, expected = _first_difference(back, ROUND_TRIP_TEXT)
        raise HarnessError(where, f"a tokenizer that gives back {found!r}", f"{expected!r}, as it was", fix)
    if ids != _tokens(converted, ROUND_TRIP_TEXT):
        raise HarnessError(where, "a tokenizer that splits otherwise once saved and loaded", "the same tokens", fix)
    if known and count != known.tokens:
        raise HarnessError(where, f"{count} tokens for two known texts", f"{known.tokens} tokens", fix)
    if not bits <= bound:
        raise HarnessError(where, f"{bits:.3f} bits per byte on a known text", f"at most {bound:.3f}", fix)
    return {
        "bits_per_byte": round(bits, 4),
        "bits_per_byte_bound": round(bound, 4),
        "tokens": count,
        "vocabulary": len(tokenizer),
    }


def _tokens(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _bits_per_byte(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", text: str) -> float:
    """Bits per UTF-8 byte of a text, all its tokens predicted after BOS (or EOS, where there is no BOS)."""
    import torch

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[start, *_tokens(tokenizer, text)]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    return nats / math.log(2) / len(text.encode())


def _first_difference(found: str, expected: str) -> tuple[str, str]:
    """A dozen characters of both texts from where they part."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(found, expected, strict=False))
    position = sum(1 for _ in same)
    return found[position : position + 12], expected[position : position + 12]
