"""Larq Compute Engine: TensorFlow Lite files with its binary operators.

LceQuantize takes signs, >= 0 being +1, stored as bits of which 1 is -1; LceBconv2d quantizes float inputs
itself. Its weights are packed along the input channels, bit j of word i being channel 32 i + j. SAME padding
is +1 where pad_values is 1, else 0. Its output is dot, clamped by the fused activation, times a multiplier
plus a bias; or, where it is bits again, -1 for more than `threshold` mismatches. LceBMaxPool2d is the maximum
of signs, LceDequantize signs as floats: only matrices whose rows differ in sign alone may read them. A final
softmax is dropped. How the input is scaled is not in the file, see common/tf_layers.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..bits import unpack_signs
from ..errors import ConvertError
from ..model import INPUT, MAX_WINDOW_BITS, Array, Model, Shape
from .common import tflite_file
from .common.checkpoint import Checkpoint, Tensors
from .common.datasets import MEAN, STD
from .common.original import Keep, Original, in_torch
from .common.tf_layers import Activation, Network, Pair, Value, tf_input_rule
from .common.tf_torch import average_pool, flatten, max_pool, pad_same, sign
from .common.tflite_file import Graph, Operator

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Larq Compute Engine .tflite"
OPTIONS = (MEAN, STD)

WORD = 32
FLOAT32, INT32 = 0, 2
ACTIVATIONS: dict[float, Activation] = {0: None, 1: "relu", 2: "relu_n1_to_1", 3: "relu6"}
#: TfLitePadding, in the options of custom operators; in those of the others SAME is 0, VALID is 1.
CUSTOM_SAME, CUSTOM_VALID = 1, 2
BUILTIN_SAME, BUILTIN_VALID = 0, 1


def recognise(source: Checkpoint) -> bool:
    return source.head[tflite_file.MAGIC_AT :].startswith(tflite_file.MAGIC)


def read(source: Checkpoint, *, mean: object = None, std: object = None) -> Model:
    """The model; its output are the logits before the final softmax.

    mean, std : one number or one a channel. Raises ConvertError for a damaged file, an operator or option
    that is not known, types other than float32 and bits, and shapes that do not fit.
    """
    graph = tflite_file.read(source.path)
    shape = _input_shape(graph)
    rule = tf_input_rule(shape, mean, std)
    builder = Builder(graph, shape)
    for operator in graph.operators:
        builder.visit(operator)
    source.sizes.update(builder.sizes)
    Tensors(graph.unread(), source).finish()
    return builder.network.model(source.name, rule, builder.values[graph.output])


def _input_shape(graph: Graph) -> Shape:
    tensor = graph.tensors[graph.input]
    if tensor.kind != FLOAT32 or len(tensor.shape) != 4 or tensor.shape[0] != 1:
        found = f"type {tensor.kind}, {list(tensor.shape)}"
        raise ConvertError("a float32 input [1, height, width, channels]", found)
    return (tensor.shape[1], tensor.shape[2], tensor.shape[3])


class Builder:
    """Layers from the operators of a graph. The last layer of each is named as the tensor it makes."""

    def __init__(self, graph: Graph, input_shape: Shape) -> None:
        self.graph, self.network = graph, Network(input_shape)
        self.sizes: dict[str, int] = {}
        self.values: dict[int, Value] = {graph.input: Value(INPUT)}

    def visit(self, operator: Operator) -> None:
        if operator.op not in OPERATORS:
            raise ConvertError(f"operators among {', '.join(OPERATORS)}", repr(operator.op))
        inputs, convert = OPERATORS[operator.op]
        if len(operator.inputs) not in inputs or len(operator.outputs) != 1:
            found = f"{len(operator.inputs)} and {len(operator.outputs)}"
            raise ConvertError(f"{inputs[0]} inputs and an output of {operator.op}", found)
        value = convert(self, Call(self, operator))
        self._check_shape(operator.outputs[0], value)
        self.values[operator.outputs[0]] = value

    def _check_shape(self, index: int, value: Value) -> None:
        """Raises ConvertError where a tensor is not declared as it is."""
        tensor = self.graph.tensors[index]
        height, width, channels = self.network.shape(value)
        if tensor.kind == INT32 and value.signs:
            channels = -(-channels // WORD)
        elif tensor.kind != FLOAT32:
            raise ConvertError(f"float32, or bits, as {self.graph.names[index]!r}", f"type {tensor.kind}")
        shapes = {(1, height * width * channels) if value.flat else (1, height, width, channels)}
        if height == width == 1:  # then it is the same either way
            shapes |= {(1, channels), (1, 1, 1, channels)}
        if tensor.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in sorted(shapes))
            raise ConvertError(f"{self.graph.names[index]!r} of shape {wanted}", str(list(tensor.shape)))


class Call:
    """An operator as it is brought over: its inputs and options, checked as they are taken."""

    def __init__(self, builder: Builder, operator: Operator) -> None:
        self._builder, self._operator = builder, operator
        self._options = dict(operator.options)
        self.network, self.op = builder.network, operator.op
        self.name = builder.graph.names[operator.outputs[0]]
        self.where = f"{self.op} {self.name}"
        self.output = builder.graph.tensors[operator.outputs[0]]

    def value(self, index: int = 0) -> Value:
        """A computed input."""
        tensor = self._operator.inputs[index]
        if tensor not in self._builder.values:
            raise ConvertError(
                f"input {index} of {self.where} computed from the input", "a constant, or none"
            )
        return self._builder.values[tensor]

    def values(self) -> list[Value]:
        return [self.value(index) for index in range(len(self._operator.inputs))]

    def is_constant(self, index: int) -> bool:
        tensor = self._operator.inputs[index]
        return tensor >= 0 and tensor not in self._builder.values

    def is_float(self, index: int) -> bool:
        return self._builder.graph.tensors[self._operator.inputs[index]].kind == FLOAT32

    def given(self, index: int) -> bool:
        """Whether there is such an input."""
        return index < len(self._operator.inputs) and self._operator.inputs[index] >= 0

    def array(self, index: int, kind: type, *shape: int | None) -> Array:
        """A constant input of this dtype and shape (None: any size), every value finite."""
        if not self.given(index):
            raise ConvertError(f"input {index} of {self.where}", "none")
        array = self._builder.graph.constant(self._operator.inputs[index])
        fits = array.dtype == kind and array.ndim == len(shape)
        if not fits or any(b not in (None, a) for a, b in zip(array.shape, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            found = f"{array.dtype.name}{list(array.shape)}"
            raise ConvertError(f"{np.dtype(kind).name}[{wanted}] as input {index} of {self.where}", found)
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise ConvertError(f"finite values in input {index} of {self.where}", f"{bad} NaN or infinite")
        self._builder.sizes[f"{self.name}.input{index}"] = array.nbytes
        return array

    def per_channel(self, index: int, channels: int) -> Array:
        """A constant input float32[channels], whichever dimensions of size 1 it has, or one value for all."""
        rank = len(self._builder.graph.tensors[self._operator.inputs[index]].shape)
        array = self.array(index, np.float32, *(None,) * rank)
        if array.size not in (1, channels) or (array.size > 1 and array.shape[-1] != channels):
            raise ConvertError(f"{channels} values as input {index} of {self.where}", str(list(array.shape)))
        return np.broadcast_to(array.reshape(-1), channels).astype(np.float32)

    def bias(self, index: int, channels: int) -> Array:
        return (
            self.array(index, np.float32, channels) if self.given(index) else np.zeros(channels, np.float32)
        )

    def count(self, key: str) -> int:
        value = self._options.pop(key, None)
        if value is None or not 0 <= value <= MAX_WINDOW_BITS:
            raise ConvertError(f"{key} of 0 to {MAX_WINDOW_BITS} in {self.where}", str(value))
        return int(value)

    def pair(self, vertical: str, horizontal: str) -> Pair:
        return self.count(vertical), self.count(horizontal)

    def require(self, key: str, wanted: float, default: float) -> None:
        """Raises ConvertError where an option has any but the one supported value."""
        if (found := self._options.pop(key, default)) != wanted:
            raise ConvertError(f"{key} {wanted} in {self.where}", str(found))

    def same(self, *, custom: bool = False) -> bool:
        known = (
            {CUSTOM_SAME: True, CUSTOM_VALID: False} if custom else {BUILTIN_SAME: True, BUILTIN_VALID: False}
        )
        value = self._options.pop("padding", None)
        if value not in known:
            raise ConvertError(f"padding SAME or VALID in {self.where}", str(value))
        return known[int(value)]

    def activation(self, key: str = "activation") -> Activation:
        value = self._options.pop(key, 0)
        if value not in ACTIVATIONS:
            raise ConvertError(
                f"an activation of none, RELU, RELU_N1_TO_1 or RELU6 in {self.where}", str(value)
            )
        return ACTIVATIONS[value]

    def finish(self) -> None:
        """Raises ConvertError for an option that was not taken."""
        if self._options:
            raise ConvertError(f"known options of {self.where}", ", ".join(sorted(self._options)))

    def activated(self, make: Callable[[str], Value]) -> Value:
        """What `make` makes under the name it is given, and the fused activation after it."""
        kind = self.activation()
        self.finish()
        return self.network.activation(self.name, make(f"{self.name}.linear" if kind else self.name), kind)


def _convolution(builder: Builder, call: Call) -> Value:
    value = call.value()
    weight = call.array(1, np.float32, None, None, None, None)
    channels, groups = builder.network.shape(value)[2], 1
    if call.op == "DEPTHWISE_CONV_2D":
        if weight.shape[0] != 1 or weight.shape[3] != channels * call.count("depth_multiplier"):
            raise ConvertError(
                f"weights [1, any, any, {channels} * multiplier] in {call.where}", f"{weight.shape}"
            )
        weight, groups = weight.transpose(3, 1, 2, 0), channels
    elif channels != weight.shape[3]:
        groups = channels // weight.shape[3]
    bias = call.bias(2, len(weight))
    stride = call.pair("stride_h", "stride_w")
    dilation = call.pair("dilation_h_factor", "dilation_w_factor")
    same = call.same()
    return call.activated(
        lambda name: builder.network.conv(
            name, value, weight, bias, stride=stride, dilation=dilation, same=same, groups=groups
        )
    )


def _fully_connected(builder: Builder, call: Call) -> Value:
    value = builder.network.flatten(call.value(), call.where)
    weight = call.array(1, np.float32, None, None)
    bias = call.bias(2, len(weight))
    call.require("weights_format", 0, 0)
    call.count("keep_num_dims")
    return call.activated(lambda name: builder.network.dense(name, value, weight, bias))


def _pool(builder: Builder, call: Call) -> Value:
    value, kernel = call.value(), call.pair("filter_height", "filter_width")
    stride, same = call.pair("stride_h", "stride_w"), call.same()
    pool = builder.network.max_pool if call.op == "MAX_POOL_2D" else builder.network.average_pool
    return call.activated(lambda name: pool(name, value, kernel, stride, same=same))


def _mean(builder: Builder, call: Call) -> Value:
    value, keep = call.value(), call.count("keep_dims")
    axes = call.array(1, np.int32, None)
    if value.flat or sorted(int(axis) % 4 for axis in axes) != [1, 2]:
        raise ConvertError(f"a mean over height and width in {call.where}", f"axes {axes.tolist()}")
    call.finish()
    pooled = builder.network.average_pool(call.name, value)
    return pooled if keep else builder.network.flatten(pooled, call.where)


def _arithmetic(builder: Builder, call: Call) -> Value:
    """ADD and MUL: of two tensors, or of a tensor and a constant for each channel."""
    network = builder.network
    call.require("pot_scale_int16", 1, 1)
    constant = next((index for index in (0, 1) if call.is_constant(index)), None)
    if constant is None:
        if call.op == "MUL":
            raise ConvertError(f"a constant factor in {call.where}", "two computed ones")
        return call.activated(lambda name: network.add(name, call.values()))
    value = call.value(1 - constant)
    channels = network.shape(value)[2]
    values = call.per_channel(constant, channels)
    scale = values if call.op == "MUL" else np.ones(channels, np.float32)
    shift = values if call.op == "ADD" else np.zeros(channels, np.float32)
    return call.activated(lambda name: network.affine(name, value, scale, shift))


def _concatenation(builder: Builder, call: Call) -> Value:
    values = call.values()
    axis, rank = call._options.pop("axis"), 2 if values[0].flat else 4
    if axis not in (-1, rank - 1):
        raise ConvertError(f"concatenation of channels in {call.where}", f"axis {axis}")
    return call.activated(lambda name: builder.network.concat(name, values))


def _activation(builder: Builder, call: Call) -> Value:
    kinds: dict[str, Activation] = {"RELU": "relu", "RELU_N1_TO_1": "relu_n1_to_1", "RELU6": "relu6"}
    return builder.network.activation(call.name, call.value(), kinds[call.op])


def _prelu(builder: Builder, call: Call) -> Value:
    value = call.value()
    slope = call.per_channel(1, builder.network.shape(value)[2])
    return builder.network.prelu(call.name, value, slope)


def _pad(builder: Builder, call: Call) -> Value:
    sides = call.array(1, np.int32, 4, 2)
    if sides[0].any() or sides[3].any():
        raise ConvertError(f"padding of height and width in {call.where}", str(sides.tolist()))
    top, bottom, left, right = (int(size) for size in sides[1:3].reshape(-1))
    return builder.network.pad(call.value(), (top, bottom, left, right), call.where)


def _reshape(builder: Builder, call: Call) -> Value:
    """To a vector, or back. The new shape is the output's, which is checked."""
    value = call.value()
    if call.given(1) and call.array(1, np.int32, None).size != len(call.output.shape):
        raise ConvertError(f"a shape of {len(call.output.shape)} dimensions in {call.where}", "another")
    if len(call.output.shape) == 2:
        return builder.network.flatten(value, call.where)
    return Value(value.layer, value.signs, value.padding, value.pad_value)


def _softmax(builder: Builder, call: Call) -> Value:
    call.require("beta", 1.0, 1.0)
    if builder.graph.output != call.output.index:
        raise ConvertError("a softmax as the output only", call.where)
    return call.value()


def _quantize(builder: Builder, call: Call) -> Value:
    call.finish()
    return builder.network.sign(call.value())


def _dequantize(builder: Builder, call: Call) -> Value:
    call.finish()
    value = call.value()
    if not value.signs:
        raise ConvertError(f"bits as the input of {call.where}", "floats")
    return value


def _binary_max_pool(builder: Builder, call: Call) -> Value:
    kernel, stride = call.pair("filter_height", "filter_width"), call.pair("stride_height", "stride_width")
    same = call.same(custom=True)
    call.finish()
    value = builder.network.sign(call.value())
    return builder.network.max_pool(call.name, value, kernel, stride, same=same)


def _binary_convolution(builder: Builder, call: Call) -> Value:
    network, value = builder.network, builder.network.sign(call.value())
    channels = network.shape(value)[2]
    if (found := call.count("channels_in")) != channels:
        raise ConvertError(f"{channels} channels_in in {call.where}", str(found))
    signs = _weight_signs(call, channels)
    cout, n = len(signs), math.prod(signs.shape[1:])
    stride = call.pair("stride_height", "stride_width")
    dilation = call.pair("dilation_height_factor", "dilation_width_factor")
    same, pad_value = call.same(custom=True), call.count("pad_values")
    kind = call.activation("fused_activation_function")
    call.finish()
    if pad_value not in (0, 1):
        raise ConvertError(f"pad_values 0 or 1 in {call.where}", str(pad_value))

    def dot(name: str, alpha: Array, bias: Array) -> Value:
        geometry = {"stride": stride, "dilation": dilation}
        return network.binary_conv(
            name, value, signs, alpha, bias, same=same, pad_value=pad_value, **geometry
        )

    ones, zeros = np.ones(cout, np.float32), np.zeros(cout, np.float32)
    if call.output.kind == INT32:
        # Bits are -1 for more mismatches than the threshold, the activation being part of it: the sign of
        # 2 * (threshold - mismatches), an integer. Thresholds below 0 or above n are all the same.
        threshold = np.clip(call.array(4, np.int32, cout).astype(np.int64), -1, n)
        return network.sign(dot(call.name, ones, (2 * threshold - n).astype(np.float32)))
    multiplier, bias = call.array(2, np.float32, cout), call.array(3, np.float32, cout)
    if kind is None:
        return dot(call.name, multiplier, bias)
    clamped = network.activation(f"{call.name}.clamp", dot(f"{call.name}.dot", ones, zeros), kind)
    return network.affine(call.name, clamped, multiplier, bias)


def _weight_signs(call: Call, channels: int) -> Array:
    """bool[Cout, kH, kW, channels] of packed words, or of the floats that early versions kept."""
    if call.is_float(1):
        return call.array(1, np.float32, None, None, None, channels) >= 0
    words = call.array(1, np.int32, None, None, None, -(-channels // WORD)).view(np.uint32)
    spare = -channels % WORD
    if spare and (words[..., -1] >> np.uint32(WORD - spare)).any():
        raise ConvertError(f"zero bits past channel {channels} in {call.where}", "set ones")
    return ~unpack_signs(words, channels)


#: By operator: the numbers of inputs it may have, and what it becomes.
OPERATORS: dict[str, tuple[tuple[int, ...], Callable[[Builder, Call], Value]]] = {
    "ADD": ((2,), _arithmetic),
    "AVERAGE_POOL_2D": ((1,), _pool),
    "CONCATENATION": (tuple(range(2, 65)), _concatenation),
    "CONV_2D": ((2, 3), _convolution),
    "DEPTHWISE_CONV_2D": ((2, 3), _convolution),
    "FULLY_CONNECTED": ((2, 3), _fully_connected),
    "LceBMaxPool2d": ((1,), _binary_max_pool),
    "LceBconv2d": ((4, 5), _binary_convolution),
    "LceDequantize": ((1,), _dequantize),
    "LceQuantize": ((1,), _quantize),
    "MAX_POOL_2D": ((1,), _pool),
    "MEAN": ((2,), _mean),
    "MUL": ((2,), _arithmetic),
    "PAD": ((2,), _pad),
    "PRELU": ((2,), _prelu),
    "RELU": ((1,), _activation),
    "RELU6": ((1,), _activation),
    "RELU_N1_TO_1": ((1,), _activation),
    "RESHAPE": ((1, 2), _reshape),
    "SOFTMAX": ((1,), _softmax),
}


def original(source: Checkpoint, *, mean: object = None, std: object = None) -> Original:
    """The network as TensorFlow Lite and the kernels of Larq Compute Engine run it."""
    graph = tflite_file.read(source.path)
    constants = {
        tensor.index: graph.constant(tensor.index) for tensor in graph.tensors if tensor.data is not None
    }

    def forward(x: Tensor, keep: Keep) -> Tensor:
        interpreter = Interpreter(graph, constants, x, keep)
        for operator in graph.operators:
            interpreter.run(operator)
        return flatten(interpreter.values[graph.output])

    return in_torch(forward)


class Interpreter:
    """Tensors by index, NCHW; bits are -1.0 and 1.0.

    before : for each tensor, what its signs are the signs of: the tensor that made these values, and them.
    signs : the tensors that are signs, as bits or floats, or zeros around signs.
    """

    def __init__(self, graph: Graph, constants: dict[int, Array], x: Tensor, keep: Keep) -> None:
        self.graph, self.constants, self.keep = graph, constants, keep
        self.values = {graph.input: x}
        self.before = {graph.input: (INPUT, x)}
        self.signs: set[int] = set()

    def run(self, operator: Operator) -> None:
        import torch
        import torch.nn.functional as F

        options, inputs, index = operator.options, operator.inputs, operator.outputs[0]
        name = self.graph.names[index]
        x = self.values[inputs[0]] if inputs[0] in self.values else self._constant(inputs[0])
        # Of an operator that makes no values, only places them: what it reads.
        before: tuple[str, Tensor] | None = None
        stride = (int(options.get("stride_h", 1)), int(options.get("stride_w", 1)))
        kernel = (int(options.get("filter_height", 1)), int(options.get("filter_width", 1)))
        same = options.get("padding") == BUILTIN_SAME
        places = operator.op in ("PAD", "RESHAPE", "LceDequantize", "MAX_POOL_2D") and inputs[0] in self.signs
        if places or operator.op in ("LceQuantize", "LceBMaxPool2d"):
            self.signs.add(index)
        elif operator.op in ("CONV_2D", "FULLY_CONNECTED") and inputs[0] in self.signs:
            self._read_signs(inputs[0])
        match operator.op:
            case "CONV_2D" | "DEPTHWISE_CONV_2D":
                weight = self._constant(inputs[1])
                weight = (
                    weight.permute(3, 0, 1, 2) if operator.op != "CONV_2D" else weight.permute(0, 3, 1, 2)
                )
                dilation = (int(options["dilation_h_factor"]), int(options["dilation_w_factor"]))
                size = (weight.shape[2], weight.shape[3])
                image = pad_same(x, size, stride, dilation) if same else x
                bias = self._constant(inputs[2]) if len(inputs) > 2 and inputs[2] >= 0 else None
                y = F.conv2d(image, weight, bias, stride, 0, dilation, x.shape[1] // weight.shape[1])
            case "FULLY_CONNECTED":
                bias = self._constant(inputs[2]) if len(inputs) > 2 and inputs[2] >= 0 else None
                y = F.linear(flatten(x), self._constant(inputs[1]), bias)
                y = y[:, :, None, None] if len(self.graph.tensors[index].shape) == 4 else y
            case "LceBconv2d":
                y, before = self._binary_convolution(operator, x)
            case "LceBMaxPool2d":
                stride = (int(options["stride_height"]), int(options["stride_width"]))
                same = options["padding"] == CUSTOM_SAME
                y = max_pool(sign(x), kernel, stride, same)
                before = name, max_pool(self.before[inputs[0]][1], kernel, stride, same)
            case "MAX_POOL_2D":
                y = max_pool(x, kernel, stride, same)
                if places:
                    before = name, max_pool(self.before[inputs[0]][1], kernel, stride, same)
            case "AVERAGE_POOL_2D":
                y = average_pool(x, kernel, stride, same)
            case "MEAN":
                y = x.mean((2, 3), keepdim=bool(options["keep_dims"]))
            case "ADD" | "MUL":
                other = self.values[inputs[1]] if inputs[1] in self.values else self._channels(inputs[1], x)
                x = x if inputs[0] in self.values else self._channels(inputs[0], other)
                y = x + other if operator.op == "ADD" else x * other
            case "CONCATENATION":
                y = torch.cat([self.values[each] for each in inputs], 1)
            case "PRELU":
                y = torch.where(x >= 0, x, x * self._channels(inputs[1], x))
            case "RELU":
                y = x.clamp(min=0)
            case "RELU6":
                y = x.clamp(0, 6)
            case "RELU_N1_TO_1":
                y = x.clamp(-1, 1)
            case "PAD":
                (top, bottom), (left, right) = self.constants[inputs[1]][1:3].tolist()
                y, before = F.pad(x, (left, right, top, bottom)), self.before[inputs[0]]
            case "LceQuantize":
                y, before = sign(x), self.before[inputs[0]]
            case "LceDequantize" | "SOFTMAX":
                y, before = x, self.before[inputs[0]]
            case "RESHAPE":
                shape = self.graph.tensors[index].shape
                y = flatten(x).reshape(shape)
                y, before = y.permute(0, 3, 1, 2) if len(shape) == 4 else y, self.before[inputs[0]]
            case op:
                raise ConvertError("an operator that is known", op)
        y = {0: y, 1: y.clamp(min=0), 2: y.clamp(-1, 1), 3: y.clamp(0, 6)}[int(options.get("activation", 0))]
        self.values[index] = y
        self.before[index] = before or (name, y)

    def _constant(self, index: int) -> Tensor:
        import torch

        return torch.tensor(self.constants[index], dtype=torch.float64)

    def _channels(self, index: int, x: Tensor) -> Tensor:
        """A constant for each channel, or for all, that goes with x."""
        values = self._constant(index).reshape(1, -1)
        return values if x.ndim == 2 else values[:, :, None, None]

    def _read_signs(self, index: int) -> None:
        """Note what the signs are of that a convolution reads."""
        name, values = self.before[index]
        self.keep(f"{name}.sign", values)

    def _binary_convolution(self, operator: Operator, x: Tensor) -> tuple[Tensor, tuple[str, Tensor] | None]:
        """The output; and where it is bits, what these are the signs of."""
        import torch
        import torch.nn.functional as F

        options, name = operator.options, self.graph.names[operator.outputs[0]]
        self._read_signs(operator.inputs[0])
        stored = self.constants[operator.inputs[1]]
        if stored.dtype == np.float32:
            weight = sign(torch.tensor(stored))
        else:
            shape = (*stored.shape[:3], 4 * stored.shape[3])
            stored_bits = np.unpackbits(stored.view(np.uint8).reshape(shape), axis=3, bitorder="little")
            weight = 1 - 2.0 * torch.tensor(stored_bits[..., : x.shape[1]])
        weight = weight.double().permute(0, 3, 1, 2)
        stride = (int(options["stride_height"]), int(options["stride_width"]))
        dilation = (int(options["dilation_height_factor"]), int(options["dilation_width_factor"]))
        x = sign(x)
        if options["padding"] == CUSTOM_SAME:
            size = (weight.shape[2], weight.shape[3])
            x = pad_same(x, size, stride, dilation, value=float(options["pad_values"]))
        dot = F.conv2d(x, weight, None, stride, 0, dilation)
        if self.graph.tensors[operator.outputs[0]].kind == INT32:
            n = float(weight[0].numel())
            mismatches = (n - dot) / 2
            threshold = self._constant(operator.inputs[4])[:, None, None]
            self.signs.add(operator.outputs[0])
            bits = torch.where(mismatches > threshold, -torch.ones_like(dot), torch.ones_like(dot))
            return bits, (name, 2 * (threshold.clamp(-1, n) - mismatches))
        kind = int(options.get("fused_activation_function", 0))
        dot = {0: dot, 1: dot.clamp(min=0), 2: dot.clamp(-1, 1), 3: dot.clamp(0, 6)}[kind]
        multiplier, bias = (self._constant(index)[:, None, None] for index in operator.inputs[2:4])
        return dot * multiplier + bias, None
