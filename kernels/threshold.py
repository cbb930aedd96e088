"""Sums to signs without floats: alpha, bias, batch-norm and sign of a binary layer, folded to one comparison.

    bit[p, c] = (mismatches[p, c] < limit[class of p, c]) ^ inverted[c]

Everything between a binary convolution and the sign that alone reads it is monotone in the integer sum, so
it changes its sign at one integer at most (xnor_rrm/fold.py finds it). The class is that of the border
(xnor.outside_tables): with zero padding fewer bits count there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import jit
from .simd import below_bits, get, load, put


@jit
def threshold_bits(
    mismatches: Any,
    s: Any,
    limits: Any,
    inverted: Any,
    classes: Any,
    pixels: Any,
    slots: Any,
    count: int,
    bits: Any,
) -> None:
    """Pack the signs of the listed pixels.

    mismatches : uint16[slots * lanes], the taps outside the image counted as they were.
    limits : uint16[classes * lanes], that count included.  inverted : uint64[bits_words].
    classes : int64[ho * wo], or empty where all pixels are alike.  pixels, slots : as in `xnor.conv_xnor`.
    bits : uint64[ho * wo * bits_words]; spare bits become 0, their limits and inversions being 0.

    A comparison for 32 channels: bound by reading 2 bytes a bit.
    """
    lanes, words = s.lanes, s.bits_words
    for i in range(count):
        p = get(pixels, i)
        limit = get(classes, p) * lanes if len(classes) else 0
        at = get(slots, i) * lanes
        for word in range(words):
            lane = word * 64
            low = below_bits(load(mismatches, at + lane), load(limits, limit + lane))
            high = below_bits(load(mismatches, at + lane + 32), load(limits, limit + lane + 32))
            put(bits, p * words + word, (low | high << np.uint64(32)) ^ get(inverted, word))
