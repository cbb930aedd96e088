"""Which outputs a change can reach, and copies into padded inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline, jit
from .simd import differs, get, load, put, splat, store


@jit
def list_all(first: int, last: int, pixels: Any) -> int:
    """List all pixels from `first` to below `last`. Returns their number."""
    for p in range(first, last):
        pixels[p - first] = p
    return last - first


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


def scratch_bytes(padded_width: int) -> int:
    """Bytes of scratch that `list_windows` needs for an input so wide with its padding."""
    return 2 * (padded_width + 192)


@jit
def list_windows(changed: Any, s: Any, top: int, bottom: int, scratch: Any, pixels: Any) -> int:
    """List the output pixels with a changed input pixel under a tap of their window. Returns their number.

    top, bottom : only those of output rows from `top` to below `bottom`.
    changed : uint8[h * w], up to 63 bytes behind it are read.  scratch : uint8[scratch_bytes(wp)].

    Row by row of the output: the marks under the window's rows are joined into one padded line, those under
    its columns into another, 64 marks an operation; only the outputs of rows with a change are looked at.
    """
    width, columns, stride, left = s.w, s.wo, s.sw, s.pl
    joined = s.wp + 192
    none = splat(np.uint8(0))
    for x in range(0, left, 64):
        store(scratch, x, none)
    count = 0
    for oy in range(top, bottom):
        above = oy * s.sh - s.pt
        first = above if above >= 0 else above + (s.dh - 1 - above) // s.dh * s.dh  # the first tap inside
        last = min(s.h, above + s.kh * s.dh)
        seen = none
        for x in range(0, width, 64):
            marks = none
            for y in range(first, last, s.dh):
                marks = marks | load(changed, y * width + x)
            store(scratch, left + x, marks)
            seen = seen | marks
        if not differs(seen, none):
            continue
        for x in range(left + width, s.wp, 64):  # what was read behind the row
            store(scratch, x, none)
        for x in range(0, (columns - 1) * stride + 1, 64):
            marks = load(scratch, x)
            for kx in range(1, s.kw):
                marks = marks | load(scratch, x + kx * s.dw)
            store(scratch, joined + x, marks)
        for ox in range(columns):
            put(pixels, count, oy * columns + ox)
            count += get(scratch, joined + ox * stride) != 0
    return count


@inline
def copy_run(x: Any, source: int, padded: Any, at: int, count: int) -> None:
    """padded[at ...] = x[source ...], `count` elements and nothing behind them."""
    lanes = 64 // x.itemsize
    for i in range(0, count - lanes + 1, lanes):
        store(padded, at + i, load(x, source + i))
    for i in range(count - count % lanes, count):
        put(padded, at + i, get(x, source + i))


@inline
def _copy_pixels(x: Any, source: int, stride: int, padded: Any, at: int, words: int, count: int) -> None:
    """Copy neighbouring pixels of `words` elements, `stride` apart in x, and write nothing behind them."""
    lanes = 64 // x.itemsize
    if stride == words:
        copy_run(x, source, padded, at, count * words)
    else:
        first = 0
        if words < lanes <= stride:  # a vector a pixel, whose spare lanes the next pixel overwrites
            first = max(0, count - (lanes - 1) // words)
            for pixel in range(first):
                store(padded, at + pixel * words, load(x, source + pixel * stride))
        for pixel in range(first, count):
            copy_run(x, source + pixel * stride, padded, at + pixel * words, words)


@jit
def copy_into_padded(x: Any, stride: int, s: Any, padded: Any) -> None:
    """Copy an input into its padded form, whose border stays as it is.

    x : [h * w * stride], the first `words` elements of a pixel are its value (floats or packed bits).
    """
    for y in range(s.h):
        at = ((y + s.pt) * s.wp + s.pl) * s.words
        _copy_pixels(x, y * s.w * stride, stride, padded, at, s.words, s.w)


@jit
def copy_changed_into_padded(x: Any, stride: int, s: Any, changed: Any, padded: Any) -> None:
    """`copy_into_padded` of the pixels marked in `changed` (uint8[h * w], up to 63 bytes behind it are read).

    Of few channels a pixel costs more to skip than to copy: then 64 pixels are copied where one has changed,
    the others to the values that they had.
    """
    none = splat(np.uint8(0))
    together = s.words < 16
    for y in range(s.h):
        row = ((y + s.pt) * s.wp + s.pl) * s.words
        for first in range(0, s.w, 64):
            if not differs(load(changed, y * s.w + first), none):
                continue
            last = min(s.w, first + 64)
            if together:
                source, at = (y * s.w + first) * stride, row + first * s.words
                _copy_pixels(x, source, stride, padded, at, s.words, last - first)
            else:
                for column in range(first, last):
                    if get(changed, y * s.w + column):
                        source = (y * s.w + column) * stride
                        copy_run(x, source, padded, row + column * s.words, s.words)
