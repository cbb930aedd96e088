"""Dense binary convolution by the rows that the set bits select: past the bound of xnor and popcount.

With P[c] the number of +1 weights that meet a set bit (+1) under the window,

    mismatches[c] = (+1 weights under the window) + (set bits under the window) - 2 * P[c]

Half of the bits are set, in general, so a window has half the rows that xnor-popcount has, and a row costs
about 2.6 operations for 512 bit-MACs instead of 3. It pays where a vector is of one pixel (T = 1): with
fewer channels, lanes of a row stay empty. Where more bits are set than the cost model allows, the frame is
xnor-popcount's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline, jit
from .planes import (
    add_into_planes,
    load_planes,
    majority,
    ripple,
    store_minus_twice,
    tuple_of,
    with_first,
    xor3,
)
from .rows import sum_8
from .simd import aligned, get, splat, store
from .xnor import outside_tables

#: Most bits under a window that fourteen planes count.
MOST_SET = 16383


def can_sum_sets(step: Any) -> bool:
    """Whether `conv_set_rows` takes the layer: a vector is of one pixel, and its sums fit fourteen planes."""
    return bool(step["out_words"] % 8 == 0 and step["kh"] * step["kw"] * step["cin"] <= MOST_SET)


def base_of_sets(weight: Any, step: Any, pad_value: int) -> Any:
    """uint16[classes, lanes]: mismatches of a window none of whose inner bits is set, for `conv_set_rows`.

    A tap counts one for each weight of +1, except one outside the image whose bits are all set (`pad_value`
    1): that counts the others. Classes are those of `xnor.outside_tables`.
    """
    classes, outside, valid = outside_tables(weight, step)
    base = np.zeros(outside.shape, np.int64)
    base[:, : len(weight)] = np.bitwise_count(weight).sum(axis=(1, 2, 3), dtype=np.int64)
    if pad_value == 1:
        bits_outside = np.zeros((len(outside), 1), np.int64)
        bits_outside[classes, 0] = int(step["kh"] * step["kw"] * step["cin"]) - valid
        base += bits_outside - 2 * outside.astype(np.int64)
    result = aligned(outside.shape, np.uint16)
    result[:, : len(weight)] = base[:, : len(weight)]
    return result


@inline
def _sum_run(table: Any, entries: Any, first: int, last: int, shift: int) -> Any:
    """Ten bit planes of the sum of the rows at entries[first:last] + shift, at most 1008, a multiple of 16.

    Sixteen rows take sixteen loads, fifteen full adders and a carry rippling through six planes: 41
    operations for 16 * 512 bits.
    """
    planes = tuple_of(splat(np.uint64(0)), 10)
    for i in range(first, last, 16):
        p0, p1, p2, eight_a = sum_8(table, entries, i, shift, planes[0], planes[1], planes[2])
        p0, p1, p2, eight_b = sum_8(table, entries, i + 8, shift, p0, p1, p2)
        sixteen = majority(planes[3], eight_a, eight_b)
        p3 = xor3(planes[3], eight_a, eight_b)
        planes = ripple(with_first(planes, (p0, p1, p2, p3)), sixteen, 4)
    return planes


@jit
def conv_set_rows(
    entries: Any,
    starts: Any,
    ones: Any,
    table: Any,
    base: Any,
    classes: Any,
    s: Any,
    windows: Any,
    pixels: Any,
    slots: Any,
    count: int,
    sums: Any,
    mismatches: Any,
) -> None:
    """Write the mismatches of the listed output pixels: base[class, c] + set bits - 2 * P[c].

    entries, starts, ones : `list_sets`.  table : `build_table`, T = 1.
    base, classes : `base_of_sets`, and the class of each output pixel.
    windows, pixels, slots, count : as starts, pixels, slots, count in `xnor.conv_xnor`.
    sums : uint64[count * 112] scratch.  mismatches : uint16[slots * lanes].

    A tap is summed for all pixels before the next one: its rows, 64
    bytes a channel, stay near. Sums hold fourteen planes, for windows of up to 16383 bits.
    """
    zero = splat(np.uint64(0))
    words, width = s.words, s.wp
    for vector in range(s.out_words // 8):
        for i in range(0, count * 112, 8):
            store(sums, i, zero)
        for ky in range(s.kh):
            for kx in range(s.kw):
                tap = ky * s.dh * width + kx * s.dw
                shift = ky * s.row_step + kx * s.column_step + vector * 8
                for i in range(count):
                    at = get(windows, get(pixels, i)) // words + tap
                    first, last = get(starts, at), get(starts, at + 1)
                    for begin in range(first, last, 1008):
                        planes = _sum_run(table, entries, begin, min(begin + 1008, last), shift)
                        add_into_planes(sums, i * 112, 14, planes)
        for i in range(count):
            first = get(windows, get(pixels, i)) // words
            under: Any = 0
            for ky in range(s.kh):
                for kx in range(s.kw):
                    under += get(ones, first + ky * s.dh * width + kx * s.dw)
            planes = load_planes(sums, i * 112, 14)
            at = slots[i] * s.lanes + vector * 512
            base_at = get(classes, get(pixels, i)) * s.lanes + vector * 512
            store_minus_twice(mismatches, at, base, base_at, np.uint16(under), planes)
