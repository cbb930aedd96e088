"""Many arrays in one piece of memory, handed to a kernel by its address alone.

Numba takes about a microsecond to accept each array of a call where caches are cold, and a frame's kernel
works on forty; and it counts who refers to an array with every slice that is taken of it. What is made of an
address is not counted: whoever calls a kernel with one keeps the `Packed` till it returns.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_type_hints

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.np.arrayobj import make_array, populate_array
from numba.np.unsafe.ndarray import to_fixed_tuple

from .jit import inline
from .simd import aligned, get, intrinsic

LINE = 64

#: What the fields of a NamedTuple are arrays of.
U64 = Annotated[Any, np.uint64]
I64 = Annotated[Any, np.int64]
F32 = Annotated[Any, np.float32]
I32 = Annotated[Any, np.int32]
U16 = Annotated[Any, np.uint16]
U8 = Annotated[Any, np.uint8]

Arrays = TypeVar("Arrays", bound=tuple[Any, ...])


class Packed(NamedTuple, Generic[Arrays]):
    """views : the arrays.  memory : uint8, where each begins and ends in it, int64, and what they view.

    address : of the memory.
    """

    views: Arrays
    memory: npt.NDArray[np.uint8]
    address: int


def pack(arrays: Arrays) -> Packed[Arrays]:
    """Copies of the arrays of a NamedTuple, one-dimensional, each on a cache line."""
    size = _lines(16 * len(arrays))
    ends = []
    for array in arrays:
        ends += [size, size + array.nbytes]
        size += _lines(array.nbytes)
    memory = aligned(size, np.uint8)
    memory[: 8 * len(ends)].view(np.int64)[:] = ends
    parts = zip(arrays, ends[::2], ends[1::2], strict=True)
    views = [memory[begin:end].view(array.dtype) for array, begin, end in parts]
    for view, array in zip(views, arrays, strict=True):
        if array.any():  # untouched memory stays unmapped
            view[:] = array.reshape(-1)
    return Packed(type(arrays)(*views), memory, int(memory.ctypes.data))


def _lines(size: int) -> int:
    """Whole cache lines of so many bytes, in bytes."""
    return -(-size // LINE) * LINE


def dtypes(kind: type[Arrays]) -> list[Any]:
    """Of the fields of a NamedTuple, in their order."""
    return [hint.__metadata__[0] for hint in get_type_hints(kind, include_extras=True).values()]


def unpacker(kind: type[Arrays]) -> Any:
    """What a kernel calls with a `Packed`'s address to have the views.

    Written out field by field, as Numba has no loop over dtypes.
    """
    scope = {"kind": kind, "view": _view, **{f"dtype_{i}": dtype for i, dtype in enumerate(dtypes(kind))}}
    views = (f"view(address, {i}, dtype_{i})" for i in range(len(scope) - 2))
    return inline(eval(f"lambda address: kind({', '.join(views)})", scope))


#: An array's first elements, as many as the second argument says, as a tuple.
to_tuple: Any = to_fixed_tuple


@intrinsic
def array_at(_typing: Any, address: Any, size: Any, dtype: Any) -> Any:
    """The array of `size` bytes at an address."""
    kind = types.Array(dtype.dtype, 1, "C")

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        item = ir.IntType(64)(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        array = make_array(kind)(context, builder)
        data, count = builder.inttoptr(args[0], array.data.type), builder.udiv(args[1], item)
        populate_array(array, data=data, shape=[count], strides=[item], itemsize=item, meminfo=None)
        return array._getvalue()

    return kind(types.int64, types.int64, dtype), emit


@inline
def _view(address: Any, number: Any, dtype: Any) -> Any:
    """The array of a number in the memory at an address."""
    ends = array_at(address, 16 * (number + 1), np.int64)
    begin, end = get(ends, 2 * number), get(ends, 2 * number + 1)
    return array_at(address + begin, end - begin, dtype)
