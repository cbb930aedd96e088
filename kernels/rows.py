"""Cached binary convolution: a positional popcount of the weight rows that the flipped bits select.

A flipped input bit (y, x, c) meets the output pixels whose window holds it, each through one tap k. There
it selects a row: the bits w[:, k, c] of that input over all output channels (1 = +1). Where the bit rose to
+1, the products with w = +1 now agree and the others no longer do; where it fell, the reverse. With L_r, L_f
the bits risen and fallen under a pixel's window, and P_r[c], P_f[c] how many of their rows have bit c set,

    mismatches[c] += (L_r - L_f) - 2 * (P_r[c] - P_f[c])                                 (exact integers)

P is summed in carry-save form: planes[j] holds bit j of a count for 512 (pixel, channel) lanes, and a full
adder is two operations (xor3, majority). Fallen rows go first; complementing the planes turns P_f into
-1 - P_f, and the risen rows are summed on top. A row costs one load and about three operations for 512
bit-MACs.

Which rows, of which lanes, lie where: row_table.py. The flips: listing.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline, jit
from .planes import complement, majority, ripple, subtract_twice, xor3
from .simd import (
    get,
    load,
    nonzero_lanes,
    permute,
    popcount,
    prefetch,
    put,
    shift_right,
    splat,
    store,
    store_flags,
    store_some,
    unsigned,
)
from .sliced import add_and_compare

#: Rows of one direction summed before the planes are spilled: P_r - P_f - 1 must fit eight bits with a sign.
MAX_ROWS = 120


@inline
def _copy_run(entries: Any, start: int, count: int, shift: Any, places: Any, at: int) -> None:
    """places[at ...] = entries[start : start + count] + shift, and up to 15 more."""
    store(places, at, load(entries, start) + shift)
    for i in range(16, count, 16):
        store(places, at + i, load(entries, start + i) + shift)


@inline
def sum_8(table: Any, places: Any, i: int, shift: int, ones: Any, twos: Any, fours: Any) -> Any:
    """Add eight rows into three planes by seven full adders; the fourth vector returned carries eights."""
    a = load(table, get(places, i) + shift)
    b = load(table, get(places, i + 1) + shift)
    two_a = majority(ones, a, b)
    ones = xor3(ones, a, b)
    a = load(table, get(places, i + 2) + shift)
    b = load(table, get(places, i + 3) + shift)
    two_b = majority(ones, a, b)
    ones = xor3(ones, a, b)
    four_a = majority(twos, two_a, two_b)
    twos = xor3(twos, two_a, two_b)
    a = load(table, get(places, i + 4) + shift)
    b = load(table, get(places, i + 5) + shift)
    two_a = majority(ones, a, b)
    ones = xor3(ones, a, b)
    a = load(table, get(places, i + 6) + shift)
    b = load(table, get(places, i + 7) + shift)
    two_b = majority(ones, a, b)
    ones = xor3(ones, a, b)
    four_b = majority(twos, two_a, two_b)
    twos = xor3(twos, two_a, two_b)
    return ones, twos, xor3(fours, four_a, four_b), majority(fours, four_a, four_b)


@inline
def _sum_rows(table: Any, places: Any, first: int, last: int, shift: int, planes: Any) -> Any:
    """Add the table rows at places[first:last] + shift to the counts in eight bit planes.

    places : int32, filled behind its end with places of zeros up to a multiple of 8.

    Seven full adders sum eight rows into ones, twos, fours and one carry of eights, which ripples through
    half adders: 8 loads and 23 operations for 8 * 512 bits, 15 cycles on Zen 4 (the loads alone take 8 to
    10). Rippling every sixteen rows is faster in a loop by itself and slower here, where tiles have few rows.
    """
    for i in range(first, last, 8):
        p0, p1, p2, p3, p4, p5, p6, p7 = planes
        p0, p1, p2, eight = sum_8(table, places, i, shift, p0, p1, p2)
        planes = ripple((p0, p1, p2, p3, p4, p5, p6, p7), eight, 3)
    return planes


@inline
def _count_rows(
    table: Any, risen_places: Any, fallen_places: Any, first: Any, up: Any, down: Any, shift: Any
) -> Any:
    """P_r - P_f - 1 in eight planes, of up to MAX_ROWS rows of each direction from `first` on."""
    none = splat(np.uint64(0))
    planes = (none, none, none, none, none, none, none, none)
    planes = _sum_rows(table, fallen_places, first, min(first + 120, down), shift, planes)
    return _sum_rows(table, risen_places, first, min(first + 120, up), shift, complement(planes))


@inline
def _fetch_rows(table: Any, places: Any, count: int, vectors: int) -> None:
    """Ask for the whole rows at places[:count]."""
    for i in range(count):
        for vector in range(vectors):
            prefetch(table, get(places, i) + vector * 8)


@inline
def _count_flips(starts: Any, s: Any, oy: int, counts: Any) -> None:
    """counts[ox], int64 = risen + (fallen << 32), the listed flips under the window of output (oy, ox)."""
    columns = s.kw if s.segments == s.kh else 1
    for x in range(0, s.wo, 8):
        store(counts, x, splat(np.int64(0)))
    for ky in range(s.kh):
        line = (oy * s.sh + ky * s.dh) * (s.wp + 1)
        for k in range(s.segments // s.kh):
            if s.sw == 1:  # neighbouring windows begin at neighbouring columns
                for x in range(0, s.wo, 8):
                    at = line + k * s.dw + x
                    store(counts, x, load(counts, x) + (load(starts, at + columns) - load(starts, at)))
            else:
                for x in range(s.wo):
                    at = line + k * s.dw + x * s.sw
                    put(counts, x, get(counts, x) + (get(starts, at + columns) - get(starts, at)))


@jit
def read_ahead(table: Any, s: Any, starts: Any, scratch: Any) -> None:
    """Read the whole table where the listed flips will need most of it.  scratch : uint64[8].

    Rows picked at random do not keep enough loads in flight; four streams of whole cache lines do: 295 KB
    come from memory in 13 us, as one stream in 17.
    """
    listed = get(starts, s.hp * (s.wp + 1) - 1)
    flips = (listed & np.int64(0xFFFFFFFF)) + (listed >> np.int64(32))
    if flips * min(s.kh * s.kw, s.ho * s.wo) * s.out_words < s.table_size:
        return
    quarter = s.table_size // 32 * 8
    seen = splat(np.uint64(0))
    for i in range(0, quarter, 8):
        for stream in range(4):
            seen = seen ^ load(table, stream * quarter + i)
    store(scratch, 0, seen)


@jit
def conv_rows(
    risen: Any,
    fallen: Any,
    starts: Any,
    table: Any,
    s: Any,
    first_row: int,
    last_row: int,
    risen_places: Any,
    fallen_places: Any,
    counts: Any,
    mismatches: Any,
    changed: Any,
) -> int:
    """Update the mismatches of the pixels with a flip under their window. Returns their number.

    first_row, last_row : the band of output rows to update, last_row excluded.
    risen, fallen, starts : `list_flips`.  table : `build_table`.
    mismatches : uint16[ho * wo * lanes].  changed : uint8[ho * wo], set to 1 for the pixels updated, else 0;
        7 more may be written.
    risen_places, fallen_places : int32 scratch for the flips under one tile.
    counts : int64[wo + 16] scratch.
    """
    return _update_tiles(
        risen, fallen, starts, table, s, first_row, last_row, risen_places, fallen_places, counts,
        changed, False, mismatches, table, table, table, table,
    )  # fmt: skip


@jit
def conv_rows_to_bits(
    risen: Any,
    fallen: Any,
    starts: Any,
    table: Any,
    s: Any,
    first_row: int,
    last_row: int,
    risen_places: Any,
    fallen_places: Any,
    counts: Any,
    state: Any,
    ones: Any,
    inverted: Any,
    bits: Any,
    changed: Any,
) -> int:
    """`conv_rows` of a bit-sliced state (sliced.py), which leaves the packed signs.

    state, ones : the planes, and uint64[ho * (wo + 8)], set bits under each window.
    inverted : of `sliced.sign_tables`.  bits : uint64[ho * wo * out_words], written where pixels are updated.
    """
    return _update_tiles(
        risen, fallen, starts, table, s, first_row, last_row, risen_places, fallen_places, counts,
        changed, True, risen, state, ones, inverted, bits,
    )  # fmt: skip


@inline
def _update_tiles(
    risen: Any,
    fallen: Any,
    starts: Any,
    table: Any,
    s: Any,
    first_row: Any,
    last_row: Any,
    risen_places: Any,
    fallen_places: Any,
    counts: Any,
    changed: Any,
    to_bits: Any,
    mismatches: Any,
    state: Any,
    ones: Any,
    inverted: Any,
    bits: Any,
) -> Any:
    """Both kernels: the flips under each tile, their rows counted, and the counts added to its state."""
    updated: Any = 0
    out_words, tile, lanes, wo, kh, sw = s.out_words, s.tile, s.lanes, s.wo, s.kh, s.sw
    step_y, step_k, pitch = s.dh * (s.wp + 1), s.dw, s.wp + 1
    row_step, place_step, origin = s.row_step, s.place_step, s.origin
    tap_step = splat(np.int32((1 - s.dw) * s.column_step))
    runs = s.segments // kh
    columns = s.kw if runs == 1 else 1
    vectors, words = max(1, out_words // 8), min(8, out_words)
    nowhere = splat(np.int32(s.nowhere))
    zero = splat(np.uint64(0))
    tiles, planes_kept = (wo + tile - 1) // tile, s.planes
    low = np.int64(0xFFFFFFFF)
    mask, two = splat(low), splat(np.int64(2))
    for w in range(8):
        put(counts, w, np.int64(w // words))
    order = load(counts, 0)
    for oy in range(first_row, last_row):
        _count_flips(starts, s, oy, counts)
        row_ones = oy * (wo + 8)
        if to_bits:
            for x in range(0, wo, 8):
                under = load(counts, x)
                net = (under & mask) - shift_right(under, 32)
                store(ones, row_ones + x, load(ones, row_ones + x) + unsigned(net))
        for x0 in range(0, wo, tile):
            pixels = min(tile, wo - x0)
            pixel = oy * wo + x0
            under = load(counts, x0)
            dirty = nonzero_lanes(under) & ((np.uint64(1) << np.uint64(pixels)) - np.uint64(1))
            store_flags(changed, pixel, under)
            if dirty == 0:
                continue
            updated += np.int64(popcount(dirty))
            up, down = 0, 0
            line = oy * s.sh * pitch + x0 * sw
            reach = (pixels - 1) * sw + columns
            place = origin + x0 * place_step
            for _ in range(kh):
                at, shift = line, splat(np.int32(place))
                for _ in range(runs):
                    start = get(starts, at)
                    n = get(starts, at + reach) - start
                    _copy_run(risen, start & low, n & low, shift, risen_places, up)
                    _copy_run(fallen, start >> np.int64(32), n >> np.int64(32), shift, fallen_places, down)
                    up += n & low
                    down += n >> np.int64(32)
                    at += step_k
                    shift = shift + tap_step
                line += step_y
                place += row_step
            store(risen_places, up, nowhere)
            store(fallen_places, down, nowhere)
            if vectors > 1:  # a row is read 64 bytes at a time, with all others in between
                _fetch_rows(table, risen_places, up, vectors)
                _fetch_rows(table, fallen_places, down, vectors)
            if to_bits:
                numbers = permute(load(ones, row_ones + x0), order)
                place = (oy * tiles + x0 // tile) * vectors * (planes_kept + 1) * 8
                for vector in range(vectors):
                    negative = zero
                    for first in range(0, max(up, down), 120):
                        planes = _count_rows(table, risen_places, fallen_places, first, up, down, vector * 8)
                        negative = add_and_compare(state, place, planes_kept, planes, numbers)
                    signs = negative ^ load(inverted, vector * 8)
                    store_some(bits, pixel * out_words + vector * 8, signs, pixels * words)
                    place += (planes_kept + 1) * 8
                continue
            more = permute((under & mask) - shift_right(under, 32), order)
            for vector in range(vectors):
                at = pixel * lanes + vector * 512
                net = more
                for first in range(0, max(up, down), 120):
                    planes = _count_rows(table, risen_places, fallen_places, first, up, down, vector * 8)
                    subtract_twice(mismatches, at, net - two, pixels * words, planes)
                    net = splat(np.int64(0))
    return updated
