"""Importers of graphs: ONNX files and torch modules compute what their own evaluators say, or are refused.

Oracles: onnx.reference and the modules' own forward for the networks, naive.py for the converted layers.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import naive
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xnor_rrm import Model, convert, load
from xnor_rrm.errors import ConvertError
from xnor_rrm.importers import bring_over
from xnor_rrm.importers.common import zeros
from xnor_rrm.importers.common.original import Original
from xnor_rrm.model import (
    Affine,
    BinaryConv2d,
    Concat,
    Conv2d,
    InputRule,
    Layer,
    MaxPool,
    PRelu,
    Sign,
    Upsample,
    Window,
)
from xnor_rrm.torch_reference import FloatTwin
from xnor_rrm.verify import VerifyReport, verify

torch = pytest.importorskip("torch")  # of an optional extra
onnx = pytest.importorskip("onnx")  # of an optional extra
evaluators = pytest.importorskip("onnx.reference")  # of an optional extra
op_run = pytest.importorskip("onnx.reference.op_run")  # of an optional extra
F, nn = torch.nn.functional, torch.nn

Array = npt.NDArray[Any]

QONNX = "qonnx.custom_op.general"

pytestmark = pytest.mark.usefixtures("one_thread")


def layers(model: Model, kind: type[Layer]) -> list[Any]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def frames(model: Model, count: int) -> Iterator[Array]:
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield rng.integers(0, 256, (*model.input_rule.crop, 3), dtype=np.uint8)


def inputs(model: Model, count: int) -> Iterator[Array]:
    """Preprocessed inputs, float32[H, W, C]."""
    channels = np.arange(model.input_rule.channels)
    for frame in frames(model, count):
        yield model.input_rule.table()[frame[..., : len(channels)], channels]


def assert_computes(
    model: Model, original: Original, oracle: Callable[[Array], Array], count: int = 3
) -> None:
    """The converted layers, and `original`, give the oracle's logits, and all signs agree.

    oracle : from float32[1, C, H, W] to what the network's own evaluator makes of it.
    """
    for x in inputs(model, count):
        expected = oracle(np.ascontiguousarray(x.transpose(2, 0, 1))[None]).reshape(-1)
        logits, kept = original(x)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        values = naive.forward(model, x)
        assert set(kept) == {layer.name for layer in layers(model, Sign)}
        for sign in layers(model, Sign):
            before = kept[sign.name]
            assert np.abs(before).min() > 1e-6, "choose another seed"
            np.testing.assert_array_equal(values[sign.name], np.where(before >= 0, 1, -1), sign.name)
            np.testing.assert_allclose(values[sign.inputs[0]], before, rtol=1e-3, atol=1e-4)
        output = values[model.layers[-1].name].transpose(2, 0, 1).reshape(-1)
        np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)


def assert_passes(model: Model, original: Original) -> VerifyReport:
    """The engine computes what the original does."""
    report = verify(model, original, frames(model, 2))
    assert report.passed, report.failures
    assert max(layer.off for layer in report.layers.values()) < 1
    return report


# Modules of torch


class SignFunction(torch.autograd.Function):
    """The sign, with the gradient of a clip."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient * (ctx.saved_tensors[0].abs() <= 1)


class AtLeastZero(SignFunction):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))


class BinaryConv(nn.Module):
    """Weights alpha * sign(w), alpha the mean magnitude of a filter; `estimator`: the gradient of a clip."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, estimator: bool = False, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel) * 0.1)
        self.estimator, self.options = estimator, {"padding": kernel // 2} | options

    def forward(self, x: Any) -> Any:
        alpha = self.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = alpha * SignFunction.apply(self.weight)
        if self.estimator:
            clipped = self.weight.clamp(-1, 1)
            weight = weight.detach() - clipped.detach() + clipped
        return F.conv2d(x, weight, **self.options)


class Plain(nn.Module):
    """XNOR-Net's order: batch-norm, sign, convolution, ReLU, pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.norms = nn.ModuleList([nn.BatchNorm2d(12), nn.BatchNorm2d(16), nn.BatchNorm2d(16)])
        self.binary1, self.binary2 = BinaryConv(12, 16), BinaryConv(16, 16, kernel=1)
        self.head = nn.Linear(16 * 9, 5)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(self.norms[0](self.stem(x)), 2)
        x = F.relu(self.binary1(SignFunction.apply(x)))
        x = self.norms[1](F.avg_pool2d(x, 3, stride=2, padding=1))
        x = self.norms[2](self.binary2(torch.where(x >= 0, 1.0, -1.0)))
        return self.head(x.view(x.size(0), -1))


class BiReal(nn.Module):
    """Its activation: the sign's value, the gradient of a polynomial. Shortcuts around each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.binary1, self.norm1 = BinaryConv(8, 8, estimator=True), nn.BatchNorm2d(8)
        self.binary2, self.norm2 = BinaryConv(8, 16, estimator=True, stride=2), nn.BatchNorm2d(16)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.act, self.pool = nn.PReLU(8), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 4)

    @staticmethod
    def binarize(x: Any) -> Any:
        value = torch.sign(x)
        below, negative, small = x < -1, x < 0, x < 1
        first = (-1) * below.float() + (x * x + 2 * x) * (1 - below.float())
        second = first * negative.float() + (-x * x + 2 * x) * (1 - negative.float())
        third = second * small.float() + 1 * (1 - small.float())
        return value.detach() - third.detach() + third

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = self.act(self.norm1(self.binary1(self.binarize(x))) + x)
        x = self.norm2(self.binary2(self.binarize(x))) + self.shortcut(x)
        return F.log_softmax(self.head(torch.flatten(self.pool(x), 1)), dim=1)


class Varied(nn.Module):
    """Grey input, padding with +1, concatenation, upsampling, signs by arithmetic, binary linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding="same", groups=1), nn.BatchNorm2d(6), nn.Hardtanh()
        )
        self.binary = BinaryConv(6, 10, padding=0)
        self.norm, self.up = nn.BatchNorm2d(10), nn.Upsample(scale_factor=2)
        self.mixed = nn.Conv2d(16, 8, 3, stride=2, groups=2, dilation=2)
        self.norm2, self.norm3 = nn.BatchNorm2d(8), nn.BatchNorm1d(12)
        self.fc1, self.fc2 = nn.Linear(8 * 4, 12), nn.Linear(12, 7, bias=False)
        self.drop = nn.Dropout()

    def forward(self, x: Any) -> Any:
        x = self.stem(2 * (x / 3) - 0.5)
        bits = F.pad((x > 0.1).to(torch.float32) * 2 - 1, (1, 1, 1, 1), value=1.0)
        y = F.leaky_relu(self.norm(self.binary(bits)), 0.2)
        x = self.up(torch.cat([y, x], 1)).clamp(min=-2)
        x = self.norm2(F.max_pool2d(F.relu6(self.mixed(x)), 3, 2, ceil_mode=True))
        x = F.max_pool2d(torch.where(x < 0, -1.0, 1.0), 2)
        x = self.drop(x.flatten(1))
        x = self.norm3(F.linear(x, self.fc1.weight.sign() * 0.2, self.fc1.bias))
        x = F.linear(x.sign(), torch.sign(self.fc2.weight))
        return -x * self.fc2.weight.std() + 1


class Gated(nn.Module):
    """A softmax in the middle, bilinear upsampling, a shortcut of zeros, a batch-norm of a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.gate = nn.Conv2d(8, 8, 1)
        self.binary1, self.norm1 = BinaryConv(8, 14, stride=2), nn.BatchNorm2d(14)
        self.up = nn.Upsample(scale_factor=3, mode="bilinear")
        self.binary2, self.norm2 = BinaryConv(14, 6), nn.BatchNorm2d(6)
        self.flat, self.fc = nn.BatchNorm1d(6 * 4 * 4), nn.Linear(6 * 4 * 4, 5)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = x + torch.softmax(self.gate(x), dim=1)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 4))
        x = F.interpolate(self.norm1(self.binary1(SignFunction.apply(x))) + shortcut, scale_factor=2)
        x = self.norm2(self.binary2(SignFunction.apply(self.up(x) - 0.1)))
        x = self.flat(torch.flatten(F.avg_pool2d(F.pad(x, (1, 0, 0, 1, 0, 0)), 6, 6), 1))
        return F.linear(SignFunction.apply(x), self.fc.weight.sign() * 0.1, self.fc.bias)


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = BinaryConv(cin, cout, stride=stride, estimator=True), nn.BatchNorm2d(cout)
        self.conv2, self.norm2 = BinaryConv(cout, cout, estimator=True), nn.BatchNorm2d(cout)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Any) -> Any:
        x = self.norm1(self.conv1(AtLeastZero.apply(x))) + self.shortcut(x)
        x = F.hardtanh(x)
        x += self.norm2(self.conv2(SignFunction.apply(x)))
        return x


class ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.MaxPool2d(3, 2, 1)
        )
        sizes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
        self.blocks = nn.Sequential(*(Block(*size) for size in [*sizes, (256, 512, 2), (512, 512, 1)]))
        self.head = nn.Linear(512, 1000)

    def forward(self, x: Any) -> Any:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), (1, 1)).squeeze(3).squeeze(2))


def trained(module: Any) -> Any:
    """Batch-norms as after training, with negative scales among them."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(each.weight)
            nn.init.normal_(each.bias, std=0.3)
            nn.init.normal_(each.running_mean, std=0.2)
            nn.init.uniform_(each.running_var, 0.5, 2)
    return module


def forward(module: Any) -> Callable[[Array], Array]:
    def run(x: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(x)))

    return run


# ONNX, from graphs put together here


class Net:
    """An ONNX graph, node by node; each method returns the name of the value that its node makes."""

    def __init__(self, seed: int = 0, size: int = 9, channels: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.arrays: dict[str, Array] = {}
        self.dims: list[Any] = [1, channels, size, size]
        self.channels = {"x": channels}

    def array(self, values: Any) -> str:
        name = f"c{len(self.arrays)}"
        self.arrays[name] = np.asarray(values)
        return name

    def node(
        self, op: str, *names: str, channels: int | None = None, domain: str = "", **attributes: Any
    ) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, names, [name], name=name, domain=domain, **attributes))
        known = next((self.channels[each] for each in names if each in self.channels), 0)
        self.channels[name] = channels or known
        return name

    def floats(self, *shape: int) -> Array:
        return self.rng.normal(size=shape).astype(np.float32)

    def batch_norm(self, source: str) -> str:
        c = self.channels[source]
        variance = self.rng.uniform(0.5, 2, c).astype(np.float32)
        arrays = [self.array(a) for a in (self.floats(c), self.floats(c), self.floats(c), variance)]
        return self.node("BatchNormalization", source, *arrays, epsilon=1e-3)

    def conv(self, source: str, cout: int, kernel: int = 3, groups: int = 1, **attributes: Any) -> str:
        weight = self.floats(cout, self.channels[source] // groups, kernel, kernel) * np.float32(0.3)
        names = self.array(weight), self.array(self.floats(cout))
        return self.node("Conv", source, *names, channels=cout, group=groups, **attributes)

    def signs(self, *shape: int) -> Array:
        return np.where(self.rng.random(shape) < 0.5, np.float32(1), np.float32(-1))

    def binary_weight(self, cout: int, cin: int, kernel: int) -> Array:
        alpha = self.rng.uniform(0.05, 0.5, (cout, 1, 1, 1)).astype(np.float32)
        return self.signs(cout, cin, kernel, kernel) * alpha

    def binary(self, source: str, cout: int, kernel: int = 3, **attributes: Any) -> str:
        """A convolution of a value that is signs already."""
        weight = self.binary_weight(cout, self.channels[source], kernel)
        return self.node("Conv", source, self.array(weight), channels=cout, **attributes)

    def bipolar(self, source: str, scale: float = 1.0) -> str:
        return self.node("BipolarQuant", source, self.array(np.float32(scale)), domain=QONNX)

    def where(self, source: str, op: str = "GreaterOrEqual", **levels: float) -> str:
        at_least = self.node(op, source, self.array(np.float32(0)))
        when, otherwise = (
            self.array(np.float32(levels.get(key, value))) for key, value in (("a", 1), ("b", -1))
        )
        return self.node("Where", at_least, when, otherwise)

    def head(self, source: str, classes: int = 5) -> str:
        pooled = self.node("Flatten", self.node("GlobalAveragePool", source))
        weight = self.floats(classes, self.channels[source])
        return self.node("Gemm", pooled, self.array(weight), self.array(self.floats(classes)), transB=1)

    def build(self, opset: int = 17) -> Any:
        output = self.nodes[-1].output[0] if self.nodes else "x"
        graph = onnx.helper.make_graph(
            self.nodes,
            "net",
            [onnx.helper.make_tensor_value_info("x", 1, self.dims)],
            [onnx.helper.make_tensor_value_info(output, 1, None)],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.arrays.items()],
        )
        opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(QONNX, 1)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def save(self, folder: Path, opset: int = 17) -> Path:
        (folder / "net.onnx").write_bytes(self.build(opset).SerializeToString())
        return folder / "net.onnx"


class BipolarQuant(op_run.OpRun):
    op_domain = QONNX

    def _run(self, x: Array, scale: Array) -> tuple[Array]:
        return (np.where(x >= 0, scale, -scale).astype(np.float32),)


def reference(path: Path, output: str = "") -> Callable[[Array], Array]:
    """The whole graph by onnx's evaluator, up to a value if one is named."""
    evaluator = evaluators.ReferenceEvaluator(onnx.load(path), new_ops=[BipolarQuant])
    if not output:
        return lambda x: evaluator.run(None, {"x": x})[0]
    return lambda x: evaluator.run(None, {"x": x}, intermediate=True)[output]


def sequential(net: Net) -> str:
    x = net.node("Relu", net.batch_norm(net.conv("x", 16, pads=[1, 1, 1, 1])))
    x = net.node("Sign", net.batch_norm(x))
    x = net.batch_norm(net.binary(x, 24, pads=[1, 1, 1, 1], strides=[2, 2]))
    x = net.node("MaxPool", net.where(x), kernel_shape=[2, 2], strides=[1, 1])
    x = net.batch_norm(net.binary(x, 20, kernel=1))
    x = net.node("Flatten", net.node("Sign", x))
    alpha = net.rng.uniform(0.1, 0.4, 7).astype(np.float32)
    weight = net.signs(20 * 4 * 4, 7) * alpha
    return net.node("Add", net.node("MatMul", x, net.array(weight)), net.array(net.floats(7)))


def residual(net: Net) -> str:
    x = net.batch_norm(net.conv("x", 16, pads=[1, 1, 1, 1]))
    slope = net.rng.uniform(0.1, 0.4, (16, 1, 1)).astype(np.float32)
    y = net.batch_norm(net.binary(net.node("Sign", x), 16, pads=[1, 1, 1, 1]))
    x = net.node("PRelu", net.node("Add", x, y), net.array(slope))
    x = net.node("Add", x, net.array(net.floats(1, 16, 1, 1)))
    y = net.batch_norm(net.binary(net.where(x), 32, strides=[2, 2], pads=[1, 1, 1, 1]))
    pooled = net.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    x = net.node("Sub", y, net.batch_norm(net.conv(pooled, 32, kernel=1)))
    return net.head(net.node("Clip", x, net.array(np.float32(-1)), net.array(np.float32(1))))


def concatenation(net: Net) -> str:
    stem = net.batch_norm(net.conv("x", 12, groups=3, auto_pad="SAME_UPPER", strides=[2, 2]))
    bits = net.bipolar(stem, 0.7)
    other = net.bipolar(net.batch_norm(net.conv(stem, 12, kernel=1)), 0.7)
    both = net.node("Concat", bits, other, axis=1, channels=24)
    x = net.batch_norm(net.binary(both, 16, pads=[0, 1, 2, 1], dilations=[1, 1]))
    x = net.node("Concat", net.node("LeakyRelu", x, alpha=0.2), stem, axis=1, channels=28)
    x = net.node("Resize", x, "", net.array(np.float32([1, 1, 2, 2])), mode="nearest")
    x = net.binary(net.bipolar(net.batch_norm(x)), 9, dilations=[2, 2], pads=[2, 2, 2, 2])
    x = net.node("Mul", x, net.array(np.float32(0.5)))
    x = net.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    x = net.node("ReduceMean", net.batch_norm(x), axes=[2, 3], keepdims=0)
    return net.node("Softmax", net.node("Dropout", x), axis=1)


def padded_with_ones(net: Net) -> str:
    x = net.batch_norm(net.conv("x", 8, auto_pad="SAME_LOWER"))
    pads = net.array(np.int64([0, 0, 1, 1, 0, 0, 1, 2]))
    x = net.node("Pad", net.where(x, a=0.5, b=-0.5), pads, net.array(np.float32(0.5)))
    x = net.batch_norm(net.binary(x, 16))
    # Padded with zeros before the sign: these become +1.
    x = net.bipolar(net.node("Pad", x, net.array(np.int64([0, 0, 1, 1, 0, 0, 1, 1]))))
    x = net.batch_norm(net.binary(x, 8))
    x = net.node("Pad", net.where(x, "Less", a=-1, b=1), pads, net.array(np.float32(-1)))
    return net.head(net.binary(x, 8))


def computed_weights(net: Net) -> str:
    x = net.batch_norm(net.conv("x", 8, strides=[2, 2]))
    latent = net.array(net.floats(16, 8, 3, 3))
    alpha = net.node("ReduceMean", net.node("Abs", latent), axes=[1, 2, 3])
    weight = net.node("Mul", net.node("Sign", latent), alpha)
    bits = net.node("Cast", net.node("Greater", x, net.array(np.float32(0.1))), to=1)
    signs = net.node("Sub", net.node("Mul", bits, net.array(np.float32(2))), net.array(np.float32(1)))
    x = net.batch_norm(net.node("Conv", signs, weight, channels=16))
    weight = net.node("Transpose", net.bipolar(net.array(net.floats(6, 64)), 0.3), perm=[1, 0])
    batch = net.node("Gather", net.node("Shape", x), net.array(np.int64(0)), axis=0)
    batch = net.node("Unsqueeze", batch, net.array(np.int64([0])))
    shape = net.node("Concat", batch, net.array(np.int64([-1])), axis=0)
    x = net.node("Reshape", net.node("Sign", x), shape)
    x = net.node("Gemm", x, weight, net.array(net.floats(6)), alpha=0.5)
    return net.node("LogSoftmax", net.node("Div", x, net.array(np.float32(3))), axis=-1)


def gated(net: Net) -> str:
    """A softmax in the middle, a shortcut of every second pixel and zeros, bilinear upsampling."""
    x = net.batch_norm(net.conv("x", 8, pads=[1, 1, 1, 1]))
    x = net.node("Add", x, net.node("Softmax", net.conv(x, 8, kernel=1), axis=1))
    ends = [net.array(np.int64(each)) for each in ([0, 0], [2**31, 2**31], [2, 3], [2, 2])]
    shortcut = net.node("Slice", x, *ends)
    pads = net.array(np.int64([0, 2, 0, 0, 0, 6, 0, 0]))
    shortcut = net.node("Pad", shortcut, pads, channels=16)
    x = net.batch_norm(net.binary(net.where(x), 16, strides=[2, 2], pads=[1, 1, 1, 1]))
    x = net.node("Add", shortcut, x)
    x = net.node("Resize", x, "", net.array(np.float32([1, 1, 2, 2])), mode="linear", antialias=0)
    x = net.batch_norm(net.binary(net.node("Sign", net.batch_norm(x)), 8))
    sizes = net.array(np.int64([1, 8, 24, 24]))
    place = {"coordinate_transformation_mode": "pytorch_half_pixel", "mode": "linear"}
    return net.head(net.node("Relu", net.node("Resize", x, "", "", sizes, **place)))


NETS = (sequential, residual, concatenation, padded_with_ones, computed_weights, gated)


def save(network: Callable[[Net], str], folder: Path, seed: int = 0) -> Path:
    net = Net(seed)
    network(net)
    return net.save(folder)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("network", NETS)
def test_onnx_computes_what_its_evaluator_does(
    tmp_path: Path, network: Callable[[Net], str], seed: int
) -> None:
    path = save(network, tmp_path, seed)
    conversion = bring_over(path)
    last = onnx.load(path).graph.node[-1]
    logits = last.input[0] if "Softmax" in last.op_type else ""
    assert_computes(conversion.model, conversion.original(), reference(path, logits))


def test_onnx_becomes_the_layers_that_it_means(tmp_path: Path) -> None:
    model = convert(save(padded_with_ones, tmp_path))
    assert [layer.pad_value for layer in layers(model, BinaryConv2d)] == [1, 1, -1]
    assert [layer.window.padding for layer in layers(model, BinaryConv2d)] == [
        (1, 1, 1, 2),
        (1,) * 4,
        (1, 1, 1, 2),
    ]
    model = convert(save(concatenation, tmp_path))
    assert [len(layer.inputs) for layer in layers(model, Concat)] == [2, 2]
    assert layers(model, Conv2d)[0].groups == 3
    assert isinstance(layers(model, PRelu)[0], PRelu)
    model = convert(save(sequential, tmp_path))  # a pool of signs is a pool before the sign
    (pool,) = layers(model, MaxPool)
    assert [layer.inputs for layer in layers(model, Sign)][1] == (pool.name,)
    assert not layers(model, Affine)[-1].name.startswith("add"), "a bias alone is no layer"
    assert model.info["source"] == "net.onnx"


def scaled_later(net: Net) -> str:
    """Weights of +-1, the scale and the bias after the convolution; signs in [0, 1] made opposite later."""
    x = net.batch_norm(net.conv("x", 6))
    x = net.node(
        "Sub", net.node("Mul", net.where(x, a=1, b=0), net.array(np.float32(2))), net.array(np.float32(1))
    )
    x = net.node("Conv", x, net.array(net.signs(5, 6, 3, 3)), channels=5)
    x = net.node("Mul", x, net.array(net.floats(1, 5, 1, 1)))
    return net.head(net.node("Add", net.array(net.floats(5, 1, 1)), x))


def test_onnx_scale_and_bias_go_into_the_convolution(tmp_path: Path) -> None:
    path = save(scaled_later, tmp_path)
    conversion = bring_over(path)
    assert_computes(conversion.model, conversion.original(), reference(path))
    assert [type(layer).__name__ for layer in conversion.model.layers] == [
        *("Conv2d", "Affine", "Sign", "BinaryConv2d", "AvgPool", "Conv2d")
    ]


@pytest.mark.parametrize("op", ["GreaterOrEqual", "Greater", "Less", "LessOrEqual"])
@pytest.mark.parametrize("first", [False, True])
def test_onnx_comparisons_are_right_at_the_threshold(tmp_path: Path, op: str, first: bool) -> None:
    net = Net(channels=1)
    threshold = net.array(np.float32([[[0.5]]]))
    x = net.node(op, *((threshold, "x") if first else ("x", threshold)), channels=1)
    x = net.node("Where", x, net.array(np.float32(1)), net.array(np.float32(-1)))
    net.node("Conv", x, net.array(np.float32([[[[1]]]])), channels=1)
    path = net.save(tmp_path)
    model = convert(path, mean=[0], std=[2])
    x = np.float32([0.5, np.nextafter(np.float32(0.5), np.float32(1)), -0.5, 0.4999999, 0.0, 1.0]).repeat(14)[
        :81
    ]
    expected = reference(path)(x.reshape(1, 1, 9, 9))
    values = naive.forward(model, x.reshape(9, 9, 1))
    np.testing.assert_array_equal(values[model.layers[-1].name][..., 0], expected[0, 0])


def test_onnx_of_older_opsets(tmp_path: Path) -> None:
    net = Net()
    x = net.node("Clip", net.conv("x", 4), min=-1.0, max=1.0)
    x = net.node("Upsample", x, net.array(np.float32([1, 1, 3, 3])), mode="nearest")
    x = net.node("Pad", x, pads=[0, 0, 1, 0, 0, 0, 1, 0], value=0.0)
    x = net.node("MaxPool", net.conv(x, 4), kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Squeeze", net.node("Squeeze", net.node("GlobalMaxPool", x), axes=[3]), axes=[2])
    net.node("MatMul", x, net.array(net.floats(4, 3)))
    path = net.save(tmp_path, opset=9)
    conversion = bring_over(path)
    assert_computes(conversion.model, conversion.original(), reference(path))


def test_onnx_input_sizes_and_rules(tmp_path: Path) -> None:
    def written(*dims: Any, channels: int = 3) -> Path:
        net = Net(channels=channels)
        net.dims = list(dims)
        net.head(net.conv("x", 4))
        return net.save(tmp_path)

    model = convert(written("batch", 3, "height", "width"), size=12)
    assert model.input_rule == InputRule((12, 12), 12, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert convert(written(1, 3, 224, 224)).input_rule.resize == 256
    assert convert(written(1, 3, 10, 20)).input_rule.resize == 20
    assert convert(written(1, 1, 28, 28, channels=1)).input_rule.mean == (33.3285,)
    model = convert(written(1, 3, 9, 9), mean="0, 0, 0", std=(255, 255, 255))
    assert (model.input_rule.mean, model.input_rule.std) == ((0, 0, 0), (255, 255, 255))
    for dims, options, message in [
        (("batch", 3, "h", "w"), {}, "Give its height and width as the option size"),
        ((1, 3, 9, 9), {"size": 8}, "an input of 9x9, as the file has it, got size 8"),
        ((1, 3, 9, 9), {"size": True}, "size as an integer of at least 1, got True"),
        ((2, 3, 9, 9), {}, "Export with a batch of 1"),
        ((1, 3, 9), {}, r"an input of shape \(1, C, H, W\)"),
        ((1, 4, 9, 9), {}, "an input of 1 or 3 channels"),
        ((1, 3, 2**40, 9), {}, "sides up to 8192"),
        ((1, 3, 9, 9), {"mean": [1, 2]}, "a number, or 3 of them, as the option mean"),
        ((1, 3, 9, 9), {"std": "a,b,c"}, "a number, or 3 of them, as the option std"),
        ((1, 3, 9, 9), {"std": [0, 1, 1]}, "positive std"),
        ((1, 3, 9, 9), {"transposed": True}, "options of ONNX .*: size, mean, std"),
    ]:
        with pytest.raises(ConvertError, match=message):
            convert(written(*dims), **options)


def test_onnx_of_torchs_own_exporter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = trained(Plain()).eval()
    path = tmp_path / "plain.onnx"
    try:
        torch.onnx.export(module, (torch.zeros(1, 3, 12, 12),), str(path), dynamo=False)
    except Exception as error:
        pytest.skip(f"this exporter wants more packages: {error}")  # newer ones of PyTorch do
    conversion = bring_over(path)
    assert_computes(conversion.model, conversion.original(), forward(module))


def straight_through(net: Net) -> str:
    """Signs less floats and the floats again; zeros padded before a strict comparison; signs of the input."""
    x = net.node("Mul", net.where("x"), net.array(np.float32(-1)))
    x = net.batch_norm(net.binary(x, 8, pads=[1, 1, 1, 1]))
    y = net.node("Mul", x, x)
    x = net.node("Add", y, net.node("Sub", net.node("Sign", x), y))
    x = net.batch_norm(net.binary(x, 8))
    for value in (0.25, 0.0):
        pads = net.array(np.int64([0, 0, 1, 0, 0, 0, 0, 1]))
        x = net.where(net.node("Pad", x, pads, net.array(np.float32(value))), "Greater")
        x = net.batch_norm(net.binary(x, 6, kernel=2))
    return net.head(x)


def test_onnx_straight_through_estimators_are_signs(tmp_path: Path) -> None:
    path = save(straight_through, tmp_path)
    conversion = bring_over(path)
    assert [layer.pad_value for layer in layers(conversion.model, BinaryConv2d)] == [0, 0, -1, 1]
    assert_computes(conversion.model, conversion.original(), reference(path))


def test_onnx_sums_stay_layers_where_the_convolution_is_read_too(tmp_path: Path) -> None:
    net = Net()
    weight = net.floats(4, 3, 3, 3)
    x = net.node("Conv", "x", net.array(weight), channels=4)
    y = net.node("Add", x, net.array(net.floats(4, 1, 1)))
    net.head(net.node("Add", x, y))
    path = net.save(tmp_path)
    conversion = bring_over(path)
    assert_computes(conversion.model, conversion.original(), reference(path))
    assert [type(layer).__name__ for layer in conversion.model.layers][:3] == ["Conv2d", "Affine", "Add"]


def test_a_converted_graph_is_saved_and_loaded(tmp_path: Path) -> None:
    model = convert(save(concatenation, tmp_path))
    model.save(tmp_path / "net.xnor")
    x = next(inputs(model, 1))
    np.testing.assert_array_equal(FloatTwin(load(tmp_path / "net.xnor"))(x), FloatTwin(model)(x))


# What ONNX graphs are refused for


def refused(change: Callable[[Net, str], str]) -> Callable[[Net], str]:
    """A change of a small network: given a float value of 8 channels."""

    def network(net: Net) -> str:
        return change(net, net.batch_norm(net.conv("x", 8)))

    return network


def one_weight(value: float) -> Callable[[Net, str], str]:
    def change(net: Net, x: str) -> str:
        weight = net.binary_weight(6, 8, 3)
        weight[2, 1, 1, 1] = value
        return net.node("Conv", net.where(x), net.array(weight), channels=6)

    return change


def one_weight_larger(net: Net, x: str) -> str:
    weight = net.binary_weight(6, 8, 3)
    weight[2, 1, 1, 1] *= 1.001
    return net.node("Conv", net.where(x), net.array(weight), channels=6)


def dots(n: int, pad: int) -> Callable[[Net, str], str]:
    """Sign of sums of n signs and no scale."""

    def change(net: Net, x: str) -> str:
        x = net.node("Conv", net.where(x), net.array(net.signs(4, 8, 1, 1)), channels=4)
        x = net.node("Conv", net.where(net.batch_norm(x)), net.array(net.signs(n, 4, 1, 1)), channels=n)
        x = net.where(net.batch_norm(x))
        return net.binary(net.node("Sign", net.binary(x, 3, pads=[pad] * 4)), 5)

    return change


REFUSED: list[tuple[Callable[[Net, str], str], str]] = [
    (
        lambda net, x: net.node(
            "Add", net.node("GlobalMaxPool", x), net.array(np.ones((8, 7, 7), np.float32))
        ),
        r"numbers for a value of \[1, 8, 1, 1\] in Add",
    ),
    (
        lambda net, x: net.binary(
            net.node(
                "Where",
                net.node("Greater", x, net.array(np.float32(0))),
                *[net.array(net.floats(8, 1, 1))] * 2,
            ),
            4,
        ),
        "one number after a sign in Where",
    ),
    (lambda net, x: net.node("Tanh", x), r"operators among Add, .*got Tanh tanh2"),
    (
        lambda net, x: net.head(net.node("Mul", x, x)),
        "a constant factor in Mul mul2, got two computed values",
    ),
    (one_weight(0.0), r"under the sign before Conv conv4, got 0\.231% of 432 that differ, by up to 0\.\d+"),
    (one_weight(7.5), r"of 432 that differ, by up to 7\.\d+\. Its input is binary, its weights are not"),
    (one_weight_larger, r"of 432 that differ, by up to [0-9.e-]+\. Its input is binary"),
    (one_weight(np.nan), "finite weights in Conv conv4"),
    (
        lambda net, x: net.binary(net.node("Sign", net.node("Relu", x)), 4),
        r"a sign whose input is never exactly 0, got Sign sign3, of which channel 0 can be\. sign\(0\) = 0",
    ),
    (
        lambda net, x: net.binary(net.node("Sign", net.node("Clip", x, net.array(np.float32(0)))), 4),
        "never exactly 0",
    ),
    (dots(2, 0), "a sign whose input is never exactly 0, got Sign sign"),
    (dots(3, 1), "a sign whose input is never exactly 0, got Sign sign"),
    (
        lambda net, x: net.node("Relu", net.where(x)),
        "a convolution or linear layer after a sign, got Relu relu4",
    ),
    (lambda net, x: net.batch_norm(net.where(x)), "a convolution or linear layer after a sign"),
    (lambda net, x: net.where(x), "a float layer as the output"),
    (lambda net, x: net.node("Add", net.where(x), x), "a convolution or linear layer after a sign, got Add"),
    (
        lambda net, x: net.binary(net.where(x, a=1, b=0), 4),
        "signs of two opposite levels, .* got levels 0 and 1",
    ),
    (lambda net, x: net.binary(net.where(x, a=1, b=1), 4), "two different, finite levels"),
    (
        lambda net, x: net.node("Conv", net.where(x), net.array(net.signs(8, 4, 3, 3)), group=2),
        "one group in a binary conv",
    ),
    (
        lambda net, x: net.conv(
            net.node("Pad", x, net.array(np.int64([0, 0, 1, 1] * 2)), net.array(np.float32(2))), 4
        ),
        "zeros around the input of Conv",
    ),
    (
        lambda net, x: net.binary(
            net.node("Pad", net.where(x), net.array(np.int64([0, 0, 1, 1] * 2)), net.array(np.float32(2))), 4
        ),
        "2 around them",
    ),
    (lambda net, x: net.node("Pad", x, net.array(np.int64([1, 0, 0, 0] * 2))), "padding of height, width"),
    (lambda net, x: net.node("Pad", x, net.array(np.int64([0, 2**40, 0, 0] * 2))), "up to 8192 channels"),
    (
        lambda net, x: net.binary(net.node("Pad", net.where(x), net.array(np.int64([0, 1, 0, 0] * 2))), 4),
        "a convolution or linear layer after a sign",
    ),
    (
        lambda net, x: net.node("Slice", x, *(net.array(np.int64([n])) for n in (1, 9, 2, 2))),
        "rows or columns at equal distances from the first on in Slice",
    ),
    (
        lambda net, x: net.node("Slice", x, *(net.array(np.int64([n])) for n in (0, 9, 1, 2))),
        "rows or columns at equal distances",
    ),
    (
        lambda net, x: net.node("Pad", x, net.array(np.int64([0, 0, 1, 1] * 2)), mode="reflect"),
        "mode constant in Pad pad2, got reflect",
    ),
    (lambda net, x: net.head(net.node("LogSoftmax", x, axis=1)), "nothing after LogSoftmax logsoftmax2"),
    (lambda net, x: net.node("Softmax", net.node("Flatten", x), axis=1), "a softmax over channels"),
    (lambda net, x: net.node("Softmax", x, axis=2), "a softmax over channels"),
    (
        lambda net, x: net.node("Resize", x, "", net.array(np.float32([1, 1, 2, 2])), mode="cubic"),
        "mode nearest or linear in Resize resize2, got cubic",
    ),
    (
        lambda net, x: net.node("Resize", x, net.array(np.float32([1, 1, 2, 2])), mode="linear"),
        "mode nearest in Resize resize2, got linear",
    ),
    (
        lambda net, x: net.node(
            "Resize",
            x,
            "",
            net.array(np.float32([1, 1, 2, 2])),
            mode="linear",
            coordinate_transformation_mode="asymmetric",
        ),
        "half_pixel coordinates in Resize resize2, got asymmetric",
    ),
    (
        lambda net, x: net.binary(
            net.node("Resize", net.where(x), "", net.array(np.float32([1, 1, 2, 2])), mode="linear"), 4
        ),
        "a convolution or linear layer after a sign, got Resize",
    ),
    (lambda net, x: net.node("Resize", x, "", net.array(np.float32([1, 1, 1.5, 1.5]))), "one integer factor"),
    (
        lambda net, x: net.node(
            "Resize",
            x,
            "",
            net.array(np.float32([1, 1, 2, 2])),
            coordinate_transformation_mode="align_corners",
        ),
        "pixels repeated",
    ),
    (
        lambda net, x: net.node("Resize", x, "", net.array(np.float32([1, 1, 2.0**30, 2.0**30]))),
        "values (of|from)",
    ),
    (
        lambda net, x: net.node("Reshape", x, net.array(np.int64([1, 4, -1]))),
        r"a flattening in Reshape reshape2",
    ),
    (lambda net, x: net.node("Transpose", x, perm=[0, 2, 3, 1]), "got Transpose transpose2"),
    (lambda net, x: net.node("Flatten", x, axis=2), "axis 1 in Flatten"),
    (lambda net, x: net.node("Flatten", x), "a flattened map"),
    (lambda net, x: net.node("MatMul", x, net.array(net.floats(7, 3))), "on flattened values in MatMul"),
    (lambda net, x: net.node("Concat", x, x, axis=2), "a concatenation of channels"),
    (lambda net, x: net.node("MaxPool", x, kernel_shape=[2, 2], storage_order=1), "storage_order 0"),
    (lambda net, x: net.node("MaxPool", x, kernel_shape=[2**40, 2]), "window of sizes up to 8192"),
    (lambda net, x: net.node("MaxPool", x, kernel_shape=[2, 2], strides=[0, 1]), "a two-dimensional window"),
    (lambda net, x: net.node("MaxPool", x, kernel_shape=[2, 2, 2]), "a two-dimensional kernel"),
    (lambda net, x: net.node("MaxPool", x, kernel_shape=[2, 2], auto_pad="SAME"), "a known auto_pad"),
    (
        lambda net, x: net.node(
            "AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1
        ),
        "an average pool whose windows end within the padding",
    ),
    (lambda net, x: net.node("ReduceMean", x, axes=[1]), "height and width as the axes"),
    (lambda net, x: net.node("Relu", x, alpha=1.0), "known attributes in Relu relu2, got alpha"),
    (lambda net, x: net.node("Clip", x, net.array(np.float32(2)), net.array(np.float32(1))), "low <= high"),
    (
        lambda net, x: net.node("Add", x, net.array(net.floats(1, 8, 7, 7))),
        "one number for each of 8 channels",
    ),
    (
        lambda net, x: net.node("Add", x, net.array(net.floats(8, 1, 1, 8))),
        r"numbers for a value of \[1, 8, 7, 7\] in Add",
    ),
    (
        lambda net, x: net.node("BatchNormalization", x, *[net.array(-(net.floats(8) ** 2))] * 4),
        "variances of at least 0 in Batch",
    ),
    (
        lambda net, x: net.node("BatchNormalization", x, *[net.array(net.floats(9) ** 2)] * 4),
        r"float32\[8\] as gamma of Batch",
    ),
    (
        lambda net, x: net.node(
            "BatchNormalization", x, *[net.array(net.floats(8) ** 2)] * 4, training_mode=1
        ),
        "training_mode 0",
    ),
    (lambda net, x: net.node("Conv", x, net.array(net.floats(4, 7, 3, 3))), "7 input channels"),
    (
        lambda net, x: net.node("Conv", x, net.array(net.floats(4, 8, 3, 3).astype(np.float64))),
        "float32.Cout",
    ),
    (lambda net, x: net.node("Conv", x, x), "a constant as input 1 of Conv"),
    (lambda net, x: net.node("Conv", x), "2 inputs of Conv"),
    (
        lambda net, x: net.node(
            "Gemm", net.node("Flatten", x), net.array(net.floats(3, 392)), transB=1, transA=1
        ),
        "transA 0",
    ),
    (lambda net, x: net.node("Cast", x, to=7), "float values"),
    (lambda net, x: net.node("Cast", x, to=10), "a cast to float32 or integers"),
    (
        lambda net, x: net.node(
            "Mul", x, net.node("Mul", net.array(net.floats(2**15, 1)), net.array(net.floats(1, 2**15)))
        ),
        "layers in proportion to the file",
    ),
    (
        lambda net, x: net.node(
            "Mul", x, net.node("Mul", net.array(net.floats(3)), net.array(net.floats(4)))
        ),
        "operands that fit in Mul",
    ),
    (lambda net, x: net.node("Relu", net.array(net.floats(3))), "computed from the network's"),
    (lambda net, x: net.node("Custom", x, domain="com.example"), "got com.example::Custom custom2"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_onnx_is_refused_by_operator_and_name(
    tmp_path: Path, change: Callable[[Net, str], str], message: str
) -> None:
    with pytest.raises(ConvertError, match=message):
        convert(save(refused(change), tmp_path))


def test_onnx_sign_of_sums_that_are_never_zero(tmp_path: Path) -> None:
    path = save(refused(dots(3, 0)), tmp_path)  # three signs: odd sums
    conversion = bring_over(path)
    assert_computes(conversion.model, conversion.original(), reference(path))


def test_onnx_initializers_that_nothing_reads_are_noted_if_accepted(tmp_path: Path) -> None:
    net = Net()
    net.head(net.conv("x", 4))
    net.arrays["spare"] = net.floats(3)
    path = net.save(tmp_path)
    with pytest.raises(ConvertError, match="only tensors this importer knows, got 1 more: spare"):
        convert(path)
    conversion = bring_over(path, accept_unused=True)
    assert conversion.model.info["unused"] == "1 more: spare"
    assert conversion.sizes["c0"] == 4 * 3 * 9 * 4


def test_onnx_refuses_only_what_the_output_needs(tmp_path: Path) -> None:
    net = Net()
    x = net.batch_norm(net.conv("x", 4))
    net.node("Tanh", x)
    net.head(x)
    assert layers(convert(net.save(tmp_path)), Conv2d)


# Hostile ONNX files

Change = Callable[[Any], Any]


def set_initializer(**fields: Any) -> Change:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(tensor, name)[:]
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)

    return change


def external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def cyclic(model: Any) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def shadowed(model: Any) -> None:
    model.graph.node[-1].output[0] = model.graph.node[0].output[0]


def doubling(model: Any) -> None:
    """A few nodes whose sizes grow as powers of two."""
    last = "x"
    for i in range(60):
        model.graph.node.append(onnx.helper.make_node("Concat", [last, last], [f"more{i}"], axis=1))
        last = f"more{i}"
    model.graph.output[0].name = last


def repeated(model: Any) -> None:
    """One weight, many convolutions."""
    widen, weight = np.ones((512, 3, 1, 1), np.float32), np.ones((512, 512, 1, 1), np.float32)
    for name, array in (("widen", widen), ("weight", weight)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    last = "x"
    for i in range(10_000):
        inputs = [last, "weight" if i else "widen"]
        model.graph.node.append(onnx.helper.make_node("Conv", inputs, [f"more{i}"]))
        last = f"more{i}"
    model.graph.output[0].name = last


def crowded(model: Any) -> None:
    for i in range(20_000):
        model.graph.node.append(onnx.helper.make_node("Relu", ["x"], [f"more{i}"]))


HOSTILE: list[tuple[Change, str]] = [
    (set_initializer(dims=[2**40, 3, 3, 3]), "values of initializer c0, which is"),
    (set_initializer(dims=[2**62, 2**62, 0, 2**62]), "values of initializer c0"),
    (set_initializer(dims=[-1, 3, 3, 3]), "sizes of initializer c0"),
    (set_initializer(dims=[1] * 40), "up to 8 sizes"),
    (set_initializer(dims=[]), "1 values of initializer c0"),
    (set_initializer(raw_data=b"\0" * 7), "values of initializer c0"),
    (set_initializer(raw_data=b""), "values of initializer c0"),
    (set_initializer(data_type=8), "initializer c0 of type"),
    (set_initializer(data_type=10), "initializer c0 of type"),
    (set_initializer(data_type=99), "initializer c0 of type"),
    (set_initializer(name="c1"), "a name for each initializer"),
    (external, "initializer c0 inside the file, got external data. Save the model as one file"),
    (cyclic, "made before it"),
    (shadowed, "new names for the outputs"),
    (doubling, "values (of|from)"),
    (repeated, "layers in proportion to the file"),
    (crowded, "at most 16384 nodes"),
    (
        lambda model: model.graph.initializer.add(name="spare", data_type=1, dims=[0]),
        "got 1 more: spare",
    ),
    (lambda model: model.graph.node[0].ClearField("output"), "new names|made before"),
    (lambda model: model.graph.ClearField("output"), "one input and one output, got 1 and 0"),
    (lambda model: model.graph.input.add(name="y"), "one input and one output, got 2 and 1"),
    (lambda model: setattr(model.graph.output[0], "name", "nothing"), "an output computed from the input"),
    (lambda model: setattr(model.graph.output[0], "name", "x"), "a float layer as the output"),
    (lambda model: model.graph.ClearField("node"), "4 more: c0, c1"),
    (lambda model: model.functions.add(name="f"), "plain operators"),
    (lambda model: model.graph.sparse_initializer.add(), "dense weights"),
    (lambda model: setattr(model.opset_import[0], "version", 5), "an opset of 7 to"),
    (lambda model: setattr(model.opset_import[0], "version", 10**6), "an opset of 7 to"),
    (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 10), "a float32 input"),
    (lambda model: setattr(model.graph.node[0].attribute[0], "type", 1), "in Conv conv0"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_onnx_believes_nothing_in_a_file(tmp_path: Path, change: Change, message: str) -> None:
    net = Net()
    net.head(net.conv("x", 4, pads=[1, 1, 1, 1]))
    model = net.build()
    change(model)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "net.onnx")
    assert time.perf_counter() - start < 20
    assert tracemalloc.get_traced_memory()[1] < 150_000_000
    tracemalloc.stop()


def test_onnx_refuses_every_cut(tmp_path: Path) -> None:
    path = save(residual, tmp_path)
    whole = path.read_bytes()
    for end in [*range(40), *range(40, len(whole), len(whole) // 60), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(ConvertError):
            convert(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_onnx_damage_is_an_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    network = data.draw(st.sampled_from([concatenation, computed_weights]))
    content = bytearray(DAMAGED.setdefault(network, save(network, tmp_path).read_bytes()))
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of a file is weights; names, attributes and shapes lie before them.
        at = data.draw(st.integers(0, min(len(content), 3000) - 1) | st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    try:
        model = convert(path)
    except ConvertError:
        return
    assert model.layers


DAMAGED: dict[Any, bytes] = {}


def test_without_onnx_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(residual, tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConvertError, match=r'pip install "xnor-rrm\[convert\]"'):
        convert(path)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [(Plain, (3, 12, 12)), (BiReal, (3, 15, 15)), (Varied, (1, 11, 11)), (Gated, (3, 7, 7))],
)
def test_module_computes_what_torch_does(kind: Any, shape: tuple[int, int, int], seed: int) -> None:
    torch.manual_seed(seed)
    module = trained(kind()).eval()
    conversion = bring_over(module, input=shape)
    logits = forward(module)
    if kind is BiReal:  # which ends in a softmax
        logits = forward(nn.Sequential(Unsoftened(module)))
    original = conversion.original()
    assert_computes(conversion.model, original, logits)
    assert_passes(conversion.model, original)
    assert conversion.model.name == kind.__name__


def test_module_with_a_softmax_inside_becomes_layers() -> None:
    torch.manual_seed(0)
    model = convert(trained(Gated()).eval(), input=(3, 7, 7))
    assert [type(layer).__name__ for layer in model.layers].count("Softmax") == 1
    assert {each.interpolation for each in layers(model, Upsample)} == {"nearest", "bilinear"}
    assert [layer.weight.shape for layer in layers(model, Conv2d)][2:] == [(14, 1, 1, 8), (96, 4, 4, 1)]


class Unsoftened(nn.Module):
    """What a network gives to its final log_softmax."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        given = []
        handle = self.network.head.register_forward_hook(
            lambda _module, _inputs, output: given.append(output)
        )
        self.network(x)
        handle.remove()
        return given[0]


def test_a_module_as_large_as_resnet18() -> None:
    torch.manual_seed(0)
    module = trained(ResNet18()).eval()
    rule = InputRule((224, 224), 0, (123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    conversion = bring_over(module, input=rule)
    model, original = conversion.model, conversion.original()
    assert model.input_rule is rule
    assert sum(layer.weight.size * 64 for layer in layers(model, BinaryConv2d)) > 10_000_000
    assert {layer.name.rpartition(".")[0] for layer in layers(model, BinaryConv2d)} == {
        f"blocks.{i}.conv{j}" for i in range(8) for j in (1, 2)
    }
    x = next(inputs(model, 1))
    np.testing.assert_allclose(
        original(x)[0], forward(module)(x.transpose(2, 0, 1)[None])[0], rtol=1e-4, atol=1e-4
    )
    assert len(assert_passes(model, original).layers) == 16


def test_module_layers_are_what_it_means() -> None:
    torch.manual_seed(0)
    model = convert(trained(Varied()).eval(), input=(1, 11, 11), mean=[127.5], std=[127.5])
    assert model.input_rule == InputRule((11, 11), 11, (127.5,), (127.5,), channels=1)
    assert [layer.pad_value for layer in layers(model, BinaryConv2d)] == [
        -1,
        0,
        0,
    ]  # x > 0.1 is not -x >= -0.1
    assert [layer.window.kernel for layer in layers(model, BinaryConv2d)] == [(3, 3), (2, 2), (1, 1)]
    assert FloatTwin(model)(next(inputs(model, 1))).shape == (7,)


def sequence(*modules: Any) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *modules).eval()


class Function(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


MODULES: list[tuple[Callable[[], Any], str]] = [
    (lambda: sequence().train(), "a module in evaluation mode, .*Call module.eval"),
    (
        lambda: sequence(Function(lambda x: torch.sigmoid(x))),
        r"operators among .*got sigmoid \(2\.sigmoid in test_importers_graphs\.py, line \d+: return self",
    ),
    (lambda: sequence(Function(lambda x: x * x)), r"a constant in mul \(2\.mul"),
    (
        lambda: sequence(Function(lambda x: x.relu().sign()), BinaryConv(4, 4)),
        r"never exactly 0, got sign \(2\.sign in",
    ),
    (
        lambda: sequence(Function(torch.sign), nn.Conv2d(4, 4, 3)),
        r"under the sign before convolution \(3\.convolution_1.*of 144 that differ",
    ),
    (lambda: sequence(Function(torch.sign)), "a float layer as the output"),
    (
        lambda: sequence(Function(lambda x: x if x.sum() > 0 else -x)),
        "a module that torch.export traces for 3x9x9",
    ),
    (lambda: sequence(Function(lambda x: (x, x.relu()))), "one input and one output, got 1 and 2"),
    (lambda: sequence(Function(lambda x: x.double())), "float32 values, got torch.float64"),
    (lambda: sequence(nn.ConvTranspose2d(4, 4, 3)), "not transposed, got convolution"),
    (lambda: sequence(nn.AvgPool2d(2, divisor_override=3)), "the mean of the window in avg_pool2d"),
    (lambda: sequence(nn.AdaptiveAvgPool2d(3)), "a size that divides 7x7"),
    (lambda: sequence(nn.Upsample(scale_factor=1.5)), "one integer factor"),
    (lambda: sequence(nn.Upsample(scale_factor=1.5, mode="bilinear")), "one integer factor"),
    (
        lambda: sequence(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
        "align_corners=False in upsample_bilinear2d",
    ),
    (lambda: sequence(nn.Upsample(scale_factor=2, mode="bicubic")), "operators among"),
    (lambda: sequence(nn.LogSoftmax(1), nn.ReLU()), "nothing after _log_softmax"),
    (lambda: sequence(Function(lambda x: x[:, :, 1::2])), "rows or columns at equal distances"),
    (lambda: sequence(Function(lambda x: x[:, ::2])), "rows or columns at equal distances"),
    (lambda: sequence(Function(lambda x: F.pad(x, (0,) * 7 + (1,)))), "padding of height, width and chan"),
    (lambda: sequence(Function(lambda x: x.mean(1))), "height and width as the dimensions of mean"),
    (lambda: sequence(Function(lambda x: x.transpose(2, 3))), r"got permute|got transpose"),
    (lambda: sequence(Function(lambda x: torch.add(x, x, alpha=2))), "alpha 1 in add"),
    (lambda: sequence(Function(lambda x: x / 0)), "a constant divisor, not 0"),
    (lambda: sequence(Function(lambda x: torch.cat([x, x], 2))), "a concatenation of channels"),
    (lambda: sequence(nn.Conv2d(5, 4, 3)), "a module that torch.export traces"),
]


@pytest.mark.parametrize(("make", "message"), MODULES)
def test_module_is_refused_by_operator_and_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        convert(make(), input=(3, 9, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the option input: a shape"),
        ({"input": 9}, "the option input: a shape"),
        ({"input": (3, 9.0, 9)}, "the option input: a shape"),
        ({"input": (4, 9, 9)}, "an input of 1 or 3 channels"),
        ({"input": (3, 9, 9), "size": 9}, "options of torch.nn.Module.*: input, mean, std, got size"),
    ],
)
def test_module_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        convert(sequence(), **options)


def test_what_is_neither_a_path_nor_a_module_is_told_so() -> None:
    with pytest.raises(ConvertError, match=r"one of: .*torch\.nn\.Module.*got dict"):
        convert({})


def test_parameters_are_read_as_they_are_and_the_module_is_left_alone() -> None:
    module = trained(Plain()).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = convert(module, input=(3, 12, 12))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    layer = layers(model, Conv2d)[0]
    np.testing.assert_array_equal(layer.weight, before["stem.0.weight"].numpy().transpose(0, 2, 3, 1))


# Zeros before a sign


@pytest.mark.parametrize("pad", [0, 1, -1])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_sum_of_a_binary_convolution_is_known(pad: int, stride: int) -> None:
    window = Window((2, 2), (stride, stride), (1, 1, 1, 0))
    weight = np.zeros((1, 2, 2, 1), np.uint64)
    weight[0, 0, 1] = weight[0, 1, 0] = 1
    ones = np.ones(1, np.float32)
    layer = BinaryConv2d("binary", ("sign",), weight, ones, 0 * ones, 1, window, pad)
    signs, seen = np.where(weight.astype(bool), 1, -1), set()
    for image in range(2**9):
        x = np.array([1 if image >> i & 1 else -1 for i in range(9)]).reshape(3, 3, 1)
        seen |= set(naive.binary_conv(x, signs, window.stride, window.padding, pad_value=pad).flatten())
    found = zeros._dots(layer, (3, 3, 1), layer.output_shape((3, 3, 1)))
    assert seen <= set(found)
    assert (0 in seen) == (0 in found)
    if pad == 0:
        assert seen == set(found)
