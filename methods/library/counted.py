"""The distance of two sorted distributions without a sort: by counting masses in bins.

The distance that ULD (arXiv 2402.12030, section 3) defines over ranks is an area. With N_p(x) the number of masses of p
that exceed x, and likewise N_q,

    sum_k |p_(k) - q_(k)| = integral over x of |N_p(x) - N_q(x)|,

and a histogram tells N_p - N_q at every edge of its bins. Let D_b be that difference at the upper edge of bin b, and
c_p, c_q what the bin holds. Inside, N_p - N_q stays within [D_b - c_q, D_b + c_p]. Where 0 is not inside of that
interval the sign is known, the bin's share of the distance is exact, and so is the gradient: the sign is the derivative
at every mass of the bin. Elsewhere, in a bin of doubtful sign, let a = c_q - D_b and b = D_b + c_p, the most by which
the difference can be negative and positive. Then with the slope s = (b - a) / (a + b), which is between -1 and 1,

    0 <= integral |N_p - N_q| - integral s (N_p - N_q) <= width · max((1 - s) b, (1 + s) a) = width · 2ab / (a + b),

so that the estimate is never too large, and too small by no more than the sum of these bounds. Two equal rows give a
distance, a gradient and an error of exactly 0 wherever bins are doubtful: there a = b.

Sums of masses are not needed for it. Adding up by parts, with e_b the lower edge of bin b and s_b = 0 above the last,

    sum_b s_b integral_b (N_p - N_q) = sum_i s(p_i) p_i - sum_j s(q_j) q_j + sum_b e_(b+1) D_b (s_b - s_(b+1)):

whole numbers are counted, in any order with one result, and the rest is one look-up a mass.

Bins follow the upper bits of a mass: floats that are not negative order like integers. Beside them run equal steps, or
two confident rows would meet in a bin as wide as 1/256.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

MANTISSA_BITS = 7
"""Of a mass, beside its exponent, that choose the bin: steps of 1/128 at most, relative to the mass."""
STEPS = 4096
"""Equal steps between 0 and 1, a power of two."""


class _Float(NamedTuple):
    """A format: integer of its size, bits of its fraction, what its exponent is counted from.

    Masses below 2 to the power of ``least`` share a bin: of any vocabulary they are less than the rounding of a sum
    that is 1.
    """

    integer: torch.dtype
    fraction: int
    bias: int
    least: int

    @property
    def logarithmic(self) -> int:
        """Edges at round upper bits, from the least mass with a bin of its own to 1."""
        return (-self.least << MANTISSA_BITS) + 1


_FORMATS = {
    torch.float32: _Float(torch.int32, 23, 127, -50),
    torch.float64: _Float(torch.int64, 52, 1023, -80),
}


def place(masses: Tensor) -> Tensor:
    """int64, the bin of each mass, shaped like them: the number of :func:`edges` above 0 that it reaches.

    The product with a power of two and both truncations are exact, so that equal masses always share a bin.
    """
    kind = _FORMATS[masses.dtype]
    low = (kind.least + kind.bias) << MANTISSA_BITS
    upper = (masses.view(kind.integer) >> (kind.fraction - MANTISSA_BITS)) - (low - 1)
    steps = (masses * STEPS).clamp_max(STEPS).to(torch.int32).clamp_min(0)
    return upper.clamp(0, kind.logarithmic).to(torch.int64) + steps


@cache
def edges(dtype: torch.dtype, device: torch.device) -> Tensor:
    """float64 [bins + 1], ascending from 0, for masses of a dtype; the last bin holds 1, and what rounding makes of it.

    Both kinds of edges stand in it for themselves: a bin between two that are equal stays empty.
    """
    kind = _FORMATS[dtype]
    numbers = torch.arange(kind.logarithmic, dtype=torch.float64)
    octave = (numbers / 2**MANTISSA_BITS).floor()
    logarithmic = (1 + numbers / 2**MANTISSA_BITS - octave) * 2 ** (octave + kind.least)
    equal = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS
    ends = torch.tensor([0.0, 1 + 2.0**-20], dtype=torch.float64)
    return torch.cat([ends[:1], torch.cat([logarithmic, equal]).sort().values, ends[1:]]).to(device)


class Slopes(NamedTuple):
    """What counting tells of a pair of rows.

    Attributes:
        slope: [rows, bins], float32 or float64, the derivative of the distance at a mass of p in the bin.
        area: float64 [rows], the part of the distance that comes from edges.
        bound: float64 [rows], the most by which the distance is too small.
        above: int32 [rows, bins], N_p - N_q at the upper edge of each bin.
        held: int32 [rows, bins], masses of p less masses of q in each bin.
        doubtful: bool [rows, bins], bins in which N_p - N_q may change its sign.
    """

    slope: Tensor
    area: Tensor
    bound: Tensor
    above: Tensor
    held: Tensor
    doubtful: Tensor


def counted_l1_parts(
    student: Tensor, teacher: Tensor, exact: bool = False, ends: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The sorted L1 distance with its gradient at the student's masses, and a bound of its error; without a graph.

    Args:
        student, teacher: masses [rows, V_s] and [rows, V_t], float32 or float64, from 0 to 1 but for rounding.
        exact: sort the masses of doubtful bins, few as a rule, so that only rounding is left. Of masses that are tied,
            all get the mean of the signs that a sort would give them in an order of its own. Masses may be of any
            size then. Waits for the device.
        ends: :func:`edges` of the masses' dtype, for a compiled region, which can't keep them.

    Returns:
        Distance [rows]; its gradient [rows, V_s], from -1 to 1; bound [rows] of what the distance lacks.
    """
    ends = edges(student.dtype, student.device) if ends is None else ends
    of_student, of_teacher = place(student), place(teacher)
    size = len(ends) - 1
    found = slopes(_histogram(of_student, size), _histogram(of_teacher, size), ends, student.dtype, exact)
    signs = found.slope.gather(1, of_student)
    ours = (signs * student).sum(-1)
    theirs = (found.slope.gather(1, of_teacher) * teacher).sum(-1)
    distance = found.area + (ours.double() - theirs.double())
    if exact:
        distance = distance + _resolved(student, teacher, of_student, of_teacher, found, ends, signs)
    return distance.clamp_min(0).to(student.dtype), signs, found.bound.to(student.dtype)


def _histogram(places: Tensor, size: int) -> Tensor:
    """int32 [rows, size]: how often each number up to the size stands in a row."""
    empty = torch.zeros(len(places), size, dtype=torch.int32, device=places.device)
    return empty.scatter_add_(1, places, torch.ones((), dtype=torch.int32, device=places.device).expand_as(places))


def slopes(student: Tensor, teacher: Tensor, ends: Tensor, dtype: torch.dtype, exact: bool) -> Slopes:
    """The derivative of the distance in every bin, from two histograms.

    Args:
        student, teacher: int32 [rows, bins], counts of masses.
        ends: float64 [bins + 1], edges.
        dtype: of the slopes.
        exact: leave doubtful bins out of slopes, area and bound, to be sorted. The lowest bin stays: what it can
            bring is below rounding.
    """
    held = student - teacher
    above = held.sum(-1, keepdim=True, dtype=torch.int32) - held.cumsum(-1, dtype=torch.int32)
    negative, positive = (teacher - above).clamp_min(0), (above + student).clamp_min(0)
    spread = negative + positive
    doubtful = (negative > 0) & (positive > 0)
    slope = (positive - negative).to(dtype) / spread.clamp_min(1).to(dtype)
    error = 2.0 * negative.double() * positive.double() / spread.clamp_min(1).double()
    if exact:
        doubtful[:, 0] = False
        slope, error = slope.masked_fill(doubtful, 0.0), error.masked_fill(doubtful, 0.0)
    lower, upper = ends[:-1], ends[1:]
    change = slope - torch.nn.functional.pad(slope[:, 1:], (0, 1))
    area = (upper * above.double() * change.double()).sum(-1)
    return Slopes(slope, area, (error * (upper - lower)).sum(-1), above, held, doubtful)


def _resolved(
    student: Tensor,
    teacher: Tensor,
    of_student: Tensor,
    of_teacher: Tensor,
    found: Slopes,
    ends: Tensor,
    signs: Tensor,
) -> Tensor:
    """float64 [rows]: the area in doubtful bins, by a sort of what they hold; their signs are written to ``signs``.

    Rows of the masses in question stand beside one another, padded to the longest; a padding mass of -1 comes last.
    """
    ours, our_columns = _selected(student, found.doubtful.gather(1, of_student))
    theirs, _ = _selected(teacher, found.doubtful.gather(1, of_teacher))
    values, order = torch.cat([ours, theirs], 1).sort(-1, descending=True)
    if not values.shape[1]:
        return torch.zeros_like(found.area)
    known = values >= 0
    is_ours = (order < ours.shape[1]) & known
    bin_of = place(values.clamp_min(0))
    # N_p - N_q beside each mass: what stands above its bin, and what the bin holds down to here
    in_doubt = (found.held * found.doubtful).flip(1).cumsum(1).flip(1) - found.held * found.doubtful
    start = (found.above - in_doubt).gather(1, bin_of)
    step = torch.where(is_ours, 1, -1) * known
    running = step.cumsum(-1)
    below, before = start + running, start + running - step
    doubles = values.double()
    following = torch.cat([doubles[:, 1:], torch.full_like(doubles[:, :1], -1)], 1)
    gap = doubles - torch.maximum(following, ends[bin_of])
    first = torch.cat([torch.ones_like(known[:, :1]), bin_of[:, 1:] != bin_of[:, :-1]], 1)
    top = ends[bin_of + 1] - doubles  # nothing is above the last bin, whatever its end
    area = (below.abs() * gap + found.above.gather(1, bin_of).abs() * top * first).masked_fill(~known, 0.0).sum(-1)
    sign = _tied_signs(values, is_ours, below, before).to(signs.dtype)
    rows, slots = is_ours.nonzero(as_tuple=True)
    signs[rows, our_columns[rows, order[rows, slots]]] = sign[rows, slots]
    return area


def _selected(masses: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, most]: the chosen masses of each row and, int64, their columns; -1 where a row has fewer."""
    counts = chosen.sum(-1)
    rows, columns = chosen.nonzero(as_tuple=True)
    slot = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = len(masses), int(counts.max()) if len(counts) else 0
    values, places = masses.new_full(shape, -1.0), torch.full(shape, -1, device=rows.device)
    values[rows, slot], places[rows, slot] = masses[rows, columns], columns
    return values, places


def _tied_signs(values: Tensor, is_ours: Tensor, below: Tensor, before: Tensor) -> Tensor:
    """float64 [rows, n]: for each mass of p, the mean sign over the ranks of the masses that equal it.

    Of m masses of p with one value, N_p - N_q being A above it and B below, the teacher's are larger at -A of their
    ranks and smaller at B, each between 0 and m; at the others they are equal.
    """
    columns = torch.arange(values.shape[1], device=values.device).expand_as(values)
    change = values[:, 1:] != values[:, :-1]
    edge = torch.ones_like(change[:, :1])
    begins, ends = torch.cat([edge, change], 1), torch.cat([change, edge], 1)
    first = torch.where(begins, columns, 0).cummax(-1).values
    last = torch.where(ends, columns, columns.shape[1] - 1).flip(1).cummin(-1).values.flip(1)
    counted = is_ours.cumsum(-1)
    tied = counted.gather(1, last) - counted.gather(1, first) + is_ours.gather(1, first).long()
    smaller = below.gather(1, last).clamp_min(0)
    larger = (-before.gather(1, first)).clamp_min(0)
    return (torch.minimum(smaller, tied) - torch.minimum(larger, tied)).double() / tied.clamp_min(1)
