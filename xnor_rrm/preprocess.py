"""From a raw frame to the network's input: luminance, resize, and centre crop or letterbox.

"bilinear" and "bicubic" are bit-equal to Pillow's. Columns are resized before rows, as Pillow did for every
image up to version 12; 13 begins with the rows of very tall ones, and rounds a few values to their
neighbours there. "area" is exact in integers (kernels/area.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .decoding import Placement
from .errors import FrameError
from .frames import Frame, Pixels, Yuv420, check_frame
from .kernels import area
from .kernels.colour import colour_weights
from .kernels.packed import Packed, dtypes, pack
from .kernels.resize import (
    PRECISION,
    column_blocks,
    luminance,
    mark_changed,
    resize_columns,
    resize_rows,
)
from .model import InputRule

#: Above this share of changed blocks of 64 bytes, comparing a frame costs more than it saves: so many frames
#: are then computed without.
BUSY, UNWATCHED = 0.4, 15

#: Half the width of each filter, in output pixels.
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


_BYTE = np.dtype(np.uint8)

#: What there is to average where a rule does not.
_NO_FRAME = np.empty((0, 0, 0), np.uint8)
_NO_AREAS = pack(
    area.Areas(
        np.zeros(len(area.Shape._fields), np.int64),
        *(np.empty(0, dtype) for dtype in dtypes(area.Areas)[1:]),
    )
)


class Preprocessor:
    """Greys, resizes and crops the frames of one video by an `InputRule`.

    Computes only what the crop keeps; and of a resized frame only what a change since the last one reaches.
    State: filter weights for the last frame size, the rows that were read, and buffers.
    """

    def __init__(self, rule: InputRule) -> None:
        self._rule = rule
        self._shape: tuple[int, ...] = (-1, -1)  # of the last frame, or its planes
        self._planes: tuple[str, bool] | None = None  # of the last frame: by which standard, of which range
        self.prepared = 0  #: how often a frame came whose shape or kind was not the last one's
        self._resize: _Resize | None = None
        self._average: _Average | None = None
        self._kept: tuple[slice, slice] | None = None
        self._filled = (slice(0), slice(0))
        self._grey = self._colours = np.empty(0, np.uint8)
        self._inner: list[Pixels] = []
        self._results = [np.empty((*rule.crop, rule.channels), np.uint8) for _ in range(2)]
        self._images = [result.reshape(-1) for result in self._results]
        self.placement = Placement.whole(rule.crop)

    def __call__(self, frame: Frame) -> Pixels:
        """uint8[H, W, 3] of any size and memory layout -> uint8[cropH, cropW, C], contiguous.

        C is the rule's `channels`. Where it is 1, the frame may also be uint8[H, W]: luminance already. Where
        the rule `takes_planes`, it may be a `Yuv420`.
        Two result buffers alternate: a result stays valid until the call after the next one.
        Raises FrameError where the frame is anything else, or is too small for a crop without resize.
        """
        area.average_areas(*self.begin(frame))
        return self._results[0]

    def begin(self, frame: Frame) -> tuple[Pixels, Pixels, int]:
        """`__call__` but for areas to be averaged; returns what `area.average_areas` takes for that.

        Between two frames little of Python stays in the caches and each operation is felt, so that a frame
        like the last one is checked no further.
        """
        if isinstance(frame, Yuv420):
            pixels, planes = frame.data, (frame.standard, frame.full_range)
        else:
            pixels, planes = frame, None
        known = type(pixels) is np.ndarray and pixels.dtype is _BYTE and planes == self._planes
        if not known or pixels.shape != self._shape:
            check_frame(frame, self._rule)
            if pixels.shape != self._shape or planes != self._planes:
                self.prepared += 1
            if pixels.shape[:2] != self._shape[:2] or planes != self._planes:
                self._shape = (-1, -1)  # should that fail
                self._prepare(frame)
            self._shape, self._planes = pixels.shape, planes
        self._results.reverse()
        self._images.reverse()
        kept = pixels if self._kept is None else pixels[self._kept]
        if planes:
            kept = kept[..., None]
        elif self._rule.channels == 1:
            kept = self._luminance(kept)
        if self._average:
            return _for_kernels(kept, self._average.copy), self._images[0], self._average.address
        result = self._results[0]
        if self._resize is None:
            result[self._filled] = kept
        elif self._inner:
            self._inner.reverse()
            self._resize(kept, self._inner[1], self._inner[0])
            result[self._filled] = self._inner[0]
        else:
            self._resize(kept, self._results[1], result)
        return _NO_FRAME, self._images[0], _NO_AREAS.address

    @property
    def state_bytes(self) -> int:
        """Bytes of buffers."""
        own = (*self._results, self._grey, self._colours, *self._inner)
        filter_ = self._average or self._resize
        arrays = (*own, *(filter_.buffers if filter_ else ()))
        return sum(array.nbytes for array in arrays)

    def _luminance(self, frame: Pixels) -> Pixels:
        """uint8[h, w, 1] of uint8[h, w, 3] or uint8[h, w]."""
        if frame.ndim == 2:
            return frame[..., None]
        grey = self._grey[: frame.shape[0] * frame.shape[1]]
        luminance(_for_kernels(frame, self._colours[: frame.size]).reshape(-1), grey)
        return grey.reshape(*frame.shape[:2], 1)

    def _prepare(self, frame: Frame) -> None:
        """Plan for frames like this one."""
        rule, crop, (height, width) = self._rule, self._rule.crop, frame.shape[:2]
        resized = self._resized(height, width)
        if rule.fit == "crop" and (resized[0] < crop[0] or resized[1] < crop[1]):
            raise FrameError(
                f"frames of at least {crop[0]}x{crop[1]} (height x width)",
                f"{height}x{width}",
                "This network's input rule crops without resizing; enlarge the frames first.",
            )
        # Of the resized frame `shown` rows and columns are seen, from `corner` on, and stand at `place`.
        shown = tuple(map(min, resized, crop))
        corner = tuple((a - b) // 2 for a, b in zip(resized, shown, strict=True))
        place = tuple((a - b) // 2 for a, b in zip(crop, shown, strict=True))
        kept = _slices(corner, shown)
        self._filled = _slices(place, shown)
        self._resize, self._average, self._inner = None, None, []
        part = _Part(place, crop[1], rule.channels)
        if isinstance(frame, Yuv420):
            self._average, kept = _Average.of_planes(frame, resized, part), _slices((0, 0), (height, width))
        elif resized != (height, width):
            taps = _area_taps if rule.interpolation == "area" else _taps
            rows, columns = (
                taps(size, full, start, count, rule.interpolation)
                for size, full, start, count in zip((height, width), resized, corner, shown, strict=True)
            )
            kept = (rows.span, slice(0, width))
            if rule.interpolation == "area":
                self._average = _Average.of_pixels(rows, columns, width, rule.channels, part)
            else:
                self._resize = _Resize(rows, columns, width, rule.channels)
        if shown != crop:
            fill = np.clip(np.round(rule.mean), 0, 255).astype(np.uint8)
            for result in self._results:
                result[...] = fill
            if self._resize:
                self._inner = [np.empty((*shown, rule.channels), np.uint8) for _ in range(2)]
        if rule.channels == 1:
            self._grey = np.empty(height * width, np.uint8)
            self._colours = np.empty(3 * height * width, np.uint8)
        self._kept = None if kept == (slice(0, height), slice(0, width)) else kept
        scale_y, scale_x = height / resized[0], width / resized[1]
        self.placement = Placement(
            scale_x, scale_y, place[1] - corner[1], place[0] - corner[0], height, width
        )

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Size to which a frame is brought before it is cropped or put in the middle."""
        rule, crop, short = self._rule, self._rule.crop, min(height, width)
        if (height, width) == crop:
            return crop
        if rule.fit == "crop":
            target = rule.resize or short
            return height * target // short, width * target // short
        if height * crop[1] >= width * crop[0]:
            return crop[0], max(1, (2 * width * crop[0] + height) // (2 * height))
        return max(1, (2 * height * crop[1] + width) // (2 * width)), crop[1]


def _slices(begin: tuple[int, ...], count: tuple[int, ...]) -> tuple[slice, slice]:
    rows, columns = (slice(first, first + n) for first, n in zip(begin, count, strict=True))
    return rows, columns


@dataclass(frozen=True)
class _Part:
    """The part of an image that a frame becomes.  place : where it begins, row and column, in pixels."""

    place: tuple[int, ...]
    image_width: int
    channels: int

    @property
    def top(self) -> int:
        return self.place[0]

    @property
    def pitch(self) -> int:
        """Bytes of a row of the image."""
        return self.image_width * self.channels

    @property
    def begin(self) -> int:
        """The part's first byte."""
        return self.top * self.pitch + self.place[1] * self.channels


@dataclass(frozen=True, eq=False)
class _Taps:
    """Filter of one axis: output i reads inputs first[i] + t with weights[i, t].

    first : int64[n].  weights : int32[n, taps], PRECISION fraction bits.
    """

    first: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int32]

    @property
    def span(self) -> slice:
        """The inputs that are read at all."""
        return slice(int(self.first.min()), int(self.first.max()) + self.weights.shape[1])


def _taps(size: int, full: int, start: int, count: int, interpolation: str) -> _Taps:
    """Pillow's filter from `size` to `full` pixels, for outputs start .. start + count - 1.

    float64, each operation in Pillow's order, so that the rounded weights are the same.
    """
    scale = size / full
    stretch = max(scale, 1.0)  # shrinking widens the filter
    support = _SUPPORT[interpolation] * stretch
    centre = (np.arange(start, start + count) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), size)

    # Taps in a multiple of 8 for the kernel; windows that would leave the image move back inside it, and
    # the weights outside [first, last) are zero.
    taps = min(-(-int((last - first).max()) // 8) * 8, size)
    begin = np.minimum(first, size - taps)
    position = begin[:, None] + np.arange(taps)
    x = np.abs((position - centre[:, None] + 0.5) * (1.0 / stretch))
    inside = (position >= first[:, None]) & (position < last[:, None])
    weights = np.where(inside, _bilinear(x) if interpolation == "bilinear" else _bicubic(x), 0.0)
    total = np.cumsum(weights, axis=1)[:, -1:]  # left to right: numpy's sum would add pairwise
    scaled = weights / np.where(total == 0.0, 1.0, total) * (1 << PRECISION)
    return _Taps(begin, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32))


def _area_taps(size: int, full: int, start: int, count: int, _: str) -> _Taps:
    """As `_taps`, for "area": weights in 256ths, 256 in all. Integers only: exact."""
    output = np.arange(start, start + count)
    if size >= full:  # output i covers i * size / full and as much again; all in parts of 1 / full
        part, begin, length = full, output * size, size
        first, last = begin // full, -(-(begin + size) // full)
    else:  # its middle, and that of pixel 0, lie between two pixels; all in parts of 1 / (2 * full)
        part = length = 2 * full
        begin = ((2 * output + 1) * size - full).clip(0, (size - 1) * part)
        first = begin // part
        last = np.minimum(first + 2, size)
    taps = int((last - first).max())
    first = np.minimum(first, size - taps)
    edges = (first[:, None] + np.arange(taps + 1)) * part
    before = (edges - begin[:, None]).clip(0, length)  # what of its weight lies before each edge
    weights = np.diff((512 * before + length) // (2 * length), axis=1)
    return _Taps(first, weights.astype(np.int32))


def _whole(size: int, full: int) -> _Taps:
    """`_area_taps` of all outputs."""
    return _area_taps(size, full, 0, full, "area")


def _bilinear(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _bicubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic with a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _for_kernels(frame: Pixels, buffer: Pixels) -> Pixels:
    """The frame, or its copy in the buffer, of as many bytes: writable and contiguous ("carray").

    Always so: each other kind of array would compile the kernels once more.
    """
    if frame.flags.carray:
        return frame
    copy = buffer.reshape(frame.shape)
    np.copyto(copy, frame)
    return copy


class _Resize:
    """Both passes for frames of one size; what did not change stays as it was.

    After a frame that changed for the most part some are not compared at all, but computed.

    buffers : all arrays but the weights.
    """

    def __init__(self, rows: _Taps, columns: _Taps, width: int, channels: int) -> None:
        self._row_first, self._row_weights = rows.first - rows.span.start, rows.weights
        self._column_first, self._column_weights = columns.first * channels, columns.weights
        self._channels = channels
        self._blocks = column_blocks(self._column_first, columns.weights)
        height, size, strip = (
            rows.span.stop - rows.span.start,
            channels * width,
            channels * len(columns.first),
        )
        self._copy = np.empty(height * size, np.uint8)
        self._last, self._marks = (
            np.empty((height, size), np.uint8),
            np.empty((height, -(-size // 64)), np.uint8),
        )
        self._strip = np.empty((height, strip), np.uint8)
        self._strip_marks = np.empty((height, -(-strip // 64)), np.uint8)
        self._sums = np.empty(strip, np.int32)
        self._known, self._unwatched = False, 0
        self.buffers = (self._copy, self._last, self._marks, self._strip, self._strip_marks, self._sums)

    def __call__(self, frame: Pixels, last: Pixels, result: Pixels) -> None:
        """frame : the rows that are read, uint8[rows, width, channels].  last : the result before it."""
        flat = _for_kernels(frame, self._copy).reshape(self._last.shape)
        known, self._known = self._known, False  # an exception in between leaves it so
        watch = not self._unwatched
        if watch:
            marked = mark_changed(flat, self._last, not known, self._marks)
            if known and marked > BUSY * self._marks.size:
                self._unwatched = UNWATCHED
        else:
            self._unwatched -= 1
            self._marks.fill(1)
        strip, out = (self._strip, self._strip_marks), result.reshape(len(result), -1)
        columns = self._column_first, self._column_weights, self._blocks
        resize_columns(flat, *columns, self._marks, self._channels, *strip)
        np.copyto(result, last)
        resize_rows(self._strip, self._row_first, self._row_weights, self._strip_marks, self._sums, out)
        self._known = watch and not self._unwatched


@dataclass(frozen=True, eq=False)
class _Average:
    """What "area" needs for frames of one size, of which a part of an image is made.

    areas : the frame's first.  copy : room for what is read of a frame that kernels cannot take as it is.
    """

    areas: tuple[Packed[area.Areas], ...]
    copy: Pixels

    @property
    def address(self) -> int:
        return self.areas[0].address

    @property
    def buffers(self) -> tuple[Pixels, ...]:
        return (self.copy, *(each.memory for each in self.areas))

    @classmethod
    def of_pixels(cls, rows: _Taps, columns: _Taps, width: int, channels: int, part: _Part) -> _Average:
        """The frame is the rows that are read, uint8[rows, width, channels]."""
        areas = _areas(rows, columns, width, channels, part, first_row=rows.span.start)
        return cls((areas,), np.empty((rows.span.stop - rows.span.start) * width * channels, np.uint8))

    @classmethod
    def of_planes(cls, frame: Yuv420, resized: tuple[int, ...], part: _Part) -> _Average:
        """The frame is all of a `Yuv420`, resized to so many rows and columns; U and V to half as many."""
        (height, width, _), (rows, columns) = frame.shape, resized
        filters = (_whole(height // 2, (rows + 1) // 2), _whole(width // 2, (columns + 1) // 2))
        u, v = (_areas(*filters, width // 2, 1, part, at=height * width * n // 4) for n in (4, 5))
        filters = (_whole(height, rows), _whole(width, columns))
        weights = colour_weights(frame.standard, frame.full_range)
        y = _areas(*filters, width, 1, part, u=u.address, v=v.address, weights=weights)
        return cls((y, u, v), np.empty(frame.data.size, np.uint8))


def _areas(
    rows: _Taps,
    columns: _Taps,
    width: int,
    channels: int,
    part: _Part,
    *,
    first_row: int = 0,
    at: int = 0,
    u: int = 0,
    v: int = 0,
    weights: npt.NDArray[np.int32] | None = None,
) -> Packed[area.Areas]:
    """Packed, as the kernels take it.  first_row : of those of the frame, the first in memory."""
    vertical = area.paired(rows.first - first_row, rows.weights)
    horizontal = area.paired(columns.first, columns.weights)
    wide, base, order, spread = area.column_blocks(*horizontal, channels)
    size = width * channels
    shape = area.Shape(
        at=at,
        size=size,
        channels=channels,
        top=part.top,
        begin=part.begin,
        pitch=part.pitch,
        rows=len(rows.first),
        columns=len(columns.first),
        row_pairs=vertical[1].shape[1],
        column_pairs=horizontal[1].shape[1],
        wide=wide,
        blocks=len(base),
        u=u,
        v=v,
    )
    strip = np.zeros(area.strip_size(size), np.uint8)
    planes = np.zeros(area.planes_size(len(columns.first)) if u else 0, np.uint8)
    colours = np.zeros(0, np.int32) if weights is None else weights
    tables = (*vertical, *horizontal, base, order, spread)
    return pack(area.Areas(np.array(shape), *tables, strip, planes, colours))
