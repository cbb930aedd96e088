"""Networks in PyTorch, rebuilt layer by layer from the tensors of their modules."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from ...bits import pack_signs
from ...errors import ConvertError
from ...model import (
    Add,
    Affine,
    Array,
    AvgPool,
    BinaryConv2d,
    Conv2d,
    InputRule,
    Layer,
    MaxPool,
    Model,
    PRelu,
    Relu,
    Sign,
    Window,
)
from .checkpoint import Checkpoint, Tensors, scaled_signs
from .layers import Layers, flat_affine
from .zeros import refuse_zeros

#: torch.nn's own.
BN_EPS = 1e-5


class Builder:
    """Methods add the layer of a module, from its input x, and return its name.

    eps : of batch-norms.  state : the checkpoint's tensors.  shapes : (H, W, C) of what each layer makes.
    bias : whether the module has one; None for as the checkpoint has it.
    All methods raise ConvertError for tensors missing or misshapen, ModelError for layers that do not fit.
    """

    eps = BN_EPS

    def __init__(self, source: Checkpoint, rule: InputRule, state: Mapping[str, Array] | None = None) -> None:
        self.source, self.rule = source, rule
        self.state = (source.state_dict or {}) if state is None else state
        self.tensors = Tensors(self.state, source)
        self.layers = Layers((*rule.crop, rule.channels))
        self.shapes = self.layers.shapes

    def add(self, layer: Layer) -> str:
        return self.layers.add(layer)

    def finish(self, labels: tuple[str, ...] = ()) -> Model:
        """The model, with these names of classes if there are as many.

        Raises ConvertError for tensors left over, and where torch.sign can be taken of 0.
        """
        self.tensors.finish()
        layers = self.layers.finish()
        signs = {layer.name: layer.name for layer in layers if isinstance(layer, Sign)}
        refuse_zeros(self.layers, self.shapes, self.rule, signs)
        model = Model(self.source.name, self.rule, layers)
        return dataclasses.replace(model, labels=labels) if len(labels) == model.classes else model

    def stored_shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor of the checkpoint, () where there is none."""
        return self.state[tensor].shape if tensor in self.state else ()

    # Modules

    def conv(
        self,
        name: str,
        x: str,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool | None = None,
    ) -> str:
        """torch.nn.Conv2d; padded by half its kernel, if not told otherwise."""
        weight = self.kernel(name, x, kernel)
        geometry = square(kernel, stride, padding)
        return self.add(Conv2d(name, (x,), weight, self.bias(name, len(weight), bias), geometry))

    def linear(self, name: str, x: str) -> str:
        """torch.nn.Linear with a bias, of the flattened input."""
        weight = self.whole_input(x, self.matrix(name, x))
        bias = self.bias(name, len(weight), True)
        return self.add(Conv2d(name, (x,), weight, bias, Window(self.shapes[x][:2])))

    def binary_conv(
        self, name: str, signs: str, bits: Array, alpha: Array, geometry: Window, bias: bool | None = None
    ) -> str:
        """alpha * dot + bias, padded with 0.  bits : bool[Cout, kH, kW, Cin].  alpha : float32[Cout]."""
        weights = pack_signs(bits), alpha, self.bias(name, len(bits), bias)
        return self.add(BinaryConv2d(name, (signs,), *weights, bits.shape[3], geometry))

    def scaled_binary_conv(self, name: str, signs: str, kernel: int, stride: int = 1) -> str:
        """Weights alpha * sign(w), alpha = mean |w| of each filter, padded by half the kernel with 0.

        The latent weights are [Cout, Cin, kH, kW], or flat [N, 1], under `weight` or `weights`.
        """
        shape = (self.shapes[signs][2], kernel, kernel)
        key = f"{name}.weights" if f"{name}.weights" in self.state else f"{name}.weight"
        if len(self.stored_shape(key)) == 2:
            flat = self.tensors.take(key, None, 1)
            if flat.size % math.prod(shape):
                raise ConvertError(f"filters of {list(shape)} in {key!r}", f"{flat.size} weights")
            latent = flat.reshape(-1, *shape)
        else:
            latent = self.tensors.take(key, None, *shape)
        bits, alpha = scaled_signs(latent.transpose(0, 2, 3, 1), repr(key))
        return self.binary_conv(name, signs, bits, alpha, square(kernel, stride))

    def batch_norm(self, name: str, x: str, *, eps: float | None = None, flat: bool = False) -> str:
        """torch.nn.BatchNorm2d; if `flat`, perhaps 1d, over all values of the input, which it flattens."""
        layer = self.tensors.take_torch_batch_norm(name, x, eps=eps or self.eps)
        flat = flat and len(layer.scale) != self.shapes[x][2]
        return self.add(flat_affine(layer, self.shapes[x]) if flat else layer)

    def sign(self, name: str, x: str) -> str:
        return self.add(Sign(name, (x,)))

    def relu(self, name: str, x: str) -> str:
        return self.add(Relu(name, (x,)))

    def prelu(self, name: str, x: str) -> str:
        """torch.nn.PReLU with a slope for each channel."""
        return self.add(PRelu(name, (x,), self.tensors.take(f"{name}.weight", self.shapes[x][2])))

    def shift(self, name: str, x: str) -> str:
        """ReActNet's LearnableBias, x + bias; the tensor is `bias`[1, C, 1, 1]."""
        shift = self.tensors.take(f"{name}.bias", 1, self.shapes[x][2], 1, 1).reshape(-1)
        return self.add(Affine(name, (x,), np.ones_like(shift), shift))

    def sum(self, name: str, a: str, b: str) -> str:
        return self.add(Add(name, (a, b)))

    def subsample(self, name: str, x: str, channels: int, stride: int) -> str:
        """One pixel of `stride` each way, as many channels of 0 before those there are as behind."""
        cin = self.shapes[x][2]
        more = channels - cin
        if more < 0 or more % 2:
            raise ConvertError(f"{name} with weights", f"none, from {cin} channels to {channels}")
        weight = np.zeros((channels, 1, 1, cin), np.float32)
        weight[more // 2 : channels - more // 2, 0, 0] = np.eye(cin)
        return self.add(Conv2d(name, (x,), weight, np.zeros(channels, np.float32), square(1, stride)))

    def max_pool(self, name: str, x: str, kernel: int, stride: int, padding: int = 0) -> str:
        return self.add(MaxPool(name, (x,), square(kernel, stride, padding)))

    def avg_pool(self, name: str, x: str, kernel: int, stride: int | None = None, padding: int = 0) -> str:
        """torch.nn.AvgPool2d, which counts padding; its stride is its kernel, if not told otherwise."""
        return self.add(AvgPool(name, (x,), square(kernel, stride or kernel, padding)))

    def mean(self, name: str, x: str) -> str:
        """Of each channel."""
        return self.add(AvgPool(name, (x,), Window(self.shapes[x][:2])))

    # Their tensors

    def kernel(self, name: str, x: str, kernel: int) -> Array:
        """float32[Cout, kH, kW, Cin]: the weight of a convolution."""
        weight = self.tensors.take(f"{name}.weight", None, self.shapes[x][2], kernel, kernel)
        return weight.transpose(0, 2, 3, 1)

    def matrix(self, name: str, x: str) -> Array:
        """float32[Cout, C * H * W]: the weight of a linear module."""
        return self.tensors.take(f"{name}.weight", None, math.prod(self.shapes[x]))

    def whole_input(self, x: str, matrix: Array) -> Array:
        """[Cout, H, W, C] of [Cout, C * H * W], the order in which torch flattens x."""
        height, width, channels = self.shapes[x]
        return matrix.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)

    def bias(self, name: str, length: int, there: bool | None = None) -> Array:
        """float32[length]; zeros where it is not there."""
        there = f"{name}.bias" in self.state if there is None else there
        return self.tensors.take(f"{name}.bias", length) if there else np.zeros(length, np.float32)


def square(kernel: int, stride: int = 1, padding: int | None = None) -> Window:
    """A square window, padded by half of it if not told otherwise."""
    return Window((kernel,) * 2, (stride,) * 2, (kernel // 2 if padding is None else padding,) * 4)


def resnet_blocks(names: Iterable[str], last: str) -> list[tuple[str, int]]:
    """Name and stride of each block layerN.N of a ResNet, told by its tensor `last`, a regular expression.

    The first block of a layer has stride 2, but for the first layer's. Raises ConvertError for gaps in the
    numbers.
    """
    pattern = re.compile(rf"layer(\d{{1,3}})\.(\d{{1,4}})\.{last}")
    indices = sorted({(int(found[1]), int(found[2])) for found in map(pattern.fullmatch, names) if found})
    counts = Counter(stage for stage, _ in indices)
    for stage, index in indices:
        if not 0 < stage <= len(counts) or index >= counts[stage]:
            raise ConvertError("blocks numbered from layer1.0 on without a gap", f"layer{stage}.{index}")
    return [(f"layer{stage}.{index}", 1 if stage == 1 or index else 2) for stage, index in indices]
