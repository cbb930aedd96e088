"""TensorFlow's operations in PyTorch, for the originals of its formats. Images are NCHW."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[int, int]


def flatten(x: Tensor) -> Tensor:
    """[1, H * W * C], in that order."""
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).reshape(1, -1)


def pad_same(x: Tensor, kernel: Pair, stride: Pair, dilation: Pair = (1, 1), value: float = 0.0) -> Tensor:
    """Padded as for padding SAME: as evenly as can be, what is over below and right."""
    import torch.nn.functional as F

    sides = []
    for axis in (1, 0):  # F.pad takes the last dimension first
        size, step = x.shape[2 + axis], stride[axis]
        over = size % step or step
        missing = max(dilation[axis] * (kernel[axis] - 1) + 1 - over, 0)
        sides += [missing // 2, (missing + 1) // 2]
    return F.pad(x, sides, value=value)


def average_pool(x: Tensor, kernel: Pair, stride: Pair, same: bool) -> Tensor:
    """The mean of the values inside the image."""
    import torch
    import torch.nn.functional as F

    if not same:
        return F.avg_pool2d(x, kernel, stride)
    total = F.avg_pool2d(pad_same(x, kernel, stride), kernel, stride)
    inside = F.avg_pool2d(pad_same(torch.ones_like(x), kernel, stride), kernel, stride)
    return total / inside


def max_pool(x: Tensor, kernel: Pair, stride: Pair, same: bool) -> Tensor:
    import torch.nn.functional as F

    return F.max_pool2d(pad_same(x, kernel, stride, value=-np.inf) if same else x, kernel, stride)


def sign(x: Tensor) -> Tensor:
    """-1 below 0, else 1."""
    import torch

    return torch.where(x < 0, -torch.ones_like(x), torch.ones_like(x))
