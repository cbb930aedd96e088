"""What graphs of operators become: one small form that graph importers fill, lowered to layers node by node.

A `Node` is one operation of a network on batches of one, NCHW or, once flattened, two-dimensional; what it
means is in operations.py. `Lowering` follows what each value is: floats of a layer, or signs, which are
`scale * s + offset` with s the +-1 of a Sign layer: `2 * (x >= 0) - 1` is the same as `where(x >= 0, 1, -1)`.

- `x > 0` is +1 where `-x >= 0` is not. Of a three-valued sign sign(0) = 0: see zeros.py.
- `(a - b) + b` is a, exactly: so straight-through estimators are written.
- What cannot be lowered is refused only where the output needs it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConvertError, XnorError
from ...model import INPUT, Add, Affine, BinaryConv2d, Conv2d, InputRule, Layer, Model, Shape, Sign, Softmax
from .layers import Layers
from .zeros import refuse_zeros

#: (top, bottom, left, right).
Sides = tuple[int, int, int, int]
NO_PADDING: Sides = (0, 0, 0, 0)


@dataclass(frozen=True)
class Node:
    """One operation. op : `same`, `add`, `subtract`, or a key of the operations, which say what it means.

    name : of the value it makes, and of its layer.  inputs : names of values made before.
    constants : what else the operation takes, by name.  where : how messages call it.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    where: str
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Floats:
    """The output of a layer, or the network's input.

    flat : it is two-dimensional, the values in the order (C, H, W).
    padding, pad_value : what a Pad has put around it, still to be taken over by the operation that follows.
    ended : how messages call the softmax or log-softmax of it, which is left out as the last operation.
    softmax : the layer that it is where more follows; a log-softmax is none.
    """

    layer: str
    flat: bool = False
    padding: Sides = NO_PADDING
    pad_value: float = 0.0
    ended: str = ""
    softmax: str = ""


@dataclass(frozen=True)
class Signs(Floats):
    """scale * s + offset, s the bits of the Sign layer as -1 and +1."""

    scale: float = 1.0
    offset: float = 0.0

    @property
    def levels(self) -> tuple[float, float]:
        """The lower and the higher value."""
        return self.offset - abs(self.scale), self.offset + abs(self.scale)


@dataclass(frozen=True)
class Difference:
    """minuend - subtrahend, kept until it is known whether the subtrahend is added again."""

    node: Node = field(compare=False)
    minuend: Value
    subtrahend: Value


@dataclass(frozen=True, eq=False)
class Refused:
    """What could not be lowered, and why."""

    error: XnorError


Value = Floats | Difference | Refused

#: From the lowering, the node, the values that it reads and its constants, by name, to its value.
Operation = Callable[..., Floats]


class Lowering:
    """Layers from nodes, added in order of execution.

    shape : (H, W, C) of the input, the value `source`.  budget : most bytes of arrays in all layers.
    """

    def __init__(
        self, source: str, shape: Shape, operations: Mapping[str, Operation], budget: float = math.inf
    ) -> None:
        self.values: dict[str, Value] = {source: Floats(INPUT)}
        self.layers = Layers(shape)
        self._operations, self._budget = operations, budget
        self._known: dict[Any, Value] = {}
        #: Sign layers of which sign(0) = 0, with their places.
        self._three_valued: dict[str, str] = {}

    def add(self, node: Node) -> None:
        """Lower one node; what is wrong with it is told once its value is needed."""
        if node.name in self.values:
            raise ConvertError("a name for each value", f"{node.name!r} twice")
        try:
            with np.errstate(all="ignore"):  # layers check that their values are finite
                self.values[node.name] = self._lowered(node, [self.values[name] for name in node.inputs])
        except ConvertError as error:
            self.refuse(node.name, error)
        except XnorError as error:
            located = ConvertError(error.expected, f"{error.got}, in {node.where}", error.remedy)
            self.refuse(node.name, located)

    def refuse(self, name: str, error: XnorError) -> None:
        """A value that cannot be expressed."""
        self.values[name] = Refused(error.with_traceback(None))  # whose frames would hold arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """(1, C, H, W) or (1, C * H * W) of a value. Raises ConvertError where it was refused."""
        return self.shape_of(self._settled(self.values[name], name))

    def finish(self, output: str, name: str, rule: InputRule) -> Model:
        """The model whose output is that value. Raises ConvertError where it cannot be."""
        value = self._settled(self.values[output], output, last=True)
        if isinstance(value, Signs) or value.layer == INPUT or value.padding != NO_PADDING:
            raise ConvertError("a float layer as the output", f"{output!r}")
        if value.flat and self.layers.shapes[value.layer][:2] != (1, 1):
            raise ConvertError("classes, or a map, as the output", f"{output!r}, a flattened map")
        needed = self._needed(value.layer)
        kept = {layer: self.layers[layer] for layer in self.layers if layer in needed}
        refuse_zeros(kept, self.layers.shapes, rule, self._three_valued, ": write where(x >= 0, 1, -1)")
        layers = fused(kept.values())
        try:
            return Model(name, rule, layers)
        except XnorError as error:
            raise ConvertError(error.expected, error.got, error.remedy) from error

    # What operations are made of

    def append(self, node: Node, layer: Layer, like: Floats | None = None) -> Floats:
        """The value of a new layer, flat where `like` is."""
        self.layers.add(layer)
        return Floats(layer.name, like is not None and like.flat)

    def spend(self, size: int, node: Node) -> None:
        """Count bytes before they are allocated: a few numbers in a file can ask for any amount."""
        if size > self._budget:
            raise ConvertError("layers in proportion to the file", f"{size} bytes more for {node.where}")
        self._budget -= size

    def shape_of(self, value: Floats) -> tuple[int, ...]:
        """(1, C, H, W) or (1, C * H * W), padding included."""
        height, width, channels = self.layers.shapes[value.layer]
        top, bottom, left, right = value.padding
        height, width = height + top + bottom, width + left + right
        return (1, channels * height * width) if value.flat else (1, channels, height, width)

    def number(self, node: Node, value: Floats, constant: Any) -> float | None:
        """A constant that broadcasts to the value and holds one number only; None where it holds several."""
        array, shape = np.asarray(constant), self.shape_of(value)
        sizes = (1,) * (len(shape) - array.ndim) + array.shape
        fits = len(sizes) == len(shape) and all(n in (1, m) for n, m in zip(sizes, shape, strict=True))
        if array.dtype.kind not in "fiub" or not array.size or not fits:
            found = f"{array.dtype.name}{list(array.shape)}"
            raise ConvertError(f"numbers for a value of {list(shape)} in {node.where}", found)
        return float(array.flat[0]) if (array == array.flat[0]).all() else None

    def per_channel(self, node: Node, value: Floats, constant: Any) -> npt.NDArray[np.float32]:
        """float32[C] of a constant that is one number, or one for each channel."""
        array, channels = np.asarray(constant), self.layers.shapes[value.layer][2]
        sizes = (1,) * (len(self.shape_of(value)) - array.ndim) + array.shape
        if (number := self.number(node, value, array)) is not None:
            array = np.asarray(number)
        elif sizes[1] != channels or array.size != channels:
            raise ConvertError(
                f"one number for each of {channels} channels in {node.where}", f"{list(array.shape)}"
            )
        self.spend(8 * channels, node)
        return np.broadcast_to(array.reshape(-1).astype(np.float32), (channels,))

    def before_sign(self, node: Node, values: Sequence[Floats], layer: Layer) -> Floats:
        """What only compares or moves values, and so may stand before the sign as well as after it.

        layer : reads the layers of the values.
        """
        first = values[0]
        if not isinstance(first, Signs):
            return self.append(node, layer, first)
        sources = tuple(self.layers[name].inputs[0] for name in layer.inputs)
        floats = self.append(node, dataclasses.replace(layer, name=f"{node.name}.float", inputs=sources))
        self.append(node, Sign(node.name, (floats.layer,)))
        places = [self._three_valued[name] for name in layer.inputs if name in self._three_valued]
        if places:
            self._three_valued[node.name] = places[0]
        return dataclasses.replace(first, layer=node.name)

    def sign(self, node: Node, source: Floats, *, three_valued: bool) -> Signs:
        """The Sign layer of floats, of which what is around them becomes signs too."""
        value = self.append(node, Sign(node.name, (source.layer,)))
        if three_valued:
            self._three_valued[node.name] = node.where
        around = 0.0
        if source.padding != NO_PADDING:
            around = float(np.sign(source.pad_value)) or (0.0 if three_valued else 1.0)
        return Signs(value.layer, source.flat, source.padding, around)

    def affine(self, node: Node, source: Floats, scale: Any = 1.0, shift: Any = 0.0) -> Floats:
        """x * scale + shift."""
        factors, terms = self.per_channel(node, source, scale), self.per_channel(node, source, shift)
        return self.append(node, Affine(node.name, (source.layer,), factors, terms), source)

    # Inside

    def _lowered(self, node: Node, values: list[Value]) -> Value:
        if node.op == "same":
            return values[0]
        key = _key(node, values)
        if key in self._known:  # the same signs of the same values, once
            return self._known[key]
        value: Value
        if node.op == "subtract":
            value = Difference(node, *values)
        elif node.op == "add":
            value = self._sum(node, *values)
        else:
            settled = [self._settled(value, node.where) for value in values]
            value = self._operations[node.op](self, node, *settled, **node.constants)
        if key:
            self._known[key] = value
        return value

    def _sum(self, node: Node, a: Value, b: Value) -> Value:
        """a + b, or c for (c - b) + b."""
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Difference) and one.subtrahend == other:
                return one.minuend
        x, y = (unpadded(node, floats(node, self._settled(value, node.where))) for value in (a, b))
        if x.flat != y.flat:
            raise ConvertError("two inputs of one shape", node.where)
        return self.append(node, Add(node.name, (x.layer, y.layer)), x)

    def _settled(self, value: Value, where: str, last: bool = False) -> Floats:
        """A value as floats or signs."""
        if isinstance(value, Refused):
            raise value.error
        if isinstance(value, Difference):
            return self._difference(value)
        if value.ended and not last:
            return self._softened(value, where)
        return value

    def _softened(self, value: Floats, where: str) -> Floats:
        """A value whose softmax is not the last operation."""
        if not value.softmax:
            raise ConvertError(f"nothing after {value.ended}", where)
        if value.softmax not in self.layers:  # not read before
            self.layers.add(Softmax(value.softmax, (value.layer,)))
        return Floats(value.softmax, value.flat)

    def _difference(self, value: Difference) -> Floats:
        """a + -b, as layers."""
        node = dataclasses.replace(value.node, name=f"{value.node.name}.negated")
        settled = (self._settled(each, node.where) for each in (value.minuend, value.subtrahend))
        a, b = (unpadded(node, floats(node, each)) for each in settled)
        if value.node.name not in self.layers:  # not read before
            negated = self.affine(node, b, scale=-1.0)
            self._sum(value.node, a, negated)
        return Floats(value.node.name, a.flat)

    def _needed(self, layer: str) -> set[str]:
        """A layer and all that it reads."""
        needed, ahead = {INPUT}, [layer]
        while ahead:
            if (name := ahead.pop()) not in needed:
                needed.add(name)
                ahead += self.layers[name].inputs
        return needed


def _key(node: Node, values: list[Value]) -> tuple[Any, ...]:
    """The same for equal operations; () where arrays are among the constants."""
    constants = tuple(sorted(node.constants.items()))
    plain = all(isinstance(value, bool | int | float | str | tuple | None) for _, value in constants)
    return (node.op, tuple(values), constants) if plain else ()


def fused(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Each Affine taken into the layer before it, if nothing else reads that and no product or sum changes.

    A sum after a float convolution becomes its bias, where its terms are added in another order.
    """
    result = {layer.name: layer for layer in layers}
    readers = Counter(name for layer in result.values() for name in layer.inputs)
    for name, layer in list(result.items()):
        before = result.get(layer.inputs[0])
        if not isinstance(layer, Affine) or before is None or readers[before.name] > 1:
            continue
        both = _taken_into(before, layer)
        if both is not layer:
            del result[before.name]
            result[name] = both
    return tuple(result.values())


def _taken_into(before: Layer, after: Affine) -> Layer:
    """One layer of the name of the second, which computes both; the second itself where there is none."""
    summed = bool((after.scale == 1).all())
    match before:
        case BinaryConv2d(alpha=alpha, bias=bias) if (alpha == 1).all() and not bias.any():
            return dataclasses.replace(before, name=after.name, alpha=after.scale, bias=after.shift)
        case BinaryConv2d(bias=bias) | Conv2d(bias=bias) if summed and not bias.any():
            return dataclasses.replace(before, name=after.name, bias=after.shift)
        case Affine(shift=shift) if summed and not shift.any():
            return dataclasses.replace(before, name=after.name, shift=after.shift)
    return after


def floats(node: Node, value: Floats) -> Floats:
    """Raises ConvertError for signs: only binary convolutions take them."""
    if isinstance(value, Signs):
        raise ConvertError("a convolution or linear layer after a sign", node.where)
    return value


def unpadded(node: Node, value: Floats) -> Floats:
    """Raises ConvertError for a value that a Pad has made larger."""
    if value.padding != NO_PADDING:
        raise ConvertError("a convolution after a Pad", node.where)
    return value
