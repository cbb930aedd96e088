"""The CIFAR-10 VGGs of Pytorch-XNOR-Net, saved with packed signs.

    conv0, bn0, ReLU; binary blocks; linear classifier

A block convN is BN -> sign -> conv (alpha, bias; padded with 0 after the sign), followed by BN bn(N+1) and
ReLU N+2. Its weight is int32[Cout, words], bit i of the row being element i over (Cin, kH, kW), 1 = +1. The
features are numbered through, so a number left out is a 2x2 max pool.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from ..bits import pack_signs, unpack_signs
from ..errors import ConvertError
from ..model import BinaryConv2d, Conv2d, MaxPool, Model, Relu, Sign, Window
from . import cifar10
from .checkpoint import Chain, Checkpoint, Tensors, same_size
from .original import Keep, Original, batch_norm, in_float64, in_torch

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Pytorch-XNOR-Net VGG with packed weights (tensors features.convN.alpha)"
OPTIONS: dict[str, str] = {}

KERNEL = 3
BN_EPS = 1e-5

BINARY_CONV = re.compile(r"features\.conv(\d{1,4})\.alpha")


def recognise(source: Checkpoint) -> bool:
    return source.has(BINARY_CONV.fullmatch)


def read(source: Checkpoint) -> Model:
    """The model. Raises ConvertError for tensors missing, misshapen or left over, and gaps in the numbers."""
    state = source.state_dict or {}
    tensors = Tensors(state, source)
    layers = Chain()
    size = cifar10.INPUT_RULE.crop[0]

    def float_conv(name: str) -> int:
        weight = tensors.take(f"{name}.weight", None, 3, KERNEL, KERNEL).transpose(0, 2, 3, 1)
        bias = tensors.take(f"{name}.bias", len(weight))
        layers.append(Conv2d(name, (layers.last,), weight, bias, same_size(KERNEL)))
        return len(weight)

    def binary_conv(name: str, cin: int) -> int:
        layers.append(tensors.take_torch_batch_norm(f"{name}.bn", layers.last, eps=BN_EPS))
        layers.append(Sign(f"{name}.sign", (layers.last,)))
        shape = (cin, KERNEL, KERNEL)
        width = -(-math.prod(shape) // 32)
        words = tensors.take_raw(f"{name}.weight")
        if words.dtype != np.int32 or words.shape[1:] != (width,):
            found = f"{words.dtype.name}{list(words.shape)}"
            raise ConvertError(f"int32[any, {width}] as '{name}.weight'", found)
        signs = (
            unpack_signs(words.view(np.uint32), math.prod(shape)).reshape(-1, *shape).transpose(0, 2, 3, 1)
        )
        alpha = tensors.take(f"{name}.alpha", len(words), 1, 1, 1).reshape(-1)
        bias = tensors.take(f"{name}.bias", len(words))
        window = same_size(KERNEL)
        layers.append(BinaryConv2d(name, (layers.last,), pack_signs(signs), alpha, bias, cin, window))
        return len(words)

    def max_pool(number: int) -> int:
        layers.append(MaxPool(f"features.pool{number}", (layers.last,), Window((2, 2), (2, 2))))
        return size // 2

    channels = float_conv("features.conv0")
    layers.append(tensors.take_torch_batch_norm("features.bn0", layers.last, eps=BN_EPS))
    layers.append(Relu("features.relu0", (layers.last,)))
    following = 1
    for number in sorted(int(found[1]) for found in map(BINARY_CONV.fullmatch, state) if found):
        if number == following + 1:
            size = max_pool(following)
        elif number != following:
            expected = f"features.conv{following}, or conv{following + 1} after a pool"
            raise ConvertError(expected, f"features.conv{number}")
        channels = binary_conv(f"features.conv{number}", channels)
        layers.append(tensors.take_torch_batch_norm(f"features.bn{number + 1}", layers.last, eps=BN_EPS))
        layers.append(Relu(f"features.relu{number + 2}", (layers.last,)))
        following = number + 3

    # No key tells of a pool after the last block, but the classifier's width does.
    weight = tensors.take("classifier.weight", None, None)
    if weight.shape[1] == channels * (size // 2) ** 2:
        size = max_pool(following)
    if weight.shape[1] != channels * size**2:
        raise ConvertError(f"{channels * size**2} inputs of classifier.weight", f"{weight.shape[1]}")
    kernel = weight.reshape(-1, channels, size, size).transpose(0, 2, 3, 1)
    bias = tensors.take("classifier.bias", len(weight))
    layers.append(Conv2d("classifier", (layers.last,), kernel, bias, Window((size, size))))
    tensors.finish()

    info = {"source": source.path.name, "format": TITLE}
    return Model(source.name, cifar10.INPUT_RULE, tuple(layers), cifar10.labels(len(weight)), info)


def original(source: Checkpoint) -> Original:
    """The network as it was trained: +-alpha for weights, and 0 for what is outside the image."""
    import torch.nn.functional as F  # noqa: N812  # torch's own name for it

    arrays = source.state_dict or {}
    state = in_float64(arrays)
    numbers = sorted(int(found[1]) for found in map(BINARY_CONV.fullmatch, arrays) if found)

    def weights(name: str, *shape: int) -> Tensor:
        rows = np.ascontiguousarray(arrays[f"{name}.weight"].astype("<i4")).view(np.uint8)
        bits = np.unpackbits(rows, axis=1, bitorder="little")[:, : math.prod(shape)]
        signs = state[f"{name}.bias"].new_tensor(2.0 * bits - 1)
        return signs.reshape(-1, *shape) * state[f"{name}.alpha"]

    def forward(x: Tensor, keep: Keep) -> Tensor:
        x = F.conv2d(x, state["features.conv0.weight"], state["features.conv0.bias"], padding=1)
        x = F.relu(batch_norm(state, "features.bn0", x, 1e-5))
        for number in numbers:
            name = f"features.conv{number}"
            x = keep(f"{name}.sign", batch_norm(state, f"{name}.bn", x, 1e-5)).sign()
            x = F.conv2d(x, weights(name, x.shape[1], 3, 3), state[f"{name}.bias"], padding=1)
            x = F.relu(batch_norm(state, f"features.bn{number + 1}", x, 1e-5))
            pooled = number + 3 not in numbers
            if pooled and (number != numbers[-1] or x.numel() > classifier.shape[1]):
                x = F.max_pool2d(x, 2)
        return F.linear(x.flatten(), classifier, state["classifier.bias"])

    classifier = state["classifier.weight"]
    return in_torch(forward)
