"""Frames from video files, folders of images and cameras. What cannot be decoded is reported and skipped."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, UnidentifiedImageError

from .errors import VideoError, XnorWarning
from .frames import Frame, Pixels, Yuv420

#: Failed reads in a row after which the rest of a container is given up.
MAX_FAILED_READS = 8


@dataclass(frozen=True)
class Skipped:
    """Something in a source that gave no frame.  where : "frame 12" or a file's name.  why : in words."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"skipped {self.where}: {self.why}"


class VideoReader:
    """The frames of one source, uint8[H, W, 3] RGB or planes; iterating again starts again.

    source : path of a video file or of a folder of images (read in name order, frame2 before frame10), or
        a camera's number (Video4Linux; 0 and "0" are the same).
    planes : give `Yuv420` frames where the video has such, for a network that takes them
        (`model.input_rule.takes_planes`): nothing is made of them first.
    frame_count : how many frames the source claims to hold; None where it does not say.
    rate : frames a second as a file claims; None where it does not say, of folders and of cameras.
    skipped : what the latest pass could not decode, in order; `on_skip` is told of each as it happens.
        Frames that the decoder patched up are skipped too. They count from 0, skipped ones included.

    Pixels come as stored: rotation tags are not applied. Grey, palette and transparent images become RGB.
    Raises VideoError where the source is missing or not a video (at once), or gives no frame (at the end).
    """

    def __init__(
        self,
        source: str | Path | int,
        on_skip: Callable[[Skipped], object] | None = None,
        *,
        planes: bool = False,
    ) -> None:
        self.source = str(source)
        self.frame_count: int | None = None
        self.rate: Fraction | None = None
        self.skipped: list[Skipped] = []
        self._on_skip, self._planes = on_skip, planes
        self._reformat = VideoReformatter().reformat
        self._latest: VideoFrame | Pixels | None = None
        self._open: Callable[[], Iterator[VideoFrame | Pixels | Skipped]]
        camera, path = _camera_number(source), Path(str(source))
        if camera is not None:
            self._open = lambda: _decode(*_open_camera(camera))
        elif path.is_dir():
            files = sorted((entry for entry in path.iterdir() if entry.is_file()), key=_natural_order)
            if not files:
                raise VideoError("a folder of images", f"{self.source!r} without files", "Check the path.")
            self.frame_count = len(files)
            self._open = lambda: map(_read_image, files)
        else:
            container, stream = _open_file(path)
            with closing(container):
                self.frame_count, self.rate = _frame_count(stream), stream.average_rate or None
            self._open = lambda: _decode(*_open_file(path))

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        empty = True
        for item in self._open():
            if isinstance(item, Skipped):
                self.skipped.append(item)
                if self._on_skip:
                    self._on_skip(item)
            else:
                empty, self._latest = False, item
                yield (_planes(item) if self._planes else None) or self.picture()
        if empty:
            first = f" ({self.skipped[0]}; {len(self.skipped)} in all)" if self.skipped else ""
            remedy = "It may be damaged, or hold no video."
            raise VideoError("at least one frame", f"none from {self.source!r}{first}", remedy)

    def picture(self) -> Pixels:
        """The frame that was given last in RGB, uint8[H, W, 3], also where it was given in planes."""
        item = self._latest
        if item is None:
            raise VideoError("a frame that was read", "none", "Iterate first.")
        if isinstance(item, np.ndarray):
            return item
        return np.ascontiguousarray(self._reformat(item, format="rgb24").to_ndarray(format="rgb24"))


def read_video(source: str | Path | int, *, planes: bool = False) -> Iterator[Frame]:
    """The frames of `VideoReader`, with an XnorWarning for whatever is skipped."""
    return iter(VideoReader(source, on_skip=_warn, planes=planes))


def _warn(skipped: Skipped) -> None:
    warnings.warn(str(skipped), XnorWarning, stacklevel=3)


def _camera_number(source: str | Path | int) -> int | None:
    if isinstance(source, str) and source.isascii() and source.isdigit() and not Path(source).exists():
        return int(source)
    return source if isinstance(source, int) else None


def _open_camera(number: int) -> tuple[InputContainer, VideoStream]:
    device = f"/dev/video{number}"
    try:
        return _video_stream(av.open(device, format="v4l2"), device)
    except (FFmpegError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        remedy = "Cameras are read through Video4Linux; see which /dev/video* there are."
        raise VideoError(f"a camera at {device}", f"{why}", remedy) from error


def _open_file(path: Path) -> tuple[InputContainer, VideoStream]:
    if not path.exists():
        raise VideoError(
            "a video file, a folder of images or a camera number",
            f"{str(path)!r}, which does not exist",
            "Check the path.",
        )
    try:
        return _video_stream(av.open(str(path), metadata_errors="replace"), str(path))
    except FFmpegError as error:
        got = f"{str(path)!r} ({error.strerror})"
        remedy = "The file may be damaged, cut short, or no video; see what ffprobe says of it."
        raise VideoError("a video that FFmpeg can read", got, remedy) from error


def _video_stream(container: InputContainer, name: str) -> tuple[InputContainer, VideoStream]:
    is_text = container.format.name == "tty"  # FFmpeg draws text files as the screens of a terminal
    streams = () if is_text else container.streams.video
    stream = next((s for s in streams if s.codec_context is not None), None)
    if stream is None:
        container.close()
        remedy = "It may hold only sound, or a codec this FFmpeg lacks."
        raise VideoError("a video stream", f"none in {name!r} ({container.format.long_name})", remedy)
    # Notice damage that decoders would otherwise paint over; they mark such frames as corrupt.
    stream.codec_context.options = {"err_detect": "bitstream+buffer"}
    return container, stream


def _frame_count(stream: VideoStream) -> int | None:
    if stream.frames:
        return stream.frames
    if stream.duration and stream.time_base and stream.average_rate:
        return round(stream.duration * stream.time_base * stream.average_rate)
    return None


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame | Skipped]:
    """All frames of a stream, going on after damaged packets; closes the container."""
    number = 0
    with closing(container):
        for packet in _packets(container, stream):
            try:
                items: list[Any] = [packet] if isinstance(packet, Skipped) else packet.decode()
            except FFmpegError as error:
                items = [Skipped(f"frame {number}", str(error.strerror))]
            for item in items:
                if isinstance(item, Skipped):
                    yield item
                elif item.is_corrupt:
                    yield Skipped(f"frame {number}", "damaged")
                else:
                    yield item
                number += 1


def _planes(item: VideoFrame | Pixels) -> Yuv420 | None:
    """A frame of 4:2:0 and even size as it is; None for others."""
    if isinstance(item, np.ndarray) or item.format.name not in ("yuv420p", "yuvj420p"):
        return None
    height, width = item.height, item.width
    if height % 2 or width % 2:
        return None
    data, first = np.empty((height * 3 // 2, width), np.uint8), 0
    for n, plane in enumerate(item.planes):
        rows, columns = (height, width) if n == 0 else (height // 2, width // 2)
        stored = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:rows, :columns]
        data.reshape(-1)[first : first + stored.size].reshape(stored.shape)[:] = stored
        first += stored.size
    standard: Literal["bt601", "bt709"] = "bt709" if item.colorspace == Colorspace.ITU709 else "bt601"
    full_range = item.format.name == "yuvj420p" or item.color_range == ColorRange.JPEG
    return Yuv420(data, standard, full_range)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Any]:
    """The stream's packets, the empty one that flushes the decoder last; Skipped for what cannot be read."""
    read = failures = 0
    packets = container.demux(stream)
    while failures < MAX_FAILED_READS:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except FFmpegError as error:
            failures += 1
            yield Skipped("a part of the file", str(error.strerror))
            packets = container.demux(stream)
        else:
            failures = 0
            read += packet.size > 0
            yield packet
    if read < stream.frames:
        yield Skipped("a part of the file", f"it claims {stream.frames} frames, and holds {read}")


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """Digits compare as numbers; the name itself settles 1.png against 01.png."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _read_image(path: Path) -> Pixels | Skipped:
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # convert() would clip 16 bits to 255, not scale them
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        return Skipped(path.name, "not an image")
    except Exception as error:  # Pillow's decoders raise almost any kind on damaged data
        return Skipped(path.name, f"damaged image ({error})")
