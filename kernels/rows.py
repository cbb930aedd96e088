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

Lanes. With W words of output channels a pixel, a vector holds T = 8 / W neighbouring pixels (W = 1, 2,
4), or 8 words of one pixel (W a multiple of 8). One load must place a flip's taps on the T pixels that
see it: in the table, a channel's row holds the taps in descending order between zeros,

    | 0 ... 0 | tap q_max | ... | tap 1 | tap 0 | 0 ... 0 |       (W words a tap)

so that moving the load by one tap moves the flip by one pixel. With stride s there is one such row for
each phase x % s, of the taps phase, phase + s, ... A flip's place is (its own offset, which contains x)
plus (an offset of the kernel row and the tile), so flips are listed once a frame and the flips under one
window row are one contiguous run of the list.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline, jit
from .simd import (
    aligned,
    complement,
    get,
    has_byte_compress,
    list_bits,
    load,
    majority,
    nonzero_lanes,
    plane_counts,
    popcount,
    put,
    splat,
    store,
    tile_store,
    trailing_zeros,
    transpose8,
    xor3,
)

#: Rows of one direction summed before the planes are spilled: P_r - P_f - 1 must fit eight bits with a sign.
MAX_ROWS = 120
#: Whether flips are listed a word at a time, decided for the machine the kernels are compiled on.
BYTE_COMPRESS = has_byte_compress()
EIGHT_ROWS = tuple(range(0, 64, 8))


def tile_pixels(out_words: int, touching: bool) -> int:
    """T: output pixels of a vector; 1 where a dilated window has to be read tap by tap."""
    return max(1, 8 // out_words) if touching else 1


def flip_lists(flips: int, step: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Scratch for `flips` flips: risen, risen_starts, fallen, fallen_starts, risen_places, fallen_places."""
    entries = [aligned(flips + 32, np.int32) for _ in range(4)]
    starts = [aligned(int(step["hp"] * (step["wp"] + 1)) + 8, np.int64) for _ in range(2)]
    return entries[0], starts[0], entries[1], starts[1], entries[2], entries[3]


def build_table(weight: Any, channels: int, step: Any) -> Any:
    """Row table of a layer: uint64[kH, Cin, stride, length, W] flat, closed by zeros.

    weight : uint64[Cout, kH, kW, Cw].  step : geometry with `tile` set; sets `row` (words from one phase to
    the next) and `table_size`. Lane p of a load at entry e reads entry e + p, so tap q of phase r (column
    r + q * stride of the window) stands at entry length - T - q.
    """
    cout, kh, kw, _ = weight.shape
    stride, dilation, tile, out_words = (int(step[name]) for name in ("sw", "dw", "tile", "out_words"))
    taps = -(-((kw - 1) * dilation + 1) // stride)
    length = 2 * tile + taps - 2
    channel = np.arange(channels)
    bits = weight[..., channel // 64] >> (channel % 64).astype(np.uint64) & np.uint64(1)
    rows = np.zeros((kh, kw, channels, out_words * 64), np.uint8)
    rows[..., :cout] = bits.transpose(1, 2, 3, 0)
    packed = np.packbits(rows, axis=-1, bitorder="little").view(np.uint64)

    body = kh * channels * stride * length * out_words
    flat = aligned(body + out_words + 8, np.uint64)
    table = flat[:body].reshape(kh, channels, stride, length, out_words)
    for kx in range(kw):
        q, phase = divmod(kx * dilation, stride)
        table[:, :, phase, length - tile - q] = packed[:, kx]
    step["row"], step["table_size"] = length * out_words, len(flat)
    return flat


@inline
def _list_word(bits: Any, start: Any, step: Any, entries: Any, count: int) -> int:
    """entries[count ...] = start + index * step for every set bit; returns the new count."""
    if BYTE_COMPRESS:
        return count + list_bits(bits, start, step, entries, count)
    while bits:
        put(entries, count, start + np.int32(trailing_zeros(bits) * step))
        count += 1
        bits &= bits - np.uint64(1)
    return count


@jit
def list_flips(
    diff: Any, last: Any, s: Any, risen: Any, risen_starts: Any, fallen: Any, fallen_starts: Any
) -> None:
    """List a frame's risen and fallen bits in row-major order.

    diff, last : uint64[hp * wp * words], flips and new bits, padded.
    risen, fallen : int32; entry = the flip's own offset in the table, less one pixel's words for each
        column. Vectors of 16 are written, so 16 more may be written behind the last.
    risen_starts, fallen_starts : int64[hp * (wp + 1)]; those of padded row y left of column x begin at
        starts[y * (wp + 1) + x].
    """
    up, down = 0, 0
    step = np.int32(s.sw * s.row)
    words, width, stride, row, out_words = s.words, s.wp, s.sw, s.row, s.out_words
    for y in range(s.hp):
        line = y * (width + 1)
        at = y * width * words
        seen = np.uint64(0)
        for i in range(width * words):
            seen |= get(diff, at + i)
        if seen == 0:
            risen_starts[line : line + width + 1] = up
            fallen_starts[line : line + width + 1] = down
            continue
        column, phase = 0, 0
        for x in range(width):
            put(risen_starts, line + x, up)
            put(fallen_starts, line + x, down)
            start = np.int32(phase * row - column * out_words)
            for _ in range(words):
                d = get(diff, at)
                if d:
                    new = get(last, at)
                    up = _list_word(d & new, start, step, risen, up)
                    down = _list_word(d & ~new, start, step, fallen, down)
                start += np.int32(64) * step
                at += 1
            phase += 1
            if phase == stride:
                phase, column = 0, column + 1
        put(risen_starts, line + width, up)
        put(fallen_starts, line + width, down)


@inline
def _collect_places(entries: Any, row_starts: Any, s: Any, oy: int, x0: int, pixels: int, places: Any) -> int:
    """Table places of the listed flips under the tile of `pixels` output pixels from (oy, x0) on.

    Returns their number; behind them stand places of zeros, up to a multiple of 8.
    """
    count = 0
    runs = s.segments // s.kh
    width = (pixels - 1) * s.sw + (s.kw if runs == 1 else 1)
    tap_0 = s.row // s.out_words - s.tile
    for ky in range(s.kh):
        line = (oy * s.sh + ky * s.dh) * (s.wp + 1) + x0 * s.sw
        shift = splat(np.int32((ky * s.cin * s.sw) * s.row + (tap_0 + x0) * s.out_words))
        for k in range(runs):
            start = get(row_starts, line + k * s.dw)
            flips = get(row_starts, line + k * s.dw + width) - start
            for i in range(0, flips, 16):
                store(places, count + i, load(entries, start + i) + shift)
            count += flips
    store(places, count, splat(np.int32(s.table_size - s.out_words - 8)))  # zeros close the table
    return count


@inline
def _count_flips(row_starts: Any, s: Any, oy: int, x0: int, pixels: int, flips: Any, at: int) -> None:
    """flips[at + p], int64 = number of listed flips under the window of output pixel (oy, x0 + p)."""
    runs = s.segments // s.kh
    if runs == 1 and s.sw == 1:  # neighbouring windows begin at neighbouring columns
        total = splat(np.int64(0))
        for ky in range(s.kh):
            line = (oy * s.sh + ky * s.dh) * (s.wp + 1) + x0
            total = total + load(row_starts, line + s.kw) - load(row_starts, line)
        store(flips, at, total)
        return
    width = s.kw if runs == 1 else 1
    for p in range(pixels):
        flips[at + p] = 0
        for ky in range(s.kh):
            line = (oy * s.sh + ky * s.dh) * (s.wp + 1) + (x0 + p) * s.sw
            for k in range(runs):
                flips[at + p] += get(row_starts, line + k * s.dw + width) - get(row_starts, line + k * s.dw)


@inline
def _sum_rows(table: Any, places: Any, first: int, last: int, shift: int, planes: Any) -> Any:
    """Add the table rows at places[first:last] + shift to the counts in eight bit planes.

    places : int32, filled behind its end with places of zeros up to a multiple of 8.

    Seven full adders sum eight rows into ones, twos, fours and one carry of eights; the carry ripples
    through half adders: 14 + 9 operations and 8 loads for 8 * 512 bits.
    """
    p0, p1, p2, p3, p4, p5, p6, p7 = planes
    for i in range(first, last, 8):
        a = load(table, get(places, i) + shift)
        b = load(table, get(places, i + 1) + shift)
        two_a = majority(p0, a, b)
        p0 = xor3(p0, a, b)
        a = load(table, get(places, i + 2) + shift)
        b = load(table, get(places, i + 3) + shift)
        two_b = majority(p0, a, b)
        p0 = xor3(p0, a, b)
        four_a = majority(p1, two_a, two_b)
        p1 = xor3(p1, two_a, two_b)
        a = load(table, get(places, i + 4) + shift)
        b = load(table, get(places, i + 5) + shift)
        two_a = majority(p0, a, b)
        p0 = xor3(p0, a, b)
        a = load(table, get(places, i + 6) + shift)
        b = load(table, get(places, i + 7) + shift)
        two_b = majority(p0, a, b)
        p0 = xor3(p0, a, b)
        four_b = majority(p1, two_a, two_b)
        p1 = xor3(p1, two_a, two_b)
        carry = majority(p2, four_a, four_b)
        p2 = xor3(p2, four_a, four_b)
        ripple = p3 & carry
        p3 ^= carry
        carry = p4 & ripple
        p4 ^= ripple
        ripple = p5 & carry
        p5 ^= carry
        carry = p6 & ripple
        p6 ^= ripple
        p7 ^= carry
    return p0, p1, p2, p3, p4, p5, p6, p7


@jit
def conv_rows(
    risen: Any,
    risen_starts: Any,
    fallen: Any,
    fallen_starts: Any,
    table: Any,
    s: Any,
    first_row: int,
    last_row: int,
    risen_places: Any,
    fallen_places: Any,
    scratch: Any,
    mismatches: Any,
    changed: Any,
) -> int:
    """Update the mismatches of the pixels with a flip under their window. Returns their number.

    first_row, last_row : the band of output rows to update, last_row excluded.
    risen, fallen, with their starts : `list_flips`.  table : `build_table`.
    mismatches : uint16[ho * wo * lanes].  changed : uint8[ho * wo], set to 1 for the pixels updated, else 0.
    risen_places, fallen_places : int32 scratch for the flips under one tile.  scratch : uint64[80].
    """
    updated: Any = 0
    flips = scratch[64:].view(np.int64)
    vectors, words = max(1, s.out_words // 8), min(8, s.out_words)
    zero = splat(np.uint64(0))
    none = (zero, zero, zero, zero, zero, zero, zero, zero)
    for oy in range(first_row, last_row):
        for x0 in range(0, s.wo, s.tile):
            pixels = min(s.tile, s.wo - x0)
            pixel = oy * s.wo + x0
            up = _collect_places(risen, risen_starts, s, oy, x0, pixels, risen_places)
            down = _collect_places(fallen, fallen_starts, s, oy, x0, pixels, fallen_places)
            dirty = np.uint64(0)
            if up + down:
                _count_flips(risen_starts, s, oy, x0, pixels, flips, 0)
                _count_flips(fallen_starts, s, oy, x0, pixels, flips, 8)
                dirty = nonzero_lanes(load(flips, 0) + load(flips, 8)) & (
                    (np.uint64(1) << np.uint64(pixels)) - np.uint64(1)
                )
                updated += np.int64(popcount(dirty))
            for p in range(pixels):
                put(changed, pixel + p, np.uint8(dirty >> np.uint64(p) & np.uint64(1)))
            if dirty == 0:
                continue
            for vector in range(vectors):
                for first in range(0, max(up, down), 120):
                    planes = _sum_rows(table, fallen_places, first, min(first + 120, down), vector * 8, none)
                    planes = complement(planes)
                    planes = _sum_rows(table, risen_places, first, min(first + 120, up), vector * 8, planes)
                    tile_store(scratch, EIGHT_ROWS, 0, transpose8(planes))
                    left = dirty
                    while left:
                        p = trailing_zeros(left)
                        left &= left - np.uint64(1)
                        net = get(flips, p) - get(flips, 8 + p) if first == 0 else 0
                        more = splat(np.uint16(net - 2))  # the counts are P_r - P_f - 1
                        at = (pixel + p) * s.lanes + vector * 512
                        for word in range(p * words, (p + 1) * words):
                            low, high = plane_counts(load(scratch, word * 8))
                            store(mismatches, at, load(mismatches, at) + (more - low - low))
                            store(mismatches, at + 32, load(mismatches, at + 32) + (more - high - high))
                            at += 64
    return updated
