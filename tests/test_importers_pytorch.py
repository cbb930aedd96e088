"""Importers of training codes in PyTorch: their networks, built here, compute the same when brought over.

The modules are written from the published architectures, names of tensors included, and run in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import numpy.typing as npt
import pytest

from xnor_rrm import XnorError, convert
from xnor_rrm.errors import ConvertError
from xnor_rrm.importers import binarynet, bireal, reactnet
from xnor_rrm.importers.checkpoint import Checkpoint, refuse_zeros, zero_sums
from xnor_rrm.model import INPUT, Add, Affine, BinaryConv2d, Clip, Conv2d, MaxPool, Model, Sign, Window

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

Array = npt.NDArray[Any]
State = dict[str, Any]


class Net(nn.Module):  # type: ignore[misc]  # torch is imported as Any
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


def assert_same(net: Net, path: Path, importer: Any, seed: int = 0, **options: Any) -> Model:
    """Save a network, bring it over, and compare model and original with it on an image; the model."""
    torch.save({"state_dict": net.state_dict(), "epoch": 1}, path)
    model = convert(path, **options)
    height, width, channels = model.input_shape
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    x = model.input_rule.table()[frame, np.arange(channels)]
    with torch.no_grad():
        logits = net.double()(torch.tensor(x).double().permute(2, 0, 1)[None]).flatten().numpy()
    read = {name: value.reshape(*value.shape, *(1, 1)[: 4 - value.ndim])[0].permute(1, 2, 0).numpy()
            for name, value in net.read.items()}  # fmt: skip
    assert list(read) == [layer.name for layer in model.layers if isinstance(layer, Sign)]

    original_logits, original_read = importer.original(Checkpoint(path), **options)(x)
    assert original_logits.dtype == np.float32
    np.testing.assert_allclose(original_logits, logits, rtol=1e-6, atol=1e-6)
    assert original_read.keys() == read.keys()
    for name, value in read.items():
        assert original_read[name].dtype == np.float32
        np.testing.assert_allclose(original_read[name], value, rtol=1e-6, atol=1e-6)

    np.testing.assert_allclose(forced(model, x, read), logits, rtol=0, atol=1e-6 * np.abs(logits).max())
    return model


def forced(model: Model, x: Array, read: dict[str, Array]) -> Array:
    """The logits of the layers as the oracle has them, each fed the signs of `read`, which it must arrive at."""
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


class LatentConv(nn.Module):  # type: ignore[misc]
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


class Move(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Any) -> Any:
        return x + self.bias.expand_as(x)


class ResBlock(nn.Module):  # type: ignore[misc]
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
    model = assert_same(net, tmp_path / "net.pth", reactnet if react else bireal)
    assert sum(isinstance(layer, BinaryConv2d) for layer in model.layers) == 16
    rule = model.input_rule
    assert (rule.crop, rule.resize, rule.interpolation) == ((224, 224), 256, "bilinear")
    np.testing.assert_allclose(np.divide(rule.mean, 255), (0.485, 0.456, 0.406))
    np.testing.assert_allclose(np.divide(rule.std, 255), (0.229, 0.224, 0.225))
    assert model.labels[:2] == ("kind 0", "kind 1")


# ReActNet's MobileNet


class PointwiseBlock(nn.Module):  # type: ignore[misc]
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.stride, self.doubles = stride, cin != cout
        self.move11, self.binary_3x3, self.bn1 = Move(cin), LatentConv(cin, cin, 3, stride), nn.BatchNorm2d(cin)
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
        for cin, cout in zip(channels, channels[1:], strict=False):
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


class BinarizeConv2d(nn.Conv2d):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return self._conv_forward(x, self.weight.sign(), self.bias)


class BinarizeLinear(nn.Linear):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight.sign(), self.bias)


class Sequence(Net):
    """The VGG and the AlexNet: their modules by number, and what stands between."""

    def __init__(self, features: list[Any], classifier: list[Any]) -> None:
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, x: Any) -> Any:
        before = None
        for part in ("features", "classifier"):
            for number, module in enumerate(getattr(self, part)):
                if isinstance(module, BinarizeConv2d | BinarizeLinear) and before is not None:
                    x = x.flatten(1) if number == 0 else x
                    shape = before.shape
                    self.read[f"{part}.{number}.sign"] = before
                    assert x.numel() == np.prod(shape)
                    x = x.sign()
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    x = before = module(x)  # what Hardtanh is given has the same signs
                elif not isinstance(module, nn.LogSoftmax):
                    x = module(x)
        return x


def vgg(width: int, dropout: bool = False) -> Sequence:
    def conv(cin: int, cout: int, pool: bool) -> list[Any]:
        layers = [BinarizeConv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.Hardtanh()]
        return [layers[0], nn.MaxPool2d(2, 2), *layers[1:]] if pool else layers

    def linear(cin: int, cout: int) -> list[Any]:
        layers = [BinarizeLinear(cin, cout), nn.BatchNorm1d(cout), nn.Hardtanh()]
        return [*layers, nn.Dropout(0.5)] if dropout else layers

    features = conv(3, width, False) + conv(width, width, True) + conv(width, 2 * width, False)
    features += conv(2 * width, 2 * width, True) + conv(2 * width, 4 * width, False) + conv(4 * width, 8, True)
    last = [BinarizeLinear(20, 10), nn.BatchNorm1d(10, affine=False), nn.LogSoftmax(1)]
    return Sequence(features, linear(8 * 4 * 4, 24) + linear(24, 20) + last)


def alexnet() -> Sequence:
    def after(channels: int, pool: bool) -> list[Any]:
        return [nn.MaxPool2d(3, 2)] * pool + [nn.BatchNorm2d(channels), nn.Hardtanh()]

    features = [BinarizeConv2d(3, 6, 11, 4, 2), *after(6, True), BinarizeConv2d(6, 9, 5, 1, 2), *after(9, True)]
    features += [BinarizeConv2d(9, 10, 3, 1, 1), *after(10, False), BinarizeConv2d(10, 8, 3, 1, 1)]
    features += [*after(8, False), BinarizeConv2d(8, 5, 3, 1, 1), *after(5, True)]
    classifier = [BinarizeLinear(5 * 36, 30), nn.BatchNorm1d(30), nn.Hardtanh(), BinarizeLinear(30, 12)]
    return Sequence(features, [*classifier, nn.BatchNorm1d(12), nn.LogSoftmax(1)])


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


class BinaryBlock(nn.Module):  # type: ignore[misc]
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
    assert [layer.name for layer in model.layers if isinstance(layer, Clip)][:2] == ["tanh1", "layer1.0.tanh2"]


class Mlp(Net):
    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [784, width, width + 3, width]
        for number, (cin, cout) in enumerate(zip(sizes, sizes[1:], strict=False), start=1):
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
    with pytest.raises(ConvertError, match=r"weights of -1 and \+1 in an MLP .*give the option binarized"):
        convert(path)
    net = randomise(Mlp(40), seed=8)
    with torch.no_grad():
        for layer in (net.fc1, net.fc2, net.fc3):
            layer.weight.sign_()
    assert_same(net, path, binarynet)
    with pytest.raises(ConvertError, match="binarized as True or False, got 'yes'"):
        convert(path, binarized="yes")
