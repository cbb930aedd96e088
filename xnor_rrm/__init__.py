"""Exact recurrent residual inference for binary networks on video.

model = xnor_rrm.embedded_model("person")
stream = model.stream()
for frame in xnor_rrm.read_video("clip.avi"):
    found = stream(frame)
"""

from __future__ import annotations

from .api import convert, embedded_model, load, read_video
from .decoding import BoxDecoding, Detections, KeyPoints, PointDecoding
from .errors import XnorError
from .frames import Yuv420
from .model import Model

__version__ = "0.1.0"

__all__ = [
    "BoxDecoding",
    "Detections",
    "KeyPoints",
    "Model",
    "PointDecoding",
    "XnorError",
    "Yuv420",
    "__version__",
    "convert",
    "embedded_model",
    "load",
    "read_video",
]
