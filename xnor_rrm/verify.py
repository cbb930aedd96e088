"""Whether a converted model computes what the original network does, sign by sign.

Each frame is evaluated by the original (importers/common/original.py), by the engine's cached stream, and by
the model's layers in float64, written out here and sharing no code with the engine. One sign that rounding
turns rightly changes all that follow, so layers are judged one at a time: the float64 layers are fed the
signs of another evaluation, and every sign they arrive at must be the one of that evaluation.

    fed the original's signs    checks the conversion, layer by layer, and the logits
    fed the engine's signs      checks the engine the same way

Beside each float64 value runs a bound on the error of evaluating its layers in float32, in any order, since
the last sign (`_Layers`). Two signs, or logits, may differ where twice that bound explains it: the original
may have been rounded too. Anything else is a failure. Values whose signs agree may be scaled, so what they
differ by is only reported (`SignReport.off`), as is how often signs of the whole networks differ, and where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from .bits import unpack_signs
from .errors import ConvertError, XnorError
from .frames import Frame
from .importers.common.original import Original
from .model import (
    INPUT,
    Add,
    Affine,
    Array,
    AvgPool,
    BinaryConv2d,
    Clip,
    Concat,
    Conv2d,
    Layer,
    MaxPool,
    Model,
    PRelu,
    Relu,
    Sign,
    Softmax,
    Upsample,
    Window,
)
from .preprocess import Preprocessor

if TYPE_CHECKING:
    from torch import Tensor

#: Frames of a source that are compared.
MAX_FRAMES = 16

#: Failures told one by one.
MAX_TOLD = 8

#: Half the distance from 1 to the next float32: the relative error of one rounding.
ROUNDING = 2.0**-24

#: What a float32 of the least magnitude may be taken for 0 at: an exponential that underflows.
SMALLEST = 2.0**-125

#: Roundings of a small fixed sequence of operations, such as a batch-norm from its four tensors.
FEW = 8


@dataclass(frozen=True)
class Failure:
    """Two evaluations that differ by more than rounding explains.

    check : "conversion" (expected: the original's value, found: the model's) or "engine" (expected: the
        float64 layers', found: the engine's, of whose signs only -1 and +1 are known).
    position : (y, x, channel).  explained : the difference that rounding explains.
    """

    check: str
    layer: str
    frame: int
    position: tuple[int, int, int]
    expected: float
    found: float
    explained: float

    def __str__(self) -> str:
        names = ("original", "model") if self.check == "conversion" else ("model", "engine")
        return (
            f"{self.check}: {self.layer} at {self.position} of frame {self.frame}: "
            f"{names[0]} {self.expected:.7g}, {names[1]} {self.found:.7g}, "
            f"where rounding explains a difference of {self.explained:.2g}"
        )


@dataclass
class SignReport:
    """One Sign layer in whole-network runs of the original and the engine.

    bits : compared, over all frames.  differing : how many differ.  smallest, largest : of the |values| at
    which they do, the original's; None where none does.  source : the convolution nearest before it.
    off : the largest difference between the values of original and model, fed the same signs, in units of
        what rounding explains: above 1 they differ by a scale, or one of them is wrong.
    """

    name: str
    source: Layer | None
    bits: int = 0
    differing: int = 0
    smallest: float | None = None
    largest: float | None = None
    off: float = 0.0

    def add(self, values: Array, signs: Array) -> None:
        """One frame. values : what the original takes the signs of.  signs : the engine's, bool."""
        at = np.abs(values[(values >= 0) != signs])
        self.bits += signs.size
        self.differing += at.size
        if at.size:
            self.smallest = min(float(at.min()), np.inf if self.smallest is None else self.smallest)
            self.largest = max(float(at.max()), self.largest or 0.0)

    @property
    def share(self) -> float:
        """Of the bits, those that differ."""
        return self.differing / self.bits if self.bits else 0.0


@dataclass
class VerifyReport:
    """What `verify` found.

    layers : each Sign layer by name, in order.  failures : the first of them; failed : how many there are.
    logit_difference : the largest, of whole-network runs.  agreeing : frames with the same top-1 class.
    """

    layers: dict[str, SignReport]
    frames: int = 0
    agreeing: int = 0
    logit_difference: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    failed: int = 0

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def summary(self) -> str:
        """Where the first differing bits come from, in words."""
        first = next((layer for layer in self.layers.values() if layer.differing), None)
        if first is None:
            return "all signs are those of the original"
        if isinstance(first.source, Conv2d):
            after = f"right after the float layer {first.source.name}, whose rounding they make visible"
        else:
            after = f"after {first.source.name if first.source else 'the input'}"
        return f"the first differing bits are those of {first.name}, {after}"


def verify(model: Model, original: Original, frames: Iterable[Frame]) -> VerifyReport:
    """Compare a converted model, run by the engine, with its original on the first frames.

    frames : uint8[H, W, 3] RGB of any size.  Needs torch, which runs on one thread meanwhile.
    Raises ConvertError where the original does not give a value for each Sign layer and each logit.
    """
    layers, stream, prepare = _Layers(model), model.stream("cached"), Preprocessor(model.input_rule)
    table, channels = model.input_rule.table(), np.arange(model.input_shape[2])
    signs = [layer for layer in model.layers if isinstance(layer, Sign)]
    report = VerifyReport({each.name: SignReport(each.name, _convolution(model, each)) for each in signs})
    for frame in islice(frames, MAX_FRAMES):
        x = table[prepare(frame), channels]
        with _one_thread():
            logits, values = original(x)
        _check_shapes(model, logits, values)
        engine_logits, engine_signs = stream.values(frame), stream.signs()
        _check_conversion(report, layers, x, logits, values)
        _check_engine(report, layers, x, engine_logits, engine_signs)
        for name, layer in report.layers.items():
            layer.add(values[name], engine_signs[name])
        report.logit_difference = max(report.logit_difference, float(np.abs(logits - engine_logits).max()))
        report.agreeing += int(logits.argmax() == engine_logits.argmax())
        report.frames += 1
    if not report.frames:
        raise XnorError("a frame to verify the model with", "none")
    return report


def _check_shapes(model: Model, logits: Array, values: Mapping[str, Array]) -> None:
    """Raise ConvertError unless an original gave a value for each Sign layer and each logit of the model."""
    wanted: dict[str, tuple[int, ...]] = {
        layer.name: model.shapes[layer.name] for layer in model.layers if isinstance(layer, Sign)
    }
    wanted["logits"] = (model.classes,)
    given = {name: array.shape for name, array in (*values.items(), ("logits", logits))}
    for name in (*wanted, *given):
        if given.get(name) != wanted.get(name):
            found = str(given.get(name, "nothing"))
            raise ConvertError(f"{wanted.get(name, 'nothing')} of the original as {name}", found)


def _check_conversion(
    report: VerifyReport, layers: _Layers, x: Array, logits: Array, values: Mapping[str, Array]
) -> None:
    """Feed the layers the original's signs: they must arrive at its signs and logits."""
    for name, (value, bound) in layers(x, {name: read >= 0 for name, read in values.items()}).items():
        expected = values[name] if name in values else logits.reshape(value.shape)
        difference = np.abs(expected - value)
        if name in values:
            layer = report.layers[name]
            layer.off = max(layer.off, _largest_ratio(difference, 2 * bound))
            difference *= (expected >= 0) != (value >= 0)
        _note(report, "conversion", name, expected, value, difference, 2 * bound)


def _check_engine(
    report: VerifyReport, layers: _Layers, x: Array, logits: Array, signs: Mapping[str, Array]
) -> None:
    """Feed the layers the engine's signs: they must arrive at its signs and logits."""
    for name, (value, bound) in layers(x, signs).items():
        if name in signs:  # of the engine's value only the sign is known
            found = np.where(signs[name], 1.0, -1.0)
            difference = np.abs(value) * (signs[name] != (value >= 0))
        else:
            found = logits.reshape(value.shape)
            difference = np.abs(value - found)
        _note(report, "engine", name, value, found, difference, 2 * bound)


def _largest_ratio(difference: Array, explained: Array) -> float:
    """0 / 0 counts as 0."""
    ratios = np.divide(difference, explained, out=np.full_like(difference, np.inf), where=explained > 0)
    return float(np.where(difference == 0, 0, ratios).max())


def _note(
    report: VerifyReport,
    check: str,
    layer: str,
    expected: Array,
    found: Array,
    difference: Array,
    explained: Array,
) -> None:
    """Count the places where a difference is not explained, and keep the first. All arrays [H, W, C]."""
    places = np.argwhere(~(difference <= explained))  # a NaN is not explained
    report.failed += len(places)
    for y, x, c in places[: MAX_TOLD - len(report.failures)].tolist():
        values = (float(array[y, x, c]) for array in (expected, found, explained))
        report.failures.append(Failure(check, layer, report.frames, (y, x, c), *values))


def _convolution(model: Model, layer: Layer) -> Layer | None:
    """The convolution nearest before a layer; None where there is none."""
    by_name = {each.name: each for each in model.layers}
    names = list(layer.inputs)
    for name in names:  # which grows: nearer layers first
        if name != INPUT:
            if isinstance(by_name[name], Conv2d | BinaryConv2d):
                return by_name[name]
            names += (each for each in by_name[name].inputs if each not in names)
    return None


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Layers:
    """The layers of a model in float64, fed with given signs.

    Every value [1, C, H, W] comes with a bound on the error of computing it in float32 from the last signs:
    n roundings of terms t are off by at most n * ROUNDING * sum |t|, and errors of inputs pass through.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._kernels: dict[str, Tensor] = {}
        for layer in model.layers:
            if isinstance(layer, Conv2d):
                self._kernels[layer.name] = _tensor(layer.weight.transpose(0, 3, 1, 2)).double()
            elif isinstance(layer, BinaryConv2d):
                # Sums of signs are exact in float32 too, up to 2^24 of them.
                signs = np.where(unpack_signs(layer.weight, layer.channels), np.float32(1), np.float32(-1))
                self._kernels[layer.name] = _tensor(signs.transpose(0, 3, 1, 2))

    def __call__(self, x: Array, signs: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        """(value, bound), each float64[H, W, C], of what each Sign layer reads and of the output.

        x : float32[H, W, C].  signs : bool[H, W, C] of each Sign layer, fed to the layers after it.
        """
        import torch

        image = _image(x).double()
        values = {INPUT: (image, torch.zeros_like(image))}
        kept = {}
        with torch.inference_mode(), _one_thread():
            for layer in self._model.layers:
                inputs = [values[name] for name in layer.inputs]
                if isinstance(layer, Sign):
                    kept[layer.name] = inputs[0]
                    fed = _image(np.where(signs[layer.name], np.float32(1), np.float32(-1)))
                    values[layer.name] = (fed, torch.zeros_like(fed))
                else:
                    values[layer.name] = self._apply(layer, inputs)
            kept[layer.name] = values[layer.name]
        return {name: (_array(value), _array(bound)) for name, (value, bound) in kept.items()}

    def _apply(self, layer: Layer, inputs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One layer, Sign excepted: its value and the bound."""
        import torch
        import torch.nn.functional as F

        (x, error), *others = inputs
        match layer:
            case Conv2d(window=window):
                kernel, bias = self._kernels[layer.name], _channels(layer.bias)

                def conv(x: Tensor, kernel: Tensor) -> Tensor:
                    x = _padded(x, window, 0)
                    return F.conv2d(x, kernel, None, window.stride, 0, window.dilation, layer.groups)

                terms = conv(x.abs(), kernel.abs()) + bias.abs()
                roundings = kernel[0].numel() + FEW
                return conv(x, kernel) + bias, conv(error, kernel.abs()) + roundings * ROUNDING * terms
            case BinaryConv2d(window=window):
                padded = _padded(x, window, layer.pad_value)
                dot = F.conv2d(padded, self._kernels[layer.name], None, window.stride, 0, window.dilation)
                alpha, bias = _channels(layer.alpha), _channels(layer.bias)
                terms = alpha.abs() * layer.window_bits + bias.abs()
                return alpha * dot.double() + bias, (FEW * ROUNDING * terms).expand_as(dot)
            case Affine():
                scale, shift = _channels(layer.scale), _channels(layer.shift)
                terms = (x * scale).abs() + shift.abs()
                return x * scale + shift, error * scale.abs() + FEW * ROUNDING * terms
            case Relu():
                return x.relu(), error
            case PRelu():
                slope = _channels(layer.slope)
                y = torch.where(x > 0, x, x * slope)
                return y, error * slope.abs().clamp(min=1) + ROUNDING * y.abs()
            case Clip(low=low, high=high):
                return x.clamp(low, high), error
            case Add():
                y = x + others[0][0]
                return y, error + others[0][1] + ROUNDING * y.abs()
            case Concat():
                return torch.cat([v for v, _ in inputs], 1), torch.cat([e for _, e in inputs], 1)
            case Softmax():
                y = x.softmax(1)
                # A difference d between two inputs scales what they add to the sum by exp(d).
                spread = error + ROUNDING * (x.abs() + x.abs().amax(1, keepdim=True))
                relative = torch.expm1(2 * spread.amax(1, keepdim=True)) + (FEW + x.shape[1]) * ROUNDING
                return y, y * relative + SMALLEST
            case Upsample(factor=factor, interpolation=mode):
                # The places of a large image are large numbers, and so are the errors of their fractions.
                roundings = FEW + max(x.shape[2:]) if mode == "bilinear" else 0
                error = error + roundings * ROUNDING * x.abs()
                resized = (F.interpolate(each, scale_factor=factor, mode=mode) for each in (x, error))
                y, bound = resized
                return y, bound
            case AvgPool():
                roundings = layer.window.kernel[0] * layer.window.kernel[1] + FEW
                return _window_mean(x, layer), _window_mean(error + roundings * ROUNDING * x.abs(), layer)
            case MaxPool(window=window):
                return _window_max(x, window), _window_max(error, window)
        raise XnorError("a layer kind that verify knows", type(layer).__name__)


def _window_max(x: Tensor, window: Window) -> Tensor:
    import torch.nn.functional as F

    return F.max_pool2d(_padded(x, window, -np.inf), window.kernel, window.stride)


def _window_mean(x: Tensor, layer: AvgPool) -> Tensor:
    """The average under each window, over its size or over what lies inside the image."""
    import torch
    import torch.nn.functional as F

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(_padded(x, layer.window, 0), layer.window.kernel, layer.window.stride)

    return mean(x) if layer.count_padding else mean(x) / mean(torch.ones_like(x))


def _padded(x: Tensor, window: Window, value: float) -> Tensor:
    import torch.nn.functional as F

    top, bottom, left, right = window.padding
    return F.pad(x, (left, right, top, bottom), value=value)


def _tensor(values: Any) -> Tensor:
    import torch

    return torch.from_numpy(np.array(values))


def _channels(values: Array) -> Tensor:
    """float64[1, C, 1, 1] of a number a channel."""
    return _tensor(values).double()[None, :, None, None]


def _image(values: Array) -> Tensor:
    """[1, C, H, W] of [H, W, C]."""
    return _tensor(values).permute(2, 0, 1)[None]


def _array(values: Tensor) -> Array:
    """[H, W, C] of [1, C, H, W]."""
    array: Array = values[0].permute(1, 2, 0).double().numpy()
    return array
