"""ONNX graphs of binary networks, QONNX's BipolarQuant included.

Convolutions and linear layers whose input is a sign are binary. A sign is Sign, BipolarQuant (>= 0 is +1), or
a comparison with a constant that becomes two opposite numbers, by Where or by arithmetic. Weights may be
computed from constants: what depends on nothing else is evaluated first. x / c is taken as x times
float32(1 / c). Logits are the input of a final softmax.

The original takes sign(0) = 0 where it is Sign: see common/zeros.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ConvertError, XnorError
from ..model import Array, Model, Shape
from .common import onnx_constants, onnx_file
from .common.checkpoint import Checkpoint, Tensors
from .common.datasets import MEAN, SIZE, STD, usual_rule, whole_size
from .common.graph import Lowering, Node, Refused, Sides
from .common.graph_original import Step, Values, graph_original
from .common.operations import MIRRORED, OPERATIONS, Pair
from .common.original import Original

TITLE = "ONNX .onnx"
OPTIONS = (SIZE, MEAN, STD)

#: What may follow the version in a ModelProto, as protobuf tags: producer, domain, description, graph, opset.
FIELDS = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)

#: Arrays made may take this many bytes, and this many times the file's.
BUDGET, GROWTH = 1 << 26, 16


def recognise(source: Checkpoint) -> bool:
    """A ModelProto: its version, a small number, then the producer, domain, graph or opset."""
    head = source.head
    return len(head) > 2 and head[0] == 0x08 and 3 <= head[1] <= 64 and head[2] in FIELDS


def read(source: Checkpoint, *, size: int | None = None, mean: Any = None, std: Any = None) -> Model:
    """The model; its output are the logits before a final softmax.

    Raises ConvertError for a damaged file, an operator or attribute that is not known, and weights under a
    sign that are not binary.
    """
    graph = onnx_file.read(source.path)
    source.sizes.update({name: array.nbytes for name, array in graph.constants.items()})
    Tensors({name: graph.constants[name] for name in graph.unread}, source).finish()
    shape = input_shape(graph, size)
    rule = usual_rule(shape, mean, std)
    builder = Builder(graph, shape, BUDGET + GROWTH * source.path.stat().st_size)
    for node in graph.nodes:
        builder.visit(node)
    return builder.lowering.finish(builder.output(graph.output), source.name, rule)


def input_shape(graph: onnx_file.Graph, size: int | None) -> Shape:
    """(H, W, C) of the input, a batch of one NCHW image. Raises ConvertError where it is none, or open."""
    if len(graph.dims) != 4 or graph.dims[0] not in (0, 1):
        remedy = "Export with a batch of 1, or an open one."
        raise ConvertError("an input of shape (1, C, H, W)", f"{graph.dims}", remedy)
    _, channels, height, width = graph.dims
    return (*whole_size(height, width, size), channels)


class Builder:
    """Fills the lowering's form from nodes visited in order; evaluates those of constants."""

    def __init__(self, graph: onnx_file.Graph, shape: Shape, budget: int) -> None:
        self.constants = dict(graph.constants)
        self.lowering = Lowering(graph.input, shape, OPERATIONS, budget)

    def visit(self, node: onnx_file.Node) -> None:
        """What is wrong with a node is told once its value is needed."""
        try:
            self._visit(node)
        except XnorError as error:
            self.lowering.refuse(node.output, error)
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            got = f"{node.where}, of {len(node.inputs)} inputs"
            self.lowering.refuse(node.output, ConvertError("operands of the right shapes", f"{got}: {error}"))

    def output(self, name: str) -> str:
        if name not in self.lowering.values:
            raise ConvertError("an output computed from the input", repr(name))
        return name

    def _visit(self, node: onnx_file.Node) -> None:
        for name in node.inputs:
            value = self.lowering.values.get(name)
            if isinstance(value, Refused) and node.op not in (
                "Add",
                "Sub",
                "Identity",
            ):  # which may cancel it
                raise value.error
        known = all(name in self.constants for name in node.inputs if name)
        if node.op == "Shape":
            self.constants[node.output] = self._shape(node)
        elif known and node.op in onnx_constants.OPERATORS:
            inputs = [self.constants[name] if name else None for name in node.inputs]
            place = Node("constant", node.output, (), node.where)
            self.constants[node.output] = onnx_constants.evaluate(
                node, inputs, lambda size: self.lowering.spend(size, place)
            )
        elif node.op in OPERATORS:
            OPERATORS[node.op](self, node)
        else:
            raise ConvertError(f"operators among {', '.join(OPERATORS)}", node.where)
        node.finish()

    def _shape(self, node: onnx_file.Node) -> Array:
        name = (*node.inputs, "")[0]
        if name not in self.constants:
            self.computed(node)
        shape = self.constants[name].shape if name in self.constants else self.lowering.shape(name)
        start, end = node.integer("start", 0), node.integer("end", len(shape))
        return np.array(shape[start:end], np.int64)

    # What operators are made of

    def add(self, node: onnx_file.Node, op: str, *inputs: str, **constants: Any) -> None:
        self.lowering.add(Node(op, node.output, inputs, node.where, constants))

    def constant(self, node: onnx_file.Node, index: int) -> Array:
        if (value := self.optional(node, index)) is None:
            raise ConvertError(f"{index + 1} inputs of {node.where}", f"{len(node.inputs)}")
        return value

    def optional(self, node: onnx_file.Node, index: int) -> Array | None:
        """An input that must be constant, None where it is left out."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name and name not in self.constants:
            raise ConvertError(f"a constant as input {index} of {node.where}", f"{name!r}, which is computed")
        return self.constants[name] if name else None

    def numbers(self, node: onnx_file.Node, index: int) -> tuple[int, ...] | None:
        """A constant vector of integers, such as axes."""
        value = self.optional(node, index)
        if value is not None and (value.dtype.kind not in "iu" or value.ndim > 1 or value.size > 64):
            raise ConvertError(f"a few integers as input {index} of {node.where}", f"{value.dtype.name}")
        return None if value is None else tuple(int(number) for number in value.reshape(-1))

    def scalar(self, node: onnx_file.Node, index: int) -> float | None:
        """A constant number, or an array that holds one number only."""
        value = self.optional(node, index)
        if value is not None and (value.size < 1 or not (value == value.flat[0]).all()):
            raise ConvertError(f"one number as input {index} of {node.where}", f"{list(value.shape)}")
        return None if value is None else float(value.flat[0])

    def computed(self, node: onnx_file.Node, count: int = 1) -> list[str]:
        """The first inputs, which depend on the network's input."""
        names = node.inputs[:count]
        if len(names) < count or any(name not in self.lowering.values for name in names):
            raise ConvertError(f"{count} inputs of {node.where} computed from the network's", f"{names}")
        return names

    def split(self, node: onnx_file.Node) -> tuple[str, Array | None, bool]:
        """Of two inputs: the first that is computed, the constant one if any, and whether that is first."""
        if len(node.inputs) != 2:
            raise ConvertError(f"2 inputs of {node.where}", f"{len(node.inputs)}")
        first, second = node.inputs
        if first in self.constants:
            return second, self.constants[first], True
        return first, self.constants.get(second), False

    def window(self, node: onnx_file.Node, source: str, kernel: Pair | None) -> dict[str, Any]:
        """kernel (given, or an attribute), stride, padding and dilation."""
        shape = node.integers("kernel_shape", kernel or ())
        if len(shape) != 2 or (kernel and shape != kernel):
            raise ConvertError(f"a two-dimensional kernel in {node.where}", f"{shape}")
        stride, dilation = node.integers("strides", (1, 1)), node.integers("dilations", (1, 1))
        pads, auto = node.integers("pads", (0, 0, 0, 0)), node.text("auto_pad", "NOTSET")
        if (len(stride), len(dilation), len(pads)) != (2, 2, 4) or min(*stride, *dilation, *shape) < 1:
            raise ConvertError(f"a two-dimensional window in {node.where}", f"{stride}, {dilation}, {pads}")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            size = self.lowering.shape(source)[2:]
            pads = _same_padding(size, shape, stride, dilation, upper=auto == "SAME_UPPER")
        elif auto not in ("NOTSET", "VALID"):
            raise ConvertError(f"a known auto_pad in {node.where}", auto)
        padding = pads[0], pads[2], pads[1], pads[3]
        return {"kernel": shape, "stride": stride, "padding": padding, "dilation": dilation}


def _same_padding(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], upper: bool
) -> tuple[int, ...]:
    """(top, left, bottom, right) such that each output side is the input's over the stride, rounded up."""
    totals = [
        max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*small, *large) if upper else (*large, *small)


# Operators


def _same(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "same", *b.computed(node))


def _dropout(b: Builder, node: onnx_file.Node) -> None:
    node.number("ratio", 0.5)
    node.integer("seed", 0)
    if b.scalar(node, 2):
        raise ConvertError(f"training_mode 0 in {node.where}", "1")
    _same(b, node)


def _cast(b: Builder, node: onnx_file.Node) -> None:
    target = node.integer("to", 0)
    node.integer("saturate", 1)
    if target != onnx_file.FLOAT and target not in onnx_file.INTEGERS:
        raise ConvertError(f"a cast to float32 or integers in {node.where}", f"type {target}")
    b.add(node, "same" if target == onnx_file.FLOAT else "integers", *b.computed(node))


def _sign(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "sign", *b.computed(node), three_valued=True)


def _bipolar_quant(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "sign", *b.computed(node), three_valued=False, scale=b.constant(node, 1))


def _comparison(relation: str) -> Callable[[Builder, onnx_file.Node], None]:
    def convert(b: Builder, node: onnx_file.Node) -> None:
        source, threshold, first = b.split(node)
        if threshold is None:
            raise ConvertError(f"a comparison with a constant in {node.where}", "two computed values")
        b.add(
            node, "compare", source, relation=MIRRORED[relation] if first else relation, threshold=threshold
        )

    return convert


def _where(b: Builder, node: onnx_file.Node) -> None:
    when, otherwise = b.constant(node, 1), b.constant(node, 2)
    b.add(node, "select", *b.computed(node), when=when, otherwise=otherwise)


def _not(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "select", *b.computed(node), when=0.0, otherwise=1.0)


def _add(b: Builder, node: onnx_file.Node) -> None:
    source, constant, _ = b.split(node)
    if constant is None:
        b.add(node, "add", *b.computed(node, 2))
    else:
        b.add(node, "plus", source, term=constant)


def _sub(b: Builder, node: onnx_file.Node) -> None:
    source, constant, first = b.split(node)
    if constant is None:
        b.add(node, "subtract", *b.computed(node, 2))
    elif first:
        negated = Node("multiply", f"{node.output}.negated", (source,), node.where, {"factor": -1.0})
        b.lowering.add(negated)
        b.add(node, "plus", negated.name, term=constant)
    else:
        b.add(node, "plus", source, term=-constant)


def _mul(b: Builder, node: onnx_file.Node) -> None:
    source, constant, _ = b.split(node)
    if constant is None:
        raise ConvertError(f"a constant factor in {node.where}", "two computed values")
    b.add(node, "multiply", source, factor=constant)


def _div(b: Builder, node: onnx_file.Node) -> None:
    source, constant, first = b.split(node)
    if constant is None or first or constant.dtype != np.float32 or not constant.all():
        raise ConvertError(f"a constant float32 divisor, not 0, in {node.where}", "another")
    b.add(node, "multiply", source, factor=(1 / constant.astype(np.float64)).astype(np.float32))


def _neg(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "multiply", *b.computed(node), factor=-1.0)


def _relu(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "relu", *b.computed(node))


def _prelu(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "prelu", *b.computed(node), slope=b.constant(node, 1))


def _leaky_relu(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "prelu", *b.computed(node), slope=np.float32(node.number("alpha", 0.01)))


def _clip(b: Builder, node: onnx_file.Node) -> None:
    """The limits were attributes up to opset 10, and have been inputs since."""
    low = node.number("min", 0) if node.has("min") else b.scalar(node, 1)
    high = node.number("max", 0) if node.has("max") else b.scalar(node, 2)
    b.add(node, "clip", *b.computed(node), low=low, high=high)


def _batch_norm(b: Builder, node: onnx_file.Node) -> None:
    node.require("training_mode", 0, default=0)
    node.require("spatial", 1, default=1)
    node.number("momentum", 0.9)
    eps = node.number("epsilon", 1e-5)
    gamma, beta, mean, var = (b.constant(node, index) for index in range(1, 5))
    b.add(node, "batch_norm", *b.computed(node), gamma=gamma, beta=beta, mean=mean, var=var, eps=eps)


def _conv(b: Builder, node: onnx_file.Node) -> None:
    source, weight, bias = *b.computed(node), b.constant(node, 1), b.optional(node, 2)
    if weight.ndim != 4:
        raise ConvertError(f"a two-dimensional convolution in {node.where}", f"{list(weight.shape)}")
    window, groups = b.window(node, source, (weight.shape[2], weight.shape[3])), node.integer("group", 1)
    del window["kernel"]
    b.add(node, "conv", source, weight=weight, bias=bias, groups=groups, **window)


def _gemm(b: Builder, node: onnx_file.Node) -> None:
    node.require("transA", 0, default=0)
    alpha, beta = np.float32(node.number("alpha", 1)), np.float32(node.number("beta", 1))
    weight, bias = b.constant(node, 1), b.optional(node, 2)
    weight = weight if node.integer("transB", 0) else weight.T
    if alpha != 1:
        b.lowering.spend(weight.nbytes, Node("gemm", node.output, (), node.where))
        weight = weight * alpha
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1) * beta, weight.shape[:1])
    b.add(node, "linear", *b.computed(node), weight=weight, bias=bias)


def _matmul(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "linear", *b.computed(node), weight=b.constant(node, 1).T, bias=None)


def _max_pool(b: Builder, node: onnx_file.Node) -> None:
    node.require("storage_order", 0, default=0)
    source, ceil = *b.computed(node), bool(node.integer("ceil_mode", 0))
    b.add(node, "max_pool", source, ceil=ceil, **b.window(node, source, None))


def _average_pool(b: Builder, node: onnx_file.Node) -> None:
    source, ceil = *b.computed(node), bool(node.integer("ceil_mode", 0))
    counted, window = bool(node.integer("count_include_pad", 0)), b.window(node, source, None)
    if window.pop("dilation") != (1, 1):
        raise ConvertError(f"no dilation in {node.where}", "some")
    b.add(node, "average_pool", source, ceil=ceil, count_padding=counted, **window)


def _global_average_pool(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "mean", *b.computed(node))


def _global_max_pool(b: Builder, node: onnx_file.Node) -> None:
    b.add(node, "largest", *b.computed(node))


def _reduce_mean(b: Builder, node: onnx_file.Node) -> None:
    """The axes were an attribute up to opset 17, and have been an input since."""
    axes = node.integers("axes", b.numbers(node, 1) or ())
    node.integer("noop_with_empty_axes", 0)
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise ConvertError(f"height and width as the axes of {node.where}", f"{axes}")
    b.add(node, "mean", *b.computed(node), flat=not node.integer("keepdims", 1))


def _concat(b: Builder, node: onnx_file.Node) -> None:
    sources = b.computed(node, len(node.inputs))
    axis = node.integer("axis", 0)
    if axis != 1 and axis + len(b.lowering.shape(sources[0])) != 1:
        raise ConvertError(f"a concatenation of channels in {node.where}", f"axis {axis}")
    b.add(node, "concat", *sources)


def _flatten(b: Builder, node: onnx_file.Node) -> None:
    axis, (source,) = node.integer("axis", 1), b.computed(node)
    if axis not in (1, 1 - len(b.lowering.shape(source))):
        raise ConvertError(f"axis 1 in {node.where}", f"{axis}")
    b.add(node, "flatten", source)


def _reshape(b: Builder, node: onnx_file.Node) -> None:
    (source,), wanted = b.computed(node), b.numbers(node, 1) or ()
    shape = b.lowering.shape(source)
    keep_zeros = node.integer("allowzero", 0)
    sizes = [
        shape[i] if size == 0 and not keep_zeros and i < len(shape) else size for i, size in enumerate(wanted)
    ]
    b.add(node, "reshape", source, shape=tuple(sizes))


def _squeeze(b: Builder, node: onnx_file.Node) -> None:
    """Height and width of 1, both or one by one. The axes were an attribute up to opset 12."""
    (source,) = b.computed(node)
    shape, axes = b.lowering.shape(source), node.integers("axes", b.numbers(node, 1) or ())
    ones = {2, 3, -1, -2} if shape[2:] in ((), (1, 1)) and shape[1] > 1 else set()
    if not axes or not set(axes) <= ones:
        raise ConvertError(f"height and width of 1 taken away in {node.where}", f"axes {axes} of {shape}")
    b.add(node, "flatten", source)


def _pad(b: Builder, node: onnx_file.Node) -> None:
    """Amounts and value were attributes up to opset 10, and have been inputs since."""
    node.require("mode", "constant", default="constant")
    pads = node.integers("pads", b.numbers(node, 1) or ())
    value = node.number("value", b.scalar(node, 2) or 0.0)
    axes = tuple(axis % 4 for axis in b.numbers(node, 3) or range(len(pads) // 2))
    if (
        len(pads) != 2 * len(axes)
        or len(set(axes)) != len(axes)
        or not {1, 2, 3} >= {axis for i, axis in enumerate(axes) if pads[i] or pads[i + len(axes)]}
    ):
        raise ConvertError(f"padding of height, width and channels in {node.where}", f"{pads} of axes {axes}")
    before, after = dict(zip(axes, pads, strict=False)), dict(zip(axes, pads[len(axes) :], strict=False))
    sides: Sides = (before.get(2, 0), after.get(2, 0), before.get(3, 0), after.get(3, 0))
    channels = before.get(1, 0), after.get(1, 0)
    b.add(node, "pad", *b.computed(node), padding=sides, value=value, channels=channels)


def _slice(b: Builder, node: onnx_file.Node) -> None:
    """Every second row and column, or every third. Attributes up to opset 9 knew no steps."""
    (source,), (first, last, axes, steps) = b.computed(node), (b.numbers(node, i) or () for i in range(1, 5))
    shape = b.lowering.shape(source)
    axes, steps = axes or tuple(range(len(first))), steps or (1,) * len(first)
    strides = {axis % len(shape): step for axis, step in zip(axes, steps, strict=True)}
    whole = all(start == 0 and end >= shape[axis] for axis, start, end in zip(axes, first, last, strict=True))
    inside = len(shape) == 4 and {axis for axis, step in strides.items() if step != 1} <= {2, 3}
    if not first or not whole or not inside or len(strides) != len(axes):
        taken = f"{first} to {last} by {steps} of axes {axes}"
        raise ConvertError(f"rows or columns at equal distances from the first on in {node.where}", taken)
    b.add(node, "subsample", source, stride=(strides.get(2, 1), strides.get(3, 1)))


def _upsample(b: Builder, node: onnx_file.Node) -> None:
    """Upsample's factors are an attribute or input 1; Resize's input 1 (up to opset 10), 2, or sizes, 3."""
    mode = node.text("mode", "nearest")
    (source,), resize = b.computed(node), node.op == "Resize" and len(node.inputs) > 2
    scales = node.floats("scales") if node.has("scales") else b.optional(node, 2 if resize else 1)
    if resize:
        place = node.text("coordinate_transformation_mode", "half_pixel")
        rounding = node.text("nearest_mode", "round_prefer_floor")
        # Of nearest ones these repeat each pixel `factor` times; others shift the image.
        centred = place.endswith(("half_pixel", "half_pixel_symmetric"))
        repeats = centred and "round_prefer" in rounding
        if mode == "nearest" and not repeats and (place, rounding) != ("asymmetric", "floor"):
            raise ConvertError(f"pixels repeated in {node.where}", f"{place} with {rounding}")
        if mode == "linear" and not centred:
            raise ConvertError(f"half_pixel coordinates in {node.where}", place)
        node.number("cubic_coeff_a", -0.75)
        node.number("extrapolation_value", 0.0)
        node.integer("exclude_outside", 0)
        node.integer("antialias", 0)  # of what becomes smaller
    if mode not in (("nearest", "linear") if resize else ("nearest",)):
        raise ConvertError(f"mode nearest{' or linear' if resize else ''} in {node.where}", mode)
    shape, sizes = b.lowering.shape(source), b.numbers(node, 3)
    factors = [float(factor) for factor in (() if scales is None else scales.reshape(-1)[:4])]
    if sizes:
        factors = [n / m for n, m in zip(sizes, shape, strict=True)]
    if len(factors) != 4 or factors[:2] != [1, 1] or factors[2] != factors[3] or factors[2] % 1:
        raise ConvertError(f"one integer factor for height and width in {node.where}", f"{factors}")
    interpolation = "bilinear" if mode == "linear" else "nearest"
    b.add(node, "upsample", source, factor=int(factors[2]), interpolation=interpolation)


def _softmax(b: Builder, node: onnx_file.Node) -> None:
    (source,) = b.computed(node)
    axis, rank = node.integer("axis", -1), len(b.lowering.shape(source))
    if axis % rank != 1 and not (rank == 4 and b.lowering.shape(source)[2:] == (1, 1)):
        raise ConvertError(f"a softmax over channels in {node.where}", f"axis {axis}")
    b.add(node, "softmax", source, logarithm=node.op == "LogSoftmax")


#: By operator: what it becomes.
OPERATORS: dict[str, Callable[[Builder, onnx_file.Node], None]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "Greater": _comparison(">"),
    "GreaterOrEqual": _comparison(">="),
    "Identity": _same,
    "LeakyRelu": _leaky_relu,
    "Less": _comparison("<"),
    "LessOrEqual": _comparison("<="),
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Neg": _neg,
    "Not": _not,
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Resize": _upsample,
    "Sign": _sign,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Upsample": _upsample,
    "Where": _where,
    onnx_constants.BIPOLAR_QUANT: _bipolar_quant,
}


def original(source: Checkpoint, **options: Any) -> Original:
    """The graph as onnx's reference evaluator computes it. `read` tells only which signs count."""
    from onnx import helper, reference
    from onnx.reference.op_run import OpRun

    class BipolarQuant(OpRun):
        op_domain = "qonnx.custom_op.general"

        def _run(self, x: Array, scale: Array) -> tuple[Array]:
            return (np.where(x >= 0, scale, -scale).astype(np.float32),)

    model, graph, proto = read(source, **options), onnx_file.read(source.path), onnx_file.parse(source.path)
    last = next(node for node in proto.graph.node if graph.output in node.output)
    logits = last.input[0] if last.op_type in ("LogSoftmax", "Softmax") else graph.output
    needed = {logits}
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            needed.update(node.input)

    def step(node: Any) -> Step:
        names = tuple(filter(None, node.input))
        inputs = [helper.make_tensor_value_info(name, 1, None) for name in dict.fromkeys(names)]
        outputs = [helper.make_tensor_value_info(name, 1, None) for name in node.output if name]
        single = helper.make_graph([node], "node", inputs, outputs)
        evaluator: Any = reference.ReferenceEvaluator(
            helper.make_model(single, opset_imports=proto.opset_import), new_ops=[BipolarQuant]
        )

        def run(values: Values) -> Any:
            return evaluator.run(None, {name: values[name] for name in names})[0]

        signed = SIGNED.get(node.op_type)
        return Step(
            node.output[0],
            names,
            run,
            signed=(lambda values: signed(*(values[name] for name in names[:2]))) if signed else None,
            moves=node.op_type in MOVING,
            padding=(lambda values: _top_left(node, values)) if node.op_type == "Pad" else None,
        )

    steps = [step(node) for node in proto.graph.node if needed & set(node.output)]
    return graph_original(model, steps, graph.constants, graph.input, logits)


#: Operators that compare or move values.
MOVING = ("Concat", "MaxPool", "Resize", "Slice", "Upsample")

#: By operator: from its first two operands, what it takes the sign of.
SIGNED: dict[str, Callable[..., Array]] = {
    "BipolarQuant": lambda x, *_: x,
    "Greater": lambda x, y: y - x,
    "GreaterOrEqual": lambda x, y: x - y,
    "Less": lambda x, y: x - y,
    "LessOrEqual": lambda x, y: y - x,
    "Sign": lambda x: x,
}


def _top_left(node: Any, values: Values) -> tuple[int, int]:
    """How much a pad puts above and left of an image."""
    pads = next((each.ints for each in node.attribute if each.name == "pads"), None)
    axes = values[node.input[3]] % 4 if len(node.input) > 3 and node.input[3] else np.arange(4)
    first = dict(zip(axes.tolist(), pads or values[node.input[1]].tolist(), strict=False))
    return first.get(2, 0), first.get(3, 0)
