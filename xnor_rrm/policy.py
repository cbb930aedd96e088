"""Which kernel a binary layer's frame goes to: rows of flipped bits, rows of set bits, or xnor-popcount.

All give the same bits, so the choice is about time alone: a linear cost model of each kernel. Xnor-popcount
is proportional to bit-MACs, the sum of set rows to its rows; the cached kernel pays for looking at its input,
for fetching its table, for each vector of outputs, and for each row it adds. The costs are measured once for
each machine and version of the kernels, through the engine itself, and kept beside the compiled kernels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from .kernels.jit import cache_folder, sources_digest
from .kernels.set_rows import can_sum_sets

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of: a bit-MAC by xnor-popcount; a row of set bits; and in the cached kernel of a word of
    padded input compared and listed, a byte of table, a vector of 512 outputs updated (as sums; as bit planes
    and signs), a row added.
    """

    bit_mac: float
    set_row: float
    word: float
    table_byte: float
    vector: float
    sliced_vector: float
    row: float


#: Under which no frame is too busy for the rows kernel.
ALWAYS_ROWS = Costs(
    bit_mac=1e6, set_row=1e-9, word=0.0, table_byte=0.0, vector=0.0, sliced_vector=0.0, row=1e-9
)

#: Layers that `measure` times, 3x3: (channels in and out, height and width of the input).
SHAPES = ((64, 32), (128, 28), (256, 14), (512, 7))
#: Shares of pixels replaced from frame to frame.
CHANGES = (0.004, 0.03, 0.1, 0.3)
REPEATS = 6
#: Read and written between frames: in a network, other layers' data passes between two uses of a table.
EVICTED_BYTES = 16 << 20


def work(step: Any, flips: float) -> tuple[float, float, float, float, float]:
    """What the rows kernel does for so many flips, evenly spread.

    Returns (words, bytes of table, vectors of sums, vectors in bit planes, rows).
    """
    words, table_bytes = int(step["hp"] * step["wp"] * step["words"]), 8 * int(step["table_size"])
    # A flip lies under kH / sH output rows, and there under the tiles whose columns reach it.
    tile_columns = (int(step["tile"]) - 1) * int(step["sw"]) + int(step["kw"])
    vectors_a_tile = max(1, int(step["out_words"]) // 8)
    rows = int(step["kh"]) / int(step["sh"]) * tile_columns / int(step["tile"] * step["sw"]) * vectors_a_tile
    vectors = int(step["ho"]) * -(-int(step["wo"]) // int(step["tile"])) * vectors_a_tile
    # Each row dirties one more vector, until all are dirty.
    touched = min(vectors, rows * flips)
    return words, table_bytes, *((0.0, touched) if step["planes"] else (touched, 0.0)), rows * flips


def set_rows(step: Any, entries: float) -> float:
    """Rows that so many set bits (with their filling) select, over all outputs and vectors."""
    reached = int(step["kh"] * step["kw"]) / int(step["sh"] * step["sw"])
    if step["ho"] * step["wo"] == 1:
        reached = 1.0
    return entries * reached * max(1, int(step["out_words"]) // 8)


def _half_set(step: Any) -> int:
    """Entries of a frame of which half of the bits are set, each pixel's filled up to a multiple of 16."""
    return int(step["h"] * step["w"]) * (int(step["cin"]) // 2 + 8)


def _bit_macs(step: Any) -> int:
    return int(step["ho"] * step["wo"] * step["cout"]) * int(step["kh"] * step["kw"] * step["cin"])


def set_limit(step: Any, costs: Costs | None = None) -> int:
    """Most entries of a frame for which summing the rows of set bits beats xnor-popcount; 0 below half."""
    costs = costs or machine_costs()
    limit = _bit_macs(step) * costs.bit_mac / max(costs.set_row * set_rows(step, 1), 1e-12)
    half = _half_set(step)
    return int(min(limit, 1 << 40)) if limit >= half else 0


def rows_limit(step: Any, costs: Costs | None = None) -> int:
    """Most flips of a frame for which the rows kernel should be the faster; step as the plan lays it out."""
    costs = costs or machine_costs()
    words, table_bytes, *_ = work(step, 0)
    _, _, *kept, _ = work(step, np.inf)
    *_, rows = work(step, 1)
    vectors, cost = (kept[1], costs.sliced_vector) if step["planes"] else (kept[0], costs.vector)
    dense = _bit_macs(step) * costs.bit_mac
    if can_sum_sets(step) and set_limit(step, costs):
        half = _half_set(step)
        dense = min(dense, costs.set_row * set_rows(step, half))
    spare = dense - costs.word * words - costs.table_byte * table_bytes
    each = max(costs.row * rows, 1e-9)
    few, many = spare / (each + cost * rows), (spare - cost * vectors) / each
    bits = int(step["h"] * step["w"] * step["cin"])
    return int(np.clip(max(few, many), 0, bits))


@cache
def machine_costs() -> Costs:
    """This machine's costs: read from beside the compiled kernels, or measured and stored there."""
    path = _stored_at()
    try:
        stored = json.loads(path.read_text("utf-8"))
        costs = Costs(**{field.name: float(stored[field.name]) for field in fields(Costs)})
        if all(0 <= value < 1e6 for value in asdict(costs).values()):
            return costs
    except (OSError, ValueError, KeyError, TypeError):
        pass
    costs = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(asdict(costs), file, indent=1)
        os.replace(file.name, path)
    except OSError:  # nowhere to store it: measured again next time
        pass
    return costs


def _stored_at() -> Path:
    from llvmlite import binding

    target = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    return cache_folder() / f"costs-{target}-{sources_digest()[:16]}.json"


def measure() -> Costs:
    """Time both kernels on small models of one binary layer, through the engine, and fit the costs.

    Takes about a second, once the kernels are compiled.
    """
    evicted = np.zeros(EVICTED_BYTES, np.uint8)
    samples: dict[str, list[tuple[tuple[float, ...], float]]] = {"xnor": [], "set_rows": [], "rows": []}
    for channels, size in SHAPES:
        for signs in (False, True):
            for kernel, amounts, nanoseconds in _timed_frames(_one_layer(channels, size, signs), evicted):
                samples[kernel].append((amounts, nanoseconds))
    return Costs(*_fit(samples["xnor"]), *_fit(samples["set_rows"]), *_fit(samples["rows"]))


def _one_layer(channels: int, size: int, signs: bool) -> Model:
    """A frame's noise through 1x1 weights into `channels` signs, and a 3x3 binary layer over them.

    signs : whether only the sign of that layer is read, by another one.
    """
    from .bits import pack_signs
    from .model import INPUT, BinaryConv2d, Conv2d, InputRule, Layer, Model, Sign, Window

    rng = np.random.default_rng(channels)
    mix = rng.normal(size=(channels, 1, 1, 3)).astype(np.float32)
    weight = pack_signs(rng.random((channels, 3, 3, channels)) < 0.5)
    one, zero = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    around = Window((3, 3), padding=(1, 1, 1, 1))
    layers: tuple[Layer, ...] = (
        Conv2d("mix", (INPUT,), mix, zero, Window((1, 1))),
        Sign("sign", ("mix",)),
        BinaryConv2d("binary", ("sign",), weight, one, zero, channels, around, pad_value=1),
    )
    if signs:
        point, one, zero = weight[:1, :1, :1], one[:1], zero[:1]
        reader = BinaryConv2d("reader", ("signs",), point, one, zero, channels, Window((1, 1)))
        layers += (Sign("signs", ("binary",)), reader)
    rule = InputRule((size, size), 0, (128.0, 128.0, 128.0), (64.0, 64.0, 64.0))
    return Model("costs", rule, layers)


def _timed_frames(model: Model, evicted: Any) -> Iterator[tuple[str, tuple[float, ...], float]]:
    """(kernel, amounts of its work, nanoseconds) of frames that change more and less."""
    from .kernels.frame import Kind
    from .plan import build_plan, xnor_alone
    from .stream import Stream

    by_sets = build_plan(model, ALWAYS_ROWS)
    index = [int(kind) for kind in by_sets.steps["kind"]].index(Kind.BINARY_CONV)
    step = by_sets.steps[index]
    streams = {"rows": Stream(model, "cached", by_sets), "xnor": Stream(model, "dense", xnor_alone(by_sets))}
    if step["set_limit"]:
        streams["set_rows"] = Stream(model, "dense", by_sets)

    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (*model.input_rule.crop, 3), np.uint8)
    half = _half_set(step)
    for number, share in enumerate((1.0, 0.01, *CHANGES * REPEATS)):
        changed = rng.random(frame.shape[:2]) < share
        frame = np.where(changed[..., None], rng.integers(0, 256, frame.shape, np.uint8), frame)
        for kernel, stream in streams.items():
            evicted += np.uint8(1)
            stream.values(frame)
            layer = stream.stats[index]
            if number < 2 or layer.path == "clean":  # the first frame is dense, the second makes its planes
                continue
            amounts = {"xnor": (float(_bit_macs(step)),), "set_rows": (set_rows(step, half),)}
            yield kernel, amounts.get(kernel) or work(step, layer.flips), 1e9 * layer.seconds


def _fit(samples: list[tuple[tuple[float, ...], float]]) -> list[float]:
    """Costs of at least 0 that explain the times best, each time counting alike whatever its size.

    Least squares on time / time = 1; a cost that comes out below 0 is left out and the others fitted again.
    """
    amounts = np.array([[amount / time for amount in amounts] for amounts, time in samples])
    used = list(range(amounts.shape[1]))
    while True:
        found = np.linalg.lstsq(amounts[:, used], np.ones(len(amounts)), rcond=None)[0]
        if (found >= 0).all():
            break
        used.pop(int(np.argmin(found)))
    costs = np.zeros(amounts.shape[1])
    costs[used] = found
    return [float(cost) for cost in costs]
