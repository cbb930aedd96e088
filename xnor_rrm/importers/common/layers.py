"""Layers as importers put them together."""

from __future__ import annotations

import math

import numpy as np

from ...errors import ConvertError
from ...model import INPUT, MAX_ACTIVATION, Affine, Conv2d, Layer, Shape, Window
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


def flat_affine(layer: Affine, shape: Shape) -> Conv2d:
    """An Affine over the flattened (C, H, W) of a (H, W, C) input, as a layer of shape (1, 1, C * H * W).

    A convolution whose window is the whole input; in each channel's group every output reads one value.
    """
    height, width, channels = shape
    size = height * width
    if len(layer.scale) != channels * size:
        raise ConvertError(f"{channels * size} channels in {layer.name!r}", str(len(layer.scale)))
    weight = np.zeros((channels, size, size), np.float32)
    weight[:, range(size), range(size)] = layer.scale.reshape(channels, size)
    kernel = weight.reshape(-1, height, width, 1)
    return Conv2d(layer.name, layer.inputs, kernel, layer.shift, Window((height, width)), channels)
