"""A GPU that is none: what of some code would make the host wait for one, and how many kernels it would launch.

Tensors in CPU memory say that they are on a GPU, so that code goes the way that it goes there. A CPU waits for nothing:
waits are known by name, as torch's own switch knows them (``torch.cuda.set_sync_debug_mode``), operations whose result
has a shape that depends on values, values that are read, and copies between host and device that nobody lets overlap.
Beyond that switch: copies to a GPU from memory that is not page-locked, which a driver may let the host wait for.
Triton's kernels, where they are asked for, are launched and do nothing; what they would write is 0.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import methods.library
from methods.library import kernels

HOST = torch.device("cpu")
GPU = torch.device("cuda", 99)
"""No machine has so many: what is kept by device is never taken for a real one's."""
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique", "equal", "bincount")
"""Beside indices that are masks; ``nonzero_static`` knows its size."""
FREE = ("empty", "detach", "alias", "_unsafe_view", "_reshape_alias", "lift_fresh")
"""Operations that launch nothing, beside views."""
_KERNELS = (
    "comparison",
    "counted_triton",
    "counting_triton",
    "divergence_triton",
    "groups_triton",
    "mapped_triton",
    "warping_triton",
)


class OnGpu(Tensor):
    """In CPU memory. What is computed of one is one."""

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]


class Pinned(Tensor):
    """In memory that plays page-locked; what is computed of one is not."""


def put(value: Any) -> Any:  # Any: a tensor stays one
    return value.as_subclass(OnGpu) if isinstance(value, Tensor) else value


class FakeGpu(TorchFunctionMode):
    """A block in which tensors move to :data:`GPU` and back.

    Attributes:
        waits: by the line of the project that asked, and what it asked for.
        launches: by the operation's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._within = False
        self._operations = _Operations(self)

    def __enter__(self) -> FakeGpu:
        super().__enter__()
        self._operations.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._operations.__exit__(*error)
        super().__exit__(*error)

    def wait(self, what: str) -> None:
        if self._within:
            frames = [f for f in traceback.extract_stack() if "/methods/" in f.filename or "/harness/" in f.filename]
            where = [f for f in frames if "/tests/" not in f.filename and "site-packages" not in f.filename]
            self.waits[f"{Path(where[-1].filename).name}:{where[-1].lineno} {what}" if where else what] += 1

    def launch(self, name: str) -> None:
        if self._within:
            self.launches[name] += 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        places = [torch.device(leaf) for leaf in leaves if isinstance(leaf, torch.device) or _is_name(leaf)]
        from_gpu, to_gpu = any(isinstance(leaf, OnGpu) for leaf in leaves), GPU in places
        to_host = HOST in places or func is Tensor.cpu
        pinned = any(isinstance(leaf, Pinned) for leaf in leaves)
        args, kwargs = tree_map(_in_memory, (args, kwargs))
        before, self._within = self._within, from_gpu or to_gpu
        try:
            from_it = from_gpu and (to_host or func is Tensor.tolist)
            to_it = (to_gpu and not from_gpu and func in _COPIES) or (from_gpu and func is Tensor.new_tensor)
            if func is Tensor.pin_memory:
                return args[0].as_subclass(Pinned)
            if from_it or to_it:
                self._copied(func, kwargs, pinned or from_it)
            if from_gpu and func is Tensor.numpy:
                raise TypeError("can't convert a tensor on a GPU to numpy")
            if func in _FILLED:  # kernels that do nothing must not leave numbers that break a look-up
                self._within, func = False, _FILLED[func]
            found = func(*args, **kwargs)
        finally:
            self._within = before
        if from_gpu and to_host:
            return found.as_subclass(Tensor)
        return tree_map(put, found) if to_gpu else found

    def _copied(self, func: Any, kwargs: dict[str, Any], overlaps: bool) -> None:
        """A copy that may overlap with what runs, if it is let."""
        if overlaps and kwargs.get("non_blocking"):
            self.launch("copy")
        else:
            self.wait(getattr(func, "__name__", str(func)))


_COPIES = (Tensor.to, torch.tensor, torch.as_tensor)
_FILLED = {torch.empty: torch.zeros, torch.empty_like: torch.zeros_like, Tensor.new_empty: Tensor.new_zeros}


def _is_name(leaf: Any) -> bool:
    return isinstance(leaf, str) and leaf == "cpu"


def _in_memory(leaf: Any) -> Any:
    if isinstance(leaf, Pinned):
        return leaf.as_subclass(Tensor)
    return HOST if isinstance(leaf, torch.device) and leaf == GPU else leaf


class _Operations(TorchDispatchMode):
    """What operations come to, whoever calls them."""

    def __init__(self, of: FakeGpu) -> None:
        super().__init__()
        self.of = of

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::").partition(".")[0]
        masks = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
        waits = name.startswith(WAITING) and not name.startswith("nonzero_static")
        if waits or (name in ("index", "index_put", "index_put_", "_index_put_impl_") and masks):
            self.of.wait(name)
        view = any(each.alias_info and not each.alias_info.is_write for each in function._schema.returns)
        if not view and not name.startswith(FREE):
            self.of.launch(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def kernels_that_do_nothing(gpu: FakeGpu, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block in which losses launch Triton's kernels, as where there is a GPU and Triton."""
    own = {f"methods.library.{name}" for name in _KERNELS} | {"triton", "triton.language"}
    kept = {name: sys.modules.pop(name) for name in own & sys.modules.keys()}
    attributes = {name: vars(methods.library).pop(name) for name in _KERNELS if name in vars(methods.library)}
    sys.modules |= _fake_triton(gpu)
    try:
        from methods.library import comparison, divergence_triton, mapped_triton, warping_triton

        patch.setattr(comparison, "shared_memory", lambda: True)
        patch.setattr(kernels, "_kernels", lambda: comparison)
        patch.setattr(kernels, "_divergence", lambda: divergence_triton)
        patch.setattr(kernels, "_mapped", lambda: mapped_triton)
        patch.setattr(kernels, "_warping", lambda: warping_triton)
        yield
    finally:
        for name in own:
            sys.modules.pop(name, None)
        for name in _KERNELS:
            vars(methods.library).pop(name, None)
        sys.modules |= kept
        vars(methods.library).update(attributes)


def _fake_triton(gpu: FakeGpu) -> dict[str, ModuleType]:
    triton, language = ModuleType("triton"), ModuleType("triton.language")

    class Constant:
        def __init__(self, value: Any) -> None:
            self.value = value

    class Kernel:
        def __init__(self, function: Callable[..., None]) -> None:
            self.name = function.__name__

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *args, **kwargs: gpu.launches.update([self.name])

    language.constexpr = Constant  # type: ignore[attr-defined]
    triton.language = language  # type: ignore[attr-defined]
    triton.jit = lambda function=None, **_: Kernel if function is None else Kernel(function)  # type: ignore[attr-defined]
    triton.cdiv = lambda a, b: -(-a // b)  # type: ignore[attr-defined]
    triton.next_power_of_2 = lambda n: 1 << (n - 1).bit_length()  # type: ignore[attr-defined]
    return {"triton": triton, "triton.language": language}
