"""The oracle: what a network computes, as plainly as it can be said. Imports nothing of ours.

Signs are int64 of -1 and +1, one element each. Loops run over the taps of a window; numpy runs over its
positions and channels. Images are (H, W, C); padding is (top, bottom, left, right).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pair = tuple[int, int]
Sides = tuple[int, int, int, int]


def taps(
    x: Array, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair, outside: float
) -> Iterator[Array]:
    """For each tap, row by row: the [Ho, Wo, C] values of x that it sees; `outside` beyond the image."""
    top, bottom, left, right = padding
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=outside)
    height = (padded.shape[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (padded.shape[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    rows, columns = stride[0] * np.arange(height), stride[1] * np.arange(width)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            yield padded[rows[:, None] + i * dilation[0], columns + j * dilation[1]]


def unpack(words: Array, channels: int) -> Array:
    """int64[..., channels] of -1 and +1 from uint64[..., words]: channel c is bit c % 64 of word c // 64."""
    bits = [(words[..., c // 64] >> np.uint64(c % 64)) & np.uint64(1) for c in range(channels)]
    return 2 * np.stack(bits, axis=-1).astype(np.int64) - 1


def binary_conv(
    x: Array, w: Array, stride: Pair, padding: Sides, dilation: Pair = (1, 1), pad_value: int = 0
) -> Array:
    """int64[Ho, Wo, Cout]: dot products of int64[H, W, Cin] with int64[Cout, kH, kW, Cin], all -1 or +1."""
    total: Any = 0
    for tap, seen in enumerate(taps(x, w.shape[1:3], stride, padding, dilation, pad_value)):
        total += seen @ w[:, tap // w.shape[2], tap % w.shape[2]].T
    return total


def fma(a: Array, b: Array, c: Array) -> Array:
    """float32 a * b + c, rounded once.

    In float64 the product is exact (24 + 24 bits) but the sum is not, and rounding it again to float32 could
    err in a tie. So the sum is rounded to odd first (its error, which is exact, moves an even last bit
    towards the true value): from there, with more than 2 spare bits, rounding to float32 is right.
    Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE Trans. Computers 57, 2008.
    """
    product, c = np.float64(a) * np.float64(b), np.float64(c)
    total = np.asarray(product + c)
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def float_conv(
    x: Array,
    w: Array,
    bias: Array,
    stride: Pair,
    padding: Sides,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """float32[Ho, Wo, Cout] of float32[H, W, Cin] with float32[Cout, kH, kW, Cin / groups].

    From the bias, one fused multiply-add for each tap (row, column) and then input channel.
    """
    outputs, depth = w.shape[0] // groups, w.shape[3]
    result = []
    for g in range(groups):
        weights = w[g * outputs : (g + 1) * outputs]
        total = bias[g * outputs : (g + 1) * outputs]
        inputs = x[..., g * depth : (g + 1) * depth]
        for tap, seen in enumerate(taps(inputs, w.shape[1:3], stride, padding, dilation, 0)):
            for c in range(depth):
                total = fma(seen[..., c, None], weights[:, tap // w.shape[2], tap % w.shape[2], c], total)
        result.append(total)
    return np.concatenate(result, axis=-1)


def affine(x: Array, scale: Array, shift: Array) -> Array:
    product = x * scale
    return product + shift


def relu(x: Array) -> Array:
    return np.where(x > 0, x, np.float32(0))


def prelu(x: Array, slope: Array) -> Array:
    return np.where(x > 0, x, x * slope)


def clip(x: Array, low: float, high: float) -> Array:
    """float32; NaN stays."""
    x = np.where(x < np.float32(low), np.float32(low), x)
    return np.where(x > np.float32(high), np.float32(high), x)


def sign(x: Array) -> Array:
    """int64: +1 where x >= 0, zero and minus zero included, else -1."""
    return np.where(x >= 0, 1, -1)


def add(a: Array, b: Array) -> Array:
    return a + b


def concat(*parts: Array) -> Array:
    return np.concatenate(parts, axis=-1)


def exp(x: Array) -> Array:
    """float32 e ** x of x <= 0: with x = k * ln 2 + r, 2 ** k times the first eight terms of r's series."""
    zero = x < -87
    x = np.where(zero, np.float32(-87), x)
    k = np.rint(x * np.float32(1.442695))
    r = fma(k, np.float32(2.1219444e-4), fma(k, np.float32(-0.693359375), x))
    total = np.full_like(x, 1 / math.factorial(7))
    for n in reversed(range(7)):
        total = fma(total, r, np.full_like(x, 1 / math.factorial(n)))
    return np.where(zero, np.float32(0), np.ldexp(total, k.astype(np.int32)))


def softmax(x: Array) -> Array:
    """Over the channels, of finite values; the exponentials are added from the first channel on."""
    powers = exp(x - x.max(axis=-1, keepdims=True))
    total = powers[..., 0]
    for c in range(1, x.shape[-1]):
        total = total + powers[..., c]
    return powers / total[..., None]


def upsample(x: Array, factor: int) -> Array:
    """Every pixel becomes a square of factor x factor."""
    return np.repeat(np.repeat(x, factor, axis=0), factor, axis=1)


def bilinear(x: Array, factor: int) -> Array:
    """Columns of each row first, then rows. An output's centre lies at (i + 1/2) / factor - 1/2, clamped."""
    for axis in (1, 0):
        lines = []
        for i in range(x.shape[axis] * factor):
            centre = (i + Fraction(1, 2)) / factor - Fraction(1, 2)
            centre = min(max(centre, Fraction(0)), Fraction(x.shape[axis] - 1))
            before, after = x.take(math.floor(centre), axis), x.take(math.ceil(centre), axis)
            u = centre - math.floor(centre)
            lines.append(before * np.float32(float(1 - u)) + after * np.float32(float(u)))
        x = np.stack(lines, axis)
    return x


def max_pool(x: Array, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair = (1, 1)) -> Array:
    return np.max(list(taps(x, kernel, stride, padding, dilation, -np.inf)), axis=0)


def avg_pool(
    x: Array,
    kernel: Pair,
    stride: Pair,
    padding: Sides,
    dilation: Pair = (1, 1),
    count_padding: bool = True,
) -> Array:
    """Sum in row-major order, times float32(1 / count); count is kH * kW, or the values inside the image."""
    total = np.float32(0)
    for seen in taps(x, kernel, stride, padding, dilation, 0):
        total = total + seen
    inside = np.ones((*x.shape[:2], 1))
    seen_inside: Any = sum(taps(inside, kernel, stride, padding, dilation, 0))
    count = kernel[0] * kernel[1] if count_padding else seen_inside
    return total * np.asarray(1 / count, np.float32)


def network_input(model: Any, frame: Any) -> Array:
    """float32[H, W, C] of uint8[h, w, 3], `Yuv420` or, grey, uint8[h, w]: luminance where C is 1, centre crop
    or letterbox, then (v - mean) / std of the multiple of the step; no rules that resize before they crop.
    """
    rule = model.input_rule
    assert rule.resize == 0
    if len(rule.mean) == 1:
        frame = luminance(frame) if frame.ndim == 3 else frame[..., None]
    height, width = rule.crop
    if rule.fit == "letterbox" and not (isinstance(frame, np.ndarray) and frame.shape[:2] == rule.crop):
        frame = letterbox(frame, rule.crop, rule.mean)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    values = frame[top : top + height, left : left + width].astype(np.float64)
    values -= values % rule.step
    return ((values - np.array(rule.mean)) / np.array(rule.std)).astype(np.float32)


def letterbox(frame: Any, crop: Pair, mean: tuple[float, ...]) -> Array:
    """All of a frame, pixels or `Yuv420`, in the middle of `crop`, resized by areas; the mean around it."""
    height, width = frame.shape[:2]
    scale = min(Fraction(crop[0], height), Fraction(crop[1], width))
    size = [max(1, math.floor(side * scale + Fraction(1, 2))) for side in (height, width)]
    resize = area_resize if isinstance(frame, np.ndarray) else planes_resize
    small = resize(frame, (size[0], size[1]))
    canvas = np.empty((*crop, frame.shape[2]), np.uint8)
    canvas[...] = [min(max(round(value), 0), 255) for value in mean]
    top, left = (crop[0] - size[0]) // 2, (crop[1] - size[1]) // 2
    canvas[top : top + size[0], left : left + size[1]] = small
    return canvas


def planes_resize(frame: Any, size: Pair) -> Array:
    """uint8[H, W, 3] of a `Yuv420`: Y to that size, U and V to half, each of their values for 2x2 pixels."""
    height, width = frame.shape[:2]
    flat, count = frame.data.reshape(-1), height * width
    y = flat[:count].reshape(height, width, 1)
    u, v = flat[count:].reshape(2, height // 2, width // 2, 1)
    small = [area_resize(y, size)]
    for plane in (u, v):
        half = area_resize(plane, (-(-size[0] // 2), -(-size[1] // 2)))
        small.append(half.repeat(2, 0).repeat(2, 1)[: size[0], : size[1]])
    planes = np.concatenate(small, axis=2).astype(np.int64) - 128
    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[frame.standard]
    kg, black, luma, chroma = 1 - kr - kb, *((0, 255, 255) if frame.full_range else (16, 219, 224))
    of_y, of_chroma = 8192 * 255 / luma, 8192 * 255 / chroma
    rows = [
        (of_y, 0, of_chroma * 2 * (1 - kr)),
        (of_y, -of_chroma * 2 * (1 - kb) * kb / kg, -of_chroma * 2 * (1 - kr) * kr / kg),
        (of_y, of_chroma * 2 * (1 - kb), 0),
    ]
    added = round(of_y * (128 - black) / 128) + 32
    products = (np.array([[round(w) for w in row] for row in rows]) * planes[..., None, :] + 64) // 128
    return ((products.sum(-1) + added) // 64).clip(0, 255).astype(np.uint8)


def area_resize(frame: Array, size: Pair) -> Array:
    """uint8[h, w, C] to (H, W): rows, then columns, each a weighted mean rounded to uint8."""
    rows = _area_axis(frame, size[0])
    return _area_axis(rows.swapaxes(0, 1), size[1]).swapaxes(0, 1)


def _area_axis(x: Array, full: int) -> Array:
    result = np.empty((full, *x.shape[1:]), np.uint8)
    for i in range(full):
        total, given, share = np.full(x.shape[1:], 128), 0, Fraction(0)
        for k in range(len(x)):
            share += _share(i, k, len(x), full)
            until = math.floor(share * 256 + Fraction(1, 2))
            total += (until - given) * x[k].astype(np.int64)
            given = until
        result[i] = total // 256
    return result


def _share(i: int, k: int, size: int, full: int) -> Fraction:
    """Exact weight of pixel k of `size` in output i of `full`."""
    scale = Fraction(size, full)
    if scale >= 1:
        return max(Fraction(0), min((i + 1) * scale, Fraction(k + 1)) - max(i * scale, Fraction(k))) / scale
    place = min(max((i + Fraction(1, 2)) * scale - Fraction(1, 2), Fraction(0)), Fraction(size - 1))
    return max(Fraction(0), 1 - abs(place - k))


def let_through(frame: Array, last: Array | None, threshold: int) -> Array:
    """What a stream with a threshold sees of uint8[h, w, 3] or uint8[h, w] after it has seen `last`."""
    if last is None:
        return frame
    apart = np.abs(frame.astype(np.int64) - last.astype(np.int64)) > threshold
    return np.where(apart.any(axis=-1, keepdims=True) if frame.ndim == 3 else apart, frame, last)


def luminance(frame: Array) -> Array:
    """uint8[h, w, 1] of RGB uint8[h, w, 3]."""
    red, green, blue = (frame[..., c : c + 1].astype(np.int64) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) // 65536).astype(np.uint8)


def forward(model: Any, x: Array) -> dict[str, Array]:
    """Every layer's output by its name, for the network input x: float32[H, W, C], itself under "input".

    float32[H, W, C], and int64[H, W, C] of -1 and +1 for Sign.
    """
    values = {"input": x}
    for layer in model.layers:
        values[layer.name] = _apply(layer, *(values[name] for name in layer.inputs))
    return values


def _apply(layer: Any, x: Array, *others: Array) -> Array:
    window = getattr(layer, "window", None)
    geometry = (window.stride, window.padding, window.dilation) if window else ()
    match type(layer).__name__:
        case "Conv2d":
            return float_conv(x, layer.weight, layer.bias, *geometry, layer.groups)
        case "BinaryConv2d":
            dot = binary_conv(x, unpack(layer.weight, layer.channels), *geometry, layer.pad_value)
            return affine(dot.astype(np.float32), layer.alpha, layer.bias)
        case "Affine":
            return affine(x, layer.scale, layer.shift)
        case "Relu":
            return relu(x)
        case "Sign":
            return sign(x)
        case "Add":
            return add(x, *others)
        case "PRelu":
            return prelu(x, layer.slope)
        case "Clip":
            return clip(x, layer.low, layer.high)
        case "Concat":
            return concat(x, *others)
        case "Upsample":
            return (bilinear if layer.interpolation == "bilinear" else upsample)(x, layer.factor)
        case "Softmax":
            return softmax(x)
        case "MaxPool":
            return max_pool(x, window.kernel, *geometry)
        case "AvgPool":
            return avg_pool(x, window.kernel, *geometry, layer.count_padding)
        case kind:
            raise NotImplementedError(kind)


def reached(model: Any, values: dict[str, Array], last: dict[str, Array] | None) -> dict[str, Array]:
    """bool[H, W] by layer: the outputs that changes can reach, all of them on a first frame.

    values, last : `forward` of this frame and of the one before.  Changes are those of the input's values and
    of signs; from there they reach each output of which an input, one under its window, was reached. A binary
    convolution whose input has two flips a pixel, or more, is computed whole.
    """
    if last is None:
        return {name: np.ones(value.shape[:2], bool) for name, value in values.items()}
    changed = {"input": (values["input"] != last["input"]).any(axis=-1)}
    result = dict(changed)
    for layer in model.layers:
        name, window = layer.name, getattr(layer, "window", None)
        sources = [changed[source] for source in layer.inputs]
        mask = np.any(sources, axis=0)[..., None]
        match type(layer).__name__:
            case "Upsample" if layer.interpolation == "bilinear":
                mask = bilinear(mask.astype(np.float32), layer.factor) > 0
            case "Upsample":
                mask = upsample(mask, layer.factor)
            case "BinaryConv2d" if (values[layer.inputs[0]] != last[layer.inputs[0]]).sum() >= 2 * mask.size:
                mask = np.ones((*values[name].shape[:2], 1), bool)
            case _ if window is not None:
                geometry = window.kernel, window.stride, window.padding, window.dilation
                mask = np.any(list(taps(mask, *geometry, False)), axis=0)
        result[name] = changed[name] = mask[..., 0]
        if type(layer).__name__ == "Sign":
            changed[name] = (values[name] != last[name]).any(axis=-1)
    return result
