"""`jit`: numba.njit with the settings every kernel shares, and a disk cache that cannot go stale.

Numba notices an edit only in the file of the function it compiles, but our kernels inline intrinsics
and helpers of neighbouring files. Here a cached kernel is valid for exactly one digest of all of
`kernels/*.py` (and, as Numba does itself, one Numba version, processor and set of features).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.misc.appdirs import AppDirs


@cache
def sources_digest() -> str:
    """SHA-256 over the names and texts of all kernel sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, else the user's cache folder."""
    base = os.environ.get("NUMBA_CACHE_DIR") or AppDirs("xnor_rrm", appauthor=False).user_cache_dir
    return Path(base) / "xnor_rrm_kernels"


class _Locator(_CacheLocator):
    """Keeps the cache in `cache_folder` and stamps it with `sources_digest`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return sources_digest()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, function: Callable[..., Any], _file: str) -> _Locator:
        return cls(function)


class _CacheImpl(CompileResultCacheImpl):
    _locator_classes: Any = (_Locator,)


class _Cache(FunctionCache):
    _impl_class = _CacheImpl


def jit(function: Callable[..., Any]) -> Any:
    """Compile `function` on its first call for the argument types given: strict floats, no GIL.

    Without fast-math and without reassociation, so float results do not depend on how a loop is cut.
    """
    compiled: Any = numba.njit(nogil=True, error_model="numpy", fastmath=False)(function)
    if hasattr(compiled, "_cache"):  # a plain function where NUMBA_DISABLE_JIT is set
        compiled._cache = _Cache(function)
    return compiled


def inline(function: Callable[..., Any]) -> Any:
    """A helper Numba copies into its callers: a call would pass each array as seven values and count it."""
    return numba.njit(inline="always", error_model="numpy")(function)
