"""Peaks in a network's last maps: the boxes and the key points that xnor_rrm.decoding describes.

Maps are float32[h, w, split ** 2 * channels]: a place has the channels of each of the split x split cells it
stands for, row by row. As array operations the same takes 0.15 ms, a quarter of what a cached detector takes
for all of a frame; here 0.03, with what Python does.

placement : a xnor_rrm.decoding.Placement as a tuple of floats.
"""

from __future__ import annotations

from math import exp, isnan
from typing import Any

import numpy as np

from .jit import inline, jit


@inline
def _at(size: Any, y: Any, x: Any) -> Any:
    """Where in the flat maps the channels of cell (y, x) begin.  size : width in places, split, channels."""
    width, split, channels = size
    place_y, place_x = y // split, x // split
    inner = (y - place_y * split) * split + x - place_x * split
    return ((place_y * width + place_x) * split * split + inner) * channels


@inline
def _held(value: Any, low: Any, high: Any) -> Any:
    return min(max(value, low), high)


@inline
def _to_frame(x: Any, y: Any, placement: Any) -> Any:
    """A point of the input, in the frame and not beyond its edges."""
    scale_x, scale_y, left, top, height, width = placement
    return _held((x - left) * scale_x, 0.0, width), _held((y - top) * scale_y, 0.0, height)


@jit
def _is_peak(maps: Any, size: Any, height: int, width: int, y: int, x: int, label: int, logit: Any) -> bool:
    """Whether no neighbour is larger, or no number."""
    for near_y in range(max(0, y - 1), min(height, y + 2)):
        for near_x in range(max(0, x - 1), min(width, x + 2)):
            if not maps[_at(size, near_y, near_x) + label] <= logit:
                return False
    return True


@jit
def _list_peaks(maps: Any, size: Any, height: int, width: int, classes: int, limit: Any) -> Any:
    """Logits and int64[n, 3] y, x and class of all peaks of at least `limit`, the highest first."""
    above, count = 0, 0
    for value in maps:  # the distances too: an upper limit is enough
        above += value >= limit
    logits, places = np.empty(above, np.float32), np.empty((above, 3), np.int64)
    _, split, channels = size
    for y in range(height):
        for first in range(0, width, split):  # where a cell begins costs a division
            at = _at(size, y, first)
            for x in range(first, first + split):
                for label in range(classes):
                    logit = maps[at + label]
                    if logit >= limit and _is_peak(maps, size, height, width, y, x, label, logit):
                        logits[count] = logit
                        places[count] = y, x, label
                        count += 1
                at += channels
    order = np.argsort(-logits[:count], kind="mergesort")
    return logits[order], places[order]


@jit
def _covers(a: Any, b: Any, overlap: float) -> bool:
    """Whether two boxes share more than `overlap` of their union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    shared = width * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return shared > overlap * (area_a + area_b - shared)


@jit
def find_boxes(
    maps: Any, split: int, classes: int, cell: float, limit: Any, overlap: float, most: int, placement: Any
) -> Any:
    """Boxes float32[n, 4], scores float32[n] and classes int64[n], the surest first, equal ones row by row.

    maps : channels are `classes` logits and the logarithms of four distances in cells.  limit : least logit.
    Of the 4 * most surest peaks a box is dropped that shares more than `overlap` of the union with a surer
    one of its class; `most` boxes at most.  O(h w), and O(n ** 2) of the peaks.
    """
    flat, size = maps.reshape(-1), (maps.shape[1], split, classes + 4)
    logits, places = _list_peaks(flat, size, maps.shape[0] * split, maps.shape[1] * split, classes, limit)
    room = min(most, len(logits))
    boxes, placed = np.empty((room, 4)), np.empty((room, 4), np.float32)
    scores, labels, sides = np.empty(room, np.float32), np.empty(room, np.int64), np.empty(4)
    n = 0
    for i in range(min(4 * most, len(logits))):
        if n == room:
            break
        y, x, label = places[i]
        at = _at(size, y, x) + classes
        for side in range(4):
            distance = np.float64(flat[at + side])
            sides[side] = exp(_held(0.0 if isnan(distance) else distance, -4.0, 4.0)) * cell
        box = boxes[n]
        box[0], box[1] = (x + 0.5) * cell - sides[0], (y + 0.5) * cell - sides[1]
        box[2], box[3] = (x + 0.5) * cell + sides[2], (y + 0.5) * cell + sides[3]
        free = True
        for other in range(n):
            free &= labels[other] != label or not _covers(box, boxes[other], overlap)
        if free:
            placed[n, :2] = _to_frame(box[0], box[1], placement)
            placed[n, 2:] = _to_frame(box[2], box[3], placement)
            scores[n] = 1 / (1 + exp(-np.float64(logits[i])))
            labels[n] = label
            n += 1
    return placed[:n].copy(), scores[:n].copy(), labels[:n].copy()


@jit
def _shift(before: float, top: float, after: float) -> float:
    """From the middle of three values to the top of the parabola through them, by half a step at most."""
    bend = 2 * top - before - after
    return _held((after - before) / 2 / bend, -0.5, 0.5) if bend > 0 else 0.0


@jit
def find_points(maps: Any, split: int, count: int, cell: float, placement: Any) -> Any:
    """Points float32[count, 2], x and y, and scores float32[count], 0 to 1: the top of each map.

    Of equal cells the first counts, a cell that is no number more than any other; at an edge a point stays in
    the middle of its cell.  O(h w count).
    """
    height, width, flat = maps.shape[0] * split, maps.shape[1] * split, maps.reshape(-1)
    size = maps.shape[1], split, count
    tops, places = np.full(count, -np.inf, np.float32), np.zeros((count, 2), np.int64)
    for y in range(height):
        for first in range(0, width, split):
            at = _at(size, y, first)
            for x in range(first, first + split):
                for point in range(count):
                    value = flat[at + point]
                    if not value <= tops[point] and not isnan(tops[point]):
                        tops[point] = value
                        places[point] = y, x
                at += count
    points, scores = np.empty((count, 2), np.float32), np.empty(count, np.float32)
    for point in range(count):
        y, x = places[point]
        top = np.float64(flat[_at(size, y, x) + point])
        dx, dy = 0.0, 0.0
        if 0 < x < width - 1:
            before = np.float64(flat[_at(size, y, x - 1) + point])
            dx = _shift(before, top, np.float64(flat[_at(size, y, x + 1) + point]))
        if 0 < y < height - 1:
            before = np.float64(flat[_at(size, y - 1, x) + point])
            dy = _shift(before, top, np.float64(flat[_at(size, y + 1, x) + point]))
        points[point] = _to_frame((x + dx + 0.5) * cell, (y + dy + 0.5) * cell, placement)
        scores[point] = top if isnan(top) else _held(top, 0.0, 1.0)
    return points, scores
