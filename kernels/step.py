"""The record that tells a kernel the geometry of its layer and where its arrays begin.

A plan is an array of these records. Numba reads their fields by name, so a kernel's arguments stay few
and one compiled driver (`frame.run`) can walk a whole network without returning to Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_GEOMETRY = (
    "h w cin "  # input: height, width, channels
    "ho wo cout "  # output
    "kh kw sh sw dh dw "  # kernel, stride, dilation
    "pt pl hp wp "  # padding above and left; padded input height and width
    "words "  # elements of an input pixel in the padded input: ceil(cin / 64) if binary, else cin
    "out_words "  # words of output channels of a pixel in a binary layer
    "lanes "  # elements kept of an output pixel: cout rounded up (binary: `channel_words`, float: to 32)
    "segments run "  # the window as `segments` contiguous runs of `run` elements of the padded input
    "groups"  # of a float convolution
)
_ROLE = (
    "kind macs "  # frame.Kind; multiply-accumulates of a whole frame
    "x x_stride x_mask "  # input tensor, elements a pixel, its change mask
    "y y_mask "  # output tensor (`lanes` elements a pixel) and its change mask
    "padded diff "  # the layer's last input, padded; where this frame's bits differ from it
    "weights weights_size bias "  # of an elementwise step: head.py; weights_size is 0 where there is none
    "starts "  # int64[ho * wo]: where each output pixel's window begins in the padded input
    "segment_at "  # int64[segments]: where each run begins, from the window's beginning
    "classes outside "  # zero padding (xnor.outside_tables), else classes is -1
    "limits inverted bits bits_words "  # threshold.py; bits_words is 0 where floats are wanted
    "planes sliced ones in_planes added parities flipped "  # sliced.py; planes is 0 where sums are kept
    "tile table table_size channel_step phases phase_step column_step "  # rows.py
    "origin place_step row_step nowhere "
    "set_limit base base_classes "  # most entries for which the sum of set rows is used; what it starts from
    "rows_limit "  # most flips for which the rows kernel is used
    "program program_size "  # elementwise.py
    "sources source_masks targets target_masks "  # int64 lists: masks of the tensors it reads, and stores
    "fused "  # an elementwise step: whether it runs with the convolution before it
    "band "  # output rows (binary) or pixels (float) a convolution computes before its fused program runs
    "average count_padding "  # pool.py
    "factor "  # layout.py
    "line mask"  # normalise.py; line is -1 where there is none, or a float convolution reads no bytes
)

#: One step of a plan. All fields int64; offsets count elements of the arena they index.
STEP = np.dtype([(name, np.int64) for name in f"{_GEOMETRY} {_ROLE}".split()])


def channel_words(cout: int) -> int:
    """Words of output channels kept of a binary layer's output pixel: 1, 2, 4, or a multiple of 8.

    So that a 512-bit vector holds whole pixels, or a pixel whole vectors.
    """
    words = -(-cout // 64)
    return 1 << (words - 1).bit_length() if words <= 8 else -(-words // 8) * 8


def geometry(
    shape: tuple[int, int, int],
    cout: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    *,
    binary: bool,
) -> Any:
    """A STEP record with the geometry fields set, for a window over an (H, W, C) input.

    The padded input is (hp, wp) pixels of `words` (binary) or `cin` (float) elements. A window whose taps
    touch horizontally (dilation 1) is one run a kernel row, otherwise one run a tap.
    """
    h, w, cin = shape
    top, bottom, left, right = padding
    step = np.zeros((), STEP)
    per_pixel = -(-cin // 64) if binary else cin
    touching = dilation[1] == 1 or kernel[1] == 1
    hp, wp = h + top + bottom, w + left + right
    values = dict(
        h=h, w=w, cin=cin, cout=cout,
        ho=(hp - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1,
        wo=(wp - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1,
        kh=kernel[0], kw=kernel[1], sh=stride[0], sw=stride[1], dh=dilation[0], dw=dilation[1],
        pt=top, pl=left, hp=hp, wp=wp,
        words=per_pixel,
        out_words=channel_words(cout) if binary else 0,
        lanes=64 * channel_words(cout) if binary else -(-cout // 32) * 32,
        segments=kernel[0] * (1 if touching else kernel[1]),
        run=per_pixel * (kernel[1] if touching else 1),
        groups=1,
    )  # fmt: skip
    for name, value in values.items():
        step[name] = value
    return step


def window_starts(step: Any) -> Any:
    """int64[ho * wo]: element of the padded input at which each output pixel's window begins."""
    rows = np.arange(step["ho"]) * step["sh"] * step["wp"]
    columns = np.arange(step["wo"]) * step["sw"]
    return ((rows[:, None] + columns[None, :]) * step["words"]).reshape(-1)


def segment_offsets(step: Any) -> Any:
    """int64[segments]: element at which each run begins, counted from the window's beginning."""
    per_row = int(step["segments"]) // int(step["kh"])
    rows = np.arange(step["kh"]) * step["dh"] * step["wp"]
    columns = np.arange(per_row) * step["dw"]
    return ((rows[:, None] + columns[None, :]) * step["words"]).reshape(-1)


def windows_holding(marked: Any, step: Any) -> Any:
    """bool[ho, wo] of bool[h, w]: the outputs that `window.list_windows` lists."""
    top, left = int(step["pt"]), int(step["pl"])
    below, right = int(step["hp"] - step["h"]) - top, int(step["wp"] - step["w"]) - left
    reach = [int(step["dh"] * (step["kh"] - 1)) + 1, int(step["dw"] * (step["kw"] - 1)) + 1]
    padded = np.pad(marked, ((top, below), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach)
    taps = windows[:: int(step["sh"]), :: int(step["sw"]), :: int(step["dh"]), :: int(step["dw"])]
    return taps.any(axis=(2, 3))
