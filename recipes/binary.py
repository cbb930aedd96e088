"""Layers of the binary networks trained here, and the body that the detector and the key points share.

A binary layer is XNOR-Net's (Rastegari et al., 2016): batch-norm, sign, a 3x3 convolution with weights
alpha * sign(w), alpha = mean |w| of each filter. Gradients pass a sign as they would pass clip(x, -1, 1), and
the weights' sign unchanged (straight-through).

The float twin of a network has the same layers with clip(x, -1, 1) for the sign and w for alpha * sign(w):
the very functions whose gradients train the binary network.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        return functional.conv2d(x, weight, None, self.stride, self.padding, self.dilation)


class Body(nn.Sequential):
    """Image to the channels of the last layer, at the strides of all of them.

    A float stem takes the image in patches of 4x4 pixels that do not overlap. Then there are signs alone
    between 3x3 layers, so what does not change stays local: a pixel is of one patch, and a changed sum that
    crosses no limit ends there. Most layers are wide and on small maps: a flipped bit costs a row of weights
    an output pixel, whatever the width up to 512, so that width is nearly free in a cached frame.

    layers : (channels, stride, dilation) of the binary layers; the last one's sums leave as floats.
    """

    STEM = 64

    def __init__(self, layers: Sequence[tuple[int, int, int]], *, binary: bool) -> None:
        cin = self.STEM
        modules: list[nn.Module] = [nn.Conv2d(3, cin, 4, stride=4, bias=False), nn.BatchNorm2d(cin)]
        for cout, stride, dilation in layers:
            conv = BinaryConv if binary else nn.Conv2d
            modules += [
                Sign() if binary else nn.Hardtanh(),
                conv(cin, cout, 3, stride, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(cout),
            ]
            cin = cout
        super().__init__(*modules, nn.PReLU(cin))


def head(channels: int, maps: int) -> nn.Conv2d:
    """1x1, from a body's channels to maps for each of the 2x2 cells of a place, with small weights."""
    conv = nn.Conv2d(channels, 4 * maps, 1)
    with torch.no_grad():
        conv.weight.normal_(0, 0.01)
        conv.bias.zero_()
    return conv


def split_cells(x: Tensor) -> Tensor:
    """float[N, 4 C, h, w] -> float[N, C, 2 h, 2 w]: a place's values for each of the 2x2 cells it stands for.

    As the engine's decodings split them.
    """
    n, channels, h, w = x.shape
    cells = x.view(n, 2, 2, channels // 4, h, w).permute(0, 3, 4, 1, 5, 2)
    return cells.reshape(n, channels // 4, 2 * h, 2 * w)
