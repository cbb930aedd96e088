"""What a stream did with its last frame, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LayerStats:
    """One step of the plan on one frame.

    name : of the layer (the first of those fused into the step).  kind : "binary", "float" or "elementwise".
    path : "dense" (everything computed), "cached" (only what changed) or "clean" (nothing changed).
    rows : whether it was cached by the rows of flipped bits (docs/method.md, 3), not by xnor-popcount.
    bits, flips : input bits of a binary layer, and how many differ from the last frame; else 0.
    outputs, skipped : output pixels, and how many kept their last value untouched.
    macs : multiply-accumulates of the layer on a whole frame.  seconds : wall-clock.
    """

    name: str
    kind: str
    path: str
    rows: bool
    bits: int
    flips: int
    outputs: int
    skipped: int
    macs: int
    seconds: float


def flip_rate(stats: Iterable[LayerStats]) -> float:
    """Share of flipped input bits over the binary layers, weighted by their multiply-accumulates."""
    binary = [s for s in stats if s.kind == "binary"]
    total = sum(s.macs for s in binary)
    return sum(s.macs * s.flips / s.bits for s in binary) / total if total else 0.0


def over_input(
    maps: Iterable[tuple[npt.NDArray[Any], int]], height: int, width: int
) -> npt.NDArray[np.float64]:
    """Mean of maps of any size by their weights, each spread over the input's height x width pixels.

    maps : [h, w] of a step each, and its weight. 0 everywhere where no step has one.
    """
    mean, weights = np.zeros((height, width)), 0
    for values, weight in maps:
        rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), values.shape, strict=True))
        mean += weight * values[rows[:, None], columns]
        weights += weight
    return mean / max(weights, 1)


class Disagreement:
    """How far the answers of a stream with a threshold are from those on the whole frames.

    classify : whether the answers are classes, of which the first is compared.
    """

    def __init__(self, classify: bool = True) -> None:
        self._classify = classify
        self._held: list[float] = []
        self._others = 0
        self._largest = 0.0

    def add(self, held: float, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
        """One frame.  held : `Stream.held_back`.  ours, theirs : its `values`, and those of all changes."""
        self._held.append(held)
        self._others += int(ours.argmax() != theirs.argmax())
        self._largest = max(self._largest, float(np.abs(ours - theirs).max()))

    def facts(self) -> dict[str, Any]:
        """held_back : mean share of input pixels.  other_top1 : share of frames with another first class.
        logit_difference : the largest. Each None without frames.
        """
        frames = len(self._held)
        others = round(self._others / frames, 5) if frames else None
        return {
            "held_back": round(sum(self._held) / frames, 5) if frames else None,
            **({"other_top1": others} if self._classify else {}),
            "logit_difference": self._largest if frames else None,
        }
