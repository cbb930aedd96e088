"""One frame through a whole plan without returning to Python."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from .bitpack import diff_into_padded
from .clock import now
from .elementwise import normalise, run_program
from .float_conv import conv_float
from .jit import jit
from .pool import pool
from .rows import conv_rows, list_flips
from .step import STEP
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


class Path(IntEnum):
    """How a step was computed on a frame: everything, only what changed by the dense or the rows kernel, or nothing."""

    DENSE = 0
    CHANGED = 1
    ROWS = 2
    CLEAN = 3


#: What a step reports of a frame: path, flips (binary) or changed inputs, outputs computed, nanoseconds.
REPORT = 4

INPUT, FLOAT_CONV, ELEMENTWISE, POOL, BINARY_CONV = (int(kind) for kind in Kind)
DENSE, CHANGED, ROWS, CLEAN = (int(path) for path in Path)


@jit
def run(
    steps: Any,
    frame: Any,
    all_pixels: bool,
    keep: bool,
    report: Any,
    const_u64: Any,
    const_f32: Any,
    const_i64: Any,
    const_i32: Any,
    const_u16: Any,
    u64: Any,
    f32: Any,
    u16: Any,
    u8: Any,
    entries: Any,
    places: Any,
    row_starts: Any,
    pixels: Any,
    registers: Any,
    planes: Any,
    timespec: Any,
) -> None:
    """Run every step of the plan on one frame, and report on each.

    steps : STEP[n].  frame : uint8[h * w * 3], resized and cropped.
    all_pixels : compute everything (the dense path, and a cached stream's first frame).
    keep : leave what the next cached frame needs (a dense stream does without).
    report : int64[n, REPORT].  const_* : the plan's constants.  u64, f32, u16, u8 : the stream's state.
    The rest is scratch shared by the steps.

    A change mask is rewritten by its producer on every frame before its consumers read it.
    """
    begin = now(timespec)
    for index in range(len(steps)):
        s = steps[index]
        path, flips, outputs = DENSE, 0, s.ho * s.wo
        y_mask = u8[s.y_mask : s.y_mask + outputs]

        if s.kind == INPUT:
            last = u8[s.padded : s.padded + outputs * 3]
            table = const_f32[s.weights : s.weights + 768]
            x = f32[s.y : s.y + outputs * 3]
            flips = normalise(frame, last, table, x, y_mask, all_pixels)
            outputs = flips

        elif s.kind == BINARY_CONV:
            x = u64[s.x : s.x + s.h * s.w * s.words]
            padded = u64[s.padded : s.padded + s.hp * s.wp * s.words]
            diff = u64[s.diff : s.diff + s.hp * s.wp * s.words]
            mismatches = u16[s.y :]
            if not keep:
                copy_into_padded(x, s.words, s, padded)
            else:
                flips = diff_into_padded(x, s, padded, diff)
            if all_pixels:
                count = list_all(outputs, pixels)
            elif flips == 0:
                path, count = CLEAN, 0
                y_mask[:] = 0
            elif flips <= s.rows_limit:
                path, count = ROWS, 0
                list_flips(diff, padded, s, entries, row_starts)
                table = const_u64[s.table : s.table + s.table_size]
                outputs = conv_rows(entries, row_starts, table, s, places, planes, mismatches, y_mask)
            else:
                path = CHANGED
                mask = u8[s.x_mask : s.x_mask + s.h * s.w]
                mark_flipped(diff, s, mask)
                count = list_windows(mask, s, u8[: s.h * s.wo], pixels)
                y_mask[:] = 0
                for i in range(count):
                    y_mask[pixels[i]] = 1
            if count:
                weights = const_u64[s.weights : s.weights + s.weights_size]
                starts = const_i64[s.starts : s.starts + s.ho * s.wo]
                segment_at = const_i64[s.segment_at : s.segment_at + s.segments]
                lane_starts = const_i64[s.lane_starts : s.lane_starts + s.ho * s.wo]
                conv_xnor(padded, weights, s, starts, segment_at, pixels, count, mismatches, lane_starts)
                if s.classes >= 0:
                    classes = const_i64[s.classes : s.classes + s.ho * s.wo]
                    subtract_outside(mismatches, s, classes, const_u16[s.outside :], pixels, count)
            if path != ROWS:
                outputs = count

        elif s.kind == ELEMENTWISE:
            if all_pixels:
                count = list_all(outputs, pixels)
            else:
                y_mask[:] = 0
                for i in range(s.sources):
                    source = u8[const_i64[s.source_masks + i] :]
                    for p in range(outputs):
                        y_mask[p] |= source[p]
                count = list_changed(y_mask, pixels)
                for i in range(s.targets):
                    at = const_i64[s.target_masks + i]
                    u8[at : at + outputs] = 0
                path = CHANGED if count else CLEAN
            program = const_i64[s.program : s.program + s.program_size]
            run_program(program, s.lanes, const_f32, const_i32, f32, u16, u64, u8, pixels, count, registers)
            flips = outputs = count

        else:
            mask = u8[s.x_mask : s.x_mask + s.h * s.w]
            if all_pixels:
                count = list_all(outputs, pixels)
            else:
                count = list_windows(mask, s, u8[: s.h * s.wo], pixels)
                y_mask[:] = 0
                path = CHANGED if count else CLEAN
            outputs = count
            x = f32[s.x : s.x + s.h * s.w * s.x_stride]
            y = f32[s.y : s.y + s.ho * s.wo * s.lanes]
            if s.kind == POOL:
                pool(x, s.x_stride, s, pixels, count, s.average != 0, s.count_padding != 0, y, y_mask)
            elif count:
                padded_f = f32[s.padded : s.padded + s.hp * s.wp * s.words]
                if all_pixels:
                    copy_into_padded(x, s.x_stride, s, padded_f)
                else:
                    flips = copy_changed_into_padded(x, s.x_stride, s, mask, padded_f)
                weights_f = const_f32[s.weights : s.weights + s.weights_size]
                bias = const_f32[s.bias : s.bias + s.lanes]
                starts = const_i64[s.starts : s.starts + s.ho * s.wo]
                segment_at = const_i64[s.segment_at : s.segment_at + s.segments]
                lane_starts = const_i64[s.lane_starts : s.lane_starts + s.ho * s.wo]
                conv_float(padded_f, weights_f, bias, s, starts, segment_at, pixels, count, y, lane_starts)
                for i in range(count):
                    y_mask[pixels[i]] = 1

        end = now(timespec)
        report[index, 0] = path
        report[index, 1] = flips
        report[index, 2] = outputs
        report[index, 3] = end - begin
        begin = end
