"""A model whose weights, gradients and optimiser state lie in pieces on the processes that train it together (FSDP2).

Accelerate shards: each decoder layer is a unit of its own, gathered when it computes; embeddings, head, final norm and
what methods train of their own are the root's, gathered once a step and whole for all of its chunks. Before and after a
training the model is whole, so that what is stored, and what reads it, knows nothing of this.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

from harness.base.errors import HarnessError
from harness.base.ranks import world_size
from harness.models.load import decoder_layers
from harness.recipe.training import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

_VARIABLES = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")


def sharers(training: Training) -> int:
    """How many processes share a training's weights: one, where each has them whole."""
    return world_size() if training.shard else 1


def shards(training: Training) -> bool:
    """Whether a training's weights are spread: one process alone has nobody to share them with."""
    return sharers(training) > 1


def settings_of(student: PreTrainedModel) -> dict[str, Any]:  # Any: as TrainingArguments take them
    """What transformers' TrainingArguments take to shard a student's decoder layers, and what is left of it."""
    parent, name = decoder_layers(student, student.config.get_text_config(decoder=True).num_hidden_layers)
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": sorted({type(layer).__name__ for layer in getattr(parent, name)}),
            "state_dict_type": "SHARDED_STATE_DICT",  # each process writes its own pieces, and none gathers all
        },
        # Else all layers' gradients stay whole until a step's last micro-batch; `begin_pass` says what is done instead.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def keep_precision(arguments: TrainingArguments) -> None:
    """Have weights gathered, and gradients added up, in float32; autocast computes, as it does without shards.

    FSDP's own bf16 does both in bf16: another result than that of one process.
    """
    arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy()


def take_plugin(accelerator: Accelerator, settings: dict[str, Any]) -> None:  # Any: of :func:`settings_of`
    """Have FSDP on CPUs too: there Accelerate's state forgets the plugin, and trains whole copies without a word."""
    if accelerator.state.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)


@contextmanager
def unchanged_environment() -> Iterator[None]:
    """A block after which the next training may be whole: Accelerate leaves its wish for shards in the environment."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_checkpoint(checkpoint: Path, *, sharded: bool) -> None:
    """That a training can go on from a checkpoint.

    Raises:
        HarnessError: it holds pieces, and the training is whole, or the other way round.
    """
    holds = any(path.is_dir() for path in checkpoint.glob(f"{FSDP_MODEL_NAME}*"))
    if holds != sharded:
        kinds = {True: "a model in pieces (shard: true, several processes)", False: "a whole model"}
        raise HarnessError(
            str(checkpoint),
            f"a checkpoint of {kinds[holds]}",
            f"one of {kinds[sharded]}, as this training has it",
            "Go on with the setting of shard that it began with, or remove the folder to begin anew.",
        )


def begin_pass(model: nn.Module, *, last: bool) -> None:
    """Say whether a micro-batch is its step's last: the root is gathered for the first, and reduced after the last.

    Layers' gradients are reduced after each, so that no process ever holds all of them.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last, recurse=False)
        model.set_reshard_after_backward(last, recurse=False)


def read(model: nn.Module, work: Callable[[], T]) -> T:
    """What comes of reading a model outside of its forward pass, with its root whole; all processes do it together.

    Args:
        model: with a method ``reading`` that calls what it is given.
        work: calls parts of the model; the same on every process, or they would wait for one another.
    """
    if not isinstance(model, FSDPModule):
        return work()
    module: Any = model
    if "reading" not in vars(module):  # torch's hooks round it are the module's own
        register_fsdp_forward_method(module, "reading")
    try:
        found: T = module.reading(work)
        return found
    finally:
        module.reshard()


# --- From pieces to whole tensors and back ----------------------------------------------------------------------------


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from its pieces; all processes do it together."""
    gathered: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
    return gathered


def piece(tensor: Tensor) -> Tensor:
    """What this process has of a tensor; it may be empty."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


@torch.no_grad()
def set_whole(parameter: Tensor, value: Tensor) -> None:
    """Give a parameter a value that every process has whole."""
    if isinstance(parameter, DTensor):
        on = parameter.to_local().device
        value = distribute_tensor(value.to(on), parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(value)


def blank_copy(model: M) -> M:
    """The same model on the CPU with weights of no value, tied as there; they take memory once they are written."""
    blank = {
        id(each): nn.Parameter(torch.empty_like(each, device="cpu"), each.requires_grad) for each in model.parameters()
    }
    copied: M = copy.deepcopy(model, memo=dict(blank))
    return copied


@torch.no_grad()
def gather_into(blank: nn.Module | None, model: nn.Module) -> None:
    """Write a sharded model's weights into a blank copy of it, one after the other; all processes do it together.

    Args:
        blank: on the process that goes on with the model, the others have None.
    """
    targets = {} if blank is None else dict(blank.named_parameters())
    for name, parameter in model.named_parameters():
        gathered = whole(parameter)
        if targets:
            targets[name].copy_(gathered)
