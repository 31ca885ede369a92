"""Sizes that costs depend on: a model's shape, and the lengths of texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import yaml

from harness.base.errors import HarnessError
from harness.base.files import Json, digest_of, read_json, write_json
from harness.base.identity import code_digest, versions
from harness.models.cache import cache_folder
from harness.models.load import load_config
from harness.models.resolve import is_downloaded, resolve
from harness.models.spec import ModelSpec
from harness.models.uri import KNOWN_MODELS, parse_uri

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROMPT_BYTES_PER_TOKEN = 4.0

FloatArray = npt.NDArray[np.float64]


# --- Shapes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        parameters: all weights, tied ones once.
        body: weights of the layers, which every token passes: all but embeddings and head.
        head: weights of the output head, [vocabulary, hidden].
        layers, hidden, vocabulary: of the decoder.
        inner: width of the feed-forward part.
        queries, keys: width of all query heads, and of all key heads.
        normed: width of all that a layer normalises.
        gated: whether the feed-forward part multiplies two projections.
        scores: heads whose attention scores are kept, all of them with eager attention and none with sdpa.
        bytes_per_token: of responses, by what they read like (:attr:`harness.tasks.base.Task.text`).
    """

    parameters: int
    body: int
    head: int
    layers: int
    hidden: int
    vocabulary: int
    inner: int
    queries: int
    keys: int
    normed: int
    gated: bool
    scores: int
    bytes_per_token: Mapping[str, float]

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        bytes_per_token: Mapping[str, float],
        layers: int | None = None,
        eager: bool = False,
    ) -> Shape:
        """The sizes of a config's model, built on the meta device: no memory, no weights.

        Args:
            layers: of a pruned model.
            eager: whether attention keeps its scores.
        """
        import torch
        from transformers import AutoModelForCausalLM

        text = config.get_text_config()
        if layers is not None:
            text.num_hidden_layers = layers
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:layers]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        head = model.get_output_embeddings().weight
        looked_up = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        outside = sum(weight.numel() for weight in {id(weight): weight for weight in [head, *looked_up]}.values())
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        queries, keys = text.num_attention_heads * width, key_heads * width
        first = [name for name, _ in model.named_parameters() if ".layers.0." in name]
        norms = [name for name in first if "norm" in name and name.endswith("weight")]
        of_heads = [name for name in norms if "q_norm" in name or "k_norm" in name]
        return cls(
            parameters=parameters,
            body=parameters - outside,
            head=head.numel(),
            layers=text.num_hidden_layers,
            hidden=head.shape[1],
            vocabulary=head.shape[0],
            inner=getattr(text, "intermediate_size", None) or text.ffn_dim,
            queries=queries,
            keys=keys,
            normed=(len(norms) - len(of_heads)) * head.shape[1] + (queries + keys if of_heads else 0),
            gated=any("gate" in name for name in first),
            scores=text.num_attention_heads if eager else 0,
            bytes_per_token=bytes_per_token,
        )

    def forward(self, tokens: float, length: float) -> float:
        """Operations of the layers for so many tokens in sequences of a length: weights, and causal attention."""
        return tokens * (2.0 * self.body + 2.0 * self.layers * self.queries * length)

    def logits(self, rows: float) -> float:
        """Operations of the head."""
        return 2.0 * self.head * rows

    def layer_activations(self, width: int, length: float) -> float:
        """Bytes that one layer keeps for the backward pass, a token, with matrix products in ``width`` bytes.

        Norms compute in float32, and beside bf16 products they keep more. Measured with tests' test_costs.py.

        Args:
            length: of the sequences, for scores of eager attention.
        """
        norms = (9.0 if width == 2 else 4.0) * self.normed
        attention = width * (self.hidden + 4.0 * self.queries + 2.0 * self.keys) + 10.0 * self.scores * length
        return norms + attention + width * (self.hidden + (4.0 if self.gated else 1.0) * self.inner)


@functools.cache
def architectures() -> dict[str, Json]:
    """The file of shapes that come with the harness."""
    loaded: dict[str, Json] = yaml.safe_load(Path(__file__).with_name("architectures.yaml").read_text(encoding="utf-8"))
    return loaded


def shape_of(spec: ModelSpec) -> Shape:
    """Sizes of a recipe's model: from its config where it is downloaded, else from the file of shapes.

    Raises:
        HarnessError: neither is there.
    """
    uri = parse_uri(spec.model)
    known = architectures()
    repository = uri.repository or next((k.source for k in KNOWN_MODELS.values() if k.uri == spec.model), "")
    entry = known["models"].get(repository)
    tokenizer = entry["tokenizer"] if entry else "unknown"
    ratios = {name: ratio for name, ratio in known["bytes_per_token"][tokenizer].items() if name != "measured_with"}
    folder: Path | None = None
    if is_downloaded(uri):
        folder = resolve(uri, download=False).folder
        fields = read_json(folder / "config.json")
    elif entry:
        fields = dict(entry["config"])
    else:
        raise HarnessError(
            spec.model, "no config on this machine", "a downloaded model, or one of architectures.yaml", "Download it."
        )
    eager = spec.attention == "eager"
    decides = {"config": fields, "layers": spec.layers, "eager": eager, **versions("transformers")}
    path = cache_folder() / "shapes" / f"{digest_of({**decides, 'code': code_digest(__name__)})[:32]}.json"
    with suppress(OSError, ValueError, TypeError):
        return replace(Shape(**read_json(path)), bytes_per_token=ratios)
    from transformers import AutoConfig  # takes seconds: what it finds is kept

    config = load_config(folder) if folder else AutoConfig.for_model(**fields)
    shape = Shape.of(config, ratios, spec.layers, eager)
    with suppress(HarnessError, OSError):  # a cache that can't be written costs the seconds again
        write_json(path, asdict(shape))
    return shape


# --- Texts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextSizes:
    """Rows of a task in tokens of one model.

    Attributes:
        prompts, responses: [rows], cut at the limit, the end of sequence included.
    """

    prompts: FloatArray
    responses: FloatArray

    @classmethod
    def of(cls, sizes: FloatArray, ratio: float, limit: int) -> TextSizes:
        """From [rows, 2] bytes of prompts and responses."""
        prompts = np.ceil(sizes[:, 0] / PROMPT_BYTES_PER_TOKEN) + 1
        kept = prompts < limit
        prompts = prompts[kept]
        return cls(prompts, np.minimum(np.ceil(sizes[kept, 1] / ratio) + 1, limit - prompts))

    @property
    def tokens(self) -> float:
        """Of all rows."""
        return float((self.prompts + self.responses).sum())

    @property
    def rows(self) -> float:
        """Response tokens of all rows."""
        return float(self.responses.sum())

    @functools.cached_property
    def _by_size(self) -> dict[int, tuple[float, float]]:
        return {}

    def batches(self, size: int) -> tuple[float, float]:
        """Of shuffled batches: mean and largest number of tokens with padding."""
        if size not in self._by_size:
            self._by_size[size] = self._batches(size)
        return self._by_size[size]

    def _batches(self, size: int) -> tuple[float, float]:
        lengths = self.prompts + self.responses
        size = min(size, len(lengths))
        return longest_of(lengths, size) * size, float(lengths.max()) * size


def longest_of(lengths: FloatArray, size: int) -> float:
    """Of shuffled batches of so many texts: the mean of the longest of each.

    Args:
        lengths: [texts], at least one.
    """
    size = min(max(size, 1), len(lengths))
    shuffled = np.random.default_rng(0).permutation(lengths)
    return float(shuffled[: len(lengths) // size * size].reshape(-1, size).max(1).mean())
