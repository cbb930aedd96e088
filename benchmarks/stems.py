"""Our float convolution on the stems of real networks, against PyTorch's (oneDNN).

    python -m benchmarks.stems [STEMS ...]        e.g. resnet18

Equality first: what the cached stream recomputes has the bits that the dense stream computes, and PyTorch's
values agree up to rounding, or nothing is timed. Then all take turns, in one process on one thread. Ours is
the convolution's own step of the engine, by the engine's clock, with the copy into the padded input and the
list of outputs; PyTorch's is the form of its convolution that `torch_reference` finds the fastest, weights
laid out ahead, its input channels-last. Neither has anything fused behind it. Each timed call follows an
untimed one.

Of a changed frame a square in the middle holds new values, so large that a given share of the outputs has to
be computed again ("outputs" in the results is the share that was).

A ratio "dense_vs_torch" is PyTorch's median time over ours: how many times faster ours is; "changed_vs_dense"
and "changed_vs_torch" likewise, by the share of outputs asked for. Writes results/stems.json.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from xnor_rrm.model import INPUT, Conv2d, InputRule, Model, Window
from xnor_rrm.stream import Stream

from . import bounds, output
from .timing import Entry, Rounds, ratio, timed_ns

SHARES = (0.05, 0.2, 0.5)
#: Different frames that timed calls go through, of each share.
FRAMES = 4


@dataclass(frozen=True)
class Stem:
    """A network's first convolution: 3 channels of size x size, zero padding (top, bottom, left, right)."""

    name: str
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    outputs: int
    size: int

    def model(self, rng: np.random.Generator) -> Model:
        """The convolution alone, with random weights and bias."""
        weight = rng.normal(size=(self.outputs, self.kernel, self.kernel, 3)).astype(np.float32)
        bias = rng.normal(size=self.outputs).astype(np.float32)
        window = Window((self.kernel, self.kernel), (self.stride, self.stride), self.padding)
        rule = InputRule((self.size, self.size), 0, (123.7, 116.8, 103.9), (58.4, 57.1, 57.4))
        return Model(self.name, rule, (Conv2d("stem", (INPUT,), weight, bias, window),))


#: ResNet-18's, AlexNet's, and QuickNet's: of the data folder's checkpoint, and with more filters.
STEMS = (
    Stem("resnet18", 7, 2, (3, 3, 3, 3), 64, 224),
    Stem("alexnet", 11, 4, (0, 0, 0, 0), 96, 227),
    Stem("quicknet", 3, 2, (0, 1, 0, 1), 8, 224),
    Stem("quicknet16", 3, 2, (0, 1, 0, 1), 16, 224),
    Stem("quicknet32", 3, 2, (0, 1, 0, 1), 32, 224),
)


class Contest:
    """One stem: a dense and a cached stream, PyTorch's convolution where there is one, and their frames."""

    def __init__(self, stem: Stem, shares: Sequence[float], seed: int, *, torch: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.stem, self.model = stem, stem.model(rng)
        self.frame = rng.integers(0, 256, self.model.input_shape, np.uint8)
        self.changed = {share: [self._changed(rng, share) for _ in range(FRAMES)] for share in shares}
        self.dense, self.cached = (Stream(self.model, mode) for mode in ("dense", "cached"))
        self.torch = _torch_convolution(self.model) if torch else None
        self.outputs: dict[float, float] = {}

    def _changed(self, rng: np.random.Generator, share: float) -> Any:
        """The frame with new values in a square in the middle, under `share` of the windows."""
        size, (high, wide, _) = self.stem.size, self.model.shapes["stem"]
        # Along one axis, `side` pixels lie under (side + kernel - 1) / stride windows.
        side = round(np.sqrt(share * high * wide) * self.stem.stride - self.stem.kernel + 1)
        side = min(max(1, side), size)
        first = (size - side) // 2
        frame = self.frame.copy()
        square = frame[first : first + side, first : first + side]
        square[:] = (square + rng.integers(1, 256, square.shape)).astype(np.uint8)  # no value stays
        return frame

    def values(self, frame: Any) -> Any:
        """float32[H, W, 3]: the frame as the network's input."""
        table = self.model.input_rule.table()
        return table[frame, np.arange(3)]

    def check(self) -> None:
        """Raises ArithmeticError where the streams' bits differ, or PyTorch's values beyond rounding."""
        for frame in (self.frame, *(frames[0] for frames in self.changed.values()), self.frame):
            dense, cached = self.dense(frame), self.cached(frame)
            if dense.tobytes() != cached.tobytes():
                raise ArithmeticError(f"cached differs from dense on {self.stem}")
            if self.torch:
                theirs = self.torch(self.values(frame))()
                theirs = theirs[0].permute(1, 2, 0).reshape(-1).numpy()
                if np.abs(dense - theirs).max() > 1e-5 * np.abs(theirs).max():
                    raise ArithmeticError(f"PyTorch differs by more than rounding on {self.stem}")

    def entries(self) -> list[Entry]:
        """What takes turns in a round."""
        entries: list[Entry] = [partial(self._dense, cycle(next(iter(self.changed.values()), [self.frame])))]
        if self.torch:
            entries.append(partial(self._torch, self.torch(self.values(self.frame))))
        return entries + [partial(self._changes, share, cycle(f)) for share, f in self.changed.items()]

    def _dense(self, frames: Iterator[Any]) -> list[tuple[str, int]]:
        self.dense(self.frame)
        self.dense(next(frames))
        return [("dense", _nanoseconds(self.dense))]

    def _changes(self, share: float, frames: Iterator[Any]) -> list[tuple[str, int]]:
        self.cached.reset()
        self.cached(self.frame)  # computed whole: the weights and all of the input are near
        self.cached(next(frames))
        stats = self.cached.stats[1]
        self.outputs[share] = 1 - stats.skipped / stats.outputs
        return [(f"changed@{share}", _nanoseconds(self.cached))]

    def _torch(self, run: Callable[[], Any]) -> list[tuple[str, int]]:
        run()
        return [("torch", timed_ns(run))]


def _nanoseconds(stream: Stream) -> int:
    """Of the last frame's convolution."""
    return round(1e9 * stream.stats[1].seconds)


def _torch_convolution(model: Model) -> Callable[[Any], Callable[[], Any]] | None:
    """From an input to a call of PyTorch's fastest form of the convolution; None where torch is absent."""
    try:
        import torch
    except ImportError:
        return None
    from xnor_rrm.torch_reference import convolution

    torch.set_num_threads(1)
    layer = model.layers[0]
    assert isinstance(layer, Conv2d)
    operation = convolution(layer, model.input_shape)

    def prepared(values: Any) -> Callable[[], Any]:
        x = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)[None]

        def run() -> Any:
            with torch.inference_mode():
                return operation(x)

        return run

    return prepared


def measure(contest: Contest, rounds: int, seconds: float) -> dict[str, Any]:
    """Check, time, and sum up one stem; see the module's text for the names."""
    contest.check()
    times = Rounds()
    times.run(contest.entries(), rounds, seconds)
    contest.check()  # the states are still right after all rounds

    clock = statistics.median(times.clock)
    layer = contest.model.layers[0]
    macs = contest.model.macs(layer)

    def row(name: str, outputs: float) -> dict[str, Any]:
        ms, bound = times.median_ms(name), bounds.fma_bound_ms(outputs * macs, clock)
        return {
            "ms": ms,
            "quartiles_ms": times.quartiles_ms(name),
            "outputs": round(outputs, 4),
            "bound_ms": round(bound, 6),
            "share": round(bound / ms, 3),
        }

    dense = row("dense", 1.0)
    changed = {str(share): row(f"changed@{share}", contest.outputs[share]) for share in contest.changed}
    theirs = row("torch", 1.0) if contest.torch else None
    torch_ms = theirs["ms"] if theirs else None
    stem = contest.stem
    return {
        "name": stem.name,
        "cin": 3,
        "cout": stem.outputs,
        "size": [stem.size, stem.size],
        "kernel": [stem.kernel, stem.kernel],
        "stride": stem.stride,
        "padding": list(stem.padding),
        "macs": macs,
        "ratios": {
            "dense_vs_torch": ratio(torch_ms, dense["ms"]),
            "changed_vs_dense": {share: ratio(dense["ms"], each["ms"]) for share, each in changed.items()},
            "changed_vs_torch": {share: ratio(torch_ms, each["ms"]) for share, each in changed.items()},
        },
        "dense": dense,
        "changed": changed,
        "torch": theirs,
        "rounds": times.rounds,
        "clock_ghz": round(clock, 3),
    }


def _line(stem: dict[str, Any]) -> str:
    ratios = stem["ratios"]
    lines = [
        f"{stem['name']}  dense vs torch {ratios['dense_vs_torch']}  ({stem['rounds']} rounds)",
        f"changed vs dense {ratios['changed_vs_dense']}  vs torch {ratios['changed_vs_torch']}",
    ]
    rows = {"dense": stem["dense"], "torch": stem["torch"], **stem["changed"]}
    lines.append("  ".join(f"{name} {r['ms']} ms {r['share']:.0%}" for name, r in rows.items() if r))
    return "\n  ".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = output.parser(__doc__)
    names = [stem.name for stem in STEMS]
    parser.add_argument("stems", nargs="*", metavar="STEMS", help=f"of {', '.join(names)}; all if none")
    parser.add_argument("--rounds", type=int, default=200, help="at most, a stem (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="no new round after (default %(default)s)")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of changed outputs")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=output.RESULTS, help="folder (%(default)s)")
    options = parser.parse_args(given)
    if unknown := [name for name in options.stems if name not in names]:
        parser.error(f"expected stems of {', '.join(names)}; got {', '.join(unknown)}")

    stems = []
    for stem in STEMS:
        if not options.stems or stem.name in options.stems:
            contest = Contest(stem, options.shares, options.seed, torch=not options.no_torch)
            stems.append(measure(contest, options.rounds, options.seconds))
            print(_line(stems[-1]), flush=True)
    result = {
        **output.made_by("stems", given),
        "assumption": bounds.fma_assumption(),
        "stems": stems,
    }
    print("written:", output.write(options.results, "stems", result))
    return result


if __name__ == "__main__":
    main()
