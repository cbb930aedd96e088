"""Float convolution of any list of output pixels.

    y[p, c] = bias[c], then for taps in row-major order, then channels: y = fma(x, w, y)

One output is summed in one lane in one order, whichever pixels stand beside it in the register tile:
recomputing a few outputs gives the bits that computing all of them gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import jit
from .simd import aligned, gather, get, load, scaled, tile_fma, tile_of, tile_store

#: Output channels of a register tile: 2 vectors of 16. Float tensors are padded to a multiple of it.
BLOCK = 32


def pack_weights(weight: Any) -> Any:
    """float32[Cout, kH, kW, Cin] -> float32[ceil(Cout / 32), kH * kW * Cin, 32]."""
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
