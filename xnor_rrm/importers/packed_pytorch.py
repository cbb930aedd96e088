"""The networks of Pytorch-XNOR-Net, saved with packed signs: VGGs for CIFAR-10 and LeNet-5 for MNIST.

    conv0, bn0, ReLU; binary blocks; linear classifier                                    (VGG)
    conv1, bn1, ReLU, pool; conv2, bn2, ReLU, pool; fc1, bn3, ReLU; fc2, without biases   (LeNet-5)

A binary module is BN -> sign -> conv or linear (alpha, bias; padded with 0 after the sign, as in training).
Its weight is int32[Cout, words], bit i of the row being element i over (Cin, kH, kW), 1 = +1. In a VGG, convN
is followed by BN bn(N+1) and ReLU N+2; features are numbered through: a number left out is a 2x2 max pool.

The original takes sign(0) = 0: see common/zeros.py.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..bits import unpack_signs
from ..errors import ConvertError
from ..model import INPUT, Model, Window
from .common.checkpoint import Checkpoint
from .common.datasets import (
    CIFAR10_LABELS,
    CIFAR10_SIZE,
    IMAGENET_SCALE,
    MNIST_LABELS,
    MNIST_SCALE,
    MNIST_SIZE,
    square_rule,
)
from .common.options import Option
from .common.original import Keep, Original, batch_norm, in_float64, in_torch
from .common.torch_layers import Builder, square

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Pytorch-XNOR-Net VGG or LeNet-5 with packed weights (tensors features.convN.alpha or fc1.alpha)"
OPTIONS: tuple[Option, ...] = ()

BINARY_CONV = re.compile(r"features\.conv(\d{1,4})\.alpha")


def recognise(source: Checkpoint) -> bool:
    return source.has(BINARY_CONV.fullmatch) or _is_lenet(source)


def _is_lenet(source: Checkpoint) -> bool:
    return {"conv2.alpha", "fc1.alpha"} <= (source.state_dict or {}).keys()


def read(source: Checkpoint) -> Model:
    """The model. Raises ConvertError for tensors missing, misshapen or left over, and gaps in the numbers."""
    if _is_lenet(source):
        net = Net(source, square_rule(MNIST_SIZE, MNIST_SCALE))
        _lenet(net)
        return net.finish(MNIST_LABELS)
    net = Net(source, square_rule(CIFAR10_SIZE, IMAGENET_SCALE))
    _vgg(net)
    return net.finish(CIFAR10_LABELS)


class Net(Builder):
    """Binary modules, their weights packed."""

    def packed_conv(self, name: str, x: str, kernel: int, *, padding: int | None = None, bias: bool) -> str:
        """BN, sign, conv."""
        signs = self.sign(f"{name}.sign", self.batch_norm(f"{name}.bn", x))
        shape = (self.shapes[x][2], kernel, kernel)
        bits = self._bits(name, math.prod(shape)).reshape(-1, *shape).transpose(0, 2, 3, 1)
        alpha = self.tensors.take(f"{name}.alpha", len(bits), 1, 1, 1).reshape(-1)
        return self.binary_conv(name, signs, bits, alpha, square(kernel, padding=padding), bias)

    def packed_linear(self, name: str, x: str) -> str:
        """BN, over channels or all values, sign, linear without a bias."""
        signs = self.sign(f"{name}.sign", self.batch_norm(f"{name}.bn", x, flat=True))
        bits = self.whole_input(signs, self._bits(name, math.prod(self.shapes[signs])))
        alpha = self.tensors.take(f"{name}.alpha", len(bits), 1).reshape(-1)
        return self.binary_conv(name, signs, bits, alpha, Window(self.shapes[signs][:2]), False)

    def _bits(self, name: str, count: int) -> npt.NDArray[np.bool_]:
        """bool[Cout, count]."""
        words, width = self.tensors.take_raw(f"{name}.weight"), -(-count // 32)
        if words.dtype != np.int32 or words.shape[1:] != (width,):
            found = f"{words.dtype.name}{list(words.shape)}"
            raise ConvertError(f"int32[any, {width}] as '{name}.weight'", found)
        return unpack_signs(words.view(np.uint32), count)


def _lenet(net: Net) -> None:
    x = net.batch_norm("bn1", net.conv("conv1", INPUT, 5, padding=0, bias=False))
    x = net.max_pool("pool1", net.relu("relu1", x), 2, 2)
    x = net.batch_norm("bn2", net.packed_conv("conv2", x, 5, padding=0, bias=False))
    x = net.max_pool("pool2", net.relu("relu2", x), 2, 2)
    x = net.batch_norm("bn3", net.packed_linear("fc1", x))
    net.linear("fc2", net.relu("relu3", x))


def _vgg(net: Net) -> None:
    x = net.batch_norm("features.bn0", net.conv("features.conv0", INPUT, 3, bias=True))
    x = net.relu("features.relu0", x)
    following = 1
    for number in sorted(int(found[1]) for found in map(BINARY_CONV.fullmatch, net.state) if found):
        if number == following + 1:
            x = net.max_pool(f"features.pool{following}", x, 2, 2)
        elif number != following:
            expected = f"features.conv{following}, or conv{following + 1} after a pool"
            raise ConvertError(expected, f"features.conv{number}")
        x = net.packed_conv(f"features.conv{number}", x, 3, bias=True)
        x = net.batch_norm(f"features.bn{number + 1}", x)
        x = net.relu(f"features.relu{number + 2}", x)
        following = number + 3

    # No key tells of a pool after the last block, but the classifier's width does.
    height, width, channels = net.shapes[x]
    *_, inputs = net.stored_shape("classifier.weight") or (0,)
    if inputs == channels * (height // 2) * (width // 2):
        x = net.max_pool(f"features.pool{following}", x, 2, 2)
    elif inputs != channels * height * width:
        raise ConvertError(f"{channels * height * width} inputs of classifier.weight", str(inputs))
    net.linear("classifier", x)


def original(source: Checkpoint) -> Original:
    """The network as it was trained: +-alpha for weights, and 0 for what is outside the image."""
    import torch.nn.functional as F

    arrays = source.state_dict or {}
    state = in_float64(arrays)
    numbers = sorted(int(found[1]) for found in map(BINARY_CONV.fullmatch, arrays) if found)

    def weights(name: str, *shape: int) -> Tensor:
        rows = np.ascontiguousarray(arrays[f"{name}.weight"].astype("<i4")).view(np.uint8)
        bits = np.unpackbits(rows, axis=1, bitorder="little")[:, : math.prod(shape)]
        signs = state[f"{name}.alpha"].new_tensor(2.0 * bits - 1)
        return signs.reshape(-1, *shape) * state[f"{name}.alpha"]

    def bn(name: str, x: Tensor) -> Tensor:
        return batch_norm(state, name, x, 1e-5)

    def lenet(x: Tensor, keep: Keep) -> Tensor:
        x = F.max_pool2d(bn("bn1", F.conv2d(x, state["conv1.weight"])).relu(), 2)
        x = F.conv2d(keep("conv2.sign", bn("conv2.bn", x)).sign(), weights("conv2", x.shape[1], 5, 5))
        x = F.max_pool2d(bn("bn2", x).relu(), 2).flatten(1)
        x = F.linear(keep("fc1.sign", bn("fc1.bn", x)).sign(), weights("fc1", x.shape[1]))
        return F.linear(bn("bn3", x).relu(), state["fc2.weight"], state["fc2.bias"])

    def vgg(x: Tensor, keep: Keep) -> Tensor:
        classifier = state["classifier.weight"]
        x = F.conv2d(x, state["features.conv0.weight"], state["features.conv0.bias"], padding=1)
        x = bn("features.bn0", x).relu()
        x = x if 1 in numbers else F.max_pool2d(x, 2)
        for number in numbers:
            name = f"features.conv{number}"
            x = keep(f"{name}.sign", bn(f"{name}.bn", x)).sign()
            x = F.conv2d(x, weights(name, x.shape[1], 3, 3), state[f"{name}.bias"], padding=1)
            x = bn(f"features.bn{number + 1}", x).relu()
            pooled = number + 3 not in numbers
            if pooled and (number != numbers[-1] or x.numel() > classifier.shape[1]):
                x = F.max_pool2d(x, 2)
        return F.linear(x.flatten(), classifier, state["classifier.bias"])

    return in_torch(lenet if _is_lenet(source) else vgg)
