"""What the CIFAR-10 training codes have in common and no checkpoint says."""

from __future__ import annotations

from ..model import InputRule

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

#: torchvision's usual (RGB / 255 - mean) / std, with ImageNet's mean .485 .456 .406 and std .229 .224 .225.
INPUT_RULE = InputRule(crop=(32, 32), resize=32, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def labels(classes: int) -> tuple[str, ...]:
    """The ten names for ten classes, none for another number."""
    return LABELS if classes == len(LABELS) else ()
