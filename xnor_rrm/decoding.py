"""From a network's maps to answers about a frame: boxes of objects, or the key points of a person.

A model carries one of these decodings, or none if it is a classifier; a stream applies it. What they make of
the same maps is the same on every frame: float32 and float64 operations in a fixed order, ties to the first
(kernels/peaks.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import ModelError

Array = npt.NDArray[np.float32]
Task = Literal["classification", "detection", "pose"]


class Placement(NamedTuple):
    """Where the network's input lies in a frame: frame x = (input x - left) * scale_x, and so for y.

    Pixels have their corners at whole numbers.  height, width : of the frame.
    """

    scale_x: float
    scale_y: float
    left: float
    top: float
    height: int
    width: int

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Placement:
        """Of a frame, (height, width), that is the input itself."""
        return cls(1.0, 1.0, 0.0, 0.0, *size)


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects in a frame, the surest first.

    boxes : float32[N, 4], left, top, right, bottom in pixels of the frame.  scores : float32[N], 0..1.
    classes : int64[N], places in `model.labels`.
    """

    boxes: Array
    scores: Array
    classes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class KeyPoints:
    """The key points of one person, in the order of `model.labels`.

    points : float32[K, 2], x, y in pixels of the frame.  scores : float32[K], the heights of their peaks,
    0..1.  visible : bool[K], where the score reaches the decoding's threshold.
    """

    points: Array
    scores: Array
    visible: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class BoxDecoding:
    """Maps of C + 4 channels, of C classes: a logit each, then the logarithms of four distances.

    An object is where a logit is the largest of its class within 3x3 cells. Its box lies round the middle
    of that cell, exp(d) cells to the left, top, right and bottom, d held between -4 and 4, and 0 if it is no
    number (CenterNet's and TTFNet's head; Liu et al., 2020).

    cell : side of a cell in pixels of the input.  split : a place of the maps has the channels of
        split x split cells, row by row.
    threshold : least score; the score is the logit's sigmoid.
    overlap : a box is dropped that shares more than this with a surer one of its class, in parts of their
        union.  most : boxes kept of a frame.
    """

    cell: int
    threshold: float = 0.3
    overlap: float = 0.5
    most: int = 100
    split: int = 1

    task: ClassVar[Task] = "detection"

    def __post_init__(self) -> None:
        _check_cells(self.cell, self.split)
        if not (0 < self.threshold < 1 and 0 < self.overlap <= 1 and self.most >= 1):
            raise ModelError("threshold in (0, 1), overlap in (0, 1], most of at least 1", f"{self}")

    def labels_of(self, channels: int) -> int:
        """How many classes maps of so many channels tell of; raises ModelError where they are none."""
        channels = _channels_of_cells(channels, self.split)
        if channels < 5:
            raise ModelError("at least 5 channels as the output of a detector", str(channels))
        return channels - 4

    def decode(self, maps: Array, placement: Placement) -> Detections:
        """maps : float32[h, w, C + 4], before they are split.  O(h w C), and O(N ** 2) of the peaks."""
        return self.decoder(maps.shape, placement)(maps)

    def decoder(self, shape: tuple[int, ...], placement: Placement) -> Callable[[Array], Detections]:
        """`decode` for maps of one shape and frames of one size: a stream makes it once."""
        from .kernels.peaks import find_boxes  # loads Numba, which a model alone does without

        limit = np.float32(math.log(self.threshold / (1 - self.threshold)))
        most = min(self.most, math.prod(shape))
        sizes = self.split, self.labels_of(shape[2]), float(self.cell), limit, self.overlap, most
        place = tuple(map(float, placement))
        return lambda maps: Detections(*find_boxes(np.ascontiguousarray(maps), *sizes, place))


@dataclass(frozen=True)
class PointDecoding:
    """Maps of one channel a key point, high where it is (SimpleBaseline; Xiao et al., 2018).

    A point is where its map is highest, moved on each axis to the top of the parabola through that cell and
    its two neighbours, by half a cell at most; at an edge it is not moved.

    cell : side of a cell in pixels of the input.  split : a place of the maps has the channels of
        split x split cells, row by row.
    threshold : least height of a visible point.
    bones : pairs of points that a drawing joins.
    """

    cell: int
    threshold: float = 0.2
    bones: tuple[tuple[int, int], ...] = ()
    split: int = 1

    task: ClassVar[Task] = "pose"

    def __post_init__(self) -> None:
        _check_cells(self.cell, self.split)
        if not 0 < self.threshold < 1:
            raise ModelError("a threshold in (0, 1)", str(self.threshold))

    def labels_of(self, channels: int) -> int:
        """How many points maps of so many channels tell of; raises ModelError where a bone joins others."""
        channels = _channels_of_cells(channels, self.split)
        if not all(0 <= point < channels for bone in self.bones for point in bone):
            raise ModelError(f"bones between points 0 to {channels - 1}", str(self.bones))
        return channels

    def decode(self, maps: Array, placement: Placement) -> KeyPoints:
        """maps : float32[h, w, K], before they are split.  O(h w K)."""
        return self.decoder(maps.shape, placement)(maps)

    def decoder(self, shape: tuple[int, ...], placement: Placement) -> Callable[[Array], KeyPoints]:
        """As `BoxDecoding.decoder`."""
        from .kernels.peaks import find_points  # as above

        sizes = self.split, self.labels_of(shape[2]), float(self.cell)
        place, threshold = tuple(map(float, placement)), np.float32(self.threshold)

        def decode(maps: Array) -> KeyPoints:
            points, scores = find_points(np.ascontiguousarray(maps), *sizes, place)
            return KeyPoints(points, scores, scores >= threshold)

        return decode


Decoding = BoxDecoding | PointDecoding
Answer = Array | Detections | KeyPoints

#: Every kind of decoding, by the name used in model files.
DECODING_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (BoxDecoding, PointDecoding)}


def _check_cells(cell: int, split: int) -> None:
    if cell < 1 or split < 1:
        raise ModelError("cells of at least 1 pixel, split by at least 1", f"cell {cell}, split {split}")


def _channels_of_cells(channels: int, split: int) -> int:
    if channels % split**2:
        raise ModelError(f"channels of {split}x{split} cells", str(channels))
    return channels // split**2
