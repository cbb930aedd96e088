"""The preprocessor equals Pillow bit for bit, and refuses what is not a frame."""

from __future__ import annotations

from itertools import product

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from xnor_rrm.kernels import area
from xnor_rrm.kernels.colour import STANDARDS, colour_weights, planes_to_rgb

from xnor_rrm.errors import FrameError
from xnor_rrm.frames import Yuv420
from xnor_rrm.model import InputRule
from xnor_rrm.preprocess import UNWATCHED, Preprocessor

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def rule(crop, resize, interpolation="bilinear", channels=3):
    return InputRule(crop, resize, (0.0,) * channels, (1.0,) * channels, interpolation, channels)


def noise(height, width, seed=0):
    """Random pixels with saturated patches, where negative lobes overshoot and must be clipped."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    frame[: height // 2] = np.where(frame[: height // 2] > 127, 255, 0)
    return frame


def pillow(frame, rule):
    """The same by Pillow: turn grey if so ruled, resize the whole frame, then crop.

    Columns first, then rows: Pillow 13 turns its own order around for very tall frames, which can change
    a value by one.
    """
    height, width = frame.shape[:2]
    if rule.channels == 1:
        frame = np.asarray(Image.fromarray(frame).convert("L"))
    if rule.resize and frame.shape[:2] != rule.crop:
        kind, short = FILTERS[rule.interpolation], min(height, width)
        narrow, low = width * rule.resize // short, height * rule.resize // short
        image = Image.fromarray(frame).resize((narrow, height), kind).resize((narrow, low), kind)
        frame = np.asarray(image)
    top, left = (frame.shape[0] - rule.crop[0]) // 2, (frame.shape[1] - rule.crop[1]) // 2
    return frame[top : top + rule.crop[0], left : left + rule.crop[1]].reshape(*rule.crop, rule.channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("height", "width", "crop", "resize"),
    [
        (576, 768, (224, 224), 256),
        (720, 406, (224, 224), 256),
        (144, 176, (224, 224), 256),
        (120, 160, (32, 32), 32),
        (33, 32, (32, 32), 32),
        (1080, 1920, (31, 17), 33),
        (255, 255, (224, 224), 256),
        (257, 257, (256, 256), 256),
        (1, 1, (5, 5), 7),
        (2, 3, (8, 4), 8),
        (3, 500, (16, 16), 16),
        (700, 2, (9, 9), 9),
        (5, 9, (1, 1), 1),
    ],
)
def test_equals_pillow(height, width, crop, resize, interpolation, channels):
    wanted = rule(crop, resize, interpolation, channels)
    frame = noise(height, width)
    result = Preprocessor(wanted)(frame)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert np.array_equal(result, pillow(frame, wanted))


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    resize=st.integers(1, 70),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    interpolation=st.sampled_from(sorted(FILTERS)),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_pillow_for_any_size(height, width, resize, cut, interpolation, channels, seed):
    crop = (1 + int(cut[0] * (resize - 1)), 1 + int(cut[1] * (resize - 1)))
    wanted = rule(crop, resize, interpolation, channels)
    frame = noise(height, width, seed)
    assert np.array_equal(Preprocessor(wanted)(frame), pillow(frame, wanted))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("shrink", "outputs"), [(0.7, 16), (2.4, 16), (4.3, 8), (9.7, 4), (50, 0)])
def test_outputs_computed_together(shrink, outputs, interpolation):
    """As many as have their first tap within 128 bytes, in all parts of a row, the frame's last one too."""
    wanted, frame = rule((36, 37), 40, interpolation), noise(round(41 * shrink), round(45 * shrink))
    preprocess = Preprocessor(wanted)
    assert np.array_equal(preprocess(frame), pillow(frame, wanted))
    assert preprocess._resize._blocks[0] == outputs


def test_the_luminance_of_every_colour():
    colours = np.arange(1 << 24, dtype=np.uint32).view(np.uint8).reshape(4096, 4096, 4)[..., :3]
    wanted = rule((4096, 4096), 0, channels=1)
    assert np.array_equal(Preprocessor(wanted)(colours), pillow(np.ascontiguousarray(colours), wanted))


@pytest.mark.parametrize("resize", [0, 36])
def test_grey_frames_are_luminance_already(resize):
    preprocess = Preprocessor(rule((32, 32), resize, channels=1))
    frame = noise(40, 50)
    grey = np.asarray(Image.fromarray(frame).convert("L"))
    expected = preprocess(frame).copy()
    for view in (grey, np.asfortranarray(grey), np.repeat(grey[..., None], 3, axis=2)):
        assert np.array_equal(preprocess(view), expected)
    with pytest.raises(FrameError, match=r"uint8\[H, W, 3\] or uint8\[H, W\], got uint8\[40, 50, 1\]"):
        preprocess(grey[..., None])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    resize=st.integers(1, 40),
    interpolation=st.sampled_from(sorted(FILTERS)),
    channels=st.sampled_from([1, 3]),
    shares=st.lists(st.sampled_from([0, 0, 0.001, 0.01, 0.3, 1]), min_size=2, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_clip_equals_pillow(height, width, resize, interpolation, channels, shares, seed):
    """Frames of which none, one or some pixels change, or all; some read-only, or of another layout."""
    rng, wanted = (
        np.random.default_rng(seed),
        rule((1 + resize // 2, resize), resize, interpolation, channels),
    )
    preprocess, frame = Preprocessor(wanted), noise(height, width, seed)
    for number, share in enumerate(shares):
        changed = rng.random((height, width, 1)) < share
        changed[rng.integers(height), rng.integers(width)] |= share == 0.001
        frame = np.where(changed, rng.integers(0, 256, frame.shape, np.uint8), frame)
        frame.flags.writeable = number % 3 != 1
        seen = frame[:, ::-1] if number % 4 == 3 else frame
        assert np.array_equal(preprocess(seen), pillow(np.ascontiguousarray(seen), wanted))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_no_change_reaches_is_left_alone(channels):
    preprocess, frame = Preprocessor(rule((48, 48), 64, channels=channels)), noise(300, 400)
    for _ in range(2):
        before = preprocess(frame)
    before += np.uint8(99)
    wrong = before.copy()
    assert np.array_equal(preprocess(frame), wrong)
    frame[150, 200] ^= 255
    after = preprocess(frame)
    rows, columns = np.nonzero((after != wrong).any(axis=-1))
    assert len(rows) > 0
    assert np.ptp(rows) < 4
    assert np.ptp(columns) < 128 / channels + 2  # of two blocks of 64 bytes
    expected = Preprocessor(rule((48, 48), 64, channels=channels))(frame)
    assert np.array_equal(after[after != wrong], expected[after != wrong])


def test_frames_that_changed_for_the_most_part_are_not_watched_for_a_while():
    wanted = rule((24, 40), 40)
    preprocess, frame = Preprocessor(wanted), noise(90, 110)
    watched = []
    for number in range(2 * (UNWATCHED + 3)):
        if number == UNWATCHED // 2:
            frame = ~frame
        frame[number, number] ^= 255
        assert np.array_equal(preprocess(frame), pillow(frame, wanted))
        watched.append(preprocess._resize._known)
    busy = UNWATCHED // 2
    assert watched == [not busy <= number < busy + UNWATCHED + 1 for number in range(len(watched))]


def test_a_failure_between_the_passes_computes_everything_again(monkeypatch):
    wanted = rule((32, 32), 36)
    preprocess, first, second = Preprocessor(wanted), noise(90, 80, 1), noise(90, 80, 2)
    preprocess(first)
    with monkeypatch.context() as patch:
        patch.setattr("xnor_rrm.preprocess.resize_rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            preprocess(second)
    assert np.array_equal(preprocess(second), pillow(second, wanted))


SIZES = [
    (90, 120),
    (48, 64),
    (24, 80),
    (31, 57),
    (30, 40),
    (40, 30),
    (7, 300),
    (300, 7),
    (1, 1),
    (13, 400),
    (20, 3000),
]


@pytest.mark.parametrize("channels", [1, 3])
def test_area_letterbox_equals_the_oracle(channels):
    """Shrunk, enlarged, both, neither; many outputs a block and none; the last bytes of a frame."""
    crop, mean = (48, 64), (130.6, 7.2, 250.0)[:channels]
    wanted = InputRule(crop, 0, mean, (1.0,) * channels, "area", channels, "letterbox")
    preprocess = Preprocessor(wanted)
    for number, size in enumerate(SIZES):
        for frame in (noise(*size, seed=number), np.full((*size, 3), 255, np.uint8)):
            if channels == 1:
                expected = naive.letterbox(naive.luminance(frame), crop, mean)
            else:
                expected = frame if size == crop else naive.letterbox(frame, crop, mean)
            assert np.array_equal(preprocess(frame), expected), size


def planes(height, width, seed=0, **kind):
    """Random planes, colours and brightnesses that RGB has not among them."""
    rng = np.random.default_rng(seed)
    return Yuv420(rng.integers(0, 256, (height * 3 // 2, width), np.uint8), **kind)


PLANE_SIZES = [(90, 120), (48, 64), (24, 80), (30, 58), (200, 150), (14, 300), (300, 14), (2, 2), (20, 800)]


@pytest.mark.parametrize("crop", [(48, 64), (47, 63), (37, 200)])
def test_planes_equal_the_oracle(crop):
    """Parts of even and odd size and place; a frame of the crop's size is resized too, its U and V."""
    mean, kinds = (130.6, 7.2, 250.0), list(product(STANDARDS, (False, True)))
    preprocess = Preprocessor(InputRule(crop, 0, mean, (1.0,) * 3, "area", fit="letterbox"))
    for number, size in enumerate(PLANE_SIZES):
        standard, full_range = kinds[(number + crop[0]) % 4]
        frame = planes(*size, number, standard=standard, full_range=full_range)
        assert np.array_equal(preprocess(frame), naive.letterbox(frame, crop, mean)), size


def test_planes_by_bands_of_any_rows():
    """A band may begin with the second row of a pair, and end with the first."""
    rule_ = InputRule((61, 64), 0, (9.0,) * 3, (1.0,) * 3, "area", fit="letterbox")
    preprocess, frame = Preprocessor(rule_), planes(90, 120)
    expected = preprocess(frame).copy()
    for step in (1, 3, 5, 13):
        source, image, address = preprocess.begin(frame)
        image[:] = 9
        for first in range(0, 61, step):
            area.average_rows(source.reshape(-1), address, image, first, first + step)
        assert np.array_equal(image.reshape(expected.shape), expected)


@pytest.mark.parametrize(("standard", "kr", "kb"), [("bt601", 0.299, 0.114), ("bt709", 0.2126, 0.0722)])
@pytest.mark.parametrize("full_range", [False, True])
def test_every_colour_of_planes(standard, kr, kb, full_range):
    """The whole numbers' result, and within one of the standard's own, in floating point."""
    every, n = np.arange(256), 1 << 24
    planes = np.zeros(2 * n + 64, np.uint8)
    planes[:n] = np.tile(every, 1 << 16)
    planes[n : n + n // 2], planes[n + n // 2 : 2 * n] = (
        np.tile(every.repeat(128), 256),
        every.repeat(1 << 15),
    )
    image, weights = np.empty(3 * n, np.uint8), colour_weights(standard, full_range)
    planes_to_rgb(planes, 0, n, n + n // 2, n, weights, image, 0)
    seen = image.reshape(256, 256, 256, 3)  # V, U, Y

    y, red, green_u, green_v, blue, added = (int(weight) for weight in weights)
    of_y, of_r, of_gu, of_gv, of_b = (
        (w * (every - 128) + 64) // 128 for w in (y, red, green_u, green_v, blue)
    )
    black, luma, chroma = (0, 255, 255) if full_range else (16, 219, 224)
    y, c = (every - black) * 255 / luma, (every - 128) * 255 / chroma
    r, b = 2 * (1 - kr) * c, 2 * (1 - kb) * c
    exact = [
        (of_y + added + of_r[:, None, None], y + r[:, None, None]),
        (
            of_y + added + of_gu[:, None] + of_gv[:, None, None],
            y - (kb * b[:, None] + kr * r[:, None, None]) / (1 - kr - kb),
        ),
        (of_y + added + of_b[:, None], y + b[:, None]),
    ]
    for channel, (whole, real) in enumerate(exact):
        assert (seen[..., channel] == (whole // 64).clip(0, 255)).all()
        assert np.abs((whole // 64).clip(0, 255) - np.floor(real + 0.5).clip(0, 255)).max() <= 1


def test_frames_in_planes_and_of_pixels_take_turns():
    rule_ = InputRule((48, 64), 0, (9.0,) * 3, (1.0,) * 3, "area", fit="letterbox")
    preprocess, yuv, rgb = Preprocessor(rule_), planes(90, 120), noise(90, 120)
    full, tall = planes(90, 120, full_range=True), noise(135, 120)
    for frame in (yuv, rgb, yuv, full, yuv, tall, yuv, rgb):  # `tall` has the shape that yuv.data has
        assert np.array_equal(preprocess(frame), naive.letterbox(frame, (48, 64), (9, 9, 9)))
    read_only = yuv.copy()
    read_only.data.flags.writeable = False
    mirrored = Yuv420(np.ascontiguousarray(yuv.data[:, ::-1])[:, ::-1])
    for frame in (read_only, mirrored):
        assert np.array_equal(preprocess(frame), naive.letterbox(yuv, (48, 64), (9, 9, 9)))


@pytest.mark.parametrize(("data", "got"), [
    (np.zeros((10, 8), np.uint8), r"even H and W as uint8\[H \* 3 // 2, W\], got uint8\[10, 8\]"),
    (np.zeros((9, 7), np.uint8), "odd size"),
    (np.zeros((0, 8), np.uint8), "even H and W"),
    (np.zeros((9, 8, 3), np.uint8), r"uint8\[9, 8, 3\]"),
    (np.zeros((9, 8)), r"float64\[9, 8\]"),
    ([[1]], "got list"),
])  # fmt: skip
def test_planes_that_are_none(data, got):
    preprocess = Preprocessor(InputRule((48, 64), 0, (9.0,) * 3, (1.0,) * 3, "area", fit="letterbox"))
    with pytest.raises(FrameError, match=got):
        preprocess(Yuv420(data))
    with pytest.raises(FrameError, match="standard 'bt601' or 'bt709', got 'bt2020'"):
        preprocess(planes(8, 8, standard="bt2020"))


@pytest.mark.parametrize("wanted", [rule((8, 8), 0), rule((8, 8), 0, "area"), rule((8, 8), 0, channels=1)])
def test_planes_for_a_network_that_takes_none(wanted):
    assert not wanted.takes_planes
    with pytest.raises(FrameError, match=r"got planes\. Pass RGB"):
        Preprocessor(wanted)(planes(8, 8))


@pytest.mark.parametrize(("height", "width"), [(301, 222), (64, 48), (37, 41), (16, 200)])
def test_area_with_a_centre_crop(height, width):
    wanted, frame = rule((20, 24), 32, "area"), noise(height, width)
    short = min(height, width)
    whole = naive.area_resize(frame, (height * 32 // short, width * 32 // short))
    top, left = (whole.shape[0] - 20) // 2, (whole.shape[1] - 24) // 2
    assert np.array_equal(Preprocessor(wanted)(frame), whole[top : top + 20, left : left + 24])


@pytest.mark.parametrize("interpolation", FILTERS)
def test_letterbox_by_pillows_filters_frame_by_frame(interpolation):
    wanted = InputRule((32, 60), 0, (9.4,) * 3, (1.0,) * 3, interpolation, fit="letterbox")
    preprocess, frame, kind = Preprocessor(wanted), noise(100, 80), FILTERS[interpolation]
    for number in range(4):
        frame = frame.copy()
        frame[number * 20 : number * 20 + 3] ^= 255
        small = Image.fromarray(frame).resize((26, 100), kind).resize((26, 32), kind)
        expected = np.full((32, 60, 3), 9, np.uint8)
        expected[:, 17:43] = np.asarray(small)
        assert np.array_equal(preprocess(frame), expected)


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_the_placement_finds_pixels_of_the_frame(fit):
    """A white block in a frame, found in the network's input, is placed where it is."""
    resize = 64 if fit == "crop" else 0
    wanted = InputRule((60, 64), resize, (0.0,) * 3, (1.0,) * 3, "area", fit=fit)
    frame = np.zeros((384, 640, 3), np.uint8)
    frame[120:240, 300:420] = 255
    preprocess = Preprocessor(wanted)
    rows, columns = np.nonzero(preprocess(frame)[..., 0] > 127)
    corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
    place = preprocess.placement
    placed = (corners - (place.left, place.top)) * (place.scale_x, place.scale_y)
    assert np.abs(placed - [[300, 120], [420, 240]]).max() <= 5


@pytest.mark.parametrize("resize", [0, 40])
def test_no_resize_is_a_plain_centre_crop(resize):
    wanted = rule((32, 31), resize)
    frame = noise(40, 45)
    assert np.array_equal(Preprocessor(wanted)(frame), frame[4:36, 7:38])


@pytest.mark.parametrize("interpolation", FILTERS)
def test_constant_frames_stay_constant(interpolation):
    preprocess = Preprocessor(rule((32, 32), 32, interpolation))
    for value in (0, 1, 128, 254, 255):
        assert (preprocess(np.full((97, 111, 3), value, np.uint8)) == value).all()


def test_any_memory_layout():
    wanted = rule((32, 32), 36)
    preprocess = Preprocessor(wanted)
    frame = noise(100, 120)
    read_only = frame.copy()
    read_only.flags.writeable = False
    for view in (frame[:, ::-1], frame[..., ::-1], frame[::2, ::3], np.asfortranarray(frame), read_only):
        assert np.array_equal(preprocess(view), pillow(np.ascontiguousarray(view), wanted))


def test_frame_size_may_change():
    wanted = rule((32, 32), 36)
    preprocess = Preprocessor(wanted)
    for size in ((100, 120), (40, 36), (36, 36), (100, 120), (7, 300)):
        frame = noise(*size)
        assert np.array_equal(preprocess(frame), pillow(frame, wanted))


def test_the_last_result_survives_one_more_call_and_the_frame_is_never_aliased():
    for resize in (0, 36):
        preprocess = Preprocessor(rule((32, 32), resize))
        first, second = noise(40, 40, 1), noise(40, 40, 2)
        result = preprocess(first)
        kept = result.copy()
        first[:] = 0
        preprocess(second)
        assert np.array_equal(result, kept)


@pytest.mark.parametrize(
    ("frame", "got", "remedy"),
    [
        (np.zeros((40, 40), np.uint8), r"uint8\[40, 40\]", "grey"),
        (np.zeros((40, 40, 1), np.uint8), r"uint8\[40, 40, 1\]", "grey"),
        (np.zeros((40, 40, 4), np.uint8), r"uint8\[40, 40, 4\]", "fourth channel"),
        (np.zeros((3, 40, 40), np.uint8), r"uint8\[3, 40, 40\]", "channels last"),
        (np.zeros((1, 40, 40, 3), np.uint8), r"uint8\[1, 40, 40, 3\]", "one RGB frame"),
        (np.zeros((40, 40, 3), np.float32), r"float32\[40, 40, 3\]", "0..255"),
        (np.zeros((40, 40, 3), np.int64), r"int64\[40, 40, 3\]", "0..255"),
        (np.zeros((40, 40, 3), bool), r"bool\[40, 40, 3\]", "0..255"),
        (np.zeros((0, 40, 3), np.uint8), r"uint8\[0, 40, 3\]", "no pixels"),
        ([[[0, 0, 0]]], "list", "asarray"),
        (None, "NoneType", "asarray"),
    ],
)
def test_refuses_what_is_not_a_frame(frame, got, remedy):
    preprocess = Preprocessor(rule((32, 32), 32))
    with pytest.raises(FrameError, match=rf"uint8\[H, W, 3\], got {got}\..*{remedy}"):
        preprocess(frame)


def test_refuses_frames_smaller_than_a_crop_without_resize_and_recovers():
    preprocess = Preprocessor(rule((32, 32), 0))
    large = noise(40, 40)
    preprocess(large)
    for _ in range(2):
        with pytest.raises(FrameError, match=r"at least 32x32.*got 40x31"):
            preprocess(noise(40, 31))
    assert np.array_equal(preprocess(large), large[4:36, 4:36])
