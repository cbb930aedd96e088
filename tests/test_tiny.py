"""From a model to answers in seconds: build, save, load, stream; the oracle agrees on every frame."""

from __future__ import annotations

import naive
import numpy as np
from models import Builder, random_frames

import xnor_rrm
from xnor_rrm.model import INPUT, Window


def test_end_to_end(tmp_path):
    net = Builder(np.random.default_rng(0), 8, 8)
    top = net.relu(net.affine(net.conv(INPUT, 32, Window((3, 3), padding=(1, 1, 1, 1)))))
    top = net.max_pool(net.binary(net.affine(top), 64, Window((3, 3))), Window((2, 2), (2, 2)))
    net.conv(top, 10, net.whole(top))
    net.model().save(tmp_path / "tiny.xnor")

    model = xnor_rrm.load(tmp_path / "tiny.xnor")
    dense, cached = model.stream("dense"), model.stream("cached")
    for frame in random_frames(np.random.default_rng(1), 5, 8, 8, "noise"):
        expected = naive.forward(model, naive.network_input(model, frame))[model.layers[-1].name]
        assert expected.shape == (1, 1, 10)
        assert dense(frame).tobytes() == expected.tobytes()
        assert cached(frame).tobytes() == expected.tobytes()
