"""Concatenation of channels, and upsampling: nearest, which moves values, and bilinear, which mixes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import jit
from .simd import get, load, put, splat, store

#: int64 fields of a source: float32 tensor, elements a pixel, channels, change mask.
SOURCE = 4


@jit
def copy_pixels(sources: Any, s: Any, floats: Any, masks: Any, all_pixels: bool, y: Any, changed: Any) -> int:
    """Lay the channels of each source side by side; a pixel becomes a square of `factor` x `factor`.

    sources : int64[n * SOURCE].  floats, masks : the stream's float32 and uint8 arenas.
    y : float32[ho * wo * lanes].  changed : uint8[ho * wo], set where any source has changed. Returns the
    number of such outputs. Only what changed is copied, or everything with `all_pixels`.
    """
    for p in range(s.ho * s.wo):
        put(changed, p, np.uint8(0))
    to = 0
    for first in range(0, len(sources), SOURCE):
        x, stride, channels, mask = sources[first], sources[first + 1], sources[first + 2], sources[first + 3]
        whole = channels // 16 * 16
        for p in range(s.h * s.w):
            if not all_pixels and get(masks, mask + p) == 0:
                continue
            row, column = divmod(p, s.w)
            source = x + p * stride
            for oy in range(row * s.factor, (row + 1) * s.factor):
                for ox in range(column * s.factor, (column + 1) * s.factor):
                    put(changed, oy * s.wo + ox, np.uint8(1))
                    target = (oy * s.wo + ox) * s.lanes + to
                    for c in range(0, whole, 16):
                        store(y, target + c, load(floats, source + c))
                    for c in range(whole, channels):
                        put(y, target + c, get(floats, source + c))
        to += channels
    count = 0
    for p in range(s.ho * s.wo):
        count += get(changed, p)
    return count


@jit
def interpolate_pixels(
    taps: Any, weights: Any, s: Any, x: Any, marks: Any, all_pixels: bool, y: Any, changed: Any
) -> int:
    """Bilinear upsampling (model.Upsample) of the outputs of which a tap has changed. Returns their number.

    taps : int64[2 * (ho + wo)], the two input rows of each output row, then the two columns of each column.
    weights : float32 of the same size, theirs.  x : float32[h * w * x_stride].  marks : uint8[h * w], what
    has changed of it; `all_pixels` computes everything.
    y : float32[ho * wo * lanes].  changed : uint8[ho * wo], set where an output is computed.
    """
    count = 0
    for oy in range(s.ho):
        above, below = get(taps, 2 * oy) * s.w, get(taps, 2 * oy + 1) * s.w
        from_above, from_below = splat(get(weights, 2 * oy)), splat(get(weights, 2 * oy + 1))
        new = np.uint8(all_pixels)
        for column in range(s.w):
            new |= get(marks, above + column) | get(marks, below + column)
        if new == 0:
            for p in range(oy * s.wo, (oy + 1) * s.wo):
                put(changed, p, np.uint8(0))
            continue
        for ox in range(s.wo):
            at = 2 * (s.ho + ox)
            left, right = get(taps, at), get(taps, at + 1)
            seen = np.uint8(1)
            if not all_pixels:
                seen = get(marks, above + left) | get(marks, above + right)
                seen |= get(marks, below + left) | get(marks, below + right)
            p = oy * s.wo + ox
            put(changed, p, seen)
            if seen == 0:
                continue
            count += 1
            from_left, from_right = splat(get(weights, at)), splat(get(weights, at + 1))
            for c in range(0, s.cin, 16):
                a = load(x, (above + left) * s.x_stride + c) * from_left
                upper = a + load(x, (above + right) * s.x_stride + c) * from_right
                b = load(x, (below + left) * s.x_stride + c) * from_left
                lower = b + load(x, (below + right) * s.x_stride + c) * from_right
                store(y, p * s.lanes + c, upper * from_above + lower * from_below)
    return count
