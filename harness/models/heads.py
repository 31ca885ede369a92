"""A model's output head as a function of its hidden rows, so that logits are made for chosen rows only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.base.errors import HarnessError
from methods.library.closed_form import entropy
from methods.library.kernels import kernels_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Head:
    """Logits of hidden rows: ``soft_cap * tanh(scale * (rows @ weight.T + bias) / soft_cap)``.

    Attributes:
        weight: [vocabulary, hidden]; the model's own parameter, tied or not.
        bias: [vocabulary] or None.
        scale: factor of the logits (Cohere, Granite); 1 where the model has none.
        soft_cap: bound of the logits (Gemma-2: 30); None where the model has none.
        embeddings: gives the model's own layer of input embeddings, whenever it is asked; None where there is none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    embeddings: Callable[[], nn.Module] | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a causal language model.

        Raises:
            HarnessError: the model has no linear output layer.
        """
        layer = model.get_output_embeddings()
        if not isinstance(layer, nn.Linear):
            raise HarnessError(type(model).__name__, f"an output layer of type {type(layer).__name__}", "nn.Linear")
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        if getattr(config, "logits_scaling", None):  # Granite divides
            scale = scale / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(layer.weight, layer.bias, float(scale), cap, model.get_input_embeddings)

    def alone(self, read: Callable[[], nn.Module]) -> Head:
        """The same without its model: embeddings whose weights are not the head's are read once somebody asks."""
        assert self.embeddings is not None
        layer = self.embeddings()
        tied = any(each is self.weight for each in layer.parameters())
        return replace(self, embeddings=(lambda: layer) if tied else cache(read))

    @torch.no_grad()
    def embedded(self, tokens: Tensor) -> Tensor:
        """[n, width]: what the layer of input embeddings makes of tokens, int64 [n], its own factor included."""
        assert self.embeddings is not None
        found: Tensor = self.embeddings()(tokens)
        return found.detach()

    def to(self, dtype: torch.dtype) -> Head:
        """The same head computing in ``dtype``; made once for many chunks."""
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def at_linear(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient at ``rows @ weight.T + bias``, from the one at the logits, which it may overwrite."""
        if self.soft_cap is not None:  # the derivative of tanh is 1 - tanh²
            gradient = gradient.mul_(1 - (logits / self.soft_cap).square_())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)

    def logits(self, rows: Tensor) -> Tensor:
        """[n, vocabulary] from rows [n, hidden]."""
        logits = nn.functional.linear(rows, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits


def hidden_states(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    *,
    padded_behind: bool = False,
) -> Tensor:
    """[batch, length, hidden]: the last hidden state, final norm included, without any logits.

    Without a mask, transformers keeps sequences apart where positions start again: see :func:`check_packing`.

    Args:
        padded_behind: whether what padding there is stands behind what counts. No token looks at it then, and on a GPU
            no mask is given: transformers would read whether it hides anything, and wait for all that runs there, and
            masked attention is the slower kernel.
    """
    given = {"attention_mask": attention_mask, "position_ids": position_ids}
    if padded_behind and attention_mask is not None and reads_masks(model, input_ids.device):
        # transformers' modules take seconds to import, and plans need none
        from harness.models.passing_cache import passing_cache

        given = {"past_key_values": passing_cache(model.config.get_text_config(decoder=True).num_hidden_layers)}
    output = model.base_model(input_ids=input_ids, use_cache=False, **given)
    hidden: Tensor = output.last_hidden_state
    return hidden


def reads_masks(model: Any, device: torch.device) -> bool:
    """Whether a forward pass would wait for the device to look at its mask, and can do without one."""
    if device.type != "cuda":
        return False
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    takes = "past_key_values" in inspect.signature(model.base_model.forward).parameters
    return config._attn_implementation == "sdpa" and kinds <= {"full_attention", "sliding_attention"} and takes


@torch.no_grad()
def check_packing(model: PreTrainedModel, tolerance: float = 1e-3) -> None:
    """Compare the hidden rows of two sequences that stand one behind the other with those of each alone.

    Raises:
        HarnessError: they differ by more than ``tolerance`` of the largest: this model's attention or its positions
            would let a sequence see the one before.
    """
    device = next(model.parameters()).device
    training, _ = model.training, model.eval()
    alone = [torch.arange(start, start + size, device=device).unsqueeze(0) for start, size in ((3, 24), (40, 17))]
    positions = [torch.arange(ids.numel(), device=device).unsqueeze(0) for ids in alone]
    try:
        expected = torch.cat(
            [hidden_states(model, ids, torch.ones_like(ids), at) for ids, at in zip(alone, positions, strict=True)], 1
        )
        packed = hidden_states(model, torch.cat(alone, 1), None, torch.cat(positions, 1))
        error = float((packed - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    finally:
        model.train(training)
    if not error <= tolerance:
        raise HarnessError(
            "packing",
            f"hidden rows of {type(model).__name__} that differ by {error:.1e} of the largest once packed",
            f"at most {tolerance:.0e}",
            "Its attention or its positions don't keep packed sequences apart: set packing to false.",
        )


@torch.no_grad()
def check_head(model: PreTrainedModel, name: str, tolerance: float = 1e-3) -> None:
    """Compare :class:`Head` on hidden states with the model's own logits, once per model.

    Raises:
        HarnessError: they differ by more than ``tolerance`` of the largest logit: the head does more than we know.
    """
    device = next(model.parameters()).device
    ids = torch.arange(1, 9, device=device).unsqueeze(0)
    mask = torch.ones_like(ids)
    positions = torch.arange(8, device=device).unsqueeze(0)
    training, _ = model.training, model.eval()
    own = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits.float()
    ours = Head.of(model).logits(hidden_states(model, ids, mask, positions)).float()
    model.train(training)
    error = float((own - ours).abs().max() / own.abs().max().clamp_min(1e-6))
    if not error <= tolerance:  # NaN is no agreement
        raise HarnessError(
            f"output head of {name}",
            f"logits that differ from ours by {error:.1e} of the largest",
            f"at most {tolerance:.0e}",
            "This architecture changes its logits in a way that harness/heads.py does not know.",
        )


def entropies(head: Head, rows: Tensor, chunk_rows: int) -> Tensor:
    """float64 [rows]: entropy, in nats, of the next-token distribution of each row; logits exist for a chunk only.

    It stays where the rows are: nothing waits for it here.
    """
    found = []
    for start in range(0, len(rows), chunk_rows):
        logits = head.logits(rows[start : start + chunk_rows])
        kernels = kernels_for(logits)
        found.append(entropy(widened(logits)) if kernels is None else kernels.entropy(logits))
    return torch.cat(found).double()


LOW_PRECISION = (torch.bfloat16, torch.float16)


def widened(logits: Tensor) -> Tensor:
    """Losses are computed in float32 at least."""
    return logits.float() if logits.dtype in LOW_PRECISION else logits
