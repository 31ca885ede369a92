"""What a training in pieces needs beside its processes; pieces themselves: tests/harness/run/test_distributed.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.utils.constants import FSDP_MODEL_NAME

from harness.base.errors import HarnessError
from harness.models.lora import add_lora
from harness.models.spec import Lora
from harness.recipe.training import Training
from harness.training.contract_bench import tiny_model
from harness.training.sharding import blank_copy, check_checkpoint, gather_into, settings_of, shards


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])  # tied, and not
def test_a_blank_copy_takes_the_weights_of_a_model_with_adapters(architecture: str) -> None:
    wrapper, model = add_lora(tiny_model(architecture, 50), Lora(rank=2, alpha=4))
    with torch.no_grad():
        for number, parameter in enumerate(wrapper.parameters()):
            parameter.fill_(0.01 * number)
    blank = blank_copy(wrapper)
    gather_into(blank, wrapper)
    ids = torch.arange(7)[None]
    torch.testing.assert_close(blank(input_ids=ids).logits, wrapper(input_ids=ids).logits, rtol=0, atol=0)
    assert not {each.data_ptr() for each in blank.parameters()} & {each.data_ptr() for each in wrapper.parameters()}
    inside = blank.get_base_model()
    ends = [each.get_input_embeddings().weight is each.get_output_embeddings().weight for each in (inside, model)]
    assert ends[0] == ends[1] == (architecture == "qwen2")
    assert [each.requires_grad for each in blank.parameters()] == [each.requires_grad for each in wrapper.parameters()]


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "opt"])
def test_decoder_layers_are_what_is_wrapped(architecture: str) -> None:
    names = settings_of(tiny_model(architecture, 50))["fsdp_config"]["transformer_layer_cls_to_wrap"]
    assert [name.lower() for name in names] == [f"{architecture}decoderlayer"]


@pytest.mark.parametrize("holds", [True, False])
def test_a_checkpoint_of_the_other_kind_is_refused(holds: bool, tmp_path: Path) -> None:
    if holds:
        (tmp_path / f"{FSDP_MODEL_NAME}_0").mkdir()
    check_checkpoint(tmp_path, sharded=holds)
    with pytest.raises(HarnessError, match=f"found a checkpoint of a {'model in pieces' if holds else 'whole model'}"):
        check_checkpoint(tmp_path, sharded=not holds)


def test_one_process_has_nobody_to_share_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Training(steps=1, shard=True)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not shards(asked)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert shards(asked)
    assert not shards(Training(steps=1))
    assert asked.identity() == Training(steps=1).identity()
