"""Cached binary convolution: a positional popcount of the weight rows that the flipped bits select.

A flip of input bit (y, x, c) to the sign s meets the output pixels whose window holds it, each through
one tap k. There it selects the row of bits r = (w[:, k, c] == s), one bit for each output channel: 1
where the product now agrees, 0 where it now disagrees. With L flips under a pixel's window and P[c] the
number of selected rows that have bit c set,

    mismatches[c] += L - 2 * P[c]                                                        (exact integers)

P is summed in carry-save form: planes[j] holds bit j of P for 512 (pixel, channel) lanes, and a full
adder is two operations (xor3, majority). A row costs one load and about three operations for 512
bit-MACs, against 3 * 512 / (share of flipped bits) / 512 for xor-popcount.

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
    get,
    has_byte_compress,
    list_bits,
    load,
    majority,
    plane_counts,
    splat,
    store,
    tile_store,
    trailing_zeros,
    transpose8,
    xor3,
)

#: Rows summed before the eight planes are spilled into the mismatches: they hold counts up to 255.
MAX_ROWS = 248
#: Whether flips are listed a word at a time, decided for the machine the kernels are compiled on.
BYTE_COMPRESS = has_byte_compress()
EIGHT_ROWS = tuple(range(0, 64, 8))


def tile_pixels(out_words: int, touching: bool) -> int:
    """T: output pixels of a vector; 1 where a dilated window has to be read tap by tap."""
    return max(1, 8 // out_words) if touching else 1


def build_table(weight: Any, channels: int, step: Any) -> Any:
    """Row table of a layer: uint64[kH, Cin, 2, stride, length, W] flat, closed by zeros.

    weight : uint64[Cout, kH, kW, Cw].  step : geometry with `tile` set; sets `row` (words
    from one phase to the next) and `table_size`. Lane p of a load at entry e reads entry e + p, so tap q
    of phase r (column r + q * stride of the window) stands at entry length - T - q.
    """
    cout, kh, kw, _ = weight.shape
    stride, dilation, tile, out_words = (int(step[name]) for name in ("sw", "dw", "tile", "out_words"))
    taps = -(-((kw - 1) * dilation + 1) // stride)
    length = 2 * tile + taps - 2
    channel = np.arange(channels)
    bits = weight[..., channel // 64] >> (channel % 64).astype(np.uint64) & np.uint64(1)
    rows = np.zeros((2, kh, kw, channels, out_words * 64), np.uint8)
    rows[1, ..., :cout] = bits.transpose(1, 2, 3, 0)
    rows[0, ..., :cout] = 1 - rows[1, ..., :cout]
    packed = np.packbits(rows, axis=-1, bitorder="little").view(np.uint64)

    body = kh * channels * 2 * stride * length * out_words
    flat = aligned(body + out_words + 8, np.uint64)
    table = flat[:body].reshape(kh, channels, 2, stride, length, out_words)
    for kx in range(kw):
        q, phase = divmod(kx * dilation, stride)
        table[:, :, :, phase, length - tile - q] = packed[:, :, kx].transpose(1, 2, 0, 3)
    step["row"], step["table_size"] = length * out_words, len(flat)
    return flat


@jit
def list_flips(diff: Any, last: Any, s: Any, entries: Any, row_starts: Any) -> int:
    """List the flips of a frame in row-major order. Returns their number.

    diff, last : uint64[hp * wp * words], flips and new bits, padded.
    entries : int32; entry = the flip's own offset in the table, less one pixel's words for each column.
        Vectors of 16 are written, so 16 more may be written behind the last.
    row_starts : int64[hp * (wp + 1)]; flips of padded row y left of column x begin at row_starts[y * (wp + 1) + x].
    """
    count = 0
    step = np.int32(s.sw * s.row)
    for y in range(s.hp):
        line = y * (s.wp + 1)
        column, phase = 0, 0
        for x in range(s.wp):
            row_starts[line + x] = count
            at = (y * s.wp + x) * s.words
            base = phase * s.row - column * s.out_words
            for word in range(s.words):
                d = diff[at + word]
                if d:
                    start = np.int32(base + word * 128 * step)
                    if BYTE_COMPRESS:
                        count += list_bits(d, last[at + word], start, step, entries, count)
                    else:
                        signs = last[at + word]
                        while d:
                            bit = trailing_zeros(d)
                            sign = np.int64((signs >> np.uint64(bit)) & np.uint64(1))
                            entries[count] = start + np.int32((2 * bit + sign) * step)
                            count += 1
                            d &= d - np.uint64(1)
            phase += 1
            if phase == s.sw:
                phase, column = 0, column + 1
        row_starts[line + s.wp] = count
    return count


@inline
def _collect_places(entries: Any, row_starts: Any, s: Any, oy: int, x0: int, pixels: int, places: Any) -> int:
    """Table places of all flips under the tile of `pixels` output pixels from (oy, x0) on. Returns their number."""
    count = 0
    runs = s.segments // s.kh
    width = (pixels - 1) * s.sw + (s.kw if runs == 1 else 1)
    tap_0 = s.row // s.out_words - s.tile
    for ky in range(s.kh):
        line = (oy * s.sh + ky * s.dh) * (s.wp + 1) + x0 * s.sw
        shift = splat(np.int32((ky * s.cin * 2 * s.sw) * s.row + (tap_0 + x0) * s.out_words))
        for k in range(runs):
            start = get(row_starts, line + k * s.dw)
            flips = get(row_starts, line + k * s.dw + width) - start
            for i in range(0, flips, 16):
                store(places, count + i, load(entries, start + i) + shift)
            count += flips
    return count


@inline
def _count_flips(row_starts: Any, s: Any, oy: int, x0: int, pixels: int, flips: Any) -> None:
    """flips[p], int64[8] = number of flips under the window of output pixel (oy, x0 + p)."""
    runs = s.segments // s.kh
    if runs == 1 and s.sw == 1:  # neighbouring windows begin at neighbouring columns
        total = load(row_starts, 0) - load(row_starts, 0)
        for ky in range(s.kh):
            line = (oy * s.sh + ky * s.dh) * (s.wp + 1) + x0
            total = total + load(row_starts, line + s.kw) - load(row_starts, line)
        store(flips, 0, total)
        return
    width = s.kw if runs == 1 else 1
    for p in range(pixels):
        flips[p] = 0
        for ky in range(s.kh):
            line = (oy * s.sh + ky * s.dh) * (s.wp + 1) + (x0 + p) * s.sw
            for k in range(runs):
                flips[p] += get(row_starts, line + k * s.dw + width) - get(row_starts, line + k * s.dw)


@inline
def _sum_rows(table: Any, places: Any, first: int, count: int, shift: int) -> Any:
    """Positional popcount of the table rows at places[first : first + count] + shift: eight bit planes.

    places : int32, filled behind its end with places of zeros up to a multiple of 8; count <= MAX_ROWS.

    Seven full adders sum eight rows into ones, twos, fours and one carry of eights; the carry ripples
    through half adders: 14 + 9 operations and 8 loads for 8 * 512 bits.
    """
    zero = splat(np.uint64(0))
    p0, p1, p2, p3, p4, p5, p6, p7 = zero, zero, zero, zero, zero, zero, zero, zero
    for i in range(first, first + count, 8):
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
    entries: Any, row_starts: Any, table: Any, s: Any, places: Any, scratch: Any, mismatches: Any, changed: Any
) -> int:
    """Update the mismatches of every output pixel that has a flip under its window. Returns their number.

    entries, row_starts : `list_flips`.  table : `build_table`.  mismatches : uint16[ho * wo * lanes].
    changed : uint8[ho * wo], set to 1 for the pixels updated, else 0.
    places : int32 scratch for the flips under one tile.  scratch : uint64[72].
    """
    updated = 0
    flips = scratch[64:].view(np.int64)
    pixel_shift = trailing_zeros(np.uint64(8 // s.tile)) if s.tile > 1 else 63
    end_of_rows = splat(np.int32(s.table_size - s.out_words - 8))  # zeros close the table
    for oy in range(s.ho):
        changed[oy * s.wo : (oy + 1) * s.wo] = 0
        for x0 in range(0, s.wo, s.tile):
            pixels = min(s.tile, s.wo - x0)
            count = _collect_places(entries, row_starts, s, oy, x0, pixels, places)
            if count == 0:
                continue
            store(places, count, end_of_rows)
            _count_flips(row_starts, s, oy, x0, pixels, flips)
            pixel = oy * s.wo + x0
            for p in range(pixels):
                changed[pixel + p] = flips[p] != 0
                updated += flips[p] != 0
            words = pixels * s.out_words
            for vector in range(0, words, 8):
                for first in range(0, count, 248):
                    planes = _sum_rows(table, places, first, min(248, count - first), vector)
                    tile_store(scratch, EIGHT_ROWS, 0, transpose8(planes))
                    at = pixel * s.lanes + vector * 64
                    for word in range(min(8, words - vector)):
                        low, high = plane_counts(load(scratch, word * 8))
                        added = get(flips, (vector + word) >> pixel_shift) if first == 0 else 0
                        seen = splat(np.uint16(added))
                        store(mismatches, at, load(mismatches, at) + (seen - low - low))
                        store(mismatches, at + 32, load(mismatches, at + 32) + (seen - high - high))
                        at += 64
    return updated
