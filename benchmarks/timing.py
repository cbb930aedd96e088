"""The clock: a kernel variant as one compiled call, rounds of calls in turns, medians and quartiles.

`Kernel` runs a variant's kernels one after the other in one compiled function that reads the clock inside, so
that no time is counted for Python and for Numba's dispatch, as no engine would spend it. Times are in
nanoseconds where they are integers, and in milliseconds where a name ends in `_ms`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cache
from time import perf_counter, perf_counter_ns
from typing import Any
from unittest import mock

import numba
import numpy as np
from numba.core.dispatcher import Dispatcher
from xnor_rrm.kernels import layer as layer_module
from xnor_rrm.kernels.bitpack import diff_into_padded, pack
from xnor_rrm.kernels.clock import now
from xnor_rrm.kernels.layer import BinaryLayer, Variant
from xnor_rrm.kernels.simd import aligned
from xnor_rrm.kernels.window import copy_into_padded

njit = numba.njit(nogil=True, error_model="numpy")

Entry = Callable[[], Iterable[tuple[str, int]]]

#: What `evict` walks through: as much as a large last-level cache holds.
COLD_BYTES = 32 << 20


# --- a variant as one compiled call ---------------------------------------------------------------


class Kernel:
    """A variant on a layer of its own, timed.

    A variant is taken to be a fixed sequence of kernel calls on the layer's arrays: the sequence is noted
    once, while Python runs it, and compiled into one function. Whoever times must check the sums as well
    (`dots`): a variant that is something else shows there.
    """

    def __init__(self, variant: Variant, layer: BinaryLayer, frame: Any) -> None:
        """frame : uint64[H, W, Cw], the first one; the layer starts from its dense result."""
        self.layer, self.cached = layer, variant.cached
        layer.load(frame)
        dense = next(v for v in layer_module.VARIANTS.values() if not v.cached)
        dense.run(layer)
        variant.run(layer)  # compiles; a cached variant sees its flips again, so:
        layer.load(frame)
        dense.run(layer)
        variant.run(layer)  # nothing flipped: all that remains is to bring the state into its form
        calls = kernel_calls(lambda: variant.run(layer))
        kernels, self._arguments = tuple(k for k, _ in calls), tuple(arguments for _, arguments in calls)
        if variant.cached:
            self._load: tuple[Any, ...] = (layer.step, layer.last, layer.diff)
            self._timed = _timed(diff_into_padded, kernels)
        else:
            self._load = (int(layer.step["words"]), layer.step, layer.last)
            self._timed = _timed(copy_into_padded, kernels)
        self._timespec = np.zeros(2, np.int64)

    def __call__(self, frame: Any) -> tuple[int, int]:
        """Nanoseconds of (bringing the packed frame in, all), the frame being the layer's next one.

        Bringing in is a copy into the padded input, and for a cached variant also the comparison.
        """
        return self._timed(self._timespec, (frame.reshape(-1), *self._load), self._arguments)

    def dots(self) -> Any:
        """int64[Ho, Wo, Cout]: the result of the last call."""
        return self.layer.dots()


class WholeKernel(Kernel):
    """A dense variant from float activations to float sums: signs, packing, padding, kernel, conversion."""

    def __init__(self, variant: Variant, layer: BinaryLayer, frame: Any) -> None:
        super().__init__(variant, layer, frame)
        s = layer.step
        self._stride = -(-int(s["cin"]) // 16) * 16
        self._values = aligned(int(s["h"] * s["w"]) * self._stride + 16, np.float32)
        self._words = np.zeros(int(s["h"] * s["w"] * s["words"]), np.uint64)
        self.sums = aligned(layer.outputs * int(s["cout"]), np.float32)
        self._valid = layer.valid.astype(np.int32)
        self._whole = _whole(self._timed)

    def whole(self, values: Any) -> int:
        """Nanoseconds from float32[H, W, Cin] to `sums`, float32[Ho * Wo * Cout]."""
        s = self.layer.step
        rows = self._values[: s["h"] * s["w"] * self._stride].reshape(-1, self._stride)
        rows[:, : s["cin"]] = values.reshape(-1, s["cin"])
        load = (self._words, *self._load)
        ends = (self._values, int(s["cin"]), self._stride, self._words)
        sums = (self.layer.mismatches, self._valid, int(s["lanes"]), int(s["cout"]), self.sums)
        return self._whole(self._timespec, ends, load, self._arguments, sums)


def kernel_calls(run: Callable[[], object]) -> list[tuple[Any, tuple[Any, ...]]]:
    """The compiled kernels that `run` calls from Python, each with its arguments, in order.

    Everything `run` calls must be compiled already: meanwhile the kernels' names stand for recorders.
    """
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    def recorder(kernel: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append((kernel, arguments))
            return kernel(*arguments)

        return call

    prefix = layer_module.__name__.rpartition(".")[0]
    with ExitStack() as patches:
        for module in [m for name, m in sys.modules.items() if name.startswith(prefix)]:
            for name, value in list(vars(module).items()):
                if isinstance(value, Dispatcher):
                    patches.enter_context(mock.patch.object(module, name, recorder(value)))
        run()
    return calls


@cache
def _sequence(kernels: tuple[Any, ...]) -> Any:
    """A compiled function that calls each kernel with its tuple of arguments."""
    first, rest = kernels[0], kernels[1:]
    if not rest:

        @njit
        def last(arguments: Any) -> None:
            first(*arguments[0])

        return last
    others = _sequence(rest)

    @njit
    def both(arguments: Any) -> None:
        first(*arguments[0])
        others(arguments[1:])

    return both


@cache
def _timed(load: Any, kernels: tuple[Any, ...]) -> Any:
    update = _sequence(kernels)

    @njit
    def timed(timespec: Any, load_arguments: Any, arguments: Any) -> tuple[int, int]:
        begin = now(timespec)
        load(*load_arguments)
        middle = now(timespec)
        update(arguments)
        return middle - begin, now(timespec) - begin

    return timed


@cache
def _whole(timed: Any) -> Any:
    @njit
    def whole(timespec: Any, ends: Any, load_arguments: Any, arguments: Any, sums: Any) -> int:
        begin = now(timespec)
        pack(*ends)
        timed(timespec, load_arguments, arguments)
        _to_floats(*sums)
        return now(timespec) - begin

    return whole


@njit
def _to_floats(mismatches: Any, valid: Any, lanes: int, cout: int, sums: Any) -> None:
    """sums[p, c] = valid[p] - 2 * mismatches[p, c], float32."""
    for p in range(len(valid)):
        counts = mismatches[p * lanes : p * lanes + cout]
        out = sums[p * cout : (p + 1) * cout]
        n = valid[p]
        for c in range(cout):
            out[c] = np.float32(n - np.int32(2) * np.int32(counts[c]))


# --- machine --------------------------------------------------------------------------------------


@njit
def _dependent_adds(x: int, a: int, b: int, count: int) -> int:
    """2 * count operations of one cycle, each waiting for the one before; a compiler cannot fold them."""
    for _ in range(count):
        x = (x ^ a) + b
    return x


@njit
def _clock_sample(timespec: Any, a: int, b: int, count: int) -> tuple[int, int]:
    begin = now(timespec)
    x = _dependent_adds(begin, a, b, count)
    return now(timespec) - begin, x


def clock_ghz(count: int = 20_000) -> float:
    """Cycles a nanosecond of this core, now: 2 * count dependent additions and exclusive-ors, about 10 us."""
    return 2 * count / max(1, _clock_sample(np.zeros(2, np.int64), 12345, 67, count)[0])


@njit
def _touch(buffer: Any) -> None:
    for i in range(0, len(buffer), 64):
        buffer[i] += np.uint8(1)


@cache
def _cold_buffer() -> Any:
    return np.zeros(COLD_BYTES, np.uint8)


def evict() -> None:
    """Read and write 32 MB, so that what a kernel needs next comes from memory, or from a far cache."""
    _touch(_cold_buffer())


# --- rounds ---------------------------------------------------------------------------------------


class Rounds:
    """Samples by name, collected in rounds: in each, every entry is called once.

    An entry warms up what it times, and returns (name, nanoseconds). All entries take turns in one process on
    one thread, so that a ratio of two medians compares what ran side by side.
    """

    def __init__(self) -> None:
        self.samples: dict[str, list[int]] = {}
        self.clock: list[float] = []
        self.rounds = 0

    def run(self, entries: Sequence[Entry], rounds: int, seconds: float) -> None:
        """At most `rounds` rounds, and no new one after `seconds`; at least one."""
        start = perf_counter()
        for number in range(rounds):
            if number and perf_counter() - start > seconds:
                break
            self.rounds += 1
            self.clock.append(clock_ghz())
            for entry in entries if number % 2 else reversed(entries):
                for name, nanoseconds in entry():
                    self.samples.setdefault(name, []).append(nanoseconds)

    def median_ms(self, name: str) -> float:
        return median_ms(self.samples[name])

    def quartiles_ms(self, name: str) -> list[float]:
        return quartiles_ms(self.samples[name])


def median_ms(samples: Iterable[float]) -> float:
    """Milliseconds, of nanoseconds."""
    return _significant(statistics.median(samples) * 1e-6)


def quartiles_ms(samples: Sequence[float]) -> list[float]:
    """Lower and upper quartile in milliseconds, of nanoseconds."""
    return [_significant(float(q) * 1e-6) for q in np.quantile(samples, (0.25, 0.75))]


def ratio(slower_ms: float | None, faster_ms: float | None) -> float | None:
    """How many times faster, to three figures; None where there is nothing to divide."""
    return _significant(slower_ms / faster_ms, 3) if slower_ms and faster_ms else None


def timed_ns(call: Callable[[], object]) -> int:
    """Wall-clock nanoseconds of a call from Python."""
    begin = perf_counter_ns()
    call()
    return perf_counter_ns() - begin


def _significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")
