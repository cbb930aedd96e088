"""Which outputs a change can reach, and copies into padded inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import jit
from .simd import get, load, put, store


@jit
def list_all(count: int, pixels: Any) -> int:
    """pixels[:count] = 0, 1, 2, ...; returns count."""
    for p in range(count):
        pixels[p] = p
    return count


@jit
def list_changed(changed: Any, pixels: Any) -> int:
    """List the pixels whose uint8 mark is not 0. Returns their number."""
    count = 0
    for p in range(len(changed)):
        put(pixels, count, p)
        count += get(changed, p) != 0
    return count


@jit
def mark_flipped(diff: Any, s: Any, changed: Any) -> None:
    """changed uint8[h * w] = whether any word of the pixel flipped; diff of bitpack.diff_into_padded."""
    words = s.words
    for y in range(s.h):
        at = ((y + s.pt) * s.wp + s.pl) * words
        for x in range(s.w):
            flipped = np.uint64(0)
            for word in range(words):
                flipped |= get(diff, at + word)
            put(changed, y * s.w + x, np.uint8(flipped != 0))
            at += words


@jit
def list_windows(changed: Any, s: Any, touched: Any, pixels: Any) -> int:
    """List the output pixels whose window holds a changed input pixel. Returns their number.

    changed : uint8[h * w].  touched : uint8[(h + 1) * wo] scratch.  Cost: a read of `changed` for each column
    of a kernel row, on rows with any change, then kH reads an output.
    """
    height, width, columns, stride, left = s.h, s.w, s.wo, s.sw, s.pl
    for y in range(height):
        out, row = y * columns, y * width
        seen = np.uint8(0)
        for x in range(width):
            seen |= get(changed, row + x)
        for ox in range(columns):
            put(touched, out + ox, np.uint8(0))
        if seen == 0:
            continue
        for kx in range(0, s.kw * s.dw, s.dw):
            # The outputs whose tap kx is inside the image.
            first = max(0, (left - kx + stride - 1) // stride)
            last = min(columns - 1, (width - 1 + left - kx) // stride)
            source = row + first * stride + kx - left
            for i in range(last - first + 1):
                mark = get(touched, out + first + i) | get(changed, source + i * stride)
                put(touched, out + first + i, mark)
    count, line = 0, height * columns
    for oy in range(s.ho):
        top = oy * s.sh - s.pt
        first = top if top >= 0 else top + (s.dh - 1 - top) // s.dh * s.dh  # the first tap inside the image
        last = min(height, top + s.kh * s.dh)
        for ox in range(columns):
            put(touched, line + ox, get(touched, first * columns + ox) if first < last else np.uint8(0))
        for y in range(first + s.dh, last, s.dh):
            for ox in range(columns):
                put(touched, line + ox, get(touched, line + ox) | get(touched, y * columns + ox))
        for ox in range(columns):
            put(pixels, count, oy * columns + ox)
            count += get(touched, line + ox) != 0
    return count


@jit
def copy_into_padded(x: Any, stride: int, s: Any, padded: Any) -> None:
    """Copy an input into its padded form, whose border stays as it is.

    x : [h * w * stride], the first `words` elements of a pixel are its value (floats or packed bits).
    """
    lanes = 64 // x.itemsize
    for y in range(s.h):
        at = ((y + s.pt) * s.wp + s.pl) * s.words
        source = y * s.w * stride
        if stride == s.words:
            row = s.w * s.words
            for i in range(0, row - lanes + 1, lanes):
                store(padded, at + i, load(x, source + i))
            for i in range(row - row % lanes, row):
                put(padded, at + i, get(x, source + i))
        else:
            for column in range(s.w):
                for c in range(s.words):
                    padded[at + column * s.words + c] = x[source + column * stride + c]


@jit
def copy_changed_into_padded(x: Any, stride: int, s: Any, changed: Any, padded: Any) -> int:
    """`copy_into_padded` of the pixels marked in `changed` (uint8[h * w]). Returns their number."""
    count = 0
    for y in range(s.h):
        at = ((y + s.pt) * s.wp + s.pl) * s.words
        for column in range(s.w):
            if changed[y * s.w + column]:
                count += 1
                source = (y * s.w + column) * stride
                for c in range(s.words):
                    padded[at + column * s.words + c] = x[source + c]
    return count
