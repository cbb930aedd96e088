"""What a stream did with its last frame, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerStats:
    """One step of the plan on one frame.

    name : of the layer (the first of those fused into the step).  kind : "binary", "float" or "elementwise".
    path : "dense" (everything computed), "cached" (only what changed) or "clean" (nothing changed).
    bits, flips : input bits of a binary layer, and how many differ from the last frame; else 0.
    outputs, skipped : output pixels, and how many kept their last value untouched.
    macs : multiply-accumulates of the layer on a whole frame.  seconds : wall-clock.
    """

    name: str
    kind: str
    path: str
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
