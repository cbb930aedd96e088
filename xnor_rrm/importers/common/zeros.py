"""Can the input of a sign be exactly 0? For networks whose sign(0) is 0, a third value that no bit holds.

Of each layer and channel the values are followed that it takes again and again: those of the input (256), of
a binary convolution (one for each integer that its dot product can be, computed as the engine does), a clip's
limits, 0 behind a ReLU. A network that can take the sign of such a 0 is refused.

The others are `spread`: floats of which none stands out, as a float convolution gives, and shortcuts round
binary ones. Of them a 0 is as unlikely as any other value (of a trained Bi-Real-Net ResNet-20, once in some
hundred million signs): it is taken as +1. Sums of many followed values, in averages and additions, are spread
too, but 0 where values and their opposites are added that are there by design, and not for a few by accident.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from ...errors import ConvertError
from ...model import (
    INPUT,
    Add,
    Affine,
    Array,
    AvgPool,
    BinaryConv2d,
    Clip,
    Concat,
    Conv2d,
    InputRule,
    Layer,
    PRelu,
    Relu,
    Shape,
    Sign,
    Softmax,
    Upsample,
    Window,
)

#: Most values followed in a layer, and most of one input whose sums with all of the other's are.
MAX_FOLLOWED, MAX_ADDED = 1 << 24, 16

#: Two inputs of a sum cancel by accident in a smaller share of their values than this.
ACCIDENT = 0.01


@dataclass(frozen=True)
class Values:
    """values : float32[any, C], NaN for none.  spread : bool[C], whether there are others."""

    values: npt.NDArray[np.float32]
    spread: npt.NDArray[np.bool_]

    @property
    def zero(self) -> npt.NDArray[np.bool_]:
        """bool[C]: 0 is among the values."""
        return np.asarray((self.values == 0).any(axis=0))


def refuse_zeros(
    layers: Mapping[str, Layer],
    shapes: Mapping[str, Shape],
    rule: InputRule,
    three_valued: Mapping[str, str],
    remedy: str = "",
) -> None:
    """Raises ConvertError where a Sign layer can read exactly 0 and the original has no sign of that.

    layers : in order of execution.  three_valued : such Sign layers, and what messages call them.
    """
    for name, zero in zero_channels(layers, shapes, rule) if three_valued else ():
        if name in three_valued and zero.any():
            found = f"{three_valued[name]}, of which channel {zero.argmax()} can be"
            raise ConvertError(
                "a sign whose input is never exactly 0", found, f"sign(0) = 0 is no bit{remedy}."
            )


def zero_channels(
    layers: Mapping[str, Layer], shapes: Mapping[str, Shape], rule: InputRule
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """The name of each Sign layer, and bool[C]: which channels it can read exactly 0 of."""
    known = {INPUT: Values(rule.table(), np.zeros(rule.channels, np.bool_))}
    readers = Counter(name for layer in layers.values() for name in layer.inputs)
    for name, layer in layers.items():
        if isinstance(layer, Sign):
            yield name, known[layer.inputs[0]].zero
        elif isinstance(layer, BinaryConv2d):
            known[name] = _binary_conv(layer, shapes[layer.inputs[0]], shapes[name])
        else:
            known[name] = _after(layer, [known[source] for source in layer.inputs])
        for source in layer.inputs:
            readers[source] -= 1
            if not readers[source]:
                known.pop(source, None)  # a large layer's values are megabytes


def _binary_conv(layer: BinaryConv2d, inputs: Shape, outputs: Shape) -> Values:
    dots = _dots(layer, inputs, outputs)[:, None]
    channels = len(layer.alpha)
    if dots.size * channels <= MAX_FOLLOWED:
        return Values(dots * layer.alpha + layer.bias, np.zeros(channels, np.bool_))
    zero = [(dots * alpha + bias == 0).any() for alpha, bias in zip(layer.alpha, layer.bias, strict=True)]
    return _zeros(np.array(zero), np.ones(channels, np.bool_))


def _dots(layer: BinaryConv2d, inputs: Shape, outputs: Shape) -> npt.NDArray[np.float32]:
    """float32[any]: every dot product that the window can have, wherever it lies."""
    inside = {layer.window_bits}
    if layer.pad_value == 0:
        counts = [_taps_inside(layer.window, inputs, outputs, axis) for axis in (0, 1)]
        inside = {a * b * layer.channels for a, b in product(*counts)}
    largest = [max((n for n in inside if n % 2 == odd), default=-1) for odd in (0, 1)]
    return np.concatenate([np.arange(-n, n + 1, 2, dtype=np.float32) for n in largest if n >= 0])


def _taps_inside(window: Window, inputs: Shape, outputs: Shape, axis: int) -> set[int]:
    """How many rows (axis 0) or columns (axis 1) of the window lie inside the image, over its positions."""
    first = np.arange(outputs[axis]) * window.stride[axis] - window.padding[2 * axis]
    taps = first[:, None] + np.arange(window.kernel[axis]) * window.dilation[axis]
    return {int(count) for count in ((taps >= 0) & (taps < inputs[axis])).sum(axis=1)}


def _after(layer: Layer, inputs: list[Values]) -> Values:
    """What a layer makes of values; layers that only choose among them or move them keep them."""
    x = inputs[0]
    match layer:
        case Conv2d(weight=weight, bias=bias, groups=groups):
            dead = np.logical_not(weight.any(axis=(1, 2, 3)))
            zeros = x.zero.reshape(groups, -1).all(axis=1)
            constant = dead | zeros.repeat(len(bias) // groups)  # a window of zeros gives the bias
            return Values(np.where(constant, bias, np.float32(np.nan))[None], np.logical_not(dead))
        case Affine(scale=scale, shift=shift):
            constants = np.where(x.spread & (scale == 0), shift, np.float32(np.nan))
            return Values(_joined(x.values * scale + shift, constants), x.spread & (scale != 0))
        case Relu():
            return Values(_joined(np.maximum(x.values, 0), _zeros_where(x.spread)), x.spread)
        case PRelu(slope=slope):
            values = np.where(x.values < 0, x.values * slope, x.values)
            return Values(_joined(values, _zeros_where(x.spread & (slope == 0))), x.spread)
        case Clip(low=low, high=high):
            limits = np.where(x.spread, np.array([[low], [high]], np.float32), np.float32(np.nan))
            return Values(_joined(np.clip(x.values, low, high), limits), x.spread)
        case Concat():
            rows = max(len(each.values) for each in inputs)
            padded = [
                np.pad(each.values, ((0, rows - len(each.values)), (0, 0)), constant_values=np.nan)
                for each in inputs
            ]
            return Values(np.concatenate(padded, axis=1), np.concatenate([each.spread for each in inputs]))
        case Add():
            return _sum(*inputs)
        case Softmax():  # which underflows
            return _zeros(np.ones_like(x.spread), np.ones_like(x.spread))
        case AvgPool() | Upsample(interpolation="bilinear"):
            return _zeros(_cancelling(x.values, x.values), np.ones_like(x.spread))
    return x


def _sum(a: Values, b: Values) -> Values:
    spread = a.spread | b.spread
    few, many = sorted((a.values, b.values), key=len)
    if len(few) <= MAX_ADDED and len(few) * many.size <= MAX_FOLLOWED:
        return Values((few[:, None] + many).reshape(-1, spread.size), spread)
    return _zeros(_cancelling(few, many), np.ones_like(spread))


def _cancelling(a: Array, b: Array) -> npt.NDArray[np.bool_]:
    """bool[C]: whether of the values of a, more than a few by accident are the opposites of values of b."""
    shares = [
        np.isin(column, -other).sum() > ACCIDENT * (~np.isnan(column)).sum()
        for column, other in zip(a.T, b.T, strict=True)
    ]
    return np.array(shares, np.bool_)


def _joined(values: Array, more: Array) -> npt.NDArray[np.float32]:
    """Rows after rows, left out where they hold nothing."""
    more = np.atleast_2d(more)
    return values if np.isnan(more).all() else np.concatenate([values, more]).astype(np.float32)


def _zeros_where(wanted: Array) -> npt.NDArray[np.float32]:
    """float32[1, C]: 0 in some channels."""
    return np.where(wanted, np.float32(0), np.float32(np.nan))[None]


def _zeros(zero: Array, spread: Array) -> Values:
    return Values(_zeros_where(zero), spread)
