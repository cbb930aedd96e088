"""Between a binary convolution and a sign: the float chain folded to one integer limit a channel.

The chain (alpha, bias, batch-norm, ReLU, ...) is evaluated in float32 as its layers define it, at integers:
what the engine compares afterwards is what the chain would have said, whatever its rounding, a negative or
a zero gamma, or a plateau. Each of its layers is monotone, so one change of sign is found by halving.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .model import Affine, Array, BinaryConv2d, Clip, Layer, PRelu, Relu

#: What may stand between the convolution and the sign.
FOLDABLE = (Affine, Relu, PRelu, Clip)


def fold(
    conv: BinaryConv2d, chain: Sequence[Layer], valid: Array, outside: Array
) -> tuple[Array, Array] | None:
    """(limits int64[classes, Cout], inverted bool[Cout]): bit = (mismatches < limit) ^ inverted.

    chain : the layers from the convolution to its sign, without both, of FOLDABLE.
    valid : int[classes], the bits under a window that lie inside the image.
    outside : int[classes, Cout], mismatches counted against the taps that do not.
    None where the chain need not be monotone: a PReLU with a slope below 0, a value that overflows.

    Cost: log2(bits under a window) evaluations of the chain a class.
    """
    if any(isinstance(layer, PRelu) and (layer.slope < 0).any() for layer in chain):
        return None
    limits = np.zeros((len(valid), len(conv.alpha)), np.int64)
    inverted = np.zeros(len(conv.alpha), bool)
    ends: list[tuple[Array, Array]] = []
    for n in valid:
        first, last = _signs(conv, chain, n, 0), _signs(conv, chain, n, n)
        if first is None or last is None:
            return None
        inverted |= ~first & last  # a channel's sign changes in the same direction in every class
        ends.append((first, last))
    for i, (n, (first, last)) in enumerate(zip(valid, ends, strict=True)):
        low, high = np.zeros_like(limits[i]), np.full_like(limits[i], n)
        while (high - low > 1).any():  # first sign at low, last sign at high
            middle = (low + high) // 2
            same = _signs(conv, chain, n, middle) == first
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        constant = np.where(first != inverted, n + 1, 0)
        limits[i] = np.where(first == last, constant, high) + outside[i]
    return limits, inverted


def _signs(conv: BinaryConv2d, chain: Sequence[Layer], valid: int, mismatches: Array | int) -> Array | None:
    """bool[Cout]: what the sign says at int[Cout] mismatches; None where a value on the way is not finite."""
    dots = np.float32(valid) - 2 * np.asarray(mismatches, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        x = dots * conv.alpha + conv.bias
        finite = np.isfinite(x).all()
        for layer in chain:
            x = _apply(layer, x)
            finite = finite and np.isfinite(x).all()
    signs: Array = x >= 0
    return signs if finite else None


def _apply(layer: Layer, x: Array) -> Array:
    if isinstance(layer, Affine):
        return x * layer.scale + layer.shift
    if isinstance(layer, Relu):
        return np.where(x > 0, x, np.float32(0))
    if isinstance(layer, PRelu):
        return np.where(x > 0, x, x * layer.slope)
    assert isinstance(layer, Clip)
    return np.clip(x, np.float32(layer.low), np.float32(layer.high))
