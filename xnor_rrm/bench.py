"""Dense against cached on one video: equality on every frame, and where the time goes."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import VideoError
from .frames import Frame, Yuv420
from .machine import machine_fingerprint, versions
from .model import Mode, Model
from .plan import Plan, xnor_alone
from .preprocess import Preprocessor
from .stats import Disagreement, LayerStats, flip_rate
from .stream import Stream

if TYPE_CHECKING:
    from .torch_reference import FloatTwin

Logits = npt.NDArray[np.float32]

#: Frames that throw-away streams see first, so that every kernel is compiled before the clock starts.
WARM_UP = 3

#: Frames of a turn. An engine that runs for a frame at a time finds its state and its code evicted from the
#: caches by the others; on a video of its own it finds them where its last frame left them.
TURN = 8


def bench(
    model: Model,
    frames: Iterable[Frame],
    max_frames: int | None = None,
    *,
    video: str = "",
    threshold: int = 0,
    peers: bool = True,
    peer: Callable[[Frame, Logits], None] | None = None,
    watch: Callable[[Frame, Lane, Lane], None] | None = None,
) -> dict[str, Any]:
    """Run a dense and a cached stream in turns of TURN frames, on this thread; JSON-ready results.

    frames : as the model takes them (`Stream`), fresh ones.  video : its name, for the record.
    threshold : of the cached stream (`Stream`); what is timed as dense has none.
    peers : time xnor-popcount alone and PyTorch too.
    peer : one more engine, which takes its turn too: called with each frame and our output for it.
    watch : called after each frame of the cached stream with it and the lanes, dense and cached.

    Times are medians over frames, in milliseconds. They hold everything from the raw frame to the logits
    (resize, crop, all layers), and leave out decoding, compilation, and the first frame, where the cached
    stream has no history. Dense and cached take turns at going first; each gets a frame just written, as a
    decoder leaves it. `spread` holds the quartiles.

    planes : whether the frames were `Yuv420`.
    frames, identical : how many, and whether both outputs had the same bytes on every one of them;
        first_difference : the first frame, from 0, where they had not, or None. With a threshold the cached
        stream is compared with a dense one of that threshold, which is not timed.
    threshold, held_back, other_top1, logit_difference : only with a threshold, see `stats.Disagreement`; the
        first frame, which is let through whole, is left out.
    dense_ms, cached_ms, speedup; binary_dense_ms, binary_cached_ms, binary_speedup : of the whole network,
        and of its binary convolutions alone.
    binary_popcount_ms, binary_speedup_popcount : of a third stream, dense by xnor-popcount alone, and how
        many times faster the cached one is.
    flip_rate : mean share of flipped input bits, see `stats.flip_rate`; the first frame is left out.
    preprocess_ms : of a cached frame, from the raw frame to the network's pixels: resize and crop.
    overhead_ms, overhead : of a cached frame, what is neither that nor in a step of the plan, by the compiled
        driver's clock: Python and dispatch; and its share of the frame's time, median over frames.
    torch_fp32_ms : the same network as float convolutions in PyTorch (oneDNN), one thread, in the same
        loop, without resize and crop; None where torch is absent.
    per_layer : for each step of the plan name, kind, macs, dense_ms, cached_ms; flips (mean) and flip_rate
        (binary only), skipped (share of output pixels left untouched), paths (share of frames that took each)
        and rows (of frames cached by rows of flipped bits), all of the cached stream.
    model, video, date, machine, versions : what was measured, when and on what.
    Raises VideoError where there is no frame.
    """
    remaining = iter(itertools.islice(frames, max_frames))
    head = list(itertools.islice(remaining, WARM_UP))
    if not head:
        raise VideoError("at least one frame", "none")
    with _float_lane(model) if peers else nullcontext() as floats:
        plan = xnor_alone(model.plan) if peers else None

        def lanes() -> tuple[Lane, Lane, Lane | None]:
            return (
                Lane(model, "dense"),
                Lane(model, "cached", threshold=threshold),
                Lane(model, "dense", plan=plan) if plan else None,
            )

        for lane in filter(None, lanes()):
            for frame in head:
                lane(frame)
        dense, cached, popcount = lanes()
        exact = Lane(model, "dense", threshold=threshold) if threshold else None
        differing: list[int] = []
        disagreement = Disagreement(model.task == "classification")
        others: list[Callable[[Frame], object]] = [each for each in (popcount, floats) if each]
        every, number, dense_first = itertools.chain(head, remaining), 0, True
        while taken := list(itertools.islice(every, TURN)):
            theirs = [dense(frame) for frame in taken] if dense_first else []
            ours, held = [], []
            for frame in taken:
                ours.append(cached(frame))
                held.append(cached.stream.held_back)
                if watch:
                    watch(frame, dense, cached)
            theirs = theirs or [dense(frame) for frame in taken]
            expected = [exact(frame) for frame in taken] if exact else theirs
            for mine, right, plain, share in zip(ours, expected, theirs, held, strict=True):
                if mine.tobytes() != right.tobytes():
                    differing.append(number)
                if threshold and number:
                    disagreement.add(share, mine, plain)
                number += 1
            for engine in others:
                for frame in taken:
                    engine(frame)
            if peer:
                for frame, logits in zip(taken, theirs, strict=True):
                    peer(frame, logits)
            dense_first = not dense_first

    settled = slice(1 if len(dense.seconds) > 1 else 0, None)
    dense_stats, cached_stats = dense.stats[settled], cached.stats[settled]
    popcount_stats = popcount.stats[settled] if popcount else []
    seconds = {
        "dense_ms": dense.seconds[settled],
        "cached_ms": cached.seconds[settled],
        "binary_dense_ms": [_binary_seconds(stats) for stats in dense_stats],
        "binary_cached_ms": [_binary_seconds(stats) for stats in cached_stats],
        "binary_popcount_ms": [_binary_seconds(stats) for stats in popcount_stats],
        "preprocess_ms": cached.preprocess_seconds[settled],
        "overhead_ms": cached.overhead_seconds[settled],
        "torch_fp32_ms": floats.seconds[settled] if floats else [],
    }
    shares = [part / whole for part, whole in zip(seconds["overhead_ms"], seconds["cached_ms"], strict=True)]
    median = {name: _median_ms(values) for name, values in seconds.items()}
    return {
        "model": model.name,
        "video": video,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "planes": isinstance(head[0], Yuv420),
        "frames": len(dense.seconds),
        "identical": not differing,
        "first_difference": differing[0] if differing else None,
        "dense_ms": median["dense_ms"],
        "cached_ms": median["cached_ms"],
        "speedup": _ratio(median["dense_ms"], median["cached_ms"]),
        "binary_dense_ms": median["binary_dense_ms"],
        "binary_cached_ms": median["binary_cached_ms"],
        "binary_speedup": _ratio(median["binary_dense_ms"], median["binary_cached_ms"]),
        "binary_popcount_ms": median["binary_popcount_ms"],
        "binary_speedup_popcount": _ratio(median["binary_popcount_ms"], median["binary_cached_ms"]),
        "flip_rate": _mean([flip_rate(stats) for stats in cached_stats]),
        "preprocess_ms": median["preprocess_ms"],
        "overhead_ms": median["overhead_ms"],
        "overhead": round(statistics.median(shares), 5),
        "torch_fp32_ms": median["torch_fp32_ms"],
        **({"threshold": threshold, **disagreement.facts()} if threshold else {}),
        "spread": {name: _quartiles_ms(values) for name, values in seconds.items()},
        "per_layer": [
            _layer(*steps)
            for steps in zip(zip(*dense_stats, strict=True), zip(*cached_stats, strict=True), strict=True)
        ],
        "machine": machine_fingerprint(),
        "versions": versions(),
    }


class Lane:
    """A stream with its seconds and statistics, frame by frame.

    seconds, preprocess_seconds : of each frame, of the whole and of its resizing and cropping.
    overhead_seconds : of each frame, what is neither in a step of the plan nor that.  logits : the last ones.
    """

    logits: Logits

    def __init__(self, model: Model, mode: Mode, *, threshold: int = 0, plan: Plan | None = None) -> None:
        self.stream = Stream(model, mode, plan) if plan else model.stream(mode, threshold=threshold)
        self.seconds: list[float] = []
        self.preprocess_seconds: list[float] = []
        self.overhead_seconds: list[float] = []
        self.stats: list[tuple[LayerStats, ...]] = []

    def __call__(self, frame: Frame) -> Logits:
        frame = frame.copy()  # just written, as a decoder leaves it
        start = perf_counter()
        self.logits = self.stream.values(frame)
        seconds = perf_counter() - start
        steps, before = sum(step.seconds for step in self.stream.stats), self.stream.preprocess_seconds
        self.seconds.append(seconds)
        self.preprocess_seconds.append(before)
        self.overhead_seconds.append(seconds - steps - before)
        self.stats.append(self.stream.stats)
        return self.logits


class _FloatLane:
    """The float network in PyTorch; only the network is timed."""

    def __init__(self, model: Model, twin: FloatTwin) -> None:
        self._preprocess, self._table = Preprocessor(model.input_rule), model.input_rule.table()
        self._twin = twin
        self.seconds: list[float] = []

    def __call__(self, frame: Frame) -> None:
        values = self._table[self._preprocess(frame), np.arange(self._table.shape[1])]
        start = perf_counter()
        self._twin(values)
        self.seconds.append(perf_counter() - start)


@contextmanager
def _float_lane(model: Model) -> Iterator[_FloatLane | None]:
    """The warmed-up float network with torch held to one thread; None where torch is absent."""
    try:
        import torch
    except ImportError:
        yield None
        return
    from .torch_reference import FloatTwin

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        twin = FloatTwin(model)
        for _ in range(WARM_UP):
            twin(np.zeros(model.input_shape, np.float32))
        yield _FloatLane(model, twin)
    finally:
        torch.set_num_threads(threads)


def _binary_seconds(stats: Iterable[LayerStats]) -> float:
    return sum(layer.seconds for layer in stats if layer.kind == "binary")


def _layer(dense: Sequence[LayerStats], cached: Sequence[LayerStats]) -> dict[str, Any]:
    """One step over all frames."""
    first, paths = cached[0], Counter(frame.path for frame in cached)
    return {
        "name": first.name,
        "kind": first.kind,
        "macs": first.macs,
        "dense_ms": _median_ms([frame.seconds for frame in dense]),
        "cached_ms": _median_ms([frame.seconds for frame in cached]),
        "flips": _mean([frame.flips for frame in cached]) if first.bits else None,
        "flip_rate": _mean([frame.flips / frame.bits for frame in cached]) if first.bits else None,
        "skipped": _mean([frame.skipped / frame.outputs for frame in cached]) if first.outputs else None,
        "paths": {path: round(paths[path] / len(cached), 4) for path in ("dense", "cached", "clean")},
        "rows": _mean([frame.rows for frame in cached]),
    }


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 5)


def _median_ms(seconds: Sequence[float]) -> float | None:
    return round(1e3 * statistics.median(seconds), 4) if seconds else None


def _quartiles_ms(seconds: Sequence[float]) -> list[float] | None:
    return [round(1e3 * float(q), 4) for q in np.quantile(seconds, (0.25, 0.75))] if seconds else None


def _ratio(dense: float | None, cached: float | None) -> float | None:
    """How many times faster; None where there is nothing to divide by."""
    return round(dense / cached, 3) if dense and cached else None
