"""A clock for compiled code."""

from __future__ import annotations

from typing import Any

from numba.core import types

from .jit import inline

_pointer: Any = types.CPointer
_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.intc(types.intc, _pointer(types.int64)))


@inline
def now(timespec: Any) -> int:
    """Nanoseconds of the monotonic clock; timespec : int64[2] scratch."""
    _clock_gettime(1, timespec.ctypes)  # CLOCK_MONOTONIC
    return timespec[0] * 1_000_000_000 + timespec[1]
