"""Hidden rows of reference responses: what bits per byte and distances from teachers are both computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.data.batches import Collator
from harness.data.terms import AlignedExample
from harness.data.tokens import STUDENT, TokenizedExample
from harness.models.heads import hidden_states


@torch.no_grad()
def reference_rows(
    model: Any, examples: Sequence[TokenizedExample], *, pad: int, batch_size: int = 8
) -> Iterator[tuple[Sequence[TokenizedExample], list[Tensor], Tensor]]:
    """The rows that predict each response that was not cut, a batch at a time.

    Args:
        model: it is put into evaluation.
        examples: tokenised for the model under the role "student".
        pad: padding token id.

    Yields:
        Examples, the rows of each, [n, hidden] of n response tokens, and all their targets, int64 [sum of n].
    """
    device = next(model.parameters()).device
    model.eval()
    collator = Collator((), {STUDENT: pad})
    whole = [example for example in examples if not example.cut]
    for start in range(0, len(whole), batch_size):
        part = whole[start : start + batch_size]
        batch = collator.collate([AlignedExample(example, ()) for example in part]).to(device)
        places = batch.input_ids, batch.attention_mask, batch.position_ids
        hidden = hidden_states(model, *places, padded_behind=batch.padded_behind).flatten(0, 1)
        sizes = [example.sides[STUDENT].response.size for example in part]
        yield part, list(torch.split(hidden.index_select(0, batch.row_index), sizes)), batch.targets


class RowsRead:
    """Rows of the first references that one student has read, on the CPU: the next that asks it need not read them.

    Args:
        size: the bytes of them at which no further batch is kept.
    """

    def __init__(self, size: int = 2**27) -> None:
        self._size = size
        self._student, self._rows = "", dict[str, Tensor]()

    def of(self, student: str) -> Mapping[str, Tensor]:
        """By example id, [n, hidden] of n response tokens; none where another student was the last."""
        return self._rows if student == self._student else {}

    def keep(self, student: str, rows: Mapping[str, Tensor]) -> None:
        """Add a batch of a student, whom its stage's identity names."""
        if student != self._student:
            self._student, self._rows = student, {}
        if sum(one.nbytes for one in self._rows.values()) < self._size:
            self._rows |= {name: one.cpu() for name, one in rows.items()}
