"""Max and average pooling of any list of output pixels, float32, 16 channels at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import jit
from .simd import differs, larger, load, splat, store


@jit
def pool(
    x: Any,
    stride: int,
    s: Any,
    pixels: Any,
    count: int,
    average: bool,
    count_padding: bool,
    y: Any,
    changed: Any,
) -> None:
    """Compute the listed output pixels and mark in `changed` (uint8[ho * wo]) those whose value differs.

    x : float32[h * w * stride].  y : float32[ho * wo * lanes].
    Maximum over the window inside the image, or its sum in row-major order times float32(1 / count).
    """
    zero = splat(np.float32(0))
    for i in range(count):
        p = pixels[i]
        oy, ox = divmod(p, s.wo)
        top, left = oy * s.sh - s.pt, ox * s.sw - s.pl
        y0, y1 = max(0, top), min(s.h, top + s.kh)
        x0, x1 = max(0, left), min(s.w, left + s.kw)
        size = s.kh * s.kw if count_padding else (y1 - y0) * (x1 - x0)
        factor = splat(np.float32(1.0 / size))
        new = False
        for c in range(0, s.cin, 16):
            total = load(x, (y0 * s.w + x0) * stride + c)
            for row in range(y0, y1):
                for column in range(x0 + (row == y0), x1):
                    value = load(x, (row * s.w + column) * stride + c)
                    total = total + value if average else larger(total, value)
            if average:  # a sum from 0 is never -0
                total = (total + zero) * factor
            new |= differs(total, load(y, p * s.lanes + c))
            store(y, p * s.lanes + c, total)
        changed[p] = new
