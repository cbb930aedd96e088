"""What graphs of operators become: one small form that graph importers fill, lowered to layers node by node.

A `Node` is one operation of a network on batches of one, NCHW or, once flattened, two-dimensional.
`Lowering` follows what each value is: floats of a layer, or signs: `scale * s + offset`, s the +-1 of a Sign
layer. So `2 * (x >= 0) - 1` and `where(x >= 0, 1, -1)` are the same, and a convolution of signs is binary.

- A convolution of signs takes weights of one magnitude in each output channel, alpha; others are refused.
- `x > 0` is +1 where `-x >= 0` is not. A three-valued sign, of which sign(0) = 0, is taken where zeros.py
  shows that its input is never exactly 0, and refused elsewhere. Straight after floats that share no value,
  such as batch-norms of float convolutions, a 0 is as unlikely as any other number, and taken as +1.
- `(a - b) + b` is a, exactly: so straight-through estimators are written.
- What cannot be lowered is refused only where the output needs it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bits import pack_signs
from ..errors import ConvertError, XnorError
from ..model import (
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
    MaxPool,
    Model,
    PRelu,
    Relu,
    Shape,
    Sign,
    Upsample,
    Window,
)
from .checkpoint import Tensors
from .zeros import first_zero

Pair = tuple[int, int]
#: (top, bottom, left, right).
Sides = tuple[int, int, int, int]
NO_PADDING: Sides = (0, 0, 0, 0)

#: Largest side of an input, a window or its padding, and most values of one layer.
MAX_SIDE, MAX_VALUES = 8192, 1 << 28

#: How far weights are off that are written `w.detach() - c.detach() + c`, |c| <= 1, and in shares of alpha.
WEIGHT_ROUNDING, WEIGHT_TOLERANCE = 2.0**-22, 0.01

FLOAT_MAX = float(np.finfo(np.float32).max)

#: torchvision's usual (RGB / 255 - mean) / std, and MNIST's for one channel.
MEAN_STD = {3: ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)), 1: ((33.3285,), (78.5655,))}
IMAGENET_SIZE, IMAGENET_RESIZE = 224, 256


@dataclass(frozen=True)
class Node:
    """One operation. op : a key of OPERATIONS, whose function says what it means.

    name : of the value it makes, and of its layer.  inputs : names of values made before.
    constants : what else the operation takes, by name.  where : how messages call it.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    where: str
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Floats:
    """The output of a layer, or the network's input.

    flat : it is two-dimensional, the values in the order (C, H, W).
    padding, pad_value : what a Pad has put around it, still to be taken over by the operation that follows.
    ended : the softmax after which nothing but the output may follow.
    """

    layer: str
    flat: bool = False
    padding: Sides = NO_PADDING
    pad_value: float = 0.0
    ended: str = ""


@dataclass(frozen=True)
class Signs(Floats):
    """scale * s + offset, s the bits of the Sign layer as -1 and +1."""

    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Difference:
    """minuend - subtrahend, kept until it is known whether the subtrahend is added again."""

    node: Node = field(compare=False)
    minuend: Value
    subtrahend: Value


@dataclass(frozen=True, eq=False)
class Refused:
    """What could not be lowered, and why."""

    error: XnorError


Value = Floats | Difference | Refused


class Lowering:
    """Layers from nodes, added in order of execution.

    shape : (H, W, C) of the input, the value `source`.  budget : most bytes of arrays in all layers.
    """

    def __init__(self, source: str, shape: Shape, budget: float = math.inf) -> None:
        self.values: dict[str, Value] = {source: Floats(INPUT)}
        self.layers: dict[str, Layer] = {}
        self.shapes: dict[str, Shape] = {INPUT: shape}
        self._budget = budget
        self._known: dict[Any, Value] = {}
        #: Sign layers of which sign(0) = 0, with their places.
        self._three_valued: dict[str, str] = {}

    def add(self, node: Node) -> None:
        """Lower one node; what is wrong with it is told once its value is needed."""
        if node.name in self.values:
            raise ConvertError("a name for each value", f"{node.name!r} twice")
        self.values[node.name] = self._lowered(node)

    def refuse(self, name: str, error: XnorError) -> None:
        """A value that the importer itself cannot express."""
        self.values[name] = Refused(error.with_traceback(None))  # whose frames would hold arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """(1, C, H, W) or (1, C * H * W) of a value. Raises ConvertError where it was refused."""
        value = self._settled(self.values[name], name)
        height, width, channels = self._padded_shape(value)
        return (1, channels * height * width) if value.flat else (1, channels, height, width)

    def finish(self, output: str, name: str, rule: InputRule, info: dict[str, str]) -> Model:
        """The model whose output is that value. Raises ConvertError where it cannot be."""
        value = self._settled(self.values[output], output, last=True)
        height, width, _ = self._padded_shape(value)
        if isinstance(value, Signs) or value.layer == INPUT or value.padding != NO_PADDING:
            raise ConvertError("a float layer as the output", f"{output!r}")
        if value.flat and height * width > 1:
            raise ConvertError("classes, or a map, as the output", f"{output!r}, a flattened map")
        needed = self._needed(value.layer)
        for layer, where in self._three_valued.items():
            if layer in needed and (channel := first_zero(self.layers, self.shapes, rule, layer)) is not None:
                raise ConvertError(
                    "a sign whose input is never exactly 0",
                    f"{where}, of which channel {channel} can be",
                    "sign(0) = 0 is no bit: write where(x >= 0, 1, -1).",
                )
        layers = tuple(layer for layer in self.layers.values() if layer.name in needed)
        try:
            return Model(name, rule, layers, info=info)
        except XnorError as error:
            raise ConvertError(error.expected, error.got, error.remedy) from error

    # What operations are made of

    def append(self, node: Node, layer: Layer) -> Floats:
        """The value of a new layer."""
        if layer.name in self.shapes:
            raise ConvertError("a name for each layer", f"{layer.name!r} twice")
        shape = layer.output_shape(*(self.shapes[name] for name in layer.inputs))
        if math.prod(shape) > MAX_VALUES:
            raise ConvertError(f"at most {MAX_VALUES} values of a layer", f"{node.where} of {shape}")
        self.layers[layer.name], self.shapes[layer.name] = layer, shape
        return Floats(layer.name)

    def spend(self, size: int, node: Node) -> None:
        """Count bytes before they are allocated: a few numbers in a file can ask for any amount."""
        if size > self._budget:
            raise ConvertError("layers in proportion to the file", f"{size} bytes more for {node.where}")
        self._budget -= size

    def per_channel(self, node: Node, value: Floats, constant: Any) -> npt.NDArray[np.float32]:
        """float32[C] of a number, or of an array that broadcasts along all axes but the channels'."""
        array = np.asarray(constant)
        if array.dtype.kind not in "fiub" or array.size < 1:
            raise ConvertError(f"numbers in {node.where}", f"{array.dtype.name}{list(array.shape)}")
        height, width, channels = self.shapes[value.layer]
        if (array == array.flat[0]).all():
            array = array.reshape(-1)[:1]
        else:
            rank, whole = (2, height * width == 1) if value.flat else (4, True)
            aligned = (1,) * (rank - array.ndim) + array.shape
            if not whole or aligned[:2] != (1, channels) or math.prod(aligned) != channels:
                raise ConvertError(
                    f"one number for each of {channels} channels in {node.where}",
                    f"{array.dtype.name}{list(array.shape)}",
                )
        self.spend(8 * channels, node)
        return np.broadcast_to(array.reshape(-1).astype(np.float32), (channels,))

    def before_sign(self, node: Node, values: Sequence[Floats], layer: Layer) -> Floats:
        """What only compares or moves values, and so may stand before the sign as well as after it.

        layer : reads the Sign layers of the values.
        """
        first = values[0]
        if not isinstance(first, Signs):
            return self.append(node, layer)
        sources = tuple(self.layers[name].inputs[0] for name in layer.inputs)
        floats = self.append(node, dataclasses.replace(layer, name=f"{node.name}.float", inputs=sources))
        self.append(node, Sign(node.name, (floats.layer,)))
        places = [self._three_valued[name] for name in layer.inputs if name in self._three_valued]
        if places:
            self._three_valued[node.name] = places[0]
        return dataclasses.replace(first, layer=node.name)

    def sign(self, node: Node, source: Floats, *, three_valued: bool) -> Signs:
        """The Sign layer of floats, of which zeros around them become signs too."""
        value = self.append(node, Sign(node.name, (source.layer,)))
        if three_valued:
            self._three_valued[node.name] = node.where
        beyond = float(np.sign(source.pad_value)) or (0.0 if three_valued else 1.0)
        return Signs(value.layer, source.flat, source.padding, beyond)

    def affine(self, node: Node, source: Floats, scale: Any = 1.0, shift: Any = 0.0) -> Floats:
        """x * scale + shift. A scale or shift alone goes into the layer before where that changes no bit."""
        before = self.layers.get(unpadded(node, source).layer)
        factors, terms = self.per_channel(node, source, scale), self.per_channel(node, source, shift)
        layer: Layer = Affine(node.name, (source.layer,), factors, terms)
        match before:
            case BinaryConv2d(alpha=alpha, bias=bias) if not (
                terms.any() or bias.any() or (alpha != 1).any()
            ):
                layer = dataclasses.replace(before, name=node.name, alpha=factors)
            case BinaryConv2d(bias=bias) | Conv2d(bias=bias) if (factors == 1).all() and not bias.any():
                layer = dataclasses.replace(before, name=node.name, bias=terms)
            case Affine(shift=zero) if (factors == 1).all() and not zero.any():
                layer = dataclasses.replace(before, name=node.name, shift=terms)
        return dataclasses.replace(source, layer=self.append(node, layer).layer)

    # Inside

    def _lowered(self, node: Node) -> Value:
        try:
            values = [self.values[name] for name in node.inputs]
            if node.op == "same":
                return values[0]
            key = _key(node, values)
            if key in self._known:  # the same signs of the same values, once
                return self._known[key]
            value: Value
            if node.op in KEEP_DIFFERENCES:
                value = KEEP_DIFFERENCES[node.op](self, node, *values)
            else:
                settled = [self._settled(value, node.where) for value in values]
                value = OPERATIONS[node.op](self, node, *settled, **node.constants)
        except XnorError as error:
            return Refused(_located(node, error).with_traceback(None))
        if key:
            self._known[key] = value
        return value

    def _settled(self, value: Value, where: str, last: bool = False) -> Floats:
        """A value as floats or signs."""
        if isinstance(value, Refused):
            raise value.error
        if isinstance(value, Difference):
            return _difference(self, value)
        if value.ended and not last:
            raise ConvertError(f"nothing after {value.ended}", where)
        return value

    def _padded_shape(self, value: Floats) -> Shape:
        height, width, channels = self.shapes[value.layer]
        top, bottom, left, right = value.padding
        return height + top + bottom, width + left + right, channels

    def _needed(self, layer: str) -> set[str]:
        """A layer and all that it reads."""
        needed, ahead = {INPUT}, [layer]
        while ahead:
            if (name := ahead.pop()) not in needed:
                needed.add(name)
                ahead += self.layers[name].inputs
        return needed


def _key(node: Node, values: list[Value]) -> tuple[Any, ...]:
    """The same for equal operations; () where arrays are among the constants."""
    constants = tuple(sorted(node.constants.items()))
    plain = all(isinstance(value, bool | int | float | str | tuple | None) for _, value in constants)
    return (node.op, tuple(values), constants) if plain else ()


def _located(node: Node, error: XnorError) -> XnorError:
    """A ConvertError that says at which node, if it does not yet."""
    if isinstance(error, ConvertError):
        return error
    return ConvertError(error.expected, f"{error.got}, in {node.where}", error.remedy)


def floats(node: Node, value: Floats) -> Floats:
    """Raises ConvertError for signs: only binary convolutions take them."""
    if isinstance(value, Signs):
        raise ConvertError("a convolution or linear layer after a sign", node.where)
    return value


def unpadded(node: Node, value: Floats) -> Floats:
    """Raises ConvertError for a value that a Pad has made larger."""
    if value.padding != NO_PADDING:
        raise ConvertError("a convolution after a Pad", node.where)
    return value


def image(node: Node, value: Floats) -> Floats:
    """Raises ConvertError for a value that was flattened."""
    if value.flat:
        raise ConvertError(f"an NCHW value in {node.where}", "a flattened one")
    return value


def window(node: Node, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair) -> Window:
    numbers = (*kernel, *stride, *padding, *dilation)
    if len(numbers) != 10 or not all(0 <= number <= MAX_SIDE for number in numbers):
        raise ConvertError(
            f"a two-dimensional window of sizes up to {MAX_SIDE} in {node.where}", f"{numbers}"
        )
    return Window(kernel, stride, padding, dilation)


def _both(a: Sides, b: Sides) -> Sides:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


# Operations. Each takes the values that it reads and its constants.


def _sign(lowering: Lowering, node: Node, x: Floats, *, three_valued: bool, scale: float = 1.0) -> Floats:
    """scale * sign(x): sign(0) is 0 if three_valued, else +1."""
    signs = lowering.sign(node, floats(node, x), three_valued=three_valued)
    return _scaled(node, signs, scale, 0.0)


def _compare(lowering: Lowering, node: Node, x: Floats, *, relation: str, threshold: Any) -> Floats:
    """1 where x relation threshold, else 0; relation is one of >=, >, <, <=."""
    # x > t is not (t - x >= 0), and x - t and t - x are 0 exactly where x = t.
    mirrored = relation in (">", "<=")
    source = floats(node, x)
    if mirrored or np.any(np.asarray(threshold) != 0):
        if np.any(np.asarray(threshold) != 0):
            unpadded(node, source)
        moved = dataclasses.replace(node, name=f"{node.name}.affine")
        terms = np.negative(threshold) if not mirrored else np.asarray(threshold)
        inner = dataclasses.replace(source, padding=NO_PADDING)
        affine = lowering.affine(moved, inner, -1.0 if mirrored else 1.0, terms)
        source = dataclasses.replace(source, layer=affine.layer)
    signs = lowering.sign(node, source, three_valued=False)
    return _scaled(node, signs, 0.5 if relation in (">=", "<=") else -0.5, 0.5)


def _select(lowering: Lowering, node: Node, x: Floats, *, when: float, otherwise: float) -> Floats:
    """`when` where x is 1, `otherwise` where it is 0."""
    if not (isinstance(x, Signs) and _levels(x) == {0.0, 1.0}):
        raise ConvertError("a choice by the sign of a value", node.where)
    return _scaled(node, x, when - otherwise, otherwise)


def _integers(lowering: Lowering, node: Node, x: Floats) -> Floats:
    """The same signs as integers."""
    if not (isinstance(x, Signs) and all(level.is_integer() for level in _levels(x))):
        raise ConvertError("float values", node.where)
    return x


def _levels(x: Signs) -> set[float]:
    return {x.offset - x.scale, x.offset + x.scale}


def _scaled(node: Node, x: Signs, factor: float, term: float) -> Signs:
    """x * factor + term, and of what surrounds it."""
    numbers = x.scale * factor, x.offset * factor + term, x.pad_value * factor + term
    if not np.isfinite(numbers).all() or not numbers[0]:
        raise ConvertError("two different, finite levels", node.where)
    return dataclasses.replace(x, scale=numbers[0], offset=numbers[1], pad_value=numbers[2])


def _one_number(node: Node, constant: Any) -> float:
    array = np.asarray(constant)
    if array.size < 1 or array.dtype.kind not in "fiub" or not (array == array.flat[0]).all():
        raise ConvertError(
            f"one number for all channels after a sign in {node.where}", f"{list(array.shape)}"
        )
    return float(array.flat[0])


def _multiply(lowering: Lowering, node: Node, x: Floats, *, factor: Any) -> Floats:
    """x times a number, or one for each channel."""
    if isinstance(x, Signs):
        return _scaled(node, x, _one_number(node, factor), 0.0)
    return lowering.affine(node, x, scale=factor)


def _plus(lowering: Lowering, node: Node, x: Floats, *, term: Any) -> Floats:
    """x plus a number, or one for each channel."""
    if isinstance(x, Signs):
        return _scaled(node, x, 1.0, _one_number(node, term))
    return lowering.affine(node, x, shift=term)


def _batch_norm(
    lowering: Lowering, node: Node, x: Floats, *, gamma: Any, beta: Any, mean: Array, var: Array, eps: float
) -> Floats:
    """(x - mean) / sqrt(var + eps) * gamma + beta, folded; gamma and beta may be None."""
    source = unpadded(node, floats(node, x))
    if not math.isfinite(eps):
        raise ConvertError(f"a finite epsilon in {node.where}", f"{eps}")
    named = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    arrays = {f"{node.name}.{key}": value for key, value in named.items() if value is not None}
    keys: dict[str, Any] = {key: f"{node.name}.{key}" if named[key] is not None else None for key in named}
    lowering.spend(8 * len(mean), node)
    layer = Tensors(arrays).take_affine(node.name, source.layer, **keys, eps=eps)
    height, width, _ = lowering.shapes[source.layer]
    if source.flat and height * width > 1:
        raise ConvertError(f"a batch-norm before the flattening in {node.where}", f"{height}x{width}")
    return dataclasses.replace(source, layer=lowering.append(node, layer).layer)


def _relu(lowering: Lowering, node: Node, x: Floats) -> Floats:
    """x where x > 0, else 0."""
    return dataclasses.replace(
        x, layer=lowering.append(node, Relu(node.name, (floats(node, x).layer,))).layer
    )


def _prelu(lowering: Lowering, node: Node, x: Floats, *, slope: Any) -> Floats:
    """x where x > 0, else x * slope."""
    source = floats(node, x)
    layer = PRelu(node.name, (source.layer,), lowering.per_channel(node, source, slope))
    return dataclasses.replace(source, layer=lowering.append(node, layer).layer)


def _clip(lowering: Lowering, node: Node, x: Floats, *, low: float | None, high: float | None) -> Floats:
    """x between two numbers, of which one may be None."""
    high = None if high is not None and high >= FLOAT_MAX else high
    low = None if low is not None and low <= -FLOAT_MAX else low
    if low == 0 and high is None:
        return _relu(lowering, node, x)
    source = unpadded(node, floats(node, x))
    limits = -FLOAT_MAX if low is None else low, FLOAT_MAX if high is None else high
    return dataclasses.replace(
        source, layer=lowering.append(node, Clip(node.name, (source.layer,), *limits)).layer
    )


def _conv(
    lowering: Lowering,
    node: Node,
    x: Floats,
    *,
    weight: Array,
    bias: Array | None,
    stride: Pair = (1, 1),
    padding: Sides = NO_PADDING,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Floats:
    """weight : float32[Cout, Cin / groups, kH, kW].  bias : float32[Cout] or None.  Padding is zero."""
    image(node, x)
    if weight.ndim != 4 or weight.dtype != np.float32 or not weight.size:
        raise ConvertError(
            f"float32[Cout, Cin, kH, kW] in {node.where}", f"{weight.dtype.name}{list(weight.shape)}"
        )
    return _convolution(lowering, node, x, weight, bias, stride, padding, dilation, groups)


def _linear(lowering: Lowering, node: Node, x: Floats, *, weight: Array, bias: Array | None) -> Floats:
    """weight : float32[outputs, inputs].  bias : float32[outputs] or None."""
    height, width, channels = lowering.shapes[unpadded(node, x).layer]
    fits = weight.ndim == 2 and weight.dtype == np.float32 and weight.shape[1] == height * width * channels
    if not fits or not x.flat or not weight.size:
        raise ConvertError(
            f"float32[any, {height * width * channels}] on flattened values in {node.where}",
            f"{weight.dtype.name}{list(weight.shape)} on {lowering.shapes[x.layer]}",
        )
    kernel = weight.reshape(-1, channels, height, width)
    return _convolution(lowering, node, x, kernel, bias, (1, 1), NO_PADDING, (1, 1), 1)


def _convolution(
    lowering: Lowering,
    node: Node,
    x: Floats,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Sides,
    dilation: Pair,
    groups: int,
) -> Floats:
    if x.padding != NO_PADDING and any(padding) and x.pad_value:
        raise ConvertError(f"padding of one value in {node.where}", f"0 around {x.pad_value}")
    kernel = weight.shape[2], weight.shape[3]
    geometry = window(node, kernel, stride, _both(padding, x.padding), dilation)
    lowering.spend(weight.nbytes + 8 * len(weight), node)
    shift = np.zeros(len(weight), np.float32)
    if bias is not None:
        shift = Tensors({f"{node.name}.bias": bias}).take(f"{node.name}.bias", len(weight))
    if not isinstance(x, Signs):
        if x.pad_value:
            raise ConvertError(f"zeros around the input of {node.where}", f"{x.pad_value}")
        layer: Layer = Conv2d(node.name, (x.layer,), weight.transpose(0, 2, 3, 1), shift, geometry, groups)
        return dataclasses.replace(lowering.append(node, layer), flat=x.flat)
    beyond = x.pad_value / x.scale if x.padding != NO_PADDING else 0.0
    if x.offset or beyond not in (-1, 0, 1):
        levels = sorted(_levels(x))
        raise ConvertError(
            f"signs of two opposite levels, and those or 0 around them, before {node.where}",
            f"levels {levels[0]:g} and {levels[1]:g}, {x.pad_value:g} around them",
        )
    if groups != 1:
        raise ConvertError(f"one group in a binary convolution, {node.where}", f"{groups}")
    signs, alpha = binarize(node, weight)
    layer = BinaryConv2d(
        node.name,
        (x.layer,),
        pack_signs(signs.transpose(0, 2, 3, 1)),
        (alpha * x.scale).astype(np.float32),
        shift,
        weight.shape[1],
        geometry,
        int(beyond),
    )
    return dataclasses.replace(lowering.append(node, layer), flat=x.flat)


def binarize(node: Node, weight: Array) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """weight = alpha * sign: signs, bool of its shape, and alpha, float64[Cout], of float32[Cout, ...].

    Raises ConvertError for NaN and for weights of more than one magnitude in an output channel, 0 among them.
    A channel of zeros has alpha 0.
    """
    magnitudes = np.abs(weight.reshape(len(weight), -1))
    if not np.isfinite(magnitudes).all():
        raise ConvertError(f"finite weights in {node.where}", "NaN or infinite ones")
    alpha = np.median(magnitudes, axis=1).astype(np.float64)
    deviation = np.abs(magnitudes - alpha[:, None])
    wrong = deviation > np.minimum(WEIGHT_ROUNDING, alpha * WEIGHT_TOLERANCE)[:, None]
    if wrong.any():
        raise ConvertError(
            f"weights +-alpha, one alpha for each output channel, under the sign before {node.where}",
            f"{wrong.mean():.3%} of {wrong.size} that differ, by up to {deviation.max():.3g}",
            "Its input is binary, its weights are not.",
        )
    return weight > 0, alpha


def _max_pool(
    lowering: Lowering,
    node: Node,
    x: Floats,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Sides,
    dilation: Pair = (1, 1),
    ceil: bool = False,
) -> Floats:
    """The largest value; padding never wins. ceil : windows may reach past the padding."""
    unpadded(node, image(node, x))
    if isinstance(x, Signs) and x.scale < 0:
        raise ConvertError("a pool of signs that rise with their value", node.where)
    geometry = window(node, kernel, stride, padding, dilation)
    geometry = _reaching(geometry, lowering.shapes[x.layer]) if ceil else geometry
    return lowering.before_sign(node, [x], MaxPool(node.name, (x.layer,), geometry))


def _average_pool(
    lowering: Lowering,
    node: Node,
    x: Floats,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Sides,
    ceil: bool = False,
    count_padding: bool,
) -> Floats:
    """The mean of the window, its padding counted as zeros or not at all."""
    source = image(node, floats(node, x))
    if source.padding != NO_PADDING:
        if source.pad_value or (any(padding) and not count_padding):
            raise ConvertError("a convolution after a Pad", node.where)
        padding, count_padding = _both(padding, source.padding), True
    geometry = window(node, kernel, stride, padding, (1, 1))
    reaching = _reaching(geometry, lowering.shapes[source.layer]) if ceil else geometry
    if reaching != geometry and count_padding:
        raise ConvertError(
            "an average pool whose windows end within the padding", f"{node.where} (ceil mode)"
        )
    return lowering.append(node, AvgPool(node.name, (source.layer,), reaching, count_padding))


def _reaching(window: Window, shape: Shape) -> Window:
    """The window padded at the bottom and right, so that it reaches every value; none lie wholly outside."""
    sides = list(window.padding)
    for axis in (0, 1):
        size, before, after = shape[axis], sides[2 * axis], sides[2 * axis + 1]
        reach, stride = window.dilation[axis] * (window.kernel[axis] - 1) + 1, max(window.stride[axis], 1)
        last = -(-(size + before + after - reach) // stride) * stride
        if last >= size + before:
            last -= stride
        sides[2 * axis + 1] = max(after, last + reach - size - before)
    return dataclasses.replace(window, padding=(sides[0], sides[1], sides[2], sides[3]))


def _mean(lowering: Lowering, node: Node, x: Floats, *, size: Pair = (1, 1), flat: bool = False) -> Floats:
    """The image in `size` equal parts, the mean of each; flattened if `flat`."""
    source = unpadded(node, image(node, floats(node, x)))
    height, width, _ = lowering.shapes[source.layer]
    if min(size) < 1 or height % size[0] or width % size[1]:
        raise ConvertError(f"a size that divides {height}x{width} in {node.where}", f"{size}")
    kernel = height // size[0], width // size[1]
    if kernel == (1, 1):
        return dataclasses.replace(source, flat=flat)
    pool = AvgPool(node.name, (source.layer,), Window(kernel, kernel))
    return dataclasses.replace(lowering.append(node, pool), flat=flat)


def _largest(lowering: Lowering, node: Node, x: Floats) -> Floats:
    """The largest value of the whole image."""
    size = lowering.shapes[image(node, x).layer][:2]
    return _max_pool(lowering, node, x, kernel=size, stride=(1, 1), padding=NO_PADDING)


def _concat(lowering: Lowering, node: Node, *values: Floats) -> Floats:
    """One after the other along the channels."""
    kinds = {dataclasses.replace(unpadded(node, value), layer="") for value in values}
    if len(kinds) != 1:
        raise ConvertError("values of one kind, all floats or the same signs", node.where)
    if len(values) == 1:
        return values[0]
    if values[0].flat and any(math.prod(lowering.shapes[value.layer][:2]) > 1 for value in values):
        raise ConvertError(f"NCHW values in {node.where}", "flattened ones")
    layer = Concat(node.name, tuple(value.layer for value in values))
    return dataclasses.replace(lowering.before_sign(node, values, layer), flat=values[0].flat)


def _flatten(lowering: Lowering, node: Node, x: Floats) -> Floats:
    """(1, C * H * W)."""
    return dataclasses.replace(unpadded(node, x), flat=True)


def _reshape(lowering: Lowering, node: Node, x: Floats, *, shape: Sequence[int]) -> Floats:
    """To two dimensions (ones may follow), or to the NCHW shape that it had; one size may be -1."""
    height, width, channels = lowering.shapes[unpadded(node, x).layer]
    sizes, total = tuple(int(size) for size in shape), height * width * channels
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and total % known == 0:
        sizes = tuple(total // known if size == -1 else size for size in sizes)
    if sizes == (1, channels, height, width):
        return dataclasses.replace(x, flat=False)
    if sizes[:2] == (1, total) and set(sizes[2:]) <= {1}:
        return dataclasses.replace(x, flat=True)
    raise ConvertError(f"a flattening in {node.where}", f"{(1, channels, height, width)} to {tuple(shape)}")


def _pad(lowering: Lowering, node: Node, x: Floats, *, padding: Sides, value: float) -> Floats:
    """Constant values around the image."""
    image(node, x)
    if not any(padding):
        return x
    if min(padding) < 0 or max(padding) > MAX_SIDE or (x.padding != NO_PADDING and x.pad_value != value):
        raise ConvertError(f"padding of one value, at most {MAX_SIDE} wide, in {node.where}", f"{padding}")
    return dataclasses.replace(x, padding=_both(x.padding, padding), pad_value=value)


def _upsample(lowering: Lowering, node: Node, x: Floats, *, factor: int) -> Floats:
    """Each pixel `factor` by `factor` times."""
    unpadded(node, image(node, x))
    return x if factor == 1 else lowering.before_sign(node, [x], Upsample(node.name, (x.layer,), factor))


def _softmax(lowering: Lowering, node: Node, x: Floats) -> Floats:
    """Left out: the outputs are the logits."""
    return dataclasses.replace(unpadded(node, floats(node, x)), ended=node.where)


def _add(lowering: Lowering, node: Node, a: Value, b: Value) -> Value:
    """a + b, or c for (c - b) + b."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Difference) and one.subtrahend == other:
            return one.minuend
    x, y = (unpadded(node, floats(node, lowering._settled(value, node.where))) for value in (a, b))
    if x.flat != y.flat:
        raise ConvertError("two inputs of one shape", node.where)
    return dataclasses.replace(lowering.append(node, Add(node.name, (x.layer, y.layer))), flat=x.flat)


def _subtract(lowering: Lowering, node: Node, a: Value, b: Value) -> Value:
    """a - b."""
    return Difference(node, a, b)


def _difference(lowering: Lowering, value: Difference) -> Floats:
    """a + -b, as layers."""
    negated = dataclasses.replace(value.node, name=f"{value.node.name}.negated")
    summed = dataclasses.replace(value.node, name=f"{value.node.name}.sum")
    if (known := lowering.layers.get(summed.name)) is not None:
        x = lowering._settled(value.minuend, negated.where)
        return Floats(known.name, x.flat)
    y = floats(negated, lowering._settled(value.subtrahend, negated.where))
    result = _add(lowering, summed, value.minuend, lowering.affine(negated, y, scale=-1.0))
    assert isinstance(result, Floats)
    return result


Operation = Callable[..., Any]

#: By op of a node. `same` is not here: it is the value itself.
OPERATIONS: dict[str, Operation] = {
    "average_pool": _average_pool,
    "batch_norm": _batch_norm,
    "clip": _clip,
    "compare": _compare,
    "concat": _concat,
    "conv": _conv,
    "flatten": _flatten,
    "integers": _integers,
    "largest": _largest,
    "linear": _linear,
    "max_pool": _max_pool,
    "mean": _mean,
    "multiply": _multiply,
    "pad": _pad,
    "plus": _plus,
    "prelu": _prelu,
    "relu": _relu,
    "reshape": _reshape,
    "select": _select,
    "sign": _sign,
    "softmax": _softmax,
    "upsample": _upsample,
}

#: Operations that look at differences, and at what was refused, before these are settled.
KEEP_DIFFERENCES: dict[str, Operation] = {"add": _add, "subtract": _subtract}


def input_rule(shape: Shape, mean: Any, std: Any) -> InputRule:
    """The rule of an input (H, W, C): mean and std as given, in units of 0..255, or the usual ones.

    224x224 is cut from a frame whose shorter side is resized to 256; other sizes are resized to.
    mean, std : one number a channel, as a sequence or as text with commas; None for the usual.
    """
    height, width, channels = shape
    if channels not in MEAN_STD or not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ConvertError(
            f"an input of 1 or 3 channels and of sides up to {MAX_SIDE}", f"{height}x{width}x{channels}"
        )
    usual = MEAN_STD[channels]
    numbers = [
        default if given is None else _numbers(option, given, channels)
        for option, given, default in (("mean", mean, usual[0]), ("std", std, usual[1]))
    ]
    imagenet = (height, width) == (IMAGENET_SIZE, IMAGENET_SIZE)
    resize = IMAGENET_RESIZE if imagenet else max(height, width)
    try:
        return InputRule((height, width), resize, numbers[0], numbers[1], channels=channels)
    except XnorError as error:
        raise ConvertError(error.expected, error.got, error.remedy) from error


def _numbers(option: str, given: Any, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in (given.split(",") if isinstance(given, str) else given))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count:
        raise ConvertError(f"{count} numbers as the option {option}", f"{given!r}")
    return numbers
