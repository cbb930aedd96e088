"""Drawings in their places and nowhere else, at any size, and videos that hold all that was written."""

from __future__ import annotations

import os
from fractions import Fraction

import numpy as np
import pytest
from models import Builder, maps_model, random_frames
from test_cli import detector, pose
from test_profile import flat_model

from xnor_rrm import annotate
from xnor_rrm.annotate import COLOURS, VideoWriter, draw, recomputed_map
from xnor_rrm.decoding import Detections, KeyPoints, PointDecoding
from xnor_rrm.errors import FrameError, VideoError
from xnor_rrm.model import INPUT
from xnor_rrm.profile import profile
from xnor_rrm.video import VideoReader

HEIGHT, WIDTH = 240, 320


def plain(value, height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), value, np.uint8)


def changed(frame, *answer):
    """bool[H, W], where the drawing differs; the frame must not."""
    before = frame.copy()
    drawn = draw(frame, *answer)
    assert (drawn.dtype, drawn.shape) == (np.uint8, frame.shape)
    assert np.array_equal(frame, before)
    drawn[...] = frame  # it is an array of its own
    assert np.array_equal(frame, before)
    return (draw(frame, *answer) != frame).any(axis=2)


def boxes(*corners, classes=None):
    count = len(corners)
    scores = np.linspace(0.9, 0.5, count, dtype=np.float32)
    return Detections(np.array(corners, np.float32).reshape(-1, 4), scores, np.array(classes or [0] * count))


def points(places, visible):
    return KeyPoints(np.array(places, np.float32), np.ones(len(places), np.float32), np.array(visible))


def classifier(labels=()):
    net = Builder(np.random.default_rng(0), 16, 16)
    net.conv(INPUT, 4, net.whole(INPUT))
    return net.model(labels)


# --- drawings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 5])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_box_is_drawn_on_its_edges_and_nowhere_far_away(value, scale):
    frame = plain(value, scale * HEIGHT, scale * WIDTH)
    left, top, right, bottom = (scale * v for v in (100, 80, 180, 200))
    where = changed(frame, boxes((left, top, right, bottom)), detector())
    y, x = (top + bottom) // 2, (left + right) // 2
    assert where[y, left]
    assert where[y, right - 1]
    assert where[top, x]
    assert where[bottom - 1, x]
    near = 4 * scale
    assert not where[top + near : bottom - near, left + near : right - near].any()
    assert not where[: top - 24 * scale].any()  # its label is above it
    assert not where[:, : left - near].any()
    assert not where[bottom + near :].any()
    assert not where[top + near :, right + near :].any()


def test_lines_and_text_grow_with_the_frame():
    shares = []
    for scale in (1, 2, 4):
        frame, box = plain(0, scale * HEIGHT, scale * WIDTH), scale * np.array([90, 90, 200, 200])
        shares.append(changed(frame, boxes(box), detector()).mean())
    assert max(shares) < 1.4 * min(shares)


def test_colours_tell_classes_and_bear_text():
    frame = plain(128)
    drawn = draw(frame, boxes((60, 60, 120, 120), (160, 60, 220, 120), classes=[0, 1]), detector())
    assert tuple(drawn[90, 60]) == COLOURS[0]
    assert tuple(drawn[90, 160]) == COLOURS[1]
    assert len(set(COLOURS)) == len(COLOURS)
    for colour in COLOURS:  # contrast with black, by WCAG 2
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(colour) / 255]
        assert (np.dot(linear, (0.2126, 0.7152, 0.0722)) + 0.05) / 0.05 > 7


def test_the_surest_box_is_on_top():
    same = (50, 60, 150, 160)
    drawn = draw(plain(0), boxes(same, same, classes=[1, 0]), detector())
    assert tuple(drawn[110, 50]) == COLOURS[1]


def test_points_and_bones_that_are_visible():
    places = [(50, 50), (100, 50), (150, 50), (200, 200), (100, 200)]
    where = changed(plain(0), points(places, [True, True, True, False, True]), pose())  # bones 0-1, 1-4
    for x, y in (*places[:3], places[4], (75, 50), (100, 125)):
        assert where[y, x]
    assert not where[60:190, 110:].any()
    assert not where[:, 165:].any()
    assert not where[45:55, 115:140].any()  # no bone 1-2
    hidden = changed(plain(0), points(places, [True, False, True, False, True]), pose())
    assert not hidden[50, 75]
    assert not changed(plain(0), points(places, [False] * 5), pose()).any()


def test_points_of_a_model_without_bones():
    model = maps_model(2, PointDecoding(cell=4))
    where = changed(plain(0), points([(50, 50), (150, 50)], [True, True]), model)
    assert where[50, 50]
    assert not where[50, 100]


def test_a_class_is_told_in_a_corner():
    model = classifier(("cat", "dog", "a bird", "fish"))
    pictures = [draw(plain(0), np.eye(4, dtype=np.float32)[i], model) for i in range(4)]
    for picture in pictures:
        assert picture[:40].any()
        assert not picture[40:].any()
        assert not picture[:, WIDTH // 2 :].any()
    assert len({picture.tobytes() for picture in pictures}) == 4
    other_score = draw(plain(0), 2 * np.eye(4, dtype=np.float32)[0], model)
    assert not np.array_equal(other_score, pictures[0])


def test_names_of_any_kind():
    name = "a\nb\0\ud800 \u732b " + "long " * 100
    model = classifier((name, "b", "c", "d"))
    where = changed(plain(0), np.float32([1, 0, 0, 0]), model)
    assert where[:, :WIDTH].any()
    assert not where[40:].any()
    assert changed(plain(0), np.float32([1, 0, 0, 0]), classifier()).any()  # "class 0"


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 400), (400, 3), (20, 20)])
def test_frames_of_any_size(size):
    frame, heat = plain(77, *size), np.ones((24, 32))
    corner = (size[1] - 1, size[0] - 1, size[1], size[0])
    assert changed(frame, boxes((0, 0, *size[::-1]), corner), detector(), heat).any()
    person = points([(0, 0), size[::-1], (0, 1), (1, 0), (1, 1)], [True] * 5)
    assert changed(frame, person, pose(), heat).any()
    assert changed(frame, np.arange(240, dtype=np.float32), maps_model(5, None), heat).any()


def test_answers_that_are_no_numbers_or_beyond_the_frame():
    odd = boxes((np.nan, 10, np.inf, 50), (-1e30, -5, 1e30, 1e9), (60, 60, 20, 20))
    assert changed(plain(0), odd, detector()).any()
    assert changed(plain(0), points([(np.nan, np.inf)] * 5, [True] * 5), pose()).any()


def test_what_is_no_frame():
    for frame in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(FrameError):
            draw(frame, boxes(), detector())


def test_frames_in_any_memory_layout():
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    expected = draw(frame, boxes((10, 10, 50, 50)), detector())
    read_only = np.asfortranarray(frame)[::-1][::-1]
    read_only.flags.writeable = False
    assert np.array_equal(draw(read_only, boxes((10, 10, 50, 50)), detector()), expected)


# --- what was recomputed --------------------------------------------------------------------------


def test_the_inset_shows_where_work_was_done():
    model, frame = detector(), plain(90)
    upper, lower = np.zeros((24, 32)), np.ones((24, 32))
    upper[:12] = 1
    lower[:12] = 0
    assert not changed(frame, boxes(), model).any()
    where = changed(frame, boxes(), model, upper)
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    assert columns[-1] > 0.95 * WIDTH
    assert rows[-1] > 0.95 * HEIGHT
    assert len(columns) == pytest.approx(WIDTH / 4, abs=4)
    assert len(rows) < HEIGHT / 2
    top, middle = rows[0] + 5, (columns[0] + columns[-1]) // 2
    bright = draw(frame, boxes(), model, upper)[top, middle].astype(int)
    dark = draw(frame, boxes(), model, lower)[top, middle].astype(int)
    assert (bright > dark + 60).all()
    told = {draw(frame, boxes(), model, np.full((24, 32), share)).tobytes() for share in (0.1, 0.12, 0.5)}
    assert len(told) == 3


def test_the_map_is_that_of_a_profile():
    rng, model = np.random.default_rng(1), flat_model()
    picture = rng.integers(0, 256, (24, 24, 3), np.uint8)
    frames = [np.vstack([rng.integers(0, 256, (4, 24, 3), np.uint8), picture[4:]]) for _ in range(3)]
    stream, maps = model.stream(), []
    for frame in frames:
        stream(frame)
        maps.append(recomputed_map(stream))
    assert np.allclose(maps[0], 1)
    assert np.allclose(maps[1][:4], 1)
    assert (maps[1][4:7] > 0).all()
    assert not maps[1][7:].any()
    measured = profile(model, frames)
    assert np.allclose(measured.recomputed, np.mean(maps[1:], axis=0))
    stream(frames[-1])
    assert not recomputed_map(stream).any()


# --- videos ---------------------------------------------------------------------------------------


def pictures(count, height, width):
    """Flat blocks that move."""
    for i in range(count):
        blocks = np.random.default_rng(9).integers(0, 256, (9, 9, 3), np.uint8)
        yield np.roll(blocks, i, axis=1).repeat(16, 0).repeat(16, 1)[:height, :width]


def files(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize(("height", "width"), [(96, 128), (97, 127), (33, 16), (1, 1)])
def test_a_video_holds_all_frames(tmp_path, monkeypatch, encoder, height, width):
    monkeypatch.setattr(annotate, "_encoder", lambda: encoder)
    path, rate = tmp_path / "a.mp4", Fraction(30000, 1001)
    with VideoWriter(path, rate) as writer:
        for number, frame in enumerate(pictures(60, height, width)):
            writer.write(frame)
            assert not path.exists(), number
    assert files(tmp_path) == ["a.mp4"]
    reader = VideoReader(path)
    assert (reader.frame_count, reader.rate) == (60, rate)
    shown = list(reader)
    assert len(shown) == 60
    for frame, original in zip(shown, pictures(60, height, width), strict=True):
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        away = frame[:height, :width].astype(int) - original
        assert np.median(np.abs(away)) < 24  # colours are those of half the resolution


def test_the_encoder_is_one_there_is(tmp_path):
    assert annotate._encoder() in ("libx264", "libopenh264", "mpeg4")
    with VideoWriter(tmp_path / "a.mp4", 25) as writer:
        writer.write(plain(0))
    assert len(list(VideoReader(tmp_path / "a.mp4"))) == 1


def test_frames_of_other_sizes_are_resized(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 25) as writer:
        for size in ((48, 64), (96, 128), (7, 5), (1, 200)):
            writer.write(plain(200, *size))
    shown = list(VideoReader(tmp_path / "a.mp4"))
    assert [frame.shape for frame in shown] == [(48, 64, 3)] * 4
    assert all(np.abs(frame.astype(int) - 200).max() < 8 for frame in shown)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("count", [1, 3, 70])
def test_what_was_written_before_an_error_is_kept(tmp_path, error, count):
    path = tmp_path / "a.mp4"
    path.write_text("an older file")
    with pytest.raises(error), VideoWriter(path, 25) as writer:  # noqa: PT012  # it is the writer that the error leaves
        for frame in pictures(count, 48, 64):
            writer.write(frame)
        raise error
    assert files(tmp_path) == ["a.mp4"]
    assert len(list(VideoReader(path))) == count


def test_without_frames_nothing_is_touched(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 25):
        pass
    assert files(tmp_path) == []
    path.write_text("an older file")
    with pytest.raises(ValueError, match="early"), VideoWriter(path, 25):
        raise ValueError("early")
    with pytest.raises(FrameError), VideoWriter(path, 25) as writer:
        writer.write(np.zeros((9, 9), np.uint8))
    assert files(tmp_path) == ["a.mp4"]
    assert path.read_text() == "an older file"


def test_what_ffmpeg_refuses(tmp_path):
    with pytest.raises(VideoError, match="40000x2 pixels"), VideoWriter(tmp_path / "a.mp4", 25) as writer:
        writer.write(plain(0, 2, 40000))
    assert files(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", 25)
    writer._temporary.symlink_to("/dev/full")
    with pytest.raises(VideoError, match="No space left"), writer:
        writer.write(plain(0))
    assert files(tmp_path) == []


def test_paths_that_cannot_be(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("a.avi", "a", "folder.mp4", "no/a.mp4", "file/a.mp4", ".mp4"):
        with pytest.raises(VideoError, match=r"\.mp4"):
            VideoWriter(tmp_path / name, 25)
    with pytest.raises(OSError, match="too long"), VideoWriter(tmp_path / f"{'a' * 250}.mp4", 25):
        pass
    assert files(tmp_path) == ["file", "folder.mp4"]


@pytest.mark.parametrize("name", ["a:b", "pipe:1", "http:x", "%d", "-x", "\u732b \u00e9", "a\nb", "\udcff"])
def test_names_that_ffmpeg_could_misread(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{name}.mp4"
    with VideoWriter(path.relative_to(tmp_path), 25) as writer:
        writer.write(plain(0))
    assert files(tmp_path) == [path.name]
    assert len(list(VideoReader(path))) == 1


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize(
    ("rate", "held"),
    [
        (Fraction(1, 10**9), Fraction(1, 100)),
        (10**9, Fraction(1000)),
        (Fraction(1480704, 61747), Fraction(1480704, 61747)),
        (Fraction(120000, 1001), Fraction(120000, 1001)),
        (Fraction(25, 2), Fraction(25, 2)),
    ],
)
def test_rates_of_any_kind(tmp_path, monkeypatch, encoder, rate, held):
    monkeypatch.setattr(annotate, "_encoder", lambda: encoder)
    with VideoWriter(tmp_path / "a.mp4", rate) as writer:
        for frame in pictures(3, 32, 32):
            writer.write(frame)
    assert float(VideoReader(tmp_path / "a.mp4").rate) == pytest.approx(float(held), rel=1e-5)


def test_rates_of_sources(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, Fraction(25, 2)) as writer:
        for frame in random_frames(np.random.default_rng(0), 3, 32, 32, "patch"):
            writer.write(frame)
    assert VideoReader(path).rate == Fraction(25, 2)
    assert VideoReader(tmp_path).rate is None
