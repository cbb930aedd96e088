"""What the importers' originals share: torch in float64, and the values whose signs the network takes.

An original computes what the training code computes, but in float64: where a model differs from it, the
cause is the model's rounding, or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ConvertError
from ...model import Array
from .torch_file import INSTALL

if TYPE_CHECKING:
    from torch import Tensor

#: From the preprocessed input, float32[H, W, C], to the logits float32[n] and, by the name of each Sign layer
#: of the converted model, the float32[H, W, C] whose signs it takes.
Original = Callable[[Array], tuple[Array, dict[str, Array]]]

#: Told the name of a Sign layer and the value [1, C, H, W] or [1, C] that it reads, which it returns.
Keep = Callable[[str, "Tensor"], "Tensor"]


def in_torch(forward: Callable[[Tensor, Keep], Tensor]) -> Original:
    """The original whose `forward` maps float64[1, C, H, W] to logits, and keeps what it takes signs of."""
    try:
        import torch
    except ImportError as error:
        raise ConvertError("PyTorch, to run the original", "none installed", f"{INSTALL}.") from error

    def run(x: Array) -> tuple[Array, dict[str, Array]]:
        kept: dict[str, Array] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            channels, *size = value.shape[1:]
            image = value.reshape(channels, *(size or (1, 1)))
            kept[name] = image.permute(1, 2, 0).float().numpy()
            return value

        with torch.inference_mode():
            image = torch.from_numpy(np.array(x)).double().permute(2, 0, 1)[None]
            logits: Array = forward(image, keep).flatten().float().numpy()
        return logits, kept

    return run


def in_float64(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """The arrays as tensors, those of floats in float64."""
    import torch

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}


def batch_norm(state: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    """A torch.nn.BatchNorm1d or 2d in evaluation; gamma and beta where the checkpoint holds them."""
    import torch.nn.functional as F

    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state.get(f"{name}.weight"), state.get(f"{name}.bias"), eps=eps)
