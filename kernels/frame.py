"""One frame through a whole plan without returning to Python.

A convolution may be followed by the elementwise step that reads it ("fused"): the two then take turns, a
band of pixels at a time, so that the program finds the band's sums in the first-level cache. What travels
through memory decides the speed of everything around the convolutions.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from .area import average_rows, bytes_read
from .bitpack import diff_into_padded
from .clock import now
from .elementwise import run_program
from .float_conv import conv_float, conv_patches
from .head import run_head
from .jit import jit
from .layout import SOURCE, copy_pixels, interpolate_pixels
from .listing import list_flips, list_sets
from .normalise import convert_patches, normalise
from .packed import F32, I32, I64, U8, U16, U64, array_at, to_tuple, unpacker
from .pool import pool
from .rows import conv_rows, conv_rows_to_bits, read_ahead
from .set_rows import conv_set_rows
from .simd import get, put
from .sliced import slice_sums
from .step import STEP
from .threshold import threshold_bits
from .window import (
    copy_changed_into_padded,
    copy_into_padded,
    copy_run,
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
    """The plan's weights and tables, one array a dtype.

    output : offset in f32, pixels, elements a pixel and channels of the network's output.
    """

    u64: U64
    f32: F32
    i64: I64
    i32: I32
    u16: U16
    output: I64


class State(NamedTuple):
    """All a stream remembers, one array a dtype."""

    u64: U64
    f32: F32
    u16: U16
    u8: U8


class Scratch(NamedTuple):
    """Arrays that the steps of a frame use in turn, and what they report: int64[n * REPORT]."""

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
    report: I64


_constants, _state, _scratch = unpacker(Constants), unpacker(State), unpacker(Scratch)


class Memory(NamedTuple):
    """Addresses of the packed `Constants`, `State` and `Scratch`.

    Steps take these and unpack what they need: thirty arrays a call would be 1.7 KB of arguments.
    """

    constants: int
    state: int
    scratch: int


#: What a step reports of a frame: path, flips (binary) or (of the input step) pixels that the threshold held
#: back, outputs computed, nanoseconds; of the input step also those of resizing.
REPORT = 5

#: Rows of the image that are resized before a convolution takes them.
BAND_ROWS = 64

INPUT, FLOAT_CONV, ELEMENTWISE, POOL, BINARY_CONV, COPY, BILINEAR = (int(kind) for kind in Kind)
DENSE, CHANGED, ROWS, CLEAN = (int(path) for path in Path)


@jit
def _list_sources(s: Any, memory: Any, first: int, last: int, pixels: Any) -> int:
    """List the pixels from `first` to below `last` that changed in any tensor the step's program reads."""
    const, state = _constants(memory.constants), _state(memory.state)
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
def _clear_targets(s: Any, memory: Any) -> None:
    """Mark every pixel of the tensors the step's program stores as unchanged."""
    const, state = _constants(memory.constants), _state(memory.state)
    for i in range(s.targets):
        at = const.i64[s.target_masks + i]
        state.u8[at : at + s.ho * s.wo] = 0


@jit
def _program(s: Any, memory: Any, pixels: Any, slots: Any, count: int, counts: Any, compare: bool) -> None:
    """Run the step's program; its convolution's sums stand at `slots` of `counts` or `band_f32`."""
    const, state, scratch = _constants(memory.constants), _state(memory.state), _scratch(memory.scratch)
    program = const.i64[s.program : s.program + s.program_size]
    if s.weights_size > 0:
        weights = const.f32[s.weights : s.weights + s.weights_size]
        run_head(
            program, const.f32, const.i32, counts, pixels, slots, count, weights, s, scratch.identity,
            scratch.band_f32, scratch.registers, state.f32[s.y :],
        )  # fmt: skip
        return
    run_program(
        program, s.lanes, const.f32, const.i32, state.f32, state.u16, state.u64, state.u8,
        pixels, slots, count, counts, scratch.band_f32, scratch.registers, compare,
    )  # fmt: skip


@jit
def _elementwise(s: Any, all_pixels: bool, memory: Any, report: Any) -> None:
    """A program by itself."""
    state, scratch = _state(memory.state), _scratch(memory.scratch)
    if all_pixels:
        count = list_all(0, s.ho * s.wo, scratch.pixels)
    else:
        _clear_targets(s, memory)
        count = _list_sources(s, memory, 0, s.ho * s.wo, scratch.pixels)
    _program(s, memory, scratch.pixels, scratch.pixels, count, state.u16, not all_pixels)
    report[0] = DENSE if all_pixels else CHANGED if count else CLEAN
    report[2] = count


@jit
def _pool(s: Any, all_pixels: bool, memory: Any, report: Any) -> None:
    """A pool: the windows that hold a change."""
    state, scratch = _state(memory.state), _scratch(memory.scratch)
    changed = state.u8[s.y_mask : s.y_mask + s.ho * s.wo]
    if all_pixels:
        count = list_all(0, s.ho * s.wo, scratch.pixels)
    else:
        count = list_windows(state.u8[s.x_mask :], s, 0, s.ho, state.u8, scratch.pixels)
        changed[:] = 0
    x, y = state.f32[s.x :], state.f32[s.y :]
    pool(x, s.x_stride, s, scratch.pixels, count, s.average != 0, s.count_padding != 0, y, changed)
    report[0] = DENSE if all_pixels else CHANGED if count else CLEAN
    report[2] = count


@jit
def _copy(s: Any, all_pixels: bool, memory: Any, report: Any) -> None:
    """A concatenation or a nearest upsampling."""
    const, state = _constants(memory.constants), _state(memory.state)
    sources = const.i64[s.program : s.program + s.sources * SOURCE]
    changed = state.u8[s.y_mask : s.y_mask + s.ho * s.wo]
    count = copy_pixels(sources, s, state.f32, state.u8, all_pixels, state.f32[s.y :], changed)
    report[0] = DENSE if all_pixels else CHANGED if count else CLEAN
    report[2] = count


@jit
def _bilinear(s: Any, all_pixels: bool, memory: Any, report: Any) -> None:
    """A bilinear upsampling."""
    const, state = _constants(memory.constants), _state(memory.state)
    changed = state.u8[s.y_mask : s.y_mask + s.ho * s.wo]
    taps, weights = const.i64[s.starts :], const.f32[s.weights :]
    count = interpolate_pixels(
        taps, weights, s, state.f32[s.x :], state.u8[s.x_mask :], all_pixels, state.f32[s.y :], changed
    )
    report[0] = DENSE if all_pixels else CHANGED if count else CLEAN
    report[2] = count


@jit
def _input(
    s: Any,
    image: Any,
    all_pixels: bool,
    threshold: int,
    memory: Any,
    top: int,
    bottom: int,
    report: Any,
) -> None:
    """Rows `top` to below `bottom` of the input: what has changed, and its values where floats are wanted."""
    const, state = _constants(memory.constants), _state(memory.state)
    first, last = top * s.wo, bottom * s.wo
    before = state.u8[s.padded + s.cin * first : s.padded + s.cin * last]
    changed = state.u8[s.y_mask + first : s.y_mask + last]
    begin_x, size_x = (s.y + s.cin * first, s.cin * (last - first)) if s.y >= 0 else (0, 0)
    x = state.f32[begin_x : begin_x + size_x]
    table, line = const.f32[s.weights :], const.f32[s.line : s.line + (96 if s.line >= 0 else 0)]
    rows = image[s.cin * first : s.cin * last]
    new, held = normalise(rows, before, table, line, x, changed, all_pixels, threshold, s.cin, s.mask)
    report[1] += held
    report[2] += new
    report[0] = DENSE if all_pixels else CHANGED if report[2] else CLEAN


@jit
def _unmark(s: Any, e: Any, fused: bool, memory: Any) -> None:
    """Mark as unchanged what a float convolution, or the program `e` fused with it, stores."""
    state = _state(memory.state)
    if fused:
        _clear_targets(e, memory)
    else:
        state.u8[s.y_mask : s.y_mask + s.ho * s.wo] = 0


@jit
def _float_rows(
    s: Any,
    e: Any,
    fused: bool,
    all_pixels: bool,
    memory: Any,
    top: int,
    bottom: int,
    later: Any,
    at: int,
    end: int,
    report: Any,
    e_report: Any,
) -> None:
    """Rows of a float convolution: windows that hold a change; if fused, also the program `e` that reads it.

    later[at:end] : what is read next, to be asked for meanwhile.
    """
    const, state, scratch = _constants(memory.constants), _state(memory.state), _scratch(memory.scratch)
    begin = now(scratch.timespec)
    pixels, from_bytes = scratch.pixels, s.line >= 0
    padded = state.f32[s.padded : s.padded + s.hp * s.wp * s.words]
    if all_pixels:
        count = list_all(top * s.wo, bottom * s.wo, pixels)
    else:
        count = list_windows(state.u8[s.x_mask : s.x_mask + s.h * s.w], s, top, bottom, state.u8, pixels)
        if not fused:
            for i in range(count):
                put(state.u8, s.y_mask + get(pixels, i), np.uint8(1))
    weights = const.f32[s.weights : s.weights + s.weights_size]
    bias = const.f32[s.bias : s.bias + s.lanes]
    starts = const.i64[s.starts : s.starts + s.ho * s.wo]
    segment_at = const.i64[s.segment_at : s.segment_at + s.segments]
    line = const.f32[s.line : s.line + (96 if from_bytes else 0)]
    band = s.band if fused or from_bytes else max(1, count)
    for first in range(0, count, band):
        n = min(band, count - first)
        listed = pixels[first:]
        slots = scratch.identity if fused else listed
        sums = scratch.band_f32 if fused else state.f32[s.y :]
        if from_bytes:
            convert_patches(state.u8[s.x :], line, s, listed, n, scratch.patches)
            at = conv_patches(
                scratch.patches, weights, bias, s, starts, scratch.identity, slots, n, sums, later, at, end
            )  # fmt: skip
        else:
            conv_float(padded, weights, bias, s, starts, segment_at, listed, slots, n, sums)
        if fused:
            middle = now(scratch.timespec)
            _program(e, memory, listed, scratch.identity, n, state.u16, not all_pixels)
            finish = now(scratch.timespec)
            e_report[3] += finish - middle
            begin += finish - middle
    report[2] += count
    report[0] = DENSE if all_pixels else CHANGED if report[2] else CLEAN
    report[3] += now(scratch.timespec) - begin
    if fused:
        e_report[0], e_report[2] = report[0], report[2]


@jit
def _float_conv(
    s: Any,
    e: Any,
    fused: bool,
    all_pixels: bool,
    memory: Any,
    report: Any,
    e_report: Any,
) -> None:
    """A whole float convolution."""
    state, scratch = _state(memory.state), _scratch(memory.scratch)
    begin = now(scratch.timespec)
    x, changed = state.f32[s.x :], state.u8[s.x_mask : s.x_mask + s.h * s.w]
    padded = state.f32[s.padded : s.padded + s.hp * s.wp * s.words]
    if s.line < 0 and s.padded != s.x:
        if all_pixels:
            copy_into_padded(x, s.x_stride, s, padded)
        else:
            copy_changed_into_padded(x, s.x_stride, s, changed, padded)
    if not all_pixels:
        _unmark(s, e, fused, memory)
    report[3] = now(scratch.timespec) - begin
    _float_rows(s, e, fused, all_pixels, memory, 0, s.ho, state.u8, 0, 0, report, e_report)


@jit
def _begin(
    s: Any,
    c: Any,
    e: Any,
    patches: bool,
    fused: bool,
    source: Any,
    resizing: int,
    image: Any,
    all_pixels: bool,
    threshold: int,
    memory: Any,
    report: Any,
    c_report: Any,
    e_report: Any,
) -> None:
    """Resizing, the input and, if `patches`, the convolution `c` that reads it, a band of rows at a time.

    Resizing waits for memory, and a convolution for its arithmetic: the one asks for the other's next rows.
    """
    scratch = _scratch(memory.scratch)
    rows = s.ho
    if patches:
        rows = c.kh * max(1, BAND_ROWS // c.kh)
        if not all_pixels:
            _unmark(c, e, fused, memory)
    for top in range(0, s.ho, rows):
        bottom = min(top + rows, s.ho)
        begin = now(scratch.timespec)
        average_rows(source, resizing, image, top, bottom)
        resized = now(scratch.timespec)
        _input(s, image, all_pixels, threshold, memory, top, bottom, report)
        report[3] += now(scratch.timespec) - resized
        report[4] += resized - begin
        if patches:
            at, end = bytes_read(resizing, bottom, bottom + rows)
            _float_rows(
                c, e, fused, all_pixels, memory, top // c.kh, bottom // c.kh, source, at, end,
                c_report, e_report,
            )  # fmt: skip


@jit
def _binary_conv(
    s: Any,
    e: Any,
    fused: bool,
    all_pixels: bool,
    keep: bool,
    memory: Any,
    report: Any,
    e_report: Any,
) -> None:
    """A binary convolution, and what alone reads it: a sign, or if fused the program `e`.

    Without `keep` the sums that have been read are not needed again, and stay in a band's scratch.
    """
    const, state, scratch = _constants(memory.constants), _state(memory.state), _scratch(memory.scratch)
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
        count = list_all(0, s.ho * s.wo, pixels)
    elif flips == 0:
        path = CLEAN
    elif flips <= s.rows_limit:
        path = ROWS
        list_flips(diff, padded, s, scratch.risen, scratch.fallen, scratch.starts, scratch.list_words)
    elif flips >= 2 * s.h * s.w:  # hardly a window without a flip: looking for one costs more than it saves
        path, count = CHANGED, list_all(0, s.ho * s.wo, pixels)
    else:
        path = CHANGED
        mask = state.u8[s.x_mask : s.x_mask + s.h * s.w]
        mark_flipped(diff, s, mask)
        count = list_windows(mask, s, 0, s.ho, state.u8, pixels)
    if fused and not all_pixels:
        _clear_targets(e, memory)
    if s.planes > 0 and (all_pixels or path == CHANGED) and state.u64[s.in_planes]:
        # the sums that do not change are not at hand
        count, state.u64[s.in_planes] = list_all(0, s.ho * s.wo, pixels), 0
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
    rows = s.band
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
                _program(e, memory, listed, slots, n, sums, False)
            else:
                n = _list_sources(e, memory, first, last, more_pixels)
                _program(e, memory, more_pixels, more_pixels, n, sums, True)
            finish = now(scratch.timespec)
            e_report[2] += n
            e_report[3] += finish - middle
            begin += finish - middle
    report[0], report[1], report[2] = path, flips, computed
    report[3] = now(scratch.timespec) - begin
    if fused:
        e_report[0] = DENSE if all_pixels else CHANGED if e_report[2] else CLEAN


@jit
def run(
    source: Any,
    image: Any,
    resizing: int,
    values: Any,
    all_pixels: bool,
    keep: bool,
    threshold: int,
    places: Any,
) -> None:
    """Run every step of the plan on one frame, and report on each.

    Few arguments: each is a third of a microsecond where caches are cold.

    source, image, resizing : what `Preprocessor.begin` returns: of `average_areas`, which is done here.
    values : float32[pixels * channels], where the output is copied to.
    all_pixels : compute everything (the dense path, and a cached stream's first frame).
    keep : leave what the next cached frame needs (a dense stream does without).
    threshold : of changes that leave an input pixel as it was (`normalise.py`); 0 on a first frame.
    places : int64[5]: where STEP[n] lies, the input's first, and its bytes; and the three of `Memory`.

    A change mask is rewritten by its producer on every frame before its consumers read it.
    """
    plan, plan_bytes, constants, state, scratch = to_tuple(places, 5)
    steps = array_at(plan, plan_bytes, STEP)
    memory, shared = Memory(constants, state, scratch), _scratch(scratch)
    report = shared.report.reshape(-1, REPORT)
    report[:] = 0
    most = len(steps) - 1
    conv, after = min(1, most), min(2, most)
    patches = steps[conv].kind == FLOAT_CONV and steps[conv].line >= 0
    _begin(
        steps[0], steps[conv], steps[after], patches, after > conv and steps[after].fused != 0,
        source.reshape(-1), resizing, image, all_pixels, threshold, memory,
        report[0], report[conv], report[after],
    )  # fmt: skip
    for index in range(2 if patches else 1, len(steps)):
        s, here = steps[index], report[index]
        if s.fused:  # done, timed and reported with the convolution before it
            continue
        begin = now(shared.timespec)
        if s.kind == ELEMENTWISE:
            _elementwise(s, all_pixels, memory, here)
        elif s.kind == POOL:
            _pool(s, all_pixels, memory, here)
        elif s.kind == COPY:
            _copy(s, all_pixels, memory, here)
        elif s.kind == BILINEAR:
            _bilinear(s, all_pixels, memory, here)
        else:
            following = min(index + 1, most)
            e, e_report = steps[following], report[following]
            fused = following > index and e.fused != 0
            if s.kind == FLOAT_CONV:
                _float_conv(s, e, fused, all_pixels, memory, here, e_report)
            else:
                _binary_conv(s, e, fused, all_pixels, keep, memory, here, e_report)
            continue
        here[3] = now(shared.timespec) - begin
    offset, pixels, stride, channels = to_tuple(_constants(constants).output, 4)
    for p in range(pixels):
        copy_run(_state(state).f32, offset + p * stride, values, p * channels, channels)
