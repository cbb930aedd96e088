"""One frame through a whole plan without returning to Python.

A convolution may be followed by the elementwise step that reads it ("fused"): the two then take turns, a
band of pixels at a time, so that the program finds the band's sums in the first-level cache. What travels
through memory decides the speed of everything around the convolutions.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from .bitpack import diff_into_padded
from .clock import now
from .elementwise import run_program
from .float_conv import conv_float
from .jit import jit
from .layout import SOURCE, copy_pixels, interpolate_pixels
from .listing import list_flips, list_sets
from .normalise import convert_patches, normalise
from .packed import F32, I32, I64, U8, U16, U64, unpacker
from .pool import pool
from .rows import conv_rows, conv_rows_to_bits, read_ahead
from .set_rows import conv_set_rows
from .simd import get, put
from .sliced import slice_sums
from .threshold import threshold_bits
from .window import (
    copy_changed_into_padded,
    copy_into_padded,
    list_all,
    list_changed,
    list_windows,
    mark_flipped,
)
from .xnor import conv_xnor, subtract_outside


class Kind(IntEnum):
    """What a step computes."""

    INPUT = 0
    FLOAT_CONV = 1
    ELEMENTWISE = 2
    POOL = 3
    BINARY_CONV = 4
    COPY = 5
    BILINEAR = 6


class Path(IntEnum):
    """How a step was computed: everything, only what changed by the dense or the rows kernel, or nothing."""

    DENSE = 0
    CHANGED = 1
    ROWS = 2
    CLEAN = 3


class Constants(NamedTuple):
    """The plan's weights and tables, one array a dtype."""

    u64: U64
    f32: F32
    i64: I64
    i32: I32
    u16: U16


class State(NamedTuple):
    """All a stream remembers, one array a dtype."""

    u64: U64
    f32: F32
    u16: U16
    u8: U8


class Scratch(NamedTuple):
    """Arrays that the steps of a frame use in turn."""

    risen: I32
    fallen: I32
    starts: I64
    list_words: U64
    risen_places: I32
    fallen_places: I32
    counts: I64
    set_entries: I32
    set_starts: I64
    set_ones: I64
    set_sums: U64
    pixels: I64
    more_pixels: I64
    registers: F32
    identity: I64  # 0, 1, 2, ...
    band_f32: F32
    band_u16: U16
    patches: F32
    timespec: I64


_constants, _state, _scratch = unpacker(Constants), unpacker(State), unpacker(Scratch)

#: What a step reports of a frame: path, flips (binary) or (of the input step) pixels that the threshold held
#: back, outputs computed, nanoseconds.
REPORT = 4

INPUT, FLOAT_CONV, ELEMENTWISE, POOL, BINARY_CONV, COPY, BILINEAR = (int(kind) for kind in Kind)
DENSE, CHANGED, ROWS, CLEAN = (int(path) for path in Path)


@jit
def _list_sources(s: Any, const: Any, state: Any, first: int, last: int, pixels: Any) -> int:
    """List the pixels from `first` to below `last` that changed in any tensor the step's program reads."""
    mask = state.u8[s.y_mask + first : s.y_mask + last]
    mask[:] = 0
    for i in range(s.sources):
        at = const.i64[s.source_masks + i] + first
        source = state.u8[at : at + last - first]
        for p in range(last - first):
            mask[p] |= source[p]
    count = list_changed(mask, pixels)
    for i in range(count):
        pixels[i] += first
    return count


@jit
def _clear_targets(s: Any, const: Any, state: Any) -> None:
    """Mark every pixel of the tensors the step's program stores as unchanged."""
    for i in range(s.targets):
        at = const.i64[s.target_masks + i]
        state.u8[at : at + s.ho * s.wo] = 0


@jit
def _program(
    s: Any,
    const: Any,
    state: Any,
    scratch: Any,
    pixels: Any,
    slots: Any,
    count: int,
    counts: Any,
    compare: bool,
) -> None:
    """Run the step's program; its convolution's sums stand at `slots` of `counts` or `band_f32`."""
    program = const.i64[s.program : s.program + s.program_size]
    run_program(
        program, s.lanes, const.f32, const.i32, state.f32, state.u16, state.u64, state.u8,
        pixels, slots, count, counts, scratch.band_f32, scratch.registers, compare,
    )  # fmt: skip


@jit
def _elementwise(s: Any, all_pixels: bool, const: Any, state: Any, scratch: Any, report: Any) -> None:
    """A program by itself."""
    if all_pixels:
        count = list_all(s.ho * s.wo, scratch.pixels)
    else:
        _clear_targets(s, const, state)
        count = _list_sources(s, const, state, 0, s.ho * s.wo, scratch.pixels)
    _program(s, const, state, scratch, scratch.pixels, scratch.pixels, count, state.u16, not all_pixels)
    report[0] = DENSE if all_pixels else CHANGED if count else CLEAN
    report[2] = count


@jit
def _pool(s: Any, all_pixels: bool, state: Any, scratch: Any, report: Any) -> None:
    """A pool: the windows that hold a change."""
    changed = state.u8[s.y_mask : s.y_mask + s.ho * s.wo]
    if all_pixels:
        count = list_all(s.ho * s.wo, scratch.pixels)
    else:
        count = list_windows(state.u8[s.x_mask :], s, state.u8, scratch.pixels)
        changed[:] = 0
    x, y = state.f32[s.x :], state.f32[s.y :]
    pool(x, s.x_stride, s, scratch.pixels, count, s.average != 0, s.count_padding != 0, y, changed)
    report[0] = DENSE if all_pixels else CHANGED if count else CLEAN
    report[2] = count


@jit
def _copy(s: Any, all_pixels: bool, const: Any, state: Any, report: Any) -> None:
    """A concatenation or a nearest upsampling."""
    sources = const.i64[s.program : s.program + s.sources * SOURCE]
    changed = state.u8[s.y_mask : s.y_mask + s.ho * s.wo]
    count = copy_pixels(sources, s, state.f32, state.u8, all_pixels, state.f32[s.y :], changed)
    report[0] = DENSE if all_pixels else CHANGED if count else CLEAN
    report[2] = count


@jit
def _bilinear(s: Any, all_pixels: bool, const: Any, state: Any, report: Any) -> None:
    """A bilinear upsampling."""
    changed = state.u8[s.y_mask : s.y_mask + s.ho * s.wo]
    taps, weights = const.i64[s.starts :], const.f32[s.weights :]
    count = interpolate_pixels(
        taps, weights, s, state.f32[s.x :], state.u8[s.x_mask :], all_pixels, state.f32[s.y :], changed
    )
    report[0] = DENSE if all_pixels else CHANGED if count else CLEAN
    report[2] = count


@jit
def _float_conv(
    s: Any,
    e: Any,
    fused: bool,
    all_pixels: bool,
    const: Any,
    state: Any,
    scratch: Any,
    report: Any,
    e_report: Any,
) -> None:
    """A float convolution of the windows that hold a change; if fused, also the program `e` that reads it."""
    begin = now(scratch.timespec)
    pixels = scratch.pixels
    x, changed = state.f32[s.x :], state.u8[s.x_mask : s.x_mask + s.h * s.w]
    padded = state.f32[s.padded : s.padded + s.hp * s.wp * s.words]
    from_bytes = s.line >= 0
    if not from_bytes and s.padded != s.x and all_pixels:
        copy_into_padded(x, s.x_stride, s, padded)
    elif not from_bytes and s.padded != s.x:
        copy_changed_into_padded(x, s.x_stride, s, changed, padded)
    if all_pixels:
        count = list_all(s.ho * s.wo, pixels)
    else:
        count = list_windows(changed, s, state.u8, pixels)
        if fused:
            _clear_targets(e, const, state)
        else:
            mask = state.u8[s.y_mask : s.y_mask + s.ho * s.wo]
            mask[:] = 0
            for i in range(count):
                put(mask, get(pixels, i), np.uint8(1))
    weights = const.f32[s.weights : s.weights + s.weights_size]
    bias = const.f32[s.bias : s.bias + s.lanes]
    starts = const.i64[s.starts : s.starts + s.ho * s.wo]
    segment_at = const.i64[s.segment_at : s.segment_at + s.segments]
    band = s.band if fused or from_bytes else max(1, count)
    for first in range(0, count, band):
        n = min(band, count - first)
        listed = pixels[first:]
        windows = listed
        if from_bytes:
            line = const.f32[s.line : s.line + 96]
            convert_patches(state.u8[s.x :], line, s, listed, n, scratch.patches)
            padded, windows = scratch.patches, scratch.identity
        if fused:
            conv_float(
                padded, weights, bias, s, starts, segment_at, windows, scratch.identity, n, scratch.band_f32
            )
            middle = now(scratch.timespec)
            _program(e, const, state, scratch, listed, scratch.identity, n, state.u16, not all_pixels)
            end = now(scratch.timespec)
            e_report[3] += end - middle
            begin += end - middle
        else:
            conv_float(padded, weights, bias, s, starts, segment_at, windows, listed, n, state.f32[s.y :])
    report[0] = DENSE if all_pixels else CHANGED if count else CLEAN
    report[2] = count
    report[3] = now(scratch.timespec) - begin
    if fused:
        e_report[0], e_report[2] = report[0], count


@jit
def _binary_conv(
    s: Any,
    e: Any,
    fused: bool,
    all_pixels: bool,
    keep: bool,
    const: Any,
    state: Any,
    scratch: Any,
    report: Any,
    e_report: Any,
) -> None:
    """A binary convolution, and what alone reads it: a sign, or if fused the program `e`.

    Without `keep` the sums that have been read are not needed again, and stay in a band's scratch.
    """
    begin = now(scratch.timespec)
    pixels, more_pixels = scratch.pixels, scratch.more_pixels
    x = state.u64[s.x : s.x + s.h * s.w * s.words]
    padded = state.u64[s.padded : s.padded + s.hp * s.wp * s.words]
    diff = state.u64[s.diff : s.diff + s.hp * s.wp * s.words]
    changed = state.u8[s.y_mask : s.y_mask + s.ho * s.wo]
    path, flips, count, computed = DENSE, 0, 0, 0
    if keep:
        flips = diff_into_padded(x, s, padded, diff)
    else:
        copy_into_padded(x, s.words, s, padded)
    if all_pixels:
        count = list_all(s.ho * s.wo, pixels)
    elif flips == 0:
        path = CLEAN
    elif flips <= s.rows_limit:
        path = ROWS
        list_flips(diff, padded, s, scratch.risen, scratch.fallen, scratch.starts, scratch.list_words)
    elif flips >= 2 * s.h * s.w:  # hardly a window without a flip: looking for one costs more than it saves
        path, count = CHANGED, list_all(s.ho * s.wo, pixels)
    else:
        path = CHANGED
        mask = state.u8[s.x_mask : s.x_mask + s.h * s.w]
        mark_flipped(diff, s, mask)
        count = list_windows(mask, s, state.u8, pixels)
    if fused and not all_pixels:
        _clear_targets(e, const, state)
    if s.planes > 0 and (all_pixels or path == CHANGED) and state.u64[s.in_planes]:
        # the sums that do not change are not at hand
        count, state.u64[s.in_planes] = list_all(s.ho * s.wo, pixels), 0
    by_sets = s.set_limit > 0 and count == s.ho * s.wo
    if by_sets:
        by_sets = (
            list_sets(padded, s, scratch.set_entries, scratch.set_starts, scratch.set_ones) <= s.set_limit
        )

    to_bits = s.bits_words > 0
    in_band = (fused or to_bits) and all_pixels and not keep
    sums = scratch.band_u16 if in_band else state.u16[s.y :]
    weights = const.u64[s.weights : s.weights + s.weights_size]
    starts = const.i64[s.starts : s.starts + s.ho * s.wo]
    segment_at = const.i64[s.segment_at : s.segment_at + s.segments]
    table = const.u64[s.table : s.table + s.table_size]
    if path == ROWS:
        read_ahead(table, s, scratch.starts, scratch.list_words)
    classes = const.i64[s.classes : s.classes + (s.ho * s.wo if s.classes >= 0 else 0)]
    base, limits = const.u16[s.base :], const.u16[s.limits :]
    base_classes = const.i64[s.base_classes :]
    inverted, bits = const.u64[s.inverted :], state.u64[s.bits :]
    rows = s.band if fused or to_bits else s.ho
    planes, ones, flipped = state.u64[s.sliced :], state.u64[s.ones :], const.u64[s.flipped :]
    if path == ROWS and s.planes > 0:
        rows = s.ho
        if not state.u64[s.in_planes]:
            added, parities = const.u16[s.added :], const.u64[s.parities :]
            slice_sums(
                sums, s, added, parities, classes, padded, diff, starts, segment_at, scratch.band_u16,
                planes, ones,
            )  # fmt: skip
            state.u64[s.in_planes] = 1
    done = 0
    for row in range(0, s.ho, rows):
        end_row = min(row + rows, s.ho)
        first, last = row * s.wo, end_row * s.wo
        if path == ROWS and s.planes > 0:
            computed += conv_rows_to_bits(
                scratch.risen, scratch.fallen, scratch.starts, table, s, row, end_row,
                scratch.risen_places, scratch.fallen_places, scratch.counts, planes, ones, flipped, bits,
                changed,
            )  # fmt: skip
        elif path == ROWS:
            computed += conv_rows(
                scratch.risen, scratch.fallen, scratch.starts, table, s, row, end_row,
                scratch.risen_places, scratch.fallen_places, scratch.counts, state.u16[s.y :], changed,
            )  # fmt: skip
            if to_bits:
                n = list_changed(changed[first:last], more_pixels)
                for i in range(n):
                    more_pixels[i] += first
                threshold_bits(sums, s, limits, inverted, classes, more_pixels, more_pixels, n, bits)
        else:
            n = 0
            while done + n < count and pixels[done + n] < last:
                n += 1
            listed = pixels[done:]
            slots = scratch.identity if in_band else listed
            if by_sets:
                conv_set_rows(
                    scratch.set_entries, scratch.set_starts, scratch.set_ones, table, base, base_classes,
                    s, starts, listed, slots, n, scratch.set_sums, sums,
                )  # fmt: skip
            else:
                conv_xnor(padded, weights, s, starts, segment_at, listed, slots, n, sums)
            if to_bits:
                threshold_bits(sums, s, limits, inverted, classes, listed, slots, n, bits)
            elif s.classes >= 0:
                subtract_outside(sums, s, classes, const.u16[s.outside :], listed, slots, n)
            if not all_pixels:
                changed[first:last] = 0
                for i in range(n):
                    changed[listed[i]] = 1
            done += n
            computed += n
        if fused:
            middle = now(scratch.timespec)
            if all_pixels:
                n = last - first
                listed = pixels[first:]
                slots = scratch.identity if in_band else listed
                _program(e, const, state, scratch, listed, slots, n, sums, False)
            else:
                n = _list_sources(e, const, state, first, last, more_pixels)
                _program(e, const, state, scratch, more_pixels, more_pixels, n, sums, True)
            end = now(scratch.timespec)
            e_report[2] += n
            e_report[3] += end - middle
            begin += end - middle
    report[0], report[1], report[2] = path, flips, computed
    report[3] = now(scratch.timespec) - begin
    if fused:
        e_report[0] = DENSE if all_pixels else CHANGED if e_report[2] else CLEAN


@jit
def run(
    steps: Any,
    frame: Any,
    all_pixels: bool,
    keep: bool,
    threshold: int,
    report: Any,
    constants: Any,
    constant_ends: Any,
    kept: Any,
    kept_ends: Any,
    shared: Any,
    shared_ends: Any,
    output: Any,
    values: Any,
) -> None:
    """Run every step of the plan on one frame, and report on each.

    steps : STEP[n].  frame : uint8[h * w * C], resized and cropped.
    all_pixels : compute everything (the dense path, and a cached stream's first frame).
    keep : leave what the next cached frame needs (a dense stream does without).
    threshold : of changes that leave an input pixel as it was (`normalise.py`); 0 on a first frame.
    report : int64[n, REPORT].
    constants, kept, shared : memory of the packed `Constants`, `State` and `Scratch`, and their ends.
    output : (offset in f32, pixels, elements a pixel, channels) of the output.  values : float32[pixels *
    channels], where it is copied to.

    A change mask is rewritten by its producer on every frame before its consumers read it.
    """
    const = _constants(constants, constant_ends)
    state = _state(kept, kept_ends)
    scratch = _scratch(shared, shared_ends)
    report[:] = 0
    for index in range(len(steps)):
        s = steps[index]
        here = report[index]
        begin = now(scratch.timespec)
        if s.kind == INPUT:
            pixels = s.ho * s.wo
            last = state.u8[s.padded : s.padded + s.cin * pixels]
            changed = state.u8[s.y_mask : s.y_mask + pixels]
            begin_x, size_x = (s.y, s.cin * pixels) if s.y >= 0 else (0, 0)  # none where bytes are read
            x = state.f32[begin_x : begin_x + size_x]
            table, line = const.f32[s.weights :], const.f32[s.line : s.line + (96 if s.line >= 0 else 0)]
            here[2], here[1] = normalise(
                frame, last, table, line, x, changed, all_pixels, threshold, s.cin, s.mask
            )
            here[0] = DENSE if all_pixels else CHANGED if here[2] else CLEAN
        elif s.kind == ELEMENTWISE:
            if s.fused:  # done, timed and reported with the convolution before it
                continue
            _elementwise(s, all_pixels, const, state, scratch, here)
        elif s.kind == POOL:
            _pool(s, all_pixels, state, scratch, here)
        elif s.kind == COPY:
            _copy(s, all_pixels, const, state, here)
        elif s.kind == BILINEAR:
            _bilinear(s, all_pixels, const, state, here)
        else:
            following = min(index + 1, len(steps) - 1)
            e, e_report = steps[following], report[following]
            fused = following > index and e.fused != 0
            if s.kind == FLOAT_CONV:
                _float_conv(s, e, fused, all_pixels, const, state, scratch, here, e_report)
            else:
                _binary_conv(s, e, fused, all_pixels, keep, const, state, scratch, here, e_report)
            continue
        here[3] = now(scratch.timespec) - begin
    offset, pixels, stride, channels = output
    for p in range(pixels):
        for c in range(channels):
            put(values, p * channels + c, get(state.f32, offset + p * stride + c))
