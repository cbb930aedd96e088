"""What the CIFAR-10 training codes have in common and no checkpoint says."""

from __future__ import annotations

from . import imagenet

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SIZE = 32

#: Many training codes normalise with ImageNet's mean and std.
INPUT_RULE = imagenet.input_rule(SIZE)

#: Others with CIFAR-10's own, (.4914 .4822 .4465) and (.2023 .1994 .2010), in units of 0..255.
OWN_MEAN, OWN_STD = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)


def labels(classes: int) -> tuple[str, ...]:
    """The ten names for ten classes, none for another number."""
    return LABELS if classes == len(LABELS) else ()
