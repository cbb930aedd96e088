"""ReActNet: Bi-Real-Net's ResNets and a MobileNet, with learned shifts round signs and activations.

RSign is the sign of x + b. RPReLU is PReLU(x + b) + b', slopes and shifts of their own for each channel.
Binary convolutions have weights alpha * sign(w), alpha = mean |w| of each filter, and are padded with 0 after
the sign.

    layerN.N    RPReLU(BN(conv3x3(RSign(x))) + shortcut(x))
    feature.N   y = RPReLU(BN(conv3x3(RSign(x))) + x), then RPReLU(BN(conv1x1(RSign(y))) + y)

The ResNets begin and end as Bi-Real-Net's and have its shortcuts (bireal.py). The MobileNet is feature.0,
conv 3x3/2 and BN; such blocks; global average pool; linear. A block that doubles the channels has two
conv1x1, each with its BN and with y added, whose channels follow one another. Unless it makes 64 channels its
conv3x3 has stride 2, and x is first averaged over 2x2.

Checkpoints of training's first step hold the same tensors for the ResNets, but mean real weights: nothing in
them tells, and they are binarized. The MobileNet's name them `weight`, not `weights`, and are refused.

The original takes sign(0) = 0: see common/zeros.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import ConvertError
from ..model import INPUT, Array, Concat, Model
from . import bireal
from .common.checkpoint import Checkpoint
from .common.datasets import IMAGENET_SCALE, IMAGENET_SIZE, SIZE, of_known_size, square_rule
from .common.original import Keep, Original, batch_norm, in_float64, in_torch
from .common.torch_layers import Builder

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "ReActNet ResNet or MobileNet (tensors layerN.N.move0.bias or feature.N.move11.bias)"
OPTIONS = (SIZE,)

MOVE = re.compile(r"layer\d{1,3}\.\d{1,4}\.move0\.bias|feature\.(\d{1,4})\.move11\.bias")

#: The number of channels that a block doubles to without halving the image.
FULL_SIZE_CHANNELS = 64


def recognise(source: Checkpoint) -> bool:
    return source.has(MOVE.fullmatch)


def read(source: Checkpoint, *, size: int | None = None) -> Model:
    """The model. Raises ConvertError for tensors missing, misshapen or left over, or a weight of 0."""
    if not source.has(lambda name: name.startswith("feature.")):
        return bireal.read_resnet(source, resnet_block, size)
    net = Builder(source, square_rule(size or IMAGENET_SIZE, IMAGENET_SCALE))
    x = net.batch_norm("feature.0.bn1", net.conv("feature.0.conv1", INPUT, 3, stride=2))
    for number in range(1, count_blocks(net.state) + 1):
        x = mobilenet_block(net, f"feature.{number}", x)
    net.linear("fc", net.mean("avgpool", x))
    return of_known_size(net.finish(), size)


def resnet_block(net: Builder, name: str, x: str, stride: int) -> str:
    signs = net.sign(f"{name}.sign", net.shift(f"{name}.move0", x))
    y = net.batch_norm(f"{name}.bn1", net.scaled_binary_conv(f"{name}.binary_conv", signs, 3, stride))
    y = net.sum(f"{name}.sum", y, bireal.shortcut(net, name, x, y, stride))
    return rprelu(net, name, y, "move1", "prelu", "move2")


def mobilenet_block(net: Builder, name: str, x: str) -> str:
    channels = net.shapes[x][2]
    doubles = f"{name}.binary_pw_down1.weights" in net.state
    halves = doubles and 2 * channels != FULL_SIZE_CHANNELS
    y = net.sign(f"{name}.sign1", net.shift(f"{name}.move11", x))
    y = net.scaled_binary_conv(f"{name}.binary_3x3", y, 3, stride=2 if halves else 1)
    y = net.batch_norm(f"{name}.bn1", y)
    y = net.sum(f"{name}.sum1", net.avg_pool(f"{name}.pooling", x, 2) if halves else x, y)
    y = rprelu(net, name, y, "move12", "prelu1", "move13")

    signs = net.sign(f"{name}.sign2", net.shift(f"{name}.move21", y))

    def pointwise(convolution: str, norm: str, total: str) -> str:
        z = net.batch_norm(f"{name}.{norm}", net.scaled_binary_conv(f"{name}.{convolution}", signs, 1))
        return net.sum(f"{name}.{total}", z, y)

    if doubles:
        first = pointwise("binary_pw_down1", "bn2_1", "sum2_1")
        second = pointwise("binary_pw_down2", "bn2_2", "sum2_2")
        z = net.add(Concat(f"{name}.concat", (first, second)))
    else:
        z = pointwise("binary_pw", "bn2", "sum2")
    return rprelu(net, name, z, "move22", "prelu2", "move23")


def rprelu(net: Builder, name: str, x: str, before: str, prelu: str, after: str) -> str:
    x = net.prelu(f"{name}.{prelu}", net.shift(f"{name}.{before}", x))
    return net.shift(f"{name}.{after}", x)


def count_blocks(state: Mapping[str, Array]) -> int:
    """How many blocks a MobileNet has. Raises ConvertError for gaps in their numbers and float weights."""
    numbers = sorted(int(found[1]) for found in map(MOVE.fullmatch, state) if found and found[1])
    if numbers != list(range(1, len(numbers) + 1)):
        raise ConvertError("blocks numbered from feature.1 on without a gap", f"{numbers}")
    if "feature.1.binary_3x3.weight" in state:
        raise ConvertError(
            "binary weights, 'feature.1.binary_3x3.weights'",
            "'feature.1.binary_3x3.weight', real ones",
            "Convert a checkpoint of training's second step.",
        )
    return len(numbers)


def original(source: Checkpoint, *, size: int | None = None) -> Original:
    """The network as it was trained, for images of any size."""
    import torch
    import torch.nn.functional as F

    del size
    state = in_float64(source.state_dict or {})

    def move(name: str, x: Tensor) -> Tensor:
        return x + state[f"{name}.bias"]

    def rprelu(x: Tensor, before: str, prelu: str, after: str) -> Tensor:
        return move(after, F.prelu(move(before, x), state[f"{prelu}.weight"]))

    if not any(name.startswith("feature.") for name in state):
        return bireal.original_resnet(
            source,
            before_sign=lambda name, x: move(f"{name}.move0", x),
            after_sum=lambda name, x: rprelu(x, f"{name}.move1", f"{name}.prelu", f"{name}.move2"),
        )

    def conv(name: str, x: Tensor, kernel: int, stride: int = 1) -> Tensor:
        w = state[f"{name}.weights"].view(-1, x.shape[1], kernel, kernel)
        return F.conv2d(x, w.sign(), None, stride, kernel // 2) * w.abs().mean((1, 2, 3))[:, None, None]

    def block(name: str, x: Tensor, keep: Keep) -> Tensor:
        planes = state[f"{name}.prelu2.weight"].numel()
        stride = 2 if planes not in (x.shape[1], 64) else 1
        signs = keep(f"{name}.sign1", move(f"{name}.move11", x)).sign()
        y = batch_norm(state, f"{name}.bn1", conv(f"{name}.binary_3x3", signs, 3, stride), 1e-5)
        y = y + (F.avg_pool2d(x, 2) if stride == 2 else x)
        y = rprelu(y, f"{name}.move12", f"{name}.prelu1", f"{name}.move13")
        signs = keep(f"{name}.sign2", move(f"{name}.move21", y)).sign()
        parts = (("pw", "2"),) if planes == x.shape[1] else (("pw_down1", "2_1"), ("pw_down2", "2_2"))
        sums = [
            batch_norm(state, f"{name}.bn{norm}", conv(f"{name}.binary_{part}", signs, 1), 1e-5) + y
            for part, norm in parts
        ]
        return rprelu(torch.cat(sums, 1), f"{name}.move22", f"{name}.prelu2", f"{name}.move23")

    def forward(x: Tensor, keep: Keep) -> Tensor:
        x = F.conv2d(x, state["feature.0.conv1.weight"], stride=2, padding=1)
        x = batch_norm(state, "feature.0.bn1", x, 1e-5)
        for number in range(1, sum(name.endswith(".move11.bias") for name in state) + 1):
            x = block(f"feature.{number}", x, keep)
        return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])

    return in_torch(forward)
