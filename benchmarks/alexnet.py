"""The XNOR-Net AlexNet (Rastegari et al., 2016) at full size, with random weights: for speed alone.

The paper of the recurrent residual module counts operations on it, and no trained one is to be had. Its
batch-norms are set by real frames, so that about half of the bits are set, as in a trained network; how many
of them flip is a random network's matter, and may be more or fewer than in a trained one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

import xnor_rrm
from xnor_rrm.model import InputRule, Model
from xnor_rrm.preprocess import Preprocessor

RULE = InputRule(crop=(227, 227), resize=256, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def random_alexnet(frames: Iterable[Any], seed: int = 0) -> Model:
    """1.1 G multiply-accumulates, 90 % of them binary; needs torch.

    frames : uint8[H, W, 3], a few, whose statistics the batch-norms take.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        """ReLU(conv(sign(BN(x)))) with weights alpha * sign(w)."""

        def __init__(self, cin: int, cout: int, kernel: int, padding: int = 0) -> None:
            super().__init__()
            self.bn, self.padding = nn.BatchNorm2d(cin, eps=1e-4, momentum=None), padding
            self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(cout))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            signs = torch.where(self.bn(x) >= 0, 1.0, -1.0)
            alpha = self.weight.abs().mean((1, 2, 3), keepdim=True)
            weight = torch.where(self.weight >= 0, alpha, -alpha)
            return functional.relu(functional.conv2d(signs, weight, self.bias, padding=self.padding))

    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 96, 11, 4),
        nn.BatchNorm2d(96, eps=1e-4, momentum=None),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        Block(96, 256, 5, padding=2),
        nn.MaxPool2d(3, 2),
        Block(256, 384, 3, padding=1),
        Block(384, 384, 3, padding=1),
        Block(384, 256, 3, padding=1),
        nn.MaxPool2d(3, 2),
        Block(256, 4096, 6),
        Block(4096, 4096, 1),
        nn.BatchNorm2d(4096, eps=1e-3, momentum=None),
        nn.Conv2d(4096, 1000, 1),
    )
    prepare, table = Preprocessor(RULE), RULE.table()
    values = np.stack([table[prepare(frame), np.arange(3)] for frame in frames])
    with torch.no_grad():
        network.train()(torch.from_numpy(values.transpose(0, 3, 1, 2).copy()))
    model: Model = xnor_rrm.convert(network.eval(), input=RULE)
    return model
