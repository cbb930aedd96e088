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


class Disagreement:
    """How far the answers of a stream with a threshold are from those on the whole frames."""

    def __init__(self) -> None:
        self._held: list[float] = []
        self._others = 0
        self._largest = 0.0

    def add(self, held: float, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
        """One frame.  held : `Stream.held_back`.  ours, theirs : logits with the threshold, and without."""
        self._held.append(held)
        self._others += int(ours.argmax() != theirs.argmax())
        self._largest = max(self._largest, float(np.abs(ours - theirs).max()))

    def facts(self) -> dict[str, Any]:
        """held_back : mean share of input pixels.  other_top1 : share of frames with another first class.
        logit_difference : the largest. Each None without frames.
        """
        frames = len(self._held)
        return {
            "held_back": round(sum(self._held) / frames, 5) if frames else None,
            "other_top1": round(self._others / frames, 5) if frames else None,
            "logit_difference": self._largest if frames else None,
        }
