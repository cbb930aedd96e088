"""Binary convolution by xnor and popcount: the formulation of every other engine, and our baseline.

    mismatches[p, c] = sum over the window's words of popcount(x ^ w[c])
    dot[p, c]        = n - 2 * mismatches[p, c]

Both kernels take a list of output pixels: all of them for a dense frame, any subset otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline, jit
from .simd import (
    aligned,
    gather,
    get,
    load,
    load_low16,
    popcount,
    scaled,
    splat,
    store,
    store_low16,
    tile_of,
    tile_store,
    tile_xnor,
)

#: Output channels of the register tile: 2 vectors of 8 uint64 lanes. With 8 pixels, the 16 accumulators, 2
#: weights and broadcasts fit 32 registers.
BLOCK = 16


def pack_weights(weight: Any) -> Any:
    """uint64[Cout, kH, kW, Cw] -> uint64[ceil(Cout / 16), kH * kW * Cw, 16]."""
    cout = weight.shape[0]
    blocks = -(-cout // BLOCK)
    rows = aligned((blocks * BLOCK, weight[0].size), np.uint64)
    rows[:cout] = weight.reshape(cout, -1)
    packed = aligned((blocks, weight[0].size, BLOCK), np.uint64)
    packed[:] = rows.reshape(blocks, BLOCK, -1).transpose(0, 2, 1)
    return packed


@inline
def _sum_tile(x: Any, weights: Any, s: Any, segment_at: Any, bases: Any, first: int) -> Any:
    """Mismatches of the pixels with windows at `bases`, for the block of weights that begins at `first`."""
    zero = splat(np.uint64(0))
    total = tile_of((zero, zero), bases)
    at = first
    for k in range(s.segments):
        offset = get(segment_at, k)
        for i in range(s.run):
            total = tile_xnor(total, x, bases, offset + i, weights, at)
            at += 16
    return total


@jit
def conv_xnor(
    x: Any,
    weights: Any,
    s: Any,
    starts: Any,
    segment_at: Any,
    pixels: Any,
    slots: Any,
    count: int,
    mismatches: Any,
) -> None:
    """Write the mismatches of the listed output pixels.

    x : uint64[hp * wp * words], padded.  weights : `pack_weights`, flat.  starts, segment_at : geometry
    (step.py).  pixels : int64, the first `count` are the list.  slots : int64, where each listed pixel's
    sums go, in pixels (the list itself, or 0, 1, 2, ... to put them side by side).
    mismatches : uint16[slots * lanes].

    Per 512 bit-MACs one xor, one popcount and one add: at two 512-bit operations a cycle at most
    341 bit-MAC a cycle. Blocks of channels are the outer loop, so that their weights (9 KB for
    512 -> 512, 3x3) stay in the first-level cache while the pixels pass.
    Pixels that fill no tile are summed one by one.
    """
    whole = count - count % 8
    for block in range((s.cout + 15) // 16):
        first = block * s.segments * s.run * 16
        for tile in range(0, whole, 8):
            total = _sum_tile(x, weights, s, segment_at, gather(starts, pixels, tile, count - 1, 8), first)
            tile_store(mismatches, scaled(s.lanes, slots, tile, count - 1, 8), block * 16, total)
        for p in range(whole, count):
            single = _sum_tile(x, weights, s, segment_at, gather(starts, pixels, p, p, 1), first)
            tile_store(mismatches, scaled(s.lanes, slots, p, p, 1), block * 16, single)


@jit
def subtract_outside(
    mismatches: Any, s: Any, classes: Any, outside: Any, pixels: Any, slots: Any, count: int
) -> None:
    """Zero padding: take back the mismatches counted against taps that lie outside the image.

    Such taps read bits 0, so each counted popcount(w[tap]).  classes : int64[ho * wo], 0 where the whole
    window is inside.  outside : uint16[classes * lanes].
    """
    for i in range(count):
        border = classes[pixels[i]]
        if border:
            for c in range(0, s.lanes, 32):
                at = slots[i] * s.lanes + c
                store(mismatches, at, load(mismatches, at) - load(outside, border * s.lanes + c))


def outside_tables(weight: Any, step: Any) -> tuple[Any, Any, Any]:
    """(classes int64[P], outside uint16[classes, lanes], valid int32[P]) of a zero-padded layer.

    A class is a set of taps outside the image; class 0 is the empty set. valid counts the bits inside.
    """
    cout, kh, kw, _ = weight.shape
    y = np.arange(step["ho"])[:, None] * step["sh"] + np.arange(kh) * step["dh"] - step["pt"]
    x = np.arange(step["wo"])[:, None] * step["sw"] + np.arange(kw) * step["dw"] - step["pl"]
    inside_y, inside_x = (y >= 0) & (y < step["h"]), (x >= 0) & (x < step["w"])
    inside = (inside_y[:, None, :, None] & inside_x[None, :, None, :]).reshape(-1, kh * kw)
    masks, classes = np.unique(
        np.concatenate([np.ones((1, kh * kw), bool), inside]), axis=0, return_inverse=True
    )
    order = np.argsort(~masks.all(axis=1), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    per_tap = np.bitwise_count(weight).sum(axis=3, dtype=np.int64).reshape(cout, kh * kw)
    outside = aligned((len(masks), int(step["lanes"])), np.uint16)
    outside[:, :cout] = (~masks[order]).astype(np.int64) @ per_tap.T
    valid = inside.sum(axis=1).astype(np.int32) * np.int32(step["cin"])
    return rank[classes.reshape(-1)[1:]].astype(np.int64), outside, valid


@jit
def conv_xnor_update(
    x: Any,
    diff: Any,
    weights: Any,
    s: Any,
    starts: Any,
    segment_at: Any,
    pixels: Any,
    count: int,
    mismatches: Any,
) -> int:
    """The literal recurrent residual update: popcounts over changed words only. Returns the pixels updated.

        mismatches += sum over words with d != 0 of 2 * popcount(d & (x ^ w)) - popcount(d)

    x : the new padded frame.  diff : d.  The rest as in `conv_xnor`. The reference for `rows.conv_rows`.
    """
    updated = 0
    for i in range(count):
        p = pixels[i]
        changed = False
        for block in range((s.cout + 15) // 16):
            for half in range(0, 16, 8):
                at = block * s.segments * s.run * 16 + half
                lane = p * s.lanes + block * 16 + half
                total = load_low16(mismatches, lane)
                for k in range(s.segments):
                    first = starts[p] + segment_at[k]
                    for j in range(s.run):
                        d = diff[first + j]
                        if d:
                            changed = True
                            flipped = splat(d)
                            wrong = popcount(flipped & (splat(x[first + j]) ^ load(weights, at)))
                            total = total + wrong + wrong - splat(popcount(d))
                        at += 16
                store_low16(mismatches, lane, total)
        updated += changed
    return updated
