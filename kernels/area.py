"""Frames resized by averaging areas: whole weights out of 256, rows first.

    strip[y, i] = (128 + sum over t of rows[y, t] * frame[first[y] + t, i]) >> 8        i a byte of a row
    out[y, x]   = (128 + sum over t of columns[x, t] * strip[y, first[x] + t]) >> 8     of each channel

The weights of an output add up to 256, so that sums of bytes fit uint16: 255 * 256 + 128 < 2 ** 16.

Rows come first because they are cheap, whole vectors of bytes; what is left to the columns is a third of the
rows where a frame shrinks to a third. Bound by operations: of 768x576 to 256x192 the rows take 5 a vector of
32 bytes and tap, 41,000 vectors; the columns 10 a block of 16 pixels and tap. Comparing a frame with the last
one would read twice as much as the rows do: nothing is kept from frame to frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .jit import jit
from .resize import BYTE_PERMUTE
from .simd import get, load, pick_bytes, put, shift_right, splat, store_narrowed, widen_half

_HALF = np.uint16(128)

Int = npt.NDArray[Any]


@jit
def average_rows(source: Int, first: Int, weights: Int, out: Int) -> None:
    """Vertical pass.

    source : uint8[rows, n].  first : int64[out rows].  weights : uint16[out rows, taps], behind the last one
    that weighs anything zeros.  out : uint8[out rows, n].
    """
    size, half = source.shape[1], splat(_HALF)
    taps = weights.shape[1]
    for y in range(first.shape[0]):
        used, row = taps, get(first, y) * size
        while used > 1 and get(weights, y * taps + used - 1) == 0:
            used -= 1
        if size < 64:
            for i in range(size):
                total = _HALF
                for t in range(used):
                    byte = np.uint16(get(source, row + t * size + i))
                    total = np.uint16(total + np.uint16(byte * get(weights, y * taps + t)))
                put(out, y * size + i, np.uint8(total >> np.uint16(8)))
            continue
        for block in range(0, size, 64):
            i = min(block, size - 64)
            low, high = half, half
            for t in range(used):
                pixels, weight = load(source, row + t * size + i), splat(get(weights, y * taps + t))
                low = low + widen_half(pixels, 0) * weight
                high = high + widen_half(pixels, 1) * weight
            store_narrowed(out, y * size + i, shift_right(low, 8), shift_right(high, 8), 64)


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


@jit
def average_columns(source: Int, first: Int, weights: Int, blocks: Any, channels: int, out: Int) -> None:
    """Horizontal pass.

    source : uint8[rows, channels * width].  first : int64[columns], where the taps start, in bytes.
    weights : uint16[columns, taps].  blocks : `column_blocks`.  out : uint8[rows, channels * columns].
    """
    rows, size = source.shape
    columns, taps = weights.shape
    wide, base, order, spread = blocks
    half = splat(_HALF)
    used = taps
    while used > 1 and not weights[:, used - 1].any():
        used -= 1
    reach = (used - 1) * channels + 128
    for block in range(len(base) if BYTE_PERMUTE and wide > 0 else 0):
        place, begin, w = load(order, block * 64), get(base, block), block * taps * 64
        count = min(wide, columns - block * wide) * channels
        for y in range(rows):
            at = y * size + begin
            if at + reach > rows * size:  # not so many bytes there to read
                break
            low, high = half, half
            for t in range(used):
                start = at + t * channels
                picked = pick_bytes(load(source, start), load(source, start + 64), place)
                low = low + widen_half(picked, 0) * load(spread, w + t * 64)
                high = high + widen_half(picked, 1) * load(spread, w + t * 64 + 32)
            to = y * columns * channels + block * wide * channels
            store_narrowed(out, to, shift_right(low, 8), shift_right(high, 8), count)
    # What no block has done: the ends of the last rows, or everything.
    first_row = 0
    if BYTE_PERMUTE and wide > 0:
        first_row = max(0, (rows * size - reach - get(base, len(base) - 1)) // size + 1)
    for y in range(first_row, rows):
        for x in range(columns):
            for c in range(channels):
                total, at = _HALF, y * size + get(first, x) + c
                for t in range(used):
                    byte = np.uint16(get(source, at + t * channels))
                    total = np.uint16(total + np.uint16(byte * get(weights, x * taps + t)))
                put(out, (y * columns + x) * channels + c, np.uint8(total >> np.uint16(8)))
