"""Networks in PyTorch, rebuilt layer by layer from the tensors of their modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from ..bits import pack_signs
from ..errors import ConvertError
from ..model import (
    INPUT,
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
    Shape,
    Sign,
    Window,
)
from .checkpoint import Chain, Checkpoint, Tensors, refuse_zeros, scaled_signs

#: torch.nn's own.
BN_EPS = 1e-5


class Builder:
    """Layers in order of execution. Methods add the layer of a module, from its input x, and return its name.

    state : the checkpoint's tensors.  shapes : (H, W, C) of what each layer makes.
    All methods raise ConvertError for tensors missing or misshapen, ModelError for layers that do not fit.
    """

    def __init__(self, source: Checkpoint, rule: InputRule) -> None:
        self.source, self.rule = source, rule
        self.state = source.state_dict or {}
        self.tensors = Tensors(self.state, source)
        self.layers = Chain()
        self.shapes: dict[str, Shape] = {INPUT: (*rule.crop, rule.channels)}

    def add(self, layer: Layer) -> str:
        self.shapes[layer.name] = layer.output_shape(*(self.shapes[name] for name in layer.inputs))
        self.layers.append(layer)
        return layer.name

    def finish(self, title: str, labels: tuple[str, ...]) -> Model:
        """The model. Raises ConvertError for tensors left over, and where a sign is taken of 0."""
        self.tensors.finish()
        refuse_zeros(self.layers)
        info = {"source": self.source.path.name, "format": title}
        return Model(self.source.name, self.rule, tuple(self.layers), labels, info)

    def stored_shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor of the checkpoint, () where there is none."""
        return self.state[tensor].shape if tensor in self.state else ()

    def conv(self, name: str, x: str, kernel: int, stride: int = 1) -> str:
        """torch.nn.Conv2d padded by half its kernel."""
        weight = self.tensors.take(f"{name}.weight", None, self.shapes[x][2], kernel, kernel)
        bias = self.bias(name, len(weight))
        return self.add(Conv2d(name, (x,), weight.transpose(0, 2, 3, 1), bias, window(kernel, stride)))

    def linear(self, name: str, x: str) -> str:
        """torch.nn.Linear of the flattened input."""
        weight = self.whole_input(name, x)
        bias = self.tensors.take(f"{name}.bias", len(weight))
        return self.add(Conv2d(name, (x,), weight, bias, Window(self.shapes[x][:2])))

    def scaled_binary_conv(self, name: str, signs: str, kernel: int, stride: int = 1) -> str:
        """Weights alpha * sign(w), alpha = mean |w| of each filter, padded by half the kernel with 0.

        The latent weights are [Cout, Cin, kH, kW], or flat [N, 1], under `weight` or `weights`.
        """
        shape = (self.shapes[signs][2], kernel, kernel)
        key = f"{name}.weights" if f"{name}.weights" in self.state else f"{name}.weight"
        if len(self.stored_shape(key)) == 2:
            flat = self.tensors.take(key, None, 1)
            if flat.size % np.prod(shape):
                raise ConvertError(f"filters of {list(shape)} in {key!r}", f"{flat.size} weights")
            latent = flat.reshape(-1, *shape)
        else:
            latent = self.tensors.take(key, None, *shape)
        bits, alpha = scaled_signs(latent.transpose(0, 2, 3, 1), repr(key))
        weights = pack_signs(bits), alpha, self.bias(name, len(latent))
        return self.add(BinaryConv2d(name, (signs,), *weights, shape[0], window(kernel, stride)))

    def batch_norm(self, name: str, x: str) -> str:
        """torch.nn.BatchNorm1d or 2d; gamma and beta where the checkpoint holds them."""
        affine = f"{name}.weight" in self.state
        return self.add(self.tensors.take_torch_batch_norm(name, x, eps=BN_EPS, affine=affine))

    def sign(self, name: str, x: str) -> str:
        return self.add(Sign(name, (x,)))

    def shift(self, name: str, x: str) -> str:
        """ReActNet's LearnableBias, x + bias; the tensor is `bias`[1, C, 1, 1]."""
        shift = self.tensors.take(f"{name}.bias", 1, self.shapes[x][2], 1, 1).reshape(-1)
        return self.add(Affine(name, (x,), np.ones_like(shift), shift))

    def prelu(self, name: str, x: str) -> str:
        """torch.nn.PReLU with a slope for each channel."""
        return self.add(PRelu(name, (x,), self.tensors.take(f"{name}.weight", self.shapes[x][2])))

    def sum(self, name: str, a: str, b: str) -> str:
        return self.add(Add(name, (a, b)))

    def max_pool(self, name: str, x: str, kernel: int, stride: int, padding: int = 0) -> str:
        return self.add(MaxPool(name, (x,), Window((kernel,) * 2, (stride,) * 2, (padding,) * 4)))

    def avg_pool(self, name: str, x: str, kernel: tuple[int, int]) -> str:
        """torch.nn.AvgPool2d with stride as large as its kernel."""
        return self.add(AvgPool(name, (x,), Window(kernel, kernel)))

    def bias(self, name: str, length: int) -> Array:
        """The bias of a module, zeros where it has none."""
        has_bias = f"{name}.bias" in self.state
        return self.tensors.take(f"{name}.bias", length) if has_bias else np.zeros(length, np.float32)

    def whole_input(self, name: str, x: str) -> Array:
        """float32[Cout, H, W, Cin]: the weight of a linear module that reads x as torch flattens it."""
        height, width, channels = self.shapes[x]
        weight = self.tensors.take(f"{name}.weight", None, channels * height * width)
        return weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)


def window(kernel: int, stride: int) -> Window:
    """A square window of odd size, padded by half of it."""
    return Window((kernel, kernel), (stride, stride), (kernel // 2,) * 4)


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
