"""Frames of files, folders and cameras: order, colours, damage reported and passed over, clear errors."""

from __future__ import annotations

import warnings
from contextlib import suppress

import av
import numpy as np
import pytest
from PIL import Image

import xnor_rrm
from xnor_rrm.errors import VideoError, XnorWarning
from xnor_rrm.frames import Yuv420
from xnor_rrm.video import Skipped, VideoReader, _planes

FRAMES, HEIGHT, WIDTH = 12, 48, 64


def picture(i):
    """uint8[48, 64, 3], blocks whose colours tell the frame number."""
    blocks = np.random.default_rng(i).integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)


def make_video(path, codec="ffv1", pix_fmt="bgr0", count=FRAMES):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for i in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode())
    return path


def packet_at(path, number):
    """(position, size) in bytes of one packet of a file."""
    with av.open(str(path)) as container:
        packet = next(p for i, p in enumerate(container.demux(video=0)) if i == number)
        return packet.pos, packet.size


def damage_packet(path, number):
    """Overwrite the middle half of one packet of a file."""
    start, size = packet_at(path, number)
    data = bytearray(path.read_bytes())
    start += size // 4
    data[start : start + size // 2] = b"\x5a" * (size // 2)
    path.write_bytes(data)


def test_lossless_video_comes_back_in_order_bit_for_bit(tmp_path):
    reader = VideoReader(make_video(tmp_path / "a.avi"))
    assert reader.frame_count == FRAMES
    for _ in range(2):  # every pass starts again
        frames = list(reader)
        assert len(frames) == FRAMES
        for i, frame in enumerate(frames):
            assert frame.dtype == np.uint8
            assert frame.flags.c_contiguous
            assert frame.flags.writeable
            assert np.array_equal(frame, picture(i))
    assert reader.skipped == []


def test_public_read_video(tmp_path):
    path = make_video(tmp_path / "a.avi")
    assert sum(1 for _ in xnor_rrm.read_video(path)) == FRAMES
    with pytest.raises(VideoError):  # at once, not when the first frame is asked for
        xnor_rrm.read_video(tmp_path / "missing.avi")


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [
    ("a.mp4", "libx264", "yuv420p"), ("a.avi", "mpeg4", "yuv420p"), ("a.mkv", "mjpeg", "yuvj444p"),
    ("grey.mkv", "ffv1", "gray"),
])  # fmt: skip
def test_codecs(tmp_path, name, codec, pix_fmt):
    frames = list(VideoReader(make_video(tmp_path / name, codec, pix_fmt)))
    assert [frame.shape for frame in frames] == [(HEIGHT, WIDTH, 3)] * FRAMES
    if pix_fmt == "gray":
        assert all((frame[..., :1] == frame).all() for frame in frames)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv420p"), ("mjpeg", "yuvj420p")])
def test_planes_as_the_decoder_has_them(tmp_path, codec, pix_fmt):
    path = make_video(tmp_path / "a.mkv", codec, pix_fmt)
    reader, pictures = VideoReader(path, planes=True), VideoReader(path)
    with pytest.raises(VideoError, match="a frame that was read"):
        reader.picture()
    with av.open(str(path)) as container:
        for frame, rgb, decoded in zip(reader, pictures, container.decode(video=0), strict=True):
            assert isinstance(frame, Yuv420)
            assert frame.shape == rgb.shape
            assert np.array_equal(frame.data, decoded.to_ndarray(format=pix_fmt))
            assert (frame.standard, frame.full_range) == ("bt601", pix_fmt == "yuvj420p")
            assert np.array_equal(reader.picture(), rgb)
    assert sum(isinstance(frame, Yuv420) for frame in xnor_rrm.read_video(path, planes=True)) == FRAMES


@pytest.mark.parametrize(("colorspace", "standard"), [(1, "bt709"), (2, "bt601"), (5, "bt601"), (6, "bt601")])
@pytest.mark.parametrize(("color_range", "full_range"), [(0, False), (1, False), (2, True)])
def test_by_what_standard_planes_are(colorspace, standard, color_range, full_range):
    """FFmpeg's numbers: BT.709, not said, and two kinds of BT.601; not said, TV's and JPEG's range."""
    frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
    frame.colorspace, frame.color_range = colorspace, color_range
    planes = _planes(frame)
    assert (planes.standard, planes.full_range) == (standard, full_range)
    assert _planes(av.VideoFrame(WIDTH + 1, HEIGHT, "yuv420p")) is None  # of an odd size


def test_rgb_where_there_are_no_such_planes(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "images" / "a.png")
    make_video(tmp_path / "rgb.avi")
    make_video(tmp_path / "444.mkv", "ffv1", "yuv444p")
    for source in ("images", "rgb.avi", "444.mkv"):
        reader = VideoReader(tmp_path / source, planes=True)
        for frame in reader:
            assert frame.shape == (HEIGHT, WIDTH, 3)
            assert isinstance(frame, np.ndarray)
            assert np.array_equal(frame, reader.picture())


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.avi", "ffv1", "bgr0"), ("a.mov", "png", "rgb24")])
def test_corrupt_packet_in_the_middle_is_reported_and_skipped(tmp_path, name, codec, pix_fmt):
    path = make_video(tmp_path / name, codec, pix_fmt)
    damage_packet(path, 5)
    told = []
    reader = VideoReader(path, on_skip=told.append)
    frames = list(reader)
    assert [skipped.where for skipped in reader.skipped] == ["frame 5"]
    assert told == reader.skipped
    assert len(frames) == FRAMES - 1
    intact = [i for i in range(FRAMES) if i != 5]
    if codec == "png":  # every frame stands alone
        assert all(np.array_equal(frame, picture(i)) for frame, i in zip(frames, intact, strict=True))


def test_damage_that_decoders_paint_over_is_skipped_too(tmp_path):
    path = make_video(tmp_path / "a.avi", "mpeg4", "yuv420p")
    damage_packet(path, 5)
    reader = VideoReader(path)
    assert len(list(reader)) == FRAMES - 1
    assert [skipped.where for skipped in reader.skipped] == ["frame 5"]


def test_read_video_warns_of_what_it_skips(tmp_path):
    path = make_video(tmp_path / "a.avi")
    damage_packet(path, 5)
    with pytest.warns(XnorWarning, match="skipped frame 5"):
        assert sum(1 for _ in xnor_rrm.read_video(path)) == FRAMES - 1


def test_video_cut_short_gives_what_it_holds_and_says_so(tmp_path):
    path = make_video(tmp_path / "a.avi")
    start, size = packet_at(path, 8)
    path.write_bytes(path.read_bytes()[: start + size // 2])
    reader = VideoReader(path)
    assert len(list(reader)) == 8
    assert f"claims {FRAMES} frames, and holds" in reader.skipped[-1].why


def test_random_damage_never_escapes_as_another_error(tmp_path):
    whole = make_video(tmp_path / "whole.mp4", "libx264", "yuv420p").read_bytes()
    path, rng = tmp_path / "a.mp4", np.random.default_rng(0)
    for trial in range(60):
        data = bytearray(whole)
        at = int(rng.integers(len(data)))
        data[at : at + 20] = rng.bytes(len(data[at : at + 20]))
        path.write_bytes(data[: at + 20] if trial % 4 == 0 else data)
        with suppress(VideoError):
            assert 0 < len(list(VideoReader(path))) <= FRAMES


def save(array, path, **options):
    Image.fromarray(array).save(path, **options)


def test_folder_in_natural_name_order(tmp_path):
    names = ["frame1.png", "frame2.png", "frame10.png", "frame010.bmp", "g.png"]
    order = ["frame1.png", "frame2.png", "frame010.bmp", "frame10.png", "g.png"]
    for i, name in enumerate(names):
        save(picture(i), tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    reader = VideoReader(tmp_path)
    assert reader.frame_count == 5
    for frame, name in zip(reader, order, strict=True):
        assert np.array_equal(frame, picture(names.index(name)))
        assert frame.flags.writeable


def test_folder_of_every_colour_mode(tmp_path):
    rgb = picture(0)
    image, grey = Image.fromarray(rgb), Image.fromarray(rgb).convert("L")
    image.convert("RGBA").save(tmp_path / "0.png")
    image.quantize(256).save(tmp_path / "1.png")
    grey.save(tmp_path / "2.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) << 8).save(tmp_path / "3.png")
    image.convert("CMYK").save(tmp_path / "4.tif")
    grey.convert("1").save(tmp_path / "5.png")
    frames = list(VideoReader(tmp_path))
    assert [frame.shape for frame in frames] == [rgb.shape] * 6
    assert all(frame.dtype == np.uint8 for frame in frames)
    assert np.array_equal(frames[0], rgb)
    for frame in frames[2:4]:
        assert np.array_equal(frame, np.asarray(grey.convert("RGB")))


def test_folder_skips_what_is_no_image_and_what_is_damaged(tmp_path):
    for i in range(4):
        save(picture(i), tmp_path / f"{i}.png")
    (tmp_path / "0notes.txt").write_text("not an image")
    data = bytearray((tmp_path / "2.png").read_bytes())
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    reader = VideoReader(tmp_path)
    frames = list(reader)
    assert len(frames) == 3
    assert np.array_equal(frames[2], picture(3))
    assert [skipped.where for skipped in reader.skipped] == ["0notes.txt", "2.png"]
    assert "not an image" in reader.skipped[0].why
    assert "damaged" in reader.skipped[1].why
    list(reader)
    assert len(reader.skipped) == 2  # of the latest pass


def test_folder_of_images_of_changing_size(tmp_path):
    save(picture(0), tmp_path / "0.png")
    save(picture(1)[:20], tmp_path / "1.png")
    assert [frame.shape for frame in VideoReader(str(tmp_path))] == [(48, 64, 3), (20, 64, 3)]


def test_missing_empty_and_unreadable_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.txt").write_text("hello\n" * 100)
    (tmp_path / "cut.mp4").write_bytes(
        make_video(tmp_path / "a.mp4", "libx264", "yuv420p").read_bytes()[:900]
    )
    for name, message in {
        "missing.mp4": "does not exist",
        "empty": "without files",
        "empty.mp4": "a video that FFmpeg can read",
        "noise.mp4": "a video that FFmpeg can read",
        "text.txt": "a video stream",
        "cut.mp4": "FFmpeg can read",
    }.items():
        with pytest.raises(VideoError, match=message) as caught:
            VideoReader(tmp_path / name)
        assert caught.value.remedy
        assert name in caught.value.got


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="a video stream"):
        VideoReader(tmp_path / "a.wav")


def test_no_frame_at_all_is_an_error(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("not an image")
    with pytest.raises(VideoError, match=r"at least one frame.*notes\.txt.*1 in all"):
        list(VideoReader(tmp_path / "folder"))
    path = make_video(tmp_path / "a.mov", "png", "rgb24", count=2)
    for number in range(2):
        damage_packet(path, number)
    with pytest.raises(VideoError, match="at least one frame"):
        list(VideoReader(path))


@pytest.mark.parametrize("source", [99, "99"])
def test_camera_that_is_not_there(source):
    with pytest.raises(VideoError, match=r"a camera at /dev/video99"):
        list(VideoReader(source))


def test_a_number_names_a_file_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.avi").rename("7")
    assert len(list(VideoReader("7"))) == FRAMES


def test_leaving_early_is_silent(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = xnor_rrm.read_video(make_video(tmp_path / "a.avi"))
        next(frames)
        frames.close()


def test_skipped_reads_as_a_sentence():
    assert str(Skipped("frame 3", "damaged")) == "skipped frame 3: damaged"
