"""Small random networks and clips: every kind of layer, odd channel counts and geometries, ties in sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from xnor_rrm.decoding import Decoding
from xnor_rrm.model import (
    INPUT,
    Add,
    Affine,
    AvgPool,
    BinaryConv2d,
    Clip,
    Concat,
    Conv2d,
    InputRule,
    Layer,
    MaxPool,
    Model,
    PRelu,
    Relu,
    Shape,
    Sign,
    Softmax,
    Upsample,
    Window,
)

Array = npt.NDArray[Any]
Motion = Literal["still", "all", "flip", "border", "pixel", "patch", "noise"]
MOTIONS: tuple[Motion, ...] = get_args(Motion)

CHANNELS = (1, 3, 31, 33, 64, 65, 130)


def pack(bits: Array) -> Array:
    """uint64[..., ceil(C / 64)] of bool[..., C]: channel c is bit c % 64 of word c // 64, spare bits zero."""
    spare = [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % 64)]
    return np.packbits(np.pad(bits, spare), axis=-1, bitorder="little").view("<u8")


def assert_same(a: Any, b: Any) -> None:
    """Equal models, layers or fields: same types, values and bits of arrays."""
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    else:
        assert a == b


class Builder:
    """Adds layers one by one and tracks their shapes. Each method returns the name of the layer it added.

    ties : weights and thresholds that are small integers, so that sums meet zero exactly.
    channels : of the input, 3 or 1.
    """

    def __init__(
        self, rng: np.random.Generator, height: int, width: int, ties: bool = False, channels: int = 3
    ) -> None:
        self.rng, self.ties = rng, ties
        self.layers: list[Layer] = []
        self.shapes: dict[str, Shape] = {INPUT: (height, width, channels)}

    def model(self, labels: tuple[str, ...] = (), resize: int = 0) -> Model:
        height, width, channels = self.shapes[INPUT]
        mean, std = ((125.5, 0.0, 127.0), (61.0, 1.0, 64.5)) if not self.ties else ((128.0,) * 3, (1.0,) * 3)
        rule = InputRule((height, width), resize, mean[:channels], std[:channels], channels=channels)
        return Model("random", rule, tuple(self.layers), labels, {"source": "tests/models.py"})

    def conv(self, source: str, cout: int, window: Window, groups: int = 1) -> str:
        cin = self.shapes[source][2]
        weight = self._floats(cout, *window.kernel, cin // groups) / np.float32(4)
        return self._add(Conv2d(self._name("conv"), (source,), weight, self._floats(cout), window, groups))

    def binary(self, source: str, cout: int, window: Window, pad_value: int = 0) -> str:
        """Binary convolution of the signs of `source`, which may be a Sign layer already."""
        if not any(layer.name == source and isinstance(layer, Sign) for layer in self.layers):
            source = self.sign(source)
        cin = self.shapes[source][2]
        weight = pack(self.rng.random((cout, *window.kernel, cin)) < 0.5)
        spread = np.float32(np.sqrt(window.kernel[0] * window.kernel[1] * cin))
        alpha = np.ones(cout, np.float32) if self.ties else self._floats(cout) / spread
        bias, name = self._floats(cout), self._name("binary")
        return self._add(BinaryConv2d(name, (source,), weight, alpha, bias, cin, window, pad_value))

    def affine(self, source: str) -> str:
        """Batch-norm whose gamma is negative, zero or positive."""
        channels = self.shapes[source][2]
        scale = self._floats(channels) * self.rng.choice(np.float32([0, 1]), channels, p=[0.1, 0.9])
        return self._add(Affine(self._name("affine"), (source,), scale, self._floats(channels)))

    def relu(self, source: str) -> str:
        return self._add(Relu(self._name("relu"), (source,)))

    def prelu(self, source: str) -> str:
        """Slopes of either sign."""
        return self._add(PRelu(self._name("prelu"), (source,), self._floats(self.shapes[source][2])))

    def clip(self, source: str) -> str:
        low, high = sorted(self._floats(2).tolist())
        return self._add(Clip(self._name("clip"), (source,), low, high))

    def concat(self, *sources: str) -> str:
        return self._add(Concat(self._name("concat"), sources))

    def upsample(
        self, source: str, factor: int, interpolation: Literal["nearest", "bilinear"] = "nearest"
    ) -> str:
        return self._add(Upsample(self._name("upsample"), (source,), factor, interpolation))

    def softmax(self, source: str) -> str:
        return self._add(Softmax(self._name("softmax"), (source,)))

    def sign(self, source: str) -> str:
        return self._add(Sign(self._name("sign"), (source,)))

    def plus(self, a: str, b: str) -> str:
        return self._add(Add(self._name("add"), (a, b)))

    def max_pool(self, source: str, window: Window) -> str:
        return self._add(MaxPool(self._name("max"), (source,), window))

    def avg_pool(self, source: str, window: Window, count_padding: bool = True) -> str:
        return self._add(AvgPool(self._name("avg"), (source,), window, count_padding))

    def whole(self, source: str) -> Window:
        """The window as large as the output of `source`: a fully connected layer, a global pool."""
        return Window(self.shapes[source][:2])

    def window(self, source: str, dilate: bool = True) -> Window:
        """A random window that fits `source`; without dilation every position of it meets the image."""
        while True:
            kernel, stride, dilation = (
                self._pair((1, 2, 3, 5), p=(0.2, 0.15, 0.5, 0.15)),
                self._pair((1, 2, 4), p=(0.7, 0.2, 0.1)),
                self._pair((1, 2, 3) if dilate else (1,)),
            )
            reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
            (top, bottom), (left, right) = (self._margins(r) for r in reach)
            height, width, _ = self.shapes[source]
            if height + top + bottom >= reach[0] and width + left + right >= reach[1]:
                return Window(kernel, stride, (top, bottom, left, right), dilation)

    def _pair(self, choices: tuple[int, ...], p: tuple[float, ...] | None = None) -> tuple[int, int]:
        """Two of `choices`, mostly the same one."""
        a, b = (int(n) for n in self.rng.choice(choices, 2, p=p))
        return (a, a) if self.rng.random() < 0.7 else (a, b)

    def _margins(self, reach: int) -> tuple[int, int]:
        """Padding before and after, rarely so much that the output is larger than the input."""
        before = int(self.rng.integers(0, reach))
        after = int(self.rng.integers(0, reach if self.rng.random() < 0.1 else reach - before))
        return before, after

    def _floats(self, *shape: int) -> Array:
        values = self.rng.integers(-3, 4, shape) if self.ties else self.rng.standard_normal(shape)
        return values.astype(np.float32)

    def _name(self, kind: str) -> str:
        return f"{kind}{len(self.layers)}"

    def _add(self, layer: Layer) -> str:
        self.shapes[layer.name] = layer.output_shape(*(self.shapes[name] for name in layer.inputs))
        self.layers.append(layer)
        return layer.name


def every_kind(rng: np.random.Generator) -> Model:
    """A model with every kind of layer, on 9 x 7 frames: stem, residual block, pools, head."""
    net = Builder(rng, 9, 7)
    same = Window((3, 3), padding=(1, 1, 1, 1))
    stem = net.relu(net.affine(net.conv(INPUT, 33, same)))
    block = net.affine(net.binary(net.affine(stem), 65, Window((3, 3), (2, 2), (1, 1, 1, 1)), pad_value=1))
    pooled = net.avg_pool(stem, Window((2, 2), (2, 2), (0, 1, 0, 1)), count_padding=False)
    shortcut = net.conv(pooled, 65, Window((1, 1)))
    top = net.max_pool(net.plus(block, shortcut), Window((3, 3), (1, 1), (2, 2, 0, 1)))
    top = net.binary(top, 12, Window((2, 3), (1, 1), (1, 1, 2, 2), (3, 2)), pad_value=-1)
    top = net.conv(top, 6, Window((1, 1)), groups=3)
    top = net.prelu(net.conv(net.concat(top, net.clip(top), top), 18, same, groups=18))
    top = net.upsample(top, 2)
    top = net.softmax(net.upsample(net.max_pool(top, Window((2, 2), (2, 2))), 2, "bilinear"))
    net.conv(net.avg_pool(top, net.whole(top)), 4, Window((1, 1)))
    return net.model(labels=("cat", "dog", "chat\u00a0noir", "\u732b"))


def random_model(rng: np.random.Generator, blocks: int | None = None) -> Model:
    """A random composition of blocks as trained networks have them, on a frame of 4 to 11 pixels a side."""
    height, width = (int(n) for n in rng.integers(4, 12, 2))
    net = Builder(rng, height, width, ties=rng.random() < 0.4, channels=int(rng.choice((1, 3))))
    top = INPUT
    if rng.random() < 0.7:
        top = net.conv(top, _channels(rng), net.window(top))
    for _ in range(int(rng.integers(1, 5)) if blocks is None else blocks):
        top = BLOCKS[rng.integers(len(BLOCKS))](net, top)
    return _head(net, top)


def _channels(rng: np.random.Generator) -> int:
    return int(rng.choice(CHANNELS))


def _pad_value(net: Builder) -> int:
    return int(net.rng.integers(-1, 2))


def _xnor_block(net: Builder, top: str) -> str:
    """XNOR-Net's order: batch-norm, sign, binary convolution, now and then ReLU."""
    top = net.affine(top) if net.rng.random() < 0.8 else top
    top = net.binary(top, _channels(net.rng), net.window(top), _pad_value(net))
    return net.relu(top) if net.rng.random() < 0.5 else top


def _pooled_block(net: Builder, top: str) -> str:
    """A max pool between a binary convolution and the next sign, before or after batch-norm."""
    top = net.binary(top, _channels(net.rng), net.window(top), _pad_value(net))
    if net.rng.random() < 0.5:
        return net.affine(net.max_pool(top, net.window(top, dilate=False)))
    top = net.affine(top)
    return net.max_pool(top, net.window(top, dilate=False))


def _residual_block(net: Builder, top: str) -> str:
    """sign, binary convolution, batch-norm, plus a shortcut: the input itself, or pooled and projected."""
    cin = net.shapes[top][2]
    if net.rng.random() < 0.5:
        window = Window((3, 3), padding=(1, 1, 1, 1))
        return net.plus(net.affine(net.binary(top, cin, window, _pad_value(net))), top)
    cout = _channels(net.rng)
    window = Window((3, 3), (2, 2), (1, 1, 1, 1))
    pool = Window((2, 2), (2, 2), (0, net.shapes[top][0] % 2, 0, net.shapes[top][1] % 2))
    shortcut = net.conv(net.avg_pool(top, pool, bool(net.rng.integers(2))), cout, Window((1, 1)))
    return net.plus(shortcut, net.affine(net.binary(top, cout, window, _pad_value(net))))


def _forked_block(net: Builder, top: str) -> str:
    """One Sign read by two binary convolutions, whose sum goes on."""
    bits, cout, window = net.sign(net.affine(top)), _channels(net.rng), net.window(top)
    a, b = (net.binary(bits, cout, window, _pad_value(net)) for _ in range(2))
    return net.affine(net.plus(a, b))


def _float_block(net: Builder, top: str) -> str:
    """A grouped float convolution and an average pool between binary layers."""
    top = net.binary(top, 6, net.window(top), _pad_value(net))
    top = net.conv(top, 9, net.window(top), groups=3)
    return net.avg_pool(top, net.window(top, dilate=False), bool(net.rng.integers(2)))


def _activated_block(net: Builder, top: str) -> str:
    """PReLU and Hardtanh, before or after the shortcut of a binary convolution."""
    shortcut = net.clip(top) if net.rng.random() < 0.5 else top
    window = Window((3, 3), padding=(1, 1, 1, 1))
    top = net.binary(shortcut, net.shapes[top][2], window, _pad_value(net))
    if net.rng.random() < 0.5:
        return net.prelu(net.plus(top, shortcut))
    return net.plus(net.prelu(top), net.clip(net.prelu(shortcut)))


def _dense_block(net: Builder, top: str) -> str:
    """Features beside new ones made of them; now and then the raw input, now and then one part twice."""
    if net.shapes[top][2] > 70:
        top = net.conv(top, 12, Window((1, 1)))
    window = Window((3, 3), padding=(1, 1, 1, 1))
    new = net.binary(net.affine(top), _channels(net.rng), window, _pad_value(net))
    new = net.affine(new) if net.rng.random() < 0.5 else new
    parts = [top, new, net.conv(top, 5, Window((1, 1)))][: 2 + int(net.rng.integers(2))]
    if net.shapes[top][:2] == net.shapes[INPUT][:2] and net.rng.random() < 0.5:
        parts.append(INPUT)
    order = [parts[i] for i in net.rng.permutation(len(parts))]
    return net.concat(*order) if net.rng.random() < 0.7 else net.concat(*order, order[0])


def _upsampling_block(net: Builder, top: str) -> str:
    """Upsampling of a binary convolution's output, or of what an elementwise chain made of it."""
    top = net.binary(top, _channels(net.rng), net.window(top), _pad_value(net))
    top = net.relu(top) if net.rng.random() < 0.5 else top
    if max(net.shapes[top][:2]) > 12 and min(net.shapes[top][:2]) > 1:
        top = net.max_pool(top, Window((2, 2), (2, 2)))
    mode: Literal["nearest", "bilinear"] = "bilinear" if net.rng.random() < 0.5 else "nearest"
    return net.upsample(top, int(net.rng.integers(1, 4)), mode)


def _gated_block(net: Builder, top: str) -> str:
    """A softmax over a binary convolution's channels, mostly shifted so that not all signs are +1."""
    top = net.softmax(net.binary(top, _channels(net.rng), net.window(top), _pad_value(net)))
    return net.affine(top) if net.rng.random() < 0.7 else net.plus(top, net.affine(top))


def _depthwise_block(net: Builder, top: str) -> str:
    """A depthwise or grouped float convolution, alone or with an elementwise chain behind it."""
    channels = net.shapes[top][2]
    groups = int(net.rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    groups = channels if net.rng.random() < 0.6 else groups
    per_group = 1 if net.rng.random() < 0.7 else int(net.rng.integers(1, max(2, 140 // groups)))
    top = net.conv(top, groups * per_group, net.window(top), groups=groups)
    return net.relu(net.affine(top)) if net.rng.random() < 0.5 else top


BLOCKS = (
    _xnor_block,
    _pooled_block,
    _residual_block,
    _forked_block,
    _float_block,
    _activated_block,
    _dense_block,
    _upsampling_block,
    _gated_block,
    _depthwise_block,
)


def _head(net: Builder, top: str) -> Model:
    """Ten classes: a fully connected layer, float or binary, or a convolution and a global average pool."""
    match net.rng.integers(3):
        case 0:
            net.conv(top, 10, net.whole(top))
        case 1:
            net.binary(net.affine(top), 10, net.whole(top))
        case _:
            top = net.conv(top, 10, Window((1, 1)))
            net.avg_pool(top, net.whole(top))
    return net.model(tuple("abcdefghij"))


def random_frames(
    rng: np.random.Generator, n: int, height: int, width: int, motion: Motion
) -> Iterator[Array]:
    """n frames uint8[height, width, 3], each new; consecutive ones differ as `motion` says.

    still : not at all.  all : every value.  flip : to the complement.  border : one pixel at the border.
    pixel : one anywhere.  patch : a moving square.  noise : a tenth of the pixels.
    """
    background = frame = rng.integers(0, 256, (height, width, 3), np.uint8)
    for t in range(n):
        yield frame.copy()
        match motion:
            case "all":
                frame = frame + rng.integers(1, 256, frame.shape, np.uint8)
            case "flip":
                frame = ~frame
            case "border":
                y, x = int(rng.integers(height)), int(rng.integers(width))
                y, x = ((0, height - 1)[y % 2], x) if rng.random() < 0.5 else (y, (0, width - 1)[x % 2])
                frame[y, x] = ~frame[y, x]
            case "pixel":
                y, x = int(rng.integers(height)), int(rng.integers(width))
                frame[y, x] = ~frame[y, x]
            case "patch":
                frame = background.copy()
                y, x = t % height, t * 2 % width
                frame[y : y + 3, x : x + 3] = ~frame[y : y + 3, x : x + 3]
            case "noise":
                where = rng.random((height, width)) < 0.1
                frame = np.where(where[..., None], rng.integers(0, 256, frame.shape, np.uint8), frame)


def maps_model(
    channels: int,
    decoding: Decoding,
    labels: tuple[str, ...] = (),
    *,
    seed: int = 0,
    size: tuple[int, int] = (24, 32),
    binary: bool = True,
) -> Model:
    """A small network that makes maps of cells of 4 pixels, of letterboxed frames."""
    net = Builder(np.random.default_rng(seed), *size)
    top, window = net.conv(INPUT, 40, Window((4, 4), (4, 4))), Window((3, 3), padding=(1, 1, 1, 1))
    top = net.binary(net.affine(top), 40, window) if binary else net.relu(top)
    net.conv(top, channels, Window((1, 1)))
    model = net.model()
    rule = dataclasses.replace(model.input_rule, fit="letterbox")
    return dataclasses.replace(model, name="maps", input_rule=rule, decoding=decoding, labels=labels)
