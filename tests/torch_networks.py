"""Networks of public training codes as torch modules of random weights: what importers are held to.

Each is built as its training code builds it, with that code's names, at its own size. `forward` works in the
precision of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

F = torch.nn.functional
Tensor = torch.Tensor


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic random, as after training: no batch-norm is left as it was made."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.3, 1.5, generator=generator)
                    module.bias.normal_(0, 0.5, generator=generator)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(0, 0.1, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(generator=generator)
    return network.eval()


# XNOR-Net-PyTorch


class BinConv2d(nn.Module):
    """Its block, convolution or linear; `flat` inputs of a linear one are normalised after flattening."""

    def __init__(
        self, cin: int, cout: int, kernel: int = 0, stride: int = 1, padding: int = 0, bn: int = 0
    ) -> None:
        super().__init__()
        self.flat = not kernel and not bn
        self.bn: nn.Module = (nn.BatchNorm1d if self.flat else nn.BatchNorm2d)(bn or cin, eps=1e-4)
        if kernel:
            self.conv = nn.Conv2d(cin, cout, kernel, stride, padding)
        else:
            self.linear = nn.Linear(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        signs = torch.sign(self.bn(x.flatten(1) if self.flat else x))
        layer = self.conv if hasattr(self, "conv") else self.linear
        w = layer.weight - layer.weight.mean(1, keepdim=True)
        w = w.clamp(-1, 1)
        alpha = w.abs().flatten(1).mean(1).view(-1, *[1] * (w.dim() - 1))
        if isinstance(layer, nn.Conv2d):
            return F.relu(F.conv2d(signs, w.sign() * alpha, layer.bias, layer.stride, layer.padding))
        return F.relu(F.linear(signs.flatten(1), w.sign() * alpha, layer.bias))


class LeNet5(nn.Module):
    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn_conv1 = nn.Conv2d(1, 20, 5), nn.BatchNorm2d(20, eps=1e-4, affine=False)
        self.bin_conv2 = BinConv2d(20, 50, 5)
        self.bin_ip1 = BinConv2d(50 * 16, 500, bn=0 if flat else 50)
        self.ip2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn_conv1(self.conv1(x))), 2)
        return self.ip2(self.bin_ip1(F.max_pool2d(self.bin_conv2(x), 2)))


class AlexNet(nn.Module):
    def __init__(self, classes: int = 1000, parallel: bool = False) -> None:
        super().__init__()
        features = nn.Sequential(
            nn.Conv2d(3, 96, 11, 4),
            nn.BatchNorm2d(96, eps=1e-4),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            BinConv2d(96, 256, 5, padding=2),
            nn.MaxPool2d(3, 2),
            BinConv2d(256, 384, 3, padding=1),
            BinConv2d(384, 384, 3, padding=1),
            BinConv2d(384, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
        )
        self.features = nn.DataParallel(features) if parallel else features
        self.classifier = nn.Sequential(
            BinConv2d(256 * 36, 4096),
            BinConv2d(4096, 4096),
            nn.BatchNorm1d(4096, eps=1e-3),
            nn.Dropout(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = BinConv2d(cin, cout, 3, stride, 1), BinConv2d(cout, cout, 3, 1, 1)
        self.downsample = BinConv2d(cin, cout, 1, stride) if project and stride > 1 else None
        self.stride, self.more = stride, (cout - cin) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        if self.downsample is not None:
            return y + self.downsample(x)
        return y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))


class ResNet(nn.Module):
    """Depth 6 * blocks + 2."""

    def __init__(self, blocks: int = 3, project: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        cin = 16
        for stage, width in enumerate((16, 32, 64)):
            layers = []
            for index in range(blocks):
                layers.append(BasicBlock(cin, width, 2 if stage and not index else 1, project))
                cin = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


# Pytorch-XNOR-Net


class Packed(nn.Module):
    """Its binary module: latent weights here, whose signs and alpha `packed_state` saves."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        conv = isinstance(layer, nn.Conv2d)
        self.bn = nn.BatchNorm2d(layer.in_channels) if conv else nn.BatchNorm1d(layer.in_features)
        self.layer = layer

    @property
    def alpha(self) -> Tensor:
        w = self.layer.weight.detach()
        return w.abs().flatten(1).mean(1).view(-1, *[1] * (w.dim() - 1))

    def forward(self, x: Tensor) -> Tensor:
        signs, w = torch.sign(self.bn(x)), self.layer.weight.sign() * self.alpha
        if isinstance(self.layer, nn.Conv2d):
            return F.conv2d(signs, w, self.layer.bias, padding=self.layer.padding)
        return F.linear(signs, w, self.layer.bias)


def packed_state(network: nn.Module) -> dict[str, Tensor]:
    """The state_dict as the training code saves it: int32 words of signs and alpha."""
    state = {name: value for name, value in network.state_dict().items() if ".layer." not in name}
    for name, module in network.named_modules():
        if isinstance(module, Packed):
            bits = module.layer.weight.detach().flatten(1).numpy() > 0
            padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 32)))
            words = np.packbits(padded, axis=1, bitorder="little").view("<i4")
            state |= {f"{name}.weight": torch.tensor(words), f"{name}.alpha": module.alpha}
            if module.layer.bias is not None:
                state[f"{name}.bias"] = module.layer.bias.detach()
    return state


class PackedLeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 20, 5, bias=False), nn.BatchNorm2d(20)
        self.conv2, self.bn2 = Packed(nn.Conv2d(20, 50, 5, bias=False)), nn.BatchNorm2d(50)
        self.fc1, self.bn3 = Packed(nn.Linear(800, 500, bias=False)), nn.BatchNorm1d(500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.bn3(self.fc1(x.flatten(1)))))


VGG = {
    11: (0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    13: (64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    16: (64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
}


class PackedVGG(nn.Module):
    """depth : 11, 13 or 16, as the training code numbers its features through."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for name, module in self._features(depth):
            self.features.add_module(name, module)
        self.classifier = nn.Linear(512, 10)

    @staticmethod
    def _features(depth: int) -> Iterator[tuple[str, nn.Module]]:
        yield from (
            ("conv0", nn.Conv2d(3, 64, 3, padding=1)),
            ("bn0", nn.BatchNorm2d(64)),
            ("relu0", nn.ReLU()),
        )
        cin, number = 64, 1
        for cout in VGG[depth]:
            if cout:
                yield f"conv{number}", Packed(nn.Conv2d(cin, cout, 3, padding=1))
                yield f"bn{number + 1}", nn.BatchNorm2d(cout)
                yield f"relu{number + 2}", nn.ReLU()
                cin, number = cout, number + 3
            else:
                yield f"pool{number}", nn.MaxPool2d(2)
                number += 1

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def logits(network: nn.Module, x: Any) -> Any:
    """float64[classes] of float32[H, W, C]; the network is left in float64."""
    with torch.inference_mode():
        return network.double()(torch.tensor(x).double().permute(2, 0, 1)[None]).flatten().numpy()
