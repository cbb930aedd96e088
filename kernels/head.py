"""The last program and the 1x1 convolution that reads it, with pixels in lanes.

    x[p, c] = prelu((dots[p, c] * alpha[c] + bias[c]) * scale[c] + shift[c])      as elementwise.OWN_DOTS
    y[p, o] = b[o], then for channels in order: y = fma(x[p, c], w[o, c], y)      as float_conv

A network's output has few channels: with those in lanes, 20 of them would fill two vectors of 16. Here a lane
is a pixel, and a product needs one weight for all lanes. 32 pixels and 64 channels at a time, so that what
the program leaves and the sums it is added to stay in the first-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .elementwise import SCALE_FIELD, SHIFT_FIELD, SLOPE_FIELD
from .jit import inline, jit
from .simd import (
    aligned,
    get,
    load,
    prelu,
    put,
    scaled,
    splat,
    store,
    store_dots,
    tile_fma,
    tile_load,
    tile_store,
)

#: Pixels and channels of a block.
PIXELS, CHANNELS = 32, 64
#: Outputs of a register tile, by two vectors of pixels.
OUTPUTS = 10

_TILE = tuple(range(OUTPUTS))


def padded_outputs(cout: int) -> int:
    """Outputs in whole tiles."""
    return -(-cout // OUTPUTS) * OUTPUTS


def pack_weights(weight: Any, bias: Any) -> Any:
    """float32[Cout, 1, 1, Cin], float32[Cout] -> float32: [tiles, Cin, 10], and of each output its bias."""
    cout, tiles = len(weight), padded_outputs(len(weight)) // OUTPUTS
    rows = np.zeros((tiles * OUTPUTS, weight[0].size), np.float32)
    rows[:cout] = weight.reshape(cout, -1)
    packed = aligned(rows.size + len(rows), np.float32)
    packed[: rows.size] = rows.reshape(tiles, OUTPUTS, -1).transpose(0, 2, 1).reshape(-1)
    packed[rows.size : rows.size + cout] = bias
    return packed


@inline
def _fill(
    program: Any, constants: Any, counts: Any, bases: Any, bits: Any, first: Any, end: Any, x: Any
) -> None:
    """Channels `first` to below `end` of a block: x, float32[channels, 32].

    bases, bits : of its two vectors of pixels, where their counts stand and the bits under their windows.

    Eleven operations a vector, two of which are the transposition, at two a cycle.
    """
    alpha, bias = program[4], program[5]
    scale, shift, slope = program[SCALE_FIELD], program[SHIFT_FIELD], program[SLOPE_FIELD]
    for c in range(first, end, 32):
        store_dots(counts, bases[0], c, bits[0], x, (c - first) * PIXELS)
        store_dots(counts, bases[1], c, bits[1], x, (c - first) * PIXELS + 16)
    for c in range(first, end):
        row = (c - first) * PIXELS
        factor, added = splat(get(constants, alpha + c)), splat(get(constants, bias + c))
        a, b = load(x, row) * factor + added, load(x, row + 16) * factor + added
        if scale >= 0:
            factor, added = splat(get(constants, scale + c)), splat(get(constants, shift + c))
            a, b = a * factor + added, b * factor + added
        if slope >= 0:
            factor = splat(get(constants, slope + c))
            a, b = prelu(a, factor), prelu(b, factor)
        store(x, row, a)
        store(x, row + 16, b)


@jit
def run_head(
    program: Any,
    constants: Any,
    valid: Any,
    counts: Any,
    pixels: Any,
    slots: Any,
    count: int,
    weights: Any,
    s: Any,
    order: Any,
    x: Any,
    sums: Any,
    y: Any,
) -> None:
    """Compute the listed pixels of the network's output.

    program : int64[FIELDS], one OWN_DOTS.  constants, valid, counts, pixels, slots : as of `run_program`.
    weights : `pack_weights`, flat.  order : 0, 1, 2, ...  y : float32[pixels * lanes].
    x, sums : float32 scratch, 64 * 32 and 32 for each output in whole tiles.

    A product is one operation for 16 pixels, and two begin in a cycle: 240 pixels of 256 channels and 20
    outputs take 15 us at 2.6 GHz, and `_fill` 8; seen: 29 in all, two for idle lanes of the last block.
    """
    channels = s.cin
    outputs = len(weights) // (channels + 1)
    lanes, inside = program[3], program[6]
    for first in range(0, count, PIXELS):
        last = min(first + PIXELS, count) - 1
        for i in range(PIXELS):
            put(x, i, np.float32(get(valid, inside + get(pixels, min(first + i, last)))))
        bits = load(x, 0), load(x, 16)
        bases = scaled(lanes, slots, first, last, 16), scaled(lanes, slots, first + 16, last, 16)
        for o in range(outputs):
            begin = splat(get(weights, channels * outputs + o))
            store(sums, o * PIXELS, begin)
            store(sums, o * PIXELS + 16, begin)
        for c in range(0, channels, CHANNELS):
            end = min(c + CHANNELS, channels)
            _fill(program, constants, counts, bases, bits, c, end, x)
            for o in range(0, outputs, OUTPUTS):
                places = scaled(PIXELS, order, o, outputs - 1, 10)
                total, w = tile_load(sums, places, 2), (o * channels + c * OUTPUTS)
                for i in range(end - c):
                    total = tile_fma(total, weights, _TILE, w + i * OUTPUTS, x, i * PIXELS)
                tile_store(sums, places, 0, total)
        for i in range(last + 1 - first):
            to = get(pixels, first + i) * s.lanes
            for o in range(s.cout):
                put(y, to + o, get(sums, o * PIXELS + i))
