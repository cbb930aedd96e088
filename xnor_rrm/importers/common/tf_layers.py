"""What TensorFlow's formats have in common: SAME padding, and signs and padding as values of their own.

In these graphs a sign, a zero padding or a flattening is an operator whose result any other may read; in a
`Model` a sign feeds binary convolutions only, and padding belongs to a window. So a `Value` says what a
tensor is without making a layer, and the layer that reads it takes it up:

- a maximum of signs is the sign of a maximum, so a pool moves before the sign;
- zeros padded before a sign are +1 behind it;
- a matrix over a flattened tensor is a convolution whose window is the whole input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ...bits import pack_signs
from ...errors import ConvertError
from ...model import (
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
    MaxPool,
    Model,
    PRelu,
    Relu,
    Shape,
    Sign,
    Window,
)
from .checkpoint import batch_norm
from .datasets import MAX_SIDE, Scale, input_rule
from .layers import Layers

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]
Activation = Literal["relu", "relu6", "relu_n1_to_1"] | None
NO_PADDING: Sides = (0, 0, 0, 0)

#: Inputs of at most this height and width are scaled to -1..1, larger ones as Larq Zoo does.
SMALL_SIDE = 64
SMALL_SCALE = Scale((127.5,) * 3, (127.5,) * 3)
LARQ_ZOO_SCALE = Scale((123.68, 116.78, 103.94), (58.393, 57.12, 57.375))


def tf_input_rule(shape: Shape, mean: object = None, std: object = None) -> InputRule:
    """The rule of an input (H, W, C), whose scale no file stores. mean, std : in its place."""
    scale = SMALL_SCALE if max(shape[:2]) <= SMALL_SIDE else LARQ_ZOO_SCALE
    return input_rule(shape, scale, mean, std, "bicubic")


@dataclass(frozen=True)
class Value:
    """A tensor of the original: the output of `layer`, or its sign, padded.

    padding : around it, with zeros, or with `pad_value` where it is signs.  flat : its height, width and
    channels are one dimension, in that order.
    """

    layer: str
    signs: bool = False
    padding: Sides = NO_PADDING
    pad_value: int = 0
    flat: bool = False


class Network:
    """Layers, added in order of execution, with the shapes of their outputs."""

    def __init__(self, input_shape: Shape) -> None:
        self.layers = Layers(input_shape)

    def model(self, name: str, rule: InputRule, output: Value) -> Model:
        """Raises ConvertError where `output` is not the last layer's, or others are read by none."""
        return Model(name, rule, self.layers.finish(self._plain(output, "the output")))

    def shape(self, value: Value) -> Shape:
        """(H, W, C), padding included."""
        height, width, channels = self.layers.shapes[value.layer]
        top, bottom, left, right = value.padding
        return height + top + bottom, width + left + right, channels

    def sign(self, value: Value) -> Value:
        """Of floats or signs; zeros around either become +1."""
        return replace(value, signs=True, pad_value=1)

    def pad(self, value: Value, sides: Sides, name: str) -> Value:
        """With zeros around it, in the units of a tensor of signs as well."""
        if min(sides) < 0 or max(sides) > MAX_SIDE or value.flat:
            raise ConvertError(f"padding of 0 to {MAX_SIDE} around an image in {name}", f"{sides}")
        if not any(sides):
            return value
        if any(value.padding) and value.signs and value.pad_value:
            raise ConvertError(f"one padding value around {name}", "zeros around padded signs")
        total = tuple(a + b for a, b in zip(value.padding, sides, strict=True))
        return replace(value, padding=(total[0], total[1], total[2], total[3]), pad_value=0)

    def flatten(self, value: Value, name: str) -> Value:
        if any(value.padding):
            raise ConvertError(f"no padding before {name}", f"{value.padding}")
        return replace(value, flat=True)

    def conv(
        self,
        name: str,
        value: Value,
        weight: Array,
        bias: Array,
        *,
        stride: Pair = (1, 1),
        dilation: Pair = (1, 1),
        same: bool = False,
        groups: int = 1,
    ) -> Value:
        """A convolution of float weights float32[Cout, kH, kW, Cin / groups].

        Of signs it is a binary convolution, if a filter's weights differ in sign alone.
        """
        if value.signs:
            alpha = np.abs(weight[:, 0, 0, 0])
            if groups != 1 or not (np.abs(weight) == alpha[:, None, None, None]).all() or not alpha.all():
                raise ConvertError(
                    f"weights of one magnitude a filter in {name}, which reads signs", "float weights"
                )
            return self.binary_conv(
                name, value, weight > 0, alpha, bias, stride=stride, dilation=dilation, same=same
            )
        window = self._window(value, name, (weight.shape[1], weight.shape[2]), stride, dilation, same)
        return self._add(Conv2d(name, (value.layer,), weight, bias, window, groups))

    def binary_conv(
        self,
        name: str,
        value: Value,
        signs: Array,
        alpha: Array,
        bias: Array,
        *,
        stride: Pair = (1, 1),
        dilation: Pair = (1, 1),
        same: bool = False,
        pad_value: int = 0,
    ) -> Value:
        """alpha * dot + bias of a value of signs with bool[Cout, kH, kW, Cin].

        pad_value : what SAME padding is.
        """
        _, *kernel, cin = signs.shape
        window = self._window(value, name, (kernel[0], kernel[1]), stride, dilation, same)
        if any(value.padding):
            if same and pad_value != value.pad_value and window.padding != value.padding:
                raise ConvertError(f"one padding value around {name}", f"{value.pad_value} and {pad_value}")
            pad_value = value.pad_value
        source = self._sign_layer(value)
        pad_value = pad_value if any(window.padding) else 0
        layer = BinaryConv2d(name, (source,), pack_signs(signs), alpha, bias, cin, window, pad_value)
        return self._add(layer)

    def dense(self, name: str, value: Value, weight: Array, bias: Array) -> Value:
        """weight : float32[Cout, Cin], over the whole of a flat value, else over channels."""
        return replace(self.conv(name, value, self.kernel(name, value, weight), bias), flat=value.flat)

    def binary_dense(self, name: str, value: Value, signs: Array, alpha: Array, bias: Array) -> Value:
        """alpha * dot + bias of a value of signs with bool[Cout, kH, kW, Cin] as `kernel` makes it."""
        return replace(self.binary_conv(name, value, signs, alpha, bias), flat=value.flat)

    def kernel(self, name: str, value: Value, matrix: Array) -> Array:
        """A matrix [Cout, inputs] as a kernel [Cout, kH, kW, Cin] of one window over the value."""
        height, width, channels = self.shape(value) if value.flat else (1, 1, self.shape(value)[2])
        if matrix.shape[1] != height * width * channels:
            raise ConvertError(f"{height * width * channels} inputs of {name}", f"{matrix.shape[1]}")
        return matrix.reshape(-1, height, width, channels)

    def max_pool(self, name: str, value: Value, kernel: Pair, stride: Pair, *, same: bool) -> Value:
        if any(value.padding) and (value.signs or not self._at_least_zero(value.layer)):
            raise ConvertError(f"no zero padding before the maximum {name}", f"{value.padding}")
        window = self._window(value, name, kernel, stride, (1, 1), same)
        pooled = self._add(MaxPool(name, (value.layer,), window))
        return replace(pooled, signs=value.signs)

    def average_pool(
        self,
        name: str,
        value: Value,
        kernel: Pair | None = None,
        stride: Pair = (1, 1),
        *,
        same: bool = False,
    ) -> Value:
        """kernel : None for the whole image. SAME padding is not counted, padding of the value is."""
        source = self._plain(value, name, padded=True)
        if any(value.padding) and same:
            raise ConvertError(f"one padding around {name}", f"{value.padding} and SAME")
        window = self._window(value, name, kernel or self.shape(value)[:2], stride, (1, 1), same)
        return self._add(AvgPool(name, (source,), window, count_padding=not same))

    def affine(self, name: str, value: Value, scale: Array, shift: Array) -> Value:
        """x * scale + shift, float32[C] each."""
        layer = Affine(name, (self._of_channels(value, name, scale),), scale, shift)
        return replace(self._add(layer), flat=value.flat)

    def batch_norm(
        self,
        name: str,
        value: Value,
        where: str,
        *,
        gamma: Array | None,
        beta: Array | None,
        mean: Array,
        var: Array,
        eps: float,
    ) -> Value:
        layer = batch_norm(name, "", where, gamma=gamma, beta=beta, mean=mean, var=var, eps=eps)
        return self.affine(name, value, layer.scale, layer.shift)

    def activation(self, name: str, value: Value, kind: Activation) -> Value:
        if kind is None:
            return value
        if kind == "relu":
            return replace(self._add(Relu(name, (self._plain(value, name),))), flat=value.flat)
        return self.clip(name, value, *{"relu6": (0.0, 6.0), "relu_n1_to_1": (-1.0, 1.0)}[kind])

    def clip(self, name: str, value: Value, low: float, high: float) -> Value:
        return replace(self._add(Clip(name, (self._plain(value, name),), low, high)), flat=value.flat)

    def prelu(self, name: str, value: Value, slope: Array) -> Value:
        layer = PRelu(name, (self._of_channels(value, name, slope),), slope)
        return replace(self._add(layer), flat=value.flat)

    def add(self, name: str, values: Sequence[Value]) -> Value:
        """The sum of two or more, taken in order."""
        total = values[0]
        if len({value.flat for value in values}) > 1:
            raise ConvertError(f"images, or vectors, in {name}", "both")
        for index, value in enumerate(values[1:], start=2):
            step = name if index == len(values) else f"{name}.{index}"
            layer = Add(step, (self._plain(total, name), self._plain(value, name)))
            total = replace(self._add(layer), flat=value.flat)
        return total

    def concat(self, name: str, values: Sequence[Value]) -> Value:
        shapes = {self.layers.shapes[value.layer][:2] for value in values}
        flat = values[0].flat
        if any(value.flat != flat for value in values) or (flat and shapes != {(1, 1)}):
            raise ConvertError(f"images, or vectors, in {name}", "both, or flattened images")
        layer = Concat(name, tuple(self._plain(value, name) for value in values))
        return replace(self._add(layer), flat=flat)

    def _add(self, layer: Layer) -> Value:
        return Value(self.layers.add(layer))

    def _plain(self, value: Value, name: str, *, padded: bool = False) -> str:
        """The layer of a value that is a float output as it is."""
        if value.signs:
            raise ConvertError(
                f"signs read by binary convolutions and maxima only, in {name}", "another reader"
            )
        if any(value.padding) and not padded:
            raise ConvertError(f"padding followed by a convolution or pool, in {name}", f"{value.padding}")
        return value.layer

    def _sign_layer(self, value: Value) -> str:
        """The Sign layer of a value, named after the layer whose output it takes the sign of."""
        name = f"{value.layer}.sign"
        if name not in self.layers:
            self._add(Sign(name, (value.layer,)))
        return name

    def _of_channels(self, value: Value, name: str, values: Array) -> str:
        """The layer of a value that has channels, as many as there are values."""
        source = self._plain(value, name)
        height, width, channels = self.layers.shapes[source]
        if (value.flat and height * width > 1) or len(values) != channels:
            raise ConvertError(f"{channels} channels of {name}", f"{len(values)}")
        return source

    def _at_least_zero(self, name: str) -> bool:
        layer = self.layers.get(name)
        return isinstance(layer, Relu) or (isinstance(layer, Clip) and layer.low >= 0)

    def _window(
        self, value: Value, name: str, kernel: Pair, stride: Pair, dilation: Pair, same: bool
    ) -> Window:
        """The window over a value, its padding and SAME padding taken together."""
        if not all(1 <= size <= MAX_SIDE for size in (*kernel, *stride, *dilation)):
            found = f"{kernel}, {stride}, {dilation}"
            raise ConvertError(f"kernel, stride and dilation of 1 to {MAX_SIDE} in {name}", found)
        padding = value.padding
        if value.flat and kernel != self.shape(value)[:2]:
            raise ConvertError(f"an image as the input of {name}", "a vector")
        if same:
            height, width, _ = self.shape(value)
            down = same_padding(height, kernel[0], stride[0], dilation[0])
            across = same_padding(width, kernel[1], stride[1], dilation[1])
            top, bottom, left, right = padding
            padding = (top + down[0], bottom + down[1], left + across[0], right + across[1])
        return Window(kernel, stride, padding, dilation)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd one of the padding behind."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2
