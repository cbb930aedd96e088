"""The networks that the package carries: small, of the task they claim, and cached bit for bit as dense."""

from __future__ import annotations

from importlib import resources
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from models import random_frames

import xnor_rrm
from xnor_rrm.api import EMBEDDED
from xnor_rrm.errors import XnorError
from xnor_rrm.video import VideoReader

TASKS = {"person": "detection", "pose": "pose", "vgg_small": "classification"}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_networks(name: str) -> None:
    file = resources.files("xnor_rrm") / "data" / f"{name}.xnor"
    assert len(file.read_bytes()) <= 1_500_000
    model = xnor_rrm.embedded_model(name)
    assert (model.name, model.task) == (name, TASKS[name])
    assert len(model.labels) == model.classes
    assert {"source", "licence"} <= model.info.keys()
    cached, dense = model.stream(), model.stream("dense")
    for motion in ("patch", "noise", "all", "still"):
        for frame in random_frames(np.random.default_rng(3), 3, 100, 170, motion):
            assert cached.values(frame).tobytes() == dense.values(frame).tobytes()


def test_the_default_is_the_detector_and_other_names_are_refused() -> None:
    assert xnor_rrm.embedded_model().name == "person"
    with pytest.raises(XnorError, match="one of person, pose, vgg_small, got 'default'"):
        xnor_rrm.embedded_model("default")


def test_the_detector_finds_persons_of_a_clip(data_folder: Path) -> None:
    """Six to nine are about in the first frames of vtest.avi, on the road and the path."""
    stream = xnor_rrm.embedded_model("person").stream()
    for frame in islice(VideoReader(data_folder / "video" / "vtest.avi"), 20):
        found = stream(frame)
        assert 2 <= len(found) <= 14
        size = found.boxes[:, 2:] - found.boxes[:, :2]
        assert ((size > 10) & (size < 300)).all()


def test_the_pose_network_finds_a_dancer(data_folder: Path) -> None:
    model = xnor_rrm.embedded_model("pose")
    stream = model.stream()
    for frame in islice(VideoReader(data_folder / "video" / "dance.mp4"), 100, 120):
        found = stream(frame)
        y = dict(zip(model.labels, found.points[:, 1], strict=True))
        assert found.visible.mean() > 0.6
        assert y["nose"] < y["left_shoulder"] < y["left_hip"] < y["left_ankle"]
