"""The networks of XNOR-Net-PyTorch, saved with float latent weights.

    NIN        conv 5x5, BN, ReLU; blocks with pools between; BN, conv 1x1, ReLU, average pool 8x8  (CIFAR-10)
    LeNet-5    conv 5x5, BN, ReLU, pool; block 5x5, pool; fully connected block; linear             (MNIST)
    AlexNet    conv 11x11/4, BN, ReLU, pool; blocks with pools; two fully connected blocks; BN, linear
    ResNet     conv 3x3, BN, ReLU; shortcuts round pairs of blocks; average pool 8x8, linear        (CIFAR-10)

A block is BN -> sign -> conv or linear -> ReLU, padded with 0 after the sign. Its weights are binarized as
in training: subtract the mean over dimension 1, clamp to [-1, 1], alpha = mean |w| of each filter, then the
sign. Gamma is taken as stored: the training code has raised it to 0.01 before it saves.

The public code has no ResNet of its own. This is one of its blocks: layerN.N.conv1 and conv2 are 3x3, the
first of layer2 and layer3 of stride 2. A shortcut is the input; where the size changes, a block 1x1
`downsample`, or without one every second pixel with channels of 0 before and behind. Nothing follows the sum.

The original takes sign(0) = 0: see common/zeros.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ConvertError
from ..model import INPUT, Array, InputRule, Model, Window
from .common.checkpoint import Checkpoint, scaled_signs
from .common.datasets import (
    CIFAR10_LABELS,
    CIFAR10_SIZE,
    IMAGENET_SCALE,
    MNIST_LABELS,
    MNIST_SCALE,
    MNIST_SIZE,
    square_rule,
)
from .common.options import Option
from .common.original import Keep, Original, batch_norm, in_float64, in_torch
from .common.torch_layers import Builder, resnet_blocks, square

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "XNOR-Net-PyTorch NIN, LeNet-5, AlexNet or ResNet (blocks of tensors .bn and .conv or .linear)"
OPTIONS = (Option("transposed", "The NIN was trained on transposed images.", bool),)

#: Of batch-norms that the training code leaves at torch's default, and of AlexNet's last.
DEFAULT_EPS, LAST_EPS = 1e-5, 1e-3

#: RGB less ImageNet's mean. The training code resizes to 256x256 whatever the aspect ratio.
ALEXNET_RULE = InputRule(crop=(227, 227), resize=256, mean=IMAGENET_SCALE.mean, std=(1.0, 1.0, 1.0))
CIFAR10_RULE = square_rule(CIFAR10_SIZE, IMAGENET_SCALE)


def recognise(source: Checkpoint) -> bool:
    return _network(source) is not None


def read(source: Checkpoint, *, transposed: bool = False) -> Model:
    """The model. Raises ConvertError for tensors missing, misshapen or left over, or a weight of 0."""
    network = _network(source)
    assert network is not None
    if transposed and network.build is not _nin:
        raise ConvertError("transposed for a NIN", source.path.name)
    net = Net(source, network.rule, _state(source))
    net.transposed = transposed
    network.build(net)
    return net.finish(network.labels)


def _state(source: Checkpoint) -> dict[str, Array]:
    """AlexNet is trained with its features alone in a DataParallel."""
    state = source.state_dict or {}
    return {name.replace("features.module.", "features.", 1): array for name, array in state.items()}


class Net(Builder):
    """Blocks, and what stands between them."""

    eps = 1e-4
    transposed = False

    def kernel(self, name: str, x: str, kernel: int) -> Array:
        weight = super().kernel(name, x, kernel)
        return weight.transpose(0, 2, 1, 3) if self.transposed else weight

    def block(
        self,
        name: str,
        x: str,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
    ) -> str:
        """BN, sign, conv, ReLU."""
        signs = self.sign(f"{name}.sign", self.batch_norm(f"{name}.bn", x))
        bits, alpha = binarize(f"{name}.conv.weight", self.kernel(f"{name}.conv", signs, kernel))
        y = self.binary_conv(f"{name}.conv", signs, bits, alpha, square(kernel, stride, padding), bias)
        return self.relu(f"{name}.relu", y)

    def linear_block(self, name: str, x: str) -> str:
        """BN, sign, linear, ReLU; the BN is over channels, or over all values flattened."""
        signs = self.sign(f"{name}.sign", self.batch_norm(f"{name}.bn", x, flat=True))
        # The mean is that of all inputs, wherever in the image they lie.
        bits, alpha = binarize(f"{name}.linear.weight", self.matrix(f"{name}.linear", signs)[:, None, None])
        bits, window = self.whole_input(signs, bits), Window(self.shapes[signs][:2])
        return self.relu(f"{name}.relu", self.binary_conv(f"{name}.linear", signs, bits, alpha, window, True))


def _nin(net: Net) -> None:
    x = net.batch_norm("xnor.1", net.conv("xnor.0", INPUT, 5, bias=True))
    x = net.relu("xnor.2", x)
    x = net.block("xnor.4", net.block("xnor.3", x, 1), 1)
    x = net.max_pool("xnor.5", x, 3, 2, 1)
    x = net.block("xnor.6", x, 5)
    x = net.block("xnor.8", net.block("xnor.7", x, 1), 1)
    x = net.avg_pool("xnor.9", x, 3, 2, 1)
    x = net.block("xnor.11", net.block("xnor.10", x, 3), 1)
    x = net.conv("xnor.13", net.batch_norm("xnor.12", x), 1, bias=True)
    net.avg_pool("xnor.15", net.relu("xnor.14", x), 8, 1)


def _lenet(net: Net) -> None:
    x = net.batch_norm("bn_conv1", net.conv("conv1", INPUT, 5, padding=0, bias=True))
    x = net.max_pool("pool1", net.relu("relu_conv1", x), 2, 2)
    x = net.max_pool("pool2", net.block("bin_conv2", x, 5, padding=0), 2, 2)
    net.linear("ip2", net.linear_block("bin_ip1", x))


def _alexnet(net: Net) -> None:
    x = net.batch_norm("features.1", net.conv("features.0", INPUT, 11, stride=4, padding=0, bias=True))
    x = net.max_pool("features.3", net.relu("features.2", x), 3, 2)
    x = net.max_pool("features.5", net.block("features.4", x, 5), 3, 2)
    for index in (6, 7, 8):
        x = net.block(f"features.{index}", x, 3)
    x = net.max_pool("features.9", x, 3, 2)
    x = net.linear_block("classifier.1", net.linear_block("classifier.0", x))
    net.linear("classifier.4", net.batch_norm("classifier.2", x, eps=LAST_EPS))


def _resnet(net: Net) -> None:
    bias = "layer1.0.conv1.conv.bias" in net.tensors
    x = net.relu("relu", net.batch_norm("bn1", net.conv("conv1", INPUT, 3), eps=DEFAULT_EPS))
    for name, stride in resnet_blocks(net.state, r"conv1\.conv\.weight"):
        y = net.block(f"{name}.conv1", x, 3, stride=stride, bias=bias)
        y = net.block(f"{name}.conv2", y, 3, bias=bias)
        channels = net.shapes[y][2]
        if f"{name}.downsample.conv.weight" in net.tensors:
            x = net.block(f"{name}.downsample", x, 1, stride=stride, bias=bias)
        elif (stride, channels) != (1, net.shapes[x][2]):
            x = net.subsample(f"{name}.downsample", x, channels, stride)
        x = net.sum(f"{name}.add", y, x)
    net.linear("fc", net.avg_pool("avgpool", x, 8, 1))


def binarize(name: str, latent: Array) -> tuple[npt.NDArray[np.bool_], Array]:
    """Signs bool[Cout, kH, kW, Cin] and alpha float32[Cout] of float32 latent weights of that shape.

    Raises ConvertError where a weight that counts is exactly zero: the original gives it no sign.
    """
    mean = latent.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)
    centred = np.clip(latent - mean, -1, 1)
    return scaled_signs(centred, f"{name!r}, less their mean")


def original(source: Checkpoint, *, transposed: bool = False) -> Original:
    """The network as it was trained; a NIN's input is transposed where its images were."""
    state = in_float64(_state(source))
    network = _network(source)
    assert network is not None
    if not transposed:
        return in_torch(lambda x, keep: network.original(_Modules(state, keep), x))

    def turned(keep: Keep) -> Keep:
        return lambda name, value: keep(name, value.transpose(2, 3)).transpose(2, 3)

    return in_torch(lambda x, keep: network.original(_Modules(state, turned(keep)), x.transpose(2, 3)))


class _Modules:
    """What the networks are made of, by the names of their tensors."""

    def __init__(self, state: dict[str, Tensor], keep: Keep) -> None:
        self.state, self._keep = state, keep

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        import torch.nn.functional as F

        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), stride, padding)

    def linear(self, name: str, x: Tensor) -> Tensor:
        import torch.nn.functional as F

        return F.linear(x.flatten(1), self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def bn(self, name: str, x: Tensor, eps: float = 1e-4) -> Tensor:
        return batch_norm(self.state, name, x, eps)

    def block(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        import torch.nn.functional as F

        x = self._keep(f"{name}.sign", self.bn(f"{name}.bn", x)).sign()
        weight, bias = self._binarized(f"{name}.conv.weight"), self.state.get(f"{name}.conv.bias")
        return F.conv2d(x, weight, bias, stride, padding).relu()

    def linear_block(self, name: str, x: Tensor) -> Tensor:
        import torch.nn.functional as F

        if len(self.state[f"{name}.bn.running_mean"]) != x.shape[1]:  # a BatchNorm1d of what is flattened
            x = x.flatten(1)
        x = self._keep(f"{name}.sign", self.bn(f"{name}.bn", x)).sign()
        weight = self._binarized(f"{name}.linear.weight")
        return F.linear(x.flatten(1), weight, self.state[f"{name}.linear.bias"]).relu()

    def _binarized(self, name: str) -> Tensor:
        w = self.state[name]
        w = (w - w.mean(1, keepdim=True)).clamp(-1, 1)
        return w.sign() * w.abs().mean(tuple(range(1, w.dim())), keepdim=True)


def _original_nin(net: _Modules, x: Tensor) -> Tensor:
    import torch.nn.functional as F

    x = net.bn("xnor.1", net.conv("xnor.0", x, padding=2)).relu()
    x = net.block("xnor.4", net.block("xnor.3", x))
    x = F.max_pool2d(x, 3, 2, 1)
    x = net.block("xnor.8", net.block("xnor.7", net.block("xnor.6", x, padding=2)))
    x = F.avg_pool2d(x, 3, 2, 1)
    x = net.block("xnor.11", net.block("xnor.10", x, padding=1))
    return F.avg_pool2d(net.conv("xnor.13", net.bn("xnor.12", x)).relu(), 8, 1)


def _original_lenet(net: _Modules, x: Tensor) -> Tensor:
    import torch.nn.functional as F

    x = F.max_pool2d(net.bn("bn_conv1", net.conv("conv1", x)).relu(), 2)
    x = F.max_pool2d(net.block("bin_conv2", x), 2)
    return net.linear("ip2", net.linear_block("bin_ip1", x))


def _original_alexnet(net: _Modules, x: Tensor) -> Tensor:
    import torch.nn.functional as F

    x = F.max_pool2d(net.bn("features.1", net.conv("features.0", x, stride=4)).relu(), 3, 2)
    x = F.max_pool2d(net.block("features.4", x, padding=2), 3, 2)
    x = net.block("features.6", x, padding=1)
    x = net.block("features.7", x, padding=1)
    x = F.max_pool2d(net.block("features.8", x, padding=1), 3, 2)
    x = net.linear_block("classifier.1", net.linear_block("classifier.0", x.flatten(1)))
    return net.linear("classifier.4", net.bn("classifier.2", x, 1e-3))


def _original_resnet(net: _Modules, x: Tensor) -> Tensor:
    import torch.nn.functional as F

    def shortcut(name: str, x: Tensor, like: Tensor) -> Tensor:
        stride, more = x.shape[2] // like.shape[2], like.shape[1] - x.shape[1]
        if f"{name}.downsample.conv.weight" in net.state:
            return net.block(f"{name}.downsample", x, stride)
        return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, more // 2, more // 2))

    x = net.bn("bn1", net.conv("conv1", x, padding=1), 1e-5).relu()
    for stage in (1, 2, 3):
        for index in itertools.count():
            name = f"layer{stage}.{index}"
            if f"{name}.conv1.conv.weight" not in net.state:
                break
            y = net.block(f"{name}.conv1", x, 2 if stage > 1 and not index else 1, padding=1)
            y = net.block(f"{name}.conv2", y, padding=1)
            x = y + shortcut(name, x, y)
    return net.linear("fc", F.avg_pool2d(x, 8))


@dataclass(frozen=True)
class Network:
    """build : adds its modules.  original : computes what they do.  rule, labels : of input and classes."""

    build: Callable[[Net], None]
    original: Callable[[_Modules, Tensor], Tensor]
    rule: InputRule
    labels: tuple[str, ...] = ()


#: By how a tensor's name begins that only this network has.
NETWORKS = {
    "xnor.": Network(_nin, _original_nin, CIFAR10_RULE, CIFAR10_LABELS),
    "bin_conv2.": Network(_lenet, _original_lenet, square_rule(MNIST_SIZE, MNIST_SCALE), MNIST_LABELS),
    "classifier.0.linear.": Network(_alexnet, _original_alexnet, ALEXNET_RULE),
    "layer1.0.conv1.conv.": Network(_resnet, _original_resnet, CIFAR10_RULE, CIFAR10_LABELS),
}


def _network(source: Checkpoint) -> Network | None:
    names = source.state_dict or ()
    return next((NETWORKS[mark] for mark in NETWORKS if any(name.startswith(mark) for name in names)), None)
