"""Which device computes, and in what precision: part of what a result means."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch

_CPU = torch.device("cpu")
Precision = Literal["auto", "float32", "bfloat16"]


def device() -> torch.device:
    """This process's GPU, the first where a launcher gives it none; else the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else _CPU


def compute_dtype(precision: Precision) -> Literal["float32", "bfloat16"]:
    """What matrix products run in: bf16 where the GPU multiplies it; on a CPU it is emulated, far slower than fp32."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


_LOSS, _MARGIN = 2**30, 0.04  # bytes of a loss above the hidden rows, and the share of them that is left free
_LEAST_ROOM, _CPU_LOGITS = 2**28, 128 * 2**20


def chunk_room(head: int) -> int:
    """Bytes for a chunk of a loss: what the gradient of a head leaves of 1 GiB, and 256 MiB where that is less.

    Args:
        head: bytes of the gradient, which is added up over chunks.
    """
    return max(int(_LOSS * (1 - _MARGIN)) - head, _LEAST_ROOM)


def rows_in(room: float, row_bytes: float) -> int:
    """How many rows of a chunk a GPU takes at once where there is so much room: a multiple of 16."""
    return min(max(int(room / row_bytes) // 16 * 16, 16), 4096)


def chunk_rows(
    wanted: int | Literal["auto"],
    row_bytes: float,
    vocabularies: Sequence[int],
    on: torch.device,
    head: int = 0,
    reserved: int = 0,
) -> int:
    """How many rows of logits exist at once; results don't depend on it.

    ``auto`` takes as many as :func:`chunk_room` holds, and on a GPU a quarter of the free memory: more rows make no
    product faster. On a CPU the logits of all models together get 128 MiB, between 32 and 1024 rows: fewer would
    read the heads' weights too often, and more make no product faster there either. Where a loss has no room for
    so many, fewer, but 8 at least.

    Args:
        wanted: a recipe's ``chunk_rows``.
        row_bytes: what the loss holds of a row, :func:`harness.data.chunk_memory.row_bytes`.
        vocabularies: widths of the heads of the student and of its teachers.
        on: where the loss is computed.
        head: bytes of the gradient of the student's head.
        reserved: bytes of the free memory that will be needed for something else, and are not taken yet.
    """
    if wanted != "auto":
        return wanted
    room = chunk_room(head)
    if on.type != "cuda":
        cached = min(max(_CPU_LOGITS // (4 * sum(vocabularies)), 32), 1024)
        return max(min(cached, int(room / row_bytes)), 8)
    free = max(_free_bytes(on) - reserved, 0)
    return rows_in(min(free / 4, room), row_bytes)


_CPU_ROWS, _GPU_ROWS = 16, 256


def rows_at_a_time(wanted: int | Literal["auto"], bytes_a_row: int, on: torch.device) -> int:
    """How many answers are generated at a time.

    ``auto`` takes, on a GPU, what half of the free memory holds, of 256 at most: there a token costs nearly the same
    for one answer as for many. On a CPU, 16.

    Args:
        wanted: a recipe's ``evaluation.batch_size``.
        bytes_a_row: of what is kept of one answer while it is generated.
        on: where.
    """
    if wanted != "auto":
        return wanted
    if on.type != "cuda":
        return _CPU_ROWS
    rows = _free_bytes(on) // 2 // bytes_a_row
    return max(min(rows // 8 * 8 or rows, _GPU_ROWS), 1)


def _free_bytes(on: torch.device) -> int:
    """Of a GPU. What torch keeps of memory that it has freed is free here, though not to the driver."""
    kept = torch.cuda.memory_reserved(on) - torch.cuda.memory_allocated(on)
    return int(torch.cuda.mem_get_info(on)[0]) + kept


def compiles(wanted: Literal["auto", "on", "off"], on: torch.device) -> bool:
    """Whether losses run through ``torch.compile``: it pays on a GPU, where each of many small steps reads memory."""
    return on.type == "cuda" if wanted == "auto" else wanted == "on"


def forget_gpu_peak() -> None:
    """Begin to look for the peak of this process's GPU memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats(device())


def gpu_peak_bytes() -> int | None:
    """The most that torch had allocated on this process's GPU since `forget_gpu_peak`; None on the CPU."""
    return torch.cuda.max_memory_allocated(device()) if torch.cuda.is_available() else None


@cache
def pass_over_libraries() -> None:
    """Leave what is alive now out of collections from here on, once a process and before there is a model.

    Half a million objects of libraries, which nothing ever frees, would be looked through whenever one is let go.
    """
    gc.collect()
    gc.freeze()


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_HEAP_END, _BLOCKS = 2**30, (2**27, 2**25)  # bytes; glibc before 2.35 takes no more than the second


@cache
def keep_freed_memory() -> None:
    """Let a process whose tensors are in the host's memory keep what it frees, until :func:`release_memory`.

    Where glibc gives memory, a chunk's logits go back to the system as soon as they are freed, and the next chunk's
    come from it page by page, each cleared: up to a quarter of a step. Here blocks of up to 128 MiB stay, and 1 GiB at
    the heap's end.
    """
    libc = _glibc()
    if libc is None or torch.cuda.is_available():
        return
    if any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in _BLOCKS):  # else the other would make small blocks slow
        libc.mallopt(_M_TRIM_THRESHOLD, _HEAP_END)


def release_memory() -> None:
    """Free what nobody refers to any more: models hang in cycles, and torch keeps the memory of a GPU that it frees."""
    gc.collect()
    torch.cuda.empty_cache()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if os.name != "posix":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
