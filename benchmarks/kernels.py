"""Every kernel of a binary convolution on real layer shapes, against each other and against other engines.

    python -m benchmarks.kernels [SHAPES ...]        e.g. resnet18, or resnet18:64@56

Equality first: all variants and peers must give the same sums on the same frames, or nothing is timed. Then
all of them take turns, in one process on one thread. What is timed, in whose favour:

- A dense variant ("ms") is the kernel on an input that is padded already; "with_input_ms" adds the copy that
  pads it; "whole_ms" goes from float activations to float sums (signs, packing, copy, kernel, conversion).
- A cached variant always includes comparing and copying the frame, and listing what flipped.
- Cached against dense uses "ms"; against OpenVINO's node, which pads inside, ours is "with_input_ms".
- Every timed call follows an untimed one, so that weights and state are as near as their size allows. For a
  cached variant that one flips half of the bits: it touches the whole table, as a dense call all weights.
- Flips are spread uniformly and differ from call to call. With two frames in turns, the few rows of the
  table that they select stay in a near cache, and 9216->4096 at 3 % looked five times as fast (72x for 14x).

In names of ratios, "popcount" is P, the xor-popcount kernel; "dense" is the fastest dense variant; "any" is
the fastest dense kernel of all engines, so that nothing looks fast beside a slow P. A ratio "a_vs_b" is the
median time of b over that of a: how many times faster a is. Writes results/kernels.json.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from xnor_rrm.kernels.layer import VARIANTS

from . import bounds, output
from .layershapes import LayerShape, select
from .peers import PEERS, Peer, Problem, available
from .timing import Entry, Kernel, Rounds, WholeKernel, ratio

RATES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.10, 0.20)
DENSE = [name for name, variant in VARIANTS.items() if not variant.cached]
CACHED = [name for name, variant in VARIANTS.items() if variant.cached]
POPCOUNT = DENSE[0]
#: Different frames that timed calls go through.
FRAMES = 8


class Contest:
    """One layer shape: its kernels, its peers, and the frames they all see."""

    def __init__(
        self,
        shape: LayerShape,
        variants: Sequence[str],
        rates: Sequence[float],
        peers: dict[str, type[Peer]],
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.shape = shape
        weight, self.frame = shape.random_weight(rng), shape.random_frame(rng)
        self.frames = [shape.random_frame(rng) for _ in range(FRAMES)]
        self.flipped = {rate: [shape.flipped(rng, self.frame, rate) for _ in range(FRAMES)] for rate in rates}
        step = shape.layer(weight).step

        def takes(name: str) -> bool:
            return VARIANTS[name].takes(step)

        self.dense = {
            name: WholeKernel(VARIANTS[name], shape.layer(weight), self.frame)
            for name in DENSE
            if (name in variants or name == POPCOUNT) and takes(name)
        }
        self.cached = {
            name: Kernel(VARIANTS[name], shape.layer(weight), self.frame)
            for name in CACHED
            if name in variants and takes(name)
        }
        problem = Problem(shape, weight, self.frame)
        self.values = problem.frame_signs.astype(np.float32)
        self.peers: dict[str, Peer] = {}
        self.refused: dict[str, str] = {}
        for name, peer in peers.items():
            try:
                self.peers[name] = peer(problem)
            except (RuntimeError, ValueError) as error:  # a shape this engine does not take
                self.refused[name] = str(error).splitlines()[0]
        self._problem = problem

    def check(self) -> None:
        """Raises ArithmeticError where a variant or a peer differs from the first dense variant."""
        reference = self.dense[POPCOUNT]
        for frame in (*(frames[0] for frames in self.flipped.values()), self.frames[0], self.frame):
            reference(frame)
            dots = reference.dots()
            for name, kernel in (*self.dense.items(), *self.cached.items()):
                kernel(frame)
                self._equal(name, kernel.dots(), dots)
        for name, kernel in self.dense.items():
            kernel.whole(self.values)
            self._equal(name, kernel.sums.reshape(dots.shape), dots)
        for peer in self.peers.values():
            peer.check(self._problem, dots)

    def _equal(self, name: str, ours: Any, reference: Any) -> None:
        if not np.array_equal(ours, reference):
            raise ArithmeticError(f"{name} differs from {POPCOUNT} on {self.shape}")

    def entries(self) -> list[Entry]:
        """What takes turns in a round."""
        dense: list[Entry] = [partial(self._dense, name, cycle(self.frames)) for name in self.dense]
        cached: list[Entry] = [
            partial(self._cached, name, rate, cycle(frames))
            for name in self.cached
            for rate, frames in self.flipped.items()
        ]
        peers: list[Entry] = [partial(self._peer, name) for name in self.peers]
        return dense + peers + cached

    def _dense(self, name: str, frames: Iterator[Any]) -> list[tuple[str, int]]:
        kernel = self.dense[name]
        kernel(next(frames))
        kernel.whole(self.values)
        load, total = kernel(next(frames))
        return [(name, total - load), (f"{name}+input", total), (f"{name}+whole", kernel.whole(self.values))]

    def _cached(self, name: str, rate: float, frames: Iterator[Any]) -> list[tuple[str, int]]:
        kernel = self.cached[name]
        kernel(self.frames[0])
        kernel(self.frame)
        _, total = kernel(next(frames))
        kernel(self.frame)
        return [(f"{name}@{rate}", total)]

    def _peer(self, name: str) -> list[tuple[str, int]]:
        self.peers[name]()
        return [(f"{name}.{part}", spent) for part, spent in self.peers[name]().items()]


def measure(contest: Contest, rounds: int, seconds: float) -> dict[str, Any]:
    """Check, time, and sum up one layer; see the module's text for the names."""
    contest.check()
    times = Rounds()
    times.run(contest.entries(), rounds, seconds)
    contest.check()  # the states are still right after all rounds

    shape, clock = contest.shape, statistics.median(times.clock)
    dense, cached = _dense_rows(contest, times, clock), _cached_rows(contest, times, clock)
    return {
        "network": shape.network,
        "name": shape.name,
        "cin": shape.cin,
        "cout": shape.cout,
        "size": [shape.h, shape.w],
        "kernel": list(shape.kernel),
        "stride": shape.stride,
        "padding": list(shape.padding),
        "pad_value": shape.pad_value,
        "macs": shape.macs,
        "ratios": _ratios(dense, cached, (peers := _peer_rows(contest, times))),
        "dense": dense,
        "cached": cached,
        "peers": peers,
        "refused": contest.refused,
        "rounds": times.rounds,
        "clock_ghz": round(clock, 3),
    }


def _dense_rows(contest: Contest, times: Rounds, clock: float) -> dict[str, Any]:
    rows = {}
    for name, kernel in contest.dense.items():
        ms = times.median_ms(name)
        count = bounds.operations(name, False, kernel.layer, contest.frame, contest.frame)
        rows[name] = {
            "ms": ms,
            "quartiles_ms": times.quartiles_ms(name),
            "with_input_ms": times.median_ms(f"{name}+input"),
            "whole_ms": times.median_ms(f"{name}+whole"),
            "bit_macs_ns": round(contest.shape.macs / (ms * 1e6), 1),
            **_bound(count, clock, ms),
        }
    return rows


def _cached_rows(contest: Contest, times: Rounds, clock: float) -> dict[str, Any]:
    rows: dict[str, Any] = {name: {} for name in contest.cached}
    for name, kernel in contest.cached.items():
        for rate, frames in contest.flipped.items():
            key = f"{name}@{rate}"
            ms = times.median_ms(key)
            count = bounds.operations(name, True, kernel.layer, contest.frame, frames[0])
            rows[name][str(rate)] = {
                "ms": ms,
                "quartiles_ms": times.quartiles_ms(key),
                "flips": int(np.bitwise_count(frames[0] ^ contest.frame).sum()),
                **_bound(count, clock, ms),
            }
    return rows


def _peer_rows(contest: Contest, times: Rounds) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, peer in contest.peers.items():
        rows[name] = {"form": peer.form}
        for key in times.samples:
            if key.startswith(f"{name}."):
                part = key.removeprefix(f"{name}.")
                suffix = "ms" if part == "ms" else f"{part}_ms"
                rows[name][suffix] = times.median_ms(key)
                rows[name][f"quartiles_{suffix}"] = times.quartiles_ms(key)
    return rows


def _bound(count: int, clock: float, ms: float) -> dict[str, Any]:
    bound = bounds.bound_ms(count, clock)
    return {"operations": count, "bound_ms": round(bound, 6), "share": round(bound / ms, 3)}


def _ratios(dense: dict[str, Any], cached: dict[str, Any], peers: dict[str, Any]) -> dict[str, Any]:
    """By name; see the module's text."""
    best, with_input, whole = (
        min(row[key] for row in dense.values()) for key in ("ms", "with_input_ms", "whole_ms")
    )
    popcount = dense[POPCOUNT]
    ratios: dict[str, Any] = {"dense_vs_popcount": ratio(popcount["ms"], best)}
    if "openvino" in peers:
        theirs = peers["openvino"]
        ratios["popcount_vs_openvino"] = ratio(theirs["ms"], popcount["with_input_ms"])
        ratios["dense_vs_openvino"] = ratio(theirs["ms"], with_input)
        ratios["whole_vs_openvino_binarized"] = ratio(theirs["binarized_ms"], whole)
        ratios["whole_vs_openvino"] = ratio(theirs["nodes_ms"], whole)
    for name in peers:
        if name != "openvino":
            ratios[f"dense_vs_{name}"] = ratio(peers[name]["ms"], with_input)
    rates: dict[str, Any] = next(iter(cached.values()), {})
    fastest = {rate: min(rows[rate]["ms"] for rows in cached.values()) for rate in rates}
    ratios["cached_vs_popcount"] = {rate: ratio(popcount["ms"], ms) for rate, ms in fastest.items()}
    ratios["cached_vs_dense"] = {rate: ratio(best, ms) for rate, ms in fastest.items()}
    anyone = min(best, *(row["ms"] for row in peers.values())) if peers else best
    ratios["cached_vs_any"] = {rate: ratio(anyone, ms) for rate, ms in fastest.items()}
    return ratios


def geometric_mean(layers: Sequence[dict[str, Any]], name: str) -> float | None:
    """Of a ratio over the layers that have it."""
    values = [value for layer in layers if (value := layer["ratios"].get(name))]
    return round(statistics.geometric_mean(values), 2) if values else None


def _line(layer: dict[str, Any]) -> str:
    ratios = layer["ratios"]
    single = "  ".join(f"{key} {value}" for key, value in ratios.items() if not isinstance(value, dict))
    against = ("popcount", "any")
    cached = [
        f"cached vs {other}  "
        + "  ".join(f"{float(r):.1%} {v}" for r, v in ratios[f"cached_vs_{other}"].items())
        for other in against
    ]
    shares = "  ".join(f"{name} {row['ms']} ms {row['share']:.0%}" for name, row in layer["dense"].items())
    times = "  ".join(f"{name} {row['ms']} ms" for name, row in layer["peers"].items())
    head = f"{layer['network']}:{layer['name']}  ({layer['rounds']} rounds, {layer['clock_ghz']} GHz)"
    return "\n  ".join([head, single, *cached, f"{shares}  {times}"])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = output.parser(__doc__)
    parser.add_argument("shapes", nargs="*", metavar="SHAPES", help="NETWORK or NETWORK:LAYER; all if none")
    parser.add_argument("--rounds", type=int, default=200, help="at most, a layer (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="no new round after (default %(default)s)")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="shares of flipped bits")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=output.RESULTS, help="folder (%(default)s)")
    options = parser.parse_args(given)

    present, absent = available(tuple(options.peers))
    for name, why in absent.items():
        print(f"without {name}: {why}")
    layers = []
    for shape in select(options.shapes):
        contest = Contest(shape, options.variants, options.rates, present, options.seed)
        layers.append(measure(contest, options.rounds, options.seconds))
        print(_line(layers[-1]), flush=True)
    means = dict.fromkeys(
        k for layer in layers for k, v in layer["ratios"].items() if not isinstance(v, dict)
    )
    result = {
        **output.made_by("kernels", given),
        "assumption": bounds.ASSUMPTION,
        "popcount": POPCOUNT,
        "absent_peers": absent,
        "geometric_means": {name: geometric_mean(layers, name) for name in means},
        "layers": layers,
    }
    print("geometric means:", "  ".join(f"{k} {v}" for k, v in result["geometric_means"].items()))
    print("written:", output.write(options.results, "kernels", result))
    return result


if __name__ == "__main__":
    main()
