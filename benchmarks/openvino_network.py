"""A whole network in OpenVINO, on one thread: the same binary graph as ours, for `bench` to take turns with.

Float layers are OpenVINO's, a binary convolution is a BinaryConvolution, a `Sign` is a FakeQuantize of two
levels, the batch-norms before it folded into its limits. OpenVINO rounds the float layers in its own order:
logits agree up to rounding, and to the few signs that rounding turns. `check` holds each binary convolution
to exact integers on what OpenVINO itself had before its signs.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from xnor_rrm.bench import Logits
from xnor_rrm.bits import unpack_signs
from xnor_rrm.frames import Frame
from xnor_rrm.model import (
    INPUT,
    Add,
    Affine,
    AvgPool,
    BinaryConv2d,
    Clip,
    Concat,
    Conv2d,
    Layer,
    MaxPool,
    Model,
    PRelu,
    Relu,
    Sign,
    Window,
)
from xnor_rrm.preprocess import Preprocessor

from .peers import ONE_THREAD, openvino_binary_convolution
from .timing import median_ms, quartiles_ms, timed_ns

Array = npt.NDArray[Any]
#: Scales and shifts per channel, applied one after the other: y = x * scale + shift, each rounded.
Chain = tuple[tuple[Array, Array], ...]

#: Values between which a sign's limits are looked for, and the least that is not denormal.
FURTHEST, SMALLEST = np.float32(2.0**100), np.finfo(np.float32).tiny


class OpenVinoNetwork:
    """A model as a compiled OpenVINO graph; NCHW inside, float32, latency before throughput.

    Called with float32[H, W, C], the preprocessed input, it returns float32[classes]; in parts, `load`,
    `infer` and `logits`, so that only the second need be timed. Raises ValueError for what OpenVINO computes
    wrongly, input channels of a binary layer that are no multiple of 8, and for Upsample, not built here.
    """

    def __init__(self, model: Model) -> None:
        self._graph = _Graph(model)
        self._request = _compiled(self._graph, [self._graph.values[model.layers[-1].name]])
        height, width, channels = model.input_shape
        self._input = np.zeros((1, channels, height, width), np.float32)
        self._request.set_input_tensor(_shared(self._input))

    def load(self, values: Any) -> None:
        """Put float32[H, W, C] where the graph reads it."""
        self._input[0] = values.transpose(2, 0, 1)

    def infer(self) -> None:
        """Run the graph on what was loaded."""
        self._request.infer()

    def logits(self) -> Any:
        """float32[classes] of the last run."""
        return self._request.get_output_tensor(0).data[0].transpose(1, 2, 0).flatten()

    def __call__(self, values: Any) -> Any:
        self.load(values)
        self.infer()
        return self.logits()

    def nodes(self) -> dict[str, str]:
        """Name of each node as it runs, and how: its type and its implementation."""
        graph = self._request.get_compiled_model().get_runtime_model()
        infos = {node.get_friendly_name(): node.get_rt_info() for node in graph.get_ops()}
        return {n: f"{i['layerType'].astype(str)} {i['primitiveType'].astype(str)}" for n, i in infos.items()}


class OpenVinoLane:
    """`peer` of `bench`: only the network is timed.

    network : of the model, warmed up by a first call that is not timed.
    """

    def __init__(self, model: Model, network: OpenVinoNetwork) -> None:
        self._preprocess, self._table = Preprocessor(model.input_rule), model.input_rule.table()
        self._network = network
        self._nanoseconds: list[int] = []
        self._same: list[bool] = []

    def __call__(self, frame: Frame, logits: Logits) -> None:
        self._network.load(self._table[self._preprocess(frame), np.arange(self._table.shape[1])])
        if not self._nanoseconds:
            self._network.infer()
        self._nanoseconds.append(timed_ns(self._network.infer))
        self._same.append(bool(self._network.logits().argmax() == logits.argmax()))

    def facts(self) -> dict[str, Any]:
        """openvino_ms : median, and quartiles_ms, all but the first frame, as `bench` has it.

        openvino_same_top1 : share of all frames for which it and ours named the same first class.
        """
        settled = self._nanoseconds[1:] or self._nanoseconds
        return {
            "openvino_ms": median_ms(settled),
            "quartiles_ms": quartiles_ms(settled),
            "openvino_same_top1": round(sum(self._same) / len(self._same), 5),
        }


def check(model: Model, values: Any) -> dict[str, int]:
    """Raises ArithmeticError where a BinaryConvolution is not the exact sum over the signs of what it read.

    values : float32[H, W, C], the network's input. The graph is compiled with all these tensors as outputs,
    so that fewer layers are fused than in `OpenVinoNetwork`. Returns the number of sums compared, by layer.
    """
    graph = _Graph(model)
    binary = [layer for layer in model.layers if isinstance(layer, BinaryConv2d)]
    before = [graph.before_sign(layer.inputs[0]) for layer in binary]
    nodes = [graph.dots[layer.name] for layer in binary] + [node for node, _ in before]
    request = _compiled(graph, nodes)
    nchw = np.ascontiguousarray(values.transpose(2, 0, 1)[None])  # named: the tensor does not keep it alive
    request.set_input_tensor(_shared(nchw))
    request.infer()
    tensors = [request.get_output_tensor(i).data[0].transpose(1, 2, 0) for i in range(len(nodes))]
    compared = {}
    for index, layer in enumerate(binary):
        dots, read = tensors[index], tensors[len(binary) + index]
        if not np.array_equal(dots, exact_dots(_signs(read, before[index][1]), layer)):
            raise ArithmeticError(f"OpenVINO's {layer.name} is not the sum over the signs it read")
        compared[layer.name] = int(dots.size)
    return compared


def exact_dots(signs: Any, layer: BinaryConv2d) -> Any:
    """int64[Ho, Wo, Cout] of bool[H, W, Cin], by plain integer sums, True being +1."""
    top, bottom, left, right = layer.window.padding
    (kh, kw), (sh, sw), (dh, dw) = layer.window.kernel, layer.window.stride, layer.window.dilation
    values = np.where(signs, 1.0, -1.0)  # float64: every sum of fewer than 2 ** 53 signs is exact
    padded = np.pad(values, ((top, bottom), (left, right), (0, 0)), constant_values=layer.pad_value)
    weights = np.where(unpack_signs(layer.weight, layer.channels), 1.0, -1.0)
    high, wide = layer.window.output_size(*signs.shape[:2], layer.name)
    total = np.zeros((high, wide, len(weights)))
    for ky in range(kh):
        for kx in range(kw):
            y, x = ky * dh, kx * dw
            tap = padded[y : y + (high - 1) * sh + 1 : sh, x : x + (wide - 1) * sw + 1 : sw]
            total += tap @ weights[:, ky, kx].T
    return total.astype(np.int64)


def sign_limits(chain: Chain, channels: int) -> tuple[Array, Array]:
    """float32[C] and bool[C]: the sign of the chain is +1 where x > limit, or where x <= limit if `falling`.

    Exactly, by looking for the one place among all float32 where the chain changes its sign: FakeQuantize
    compares x > limit, a sign x >= 0, and OpenVINO's own folding rounds the limit.
    """

    def values(keys: Array) -> Array:  # floats in order of size, numbered from that of 0
        return np.copysign(np.abs(keys).astype(np.int32).view(np.float32), keys).astype(np.float32)

    furthest = int(FURTHEST.view(np.int32))
    low, high = (np.full(channels, key, np.int64) for key in (-furthest, furthest))
    at_low, at_high = (_signs(values(keys), chain) for keys in (low, high))
    while (high - low > 1).any():  # the chain's sign at `low` is that at the lowest, at `high` another
        middle = (low + high) // 2
        same = _signs(values(middle), chain) == at_low
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    limits = values(low)
    limits = np.where((limits < 0) & (limits > -SMALLEST), -SMALLEST, limits)  # denormals may count as 0
    limits = np.where((limits > 0) & (limits < SMALLEST), np.float32(0), limits)
    constant = at_low == at_high
    limits = np.where(constant, np.where(at_low, -FURTHEST, FURTHEST), limits).astype(np.float32)
    return limits, at_low & ~constant


def _signs(x: Array, chain: Chain) -> Array:
    """bool[..., C] of float32[..., C]: whether what the chain makes of x is at least 0."""
    with np.errstate(over="ignore"):
        for scale, shift in chain:
            x = x * scale + shift
    signs: Array = x >= 0
    return signs


# --- the graph ------------------------------------------------------------------------------------


class _Graph:
    """A model as OpenVINO nodes. source : Parameter.  values : of each layer.  dots : of binary layers.

    buffers : packed weights, which the graph's constants share; they must live as long as it.
    kept : outputs of one value each. Where an addition behind a BinaryConvolution has a FakeQuantize as its
        only reader, OpenVINO 2026.4 fuses all three and answers wrongly; with another reader it does not.
    """

    def __init__(self, model: Model) -> None:
        from openvino import opset1 as ops

        self._ops = ops
        height, width, channels = model.input_shape
        self.source = ops.parameter([1, channels, height, width], np.float32)
        self.values: dict[str, Any] = {INPUT: self.source}
        self.dots: dict[str, Any] = {}
        self.buffers: list[Any] = []
        self.kept: list[Any] = []
        self._model = {layer.name: layer for layer in model.layers}
        self._shapes = model.shapes
        readers = Counter(name for layer in model.layers for name in layer.inputs)
        for layer in model.layers:
            node = self._node(layer, *(self.values[name] for name in layer.inputs))
            self.values[layer.name] = node
            if isinstance(layer, Add) and readers[layer.name] == 1:
                self.kept.append(ops.strided_slice(node, [0] * 4, [1] * 4, [1] * 4, [0] * 4, [0] * 4))

    def _node(self, layer: Layer, *inputs: Any) -> Any:
        ops = self._ops
        match layer:
            case Conv2d():
                return self._convolution(layer, *inputs)
            case BinaryConv2d():
                return self._binary_convolution(layer, *inputs)
            case Affine(scale=scale, shift=shift):
                return self._affine(inputs[0], scale, shift)
            case Relu():
                return ops.relu(inputs[0])
            case PRelu(slope=slope):
                return ops.prelu(inputs[0], ops.constant(slope))
            case Clip(low=low, high=high):
                return ops.clamp(inputs[0], low, high)
            case Sign():
                return self._sign(layer)
            case Add():
                return ops.add(*inputs)
            case Concat():
                return ops.concat(list(inputs), 1)
            case AvgPool(window=window):  # before MaxPool, of which it is one
                begins, ends = _pads(window)
                excluded = not layer.count_padding
                return ops.avg_pool(
                    inputs[0], list(window.stride), begins, ends, list(window.kernel), excluded
                )
            case MaxPool(window=window):
                begins, ends = _pads(window)
                return ops.max_pool(inputs[0], list(window.stride), begins, ends, list(window.kernel))
        raise ValueError(f"no OpenVINO graph is built here for {type(layer).__name__} ({layer.name})")

    def before_sign(self, name: str) -> tuple[Any, Chain]:
        """The node that a Sign layer `name` is taken of, batch-norms aside, and these as a chain.

        Of a binary convolution that is the sum itself, its alpha and bias being in the chain.
        """
        layer, chain = self._model[self._model[name].inputs[0]], list[tuple[Array, Array]]()
        while isinstance(layer, Affine) and layer.inputs[0] in self._model:
            chain.insert(0, (layer.scale, layer.shift))
            layer = self._model[layer.inputs[0]]
        if isinstance(layer, BinaryConv2d):
            return self.dots[layer.name], ((layer.alpha, layer.bias), *chain)
        return self.values[layer.name], tuple(chain)

    def _sign(self, layer: Sign) -> Any:
        ops = self._ops
        node, chain = self.before_sign(layer.name)
        limits, falling = sign_limits(chain, self._shapes[layer.name][2])
        limit = ops.constant(_per_channel(limits))
        low, high = (ops.constant(_per_channel(value)) for value in (falling, ~falling))
        return ops.fake_quantize(node, limit, limit, low, high, 2)

    def _convolution(self, layer: Conv2d, x: Any) -> Any:
        ops, (begins, ends) = self._ops, _pads(layer.window)
        geometry = (list(layer.window.stride), begins, ends, list(layer.window.dilation))
        weight = np.ascontiguousarray(layer.weight.transpose(0, 3, 1, 2))  # [Cout, Cin / groups, kH, kW]
        if layer.groups == 1:
            y = ops.convolution(x, ops.constant(weight), *geometry)
        else:
            grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
            y = ops.group_convolution(x, ops.constant(grouped), *geometry)
        return self._affine(y, np.ones_like(layer.bias), layer.bias)

    def _binary_convolution(self, layer: BinaryConv2d, x: Any) -> Any:
        if layer.channels % 8:
            raise ValueError(f"OpenVINO errs where Cin is no multiple of 8; {layer.name}: {layer.channels}")
        window, bits = layer.window, unpack_signs(layer.weight, layer.channels).transpose(0, 3, 1, 2)
        y, buffer = openvino_binary_convolution(
            x, bits, window.stride, window.padding, window.dilation, layer.pad_value
        )
        self.buffers.append(buffer)
        self.dots[layer.name] = y
        return self._affine(y, layer.alpha, layer.bias)

    def _affine(self, x: Any, scale: Any, shift: Any) -> Any:
        """x * scale + shift, each where it does anything."""
        ops = self._ops
        if (scale != 1).any():
            x = ops.multiply(x, ops.constant(_per_channel(scale)))
        if (shift != 0).any():
            x = ops.add(x, ops.constant(_per_channel(shift)))
        return x


def _pads(window: Window) -> tuple[list[int], list[int]]:
    """Padding above and left, and below and right."""
    top, bottom, left, right = window.padding
    return [top, left], [bottom, right]


def _per_channel(values: Any) -> Any:
    return np.ascontiguousarray(values, np.float32)[None, :, None, None]


def _compiled(graph: _Graph, outputs: list[Any]) -> Any:
    import openvino as ov

    options = {**ONE_THREAD, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return (
        ov.Core()
        .compile_model(ov.Model([*outputs, *graph.kept], [graph.source]), "CPU", options)
        .create_infer_request()
    )


def _shared(array: Any) -> Any:
    import openvino as ov

    return ov.Tensor(array, shared_memory=True)
