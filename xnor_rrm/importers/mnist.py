"""What the MNIST training codes have in common and no checkpoint says."""

from __future__ import annotations

from ..model import InputRule

LABELS = tuple("0123456789")

#: torchvision's usual (grey / 255 - mean) / std, with MNIST's mean .1307 and std .3081.
INPUT_RULE = InputRule(crop=(28, 28), resize=28, mean=(33.3285,), std=(78.5655,), channels=1)


def labels(classes: int) -> tuple[str, ...]:
    """The ten digits for ten classes, none for another number."""
    return LABELS if classes == len(LABELS) else ()
