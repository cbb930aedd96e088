"""The network's input: x = table[v], v a byte of the resized frame, for the bytes that are not the last ones.

A rule's table holds float32((v - mean) / std) of each byte and channel, or whatever a batch-norm behind it
makes of that. Where it is a straight line to the bit, x = fma(v, scale, shift), whole frames are computed so:
16 values in 3 operations, where a table takes 8 a value.

A step of 2 ** k lets the low k bits of a byte count for nothing: v & mask is compared, kept and looked up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline, jit
from .simd import (
    differing_bytes,
    fma,
    get,
    load,
    put,
    splat,
    store,
    to_floats,
    trailing_zeros,
    widen_bytes,
)


@jit
def normalise(
    frame: Any,
    last: Any,
    table: Any,
    line: Any,
    x: Any,
    changed: Any,
    all_pixels: bool,
    threshold: int,
    channels: int,
    mask: int,
) -> Any:
    """Input values of the pixels that differ from the last ones. Returns (their number, pixels held back).

    frame, last : uint8[P * C]; last is replaced.  table : float32[256 * C].  x : float32[P * C].
    line : float32[96], scale and shift of 48 neighbouring values; empty where the table is no line.
    changed : uint8[P], all of them with `all_pixels`.  channels : C, 3 or 1.
    threshold : a pixel is held back, keeping its last values, where none of its channels differs from `last`
        by more; above 0, `last` and `x` hold a frame.
    mask : the bits of a byte that count.
    """
    if threshold > 0:
        return _let_through(frame, last, table, x, changed, all_pixels, threshold, channels, np.uint8(mask))
    if all_pixels:
        _convert_all(frame, last, table, line, x, channels, np.uint8(mask))
        changed[:] = 1
        return len(changed), 0
    if channels == 3:
        return _convert_changed(frame, last, table, x, changed, 3, np.uint8(mask)), 0
    return _convert_changed(frame, last, table, x, changed, 1, np.uint8(mask)), 0


@jit
def _convert_all(frame: Any, last: Any, table: Any, line: Any, x: Any, channels: int, mask: np.uint8) -> None:
    """Every value."""
    kept, size, done = splat(mask), len(frame), 0
    if len(line) > 0:
        for i in range(0, size - 63, 48):  # 64 bytes are loaded and kept, 48 of them converted
            values = load(frame, i) & kept
            store(last, i, values)
            store(x, i, fma(to_floats(widen_bytes(values, 0)), load(line, 0), load(line, 48)))
            store(x, i + 16, fma(to_floats(widen_bytes(values, 1)), load(line, 16), load(line, 64)))
            store(x, i + 32, fma(to_floats(widen_bytes(values, 2)), load(line, 32), load(line, 80)))
            done = i + 48
    for i in range(done, size):
        value = get(frame, i) & mask
        put(last, i, value)
        put(x, i, get(table, channels * np.intp(value) + i % channels))


@inline
def _convert_changed(
    frame: Any, last: Any, table: Any, x: Any, changed: Any, channels: Any, mask: Any
) -> Any:
    """The bytes that differ, for a constant number of channels. Returns how many pixels they are of."""
    kept, size, count = splat(mask), len(frame), 0
    changed[:] = 0
    for first in range(0, size, 64):
        if first + 64 <= size:
            values = load(frame, first) & kept
            bits = differing_bytes(values, load(last, first))
            if bits == 0:
                continue
            store(last, first, values)
        else:
            bits = np.uint64(0)
            for i in range(first, size):
                value = get(frame, i) & mask
                bits |= np.uint64(value != get(last, i)) << np.uint64(i - first)
                put(last, i, value)
        while bits:
            i = first + trailing_zeros(bits)
            bits &= bits - np.uint64(1)
            pixel = np.intp(np.uint64(i) // np.uint64(channels))
            value = get(last, i)
            put(x, i, get(table, channels * np.intp(value) + i - channels * pixel))
            count += np.intp(1 - get(changed, pixel))
            put(changed, pixel, np.uint8(1))
    return count


@jit
def _let_through(
    frame: Any,
    last: Any,
    table: Any,
    x: Any,
    changed: Any,
    all_pixels: bool,
    threshold: int,
    channels: int,
    mask: np.uint8,
) -> Any:
    """The pixels of which a channel differs by more than the threshold."""
    count, held = 0, 0
    for p in range(len(changed)):
        most = 0
        for i in range(channels * p, channels * (p + 1)):
            most = max(most, abs(np.intp(get(frame, i) & mask) - np.intp(get(last, i))))
        if most > threshold:
            for c in range(channels):
                value = get(frame, channels * p + c) & mask
                put(last, channels * p + c, value)
                put(x, channels * p + c, get(table, channels * np.intp(value) + c))
        else:
            held += most > 0
        mark = np.uint8(most > threshold) | np.uint8(all_pixels)
        count += np.intp(mark)
        put(changed, p, mark)
    return count, held
