"""Larq: Keras models with its quantized layers.

ste_sign, approx_sign and swish_sign are the same at inference, +1 for x >= 0, for activations and weights,
so a weight of 0 is +1; magnitude_aware_sign is alpha * sign, alpha = mean |w| of each filter. Clipping of the
latent weights is of training. QuantConv2D pads after the sign, with pad_values. Layers that quantize their
weights but read no signs are float ones. Flattening is in the order height, width, channel. A final softmax
is dropped.

The file does not say how the input is scaled. Inputs of at most 64 pixels are taken to be x / 127.5 - 1, as
in Larq's examples, larger ones to be normalised as Larq Zoo does; the options mean and std say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConvertError
from ..model import INPUT, Array, Model, Shape
from .common import keras_file
from .common.checkpoint import Checkpoint, Tensors
from .common.datasets import MEAN, SIZE, STD, whole_size
from .common.keras_file import Layer
from .common.original import Keep, Original, in_torch
from .common.tf_layers import Network, Value, tf_input_rule
from .common.tf_torch import average_pool, flatten, max_pool, pad_same, sign

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Larq .h5 or .keras (a whole Keras model)"
OPTIONS = (SIZE, MEAN, STD)

SIGNS = {
    "ste_sign": "ste_sign",
    "SteSign": "ste_sign",
    "approx_sign": "ste_sign",
    "ApproxSign": "ste_sign",
    "swish_sign": "ste_sign",
    "SwishSign": "ste_sign",
    "magnitude_aware_sign": "magnitude_aware_sign",
    "MagnitudeAwareSign": "magnitude_aware_sign",
}


def recognise(source: Checkpoint) -> bool:
    return keras_file.recognise(source.path, source.head)


def read(source: Checkpoint, *, size: int | None = None, mean: object = None, std: object = None) -> Model:
    """The model; its output are the logits before a final softmax.

    mean, std : one number or one a channel. Raises ConvertError for a damaged file, a layer, quantizer or
    option that is not known, and weights that are missing, misshapen or left over.
    """
    network = keras_file.read(source.path, source.head)
    height, width, channels = network.shape
    if channels is None:
        raise ConvertError("an input of known channels", f"{list(network.shape)}")
    shape = (*whole_size(height, width, size), channels)
    rule = tf_input_rule(shape, mean, std)
    builder = Builder(network, shape)
    unused: dict[str, Array] = {}
    for layer in network.layers:
        arrays = {f"{layer.name}/{name}": array for name, array in layer.arrays.items()}
        builder.visit(layer)
        unused |= {f"{layer.name}/{name}": array for name, array in layer.arrays.items()}
        source.sizes.update({name: arrays[name].nbytes for name in arrays.keys() - unused.keys()})
    Tensors(unused, source).finish()
    return builder.network.model(source.name, rule, builder.values[network.output])


class Builder:
    """Layers from those of a Keras model; the last one of each has its name."""

    def __init__(self, source: keras_file.Network, input_shape: Shape) -> None:
        self.source, self.network = source, Network(input_shape)
        self.values = {source.input: Value(INPUT)}

    def visit(self, layer: Layer) -> None:
        if layer.kind not in LAYERS:
            raise ConvertError(f"layers among {', '.join(LAYERS)}", f"{layer.kind} ({layer.name})")
        several = layer.kind in ("Add", "Concatenate")
        if (len(layer.inputs) < 2) if several else (len(layer.inputs) != 1):
            raise ConvertError(
                f"{'2 or more inputs' if several else 'one input'} of {layer.where}", f"{layer.inputs}"
            )
        values = [self.values[name] for name in layer.inputs]
        layer.require("data_format", "channels_last", None)
        value = LAYERS[layer.kind](self, layer, values)
        layer.finish()
        self.values[layer.name] = value

    def activated(self, layer: Layer, make: Callable[[str], Value]) -> Value:
        """What `make` makes under the name it is given, and the layer's activation after it."""
        function = layer.function("activation")
        if function in (None, "linear"):
            return make(layer.name)
        if function in SIGNS:
            return self._activation(layer, function, make(layer.name))
        return self._activation(layer, function, make(f"{layer.name}.linear"))

    def _activation(self, layer: Layer, function: str | None, value: Value) -> Value:
        network, name = self.network, layer.name
        if SIGNS.get(function or "") == "ste_sign":
            return network.sign(value)
        match function:
            case None | "linear":
                return value
            case "relu" | "relu6":
                return network.activation(name, value, "relu6" if function == "relu6" else "relu")
            case "hard_tanh":
                return network.activation(name, value, "relu_n1_to_1")
            case "softmax" if name == self.source.output:
                return value
        known = "linear, relu, relu6, hard_tanh, ste_sign, approx_sign, swish_sign, or softmax as the output"
        raise ConvertError(f"an activation among {known} in {layer.where}", repr(function))

    def quantized(self, layer: Layer, value: Value) -> Value:
        """A layer's input, as its input_quantizer has it."""
        function = layer.function("input_quantizer")
        if function is None:
            return value
        if SIGNS.get(function) != "ste_sign":
            raise ConvertError(
                f"input_quantizer ste_sign, approx_sign or swish_sign in {layer.where}", function
            )
        return self.network.sign(value)


def _kernel_quantizer(layer: Layer) -> str | None:
    function = layer.function("kernel_quantizer")
    if function is not None and function not in SIGNS:
        raise ConvertError(f"kernel_quantizer among {', '.join(SIGNS)} in {layer.where}", function)
    return None if function is None else SIGNS[function]


def _alpha(quantizer: str, weight: Array) -> Array:
    """float32[Cout] of weights float32[Cout, ...]."""
    if quantizer == "ste_sign":
        return np.ones(len(weight), np.float32)
    axes = tuple(range(1, weight.ndim))
    alpha: Array = np.abs(weight).mean(axes, dtype=np.float64).astype(np.float32)
    return alpha


def _bias(layer: Layer, size: int) -> Array:
    return layer.weight("bias", size) if layer.flag("use_bias", True) else np.zeros(size, np.float32)


def _convolution(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    """Conv2D, QuantConv2D, DepthwiseConv2D."""
    network, kernel = builder.network, layer.pair("kernel_size", None)
    stride, dilation, same = layer.pair("strides"), layer.pair("dilation_rate"), layer.same()
    value = builder.quantized(layer, values[0])
    channels = network.shape(value)[2]
    groups = layer.count("groups") if "groups" in layer.config else 1
    if layer.kind == "DepthwiseConv2D":
        multiplier = layer.count("depth_multiplier")
        name = "kernel" if "kernel" in layer.arrays else "depthwise_kernel"
        weight = layer.weight(name, *kernel, channels, multiplier)
        weight, groups = weight.transpose(2, 3, 0, 1).reshape(-1, *kernel, 1), channels
        quantizer = None
    else:
        if channels % groups:
            raise ConvertError(f"groups that divide {channels} channels in {layer.where}", str(groups))
        weight = layer.weight("kernel", *kernel, channels // groups, layer.count("filters")).transpose(
            3, 0, 1, 2
        )
        quantizer = _kernel_quantizer(layer)
    pad_value = layer.number("pad_values", 0.0)
    bias = _bias(layer, len(weight))
    if quantizer is None or not value.signs:
        if same and pad_value:
            raise ConvertError(f"pad_values 0 in {layer.where}, which is a float convolution", str(pad_value))
        if quantizer is not None:
            alpha = _alpha(quantizer, weight)[:, None, None, None]
            weight = np.where(weight >= 0, alpha, -alpha)
        return builder.activated(
            layer,
            lambda name: network.conv(
                name, value, weight, bias, stride=stride, dilation=dilation, same=same, groups=groups
            ),
        )
    if groups != 1:
        raise ConvertError(f"one group in {layer.where}", str(groups))
    if pad_value not in (-1, 0, 1):
        raise ConvertError(f"pad_values -1, 0 or 1 in {layer.where}", str(pad_value))
    signs, scale = weight >= 0, _alpha(quantizer, weight)
    return builder.activated(
        layer,
        lambda name: network.binary_conv(
            name,
            value,
            signs,
            scale,
            bias,
            stride=stride,
            dilation=dilation,
            same=same,
            pad_value=int(pad_value),
        ),
    )


def _dense(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    """Dense, QuantDense: over a flat value, or over the channels of an image."""
    network, value = builder.network, builder.quantized(layer, values[0])
    weight = layer.weight("kernel", None, layer.count("units")).T
    bias, quantizer = _bias(layer, len(weight)), _kernel_quantizer(layer)
    if quantizer is None or not value.signs:
        if quantizer is not None:
            alpha = _alpha(quantizer, weight)[:, None]
            weight = np.where(weight >= 0, alpha, -alpha)
        return builder.activated(layer, lambda name: network.dense(name, value, weight, bias))
    signs, scale = network.kernel(layer.where, value, weight) >= 0, _alpha(quantizer, weight)
    return builder.activated(layer, lambda name: network.binary_dense(name, value, signs, scale, bias))


def _batch_norm(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    value = values[0]
    channels = builder.network.shape(value)[2]
    axis = layer.take("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, 1 if value.flat else 3):
        raise ConvertError(f"normalisation of channels in {layer.where}", f"axis {axis}")
    eps = layer.number("epsilon", 1e-3)
    gamma = layer.weight("gamma", channels) if layer.flag("scale", True) else None
    beta = layer.weight("beta", channels) if layer.flag("center", True) else None
    mean, var = layer.weight("moving_mean", channels), layer.weight("moving_variance", channels)
    return builder.network.batch_norm(
        layer.name, value, layer.where, gamma=gamma, beta=beta, mean=mean, var=var, eps=eps
    )


def _pool(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    kernel = layer.pair("pool_size", (2, 2))
    stride, same = layer.pair("strides", kernel), layer.same()
    maximum = layer.kind == "MaxPooling2D"
    pool = builder.network.max_pool if maximum else builder.network.average_pool
    return pool(layer.name, values[0], kernel, stride, same=same)


def _global_pool(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    network, value, kept = builder.network, values[0], layer.flag("keepdims", False)
    if value.flat:
        raise ConvertError(f"an image as the input of {layer.where}", "a vector")
    if layer.kind == "GlobalMaxPooling2D":
        pooled = network.max_pool(layer.name, value, network.shape(value)[:2], (1, 1), same=False)
    else:
        pooled = network.average_pool(layer.name, value)
    return pooled if kept else network.flatten(pooled, layer.where)


def _activation(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    return builder._activation(layer, layer.function("activation"), values[0])


def _softmax(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    layer.require("axis", -1)
    return builder._activation(layer, "softmax", values[0])


def _sign(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    """A quantizer as a layer."""
    for key in ("clip_value", "beta"):
        layer.take(key)
    return builder.network.sign(values[0])


def _relu(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    """ReLU with a limit, or a slope below 0; not both."""
    limit = layer.take("max_value")
    slope, threshold = layer.number("negative_slope", 0.0), layer.number("threshold", 0.0)
    if threshold or (slope and limit is not None):
        raise ConvertError(
            f"a plain, limited or leaky ReLU as {layer.where}", f"threshold {threshold}, slope {slope}"
        )
    if slope:
        return _leaky(builder, layer, values[0], slope)
    if limit is None:
        return builder.network.activation(layer.name, values[0], "relu")
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit < math.inf:
        raise ConvertError(f"max_value of at least 0 in {layer.where}", repr(limit))
    return builder.network.clip(layer.name, values[0], 0.0, float(limit))


def _leaky_relu(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    key = "negative_slope" if "negative_slope" in layer.config else "alpha"
    return _leaky(builder, layer, values[0], layer.number(key, 0.3))


def _leaky(builder: Builder, layer: Layer, value: Value, slope: float) -> Value:
    slopes = np.full(builder.network.shape(value)[2], slope, np.float32)
    return builder.network.prelu(layer.name, value, slopes)


def _prelu(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    value = values[0]
    height, width, channels = builder.network.shape(value)
    shared = layer.take("shared_axes")
    if value.flat and not shared and height * width == 1:
        slope = layer.weight("alpha", channels)
    elif shared == [1, 2] and not value.flat:
        slope = layer.weight("alpha", 1, 1, channels).reshape(-1)
    else:
        raise ConvertError(f"a slope for each channel in {layer.where}", f"shared_axes {shared}")
    return builder.network.prelu(layer.name, value, slope)


def _add(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    return builder.network.add(layer.name, values)


def _concatenate(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    axis = layer.take("axis", -1)
    if axis not in (-1, 1 if values[0].flat else 3):
        raise ConvertError(f"concatenation of channels in {layer.where}", f"axis {axis}")
    return builder.network.concat(layer.name, values)


def _flatten(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    return builder.network.flatten(values[0], layer.where)


def _zero_padding(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    return builder.network.pad(values[0], _sides(layer), layer.where)


def _sides(layer: Layer) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of n, [vertical, horizontal] or [[top, bottom], [left, right]]."""
    found = layer.take("padding", 1)
    pair = [found, found] if type(found) is int else found
    if isinstance(pair, list) and len(pair) == 2:
        sides = [side for each in pair for side in (each if isinstance(each, list) else [each, each])]
        if len(sides) == 4 and all(type(side) is int for side in sides):
            return sides[0], sides[1], sides[2], sides[3]
    raise ConvertError(f"padding of up to four numbers in {layer.where}", repr(found))


def _same_value(builder: Builder, layer: Layer, values: list[Value]) -> Value:
    """What does something in training only."""
    for key in ("l1", "l2"):
        layer.take(key)
    return values[0]


#: By class: what becomes of a layer.
LAYERS: dict[str, Callable[[Builder, Layer, list[Value]], Value]] = {
    "Activation": _activation,
    "ActivityRegularization": _same_value,
    "Add": _add,
    "ApproxSign": _sign,
    "AveragePooling2D": _pool,
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenate,
    "Conv2D": _convolution,
    "Dense": _dense,
    "DepthwiseConv2D": _convolution,
    "Dropout": _same_value,
    "Flatten": _flatten,
    "GaussianNoise": _same_value,
    "GlobalAveragePooling2D": _global_pool,
    "GlobalMaxPooling2D": _global_pool,
    "LeakyReLU": _leaky_relu,
    "MaxPooling2D": _pool,
    "PReLU": _prelu,
    "QuantConv2D": _convolution,
    "QuantDense": _dense,
    "ReLU": _relu,
    "Softmax": _softmax,
    "SpatialDropout2D": _same_value,
    "SteSign": _sign,
    "SwishSign": _sign,
    "ZeroPadding2D": _zero_padding,
}


def original(
    source: Checkpoint, *, size: int | None = None, mean: object = None, std: object = None
) -> Original:
    """The network as Keras runs it, the quantizers as Larq has them."""
    network = keras_file.read(source.path, source.head)

    def forward(x: Tensor, keep: Keep) -> Tensor:
        runner = Runner(x, network, keep)
        for layer in network.layers:
            runner.run(layer)
        return flatten(runner.values[network.output])

    return in_torch(forward)


class Runner:
    """Values by layer, NCHW or [1, n], signs being -1.0 and 1.0.

    before : for each, what its signs are the signs of: the layer that made these values, and them.
    """

    def __init__(self, x: Tensor, network: keras_file.Network, keep: Keep) -> None:
        self.keep, self.output = keep, network.output
        self.values = {network.input: x}
        self.before: dict[str, tuple[str, Tensor]] = {network.input: (INPUT, x)}
        self.signs: set[str] = set()

    def run(self, layer: Layer) -> None:
        import torch
        import torch.nn.functional as F

        config, name = layer.config, layer.name
        x, before = self.values[layer.inputs[0]], self.before[layer.inputs[0]]
        # Of what only places values: the layer that made them.
        places: tuple[str, Tensor] | None = None
        signs = layer.inputs[0] in self.signs
        stride, same = _two(config.get("strides")), str(config.get("padding")).lower() == "same"
        match layer.kind:
            case "Conv2D" | "QuantConv2D" | "DepthwiseConv2D" | "Dense" | "QuantDense":
                y = self._linear(layer, x, before, signs)
                signs = False
            case "BatchNormalization":
                arrays = {key: torch.tensor(array).double() for key, array in layer.arrays.items()}
                eps = float(config.get("epsilon", 1e-3))
                statistics = arrays["moving_mean"], arrays["moving_variance"]
                y = F.batch_norm(x, *statistics, arrays.get("gamma"), arrays.get("beta"), eps=eps)
            case "MaxPooling2D" | "AveragePooling2D":
                kernel = _two(config["pool_size"])
                stride = _two(config.get("strides") or kernel)
                pool = max_pool if layer.kind == "MaxPooling2D" else average_pool
                y = pool(x, kernel, stride, same)
                if signs:
                    places = name, pool(before[1], kernel, stride, same)
            case "GlobalAveragePooling2D":
                y = x.mean((2, 3), keepdim=bool(config.get("keepdims", False)))
            case "GlobalMaxPooling2D":
                y = x.amax((2, 3), keepdim=bool(config.get("keepdims", False)))
                if signs:
                    places = name, before[1].amax((2, 3), keepdim=True)
            case "Add":
                y = torch.stack([self.values[each] for each in layer.inputs]).sum(0)
            case "Concatenate":
                y = torch.cat([self.values[each] for each in layer.inputs], 1)
            case "ReLU":
                limit = config.get("max_value")
                y = F.leaky_relu(x, float(config.get("negative_slope") or 0))
                y = y if limit is None else y.clamp(max=float(limit))
            case "LeakyReLU":
                y = F.leaky_relu(x, float(config.get("negative_slope", config.get("alpha", 0.3))))
            case "PReLU":
                y = F.prelu(x, torch.tensor(layer.arrays["alpha"]).double().flatten())
            case "Flatten":
                y, places = flatten(x), before
            case "ZeroPadding2D":
                vertical, horizontal = np.broadcast_to(np.array(config["padding"]).T, (2, 2)).T.tolist()
                y, places = F.pad(x, (*horizontal, *vertical)), before
            case "SteSign" | "ApproxSign" | "SwishSign":
                y, places, signs = sign(x), before, True
            case _:
                y, places = x, before
        function = _name(config.get("activation"))
        if function in ("ste_sign", "approx_sign", "swish_sign", "SteSign", "ApproxSign", "SwishSign"):
            places = places or (name, y)
            y, signs = sign(y), True
        elif function in ("relu", "relu6"):
            y = F.relu(y) if function == "relu" else F.relu6(y)
            places = None
        elif function == "hard_tanh":
            y, places = y.clamp(-1, 1), None
        self.values[name], self.before[name] = y, places or (name, y)
        if signs:
            self.signs.add(name)

    def _linear(self, layer: Layer, x: Tensor, before: tuple[str, Tensor], signs: bool) -> Tensor:
        """A convolution or matrix, as TensorFlow computes it."""
        import torch
        import torch.nn.functional as F

        config = layer.config
        if config.get("input_quantizer") is not None:
            x, signs = sign(x), True
        if signs:
            self.keep(f"{before[0]}.sign", before[1])
        name = next(each for each in ("kernel", "depthwise_kernel") if each in layer.arrays)
        kernel = torch.tensor(layer.arrays[name]).double()  # the last dimension is that of the outputs
        quantizer = _name(config.get("kernel_quantizer"))
        if quantizer is not None:
            axes = tuple(range(kernel.ndim - 1))
            scale = kernel.abs().mean(axes) if quantizer.lower().startswith("magnitude") else 1.0
            kernel = sign(kernel) * scale
        bias = torch.tensor(layer.arrays["bias"]).double() if "bias" in layer.arrays else None
        if kernel.ndim == 2:
            if x.ndim == 2:
                return F.linear(x, kernel.T, bias)
            return F.linear(x.permute(0, 2, 3, 1), kernel.T, bias).permute(0, 3, 1, 2)
        stride, dilation = _two(config.get("strides")), _two(config.get("dilation_rate"))
        groups = x.shape[1] // kernel.shape[2]
        if layer.kind == "DepthwiseConv2D":
            kernel, groups = kernel.reshape(*kernel.shape[:2], 1, -1), x.shape[1]
        if str(config.get("padding")).lower() == "same":
            value = float(config.get("pad_values") or 0)
            x = pad_same(x, (kernel.shape[0], kernel.shape[1]), stride, dilation, value)
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride, 0, dilation, groups)


def _two(value: Any) -> tuple[int, int]:
    """Sizes as Keras gives them: none for 1, a number for both."""
    first, second = value if isinstance(value, list | tuple) else (value or 1, value or 1)
    return int(first), int(second)


def _name(value: Any) -> str | None:
    """Of a function or object."""
    if isinstance(value, dict):
        kind = str(value["class_name"]).split(">")[-1]
        return str(value["config"]) if kind == "function" else kind
    return value if value is None else str(value)
