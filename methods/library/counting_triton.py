# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are written large
"""Kernels that count masses in bins and tell what counting tells, in Triton; counted.py has the definitions.

A row's bins fit a block's shared memory, where adding one is some ten times as fast as in the second-level cache.
Triton has no name for that memory, so that a few lines of PTX reserve, empty, fill and read it; where they can't run
(the interpreter, other vendors) ``count_kernel`` adds in global memory. Whole numbers are counted, so that the order
of the counting changes nothing.

An exact distance counts three times: a bin in which N_p - N_q may change its sign gets a slot, and what it holds is
counted again in ``PARTS`` parts by the bits that follow; a part in doubt gets a slot in turn, and its parts are single
float32 numbers. Of what has a slot the slope is ``REFINED`` plus the slot's number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from methods.library.counted import MANTISSA_BITS, STEPS

LOW = tl.constexpr((127 - 50) << MANTISSA_BITS)
LOGARITHMIC = tl.constexpr((50 << MANTISSA_BITS) + 1)
CUT = tl.constexpr(23 - MANTISSA_BITS)
STEPS_ = tl.constexpr(STEPS)
BINS = (50 << MANTISSA_BITS) + STEPS + 2
"""Of a float32 mass, as many as counted.edges has."""
SLOTS = 128
PARTS = 256
SLOTS_, PARTS_ = tl.constexpr(SLOTS), tl.constexpr(PARTS)
PART_CUT = tl.constexpr(23 - MANTISSA_BITS - 8)
REFINED = tl.constexpr(2.0)


@triton.jit
def place(mass):
    """The bin of a mass, as counted.place gives it."""
    upper = (mass.to(tl.int32, bitcast=True) >> CUT) - (LOW - 1)
    upper = tl.minimum(tl.maximum(upper, 0), LOGARITHMIC)
    return upper + tl.minimum(tl.maximum(mass, 0.0) * STEPS_, 1.0 * STEPS_).to(tl.int32)


@triton.jit
def part_of(mass, slope, LOWEST: tl.constexpr):
    """Where a mass stands among the parts of a row's slots, by the eight bits from ``LOWEST`` up."""
    part = (mass.to(tl.int32, bitcast=True) >> LOWEST) & (PARTS_ - 1)
    return tl.maximum(slope - REFINED, 0.0).to(tl.int32) * PARTS_ + part


@triton.jit
def slope_of(mass, slope_row, part_row, number_row, refined, wanted, EXACT: tl.constexpr):
    """The derivative of the distance at each mass, where it is wanted, else 0.

    Args:
        refined: whether any bin of the row has a slot.
    """
    slope = tl.load(slope_row + place(mass), mask=wanted, other=0.0)
    if EXACT:  # noqa: SIM102 - decided when this is compiled, unlike the other one
        if refined:
            slope = _finer(mass, slope, part_row, PART_CUT)
            slope = _finer(mass, slope, number_row, 0)
    return slope


@triton.jit
def has_slots(slots, group):
    """Whether any bin of a group has a slot: nothing of a group without them is counted again."""
    return tl.load(slots + group * (3 * SLOTS_)) >= 0


@triton.jit
def _finer(mass, slope, part_row, LOWEST: tl.constexpr):
    refined = slope >= REFINED
    finer = tl.load(part_row + part_of(mass, slope, LOWEST), mask=refined, other=0.0).to(tl.float32)
    return tl.where(refined, finer, slope)


@triton.jit
def _masses(row, shift, partner, at, columns, RESTRICTED: tl.constexpr):
    """Masses of some columns of a row of logits, and which of them count."""
    counted = at < columns
    z = tl.load(row + at, mask=counted, other=-float("inf")).to(tl.float32)
    if RESTRICTED:
        counted = counted & (tl.load(partner + at, mask=counted, other=0) < 0)
    return tl.exp(z + shift), counted


@triton.jit(do_not_specialize_on_alignment=["their_counts"])
def count_kernel(
    ours, theirs, our_rows, their_rows, our_lse, their_lse, our_joint, their_joint, our_partner, their_partner,
    our_counts, their_counts, our_columns, their_columns, our_stride, their_stride, bins, RESTRICTED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Masses of both sides' groups in bins; the lowest bin is left out, what is missing is in it."""
    if tl.program_id(2) == 0:
        _count(
            ours, our_rows, our_lse, our_joint, our_partner, our_counts, our_columns, our_stride, bins, RESTRICTED,
            BLOCK,
        )  # fmt: skip
    else:
        _count(
            theirs, their_rows, their_lse, their_joint, their_partner, their_counts, their_columns, their_stride, bins,
            RESTRICTED, BLOCK,
        )  # fmt: skip


@triton.jit
def _count(
    logits, rows, lse, joint, partner, counts, columns, stride, bins, RESTRICTED: tl.constexpr, BLOCK: tl.constexpr
):
    group, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(rows + group)
    shift = tl.load(joint + group) - tl.load(lse + row)
    step = BLOCK * tl.num_programs(1)
    for start in range(part * BLOCK, columns, step):
        at = start + tl.arange(0, BLOCK)
        mass, counted = _masses(logits + row * stride, shift, partner, at, columns, RESTRICTED)
        found = place(mass)
        tl.atomic_add(counts + group * bins + found, 1, mask=counted & (found > 0), sem="relaxed")


@triton.jit(do_not_specialize_on_alignment=["their_counts"])
def count_shared_kernel(
    ours, theirs, our_rows, their_rows, our_lse, their_lse, our_joint, their_joint, our_partner, their_partner,
    our_counts, their_counts, our_columns, their_columns, our_stride, their_stride, bins, RESTRICTED: tl.constexpr,
    BLOCK: tl.constexpr, LANES: tl.constexpr, RESERVE: tl.constexpr,
):  # fmt: skip
    """The same in shared memory, one program a group and side; every bin of the counts is written.

    Args:
        LANES: threads of the program.
        RESERVE: PTX that reserves the bins and gives their address; it may stand in a kernel once.
    """
    lane = tl.arange(0, LANES)
    bin_0 = tl.inline_asm_elementwise(RESERVE, "=r,r", [lane], dtype=tl.int32, is_pure=False, pack=1)
    for start in range(0, bins, LANES):
        at = start + lane
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p st.shared.u32 [$1], 0; mov.u32 $0, 0; }", "=r,r,r",
            [bin_0 + at * 4, (at < bins).to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    tl.debug_barrier()
    first = tl.max(bin_0, 0)
    if tl.program_id(1) == 0:
        _count_shared(
            ours, our_rows, our_lse, our_joint, our_partner, our_columns, our_stride, first, RESTRICTED, BLOCK
        )  # fmt: skip
    else:
        _count_shared(
            theirs, their_rows, their_lse, their_joint, their_partner, their_columns, their_stride, first, RESTRICTED,
            BLOCK,
        )  # fmt: skip
    tl.debug_barrier()
    counts = our_counts if tl.program_id(1) == 0 else their_counts
    for start in range(0, bins, LANES):
        at = start + lane
        inside = at < bins
        held = tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.u32 $0, 0; @p ld.shared.u32 $0, [$1]; }", "=&r,r,r",
            [bin_0 + at * 4, inside.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
        tl.store(counts + tl.program_id(0).to(tl.int64) * bins + at, held, mask=inside)


@triton.jit
def _count_shared(
    logits, rows, lse, joint, partner, columns, stride, first, RESTRICTED: tl.constexpr, BLOCK: tl.constexpr
):
    """Add one to the bins that stand in shared memory from the address ``first`` on."""
    group = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + group)
    shift = tl.load(joint + group) - tl.load(lse + row)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mass, counted = _masses(logits + row * stride, shift, partner, at, columns, RESTRICTED)
        found = place(mass)
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p red.shared.add.u32 [$1], 1; mov.u32 $0, 0; }", "=r,r,r",
            [first + found * 4, (counted & (found > 0)).to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def count_parts_kernel(
    ours, theirs, our_rows, their_rows, our_lse, their_lse, our_joint, their_joint, our_partner, their_partner,
    our_counts, their_counts, our_columns, their_columns, our_stride, their_stride, bins, slots, slope, part_slope,
    RESTRICTED: tl.constexpr, NUMBERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Masses of both sides' groups in the parts of bins that have a slot, or, as numbers, in those of parts that have
    one."""
    refined = has_slots(slots, tl.program_id(0).to(tl.int64))
    if refined & (tl.program_id(2) == 0):
        _count_parts(
            ours, our_rows, our_lse, our_joint, our_partner, our_counts, our_columns, our_stride, bins, slope,
            part_slope, RESTRICTED, NUMBERS, BLOCK,
        )  # fmt: skip
    elif refined:
        _count_parts(
            theirs, their_rows, their_lse, their_joint, their_partner, their_counts, their_columns, their_stride, bins,
            slope, part_slope, RESTRICTED, NUMBERS, BLOCK,
        )  # fmt: skip


@triton.jit
def _count_parts(
    logits, rows, lse, joint, partner, counts, columns, stride, bins, slope, part_slope, RESTRICTED: tl.constexpr,
    NUMBERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(rows + group)
    shift = tl.load(joint + group) - tl.load(lse + row)
    slots = group * (SLOTS_ * PARTS_)
    step = BLOCK * tl.num_programs(1)
    for start in range(program * BLOCK, columns, step):
        at = start + tl.arange(0, BLOCK)
        mass, counted = _masses(logits + row * stride, shift, partner, at, columns, RESTRICTED)
        code = tl.load(slope + group * bins + place(mass), mask=counted, other=0.0)
        if NUMBERS:
            refined = code >= REFINED
            place_of_part = part_slope + slots + part_of(mass, code, PART_CUT)
            code = tl.load(place_of_part, mask=refined, other=0.0).to(tl.float32)
            found = part_of(mass, code, 0)
        else:
            found = part_of(mass, code, PART_CUT)
        tl.atomic_add(counts + slots + found, 1, mask=code >= REFINED, sem="relaxed")


@triton.jit
def _slope(p, q, above):
    """Of bins that hold p and q masses, with N_p - N_q above them: the slope, and both signs' most, in masses."""
    negative, positive = tl.maximum(q - above, 0), tl.maximum(above + p, 0)
    spread = tl.maximum(negative + positive, 1)
    return (positive - negative).to(tl.float32) / spread.to(tl.float32), negative, positive


@triton.jit
def _area(slope, p, q, above, lower, width):
    """float64: what edges give to the distance."""
    return slope.to(tl.float64) * (above.to(tl.float64) * width - (p - q).to(tl.float64) * lower)


@triton.jit
def _error(slope, negative, positive, width):
    """float64: the most by which the distance is too small."""
    s = slope.to(tl.float64)
    return tl.maximum((1.0 - s) * positive.to(tl.float64), (1.0 + s) * negative.to(tl.float64)) * width


@triton.jit
def _give(slot, lower, upper, above, mask):
    """Store what is known of slots; edges are float32 numbers."""
    tl.store(slot, lower.to(tl.float32).to(tl.int32, bitcast=True), mask=mask)
    tl.store(slot + SLOTS_, upper.to(tl.float32).to(tl.int32, bitcast=True), mask=mask)
    tl.store(slot + 2 * SLOTS_, above, mask=mask)


@triton.jit
def _end(slots, given):
    """Behind the slots that are given stand negative bits."""
    tl.store(slots + given, -1, mask=given < SLOTS_)


@triton.jit(do_not_specialize_on_alignment=["theirs"])
def slopes_kernel(
    ours, theirs, ends, slope, area, bound, slots, columns_s, columns_t, bins, EXACT: tl.constexpr, BLOCK: tl.constexpr
):
    """As counted.slopes, some bins at a time; the lowest bins are filled up first.

    Where the distance is to be exact, bins of doubtful sign get slots, from the lowest up, as long as there are any,
    and are left out of area and bound; the lowest bin gets none. What is stored of a slot: [groups, 3, slots], the bits
    of its lower and of its upper edge, and N_p - N_q above it.
    """
    group = tl.program_id(0).to(tl.int64)
    ours, theirs = ours + group * bins, theirs + group * bins
    in_ours = tl.zeros((BLOCK,), tl.int32)
    in_theirs = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, bins, BLOCK):
        at = start + tl.arange(0, BLOCK)
        counted = (at < bins) & (at > 0)
        in_ours += tl.load(ours + at, mask=counted, other=0)
        in_theirs += tl.load(theirs + at, mask=counted, other=0)
    lowest_p, lowest_q = columns_s - tl.sum(in_ours, 0), columns_t - tl.sum(in_theirs, 0)
    left = columns_s - columns_t
    areas = tl.zeros((BLOCK,), tl.float64)
    errors = tl.zeros((BLOCK,), tl.float64)
    given = 0
    for start in range(0, bins, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < bins
        p = tl.where(at == 0, lowest_p, tl.load(ours + at, mask=inside, other=0))
        q = tl.where(at == 0, lowest_q, tl.load(theirs + at, mask=inside, other=0))
        above = left - tl.cumsum(p - q, 0)
        left -= tl.sum(p - q, 0)
        s, negative, positive = _slope(p, q, above)
        lower = tl.load(ends + at, mask=inside, other=0.0)
        width = tl.load(ends + at + 1, mask=inside, other=0.0) - lower
        known = inside
        code = s
        if EXACT:
            doubtful = (inside & (at > 0) & (negative > 0) & (positive > 0)).to(tl.int32)
            slot = given + tl.cumsum(doubtful, 0) - 1
            given += tl.sum(doubtful, 0)
            has_slot = (doubtful > 0) & (slot < SLOTS_)
            _give(slots + group * (3 * SLOTS_) + slot, lower, lower + width, above, has_slot)
            code = tl.where(has_slot, REFINED + slot.to(tl.float32), s)
            known = inside & ~has_slot
        tl.store(slope + group * bins + at, code, mask=inside)
        areas += tl.where(known, _area(s, p, q, above, lower, width), 0.0)
        errors += tl.where(known, _error(s, negative, positive, width), 0.0)
    if EXACT:
        _end(slots + group * (3 * SLOTS_), given)
    tl.store(area + group, tl.sum(areas, 0))
    tl.store(bound + group, tl.sum(errors, 0))


@triton.jit
def part_slopes_kernel(
    ours,
    theirs,
    slots,
    slope,
    area,
    bound,
    next_slots,
    CUT_ABOVE: tl.constexpr,
    LOWEST: tl.constexpr,
    LAST: tl.constexpr,
):
    """The same of the parts of a group's slots, and slots for those of doubtful sign, but for the last time.

    Adds to the group's area and bound. The first time, what was counted is 0 again afterwards; the last time slopes
    take the place of ``ours``.
    """
    group = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS_)
    areas = tl.zeros((PARTS_,), tl.float64)
    errors = tl.zeros((PARTS_,), tl.float64)
    given, slot = 0, 0
    slots += group * (3 * SLOTS_)
    lowest = tl.load(slots)
    while lowest >= 0:
        row = (group * SLOTS_ + slot) * PARTS_ + part
        p, q = tl.load(ours + row), tl.load(theirs + row)
        if not LAST:
            tl.store(ours + row, 0)
            tl.store(theirs + row, 0)
        above = tl.load(slots + 2 * SLOTS_ + slot) + tl.sum(p - q, 0) - tl.cumsum(p - q, 0)
        s, negative, positive = _slope(p, q, above)
        first = ((lowest >> CUT_ABOVE) << CUT_ABOVE) + (part << LOWEST)
        low_bits = tl.maximum(first, lowest)  # floats that are not negative order like integers
        high_bits = tl.minimum(first + (1 << LOWEST), tl.load(slots + SLOTS_ + slot))
        lower = low_bits.to(tl.float32, bitcast=True).to(tl.float64)
        width = tl.maximum(high_bits.to(tl.float32, bitcast=True).to(tl.float64) - lower, 0.0)
        known = part >= 0
        s = s.to(slope.dtype.element_ty).to(tl.float32)  # area and masses have to agree about it
        code = s
        if not LAST:
            doubtful = ((negative > 0) & (positive > 0)).to(tl.int32)
            new = given + tl.cumsum(doubtful, 0) - 1
            given += tl.sum(doubtful, 0)
            has_slot = (doubtful > 0) & (new < SLOTS_)
            _give(next_slots + group * (3 * SLOTS_) + new, lower, lower + width, above, has_slot)
            code = tl.where(has_slot, REFINED + new.to(tl.float32), s)
            known = ~has_slot
        tl.store(slope + row, code)
        areas += tl.where(known, _area(s, p, q, above, lower, width), 0.0)
        errors += tl.where(known, _error(s, negative, positive, width), 0.0)
        slot += 1
        lowest = tl.load(slots + slot, mask=slot < SLOTS_, other=-1)
    if not LAST:
        _end(next_slots + group * (3 * SLOTS_), given)
    tl.store(area + group, tl.load(area + group) + tl.sum(areas, 0))
    tl.store(bound + group, tl.load(bound + group) + tl.sum(errors, 0))
