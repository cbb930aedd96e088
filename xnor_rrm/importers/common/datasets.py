"""What training codes have in common and no checkpoint says: sizes and scales of images, names of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...errors import ConvertError, XnorError
from ...model import InputRule, Model, Shape
from .options import Option

SIZE = Option("size", "Height and width of the input, where the file does not tell.", int)
MEAN = Option("mean", "Subtracted from the input, 0 to 255: a number, or one a channel.", str)
STD = Option("std", "What the input is then divided by: a number, or one a channel.", str)

SIZE_REMEDY = "If the input is of another size, give its height and width as the option size."


class Scale(NamedTuple):
    """(x - mean) / std of each channel, in units of 0..255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


#: torchvision's usual, mean .485 .456 .406 and std .229 .224 .225.
IMAGENET_SCALE = Scale((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
#: .4914 .4822 .4465 and .2023 .1994 .2010. Many training codes for CIFAR-10 take ImageNet's instead.
CIFAR10_SCALE = Scale((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))
#: Of grey images, .1307 and .3081.
MNIST_SCALE = Scale((33.3285,), (78.5655,))
#: By number of channels: what is taken where nothing is known.
USUAL_SCALE = {1: MNIST_SCALE, 3: IMAGENET_SCALE}

IMAGENET_SIZE, IMAGENET_RESIZE, IMAGENET_CLASSES = 224, 256, 1000
CIFAR10_SIZE, MNIST_SIZE = 32, 28

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MNIST_LABELS = tuple("0123456789")

#: Largest side of an input.
MAX_SIDE = 8192


def input_rule(
    shape: Shape,
    scale: Scale,
    mean: Any = None,
    std: Any = None,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> InputRule:
    """The rule of an input (H, W, C). 224x224 is cut from a shorter side of 256; other sizes are resized to.

    mean, std : in place of the scale's: a number, or one a channel, as a sequence or as text with commas.
    """
    height, width, channels = shape
    if channels not in USUAL_SCALE or not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        found = f"{height}x{width}x{channels}"
        raise ConvertError(f"an input of 1 or 3 channels and of sides up to {MAX_SIDE}", found)
    imagenet = (height, width) == (IMAGENET_SIZE, IMAGENET_SIZE)
    resize = IMAGENET_RESIZE if imagenet else max(height, width)
    means = scale.mean[:channels] if mean is None else _numbers(MEAN, mean, channels)
    stds = scale.std[:channels] if std is None else _numbers(STD, std, channels)
    try:
        return InputRule((height, width), resize, means, stds, interpolation, channels)
    except XnorError as error:
        raise ConvertError(error.expected, error.got, error.remedy) from error


def _numbers(option: Option, given: Any, count: int) -> tuple[float, ...]:
    parts = given.split(",") if isinstance(given, str) else given
    parts = parts if isinstance(parts, Sequence) else (parts,)
    if len(parts) == 1:
        parts = (*parts,) * count
    try:
        numbers = tuple(float(part) for part in parts if not isinstance(part, bool))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count:
        raise ConvertError(f"a number, or {count} of them, as the option {option.name}", repr(given))
    return numbers


def square_rule(side: int, scale: Scale) -> InputRule:
    """The rule of square images."""
    return input_rule((side, side, len(scale.mean)), scale)


def usual_rule(shape: Shape, mean: Any, std: Any) -> InputRule:
    """The rule of images of which nothing is known, but for mean and std as given."""
    return input_rule(shape, USUAL_SCALE.get(shape[2], IMAGENET_SCALE), mean, std)


def whole_size(height: int | None, width: int | None, size: int | None) -> tuple[int, int]:
    """Height and width of an input that the file may leave open. Raises ConvertError if they stay open."""
    sides = [side or size or 0 for side in (height, width)]
    if not all(sides):
        remedy = "Give its height and width as the option size."
        raise ConvertError("an input of known size", "none in the file", remedy)
    if size and sides != [size, size]:
        raise ConvertError(f"an input of {sides[0]}x{sides[1]}, as the file has it", f"size {size}")
    return sides[0], sides[1]


def of_known_size(model: Model, size: int | None) -> Model:
    """The model. Raises ConvertError where neither the option size nor its classes tell the input's size."""
    if size is None and model.classes != IMAGENET_CLASSES:
        side = IMAGENET_SIZE
        expected = f"a network of {IMAGENET_CLASSES} classes, whose input is known to be {side}x{side}"
        raise ConvertError(expected, f"{model.classes} classes", SIZE_REMEDY)
    return model


def read_labels(path: Path) -> tuple[str, ...]:
    """The lines of a synset.txt, if there is one, without their WordNet numbers."""
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
    return tuple(re.sub(r"^n\d{8}\s+", "", line) for line in lines)
