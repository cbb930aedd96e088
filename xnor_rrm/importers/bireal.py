"""Bi-Real-Net: ResNets with a shortcut round every binary convolution, saved with float latent weights.

    conv 7x7/2, BN, max pool 3x3/2; blocks; global average pool; linear       ImageNet, 18 and 34 layers
    conv 3x3, BN; blocks; global average pool; linear                         CIFAR-10, 20 layers and more

A block is BN(conv(sign(x))) + shortcut(x), padded with 0 after the sign. Its weights are alpha * sign(w) with
alpha = mean |w| of each filter. The first block of layer2 and of each layer after it has stride 2. There the
shortcut is average pool 2x2/2, conv 1x1, BN where the checkpoint holds that convolution; else every second
pixel, with channels of zeros before and behind.

The original takes sign(0) = 0: see common/zeros.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import ConvertError
from ..model import INPUT, Model
from .common.checkpoint import Checkpoint
from .common.datasets import (
    CIFAR10_LABELS,
    CIFAR10_SCALE,
    CIFAR10_SIZE,
    IMAGENET_SCALE,
    IMAGENET_SIZE,
    SIZE,
    of_known_size,
    square_rule,
)
from .common.original import Keep, Original, batch_norm, in_float64, in_torch
from .common.torch_layers import Builder, resnet_blocks

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Bi-Real-Net ResNet (tensors layerN.N.binary_conv.weight or .weights)"
OPTIONS = (SIZE,)

#: Maps the name of a block and its value to another value.
Step = Callable[[str, "Tensor"], "Tensor"]

BINARY_CONV = re.compile(r"layer\d+\.\d+\.binary_conv\.weights?")


def recognise(source: Checkpoint) -> bool:
    return source.has(BINARY_CONV.fullmatch) and not source.has(lambda name: name.endswith(".move0.bias"))


def read(source: Checkpoint, *, size: int | None = None) -> Model:
    """The model. Raises ConvertError for tensors missing, misshapen or left over, or a weight of 0."""
    return read_resnet(source, block, size)


def read_resnet(
    source: Checkpoint, block: Callable[[Builder, str, str, int], str], size: int | None
) -> Model:
    """The model of a ResNet whose `block` adds, from name, input and stride, the layers of one."""
    state = source.state_dict or {}
    small = "conv1.weight" in state and state["conv1.weight"].shape[-1:] == (3,)
    if small:
        net = Builder(source, square_rule(size or CIFAR10_SIZE, CIFAR10_SCALE))
        x = net.batch_norm("bn1", net.conv("conv1", INPUT, 3))
    else:
        net = Builder(source, square_rule(size or IMAGENET_SIZE, IMAGENET_SCALE))
        x = net.batch_norm("bn1", net.conv("conv1", INPUT, 7, stride=2))
        x = net.max_pool("maxpool", x, 3, stride=2, padding=1)
    for name, stride in resnet_blocks(state, r"binary_conv\.weights?"):
        x = block(net, name, x, stride)
    net.linear("fc", net.mean("avgpool", x))
    return net.finish(CIFAR10_LABELS) if small else of_known_size(net.finish(), size)


def block(net: Builder, name: str, x: str, stride: int) -> str:
    signs = net.sign(f"{name}.sign", x)
    y = net.batch_norm(f"{name}.bn1", net.scaled_binary_conv(f"{name}.binary_conv", signs, 3, stride))
    return net.sum(f"{name}.sum", y, shortcut(net, name, x, y, stride))


def shortcut(net: Builder, name: str, x: str, y: str, stride: int) -> str:
    """What is added to y, the sums of the block `name` after their batch-norm."""
    cin, cout = net.shapes[x][2], net.shapes[y][2]
    if f"{name}.downsample.1.weight" in net.state:
        pooled = net.avg_pool(f"{name}.downsample.0", x, 2)
        return net.batch_norm(f"{name}.downsample.2", net.conv(f"{name}.downsample.1", pooled, 1))
    if (stride, cin) == (1, cout):
        return x
    if cin + 2 * (cout // 4) != cout:
        expected = f"{name}.downsample.1.weight, or a quarter of new channels on each side"
        raise ConvertError(expected, f"{cout} channels after {cin}")
    return net.subsample(f"{name}.downsample", x, cout, stride)


def original(source: Checkpoint, *, size: int | None = None) -> Original:
    """The network as it was trained, for images of any size."""
    del size
    return original_resnet(source, before_sign=lambda name, x: x, after_sum=lambda name, x: x)


def original_resnet(source: Checkpoint, before_sign: Step, after_sum: Step) -> Original:
    """The same with what a block does, by its name, before its sign and after its sum."""
    import torch.nn.functional as F

    state = in_float64(source.state_dict or {})
    norms = (name.removesuffix(".bn1.bias") for name in state if re.fullmatch(r"layer.*\.bn1\.bias", name))
    names = sorted(norms, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])

    def block(name: str, x: Tensor, keep: Keep, stride: int) -> Tensor:
        cout, cin = len(state[f"{name}.bn1.bias"]), x.shape[1]
        conv = f"{name}.binary_conv"
        w = state[f"{conv}.weights" if f"{conv}.weights" in state else f"{conv}.weight"]
        w = w.view(cout, cin, 3, 3)
        w = w.abs().mean((1, 2, 3), keepdim=True) * w.sign()
        signs = keep(f"{name}.sign", before_sign(name, x)).sign()
        y = F.conv2d(signs, w, state.get(f"{conv}.bias"), stride, padding=1)
        y = batch_norm(state, f"{name}.bn1", y, 1e-5)
        if f"{name}.downsample.1.weight" in state:
            x = F.conv2d(F.avg_pool2d(x, 2, stride), state[f"{name}.downsample.1.weight"])
            x = batch_norm(state, f"{name}.downsample.2", x, 1e-5)
        elif stride != 1 or cin != cout:
            x = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, cout // 4, cout // 4))
        return after_sum(name, y + x)

    def forward(x: Tensor, keep: Keep) -> Tensor:
        small = state["conv1.weight"].shape[-1] == 3
        x = F.conv2d(x, state["conv1.weight"], stride=1 if small else 2, padding=1 if small else 3)
        x = batch_norm(state, "bn1", x, 1e-5)
        if not small:
            x = F.max_pool2d(x, 3, 2, 1)
        for name in names:
            x = block(name, x, keep, 2 if name.endswith(".0") and name != "layer1.0" else 1)
        return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])

    return in_torch(forward)
