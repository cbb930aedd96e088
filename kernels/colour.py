"""RGB of planes Y, U and V, as decoders have them.

    c = clip8((added + sum over p of (w_cp * (p - 128) + 64) // 128) // 64)    c one of R, G, B; p of Y, U, V

By a standard's Kr and Kb (BT.601, BT.709) y = Kr r + Kg g + Kb b, and u and v are b - y and r - y, scaled to
a range; the weights, in 8192ths, undo that: in integers, so that no machine rounds otherwise. A product is
one operation on 16 bits (`simd.multiply_high`), of a sample in the upper byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline, jit
from .resize import BYTE_PERMUTE
from .simd import (
    add_saturated,
    get,
    interleave,
    load,
    multiply_high,
    pack_clipped,
    pick_bytes,
    put,
    splat,
    store,
    store_bytes,
)

#: Kr and Kb, by a standard's name.
STANDARDS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}

_MIDDLE, _ZERO = np.uint8(128), np.uint8(0)


def colour_weights(standard: str, full_range: bool) -> Any:
    """int32[6]: weight of Y; of V for R; of U and of V for G; of U for B; and what is added."""
    kr, kb = STANDARDS[standard]
    black, luma, chroma = (0, 255, 255) if full_range else (16, 219, 224)
    y, unit, kg = 8192 * 255 / luma, 8192 * 255 / chroma, 1 - kr - kb
    green = (-2 * (1 - k) * k / kg * unit for k in (kb, kr))
    weights = (y, 2 * (1 - kr) * unit, *green, 2 * (1 - kb) * unit)
    return np.array([*map(round, weights), round(y * (128 - black) / 128) + 32], np.int32)


def _pixel_orders() -> Any:
    """uint8[6 * 64]: of R, G, B, R, G, ... of 64 pixels, a vector at a time: which bytes of R and G, any in
    place of B; and which bytes of that and of B.
    """
    pixel, channel = np.divmod(np.arange(192).reshape(3, 64), 3)
    of_two = np.where(channel == 2, 0, pixel + 64 * channel)
    of_three = np.where(channel == 2, pixel + 64, np.arange(64))
    return np.stack([of_two, of_three], axis=1).astype(np.uint8).reshape(-1)


_ORDERS, _TWICE = _pixel_orders(), (np.arange(64) // 2).astype(np.uint8)


@inline
def _spread(weights: Any, at: Any) -> Any:
    """A weight in all lanes, of 16 bits."""
    return splat(np.uint16(get(weights, at)))


@inline
def _half(y: Any, u: Any, v: Any, w: Any) -> Any:
    """R, G and B of 32 pixels in 64ths, of lanes of 256 * (p - 128)."""
    luma = add_saturated(multiply_high(y, w[0]), w[5])
    green = add_saturated(luma, add_saturated(multiply_high(u, w[2]), multiply_high(v, w[3])))
    red, blue = add_saturated(luma, multiply_high(v, w[1])), add_saturated(luma, multiply_high(u, w[4]))
    return red, green, blue


@inline
def _product(weight: Any, p: Any) -> Any:
    """`multiply_high` of one sample, int32, less 128."""
    return weight * p + np.int32(64) >> np.int32(7)


@inline
def _clip8(total: Any) -> Any:
    return np.uint8(min(max(total >> np.int32(6), np.int32(0)), np.int32(255)))


@jit
def planes_to_rgb(
    planes: Any, y_at: int, u_at: int, v_at: int, pixels: int, weights: Any, image: Any, to: int
) -> None:
    """A row, to image[to : to + 3 * pixels], of planes[y_at ...] and of U and V, a value for two pixels each.

    planes : uint8, of which up to 63 bytes behind the last are read.  weights : `colour_weights`.
    """
    done, zero, middle, twice = 0, splat(_ZERO), splat(_MIDDLE), load(_TWICE, 0)
    if BYTE_PERMUTE:
        w = (
            _spread(weights, 0),
            _spread(weights, 1),
            _spread(weights, 2),
            _spread(weights, 3),
            _spread(weights, 4),
            _spread(weights, 5),
        )
        for i in range(0, pixels, 64):
            y, u, v = load(planes, y_at + i), load(planes, u_at + i // 2), load(planes, v_at + i // 2)
            y, u, v = y ^ middle, u ^ middle, v ^ middle
            u, v = pick_bytes(u, u, twice), pick_bytes(v, v, twice)
            low = _half(interleave(zero, y, 0), interleave(zero, u, 0), interleave(zero, v, 0), w)
            high = _half(interleave(zero, y, 1), interleave(zero, u, 1), interleave(zero, v, 1), w)
            red, green = pack_clipped(low[0], high[0], 6), pack_clipped(low[1], high[1], 6)
            blue = pack_clipped(low[2], high[2], 6)
            for part in range(3):
                two = pick_bytes(red, green, load(_ORDERS, part * 128))
                rgb = pick_bytes(two, blue, load(_ORDERS, part * 128 + 64))
                begin, size = 3 * i + part * 64, min(3 * pixels - 3 * i - part * 64, 64)
                if size == 64:
                    store(image, to + begin, rgb)
                elif size > 0:
                    store_bytes(image, to + begin, rgb, size)
        done = pixels
    for pixel in range(done, pixels):
        half, pair = np.int32(128), pixel // 2
        y = np.int32(get(planes, y_at + pixel)) - half
        u, v = np.int32(get(planes, u_at + pair)) - half, np.int32(get(planes, v_at + pair)) - half
        luma = _product(get(weights, 0), y) + get(weights, 5)
        green = luma + _product(get(weights, 2), u) + _product(get(weights, 3), v)
        put(image, to + 3 * pixel, _clip8(luma + _product(get(weights, 1), v)))
        put(image, to + 3 * pixel + 1, _clip8(green))
        put(image, to + 3 * pixel + 2, _clip8(luma + _product(get(weights, 4), u)))
