"""A student's layers as CUDA graphs, so that the steps of a small model are not bound by launches.

A small model's passes cost the launches of some thousand kernels, whatever a micro-batch holds. Where no tensor changes
its shape or place, a GPU replays them as one graph forward and one back. So micro-batches are padded to one of few
lengths, and the second one of a shape is recorded, between tensors that stay: tokens and positions in, hidden rows out;
their gradient in, the weights' gradients out. Head and losses run as they do elsewhere, on what comes out.

All graphs compute in the same memory: between a forward pass and its way back no other is replayed.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.base.device import release_memory
from harness.base.ranks import world_size
from harness.data.batches import Batch
from harness.models.heads import hidden_states, reads_masks
from harness.recipe.training import AUTO_PARAMETERS, AUTO_TOKENS, Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_SHAPES = 16
"""Graphs are recorded of so many shapes; others run kernel by kernel, padded to the same lengths."""
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of norms, by what products run in; 1e-5 elsewhere. Attention adds up gradients in no fixed order."""

Pass = Callable[[], None]


class Recorder(Protocol):
    """Makes of two passes, forward and back, what replays them."""

    def record(self, forward: Pass, backward: Pass) -> tuple[Pass, Pass]: ...


def bucket(length: int) -> int:
    """The length that a micro-batch is padded to: a multiple of 64, and from 1,024 on of a sixteenth to an eighth."""
    step = max(64, 1 << max(length.bit_length() - 4, 0))
    return -(-length // step) * step


def unfit(model: PreTrainedModel, training: Training, on: torch.device) -> str | None:
    """Why a training's forward passes can't be graphs; None where they can, as far as settings tell."""
    if on.type != "cuda":
        return "there is no GPU"
    if world_size() > 1:
        return "several processes train it, which exchange gradients while they are made"
    if training.gradient_checkpointing:
        return "train.gradient_checkpointing computes activations twice"
    if training.packing:
        return "train.packing gives every micro-batch a shape of its own"
    if not reads_masks(model, on):
        return "its attention takes masks, which are read on the host"
    if (name := _dropout_of(model)) is not None:
        return f"{name} draws random numbers"
    return None


def _dropout_of(model: PreTrainedModel) -> str | None:
    """What of a model drops out in training: a layer, or a field of its config."""
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            return str(name)
    fields: dict[str, object] = model.config.get_text_config(decoder=True).to_dict()
    for name, value in fields.items():
        if ("dropout" in name or name.endswith("drop")) and isinstance(value, (int, float)) and value > 0:
            return str(name)
    return None


def graphs_of(model: PreTrainedModel, training: Training, on: torch.device) -> LayerGraphs | None:
    """Graphs of a model's layers, where its training asks for them (``train.cuda_graphs``) and can have them."""
    wanted = training.cuda_graphs
    reason = "off" if wanted == "off" else unfit(model, training, on)
    if reason is not None:
        if wanted == "on":
            warnings.warn(f"train.cuda_graphs: no CUDA graphs of {type(model).__name__}: {reason}", stacklevel=2)
        return None
    if wanted == "on":
        return LayerGraphs(model, GpuRecorder(on))
    small = sum(parameter.numel() for parameter in model.parameters()) < AUTO_PARAMETERS
    return LayerGraphs(model, GpuRecorder(on), AUTO_TOKENS) if small else None


class GpuRecorder:
    """Records CUDA graphs that compute in one memory.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, forward: Pass, backward: Pass) -> tuple[Pass, Pass]:
        here = torch.cuda.current_stream(self.stream.device)
        with torch.cuda.stream(here):  # back to it, should a recording break off
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream):  # libraries set up what they do not set up while a graph is recorded
                forward()
                backward()
            here.wait_stream(self.stream)
            return self._graph(forward), self._graph(backward)

    def _graph(self, run: Pass) -> Pass:
        graph = torch.cuda.CUDAGraph()
        # The thread that reads ahead pins memory meanwhile, which a recording of all threads would not stand.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            run()
        return graph.replay


class LayerGraphs:
    """The hidden rows of a model in training, by graphs.

    Whatever is not recorded, or can't be, runs kernel by kernel and comes to the same.

    Args:
        model: causal language model, without dropout; what of its weights is trained stays what it is.
        recorder: of the passes.
        most_tokens: of a micro-batch, with padding; a larger one runs as it would without graphs. None: any.

    Attributes:
        shapes: [rows, length] of what was recorded.
        ended: why no graphs are replayed any more; None while they are.
    """

    def __init__(self, model: PreTrainedModel, recorder: Recorder, most_tokens: int | None = None) -> None:
        self.model, self.recorder, self.most_tokens = model, recorder, most_tokens
        self.parameters = [each for each in model.base_model.parameters() if each.requires_grad]
        self.ended: str | None = None
        self._seen: Counter[tuple[int, int]] = Counter()
        self._recorded: dict[tuple[int, int], _Passes] = {}
        self._memory: _Memory | None = None

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [*self._recorded]

    def takes(self, batch: Batch) -> bool:
        """Whether a batch's rows come from here: in training, padded behind, and not too large."""
        rows, length = batch.input_ids.shape
        fits = self.most_tokens is None or rows * bucket(length) <= self.most_tokens
        padded = batch.attention_mask is not None and batch.padded_behind
        training = torch.is_grad_enabled() and self.model.training and bool(self.parameters)
        return self.ended is None and fits and padded and training

    def hidden_states(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """[batch, length, hidden], as :func:`harness.models.heads.hidden_states` gives it, padded or not.

        What it gives stays what it is until the next call.
        """
        length = input_ids.shape[1]
        behind = (0, bucket(length) - length)
        ids, positions = nn.functional.pad(input_ids, behind), nn.functional.pad(position_ids, behind)
        passes = self._passes(ids, positions)
        if passes is None:
            made = self._run(ids, positions)
        else:
            made = _Replayed.apply(passes, ids, positions, *self.parameters)  # type: ignore[no-untyped-call]
        hidden: Tensor = made[:, :length]
        return hidden

    def end(self, why: str) -> bool:
        """Give up all graphs and the memory that they compute in. Returns whether there were any."""
        had = bool(self._recorded)
        self.ended = why
        self._recorded, self._memory = {}, None
        return had

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The layers, kernel by kernel. Casts of weights are made in the pass itself: those of others get old."""
        kind = ids.device.type
        low, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        with torch.enable_grad(), torch.autocast(kind, dtype, low, cache_enabled=False):
            return hidden_states(self.model, ids, torch.ones_like(ids), positions, padded_behind=True)

    def _passes(self, ids: Tensor, positions: Tensor) -> _Passes | None:
        """The graphs of a shape, recorded when it comes up a second time; None where there are none."""
        shape = (ids.shape[0], ids.shape[1])
        self._seen[shape] += 1
        if shape in self._recorded:
            return self._recorded[shape]
        if self._seen[shape] < 2 or len(self._recorded) == MOST_SHAPES:
            return None
        try:
            self._recorded[shape] = self._record(ids, positions)
        except Exception as error:  # whatever it is, the training goes on without
            cause = error.__context__ or error  # a recording that breaks off fails once more when it is closed
            why = f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}"
        else:
            return self._recorded[shape]
        self.end(why)
        release_memory()
        warnings.warn(
            f"train.cuda_graphs: the passes of {type(self.model).__name__} at {shape[0]} x {shape[1]} tokens could not "
            f"be recorded, and all run one kernel at a time: {why}",
            stacklevel=2,
        )
        return None

    def _record(self, ids: Tensor, positions: Tensor) -> _Passes:
        """Record both passes over a micro-batch, and compare what they give with what they gave kernel by kernel.

        Raises:
            RuntimeError: they can't be recorded, or give something else.
        """
        release_memory()  # and what is left of other passes, whose nodes are bound to the stream that they ran on
        self._memory = self._memory or _Memory(self.parameters)
        passes = _Passes(self._run, self.parameters, self._memory, ids, positions)
        plain = [each.clone() for each in passes.results]
        passes.replays = self.recorder.record(passes.forward, passes.backward)
        torch._foreach_zero_(passes.results)
        for replay in passes.replays:
            replay()
        kind = ids.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else passes.out.dtype
        _compare(passes.results[:1], plain[:1], _TOLERANCE.get(low, 1e-5), "hidden rows")
        _compare(passes.results[1:], plain[1:], _TOLERANCE.get(low, 1e-5), "gradients of weights")
        return passes


class _Memory:
    """What graphs of all shapes write to.

    Args:
        parameters: that are trained.

    Attributes:
        gradients: of the parameters, of the last pass back.
        turn: how many passes were replayed, forward and back.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.gradients = [torch.empty_like(each) for each in parameters]
        self.turn = 0


class _Passes:
    """Both passes over micro-batches of one shape, between tensors that stay where they are.

    They run once when this is made, kernel by kernel, back from a gradient that is made up.

    Args:
        run: [rows, length, hidden] of tokens and positions.
        parameters: that are trained.
        memory: where their gradients go.
        ids, positions: int64 [rows, length], of the first micro-batch of this shape.

    Attributes:
        ids, positions: of a micro-batch; read by the pass forward.
        out, upstream: [rows, length, hidden], hidden rows and the gradient there.
        replays: the passes as they were recorded.
    """

    def __init__(
        self,
        run: Callable[[Tensor, Tensor], Tensor],
        parameters: Sequence[Tensor],
        memory: _Memory,
        ids: Tensor,
        positions: Tensor,
    ) -> None:
        self._run, self._parameters, self.memory = run, parameters, memory
        self.ids, self.positions = ids.clone(), positions.clone()
        self._made: Tensor | None = run(self.ids, self.positions)
        self.out = self._made.detach().clone()
        self.upstream = self.out.roll(1, -1) / math.sqrt(self.out.numel())
        self.backward()
        self.replays: tuple[Pass, Pass] = (self.forward, self.backward)

    @property
    def results(self) -> list[Tensor]:
        """Hidden rows, and the gradient of each parameter."""
        return [self.out, *self.memory.gradients]

    def forward(self) -> None:
        self._made = self._run(self.ids, self.positions)
        self.out.copy_(self._made.detach())

    def backward(self) -> None:
        assert self._made is not None
        found = torch.autograd.grad(self._made, self._parameters, self.upstream)
        self._made = None  # and with it what the pass forward kept
        torch._foreach_copy_(self.memory.gradients, found)


class _Replayed(torch.autograd.Function):
    """Both passes in the place of the layers' own."""

    @staticmethod  # Any: torch's context, which takes what is put on it
    def forward(ctx: Any, passes: _Passes, ids: Tensor, positions: Tensor, *parameters: Tensor) -> Tensor:
        passes.ids.copy_(ids)
        passes.positions.copy_(positions)
        passes.replays[0]()
        passes.memory.turn += 1
        ctx.passes, ctx.turn = passes, passes.memory.turn
        return passes.out.detach()

    @staticmethod  # Any: as above
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        passes: _Passes = ctx.passes
        memory = passes.memory
        if ctx.turn != memory.turn:
            raise RuntimeError("another pass was replayed in the memory of this one before its way back")
        memory.turn += 1
        passes.upstream.copy_(upstream)
        passes.replays[1]()
        # Copies: what is handed over becomes a parameter's .grad, which later passes are added to.
        found = [torch.empty_like(each) for each in memory.gradients]
        torch._foreach_copy_(found, memory.gradients)
        return None, None, None, *found


def _compare(found: list[Tensor], plain: list[Tensor], tolerance: float, what: str) -> None:
    """Compare tensors by their norms; a small one by a hundredth of all, for its noise is theirs.

    Raises:
        RuntimeError: they differ.
    """
    apart, norms = (
        torch.stack([norm.double() for norm in torch._foreach_norm(tensors)])
        for tensors in (torch._foreach_sub(found, plain), tuple(plain))
    )
    worst = float((apart / (norms + 0.01 * norms.norm()).clamp_min(1e-30)).max())
    if not worst <= tolerance:  # NaN is no agreement
        raise RuntimeError(f"replayed, {what} differ by {worst:.1e} of their norm, where {tolerance:.0e} is allowed")
