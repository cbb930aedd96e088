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
from .resize import BYTE_PERMUTE
from .simd import (
    differing_bytes,
    differs,
    fma,
    get,
    load,
    pick_bytes,
    popcount,
    put,
    splat,
    store,
    to_floats,
    trailing_zeros,
    widen_bytes,
)

_ONE = np.uint64(1)


def _pixel_orders() -> Any:
    """uint8[512]: of 64 pixels in three vectors, by channel, which bytes of the first two and of the last two
    are theirs; then 255 for the pixels that lie in the first two, and for the others.
    """
    place = 3 * np.arange(64) + np.arange(3)[:, None]
    within = place[2] < 128
    orders = [part for row in place for part in (np.where(within, row, 0), np.where(within, 0, row - 64))]
    return np.concatenate([*orders, 255 * within, 255 * ~within]).astype(np.uint8)


_PIXELS = _pixel_orders()


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

    frame, last : uint8[P * C]; last is replaced.  table : float32[256 * C].  x : float32[P * C]; empty where
        no float is wanted, but patches of the bytes (`convert_patches`).
    line : float32[96], scale and shift of 48 neighbouring values; empty where the table is no line.
    changed : uint8[P], not 0 where a pixel has changed; all of them with `all_pixels`.  channels : C, 3 or 1.
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
            if len(x) > 0:
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

    64 pixels at a time, in whole vectors: after a masked store a load beside it would wait. With a line, all
    64 are computed where one has changed.
    """
    kept, none, pixels = splat(mask), splat(np.uint8(0)), len(changed)
    count: Any = 0
    done = 0
    while done + 64 <= pixels:
        at = channels * done
        if channels == 3 and not BYTE_PERMUTE:
            new = differs(load(frame, at) & kept, load(last, at))
            new = new or differs(load(frame, at + 64) & kept, load(last, at + 64))
            new = new or differs(load(frame, at + 128) & kept, load(last, at + 128))
            store(changed, done, none)
            for pixel in range(done, done + 64 if new else done):
                count += _look_at(frame, last, table, x, changed, pixel, channels, mask)
            done += 64
            continue
        marks = _keep(frame, last, at, kept)
        if channels == 3:
            second, third = _keep(frame, last, at + 64, kept), _keep(frame, last, at + 128, kept)
            low, high = none, none
            for c in range(3):
                low = low | pick_bytes(marks, second, load(_PIXELS, 128 * c))
                high = high | pick_bytes(second, third, load(_PIXELS, 128 * c + 64))
            marks = (low & load(_PIXELS, 384)) | (high & load(_PIXELS, 448))
        store(changed, done, marks)
        bits = differing_bytes(marks, none)
        count += np.intp(popcount(bits))
        if len(x) > 0 and bits != 0:
            if len(line) > 0 and at + 64 * channels + 64 <= len(frame):
                for block in range(at, at + 64 * channels - 47, 48):
                    _convert_block(load(frame, block) & kept, line, x, block)
                if channels == 1:  # 48 do not divide 64
                    _convert_block(load(frame, at + 16) & kept, line, x, at + 16)
            else:
                while bits:
                    _look_up(last, table, x, done + trailing_zeros(bits), channels)
                    bits &= bits - _ONE
        done += 64
    for pixel in range(done, pixels):
        count += _look_at(frame, last, table, x, changed, pixel, channels, mask)
    return count


@inline
def _look_at(
    frame: Any, last: Any, table: Any, x: Any, changed: Any, pixel: Any, channels: Any, mask: Any
) -> Any:
    """`_convert_changed` of one pixel: 1 if it has changed."""
    new = np.uint8(0)
    for i in range(channels * pixel, channels * (pixel + 1)):
        value = get(frame, i) & mask
        new |= value ^ get(last, i)
        put(last, i, value)
    put(changed, pixel, np.uint8(new != 0))
    _look_up(last, table, x, pixel, channels)
    return np.intp(new != 0)


@inline
def _keep(frame: Any, last: Any, at: Any, kept: Any) -> Any:
    """Where 64 bytes differ from the last ones, which they replace."""
    values, before = load(frame, at) & kept, load(last, at)
    store(last, at, values)
    return values ^ before


@inline
def _look_up(last: Any, table: Any, x: Any, pixel: Any, channels: Any) -> None:
    """The values of one pixel."""
    for c in range(channels if len(x) > 0 else 0):
        i = channels * pixel + c
        put(x, i, get(table, channels * np.intp(get(last, i)) + c))


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
            _look_up(last, table, x, p, channels)
        else:
            held += most > 0
        mark = np.uint8(most > threshold) | np.uint8(all_pixels)
        count += np.intp(mark)
        put(changed, p, mark)
    return count, held


@jit
def convert_patches(pixels: Any, line: Any, s: Any, listed: Any, count: int, patches: Any) -> None:
    """Input values under the listed windows of a convolution whose windows do not overlap.

    pixels : uint8[h * w * 3], up to 63 bytes behind it are read.  line : of `normalise`.
    patches : float32[count * kh * kw * 3], and 16 values behind it are spoiled; kw * 3 is at most 16.
    The values live from here to the convolution: floats of a whole frame are not written, nor read again.
    """
    row = s.kw * 3
    scale, shift, to = load(line, 0), load(line, 48), 0
    for i in range(count):
        p = get(listed, i)
        oy = p // s.wo
        at = (oy * s.kh * s.w + (p - oy * s.wo) * s.kw) * 3
        for _ in range(s.kh):
            store(patches, to, fma(to_floats(widen_bytes(load(pixels, at), 0)), scale, shift))
            to += row
            at += s.w * 3
