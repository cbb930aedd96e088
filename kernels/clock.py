"""A clock for compiled code."""

from __future__ import annotations

from typing import Any

from numba.core import types

from .jit import inline

_CLOCK_MONOTONIC = 1
_clock_gettime = types.ExternalFunction("clock_gettime", types.intc(types.intc, types.CPointer(types.int64)))


@inline
def now(timespec: Any) -> int:
    """Nanoseconds of the monotonic clock; timespec : int64[2] scratch."""
    _clock_gettime(1, timespec.ctypes)
    return timespec[0] * 1_000_000_000 + timespec[1]
