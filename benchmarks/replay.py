"""The kernels on what a network really feeds them: recordings of record.py, by layer and frame.

    python -m benchmarks.replay [RECORDING.npz ...]

All variants see the same frames in turns, in one process on one thread, with the clock inside compiled code.
Two columns: "warm", where a layer's frames follow one another, so that its state and tables stay near;
"cold", where 32 MB are touched before every call, as in a network other layers' data pass in between. A real
network lies between the two. In the cold pass every variant's sums are compared on every frame.

Names, all milliseconds a frame, summed over the binary layers, medians over frames:

- popcount_ms: the xor-popcount kernel alone, its input padded already.
- dense_ms: the fastest dense variant of each layer, likewise; dense_with_input_ms: with the copy that pads.
- cached_ms: the fastest cached variant of each layer, with comparing, copying and listing.
- choice_ms: each layer and frame by `xnor_rrm.policy`: nothing but the comparison where no bit flipped; the
  cached variant up to the policy's number of flips; above, the comparison and the fastest dense variant.
- torch_fp32_ms: PyTorch's float convolutions of these layers.

The first frame is left out. flip_rate is the share of flipped bits, weighted by MACs.
Writes results/replay.json.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xnor_rrm.kernels.layer import VARIANTS

from xnor_rrm import policy

from . import output
from .kernels import POPCOUNT
from .layershapes import LayerShape
from .peers import PEERS, Problem, available
from .record import RecordedLayer, read, recordings_folder
from .timing import Kernel, evict, median_ms, quartiles_ms, ratio

#: Frames on which PyTorch, whose time does not depend on the frame, takes its turn.
TORCH_FRAMES = 8

Times = dict[str, Any]


def rows_limit(kernel: Kernel) -> int:
    """Most flips of a frame for which the engine takes the cached kernel."""
    return policy.rows_limit(kernel.layer.step)


def replay_layer(layer: RecordedLayer, variants: Sequence[str], torch: bool) -> tuple[Times, Times]:
    """Nanoseconds of every frame but the first: (warm, cold); see `_sum_up` for the names."""
    frames = layer.frames
    step = layer.layer().step
    names = [n for n, v in VARIANTS.items() if (n in variants or n == POPCOUNT) and v.takes(step)]
    if not layer.signs_only and "rows_sliced" in names:  # a float layer needs the sums as integers
        names.remove("rows_sliced")
    kernels = {name: Kernel(VARIANTS[name], layer.layer(), frames[0]) for name in names}
    twin = PEERS["torch_fp32"](_problem(layer)) if torch else None
    warm: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    cold: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    floats: list[int] = []

    turns = list(kernels.items())
    for kernel in kernels.values():
        kernel(frames[0])
    for number, frame in enumerate(frames[1:]):
        for name, kernel in turns if number % 2 else reversed(turns):
            warm[name].append(kernel(frame))

    for kernel in kernels.values():
        kernel(frames[0])
    for number, frame in enumerate(frames[1:]):
        for name, kernel in turns if number % 2 else reversed(turns):
            evict()
            cold[name].append(kernel(frame))
        dots = kernels[POPCOUNT].dots()
        for name, kernel in turns:
            if not np.array_equal(kernel.dots(), dots):
                raise ArithmeticError(f"{name} differs from {POPCOUNT} on {layer.name}, frame {number + 1}")
        if twin and number < TORCH_FRAMES:
            twin()
            floats.append(twin()["ms"])
    cached = next((kernel for kernel in kernels.values() if kernel.cached), None)
    limit = rows_limit(cached) if cached else 0
    flips = layer.flips[1:]
    return tuple(_sum_up(samples, flips, limit, floats) for samples in (warm, cold))  # type: ignore[return-value]  # a generator of two


def _sum_up(samples: dict[str, list[tuple[int, int]]], flips: Any, limit: int, floats: list[int]) -> Times:
    """int64[T - 1] nanoseconds by name: popcount, dense, dense_with_input, cached, choice, torch_fp32.

    best_dense, best_cached : the variants that were fastest in the median.
    """
    pairs = {name: np.array(values) for name, values in samples.items()}
    alone = {n: p[:, 1] - p[:, 0] for n, p in pairs.items() if not VARIANTS[n].cached}
    cached = {n: p for n, p in pairs.items() if VARIANTS[n].cached}
    best_dense = min(alone, key=lambda name: float(np.median(alone[name])))
    times = {
        "popcount": alone[POPCOUNT],
        "dense": alone[best_dense],
        "dense_with_input": pairs[best_dense][:, 1],
        "best_dense": best_dense,
    }
    if cached:
        best = min(cached, key=lambda name: float(np.median(cached[name][:, 1])))
        compare, total = cached[best].T
        chosen = np.where(flips == 0, compare, np.where(flips <= limit, total, compare + alone[best_dense]))
        times |= {"cached": total, "choice": chosen, "best_cached": best}
    if floats:
        times["torch_fp32"] = np.full(len(flips), statistics.median(floats))
    return times


def _problem(layer: RecordedLayer) -> Problem:
    """The layer and its first frame, for a peer."""
    g, weight = layer.geometry, layer.weight
    if g["stride"][0] != g["stride"][1] or g["dilation"] != (1, 1):
        raise ValueError(f"{layer.name} has a stride or a dilation that peers are not given here")
    h, w, channels = g["shape"]
    kernel, stride = weight.shape[1:3], g["stride"][0]
    shape = LayerShape(
        "", layer.name, channels, len(weight), h, w, kernel, stride, g["padding"], g["pad_value"]
    )
    return Problem(shape, weight, layer.frames[0])


SUMS = ("popcount", "dense", "dense_with_input", "cached", "choice", "torch_fp32")


def replay(path: Path, variants: Sequence[str], torch: bool) -> dict[str, Any]:
    """One recording: totals warm and cold, and every layer."""
    layers = read(path)
    timed = [replay_layer(layer, variants, torch) for layer in layers]
    macs = sum(layer.macs for layer in layers)
    rate = sum(layer.macs * layer.flips[1:].mean() / layer.bits for layer in layers) / macs
    result: dict[str, Any] = {
        "recording": path.name,
        "frames": len(layers[0].differences),
        "flip_rate": round(float(rate), 5),
        "macs": macs,
    }
    for column, index in (("warm", 0), ("cold", 1)):
        times = [pair[index] for pair in timed]
        sums = {name: sum(t[name] for t in times) for name in SUMS if all(name in t for t in times)}
        rows = [_layer_row(layer, t) for layer, t in zip(layers, times, strict=True)]
        medians = {f"{name}_ms": median_ms(values.tolist()) for name, values in sums.items()}
        against = {
            "cached_vs_popcount": ratio(medians["popcount_ms"], medians.get("cached_ms")),
            "choice_vs_popcount": ratio(medians["popcount_ms"], medians.get("choice_ms")),
            "choice_vs_dense": ratio(medians["dense_ms"], medians.get("choice_ms")),
            "choice_vs_torch_fp32": ratio(medians.get("torch_fp32_ms"), medians.get("choice_ms")),
        }
        speedup = against["choice_vs_popcount"]
        worst = [row["choice_vs_dense_with_input"] for row in rows if row.get("choice_vs_dense_with_input")]
        result[column] = {
            **against,
            "speedup_x_flip_rate": round(speedup * float(rate), 3) if speedup else None,
            "worst_layer_choice_vs_dense": min(worst, default=None),
            **medians,
            "quartiles_ms": {name: quartiles_ms(values.tolist()) for name, values in sums.items()},
            "layers": rows,
        }
    return result


def _layer_row(layer: RecordedLayer, times: Times) -> dict[str, Any]:
    medians = {f"{name}_ms": median_ms(times[name].tolist()) for name in SUMS if name in times}
    return {
        "name": layer.name,
        "macs": layer.macs,
        "flip_rate": round(float(layer.flips[1:].mean()) / layer.bits, 5),
        "choice_vs_popcount": ratio(medians["popcount_ms"], medians.get("choice_ms")),
        "choice_vs_dense_with_input": ratio(medians["dense_with_input_ms"], medians.get("choice_ms")),
        **medians,
        "best_dense": times["best_dense"],
        "best_cached": times.get("best_cached"),
    }


def _line(clip: dict[str, Any]) -> str:
    lines = [f"{clip['recording']}  {clip['frames']} frames, {clip['flip_rate']:.2%} flipped"]
    for column in ("warm", "cold"):
        c = clip[column]
        ratios = ("choice_vs_popcount", "speedup_x_flip_rate", "choice_vs_torch_fp32")
        keys = [*(f"{name}_ms" for name in SUMS), *ratios]
        lines.append(f"  {column}  " + "  ".join(f"{key} {c[key]}" for key in keys if c.get(key) is not None))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = output.parser(__doc__)
    parser.add_argument("recordings", nargs="*", type=Path, help=f"all in {recordings_folder()} if none")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--results", type=Path, default=output.RESULTS, help="folder (%(default)s)")
    options = parser.parse_args(given)

    recordings = options.recordings or sorted(recordings_folder().glob("*.npz"))
    if not recordings:
        parser.error(
            f"expected recordings in {recordings_folder()}, found none; make some with benchmarks.record"
        )
    present, absent = available(() if options.no_torch else ("torch_fp32",))
    for name, why in absent.items():
        print(f"without {name}: {why}")
    clips = {}
    for path in recordings:
        clips[path.stem] = replay(path, options.variants, bool(present))
        print(_line(clips[path.stem]), flush=True)
    # Recordings lie in somebody's cache folder: only their names are kept.
    told = [Path(argument).name if argument.endswith(".npz") else argument for argument in given]
    result = {**output.made_by("replay", told), "clips": clips}
    print("written:", output.write(options.results, "replay", result))
    return result


if __name__ == "__main__":
    main()
