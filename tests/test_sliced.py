"""Bit-sliced state: the signs of layers kept as planes, after every frame and every change of kernel."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from models import Builder
from xnor_rrm.kernels.frame import Kind
from xnor_rrm.kernels.sliced import MAX_SLICED_BITS, count_planes

from xnor_rrm import policy
from xnor_rrm.model import INPUT, Model, Window
from xnor_rrm.plan import build_plan
from xnor_rrm.stream import Stream

SAME = Window((3, 3), padding=(1, 1, 1, 1))

#: (height, width), channels in and out, window, value outside: tiles of 8, 4, 2 and 1 pixels, of one vector
#: and of two, cut short at a row's end; classes at the border; spare channels; strides, gaps, one pixel.
LAYERS = {
    "8 pixels": ((5, 11), 64, 64, SAME, 1),
    "4 pixels, zero padding": ((6, 9), 130, 128, SAME, 0),
    "2 pixels, spare channels": ((4, 5), 64, 250, SAME, -1),
    "1 pixel": ((3, 4), 65, 512, SAME, 0),
    "2 vectors": ((2, 3), 40, 1024, SAME, 1),
    "3 channels": ((7, 10), 30, 3, Window((5, 3), (2, 1), (2, 1, 1, 0)), 0),
    "stride": ((9, 9), 64, 64, Window((3, 3), (2, 2), (1, 1, 1, 1)), 0),
    "gaps": ((8, 9), 64, 64, Window((3, 3), (1, 1), (2, 2, 2, 2), (2, 2)), 1),
    "fully connected": ((4, 4), 300, 64, Window((4, 4)), 0),
}


def network(name: str) -> Model:
    size, cin, cout, window, pad_value = LAYERS[name]
    net = Builder(np.random.default_rng(len(name)), *size)
    top = net.affine(net.binary(net.conv(INPUT, cin, Window((1, 1))), cout, window, pad_value))
    top = net.binary(top, 4, Window((1, 1)))
    return net.model()


def frames(model: Model, shares: list[float]) -> list[np.ndarray]:
    """Frames of which each replaces a share of the last one's pixels."""
    rng = np.random.default_rng(1)
    made = [rng.integers(0, 256, (*model.input_rule.crop, 3), np.uint8)]
    for share in shares:
        changed = rng.random(made[-1].shape[:2]) < share
        made.append(np.where(changed[..., None], rng.integers(0, 256, made[-1].shape, np.uint8), made[-1]))
    return made


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("limit", ["always rows", "few flips"])
def test_signs_after_every_frame(name, limit):
    model = network(name)
    plan = build_plan(model, policy.ALWAYS_ROWS)
    (index, *_) = np.flatnonzero(plan.steps["kind"] == Kind.BINARY_CONV)
    step = plan.steps[index]
    assert step["planes"] > 0
    if limit == "few flips":  # in and out of the planes again and again
        step["rows_limit"] = int(step["h"] * step["w"] * step["cin"]) // 10
    stream, rows, flips = Stream(model, "cached", plan), [], []
    for frame in frames(model, [0.1, 0.0, 0.3, 1.0, 0.1, 0.1, 0.5, 0.02, 1.0, 0.1]):
        stream(frame)
        rows.append(stream.stats[index].rows)
        flips.append(stream.stats[index].flips)
        values = naive.forward(model, naive.network_input(model, frame))
        for sign, bits in stream.signs().items():
            assert np.array_equal(np.where(bits, 1, -1), values[sign]), (sign, rows)
    assert rows == [False, *(0 < n <= step["rows_limit"] for n in flips[1:])]
    assert any(rows)


@pytest.mark.parametrize("bits", [1, 9, 64, 507, 508, 509, 1019, 1020, 4608, MAX_SLICED_BITS])
def test_planes_hold_every_difference(bits):
    """T - N // 2 - 1 goes down to -(bits + 1) / 2 - 1, and T - N // 2 up to (bits + 1) / 2."""
    half = 1 << count_planes(bits) - 1
    assert half > (bits + 1) // 2 + 1
    assert count_planes(bits) <= 15
