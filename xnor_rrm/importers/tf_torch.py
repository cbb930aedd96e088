"""TensorFlow's operations in PyTorch, for the originals that conversions are held against. Images are NCHW."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConvertError
from ..model import Array
from .torch_file import INSTALL

if TYPE_CHECKING:
    from torch import Tensor

#: From float32[H, W, C] to logits float32[n] and what each Sign layer takes the sign of, float32[H, W, C] by name.
Original = Callable[[Array], tuple[Array, dict[str, Array]]]


def require_torch() -> None:
    """Raises ConvertError where PyTorch is not installed."""
    try:
        import torch  # noqa: F401  # whether it is there is the question
    except ImportError as error:
        raise ConvertError("PyTorch, to run the original network", "none installed", f"{INSTALL}.") from error


def to_image(x: Tensor) -> Array:
    """float32[H, W, C] of [1, C, H, W], or float32[1, 1, C] of a vector [1, C]."""
    image = x[:, :, None, None] if x.ndim == 2 else x
    return np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())


def flatten(x: Tensor) -> Tensor:
    """[1, H * W * C], in that order."""
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).reshape(1, -1)


def pad_same(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], value: float
) -> Tensor:
    """Padded as for padding SAME: as evenly as can be, what is over below and right."""
    import torch.nn.functional as F  # noqa: N812  # torch's own name for it

    sides = []
    for axis in (1, 0):  # F.pad takes the last dimension first
        size, step = x.shape[2 + axis], stride[axis]
        over = size % step or step
        missing = max(dilation[axis] * (kernel[axis] - 1) + 1 - over, 0)
        sides += [missing // 2, (missing + 1) // 2]
    return F.pad(x, sides, value=value)


def average_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], same: bool) -> Tensor:
    """The mean of the values inside the image."""
    import torch
    import torch.nn.functional as F  # noqa: N812  # torch's own name for it

    if not same:
        return F.avg_pool2d(x, kernel, stride)
    total = F.avg_pool2d(pad_same(x, kernel, stride, (1, 1), 0.0), kernel, stride)
    inside = F.avg_pool2d(pad_same(torch.ones_like(x), kernel, stride, (1, 1), 0.0), kernel, stride)
    return total / inside


def max_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], same: bool) -> Tensor:
    import torch.nn.functional as F  # noqa: N812  # torch's own name for it

    return F.max_pool2d(pad_same(x, kernel, stride, (1, 1), -np.inf) if same else x, kernel, stride)
