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
    store_bytes,
    to_floats,
    trailing_zeros,
    widen_bytes,
)

_ONE, _TWO = np.uint64(1), np.uint64(2)
_FIRST_48, _EVERY_THIRD = np.uint64((1 << 48) - 1), np.uint64(0x249249249249)


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
        changed[:] = 1
        if channels == 3:
            _convert_all(frame, last, table, line, x, 3, np.uint8(mask))
        else:
            _convert_all(frame, last, table, line, x, 1, np.uint8(mask))
        return len(changed), 0
    if channels == 3:
        return _convert_changed(frame, last, table, line, x, changed, 3, np.uint8(mask)), 0
    return _convert_changed(frame, last, table, line, x, changed, 1, np.uint8(mask)), 0


@inline
def _convert_block(values: Any, line: Any, x: Any, i: Any) -> None:
    """x[i : i + 48] of the first 48 of 64 bytes."""
    store(x, i, fma(to_floats(widen_bytes(values, 0)), load(line, 0), load(line, 48)))
    store(x, i + 16, fma(to_floats(widen_bytes(values, 1)), load(line, 16), load(line, 64)))
    store(x, i + 32, fma(to_floats(widen_bytes(values, 2)), load(line, 32), load(line, 80)))


@jit
def _convert_all(frame: Any, last: Any, table: Any, line: Any, x: Any, channels: int, mask: np.uint8) -> None:
    """Every value."""
    kept, size, done = splat(mask), len(frame), 0
    if len(line) > 0:
        while done + 64 <= size:
            values = load(frame, done) & kept
            store(last, done, values)
            _convert_block(values, line, x, done)
            done += 48
    for pixel in range(done // channels, size // channels):
        for i in range(channels * pixel, channels * (pixel + 1)):
            put(last, i, get(frame, i) & mask)
        _look_up(last, table, x, pixel, channels)


@inline
def _convert_changed(
    frame: Any, last: Any, table: Any, line: Any, x: Any, changed: Any, channels: Any, mask: Any
) -> Any:
    """The pixels of which a byte differs, for a constant number of channels. Returns their number.

    With a line, 48 bytes are computed where one differs, which costs less than to look up three.
    """
    kept, size, done = splat(mask), len(frame), 0
    changed[:] = 0
    while done + 64 <= size:
        values = load(frame, done) & kept
        bits = differing_bytes(values, load(last, done)) & _FIRST_48
        if bits != 0:
            store_bytes(last, done, values, 48)
            first = done // channels
            if channels == 3:
                bits = (bits | bits >> _ONE | bits >> _TWO) & _EVERY_THIRD
            if len(line) > 0:
                _convert_block(values, line, x, done)
                for p in range(48 // channels):
                    put(changed, first + p, np.uint8(bits >> np.uint64(channels * p) & _ONE))
            else:
                while bits:
                    pixel = first + trailing_zeros(bits) // channels
                    bits &= bits - _ONE
                    put(changed, pixel, np.uint8(1))
                    _look_up(last, table, x, pixel, channels)
        done += 48
    for pixel in range(done // channels, size // channels):
        new = np.uint8(0)
        for i in range(channels * pixel, channels * (pixel + 1)):
            value = get(frame, i) & mask
            new |= value ^ get(last, i)
            put(last, i, value)
        put(changed, pixel, np.uint8(new != 0))
        _look_up(last, table, x, pixel, channels)
    return count_nonzero(changed)


@inline
def _look_up(last: Any, table: Any, x: Any, pixel: Any, channels: Any) -> None:
    """The values of one pixel."""
    for c in range(channels):
        i = channels * pixel + c
        put(x, i, get(table, channels * np.intp(get(last, i)) + c))


@jit
def count_nonzero(marks: Any) -> int:
    """How many of some bytes of 0 and 1 are 1."""
    total = 0
    for i in range(len(marks)):
        total += get(marks, i)
    return total


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
    count: Any = 0
    held: Any = 0
    for p in range(len(changed)):
        most: Any = 0
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
