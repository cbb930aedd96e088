"""The same network as float convolutions in PyTorch: the dense baseline of the benchmark.

What a float deployment would do is done once, ahead: batch-norms and ReLUs that follow a convolution are
folded into it, weights are laid out for oneDNN, tensors are channels-last. Sums are taken in oneDNN's order,
so outputs agree with the engine's up to rounding, and to the few signs that rounding turns.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .bits import unpack_signs
from .errors import ShapeError, XnorError
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
    Shape,
    Sign,
    Softmax,
    Upsample,
    Window,
)

if TYPE_CHECKING:
    from torch import Tensor

Operation = Callable[..., "Tensor"]


@dataclass(frozen=True)
class _Step:
    """output = run(*inputs); `spent` are values that no later step reads."""

    output: str
    inputs: tuple[str, ...]
    run: Operation
    spent: tuple[str, ...]


class FloatTwin:
    """A model as plain float32 convolutions: weights alpha * sign(w), activations -1.0 and +1.0.

    Called with float32[H, W, C], the preprocessed input, it returns float32[classes]. It holds no state
    between calls. Uses as many threads as torch is set to. Raises XnorError where torch is not installed,
    ShapeError for another input.
    """

    def __init__(self, model: Model) -> None:
        try:
            import torch
        except ImportError as error:
            remedy = 'pip install "xnor-rrm[torch]".'
            raise XnorError("PyTorch, for the float network", "none installed", remedy) from error
        self._shape = model.input_shape
        self._inference_mode, self._from_numpy = torch.inference_mode, torch.from_numpy
        self._steps = _steps(model)

    def __call__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if x.shape != self._shape or x.dtype != np.float32:
            raise ShapeError(f"float32{list(self._shape)}", f"{x.dtype.name}{list(x.shape)}")
        with self._inference_mode():
            image = self._from_numpy(np.require(x, requirements=("C", "W")))
            values = {INPUT: image.permute(2, 0, 1)[None]}
            for step in self._steps:
                values[step.output] = step.run(*(values[name] for name in step.inputs))
                for name in step.spent:
                    del values[name]
            output = values[self._steps[-1].output]
            logits: npt.NDArray[np.float32] = output.permute(0, 2, 3, 1).flatten().numpy()
        return logits


def _steps(model: Model) -> tuple[_Step, ...]:
    """The layers as operations, those that fold into the convolution before them taken with it."""
    readers = Counter(name for layer in model.layers for name in layer.inputs)
    reader = {name: layer for layer in model.layers for name in layer.inputs}
    operations: list[tuple[str, tuple[str, ...], Operation]] = []
    folded: set[str] = set()
    for layer in model.layers:
        if layer.name in folded:
            continue
        tail: list[Layer] = []
        if isinstance(layer, Conv2d | BinaryConv2d):
            for kind in (Affine, Relu):
                name = tail[-1].name if tail else layer.name
                if readers[name] == 1 and isinstance(reader[name], kind):
                    tail.append(reader[name])
        folded.update(each.name for each in tail)
        output = tail[-1].name if tail else layer.name
        operations.append((output, layer.inputs, _operation(layer, tail, model.shapes[layer.inputs[0]])))

    last_use = {name: index for index, (_, inputs, _) in enumerate(operations) for name in inputs}
    return tuple(
        _Step(output, inputs, run, tuple(name for name in dict.fromkeys(inputs) if last_use[name] == index))
        for index, (output, inputs, run) in enumerate(operations)
    )


def _operation(layer: Layer, tail: list[Layer], shape: Shape) -> Operation:
    """What computes a layer, and the Affine and Relu folded into it, from inputs of `shape`."""
    import torch
    import torch.nn.functional as F

    match layer:
        case Conv2d():
            return convolution(layer, shape, tail)
        case BinaryConv2d(alpha=alpha, bias=bias):
            signs = np.where(unpack_signs(layer.weight, layer.channels), np.float32(1), np.float32(-1))
            weight = signs * alpha[:, None, None, None]
            return _convolution(weight, bias, layer.window, 1, layer.pad_value, tail, shape)
        case Affine():
            scale, shift = _per_channel(layer.scale), _per_channel(layer.shift)
            return lambda x: torch.addcmul(shift, x, scale)
        case Relu():
            return torch.relu
        case PRelu():
            slope = torch.tensor(layer.slope)
            return lambda x: F.prelu(x, slope)
        case Clip(low=low, high=high):
            return lambda x: torch.clamp(x, low, high)
        case Concat():
            return lambda *parts: torch.cat(parts, dim=1)
        case Softmax():
            return lambda x: torch.softmax(x, dim=1)
        case Upsample(factor=factor, interpolation=mode):
            return lambda x: F.interpolate(x, scale_factor=factor, mode=mode)
        case Sign():
            return lambda x: torch.where(x >= 0, 1.0, -1.0)
        case Add():
            return torch.add
        case AvgPool():
            return _average_pool(layer, shape)
        case MaxPool(window=window):
            return _max_pool(window, shape)
    raise XnorError("a layer kind of this version", type(layer).__name__)


def convolution(layer: Conv2d, shape: Shape, tail: Sequence[Layer] = ()) -> Operation:
    """torch's fastest form of a float convolution, with the tail folded into it, for inputs of `shape`."""
    return _convolution(layer.weight, layer.bias, layer.window, layer.groups, 0, tail, shape)


def _convolution(
    weight: Array,
    bias: Array,
    window: Window,
    groups: int,
    pad_value: int,
    tail: Sequence[Layer],
    shape: Shape,
) -> Operation:
    """weight : float32[Cout, kH, kW, Cin / groups], before the tail is folded in."""
    import torch
    import torch.nn.functional as F

    for layer in tail:
        if isinstance(layer, Affine):
            weight, bias = weight * layer.scale[:, None, None, None], bias * layer.scale + layer.shift
    relu = any(isinstance(layer, Relu) for layer in tail)
    padding, pad = _padding(window, pad_value, native=pad_value == 0)
    kernel, shift = torch.tensor(weight).permute(0, 3, 1, 2), torch.tensor(bias)

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        geometry = (window.stride, padding, window.dilation, groups)
        activation: Operation = F.relu if relu else lambda x: x
        return lambda x: activation(F.conv2d(pad(x), kernel, shift, *geometry))
    # F.conv2d would bring the weights into oneDNN's blocked layout again at every call. Of torch's two ways
    # to do it once, neither is the faster on all shapes.
    height, width, channels = shape
    if padding == (0, 0):
        height, width = height + sum(window.padding[:2]), width + sum(window.padding[2:])
    size, pads = [1, channels, height, width], list(padding)
    stride, dilation = list(window.stride), list(window.dilation)
    kind = "relu" if relu else "none"
    prepacked, mkldnn = torch.ops.mkldnn_prepacked, torch.ops.mkldnn
    packed = prepacked.conv2d_prepack(kernel, shift, stride, pads, dilation, groups, size, kind)
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the last argument
    blocked = reorder(kernel.to_mkldnn(), pads, stride, dilation, groups, size)
    pointwise: tuple[Any, ...] = (blocked, shift, pads, stride, dilation, groups, kind, [], "")
    forms: tuple[Operation, ...] = (
        lambda x: prepacked.conv2d_run(pad(x), packed),
        lambda x: mkldnn._convolution_pointwise(pad(x), *pointwise),
    )
    return _fastest(forms, shape)


def _max_pool(window: Window, shape: Shape) -> Operation:
    """torch's own, or the maximum of shifted views, columns first: on ResNet's stem a tenth of the time."""
    import torch
    import torch.nn.functional as F

    padding, pad = _padding(window, -np.inf, native=_pool_pads(window))
    _, pad_all = _padding(window, -np.inf, native=False)
    (kh, kw), (sh, sw) = window.kernel, window.stride
    ho, wo = window.output_size(*shape[:2], "max pool")

    def of_views(x: Tensor) -> Tensor:
        x = pad_all(x)
        columns = [x[:, :, :, k : k + (wo - 1) * sw + 1 : sw] for k in range(kw)]
        across = functools.reduce(torch.maximum, columns)
        rows = [across[:, :, k : k + (ho - 1) * sh + 1 : sh] for k in range(kh)]
        return functools.reduce(torch.maximum, rows)

    def native(x: Tensor) -> Tensor:
        return F.max_pool2d(pad(x), window.kernel, window.stride, padding)

    return _fastest((native, of_views) if window.dilation == (1, 1) else (native,), shape)


def _fastest(forms: tuple[Operation, ...], shape: Shape) -> Operation:
    """The one of several forms of an operation that takes least here, with torch's threads as they are."""
    import torch

    x = torch.zeros(1, shape[2], *shape[:2]).contiguous(memory_format=torch.channels_last)
    best: dict[Operation, float] = {}
    with torch.inference_mode():
        for _ in range(4):
            for form in forms:
                start = perf_counter()
                form(x)
                best[form] = min(perf_counter() - start, best.get(form, np.inf))
    return min(forms, key=lambda form: best[form])


def _average_pool(layer: AvgPool, shape: Shape) -> Operation:
    import torch
    import torch.nn.functional as F

    window = layer.window
    padding, pad = _padding(window, 0.0, native=_pool_pads(window))
    if window.padding == (padding[0], padding[0], padding[1], padding[1]):
        geometry = (window.kernel, window.stride, padding)
        return lambda x: F.avg_pool2d(x, *geometry, count_include_pad=layer.count_padding)
    # What avg_pool2d cannot, uneven and wide padding, as a convolution with ones.
    height, width, channels = shape
    ones = torch.ones(channels, 1, *window.kernel)

    def total(x: Tensor) -> Tensor:
        return F.conv2d(pad(x), ones, stride=window.stride, groups=channels)

    inside = total(torch.ones(1, channels, height, width))
    reciprocal = 1 / (inside if not layer.count_padding else float(window.kernel[0] * window.kernel[1]))
    return lambda x: total(x) * reciprocal


def _pool_pads(window: Window) -> bool:
    """Whether torch's pools take this much padding."""
    return 2 * max(window.padding[:2]) <= window.kernel[0] and 2 * max(window.padding[2:]) <= window.kernel[1]


def _padding(window: Window, value: float, *, native: bool) -> tuple[tuple[int, int], Operation]:
    """Padding for the operation itself, where it is even and `native`; else what pads before it."""
    import torch.nn.functional as F

    top, bottom, left, right = window.padding
    if not any(window.padding) or (native and (top, left) == (bottom, right)):
        return (top, left), lambda x: x
    return (0, 0), lambda x: F.pad(x, (left, right, top, bottom), value=value)


def _per_channel(values: Array) -> Tensor:
    import torch

    return torch.tensor(values)[None, :, None, None]
