"""BinaryNet.pytorch: weights sign(w) without a scale, Hardtanh and batch-norm between, binary first to last.

    features.N, classifier.N   conv, [max pool], BN, Hardtanh, ...; linear, BN, Hardtanh, ...; linear, BN
    conv1, layerN.N, fc        the CIFAR-10 ResNet
    fcN, bnN                   the MNIST MLP: linear, BN, Hardtanh, ...; linear of real weights

A layer takes the signs of its input but for the first, which reads the image, and pads them with 0. The VGG
for CIFAR-10 begins with a 3x3 convolution and pools 2x2/2; the AlexNet begins with 11x11/4 and pools 3x3/2. A
block of the ResNet is Hardtanh(BN(conv2(sign(BN(conv1(sign(x))))) + shortcut(x))), its shortcut where the
shape changes BN(conv 1x1(sign(x))); the last has neither that BN nor Hardtanh. The ImageNet ResNets of that
code do not run.

Logits are those before the log-softmax. Hardtanh is left out where only signs are taken of it.

The original takes sign(0) = 0: see common/zeros.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConvertError
from ..model import INPUT, Array, Clip, Conv2d, Model, Window
from .common.checkpoint import Checkpoint, refuse_zero_weights
from .common.datasets import (
    CIFAR10_LABELS,
    CIFAR10_SIZE,
    IMAGENET_SCALE,
    IMAGENET_SIZE,
    MNIST_LABELS,
    MNIST_SCALE,
    MNIST_SIZE,
    square_rule,
)
from .common.options import Option
from .common.original import Keep, Original, batch_norm, in_float64, in_torch
from .common.torch_layers import BN_EPS, Builder, resnet_blocks, square

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "BinaryNet.pytorch VGG or AlexNet (tensors features.N, classifier.N), ResNet (bn3) or MLP (fcN, bnN)"
OPTIONS = (Option("binarized", "The MLP's weights are binarized where it is trained.", bool),)

#: Inputs of which the original takes no signs: it knows images by their channels, or their pixels.
IMAGE_CHANNELS, IMAGE_PIXELS = 3, 784

ALEXNET_KERNEL = 11

MLP_REMEDY = "If the code that trained it binarizes them, give the option binarized, else accept_rounded."

MLP_TENSOR = re.compile(r"fc\d{1,2}\.(weight|bias)|bn\d{1,2}\..*")


def recognise(source: Checkpoint) -> bool:
    state = source.state_dict or {}
    return is_sequence(state) or is_resnet(state) or is_mlp(state)


def is_sequence(state: Mapping[str, Array]) -> bool:
    """Whether these are features and a classifier that ends in a batch-norm, as no float network's does."""
    found = (re.fullmatch(r"classifier\.(\d{1,4})\..*", name) for name in state)
    last = max((int(each[1]) for each in found if each), default=0)
    return "features.0.weight" in state and f"classifier.{last}.running_mean" in state


def is_resnet(state: Mapping[str, Array]) -> bool:
    """Whether a ResNet's classifier is followed by a batch-norm."""
    return "layer1.0.conv1.weight" in state and "bn3.running_mean" in state


def is_mlp(state: Mapping[str, Array]) -> bool:
    return "fc2.weight" in state and "bn1.running_mean" in state and all(map(MLP_TENSOR.fullmatch, state))


def read(source: Checkpoint, *, binarized: bool = False) -> Model:
    """The model. Raises ConvertError for tensors missing, misshapen or left over, or a weight of 0."""
    state = source.state_dict or {}
    if is_mlp(state):
        return read_mlp(source, binarized)
    return read_resnet(source) if is_resnet(state) else read_sequence(source)


def read_sequence(source: Checkpoint) -> Model:
    """The VGG and the AlexNet."""
    state = source.state_dict or {}
    alexnet = state["features.0.weight"].shape[-1:] == (ALEXNET_KERNEL,)
    net = Builder(source, square_rule(IMAGENET_SIZE if alexnet else CIFAR10_SIZE, IMAGENET_SCALE))
    x = INPUT
    for name, pool, norm in groups(state, "features"):
        if x == INPUT:
            geometry = square(ALEXNET_KERNEL, 4, 2) if alexnet else square(3)
            x = first_conv(net, name, geometry)
        else:
            x = binary_conv(net, name, net.sign(f"{name}.sign", x))
        if pool:
            x = net.max_pool(pool, x, 3 if alexnet else 2, stride=2)
        x = net.batch_norm(norm, x)
    for name, unknown, norm in groups(state, "classifier"):
        if unknown:
            raise ConvertError(f"a batch-norm after {name}", f"another layer, {unknown}")
        x = net.batch_norm(norm, binary_linear(net, name, net.sign(f"{name}.sign", x)))
    return net.finish(() if alexnet else CIFAR10_LABELS)


def groups(state: Mapping[str, Array], part: str) -> Iterator[tuple[str, str, str]]:
    """Names of each convolution or linear layer of a Sequential, of a pool after it or none, and of its BN.

    Raises ConvertError for gaps in their numbers wider than Hardtanh and, in the classifier, Dropout leave.
    """
    pattern = re.compile(rf"{part}\.(\d{{1,4}})\.weight")
    found = ((each, state[each[0]].ndim) for each in map(pattern.fullmatch, state) if each)
    following, spare = 0, 1 if part == "classifier" else 0
    for number in sorted(int(each[1]) for each, dimensions in found if dimensions > 1):
        if not following <= number <= following + spare:
            raise ConvertError(f"a convolution or linear layer {part}.{following}", f"{part}.{number}")
        norm = number + 1
        if f"{part}.{norm}.running_mean" not in state:
            norm += 1
        yield f"{part}.{number}", f"{part}.{number + 1}" if norm > number + 1 else "", f"{part}.{norm}"
        following = norm + 2


def read_resnet(source: Checkpoint) -> Model:
    net = Builder(source, square_rule(CIFAR10_SIZE, IMAGENET_SCALE))
    x = net.batch_norm("bn1", first_conv(net, "conv1", square(3)))
    x = hardtanh(net, "tanh1", x)
    *blocks, (last, last_stride) = resnet_blocks(net.state, r"conv1\.weight")
    for name, stride in blocks:
        x = net.batch_norm(f"{name}.bn2", block(net, name, x, stride))
        x = hardtanh(net, f"{name}.tanh2", x)
    x = block(net, last, x, last_stride)
    net.tensors.take_torch_batch_norm(f"{last}.bn2", x, eps=BN_EPS)  # made, saved and never run
    x = net.batch_norm("bn2", net.mean("avgpool", x))
    net.batch_norm("bn3", binary_linear(net, "fc", net.sign("fc.sign", x)))
    return net.finish(CIFAR10_LABELS)


def block(net: Builder, name: str, x: str, stride: int) -> str:
    """The sums of a block, before the batch-norm that follows them."""
    signs = net.sign(f"{name}.conv1.sign", x)
    y = net.batch_norm(f"{name}.bn1", binary_conv(net, f"{name}.conv1", signs, stride))
    y = binary_conv(net, f"{name}.conv2", net.sign(f"{name}.conv2.sign", y))
    if f"{name}.downsample.0.weight" in net.state:
        x = net.batch_norm(f"{name}.downsample.1", binary_conv(net, f"{name}.downsample.0", signs, stride))
    return net.sum(f"{name}.sum", y, x)


def read_mlp(source: Checkpoint, binarized: bool) -> Model:
    net = Builder(source, square_rule(MNIST_SIZE, MNIST_SCALE))
    count = sum(name.endswith(".running_mean") for name in net.state)
    x = INPUT
    for number in range(1, count + 1):
        name = f"fc{number}"
        if not binarized:
            net.tensors.require_signs(f"{name}.weight", MLP_REMEDY)
        if x == INPUT:
            weight = real_signs(name, net.whole_input(x, net.matrix(name, x)))
            x = net.add(Conv2d(name, (x,), weight, net.bias(name, len(weight)), Window(net.rule.crop)))
        else:
            x = binary_linear(net, name, net.sign(f"{name}.sign", x))
        x = net.batch_norm(f"bn{number}", x)
    net.linear(f"fc{count + 1}", hardtanh(net, f"htanh{count}", x))
    return net.finish(MNIST_LABELS)


def first_conv(net: Builder, name: str, geometry: Window) -> str:
    """A convolution of the image itself with signs."""
    weight = net.tensors.take(f"{name}.weight", None, IMAGE_CHANNELS, *geometry.kernel).transpose(0, 2, 3, 1)
    return net.add(Conv2d(name, (INPUT,), real_signs(name, weight), net.bias(name, len(weight)), geometry))


def binary_conv(net: Builder, name: str, signs: str, stride: int = 1) -> str:
    """A convolution padded by half its kernel, which is of odd size."""
    channels = net.shapes[signs][2]
    kernel = (1, *net.stored_shape(f"{name}.weight"))[-1]
    if channels == IMAGE_CHANNELS or not kernel % 2:
        expected = f"an odd kernel and channels other than {IMAGE_CHANNELS}, which {name} would not binarize"
        raise ConvertError(expected, f"kernel {kernel} and {channels} channels")
    return add_binary(net, name, signs, net.kernel(name, signs, kernel), square(kernel, stride))


def binary_linear(net: Builder, name: str, signs: str) -> str:
    """A linear layer of the flattened input."""
    latent = net.whole_input(signs, net.matrix(name, signs))
    if latent[0].size == IMAGE_PIXELS:
        raise ConvertError(f"other inputs than {IMAGE_PIXELS}, which {name} would not binarize", "as many")
    return add_binary(net, name, signs, latent, Window(net.shapes[signs][:2]))


def add_binary(net: Builder, name: str, signs: str, latent: Array, geometry: Window) -> str:
    refuse_zero_weights(latent, f"'{name}.weight'")
    return net.binary_conv(name, signs, latent > 0, np.ones(len(latent), np.float32), geometry)


def real_signs(name: str, latent: Array) -> Array:
    """float32 of -1 and +1."""
    refuse_zero_weights(latent, f"'{name}.weight'")
    return np.sign(latent)


def hardtanh(net: Builder, name: str, x: str) -> str:
    return net.add(Clip(name, (x,), -1.0, 1.0))


def original(source: Checkpoint, *, binarized: bool = False) -> Original:
    """The network as it was trained, without its log-softmax."""
    import torch.nn.functional as F

    del binarized
    state = in_float64(source.state_dict or {})

    def norm(name: str, x: Tensor) -> Tensor:
        return batch_norm(state, name, x, 1e-5)

    def conv(name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        w = state[f"{name}.weight"].sign()
        padding = w.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, w, state.get(f"{name}.bias"), stride, padding)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), state[f"{name}.weight"].sign(), state.get(f"{name}.bias"))

    def sequence(x: Tensor, keep: Keep) -> Tensor:
        alexnet = state["features.0.weight"].shape[-1] == 11
        named = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
        for name in sorted(named, key=lambda name: (name[0] == "c", int(name.split(".")[1]))):
            part, number = name.split(".")
            if state[f"{name}.weight"].ndim == 1:
                continue
            if name == "features.0":
                x = conv(name, x, 4, 2) if alexnet else conv(name, x)
            else:
                x = keep(f"{name}.sign", x).sign()
                x = conv(name, x) if part == "features" else linear(name, x)
            after = int(number) + 1
            if part == "features" and f"{part}.{after}.running_mean" not in state:
                x, after = F.max_pool2d(x, 3 if alexnet else 2, 2), after + 1
            x = norm(f"{part}.{after}", x)
        return x

    def resnet(x: Tensor, keep: Keep) -> Tensor:
        x = F.hardtanh(norm("bn1", conv("conv1", x)))
        ends = [name for name in state if re.fullmatch(r"layer.*\.conv2\.weight", name)]
        ends.sort(key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
        for name in (end.removesuffix(".conv2.weight") for end in ends):
            stride = 2 if name.endswith(".0") and name != "layer1.0" else 1
            residual = x
            y = norm(f"{name}.bn1", conv(f"{name}.conv1", keep(f"{name}.conv1.sign", x).sign(), stride))
            y = conv(f"{name}.conv2", keep(f"{name}.conv2.sign", y).sign())
            if f"{name}.downsample.0.weight" in state:
                residual = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x.sign(), stride))
            x = y + residual
            if f"{name}.conv2.weight" != ends[-1]:
                x = F.hardtanh(norm(f"{name}.bn2", x))
        x = norm("bn2", x.mean((2, 3)))
        return norm("bn3", linear("fc", keep("fc.sign", x).sign()))

    def mlp(x: Tensor, keep: Keep) -> Tensor:
        x = norm("bn1", linear("fc1", x))
        number = 2
        while f"bn{number}.running_mean" in state:
            x = norm(f"bn{number}", linear(f"fc{number}", keep(f"fc{number}.sign", x).sign()))
            number += 1
        return F.linear(F.hardtanh(x), state[f"fc{number}.weight"], state[f"fc{number}.bias"])

    if "fc2.weight" in state:
        return in_torch(mlp)
    return in_torch(resnet if "bn3.running_mean" in state else sequence)
