"""Operations of graphs: what each becomes. See graph.py.

Each function takes the lowering, the node, the values that it reads and its constants. A convolution of signs
is binary: its weights have one magnitude in each output channel, alpha; others are refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...bits import pack_signs
from ...errors import ConvertError
from ...model import (
    Array,
    AvgPool,
    BinaryConv2d,
    Clip,
    Concat,
    Conv2d,
    MaxPool,
    PRelu,
    Relu,
    Shape,
    Upsample,
    Window,
)
from .checkpoint import batch_norm
from .datasets import MAX_SIDE
from .graph import NO_PADDING, Floats, Lowering, Node, Operation, Sides, Signs, floats, unpadded
from .layers import flat_affine

Pair = tuple[int, int]

#: How far weights are off that are written `w.detach() - c.detach() + c`, |c| <= 1, and in shares of alpha.
WEIGHT_ROUNDING, WEIGHT_TOLERANCE = 2.0**-22, 0.01

#: What each comparison is with its operands exchanged.
MIRRORED = {">=": "<=", ">": "<", "<=": ">=", "<": ">"}

#: Most channels that a Pad may add on a side.
MAX_CHANNELS = 1 << 13

FLOAT_MAX = float(np.finfo(np.float32).max)


def image(node: Node, value: Floats) -> Floats:
    """Raises ConvertError for a value that was flattened."""
    if value.flat:
        raise ConvertError(f"an NCHW value in {node.where}", "a flattened one")
    return value


def window(node: Node, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair) -> Window:
    numbers = (*kernel, *stride, *padding, *dilation)
    if len(numbers) != 10 or not all(0 <= number <= MAX_SIDE for number in numbers):
        raise ConvertError(
            f"a two-dimensional window of sizes up to {MAX_SIDE} in {node.where}", f"{numbers}"
        )
    return Window(kernel, stride, padding, dilation)


def _both(a: Sides, b: Sides) -> Sides:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def _sign(lowering: Lowering, node: Node, x: Floats, *, three_valued: bool, scale: Any = 1.0) -> Floats:
    """scale * sign(x): sign(0) is 0 if three_valued, else +1."""
    signs = lowering.sign(node, floats(node, x), three_valued=three_valued)
    return _scaled(node, signs, _one_number(lowering, node, x, scale))


def _compare(lowering: Lowering, node: Node, x: Floats, *, relation: str, threshold: Any) -> Floats:
    """1 where x relation threshold, else 0; relation is one of >=, >, <, <=."""
    source, moved = floats(node, x), dataclasses.replace(node, name=f"{node.name}.affine")
    if lowering.number(node, x, threshold) != 0:
        source = lowering.affine(moved, unpadded(node, source), shift=np.negative(threshold))
        moved = dataclasses.replace(node, name=f"{node.name}.negated")
    if relation in (">", "<="):  # x > t is not (t - x >= 0)
        negated = lowering.affine(moved, dataclasses.replace(source, padding=NO_PADDING), scale=-1.0)
        source = dataclasses.replace(source, layer=negated.layer, pad_value=-source.pad_value)
    signs = lowering.sign(node, source, three_valued=False)
    return _scaled(node, signs, 0.5 if relation in (">=", "<=") else -0.5, 0.5)


def _select(lowering: Lowering, node: Node, x: Floats, *, when: Any, otherwise: Any) -> Floats:
    """`when` where x is 1, `otherwise` where it is 0; both one number."""
    if not isinstance(x, Signs) or x.levels != (0, 1):
        raise ConvertError("a choice by the sign of a value", node.where)
    high, low = (_one_number(lowering, node, x, level) for level in (when, otherwise))
    return _scaled(node, x, high - low, low)


def _integers(lowering: Lowering, node: Node, x: Floats) -> Floats:
    """The same signs as integers."""
    if not isinstance(x, Signs) or any(level % 1 for level in x.levels):
        raise ConvertError("float values", node.where)
    return x


def _scaled(node: Node, x: Signs, factor: float, term: float = 0.0) -> Signs:
    """x * factor + term, and of what surrounds it."""
    around = x.pad_value * factor + term if x.padding != NO_PADDING else 0.0
    numbers = x.scale * factor, x.offset * factor + term, around
    if not np.isfinite(numbers).all() or not numbers[0]:
        raise ConvertError("two different, finite levels", node.where)
    return dataclasses.replace(x, scale=numbers[0], offset=numbers[1], pad_value=numbers[2])


def _one_number(lowering: Lowering, node: Node, x: Floats, constant: Any) -> float:
    if (number := lowering.number(node, x, constant)) is None:
        raise ConvertError(f"one number after a sign in {node.where}", f"{list(np.shape(constant))}")
    return number


def _multiply(lowering: Lowering, node: Node, x: Floats, *, factor: Any) -> Floats:
    """x times a number, or one for each channel."""
    if isinstance(x, Signs):
        return _scaled(node, x, _one_number(lowering, node, x, factor))
    return lowering.affine(node, unpadded(node, x), scale=factor)


def _plus(lowering: Lowering, node: Node, x: Floats, *, term: Any) -> Floats:
    """x plus a number, or one for each channel."""
    if isinstance(x, Signs):
        return _scaled(node, x, 1.0, _one_number(lowering, node, x, term))
    return lowering.affine(node, unpadded(node, x), shift=term)


def _batch_norm(
    lowering: Lowering, node: Node, x: Floats, *, gamma: Any, beta: Any, mean: Array, var: Array, eps: float
) -> Floats:
    """(x - mean) / sqrt(var + eps) * gamma + beta, folded; gamma and beta may be None."""
    source = unpadded(node, floats(node, x))
    if not math.isfinite(eps):
        raise ConvertError(f"a finite epsilon in {node.where}", f"{eps}")
    channels, given = lowering.shape_of(source)[1], {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    lowering.spend(8 * mean.size, node)
    for name, array in given.items():
        if array is not None and (array.dtype != np.float32 or array.shape != (channels,)):
            found = f"{array.dtype.name}{list(array.shape)}"
            raise ConvertError(f"float32[{channels}] as {name} of {node.where}", found)
    layer = batch_norm(node.name, source.layer, node.where, **given, eps=eps)
    shape = lowering.layers.shapes[source.layer]
    if channels == shape[2]:
        return lowering.append(node, layer, source)
    lowering.spend(4 * channels * shape[0] * shape[1], node)  # of all values of a flattened map
    return lowering.append(node, flat_affine(layer, shape), source)


def _relu(lowering: Lowering, node: Node, x: Floats) -> Floats:
    """x where x > 0, else 0."""
    source = unpadded(node, floats(node, x))
    return lowering.append(node, Relu(node.name, (source.layer,)), source)


def _prelu(lowering: Lowering, node: Node, x: Floats, *, slope: Any) -> Floats:
    """x where x > 0, else x * slope."""
    source = unpadded(node, floats(node, x))
    slopes = lowering.per_channel(node, source, slope)
    return lowering.append(node, PRelu(node.name, (source.layer,), slopes), source)


def _clip(lowering: Lowering, node: Node, x: Floats, *, low: float | None, high: float | None) -> Floats:
    """x between two numbers, of which one may be None."""
    least = -FLOAT_MAX if low is None else max(low, -FLOAT_MAX)
    most = FLOAT_MAX if high is None else min(high, FLOAT_MAX)
    if (least, most) == (0, FLOAT_MAX):
        return _relu(lowering, node, x)
    source = unpadded(node, floats(node, x))
    return lowering.append(node, Clip(node.name, (source.layer,), least, most), source)


def _conv(
    lowering: Lowering,
    node: Node,
    x: Floats,
    *,
    weight: Array,
    bias: Array | None,
    stride: Pair = (1, 1),
    padding: Sides = NO_PADDING,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Floats:
    """weight : float32[Cout, Cin / groups, kH, kW].  bias : float32[Cout] or None.  Padding is zero."""
    image(node, x)
    if weight.ndim != 4 or weight.dtype != np.float32 or not weight.size:
        found = f"{weight.dtype.name}{list(weight.shape)}"
        raise ConvertError(f"float32[Cout, Cin, kH, kW] in {node.where}", found)
    if any(padding) and x.pad_value:
        raise ConvertError(f"padding of one value in {node.where}", f"0 around {x.pad_value}")
    kernel = weight.shape[2], weight.shape[3]
    geometry = window(node, kernel, stride, _both(padding, x.padding), dilation)
    lowering.spend(weight.nbytes + 8 * len(weight), node)
    shift = np.zeros(len(weight), np.float32) if bias is None else bias
    if isinstance(x, Signs):
        return _binary_conv(lowering, node, x, weight, shift, geometry, groups)
    if x.pad_value:
        raise ConvertError(f"zeros around the input of {node.where}", f"{x.pad_value}")
    kernels = weight.transpose(0, 2, 3, 1)
    return lowering.append(node, Conv2d(node.name, (x.layer,), kernels, shift, geometry, groups))


def _binary_conv(
    lowering: Lowering, node: Node, x: Signs, weight: Array, bias: Array, geometry: Window, groups: int
) -> Floats:
    around = x.pad_value / x.scale
    if x.offset or around not in (-1, 0, 1):
        raise ConvertError(
            f"signs of two opposite levels, and those or 0 around them, before {node.where}",
            f"levels {x.levels[0]:g} and {x.levels[1]:g}, {x.pad_value:g} around them",
        )
    if groups != 1:
        raise ConvertError(f"one group in a binary convolution, {node.where}", f"{groups}")
    signs, alpha = binarize(node, weight)
    layer = BinaryConv2d(
        node.name,
        (x.layer,),
        weight=pack_signs(signs.transpose(0, 2, 3, 1)),
        alpha=(alpha * x.scale).astype(np.float32),
        bias=bias,
        channels=weight.shape[1],
        window=geometry,
        pad_value=int(around),
    )
    return lowering.append(node, layer)


def _linear(lowering: Lowering, node: Node, x: Floats, *, weight: Array, bias: Array | None) -> Floats:
    """A convolution as large as its input.

    weight : float32[outputs, inputs].  bias : float32[outputs] or None.
    """
    height, width, channels = lowering.layers.shapes[unpadded(node, x).layer]
    if not x.flat or weight.ndim != 2 or weight.shape[1] != height * width * channels:
        raise ConvertError(
            f"float32[any, {height * width * channels}] on flattened values in {node.where}",
            f"{weight.dtype.name}{list(weight.shape)} on {lowering.shape_of(x)}",
        )
    kernel = weight.reshape(-1, channels, height, width)
    value = _conv(lowering, node, dataclasses.replace(x, flat=False), weight=kernel, bias=bias)
    return dataclasses.replace(value, flat=True)


def binarize(node: Node, weight: Array) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """weight = alpha * sign: signs, bool of its shape, and alpha, float64[Cout], of float32[Cout, ...].

    Raises ConvertError for NaN and for weights of more than one magnitude in an output channel, 0 among them.
    A channel of zeros has alpha 0.
    """
    magnitudes = np.abs(weight.reshape(len(weight), -1))
    if not np.isfinite(magnitudes).all():
        raise ConvertError(f"finite weights in {node.where}", "NaN or infinite ones")
    alpha = np.median(magnitudes, axis=1).astype(np.float64)
    deviation = np.abs(magnitudes - alpha[:, None])
    wrong = deviation > np.minimum(WEIGHT_ROUNDING, alpha * WEIGHT_TOLERANCE)[:, None]
    if wrong.any():
        raise ConvertError(
            f"weights +-alpha, one alpha for each output channel, under the sign before {node.where}",
            f"{wrong.mean():.3%} of {wrong.size} that differ, by up to {deviation.max():.3g}",
            "Its input is binary, its weights are not.",
        )
    return weight > 0, alpha


def _max_pool(
    lowering: Lowering,
    node: Node,
    x: Floats,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Sides,
    dilation: Pair = (1, 1),
    ceil: bool = False,
) -> Floats:
    """The largest value; padding never wins. ceil : windows may reach past the padding."""
    unpadded(node, image(node, x))
    if isinstance(x, Signs) and x.scale < 0:
        raise ConvertError("a pool of signs that rise with their value", node.where)
    geometry = window(node, kernel, stride, padding, dilation)
    geometry = _reaching(geometry, lowering.layers.shapes[x.layer]) if ceil else geometry
    return lowering.before_sign(node, [x], MaxPool(node.name, (x.layer,), geometry))


def _average_pool(
    lowering: Lowering,
    node: Node,
    x: Floats,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Sides,
    ceil: bool = False,
    count_padding: bool,
) -> Floats:
    """The mean of the window, its padding counted as zeros or not at all."""
    source = image(node, floats(node, x))
    if source.padding != NO_PADDING:
        if source.pad_value or (any(padding) and not count_padding):
            raise ConvertError("a convolution after a Pad", node.where)
        padding, count_padding = _both(padding, source.padding), True
    geometry = window(node, kernel, stride, padding, (1, 1))
    reaching = _reaching(geometry, lowering.layers.shapes[source.layer]) if ceil else geometry
    if reaching != geometry and count_padding:
        raise ConvertError(
            "an average pool whose windows end within the padding", f"{node.where} (ceil mode)"
        )
    return lowering.append(node, AvgPool(node.name, (source.layer,), reaching, count_padding))


def _reaching(window: Window, shape: Shape) -> Window:
    """The window padded at the bottom and right, so that it reaches every value; none lie wholly outside."""
    sides = list(window.padding)
    for axis in (0, 1):
        size, before, after = shape[axis], sides[2 * axis], sides[2 * axis + 1]
        reach, stride = window.dilation[axis] * (window.kernel[axis] - 1) + 1, max(window.stride[axis], 1)
        last = -(-(size + before + after - reach) // stride) * stride
        if last >= size + before:
            last -= stride
        sides[2 * axis + 1] = max(after, last + reach - size - before)
    return dataclasses.replace(window, padding=(sides[0], sides[1], sides[2], sides[3]))


def _mean(lowering: Lowering, node: Node, x: Floats, *, size: Pair = (1, 1), flat: bool = False) -> Floats:
    """The image in `size` equal parts, the mean of each; flattened if `flat`."""
    source = unpadded(node, image(node, floats(node, x)))
    height, width, _ = lowering.layers.shapes[source.layer]
    if min(size) < 1 or height % size[0] or width % size[1]:
        raise ConvertError(f"a size that divides {height}x{width} in {node.where}", f"{size}")
    kernel = height // size[0], width // size[1]
    if kernel == (1, 1):
        return dataclasses.replace(source, flat=flat)
    pool = AvgPool(node.name, (source.layer,), Window(kernel, kernel))
    return dataclasses.replace(lowering.append(node, pool), flat=flat)


def _largest(lowering: Lowering, node: Node, x: Floats) -> Floats:
    """The largest value of the whole image."""
    size = lowering.layers.shapes[image(node, x).layer][:2]
    return _max_pool(lowering, node, x, kernel=size, stride=(1, 1), padding=NO_PADDING)


def _concat(lowering: Lowering, node: Node, *values: Floats) -> Floats:
    """One after the other along the channels."""
    kinds = {dataclasses.replace(unpadded(node, value), layer="") for value in values}
    if len(kinds) != 1:
        raise ConvertError("values of one kind, all floats or the same signs", node.where)
    if len(values) == 1:
        return values[0]
    if values[0].flat and any(math.prod(lowering.layers.shapes[value.layer][:2]) > 1 for value in values):
        raise ConvertError(f"NCHW values in {node.where}", "flattened ones")
    layer = Concat(node.name, tuple(value.layer for value in values))
    return lowering.before_sign(node, values, layer)


def _flatten(lowering: Lowering, node: Node, x: Floats) -> Floats:
    """(1, C * H * W)."""
    return dataclasses.replace(unpadded(node, x), flat=True)


def _reshape(lowering: Lowering, node: Node, x: Floats, *, shape: Sequence[int]) -> Floats:
    """To two dimensions (ones may follow), or to the NCHW shape that it had; one size may be -1."""
    height, width, channels = lowering.layers.shapes[unpadded(node, x).layer]
    sizes, total = tuple(int(size) for size in shape), height * width * channels
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and total % known == 0:
        sizes = tuple(total // known if size == -1 else size for size in sizes)
    if sizes == (1, channels, height, width):
        return dataclasses.replace(x, flat=False)
    if sizes[:2] == (1, total) and set(sizes[2:]) <= {1}:
        return dataclasses.replace(x, flat=True)
    raise ConvertError(f"a flattening in {node.where}", f"{(1, channels, height, width)} to {tuple(shape)}")


def _pad(
    lowering: Lowering, node: Node, x: Floats, *, padding: Sides, value: float, channels: Pair = (0, 0)
) -> Floats:
    """Constant values around the image, and channels of them before and behind its own."""
    image(node, x)
    if any(channels):
        x = _padded_channels(lowering, node, x, channels, value)
    if not any(padding):
        return x
    if min(padding) < 0 or max(padding) > MAX_SIDE or (x.padding != NO_PADDING and x.pad_value != value):
        raise ConvertError(f"padding of one value, at most {MAX_SIDE} wide, in {node.where}", f"{padding}")
    return dataclasses.replace(x, padding=_both(x.padding, padding), pad_value=value)


def _padded_channels(lowering: Lowering, node: Node, x: Floats, more: Pair, value: float) -> Floats:
    """A convolution of weights 0 and 1, whose bias is the value."""
    source, cin = unpadded(node, floats(node, x)), lowering.layers.shapes[x.layer][2]
    if min(more) < 0 or max(more) > MAX_CHANNELS:
        raise ConvertError(f"up to {MAX_CHANNELS} channels more in {node.where}", f"{more}")
    cout = more[0] + cin + more[1]
    lowering.spend(4 * cout * (cin + 1), node)
    weight, bias = np.zeros((cout, 1, 1, cin), np.float32), np.full(cout, value, np.float32)
    weight[more[0] : more[0] + cin, 0, 0], bias[more[0] : more[0] + cin] = np.eye(cin), 0
    name = f"{node.name}.channels"
    lowering.layers.add(Conv2d(name, (source.layer,), weight, bias, Window((1, 1))))
    return Floats(name)


def _upsample(
    lowering: Lowering, node: Node, x: Floats, *, factor: int, interpolation: Literal["nearest", "bilinear"]
) -> Floats:
    """`factor` times as high and as wide."""
    unpadded(node, image(node, x))
    if factor == 1:
        return x
    layer = Upsample(node.name, (x.layer,), factor, interpolation)
    if interpolation == "nearest":
        return lowering.before_sign(node, [x], layer)
    return lowering.append(node, layer, floats(node, x))


def _subsample(lowering: Lowering, node: Node, x: Floats, *, stride: Pair) -> Floats:
    """The first row of each `stride[0]`, the first column of each `stride[1]`."""
    if stride == (1, 1):
        return x
    return _max_pool(lowering, node, x, kernel=(1, 1), stride=stride, padding=NO_PADDING)


def _softmax(lowering: Lowering, node: Node, x: Floats, *, logarithm: bool = False) -> Floats:
    """Left out as the last operation: the outputs are the logits."""
    source = unpadded(node, floats(node, x))
    if source.flat and math.prod(lowering.layers.shapes[source.layer][:2]) > 1:
        raise ConvertError(f"a softmax over channels in {node.where}", "one over a flattened map")
    return dataclasses.replace(source, ended=node.where, softmax="" if logarithm else node.name)


#: By op of a node. `same` is not here: it is the value itself.
OPERATIONS: dict[str, Operation] = {
    "average_pool": _average_pool,
    "batch_norm": _batch_norm,
    "clip": _clip,
    "compare": _compare,
    "concat": _concat,
    "conv": _conv,
    "flatten": _flatten,
    "integers": _integers,
    "largest": _largest,
    "linear": _linear,
    "max_pool": _max_pool,
    "mean": _mean,
    "multiply": _multiply,
    "pad": _pad,
    "plus": _plus,
    "prelu": _prelu,
    "relu": _relu,
    "reshape": _reshape,
    "select": _select,
    "sign": _sign,
    "softmax": _softmax,
    "subsample": _subsample,
    "upsample": _upsample,
}
