"""Float convolution of any list of output pixels.

    y[p, c] = bias[c], then for taps in row-major order, then channels of the group: y = fma(x, w, y)

One output is summed in one lane in one order, whichever pixels stand beside it in the register tile:
recomputing a few outputs gives the bits that computing all of them gives. Channels of other groups take no
part, not even with weights of zero: an infinite value stays in its group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import jit
from .simd import (
    aligned,
    gather,
    get,
    load,
    prefetch,
    scaled,
    tile_fma,
    tile_fma_by2,
    tile_fma_by4,
    tile_fma_by8,
    tile_fma_by16,
    tile_fma_lanes,
    tile_of,
    tile_store,
    tile_store_some,
)

#: Output channels of a register tile: 2 vectors of 16. Float tensors are padded to a multiple of it.
BLOCK = 32


def pack_weights(weight: Any, groups: int = 1) -> Any:
    """float32[Cout, kH, kW, Cin / groups] -> float32[blocks, kH * kW * Cin / groups, 32].

    Blocks of 32 outputs, the last one filled with zeros: of one group after the other, or of all of them if
    a group has one channel and 1, 2, 4, 8 or 16 outputs: that kernel takes several groups at once.
    """
    if groups > 1 and not (weight.shape[3] == 1 and 16 % (len(weight) // groups) == 0):
        return np.concatenate([pack_weights(part) for part in np.split(weight, groups)])
    cout = weight.shape[0]
    blocks = -(-cout // BLOCK)
    rows = np.zeros((blocks * BLOCK, weight[0].size), np.float32)
    rows[:cout] = weight.reshape(cout, -1)
    packed = aligned((blocks, weight[0].size, BLOCK), np.float32)
    packed[:] = rows.reshape(blocks, BLOCK, -1).transpose(0, 2, 1)
    return packed


@jit
def conv_float(
    x: Any,
    weights: Any,
    bias: Any,
    s: Any,
    starts: Any,
    segment_at: Any,
    pixels: Any,
    slots: Any,
    count: int,
    y: Any,
) -> None:
    """Compute the listed output pixels.

    x : float32[hp * wp * words], padded with zeros.  weights : `pack_weights`, flat.  bias : float32[lanes].
    y : float32[slots * lanes].  The rest as in `xnor.conv_xnor`.

    One fused multiply-add per 16 MACs: at one 512-bit operation a cycle at most 16 MAC a cycle.
    """
    if s.groups > 1 and s.groups == s.cin and 16 % (s.cout // s.groups) == 0:
        _conv_depthwise(x, weights, bias, s, starts, segment_at, pixels, slots, count, y)
        return
    if s.groups > 1:
        _conv_grouped(x, weights, bias, s, starts, segment_at, pixels, slots, count, y)
        return
    if count == 1:
        _conv_one(x, weights, bias, s, starts, segment_at, pixels, slots, y)
        return
    if s.cout <= 16:  # one vector holds a pixel's outputs: the other of a block would be empty
        for tile in range(0, count, 16):
            bases = gather(starts, pixels, tile, count - 1, 16)
            total = tile_of((load(bias, 0),), bases)
            at = 0
            for k in range(s.segments):
                offset = get(segment_at, k)
                for i in range(s.run):
                    total = tile_fma(total, x, bases, offset + i, weights, at)
                    at += 32
            tile_store(y, scaled(s.lanes, slots, tile, count - 1, 16), 0, total)
        return
    for block in range(s.lanes // 32):
        first = block * s.segments * s.run * 32
        for tile in range(0, count, 8):
            bases = gather(starts, pixels, tile, count - 1, 8)
            total = tile_of((load(bias, block * 32), load(bias, block * 32 + 16)), bases)
            at = first
            for k in range(s.segments):
                offset = get(segment_at, k)
                for i in range(s.run):
                    total = tile_fma(total, x, bases, offset + i, weights, at)
                    at += 32
            tile_store(y, scaled(s.lanes, slots, tile, count - 1, 8), block * 32, total)


@jit
def conv_patches(
    patches: Any,
    weights: Any,
    bias: Any,
    s: Any,
    starts: Any,
    order: Any,
    slots: Any,
    count: int,
    y: Any,
    later: Any,
    at: int,
    end: int,
) -> int:
    """`conv_float` of patches, float32[count * run], that stand one after the other.

    order : 0, 1, 2, ...: the starts that are used.
    It leaves memory idle, so it asks for what is read next, later[at:end], a cache line every other tap: more
    are faster than memory, and the arithmetic waits. Returns how far it came.
    """
    size = s.run * 32
    for tile in range(0, count, 8):
        bases = gather(starts, order, tile, count - 1, 8)
        places = scaled(s.lanes, slots, tile, count - 1, 8)
        for block in range(s.lanes // 32):
            total = tile_of((load(bias, block * 32), load(bias, block * 32 + 16)), bases)
            for i in range(s.run):
                total = tile_fma(total, patches, bases, i, weights, block * size + i * 32)
                if i % 2 == 0:
                    prefetch(later, at)
                    at = min(at + 64, end)
            tile_store(y, places, block * 32, total)
    return at


@jit
def _conv_one(
    x: Any,
    weights: Any,
    bias: Any,
    s: Any,
    starts: Any,
    segment_at: Any,
    pixels: Any,
    slots: Any,
    y: Any,
) -> None:
    """`conv_float` of one output pixel, as of a fully connected layer: four blocks of 32 outputs at a time.

    In tiles of eight pixels it would be computed eight times. Bound by reading the weights: 3 MB take 34 us
    warm and 140 cold, for 113 and 201 in tiles.
    """
    bases, places = gather(starts, pixels, 0, 0, 1), scaled(s.lanes, slots, 0, 0, 1)
    size, blocks = s.segments * s.run * 32, s.lanes // 32
    for block in range(0, blocks - 3, 4):
        lane, at = block * 32, block * size
        a = tile_of((load(bias, lane), load(bias, lane + 16)), bases)
        b = tile_of((load(bias, lane + 32), load(bias, lane + 48)), bases)
        c = tile_of((load(bias, lane + 64), load(bias, lane + 80)), bases)
        d = tile_of((load(bias, lane + 96), load(bias, lane + 112)), bases)
        for k in range(s.segments):
            offset = get(segment_at, k)
            for i in range(s.run):
                a = tile_fma(a, x, bases, offset + i, weights, at)
                b = tile_fma(b, x, bases, offset + i, weights, at + size)
                c = tile_fma(c, x, bases, offset + i, weights, at + 2 * size)
                d = tile_fma(d, x, bases, offset + i, weights, at + 3 * size)
                at += 32
        tile_store(y, places, lane, a)
        tile_store(y, places, lane + 32, b)
        tile_store(y, places, lane + 64, c)
        tile_store(y, places, lane + 96, d)
    for block in range(blocks - blocks % 4, blocks):
        lane, at = block * 32, block * size
        total = tile_of((load(bias, lane), load(bias, lane + 16)), bases)
        for k in range(s.segments):
            offset = get(segment_at, k)
            for i in range(s.run):
                total = tile_fma(total, x, bases, offset + i, weights, at)
                at += 32
        tile_store(y, places, lane, total)


@jit
def _conv_depthwise(
    x: Any,
    weights: Any,
    bias: Any,
    s: Any,
    starts: Any,
    segment_at: Any,
    pixels: Any,
    slots: Any,
    count: int,
    y: Any,
) -> None:
    """`conv_float` where each output channel reads one input channel, and 1, 2, 4, 8 or 16 the same one.

    Lanes past the last channel read the next pixel (or the slack behind the last one); nobody reads them.
    """
    outputs = s.cout // s.groups
    for block in range(s.lanes // 32):
        lane = block * 32
        for tile in range(0, count, 8):
            bases = gather(starts, pixels, tile, count - 1, 8)
            total = tile_of((load(bias, lane), load(bias, lane + 16)), bases)
            at = lane * s.kh * s.kw
            for k in range(s.segments):
                offset = get(segment_at, k) + lane // outputs
                for i in range(0, s.run, s.words):
                    if outputs == 1:
                        total = tile_fma_lanes(total, x, bases, offset + i, weights, at)
                    elif outputs == 2:
                        total = tile_fma_by2(total, x, bases, offset + i, weights, at)
                    elif outputs == 4:
                        total = tile_fma_by4(total, x, bases, offset + i, weights, at)
                    elif outputs == 8:
                        total = tile_fma_by8(total, x, bases, offset + i, weights, at)
                    else:
                        total = tile_fma_by16(total, x, bases, offset + i, weights, at)
                    at += 32
            tile_store(y, scaled(s.lanes, slots, tile, count - 1, 8), lane, total)


@jit
def _conv_grouped(
    x: Any,
    weights: Any,
    bias: Any,
    s: Any,
    starts: Any,
    segment_at: Any,
    pixels: Any,
    slots: Any,
    count: int,
    y: Any,
) -> None:
    """`conv_float` group by group, each as a convolution of its own channels.

    A group that does not fill its last block of 32 outputs wastes the rest of it.
    """
    outputs, depth = s.cout // s.groups, s.cin // s.groups
    first = 0
    for group in range(s.groups):
        for done in range(0, outputs, 32):
            lane = group * outputs + done
            for tile in range(0, count, 8):
                bases = gather(starts, pixels, tile, count - 1, 8)
                total = tile_of((load(bias, lane), load(bias, lane + 16)), bases)
                at = first
                for k in range(s.segments):
                    for i in range(group * depth, s.run, s.words):
                        offset = get(segment_at, k) + i
                        for c in range(depth):
                            total = tile_fma(total, x, bases, offset + c, weights, at)
                            at += 32
                places = scaled(s.lanes, slots, tile, count - 1, 8)
                tile_store_some(y, places, lane, total, min(32, outputs - done))
            first += s.kh * s.kw * depth * 32
