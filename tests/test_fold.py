"""The integer limit says of every reachable sum what the float chain says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnor_rrm.bits import pack_signs
from xnor_rrm.fold import fold
from xnor_rrm.model import Affine, BinaryConv2d, Clip, PRelu, Relu, Window

F = np.float32
CHANNELS = 24


def chain_of(kinds: list[str], values: Any) -> list[Any]:
    layers: list[Any] = []
    for kind in kinds:
        if kind == "affine":
            layers.append(Affine(kind, ("x",), values(), values()))
        elif kind == "prelu":
            layers.append(PRelu(kind, ("x",), np.abs(values())))
        else:
            layers.append(Relu(kind, ("x",)) if kind == "relu" else Clip(kind, ("x",), -1.0, 1.5))
    return layers


def apply(layer: Any, x: Any) -> Any:
    """One float32 operation at a time, as the layers' docstrings say."""
    if isinstance(layer, Affine):
        return F(F(x * layer.scale) + layer.shift)
    if isinstance(layer, Relu):
        return np.where(x > 0, x, F(0))
    if isinstance(layer, PRelu):
        return np.where(x > 0, x, F(x * layer.slope))
    return np.where(x < F(layer.low), F(layer.low), np.where(x > F(layer.high), F(layer.high), x))


def convolution(rng: Any, bits: int, scale: float) -> BinaryConv2d:
    weight = pack_signs(rng.random((CHANNELS, 1, 1, bits)) < 0.5)
    alpha, bias = (rng.normal(0, scale, CHANNELS).astype(F) for _ in range(2))
    return BinaryConv2d("conv", ("x",), weight, alpha, bias, bits, Window((1, 1)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(["affine", "relu", "prelu", "clip"]), max_size=4),
    bits=st.sampled_from([1, 2, 7, 64, 577]),
    steps=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_reachable_integer(kinds, bits, steps, seed):
    rng = np.random.default_rng(seed)

    def values() -> Any:
        """Of both signs; with `steps`, coarse: zeros, and sums that hit the sign's zero exactly."""
        drawn = rng.normal(0, 1, CHANNELS)
        return (np.round(drawn * steps) if steps else drawn).astype(F)

    conv, chain = convolution(rng, bits, 1.0), chain_of(kinds, values)
    valid = np.array([bits, max(1, bits // 2)])
    outside = np.array([np.zeros(CHANNELS, int), rng.integers(0, 9, CHANNELS)])
    folded = fold(conv, chain, valid, outside)
    assert folded is not None
    limits, inverted = folded
    for i, n in enumerate(valid):
        for mismatches in range(n + 1):
            x = F(F(F(n - 2 * mismatches) * conv.alpha) + conv.bias)
            for layer in chain:
                x = apply(layer, x)
            ours = (mismatches + outside[i] < limits[i]) ^ inverted
            assert np.array_equal(ours, x >= 0), (i, mismatches)


@pytest.mark.parametrize("kind", ["falling", "overflowing"])
def test_what_need_not_be_monotone_is_left_to_floats(kind):
    rng = np.random.default_rng(0)
    conv = convolution(rng, 64, 1e38 if kind == "overflowing" else 1.0)
    chain = [PRelu("p", ("x",), np.full(CHANNELS, -0.5, F))] if kind == "falling" else []
    assert fold(conv, chain, np.array([64]), np.zeros((1, CHANNELS), int)) is None
