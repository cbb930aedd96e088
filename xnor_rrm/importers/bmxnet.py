"""BMXNet: MXNet files whose QConvolution weights are packed.

The packed words are stored as floats of their width: bit j of word i is element i * width + j over
(Cout, Cin, kH, kW), 1 = +1. The input is padded with 0 and then binarized, >= 0 being +1, so its padding is
+1. The output is the number of agreements, (dot + n) / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..bits import pack_signs, unpack_signs
from ..errors import ConvertError
from ..model import (
    INPUT,
    Add,
    Array,
    AvgPool,
    BinaryConv2d,
    Conv2d,
    InputRule,
    Layer,
    MaxPool,
    Model,
    Relu,
    Sign,
    Window,
)
from .common.checkpoint import Checkpoint, Tensors
from .common.datasets import IMAGENET_SIZE, SIZE, SIZE_REMEDY, Scale, of_known_size, square_rule
from .common.layers import Layers
from .common.mxnet_file import LIST_MAGIC, Node, find_symbol, read_params, read_symbol
from .common.options import Option
from .common.original import Keep, Original, in_float64, in_torch

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "BMXNet .params with its symbol JSON beside it"
OPTIONS = (
    Option("symbol", "Symbol JSON of the .params file, if not the one beside it.", Path),
    SIZE,
)

SCALE = Scale((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))


def recognise(source: Checkpoint) -> bool:
    return source.head.startswith(LIST_MAGIC)


def read(source: Checkpoint, *, symbol: Path | None = None, size: int | None = None) -> Model:
    """The model; its output are the logits before the final softmax.

    Raises ConvertError for a damaged file, a missing symbol, an operator or attribute that is not known, and
    parameters that are missing, misshapen or left over.
    """
    graph = read_symbol(symbol or find_symbol(source.path))
    rule = square_rule(size or IMAGENET_SIZE, SCALE)
    builder = Builder(Tensors(read_params(source.path), source), rule)
    for node in graph:
        builder.visit(node)
    builder.tensors.finish()
    return of_known_size(Model(source.name, rule, builder.layers.finish()), size)


class Builder:
    """Layers from the nodes of a graph, visited in order of execution."""

    def __init__(self, tensors: Tensors, rule: InputRule) -> None:
        self.tensors = tensors
        self.layers = Layers((*rule.crop, rule.channels))
        #: The layer that makes each node's value; nodes that change nothing share their input's.
        self.made_by: dict[str, str] = {"data": INPUT}

    def visit(self, node: Node) -> None:
        if node.op == "null":
            return
        if node.op not in OPERATORS:
            raise ConvertError(f"operators among {', '.join(OPERATORS)}", f"{node.op} ({node.name})")
        inputs, convert = OPERATORS[node.op]
        if len(node.inputs) not in inputs:
            raise ConvertError(f"{inputs[0]} inputs of {node.op} {node.name}", str(len(node.inputs)))
        convert(self, node)
        node.finish()

    def source(self, node: Node, index: int = 0) -> str:
        """The layer that makes an input of a node."""
        name = node.inputs[index]
        if name not in self.made_by:
            raise ConvertError(f"an input of {node.op} {node.name} computed from 'data'", f"{name!r}")
        return self.made_by[name]

    def signs_of(self, source: str) -> str:
        """The Sign layer of a layer's output, itself if it is one: QConvolution binarizes what is not yet."""
        if isinstance(self.layers.get(source), Sign):
            return source
        name = f"{source}.sign"
        return name if name in self.layers else self.layers.add(Sign(name, (source,)))

    def add(self, node: Node, layer: Layer) -> None:
        self.made_by[node.name] = self.layers.add(layer)


def _same_value(builder: Builder, node: Node) -> None:
    builder.made_by[node.name] = builder.source(node)


def _elementwise_add(builder: Builder, node: Node) -> None:
    builder.add(node, Add(node.name, (builder.source(node), builder.source(node, 1))))


def _activation(builder: Builder, node: Node) -> None:
    node.require("act_type", "relu", default="none")
    builder.add(node, Relu(node.name, (builder.source(node),)))


def _q_activation(builder: Builder, node: Node) -> None:
    node.require("act_bit", "1", default="1")
    builder.add(node, Sign(node.name, (builder.source(node),)))


def _batch_norm(builder: Builder, node: Node) -> None:
    node.require("axis", "1", default="1")
    node.require("output_mean_var", "False", default="False")
    gamma: str | None
    _, gamma, beta, mean, var = node.inputs
    if node.flag("fix_gamma", True):
        builder.tensors.take(gamma, None)
        gamma = None
    eps = node.number("eps", 1e-3)
    layer = builder.tensors.take_affine(
        node.name, builder.source(node), gamma=gamma, beta=beta, mean=mean, var=var, eps=eps
    )
    builder.add(node, layer)


def _convolution(builder: Builder, node: Node) -> None:
    node.require("layout", "NCHW", default="NCHW")
    source, window, groups = builder.source(node), node.window(), node.count("num_group", 1)
    weight = builder.tensors.take(node.inputs[1], node.count("num_filter", 0), None, *window.kernel)
    bias = _bias(builder, node, len(weight))
    builder.add(node, Conv2d(node.name, (source,), weight.transpose(0, 2, 3, 1), bias, window, groups))


def _fully_connected(builder: Builder, node: Node) -> None:
    node.require("flatten", "True", default="True")
    source = builder.source(node)
    height, width, channels = builder.layers.shapes[source]
    weight = builder.tensors.take(node.inputs[1], node.count("num_hidden", 0), None)
    if weight.shape[1] != (inputs := channels * height * width):
        raise ConvertError(f"{inputs} inputs of {node.op} {node.name}", str(weight.shape[1]), SIZE_REMEDY)
    bias = _bias(builder, node, len(weight))
    kernel = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    builder.add(node, Conv2d(node.name, (source,), kernel, bias, Window((height, width))))


def _bias(builder: Builder, node: Node, size: int) -> Array:
    without = node.flag("no_bias", False)
    if len(node.inputs) != (2 if without else 3):
        raise ConvertError(f"{'no bias' if without else 'a bias'} in {node.op} {node.name}", f"{node.inputs}")
    return np.zeros(size, np.float32) if without else builder.tensors.take(node.inputs[2], size)


def _q_convolution(builder: Builder, node: Node) -> None:
    node.require("binarized_weights_only", "True", default="False")
    node.require("act_bit", "1", default="1")
    node.require("weight_bit", "1", default="1")
    node.require("scaling_mode", "none", default="none")
    node.require("no_bias", "True", default="True")
    node.require("num_group", "1", default="1")
    node.require("layout", "NCHW", default="NCHW")
    source, window, filters = builder.source(node), node.window(), node.count("num_filter", 0)
    channels = builder.layers.shapes[source][2]
    shape = (filters, channels, *window.kernel)
    total, n = math.prod(shape), math.prod(shape[1:])
    words = builder.tensors.take_raw(node.inputs[1])
    if words.nbytes * 8 != total:
        raise ConvertError(f"{total} bits in {node.inputs[1]!r}", f"{words.nbytes * 8}")
    signs = unpack_signs(words.reshape(-1).view(np.uint8), total).reshape(shape).transpose(0, 2, 3, 1)
    layer = BinaryConv2d(
        node.name,
        (builder.signs_of(source),),
        weight=pack_signs(signs),
        alpha=np.full(filters, 0.5, np.float32),
        bias=np.full(filters, n / 2, np.float32),
        channels=channels,
        window=window,
        pad_value=1,
    )
    builder.add(node, layer)


def _pooling(builder: Builder, node: Node) -> None:
    node.require("pooling_convention", "valid", default="valid")
    node.require("count_include_pad", "True", default="True")
    source, window = builder.source(node), node.window()
    if node.flag("global_pool", False):
        window = Window(builder.layers.shapes[source][:2])
    kind = {"max": MaxPool, "avg": AvgPool}.get(found := node.text("pool_type", "max"))
    if kind is None:
        raise ConvertError(f"pool_type max or avg in {node.op} {node.name}", found)
    builder.add(node, kind(node.name, (source,), window))


#: By operator: the numbers of inputs it may have, and what it becomes.
OPERATORS: dict[str, tuple[tuple[int, ...], Callable[[Builder, Node], None]]] = {
    "Activation": ((1,), _activation),
    "BatchNorm": ((5,), _batch_norm),
    "Convolution": ((2, 3), _convolution),
    "Flatten": ((1,), _same_value),
    "FullyConnected": ((2, 3), _fully_connected),
    "Pooling": ((1,), _pooling),
    "QActivation": ((1,), _q_activation),
    "QConvolution": ((2,), _q_convolution),
    "SoftmaxOutput": ((1, 2), _same_value),
    "elemwise_add": ((2,), _elementwise_add),
}


def original(source: Checkpoint, *, symbol: Path | None = None, size: int | None = None) -> Original:
    """The graph as BMXNet runs it, node by node, the packed weights as floats of -1 and +1."""
    import torch
    import torch.nn.functional as F

    del size
    path = symbol or find_symbol(source.path)
    arrays = read_params(source.path)
    state = in_float64(arrays)

    def q_weight(node: Node, shape: tuple[int, ...]) -> Tensor:
        bits = np.unpackbits(arrays[node.inputs[1]].reshape(-1).view(np.uint8), bitorder="little")
        return torch.from_numpy(2.0 * bits - 1).reshape(node.count("num_filter", 0), *shape)

    def q_convolution(node: Node, x: Tensor) -> Tensor:
        pad = node.pair("pad", 0)
        x = F.pad(x, (pad[1], pad[1], pad[0], pad[0]))
        signs = torch.where(x >= 0, 1.0, -1.0).double()
        weight = q_weight(node, (x.shape[1], *node.pair("kernel", 0)))
        dot = F.conv2d(signs, weight, None, node.pair("stride", 1), 0, node.pair("dilate", 1))
        return (dot + weight[0].numel()) / 2

    def pooling(node: Node, x: Tensor) -> Tensor:
        maximum = node.text("pool_type", "max") == "max"
        if node.flag("global_pool", False):
            return x.amax((2, 3), keepdim=True) if maximum else x.mean((2, 3), keepdim=True)
        pool = F.max_pool2d if maximum else F.avg_pool2d
        return pool(x, node.pair("kernel", 0), node.pair("stride", 1), node.pair("pad", 0))

    def batch_norm(node: Node, x: Tensor) -> Tensor:
        gamma, beta, mean, var = (state[name] for name in node.inputs[1:])
        weight = None if node.flag("fix_gamma", True) else gamma
        return F.batch_norm(x, mean, var, weight, beta, eps=node.number("eps", 1e-3))

    def convolution(node: Node, x: Tensor) -> Tensor:
        weight, *biases = (state[name] for name in node.inputs[1:])
        bias = biases[0] if biases else None
        stride, pad, dilate = node.pair("stride", 1), node.pair("pad", 0), node.pair("dilate", 1)
        return F.conv2d(x, weight, bias, stride, pad, dilate, node.count("num_group", 1))

    def forward(x: Tensor, keep: Keep) -> Tensor:
        values: dict[str, Tensor] = {"data": x}
        #: The nodes that only pass a value on, by the node that made it; the makers of signs.
        made_by: dict[str, str] = {}
        signs: set[str] = set()
        for node in read_symbol(path):
            if node.op == "null":
                continue
            first = node.inputs[0]
            x, maker = values[first], made_by.get(first, first)
            match node.op:
                case "QActivation":
                    values[node.name] = torch.where(keep(node.name, x) >= 0, 1.0, -1.0).double()
                    signs.add(node.name)
                case "QConvolution":
                    if maker not in signs:
                        keep(f"{INPUT if maker == 'data' else maker}.sign", x)
                    values[node.name] = q_convolution(node, x)
                case "Convolution":
                    values[node.name] = convolution(node, x)
                case "FullyConnected":
                    weight, *bias = (state[name] for name in node.inputs[1:])
                    values[node.name] = F.linear(x.flatten(1), weight, *bias)
                case "BatchNorm":
                    values[node.name] = batch_norm(node, x)
                case "Activation":
                    values[node.name] = F.relu(x)
                case "Pooling":
                    values[node.name] = pooling(node, x)
                case "elemwise_add":
                    values[node.name] = x + values[node.inputs[1]]
                case _:  # Flatten, SoftmaxOutput: the value itself
                    values[node.name], made_by[node.name] = x, maker
        *_, output = values.values()
        return output

    return in_torch(forward)
