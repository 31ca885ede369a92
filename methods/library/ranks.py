"""The sorted L1 distance of masses on a CPU, exactly, by counting: only what counts leave open is sorted.

The distance (methods/library/divergences.py, ``sorted_l1``) needs no mass's rank, only whether the other side's mass of
that rank is smaller. With s_k the sign of p_(k) - q_(k),

    sum_k |p_(k) - q_(k)| = sum_k s_k p_(k) - sum_k s_k q_(k).

Let a bin hold c_p and c_q masses, and D more of p than of q lie above it. Its j-th mass of p has the rank of the
(D + j)-th mass of q counted from the bin's top: below the bin for every j where D >= c_q, above it where D + c_p <= 0.
So s is 1 at all that such a bin holds, of either side, or -1, and one look-up a mass finds it. The masses of the bins
that are neither are sorted: few, but of rows that are nearly equal. Of tied masses the first column has the first rank.

Bins follow the bits of a float, which order like an integer where it is not negative, in equal steps between the least
and the largest mass. Unlike those of counted.py they need no edges: nothing is estimated.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from methods.library.cpu_loops import in_threads

LEAST = 2.0**-64
"""Smaller masses share a bin, or zeros would leave the others few."""
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_MASSES_A_BIN = 5  # at least, if all bins had as many; up to twice, since a bin is a power of two wide
_BINS = 2**11, 2**16  # fewer save nothing; more have no uint16


def least_bits(dtype: torch.dtype) -> int:
    """The bits of :data:`LEAST`."""
    return int(torch.tensor(LEAST, dtype=dtype).view(_INTEGERS[dtype]))


def bins_of(ours: int, theirs: int) -> int:
    """The most that the bits of a row are shared out among, by the columns of both sides."""
    return min(max(max(ours, theirs) // _MASSES_A_BIN, _BINS[0]), _BINS[1])


def compare_ranks(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The sorted L1 distance of masses and its gradient, as divergences.sorted_l1 defines it.

    Args:
        student, teacher: masses [rows, V_s] and [rows, V_t], not negative, both float32 or both float64, on the CPU.

    Returns:
        Distance [rows]; [rows, V_s], at each mass the sign of the difference in its rank, 1 beyond the teacher's last
        rank. Both NaN for a row with a mass that is no number, or with infinite ones on both sides.
    """
    from methods.library.ranks_numba import compare  # compiles, which `harness plan` need not wait for

    kind, (rows, ours), theirs = _INTEGERS[student.dtype], student.shape, teacher.shape[1]
    least, bins = least_bits(student.dtype), bins_of(ours, theirs)
    p, q = student.contiguous(), teacher.contiguous()
    bits_p, bits_q = p.view(kind).numpy(), q.view(kind).numpy()
    distance, signs = np.empty(rows), torch.empty_like(p)

    def of(part: slice) -> None:
        sides = p[part].numpy(), q[part].numpy(), bits_p[part], bits_q[part]
        compare(*sides, distance[part], signs[part].numpy(), least, bins)

    in_threads(rows, ours + theirs, of)
    return torch.from_numpy(distance).to(p.dtype), signs
