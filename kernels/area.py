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

Of a frame in planes, Y and a quarter each of U and V, half as many bytes are read. Each plane is averaged by
itself, a band of rows into scratch, U and V to half the size, and becomes RGB from there (`colour.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .colour import planes_to_rgb
from .jit import inline, jit
from .packed import I32, I64, U8, U16, to_tuple, unpacker
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


class Shape(NamedTuple):
    """Of a frame, or one of its planes, and the part of an image that it is made to.

    at : where the frame begins.  size : bytes of a row of it, of `channels` a pixel.
    top, rows, columns : of the part, in the image; it begins `begin` bytes from the image's first, and a row
        of the image is `pitch` bytes.  No rows: nothing is to be resized.
    row_pairs, column_pairs : of taps.  wide, blocks : of `column_blocks`.
    u, v : of plane Y, addresses of the `Areas` of the others; else 0.
    """

    at: int
    size: int
    channels: int
    top: int
    begin: int
    pitch: int
    rows: int
    columns: int
    row_pairs: int
    column_pairs: int
    wide: int
    blocks: int
    u: int
    v: int


class Areas(NamedTuple):
    """A `Shape`, tables of both axes, flat (`paired`, `column_blocks`), and scratch for a band of rows.

    planes, weights : of plane Y, scratch for a band of all three, and `colour_weights`; else empty.
    """

    shape: I64
    row_places: I64
    row_weights: U16
    column_places: I64
    column_weights: U16
    base: I64
    order: U8
    spread: U16
    strip: U8
    planes: U8
    weights: I32


_areas, _FIELDS = unpacker(Areas), len(Shape._fields)


@inline
def unpack_areas(address: Any) -> Any:
    """The `Shape` and the `Areas` that are packed at an address."""
    areas = _areas(address)
    return Shape(*to_tuple(areas.shape, _FIELDS)), areas


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
def _average_rows(source: Any, shape: Any, a: Any, first: Any, last: Any) -> None:
    """Vertical pass, of output rows `first` to below `last`, into the strip: uint8[rows, n] in one piece."""
    size, start, pairs = shape.size, splat(_START), shape.row_pairs
    places, weights = a.row_places, a.row_weights
    for y in range(first, last):
        used, out = pairs, (y - first) * size
        while used > 1 and get(weights, y * pairs + used - 1) == 0:
            used -= 1
        if size < 64:
            for i in range(size):
                at = shape.at + i
                put(a.strip, out + i, _average_one(source, at, size, places, weights, y, pairs))
            continue
        later = min(y + AHEAD, shape.rows - 1)
        ahead = (get(places, 2 * pairs * later) - get(places, 2 * pairs * y)) * size
        for block in range(0, size, 64):
            i = shape.at + min(block, size - 64)
            low, high = start, start
            for p in range(used):
                above_at = get(places, 2 * (y * pairs + p)) * size + i
                below_at = get(places, 2 * (y * pairs + p) + 1) * size + i
                prefetch(source, above_at + ahead)
                prefetch(source, below_at + ahead)
                above, below = load(source, above_at), load(source, below_at)
                weight = splat(get(weights, y * pairs + p))
                low = low + add_products(weight, interleave(above, below, 0))
                high = high + add_products(weight, interleave(above, below, 1))
            store(a.strip, out + i - shape.at, join_high(low, high))


@inline
def _average_columns(shape: Any, a: Any, rows: Any, image: Any, begin: Any, pitch: Any) -> None:
    """Horizontal pass, of rows of the strip, into those of an image from element `begin` on."""
    channels, pairs, start = shape.channels, shape.column_pairs, splat(_START)
    if BYTE_PERMUTE and shape.wide > 0:
        for block in range(shape.blocks):
            done = block * shape.wide
            bytes_ = min(shape.wide, shape.columns - done) * channels
            for y in range(rows):
                at = y * shape.size + get(a.base, block)
                left, right = load(a.strip, at), load(a.strip, at + 64)
                low, high = start, start
                for p in range(block * pairs, (block + 1) * pairs):
                    taps = pick_bytes(left, right, load(a.order, p * 128))
                    low = low + add_products(load(a.spread, p * 64), taps)
                    taps = pick_bytes(left, right, load(a.order, p * 128 + 64))
                    high = high + add_products(load(a.spread, p * 64 + 32), taps)
                to = begin + y * pitch + done * channels
                store_bytes(image, to, join_high(low, high), bytes_)
        return
    places, weights = a.column_places, a.column_weights
    for y in range(rows):
        for x in range(shape.columns):
            for c in range(channels):
                at, to = y * shape.size + c, begin + y * pitch + x * channels + c
                put(image, to, _average_one(a.strip, at, channels, places, weights, x, pairs))


@jit
def _average_band(
    source: Any, address: int, first: int, last: int, image: Any, begin: int, pitch: int
) -> None:
    """Both passes, of output rows `first` to below `last`, at most BAND, into `image` from `begin` on."""
    shape, a = unpack_areas(address)
    _average_rows(source, shape, a, first, last)
    _average_columns(shape, a, last - first, image, begin, pitch)


@jit
def average_rows(source: Any, address: int, image: Any, first: int, last: int) -> None:
    """Rows `first` to below `last` of an image, as far as they are of the frame; the others stay.

    source : uint8, a frame, flat.  address : of the packed `Areas`.  image : uint8.
    """
    shape, a = unpack_areas(address)
    end = min(last - shape.top, shape.rows)
    for y in range(max(first - shape.top, 0), end, BAND):
        next_y, begin = min(y + BAND, end), shape.begin + y * shape.pitch
        if shape.u == 0:
            _average_band(source, address, y, next_y, image, begin, shape.pitch)
            continue
        columns, half = shape.columns, (shape.columns + 1) // 2
        first_pair, u, v = y // 2, BAND * columns, BAND * columns + (BAND // 2 + 1) * half
        _average_band(source, address, y, next_y, a.planes, 0, columns)
        _average_band(source, shape.u, first_pair, (next_y + 1) // 2, a.planes, u, half)
        _average_band(source, shape.v, first_pair, (next_y + 1) // 2, a.planes, v, half)
        for row in range(next_y - y):
            pair = ((y + row) // 2 - first_pair) * half
            to = begin + row * shape.pitch
            planes_to_rgb(a.planes, row * columns, u + pair, v + pair, columns, a.weights, image, to)


@inline
def bytes_read(address: Any, first: Any, last: Any) -> Any:
    """Where the part of the frame, or of its plane Y, begins and ends that `average_rows` reads."""
    shape, a = unpack_areas(address)
    first, last = max(first - shape.top, 0), min(last - shape.top, shape.rows)
    if first >= last:
        return 0, 0
    taps = 2 * shape.row_pairs
    return get(a.row_places, first * taps) * shape.size, (get(a.row_places, last * taps - 1) + 1) * shape.size


@jit
def average_areas(source: Any, image: Any, address: int) -> None:
    """All of an image.

    source : uint8[rows, width, C], a frame, or its planes.  address : of the packed `Areas`.
    """
    shape, _ = unpack_areas(address)
    average_rows(source.reshape(-1), address, image, 0, shape.top + shape.rows)


def planes_size(columns: int) -> int:
    """Elements of scratch for a band of planes, and what `planes_to_rgb` reads beyond."""
    return BAND * columns + 2 * (BAND // 2 + 1) * ((columns + 1) // 2) + 64


def strip_size(size: int) -> int:
    """Elements of a strip: BAND rows of `size` bytes, and what the last block of columns reads beyond."""
    return BAND * size + 128
