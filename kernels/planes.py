"""Bit planes: 512 small integers in a few vectors, plane j holding bit j of each.

A tuple of vectors, lowest plane first, is kept in registers; a full adder adds three planes in two
operations. Channels come out of planes by transposing bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from .simd import (
    I1,
    I8,
    I16,
    I32,
    I64,
    U64,
    Vector,
    emit_call,
    intrinsic,
    splat_value,
    target_has,
    vector_pointer,
)


def _full_adder(
    context: Any, builder: Any, truth_table: int, fallback: Callable[..., Any], *args: Any
) -> Any:
    if not target_has(context, "avx512f"):
        return fallback(builder, *args)
    return emit_call(builder, "llvm.x86.avx512.pternlog.q.512", *args, I32(truth_table))


def _ternary(truth_table: int, fallback: Callable[..., Any]) -> Any:
    """A bitwise function of three vectors: one vpternlog where there is one, else `fallback`.

    LLVM does not find the majority function by itself.
    """

    def typed(_typing: Any, a: Any, b: Any, c: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _full_adder(context, builder, truth_table, fallback, *args)

        return U64(U64, U64, U64), emit

    return typed


def _xor3(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.xor(builder.xor(a, b), c)


def _majority(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.or_(builder.and_(a, b), builder.and_(c, builder.or_(a, b)))


#: Sum bit of the full adder: a ^ b ^ c.
xor3 = intrinsic(_ternary(0x96, _xor3))
#: Carry bit of the full adder: at least two of a, b, c.
majority = intrinsic(_ternary(0xE8, _majority))


def _borrow(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.or_(builder.and_(b, c), builder.and_(builder.not_(a), builder.or_(b, c)))


#: Borrow bit of the full subtractor a - b - c: at least two of ~a, b, c.
borrow = intrinsic(_ternary(0x8E, _borrow))


def _bit_plane(builder: Any, numbers: Any, bit: Any) -> Any:
    last = ir.Constant(numbers.type, [63] * numbers.type.count)
    shift = builder.sub(last, splat_value(builder, bit, numbers.type.count))
    return builder.ashr(builder.shl(numbers, shift), last)


@intrinsic
def bit_plane(_typing: Any, numbers: Any, bit: Any) -> Any:
    """All bits of a 64-bit lane 1 where the lane's number has this bit, else 0."""

    def emit(_context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _bit_plane(builder, *args)

    return numbers(numbers, types.intp), emit


@intrinsic
def add_seven(_typing: Any, array: Any, at: Any, delta: Any, numbers: Any, below: Any) -> Any:
    """Add delta + 1 into the seven planes of the array from `at` on, and subtract numbers // 2 from the sums.

    delta : planes, lowest first.  numbers : 64-bit lanes.  below : the borrow into the subtraction, of which
    only the borrows are kept. Returns (carry, borrow) out of the seventh plane.
    """
    vector = delta.dtype

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array_value, at_value, delta_value, numbers_value, below_value = args
        kind = context.get_value_type(vector)
        carry = builder.not_(ir.Constant(kind, None))
        for i in range(7):
            index = builder.add(at_value, at_value.type(i * 8))
            pointer = vector_pointer(context, builder, sig.args[0], array_value, index, kind)
            old, new = builder.load(pointer, align=8), builder.extract_value(delta_value, i)
            total = _full_adder(context, builder, 0x96, _xor3, old, new, carry)
            carry = _full_adder(context, builder, 0xE8, _majority, old, new, carry)
            builder.store(total, pointer, align=8)
            half = _bit_plane(builder, numbers_value, at_value.type(i + 1))
            below_value = _full_adder(context, builder, 0x8E, _borrow, total, half, below_value)
        return context.make_tuple(builder, sig.return_type, [carry, below_value])

    return types.UniTuple(vector, 2)(array, types.intp, delta, numbers, below), emit


@intrinsic
def ripple(_typing: Any, planes: Any, carry: Any, first: Any) -> Any:
    """Add a carry into plane `first` (a literal) of numbers whose bits stand in planes, lowest first."""
    if not isinstance(first, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = [builder.extract_value(args[0], i) for i in range(len(planes))]
        carry_value = args[1]
        for i in range(first.literal_value, len(planes)):
            values[i], carry_value = (
                builder.xor(values[i], carry_value),
                builder.and_(values[i], carry_value),
            )
        return context.make_tuple(builder, sig.return_type, values)

    return planes(planes, carry, first), emit


@intrinsic
def complement(_typing: Any, tile: Any) -> Any:
    """Every bit of every vector inverted."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        inverted = [builder.not_(builder.extract_value(args[0], i)) for i in range(len(tile))]
        return context.make_tuple(builder, tile, inverted)

    return tile(tile), emit


@intrinsic
def tuple_of(_typing: Any, vector: Any, count: Any) -> Any:
    """A tuple of `count` (a literal) times the vector."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(vector, count.literal_value)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.make_tuple(builder, result, [args[0]] * result.count)

    return result(vector, count), emit


@intrinsic
def with_first(_typing: Any, planes: Any, first: Any) -> Any:
    """The tuple `planes`, its first vectors replaced by those of the tuple `first`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = [builder.extract_value(args[1 if i < len(first) else 0], i) for i in range(len(planes))]
        return context.make_tuple(builder, planes, values)

    return planes(planes, first), emit


@intrinsic
def load_planes(_typing: Any, array: Any, at: Any, count: Any) -> Any:
    """A tuple of `count` (a literal) vectors that stand one after the other."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    vector = Vector(array.dtype)
    result = types.UniTuple(vector, count.literal_value)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(vector)
        values = []
        for i in range(result.count):
            index = builder.add(args[1], args[1].type(i * vector.count))
            pointer = vector_pointer(context, builder, sig.args[0], args[0], index, kind)
            values.append(builder.load(pointer, align=8))
        return context.make_tuple(builder, result, values)

    return result(array, types.intp, count), emit


@intrinsic
def add_into_planes(_typing: Any, array: Any, at: Any, count: Any, planes: Any) -> Any:
    """Add the numbers in `planes` to those in `count` (a literal) planes of the array, from `at` on."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(planes.dtype)
        carry = ir.Constant(kind, None)
        for i in range(count.literal_value):
            index = builder.add(args[1], args[1].type(i * 8))
            pointer = vector_pointer(context, builder, sig.args[0], args[0], index, kind)
            old = builder.load(pointer, align=8)
            if i < len(planes):
                new = builder.extract_value(args[3], i)
                total = _full_adder(context, builder, 0x96, _xor3, old, new, carry)
                carry = _full_adder(context, builder, 0xE8, _majority, old, new, carry)
            else:
                total, carry = builder.xor(old, carry), builder.and_(old, carry)
            builder.store(total, pointer, align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, count, planes), emit


def _transpose8(builder: Any, values: list[Any]) -> list[Any]:
    """Eight vectors of eight uint64 lanes, rows of a matrix -> its columns. 24 shuffles."""
    for span in (1, 2, 4):  # exchange blocks of `span` lanes between rows `span` apart
        lanes = range(8)
        low = [i if not i & span else i - span + 8 for i in lanes]
        high = [i + span if not i & span else i + 8 for i in lanes]
        new = list(values)
        for i in lanes:
            if not i & span:
                a, b = values[i], values[i + span]
                for at, order in ((i, low), (i + span, high)):
                    new[at] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 8), order))
        values = new
    return values


def _plane_counts(context: Any, builder: Any, planes: Any) -> Any:
    """<64 x i8> counts of 64 channels from <8 x i64>, one word of eight bit planes, lowest first.

    A byte shuffle puts the planes of eight channels into one 8x8 bit matrix; one affine transform over GF(2)
    (GFNI) of the identity transposes all eight.
    """
    wide = ir.VectorType(I8, 64)
    if target_has(context, "gfni") and target_has(context, "avx512bw"):
        data = builder.bitcast(planes, wide)
        # The instruction's matrix row k is byte 7 - k.
        order = [(7 - i % 8) * 8 + i // 8 for i in range(64)]
        data = builder.shuffle_vector(data, data, ir.Constant(ir.VectorType(I32, 64), order))
        identity = ir.Constant(wide, [1 << i % 8 for i in range(64)])
        return emit_call(builder, "llvm.x86.vgf2p8affineqb.512", identity, data, I8(0))
    counts = ir.Constant(wide, None)
    for j in range(8):
        word = builder.extract_element(planes, I32(j))
        flags = builder.bitcast(word, ir.VectorType(I1, 64))
        weight = ir.Constant(wide, [1 << j] * 64)
        counts = builder.or_(counts, builder.select(flags, weight, ir.Constant(wide, None)))
    return counts


def _planes_of(context: Any, builder: Any, numbers: Any) -> Any:
    """<8 x i64>, word j the bits j of <64 x i8>: the inverse of `_plane_counts`."""
    words = ir.VectorType(I64, 8)
    if target_has(context, "gfni") and target_has(context, "avx512bw"):
        data = builder.shuffle_vector(
            numbers, numbers, ir.Constant(ir.VectorType(I32, 64), [i ^ 7 for i in range(64)])
        )
        identity = ir.Constant(numbers.type, [1 << i % 8 for i in range(64)])
        data = emit_call(builder, "llvm.x86.vgf2p8affineqb.512", identity, data, I8(0))
        order = [i % 8 * 8 + i // 8 for i in range(64)]
        data = builder.shuffle_vector(data, data, ir.Constant(ir.VectorType(I32, 64), order))
        return builder.bitcast(data, words)
    result = ir.Constant(words, None)
    for j in range(8):
        found = builder.and_(numbers, ir.Constant(numbers.type, [1 << j] * 64))
        flags = builder.icmp_unsigned("!=", found, ir.Constant(numbers.type, None))
        result = builder.insert_element(result, builder.bitcast(flags, I64), I32(j))
    return result


@intrinsic
def store_planes(_typing: Any, array: Any, at: Any, count: Any, numbers: Any) -> Any:
    """Write the lowest `count`, 8 to 16, bit planes of uint16 numbers[512] to the array, from `at` on."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array_value, at_value, count_value, numbers_value = args
        columns: list[list[Any]] = [[], []]
        short, wide = ir.VectorType(I16, 64), ir.VectorType(I8, 64)
        for word in range(8):
            index = at_value.type(64 * word)
            pointer = vector_pointer(context, builder, sig.args[3], numbers_value, index, short)
            values = builder.load(pointer, align=2)
            for half in range(2):
                shifted = builder.lshr(values, ir.Constant(short, [8 * half] * 64))
                columns[half].append(_planes_of(context, builder, builder.trunc(shifted, wide)))
        planes = [plane for half in columns for plane in _transpose8(builder, half)]
        for j, plane in enumerate(planes):
            with builder.if_then(builder.icmp_signed(">", count_value, count_value.type(j)), likely=True):
                index = builder.add(at_value, at_value.type(8 * j))
                pointer = vector_pointer(context, builder, sig.args[0], array_value, index, plane.type)
                builder.store(plane, pointer, align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, numbers), emit


def _sixteen_bit_halves(builder: Any, values: Any, signed: bool) -> list[Any]:
    """<64 x i8> -> two <32 x i16>."""
    halves = []
    for first in (0, 32):
        order = ir.Constant(ir.VectorType(I32, 32), list(range(first, first + 32)))
        half = builder.shuffle_vector(values, values, order)
        wide = ir.VectorType(I16, 32)
        halves.append(builder.sext(half, wide) if signed else builder.zext(half, wide))
    return halves


@intrinsic
def subtract_twice(_typing: Any, counts: Any, at: Any, more: Any, words: Any, planes: Any) -> Any:
    """uint16 counts[at + 64 * w + c] += more[w] - 2 * (channel c of word w), for w below `words`.

    planes : eight vectors, the bits of an eight-bit integer with a sign for each of 8 words of 64 channels.
    more : a vector of eight 64-bit lanes, of which the low 16 bits count.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array_value, at_value, more_value, words_value, planes_value = args
        columns = _transpose8(builder, [builder.extract_value(planes_value, i) for i in range(8)])
        mores = builder.bitcast(more_value, ir.VectorType(I16, 32))
        for w, column in enumerate(columns):
            with builder.if_then(builder.icmp_signed(">", words_value, words_value.type(w)), likely=True):
                spread = ir.Constant(ir.VectorType(I32, 32), [4 * w] * 32)
                add = builder.shuffle_vector(mores, mores, spread)
                values = _plane_counts(context, builder, column)
                for i, half in enumerate(_sixteen_bit_halves(builder, values, signed=True)):
                    index = builder.add(at_value, at_value.type(64 * w + 32 * i))
                    pointer = vector_pointer(context, builder, sig.args[0], array_value, index, add.type)
                    total = builder.add(builder.load(pointer, align=2), add)
                    builder.store(builder.sub(total, builder.add(half, half)), pointer, align=2)
        return context.get_dummy_value()

    return types.void(counts, types.intp, more, types.intp, planes), emit


@intrinsic
def store_minus_twice(
    _typing: Any, out: Any, at: Any, base: Any, base_at: Any, more: Any, planes: Any
) -> Any:
    """uint16 out[at + c] = base[base_at + c] + more - 2 * (channel c), for 512 channels.

    planes : up to sixteen vectors, the bits of an integer >= 0 for each of 8 words of 64 channels.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        out_value, at_value, base_value, base_at_value, more_value, planes_value = args
        values = [builder.extract_value(planes_value, i) for i in range(len(planes))]
        values += [ir.Constant(values[0].type, None)] * (16 - len(values))
        short = ir.VectorType(I16, 32)
        add = splat_value(builder, more_value, 32)
        low, high = _transpose8(builder, values[:8]), _transpose8(builder, values[8:])
        for w in range(8):
            bytes_of = [_plane_counts(context, builder, column[w]) for column in (low, high)]
            halves = [_sixteen_bit_halves(builder, each, signed=False) for each in bytes_of]
            for i in range(2):
                upper = builder.shl(halves[1][i], ir.Constant(short, [9] * 32))
                lower = builder.shl(halves[0][i], ir.Constant(short, [1] * 32))
                twice = builder.or_(upper, lower)
                index = builder.add(base_at_value, base_at_value.type(64 * w + 32 * i))
                pointer = vector_pointer(context, builder, sig.args[2], base_value, index, short)
                total = builder.sub(builder.add(builder.load(pointer, align=2), add), twice)
                index = builder.add(at_value, at_value.type(64 * w + 32 * i))
                pointer = vector_pointer(context, builder, sig.args[0], out_value, index, short)
                builder.store(total, pointer, align=2)
        return context.get_dummy_value()

    return types.void(out, types.intp, base, types.intp, types.uint16, planes), emit
