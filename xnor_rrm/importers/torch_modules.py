"""Modules of PyTorch training codes as layers, one after the other."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..bits import pack_signs
from ..model import (
    INPUT,
    Affine,
    Array,
    BinaryConv2d,
    Conv2d,
    InputRule,
    Layer,
    MaxPool,
    Relu,
    Shape,
    Sign,
    Window,
)
from .checkpoint import Tensors, flat_affine, refuse_zero_shift


class Modules:
    """Each method adds the layers of a module, which reads the layer `last`, by the module's name.

    All raise ConvertError for tensors missing or misshapen, ModelError for layers that do not fit.
    """

    def __init__(self, tensors: Tensors, rule: InputRule) -> None:
        self.tensors = tensors
        self.layers: list[Layer] = []
        self.last = INPUT
        self._shapes: dict[str, Shape] = {INPUT: (*rule.crop, rule.channels)}

    @property
    def shape(self) -> Shape:
        """(H, W, C) of what the next module reads."""
        return self._shapes[self.last]

    def add(self, layer: Layer) -> None:
        self._shapes[layer.name] = layer.output_shape(*(self._shapes[name] for name in layer.inputs))
        self.layers.append(layer)
        self.last = layer.name

    def conv(self, name: str, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True) -> None:
        weight = self.kernel(name, kernel)
        values = self.bias(name, len(weight), bias)
        self.add(Conv2d(name, (self.last,), weight, values, square(kernel, stride, padding)))

    def linear(self, name: str) -> None:
        weight = self.whole_input(self.matrix(name))
        bias = self.bias(name, len(weight))
        self.add(Conv2d(name, (self.last,), weight, bias, Window(self.shape[:2])))

    def batch_norm(self, name: str, *, eps: float, affine: bool = True) -> None:
        self.add(self.tensors.take_torch_batch_norm(name, self.last, eps=eps, affine=affine))

    def relu(self, name: str) -> None:
        self.add(Relu(name, (self.last,)))

    def pool(self, name: str, kind: type[MaxPool], kernel: int, stride: int, padding: int = 0) -> None:
        self.add(kind(name, (self.last,), square(kernel, stride, padding)))

    def sign(self, name: str, *, eps: float, flat: bool = False) -> None:
        """The batch-norm `name`.bn and the sign before a binary module.

        flat : the batch-norm may also be over all values of the input, flattened, and then flattens them.
        """
        layer: Affine = self.tensors.take_torch_batch_norm(f"{name}.bn", self.last, eps=eps)
        refuse_zero_shift(layer)
        self.add(flat_affine(layer, self.shape) if flat and len(layer.scale) != self.shape[2] else layer)
        self.add(Sign(f"{name}.sign", (self.last,)))

    def binary(
        self, name: str, signs: npt.NDArray[np.bool_], alpha: Array, window: Window, bias: bool = True
    ) -> None:
        """signs : bool[Cout, kH, kW, Cin].  alpha : float32[Cout]."""
        weights = pack_signs(signs), alpha, self.bias(name, len(alpha), bias)
        self.add(BinaryConv2d(name, (self.last,), *weights, self.shape[2], window))

    def kernel(self, name: str, kernel: int) -> Array:
        """float32[Cout, kH, kW, Cin] of a convolution."""
        weight = self.tensors.take(f"{name}.weight", None, self.shape[2], kernel, kernel)
        return weight.transpose(0, 2, 3, 1)

    def matrix(self, name: str) -> Array:
        """float32[Cout, C * H * W] of a linear module."""
        return self.tensors.take(f"{name}.weight", None, math.prod(self.shape))

    def bias(self, name: str, length: int, there: bool = True) -> Array:
        """float32[length]; zeros where it is not there."""
        return self.tensors.take(f"{name}.bias", length) if there else np.zeros(length, np.float32)

    def whole_input(self, matrix: Array) -> Array:
        """[Cout, H, W, C] of the weights [..., C * H * W] of a linear module."""
        height, width, channels = self.shape
        return matrix.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)


def square(kernel: int, stride: int = 1, padding: int = 0) -> Window:
    return Window((kernel, kernel), (stride, stride), (padding,) * 4)
