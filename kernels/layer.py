"""One binary layer by itself, and the registry of kernels that compute it: for tests and benchmarks.

The engine runs the same kernels from a plan (frame.py); here each has its own arrays and can be called
alone. `VARIANTS` is the one list of kernels: a new one is tested and timed by adding it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import listing, row_table, rows, set_rows, sliced, xnor
from .bitpack import diff_into_padded
from .simd import aligned
from .step import STEP, geometry, segment_offsets, window_starts


class BinaryLayer:
    """Weights, geometry and state of a binary convolution.

    weight : uint64[Cout, kH, kW, Cw].  shape : (H, W, Cin) of the input.  padding : top, bottom, left, right.
    `load` takes a packed frame; a variant then brings `mismatches` up to date, or the bit planes with the
    signs of the sums (0 counts as +1); `dots` reads the result.
    """

    def __init__(
        self,
        weight: Any,
        shape: tuple[int, int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        pad_value: int = 0,
    ) -> None:
        cout, kernel, channels = weight.shape[0], weight.shape[1:3], shape[2]
        step = geometry(shape, cout, kernel, stride, padding, dilation, binary=True)
        step["tile"] = row_table.tile_pixels(int(step["out_words"]), dilation[1] == 1 or kernel[1] == 1)
        self.table = row_table.build_table(weight, channels, step)
        self.weights = xnor.pack_weights(weight).reshape(-1)
        self.classes, self.outside, self.valid = xnor.outside_tables(weight, step)
        self.zero_padded = pad_value == 0
        if not self.zero_padded:
            self.valid[:] = kernel[0] * kernel[1] * channels

        self.outputs = int(step["ho"] * step["wo"])
        padded = int(step["hp"] * step["wp"] * step["words"])
        self.last, self.diff = aligned(padded + 8, np.uint64), aligned(padded + 8, np.uint64)
        if pad_value == 1:
            self.last[:padded].reshape(-1, int(step["words"]))[:] = padding_word_mask(channels)
        self.mismatches = aligned(self.outputs * int(step["lanes"]) + 64, np.uint16)
        self.changed = aligned(self.outputs + 8, np.uint8)[: self.outputs]  # marks are stored by eights
        self.starts, self.segment_at = window_starts(step), segment_offsets(step)
        self.pixels = np.arange(self.outputs)
        bits = shape[0] * shape[1] * channels
        self.lists = listing.flip_lists(bits, step)
        self.counts = aligned(int(step["wo"]) + 16, np.int64)
        self.flips = 0
        self.base = set_rows.base_of_sets(weight, step, pad_value).reshape(-1)
        self.sums = aligned(self.outputs * 112, np.uint64)
        self.sets = listing.set_lists(step)
        step["planes"] = sliced.count_planes(kernel[0] * kernel[1] * channels)
        self._make_planes(weight, step)
        self.step = np.array([step], STEP)[0]

    def _make_planes(self, weight: Any, step: Any) -> None:
        """State and tables of sliced.py. sum >= 0: no more mismatches than half of the bits inside."""
        lanes = int(step["lanes"])
        inside = np.zeros(len(self.outside), np.int64)
        inside[self.classes] = self.valid
        self.limits: Any = np.zeros((len(inside), lanes), np.uint16)
        self.limits[:, : len(weight)] = inside[:, None] // 2 + 1
        if self.zero_padded:
            self.limits += self.outside
        self.ones = np.zeros(lanes, np.int64)
        self.ones[: len(weight)] = np.bitwise_count(weight).sum(axis=(1, 2, 3), dtype=np.int64)
        not_inverted = np.zeros(int(step["out_words"]), np.uint64)
        tables = sliced.sign_tables(weight, self.limits, not_inverted, step)
        self.added, self.parities, self.inverted = (table.reshape(-1) for table in tables)
        if self.zero_padded:  # the sums here are those inside the image alone
            self.added -= self.outside.reshape(-1)
        self.planes, self.set_bits = (aligned(size + 8, np.uint64) for size in sliced.state_sizes(step))
        self.signs = aligned(self.outputs * int(step["out_words"]) + 8, np.uint64)
        self.halves = aligned(512, np.uint16)
        self.in_planes = False

    def load(self, bits: Any) -> None:
        """Make `bits`, uint64[H, W, Cw], the current frame, and note what flipped since the last one."""
        self.flips = diff_into_padded(bits.reshape(-1), self.step, self.last, self.diff)

    def dots(self) -> Any:
        """int64[Ho, Wo, Cout]: sums of the +-1 products over the window."""
        s = self.step
        counts = self._counts_in_planes() if self.in_planes else self.mismatches[: self.outputs * s["lanes"]]
        counts = counts.reshape(self.outputs, -1)[:, : s["cout"]]
        dots = self.valid[:, None].astype(np.int64) - 2 * counts.astype(np.int64)
        return dots.reshape(int(s["ho"]), int(s["wo"]), -1)

    def _counts_in_planes(self) -> Any:
        """int64[ho * wo, lanes]: mismatches = N + W - 2 A, A = T + (W + 1 - limit) // 2.

        T is kept modulo 2^planes; it is T - N // 2 that lies in the middle of these.
        """
        s = self.step
        ho, wo, tile, lanes, planes = (int(s[name]) for name in ("ho", "wo", "tile", "lanes", "planes"))
        tiles, vectors = -(-wo // tile), max(1, lanes // 512)
        state = self.planes[: sliced.state_sizes(s)[0]].reshape(ho, tiles, vectors, planes + 1, 8)[
            ..., :-1, :
        ]
        bits = np.unpackbits(np.ascontiguousarray(state).view(np.uint8), axis=-1, bitorder="little")
        above = np.einsum("...pl,p->...l", bits.astype(np.int64), 1 << np.arange(planes))
        above = above[..., : tile * min(lanes, 512)].reshape(ho, tiles * tile, lanes)[:, :wo]
        above = above.reshape(self.outputs, lanes)
        set_bits = self.set_bits[: ho * (wo + 8)].reshape(ho, -1)[:, :wo].reshape(-1, 1).astype(np.int64)
        middle = 1 << planes - 1
        above = (above - set_bits // 2 + middle) % (2 * middle) - middle + set_bits // 2
        classes = self.classes if self.zero_padded else np.zeros_like(self.classes)
        agreeing = above + (self.ones + 1 - self.limits.astype(np.int64)[classes]) // 2
        outside = self.outside.astype(np.int64)[classes] if self.zero_padded else 0
        return set_bits + self.ones - 2 * agreeing - outside


def padding_word_mask(channels: int) -> Any:
    """uint64[ceil(channels / 64)]: a pixel whose every channel is +1."""
    mask = np.full(-(-channels // 64), ~np.uint64(0), np.uint64)
    if channels % 64:
        mask[-1] = np.uint64((1 << channels % 64) - 1)
    return mask


def _xnor(layer: BinaryLayer) -> None:
    x = layer
    x.in_planes = False
    listed = (x.pixels, x.pixels, x.outputs)
    xnor.conv_xnor(x.last, x.weights, x.step, x.starts, x.segment_at, *listed, x.mismatches)
    if x.zero_padded:
        xnor.subtract_outside(x.mismatches, x.step, x.classes, x.outside.reshape(-1), *listed)


def _xnor_update(layer: BinaryLayer) -> None:
    x = layer
    xnor.conv_xnor_update(
        x.last, x.diff, x.weights, x.step, x.starts, x.segment_at, x.pixels, x.outputs, x.mismatches
    )


def _rows(layer: BinaryLayer) -> None:
    x = layer
    risen, fallen, starts, scratch, *places = x.lists
    listing.list_flips(x.diff, x.last, x.step, risen, fallen, starts, scratch)
    rows.read_ahead(x.table, x.step, starts, scratch)
    rows.conv_rows(
        risen, fallen, starts, x.table, x.step, 0, int(x.step["ho"]),
        *places, x.counts, x.mismatches, x.changed,
    )  # fmt: skip


def _rows_sliced(layer: BinaryLayer) -> None:
    x = layer
    classes = x.classes if x.zero_padded else x.classes[:0]
    if not x.in_planes:
        sliced.slice_sums(
            x.mismatches, x.step, x.added, x.parities, classes, x.last, x.diff, x.starts, x.segment_at,
            x.halves, x.planes, x.set_bits,
        )  # fmt: skip
        x.in_planes = True
    risen, fallen, starts, scratch, *places = x.lists
    listing.list_flips(x.diff, x.last, x.step, risen, fallen, starts, scratch)
    rows.read_ahead(x.table, x.step, starts, scratch)
    rows.conv_rows_to_bits(
        risen, fallen, starts, x.table, x.step, 0, int(x.step["ho"]),
        *places, x.counts, x.planes, x.set_bits, x.inverted, x.signs, x.changed,
    )  # fmt: skip


def _set_rows(layer: BinaryLayer) -> None:
    x = layer
    x.in_planes = False
    listed = (x.pixels, x.pixels, x.outputs)
    listing.list_sets(x.last, x.step, *x.sets)
    lists, where = (*x.sets, x.table, x.base, x.classes), (x.starts, *listed)
    set_rows.conv_set_rows(*lists, x.step, *where, x.sums, x.mismatches)
    if x.zero_padded:
        xnor.subtract_outside(x.mismatches, x.step, x.classes, x.outside.reshape(-1), *listed)


@dataclass(frozen=True)
class Variant:
    """A way to bring a `BinaryLayer` up to date with its current frame.

    cached : needs `mismatches` of the frame before (any variant leaves them); else computes from nothing.
    takes : whether it can compute a layer of such a STEP.
    """

    run: Callable[[BinaryLayer], None]
    cached: bool
    takes: Callable[[Any], bool] = lambda step: True


#: Every kernel of a binary convolution, by name. The first dense and the first cached one are the references.
VARIANTS: dict[str, Variant] = {
    "xnor": Variant(_xnor, cached=False),
    "xnor_update": Variant(_xnor_update, cached=True),
    "set_rows": Variant(_set_rows, cached=False, takes=set_rows.can_sum_sets),
    "rows": Variant(_rows, cached=True),
    "rows_sliced": Variant(_rows_sliced, cached=True, takes=sliced.can_slice),
}
