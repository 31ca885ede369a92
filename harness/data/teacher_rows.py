"""The teacher's signal: fine-tuned once per task, its hidden rows stored once and shared by all methods and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.data.chunks import TEACHER_ROWS, row_bounds
from harness.data.tokens import SideTokens, TokenizedExample
from harness.models.heads import hidden_states
from harness.store.artefacts import ROWS_INDEX, ROWS_SHARDS, rows_shard

_SHARD_BYTES = 2**29


@torch.no_grad()
def store_rows(
    model: Any,
    role: str,
    examples: Sequence[TokenizedExample],
    folder: Path,
    *,
    pad: int,
    batch_size: int = 8,
    pack: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> int:
    """Write the rows that a teacher's head needs for each response: n + 1 rows of [hidden], in the model's dtype.

    Args:
        pack: makes what is stored of each row, where these are not stored as they are.

    Returns:
        Bytes written.
    """
    model.eval()
    writer = _ShardWriter(folder)
    # Sorted by length: batches pad little.
    order = sorted(range(len(examples)), key=lambda place: -examples[place].sides[role].length)
    for start in range(0, len(order), batch_size):
        part = [examples[place] for place in order[start : start + batch_size]]
        for example, hidden in zip(part, _rows_of(model, [e.sides[role] for e in part], pad), strict=True):
            rows = hidden if pack is None else pack(hidden)
            writer.add(example.id, rows.to("cpu", copy=True))
        on_batch(start + len(part))
    return writer.close()


def _rows_of(model: Any, sides: Sequence[SideTokens], pad: int) -> list[Tensor]:
    device = next(model.parameters()).device
    length = max(side.length for side in sides)
    ids = torch.full((len(sides), length), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, side in enumerate(sides):
        ids[row, : side.length] = torch.from_numpy(side.sequence)
        mask[row, : side.length] = 1
    positions = torch.arange(length).expand(len(sides), -1) * mask
    hidden = hidden_states(model, ids.to(device), mask.to(device), positions.to(device), padded_behind=True)
    bounds = [row_bounds(side, TEACHER_ROWS) for side in sides]
    return [hidden[row, start:stop] for row, (start, stop) in enumerate(bounds)]


class _ShardWriter:
    """Concatenates rows into safetensors shards and keeps an index from example id to (shard, start, stop)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, tuple[int, int, int]] = {}
        self.pending: list[Tensor] = []
        self.shard, self.rows, self.bytes = 0, 0, 0

    def add(self, name: str, rows: Tensor) -> None:
        self.index[name] = (self.shard, self.rows, self.rows + rows.shape[0])
        self.pending.append(rows)
        self.rows += rows.shape[0]
        if self.rows * rows.shape[1] * rows.element_size() >= _SHARD_BYTES:
            self._flush()

    def close(self) -> int:
        self._flush()
        (self.folder / ROWS_INDEX).write_text(json.dumps(self.index))
        return self.bytes

    def _flush(self) -> None:
        if self.pending:
            rows = torch.cat(self.pending)
            save_file({"rows": rows}, self.folder / rows_shard(self.shard))
            self.bytes += rows.numel() * rows.element_size()
            self.pending, self.rows, self.shard = [], 0, self.shard + 1


def _open_rows(path: Path) -> Any:
    shard: Any = safe_open(path, framework="pt")
    return shard.get_slice("rows")


class StoredRows:
    """Rows of a teacher by example id, read from memory-mapped shards."""

    def __init__(self, folder: Path) -> None:
        self.index: dict[str, tuple[int, int, int]] = json.loads((folder / ROWS_INDEX).read_text())
        self.shards = [_open_rows(path) for path in sorted(folder.glob(ROWS_SHARDS))]

    def __call__(self, example: str) -> Tensor:
        """[n + 1, hidden] of one example, or what was packed of them."""
        shard, start, stop = self.index[example]
        rows: Tensor = self.shards[shard][start:stop]
        return rows
