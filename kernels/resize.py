"""Luminance and resampling of uint8 images in fixed point: the arithmetic of Pillow, bit for bit.

Weights are int32 with PRECISION fraction bits. Each pass sums `weight * pixel` from one half in int32,
drops the fraction and clips to 0..255; the horizontal pass comes first and is stored as uint8 between.
Weights that add up to one keep every sum inside int32, negative lobes included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .jit import jit

#: Fraction bits of a weight: 32, less 8 for the pixel, less 2 for sign and overshoot of negative lobes.
PRECISION = 32 - 8 - 2

_HALF = np.int32(1 << (PRECISION - 1))
_SHIFT = np.int32(PRECISION)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)  # unsigned: no wraparound of negative indices

Int = npt.NDArray[Any]


@jit
def _clip8(total: Any) -> Any:
    return np.uint8(min(max(total >> _SHIFT, np.int32(0)), np.int32(255)))


@jit
def resize_columns(source: Int, first: Int, weights: Int, out: Int) -> None:
    """Horizontal pass: out[y, x] = clip8(sum over t of weights[x, t] * source[y, first[x] / 3 + t]).

    source : uint8[rows, 3 * width], RGB interleaved.  first : int64[columns], where the taps start, in bytes.
    weights : int32[columns, taps]; a multiple of 8 taps is fastest, LLVM takes 8 at once (0.53 ms against
        0.75 ms for the 5 taps of 768x576 to 224x224).  out : uint8[rows, 3 * columns].
    """
    taps = np.uint64(weights.shape[1])
    for y in range(source.shape[0]):
        pixels, result = source[y], out[y]
        for x in range(np.uint64(first.shape[0])):
            red = green = blue = _HALF
            at = np.uint64(first[x])
            for t in range(taps):
                weight = weights[x, t]
                red = np.int32(red + pixels[at] * weight)
                green = np.int32(green + pixels[at + _ONE] * weight)
                blue = np.int32(blue + pixels[at + _TWO] * weight)
                at += _THREE
            to = x * _THREE
            result[to] = _clip8(red)
            result[to + _ONE] = _clip8(green)
            result[to + _TWO] = _clip8(blue)


@jit
def resize_grey_columns(source: Int, first: Int, weights: Int, out: Int) -> None:
    """`resize_columns` of one channel: uint8[rows, width] -> uint8[rows, columns]."""
    taps = np.uint64(weights.shape[1])
    for y in range(source.shape[0]):
        pixels, result = source[y], out[y]
        for x in range(np.uint64(first.shape[0])):
            total = _HALF
            at = np.uint64(first[x])
            for t in range(taps):
                total = np.int32(total + pixels[at + t] * weights[x, t])
            result[x] = _clip8(total)


@jit
def luminance(source: Int, out: Int) -> None:
    """Pillow's mode "L" of an RGB image: out[p] = (19595 R + 38470 G + 7471 B + 32768) >> 16.

    source : uint8[3 * pixels], RGB interleaved.  out : uint8[pixels].
    """
    for p in range(np.uint64(out.shape[0])):
        red, green, blue = source[_THREE * p], source[_THREE * p + _ONE], source[_THREE * p + _TWO]
        total = np.int32(19595) * red + np.int32(38470) * green + np.int32(7471) * blue + np.int32(32768)
        out[p] = np.uint8(total >> np.int32(16))


@jit
def resize_rows(source: Int, first: Int, weights: Int, sums: Int, out: Int) -> None:
    """Vertical pass: out[y] = clip8(sum over t of weights[y, t] * source[first[y] + t]).

    source : uint8[rows, n].  first : int64[out rows].  weights : int32[out rows, taps].
    sums : int32[n], scratch.  out : uint8[out rows, n].
    """
    for y in range(first.shape[0]):
        sums[:] = _HALF
        for t in range(weights.shape[1]):
            weight, pixels = weights[y, t], source[first[y] + t]
            for i in range(sums.shape[0]):
                sums[i] += np.int32(pixels[i] * weight)
        result = out[y]
        for i in range(sums.shape[0]):
            result[i] = _clip8(sums[i])
