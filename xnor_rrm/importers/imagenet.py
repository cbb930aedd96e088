"""What the ImageNet training codes have in common and no checkpoint says."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ConvertError
from ..model import InputRule

CLASSES, SIZE, RESIZE = 1000, 224, 256

#: torchvision's usual normalisation, mean .485 .456 .406 and std .229 .224 .225, in units of 0..255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

SIZE_HELP = "height and width of the input, where it is not ImageNet's 224"
SIZE_REMEDY = "If the input is of another size, give its height and width as the option size."


def side_of(size: int | None) -> int:
    """Height and width of the input: the option size, or 224. Raises ConvertError for what is no size."""
    if size is not None and (type(size) is not int or size < 1):
        raise ConvertError("a size of at least 1 pixel", repr(size))
    return SIZE if size is None else size


def check_classes(classes: int, size: int | None) -> None:
    """Raises ConvertError where neither the option size nor the number of classes tells the input's size."""
    if size is None and classes != CLASSES:
        expected = f"a network of {CLASSES} classes, whose input is known to be {SIZE}x{SIZE}"
        raise ConvertError(expected, f"{classes} classes", SIZE_REMEDY)


def input_rule(
    side: int,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> InputRule:
    """Shorter side 256 and centre 224, or another size as it is."""
    return InputRule((side, side), RESIZE if side == SIZE else side, mean, std)


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """The lines of a synset.txt without their WordNet number, if there are as many as classes; else none."""
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
    return tuple(re.sub(r"^n\d{8}\s+", "", line) for line in lines) if len(lines) == classes else ()
