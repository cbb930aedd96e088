"""Lists of flipped and of set bits, as entries of a row table (row_table.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline, jit
from .simd import (
    aligned,
    compress,
    get,
    has_byte_compress,
    last_lane,
    list_bits,
    load,
    load_some,
    nonzero_lanes,
    popcount,
    prefix_sum,
    put,
    shift_left,
    splat,
    store,
    trailing_zeros,
)

#: Whether bits are listed a word at a time, decided for the machine the kernels are compiled on.
BYTE_COMPRESS = has_byte_compress()


def flip_lists(flips: int, step: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Scratch for `flips` flips: risen, fallen, starts, scratch, risen_places, fallen_places."""
    risen, fallen, risen_places, fallen_places = (aligned(flips + 96, np.int32) for _ in range(4))
    starts = aligned(int(step["hp"] * (step["wp"] + 1)) + 16, np.int64)
    scratch = aligned(5 * int(step["wp"] * step["words"] + 8), np.uint64)
    return risen, fallen, starts, scratch, risen_places, fallen_places


def set_lists(step: Any) -> tuple[Any, Any, Any]:
    """Scratch of `list_sets`: entries, starts, ones."""
    pixels = int(step["hp"] * step["wp"])
    entries = aligned(pixels * (int(step["cin"]) + 16) + 64, np.int32)
    return entries, aligned(pixels + 1, np.int64), aligned(pixels, np.int64)


@inline
def _list_word(bits: Any, start: Any, step: Any, entries: Any, count: int) -> int:
    """entries[count ...] = start + index * step for every set bit; returns the new count."""
    if BYTE_COMPRESS:
        return count + list_bits(bits, start, step, entries, count)
    while bits:
        put(entries, count, start + np.int32(trailing_zeros(bits) * step))
        count += 1
        bits &= bits - np.uint64(1)
    return count


@jit
def list_flips(diff: Any, last: Any, s: Any, risen: Any, fallen: Any, starts: Any, scratch: Any) -> None:
    """List a frame's risen and fallen bits in row-major order.

    diff, last : uint64[hp * wp * words], flips and new bits, padded.
    risen, fallen : int32, entries of the table (`build_table`). Whole vectors are written: 64 entries more
        than there are flips.
    starts : int64[hp * (wp + 1) + 8]; of padded row y left of column x, `risen + (fallen << 32)` are listed.
    scratch : uint64[5 * (wp * words + 8)].

    A row's words are compared eight at a time, and those with a flip brought together: words without one
    are not looked at again, and no branch asks for them.
    """
    step = np.int32(s.channel_step)
    words, width, phases = s.words, s.wp, s.phases
    row_words = width * words
    size = row_words + 8
    up_at, down_at, before_at, entry_at, number_at = 0, size, 2 * size, 3 * size, 4 * size
    i = 0
    for x in range(width):
        for word in range(words):
            entry = x % phases * s.phase_step + x // phases * s.column_step + word * 64 * s.channel_step
            put(scratch, entry_at + i, np.uint64(entry))
            put(scratch, number_at + i, np.uint64(i))
            i += 1
    up, down = 0, 0
    for y in range(s.hp):
        line, at = y * (width + 1), y * row_words
        before = splat(np.uint64(up) | (np.uint64(down) << np.uint64(32)))
        ups, downs = 0, 0
        for i in range(0, row_words, 8):
            d = load_some(diff, at + i, row_words - i)
            new = load(last, at + i)
            rise = d & new
            fall = d ^ rise
            number = load(scratch, number_at + i)
            ups += compress(nonzero_lanes(rise), number, scratch, up_at + ups)
            downs += compress(nonzero_lanes(fall), number, scratch, down_at + downs)
            counts = popcount(rise) | shift_left(popcount(fall), 32)
            after = before + prefix_sum(counts)
            store(scratch, before_at + i, after - counts)
            before = splat(last_lane(after))
        for x in range(width):
            put(starts, line + x, np.int64(get(scratch, before_at + x * words)))
        for k in range(ups):
            word_at: Any = np.int64(get(scratch, up_at + k))
            bits = get(diff, at + word_at) & get(last, at + word_at)
            up = _list_word(bits, np.int32(get(scratch, entry_at + word_at)), step, risen, up)
        for k in range(downs):
            word_at = np.int64(get(scratch, down_at + k))
            bits = get(diff, at + word_at) & ~get(last, at + word_at)
            down = _list_word(bits, np.int32(get(scratch, entry_at + word_at)), step, fallen, down)
        put(starts, line + width, np.int64(up) | (np.int64(down) << np.int64(32)))


@jit
def list_sets(x: Any, s: Any, entries: Any, starts: Any, ones: Any) -> int:
    """List the set bits of every pixel for `conv_set_rows`, the border's not. Returns the number of entries.

    x : uint64[hp * wp * words], padded.  entries : int32; c * out_words for a set channel c, then entries of
    zeros up to a multiple of 16; 64 more are written.  starts : int64[hp * wp + 1], of each padded pixel.
    ones : int64[hp * wp], its set bits.
    """
    count: Any = 0
    step, nothing = np.int32(s.channel_step), splat(np.int32(s.nowhere))
    for y in range(s.hp):
        for column in range(s.wp):
            pixel = y * s.wp + column
            put(starts, pixel, count)
            put(ones, pixel, np.int64(0))
            if not (s.pt <= y < s.pt + s.h and s.pl <= column < s.pl + s.w):
                continue
            first = count
            for word in range(s.words):
                start = np.int32(word * 64 * s.channel_step)
                count = _list_word(get(x, pixel * s.words + word), start, step, entries, count)
            put(ones, pixel, count - first)
            store(entries, count, nothing)
            count += -count % 16
    put(starts, s.hp * s.wp, count)
    return count
