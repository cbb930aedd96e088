"""From a raw frame to the network's input: luminance, resize and centre crop, bit-equal to Pillow's.

Columns are resized before rows, as Pillow did for every image up to version 12; 13 begins with the rows
of very tall ones, and rounds a few values to their neighbours there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import FrameError
from .kernels.resize import (
    PRECISION,
    column_blocks,
    luminance,
    mark_changed,
    resize_columns,
    resize_rows,
)
from .model import InputRule

Frame = npt.NDArray[np.uint8]

#: Above this share of changed blocks of 64 bytes, comparing a frame costs more than it saves: so many frames
#: are then computed without.
BUSY, UNWATCHED = 0.4, 15

#: Half the width of each filter, in output pixels.
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


class Preprocessor:
    """Greys, resizes and crops the frames of one video by an `InputRule`.

    Computes only what the crop keeps; and of a resized frame only what a change since the last one reaches.
    State: filter weights for the last frame size, the rows that were read, and buffers.
    """

    def __init__(self, rule: InputRule) -> None:
        self._rule = rule
        self._size = (0, 0)
        self._resize: _Resize | None = None
        self._kept = (slice(0), slice(0))
        self._grey = self._colours = np.empty(0, np.uint8)
        self._results = [np.empty((*rule.crop, rule.channels), np.uint8) for _ in range(2)]

    def __call__(self, frame: Frame) -> Frame:
        """uint8[H, W, 3] of any size and memory layout -> uint8[cropH, cropW, C], contiguous.

        C is the rule's `channels`. Where it is 1, the frame may also be uint8[H, W]: luminance already.
        Two result buffers alternate: a result stays valid until the call after the next one.
        Raises FrameError where the frame is anything else, or is too small for a crop without resize.
        """
        check_frame(frame, self._rule.channels)
        if frame.shape[:2] != self._size:
            self._prepare(*frame.shape[:2])
        self._results.reverse()
        result = self._results[0]
        kept = frame[self._kept]
        if self._rule.channels == 1:
            kept = self._luminance(kept)
        if self._resize is None:
            result[...] = kept
        else:
            self._resize(kept, self._results[1], result)
        return result

    @property
    def state_bytes(self) -> int:
        """Bytes of buffers."""
        arrays = (*self._results, self._grey, self._colours, *(self._resize.buffers if self._resize else ()))
        return sum(array.nbytes for array in arrays)

    def _luminance(self, frame: Frame) -> Frame:
        """uint8[h, w, 1] of uint8[h, w, 3] or uint8[h, w]."""
        if frame.ndim == 2:
            return frame[..., None]
        grey = self._grey[: frame.shape[0] * frame.shape[1]]
        luminance(_for_kernels(frame, self._colours[: frame.size]).reshape(-1), grey)
        return grey.reshape(*frame.shape[:2], 1)

    def _prepare(self, height: int, width: int) -> None:
        """Plan for frames of this size."""
        crop, short = self._rule.crop, min(height, width)
        target = short if (height, width) == crop else self._rule.resize or short
        resized = (height * target // short, width * target // short)
        if resized[0] < crop[0] or resized[1] < crop[1]:
            raise FrameError(
                f"frames of at least {crop[0]}x{crop[1]} (height x width)",
                f"{height}x{width}",
                "This network's input rule crops without resizing; enlarge the frames first.",
            )
        corner = ((resized[0] - crop[0]) // 2, (resized[1] - crop[1]) // 2)
        self._kept = (slice(corner[0], corner[0] + crop[0]), slice(corner[1], corner[1] + crop[1]))
        self._resize = None
        if target != short:
            rows, columns = (
                _taps(size, full, start, count, self._rule.interpolation)
                for size, full, start, count in zip((height, width), resized, corner, crop, strict=True)
            )
            self._kept = (rows.span, slice(width))
            self._resize = _Resize(rows, columns, width, self._rule.channels)
        if self._rule.channels == 1:
            self._grey = np.empty(height * width, np.uint8)
            self._colours = np.empty(3 * height * width, np.uint8)
        self._size = (height, width)


def check_frame(frame: Any, channels: int = 3) -> None:
    """Raise FrameError unless `frame` is a non-empty uint8[H, W, 3], or uint8[H, W] for a grey input."""
    expected = "a frame as uint8[H, W, 3]" + (" or uint8[H, W]" if channels == 1 else "")
    if not isinstance(frame, np.ndarray):
        raise FrameError(expected, type(frame).__name__, "Pass numpy.asarray(frame).")
    if frame.dtype != np.uint8:
        remedy = "Scale the values to 0..255 and convert: frame.astype(numpy.uint8)."
    elif (frame.ndim == 3 and frame.shape[2] == 3) or (channels == 1 and frame.ndim == 2):
        if frame.size:
            return
        remedy = "The frame has no pixels; check how it was cut or decoded."
    elif channels == 1 and frame.ndim == 3 and frame.shape[2] == 1:
        remedy = "Drop the last axis: frame[:, :, 0]."
    elif frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
        remedy = "Repeat the grey channel: numpy.repeat(frame.reshape(H, W, 1), 3, axis=2)."
    elif frame.ndim == 3 and frame.shape[2] == 4:
        remedy = "Drop the fourth channel: frame[:, :, :3]."
    elif frame.ndim == 3 and frame.shape[0] == 3:
        remedy = "Put the channels last: frame.transpose(1, 2, 0)."
    else:
        remedy = "Pass one RGB frame, channels last."
    raise FrameError(expected, f"{frame.dtype.name}{list(frame.shape)}", remedy)


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


def _bilinear(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _bicubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic with a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _for_kernels(frame: Frame, buffer: Frame) -> Frame:
    """The frame, or its copy in the buffer, of as many bytes: writable and contiguous.

    Always so: each other kind of array would compile the kernels once more.
    """
    if frame.flags.c_contiguous and frame.flags.writeable:
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

    def __call__(self, frame: Frame, last: Frame, result: Frame) -> None:
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
