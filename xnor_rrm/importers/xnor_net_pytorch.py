"""The CIFAR-10 network-in-network of XNOR-Net-PyTorch, saved with float latent weights.

    conv 5x5, BN, ReLU; binary blocks with pools between; BN, conv 1x1, ReLU, average pool 8x8

A block is BN -> sign -> conv -> ReLU, padded with 0 after the sign. Its weights are binarized as in
training: subtract the mean over the input channels, clamp to [-1, 1], alpha = mean |w| of each filter,
then the sign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..bits import pack_signs
from ..errors import ConvertError
from ..model import Array, AvgPool, BinaryConv2d, Conv2d, MaxPool, Model, Relu, Sign, Window
from . import cifar10
from .checkpoint import Chain, Checkpoint, Tensors, same_size
from .original import Keep, Original, batch_norm, in_float64, in_torch

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "XNOR-Net-PyTorch NIN (tensors xnor.N...)"
OPTIONS = {"transposed": "the network was trained on transposed images: swap height and width of its kernels"}

BN_EPS = 1e-4

#: The middle of the nn.Sequential, by index: the kernel of a binary block, or a pool.
BODY: dict[int, int | type[MaxPool]] = {
    3: 1,
    4: 1,
    5: MaxPool,
    6: 5,
    7: 1,
    8: 1,
    9: AvgPool,
    10: 3,
    11: 1,
}


def recognise(source: Checkpoint) -> bool:
    return source.has(lambda name: name.startswith("xnor."))


def read(source: Checkpoint, *, transposed: bool = False) -> Model:
    """The model. Raises ConvertError for tensors missing, misshapen or left over, or a weight of 0."""
    if not isinstance(transposed, bool):
        raise ConvertError("transposed as True or False", repr(transposed))
    tensors = Tensors(source.state_dict or {}, source)
    layers = Chain()

    def weight(module: str, cin: int, kernel: int) -> Array:
        latent = tensors.take(f"{module}.weight", None, cin, kernel, kernel)
        return latent.transpose(0, 3, 2, 1) if transposed else latent.transpose(0, 2, 3, 1)

    def float_conv(name: str, cin: int, kernel: int) -> int:
        values = weight(name, cin, kernel)
        bias = tensors.take(f"{name}.bias", len(values))
        layers.append(Conv2d(name, (layers.last,), values, bias, same_size(kernel)))
        return len(values)

    def binary_block(name: str, cin: int, kernel: int) -> int:
        layers.append(tensors.take_torch_batch_norm(f"{name}.bn", layers.last, eps=BN_EPS))
        layers.append(Sign(f"{name}.sign", (layers.last,)))
        signs, alpha = binarize(f"{name}.conv.weight", weight(f"{name}.conv", cin, kernel))
        weights = pack_signs(signs), alpha, tensors.take(f"{name}.conv.bias", len(alpha))
        layers.append(BinaryConv2d(f"{name}.conv", (layers.last,), *weights, cin, same_size(kernel)))
        layers.append(Relu(f"{name}.relu", (layers.last,)))
        return len(alpha)

    channels = float_conv("xnor.0", 3, kernel=5)
    layers.append(tensors.take_torch_batch_norm("xnor.1", layers.last, eps=BN_EPS, affine=False))
    layers.append(Relu("xnor.2", (layers.last,)))
    for index, part in BODY.items():
        if isinstance(part, int):
            channels = binary_block(f"xnor.{index}", channels, kernel=part)
        else:
            layers.append(part(f"xnor.{index}", (layers.last,), Window((3, 3), (2, 2), (1, 1, 1, 1))))
    layers.append(tensors.take_torch_batch_norm("xnor.12", layers.last, eps=BN_EPS, affine=False))
    classes = float_conv("xnor.13", channels, kernel=1)
    layers.append(Relu("xnor.14", (layers.last,)))
    layers.append(AvgPool("xnor.15", (layers.last,), Window((8, 8))))
    tensors.finish()

    info = {"source": source.path.name, "format": TITLE} | ({"transposed": "yes"} if transposed else {})
    return Model(source.name, cifar10.INPUT_RULE, tuple(layers), cifar10.labels(classes), info)


def binarize(name: str, latent: Array) -> tuple[npt.NDArray[np.bool_], Array]:
    """Signs bool[Cout, kH, kW, Cin] and alpha float32[Cout] of float32 latent weights of that shape.

    Raises ConvertError where a weight that counts is exactly zero: the original gives it no sign.
    """
    mean = latent.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)
    centred = np.clip(latent - mean, -1, 1)
    alpha = np.abs(centred).mean((1, 2, 3), dtype=np.float64).astype(np.float32)
    zeros = int((centred[alpha > 0] == 0).sum())
    if zeros:
        raise ConvertError(
            f"weights above or below 0 in {name!r}, less their mean", f"{zeros} zeros, of sign 0"
        )
    return centred > 0, alpha


def original(source: Checkpoint, *, transposed: bool = False) -> Original:
    """The network as it was trained; its input is transposed where its images were."""
    import torch.nn.functional as F  # noqa: N812  # torch's own name for it

    state = in_float64(source.state_dict or {})

    def forward(x: Tensor, keep: Keep) -> Tensor:
        def block(index: int, x: Tensor, padding: int = 0) -> Tensor:
            name = f"xnor.{index}"
            x = batch_norm(state, f"{name}.bn", x, 1e-4)
            keep(f"{name}.sign", x.transpose(2, 3) if transposed else x)
            w = state[f"{name}.conv.weight"]
            w = (w - w.mean(1, keepdim=True)).clamp(-1, 1)
            w = w.sign() * w.abs().mean((1, 2, 3), keepdim=True)
            return F.relu(F.conv2d(x.sign(), w, state[f"{name}.conv.bias"], padding=padding))

        x = x.transpose(2, 3) if transposed else x
        x = F.conv2d(x, state["xnor.0.weight"], state["xnor.0.bias"], padding=2)
        x = block(4, block(3, F.relu(batch_norm(state, "xnor.1", x, 1e-4))))
        x = F.max_pool2d(x, 3, 2, 1)
        x = block(8, block(7, block(6, x, padding=2)))
        x = F.avg_pool2d(x, 3, 2, 1)
        x = batch_norm(state, "xnor.12", block(11, block(10, x, padding=1)), 1e-4)
        return F.avg_pool2d(F.relu(F.conv2d(x, state["xnor.13.weight"], state["xnor.13.bias"])), 8)

    return in_torch(forward)
