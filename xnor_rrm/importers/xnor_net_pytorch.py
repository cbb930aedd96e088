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

torch.sign has a third value for 0. Values before it come out of a batch-norm, where only zeros of a ReLU can
meet exactly 0: a batch-norm that does that is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConvertError
from ..model import (
    Add,
    Array,
    AvgPool,
    Conv2d,
    InputRule,
    MaxPool,
    Model,
    Window,
)
from . import cifar10, mnist
from .checkpoint import Checkpoint, Tensors, scaled_signs
from .torch_modules import Modules, square
from .xnor_net_original import original

__all__ = ["OPTIONS", "TITLE", "original", "read", "recognise"]

TITLE = (
    "XNOR-Net-PyTorch NIN / LeNet-5 / AlexNet / ResNet (blocks of tensors ....bn and ....conv or ....linear)"
)
OPTIONS = {"transposed": "the network was trained on transposed images: swap height and width of its kernels"}

BN_EPS = 1e-4
#: Of batch-norms that the training code leaves at torch's default, and of AlexNet's last.
DEFAULT_EPS, LAST_EPS = 1e-5, 1e-3

#: RGB less ImageNet's mean. The training code resizes to 256x256 whatever the aspect ratio.
ALEXNET_RULE = InputRule(crop=(227, 227), resize=256, mean=(123.675, 116.28, 103.53), std=(1.0, 1.0, 1.0))


def recognise(source: Checkpoint) -> bool:
    return _network(source) is not None


def read(source: Checkpoint, *, transposed: bool = False) -> Model:
    """The model. Raises ConvertError for tensors missing, misshapen or left over, or a weight of 0."""
    if not isinstance(transposed, bool):
        raise ConvertError("transposed as True or False", repr(transposed))
    network = _network(source)
    assert network is not None
    if transposed and network.read is not _nin:
        raise ConvertError("transposed for a NIN", source.path.name)
    # AlexNet is trained with its features alone in a DataParallel.
    state = {
        name.replace("features.module.", "features.", 1): array
        for name, array in (source.state_dict or {}).items()
    }
    net = _Modules(Tensors(state, source), network.rule, transposed)
    network.read(net)
    net.tensors.finish()
    info = {"source": source.path.name, "format": TITLE} | ({"transposed": "yes"} if transposed else {})
    return Model(source.name, network.rule, tuple(net.layers), network.labels(net.shape[2]), info)


class _Modules(Modules):
    """Blocks, and what stands between them."""

    def __init__(self, tensors: Tensors, rule: InputRule, transposed: bool) -> None:
        super().__init__(tensors, rule)
        self._transposed = transposed

    def kernel(self, name: str, kernel: int) -> Array:
        weight = super().kernel(name, kernel)
        return weight.transpose(0, 2, 1, 3) if self._transposed else weight

    def block(self, name: str, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True) -> None:
        """BN, sign, conv, ReLU."""
        self.sign(name, eps=BN_EPS)
        signs, alpha = binarize(f"{name}.conv.weight", self.kernel(f"{name}.conv", kernel))
        self.binary(f"{name}.conv", signs, alpha, square(kernel, stride, padding), bias)
        self.relu(f"{name}.relu")

    def linear_block(self, name: str) -> None:
        """BN, sign, linear, ReLU; the BN is over channels, or over all values flattened."""
        self.sign(name, eps=BN_EPS, flat=True)
        # The mean is that of all inputs, wherever in the image they lie.
        signs, alpha = binarize(f"{name}.linear.weight", self.matrix(f"{name}.linear")[:, None, None])
        self.binary(f"{name}.linear", self.whole_input(signs), alpha, Window(self.shape[:2]))
        self.relu(f"{name}.relu")

    def subsample(self, name: str, channels: int, stride: int) -> None:
        """Every second pixel, as many channels of 0 before those there are as behind."""
        more = channels - self.shape[2]
        if more < 0 or more % 2:
            raise ConvertError(f"{name} with weights", f"none, from {self.shape[2]} channels to {channels}")
        weight = np.zeros((channels, 1, 1, self.shape[2]), np.float32)
        weight[more // 2 : channels - more // 2, 0, 0] = np.eye(self.shape[2])
        self.add(Conv2d(name, (self.last,), weight, np.zeros(channels, np.float32), square(1, stride)))


def _nin(net: _Modules) -> None:
    net.conv("xnor.0", 5, padding=2)
    net.batch_norm("xnor.1", eps=BN_EPS, affine=False)
    net.relu("xnor.2")
    net.block("xnor.3", 1)
    net.block("xnor.4", 1)
    net.pool("xnor.5", MaxPool, 3, 2, 1)
    net.block("xnor.6", 5, padding=2)
    net.block("xnor.7", 1)
    net.block("xnor.8", 1)
    net.pool("xnor.9", AvgPool, 3, 2, 1)
    net.block("xnor.10", 3, padding=1)
    net.block("xnor.11", 1)
    net.batch_norm("xnor.12", eps=BN_EPS, affine=False)
    net.conv("xnor.13", 1)
    net.relu("xnor.14")
    net.pool("xnor.15", AvgPool, 8, 1)


def _lenet(net: _Modules) -> None:
    net.conv("conv1", 5)
    net.batch_norm("bn_conv1", eps=BN_EPS, affine="bn_conv1.weight" in net.tensors)
    net.relu("relu_conv1")
    net.pool("pool1", MaxPool, 2, 2)
    net.block("bin_conv2", 5)
    net.pool("pool2", MaxPool, 2, 2)
    net.linear_block("bin_ip1")
    net.linear("ip2")


def _alexnet(net: _Modules) -> None:
    net.conv("features.0", 11, stride=4)
    net.batch_norm("features.1", eps=BN_EPS)
    net.relu("features.2")
    net.pool("features.3", MaxPool, 3, 2)
    net.block("features.4", 5, padding=2)
    net.pool("features.5", MaxPool, 3, 2)
    for index in (6, 7, 8):
        net.block(f"features.{index}", 3, padding=1)
    net.pool("features.9", MaxPool, 3, 2)
    net.linear_block("classifier.0")
    net.linear_block("classifier.1")
    net.batch_norm("classifier.2", eps=LAST_EPS)
    net.linear("classifier.4")


def _resnet(net: _Modules) -> None:
    bias = "layer1.0.conv1.conv.bias" in net.tensors
    net.conv("conv1", 3, padding=1, bias="conv1.bias" in net.tensors)
    net.batch_norm("bn1", eps=DEFAULT_EPS)
    net.relu("relu")
    for stage in (1, 2, 3):
        index = 0
        while (name := f"layer{stage}.{index}") and f"{name}.conv1.conv.weight" in net.tensors:
            stride, source = 2 if stage > 1 and index == 0 else 1, net.last
            net.block(f"{name}.conv1", 3, stride=stride, padding=1, bias=bias)
            net.block(f"{name}.conv2", 3, padding=1, bias=bias)
            top, channels, net.last = net.last, net.shape[2], source
            if f"{name}.downsample.conv.weight" in net.tensors:
                net.block(f"{name}.downsample", 1, stride=stride, bias=bias)
            elif (stride, channels) != (1, net.shape[2]):
                net.subsample(f"{name}.downsample", channels, stride)
            net.add(Add(f"{name}.add", (top, net.last)))
            index += 1
    net.pool("avgpool", AvgPool, 8, 1)
    net.linear("fc")


@dataclass(frozen=True)
class _Network:
    """read : adds its modules.  rule : of its input.  labels : of a number of classes."""

    read: Callable[[_Modules], None]
    rule: InputRule
    labels: Callable[[int], tuple[str, ...]]


#: By how a tensor's name begins that only this network has.
NETWORKS = {
    "xnor.": _Network(_nin, cifar10.INPUT_RULE, cifar10.labels),
    "bin_conv2.": _Network(_lenet, mnist.INPUT_RULE, mnist.labels),
    "classifier.0.linear.": _Network(_alexnet, ALEXNET_RULE, lambda classes: ()),
    "layer1.0.conv1.conv.": _Network(_resnet, cifar10.INPUT_RULE, cifar10.labels),
}


def _network(source: Checkpoint) -> _Network | None:
    names = source.state_dict or ()
    return next((NETWORKS[mark] for mark in NETWORKS if any(name.startswith(mark) for name in names)), None)


def binarize(name: str, latent: Array) -> tuple[npt.NDArray[np.bool_], Array]:
    """Signs bool[Cout, kH, kW, Cin] and alpha float32[Cout] of float32 latent weights of that shape.

    Raises ConvertError where a weight that counts is exactly zero: the original gives it no sign.
    """
    mean = latent.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)
    centred = np.clip(latent - mean, -1, 1)
    return scaled_signs(centred, f"{name!r}, less their mean")
