"""Layers of the binary networks trained here, and the body that the detector and the key points share.

A binary layer follows Bi-Real-Net (Liu et al., 2018) and ReActNet (Liu et al., 2020): a learnt shift, sign, a
3x3 convolution with weights alpha * sign(w), alpha = mean |w| of each filter, batch-norm, a shortcut round
it, PReLU. Gradients pass a sign as they would pass clip(x, -1, 1), and the weights' sign unchanged
(straight-through).

The float twin of a network has the same layers with clip(x, -1, 1) for the sign and w for alpha * sign(w):
the very functions whose gradients train the binary network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class _SignFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class Sign(nn.Module):
    """sign(x), +1 at zero; the gradient of clip(x, -1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return _SignFunction.apply(x)


class BinaryConv(nn.Conv2d):
    """Convolution with weights alpha * sign(w), +1 at zero; `weight` is the latent float weight."""

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.weight.abs().mean((1, 2, 3), keepdim=True)
        binary = torch.where(self.weight >= 0, alpha, -alpha)
        weight = self.weight + (binary - self.weight).detach() if self.training else binary
        return functional.conv2d(x, weight, None, self.stride, self.padding)


class Shift(nn.Module):
    """x + b, b learnt by channel: where the sign changes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Block(nn.Module):
    """y = PReLU(shortcut(x) + BN(conv(sign(x + b)))), a 3x3 convolution from `cin` to `cout` channels.

    The shortcut brings x to the shape of y without a weight: 2x2 means where the stride is 2, its channels
    twice where they double, the mean of its two halves where they halve.
    """

    def __init__(self, cin: int, cout: int, stride: int = 1, *, binary: bool) -> None:
        super().__init__()
        assert cout in (cin // 2, cin, 2 * cin)
        self.cin, self.cout = cin, cout
        self.shift = Shift(cin)
        self.sign = Sign() if binary else nn.Hardtanh()
        conv = BinaryConv if binary else nn.Conv2d
        self.conv = conv(cin, cout, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.act = nn.PReLU(cout)
        if cout < cin:  # a convolution with fixed weights, because the engine has no slices
            halves = torch.cat([torch.eye(cout), torch.eye(cout)], 1) / 2
            self.register_buffer("halves", halves[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.pool(x)
        if self.cout > self.cin:
            shortcut = torch.cat([shortcut, shortcut], 1)
        elif self.cout < self.cin:
            shortcut = functional.conv2d(shortcut, self.halves)
        return self.act(shortcut + self.bn(self.conv(self.sign(self.shift(x)))))


def float_layer(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    """Float convolutions with batch-norm, 3x3 of each channel and 1x1 across them, and PReLU."""
    depthwise = nn.Conv2d(cin, cin, 3, stride, padding=1, groups=cin, bias=False)
    across = nn.Conv2d(cin, cout, 1, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(cin), across, nn.BatchNorm2d(cout), nn.PReLU(cout))


class Body(nn.Module):
    """Image to 64 channels at an eighth of its height and width, each of which has seen most of the image.

    A float stem down to stride 8, which takes the image in 6x6 windows at every fourth pixel; binary blocks
    down to strides 16 and 32, and back up: nearest upsampling, sums with what was there on the way down, a
    binary block each.  middle, low : blocks at strides 16 and 32.
    """

    #: Channels at stride 4.
    STEM = 32

    def __init__(self, middle: int, low: int, *, binary: bool) -> None:
        super().__init__()
        window = nn.Conv2d(3, self.STEM, 6, stride=4, padding=1, bias=False)
        self.stem4 = nn.Sequential(window, nn.BatchNorm2d(self.STEM), nn.PReLU(self.STEM))
        self.stem8 = float_layer(self.STEM, 64, stride=2)
        self.down16 = Block(64, 128, 2, binary=binary)
        self.middle = nn.Sequential(*(Block(128, 128, binary=binary) for _ in range(middle)))
        self.down32 = Block(128, 128, 2, binary=binary)
        self.low = nn.Sequential(*(Block(128, 128, binary=binary) for _ in range(low)))
        self.up16 = Block(128, 64, binary=binary)
        self.up8 = Block(64, 64, binary=binary)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float[N, 32, H/4, W/4] of the stem, and float[N, 64, H/8, W/8]."""
        at4 = self.stem4(x)
        at8 = self.stem8(at4)
        at16 = self.middle(self.down16(at8))
        at32 = self.low(self.down32(at16))
        at16 = self.up16(at16 + self.upsample(at32))
        return at4, self.up8(at8 + self.upsample(at16))
