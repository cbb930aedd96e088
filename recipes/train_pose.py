"""Trains a binary network for the 17 key points (COCO's) of one person: heat maps at a quarter of 256x192.

    python recipes/label.py --data FOLDER
    python recipes/train_pose.py --out runs/pose
    python recipes/train_pose.py --out runs/pose_float --float     # its float twin, for comparison

Targets and loss are those of SimpleBaseline (Xiao et al., 2018): a Gaussian of two cells round each point,
squared error. Output: 17 maps of 64x48 cells; `decode` finds each one's peak, to a quarter of a cell. Trained
on persons of all clips and the first third of dance.mp4; judged on its last third.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from augment import Array, Clip, Frame, Rng, View, log_uniform, recolour
from binary import Body, float_layer
from label import PERSON_TRAIN, default_folder, refine, stem
from torch import Tensor, nn
from training import MEAN, STD, Batch, arguments, normalise, train

from xnor_rrm.model import InputRule

SIZE, CELL = (256, 192), 4
CELLS = (SIZE[0] // CELL, SIZE[1] // CELL)
SIGMA = 2.0
RULE = InputRule(crop=SIZE, resize=0, mean=MEAN, std=STD)
NAMES = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)
MIRRORED = [0, *(i + 1 if i % 2 else i - 1 for i in range(1, 17))]
LEFT_SHOULDER, RIGHT_HIP = NAMES.index("left_shoulder"), NAMES.index("right_hip")
#: A point's score: seen from SEEN on; below HIDDEN its map is to be empty; between, it does not count.
SEEN, HIDDEN = 0.35, 0.15
DANCE = "dance.mp4"
SHARES = {DANCE: 3.0, "vtest.avi": 3.0, "imagenet_sample224": 1.0, "biking.avi": 1.0}


class PoseNetwork(nn.Module):
    """float[N, 3, 256, 192] normalised -> float[N, 17, 64, 48]."""

    def __init__(self, *, binary: bool = True) -> None:
        super().__init__()
        self.body = Body(middle=1, low=2, binary=binary)
        self.narrow = nn.Conv2d(64, Body.STEM, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.sharpen = float_layer(Body.STEM, Body.STEM)
        self.head = nn.Conv2d(Body.STEM, 17, 1)
        with torch.no_grad():
            self.head.weight.normal_(0, 0.01)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        at4, at8 = self.body(x)
        return self.head(self.sharpen(at4 + self.upsample(self.narrow(at8))))


def standard_view(box: Array, factor: float = 1.25) -> View:
    """The box in the middle, with room round it."""
    size = (box[2:4] - box[:2]) * factor
    scale = SIZE[0] / max(size[1], size[0] * 4 / 3)
    return View.around((box[:2] + box[2:4]) / 2, (scale, scale), SIZE)


def sample(clips: Sequence[Clip], rng: Rng) -> tuple[Frame, Array]:
    """An image and its points, float32[17, 3]: x, y, score."""
    shares = np.array([SHARES.get(each.name, 0.5) for each in clips])
    clip = clips[rng.choice(len(clips), p=shares / shares.sum())]
    row = clip.points[rng.integers(len(clip.points))]
    box, points = row[1:5], row[6:].reshape(17, 3).copy()
    plain = SIZE[0] / max(box[3] - box[1], (box[2] - box[0]) * 4 / 3)
    scale = plain * log_uniform(rng, 0.5, 1.0)
    mirror = rng.choice([-1, 1])
    angle = np.deg2rad(np.clip(rng.normal(0, 15), -40, 40)) * (rng.random() < 0.6)
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    place = rng.uniform(0.42, 0.58, 2)
    view = View.around((box[:2] + box[2:]) / 2, (mirror * scale * stretch, scale), SIZE, place, angle)
    points[:, :2] = view.points(points[:, :2])
    if mirror < 0:
        points = points[MIRRORED]
    image = recolour(view(clip.frames[int(row[0])]), rng)
    if rng.random() < 0.4:  # something in front of the person
        image = image.copy()
        for _ in range(rng.integers(1, 4)):
            h, w = rng.integers(12, 56, 2)
            top, left = rng.integers(0, SIZE[0] - h), rng.integers(0, SIZE[1] - w)
            image[top : top + h, left : left + w] = rng.integers(0, 256, 3)
    return image, points


def targets(points: Array) -> tuple[Array, Array]:
    """Of one image: heat maps float32[17, 64, 48] and whether each counts, float32[17, 1, 1]."""
    x, y, score = points.T[:, :, None]
    inside = (x >= 0) & (x < SIZE[1]) & (y >= 0) & (y < SIZE[0])
    rows, columns = (np.arange(n, dtype=np.float32) + np.float32(0.5) for n in CELLS)
    across = np.exp(-((columns - x / CELL) ** 2) / np.float32(2 * SIGMA**2))
    down = np.exp(-((rows - y / CELL) ** 2) / np.float32(2 * SIGMA**2))
    seen = (score >= SEEN) & inside
    heat = (down * seen)[:, :, None] * across[:, None, :]
    counts = seen | (score < HIDDEN) | ~inside
    return heat, counts[:, :, None].astype(np.float32)


def loss(output: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Squared error over the Gaussians' own size: 1 for maps of zeros."""
    _, heat, counts = batch
    return {"heat": ((output - heat) ** 2 * counts).sum() / (heat**2).sum().clamp(min=1)}


def decode(output: Tensor) -> Array:
    """float32[N, 17, 3]: x, y in pixels of the input, height of the peak."""
    maps = output.numpy()
    points = np.array([[(*refine(each), each.max()) for each in image] for image in maps], np.float32)
    points[..., :2] = (points[..., :2] + 0.5) * CELL
    return points


def correct_points(found: Array, truth: Array, part: float = 0.2) -> float:
    """PCK: the share of points seen whose error is at most `part` of the torso, left shoulder to right hip.

    found, truth : float32[N, 17, 3] in any pixels; frames whose torso is not seen are left out.
    """
    torso = np.linalg.norm(truth[:, LEFT_SHOULDER, :2] - truth[:, RIGHT_HIP, :2], axis=1)
    known = (truth[:, LEFT_SHOULDER, 2] >= SEEN) & (truth[:, RIGHT_HIP, 2] >= SEEN)
    seen = (truth[:, :, 2] >= SEEN) & known[:, None]
    near = np.linalg.norm(found[:, :, :2] - truth[:, :, :2], axis=2) <= part * torso[:, None]
    return float(near[seen].mean())


@torch.no_grad()
def evaluate(model: nn.Module, clip: Clip, every: int = 2) -> dict[str, float]:
    """PCK@0.2 on the last third of a clip: the person cut out by the detector's box, and the whole frame."""
    rows = clip.points[clip.points[:, 0] >= len(clip.frames) * 2 // 3][::every]
    figures = {}
    for name in ("pck", "pck_whole"):
        height, width = clip.frames.shape[1:3]
        whole = View.whole(height, width, SIZE)
        views = [standard_view(row[1:5]) if name == "pck" else whole for row in rows]
        images = [np.asarray(view(clip.frames[int(row[0])])) for view, row in zip(views, rows, strict=True)]
        truth = rows[:, 6:].reshape(-1, 17, 3).copy()
        truth[:, :, :2] = [view.points(each[:, :2]) for view, each in zip(views, truth, strict=True)]
        parts = torch.from_numpy(np.stack(images)).split(16)
        found = np.concatenate([decode(model(normalise(part)).float()) for part in parts])
        figures[name] = round(correct_points(found, truth), 4)
    return figures


def make_batch(clips: Sequence[Clip], rng: Rng, size: int) -> Batch:
    images, points = zip(*(sample(clips, rng) for _ in range(size)), strict=True)
    planes = zip(*map(targets, points), strict=True)
    return (torch.from_numpy(np.stack(images)), *(torch.from_numpy(np.stack(each)) for each in planes))


def training_clips(folder: Path) -> list[Clip]:
    """Those of which persons have key points, and the first third of the dance."""
    clips = [Clip.load(folder, stem(name)) for name in (*PERSON_TRAIN, f"video/{DANCE}")]
    for clip in clips:
        seen = (clip.points[:, 6:].reshape(-1, 17, 3)[:, :, 2] >= SEEN).sum(1)
        third = clip.points[:, 0] < len(clip.frames) // 3 if clip.name == DANCE else True
        clip.points = clip.points[(seen >= 8) & third]
    return [clip for clip in clips if len(clip.points) >= 10]


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, steps=4000, batch=24, lr=2e-3).parse_args(argv)
    labels: Path = args.labels or default_folder()
    training = training_clips(labels)
    dance = Clip.load(labels, DANCE)
    train(
        args,
        "pose_float" if args.float else "pose",
        lambda: PoseNetwork(binary=not args.float),
        lambda rng, size: make_batch(training, rng, size),
        loss,
        lambda model: evaluate(model, dance),
        RULE,
    )


if __name__ == "__main__":
    main()
