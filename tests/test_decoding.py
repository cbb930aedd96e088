"""Boxes and key points from maps, by an oracle of plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from models import Builder

from xnor_rrm.decoding import BoxDecoding, Detections, KeyPoints, Placement, PointDecoding
from xnor_rrm.errors import ModelError
from xnor_rrm.model import INPUT, InputRule, Model, Window

Array = np.ndarray[Any, Any]
WHOLE = Placement(1.0, 1.0, 0.0, 0.0, 10_000, 10_000)


def boxes_by_loops(maps: Array, decoding: BoxDecoding) -> list[tuple[float, int, list[float]]]:
    """(score, class, [left, top, right, bottom]), the surest first."""
    height, width, channels = maps.shape
    found = []
    for c in range(channels - 4):
        for y in range(height):
            for x in range(width):
                near = maps[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2, c]
                score = 1 / (1 + math.exp(-float(maps[y, x, c])))
                if score < decoding.threshold or maps[y, x, c] < near.max():
                    continue
                left, top, right, bottom = (
                    math.exp(min(max(float(d), -4), 4)) * decoding.cell for d in maps[y, x, -4:]
                )
                cx, cy = (x + 0.5) * decoding.cell, (y + 0.5) * decoding.cell
                found.append((score, c, [cx - left, cy - top, cx + right, cy + bottom]))
    found.sort(key=lambda each: -each[0])
    kept: list[tuple[float, int, list[float]]] = []
    for score, c, box in found:
        if all(c != other or union_share(box, mine) <= decoding.overlap for _, other, mine in kept):
            kept.append((score, c, box))
    return kept[: decoding.most]


def union_share(a: list[float], b: list[float]) -> float:
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_those_of_plain_loops(seed, classes):
    rng = np.random.default_rng(seed)
    maps = rng.normal(0, 2, (9, 13, classes + 4)).astype(np.float32)
    decoding = BoxDecoding(cell=8, threshold=0.4, overlap=0.3, most=25)
    found = decoding.decode(maps, Placement(1, 1, -1000, -1000, 10_000, 10_000))
    expected = boxes_by_loops(maps, decoding)
    assert len(found) == len(expected) > 5
    assert list(found.classes) == [c for _, c, _ in expected]
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(found.boxes - 1000, [box for _, _, box in expected], atol=1e-3)
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == (np.float32, np.float32, np.int64)


def test_no_box_and_no_number():
    for value in (-9.0, np.nan, -np.inf):
        found = BoxDecoding(cell=8).decode(np.full((4, 5, 5), value, np.float32), WHOLE)
        assert len(found) == 0
        assert found.boxes.shape == (0, 4)


def test_boxes_lie_in_the_frame():
    maps = np.zeros((2, 2, 5), np.float32)
    maps[0, 0] = 5, 4, 4, 4, 4
    found = BoxDecoding(cell=8).decode(maps, Placement(2.5, 3.0, 10.0, 0.0, 40, 30))
    assert found.boxes[0].tolist() == [0, 0, 30, 40]


def test_distances_that_are_no_numbers():
    maps = np.zeros((2, 2, 5), np.float32)
    maps[0, 0] = 5, np.nan, np.inf, 0, -np.inf
    maps[0, 1] = maps[1] = -5
    found = BoxDecoding(cell=8).decode(maps, Placement(1.0, 1.0, -1000.0, -1000.0, 9000, 9000))
    box = [4 - 8, 4 - 8 * math.exp(4), 4 + 8, 4 + 8 * math.exp(-4)]
    np.testing.assert_allclose(found.boxes - 1000, [box], atol=1e-3)


def test_a_plateau_of_equal_logits_is_one_box():
    maps = np.zeros((6, 6, 5), np.float32)
    maps[2:4, 2:4] = 3, 2, 2, 2, 2
    assert len(BoxDecoding(cell=8, threshold=0.6).decode(maps, WHOLE)) == 1


@pytest.mark.parametrize(("dx", "dy"), [(0.0, 0.0), (0.3, -0.2), (-0.45, 0.4)])
def test_key_points_are_found_between_cells(dx, dy):
    """A parabola's top is found to rounding, wherever it lies in a cell."""
    y, x = np.mgrid[:12, :9].astype(np.float64)
    tops = [(4 + dx, 6 + dy), (2 - dx, 3 + dy)]
    maps = np.stack([0.9 - 0.03 * ((x - cx) ** 2 + (y - cy) ** 2) for cx, cy in tops], -1).astype(np.float32)
    found = PointDecoding(cell=8, threshold=0.5).decode(maps, Placement(2.0, 3.0, 4.0, 1.0, 1000, 1000))
    expected = [(((cx + 0.5) * 8 - 4) * 2, ((cy + 0.5) * 8 - 1) * 3) for cx, cy in tops]
    np.testing.assert_allclose(found.points, expected, atol=1e-3)
    assert found.visible.all()


def test_key_points_at_edges_on_plateaus_and_without_a_number():
    maps = np.zeros((3, 4, 4), np.float32)
    maps[0, 0, 0] = 2.0  # a corner, higher than 1
    maps[:, :, 1] = -1.0  # nowhere: the first cell
    maps[1, 1:3, 2] = 0.5  # two cells alike: the border between them
    maps[2, 3, 3] = np.nan
    found = PointDecoding(cell=10).decode(maps, WHOLE)
    np.testing.assert_allclose(found.points[:3], [[5, 5], [5, 5], [20, 15]], atol=1e-4)
    assert found.scores[:3].tolist() == [1, 0, 0.5]
    assert found.visible[:3].tolist() == [True, False, True]
    assert not found.visible[3]


# --- models -----------------------------------------------------------------------------------------


def model_of(channels: int, decoding: Any, labels: tuple[str, ...] = ()) -> Model:
    net = Builder(np.random.default_rng(0), 32, 48)
    net.conv(net.affine(net.conv(INPUT, 40, Window((8, 8), (8, 8)))), channels, Window((1, 1)))
    rule = InputRule((32, 48), 0, (128.0,) * 3, (64.0,) * 3, "area", fit="letterbox")
    return replace(net.model(), input_rule=rule, decoding=decoding, labels=labels)


def test_a_stream_answers_by_the_models_task():
    frame = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    detector = model_of(5, BoxDecoding(cell=8, threshold=0.01), ("person",))
    pose = model_of(3, PointDecoding(cell=8, bones=((0, 2),)), ("a", "b", "c"))
    classifier = model_of(5, None)
    assert [m.task for m in (detector, pose, classifier)] == ["detection", "pose", "classification"]
    assert [m.classes for m in (detector, pose, classifier)] == [1, 3, 4 * 6 * 5]
    for mode in ("cached", "dense"):
        found, points = detector.stream(mode)(frame), pose.stream(mode)(frame)
        assert isinstance(found, Detections)
        assert isinstance(points, KeyPoints)
        stream = classifier.stream(mode)
        assert np.array_equal(stream(frame), stream.values(frame))
    maps = detector.stream("dense").values(frame).reshape(4, 6, 5)
    # 64x64 becomes 32x32, with 8 columns left over on both sides
    expected = BoxDecoding(cell=8, threshold=0.01).decode(maps, Placement(2.0, 2.0, 8.0, 0.0, 64, 64))
    assert found.boxes.tobytes() == expected.boxes.tobytes()


def test_a_streams_answers_follow_the_frames_size():
    decoding = BoxDecoding(cell=8, threshold=0.01)
    stream = model_of(5, decoding).stream()
    square, wide = Placement(2.0, 2.0, 8.0, 0.0, 64, 64), Placement(2.0, 2.0, 0.0, 0.0, 64, 96)
    for placement in (square, wide, Placement.whole((32, 48)), square):
        frame = np.random.default_rng(1).integers(0, 256, (*placement[4:], 3), np.uint8)
        found = stream(frame)
        expected = decoding.decode(stream.values(frame).reshape(4, 6, 5), placement)
        assert len(found) > 0
        assert found.boxes.tobytes() == expected.boxes.tobytes()


@pytest.mark.parametrize(
    ("channels", "decoding", "labels", "message"),
    [
        (4, BoxDecoding(cell=8), (), "at least 5 channels as the output of a detector, got 4"),
        (5, BoxDecoding(cell=8), ("a", "b"), "1 labels, got 2"),
        (3, PointDecoding(cell=8, bones=((0, 3),)), (), "bones between points 0 to 2"),
        (3, PointDecoding(cell=8), ("a",), "3 labels, got 1"),
    ],
)
def test_decodings_that_do_not_fit_the_network(channels, decoding, labels, message):
    with pytest.raises(ModelError, match=message):
        model_of(channels, decoding, labels)


def test_decodings_are_kept_in_model_files(tmp_path):
    for decoding in (BoxDecoding(cell=8, most=7), PointDecoding(cell=8, bones=((0, 1), (1, 2)))):
        channels = 5 if isinstance(decoding, BoxDecoding) else 3
        model_of(channels, decoding).save(tmp_path / "m.xnor")
        from xnor_rrm import load

        assert load(tmp_path / "m.xnor").decoding == decoding
