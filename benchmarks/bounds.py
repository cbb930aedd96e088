"""What a kernel has to compute at least, and how long that takes on an ideal core.

Assumption: two 512-bit operations a cycle, of whatever kind, and nothing else: no loads, no loop, no
waiting. Zen 4 and Intel's server cores issue that many; the clock is measured (`timing.clock_ghz`).

Counted are the operations of the inner loop in the kernel's own layout, idle lanes included:

- xnor: xor, popcount, add for each vector of 8 output channels and each word under a window.
- xnor_update: xor, and, popcount, two adds, one subtraction, for changed words only.
- rows, set_rows: a full adder, two operations, for each selected row and each vector of outputs it meets. n
  rows take at most n full adders to their binary count, whichever way they are arranged. The cached kernel
  selects the flipped bits, the dense one (set_rows) the set bits.

Comparing, listing and packing are not counted, so what they cost shows as a smaller share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from xnor_rrm.kernels.layer import BinaryLayer

from xnor_rrm.machine import machine_fingerprint

OPERATIONS_A_CYCLE = 2
ASSUMPTION = "two 512-bit operations a cycle at the measured clock; inner-loop operations only"

_XNOR, _XNOR_UPDATE, _FULL_ADDER = 3, 6, 2


def operations(variant: str, cached: bool, layer: BinaryLayer, old: Any, new: Any) -> int:
    """512-bit operations of a variant that takes the layer from frame `old` to `new`, uint64[H, W, Cw]."""
    s = layer.step
    vectors = 2 * -(-int(s["cout"]) // 16)
    window_words = int(s["segments"] * s["run"])
    if variant == "xnor":
        return _XNOR * layer.outputs * window_words * vectors
    if variant == "xnor_update":
        changed_words = np.count_nonzero(old ^ new, axis=2)
        return _XNOR_UPDATE * int(_under_windows(changed_words, s, 1).sum()) * vectors
    if cached:
        selected = np.bitwise_count(old ^ new).sum(axis=2, dtype=np.int64)
    else:
        selected = np.bitwise_count(new).sum(axis=2, dtype=np.int64)
    vectors_a_tile = max(1, int(s["out_words"]) // 8)
    return _FULL_ADDER * int(_under_windows(selected, s, int(s["tile"])).sum()) * vectors_a_tile


def bound_ms(operation_count: int, clock_ghz: float) -> float:
    """Milliseconds that so many operations take at least."""
    return operation_count / (OPERATIONS_A_CYCLE * clock_ghz) * 1e-6


def fmas_a_cycle() -> int:
    """512-bit fused multiply-adds this machine issues a cycle: 1 where they are made of 256-bit halves."""
    known = machine_fingerprint()
    return 2 if "avx512f" in known["features"] and known["target"] != "znver4" else 1


def fma_assumption() -> str:
    """What `fma_bound_ms` takes this machine to be, in words."""
    return f"{16 * fmas_a_cycle()} float multiply-adds a cycle at the measured clock; padding included"


def fma_bound_ms(macs: float, clock_ghz: float) -> float:
    """Milliseconds that so many float multiply-adds take at least."""
    return macs / (16 * fmas_a_cycle() * clock_ghz) * 1e-6


def _under_windows(per_pixel: Any, s: Any, tile: int) -> Any:
    """Sums of `per_pixel`, int[H, W], under the windows of each tile of `tile` neighbouring output pixels."""
    ho, wo, kw, stride = (int(s[name]) for name in ("ho", "wo", "kw", "sw"))
    padded = np.zeros((int(s["hp"]) + 1, int(s["wp"]) + 1), np.int64)
    padded[1 + s["pt"] : 1 + s["pt"] + s["h"], 1 + s["pl"] : 1 + s["pl"] + s["w"]] = per_pixel
    sums = padded.cumsum(axis=0).cumsum(axis=1)  # sums[y, x] = all above and left of pixel (y, x)
    top = np.arange(ho) * int(s["sh"])
    left = np.arange(0, wo, tile) * stride
    right = (np.minimum(np.arange(0, wo, tile) + tile, wo) - 1) * stride + kw
    rows = sums[top + int(s["kh"])] - sums[top]
    return rows[:, right] - rows[:, left]
