"""Layers that only move values: concatenation of channels, and nearest upsampling."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import jit
from .simd import get, load, put, store

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
