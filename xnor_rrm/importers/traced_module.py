"""Modules of PyTorch, traced by torch.export: what their forward computes in evaluation.

    xnor_rrm.convert(module, input=(3, 32, 32))

Convolutions and linear layers whose input is a sign are binary: torch.sign, a comparison that becomes two
opposite numbers, or an autograd Function or straight-through estimator whose forward is one. Their weights
may be any expression of parameters: what depends on nothing else is evaluated first. x / c is taken as x
times float32(1 / c). Logits are the input of a final softmax.

The original takes sign(0) = 0 where it is torch.sign: see common/zeros.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConvertError, XnorError
from ..model import Array, InputRule, Model, Shape
from .common.checkpoint import Checkpoint
from .common.datasets import MEAN, STD, usual_rule
from .common.graph import Difference, Lowering, Node, Refused, Sides
from .common.graph_original import Step, Values, graph_original
from .common.operations import MIRRORED
from .common.operations import OPERATIONS as GRAPH_OPERATIONS
from .common.options import Option
from .common.original import Original
from .common.torch_trace import (
    Trace,
    arguments,
    execute,
    first_tensor,
    layer_name,
    operator_name,
    place,
    trace,
)

if TYPE_CHECKING:
    import torch
    from torch import fx

TITLE = "torch.nn.Module, from Python"
OPTIONS = (Option("input", "Shape (C, H, W) of the input, or an InputRule.", object), MEAN, STD)


def recognise(source: Checkpoint) -> bool:
    torch = sys.modules.get("torch")  # loaded already, if there is a module of it
    return torch is not None and isinstance(source.module, torch.nn.Module)


def read(source: Checkpoint, *, input: Any = None, mean: Any = None, std: Any = None) -> Model:
    """The model; its output are the logits before a final softmax.

    Raises ConvertError for a module in training mode or one that cannot be traced, for operators that are not
    known, with their lines of source, and for weights under a sign that are not binary.
    """
    rule = _rule(input, mean, std)
    shape = (*rule.crop, rule.channels)
    builder = Builder(trace(source.module, shape), shape)
    for node in builder.trace.nodes:
        builder.visit(node)
    return builder.lowering.finish(layer_name(builder.trace.output), source.name, rule)


def _rule(shape: Any, mean: Any, std: Any) -> InputRule:
    if isinstance(shape, InputRule):
        return shape
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 3 or not all(type(size) is int for size in sizes):
        raise ConvertError("the option input: a shape (C, H, W) or an InputRule", repr(shape))
    return usual_rule((sizes[1], sizes[2], sizes[0]), mean, std)


class Builder:
    """Fills the lowering's form from nodes visited in order; evaluates those of constants."""

    def __init__(self, trace: Trace, shape: Shape) -> None:
        self.trace, self.constants = trace, dict(trace.constants)
        self.lowering = Lowering(layer_name(trace.input), shape, GRAPH_OPERATIONS)

    def visit(self, node: fx.Node) -> None:
        """What is wrong with a node is told once its value is needed."""
        name = operator_name(node)
        try:
            if name in LIKE:  # of a value's shape, but not of the value
                self.constants[node] = LIKE[name](arguments(node))
            elif node.op == "call_function" and all(each in self.constants for each in node.all_input_nodes):
                self.constants[node] = execute(node, self.constants)
            elif name == "getitem" and node.args[1] == 0:
                self.add(node, "same", node.args[0])
            elif name in OPERATORS:
                OPERATORS[name](self, node, arguments(node))
            else:
                raise ConvertError(f"operators among {', '.join(OPERATORS)}", place(node))
        except XnorError as error:
            self.lowering.refuse(layer_name(node), error)

    # What operators are made of

    def add(self, node: fx.Node, op: str, *inputs: Any, **constants: Any) -> None:
        computed = all(layer_name(each) in self.lowering.values for each in inputs)
        if not computed:
            raise ConvertError(f"inputs of {place(node)} computed from the network's", "constants")
        names = tuple(layer_name(each) for each in inputs)
        self.lowering.add(Node(op, layer_name(node), names, place(node), constants))
        self.check_shape(node)

    def check_shape(self, node: fx.Node) -> None:
        """Raises ConvertError where a value is not lowered to the shape that torch gives it."""
        value = self.lowering.values[layer_name(node)]
        shape = tuple(first_tensor(node.meta["val"]).shape)
        if not isinstance(value, Difference | Refused):
            found = self.lowering.shape_of(value)
            if shape[: len(found)] != found or set(shape[len(found) :]) > {1}:
                raise ConvertError(f"a value of {list(found)}", f"{list(shape)} of {place(node)}")

    def is_computed(self, value: Any) -> bool:
        """Whether it depends on the network's input."""
        from torch import fx

        return isinstance(value, fx.Node) and value not in self.constants

    def array(self, node: fx.Node, value: Any) -> Array | None:
        """A constant as an array, None where it is left out."""
        import torch

        if value is None:
            return None
        if self.is_computed(value):
            raise ConvertError(f"a constant in {place(node)}", f"{value.name}, which is computed")
        if not isinstance(value, int | float):
            value = self.constants[value].cpu()
            if value.dtype in (torch.float16, torch.bfloat16) or value.is_complex():
                raise ConvertError(f"float32 in {place(node)}", f"{value.dtype}")
        return np.asarray(value)

    def number(self, node: fx.Node, value: Any) -> float:
        """A constant of one value."""
        array = self.array(node, value)
        if array is None or array.size < 1 or not (array == array.flat[0]).all():
            raise ConvertError(f"one number in {place(node)}", "others")
        return float(array.flat[0])


def pair(node: fx.Node, value: Sequence[int], default: tuple[int, int] | None = None) -> tuple[int, int]:
    """Two numbers of which torch allows one to stand for both, or none for the default."""
    numbers = tuple(value) or default or ()
    if len(numbers) not in (1, 2):
        raise ConvertError(f"two dimensions in {place(node)}", f"{list(value)}")
    return int(numbers[0]), int(numbers[-1])


def _sides(node: fx.Node, value: Sequence[int]) -> Sides:
    down, across = pair(node, value)
    return down, down, across, across


# Operators. a : their arguments by name.

Arguments = dict[str, Any]


def _same(b: Builder, node: fx.Node, a: Arguments) -> None:
    b.add(node, "same", a["self"])


def _to_copy(b: Builder, node: fx.Node, a: Arguments) -> None:
    import torch

    dtype = a["dtype"] or torch.float32
    if dtype != torch.float32 and dtype.is_floating_point:
        raise ConvertError("float32 values", f"{dtype} in {place(node)}")
    b.add(node, "same" if dtype == torch.float32 else "integers", a["self"])


def _sign(b: Builder, node: fx.Node, a: Arguments) -> None:
    b.add(node, "sign", a["self"], three_valued=True)


def _comparison(relation: str) -> Callable[[Builder, fx.Node, Arguments], None]:
    def convert(b: Builder, node: fx.Node, a: Arguments) -> None:
        x, threshold, given = a["self"], a["other"], relation
        if not b.is_computed(x):
            x, threshold, given = threshold, x, MIRRORED[relation]
        b.add(node, "compare", x, relation=given, threshold=b.array(node, threshold))

    return convert


def _where(b: Builder, node: fx.Node, a: Arguments) -> None:
    when, otherwise = b.array(node, a["self"]), b.array(node, a["other"])
    b.add(node, "select", a["condition"], when=when, otherwise=otherwise)


def _not(b: Builder, node: fx.Node, a: Arguments) -> None:
    b.add(node, "select", a["self"], when=0.0, otherwise=1.0)


def _add(b: Builder, node: fx.Node, a: Arguments, sign: int = 1) -> None:
    x, y, factor = a["self"], a["other"], a.get("alpha", 1)
    if b.is_computed(x) and b.is_computed(y):
        if factor != 1:
            raise ConvertError(f"alpha 1 in {place(node)}", f"{factor}")
        b.add(node, "add" if sign > 0 else "subtract", x, y)
    elif b.is_computed(x):
        b.add(node, "plus", x, term=b.array(node, y) * (sign * factor))
    elif sign * factor == 1:
        b.add(node, "plus", y, term=b.array(node, x))
    else:
        name, where = f"{layer_name(node)}.negated", place(node)
        b.lowering.add(Node("multiply", name, (layer_name(y),), where, {"factor": sign * factor}))
        b.lowering.add(Node("plus", layer_name(node), (name,), where, {"term": b.array(node, x)}))
        b.check_shape(node)


def _sub(b: Builder, node: fx.Node, a: Arguments) -> None:
    _add(b, node, a, sign=-1)


def _mul(b: Builder, node: fx.Node, a: Arguments) -> None:
    x, factor = (a["self"], a["other"]) if b.is_computed(a["self"]) else (a["other"], a["self"])
    b.add(node, "multiply", x, factor=b.array(node, factor))


def _div(b: Builder, node: fx.Node, a: Arguments) -> None:
    divisor = b.array(node, a["other"])
    if divisor is None or not divisor.all():
        raise ConvertError(f"a constant divisor, not 0, in {place(node)}", "another")
    b.add(node, "multiply", a["self"], factor=(1 / divisor.astype(np.float64)).astype(np.float32))


def _neg(b: Builder, node: fx.Node, a: Arguments) -> None:
    b.add(node, "multiply", a["self"], factor=-1.0)


def _relu(b: Builder, node: fx.Node, a: Arguments) -> None:
    b.add(node, "relu", a["self"])


def _prelu(b: Builder, node: fx.Node, a: Arguments) -> None:
    b.add(node, "prelu", a["self"], slope=b.array(node, a["weight"]))


def _leaky_relu(b: Builder, node: fx.Node, a: Arguments) -> None:
    b.add(node, "prelu", a["self"], slope=b.array(node, a["negative_slope"]))


def _hardtanh(b: Builder, node: fx.Node, a: Arguments) -> None:
    b.add(node, "clip", a["self"], low=a["min_val"], high=a["max_val"])


def _clamp(b: Builder, node: fx.Node, a: Arguments) -> None:
    limits = (None if each is None else b.number(node, each) for each in (a.get("min"), a.get("max")))
    low, high = limits
    b.add(node, "clip", a["self"], low=low, high=high)


def _batch_norm(b: Builder, node: fx.Node, a: Arguments) -> None:
    names = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
    arrays = {ours: b.array(node, a[theirs]) for ours, theirs in names.items()}
    b.add(node, "batch_norm", a["input"], **arrays, eps=a["eps"])


def _convolution(b: Builder, node: fx.Node, a: Arguments) -> None:
    weight, bias = b.array(node, a["weight"]), b.array(node, a["bias"])
    if a["transposed"] or weight is None or weight.ndim != 4:
        raise ConvertError("a two-dimensional convolution, not transposed", place(node))
    stride, dilation = pair(node, a["stride"]), pair(node, a["dilation"])
    geometry = {"stride": stride, "padding": _sides(node, a["padding"]), "dilation": dilation}
    b.add(node, "conv", a["input"], weight=weight, bias=bias, groups=a["groups"], **geometry)


def _mm(b: Builder, node: fx.Node, a: Arguments) -> None:
    _linear(b, node, a["self"], a["mat2"], None)


def _addmm(b: Builder, node: fx.Node, a: Arguments) -> None:
    if a["alpha"] != 1 or a["beta"] != 1:
        raise ConvertError(f"alpha and beta 1 in {place(node)}", "others")
    _linear(b, node, a["mat1"], a["mat2"], b.array(node, a["self"]))


def _linear(b: Builder, node: fx.Node, x: fx.Node, matrix: Any, bias: Array | None) -> None:
    weight = b.array(node, matrix)
    assert weight is not None
    b.add(node, "linear", x, weight=weight.T, bias=bias)


def _max_pool(b: Builder, node: fx.Node, a: Arguments) -> None:
    kernel = pair(node, a["kernel_size"])
    geometry = {"stride": pair(node, a["stride"], kernel), "dilation": pair(node, a["dilation"])}
    padding, ceil = _sides(node, a["padding"]), a["ceil_mode"]
    b.add(node, "max_pool", a["self"], kernel=kernel, padding=padding, ceil=ceil, **geometry)


def _avg_pool(b: Builder, node: fx.Node, a: Arguments) -> None:
    kernel = pair(node, a["kernel_size"])
    if a["divisor_override"] not in (None, kernel[0] * kernel[1]):
        raise ConvertError(f"the mean of the window in {place(node)}", f"divisor {a['divisor_override']}")
    geometry = {"stride": pair(node, a["stride"], kernel), "padding": _sides(node, a["padding"])}
    flags = {"ceil": a["ceil_mode"], "count_padding": a["count_include_pad"]}
    b.add(node, "average_pool", a["self"], kernel=kernel, **geometry, **flags)


def _adaptive_avg_pool(b: Builder, node: fx.Node, a: Arguments) -> None:
    b.add(node, "mean", a["self"], size=pair(node, a["output_size"]))


def _mean(b: Builder, node: fx.Node, a: Arguments) -> None:
    if sorted(axis % 4 for axis in a["dim"] or ()) != [2, 3]:
        raise ConvertError(f"height and width as the dimensions of {place(node)}", f"{a['dim']}")
    b.add(node, "mean", a["self"], flat=not a["keepdim"])


def _cat(b: Builder, node: fx.Node, a: Arguments) -> None:
    sources = a["tensors"]
    if not all(b.is_computed(each) for each in sources):
        raise ConvertError(f"computed inputs of {place(node)}", "constants")
    rank = len(b.lowering.shape(layer_name(sources[0])))
    if a["dim"] % rank != 1:
        raise ConvertError(f"a concatenation of channels in {place(node)}", f"dimension {a['dim']}")
    b.add(node, "concat", *sources)


def _view(b: Builder, node: fx.Node, a: Arguments) -> None:
    """Any operator that only changes the shape."""
    b.add(node, "reshape", a["self"], shape=tuple(int(size) for size in node.meta["val"].shape))


def _pad(b: Builder, node: fx.Node, a: Arguments) -> None:
    pads = tuple(a["pad"])
    if len(pads) not in (2, 4, 6):
        raise ConvertError(f"padding of height, width and channels in {place(node)}", f"{pads}")
    left, right, top, bottom, before, behind = (*pads, 0, 0, 0, 0)[:6]
    sides, value = (top, bottom, left, right), b.number(node, a["value"])
    b.add(node, "pad", a["self"], padding=sides, value=value, channels=(before, behind))


def _slice(b: Builder, node: fx.Node, a: Arguments) -> None:
    """Every second row or column, or every third: x[:, :, ::2]."""
    shape, axis = b.lowering.shape(layer_name(a["self"])), a["dim"]
    start, end = a["start"] or 0, shape[axis] if a["end"] is None else a["end"]
    axis %= len(shape)
    if start or end < shape[axis] or (a["step"] != 1 and (axis not in (2, 3) or len(shape) != 4)):
        taken = f"dimension {axis}, {start}:{end}:{a['step']}"
        raise ConvertError(f"rows or columns at equal distances from the first on in {place(node)}", taken)
    b.add(node, "subsample", a["self"], stride=(a["step"], 1) if axis == 2 else (1, a["step"]))


def _upsample(b: Builder, node: fx.Node, a: Arguments) -> None:
    shape, sizes = b.lowering.shape(layer_name(a["input"])), a.get("output_size")
    factors = [n / m for n, m in zip(sizes, shape[2:], strict=True)] if sizes else list(a["scale_factors"])
    if factors[0] != factors[1] or not float(factors[0]).is_integer():
        raise ConvertError(f"one integer factor for height and width in {place(node)}", f"{factors}")
    if a.get("align_corners") and factors[0] != 1:
        raise ConvertError(f"align_corners=False in {place(node)}", "True")
    mode = "bilinear" if operator_name(node) == "upsample_bilinear2d" else "nearest"
    b.add(node, "upsample", a["input"], factor=int(factors[0]), interpolation=mode)


def _softmax(b: Builder, node: fx.Node, a: Arguments) -> None:
    rank = len(b.lowering.shape(layer_name(a["self"])))
    if a["dim"] % rank != 1:
        raise ConvertError(f"a softmax over channels in {place(node)}", f"dimension {a['dim']}")
    b.add(node, "softmax", a["self"], logarithm=operator_name(node) == "_log_softmax")


def _filled(value: float) -> Callable[[Arguments], torch.Tensor]:
    def fill(_: Arguments) -> torch.Tensor:
        import torch

        return torch.tensor(value)

    return fill


def _full_like(a: Arguments) -> torch.Tensor:
    import torch

    return torch.tensor(float(a["fill_value"]))


#: What has a value's shape only: its one number.
LIKE: dict[str, Callable[[Arguments], torch.Tensor]] = {
    "full_like": _full_like,
    "ones_like": _filled(1.0),
    "zeros_like": _filled(0.0),
}

#: By ATen operator: what it becomes.
OPERATORS: dict[str, Callable[[Builder, fx.Node, Arguments], None]] = {
    "_adaptive_avg_pool2d": _adaptive_avg_pool,
    "_log_softmax": _softmax,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_prelu_kernel": _prelu,
    "_softmax": _softmax,
    "_to_copy": _to_copy,
    "_unsafe_view": _view,
    "add": _add,
    "addmm": _addmm,
    "alias": _same,
    "avg_pool2d": _avg_pool,
    "bitwise_not": _not,
    "cat": _cat,
    "clamp": _clamp,
    "clamp_max": _clamp,
    "clamp_min": _clamp,
    "clone": _same,
    "constant_pad_nd": _pad,
    "convolution": _convolution,
    "detach": _same,
    "div": _div,
    "ge": _comparison(">="),
    "gt": _comparison(">"),
    "hardtanh": _hardtanh,
    "le": _comparison("<="),
    "leaky_relu": _leaky_relu,
    "logical_not": _not,
    "lt": _comparison("<"),
    "max_pool2d_with_indices": _max_pool,
    "mean": _mean,
    "mm": _mm,
    "mul": _mul,
    "neg": _neg,
    "relu": _relu,
    "reshape": _view,
    "sign": _sign,
    "slice": _slice,
    "squeeze": _view,
    "sub": _sub,
    "unsqueeze": _view,
    "upsample_bilinear2d": _upsample,
    "upsample_nearest2d": _upsample,
    "view": _view,
    "where": _where,
}


def original(source: Checkpoint, **options: Any) -> Original:
    """The traced operators as torch computes them. `read` tells only which signs count."""
    import torch

    model = read(source, **options)
    traced = trace(source.module, model.input_shape)
    logits = traced.output
    if operator_name(logits) in ("_log_softmax", "_softmax"):
        logits = logits.all_input_nodes[0]
    constants = {layer_name(node): value for node, value in traced.constants.items()}
    steps = map(_step, traced.nodes)
    return graph_original(
        model, steps, constants, layer_name(traced.input), layer_name(logits), torch.from_numpy
    )


def _step(node: fx.Node) -> Step:
    from torch import fx

    def run(values: Values) -> Any:
        return execute(node, {each: values[layer_name(each)] for each in node.all_input_nodes})

    def operands(values: Values) -> list[Any]:
        return [values[layer_name(each)] if isinstance(each, fx.Node) else each for each in node.args]

    name, inputs = operator_name(node), tuple(layer_name(each) for each in node.all_input_nodes)
    signed = SIGNED.get(name)
    return Step(
        layer_name(node),
        inputs,
        run,
        signed=(lambda values: signed(*operands(values)[:2])) if signed else None,
        moves=name in MOVING,
        padding=(lambda _: _top_left(node)) if name == "constant_pad_nd" else None,
    )


def _top_left(node: fx.Node) -> tuple[int, int]:
    """How much a pad puts above and left of an image."""
    left, _, top, _ = [*arguments(node)["pad"], 0, 0][:4]
    return top, left


#: Operators that compare or move values.
MOVING = ("cat", "getitem", "max_pool2d_with_indices", "slice", "upsample_nearest2d")

#: By operator: from its first two operands, what it takes the sign of.
SIGNED: dict[str, Callable[..., torch.Tensor]] = {
    "ge": lambda x, y: x - y,
    "gt": lambda x, y: y - x,
    "le": lambda x, y: y - x,
    "lt": lambda x, y: x - y,
    "sign": lambda x: x,
}
