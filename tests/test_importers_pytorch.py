"""Importers of training codes in PyTorch: their networks, built here, compute the same when brought over.

The modules are written from the published architectures, names of tensors included, and run in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import numpy.typing as npt
import pytest

from xnor_rrm import convert
from xnor_rrm.errors import ConvertError, XnorError
from xnor_rrm.importers import IMPORTERS, binarynet, bireal, reactnet
from xnor_rrm.importers.common.checkpoint import Checkpoint
from xnor_rrm.importers.common.zeros import zero_channels
from xnor_rrm.model import INPUT, Affine, BinaryConv2d, Clip, Conv2d, InputRule, MaxPool, Model, Sign, Window

torch = pytest.importorskip("torch")  # of an optional extra
nn, F = torch.nn, torch.nn.functional

Array = npt.NDArray[Any]
State = dict[str, Any]
Pair = tuple[int, int]


class Net(nn.Module):
    """A network that keeps what it takes signs of, by the name that the model's layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[str, Any] = {}

    def sign(self, name: str, x: Any) -> Any:
        self.read[f"{name}.sign"] = x
        return x.sign()


def randomise(net: Net, seed: int) -> Net:
    """Random parameters and statistics, a gamma of 0 and negative ones in each batch-norm."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
            parameter[parameter == 0] = 1  # in 11 million of them some are
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight[0] = 0
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(0.2)
    return net.eval()


def assert_same(
    net: Net, path: Path, importer: Any, seed: int = 0, engine: float = 1e-5, **options: Any
) -> Model:
    """Save a network, bring it over, and compare model and original with it on an image; the model.

    engine : how far off its logits may be, of the largest: one sign that rounding turns changes many others.
    """
    torch.save({"state_dict": net.state_dict(), "epoch": 1}, path)
    model = convert(path, **options)
    height, width, channels = model.input_shape
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    x = model.input_rule.table()[frame, np.arange(channels)]
    frame = np.broadcast_to(frame, (height, width, 3))  # grey, for networks of one channel
    with torch.no_grad():
        logits = net.double()(torch.tensor(x).double().permute(2, 0, 1)[None]).flatten().numpy()
    read = {
        name: value.reshape(*value.shape, *(1, 1)[: 4 - value.ndim])[0].permute(1, 2, 0).numpy()
        for name, value in net.read.items()
    }
    assert list(read) == [layer.name for layer in model.layers if isinstance(layer, Sign)]

    original_logits, original_read = importer.original(Checkpoint(path), **options)(x)
    assert original_logits.dtype == np.float32
    np.testing.assert_allclose(original_logits, logits, rtol=1e-6, atol=1e-6)
    assert original_read.keys() == read.keys()
    for name, value in read.items():
        assert original_read[name].dtype == np.float32
        np.testing.assert_allclose(original_read[name], value, rtol=1e-6, atol=1e-6)

    np.testing.assert_allclose(forced(model, x, read), logits, rtol=0, atol=1e-6 * np.abs(logits).max())
    np.testing.assert_allclose(model.stream()(frame), logits, rtol=0, atol=engine * np.abs(logits).max())
    return model


def forced(model: Model, x: Array, read: dict[str, Array]) -> Array:
    """The logits of the layers as the oracle has them, fed the signs of `read`, which they must arrive at."""
    values = {INPUT: x}
    for layer in model.layers:
        inputs = [values[name] for name in layer.inputs]
        if isinstance(layer, Sign):
            expected = read[layer.name]
            rounding = 1e-6 * np.abs(expected).max()  # of float32
            np.testing.assert_allclose(inputs[0], expected, rtol=0, atol=rounding, err_msg=layer.name)
            sure = np.abs(expected) > rounding
            np.testing.assert_array_equal(inputs[0][sure] >= 0, expected[sure] > 0)
            values[layer.name] = np.where(expected > 0, 1, -1)
        elif isinstance(layer, Conv2d | BinaryConv2d):
            values[layer.name] = convolution(layer, inputs[0])
        else:
            values[layer.name] = naive._apply(layer, *inputs)
    return values[model.layers[-1].name].reshape(-1)


def convolution(layer: Conv2d | BinaryConv2d, x: Array) -> Array:
    """The oracle's sums in float64 and any order, so that networks of full size take seconds."""
    weight, scale, outside = layer.weight, np.float64(1), 0
    if isinstance(layer, BinaryConv2d):
        weight = naive.unpack(layer.weight, layer.channels)
        scale, outside = layer.alpha.astype(np.float64), layer.pad_value
    top, bottom, left, right = layer.window.padding
    image = torch.tensor(np.float64(x)).permute(2, 0, 1)[None]
    image = F.pad(image, (left, right, top, bottom), value=outside)
    kernel = torch.tensor(np.float64(weight)).permute(0, 3, 1, 2)
    sums = F.conv2d(image, kernel, None, layer.window.stride)[0].permute(1, 2, 0).numpy()
    return (sums * scale + layer.bias).astype(np.float32)


# Bi-Real-Net and ReActNet's ResNets


class LatentConv(nn.Module):
    """HardBinaryConv: weights flat or not, under one name or the other."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, form: str = "flat") -> None:
        super().__init__()
        self.shape, self.stride = (cout, cin, kernel, kernel), stride
        self.key = "weight" if form.startswith("weight ") else "weights"
        shape = (cout * cin * kernel**2, 1) if form == "flat" else self.shape
        self.register_parameter(self.key, nn.Parameter(torch.zeros(shape)))
        self.bias = nn.Parameter(torch.zeros(cout)) if form.endswith("bias") else None

    def forward(self, x: Any) -> Any:
        w = getattr(self, self.key).view(self.shape)
        alpha = w.abs().mean(3, True).mean(2, True).mean(1, True)
        return F.conv2d(x, alpha * w.sign(), self.bias, self.stride, self.shape[2] // 2)


class Move(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Any) -> Any:
        return x + self.bias.expand_as(x)


class ResBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, form: str, react: bool, padded: bool) -> None:
        super().__init__()
        self.binary_conv = LatentConv(cin, cout, 3, stride, form)
        self.bn1 = nn.BatchNorm2d(cout)
        self.stride, self.padded, self.react = stride, padded, react
        if stride != 1 and not padded:
            pool, conv = nn.AvgPool2d(2, stride), nn.Conv2d(cin, cout, 1, bias=False)
            self.downsample = nn.Sequential(pool, conv, nn.BatchNorm2d(cout))
        if react:
            self.move0, self.move1, self.move2 = Move(cin), Move(cout), Move(cout)
            self.prelu = nn.PReLU(cout)

    def forward(self, x: Any, sign: Callable[[Any], Any]) -> Any:
        y = self.bn1(self.binary_conv(sign(self.move0(x) if self.react else x)))
        if self.stride != 1:
            quarter = y.shape[1] // 4
            shrunk = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter)) if self.padded else None
            x = shrunk if self.padded else self.downsample(x)
        y = y + x
        return self.move2(self.prelu(self.move1(y))) if self.react else y


class ResNet(Net):
    """small : the CIFAR-10 stem.  padded : shortcuts that subsample and put zero channels round."""

    def __init__(
        self,
        counts: tuple[int, ...],
        width: int,
        classes: int,
        form: str = "flat",
        react: bool = False,
        small: bool = False,
        padded: bool = False,
    ) -> None:
        super().__init__()
        self.small, self.stages = small, len(counts)
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        cin = width
        for stage, count in enumerate(counts, start=1):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(ResBlock(cin, width, stride, form, react, padded))
                cin = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            width *= 2
        self.fc = nn.Linear(cin, classes)

    def forward(self, x: Any) -> Any:
        x = self.bn1(self.conv1(x))
        x = x if self.small else F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.stages + 1):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = block(x, lambda y, at=f"layer{stage}.{index}": self.sign(at, y))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


FORMS = ["flat", "weights 4-D", "weight 4-D", "weight 4-D, bias"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("react", [False, True])
def test_resnets_with_an_imagenet_stem(tmp_path: Path, react: bool, form: str) -> None:
    net = randomise(ResNet((2, 1, 2), 8, 7, form, react), seed=1)
    model = assert_same(net, tmp_path / "net.pth", reactnet if react else bireal, size=32)
    assert model.input_rule.crop == (32, 32)
    assert model.labels == ()
    assert {layer.pad_value for layer in model.layers if isinstance(layer, BinaryConv2d)} == {0}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("react", [False, True])
def test_resnets_with_a_cifar_stem(tmp_path: Path, react: bool, padded: bool) -> None:
    net = randomise(ResNet((2, 2, 1), 12, 10, FORMS[3], react, small=True, padded=padded), seed=2)
    model = assert_same(net, tmp_path / "net.pth", reactnet if react else bireal)
    assert model.input_rule.crop == (32, 32)
    assert model.labels[9] == "truck"
    np.testing.assert_allclose(np.divide(model.input_rule.mean, 255), (0.4914, 0.4822, 0.4465))
    np.testing.assert_allclose(np.divide(model.input_rule.std, 255), (0.2023, 0.1994, 0.2010))


@pytest.mark.parametrize("react", [False, True])
def test_resnet18_of_full_size(tmp_path: Path, react: bool) -> None:
    net = randomise(ResNet((4, 4, 4, 4), 64, 1000, FORMS[2 if react else 0], react), seed=3)
    (tmp_path / "synset.txt").write_text("".join(f"n{i:08d} kind {i}\n" for i in range(1000)))
    model = assert_same(net, tmp_path / "net.pth", reactnet if react else bireal, engine=0.02)
    assert sum(isinstance(layer, BinaryConv2d) for layer in model.layers) == 16
    rule = model.input_rule
    assert (rule.crop, rule.resize, rule.interpolation) == ((224, 224), 256, "bilinear")
    np.testing.assert_allclose(np.divide(rule.mean, 255), (0.485, 0.456, 0.406))
    np.testing.assert_allclose(np.divide(rule.std, 255), (0.229, 0.224, 0.225))
    assert model.labels[:2] == ("kind 0", "kind 1")


# ReActNet's MobileNet


class PointwiseBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.stride, self.doubles = stride, cin != cout
        self.move11, self.bn1 = Move(cin), nn.BatchNorm2d(cin)
        self.binary_3x3 = LatentConv(cin, cin, 3, stride)
        self.move12, self.prelu1, self.move13, self.move21 = Move(cin), nn.PReLU(cin), Move(cin), Move(cin)
        if self.doubles:
            self.binary_pw_down1, self.binary_pw_down2 = LatentConv(cin, cin, 1), LatentConv(cin, cin, 1)
            self.bn2_1, self.bn2_2 = nn.BatchNorm2d(cin), nn.BatchNorm2d(cin)
        else:
            self.binary_pw, self.bn2 = LatentConv(cin, cin, 1), nn.BatchNorm2d(cin)
        self.move22, self.prelu2, self.move23 = Move(cout), nn.PReLU(cout), Move(cout)

    def forward(self, x: Any, sign: Callable[[int, Any], Any]) -> Any:
        y = self.bn1(self.binary_3x3(sign(1, self.move11(x))))
        y = (F.avg_pool2d(x, 2) if self.stride == 2 else x) + y
        y = self.move13(self.prelu1(self.move12(y)))
        bits = sign(2, self.move21(y))
        if self.doubles:
            first = self.bn2_1(self.binary_pw_down1(bits)) + y
            z = torch.cat([first, self.bn2_2(self.binary_pw_down2(bits)) + y], 1)
        else:
            z = self.bn2(self.binary_pw(bits)) + y
        return self.move23(self.prelu2(self.move22(z)))


class MobileNet(Net):
    def __init__(self, channels: tuple[int, ...], classes: int) -> None:
        super().__init__()
        stem = nn.Module()
        stem.conv1 = nn.Conv2d(3, channels[0], 3, 2, 1, bias=False)
        stem.bn1 = nn.BatchNorm2d(channels[0])
        self.feature = nn.ModuleList([stem])
        for cin, cout in itertools.pairwise(channels):
            self.feature.append(PointwiseBlock(cin, cout, 2 if cin != cout and cout != 64 else 1))
        self.fc = nn.Linear(channels[-1], classes)

    def forward(self, x: Any) -> Any:
        stem, *blocks = self.feature
        x = stem.bn1(stem.conv1(x))
        for number, block in enumerate(blocks, start=1):
            x = block(x, lambda part, y, at=number: self.keep(f"feature.{at}.sign{part}", y))
        return self.fc(x.mean((2, 3)))

    def keep(self, name: str, x: Any) -> Any:
        self.read[name] = x
        return x.sign()


def test_reactnet_mobilenet(tmp_path: Path) -> None:
    net = randomise(MobileNet((16, 32, 64, 64, 128), 5), seed=4)
    model = assert_same(net, tmp_path / "net.pth", reactnet, size=32)
    # Channels double without halving the image where they become 64.
    assert [model.shapes[f"feature.{i}.move23"] for i in (1, 2, 3, 4)] == [
        (8, 8, 32),
        (8, 8, 64),
        (8, 8, 64),
        (4, 4, 128),
    ]


# BinaryNet.pytorch


class BinarizeConv2d(nn.Conv2d):
    def forward(self, x: Any) -> Any:
        return self._conv_forward(x, self.weight.sign(), self.bias)


class BinarizeLinear(nn.Linear):
    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight.sign(), self.bias)


class Sequence(Net):
    """The VGG and the AlexNet."""

    def __init__(self, features: list[Any], classifier: list[Any]) -> None:
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, x: Any) -> Any:
        before = x
        for part in ("features", "classifier"):
            for number, module in enumerate(getattr(self, part)):
                if isinstance(module, BinarizeConv2d | BinarizeLinear) and x.shape[1] != 3:
                    # What Hardtanh was given has the same signs, and is what the model takes them of.
                    x = self.sign(f"{part}.{number}", before)
                    x = x.flatten(1) if isinstance(module, BinarizeLinear) else x
                if isinstance(module, nn.Hardtanh):
                    before = x
                elif isinstance(module, nn.LogSoftmax):
                    return x
                x = module(x)


def vgg(width: int, dropout: bool = False, last: Pair = (9, 8), hidden: Pair = (24, 20)) -> Sequence:
    def conv(cin: int, cout: int, pool: bool) -> list[Any]:
        layers = [BinarizeConv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.Hardtanh()]
        return [layers[0], nn.MaxPool2d(2, 2), *layers[1:]] if pool else layers

    def linear(cin: int, cout: int) -> list[Any]:
        layers = [BinarizeLinear(cin, cout), nn.BatchNorm1d(cout), nn.Hardtanh()]
        return [*layers, nn.Dropout(0.5)] if dropout else layers

    features = conv(3, width, False) + conv(width, width, True) + conv(width, 2 * width, False)
    features += conv(2 * width, 2 * width, True) + conv(2 * width, last[0], False)
    features += conv(*last, True)
    logits = [BinarizeLinear(hidden[1], 10), nn.BatchNorm1d(10, affine=False), nn.LogSoftmax(1)]
    return Sequence(features, linear(last[1] * 4 * 4, hidden[0]) + linear(*hidden) + logits)


def alexnet(
    widths: tuple[int, int, int, int, int] = (6, 9, 10, 8, 5),
    hidden: tuple[int, ...] = (30,),
    classes: int = 12,
) -> Sequence:
    def after(channels: int, pool: bool) -> list[Any]:
        return [nn.MaxPool2d(3, 2)] * pool + [nn.BatchNorm2d(channels), nn.Hardtanh()]

    a, b, c, d, e = widths
    features = [BinarizeConv2d(3, a, 11, 4, 2), *after(a, True)]
    features += [BinarizeConv2d(a, b, 5, 1, 2), *after(b, True)]
    features += [BinarizeConv2d(b, c, 3, 1, 1), *after(c, False)]
    features += [BinarizeConv2d(c, d, 3, 1, 1), *after(d, False)]
    features += [BinarizeConv2d(d, e, 3, 1, 1), *after(e, True)]
    classifier: list[Any] = []
    for cin, cout in itertools.pairwise((e * 36, *hidden)):
        classifier += [BinarizeLinear(cin, cout), nn.BatchNorm1d(cout), nn.Hardtanh()]
    logits = [BinarizeLinear(hidden[-1], classes), nn.BatchNorm1d(classes), nn.LogSoftmax(1)]
    return Sequence(features, [*classifier, *logits])


@pytest.mark.parametrize("dropout", [False, True])
def test_binarynet_vgg(tmp_path: Path, dropout: bool) -> None:
    model = assert_same(randomise(vgg(6, dropout), seed=5), tmp_path / "net.pth", binarynet)
    first = model.layers[0]
    assert isinstance(first, Conv2d)
    assert set(np.unique(first.weight)) == {-1, 1}
    assert (model.input_rule.crop, model.labels[0]) == ((32, 32), "airplane")
    np.testing.assert_allclose(np.divide(model.input_rule.mean, 255), (0.485, 0.456, 0.406))
    assert not any(isinstance(layer, Clip) for layer in model.layers)


def test_binarynet_alexnet(tmp_path: Path) -> None:
    model = assert_same(randomise(alexnet(), seed=6), tmp_path / "net.pth", binarynet)
    assert (model.input_rule.crop, model.input_rule.resize) == ((224, 224), 256)
    assert [layer.window.kernel for layer in model.layers if type(layer) is MaxPool] == [(3, 3)] * 3


class BinaryBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = BinarizeConv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(cout), nn.BatchNorm2d(cout)
        self.conv2 = BinarizeConv2d(cout, cout, 3, 1, 1, bias=False)
        if (stride, cin) != (1, cout):
            self.downsample = nn.Sequential(
                BinarizeConv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
            )


class BinaryResNet(Net):
    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = BinarizeConv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        cin = width
        for stage in (1, 2, 3):
            blocks = []
            for index in range(count):
                blocks.append(BinaryBlock(cin, width, 2 if stage > 1 and index == 0 else 1))
                cin = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            width *= 2
        self.bn2, self.bn3, self.fc = nn.BatchNorm1d(cin), nn.BatchNorm1d(10), BinarizeLinear(cin, 10)

    def forward(self, x: Any) -> Any:
        x = F.hardtanh(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            blocks = getattr(self, f"layer{stage}")
            for index, block in enumerate(blocks):
                name, shortcut = f"layer{stage}.{index}", x
                y = block.bn1(block.conv1(self.sign(f"{name}.conv1", x)))
                y = block.conv2(self.sign(f"{name}.conv2", y))
                if hasattr(block, "downsample"):
                    shortcut = block.downsample(x.sign())
                x = y + shortcut
                if (stage, index) != (3, len(blocks) - 1):
                    x = F.hardtanh(block.bn2(x))
        x = self.sign("fc", self.bn2(F.avg_pool2d(x, 8).flatten(1)))
        return self.bn3(self.fc(x))


def test_binarynet_resnet(tmp_path: Path) -> None:
    model = assert_same(randomise(BinaryResNet(8, 2), seed=7), tmp_path / "net.pth", binarynet)
    assert model.labels[0] == "airplane"
    # Shortcuts carry values: there Hardtanh counts.
    clipped = [layer.name for layer in model.layers if isinstance(layer, Clip)]
    assert clipped == ["tanh1", *(f"layer{i}.{j}.tanh2" for i, j in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0)))]


class Mlp(Net):
    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [784, width, width + 3, width]
        for number, (cin, cout) in enumerate(itertools.pairwise(sizes), start=1):
            setattr(self, f"fc{number}", BinarizeLinear(cin, cout))
            setattr(self, f"bn{number}", nn.BatchNorm1d(cout))
        self.fc4 = nn.Linear(width, 10)

    def forward(self, x: Any) -> Any:
        x = self.bn1(self.fc1(x.view(-1, 784)))
        x = self.bn2(self.fc2(self.sign("fc2", x)))
        x = self.bn3(self.fc3(self.sign("fc3", x)))
        return self.fc4(F.hardtanh(x))


def test_binarynet_mlp(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    model = assert_same(randomise(Mlp(40), seed=8), path, binarynet, binarized=True)
    assert model.input_shape == (28, 28, 1)
    np.testing.assert_allclose(model.input_rule.mean, [0.1307 * 255])
    np.testing.assert_allclose(model.input_rule.std, [0.3081 * 255])
    with pytest.raises(ConvertError, match=r"exactly -1 and \+1, got .*option binarized, else accept_r"):
        convert(path)
    net = randomise(Mlp(40), seed=8)
    with torch.no_grad():
        for layer in (net.fc1, net.fc2, net.fc3):
            layer.weight.sign_()
    assert_same(net, path, binarynet)
    with torch.no_grad():
        net.fc2.weight[1, :3] *= 0.75
    torch.save(net.float().state_dict(), path)
    with pytest.raises(ConvertError, match=r"got 0\.17% others in 'fc2\.weight', off by at most 0\.25"):
        convert(path)
    assert convert(path, accept_rounded=True).info["rounded"].startswith("0.17% others in 'fc2.weight'")
    with pytest.raises(ConvertError, match="binarized as True or False, got 'yes'"):
        convert(path, binarized="yes")


# What is refused


#: A small network of each form, and the options that bring it over.
STATES: dict[str, Callable[[], tuple[Net, dict[str, Any]]]] = {
    "bireal": lambda: (ResNet((1, 2), 4, 7), {"size": 16}),
    "bireal_cifar": lambda: (ResNet((1, 2), 4, 10, FORMS[3], small=True, padded=True), {}),
    "reactnet": lambda: (ResNet((1, 1), 4, 7, FORMS[2], react=True), {"size": 16}),
    "mobilenet": lambda: (MobileNet((4, 8, 8), 3), {"size": 16}),
    "vgg": lambda: (vgg(4), {}),
    "alexnet": lambda: (alexnet(), {}),
    "resnet": lambda: (BinaryResNet(4, 2), {}),
    "mlp": lambda: (Mlp(6), {"binarized": True}),
}


def saved(form: str, path: Path, change: Callable[[State], object] = lambda state: None) -> dict[str, Any]:
    """Saves a network of a form with its state changed; its options."""
    net, options = STATES[form]()
    state = randomise(net, seed=9).state_dict()
    change(state)
    torch.save(state, path)
    return options


def put(name: str, at: Any, value: float) -> Callable[[State], object]:
    return lambda state: state[name].__setitem__(at, value)


def rename(old: str, new: str) -> Callable[[State], object]:
    return lambda state: state.update({name.replace(old, new): state.pop(name) for name in list(state)})


def put_tensor(name: str, *shape: int) -> Callable[[State], object]:
    return lambda state: state.update({name: torch.ones(shape)})


def widen(state: State, channels: int) -> None:
    """Gives layer2.0 another number of output channels."""
    for name in [name for name in state if name.startswith("layer2.0.") and state[name].ndim]:
        state[name] = torch.ones(channels, *state[name].shape[1:])


def drop(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


GAP = r"layer1\.0 on without a gap, got "
MISFITS: list[tuple[str, Callable[[State], object], str]] = [
    ("bireal", put("layer2.1.binary_conv.weights", 5, 0), r"'layer2\.1\.binary_conv\.weights', got 1 zeros"),
    ("bireal", put_tensor("spare", 1), "only tensors this importer knows, got 1 more: spare"),
    ("bireal", drop("layer2.0.downsample.2.bias"), r"a tensor 'layer2\.0\.downsample\.2\.bias'"),
    ("bireal", drop("layer2.0.downsample.1.weight"), r"5 more: layer2\.0\.downsample"),
    ("bireal", drop("fc.bias"), r"a tensor 'fc\.bias'"),
    ("bireal", rename("layer2.1", "layer2.2"), GAP + r"layer2\.2"),
    ("bireal", rename("layer2", "layer3"), GAP + r"layer3\.0"),
    ("bireal", rename("layer1", "layer0"), GAP + r"layer0\.0"),
    ("bireal", put_tensor("layer1.0.binary_conv.weights", 145, 1), r"filters of \[4, 3, 3\] .* 145 weights"),
    ("bireal", put_tensor("layer1.0.binary_conv.weight", 4, 4, 3, 3), r"1 more: layer1\.0\.binary_conv"),
    ("bireal_cifar", put("layer1.0.binary_conv.weight", (0, 0, 0, 0), np.nan), "finite values"),
    (
        "bireal_cifar",
        lambda state: widen(state, 10),
        "a quarter of new channels on .*got 10 channels",
    ),
    ("reactnet", put("layer2.0.binary_conv.weight", (1, 1, 1, 1), 0), "got 1 zeros, of sign 0"),
    ("reactnet", drop("layer2.0.move2.bias"), r"a tensor 'layer2\.0\.move2\.bias'"),
    ("reactnet", put_tensor("layer2.0.prelu.weight", 1), r"float32\[8\] as 'layer2\.0\.prelu\.weight'"),
    ("mobilenet", rename("weights", "weight"), "binary weights, .* real ones. .*second step"),
    ("mobilenet", rename("feature.2", "feature.3"), r"feature\.1 on without a gap, got \[1, 3\]"),
    ("mobilenet", drop("feature.1.bn2_2.running_var"), r"a tensor 'feature\.1\.bn2_2\.running_var'"),
    ("vgg", put("features.0.weight", (0, 0, 0, 0), 0), r"'features\.0\.weight', got 1 zeros"),
    ("vgg", put("classifier.3.weight", (0, 0), 0), r"'classifier\.3\.weight', got 1 zeros"),
    ("vgg", put("features.7.weight", 1, 0), r"'features\.7\.weight', got 36 zeros"),
    ("vgg", rename("features.7.", "features.31."), r"layer features\.7, got features\.10"),
    ("vgg", rename("classifier.4.", "classifier.5."), r"a batch-norm after classifier\.3, got another"),
    ("vgg", put_tensor("features.3.weight", 4, 4, 2, 2), "an odd kernel .*got kernel 2 and 4 channels"),
    ("alexnet", drop("classifier.1.running_mean"), r"a batch-norm after classifier\.0"),
    ("alexnet", put_tensor("classifier.0.weight", 30, 20), r"float32\[any, 180\] as 'classifier\.0"),
    ("resnet", drop("layer3.1.bn2.running_var"), r"a tensor 'layer3\.1\.bn2\.running_var'"),
    ("resnet", rename("layer3.1", "layer3.2"), GAP + r"layer3\.2"),
    ("mlp", put("fc2.weight", (0, 0), 0), r"'fc2\.weight', got 1 zeros"),
    ("mlp", put_tensor("fc1.weight", 6, 20), r"float32\[any, 784\] as 'fc1\.weight'"),
    ("mlp", drop("fc4.weight"), r"a tensor 'fc4\.weight'"),
]


@pytest.mark.parametrize(("form", "change", "message"), MISFITS)
def test_what_does_not_fit_is_named(
    tmp_path: Path, form: str, change: Callable[[State], object], message: str
) -> None:
    options = saved(form, tmp_path / "net.pth", change)
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "net.pth", **options)


def test_images_are_known_by_their_size_as_in_the_original(tmp_path: Path) -> None:
    """Layers that read 784 values or 3 channels do not binarize them: hidden ones that wide are refused."""
    wide = [BinarizeConv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Hardtanh()]
    wide += [BinarizeConv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)]
    last = [BinarizeLinear(4096, 10), nn.BatchNorm1d(10)]
    net = randomise(Sequence(wide, last), seed=10)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with pytest.raises(ConvertError, match=r"channels other than 3, which features\.3 would not binarize"):
        convert(tmp_path / "net.pth")
    torch.save(randomise(Mlp(784), seed=10).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ConvertError, match="other inputs than 784, which fc2 would not binarize"):
        convert(tmp_path / "net.pth", binarized=True)


@pytest.mark.parametrize("form", STATES)
def test_hostile_tensors_are_errors_of_ours(tmp_path: Path, form: str) -> None:
    options = saved(form, tmp_path / "net.pth")
    source = Checkpoint(tmp_path / "net.pth")
    whole = source.state_dict
    assert whole is not None
    (importer,) = (each for each in IMPORTERS if each.recognise(source))
    importer.read(source, **options)
    odd = (np.float32(1), np.zeros(0, np.float32), np.zeros((1,) * 5, np.float32), np.ones(3, np.int64))
    for name in whole:
        if name.endswith("num_batches_tracked"):
            continue
        changed = whole | {name: np.asarray(odd[len(name) % 4])}
        source.__dict__["state_dict"] = changed
        if importer.recognise(source):
            with pytest.raises(XnorError):
                importer.read(source, **options)
        del changed[name]
        if importer.recognise(source) and not name.endswith(".bias"):  # some convolutions have none
            with pytest.raises(XnorError):
                importer.read(source, **options)


def test_float_networks_of_like_names_are_not_taken_for_binary_ones(tmp_path: Path) -> None:
    conv, norm = torch.zeros(4, 3, 3, 3), torch.zeros(4)
    vgg_bn = {"features.0.weight": conv, "features.1.running_mean": norm, "classifier.0.weight": conv}
    resnet = {"conv1.weight": conv, "bn1.running_mean": norm, "layer1.0.conv1.weight": conv}
    mlp = {"fc1.weight": torch.zeros(4, 4), "fc2.weight": torch.zeros(4, 4)}
    for state in (vgg_bn, resnet, mlp):
        torch.save(state, tmp_path / "net.pth")
        with pytest.raises(ConvertError, match="one of: "):
            convert(tmp_path / "net.pth")


# Signs of 0


@pytest.mark.parametrize(("kernel", "padding", "channels"), [(1, 0, 4), (1, 0, 5), (3, 1, 2), (3, 1, 3)])
def test_sums_that_a_batch_norm_makes_zero_are_found(kernel: int, padding: int, channels: int) -> None:
    """Against all sums that windows in a corner, on an edge and inside can have."""
    taps = {1} if kernel == 1 else {4, 6, 9}
    sums = {dot for n in taps for dot in range(-n * channels, n * channels + 1, 2)}
    thresholds = np.arange(-30, 31, dtype=np.float32)
    weight = np.zeros((len(thresholds), kernel, kernel, 1), np.uint64)
    window = Window((kernel, kernel), padding=(padding,) * 4)
    ones, bias = np.full(len(weight), 0.5, np.float32), np.full(len(weight), 0.25, np.float32)
    conv = BinaryConv2d("conv", ("sign",), weight, ones, bias, channels, window)
    norm = Affine("bn", ("conv",), np.full(len(weight), -2, np.float32), thresholds + np.float32(0.5))
    chain = [Sign("sign", (INPUT,)), conv, norm, Sign("end", ("bn",))]
    sizes = {"sign": (4, 4, channels), "conv": (4, 4, len(weight))}
    rule = InputRule((4, 4), 4, (0.0,) * 3, (1.0,) * 3)
    *_, (name, found) = zero_channels({layer.name: layer for layer in chain}, sizes, rule)
    assert name == "end"
    expected = [any(-2 * (0.5 * dot + 0.25) + t + 0.5 == 0 for dot in sums) for t in thresholds]
    np.testing.assert_array_equal(found, expected)
    assert any(expected)
    assert not all(expected)


def ties(conv: str, norm: str, channel: int = 1, mean: float = 0) -> Callable[[State], object]:
    """One channel's batch-norm of a binary convolution without scale becomes x - mean."""

    def change(state: State) -> None:
        if f"{conv}.bias" in state:
            state[f"{conv}.bias"][channel] = 0
        statistics = {"weight": 1.0, "bias": 0.0, "running_mean": mean, "running_var": 1.0}
        for name, value in statistics.items():
            state[f"{norm}.{name}"][channel] = value

    return change


def dead(norm: str, channel: int = 1) -> Callable[[State], object]:
    def change(state: State) -> None:
        state[f"{norm}.weight"][channel] = state[f"{norm}.bias"][channel] = 0

    return change


@pytest.mark.parametrize(
    ("form", "change", "layer"),
    [
        ("vgg", ties("features.7", "features.8"), "features.10"),  # no pool between
        ("vgg", ties("features.3", "features.5", mean=4), "features.7"),  # a pool between
        ("vgg", ties("classifier.0", "classifier.1", mean=-8), "classifier.3"),
        ("vgg", dead("features.1"), "features.3"),
        ("alexnet", dead("classifier.4"), None),  # the logits: no sign is taken of them
        ("resnet", ties("layer1.0.conv1", "layer1.0.bn1"), "layer1.0.conv2"),
        ("resnet", ties("layer1.0.conv2", "layer1.0.bn2"), None),  # a shortcut is added before
        ("mlp", ties("fc2", "bn2", mean=2), "fc3"),
        ("mlp", ties("fc2", "bn2", mean=3), None),  # sums of 6 products are even
        ("mlp", dead("bn2"), "fc3"),
        ("bireal", dead("bn1"), "layer1.0"),
        ("bireal_cifar", dead("layer2.0.bn1", channel=0), "layer2.1"),  # beside the shortcut's channels
        ("bireal_cifar", dead("layer2.0.bn1", channel=7), "layer2.1"),
        ("bireal_cifar", dead("layer2.0.bn1", channel=2), None),  # added to the shortcut's
    ],
)
def test_networks_that_take_the_sign_of_zero_are_refused(
    tmp_path: Path, form: str, change: Callable[[State], object], layer: str | None
) -> None:
    options = saved(form, tmp_path / "net.pth", change)
    if layer is None:
        convert(tmp_path / "net.pth", **options)
        return
    with pytest.raises(ConvertError, match=rf"never exactly 0, got {layer}\.sign, of which"):
        convert(tmp_path / "net.pth", **options)
