"""Many arrays in one piece of memory, handed to a kernel as one.

Numba takes about a microsecond to accept each array of a call where caches are cold, and a frame's kernel
works on thirty: a twentieth of what the whole of a small network takes.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_type_hints

import numpy as np
import numpy.typing as npt

from .jit import inline
from .simd import aligned

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
    """views : the arrays.  memory : uint8, what they view.  ends : int64, begin and end of each in it."""

    views: Arrays
    memory: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]


def pack(arrays: Arrays) -> Packed[Arrays]:
    """Copies of the arrays of a NamedTuple, one-dimensional, each on a cache line."""
    ends, size = [], 0
    for array in arrays:
        ends += [size, size + array.nbytes]
        size += -(-array.nbytes // LINE) * LINE
    memory = aligned(size, np.uint8)
    parts = zip(arrays, ends[::2], ends[1::2], strict=True)
    views = [memory[begin:end].view(array.dtype) for array, begin, end in parts]
    for view, array in zip(views, arrays, strict=True):
        if array.any():  # untouched memory stays unmapped
            view[:] = array
    return Packed(type(arrays)(*views), memory, np.array(ends, np.int64))


def dtypes(kind: type[Arrays]) -> list[Any]:
    """Of the fields of a NamedTuple, in their order."""
    return [hint.__metadata__[0] for hint in get_type_hints(kind, include_extras=True).values()]


def unpacker(kind: type[Arrays]) -> Any:
    """What a kernel calls with a `Packed`'s memory and ends to have the views.

    Written out field by field, as Numba has no loop over dtypes.
    """
    scope = {"kind": kind, **{f"dtype_{i}": dtype for i, dtype in enumerate(dtypes(kind))}}
    views = (f"memory[ends[{2 * i}] : ends[{2 * i + 1}]].view(dtype_{i})" for i in range(len(scope) - 1))
    return inline(eval(f"lambda memory, ends: kind({', '.join(views)})", scope))
