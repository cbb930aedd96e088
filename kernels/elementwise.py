"""Everything between two convolutions, fused: a program run over a list of pixels.

A program is a list of instructions on registers; a register holds one value a channel for a block of
pixels small enough to stay in the first-level cache. Each instruction rounds as its layer's definition
says (product and sum apart), so a fused chain equals its layers run one after another.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from .bitpack import pack_pixel
from .jit import jit
from .simd import (
    clip,
    counts_to_dots,
    differs,
    divide,
    exp,
    get,
    load,
    nonnegative_bits,
    prelu,
    put,
    relu,
    splat,
    store,
)

#: float32 values a register holds (4 KB), or one pixel's channels where those are more.
REGISTER = 1024
#: int64 fields of an instruction: operation, target register, and up to eight operands.
FIELDS = 10


class Op(IntEnum):
    """Operations and their operands: r the target register, the rest registers, sizes or arena offsets."""

    LOAD = 0  #: r, float32 tensor, elements a pixel
    DOTS = 1  #: r, uint16 mismatches, lanes a pixel, constants alpha and bias, int32 valid bits a pixel
    AFFINE = 2  #: r, source register, constants scale, constants shift
    RELU = 3  #: r, source register
    ADD = 4  #: r, source register, source register
    STORE = 5  #: r, float32 tensor, elements a pixel, change mask
    SIGN = 6  #: r, uint64 bits, words a pixel, channels
    OWN_VALUES = 7  #: r; the sums of the float convolution this program is fused with
    OWN_DOTS = 8  #: r, -, lanes a pixel, then as DOTS; of the binary convolution it is fused with
    PRELU = 9  #: r, source register, constants slope
    CLIP = 10  #: r, source register, constants low and high, one of each
    SOFTMAX = 11  #: r, source register, channels
    OWN_SIGN = 12  #: -, bits, words and channels as SIGN, constants scale and shift: 7, 2 and 6 at once


#: What may follow at once, at these fields of DOTS and OWN_DOTS, -1 where it does not: constants scale and
#: shift as of AFFINE, slope as of PRELU. Another pass over the registers would cost as much as the first.
SCALE_FIELD, SHIFT_FIELD, SLOPE_FIELD = 7, 8, 9

LOAD, DOTS, AFFINE, RELU, ADD, STORE, SIGN, OWN_VALUES, OWN_DOTS, PRELU, CLIP, SOFTMAX, OWN_SIGN = (
    int(op) for op in Op
)


@jit
def run_program(
    program: Any,
    width: int,
    constants: Any,
    valid: Any,
    floats: Any,
    counts: Any,
    bits: Any,
    masks: Any,
    pixels: Any,
    slots: Any,
    count: int,
    own_counts: Any,
    own_values: Any,
    registers: Any,
    compare: bool,
) -> None:
    """Run the program over the listed pixels.

    program : int64[n * FIELDS].  width : channels, padded to a multiple of 32.  constants : float32.
    valid : int32.  floats, counts, bits, masks : the stream's float32, uint16, uint64 and uint8 arenas.
    slots : int64, where each listed pixel's own sums stand, in pixels of own_counts (uint16) or own_values
    (float32).  registers : float32[r * max(REGISTER, width)].
    compare : mark each stored pixel as changed if any of its bits differs; else no mark means anything.
    """
    span = max(1024, width)
    block = span // width
    for first in range(0, count, block):
        n = min(block, count - first)
        for at in range(0, len(program), FIELDS):
            op = program[at]
            target = program[at + 1] * span
            a, b, c, d = program[at + 2], program[at + 3], program[at + 4], program[at + 5]
            if op == LOAD:
                for i in range(n):
                    source = a + pixels[first + i] * b
                    for lane in range(0, width, 16):
                        store(registers, target + i * width + lane, load(floats, source + lane))
            elif op in (DOTS, OWN_DOTS):
                bits_inside = program[at + 6]
                scale_at, shift_at = program[at + SCALE_FIELD], program[at + SHIFT_FIELD]
                slope_at = program[at + SLOPE_FIELD]
                places = pixels if op == DOTS else slots
                sums = counts if op == DOTS else own_counts
                for i in range(n):
                    inside = get(valid, bits_inside + pixels[first + i])
                    source = a + places[first + i] * b
                    for lane in range(0, width, 16):
                        dots = counts_to_dots(sums, source + lane, inside)
                        value = dots * load(constants, c + lane) + load(constants, d + lane)
                        if scale_at >= 0:
                            scale, shift = load(constants, scale_at + lane), load(constants, shift_at + lane)
                            value = value * scale + shift
                        if slope_at >= 0:
                            value = prelu(value, load(constants, slope_at + lane))
                        store(registers, target + i * width + lane, value)
            elif op == OWN_VALUES:
                for i in range(n):
                    for lane in range(0, width, 16):
                        value = load(own_values, slots[first + i] * width + lane)
                        store(registers, target + i * width + lane, value)
            elif op == OWN_SIGN:  # what stands behind a stem, at every pixel it computes
                shift_at = program[at + 6]
                for i in range(n):
                    source, to = slots[first + i] * width, a + pixels[first + i] * b
                    for word in range(b):
                        signs = np.uint64(0)
                        for lane in range(0, min(64, c - word * 64), 16):
                            own = word * 64 + lane
                            scale, shift = load(constants, d + own), load(constants, shift_at + own)
                            value = load(own_values, source + own) * scale + shift
                            signs |= nonnegative_bits(value) << np.uint64(lane)
                        if c - word * 64 < 64:
                            signs &= (np.uint64(1) << np.uint64(c - word * 64)) - np.uint64(1)
                        put(bits, to + word, signs)
            elif op == AFFINE:
                source = a * span
                for lane in range(0, width, 16):
                    scale, shift = load(constants, b + lane), load(constants, c + lane)
                    for i in range(lane, n * width, width):
                        store(registers, target + i, load(registers, source + i) * scale + shift)
            elif op == RELU:
                for i in range(0, n * width, 16):
                    store(registers, target + i, relu(load(registers, a * span + i)))
            elif op == PRELU:
                source = a * span
                for lane in range(0, width, 16):
                    slope = load(constants, b + lane)
                    for i in range(lane, n * width, width):
                        store(registers, target + i, prelu(load(registers, source + i), slope))
            elif op == CLIP:
                low, high = splat(get(constants, b)), splat(get(constants, b + 1))
                for i in range(0, n * width, 16):
                    store(registers, target + i, clip(load(registers, a * span + i), low, high))
            elif op == ADD:
                for i in range(0, n * width, 16):
                    total = load(registers, a * span + i) + load(registers, b * span + i)
                    store(registers, target + i, total)
            elif op == SOFTMAX:
                for i in range(n):
                    _softmax(registers, a * span + i * width, target + i * width, width, b)
            elif op == STORE:
                for i in range(n):
                    p = pixels[first + i]
                    new = False
                    for lane in range(0, width, 16):
                        value = load(registers, target + i * width + lane)
                        if compare:
                            new |= differs(value, load(floats, a + p * b + lane))
                        store(floats, a + p * b + lane, value)
                    masks[c + p] = new
            else:
                for i in range(n):
                    pack_pixel(registers, target + i * width, bits, a + pixels[first + i] * b, c)


@jit
def _softmax(registers: Any, source: int, target: int, width: int, channels: int) -> None:
    """One pixel, as model.Softmax defines it; zeros behind its channels."""
    most = get(registers, source)
    for c in range(1, channels):
        value = get(registers, source + c)
        most = value if value > most else most
    for lane in range(0, width, 16):
        store(registers, target + lane, exp(load(registers, source + lane) - splat(most)))
    total = get(registers, target)
    for c in range(1, channels):
        total += get(registers, target + c)
    for lane in range(0, width, 16):
        store(registers, target + lane, divide(load(registers, target + lane), splat(total)))
    for c in range(channels, width):
        put(registers, target + c, np.float32(0))
