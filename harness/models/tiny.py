"""Generated tiny models: real architectures, random weights, tokenizers trained on a text that is there. No network.

``tiny:ARCHITECTURE[?key=value&...]``, such as ``tiny:gemma2?tokenizer=byte_fallback&tokens=700&seed=1``: what rehearses
a recipe, and what CI runs. Two entries with the same tokenizer, tokens and text have the same tokenizer, but for qwen2:
transformers gives it the pre-tokenizer of Qwen and one token more, whatever its file says. They know nothing; a few
steps teach them which tokens are frequent.

torch and transformers are imported inside functions, so that ``harness --help`` stays fast.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from harness.base.errors import HarnessError
from harness.base.files import digest_of
from harness.base.identity import code_digest, seed_of, versions
from harness.base.word_chain import WordChain

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = ("gemma2", "llama", "opt", "phi3", "qwen2")
TOKENIZERS = ("byte_level", "byte_fallback")
TEXTS = ("samples", "word_chain")
SPECIAL = ("<pad>", "<s>", "</s>")
EXAMPLE = "tiny:llama or tiny:gemma2?tokenizer=byte_fallback&tokens=700&width=64&layers=2&seed=1"
_ROOM = 2048  # tokens that a model reads
_SAMPLES = ("codem", "dolly", "gsm8k")  # named, so that a sample that is added changes no tiny model
_ROWS = 40  # of each sample that tokenizers are trained on
_CHAIN_TEXTS, _CHAIN_WORDS = 400, 12  # of the word chain's, and words of each after the first
_STANDARD_DEVIATION = 0.08  # of weights: distributions differ visibly from one another, and train well
_CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyModel:
    """What to generate.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        tokenizer: ``byte_level`` (as GPT-2's, Qwen's, Llama-3's) or ``byte_fallback`` (as Llama-2's, Phi-3's, Gemma's).
        tokens: in the vocabulary, special ones included; fewer where the text has no more pairs to merge.
        width: of hidden states; a multiple of 16.
        layers: of the decoder.
        seed: of the weights.
        text: that the tokenizer is trained on: ``samples`` of the tasks, or those of :mod:`harness.base.word_chain`.
    """

    architecture: str
    tokenizer: str = "byte_level"
    tokens: int = 512
    width: int = 64
    layers: int = 2
    seed: int = 0
    text: str = "samples"


def parse(text: str) -> TinyModel:
    """The part of a URI behind ``tiny:``.

    Raises:
        HarnessError: an unknown architecture, tokenizer or key, or a number that is none or out of bounds.
    """
    architecture, _, rest = text.partition("?")
    given = dict(parse_qsl(rest, keep_blank_values=True))
    least = {"tokens": 300, "width": 16, "layers": 1, "seed": 0}  # 259 tokens are bytes and special ones
    numbers = {key: int(text) for key, text in given.items() if key in least and re.fullmatch("[0-9]{1,9}", text)}
    tokenizer, trained_on = given.get("tokenizer", TOKENIZERS[0]), given.get("text", TEXTS[0])
    right = (
        architecture in ARCHITECTURES
        and tokenizer in TOKENIZERS
        and trained_on in TEXTS
        and given.keys() - {"tokenizer", "text"} == numbers.keys()
        and all(number >= least[key] for key, number in numbers.items())
        and numbers.get("width", 16) % 16 == 0
        and (architecture, tokenizer) != ("qwen2", "byte_fallback")
    )
    if not right:
        bounds = ", ".join(f"{key} {bound}" for key, bound in least.items())
        raise HarnessError(
            "model",
            repr(f"tiny:{text}"),
            EXAMPLE,
            f"Architectures: {', '.join(ARCHITECTURES)}; tokenizers: {', '.join(TOKENIZERS)}; texts: "
            f"{', '.join(TEXTS)}; at least {bounds}; widths are multiples of 16; qwen2 is byte_level.",
        )
    return TinyModel(architecture, tokenizer, **numbers, text=trained_on)


def source_digest(spec: TinyModel) -> str:
    """What decides the model: its description, this code, the text, the libraries that train the tokenizer."""
    return digest_of(
        {
            "tiny": asdict(spec),
            "code": code_digest("harness.models.tiny"),
            "texts": list(_texts(spec.text)),
            "versions": versions("tokenizers", "transformers"),
        }
    )


def make(spec: TinyModel) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model, in float32, and its tokenizer, with a chat template that marks turns by ``<s>`` and ``</s>``."""
    from transformers import PreTrainedTokenizerFast

    build: Callable[[Iterable[str], int], Tokenizer] = {"byte_level": byte_level, "byte_fallback": _byte_fallback_of}[
        spec.tokenizer
    ]
    pad, bos, eos = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build(_texts(spec.text), spec.tokens), bos_token=bos, eos_token=eos, pad_token=pad
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    rows = 64 * (len(tokenizer) // 64 + 1)  # more than there are tokens, as in published models
    return _model(spec, rows), tokenizer


def _model(spec: TinyModel, vocabulary: int) -> PreTrainedModel:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": 4,
        "max_position_embeddings": _ROOM,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_dropout": 0.0,
    }
    wide = {"intermediate_size": 2 * spec.width, "num_key_value_heads": 2}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "gemma2": ("Gemma2Config", wide | {"head_dim": spec.width // 4, "sliding_window": 256}),
        "llama": ("LlamaConfig", wide | {"tie_word_embeddings": False}),
        "opt": ("OPTConfig", {"ffn_dim": 2 * spec.width, "word_embed_proj_dim": spec.width, "dropout": 0.0}),
        "phi3": ("Phi3Config", wide | {"tie_word_embeddings": False}),
        "qwen2": ("Qwen2Config", wide | {"tie_word_embeddings": True}),
    }
    kind, more = kinds[spec.architecture]
    config = getattr(transformers, kind)(**shape, **more)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        # Each from a generator of its own: neither torch's global state nor the order of modules changes a weight.
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                generator = torch.Generator().manual_seed(seed_of("tiny", name, spec.seed))
                weight.copy_(_STANDARD_DEVIATION * torch.randn(weight.shape, generator=generator))
    return model.eval()


@cache
def _texts(of: str = TEXTS[0]) -> tuple[str, ...]:
    """Values of the first rows of the samples that the project ships, or texts of the word chain."""
    if of == "word_chain":
        chain = WordChain.drawn().texts(_CHAIN_WORDS, seed_of("tiny", of))
        return tuple(" ".join(words) for words in islice(chain, _CHAIN_TEXTS))
    folder = Path(__file__).parents[1] / "tasks" / "samples"
    rows: list[Mapping[str, Any]] = []
    for task in _SAMPLES:
        lines = (folder / task / "train.jsonl").read_text(encoding="utf-8").splitlines()[:_ROWS]
        rows += [json.loads(line) for line in lines]
    return tuple(text for row in rows for text in row.values() if isinstance(text, str) and text)


# --- Tokenizers -------------------------------------------------------------------------------------------------------


def byte_level(texts: Iterable[str], tokens: int) -> Tokenizer:
    """Byte-level BPE as GPT-2 has it, with `SPECIAL` first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def byte_fallback(texts: Iterable[str], pieces: int) -> Tokenizer:
    """SentencePiece-like BPE: ``▁`` for a space and one in front, bytes for what is not ASCII.

    Args:
        pieces: that are trained, beside `SPECIAL` and the 256 bytes.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    ascii_only = [text.encode("ascii", "ignore").decode() for text in texts]
    trained.train_from_iterator(ascii_only, trainers.BpeTrainer(vocab_size=pieces, show_progress=False))
    # Fallback pieces come first, as in Llama-2's and Gemma's vocabularies; then the trained pieces.
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *fallback])}
    parts = json.loads(trained.to_str())["model"]
    for piece in sorted(parts["vocab"], key=parts["vocab"].get):
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(merge) for merge in parts["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token=SPECIAL[0]))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return made


def _byte_fallback_of(texts: Iterable[str], tokens: int) -> Tokenizer:
    return byte_fallback(texts, tokens - 256 - len(SPECIAL))
