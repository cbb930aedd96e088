"""ONNX operators on constants, such as weights computed from other weights, as numpy has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import ConvertError
from ...model import Array
from .onnx_file import TYPES, Node

#: QONNX's sign, in which 0 is +1.
BIPOLAR_QUANT = "qonnx.custom_op.general::BipolarQuant"

#: Most axes or sizes that an operator may name.
MAX_AXES = 64


def evaluate(node: Node, inputs: list[Array | None], spend: Callable[[int], None]) -> Array:
    """The node's output. `spend` is told how many bytes it may take, and raises where these are too many.

    Raises ConvertError for operands and attributes that do not fit.
    """
    given = [array for array in inputs if array is not None]
    try:
        if node.op not in FREE:
            shapes = [array.shape for array in given] if node.op in ELEMENTWISE else []
            spend(8 * max(math.prod(np.broadcast_shapes(*shapes)), sum(array.size for array in given)))
        with np.errstate(all="ignore"):
            return np.asarray(OPERATORS[node.op](node, *inputs))
    except (ValueError, TypeError, IndexError, OverflowError, MemoryError, AttributeError) as error:
        found = ", ".join(f"{array.dtype.name}{list(array.shape)}" for array in given)
        raise ConvertError(f"operands that fit in {node.where}", found or "none") from error


def _numbers(node: Node, vector: Array | None) -> tuple[int, ...]:
    """A constant vector of integers, none where it is left out."""
    if vector is None:
        return ()
    if vector.dtype.kind != "i" or vector.ndim > 1 or vector.size > MAX_AXES:
        raise ConvertError(f"a few integers in {node.where}", f"{vector.dtype.name}{list(vector.shape)}")
    return tuple(int(number) for number in vector.reshape(-1))


def _axes(node: Node, axes: Array | None) -> tuple[int, ...]:
    """They were an attribute once, and have been an input since."""
    return node.integers("axes", ()) or _numbers(node, axes)


def _constant(node: Node) -> Array:
    if node.has("value_float"):
        return np.array(node.number("value_float", 0), np.float32)
    if node.has("value_int"):
        return np.array(node.integer("value_int", 0), np.int64)
    if node.has("value_floats"):
        return node.floats("value_floats")
    if node.has("value_ints"):
        return np.array(node.integers("value_ints", ()), np.int64)
    return node.array("value")


def _constant_of_shape(node: Node, shape: Array) -> Array:
    value = node.array("value") if node.has("value") else np.zeros(1, np.float32)
    return np.broadcast_to(value.reshape(()), _numbers(node, shape))


def _cast(node: Node, array: Array) -> Array:
    target = node.integer("to", 0)
    node.integer("saturate", 1)
    if target not in TYPES:
        raise ConvertError(f"a cast to a known type in {node.where}", f"type {target}")
    return array.astype(TYPES[target][0])


def _clip(node: Node, array: Array, low: Array | None = None, high: Array | None = None) -> Array:
    if any(limit is not None and limit.size > 1 for limit in (low, high)):
        raise ConvertError(f"one number each as the limits of {node.where}", "arrays")
    least = node.number("min", 0) if node.has("min") else low
    most = node.number("max", 0) if node.has("max") else high
    return np.clip(array, least, most).astype(array.dtype)


def _reshape(node: Node, array: Array, shape: Array) -> Array:
    sizes, keep_zeros = _numbers(node, shape), node.integer("allowzero", 0)
    return array.reshape([array.shape[i] if n == 0 and not keep_zeros else n for i, n in enumerate(sizes)])


def _mean(node: Node, array: Array, axes: Array | None = None) -> Array:
    node.integer("noop_with_empty_axes", 0)
    keep = bool(node.integer("keepdims", 1))
    return np.asarray(array.mean(axis=_axes(node, axes) or None, keepdims=keep))


def _gather(node: Node, array: Array, indices: Array) -> Array:
    if indices.size > MAX_AXES or array.ndim != 1 or node.integer("axis", 0):
        raise ConvertError(f"a few elements of a vector in {node.where}", f"{list(array.shape)}")
    return array[indices]


def _concat(node: Node, *arrays: Array) -> Array:
    return np.concatenate(arrays, node.integer("axis", 0))


def _squeeze(node: Node, array: Array, axes: Array | None = None) -> Array:
    return np.squeeze(array, _axes(node, axes) or None)


def _unsqueeze(node: Node, array: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(array, _axes(node, axes))


def _transpose(node: Node, array: Array) -> Array:
    return np.transpose(array, node.integers("perm", ()) or None)


def _bipolar_quant(array: Array, scale: Array) -> Array:
    return np.where(array >= 0, scale, -scale).astype(np.float32)


def _divide(a: Array, b: Array) -> Array:
    """Integers are divided without rest, towards 0."""
    return np.trunc(a / b).astype(a.dtype) if a.dtype.kind == "i" else a / b


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda node, *inputs: function(*inputs)


#: Of operands whose shapes broadcast.
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "Div": _divide,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Sign": np.sign,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Where": np.where,
    BIPOLAR_QUANT: _bipolar_quant,
}

#: What makes a view, or no more than the file's own text.
FREE = frozenset(("Constant", "ConstantOfShape", "Identity", "Squeeze", "Transpose", "Unsqueeze"))

OPERATORS: dict[str, Callable[..., Any]] = {
    **{op: _plain(function) for op, function in ELEMENTWISE.items()},
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Gather": _gather,
    "Identity": lambda node, array: array,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
