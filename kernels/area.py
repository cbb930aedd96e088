"""Frames resized by averaging areas: whole weights out of 256, rows first.

    strip[y, i] = (128 + sum over t of weights[y, t] * frame[places[y, t], i]) >> 8       i a byte of a row
    out[y, x]   = (128 + sum over t of weights[x, t] * strip[y, places[x, t]]) >> 8       of each channel

The weights of an output add up to 256. Two taps are one operation, which takes unsigned weights and signed
values, v - 128: the sum is that of above less 128 * 256, at least -2 ** 15 and below 2 ** 15.

Rows come first because they are cheap, whole vectors of bytes; what is left to the columns is a third of the
rows where a frame shrinks to a third. A few rows at a time, so that the columns find them in the first-level
cache; and the frame is asked for ahead of its use: it comes from memory, and hardware stops at every page.

Bound: of 768x576 to 256x192 the rows take 8 operations a vector of 64 bytes and two taps, the columns 10 a
block of 14 pixels and two taps, together 30 us at two a cycle and 3 GHz; reading the frame takes 80 to 95.
Comparing a frame with the last one would read twice as much: nothing is kept from frame to frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .jit import inline, jit
from .resize import BYTE_PERMUTE
from .simd import (
    add_products,
    get,
    interleave,
    join_high,
    load,
    pick_bytes,
    prefetch,
    put,
    splat,
    store,
    store_bytes,
)

#: Where a sum of signed values begins: what they lack, and half for rounding.
_START = np.uint16(128 * 256 + 128)

#: Output rows of both passes in turn, and by how many the frame is asked for ahead.
BAND, AHEAD = 8, 2

Int = npt.NDArray[Any]


def paired(first: Int, weights: Int) -> tuple[Int, Int]:
    """Taps two by two: places int64[n, 2 * pairs] and weights uint16[n, pairs], the second one's times 256.

    first : int64[n], the place of the first tap.  weights : [n, taps], 256 in all.
    """
    n, taps = weights.shape
    slots = -(-taps // 2) * 2
    places = first[:, None] + np.minimum(np.arange(slots), taps - 1)
    bytes_ = np.zeros((n, slots), np.int64)
    bytes_[:, :taps] = weights
    for i, tap in np.argwhere(bytes_ == 256):  # is no byte: twice 128 of the same place
        bytes_[i, [tap, tap ^ 1]] = 128
        places[i, tap ^ 1] = places[i, tap]
    return np.ascontiguousarray(places, np.int64), bytes_.astype(np.uint8).view("<u2").astype(np.uint16)


def column_blocks(places: Int, weights: Int, channels: int) -> tuple[int, Int, Int, Int]:
    """Tables by which neighbouring outputs of a row are computed together, in two vectors of uint16.

    places, weights : `paired`, of columns.
    Returns (outputs of a block, int64[n] where its bytes begin, uint8[n, pairs, 2, 64] which of the 128 bytes
    from there on are their taps, uint16[n, pairs, 2, 32] the weights). No block, 0 outputs, where even two
    neighbouring outputs lie further apart than 128 bytes.
    """
    columns, pairs = weights.shape
    low, high = places.min(axis=1) * channels, (places.max(axis=1) + 1) * channels
    wide = 64 // channels
    while wide > 1 and (high - np.repeat(low[::wide], wide)[:columns]).max() > 128:
        wide -= 1
    base = np.ascontiguousarray(low[::wide])
    order, spread = (
        np.zeros((len(base), pairs, 2, 64), np.uint8),
        np.zeros((len(base), pairs, 2, 32), np.uint16),
    )
    for x in range(columns):
        for c in range(channels):
            byte = x % wide * channels + c  # `join_high` takes eight bytes of each vector in turn
            vector, lane = byte // 8 % 2, byte // 16 * 8 + byte % 8
            taps = (places[x] * channels + c - base[x // wide]).reshape(pairs, 2)
            order[x // wide, :, vector, 2 * lane : 2 * lane + 2] = taps if wide > 1 else 0
            spread[x // wide, :, vector, lane] = weights[x]
    return (wide if wide > 1 else 0), base, order, spread


@inline
def _average_one(source: Any, at: Any, step: Any, places: Any, weights: Any, i: Any, pairs: Any) -> Any:
    """One byte: taps `step` apart, of output i."""
    total = np.uint16(128)
    for p in range(pairs):
        weight = get(weights, i * pairs + p)
        for slot in range(2):
            byte = np.uint16(get(source, at + get(places, (i * pairs + p) * 2 + slot) * step))
            part = np.uint16(weight & np.uint16(255)) if slot == 0 else np.uint16(weight >> np.uint16(8))
            total = np.uint16(total + np.uint16(byte * part))
    return np.uint8(total >> np.uint16(8))


@inline
def _average_rows(source: Any, places: Any, weights: Any, top: Any, last: Any, strip: Any) -> None:
    """Vertical pass, of output rows `top` to below `last`, into strip: uint8[rows, n] in one piece."""
    size, start = source.shape[1], splat(_START)
    pairs = weights.shape[1]
    for y in range(top, last):
        used, out = pairs, (y - top) * size
        while used > 1 and get(weights, y * pairs + used - 1) == 0:
            used -= 1
        if size < 64:
            for i in range(size):
                put(strip, out + i, _average_one(source, i, size, places, weights, y, pairs))
            continue
        later = min(y + AHEAD, len(weights) - 1)
        ahead = (get(places, 2 * pairs * later) - get(places, 2 * pairs * y)) * size
        for block in range(0, size, 64):
            i = min(block, size - 64)
            low, high = start, start
            for p in range(used):
                a = get(places, 2 * (y * pairs + p)) * size + i
                b = get(places, 2 * (y * pairs + p) + 1) * size + i
                prefetch(source, a + ahead)
                prefetch(source, b + ahead)
                above, below = load(source, a), load(source, b)
                weight = splat(get(weights, y * pairs + p))
                low = low + add_products(weight, interleave(above, below, 0))
                high = high + add_products(weight, interleave(above, below, 1))
            store(strip, out + i, join_high(low, high))


@inline
def _average_columns(
    strip: Any,
    size: Any,
    columns: Any,
    channels: Any,
    top: Any,
    last: Any,
    out: Any,
    begin: Any,
    pitch: Any,
) -> None:
    """Horizontal pass, of the rows of a strip into the output's from `top` to below `last`."""
    places, weights, blocks = columns
    wide, base, order, spread = blocks
    count, pairs = weights.shape
    start = splat(_START)
    if BYTE_PERMUTE and wide > 0:
        for block in range(len(base)):
            bytes_ = min(wide, count - block * wide) * channels
            for y in range(last - top):
                at = y * size + get(base, block)
                left, right = load(strip, at), load(strip, at + 64)
                low, high = start, start
                for p in range(block * pairs, (block + 1) * pairs):
                    taps = pick_bytes(left, right, load(order, p * 128))
                    low = low + add_products(load(spread, p * 64), taps)
                    taps = pick_bytes(left, right, load(order, p * 128 + 64))
                    high = high + add_products(load(spread, p * 64 + 32), taps)
                to = begin + (top + y) * pitch + block * wide * channels
                store_bytes(out, to, join_high(low, high), bytes_)
        return
    for y in range(last - top):
        for x in range(count):
            for c in range(channels):
                value = _average_one(strip, y * size + c, channels, places, weights, x, pairs)
                put(out, begin + (top + y) * pitch + x * channels + c, value)


@jit
def average_areas(
    source: Int, rows: Any, columns: Any, channels: int, strip: Int, out: Int, begin: int, pitch: int
) -> None:
    """Resize a frame into a part of an image.

    source : uint8[rows, channels * width].
    out : uint8[...], the image; the part begins at its element `begin`, and a row of it `pitch` further on.
    rows : `paired`.  columns : `paired`, and `column_blocks` of it.
    strip : uint8, scratch of `strip_size` elements.
    """
    places, weights = rows
    for top in range(0, len(weights), BAND):
        last = min(top + BAND, len(weights))
        _average_rows(source, places, weights, top, last, strip)
        _average_columns(strip, source.shape[1], columns, channels, top, last, out, begin, pitch)


def strip_size(size: int) -> int:
    """Elements of a strip: BAND rows of `size` bytes, and what the last block of columns reads beyond."""
    return BAND * size + 128
