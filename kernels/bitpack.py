"""Bits of signs: bit c % 64 of word c // 64 is channel c, 1 = +1 (x >= 0); spare bits are 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import jit
from .simd import get, last_lane, load, nonnegative_bits, popcount, prefix_sum, put, splat, store


@jit
def pack_pixel(values: Any, at: int, words: Any, word_at: int, channels: int) -> None:
    """Pack the signs of float32 values[at : at + channels] into words[word_at : ...].

    Reads up to the next multiple of 16 values; what lies there is ignored.
    """
    for first in range(0, channels, 64):
        word = np.uint64(0)
        for c in range(first, min(first + 64, channels), 16):
            word |= nonnegative_bits(load(values, at + c)) << np.uint64(c - first)
        if channels - first < 64:
            word &= (np.uint64(1) << np.uint64(channels - first)) - np.uint64(1)
        words[word_at + first // 64] = word


@jit
def pack(values: Any, channels: int, stride: int, words: Any) -> None:
    """Pack the first `channels` of each pixel of float32 values[P * stride] into uint64 words.

    stride must be a multiple of 16, or the array must have 16 values to spare.  One comparison of 16
    values and one shift each: bound by reading 4 bytes a bit.
    """
    per_pixel = (channels + 63) // 64
    for p in range(len(words) // per_pixel):
        pack_pixel(values, p * stride, words, p * per_pixel, channels)


@jit
def diff_into_padded(x: Any, s: Any, last: Any, diff: Any) -> int:
    """Compare a packed frame with the last one; keep the new one; return the number of flipped bits.

    x : uint64[h * w * words].  last, diff : uint64[hp * wp * words], the padded last frame (replaced by x)
    and the flips d = x ^ last; the border of both is left alone (a padding value never flips).
    """
    flips = splat(np.uint64(0))
    rest: Any = 0
    row_words = s.w * s.words
    for y in range(s.h):
        at = ((y + s.pt) * s.wp + s.pl) * s.words
        source = y * row_words
        whole = row_words - row_words % 8
        for i in range(0, whole, 8):
            new = load(x, source + i)
            flip = new ^ load(last, at + i)
            store(diff, at + i, flip)
            store(last, at + i, new)
            flips = flips + popcount(flip)
        for i in range(whole, row_words):
            word = get(x, source + i)
            bits = word ^ get(last, at + i)
            put(diff, at + i, bits)
            put(last, at + i, word)
            rest += np.int64(popcount(bits))
    return rest + np.int64(last_lane(prefix_sum(flips)))
