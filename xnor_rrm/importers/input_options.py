"""The input rule of graphs, which say no more than its shape."""

from __future__ import annotations

from typing import Any

from ..errors import ConvertError, XnorError
from ..model import InputRule, Shape

MEAN_HELP = "subtracted from each channel of the input, 0 to 255, where it is not the usual"
STD_HELP = "what each channel is then divided by"

#: Largest side of an input.
MAX_SIDE = 8192

#: torchvision's usual (RGB / 255 - mean) / std, and MNIST's for one channel.
MEAN_STD = {3: ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)), 1: ((33.3285,), (78.5655,))}
IMAGENET_SIZE, IMAGENET_RESIZE = 224, 256


def input_rule(shape: Shape, mean: Any, std: Any) -> InputRule:
    """The rule of an input (H, W, C): mean and std as given, in units of 0..255, or the usual ones.

    224x224 is cut from a frame whose shorter side is resized to 256; other sizes are resized to.
    mean, std : one number a channel, as a sequence or as text with commas; None for the usual.
    """
    height, width, channels = shape
    if channels not in MEAN_STD or not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ConvertError(
            f"an input of 1 or 3 channels and of sides up to {MAX_SIDE}", f"{height}x{width}x{channels}"
        )
    usual = MEAN_STD[channels]
    numbers = [
        default if given is None else _numbers(option, given, channels)
        for option, given, default in (("mean", mean, usual[0]), ("std", std, usual[1]))
    ]
    imagenet = (height, width) == (IMAGENET_SIZE, IMAGENET_SIZE)
    resize = IMAGENET_RESIZE if imagenet else max(height, width)
    try:
        return InputRule((height, width), resize, numbers[0], numbers[1], channels=channels)
    except XnorError as error:
        raise ConvertError(error.expected, error.got, error.remedy) from error


def _numbers(option: str, given: Any, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in (given.split(",") if isinstance(given, str) else given))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count:
        raise ConvertError(f"{count} numbers as the option {option}", f"{given!r}")
    return numbers
