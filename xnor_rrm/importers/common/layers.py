"""Layers as importers put them together."""

from __future__ import annotations

import math

from ...errors import ConvertError
from ...model import INPUT, MAX_ACTIVATION, Layer, Shape
from .checkpoint import summary


class Layers(dict[str, Layer]):
    """Layers by name, in order of execution.  shapes : (H, W, C) of the input and of what each makes."""

    def __init__(self, input_shape: Shape) -> None:
        super().__init__()
        self.shapes: dict[str, Shape] = {INPUT: input_shape}

    def add(self, layer: Layer) -> str:
        """Its name. Raises ConvertError for a name that is taken, ModelError for shapes that do not fit."""
        if layer.name in self.shapes:
            raise ConvertError("a name for each layer", f"{layer.name!r} twice")
        shape = layer.output_shape(*(self.shapes[name] for name in layer.inputs))
        if math.prod(shape) > MAX_ACTIVATION:
            raise ConvertError(f"at most {MAX_ACTIVATION} values of a layer", f"{layer.name} of {shape}")
        self[layer.name], self.shapes[layer.name] = layer, shape
        return layer.name

    def finish(self, output: str = "") -> tuple[Layer, ...]:
        """The layers. Raises ConvertError unless the last, `output` if given, is the only one not read."""
        output = output or self.last
        read = {output, *(name for layer in self.values() for name in layer.inputs)}
        unread = [name for name in self if name not in read]
        if unread or output != self.last:
            raise ConvertError("a network with one output, its last layer's", summary(unread) or output)
        return tuple(self.values())

    @property
    def last(self) -> str:
        """The layer added last, or the input."""
        return next(reversed(self), INPUT)
