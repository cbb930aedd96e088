"""Labelled clips, and the random changes that make a few thousand frames suffice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from training import FILL

Array = npt.NDArray[np.float32]
Frame = npt.NDArray[np.uint8]
Rng = np.random.Generator


#: Folders of pictures that have nothing to do with each other.
STILLS = ("imagenet_sample224",)


@dataclass
class Clip:
    """frames : uint8[N, H, W, 3].  persons : float32[M, 6], points : float32[K, 57], as label.py has them."""

    name: str
    frames: Frame
    persons: Array
    points: Array

    @classmethod
    def load(cls, folder: Path, name: str) -> Clip:
        if not (folder / f"{name}.frames.npy").exists():
            raise SystemExit(f"no labels of {name} in {folder}: run recipes/label.py first")
        frames = np.load(folder / f"{name}.frames.npy", mmap_mode="r")
        persons, points = (np.load(folder / f"{name}.{kind}.npy") for kind in ("persons", "points"))
        return cls(name, frames, persons, points)

    def after(self, frame: int) -> int:
        """The frame after that one; the same where it is the last, or pictures are no clip."""
        return frame if self.name in STILLS else min(frame + 1, len(self.frames) - 1)

    def persons_in(self, frame: int) -> Array:
        """float32[M, 5]: x0, y0, x1, y1, score."""
        return self.persons[self.persons[:, 0] == frame, 1:]


@dataclass
class View:
    """A window on a frame: out = matrix @ (x, y, 1), both in pixels with the origin at the corner."""

    matrix: npt.NDArray[np.float64]
    size: tuple[int, int]  # (height, width) of what is seen

    @classmethod
    def around(
        cls,
        centre: tuple[float, float],
        scale: tuple[float, float],
        size: tuple[int, int],
        place: tuple[float, float] = (0.5, 0.5),
        angle: float = 0.0,
    ) -> View:
        """`centre` of the frame comes to `place`, (x, y) in parts of the view, turned by `angle` radians.

        scale : (x, y), view pixels a frame pixel; a negative one mirrors.
        """
        cos, sin = np.cos(angle), np.sin(angle)
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag(scale)
        target = np.array([place[0] * size[1], place[1] * size[0]])
        return cls(np.concatenate([linear, (target - linear @ centre)[:, None]], 1), size)

    @classmethod
    def whole(cls, height: int, width: int, size: tuple[int, int]) -> View:
        """All of a frame in the middle of the view, its aspect ratio kept."""
        scale = min(size[0] / height, size[1] / width)
        return cls.around((width / 2, height / 2), (scale, scale), size)

    def __call__(self, frame: Frame) -> Image.Image:
        image = Image.fromarray(frame)
        down = max(1, int(1 / np.sqrt(abs(np.linalg.det(self.matrix[:, :2])))))
        if down > 1:  # what follows looks at four pixels
            image = image.reduce(down)
        linear = np.linalg.inv(self.matrix[:, :2])
        inverse = np.concatenate([linear, -linear @ self.matrix[:, 2:]], 1) / down
        return image.transform(
            self.size[::-1],
            Image.Transform.AFFINE,
            tuple(inverse.ravel()),
            Image.Resampling.BILINEAR,
            fillcolor=FILL,
        )

    def points(self, xy: Array) -> Array:
        """float32[..., 2] of the frame -> of the view."""
        return (xy @ self.matrix[:, :2].T + self.matrix[:, 2]).astype(np.float32)

    def boxes(self, boxes: Array) -> Array:
        """float32[M, 4 + k], without a turn: clipped to the view."""
        ends = self.points(boxes[:, :4].reshape(-1, 2, 2))
        ends = np.concatenate([ends.min(1), ends.max(1)], 1)
        height, width = self.size
        return np.concatenate([ends.clip(0, (width, height, width, height)), boxes[:, 4:]], 1)


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def relight(image: Image.Image, rng: Rng, strength: float = 1.0) -> Image.Image:
    """Other light and contrast in each channel; now and then the channels in another order, or grey."""
    if rng.random() < 0.15 * strength:
        image = Image.merge("RGB", [image.getchannel(int(k)) for k in rng.permutation(3)])
    if rng.random() < 0.15:
        image = image.convert("L").convert("RGB")
    gain = rng.uniform(1 - 0.35 * strength, 1 + 0.35 * strength) * rng.uniform(0.9, 1.1, 3)
    middle = np.asarray(image.resize((1, 1), Image.Resampling.BOX), float).ravel()
    steps = (np.arange(256) - middle[:, None]) * (gain * rng.uniform(0.75, 1.25))[:, None]
    table = steps + (middle * gain + strength * rng.uniform(-12, 12))[:, None]
    return image.point(table.round().clip(0, 255).astype(int).ravel().tolist())


def recolour(image: Image.Image, rng: Rng, grain: Rng) -> Frame:
    """Another camera's colours, light, sharpness and noise; the noise itself is drawn from `grain`."""
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.5)))
    result = np.array(relight(image, rng))
    if rng.random() < 0.5:
        noise = grain.normal(0, rng.uniform(1, 8), result.shape[:2]).astype(np.int16)
        result = (result + noise[..., None]).clip(0, 255).astype(np.uint8)
    return result
