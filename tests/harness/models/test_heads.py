"""harness.models.heads: our head against the models' own, and that training never makes all logits at once."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig

from harness.base.errors import HarnessError
from harness.data.batches import Collator
from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.terms import Term, align
from harness.data.tokens import STUDENT, tokenize
from harness.models import heads
from harness.models.heads import Head, check_head, hidden_states
from harness.training.loss import Distiller
from harness.training.objective import Objective
from methods.base import Method
from methods.fkd import FKD
from methods.uld import ULD
from tests import tiny
from tests.fake_gpu import GPU, FakeGpu, put

SIZE = 400
WIDTH = 64


def scaled(architecture: str) -> Any:
    """Models that multiply (Cohere) or divide (Granite) their logits by a number of their configuration."""
    shape = {"vocab_size": SIZE, "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config: Any = {
        "cohere": lambda: CohereConfig(**shape, logit_scale=0.25),
        "granite": lambda: GraniteConfig(**shape, logits_scaling=8.0, embedding_multiplier=3.0),
    }[architecture]()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def model(architecture: str) -> Any:
    made = tiny.model(architecture, SIZE) if architecture in tiny.ARCHITECTURES else scaled(architecture)
    return made.eval()


def inputs(padding: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions of two sequences, the second one shorter and padded on the left."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, SIZE, (2, 12), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, :padding], mask[1, :padding] = 0, 0
    return ids, mask, (mask.cumsum(-1) - 1).clamp_min(0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "cohere", "granite"])
@pytest.mark.parametrize("padding", [0, 5])
def test_head_of_hidden_states_is_the_models_logits(architecture: str, padding: int) -> None:
    made = model(architecture)
    ids, mask, positions = inputs(padding)
    own = made(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    ours = Head.of(made).logits(hidden_states(made, ids, mask, positions))
    torch.testing.assert_close(ours[mask.bool()], own[mask.bool()])
    check_head(made, architecture)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "opt", "phi3", "qwen2", "cohere", "granite", "qwen2, mixed"])
def test_padding_behind_needs_no_mask_and_no_wait(architecture: str) -> None:
    """As on a GPU: the same rows, with gradients checkpointed too, and nothing is read."""
    made = model(architecture.partition(",")[0])
    if "mixed" in architecture:  # every other layer looks back 4 tokens
        made.config.sliding_window, made.config.layer_types = 4, ["sliding_attention", "full_attention"]
        made.model.has_sliding_layers = True
        for layer, kind in zip(made.model.layers, made.config.layer_types, strict=True):
            layer.attention_type = kind
            layer.self_attn.sliding_window = 4 if kind == "sliding_attention" else None
    made.set_attn_implementation("sdpa")
    ids, mask, _ = inputs()
    ids[1, 8:], mask[1, 8:] = 0, 0
    positions = torch.arange(12) * mask
    expected = hidden_states(made, ids, mask, positions)
    on_gpu = copy.deepcopy(made)
    for module in on_gpu.modules():
        module._buffers.update({name: put(buffer) for name, buffer in module._buffers.items()})
    with FakeGpu() as gpu:
        assert heads.reads_masks(on_gpu, GPU)
        found = hidden_states(on_gpu, put(ids), put(mask), put(positions), padded_behind=True)
    assert not gpu.waits
    found = found.as_subclass(torch.Tensor)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])
    made.train()
    made.gradient_checkpointing_enable()
    checkpointed = hidden_states(made, ids, mask, positions, padded_behind=True)
    torch.testing.assert_close(checkpointed[mask.bool()], expected[mask.bool()])


def test_what_the_heads_do_to_their_logits() -> None:
    """The numbers come from each configuration; a head whose scale is forgotten would still rank tokens alike."""
    found = {name: Head.of(model(name)) for name in ("gemma2", "cohere", "granite", "qwen2", "opt")}
    assert {name: (head.scale, head.soft_cap) for name, head in found.items()} == {
        "gemma2": (1.0, 30.0),
        "cohere": (0.25, None),
        "granite": (1 / 8, None),
        "qwen2": (1.0, None),
        "opt": (1.0, None),
    }
    assert model("gemma2").config.final_logit_softcapping == 30.0


def test_scale_bias_and_cap_by_hand() -> None:
    """One row (1, 2), weight (3, 4), bias 1, scale 1/2, cap 10: 10 tanh(6 / 10)."""
    row, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([1.0])
    head = Head(weight, bias, scale=0.5, soft_cap=10.0)
    assert head.logits(row).item() == pytest.approx(10 * torch.tanh(torch.tensor(0.6)).item())
    assert Head(weight).logits(row).item() == 11


def test_the_weight_is_the_models_own_tied_or_not() -> None:
    tied, untied = model("qwen2"), model("llama")
    assert Head.of(tied).weight is tied.get_input_embeddings().weight
    assert Head.of(untied).weight is untied.lm_head.weight
    assert Head.of(untied).weight is not untied.get_input_embeddings().weight


@pytest.mark.parametrize(("kind", "reads"), [("qwen2", 0), ("llama", 1)])
def test_a_head_alone_reads_embeddings_once_where_they_are_no_weights_of_its_own(kind: str, reads: int) -> None:
    made, asked = model(kind), []

    def read() -> nn.Module:
        asked.append(kind)
        layer: nn.Module = model(kind).get_input_embeddings()
        return layer

    gone = weakref.ref(made)
    head = Head.of(made).alone(read)
    del made
    gc.collect()
    assert gone() is None
    assert asked == []
    for tokens in (torch.tensor([3, 1]), torch.tensor([2])):
        assert torch.equal(head.embedded(tokens), model(kind).get_input_embeddings().weight[tokens])
        assert not head.embedded(tokens).requires_grad
    assert len(asked) == reads


class Louder(nn.Linear):
    """An output layer that does more than a linear layer does."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) * 1.01


def test_check_head_refuses_a_head_that_does_more() -> None:
    made = model("llama")
    made.lm_head.__class__ = Louder
    with pytest.raises(HarnessError, match=r"^output head of loud: found logits that differ from ours by 9\.9e-03"):
        check_head(made, "loud")
    check_head(made, "loud", tolerance=0.02)


def test_check_head_refuses_logits_that_are_no_numbers() -> None:
    made = model("llama")
    nn.init.constant_(made.lm_head.weight, torch.nan)
    with pytest.raises(HarnessError, match=r"^output head of broken: found logits that differ from ours by nan"):
        check_head(made, "broken")


def test_check_head_leaves_the_model_as_it_was() -> None:
    made = model("llama").train()
    check_head(made, "llama")
    assert made.training
    assert all(parameter.grad is None for parameter in made.parameters())


def test_a_model_without_a_linear_head_is_named() -> None:
    made = model("llama")
    made.lm_head = nn.Sequential(made.lm_head)
    with pytest.raises(HarnessError, match=r"LlamaForCausalLM: found an output layer of type Sequential"):
        Head.of(made)


# --- no tensor over batch, length and vocabulary ----------------------------------------------------------------------


class LargestLogits(TorchDispatchMode):
    """Notes how many rows the largest tensor has whose last dimension is a vocabulary; transposed weights aside."""

    def __init__(self, sizes: set[int]) -> None:
        super().__init__()
        self.sizes, self.rows, self.seen = sizes, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            shape = value.shape if isinstance(value, Tensor) else ()
            if shape and shape[-1] in self.sizes and shape[:-1] != (WIDTH,):
                self.rows, self.seen = max(self.rows, value.numel() // value.shape[-1]), self.seen + 1
        return made


@pytest.mark.parametrize("method", [FKD(), ULD(), FKD(fidelity="released")], ids=["fkd", "uld", "fkd released"])
def test_no_tensor_holds_the_logits_of_more_than_a_chunk(method: Method) -> None:
    """Forward and backward, of both models: 4 sequences of up to 50 tokens, in chunks of 6 rows."""
    role, family = ("cross", "unigram") if isinstance(method, ULD) else ("same", "byte_level")
    sides = {
        name: TextSide(tiny.tokenizer(kind), template="plain", name=name)
        for name, kind in ((STUDENT, "byte_level"), (role, family))
    }
    sizes = {name: len(side.vocabulary) for name, side in sides.items()}
    student, teacher = tiny.model("qwen2", sizes[STUDENT]), tiny.model("gemma2", sizes[role], seed=1)
    texts = [Example(str(i), *sample) for i, sample in enumerate(tiny.SAMPLES)]
    terms = (Term(method, role, 1.0),)
    batch = Collator(terms, {STUDENT: 0, role: 0}, chunk_rows=6).collate(
        [align(example, terms) for example in tokenize(texts, sides, 128)]
    )
    objective = Objective("test", 1.0, terms)
    distiller = Distiller(student, objective, {role: teacher})
    assert batch.row_index.numel() > 10 * 6
    with LargestLogits(set(sizes.values())) as largest:
        distiller(batch, objective.divisors(batch.counts)).loss.backward()
    assert largest.seen > 10 * len(batch.chunks)  # the mode did see the walk
    # A teacher's rows that no student row meets, behind the end of a response, go through its head with the chunk.
    teacher_rows = [stop - start for _, _, _, (start, stop) in batch.terms[0].slices]
    assert largest.rows == max(6, *teacher_rows) <= 12
