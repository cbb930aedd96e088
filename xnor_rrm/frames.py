"""What a frame may be: RGB, luminance, or the planes Y, U and V that decoders have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import FrameError
from .model import InputRule

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Yuv420:
    """A frame in planes, YUV 4:2:0: what most videos hold, half the bytes of RGB, and no colours to be made.

    Streams of networks that letterbox RGB by areas (`InputRule.takes_planes`) resize each plane, and make RGB
    of what is left: values differ from those of RGB by rounding, and as four pixels share their colour.

    data : uint8[H * 3 // 2, W], H and W even: H rows of Y, then U, H // 2 by W // 2, then V, as many ("I420";
        OpenCV's COLOR_RGB2YUV_I420).
    standard : by which Y, U and V are made of RGB.
    full_range : whether they span 0 to 255, and not 16 to 235 and 16 to 240.
    """

    data: Pixels
    standard: Literal["bt601", "bt709"] = "bt601"
    full_range: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, 3), as of RGB."""
        height, width = self.data.shape
        return height * 2 // 3, width, 3

    def copy(self) -> Yuv420:
        """With data of its own."""
        return Yuv420(self.data.copy(), self.standard, self.full_range)


Frame = Pixels | Yuv420


def check_frame(frame: Any, rule: InputRule | None = None) -> None:
    """Raise FrameError unless `frame` is what a network of that rule takes; without one, RGB."""
    channels = rule.channels if rule else 3
    expected = "a frame as uint8[H, W, 3]" + (" or uint8[H, W]" if channels == 1 else "")
    if isinstance(frame, Yuv420):
        _check_planes(frame, rule, expected)
        return
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


def _check_planes(frame: Yuv420, rule: InputRule | None, expected: str) -> None:
    if not (rule and rule.takes_planes):
        raise FrameError(expected, "planes", "Pass RGB: only networks that letterbox by areas take planes.")
    data = frame.data
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2:
        got = f"{data.dtype.name}{list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise FrameError("planes as uint8[H * 3 // 2, W]", got, "Y, U and V follow one another in it.")
    if not data.size or data.shape[0] % 3 or data.shape[1] % 2:
        remedy = "A frame of an odd size has no such planes: pass RGB."
        raise FrameError("planes of even H and W as uint8[H * 3 // 2, W]", f"uint8{list(data.shape)}", remedy)
    if frame.standard not in ("bt601", "bt709"):
        raise FrameError("standard 'bt601' or 'bt709'", repr(frame.standard), "Most videos are of bt601.")
