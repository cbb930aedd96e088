"""The model: an immutable graph of layers, their weights, and the rule that turns a frame into the input.

A `Model` holds no state of any video; `Model.stream` makes the object that does. Activations are
NHWC with N = 1, written (H, W, C). Semantics of every layer are given in its docstring in float32,
each operation rounded once; the engine reproduces them exactly, in both modes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .decoding import Decoding, Task
from .errors import ModelError

if TYPE_CHECKING:
    from .plan import Plan
    from .stream import Stream

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]
Mode = Literal["cached", "dense"]

#: The name by which layers refer to the network's input.
INPUT = "input"

#: Most values that an activation may have.
MAX_ACTIVATION = 1 << 28

#: Most bits under one binary window: mismatches are counted in uint16.
MAX_WINDOW_BITS = 65535


@dataclass(frozen=True)
class InputRule:
    """From a raw frame to the network's input: luminance if grey, resize, crop or letterbox, normalise.

    A frame of exactly the crop's size is taken as it is: it has been resized and cropped before.

    resize : length in pixels of the frame's shorter side after resizing (aspect ratio kept, rounded as
        Pillow's thumbnailers do: `long * resize // short`); 0 leaves the frame's size alone.
    crop : (H, W), cut from the centre: top = (height - H) // 2, left = (width - W) // 2.
    interpolation : "bilinear" or "bicubic", with support widened when shrinking (Pillow's filters); "area",
        the mean over each output pixel's area of the frame, and on an axis that is enlarged linear between
        two pixels' middles. Weights of "area" are whole 256ths, differences of the rounded running sum of
        the exact ones; rows are averaged before columns, each rounded to uint8, halves up.
    mean, std : per channel, in units of 0..255. The input value is float32((v - mean) / std), one
        rounding from float64, v the uint8 value.
    channels : 3, or 1: the luminance of the frame, before it is resized, as Pillow's mode "L" has it:
        (19595 R + 38470 G + 7471 B + 32768) >> 16.
    fit : "crop" cuts what is outside `crop`. "letterbox" shows all of the frame in the middle of `crop`, as
        large as its aspect ratio lets it be, its other side rounded to the nearest pixel; what is left over
        on both sides has the values of `mean`, rounded, and `resize` is 0.
    step : a power of two up to 64. Of each resized value the network sees the multiple of `step` at or below
        it: changes in between, most of a camera's noise, do not exist for it.
    """

    crop: tuple[int, int]
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic", "area"] = "bilinear"
    #: Left out of model files where they are the defaults, so that files stay as they were before.
    channels: int = field(default=3, metadata={"omit_default": True})
    fit: Literal["crop", "letterbox"] = field(default="crop", metadata={"omit_default": True})
    step: int = field(default=1, metadata={"omit_default": True})

    def __post_init__(self) -> None:
        if min(self.crop) < 1 or self.resize < 0 or (self.resize and self.resize < max(self.crop)):
            raise ModelError(
                "crop sizes of at least 1, no larger than the resized shorter side",
                f"crop {self.crop}, resize {self.resize}",
            )
        if self.interpolation not in ("bilinear", "bicubic", "area"):
            raise ModelError("interpolation 'bilinear', 'bicubic' or 'area'", repr(self.interpolation))
        if self.fit not in ("crop", "letterbox") or (self.fit == "letterbox" and self.resize):
            raise ModelError(
                "fit 'crop', or 'letterbox' with resize 0", f"fit {self.fit!r}, resize {self.resize}"
            )
        if self.step not in (1, 2, 4, 8, 16, 32, 64):
            raise ModelError("a step that is a power of two from 1 to 64", str(self.step))
        if self.channels not in (1, 3):
            raise ModelError("an input of 1 or 3 channels", str(self.channels))
        if not len(self.mean) == len(self.std) == self.channels:
            raise ModelError(
                f"{self.channels} numbers each as mean and std", f"mean {self.mean}, std {self.std}"
            )
        if not (np.isfinite([*self.mean, *self.std]).all() and all(s > 0 for s in self.std)):
            raise ModelError("finite mean and positive std", f"mean {self.mean}, std {self.std}")

    @property
    def takes_planes(self) -> bool:
        """Whether frames may also be `Yuv420`: RGB, letterboxed by areas."""
        return self.channels == 3 and self.interpolation == "area" and self.fit == "letterbox"

    def table(self) -> npt.NDArray[np.float32]:
        """float32[256, channels]: the input value of each uint8 value of each channel."""
        seen = np.arange(256) // self.step * self.step
        values = seen.astype(np.float64)[:, None]
        table: npt.NDArray[np.float32] = ((values - np.array(self.mean)) / np.array(self.std)).astype(
            np.float32
        )
        return table


@dataclass(frozen=True)
class Window:
    """Geometry shared by convolutions and pools.

    kernel, stride, dilation : (vertical, horizontal).  padding : (top, bottom, left, right).
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, height: int, width: int, where: str) -> tuple[int, int]:
        """Output (H, W); raises ModelError where the window does not fit."""
        top, bottom, left, right = self.padding
        sizes = []
        for size, k, s, d, before, after in (
            (height, self.kernel[0], self.stride[0], self.dilation[0], top, bottom),
            (width, self.kernel[1], self.stride[1], self.dilation[1], left, right),
        ):
            reach = d * (k - 1) + 1
            if min(k, s, d) < 1 or min(before, after) < 0 or max(before, after) >= reach + s:
                raise ModelError(
                    "positive kernel, stride and dilation, padding below the kernel", f"{where}: {self}"
                )
            if size + before + after < reach:
                raise ModelError(f"an input of at least {reach} with padding", f"{where}: {height}x{width}")
            sizes.append((size + before + after - reach) // s + 1)
        return sizes[0], sizes[1]


@dataclass(frozen=True, eq=False)
class Layer:
    """name : unique in the model.  inputs : names of the layers read (or "input")."""

    name: str
    inputs: tuple[str, ...]

    #: How many inputs this kind of layer reads, and whether it may read more than that.
    arity, variadic = 1, False

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the output for the shapes of the inputs; raises ModelError where they do not fit."""
        return shapes[0]

    def tensors(self) -> dict[str, Array]:
        """The layer's arrays by field name."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def _freeze(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> None:
        """Replace field `name` by a read-only array checked for dtype, shape (None: any) and finiteness."""
        value = np.ascontiguousarray(getattr(self, name))
        fits = value.ndim == len(shape) and all(
            b in (None, a) for a, b in zip(value.shape, shape, strict=True)
        )
        if value.dtype != dtype or not fits:
            wanted = ", ".join("any" if s is None else str(s) for s in shape)
            raise ModelError(
                f"{np.dtype(dtype).name}[{wanted}] as {self.name}.{name}",
                f"{value.dtype.name}{list(value.shape)}",
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ModelError(
                f"finite values in {self.name}.{name}",
                f"{int((~np.isfinite(value)).sum())} NaN or infinite of {value.size}",
                "The checkpoint is damaged or its training diverged.",
            )
        if value is getattr(self, name) and value.flags.writeable:
            value = value.copy()
        value.flags.writeable = False
        object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class Conv2d(Layer):
    """Float convolution: y = bias, then over taps (row, column), then channels, y = fma(x, weight, y).

    weight : float32[Cout, kH, kW, Cin / groups].  bias : float32[Cout].  Padding is zero.
    A fully connected layer is a convolution whose kernel is as large as its input.
    """

    weight: Array
    bias: Array
    window: Window
    groups: int = 1

    def __post_init__(self) -> None:
        self._freeze("weight", np.float32, (None, *self.window.kernel, None))
        self._freeze("bias", np.float32, (self.weight.shape[0],))
        if self.groups < 1 or self.weight.shape[0] % self.groups:
            raise ModelError(
                f"groups that divide {self.weight.shape[0]} outputs", f"{self.name}: {self.groups}"
            )

    def output_shape(self, *shapes: Shape) -> Shape:
        height, width, channels = shapes[0]
        if channels != self.weight.shape[3] * self.groups:
            raise ModelError(
                f"{self.weight.shape[3] * self.groups} input channels", f"{self.name}: {channels}"
            )
        return (*self.window.output_size(height, width, self.name), self.weight.shape[0])


@dataclass(frozen=True, eq=False)
class BinaryConv2d(Layer):
    """Binary convolution of a `Sign` output: y = alpha * dot + bias, dot an exact integer.

    dot = sum over the window of x * w with x, w in {-1, +1}; outside the image x = pad_value (-1, 0, +1).
    weight : uint64[Cout, kH, kW, ceil(Cin / 64)], bit c % 64 of word c // 64 is channel c, 1 = +1,
        bits past Cin are zero.  channels : Cin.  alpha, bias : float32[Cout].
    alpha * dot and the sum are rounded separately.
    """

    weight: Array
    alpha: Array
    bias: Array
    channels: int
    window: Window
    pad_value: int = 0

    def __post_init__(self) -> None:
        self._freeze("weight", np.uint64, (None, *self.window.kernel, -(-self.channels // 64)))
        self._freeze("alpha", np.float32, (self.weight.shape[0],))
        self._freeze("bias", np.float32, (self.weight.shape[0],))
        if self.pad_value not in (-1, 0, 1):
            raise ModelError("padding value -1, 0 or +1", f"{self.name}: {self.pad_value}")
        if self.window_bits > MAX_WINDOW_BITS:
            raise ModelError(
                f"at most {MAX_WINDOW_BITS} bits under a window", f"{self.name}: {self.window_bits}"
            )
        spare = -self.channels % 64
        if spare and (self.weight[..., -1] >> np.uint64(64 - spare)).any():
            raise ModelError(
                f"zero bits past channel {self.channels}", f"set bits there in {self.name}.weight"
            )

    @property
    def window_bits(self) -> int:
        """n: weights of one output channel."""
        return self.window.kernel[0] * self.window.kernel[1] * self.channels

    def output_shape(self, *shapes: Shape) -> Shape:
        height, width, channels = shapes[0]
        if channels != self.channels:
            raise ModelError(f"{self.channels} input channels", f"{self.name}: {channels}")
        return (*self.window.output_size(height, width, self.name), self.weight.shape[0])


@dataclass(frozen=True, eq=False)
class Affine(Layer):
    """Batch-norm of a trained network, folded: y = x * scale + shift, product and sum rounded separately.

    scale, shift : float32[C].
    """

    scale: Array
    shift: Array

    def __post_init__(self) -> None:
        self._freeze("scale", np.float32, (None,))
        self._freeze("shift", np.float32, (self.scale.shape[0],))

    @classmethod
    def from_batch_norm(
        cls, name: str, source: str, *, gamma: Array, beta: Array, mean: Array, var: Array, eps: float
    ) -> Affine:
        """scale = gamma / sqrt(var + eps), shift = beta - mean * scale; float64, each rounded once."""
        scale = np.asarray(gamma, np.float64) / np.sqrt(np.asarray(var, np.float64) + eps)
        shift = np.asarray(beta, np.float64) - np.asarray(mean, np.float64) * scale
        return cls(name, (source,), scale.astype(np.float32), shift.astype(np.float32))

    def output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0][2] != self.scale.shape[0]:
            raise ModelError(f"{self.scale.shape[0]} channels", f"{self.name}: {shapes[0][2]}")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Relu(Layer):
    """y = x if x > 0 else 0."""


@dataclass(frozen=True, eq=False)
class PRelu(Layer):
    """y = x if x > 0 else x * slope, the slope that of the channel.

    slope : float32[C].
    """

    slope: Array

    def __post_init__(self) -> None:
        self._freeze("slope", np.float32, (None,))

    def output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0][2] != self.slope.shape[0]:
            raise ModelError(f"{self.slope.shape[0]} channels", f"{self.name}: {shapes[0][2]}")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Clip(Layer):
    """y = low if x < low, high if x > high, else x: what lies between (-0 too) and NaN stay as they are.

    low, high : float32 values, low <= high; others are rounded to float32 once, when the layer is made.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            with np.errstate(over="ignore"):
                object.__setattr__(self, name, float(np.float32(getattr(self, name))))
        if not (np.isfinite([self.low, self.high]).all() and self.low <= self.high):
            raise ModelError("finite float32 limits, low <= high", f"{self.name}: {self.low}, {self.high}")


@dataclass(frozen=True, eq=False)
class Softmax(Layer):
    """Over the channels of each pixel: y = e / sum of e, e = exp(x - m), m the largest x.

    The sum goes from the first channel to the last; difference, sums and quotient are each rounded. exp(d),
    d <= 0, is 0 for d < -87, else 2**k * t: k = d * float32(1.442695), rounded, then rounded to the nearest
    integer, ties to even; r = fma(k, float32(2.1219444e-4), fma(k, -0.693359375, d)); and t the Taylor
    polynomial of r of degree 7, from t = float32(1 / 5040) down: t = fma(t, r, float32(1 / n!)), n = 6 ... 0.
    A NaN or +infinity among the values makes all of them NaN.
    """


@dataclass(frozen=True, eq=False)
class Sign(Layer):
    """One bit a value: 1 (+1) if x >= 0, else 0 (-1). Feeds binary convolutions only."""


@dataclass(frozen=True, eq=False)
class Add(Layer):
    """y = a + b."""

    arity = 2

    def output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0] != shapes[1]:
            raise ModelError("two inputs of one shape", f"{self.name}: {shapes[0]} and {shapes[1]}")
        return shapes[0]


def _bounded(shape: Shape, name: str) -> Shape:
    """A shape that may be many times the input's: a few layers in a row could make it any number."""
    if math.prod(shape) > MAX_ACTIVATION:
        raise ModelError(f"at most {MAX_ACTIVATION} values from {name!r}", str(shape))
    return shape


@dataclass(frozen=True, eq=False)
class Concat(Layer):
    """Channels of two or more inputs of one height and width, one input after the other."""

    arity, variadic = 2, True

    def output_shape(self, *shapes: Shape) -> Shape:
        if len({shape[:2] for shape in shapes}) != 1:
            sizes = " and ".join(f"{height}x{width}" for height, width, _ in shapes)
            raise ModelError("inputs of one height and width", f"{self.name}: {sizes}")
        return _bounded((*shapes[0][:2], sum(channels for _, _, channels in shapes)), self.name)


@dataclass(frozen=True, eq=False)
class Upsample(Layer):
    """`factor` times as high and as wide.

    interpolation : "nearest" is y[i, j] = x[i // factor, j // factor].
        "bilinear" has half-pixel centres and clamped edges. Along an axis of n, output i lies at
        p = (2 i + 1 - factor) / (2 factor), at least 0 and at most n - 1. It is made of x[first], first the
        floor of p, and x[second], first + 1 or, where p is whole, first again; with weights 1 - u and u, u
        the fraction of p, each rounded once from float64. A row is (1 - u) * x[first] + u * x[second] of
        its columns; y is the same of two rows. Products and sums are rounded separately.
    """

    factor: int
    #: Left out of model files where it is "nearest", so that they stay as they were.
    interpolation: Literal["nearest", "bilinear"] = field(default="nearest", metadata={"omit_default": True})

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ModelError("a factor of at least 1", f"{self.name}: {self.factor}")
        if self.interpolation not in ("nearest", "bilinear"):
            raise ModelError("interpolation 'nearest' or 'bilinear'", f"{self.name}: {self.interpolation!r}")

    def output_shape(self, *shapes: Shape) -> Shape:
        height, width, channels = shapes[0]
        return _bounded((height * self.factor, width * self.factor, channels), self.name)


@dataclass(frozen=True, eq=False)
class MaxPool(Layer):
    """Largest value under the window; padding never wins."""

    window: Window

    def output_shape(self, *shapes: Shape) -> Shape:
        height, width, channels = shapes[0]
        kernel, padding = self.window.kernel, self.window.padding
        if self.window.dilation != (1, 1) or max(padding[:2]) >= kernel[0] or max(padding[2:]) >= kernel[1]:
            raise ModelError(
                "a pool without dilation and with padding below its kernel", f"{self.name}: {self.window}"
            )
        return (*self.window.output_size(height, width, self.name), channels)


@dataclass(frozen=True, eq=False)
class AvgPool(MaxPool):
    """Sum over the window in row-major order, times float32(1 / count).

    count_padding : True divides by kH * kW everywhere, False by the values inside the image.
    """

    count_padding: bool = True


#: Every kind of layer, by the name used in model files.
LAYER_KINDS: dict[str, type[Layer]] = {
    kind.__name__: kind
    for kind in (
        Conv2d,
        BinaryConv2d,
        Affine,
        Relu,
        PRelu,
        Clip,
        Softmax,
        Sign,
        Add,
        Concat,
        Upsample,
        MaxPool,
        AvgPool,
    )
}


@dataclass(frozen=True, eq=False)
class Model:
    """A network: layers in order of execution (each reads only earlier ones); the last is the output.

    labels : one name a class (or key point), or empty.  info : free text for people (source, licence,
    accuracy).  decoding : what makes boxes or key points of the output; None for a classifier.
    Raises ModelError where the layers do not fit together.
    """

    name: str
    input_rule: InputRule
    layers: tuple[Layer, ...]
    labels: tuple[str, ...] = ()
    info: dict[str, str] = field(default_factory=dict)
    decoding: Decoding | None = field(default=None, metadata={"omit_default": True})

    def __post_init__(self) -> None:
        if not self.layers:
            raise ModelError("at least one layer", "none")
        _ = self.shapes  # checks names, order and shapes
        kinds = {layer.name: type(layer) for layer in self.layers}
        for layer in self.layers:
            reads_bits = any(kinds.get(name) is Sign for name in layer.inputs)
            if isinstance(layer, BinaryConv2d) != reads_bits:
                raise ModelError("a Sign layer before each BinaryConv2d and nowhere else", f"{layer.name}")
        if isinstance(self.layers[-1], Sign):
            raise ModelError("a float layer as the output", f"{self.layers[-1].name} (Sign)")
        if len(self.labels) not in (0, self.classes):
            raise ModelError(f"{self.classes} labels", f"{len(self.labels)}")

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """(H, W, C) of the input and of every layer's output, by name."""
        shapes: dict[str, Shape] = {INPUT: self.input_shape}
        for layer in self.layers:
            if layer.name in shapes:
                raise ModelError("a name for each layer", f"{layer.name!r} twice")
            if len(layer.inputs) != layer.arity and not (layer.variadic and len(layer.inputs) > layer.arity):
                more = " or more" if layer.variadic else ""
                raise ModelError(f"{layer.arity}{more} inputs", f"{layer.name}: {len(layer.inputs)}")
            missing = [name for name in layer.inputs if name not in shapes]
            if missing:
                raise ModelError("inputs that earlier layers make", f"{layer.name} reads {missing[0]!r}")
            shapes[layer.name] = layer.output_shape(*(shapes[name] for name in layer.inputs))
        return shapes

    @property
    def input_shape(self) -> Shape:
        """(H, W, C) of the network's input, after resize and crop."""
        return (*self.input_rule.crop, self.input_rule.channels)

    @property
    def output_shape(self) -> Shape:
        """(H, W, C) of what the last layer makes."""
        return self.shapes[self.layers[-1].name]

    @property
    def task(self) -> Task:
        """What the network answers: "classification", "detection" or "pose"."""
        return self.decoding.task if self.decoding else "classification"

    @property
    def classes(self) -> int:
        """How many classes, or key points, the network tells of."""
        if self.decoding:
            return self.decoding.labels_of(self.output_shape[2])
        return math.prod(self.output_shape)

    def macs(self, layer: Layer) -> int:
        """Multiply-accumulates of one frame in a convolution, padding included; 0 for other layers."""
        if not isinstance(layer, Conv2d | BinaryConv2d):
            return 0
        height, width, cout = self.shapes[layer.name]
        per_output = (
            layer.window_bits if isinstance(layer, BinaryConv2d) else int(np.prod(layer.weight.shape[1:]))
        )
        return height * width * cout * per_output

    @cached_property
    def plan(self) -> Plan:
        """The model laid out for the kernels: built on first use, shared by all streams."""
        from .plan import build_plan

        return build_plan(self)

    def stream(self, mode: Mode = "cached", *, threshold: int = 0) -> Stream:
        """A fresh stream for one video; it owns all caches. See `Stream`."""
        from .stream import Stream

        return Stream(self, mode, threshold=threshold)

    def save(self, path: str | Path) -> None:
        """Write the model file (docs/format.md); one that exists is replaced once the new one is whole."""
        from .modelfile import save

        save(self, Path(path))
