"""Answers drawn into frames, what was recomputed beside them, and videos of such frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont

from .decoding import Answer, Detections, KeyPoints, PointDecoding
from .errors import VideoError
from .frames import Pixels, check_frame
from .model import Model
from .preprocess import Preprocessor
from .report import label, short
from .stats import over_input
from .stream import Stream

Floats = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

#: Of classes and key points, in turns: bright, for black text; black edges set them off from bright frames.
COLOURS: tuple[Colour, ...] = (
    (255, 159, 28),
    (46, 216, 230),
    (170, 230, 60),
    (255, 112, 166),
    (255, 228, 80),
    (176, 140, 255),
    (80, 235, 150),
    (255, 105, 85),
    (110, 175, 255),
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

#: Colours of shares recomputed, none to all, evenly spaced by their square roots: a twentieth is to be seen.
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))

#: Most characters of a class's name.
NAME_LENGTH = 40

#: Frames a second of sources that do not say.
DEFAULT_RATE = 25


def recomputed_map(stream: Stream) -> Floats:
    """float64[H, W] over the input: share of outputs that the last frame computed.

    A step counts by its multiply-accumulates.
    """
    masks = zip(stream.computed(), stream.stats, strict=True)
    return over_input([(mask, step.macs) for mask, step in masks], *stream.model.input_shape[:2])


def draw(frame: Pixels, answer: Answer, model: Model, recomputed: Floats | None = None) -> Pixels:
    """uint8[H, W, 3]: the frame with the model's answer in it; `frame` itself stays as it is.

    Boxes with label and score, the surest on top; visible key points and the bones between them; of a
    classifier the first class and its logit. Lines and text grow with the frame.

    recomputed : what `recomputed_map` gives. It is shown over the network's input in the lower right corner,
        from black and violet, little, to yellow, all was computed again; under it stands its mean.
    Raises FrameError where the frame is none.
    """
    check_frame(frame)
    image = Image.fromarray(frame)
    pen = _Pen(image)
    if isinstance(answer, Detections):
        for i in reversed(range(len(answer))):
            number = int(answer.classes[i])
            pen.box(answer.boxes[i], label(model, number), float(answer.scores[i]), _colour(number))
    elif isinstance(answer, KeyPoints):
        decoding = model.decoding
        pen.person(answer, decoding.bones if isinstance(decoding, PointDecoding) else ())
    else:
        top = int(answer.argmax())
        pen.title(label(model, top), float(answer[top]), _colour(top))
    if recomputed is not None:
        pen.inset(_heat(Preprocessor(model.input_rule)(frame), recomputed), float(recomputed.mean()))
    return np.array(image)


def _colour(number: int) -> Colour:
    return COLOURS[number % len(COLOURS)]


def _heat(seen: Pixels, shares: Floats) -> Pixels:
    """uint8[H, W, 3], colours over the network's input in grey."""
    places = np.linspace(0, 1, len(HEAT))
    roots, grey = np.sqrt(shares), 48 + 0.6 * seen.mean(axis=2, keepdims=True)
    colours = np.stack([np.interp(roots, places, channel) for channel in zip(*HEAT, strict=True)], 2)
    mixed: Pixels = (0.4 * grey + 0.6 * colours).astype(np.uint8)
    return mixed


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


class _Pen:
    """Draws into one image, in sizes that suit it: coloured lines edged with black, text on a ground."""

    def __init__(self, image: Image.Image) -> None:
        self._image, self._draw = image, ImageDraw.Draw(image)
        shorter = min(image.size)
        self._line = max(1, round(shorter / 200))
        self._edge = max(1, round(shorter / 500))
        self._font = _font(max(10, round(shorter / 30)))
        self._pad = self._font.size // 4
        self._text_height = sum(self._font.getmetrics()) + self._pad

    def box(self, corners: npt.NDArray[Any], name: str, score: float, colour: Colour) -> None:
        """corners : left, top, right, bottom."""
        (left, top), (right, bottom) = self._places(corners.reshape(2, 2))
        right, bottom, edge = max(left, right - 1), max(top, bottom - 1), self._edge
        around = (left - edge, top - edge, right + edge, bottom + edge)
        self._draw.rectangle(around, outline=BLACK, width=self._line + 2 * edge)
        self._draw.rectangle((left, top, right, bottom), outline=colour, width=self._line)
        above = top - edge - self._text_height
        self._words(self._caption(name, score), left - edge, above if above >= 0 else top, colour)

    def person(self, answer: KeyPoints, bones: tuple[tuple[int, int], ...]) -> None:
        """Points that are visible, and the bones between such."""
        places = self._places(np.floor(answer.points))
        shown = [(a, b) for a, b in bones if answer.visible[a] and answer.visible[b]]
        for a, b in shown:
            self._draw.line((*places[a], *places[b]), BLACK, self._line + 2 * self._edge)
        for a, b in shown:
            self._draw.line((*places[a], *places[b]), _colour(b), self._line)
        radius = self._line + self._edge
        for number in np.flatnonzero(answer.visible).tolist():
            x, y = places[number]
            around = (x - radius, y - radius, x + radius, y + radius)
            self._draw.ellipse(around, _colour(number), BLACK, self._edge)

    def title(self, name: str, score: float, colour: Colour) -> None:
        """In the upper left corner."""
        self._words(self._caption(name, score), self._pad, self._pad, colour)

    def inset(self, picture: Pixels, share: float) -> None:
        """In the lower right corner, a quarter as wide as the image, at most half as high."""
        height, width, _ = picture.shape
        scale = min(self._image.width / width, 2 * self._image.height / height) / 4
        size = max(1, round(width * scale)), max(1, round(height * scale))
        left = self._image.width - size[0] - self._pad
        top = self._image.height - size[1] - self._text_height - self._pad
        edge = self._edge
        around = (left - edge, top - edge, left + size[0] + edge - 1, top + size[1] + self._text_height - 1)
        self._draw.rectangle(around, BLACK)
        self._image.paste(Image.fromarray(picture).resize(size, Image.Resampling.BOX), (left, top))
        texts = (f"recomputed {share:.0%}", f"{share:.0%}")
        text = texts[self._font.getlength(texts[0]) > size[0]]
        self._words(text, left, top + size[1], BLACK, WHITE)

    def _places(self, points: npt.NDArray[Any]) -> list[tuple[int, int]]:
        """Whole pixels of float[N, 2] x, y; not numbers, or outside of the image, they are moved into it."""
        inside = np.nan_to_num(points).clip(0, self._image.size)
        return [(x, y) for x, y in np.rint(inside).astype(int).tolist()]

    def _caption(self, name: str, score: float) -> str:
        """The name, shortened to what fits the image, and the score."""
        texts = (f"{short(name, length)} {score:.2f}" for length in range(NAME_LENGTH, 0, -1))
        room = self._image.width - self._pad
        return next((text for text in texts if self._font.getlength(text) <= room), f"{score:.2f}")

    def _words(self, text: str, left: int, top: int, ground: Colour, ink: Colour = BLACK) -> None:
        """Text on a ground of its size, moved into the image where it would stand out of it."""
        width = round(self._font.getlength(text)) + self._pad
        left = max(0, min(left, self._image.width - width))
        top = max(0, min(top, self._image.height - self._text_height))
        self._draw.rectangle((left, top, left + width - 1, top + self._text_height - 1), ground)
        self._draw.text((left + self._pad // 2, top + self._pad // 2), text, ink, self._font)


# --- videos ---------------------------------------------------------------------------------------


class VideoWriter:
    """Writes frames to an .mp4 file: H.264, or MPEG-4 Part 2 where FFmpeg has no encoder for it.

    path : of the file. It appears, or is replaced, when the writer is left, by an error too: whole, and
        with all frames written until then; without frames it is not touched.
    rate : frames a second, held between 0.01 and 1000.

    The first frame's size is that of the video, odd sides one pixel longer; other frames are resized to it.
    Raises VideoError where the path cannot be written, or FFmpeg refuses frames of this size.
    """

    SUFFIX = ".mp4"

    def __init__(self, path: Path, rate: Fraction | int) -> None:
        if path.suffix != self.SUFFIX or path.is_dir() or not path.parent.is_dir():
            raise VideoError(f"a file that ends in {self.SUFFIX}, in a folder that exists", repr(str(path)))
        held = min(max(Fraction(rate), Fraction(1, 100)), Fraction(1000))
        most = int(65535 / max(held, Fraction(1)))  # both parts have 16 bits in MPEG-4
        self._path, self._rate = path, held.limit_denominator(most)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._size = (0, 0)
        self._frames = 0

    def __enter__(self) -> VideoWriter:
        with self._refusals():
            # "file:", or a name with a colon could be another protocol's
            self._container = av.open(f"file:{self._temporary}", "w", format="mp4")
        self._temporary.touch()  # FFmpeg would find out frames later that it may not
        return self

    def write(self, frame: Pixels) -> None:
        """Append uint8[H, W, 3], RGB of any size. Raises FrameError for anything else."""
        check_frame(frame)
        if not self._frames:
            self._begin(*frame.shape[:2])
        if frame.shape[:2] != self._size:
            frame = np.array(Image.fromarray(frame).resize(self._size[::-1], Image.Resampling.BILINEAR))
        odd = [(0, side % 2) for side in self._size]
        picture = av.VideoFrame.from_ndarray(np.pad(frame, (*odd, (0, 0)), "edge"), format="rgb24")
        picture.pts, picture.time_base = self._frames, 1 / self._rate
        with self._refusals():
            self._container.mux(self._stream.encode(picture))
        self._frames += 1

    def _begin(self, height: int, width: int) -> None:
        self._size = height, width
        with self._refusals():
            stream = cast(VideoStream, self._container.add_stream(_encoder(), rate=self._rate))
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        if stream.codec_context.name == "libx264":
            stream.codec_context.options = {"preset": "veryfast", "crf": "20"}
        else:
            stream.bit_rate = min(int(height * width * self._rate / 4), 10**8)
        # More would go on while the next frame is computed, and timed.
        stream.codec_context.thread_count = 1
        self._stream = stream

    def __exit__(self, *_: object) -> None:
        try:
            with self._refusals():
                try:
                    if self._frames:
                        self._container.mux(self._stream.encode())
                finally:
                    self._container.close()
            if self._frames:
                os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """FFmpeg's errors as ours."""
        try:
            yield
        except FFmpegError as error:
            height, width = self._size
            expected = f"a video of {width}x{height} pixels that FFmpeg can write"
            got = f"{str(self._path)!r} ({error.strerror})"
            raise VideoError(expected, got, "The disk may be full, or the frames too large.") from error


@cache
def _encoder() -> str:
    """The best one there is."""
    for name in ("libx264", "libopenh264"):
        try:
            return Codec(name, "w").name
        except UnknownCodecError:
            pass
    return "mpeg4"
