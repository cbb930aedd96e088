"""Frames resized by averaging areas: whole weights out of 256, rows first.

    strip[y, i] = (128 + sum over t of rows[y, t] * frame[first[y] + t, i]) >> 8        i a byte of a row
    out[y, x]   = (128 + sum over t of columns[x, t] * strip[y, first[x] + t]) >> 8     of each channel

The weights of an output add up to 256, so that sums of bytes fit uint16: 255 * 256 + 128 < 2 ** 16.

Rows come first because they are cheap, whole vectors of bytes; what is left to the columns is a third of the
rows where a frame shrinks to a third. A few rows at a time, so that the columns find them in the first-level
cache; and the frame is asked for ahead of its use: it comes from memory, and hardware stops at every page.

Bound: of 768x576 to 256x192 the rows take 6 operations a vector of 64 bytes and tap, the columns 10 a block
of 21 pixels and tap, together 30 us at two a cycle; reading the frame from memory takes 95. Comparing a
frame with the last one would read twice as much: nothing is kept from frame to frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .jit import inline, jit
from .resize import BYTE_PERMUTE
from .simd import get, load, pick_bytes, prefetch, put, shift_right, splat, store_narrowed, widen_half

_HALF = np.uint16(128)

#: Output rows of both passes in turn, and by how many the frame is asked for ahead.
BAND, AHEAD = 8, 2

Int = npt.NDArray[Any]


@inline
def _average_rows(source: Any, first: Any, weights: Any, top: Any, last: Any, strip: Any) -> None:
    """Vertical pass, of output rows `top` to below `last`, into strip: uint8[rows, n] in one piece."""
    size, half = source.shape[1], splat(_HALF)
    taps = weights.shape[1]
    for y in range(top, last):
        used, row, out = taps, get(first, y) * size, (y - top) * size
        while used > 1 and get(weights, y * taps + used - 1) == 0:
            used -= 1
        if size < 64:
            for i in range(size):
                total = _HALF
                for t in range(used):
                    byte = np.uint16(get(source, row + t * size + i))
                    total = np.uint16(total + np.uint16(byte * get(weights, y * taps + t)))
                put(strip, out + i, np.uint8(total >> np.uint16(8)))
            continue
        ahead = (get(first, min(y + AHEAD, len(first) - 1)) - get(first, y)) * size
        for block in range(0, size, 64):
            i = min(block, size - 64)
            low, high = half, half
            for t in range(used):
                prefetch(source, row + ahead + t * size + i)
                pixels, weight = load(source, row + t * size + i), splat(get(weights, y * taps + t))
                low = low + widen_half(pixels, 0) * weight
                high = high + widen_half(pixels, 1) * weight
            store_narrowed(strip, out + i, shift_right(low, 8), shift_right(high, 8), 64)


def column_blocks(first: Int, weights: Int, channels: int) -> tuple[int, Int, Int, Int]:
    """Tables by which neighbouring outputs of a row are computed together, in two vectors of uint16.

    first : int64[columns], where their taps start, in bytes.  weights : uint16[columns, taps].
    Returns (outputs of a block, int64[n] where its bytes begin, uint8[n, 64] which of the following 128 bytes
    are tap 0 of its outputs, uint16[n, taps, 64] their weights). No block, 0 outputs, where even two
    neighbouring outputs lie further apart than 128 bytes.
    """
    columns, taps = weights.shape
    wide = 64 // channels
    while wide > 1 and (first - np.repeat(first[::wide], wide)[:columns]).max() + channels > 128:
        wide -= 1
    base = np.ascontiguousarray(first[::wide])
    order, spread = np.zeros((len(base), 64), np.uint8), np.zeros((len(base), taps, 64), np.uint16)
    for x in range(columns):
        block, lane = x // wide, x % wide * channels
        order[block, lane : lane + channels] = first[x] - base[block] + np.arange(channels)
        spread[block, :, lane : lane + channels] = weights[x, :, None]
    return (wide if wide > 1 else 0), base, order, spread


@inline
def _average_columns(
    strip: Any,
    size: Any,
    first: Any,
    weights: Any,
    blocks: Any,
    channels: Any,
    top: Any,
    last: Any,
    out: Any,
    begin: Any,
    pitch: Any,
) -> None:
    """Horizontal pass, of the rows of a strip into the output's from `top` to below `last`."""
    columns, taps = weights.shape
    wide, base, order, spread = blocks
    half = splat(_HALF)
    if BYTE_PERMUTE and wide > 0:
        for block in range(len(base)):
            place, at, w = load(order, block * 64), get(base, block), block * taps * 64
            count = min(wide, columns - block * wide) * channels
            for y in range(last - top):
                low, high = half, half
                for t in range(taps):
                    start = y * size + at + t * channels
                    picked = pick_bytes(load(strip, start), load(strip, start + 64), place)
                    low = low + widen_half(picked, 0) * load(spread, w + t * 64)
                    high = high + widen_half(picked, 1) * load(spread, w + t * 64 + 32)
                to = begin + (top + y) * pitch + block * wide * channels
                store_narrowed(out, to, shift_right(low, 8), shift_right(high, 8), count)
        return
    for y in range(last - top):
        for x in range(columns):
            for c in range(channels):
                total, at = _HALF, y * size + get(first, x) + c
                for t in range(taps):
                    byte = np.uint16(get(strip, at + t * channels))
                    total = np.uint16(total + np.uint16(byte * get(weights, x * taps + t)))
                put(out, begin + (top + y) * pitch + x * channels + c, np.uint8(total >> np.uint16(8)))


@jit
def average_areas(
    source: Int, rows: Any, columns: Any, channels: int, strip: Int, out: Int, begin: int, pitch: int
) -> None:
    """Resize a frame into a part of an image.

    source : uint8[rows, channels * width].
    out : uint8[...], the image; the part begins at its element `begin`, and a row of it `pitch` further on.
    rows : (int64[out rows] the first tap, uint16[out rows, taps] weights: zeros behind the last that weighs).
    columns : the same, the first tap in bytes, and `column_blocks` of them.
    strip : uint8, scratch of `strip_size` elements.
    """
    row_first, row_weights = rows
    first, weights, blocks = columns
    for top in range(0, len(row_first), BAND):
        last = min(top + BAND, len(row_first))
        _average_rows(source, row_first, row_weights, top, last, strip)
        _average_columns(
            strip, source.shape[1], first, weights, blocks, channels, top, last, out, begin, pitch
        )


def strip_size(size: int, channels: int, taps: int) -> int:
    """Elements of a strip: BAND rows of `size` bytes, and what the last block of columns reads beyond."""
    return BAND * size + taps * channels + 128
