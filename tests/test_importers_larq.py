"""Importers of Larq's files: Larq Compute Engine's flatbuffers and Keras's HDF5, written here as they are."""

from __future__ import annotations

import io
import json
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xnor_rrm import Model, XnorError, convert
from xnor_rrm.errors import ConvertError
from xnor_rrm.importers import IMPORTERS, bring_over, larq, lce
from xnor_rrm.importers.common.checkpoint import Checkpoint
from xnor_rrm.model import BinaryConv2d, Sign

pytest.importorskip("torch")  # of an optional extra
flatbuffers = pytest.importorskip("flatbuffers")  # of an optional extra
flexbuffers = pytest.importorskip("flatbuffers.flexbuffers")  # of an optional extra
h5py = pytest.importorskip("h5py")  # of an optional extra

Array = npt.NDArray[Any]
Pair = tuple[int, int]
Values = dict[Any, Array]


# What both kinds of network compute, in float64. Constants are small dyadic numbers, so every sum is exact.


def integers(rng: np.random.Generator, *shape: int, most: int = 2) -> Array:
    return rng.integers(-most, most + 1, shape).astype(np.float32)


def dyadic(rng: np.random.Generator, size: int) -> Array:
    return rng.choice(np.float32([-2, -0.5, 0.25, 0.5, 1]), size)


def same_sides(x: Array, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel last."""
    sides = []
    for size, k, s, d in zip(x.shape[:2], kernel, stride, dilation, strict=True):
        missing = max(((size + s - 1) // s - 1) * s + d * (k - 1) + 1 - size, 0)
        sides += [missing // 2, missing - missing // 2]
    return sides[0], sides[1], sides[2], sides[3]


def convolve(
    x: Array,
    w: Array,
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    same: bool = True,
    outside: float = 0,
    groups: int = 1,
) -> Array:
    """x : [H, W, C].  w : [Cout, kH, kW, C / groups]."""
    sides = same_sides(x, w.shape[1:3], stride, dilation) if same else (0, 0, 0, 0)
    depth, outputs = w.shape[3], w.shape[0] // groups
    parts = []
    for g in range(groups):
        total: Any = 0
        inputs = x[..., g * depth : (g + 1) * depth].astype(np.float64)
        for tap, seen in enumerate(naive.taps(inputs, w.shape[1:3], stride, sides, dilation, outside)):
            total = total + seen @ w[g * outputs : (g + 1) * outputs, tap // w.shape[2], tap % w.shape[2]].T
        parts.append(total)
    return np.concatenate(parts, axis=-1)


def pool(x: Array, kernel: Pair, stride: Pair, same: bool, kind: str) -> Array:
    sides = same_sides(x, kernel, stride) if same else (0, 0, 0, 0)
    if kind == "max":
        return np.max(list(naive.taps(x, kernel, stride, sides, (1, 1), -np.inf)), axis=0)
    total: Any = sum(naive.taps(x, kernel, stride, sides, (1, 1), 0))
    inside: Any = sum(naive.taps(np.ones_like(x), kernel, stride, sides, (1, 1), 0))
    return total / inside


def check(
    importer: Any, path: Path, expected: Callable[[Array], tuple[Array, Values]], **options: Any
) -> Model:
    """The converted model computes what is expected, bit for bit, and so does its original."""
    model = convert(path, **options)
    original = importer.original(Checkpoint(path), **options)
    signs = {layer.name: layer.inputs[0] for layer in model.layers if isinstance(layer, Sign)}
    for seed in range(3):
        x = np.random.default_rng(seed).integers(-8, 9, model.input_shape).astype(np.float32)
        logits, before = expected(x)
        values = naive.forward(model, x)
        np.testing.assert_array_equal(values[model.layers[-1].name].reshape(-1), logits)
        assert set(before) == set(signs)
        found, kept = original(x)
        np.testing.assert_array_equal(found, logits)
        assert set(kept) == set(signs)
        for name, source in signs.items():
            np.testing.assert_array_equal(values[source], before[name])
            np.testing.assert_array_equal(kept[name], before[name])
            assert 0.1 < (before[name] >= 0).mean() < 0.97, "all signs alike show nothing"
    return model


# Larq Compute Engine

FLOAT32, INT32, INT64, INT8 = 0, 2, 4, 9
CODES = {
    "ADD": 0, "AVERAGE_POOL_2D": 1, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 4,
    "FULLY_CONNECTED": 9, "MAX_POOL_2D": 17, "MUL": 18, "RELU": 19, "RESHAPE": 22, "SOFTMAX": 25, "PAD": 34,
    "MEAN": 40, "PRELU": 54, "ARG_MIN": 79, "BROADCAST_TO": 130,
}  # fmt: skip
SAME, VALID = 0, 1
RELU, RELU6 = 1, 3


class TfLite:
    """A graph, written as TensorFlow Lite's schema has it, and what it computes."""

    def __init__(self, shape: tuple[int, ...] = (1, 12, 12, 3)) -> None:
        self.tensors: list[dict[str, Any]] = []
        self.operators: list[dict[str, Any]] = []
        self.steps: list[tuple[int, Callable[[Values], Array]]] = []
        self.before: dict[str, Callable[[Values], Array]] = {}
        self.input = self.tensor("image", shape)
        self.version = 3
        self.identifier = b"TFL3"
        self.newer_codes = False

    def tensor(self, name: str, shape: Iterable[int], kind: int = FLOAT32, data: bytes = b"") -> int:
        self.tensors.append({"name": name, "shape": list(shape), "kind": kind, "data": data})
        return len(self.tensors) - 1

    def constant(self, array: Array, name: str = "") -> int:
        kind = {"float32": FLOAT32, "int32": INT32, "uint32": INT32, "int64": INT64, "int8": INT8}[
            array.dtype.name
        ]
        return self.tensor(name or f"constant{len(self.tensors)}", array.shape, kind, array.tobytes())

    def operator(
        self,
        op: str,
        inputs: list[int],
        shape: Iterable[int],
        compute: Callable[..., Array],
        *,
        kind: int = FLOAT32,
        options: list[tuple[str, float]] | None = None,
        custom: dict[str, Any] | None = None,
        name: str = "",
    ) -> int:
        """options : scalars by slot, as (kind, value).  compute : of the inputs that are no constants."""
        output = self.tensor(name or f"{op.lower()}{len(self.operators)}", shape, kind)
        self.operators.append(
            {"op": op, "inputs": inputs, "outputs": [output], "options": options, "custom": custom}
        )
        computed = [i for i in inputs if i == self.input or any(i == made for made, _ in self.steps)]
        self.steps.append((output, lambda values: compute(*(values[i] for i in computed))))
        return output

    def expected(self, x: Array) -> tuple[Array, Values]:
        values: Values = {self.input: x}
        for output, compute in self.steps:
            values[output] = compute(values)
        before = {name: compute(values) for name, compute in self.before.items()}
        return values[self.steps[-1][0]].reshape(-1), before

    def find(self, name: str) -> dict[str, Any]:
        return next(tensor for tensor in self.tensors if tensor["name"] == name)

    def save(self, folder: Path) -> Path:
        (folder / "net.tflite").write_bytes(self.bytes())
        return folder / "net.tflite"

    def bytes(self) -> bytes:
        b = flatbuffers.Builder(1024)

        def table(fields: dict[int, tuple[str, Any]]) -> int:
            b.StartObject(max(fields, default=-1) + 1)
            for slot, (kind, value) in fields.items():
                match kind:
                    case "offset":
                        b.PrependUOffsetTRelativeSlot(slot, value, 0)
                    case "b":
                        b.PrependInt8Slot(slot, int(value), 0)
                    case "i":
                        b.PrependInt32Slot(slot, int(value), 0)
                    case "I":
                        b.PrependUint32Slot(slot, int(value), 0)
                    case "f":
                        b.PrependFloat32Slot(slot, value, 0.0)
            return int(b.EndObject())

        def offsets(items: list[int]) -> int:
            b.StartVector(4, len(items), 4)
            for item in reversed(items):
                b.PrependUOffsetTRelative(item)
            return int(b.EndVector())

        def numbers(items: list[int]) -> int:
            return int(b.CreateNumpyVector(np.array(items, np.int32)))

        def data(content: bytes) -> int:
            return int(b.CreateByteVector(content))

        buffers = [table({})]
        tensors = []
        for tensor in self.tensors:
            buffer = 0
            if tensor["data"]:
                buffers.append(table({0: ("offset", data(tensor["data"]))}))
                buffer = len(buffers) - 1
            name, shape = b.CreateString(tensor["name"]), numbers(tensor["shape"])
            fields = {0: ("offset", shape), 1: ("b", tensor["kind"]), 2: ("I", buffer), 3: ("offset", name)}
            tensors.append(table(fields))
        codes: dict[str, int] = {}
        operators = []
        for operator in self.operators:
            index = codes.setdefault(operator["op"], len(codes))
            fields = {
                0: ("I", index),
                1: ("offset", numbers(operator["inputs"])),
                2: ("offset", numbers(operator["outputs"])),
            }
            if operator["options"] is not None:
                fields[3] = "b", 1
                fields[4] = "offset", table(dict(enumerate(operator["options"])))
            if operator["custom"] is not None:
                custom = operator["custom"]
                fields[5] = "offset", data(custom if isinstance(custom, bytes) else flexbuffers.Dumps(custom))
            operators.append(table(fields))
        code_tables = []
        for op in codes:
            code = CODES.get(op, 32)
            fields = {0: ("b", min(code, 127))}
            if code == 32:
                fields[1] = "offset", b.CreateString(op)
            if self.newer_codes or code > 127:
                fields[3] = "i", code
            code_tables.append(table(fields))
        lists = (
            offsets(tensors),
            offsets(operators),
            numbers([self.input]),
            numbers([self.operators[-1]["outputs"][0]]),
        )
        graph = table(
            {
                0: ("offset", lists[0]),
                1: ("offset", lists[2]),
                2: ("offset", lists[3]),
                3: ("offset", lists[1]),
            }
        )
        parts = offsets(code_tables), offsets([graph]), offsets(buffers)
        root = {
            0: ("I", self.version),
            1: ("offset", parts[0]),
            2: ("offset", parts[1]),
            4: ("offset", parts[2]),
        }
        b.Finish(table(root), file_identifier=self.identifier)
        return bytes(b.Output())


def pack_negative(signs: Array) -> Array:
    """int32[..., words] of -1 and +1: bit j of word i is element 32 i + j, 1 where it is -1."""
    width = -signs.shape[-1] % 32
    bits = np.concatenate([signs < 0, np.zeros((*signs.shape[:-1], width), bool)], axis=-1)
    return np.packbits(bits, axis=-1, bitorder="little").view(np.int32)


def binary_options(channels: int, **changes: Any) -> dict[str, Any]:
    return {
        "channels_in": channels, "dilation_height_factor": 1, "dilation_width_factor": 1,
        "fused_activation_function": 0, "pad_values": 1, "padding": 1, "stride_height": 1, "stride_width": 1,
    } | changes  # fmt: skip


def bits_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], -(-shape[-1] // 32))


def lce_graph(seed: int = 0) -> TfLite:
    """A network with every supported operator, on 12x12 images."""
    rng, net = np.random.default_rng(seed), TfLite()

    def signs(*shape: int) -> Array:
        return rng.choice(np.float32([-1, 1]), shape)

    def unsigned(x: Array) -> Array:
        return np.where(x < 0, -1.0, 1.0)

    # Convolutions: 12x12x3 to 6x6x8 to 6x6x40, padded below and right only.
    w, bias = integers(rng, 8, 3, 3, 3), integers(rng, 8, most=9)
    options = [("b", SAME), ("i", 2), ("i", 2), ("b", RELU), ("i", 1), ("i", 1)]
    conv = net.operator(
        "CONV_2D",
        [net.input, net.constant(w), net.constant(bias)],
        (1, 6, 6, 8),
        lambda x: np.maximum(convolve(x, w, (2, 2)) + bias, 0),
        options=options,
        name="conv",
    )
    deep = integers(rng, 1, 3, 3, 40, most=1)
    depthwise = net.operator(
        "DEPTHWISE_CONV_2D",
        [conv, net.constant(deep), -1],
        (1, 6, 6, 40),
        lambda x: np.clip(convolve(x, deep.transpose(3, 1, 2, 0), groups=8), 0, 6),
        options=[("b", SAME), ("i", 1), ("i", 1), ("i", 5), ("b", RELU6), ("i", 1), ("i", 1)],
        name="depthwise",
    )
    factor, term = dyadic(rng, 40), integers(rng, 40, most=2)
    scaled = net.operator(
        "MUL", [depthwise, net.constant(factor)], (1, 6, 6, 40), lambda x: x * factor, options=[]
    )
    first = net.operator("ADD", [net.constant(term), scaled], (1, 6, 6, 40), lambda x: x + term, name="first")

    # A binary convolution of floats, clamped and scaled.
    w1, m1, b1 = signs(40, 3, 3, 40), dyadic(rng, 40), integers(rng, 40, most=5)
    net.before["first.sign"] = lambda values: values[first]
    second = net.operator(
        "LceBconv2d",
        [first, net.constant(pack_negative(w1)), net.constant(m1), net.constant(b1), -1],
        (1, 6, 6, 40),
        lambda x: np.maximum(convolve(unsigned(x), w1, outside=1), 0) * m1 + b1,
        custom=binary_options(40, fused_activation_function=RELU),
        name="second",
    )
    total = net.operator("ADD", [second, first], (1, 6, 6, 40), np.add, options=[("b", 0)], name="total")

    # Bits: their maximum; a convolution to bits by thresholds; one padded with zeros.
    quantized = net.operator(
        "LceQuantize", [total], bits_shape((1, 6, 6, 40)), unsigned, kind=INT32, name="bits"
    )
    pooled = net.operator(
        "LceBMaxPool2d",
        [quantized],
        bits_shape((1, 3, 3, 40)),
        lambda x: pool(x, (3, 3), (2, 2), True, "max"),
        kind=INT32,
        custom={"filter_height": 3, "filter_width": 3, "padding": 1, "stride_height": 2, "stride_width": 2},
        name="pooled",
    )
    net.before["pooled.sign"] = lambda values: pool(values[total], (3, 3), (2, 2), True, "max")
    w2 = signs(33, 2, 2, 40)
    n = 4 * 40
    threshold = rng.integers(60, 100, 33).astype(np.int32)
    threshold[:3] = np.iinfo(np.int32).max, -5, n  # always +1, always -1, always +1
    thresholded = net.operator(
        "LceBconv2d",
        [pooled, net.constant(pack_negative(w2)), -1, -1, net.constant(threshold)],
        bits_shape((1, 3, 3, 33)),
        lambda x: np.where((n - convolve(x, w2, outside=1)) / 2 > threshold, -1.0, 1.0),
        kind=INT32,
        custom=binary_options(40, fused_activation_function=RELU),
        name="thresholded",
    )
    limited = np.clip(threshold.astype(np.int64), -1, n)
    net.before["thresholded.sign"] = lambda values: convolve(values[pooled], w2, outside=1) - n + 2 * limited
    w3, m3, b3 = signs(40, 3, 3, 33), dyadic(rng, 40), integers(rng, 40, most=5)
    early = w3 / 2  # early versions keep floats, of which 0 is +1
    w3[0, 0, 0, 0], early[0, 0, 0, 0] = 1, 0
    third = net.operator(
        "LceBconv2d",
        [thresholded, net.constant(early), net.constant(m3), net.constant(b3)],
        (1, 3, 3, 40),
        lambda x: convolve(x, w3, outside=0) * m3 + b3,
        custom=binary_options(33, pad_values=0),
        name="third",
    )

    # Padding before a sign, and around floats; pools; joining.
    sides = np.array([[0, 0], [1, 0], [0, 2], [0, 0]], np.int32)
    padded = net.operator(
        "PAD",
        [third, net.constant(sides)],
        (1, 4, 5, 40),
        lambda x: np.pad(x, sides[1:]),
        options=[],
        name="padded",
    )
    net.before["third.sign"] = lambda values: values[third]
    w4, m4, b4 = signs(8, 2, 3, 40), dyadic(rng, 8), integers(rng, 8, most=5)
    fourth = net.operator(
        "LceBconv2d",
        [padded, net.constant(pack_negative(w4)), net.constant(m4), net.constant(b4), -1],
        (1, 3, 3, 8),
        lambda x: np.clip(convolve(unsigned(x), w4, same=False), -1, 1) * m4 + b4,
        custom=binary_options(40, padding=2, fused_activation_function=2),
        name="fourth",
    )
    w5 = integers(rng, 8, 2, 3, 40, most=1)
    fifth = net.operator(
        "CONV_2D",
        [padded, net.constant(w5)],
        (1, 3, 3, 8),
        lambda x: convolve(x, w5, same=False),
        options=[("b", VALID), ("i", 1), ("i", 1), ("b", 0), ("i", 1), ("i", 1)],
        name="fifth",
    )
    slope = dyadic(rng, 8).reshape(1, 1, 8)
    leaky = net.operator(
        "PRELU",
        [fifth, net.constant(slope)],
        (1, 3, 3, 8),
        lambda x: np.where(x > 0, x, x * slope),
        name="leaky",
    )
    joined = net.operator(
        "CONCATENATION",
        [fourth, leaky, fourth],
        (1, 3, 3, 24),
        lambda x, y, z: np.concatenate([x, y, z], axis=-1),
        options=[("i", -1), ("b", 0)],
        name="joined",
    )
    maximum = net.operator(
        "MAX_POOL_2D",
        [joined],
        (1, 3, 3, 24),
        lambda x: pool(x, (2, 2), (1, 1), True, "max"),
        options=[("b", SAME), ("i", 1), ("i", 1), ("i", 2), ("i", 2), ("b", 0)],
    )
    average = net.operator(
        "AVERAGE_POOL_2D",
        [maximum],
        (1, 2, 2, 24),
        lambda x: pool(x, (2, 2), (2, 2), True, "average"),
        options=[("b", SAME), ("i", 2), ("i", 2), ("i", 2), ("i", 2), ("b", 0)],
        name="average",
    )
    relu = net.operator("RELU", [average], (1, 2, 2, 24), lambda x: np.maximum(x, 0), name="relu")
    matrix = integers(rng, 4, 96, most=1)
    image_bits = net.operator("LceQuantize", [average], bits_shape((1, 2, 2, 24)), unsigned, kind=INT32)
    floats = net.operator("LceDequantize", [image_bits], (1, 2, 2, 24), lambda x: x)
    flat = net.operator(
        "RESHAPE", [floats, net.constant(np.array([1, -1], np.int32))], (1, 96), lambda x: x.reshape(-1)
    )
    sign_matrix = signs(6, 96) * np.float32([[0.5], [1], [2], [4], [0.25], [1]])
    net.before["average.sign"] = lambda values: values[average]
    vector = net.operator(
        "FULLY_CONNECTED",
        [flat, net.constant(sign_matrix), -1],
        (1, 6),
        lambda x: sign_matrix @ x,
        options=[("b", 0)],
        name="vector",
    )
    dense = net.operator(
        "FULLY_CONNECTED",
        [relu, net.constant(matrix), net.constant(np.float32([1, 2, 3, 4]))],
        (1, 4),
        lambda x: np.maximum(matrix @ x.reshape(-1) + [1, 2, 3, 4], 0),
        options=[("b", RELU), ("b", 0)],
        name="dense",
    )
    mean = net.operator(
        "MEAN",
        [relu, net.constant(np.array([1, 2], np.int32))],
        (1, 24),
        lambda x: x.mean((0, 1)),
        options=[("b", 0)],
    )
    head = net.operator(
        "CONCATENATION",
        [vector, dense, mean],
        (1, 34),
        lambda *parts: np.concatenate(parts, axis=-1),
        options=[("i", 1), ("b", 0)],
        name="head",
    )
    last = integers(rng, 5, 34)
    logits = net.operator(
        "FULLY_CONNECTED", [head, net.constant(last)], (1, 5), lambda x: last @ x, options=[]
    )
    net.operator("SOFTMAX", [logits], (1, 5), lambda x: x, options=[("f", 1.0)], name="output")
    return net


@pytest.mark.parametrize("seed", range(4))
def test_lce_computes_what_its_graph_says(tmp_path: Path, seed: int) -> None:
    net = lce_graph(seed)
    net.newer_codes = seed % 2 == 1
    model = check(lce, net.save(tmp_path), net.expected)
    assert model.input_shape == (12, 12, 3)
    assert model.input_rule.mean == (127.5,) * 3
    paddings = {layer.name: layer.pad_value for layer in model.layers if isinstance(layer, BinaryConv2d)}
    assert paddings == {"second.dot": 1, "thresholded": 1, "third": 0, "fourth.dot": 1, "vector": 0}


def change_tensor(name: str, **changes: Any) -> Callable[[TfLite], None]:
    return lambda net: net.find(name).update(changes)


def operator_of(net: TfLite, name: str) -> dict[str, Any]:
    output = next(i for i, tensor in enumerate(net.tensors) if tensor["name"] == name)
    return next(operator for operator in net.operators if operator["outputs"] == [output])


def change_operator(name: str, **changes: Any) -> Callable[[TfLite], None]:
    return lambda net: operator_of(net, name).update(changes)


def change_custom(name: str, **changes: Any) -> Callable[[TfLite], None]:
    return lambda net: operator_of(net, name)["custom"].update(changes)


def change_option(name: str, slot: int, kind: str, value: float) -> Callable[[TfLite], None]:
    def change(net: TfLite) -> None:
        options = operator_of(net, name)["options"]
        options += [("b", 0)] * (slot + 1 - len(options))
        options[slot] = kind, value

    return change


def change_input(name: str, index: int, tensor: int) -> Callable[[TfLite], None]:
    def change(net: TfLite) -> None:
        operator_of(net, name)["inputs"][index] = tensor

    return change


def change_constant(
    name: str, index: int, change: Callable[[TfLite, dict[str, Any]], None]
) -> Callable[[TfLite], None]:
    return lambda net: change(net, net.tensors[operator_of(net, name)["inputs"][index]])


def spoil(value: float) -> Callable[[TfLite, dict[str, Any]], None]:
    return lambda _, tensor: tensor.update(data=struct.pack("<f", value) + tensor["data"][4:])


def cut(_: TfLite, tensor: dict[str, Any]) -> None:
    tensor["data"] = tensor["data"][:-4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_operator("conv", op="ARG_MIN"), "operators among ADD, .*got 'builtin operator 79'"),
        (change_operator("conv", op="BROADCAST_TO"), "got 'builtin operator 130'"),
        (change_operator("bits", op="LceBsign"), "operators among ADD, .*got 'LceBsign'"),
        (change_operator("second", op="LqceBconv2d64"), "got 'LqceBconv2d64'"),
        (change_option("conv", 3, "b", 4), "RELU_N1_TO_1 or RELU6 in CONV_2D conv, got 4"),
        (change_option("conv", 0, "b", 2), "padding SAME or VALID in CONV_2D conv, got 2"),
        (change_option("conv", 1, "i", 0), r"kernel, stride and dilation of 1 to 8192 in conv\.linear"),
        (change_option("conv", 1, "i", -1), "stride_w of 0 to 65535 in CONV_2D conv, got -1"),
        (change_option("conv", 6, "b", 1), "known options of CONV_2D, got field 6"),
        (change_option("depthwise", 3, "i", 4), r"weights \[1, any, any, 8 \* multiplier\]"),
        (change_option("joined", 0, "i", 2), "concatenation of channels in CONCATENATION joined, got axis 2"),
        (change_option("output", 0, "f", 2.0), "beta 1.0 in SOFTMAX output, got 2.0"),
        (change_option("dense", 1, "b", 1), "weights_format 0 in FULLY_CONNECTED dense, got 1"),
        (change_custom("second", channels_in=39), "40 channels_in in LceBconv2d second, got 39"),
        (change_custom("second", padding=0), "padding SAME or VALID in LceBconv2d second, got 0"),
        (change_custom("second", pad_values=2), "pad_values 0 or 1 in LceBconv2d second, got 2"),
        (change_custom("second", fused_activation_function=4), "an activation of none, .*second, got 4"),
        (change_custom("second", groups=2), "known options of LceBconv2d second, got groups"),
        (change_custom("second", padding="SAME"), "options of LceBconv2d that are integers"),
        (change_custom("second", stride_width=0), "positive kernel, stride|kernel, stride and dilation"),
        (change_operator("second", custom=b"\x01\x02\x03"), "options of LceBconv2d as a flexbuffer map"),
        (change_operator("second", custom=b""), "channels_in of 0 to 65535 in LceBconv2d second, got None"),
        (change_operator("second", custom=b"\0" * 5000), "options of LceBconv2d in at most 4096 bytes"),
        (change_tensor("image", shape=[2, 12, 12, 3]), r"a float32 input \[1, height, width, channels\]"),
        (change_tensor("image", shape=[1, 12, 12, 4]), "an input of 1 or 3 channels"),
        (
            change_tensor("image", shape=[1, 10**9, 12, 3]),
            "an input of 1 or 3 channels and of sides up to 8192",
        ),
        (change_tensor("image", shape=[1, 0, 12, 3]), "an input of 1 or 3 channels"),
        (change_tensor("image", shape=[1, -1, 12, 3]), "sizes of at least 0 in tensor 0"),
        (change_tensor("image", shape=[1] * 9), "at most 8 dimensions, got 9"),
        (change_tensor("image", kind=INT8), r"a float32 input .*got type 9"),
        (change_tensor("conv", shape=[1, 6, 6, 9]), r"'conv' of shape \[1, 6, 6, 8\], got \[1, 6, 6, 9\]"),
        (change_tensor("conv", kind=INT8), "float32, or bits, as 'conv', got type 9"),
        (change_tensor("pooled", shape=[1, 3, 3, 40]), r"'pooled' of shape \[1, 3, 3, 2\]"),
        (change_tensor("second", kind=INT32), "input 4 of LceBconv2d second, got none"),
        (change_tensor("relu", shape=[1, 2, 2, 24], data=b"1234"), "outputs of RELU made once, got relu"),
        (change_input("conv", 0, 20), "input 0 of CONV_2D conv computed from the input"),
        (change_input("conv", 0, 5), "operators in order of execution, inputs of CONV_2D before it"),
        (change_input("conv", 1, 10**6), "inputs and outputs among"),
        (change_input("conv", 0, -2), "inputs and outputs among"),
        (
            change_input("first", 1, -1),
            "input 1 of ADD first computed from the input, got a constant, or none",
        ),
        (change_operator("conv", outputs=[0]), "outputs of CONV_2D made once, got image"),
        (change_operator("conv", outputs=[]), "operators in order of execution, .* got conv"),
        (change_operator("conv", inputs=[0]), "2 inputs and an output of CONV_2D, got 1 and 1"),
        (change_constant("conv", 1, spoil(np.nan)), "finite values in input 1 of CONV_2D conv, got 1 NaN"),
        (change_constant("second", 2, spoil(np.inf)), "finite values in input 2 of LceBconv2d second"),
        (change_constant("second", 1, cut), "as many bytes as 'constant.*' has values"),
        (
            change_constant("second", 1, lambda _, tensor: tensor.update(data=b"\xff" * len(tensor["data"]))),
            "zero bits past channel 40 in LceBconv2d second",
        ),
        (
            change_constant("conv", 1, lambda _, tensor: tensor.update(kind=INT8)),
            "float32, int32 or int64 in",
        ),
        (
            change_constant("conv", 1, lambda _, tensor: tensor.update(kind=INT32)),
            "float32.* as input 1 of CONV_2D",
        ),
        (
            change_constant("conv", 1, lambda _, tensor: tensor.update(shape=[8, 3, 3, 0])),
            "has values, and some",
        ),
        (change_constant("vector", 1, spoil(0.75)), "weights of one magnitude a filter in vector"),
        (
            change_constant(
                "padded", 1, lambda _, t: t.update(data=struct.pack("<8i", 0, 0, -1, 0, 0, 0, 0, 0))
            ),
            "padding of 0 to 8192",
        ),
        (
            change_constant(
                "padded", 1, lambda _, t: t.update(data=struct.pack("<8i", 1, 0, 0, 0, 0, 0, 0, 0))
            ),
            "padding of height and width in PAD padded",
        ),
        (lambda net: setattr(net, "version", 2), "schema version 3, got 2"),
    ],
)
def test_lce_names_what_it_cannot_bring_over(
    tmp_path: Path, change: Callable[[TfLite], None], message: str
) -> None:
    net = lce_graph()
    change(net)
    with pytest.raises(XnorError, match=message):
        convert(net.save(tmp_path))


def test_lce_refuses_loops_and_two_outputs(tmp_path: Path) -> None:
    net = lce_graph()
    net.operators.reverse()
    net.operators[-1], net.operators[0] = net.operators[0], net.operators[-1]
    with pytest.raises(ConvertError, match="operators in order of execution"):
        convert(net.save(tmp_path))
    net = lce_graph()
    left = net.operator("RELU", [net.input], (1, 12, 12, 3), lambda x: x, name="left")
    net.operators[-1], net.operators[-2] = net.operators[-2], net.operators[-1]
    assert left
    with pytest.raises(ConvertError, match="one output, its last layer's, got left"):
        convert(net.save(tmp_path))


def test_lce_reads_signs_nowhere_but_in_binary_layers(tmp_path: Path) -> None:
    net = TfLite((1, 4, 4, 3))
    bits = net.operator("LceQuantize", [net.input], (1, 4, 4, 1), lambda x: x, kind=INT32)
    floats = net.operator("LceDequantize", [bits], (1, 4, 4, 3), lambda x: x)
    net.operator("ADD", [floats, net.input], (1, 4, 4, 3), np.add, options=[], name="sum")
    with pytest.raises(ConvertError, match="signs read by binary convolutions and maxima only, in sum"):
        convert(net.save(tmp_path))
    net.operators.pop()
    with pytest.raises(
        ConvertError, match="signs read by binary convolutions and maxima only, in the output"
    ):
        convert(net.save(tmp_path))


def outcome(path: Path) -> type:
    """Model or the error of a conversion; any other exception is a failure."""
    try:
        return type(convert(path))
    except XnorError as error:
        return type(error)


def test_lce_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    path = lce_graph().save(tmp_path)
    whole = path.read_bytes()
    ends = {*range(64), *range(64, len(whole), 97), *range(len(whole) - 64, len(whole))}
    for end in sorted(ends):
        path.write_bytes(whole[:end])
        assert issubclass(outcome(path), XnorError), end


POSITION_AND_VALUE = st.tuples(
    st.floats(0, 1, exclude_max=True), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4])
)


def damaged(whole: bytes, damage: list[tuple[float, int, int]], structure: int) -> bytes:
    """Integers written over a file: half of them within its first `structure` bytes."""
    content = bytearray(whole)
    for where, value, size in damage:
        most = structure if value % 2 else len(content)
        at = int(where * (most - size))
        content[at : at + size] = (value >> 1 & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(content)


@given(st.lists(POSITION_AND_VALUE, min_size=1, max_size=4))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lce_damage_is_an_error_or_harmless(tmp_path: Path, damage: list[tuple[float, int, int]]) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(damaged(LCE_BYTES, damage, structure=9000))
    assert outcome(path) is Model or issubclass(outcome(path), XnorError)


LCE_BYTES = lce_graph().bytes()


def test_lce_offsets_and_lengths_at_their_limits(tmp_path: Path) -> None:
    """Words of the structure, in turn, as large as they can be, or as a step back, or none."""
    path = tmp_path / "net.tflite"
    seen = set()
    tracemalloc.start()
    for at in range(0, 9000, 132):
        for value in (0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFF0, 0):
            path.write_bytes(LCE_BYTES[:at] + struct.pack("<I", value) + LCE_BYTES[at + 4 :])
            seen.add(outcome(path))
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    assert {Model, ConvertError} <= seen


def test_lce_shared_lists_cannot_be_read_for_ever(tmp_path: Path) -> None:
    b = flatbuffers.Builder(1024)
    names = b.CreateString("x" * 4000)
    b.StartObject(4)
    b.PrependUOffsetTRelativeSlot(3, names, 0)
    tensor = b.EndObject()
    b.StartVector(4, 20000, 4)
    for _ in range(20000):
        b.PrependUOffsetTRelative(tensor)
    tensors = b.EndVector()
    b.StartObject(1)
    b.PrependUOffsetTRelativeSlot(0, tensors, 0)
    graph = b.EndObject()
    b.StartVector(4, 1, 4)
    b.PrependUOffsetTRelative(graph)
    graphs = b.EndVector()
    b.StartVector(4, 1, 4)
    b.PrependUOffsetTRelative(tensor)
    buffers = b.EndVector()
    b.StartObject(5)
    b.PrependUint32Slot(0, 3, 0)
    b.PrependUOffsetTRelativeSlot(2, graphs, 0)
    b.PrependUOffsetTRelativeSlot(4, buffers, 0)
    b.Finish(b.EndObject(), file_identifier=b"TFL3")
    (tmp_path / "net.tflite").write_bytes(b.Output())
    with pytest.raises(ConvertError, match="whose parts are read at most 4 times"):
        convert(tmp_path / "net.tflite")


def test_one_constant_cannot_become_many_layers(tmp_path: Path) -> None:
    net, x = TfLite(), 0
    weight = net.constant(np.ones((3, 64, 64, 3), np.float32))
    for _ in range(50):
        options = [("b", SAME), ("i", 1), ("i", 1), ("b", 0), ("i", 1), ("i", 1)]
        x = net.operator("CONV_2D", [x, weight], (1, 12, 12, 3), lambda x: x, options=options)
    with pytest.raises(ConvertError, match="constants of at most 4 times the file"):
        convert(net.save(tmp_path))


def test_lce_another_identifier_is_another_kind_of_file(tmp_path: Path) -> None:
    net = lce_graph()
    net.identifier = b"TFL2"
    with pytest.raises(ConvertError, match=r"one of: .*BMXNet"):
        convert(net.save(tmp_path))


def test_lce_names_are_unique_and_printable(tmp_path: Path) -> None:
    net = lce_graph()
    for old, new in (("conv", ""), ("second", "first"), ("third", "\x1b[2J"), ("leaky", "input")):
        net.find(old)["name"] = new
    model = convert(net.save(tmp_path))
    model.save(tmp_path / "model.xnor")
    names = {layer.name for layer in model.layers}
    wanted = [net.tensors.index(net.find(name)) for name in ("\x1b[2J", "input")]
    assert {"first", f"tensor{wanted[0]}", f"input#{wanted[1]}"} <= names
    assert sum(name.startswith("first#") and "." not in name for name in names) == 1


# Larq's Keras models


class Keras:
    """A model's layers, put together one by one, written in any of Keras's forms, and what it computes."""

    def __init__(self, shape: tuple[int | None, ...] = (12, 12, 3)) -> None:
        self.shape = shape
        self.layers: list[dict[str, Any]] = []
        self.steps: list[tuple[str, list[str], Callable[..., Array]]] = []
        self.before: dict[str, Callable[[Values], Array]] = {}
        self.training = {"trainable": True, "dtype": "float32"}

    def layer(
        self,
        kind: str,
        name: str,
        inputs: str | list[str],
        compute: Callable[..., Array],
        weights: dict[str, Array] | None = None,
        **config: Any,
    ) -> str:
        inputs = [inputs] if isinstance(inputs, str) else inputs
        self.layers.append(
            {
                "kind": kind,
                "name": name,
                "inputs": inputs,
                "weights": weights or {},
                "config": {"name": name, **self.training, **config},
            }
        )
        self.steps.append((name, inputs, compute))
        return name

    def find(self, name: str) -> dict[str, Any]:
        return next(layer for layer in self.layers if layer["name"] == name)

    def expected(self, x: Array) -> tuple[Array, Values]:
        values: Values = {"image": x}
        for name, inputs, compute in self.steps:
            values[name] = compute(*(values[each] for each in inputs))
        before = {name: compute(values) for name, compute in self.before.items()}
        return values[self.steps[-1][0]].reshape(-1), before

    def config(self, keras: int, sequential: bool = False) -> dict[str, Any]:
        shape_key = "batch_input_shape" if keras == 2 else "batch_shape"
        input_config = {"name": "image", "dtype": "float32", "sparse": False, shape_key: [None, *self.shape]}

        def tensor(name: str) -> Any:
            if keras == 2:
                return [name, 0, 0, {}]
            return {
                "class_name": "__keras_tensor__",
                "config": {"shape": [None], "dtype": "float32", "keras_history": [name, 0, 0]},
            }

        def nodes(layer: dict[str, Any]) -> Any:
            tensors = [tensor(name) for name in layer["inputs"]]
            if keras == 2:
                return [tensors]
            return [{"args": [tensors if len(tensors) > 1 else tensors[0]], "kwargs": {"training": False}}]

        entries: list[dict[str, Any]] = [{"class_name": "InputLayer", "config": input_config}]
        if not sequential:
            entries[0] |= {"name": "image", "inbound_nodes": []}
        for layer in self.layers:
            entry = {"class_name": layer["kind"], "config": layer["config"]}
            if keras == 3:
                entry |= {"module": "keras.layers", "registered_name": None, "build_config": {}}
            if not sequential:
                entry |= {"name": layer["name"], "inbound_nodes": nodes(layer)}
            entries.append(entry)
        content: dict[str, Any] = {"name": "model", "layers": entries}
        if not sequential:
            ends = [["image", 0, 0]], [[self.layers[-1]["name"], 0, 0]]
            content |= {"input_layers": ends[0] if keras == 2 else ends[0][0], "output_layers": ends[1]}
        return {"class_name": "Sequential" if sequential else "Functional", "config": content}

    def save(self, folder: Path, form: str = "h5 2", sequential: bool = False) -> Path:
        """form : "h5 2", "h5 3", "keras 2" or "keras 3", container and version."""
        container, version = form.split()
        path = folder / f"net.{container}"
        config = json.dumps(self.config(int(version), sequential))
        if container == "h5":
            with h5py.File(path, "w") as file:
                file.attrs["model_config"] = config
                file.attrs["keras_version"] = "2.11.0"
                self.write_named(file.create_group("model_weights"), int(version))
        else:
            store = io.BytesIO()
            with h5py.File(store, "w") as file:
                self.write_numbered(
                    file.create_group("layers" if version == "3" else "_layer_checkpoint_dependencies")
                )
                file.create_group("optimizer/vars")["0"] = np.int64(3)
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("metadata.json", "{}")
                archive.writestr("config.json", config)
                archive.writestr("model.weights.h5", store.getvalue())
        return path

    def write_named(self, group: Any, version: int) -> None:
        names = ["image", *(layer["name"] for layer in self.layers)]
        group.attrs["layer_names"] = np.array(names, "S")
        group.create_group("image").attrs["weight_names"] = np.array([], "S1")
        for layer in self.layers:
            own = group.require_group(layer["name"])
            scope = layer["name"] if version == 2 else f"model/{layer['name']}"
            suffix = ":0" if version == 2 else ""
            paths = [f"{scope}/{weight}{suffix}" for weight in layer["weights"]]
            own.attrs["weight_names"] = np.array(paths, "S") if version == 2 and paths else paths
            for path, array in zip(paths, layer["weights"].values(), strict=True):
                if path not in own:
                    own[path] = array

    def write_numbered(self, group: Any) -> None:
        used: dict[str, int] = {}
        for layer in self.layers:
            name = {
                "BatchNormalization": "batch_normalization",
                "DepthwiseConv2D": "depthwise_conv2d",
                "PReLU": "p_re_lu",
                "QuantConv2D": "quant_conv2d",
                "QuantDense": "quant_dense",
            }.get(layer["kind"], layer["kind"].lower())
            number = used[name] = used.get(name, -1) + 1
            own = group.create_group(f"{name}_{number}" if number else name)
            variables = own.create_group("vars")
            if layer["kind"].startswith("Quant"):
                own.create_group("input_quantizer/vars")
            for i, array in enumerate(layer["weights"].values()):
                variables[str(i)] = array


STE = "ste_sign"
STE_OBJECT = {"class_name": "SteSign", "config": {"name": "ste_sign_3", "clip_value": 1.25}}
STE_3 = {
    "module": "larq.quantizers",
    "class_name": "ApproxSign",
    "config": {},
    "registered_name": "Larq>ApproxSign",
}
STE_FUNCTION = {
    "module": "builtins",
    "class_name": "function",
    "config": "approx_sign",
    "registered_name": "function",
}


def sign_of(x: Array) -> Array:
    return np.where(x < 0, -1.0, 1.0)


def conv_config(filters: int, kernel: Pair, **changes: Any) -> dict[str, Any]:
    return {
        "filters": filters, "kernel_size": list(kernel), "strides": [1, 1], "padding": "same",
        "data_format": "channels_last", "dilation_rate": [1, 1], "groups": 1, "activation": "linear",
        "use_bias": False, "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
        "kernel_constraint": {"class_name": "WeightClip", "config": {"clip_value": 1.25}},
    } | changes  # fmt: skip


def latent(rng: np.random.Generator, *shape: int) -> Array:
    """Weights of a binary layer: dyadic, and 0 now and then, which is +1."""
    weights = rng.integers(-8, 9, shape).astype(np.float32) / 8
    weights.reshape(-1)[0] = 0
    return weights


def larq_model(seed: int = 0) -> Keras:
    """A network with every supported kind of layer, on 12x12 images."""
    rng, net = np.random.default_rng(seed), Keras()

    def batch_norm(name: str, source: str, channels: int, **config: Any) -> str:
        gamma, beta = dyadic(rng, channels), integers(rng, channels)
        mean, var = (
            integers(rng, channels, most=5) + np.float32(0.5),
            rng.choice(np.float32([0.75, 3.75]), channels),
        )
        scale, center = config.get("scale", True), config.get("center", True)
        weights = {"gamma": gamma} if scale else {}
        weights |= {"beta": beta} if center else {}
        weights |= {"moving_mean": mean, "moving_variance": var}

        def compute(x: Array) -> Array:
            y = (x - mean) / np.sqrt(var + 0.25) * (gamma if scale else 1)
            return y + (beta if center else 0)

        return net.layer(
            "BatchNormalization", name, source, compute, weights, axis=[3], momentum=0.99, epsilon=0.25,
            **{"scale": scale, "center": center},
        )  # fmt: skip

    # 12x12x3 to 6x6x16: weights of signs, inputs of none; then a depthwise convolution.
    w0, b0 = latent(rng, 3, 3, 3, 16), integers(rng, 16)
    net.layer(
        "QuantConv2D", "stem", "image",
        lambda x: np.maximum(convolve(x, sign_of(w0).transpose(3, 0, 1, 2), (2, 2)) + b0, 0),
        {"kernel": w0, "bias": b0},
        **conv_config(16, (3, 3), strides=[2, 2], use_bias=True, activation="relu"),
        input_quantizer=None, kernel_quantizer=STE, pad_values=0.0, metrics=[],
    )  # fmt: skip
    deep = integers(rng, 3, 2, 16, 2)
    kernel = deep.transpose(2, 3, 0, 1).reshape(32, 3, 2, 1)
    net.layer(
        "DepthwiseConv2D", "deep", "stem",
        lambda x: convolve(x, kernel, groups=16), {"depthwise_kernel": deep},
        kernel_size=[3, 2], strides=[1, 1], padding="same", depth_multiplier=2, data_format="channels_last",
        dilation_rate=[1, 1], activation="linear", use_bias=False, depthwise_initializer=None,
    )  # fmt: skip
    batch_norm("norm1", "deep", 32)
    net.layer("Dropout", "drop", "norm1", lambda x: x, rate=0.5, noise_shape=None, seed=None)

    # Binary convolutions: padded with +1, -1 and 0, with a scale, a stride that pads unevenly, a shortcut.
    w1 = latent(rng, 3, 3, 32, 32)
    net.before["norm1.sign"] = lambda values: values["norm1"]
    net.layer(
        "QuantConv2D", "conv1", "drop",
        lambda x: convolve(sign_of(x), sign_of(w1).transpose(3, 0, 1, 2), outside=1), {"kernel": w1},
        **conv_config(32, (3, 3)), input_quantizer=STE, kernel_quantizer=STE_OBJECT, pad_values=1.0,
    )  # fmt: skip
    batch_norm("norm2", "conv1", 32, scale=False)
    slopes = np.full((1, 1, 32), 0.25, np.float32) * rng.choice([1, 2], 32)
    slopes = slopes.astype(np.float32)
    net.layer(
        "PReLU",
        "prelu",
        "norm2",
        lambda x: np.where(x > 0, x, x * slopes),
        {"alpha": slopes},
        shared_axes=[1, 2],
    )
    net.layer("Add", "plus", ["prelu", "drop"], np.add)
    net.before["plus.sign"] = lambda values: values["plus"]
    w2, b2 = latent(rng, 3, 3, 32, 32), integers(rng, 32)
    scale = np.abs(w2).mean((0, 1, 2), dtype=np.float64).astype(np.float32)
    scale = np.float32(2) ** np.round(np.log2(scale))
    w2 = (np.where(w2 < 0, -1, 1) * scale).astype(
        np.float32
    )  # as exported within quantized_scope: mean |w| is exact
    net.layer(
        "QuantConv2D", "conv2", "plus",
        lambda x: np.clip(convolve(sign_of(x), w2.transpose(3, 0, 1, 2), (2, 2), outside=-1) + b2, -1, 1),
        {"kernel": w2, "bias": b2},
        **conv_config(32, (3, 3), strides=[2, 2], use_bias=True, activation="hard_tanh"),
        input_quantizer=STE_3, kernel_quantizer="magnitude_aware_sign", pad_values=-1.0,
    )  # fmt: skip
    net.layer(
        "AveragePooling2D", "average", "plus", lambda x: pool(x, (2, 2), (2, 2), True, "average"),
        pool_size=[2, 2], strides=[2, 2], padding="same", data_format="channels_last",
    )  # fmt: skip
    net.layer("Add", "plus2", ["conv2", "average", "conv2"], lambda *x: np.sum(x, axis=0))

    # Signs by an activation, the maximum and padding of which are read.
    net.layer("Activation", "signs", "plus2", sign_of, activation=STE_FUNCTION)
    net.layer(
        "MaxPooling2D", "maximum", "signs", lambda x: pool(x, (2, 2), (1, 1), True, "max"),
        pool_size=[2, 2], strides=[1, 1], padding="same", data_format="channels_last",
    )  # fmt: skip
    net.before["maximum.sign"] = lambda values: pool(values["plus2"], (2, 2), (1, 1), True, "max")
    net.layer("ZeroPadding2D", "around", "maximum", lambda x: np.pad(x, ((1, 0), (0, 1), (0, 0))),
              padding=[[1, 0], [0, 1]], data_format="channels_last")  # fmt: skip
    w3 = latent(rng, 2, 2, 32, 8)
    net.layer(
        "QuantConv2D", "conv3", "around",
        lambda x: convolve(x, sign_of(w3).transpose(3, 0, 1, 2), same=False), {"kernel": w3},
        **conv_config(8, (2, 2), padding="valid"),
        input_quantizer=None, kernel_quantizer="swish_sign", pad_values=0.0,
    )  # fmt: skip
    net.before["plus2.sign"] = lambda values: values["plus2"]
    net.layer(
        "ZeroPadding2D", "around2", "plus2", lambda x: np.pad(x, ((1, 1), (1, 1), (0, 0))), padding=[1, 1]
    )
    w4 = latent(rng, 3, 3, 32, 8)
    net.layer(
        "QuantConv2D", "conv4", "around2",
        lambda x: convolve(sign_of(x), sign_of(w4).transpose(3, 0, 1, 2), same=False), {"kernel": w4},
        **conv_config(8, (3, 3), padding="valid"), input_quantizer=STE, kernel_quantizer=STE, pad_values=0.0,
    )  # fmt: skip
    net.layer("Concatenate", "joined", ["conv3", "conv4"], lambda *x: np.concatenate(x, axis=-1), axis=-1)
    net.layer(
        "ReLU",
        "limited",
        "joined",
        lambda x: np.clip(x, 0, 6),
        max_value=6.0,
        negative_slope=0.0,
        threshold=0.0,
    )
    batch_norm("norm3", "joined", 16, center=False)

    # Flattened in the order height, width, channels; dense layers of both kinds.
    net.layer("Flatten", "flat", "norm3", lambda x: x.reshape(-1), data_format="channels_last")
    wide = latent(rng, 3 * 3 * 16, 8)
    net.before["norm3.sign"] = lambda values: values["norm3"]
    net.layer(
        "QuantDense", "dense1", "flat", lambda x: sign_of(x) @ sign_of(wide), {"kernel": wide},
        units=8, activation="linear", use_bias=False, input_quantizer=STE, kernel_quantizer=STE,
    )  # fmt: skip
    net.layer("LeakyReLU", "leaky", "dense1", lambda x: np.where(x > 0, x, x / 4), alpha=0.25)
    net.layer("Flatten", "flat2", "limited", lambda x: x.reshape(-1), data_format="channels_last")
    w5, b5 = integers(rng, 3 * 3 * 16, 8), integers(rng, 8)
    net.layer("Dense", "dense2", "flat2", lambda x: x @ w5 + b5, {"kernel": w5, "bias": b5}, units=8,
              activation=None, use_bias=True)  # fmt: skip
    net.layer(
        "MaxPooling2D", "quarter", "average", lambda x: pool(x, (2, 2), (1, 1), False, "max"),
        pool_size=[2, 2], strides=[1, 1], padding="valid",
    )  # fmt: skip
    net.layer("GlobalAveragePooling2D", "global", "quarter", lambda x: x.mean((0, 1)), keepdims=False)
    net.layer(
        "Concatenate", "head", ["leaky", "dense2", "global"], lambda *x: np.concatenate(x, axis=-1), axis=1
    )
    w6 = integers(rng, 48, 5)
    net.layer(
        "Dense",
        "logits",
        "head",
        lambda x: x @ w6,
        {"kernel": w6},
        units=5,
        activation="softmax",
        use_bias=False,
    )
    return net


FORMS = ["h5 2", "h5 3", "keras 2", "keras 3"]


@pytest.mark.parametrize("form", FORMS)
def test_larq_computes_what_its_layers_say(tmp_path: Path, form: str) -> None:
    net = larq_model(FORMS.index(form))
    model = check(larq, net.save(tmp_path, form), net.expected)
    assert model.input_shape == (12, 12, 3)
    assert model.input_rule.mean == model.input_rule.std == (127.5,) * 3
    paddings = {layer.name: layer.pad_value for layer in model.layers if isinstance(layer, BinaryConv2d)}
    assert paddings == {"conv1": 1, "conv2.linear": -1, "conv3": 0, "conv4": 1, "dense1": 0}


def grey_model() -> Keras:
    """A sequence on one channel, as in Larq's MNIST example."""
    rng, net = np.random.default_rng(0), Keras((9, 8, 1))
    w1, w2, w3 = latent(rng, 3, 3, 1, 16), latent(rng, 3, 3, 16, 8), latent(rng, 12, 4)
    beta, mean, var = integers(rng, 16), integers(rng, 16), np.full(16, 0.75, np.float32)
    net.layer(
        "QuantConv2D", "quant_conv2d", "image",
        lambda x: convolve(x, sign_of(w1).transpose(3, 0, 1, 2), same=False), {"kernel": w1},
        **conv_config(16, (3, 3), padding="valid"),
        input_quantizer=None, kernel_quantizer=STE, pad_values=0.0,
    )  # fmt: skip
    net.layer(
        "BatchNormalization", "norm", "quant_conv2d", lambda x: (x - mean) + beta,
        {"beta": beta, "moving_mean": mean, "moving_variance": var},
        axis=[-1], epsilon=0.25, scale=False, center=True, momentum=0.9,
    )  # fmt: skip
    net.before["norm.sign"] = lambda values: values["norm"]
    net.layer(
        "QuantConv2D", "quant_conv2d_1", "norm",
        lambda x: convolve(sign_of(x), sign_of(w2).transpose(3, 0, 1, 2), (2, 2), same=False), {"kernel": w2},
        **conv_config(8, (3, 3), strides=[2, 2], padding="valid"),
        input_quantizer=STE, kernel_quantizer=STE, pad_values=0.0,
    )  # fmt: skip
    net.layer("Flatten", "flatten", "quant_conv2d_1", lambda x: x.reshape(-1), data_format="channels_last")
    w3 = latent(rng, 3 * 2 * 8, 4)
    net.before["quant_conv2d_1.sign"] = lambda values: values["quant_conv2d_1"]
    net.layer(
        "QuantDense", "quant_dense", "flatten", lambda x: sign_of(x) @ sign_of(w3), {"kernel": w3},
        units=4, activation=None, use_bias=False, input_quantizer=STE, kernel_quantizer=STE,
    )  # fmt: skip
    net.layer("Activation", "activation", "quant_dense", lambda x: x, activation="softmax")
    return net


@pytest.mark.parametrize("form", FORMS)
def test_larq_sequences(tmp_path: Path, form: str) -> None:
    net = grey_model()
    model = check(larq, net.save(tmp_path, form, sequential=True), net.expected)
    assert model.input_rule.channels == 1
    assert model.input_rule.std == (127.5,)


def test_larq_input_shape_of_a_sequence_without_an_input_layer(tmp_path: Path) -> None:
    net = grey_model()
    path = net.save(tmp_path)
    layers = net.config(2, sequential=True)["config"]["layers"][1:]
    shape = [None, 9, 8, 1]
    first = layers[0] | {"config": layers[0]["config"] | {"batch_input_shape": shape}}
    for config in (
        {"config": {"name": "model", "layers": layers, "build_input_shape": shape}},
        {"config": {"name": "model", "layers": [first, *layers[1:]]}},
        {"config": [first, *layers[1:]]},  # before Keras 2.3
        {"config": {"name": "model", "layers": layers}, "build_config": {"input_shape": shape}},
    ):
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = json.dumps({"class_name": "Sequential", **config})
        assert convert(path).input_shape == (9, 8, 1)


def test_larq_takes_the_size_and_scale_it_is_given(tmp_path: Path) -> None:
    rng, net = np.random.default_rng(0), Keras((None, None, 3))
    net.layer(
        "Conv2D",
        "conv",
        "image",
        lambda x: x,
        {"kernel": integers(rng, 3, 3, 3, 4)},
        **conv_config(4, (3, 3)),
    )
    net.layer("GlobalAveragePooling2D", "global", "conv", lambda x: x)
    path = net.save(tmp_path)
    with pytest.raises(ConvertError, match="Give its height and width as the option size"):
        convert(path)
    rule = convert(path, size=224).input_rule
    assert (rule.crop, rule.resize, rule.interpolation) == ((224, 224), 256, "bicubic")
    assert rule.mean == (123.68, 116.78, 103.94)
    assert rule.std == (58.393, 57.12, 57.375)
    rule = convert(path, size=32, mean=0, std=[255, 255.0, 1]).input_rule
    assert (rule.resize, rule.mean, rule.std) == (32, (0, 0, 0), (255, 255, 1))
    for options, message in (
        ({"mean": "1,2"}, "a number, or 3 of them, as the option mean, got '1,2'"),
        ({"std": [1, 2]}, "3 of them, as the option std"),
        ({"mean": [1, 2, None]}, "as the option mean"),
        ({"std": 0}, "positive std"),
        ({"mean": float("nan")}, "finite mean"),
        ({"size": 0}, "size as an integer of at least 1, got 0"),
        ({"size": "32"}, "size as an integer of at least 1, got '32'"),
    ):
        with pytest.raises(XnorError, match=message):
            convert(path, **({"size": 32} | options))
    with pytest.raises(ConvertError, match="an input of 12x12, as the file has it, got size 9"):
        convert(larq_model().save(tmp_path), size=9)


def test_larq_scale_is_the_mean_magnitude_of_a_filter(tmp_path: Path) -> None:
    rng, net = np.random.default_rng(0), Keras((8, 8, 3))
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 3, 4), (8 * 8 * 4, 5))]
    magnitude = {
        "input_quantizer": STE,
        "kernel_quantizer": {"class_name": "MagnitudeAwareSign", "config": {}},
    }
    net.layer(
        "QuantConv2D",
        "conv",
        "image",
        lambda x: x,
        {"kernel": weights[0]},
        **conv_config(4, (3, 3)),
        **magnitude,
    )
    net.layer("Flatten", "flat", "conv", lambda x: x)
    dense = {"units": 5, "use_bias": False, **magnitude}
    net.layer("QuantDense", "dense", "flat", lambda x: x, {"kernel": weights[1]}, **dense)
    layers = [layer for layer in convert(net.save(tmp_path)).layers if isinstance(layer, BinaryConv2d)]
    for layer, weight in zip(layers, weights, strict=True):
        axes = tuple(range(weight.ndim - 1))
        np.testing.assert_allclose(layer.alpha, np.abs(weight.astype(np.float64)).mean(axes), rtol=1e-6)


def change_config(layer: str, **changes: Any) -> Callable[[Keras], Any]:
    return lambda net: net.find(layer)["config"].update(changes)


def change_layer(layer: str, **changes: Any) -> Callable[[Keras], Any]:
    return lambda net: net.find(layer).update(changes)


def change_weight(layer: str, name: str, change: Callable[[Array], Array]) -> Callable[[Keras], Any]:
    return lambda net: net.find(layer)["weights"].update({name: change(net.find(layer)["weights"][name])})


def first_is(value: float) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array = array.copy()
        array.reshape(-1)[0] = value
        return array

    return change


QUANTIZER = {"class_name": "SteTern", "config": {"threshold_value": 0.05}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            change_layer("conv1", kind="QuantDepthwiseConv2D"),
            r"layers among .*got QuantDepthwiseConv2D \(conv1\)",
        ),
        (change_layer("conv1", kind="QuantSeparableConv2D"), r"got QuantSeparableConv2D \(conv1\)"),
        (change_layer("drop", kind="Lambda"), r"got Lambda \(drop\)"),
        (change_layer("drop", kind="Sequential"), r"got Sequential \(drop\)"),
        (
            change_config("conv1", input_quantizer="ste_heaviside"),
            "input_quantizer ste_sign, .*got ste_heaviside",
        ),
        (change_config("conv1", input_quantizer=QUANTIZER), "input_quantizer ste_sign, .*got SteTern"),
        (change_config("conv1", input_quantizer="magnitude_aware_sign"), "got magnitude_aware_sign"),
        (
            change_config("conv1", input_quantizer=3),
            "input_quantizer by its name in QuantConv2D conv1, got 3",
        ),
        (
            change_config("conv1", kernel_quantizer="SteHeaviside"),
            "kernel_quantizer among .*, got SteHeaviside",
        ),
        (change_config("conv1", kernel_quantizer="dorefa_quantizer"), "got dorefa_quantizer"),
        (
            change_config("conv1", kernel_quantizer=None),
            "pad_values 0 in QuantConv2D conv1, which is a float",
        ),
        (change_config("conv4", kernel_quantizer=None), "weights of one magnitude a filter in conv4"),
        (change_config("conv1", pad_values=0.5), "pad_values -1, 0 or 1 in QuantConv2D conv1, got 0.5"),
        (
            change_config("stem", pad_values=1.0),
            "pad_values 0 in QuantConv2D stem, which is a float convolution",
        ),
        (
            change_config("conv1", data_format="channels_first"),
            "data_format channels_last in QuantConv2D conv1",
        ),
        (
            change_config("conv1", activation="tanh"),
            "an activation among .* in QuantConv2D conv1, got 'tanh'",
        ),
        (change_config("conv1", activation="softmax"), "got 'softmax'"),
        (
            change_config("conv1", padding="causal"),
            "padding same or valid in QuantConv2D conv1, got 'causal'",
        ),
        (change_config("conv1", kernel_size=[3, 3, 3]), "kernel_size of two numbers"),
        (change_config("conv1", kernel_size=[3, 1e9]), "kernel_size of two numbers"),
        (change_config("conv1", strides=[0, 1]), "strides of two numbers of 1 to 8192"),
        (change_config("conv1", filters=33), r"float32\[3, 3, 32, 33\] as kernel of QuantConv2D conv1"),
        (change_config("conv1", filters=-32), "filters of at least 1"),
        (change_config("conv1", groups=3), "groups that divide 32 channels in QuantConv2D conv1, got 3"),
        (change_config("conv1", use_bias=True), "a weight bias of QuantConv2D conv1, got none"),
        (change_config("conv1", use_bias="no"), "use_bias true or false"),
        (change_config("conv1", strange=1), "known options of QuantConv2D conv1, got strange"),
        (
            change_config("conv2", use_bias=False),
            "only tensors this importer knows, got 1 more: conv2/bias",
        ),
        (
            change_config("norm1", axis=[1]),
            "normalisation of channels in BatchNormalization norm1, got axis 1",
        ),
        (change_config("norm1", epsilon=float("nan")), "a finite epsilon"),
        (change_config("norm1", epsilon=-9), "variances of at least 0 in BatchNormalization norm1"),
        (change_config("prelu", shared_axes=None), "a slope for each channel in PReLU prelu"),
        (change_config("joined", axis=1), "concatenation of channels in Concatenate joined"),
        (change_config("limited", threshold=1.0), "a plain, limited or leaky ReLU"),
        (change_config("around", padding=[1, [2, "3"]]), "padding of up to four numbers"),
        (change_config("around", padding=[[-1, 0], [0, 0]]), "padding of 0 to 8192"),
        (change_config("average", pool_size=[2]), "pool_size of two numbers"),
        (change_config("logits", units=6), r"float32\[6|inputs of logits|as kernel of Dense logits|units|6"),
        (change_layer("signs", inputs=["nothing"]), "each after those it reads, got Activation signs"),
        (change_layer("plus", inputs=["plus", "drop"]), "each after those it reads, got Add plus"),
        (change_layer("plus", inputs=["drop"]), "2 or more inputs of Add plus"),
        (change_layer("signs", inputs=["drop", "plus2"]), "one input of Activation signs"),
        (
            change_layer("limited", inputs=["signs"]),
            "signs read by binary convolutions and maxima only, in limited",
        ),
        (change_layer("norm3", name="norm2"), "layers by different names"),
        (change_layer("head", inputs=["leaky", "dense2", "quarter"]), "images, or vectors, in head"),
        (change_layer("dense2", inputs=["limited"]), "16 inputs of dense2, got 144"),
        (change_layer("quarter", inputs=["flat"]), "an image as the input of quarter, got a vector"),
        (
            change_weight("conv1", "kernel", first_is(np.nan)),
            "finite values in kernel of QuantConv2D conv1, got 1 NaN",
        ),
        (
            change_weight("conv1", "kernel", lambda a: a[:2]),
            r"as kernel of QuantConv2D conv1, got \[2, 3, 32, 32\]",
        ),
        (change_weight("conv1", "kernel", lambda a: a.astype(np.float64)), "a plain float32 array"),
        (
            change_weight("norm1", "moving_variance", first_is(-5)),
            "variances of at least 0 in BatchNormalization",
        ),
        (lambda net: net.find("conv1")["weights"].clear(), "a weight kernel of QuantConv2D conv1, got none"),
        (
            lambda net: net.find("drop")["weights"].update(spare=np.zeros(2, np.float32)),
            "only tensors this importer knows, got 1 more: drop/spare",
        ),
    ],
)
def test_larq_names_what_it_cannot_bring_over(
    tmp_path: Path, change: Callable[[Keras], Any], message: str
) -> None:
    net = larq_model()
    change(net)
    with pytest.raises(XnorError, match=message):
        convert(net.save(tmp_path))


def test_larq_archives_hold_the_weights_of_their_layers(tmp_path: Path) -> None:
    def save(change: Callable[[Any], Any]) -> Path:
        path = larq_model().save(tmp_path, "keras 3")
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        store = io.BytesIO(members["model.weights.h5"])
        with h5py.File(store, "a") as file:
            change(file["layers"])
        members["model.weights.h5"] = store.getvalue()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    def extra(name: str) -> Callable[[Any], Any]:
        return lambda layers: layers.create_dataset(name, data=np.zeros(3, np.float32))

    convert(save(extra("dropout/seed_generator/vars/0")))
    for change, message in (
        (extra("quant_conv2d_9/vars/0"), "weights of the network's layers only, got more of quant_conv2d"),
        (extra("lstm/vars/0"), "got more of lstm"),
        (extra("quant_conv2d/cell/vars/0"), "layers without layers inside"),
        (extra("quant_conv2d_1/vars/5"), "variables numbered from 0"),
        (extra("quant_conv2d_1/vars/1"), "weights kernel of QuantConv2D conv1, got 2 arrays"),
        (lambda layers: layers.pop("p_re_lu"), "weights alpha of PReLU prelu, got 0 arrays"),
    ):
        with pytest.raises(ConvertError, match=message):
            convert(save(change))


def test_larq_long_lists_of_names_are_cut_into_several(tmp_path: Path) -> None:
    path = larq_model().save(tmp_path)
    expected = [layer.name for layer in convert(path).layers]
    with h5py.File(path, "a") as file:
        attributes = file["model_weights"].attrs
        names = attributes["layer_names"]
        del attributes["layer_names"]
        for i, part in enumerate(np.array_split(names, 3)):
            attributes[f"layer_names{i}"] = part
    assert [layer.name for layer in convert(path).layers] == expected


def test_larq_numbers_may_leave_gaps(tmp_path: Path) -> None:
    path = larq_model().save(tmp_path, "keras 2")
    expected = convert(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    store = io.BytesIO(members["model.weights.h5"])
    with h5py.File(store, "a") as file:
        layers = file["_layer_checkpoint_dependencies"]
        for number in (4, 3, 2, 1):
            layers.move(f"quant_conv2d_{number}", f"quant_conv2d_{number * 6}")
    members["model.weights.h5"] = store.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    for layer, same in zip(convert(path).layers, expected.layers, strict=True):
        for name, array in layer.tensors().items():
            np.testing.assert_array_equal(array, same.tensors()[name])


def relink(path: Path, change: Callable[[Any, str], Any]) -> Path:
    """An .h5 file in which the kernel of conv1 is another kind of thing."""
    with h5py.File(path, "a") as file:
        name = "model_weights/conv1/conv1/kernel:0"
        array = file[name][()]
        del file[name]
        change(file, name)
        assert array.size
    return path


def virtual(file: Any, name: str) -> None:
    layout = h5py.VirtualLayout((3, 3, 32, 32), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "kernel", (3, 3, 32, 32))
    file.create_virtual_dataset(name, layout)


SHAPE = (3, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file, name: file.__setitem__(name, h5py.ExternalLink("other.h5", "kernel")), "got none"),
        (lambda file, name: file.__setitem__(name, h5py.SoftLink("/model_weights/conv2")), "got none"),
        (lambda file, name: file.create_group(name), "an array 'conv1/kernel:0'"),
        (lambda file, name: None, "an array 'conv1/kernel:0'"),
        (virtual, "a plain float32 array"),
        (
            lambda file, name: file.create_dataset(name, SHAPE, "f4", compression="gzip"),
            "a plain float32 array",
        ),
        (lambda file, name: file.create_dataset(name, SHAPE, "f4", chunks=True), "a plain float32 array"),
        (lambda file, name: file.create_dataset(name, SHAPE, ">f4"), "a plain float32 array"),
        (lambda file, name: file.create_dataset(name, SHAPE, "f2"), "a plain float32 array"),
        (
            lambda file, name: file.create_dataset(name, SHAPE, "f4", external="/etc/passwd"),
            "a plain float32 array",
        ),
        (
            lambda file, name: file.create_dataset(name, dtype=h5py.Empty("f4").dtype, data=h5py.Empty("f4")),
            "a plain float32 array",
        ),
        (lambda file, name: file.create_dataset(name, SHAPE, "f4"), "within the file's"),  # never written
        (lambda file, name: file.create_dataset(name, (10**6, 10**6, 10**3), "f4"), "within the file's"),
        (lambda file, name: file.create_dataset(name, (0, 3), "f4"), "within the file's"),
        (lambda file, name: file.attrs.__delitem__("model_config"), "Save the model with model.save"),
        (lambda file, name: file.attrs.__setitem__("model_config", "{"), "a Keras model's config as JSON"),
        (
            lambda file, name: file.attrs.__setitem__("model_config", "[" * 99999),
            "a Keras model's config as JSON",
        ),
        (lambda file, name: file.attrs.__setitem__("model_config", 3), "a Keras model's config as JSON"),
        (
            lambda file, name: file["model_weights"].attrs.__delitem__("layer_names"),
            "layer_names of /model_weights",
        ),
        (
            lambda file, name: file["model_weights"].attrs.__setitem__("layer_names", ["conv1/../conv2"]),
            "a group 'conv1/../conv2'",
        ),
    ],
)
def test_larq_reads_plain_arrays_of_the_file_only(
    tmp_path: Path, change: Callable[[Any, str], Any], message: str
) -> None:
    with pytest.raises(ConvertError, match=message):
        convert(relink(larq_model().save(tmp_path), change))


def test_one_array_cannot_be_many_weights(tmp_path: Path) -> None:
    net = Keras()
    for i in range(50):
        source = f"c{i - 1}" if i else "image"
        net.layer("Conv2D", f"c{i}", source, lambda x: x, {"kernel": np.ones(1)}, **conv_config(3, (64, 64)))
    path = net.save(tmp_path)
    with h5py.File(path, "a") as file:
        file["array"] = np.ones((64, 64, 3, 3), np.float32)
        for i in range(50):
            group = file[f"model_weights/c{i}/c{i}"]
            del group["kernel:0"]
            group["kernel:0"] = file["array"]
    with pytest.raises(ConvertError, match="weights of at most 2 times the file"):
        convert(path)


@pytest.mark.parametrize("form", ["h5 2", "keras 3"])
def test_larq_cut_anywhere_is_an_error(tmp_path: Path, form: str) -> None:
    path = larq_model().save(tmp_path, form)
    whole = path.read_bytes()
    for end in [*range(0, 64, 5), *range(64, len(whole), 2999), *range(len(whole) - 64, len(whole), 7)]:
        path.write_bytes(whole[:end])
        assert issubclass(outcome(path), XnorError), end


def larq_bytes(form: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return grey_model().save(Path(folder), form).read_bytes()


def grey_config() -> str:
    return json.dumps(grey_model().config(2))


H5_BYTES = larq_bytes("h5 2")


@given(st.lists(POSITION_AND_VALUE, min_size=1, max_size=4))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_larq_damage_is_an_error_or_harmless(tmp_path: Path, damage: list[tuple[float, int, int]]) -> None:
    path = tmp_path / "net.h5"
    path.write_bytes(damaged(H5_BYTES, damage, structure=9000))
    assert outcome(path) is Model or issubclass(outcome(path), XnorError)


def test_larq_a_heap_without_end_is_refused(tmp_path: Path) -> None:
    """Over which the HDF5 library itself would go on for ever."""
    heap = H5_BYTES.index(b"GCOL\x01\0\0\0") + 16
    index, _, length = struct.unpack_from("<HH4xQ", H5_BYTES, heap)
    assert (index, length) == (1, len(grey_config()))
    path = tmp_path / "net.h5"
    path.write_bytes(H5_BYTES[:heap] + bytes(16) + H5_BYTES[heap + 16 :])
    with pytest.raises(ConvertError, match="objects of some size in a heap of the HDF5 file"):
        convert(path)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("index", [1, 9999])
def test_larq_a_string_longer_than_the_file_is_refused_unread(
    tmp_path: Path, libver: str, index: int
) -> None:
    path = tmp_path / "net.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file.attrs["model_config"] = grey_config()
        grey_model().write_named(file.create_group("model_weights"), 3)
    whole = path.read_bytes()
    convert(path)
    start = whole.index(b"GCOL\x01\0\0\0")
    reference = struct.pack("<IQI", len(grey_config()), start, 1)
    assert whole.count(reference) == 1
    changed = whole.replace(reference, struct.pack("<IQI", 2**31, start, index))
    path.write_bytes(changed)
    with pytest.raises(ConvertError, match=r"model_config of / within the file's|cut or damaged"):
        convert(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_larq_any_value_in_the_config_is_an_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "net.h5"
    sequential = data.draw(st.booleans())
    config = grey_model().config(data.draw(st.sampled_from([2, 3])), sequential)
    at: Any = config
    while True:
        key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        if not at[key] or not isinstance(at[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            break
        at = at[key]
    at[key] = data.draw(JSON_VALUES)
    path.write_bytes(H5_BYTES)
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = json.dumps(config)
    assert outcome(path) is Model or issubclass(outcome(path), XnorError)


def test_larq_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = larq_model().save(tmp_path, "keras 3")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ConvertError, match="which expands"):
        convert(path)


def test_without_their_packages_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, package in (
        (lce_graph().save(tmp_path), "flatbuffers.table"),
        (larq_model().save(tmp_path), "h5py"),
        (larq_model().save(tmp_path, "keras 3"), "h5py"),
    ):
        convert(path)
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(ConvertError, match=r'pip install "xnor-rrm\[convert\]"'):
                convert(path)


def test_they_are_recognised_by_their_contents(tmp_path: Path) -> None:
    for path, importer in (
        (lce_graph().save(tmp_path), lce),
        (larq_model().save(tmp_path), larq),
        (larq_model().save(tmp_path, "keras 2"), larq),
    ):
        source = Checkpoint(path.rename(tmp_path / "net.bin"))
        assert [each for each in IMPORTERS if each.recognise(source)] == [importer]


def test_unused_weights_may_be_accepted(tmp_path: Path) -> None:
    keras = larq_model()
    keras.find("drop")["weights"]["spare"] = np.zeros(2, np.float32)
    tflite = lce_graph()
    tflite.constant(np.zeros(2, np.float32), "spare")
    for path in (keras.save(tmp_path), tflite.save(tmp_path)):
        with pytest.raises(ConvertError, match=r"only tensors this importer knows, got 1 more: .*spare"):
            convert(path)
        assert "spare" in convert(path, accept_unused=True).info["unused"]


def test_sizes_are_told_by_layer(tmp_path: Path) -> None:
    sizes = bring_over(larq_model().save(tmp_path)).sizes
    assert sizes["conv1/kernel"] == 4 * 3 * 3 * 32 * 32
    assert sizes["norm1/gamma"] == 4 * 32
    sizes = bring_over(lce_graph().save(tmp_path)).sizes
    assert sizes["second.input1"] == 4 * 40 * 3 * 3 * 2
    assert sizes["conv.input2"] == 4 * 8
