"""A cache that keeps nothing: with one, transformers asks no positions whether sequences are packed."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


def passing_cache(layers: int) -> Cache:
    """Of so many layers."""
    return Cache(layers=[_Passing() for _ in range(layers)])


class _Passing(CacheLayerMixin):  # type: ignore[misc]
    """A layer that hands on what it is given."""

    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1
