"""Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real networks, images and clips; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("XNOR_RRM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set XNOR_RRM_DATA to its folder")  # it is not ours to carry
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For torch, which is not the faster for more on small networks."""
    torch = pytest.importorskip("torch")  # of an optional extra
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(frames: list[npt.NDArray[np.uint8]], tmp_path: Path) -> Path:
    """The frames of a test module's own fixture, as a folder of images."""
    path = tmp_path / "frames"
    path.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{i}.png")
    return path
