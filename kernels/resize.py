"""Luminance and resampling of uint8 images in fixed point: the arithmetic of Pillow, bit for bit.

Weights are int32 with PRECISION fraction bits. Each pass sums `weight * pixel` from one half in int32,
drops the fraction and clips to 0..255; the horizontal pass comes first and is stored as uint8 between.
Weights that add up to one keep every sum inside int32, negative lobes included.

Both passes compute only what a change since the last frame reaches. Changes are marked by blocks of 64 bytes
of a row, which is a comparison of two vectors: uint8[rows, ceil(bytes / 64)], 1 where some byte differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .jit import jit
from .simd import (
    differs,
    get,
    has_byte_permute,
    load,
    pick_bytes,
    put,
    splat,
    store,
    store_clipped,
    widen_bytes,
)

#: Fraction bits of a weight: 32, less 8 for the pixel, less 2 for sign and overshoot of negative lobes.
PRECISION = 32 - 8 - 2

_HALF = np.int32(1 << (PRECISION - 1))
_SHIFT = np.int32(PRECISION)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)  # unsigned: no wraparound of negative indices

Int = npt.NDArray[Any]


@jit
def _clip8(total: Any) -> Any:
    return np.uint8(min(max(total >> _SHIFT, np.int32(0)), np.int32(255)))


@jit
def mark_changed(source: Int, last: Int, everything: bool, marks: Int) -> int:
    """Mark the blocks of each row in which `source` differs from `last`, or all; `last` becomes `source`.

    source, last : uint8[rows, bytes].  marks : uint8[rows, ceil(bytes / 64)].  Returns how many are marked.
    """
    size, count = source.shape[1], 0
    for y in range(source.shape[0]):
        row = y * size
        for block in range(marks.shape[1]):
            at = row + block * 64
            new = everything
            if block * 64 + 64 <= size:
                new = new or differs(load(source, at), load(last, at))
                if new:
                    store(last, at, load(source, at))
            else:
                for i in range(at, row + size):
                    new = new or get(source, i) != get(last, i)
                    put(last, i, get(source, i))
            marks[y, block] = new
            count += new
    return count


@jit
def _next_run(marks: Int, first: Int, span: int, start: int) -> tuple[int, int]:
    """(begin, end) of the next run of outputs, from `start` on, of which some tap lies in a marked block.

    Of one row.  first : int64[columns], where their taps start, in bytes.  span : bytes of their taps.
    """
    columns, begin = len(first), -1
    for x in range(start, columns):
        at = get(first, x)
        seen = np.uint8(0)
        for block in range(at >> 6, (at + span - 1 >> 6) + 1):
            seen |= get(marks, block)
        if seen and begin < 0:
            begin = x
        if not seen and begin >= 0:
            return begin, x
    return (begin if begin >= 0 else columns), columns


@jit
def _red_green_blue(pixels: Int, first: Int, weights: Int, begin: int, end: int, result: Int) -> None:
    """`resize_columns` of the outputs begin ... end - 1 of one row."""
    taps = np.uint64(weights.shape[1])
    for x in range(np.uint64(begin), np.uint64(end)):
        red = green = blue = _HALF
        at = np.uint64(first[x])
        for t in range(taps):
            weight = weights[x, t]
            red = np.int32(red + pixels[at] * weight)
            green = np.int32(green + pixels[at + _ONE] * weight)
            blue = np.int32(blue + pixels[at + _TWO] * weight)
            at += _THREE
        to = x * _THREE
        result[to] = _clip8(red)
        result[to + _ONE] = _clip8(green)
        result[to + _TWO] = _clip8(blue)


#: Whether columns are resized by blocks, decided for the machine the kernels are compiled on.
BYTE_PERMUTE = has_byte_permute()


def column_blocks(first: Int, weights: Int) -> tuple[int, Int, Int, Int, Int]:
    """Tables by which up to 16 RGB outputs of a row are computed together, in three vectors of int32.

    first, weights : of `resize_columns`, three channels.
    Returns (outputs of a block, int64[n] where its bytes begin, uint8[n, 64] which of the following 128 bytes
    are tap 0 of its outputs, int64[n] taps that weigh anything, int32[n, taps, 48] their weights). No block,
    0 outputs, where even 4 neighbouring outputs lie further apart than 128 bytes.
    """
    columns, taps = weights.shape
    for wide in (16, 8, 4):
        base = first[::wide]
        place = first - np.repeat(base, wide)[:columns]
        if place.max() + 2 < 128:
            break
    else:
        return 0, base, np.zeros((1, 64), np.uint8), base, np.zeros((1, 1, 48), np.int32)
    n = len(base)
    order = np.zeros((n, 64), np.uint8)
    spread = np.zeros((n, taps, 48), np.int32)
    for x in range(columns):
        block, lane = x // wide, x % wide * 3
        order[block, lane : lane + 3] = place[x] + np.arange(3)
        spread[block, :, lane : lane + 3] = weights[x, :, None]
    weighs = np.any(spread, axis=2)
    used = taps - np.argmax(weighs[:, ::-1], axis=1)
    return wide, np.ascontiguousarray(base), order, used, spread


@jit
def _block(source: Int, at: int, blocks: Any, block: int, out: Int, to: int, count: int) -> None:
    """`resize_columns` of `count` bytes of outputs, whose taps begin at byte `at` of the source."""
    _, _, order, used, weights = blocks
    place = load(order, block * 64)
    a = b = c = splat(_HALF)
    w = block * weights.shape[1] * 48
    for tap in range(get(used, block)):
        start = at + 3 * tap
        picked = pick_bytes(load(source, start), load(source, start + 64), place)
        a = a + widen_bytes(picked, 0) * load(weights, w)
        b = b + widen_bytes(picked, 1) * load(weights, w + 16)
        c = c + widen_bytes(picked, 2) * load(weights, w + 32)
        w += 48
    store_clipped(out, to, a, b, c, _SHIFT, count)


@jit
def _grey(pixels: Int, first: Int, weights: Int, begin: int, end: int, result: Int) -> None:
    taps = np.uint64(weights.shape[1])
    for x in range(np.uint64(begin), np.uint64(end)):
        total = _HALF
        at = np.uint64(first[x])
        for t in range(taps):
            total = np.int32(total + pixels[at + t] * weights[x, t])
        result[x] = _clip8(total)


@jit
def resize_columns(
    source: Int,
    first: Int,
    weights: Int,
    blocks: Any,
    marks: Int,
    channels: int,
    out: Int,
    out_marks: Int,
) -> None:
    """Horizontal pass: out[y, x] = clip8(sum over t of weights[x, t] * source[y, first[x] / channels + t]).

    source : uint8[rows, channels * width], channels 3 (RGB interleaved) or 1.  first : int64[columns], where
        the taps start, in bytes.
    weights : int32[columns, taps]; by single outputs a multiple of 8 taps is fastest, LLVM takes 8 at once
        (0.53 ms against 0.75 ms for the 5 taps of 768x576 to 224x224).
    blocks : `column_blocks`.  out : uint8[rows, channels * columns].
    marks, out_marks : what has changed of the source, and what is computed: the outputs of which a tap may
        have changed, in rows that have changed for the most part all.
    """
    columns, mark_count = first.shape[0], marks.shape[1]
    wide, base, _, used, _ = blocks
    for y in range(source.shape[0]):
        pixels, result, changed, computed = source[y], out[y], marks[y], out_marks[y]
        count = 0
        for block in range(mark_count):
            count += changed[block]
        computed[:] = 0
        begin, end = 0, columns
        if 2 * count <= mark_count:
            begin, end = (
                (columns, columns)
                if count == 0
                else _next_run(changed, first, channels * weights.shape[1], 0)
            )
        while begin < columns:
            computed[begin * channels >> 6 : (end * channels - 1 >> 6) + 1] = 1
            if BYTE_PERMUTE and channels == 3 and wide > 0:
                for block in range(begin // wide, (end + wide - 1) // wide):
                    at, x = y * source.shape[1] + get(base, block), block * wide
                    last = min(x + wide, columns)
                    if at + 3 * get(used, block) + 125 <= source.size:
                        to = 3 * (y * columns + x)
                        _block(source, at, blocks, block, out, to, 3 * (last - x))
                    else:  # no 128 bytes there to read
                        _red_green_blue(pixels, first, weights, x, last, result)
            elif channels == 3:
                _red_green_blue(pixels, first, weights, begin, end, result)
            else:
                _grey(pixels, first, weights, begin, end, result)
            begin, end = _next_run(changed, first, channels * weights.shape[1], end)


@jit
def luminance(source: Int, out: Int) -> None:
    """Pillow's mode "L" of an RGB image: out[p] = (19595 R + 38470 G + 7471 B + 32768) >> 16.

    source : uint8[3 * pixels], RGB interleaved.  out : uint8[pixels].
    """
    for p in range(np.uint64(out.shape[0])):
        red, green, blue = source[_THREE * p], source[_THREE * p + _ONE], source[_THREE * p + _TWO]
        total = np.int32(19595) * red + np.int32(38470) * green + np.int32(7471) * blue + np.int32(32768)
        out[p] = np.uint8(total >> np.int32(16))


@jit
def resize_rows(source: Int, first: Int, weights: Int, marks: Int, sums: Int, out: Int) -> None:
    """Vertical pass: out[y] = clip8(sum over t of weights[y, t] * source[first[y] + t]).

    source : uint8[rows, n].  first : int64[out rows].  weights : int32[out rows, taps].
    marks : what has changed of the source.  sums : int32[n], scratch.
    out : uint8[out rows, n], of which the blocks are computed that read a change.
    """
    blocks = marks.shape[1]
    for y in range(first.shape[0]):
        begin = -1
        for block in range(blocks + 1):
            seen = np.uint8(0)
            if block < blocks:
                for t in range(weights.shape[1]):
                    seen |= marks[first[y] + t, block]
            if seen and begin < 0:
                begin = block * 64
            if not seen and begin >= 0:
                _one_row(source, first[y], weights[y], begin, min(block * 64, source.shape[1]), sums, out[y])
                begin = -1


@jit
def _one_row(source: Int, row: int, weights: Int, begin: int, end: int, sums: Int, result: Int) -> None:
    """Bytes begin ... end - 1 of one output row, whose taps start at a row of the source."""
    for i in range(begin, end):
        put(sums, i, _HALF)
    for t in range(weights.shape[0]):
        weight, pixels = weights[t], source[row + t]
        if weight == 0:  # filled up to a multiple of 8
            continue
        for i in range(begin, end):
            put(sums, i, np.int32(get(sums, i) + np.int32(get(pixels, i) * weight)))
    for i in range(begin, end):
        put(result, i, _clip8(get(sums, i)))
