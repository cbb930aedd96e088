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
    add_into_planes,
    aligned,
    complement,
    compress,
    get,
    has_byte_compress,
    last_lane,
    list_bits,
    load,
    load_planes,
    load_some,
    majority,
    nonzero_lanes,
    permute,
    popcount,
    prefetch,
    prefix_sum,
    put,
    ripple,
    shift_left,
    shift_right,
    splat,
    store,
    store_flags,
    store_minus_twice,
    subtract_twice,
    trailing_zeros,
    tuple_of,
    with_first,
    xor3,
)
from .xnor import outside_tables

#: Rows of one direction summed before the planes are spilled: P_r - P_f - 1 must fit eight bits with a sign.
MAX_ROWS = 120
#: Most bits under a window that `conv_set_rows` can count.
MOST_SET = 16383
#: Whether flips are listed a word at a time, decided for the machine the kernels are compiled on.
BYTE_COMPRESS = has_byte_compress()


def tile_pixels(out_words: int, touching: bool) -> int:
    """T: output pixels of a vector; 1 where a dilated window has to be read tap by tap."""
    return max(1, 8 // out_words) if touching else 1


def can_sum_sets(step: Any) -> bool:
    """Whether `conv_set_rows` takes the layer: a vector is of one pixel, and its sums fit fourteen planes."""
    return bool(step["out_words"] % 8 == 0 and step["kh"] * step["kw"] * step["cin"] <= MOST_SET)


def flip_lists(flips: int, step: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Scratch for `flips` flips: risen, fallen, starts, scratch, risen_places, fallen_places."""
    risen, fallen, risen_places, fallen_places = (aligned(flips + 96, np.int32) for _ in range(4))
    starts = aligned(int(step["hp"] * (step["wp"] + 1)) + 16, np.int64)
    scratch = aligned(5 * int(step["wp"] * step["words"] + 8), np.uint64)
    return risen, fallen, starts, scratch, risen_places, fallen_places


def set_lists(step: Any) -> tuple[Any, Any, Any]:
    """Scratch of `list_sets`: entries, starts, ones."""
    pixels = int(step["hp"] * step["wp"])
    entries = aligned(pixels * (int(step["cin"]) + 16) + 64, np.int32)
    return entries, aligned(pixels + 1, np.int64), aligned(pixels, np.int64)


def build_table(weight: Any, channels: int, step: Any) -> Any:
    """Row table of a layer, flat, with rows of zeros; see the module's text.

    weight : uint64[Cout, kH, kW, Cw].  step : geometry with `tile` set; the fields by which a row is found
    are set here. The row of input (y, x, c) for output pixel (oy, ox), y in window row ky, begins at

        c * channel_step + x % phases * phase_step + x // phases * column_step      (the flip's entry)
        + origin + ky * row_step + ox * place_step                                  (the tile's shift)

    T > 1 : uint64[kH, Cin, stride, length, W], closed by zeros. Lane p of a load at entry e reads entry
    e + p, so tap q of phase r (column r + q * stride of the window) stands at entry length - T - q.
    T = 1 : uint64[kH, reach, Cin + 1, W], a column's last row zero: all rows of a tap lie together.
    """
    cout, kh, kw, _ = weight.shape
    stride, dilation, tile, out_words = (int(step[name]) for name in ("sw", "dw", "tile", "out_words"))
    reach = (kw - 1) * dilation + 1
    channel = np.arange(channels)
    bits = weight[..., channel // 64] >> (channel % 64).astype(np.uint64) & np.uint64(1)
    rows = np.zeros((kh, kw, channels, out_words * 64), np.uint8)
    rows[..., :cout] = bits.transpose(1, 2, 3, 0)
    packed = np.packbits(rows, axis=-1, bitorder="little").view(np.uint64)

    if tile > 1:
        length = 2 * tile + -(-reach // stride) - 2
        body = kh * channels * stride * length * out_words
        flat = aligned(body + out_words + 8, np.uint64)
        table = flat[:body].reshape(kh, channels, stride, length, out_words)
        for kx in range(kw):
            q, phase = divmod(kx * dilation, stride)
            table[:, :, phase, length - tile - q] = packed[:, kx]
        found_by = dict(
            channel_step=stride * length * out_words, phases=stride, phase_step=length * out_words,
            column_step=-out_words, origin=(length - tile) * out_words, place_step=out_words,
            row_step=channels * stride * length * out_words, nowhere=body,
        )  # fmt: skip
    else:
        column = (channels + 1) * out_words
        flat = aligned(kh * reach * column + 8, np.uint64)
        flat[:-8].reshape(kh, reach, channels + 1, out_words)[:, ::dilation, :channels] = packed
        found_by = dict(
            channel_step=out_words, phases=1, column_step=column, place_step=-stride * column,
            row_step=reach * column, nowhere=channels * out_words,
        )  # fmt: skip
    for name, value in (found_by | {"table_size": len(flat)}).items():
        step[name] = value
    return flat


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
    risen, fallen : int32, entries of the table (`build_table`). Whole vectors are written: 64 entries more
        than there are flips.
    starts : int64[hp * (wp + 1) + 8]; of padded row y left of column x, `risen + (fallen << 32)` are listed.
    scratch : uint64[5 * (wp * words + 8)].

    A row's words are compared eight at a time, and those with a flip brought together: words without one
    are not looked at again, and no branch asks for them.
    """
    step = np.int32(s.channel_step)
    words, width, phases = s.words, s.wp, s.phases
    row_words = width * words
    size = row_words + 8
    up_at, down_at, before_at, entry_at, number_at = 0, size, 2 * size, 3 * size, 4 * size
    i = 0
    for x in range(width):
        for word in range(words):
            entry = x % phases * s.phase_step + x // phases * s.column_step + word * 64 * s.channel_step
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
    row_step, place_step, origin = s.row_step, s.place_step, s.origin
    runs = s.segments // kh
    columns = s.kw if runs == 1 else 1
    vectors, words = max(1, out_words // 8), min(8, out_words)
    nowhere = splat(np.int32(s.nowhere))
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
                line += step_y
                place += row_step
            store(risen_places, up, nowhere)
            store(fallen_places, down, nowhere)
            if vectors > 1:  # a row is read 64 bytes at a time, with all others in between
                _fetch_rows(table, risen_places, up, vectors)
                _fetch_rows(table, fallen_places, down, vectors)
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


@jit
def list_sets(x: Any, s: Any, entries: Any, starts: Any, ones: Any) -> int:
    """List the set bits of every pixel for `conv_set_rows`, the border's not. Returns the number of entries.

    x : uint64[hp * wp * words], padded.  entries : int32; c * out_words for a set channel c, then entries of
    zeros up to a multiple of 16; 64 more are written.  starts : int64[hp * wp + 1], of each padded pixel.
    ones : int64[hp * wp], its set bits.
    """
    count: Any = 0
    step, nothing = np.int32(s.channel_step), splat(np.int32(s.nowhere))
    for y in range(s.hp):
        for column in range(s.wp):
            pixel = y * s.wp + column
            put(starts, pixel, count)
            put(ones, pixel, np.int64(0))
            if not (s.pt <= y < s.pt + s.h and s.pl <= column < s.pl + s.w):
                continue
            first = count
            for word in range(s.words):
                start = np.int32(word * 64 * s.channel_step)
                count = _list_word(get(x, pixel * s.words + word), start, step, entries, count)
            put(ones, pixel, count - first)
            store(entries, count, nothing)
            count += -count % 16
    put(starts, s.hp * s.wp, count)
    return count


@inline
def _sum_run(table: Any, entries: Any, first: int, last: int, shift: int) -> Any:
    """Ten bit planes of the sum of the rows at entries[first:last] + shift, at most 1008, a multiple of 16.

    Sixteen rows take sixteen loads, fifteen full adders and a carry rippling through six planes: 41
    operations for 16 * 512 bits.
    """
    planes = tuple_of(splat(np.uint64(0)), 10)
    for i in range(first, last, 16):
        p0, p1, p2, eight_a = _sum_8(table, entries, i, shift, planes[0], planes[1], planes[2])
        p0, p1, p2, eight_b = _sum_8(table, entries, i + 8, shift, p0, p1, p2)
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
    """Dense by the same sum, of the rows that the set bits select (T = 1): nothing is known of a last frame.

        mismatches[c] = base[class, c] + set bits under the window - 2 * P[c]

    entries, starts, ones : `list_sets`.  table : `build_table`, T = 1.
    base, classes : `base_of_sets`, and the class of each output pixel.
    windows, pixels, slots, count : as starts, pixels, slots, count in `xnor.conv_xnor`.
    sums : uint64[count * 112] scratch.  mismatches : uint16[slots * lanes].

    Half of the bits are set, in general, so a window has half the rows of xnor-popcount, at about 2.6
    operations for 512 bit-MACs instead of 3. A tap is summed for all pixels before the next one: its rows, 64
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
                shift = ky * s.row_step + kx * s.dw * s.column_step + vector * 8
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
