"""512-bit vector values for Numba: a kernel written with them reads like plain code.

A vector is a Numba type whose data model is an LLVM vector; every operation below emits one LLVM
operation, which LLVM lowers to AVX-512, or splits for AVX2 and NEON. The kind of vector follows from
the array it is loaded from or the scalar it is made of:

    uint64 -> 8 lanes    uint16 -> 32 lanes    int32, float32 -> 16 lanes

`load(a, i)` and friends address element i of the flattened contiguous array `a`, unchecked and without
Numba's negative-index wraparound. Vectors support + - * & | ^ among themselves.

A tile is a tuple of vectors kept in registers: an accumulator block of a register-tiled kernel.
"""

from __future__ import annotations

import mmap
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, extending, types
from numba.core.datamodel import models
from numba.core.extending import register_model
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

#: Numba's hints give a called intrinsic the arguments of its definition, the typing context included.
intrinsic: Any = extending.intrinsic

VECTOR_BITS = 512
I1, I8, I16, I32, I64, F32 = (
    ir.IntType(1),
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.FloatType(),
)


class Vector(types.Type):
    """Numba type of a 512-bit vector with lanes of the scalar type `lane`."""

    def __init__(self, lane: Any) -> None:
        self.lane = lane
        self.count = VECTOR_BITS // lane.bitwidth
        super().__init__(name=f"vector({lane} x {self.count})")


class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        lane = F32 if vector.lane == types.float32 else ir.IntType(vector.lane.bitwidth)
        super().__init__(manager, vector, ir.VectorType(lane, vector.count))


register_model(Vector)(_VectorModel)

U64 = Vector(types.uint64)
U8 = Vector(types.uint8)
U16 = Vector(types.uint16)
I32V = Vector(types.int32)
F32V = Vector(types.float32)


def _register_operator(key: Callable[..., Any], on_integers: str, on_floats: str | None) -> None:
    """Let `key` work on two vectors of one type through the LLVM builder's methods of the names given."""

    class Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) != 2 or not isinstance(args[0], Vector) or args[0] != args[1]:
                return None
            return None if args[0] == F32V and on_floats is None else signature(args[0], *args)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, str(on_floats) if sig.return_type == F32V else on_integers)(*args)

    infer_global(key)(Typing)
    lower_builtin(key, Vector, Vector)(lower)


for _keys, _on_integers, _on_floats in (
    ((operator.add, operator.iadd), "add", "fadd"),
    ((operator.sub, operator.isub), "sub", "fsub"),
    ((operator.mul, operator.imul), "mul", "fmul"),
    ((operator.and_, operator.iand), "and_", None),
    ((operator.or_, operator.ior), "or_", None),
    ((operator.xor, operator.ixor), "xor", None),
):
    for _key in _keys:
        _register_operator(_key, _on_integers, _on_floats)


# --- memory ---------------------------------------------------------------------------------------


def _lane_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def vector_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: Any) -> Any:
    pointer = _lane_pointer(context, builder, array_type, array, index)
    return builder.bitcast(pointer, vector.as_pointer())


@intrinsic
def load(_typing: Any, array: Any, index: Any) -> Any:
    """Vector of the lanes at elements index, index + 1, ... of the array."""
    vector = Vector(array.dtype)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(vector)
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], kind)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), emit


@intrinsic
def load_some(_typing: Any, array: Any, index: Any, count: Any) -> Any:
    """`load` of the first `count` of eight 64-bit lanes, 0 in the others; nothing behind them is read."""
    vector = Vector(array.dtype)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(vector)
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], kind)
        lanes = ir.Constant(kind, list(range(8)))
        mask = builder.icmp_signed("<", lanes, splat_value(builder, args[2], 8))
        signature = ir.FunctionType(kind, [pointer.type, I32, mask.type, kind])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.masked.load.v8i64.p0")
        return builder.call(function, [pointer, I32(8), mask, ir.Constant(kind, None)])

    return vector(array, types.intp, types.intp), emit


@intrinsic
def prefetch(_typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of an element; nothing waits for it."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], I8)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, (pointer, I32(0), I32(3), I32(1)))
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def store(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write the vector's lanes to elements index, index + 1, ... of the array."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], args[2].type)
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), emit


@intrinsic
def store_some(_typing: Any, array: Any, index: Any, value: Any, count: Any) -> Any:
    """`store` of the first `count` of eight 64-bit lanes; nothing behind them is touched."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[2].type
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], kind)
        mask = builder.icmp_signed("<", ir.Constant(kind, list(range(8))), splat_value(builder, args[3], 8))
        signature = ir.FunctionType(ir.VoidType(), [kind, pointer.type, I32, mask.type])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.masked.store.v8i64.p0")
        builder.call(function, [args[2], pointer, I32(8), mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, value, types.intp), emit


@intrinsic
def get(_typing: Any, array: Any, index: Any) -> Any:
    """Scalar element `index`, without a bounds or sign check."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_lane_pointer(context, builder, sig.args[0], args[0], args[1]))

    return array.dtype(array, types.intp), emit


@intrinsic
def put(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value, a scalar of the array's type, without a bounds or sign check."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _lane_pointer(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), emit


@intrinsic
def splat(_typing: Any, scalar: Any) -> Any:
    """Vector with every lane equal to the (typed) scalar."""
    vector = Vector(scalar)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return splat_value(builder, args[0], vector.count)

    return vector(scalar), emit


def splat_value(builder: Any, scalar: Any, count: int) -> Any:
    one = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, count), [0] * count))


# --- lanes ----------------------------------------------------------------------------------------


def emit_call(builder: Any, name: str, *args: Any) -> Any:
    """Call an LLVM intrinsic of its first argument's type; llvmlite's own wrappers refuse vectors."""
    kind = ir.FunctionType(args[0].type, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _popcount(builder: Any, value: Any) -> Any:
    kind = value.type
    suffix = f"v{kind.count}i{kind.element.width}" if isinstance(kind, ir.VectorType) else f"i{kind.width}"
    return emit_call(builder, f"llvm.ctpop.{suffix}", value)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return emit_call(builder, f"llvm.fma.v{a.type.count}f32", a, b, c)


def target_has(context: Any, feature: str) -> bool:
    """Whether the target of this compilation has the processor feature."""
    return f"+{feature}," in f"{context.codegen().magic_tuple()[2]},"


def has_byte_compress() -> bool:
    """Whether `list_bits` compiles for this machine; a loop over set bits takes its place elsewhere."""
    from numba.core.registry import cpu_target

    return target_has(cpu_target.target_context, "avx512vbmi2")


def has_byte_permute() -> bool:
    """Whether `pick_bytes` is one instruction on this machine."""
    from numba.core.registry import cpu_target

    return target_has(cpu_target.target_context, "avx512vbmi")


@intrinsic
def popcount(_typing: Any, value: Any) -> Any:
    """Set bits of each lane, or of a uint64 scalar."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _popcount(builder, args[0])

    return value(value), emit


@intrinsic
def trailing_zeros(_typing: Any, word: Any) -> Any:
    """Index of the lowest set bit of a uint64 (64 for zero), as intp."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], I1(0))

    return types.intp(types.uint64), emit


@intrinsic
def fma(_typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _fma(builder, *args)

    return F32V(F32V, F32V, F32V), emit


@intrinsic
def relu(_typing: Any, value: Any) -> Any:
    """x where x > 0, else +0."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[0], zero)

    return F32V(F32V), emit


@intrinsic
def prelu(_typing: Any, value: Any, slope: Any) -> Any:
    """x where x > 0, else x * slope."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        positive = builder.fcmp_ordered(">", args[0], ir.Constant(args[0].type, None))
        return builder.select(positive, args[0], builder.fmul(*args))

    return F32V(F32V, F32V), emit


@intrinsic
def clip(_typing: Any, value: Any, low: Any, high: Any) -> Any:
    """low where x < low, high where x > high, else x; NaN stays."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, low, high = args
        x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
        return builder.select(builder.fcmp_ordered(">", x, high), high, x)

    return F32V(F32V, F32V, F32V), emit


@intrinsic
def exp(_typing: Any, value: Any) -> Any:
    """e ** x of x <= 0 or NaN, as model.Softmax defines it; of other lanes anything."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (x,) = args
        integers = ir.VectorType(I32, x.type.count)

        def constant(value: float) -> Any:
            return ir.Constant(x.type, [float(np.float32(value))] * x.type.count)

        k = builder.fmul(x, constant(1.442695))
        k = emit_call(builder, f"llvm.nearbyint.v{x.type.count}f32", k)
        r = _fma(builder, k, constant(-0.693359375), x)  # ln 2 in two parts, this one of few bits: exact
        r = _fma(builder, k, constant(2.1219444e-4), r)
        t = constant(1 / 5040)
        for factorial in (720, 120, 24, 6, 2, 1, 1):
            t = _fma(builder, t, r, constant(1 / factorial))
        # 2 ** k by its bits. The conversion that saturates: the other one may do anything with a NaN.
        name = f"llvm.fptosi.sat.v{x.type.count}i32.v{x.type.count}f32"
        kind = ir.FunctionType(integers, [x.type])
        exponent = builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [k])
        bias, mantissa = (ir.Constant(integers, [n] * x.type.count) for n in (127, 23))
        power = builder.bitcast(builder.shl(builder.add(exponent, bias), mantissa), x.type)
        tiny = builder.fcmp_ordered("<", x, constant(-87))
        return builder.select(tiny, constant(0), builder.fmul(t, power))

    return F32V(F32V), emit


@intrinsic
def divide(_typing: Any, a: Any, b: Any) -> Any:
    """a / b, rounded once."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fdiv(*args)

    return F32V(F32V, F32V), emit


@intrinsic
def larger(_typing: Any, a: Any, b: Any) -> Any:
    """b where b > a, else a."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[1], args[0]), args[1], args[0])

    return F32V(F32V, F32V), emit


@intrinsic
def nonnegative_bits(_typing: Any, value: Any) -> Any:
    """Bit i of the uint64 is 1 where float lane i is >= 0."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        flags = builder.fcmp_ordered(">=", args[0], ir.Constant(args[0].type, None))
        return builder.zext(builder.bitcast(flags, I16), I64)

    return types.uint64(F32V), emit


@intrinsic
def nonzero_lanes(_typing: Any, value: Any) -> Any:
    """Bit i of the uint64 is 1 where lane i of an eight-lane vector is not 0."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        flags = builder.icmp_unsigned("!=", args[0], ir.Constant(args[0].type, None))
        return builder.zext(builder.bitcast(flags, I8), I64)

    return types.uint64(value), emit


@intrinsic
def below_bits(_typing: Any, a: Any, b: Any) -> Any:
    """Bit i of the uint64 is 1 where lane i of a is below that of b, as unsigned integers."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        flags = builder.icmp_unsigned("<", *args)
        return builder.zext(builder.bitcast(flags, ir.IntType(args[0].type.count)), I64)

    return types.uint64(a, b), emit


@intrinsic
def unsigned(_typing: Any, value: Any) -> Any:
    """The bits of eight int64 lanes as uint64."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[0]

    return U64(value), emit


@intrinsic
def differs(_typing: Any, a: Any, b: Any) -> Any:
    """Whether any bit of two vectors differs, as a boolean."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        integers = ir.VectorType(I64, 8)
        a, b = (builder.bitcast(x, integers) for x in args)
        flags = builder.bitcast(builder.icmp_unsigned("!=", a, b), I8)
        return builder.icmp_unsigned("!=", flags, I8(0))

    return types.boolean(a, b), emit


@intrinsic
def differing_bytes(_typing: Any, a: Any, b: Any) -> Any:
    """Bit i of the uint64 is 1 where byte i of two vectors of bytes differs."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(builder.icmp_unsigned("!=", *args), I64)

    return types.uint64(a, b), emit


@intrinsic
def to_floats(_typing: Any, value: Any) -> Any:
    """float32 lanes of int32 lanes, rounded once."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.sitofp(args[0], ir.VectorType(F32, 16))

    return F32V(value), emit


@intrinsic
def shift_right(_typing: Any, vector: Any, bits: Any) -> Any:
    """Each lane shifted right by a literal number of bits, zeros coming in."""
    if not isinstance(bits, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        return builder.lshr(args[0], ir.Constant(kind, [bits.literal_value] * kind.count))

    return vector(vector, bits), emit


@intrinsic
def store_flags(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """uint8 array[index + i] = 1 where lane i of an eight-lane vector is not 0, else 0."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        flags = builder.icmp_unsigned("!=", args[2], ir.Constant(args[2].type, None))
        marks = builder.zext(flags, ir.VectorType(I8, 8))
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], marks.type)
        builder.store(marks, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), emit


@intrinsic
def compress(_typing: Any, mask: Any, vector: Any, array: Any, index: Any) -> Any:
    """array[index ...] = the lanes of an eight-lane vector whose bit of mask is 1. Returns their number.

    Eight elements may be written whatever their number.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[1].type
        mask = builder.bitcast(builder.trunc(args[0], I8), ir.VectorType(I1, 8))
        pointer = vector_pointer(context, builder, sig.args[2], args[2], args[3], kind)
        if target_has(context, "avx512f"):  # not straight to memory: Zen 4 takes 100 cycles for that
            name = "llvm.x86.avx512.mask.compress.v8i64"
            builder.store(emit_call(builder, name, args[1], ir.Constant(kind, None), mask), pointer, align=8)
        else:
            first = builder.bitcast(pointer, I64.as_pointer())
            signature = ir.FunctionType(ir.VoidType(), [kind, first.type, mask.type])
            name = "llvm.masked.compressstore.v8i64"
            function = cgutils.get_or_insert_function(builder.module, signature, name)
            builder.call(function, (args[1], first, mask))
        return builder.zext(_popcount(builder, builder.trunc(args[0], I8)), I64)

    return types.intp(types.uint64, vector, array, types.intp), emit


@intrinsic
def prefix_sum(_typing: Any, vector: Any) -> Any:
    """Lane i is the sum of lanes 0 ... i of an eight-lane vector."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total, zero = args[0], ir.Constant(args[0].type, None)
        for span in (1, 2, 4):
            order = [i - span if i >= span else 8 for i in range(8)]
            moved = builder.shuffle_vector(total, zero, ir.Constant(ir.VectorType(I32, 8), order))
            total = builder.add(total, moved)
        return total

    return vector(vector), emit


@intrinsic
def last_lane(_typing: Any, vector: Any) -> Any:
    """The highest lane of an eight-lane vector, a scalar."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], I32(7))

    return vector.lane(vector), emit


@intrinsic
def shift_left(_typing: Any, vector: Any, bits: Any) -> Any:
    """Each lane shifted left by a literal number of bits."""
    if not isinstance(bits, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        return builder.shl(args[0], ir.Constant(kind, [bits.literal_value] * kind.count))

    return vector(vector, bits), emit


@intrinsic
def permute(_typing: Any, vector: Any, order: Any) -> Any:
    """Lane i of the result is lane order[i] of an eight-lane vector."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if target_has(context, "avx512f"):
            return emit_call(builder, "llvm.x86.avx512.permvar.di.512", *args)
        result = args[0]
        for i in range(8):
            source = builder.trunc(builder.extract_element(args[1], I32(i)), I32)
            result = builder.insert_element(result, builder.extract_element(args[0], source), I32(i))
        return result

    return vector(vector, order), emit


@intrinsic
def pick_bytes(_typing: Any, low: Any, high: Any, order: Any) -> Any:
    """Byte i of the result is byte order[i], below 128, of the two vectors of bytes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        low_value, high_value, order_value = args
        if target_has(context, "avx512vbmi"):
            name = "llvm.x86.avx512.vpermi2var.qi.512"
            return emit_call(builder, name, low_value, order_value, high_value)
        both = ir.Constant(ir.VectorType(I32, 128), list(range(128)))
        table, result = builder.shuffle_vector(low_value, high_value, both), order_value
        for i in range(64):
            place = builder.zext(builder.extract_element(order_value, I32(i)), I32)
            result = builder.insert_element(result, builder.extract_element(table, place), I32(i))
        return result

    return low(low, high, order), emit


@intrinsic
def widen_bytes(_typing: Any, value: Any, part: Any) -> Any:
    """int32 lanes of the bytes 16 * part to 16 * part + 15, part a literal."""
    if not isinstance(part, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = 16 * part.literal_value
        order = ir.Constant(ir.VectorType(I32, 16), list(range(first, first + 16)))
        return builder.zext(builder.shuffle_vector(args[0], args[0], order), ir.VectorType(I32, 16))

    return I32V(value, part), emit


@intrinsic
def interleave(_typing: Any, a: Any, b: Any, half: Any) -> Any:
    """Bytes of two vectors in turn: of each 16 the lower or upper eight, half a literal 0 or 1."""
    if not isinstance(half, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = [16 * lane + 8 * half.literal_value + i for lane in range(4) for i in range(8)]
        order = ir.Constant(ir.VectorType(I32, 64), [i for each in first for i in (each, 64 + each)])
        return builder.shuffle_vector(args[0], args[1], order)

    return a(a, b, half), emit


@intrinsic
def join_high(_typing: Any, low: Any, high: Any) -> Any:
    """The upper bytes of uint16 lanes, in the order that `interleave` took apart."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (builder.bitcast(value, ir.VectorType(I8, 64)) for value in args)
        first = [16 * lane + 2 * i + 1 for lane in range(4) for i in range(8)]
        order = [
            i
            for lane in range(0, 32, 8)
            for i in (*first[lane : lane + 8], *(64 + j for j in first[lane : lane + 8]))
        ]
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 64), order))

    return U8(low, high), emit


@intrinsic
def add_products(_typing: Any, weights: Any, values: Any) -> Any:
    """uint16 lanes: sums of two products, weight * (value - 128), modulo 2 ** 16.

    weights : uint16 lanes of two bytes each, whose sum is at most 256.  values : 64 bytes.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pairs, lanes = ir.VectorType(I8, 64), ir.VectorType(I16, 32)
        weight = builder.bitcast(args[0], pairs)
        value = builder.xor(args[1], splat_value(builder, I8(128), 64))
        if target_has(context, "avx512bw"):
            kind, name = ir.FunctionType(lanes, [pairs, pairs]), "llvm.x86.avx512.pmaddubs.w.512"
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), (weight, value))
        products = []
        for first in range(2):
            order = ir.Constant(ir.VectorType(I32, 32), list(range(first, 64, 2)))
            unsigned_part = builder.zext(builder.shuffle_vector(weight, weight, order), lanes)
            signed_part = builder.sext(builder.shuffle_vector(value, value, order), lanes)
            products.append(builder.mul(unsigned_part, signed_part))
        return builder.add(*products)

    return weights(weights, values), emit


@intrinsic
def store_bytes(_typing: Any, array: Any, index: Any, value: Any, count: Any) -> Any:
    """uint8 array[index ...] = the first `count` bytes of the vector; nothing behind them is touched."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], args[2].type)
        store_first_bytes(builder, args[2], pointer, args[3])
        return context.get_dummy_value()

    return types.void(array, types.intp, value, types.intp), emit


def store_first_bytes(builder: Any, value: Any, pointer: Any, count: Any) -> None:
    """Write the first `count` of 64 bytes."""
    limit = splat_value(builder, builder.trunc(count, I8), 64)
    mask = builder.icmp_unsigned("<", ir.Constant(value.type, list(range(64))), limit)
    signature = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, I32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.masked.store.v64i8.p0")
    builder.call(function, [value, pointer, I32(1), mask])


@intrinsic
def multiply_high(_typing: Any, values: Any, weights: Any) -> Any:
    """int16 lanes, as uint16: (value * weight + 2 ** 14) >> 15.

    values : bytes, two a lane, the upper one signed.  weights : uint16 lanes that hold int16.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes, wide = ir.VectorType(I16, 32), ir.VectorType(I32, 32)
        value, weight = builder.bitcast(args[0], lanes), args[1]
        if target_has(context, "avx512bw"):
            kind, name = ir.FunctionType(lanes, [lanes, lanes]), "llvm.x86.avx512.pmul.hr.sw.512"
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), (value, weight))
        product = builder.mul(builder.sext(value, wide), builder.sext(weight, wide))
        rounded = builder.add(product, ir.Constant(wide, [1 << 14] * 32))
        return builder.trunc(builder.ashr(rounded, ir.Constant(wide, [15] * 32)), lanes)

    return weights(values, weights), emit


@intrinsic
def add_saturated(_typing: Any, a: Any, b: Any) -> Any:
    """Sums of uint16 lanes that hold int16, held between -2 ** 15 and 2 ** 15 - 1."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_call(builder, "llvm.sadd.sat.v32i16", *args)

    return a(a, b), emit


@intrinsic
def pack_clipped(_typing: Any, low: Any, high: Any, shift: Any) -> Any:
    """Bytes of uint16 lanes that hold int16, shifted right by a literal number of bits, clipped to 0..255.

    In the order that `interleave` took apart.
    """
    if not isinstance(shift, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves, pairs = ir.VectorType(I16, 32), ir.VectorType(I8, 64)
        bits = ir.Constant(halves, [shift.literal_value] * 32)
        moved = [builder.ashr(value, bits) for value in args[:2]]
        if target_has(context, "avx512bw"):
            kind, name = ir.FunctionType(pairs, [halves, halves]), "llvm.x86.avx512.packuswb.512"
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), moved)
        zero, most = ir.Constant(halves, None), ir.Constant(halves, [255] * 32)
        parts = []
        for value in moved:
            above = builder.select(builder.icmp_signed(">", value, zero), value, zero)
            clipped = builder.select(builder.icmp_signed("<", above, most), above, most)
            parts.append(builder.trunc(clipped, ir.VectorType(I8, 32)))
        order = [part * 32 + lane * 8 + i for lane in range(4) for part in range(2) for i in range(8)]
        return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(I32, 64), order))

    return U8(low, high, shift), emit


@intrinsic
def store_clipped(
    _typing: Any, array: Any, index: Any, a: Any, b: Any, c: Any, shift: Any, count: Any
) -> Any:
    """uint8 array[index ...] = the first `count` of 48 int32 lanes, shifted right, clipped to 0..255."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array_value, index_value, *values, shift_value, count_value = args
        zero, most = ir.Constant(values[0].type, None), ir.Constant(values[0].type, [255] * 16)
        parts = []
        for value in values:
            moved = builder.ashr(value, splat_value(builder, shift_value, 16))
            moved = builder.select(builder.icmp_signed(">", moved, zero), moved, zero)
            moved = builder.select(builder.icmp_signed("<", moved, most), moved, most)
            parts.append(builder.trunc(moved, ir.VectorType(I8, 16)))
        pairs = ir.Constant(ir.VectorType(I32, 32), list(range(32)))
        low, high = (builder.shuffle_vector(x, y, pairs) for x, y in ((parts[0], parts[1]), (parts[2],) * 2))
        all_bytes = ir.Constant(ir.VectorType(I32, 64), list(range(64)))
        result = builder.shuffle_vector(low, high, all_bytes)
        pointer = vector_pointer(context, builder, sig.args[0], array_value, index_value, result.type)
        store_first_bytes(builder, result, pointer, count_value)
        return context.get_dummy_value()

    return types.void(array, types.intp, a, b, c, types.int32, types.intp), emit


@intrinsic
def list_bits(_typing: Any, bits: Any, base: Any, step: Any, entries: Any, at: Any) -> Any:
    """Write base + index * step to int32 entries[at ...] for every set bit; returns their number.

    Whole vectors are written, so up to 48 entries behind the last are spoiled. A byte compress (VBMI2) lists
    the indices without a branch for each bit.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits_value, base_value, step_value, entries_value, at_value = args
        wide, quarter = ir.VectorType(I8, 64), ir.VectorType(I32, 16)
        count = _popcount(builder, bits_value)
        chosen = emit_call(
            builder,
            "llvm.x86.avx512.mask.compress.v64i8",
            ir.Constant(wide, list(range(64))),
            ir.Constant(wide, None),
            builder.bitcast(bits_value, ir.VectorType(I1, 64)),
        )
        bases, steps = (splat_value(builder, x, 16) for x in (base_value, step_value))

        def write(first: int) -> None:
            order = ir.Constant(quarter, list(range(first, first + 16)))
            part = builder.zext(builder.shuffle_vector(chosen, chosen, order), quarter)
            part = builder.add(builder.mul(part, steps), bases)
            index = builder.add(at_value, at_value.type(first))
            pointer = vector_pointer(context, builder, sig.args[3], entries_value, index, quarter)
            builder.store(part, pointer, align=4)

        write(0)
        with builder.if_then(builder.icmp_signed(">", count, count.type(16)), likely=False):
            for first in (16, 32, 48):
                write(first)
        return count

    return types.intp(types.uint64, types.int32, types.int32, entries, types.intp), emit


@intrinsic
def counts_to_dots(_typing: Any, counts: Any, index: Any, valid: Any) -> Any:
    """float32 lanes valid - 2 * counts[index + i] for i in 0..15; counts uint16[], valid int32 scalar."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        short = ir.VectorType(I16, 16)
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], short)
        wide = builder.zext(builder.load(pointer, align=2), ir.VectorType(I32, 16))
        dots = builder.sub(splat_value(builder, args[2], 16), builder.add(wide, wide))
        return builder.sitofp(dots, ir.VectorType(F32, 16))

    return F32V(counts, types.intp, types.int32), emit


@intrinsic
def store_dots(_typing: Any, counts: Any, base: Any, at: Any, valid: Any, array: Any, index: Any) -> Any:
    """float32 array[index + 32 * i + p] = valid[p] - 2 * counts[base[p] + at + i], i below 32 and p below 16.

    counts : uint16[].  base : a tuple of 16.  valid : float32 lanes, whole numbers below 2 ** 24.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        counts_value, bases, at_value, valid_value, array_value, index_value = args
        pairs, floats = ir.VectorType(I32, 16), ir.VectorType(F32, 16)
        rows = []
        for p in range(16):
            place = builder.add(builder.extract_value(bases, p), at_value)
            pointer = vector_pointer(context, builder, sig.args[0], counts_value, place, pairs)
            rows.append(builder.load(pointer, align=2))
        lower, bits, twice = (
            ir.Constant(k, [n] * 16) for k, n in ((pairs, 0xFFFF), (pairs, 16), (floats, -2.0))
        )
        for i, both in enumerate(_transposed(builder, rows)):
            for j, count in enumerate((builder.and_(both, lower), builder.lshr(both, bits))):
                dots = _fma(builder, builder.sitofp(count, floats), twice, valid_value)
                place = builder.add(index_value, index_value.type(32 * (2 * i + j)))
                pointer = vector_pointer(context, builder, sig.args[4], array_value, place, floats)
                builder.store(dots, pointer, align=4)
        return context.get_dummy_value()

    return types.void(counts, base, types.intp, valid, array, types.intp), emit


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Of 16 vectors of 16 lanes the first lanes, then the second, ...: within quarters, then quarters."""

    def mix(a: Any, b: Any, order: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 16), order))

    def turns(size: int, half: int) -> list[int]:
        """Of each quarter the lower or upper half of both vectors in turn, `size` lanes at a time."""
        lanes = [k + i for i in range(2 * half, 2 * half + 2, size) for k in (i, 16 + i) for i in range(size)]
        return [quarter + lane for quarter in range(0, 16, 4) for lane in lanes]

    def every_other(first: int) -> list[int]:
        return [4 * quarter + lane for quarter in range(first, 8, 2) for lane in range(4)]

    columns = []  # of four vectors: lanes i, 4 + i, 8 + i and 12 + i of each
    for k in range(0, 16, 4):
        a, b = ([mix(rows[i], rows[i + 1], turns(1, half)) for half in range(2)] for i in (k, k + 2))
        columns.append([mix(a[i // 2], b[i // 2], turns(2, i % 2)) for i in range(4)])
    result = []
    for quarter in range(4):
        for i in range(4):
            c, d = (mix(columns[k][i], columns[k + 1][i], every_other(quarter % 2)) for k in (0, 2))
            result.append(mix(c, d, every_other(quarter // 2)))
    return result


@intrinsic
def load_low16(_typing: Any, array: Any, index: Any) -> Any:
    """Eight uint64 lanes from elements index .. index + 7 of a uint16 array."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.VectorType(I16, 8)
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], kind)
        return builder.zext(builder.load(pointer, align=2), ir.VectorType(I64, 8))

    return U64(array, types.intp), emit


@intrinsic
def store_low16(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write the low 16 bits of eight uint64 lanes to elements index .. index + 7 of a uint16 array."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        short = builder.trunc(args[2], ir.VectorType(I16, 8))
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], short.type)
        builder.store(short, pointer, align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, U64), emit


# --- tiles ----------------------------------------------------------------------------------------
#
# A tile is P pixels by V vectors, the tuple element p * V + v. Pixels are given by a tuple of P offsets.


def _tuple_of_listed(use: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """f(source, indices, start, limit, count): tuple of use(source, indices[min(start + i, limit)])."""

    def typed(_typing: Any, source: Any, indices: Any, start: Any, limit: Any, count: Any) -> Any:
        if not isinstance(count, types.IntegerLiteral):
            return None
        result = types.UniTuple(types.intp, count.literal_value)

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source_value, indices_value, start_value, limit_value, _ = args
            values = []
            for i in range(result.count):
                at = builder.add(start_value, start_value.type(i))
                at = builder.select(builder.icmp_signed("<", at, limit_value), at, limit_value)
                index = builder.load(_lane_pointer(context, builder, sig.args[1], indices_value, at))
                values.append(use(context, builder, (sig.args[0], source_value), index))
            return context.make_tuple(builder, result, values)

        return result(source, indices, types.intp, types.intp, count), emit

    return intrinsic(prefer_literal=True)(typed)


#: gather(table, indices, start, limit, count): table[index] for `count` (a literal) indices; int64 arrays.
gather = _tuple_of_listed(lambda c, b, table, index: b.load(_lane_pointer(c, b, table[0], table[1], index)))
#: scaled(factor, indices, start, limit, count): factor * index, likewise.
scaled = _tuple_of_listed(lambda c, b, factor, index: b.mul(factor[1], index))


@intrinsic
def tile_of(_typing: Any, vectors: Any, base: Any) -> Any:
    """Tile whose every pixel (one for each element of `base`) starts as the tuple `vectors`."""
    tile = types.UniTuple(vectors.dtype, len(base) * len(vectors))

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        row = [builder.extract_value(args[0], v) for v in range(len(vectors))]
        return context.make_tuple(builder, tile, row * len(base))

    return tile(vectors, base), emit


def _tile_step(combine: Callable[[Any, Any, Any, Any], Any], lanes_a_value: int = 0) -> Callable[..., Any]:
    """The heart of a register-tiled kernel: every pixel's scalar meets every weight vector.

    tile[p * V + v] = combine(tile[p * V + v], splat(x[base[p] + offset]), load(w, at + v * lanes))

    lanes_a_value : instead of one scalar, the pixel's values from x[base[p] + offset] on, each for so many
        lanes (1, 2, 4, ... or all of a vector); up to a vector behind the last one is read.
    """

    def typed(_typing: Any, tile: Any, x: Any, base: Any, offset: Any, w: Any, at: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            tile_value, x_value, bases, offset_value, w_value, at_value = args
            kind = context.get_value_type(tile.dtype)
            vectors = len(tile) // len(base)
            weights = []
            for v in range(vectors):
                index = builder.add(at_value, at_value.type(v * tile.dtype.count))
                pointer = vector_pointer(context, builder, sig.args[4], w_value, index, kind)
                weights.append(builder.load(pointer, align=w.dtype.bitwidth // 8))
            for p in range(len(base)):
                index = builder.add(builder.extract_value(bases, p), offset_value)
                if not lanes_a_value:
                    scalar = builder.load(_lane_pointer(context, builder, sig.args[1], x_value, index))
                    activation = splat_value(builder, scalar, tile.dtype.count)
                for v in range(vectors):
                    if lanes_a_value:
                        lane = builder.add(index, index.type(v * tile.dtype.count // lanes_a_value))
                        pointer = vector_pointer(context, builder, sig.args[1], x_value, lane, kind)
                        activation = builder.load(pointer, align=x.dtype.bitwidth // 8)
                        order = [i // lanes_a_value for i in range(tile.dtype.count)]
                        places = ir.Constant(ir.VectorType(I32, len(order)), order)
                        activation = builder.shuffle_vector(activation, activation, places)
                    old = builder.extract_value(tile_value, p * vectors + v)
                    new = combine(builder, old, activation, weights[v])
                    tile_value = builder.insert_value(tile_value, new, p * vectors + v)
            return tile_value

        return tile(tile, x, base, types.intp, w, types.intp), emit

    return typed


#: tile += popcount(x ^ w), uint64 lanes.
tile_xnor = intrinsic(_tile_step(lambda b, total, x, w: b.add(total, _popcount(b, b.xor(x, w)))))
#: tile += x * w, rounded once, float32 lanes.
tile_fma = intrinsic(_tile_step(lambda b, total, x, w: _fma(b, x, w, total)))
#: The same with a value of its own for each lane, or for each 2, 4, 8, 16 lanes.
tile_fma_lanes, tile_fma_by2, tile_fma_by4, tile_fma_by8, tile_fma_by16 = (
    intrinsic(_tile_step(lambda b, total, x, w: _fma(b, x, w, total), count)) for count in (1, 2, 4, 8, 16)
)


@intrinsic(prefer_literal=True)
def tile_load(_typing: Any, array: Any, base: Any, vectors: Any) -> Any:
    """Tile of so many vectors a pixel, a literal, from array[base[p]] on."""
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    each = vectors.literal_value
    tile = types.UniTuple(Vector(array.dtype), each * len(base))

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array_value, bases, _ = args
        kind, loaded = context.get_value_type(tile.dtype), []
        for i in range(len(tile)):
            start = builder.extract_value(bases, i // each)
            index = builder.add(start, start.type(i % each * tile.dtype.count))
            pointer = vector_pointer(context, builder, sig.args[0], array_value, index, kind)
            loaded.append(builder.load(pointer, align=array.dtype.bitwidth // 8))
        return context.make_tuple(builder, tile, loaded)

    return tile(array, base, vectors), emit


@intrinsic
def tile_store(_typing: Any, array: Any, base: Any, at: Any, tile: Any) -> Any:
    """array[base[p] + at ...] = the pixel's vectors, integer lanes cut to the array's width."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array_value, bases, at_value, tile_value = args
        vectors = len(tile) // len(base)
        lane = context.get_value_type(array.dtype)
        for i in range(len(tile)):
            value = builder.extract_value(tile_value, i)
            if lane != value.type.element:
                value = builder.trunc(value, ir.VectorType(lane, tile.dtype.count))
            start = builder.add(builder.extract_value(bases, i // vectors), at_value)
            index = builder.add(start, start.type(i % vectors * tile.dtype.count))
            pointer = vector_pointer(context, builder, sig.args[0], array_value, index, value.type)
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, base, types.intp, tile), emit


@intrinsic
def tile_store_some(_typing: Any, array: Any, base: Any, at: Any, tile: Any, count: Any) -> Any:
    """`tile_store` of the first `count` lanes of each pixel, float32; what lies behind them stays."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array_value, bases, at_value, tile_value, count_value = args
        vectors, lanes = len(tile) // len(base), tile.dtype.count
        limit = splat_value(builder, builder.trunc(count_value, I32), lanes)
        for i in range(len(tile)):
            value, lane = builder.extract_value(tile_value, i), i % vectors * lanes
            start = builder.add(builder.extract_value(bases, i // vectors), at_value)
            index = builder.add(start, start.type(lane))
            pointer = vector_pointer(context, builder, sig.args[0], array_value, index, value.type)
            places = ir.Constant(ir.VectorType(I32, lanes), list(range(lane, lane + lanes)))
            kept = builder.load(pointer, align=array.dtype.bitwidth // 8)
            value = builder.select(builder.icmp_signed("<", places, limit), value, kept)
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, base, types.intp, tile, types.intp), emit


#: Bytes from which an array is worth huge pages: a table walked at random costs a page walk for each row.
HUGE = 1 << 20
HUGE_PAGE = 2 << 20


def aligned(shape: int | tuple[int, ...], dtype: Any) -> Any:
    """Zeroed NumPy array whose data starts on a cache line: rows that cross lines load at half speed.

    Large ones ask the system for huge pages, where it has them.
    """
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    size = count * dtype.itemsize
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        pages = mmap.mmap(-1, size + HUGE_PAGE)
        pages.madvise(mmap.MADV_HUGEPAGE)
        raw, unit = np.frombuffer(pages, np.uint8), HUGE_PAGE
    else:
        raw, unit = np.zeros(size + 64, np.uint8), 64
    start = -raw.ctypes.data % unit
    return raw[start : start + size].view(dtype).reshape(shape)
