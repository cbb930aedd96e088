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
    compress,
    get,
    has_byte_compress,
    last_lane,
    list_bits,
    load,
    load_some,
    majority,
    nonzero_lanes,
    permute,
    popcount,
    prefix_sum,
    put,
    ripple,
    shift_left,
    shift_right,
    splat,
    store,
    store_flags,
    subtract_twice,
    trailing_zeros,
    xor3,
)

#: Rows of one direction summed before the planes are spilled: P_r - P_f - 1 must fit eight bits with a sign.
MAX_ROWS = 120
#: Whether flips are listed a word at a time, decided for the machine the kernels are compiled on.
BYTE_COMPRESS = has_byte_compress()


def tile_pixels(out_words: int, touching: bool) -> int:
    """T: output pixels of a vector; 1 where a dilated window has to be read tap by tap."""
    return max(1, 8 // out_words) if touching else 1


def flip_lists(flips: int, step: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Scratch for `flips` flips: risen, fallen, starts, scratch, risen_places, fallen_places."""
    risen, fallen, risen_places, fallen_places = (aligned(flips + 96, np.int32) for _ in range(4))
    starts = aligned(int(step["hp"] * (step["wp"] + 1)) + 16, np.int64)
    scratch = aligned(5 * int(step["wp"] * step["words"] + 8), np.uint64)
    return risen, fallen, starts, scratch, risen_places, fallen_places


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
def list_flips(diff: Any, last: Any, s: Any, risen: Any, fallen: Any, starts: Any, scratch: Any) -> None:
    """List a frame's risen and fallen bits in row-major order.

    diff, last : uint64[hp * wp * words], flips and new bits, padded.
    risen, fallen : int32; entry = the flip's own offset in the table, less one pixel's words for each
        column. Whole vectors are written: 64 entries more than there are flips.
    starts : int64[hp * (wp + 1) + 8]; of padded row y left of column x, `risen + (fallen << 32)` are listed.
    scratch : uint64[5 * (wp * words + 8)].

    A row's words are compared eight at a time, and those with a flip brought together: words without one
    are not looked at again, and no branch asks for them.
    """
    step = np.int32(s.sw * s.row)
    words, width = s.words, s.wp
    row_words = width * words
    size = row_words + 8
    up_at, down_at, before_at, entry_at, number_at = 0, size, 2 * size, 3 * size, 4 * size
    i = 0
    for x in range(width):
        for word in range(words):
            entry = (x % s.sw) * s.row - x // s.sw * s.out_words + word * 64 * step
            put(scratch, entry_at + i, np.uint64(entry))
            put(scratch, number_at + i, np.uint64(i))
            i += 1
    up, down = 0, 0
    for y in range(s.hp):
        line, at = y * (width + 1), y * row_words
        before = splat(np.uint64(up) | (np.uint64(down) << np.uint64(32)))
        ups, downs = 0, 0
        for i in range(0, row_words, 8):
            d = load_some(diff, at + i, row_words - i)
            new = load(last, at + i)
            rise = d & new
            fall = d ^ rise
            number = load(scratch, number_at + i)
            ups += compress(nonzero_lanes(rise), number, scratch, up_at + ups)
            downs += compress(nonzero_lanes(fall), number, scratch, down_at + downs)
            counts = popcount(rise) | shift_left(popcount(fall), 32)
            after = before + prefix_sum(counts)
            store(scratch, before_at + i, after - counts)
            before = splat(last_lane(after))
        for x in range(width):
            put(starts, line + x, np.int64(get(scratch, before_at + x * words)))
        for k in range(ups):
            i = np.int64(get(scratch, up_at + k))
            bits = get(diff, at + i) & get(last, at + i)
            up = _list_word(bits, np.int32(get(scratch, entry_at + i)), step, risen, up)
        for k in range(downs):
            i = np.int64(get(scratch, down_at + k))
            bits = get(diff, at + i) & ~get(last, at + i)
            down = _list_word(bits, np.int32(get(scratch, entry_at + i)), step, fallen, down)
        put(starts, line + width, np.int64(up) | (np.int64(down) << np.int64(32)))


@inline
def _copy_run(entries: Any, start: int, count: int, shift: Any, places: Any, at: int) -> None:
    """places[at ...] = entries[start : start + count] + shift, and up to 15 more."""
    store(places, at, load(entries, start) + shift)
    for i in range(16, count, 16):
        store(places, at + i, load(entries, start + i) + shift)


@inline
def _sum_8(table: Any, places: Any, i: int, shift: int, ones: Any, twos: Any, fours: Any) -> Any:
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
        p0, p1, p2, eight = _sum_8(table, places, i, shift, p0, p1, p2)
        planes = ripple((p0, p1, p2, p3, p4, p5, p6, p7), eight, 3)
    return planes


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
    updated: Any = 0
    out_words, tile, lanes, wo, kh, sw = s.out_words, s.tile, s.lanes, s.wo, s.kh, s.sw
    step_y, step_k, pitch = s.dh * (s.wp + 1), s.dw, s.wp + 1
    row_words, origin = s.cin * sw * s.row, s.row - tile * out_words
    runs = s.segments // kh
    columns = s.kw if runs == 1 else 1
    vectors, words = max(1, out_words // 8), min(8, out_words)
    nowhere = splat(np.int32(s.table_size - out_words - 8))  # zeros close the table
    zero = splat(np.uint64(0))
    none = (zero, zero, zero, zero, zero, zero, zero, zero)
    low = np.int64(0xFFFFFFFF)
    mask, two = splat(low), splat(np.int64(2))
    for w in range(8):
        put(counts, w, np.int64(w // words))
    order = load(counts, 0)
    for oy in range(first_row, last_row):
        _count_flips(starts, s, oy, counts)
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
            place = origin + x0 * out_words
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
                line += step_y
                place += row_words
            store(risen_places, up, nowhere)
            store(fallen_places, down, nowhere)
            more = permute((under & mask) - shift_right(under, 32), order)
            for vector in range(vectors):
                at = pixel * lanes + vector * 512
                net = more
                for first in range(0, max(up, down), 120):
                    planes = _sum_rows(table, fallen_places, first, min(first + 120, down), vector * 8, none)
                    planes = complement(planes)
                    planes = _sum_rows(table, risen_places, first, min(first + 120, up), vector * 8, planes)
                    # the counts are P_r - P_f - 1
                    subtract_twice(mismatches, at, net - two, pixels * words, planes)
                    net = splat(np.int64(0))
    return updated
