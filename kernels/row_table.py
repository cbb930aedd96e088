"""Row tables: where the rows kernels find the weights that one input bit meets.

Lanes. With W words of output channels a pixel, a vector holds T = 8 / W neighbouring pixels (W = 1, 2,
4), or 8 words of one pixel (W a multiple of 8). One load must place a bit's taps on the T pixels that see
it: in the table, a channel's row holds the taps in descending order between zeros,

    | 0 ... 0 | tap q_max | ... | tap 1 | tap 0 | 0 ... 0 |       (W words a tap)

so that moving the load by one tap moves the bit by one pixel. With stride s there is one such row for
each phase x % s, of the taps phase, phase + s, ... A bit's place is (its own entry, which contains x)
plus (a shift of the kernel row and the tile), so bits are listed once a frame and those under one
window row are one contiguous run of the list.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .simd import aligned


def tile_pixels(out_words: int, touching: bool) -> int:
    """T: output pixels of a vector; 1 where a dilated window has to be read tap by tap."""
    return max(1, 8 // out_words) if touching else 1


def build_table(weight: Any, channels: int, step: Any) -> Any:
    """Row table of a layer, flat, with rows of zeros; see the module's text.

    weight : uint64[Cout, kH, kW, Cw].  step : geometry with `tile` set; the fields by which a row is found
    are set here. The row of input (y, x, c) for output pixel (oy, ox), y in window row ky, begins at

        c * channel_step + x % phases * phase_step + x // phases * column_step      (the flip's entry)
        + origin + ky * row_step + ox * place_step                                  (the tile's shift)

    T > 1 : uint64[kH, Cin, stride, length, W], closed by zeros. Lane p of a load at entry e reads entry
    e + p, so tap q of phase r (column r + q * stride of the window) stands at entry length - T - q.
    T = 1 : uint64[kH, kW, Cin + 1, W], a column's last row zero: all rows of a tap lie together. Behind each
    tap of a dilated window the shift falls by (dilation - 1) * column_step: columns left out have no rows.
    """
    cout, kh, kw, _ = weight.shape
    stride, dilation, tile, out_words = (int(step[name]) for name in ("sw", "dw", "tile", "out_words"))
    channel = np.arange(channels)
    bits = weight[..., channel // 64] >> (channel % 64).astype(np.uint64) & np.uint64(1)
    rows = np.zeros((kh, kw, channels, out_words * 64), np.uint8)
    rows[..., :cout] = bits.transpose(1, 2, 3, 0)
    packed = np.packbits(rows, axis=-1, bitorder="little").view(np.uint64)

    if tile > 1:
        reach = (kw - 1) * dilation + 1
        length = 2 * tile + -(-reach // stride) - 2
        body = kh * channels * stride * length * out_words
        flat = aligned(body + out_words + 8, np.uint64)
        table = flat[:body].reshape(kh, channels, stride, length, out_words)
        for kx in range(kw):
            q, phase = divmod(kx * dilation, stride)
            table[:, :, phase, length - tile - q] = packed[:, kx]
        found_by = dict(
            channel_step=stride * length * out_words, phases=stride, phase_step=length * out_words,
            column_step=-out_words, origin=(length - tile) * out_words, place_step=out_words,
            row_step=channels * stride * length * out_words, nowhere=body,
        )  # fmt: skip
    else:
        column = (channels + 1) * out_words
        flat = aligned(kh * kw * column + 8, np.uint64)
        flat[:-8].reshape(kh, kw, channels + 1, out_words)[:, :, :channels] = packed
        found_by = dict(
            channel_step=out_words, phases=1, column_step=column, place_step=-stride * column,
            row_step=kw * column, nowhere=channels * out_words,
        )  # fmt: skip
    for name, value in (found_by | {"table_size": len(flat)}).items():
        step[name] = value
    return flat
