"""Trains a binary network for the 17 key points (COCO's) of one person: heat maps at an eighth of 256x192.

    python recipes/label.py --data FOLDER
    python recipes/train_pose.py --out runs/pose_float --float     # its float twin, to begin with
    python recipes/train_pose.py --out runs/pose --start TWIN --teacher TWIN    # its .pth

Targets and loss are those of SimpleBaseline (Xiao et al., 2018): a Gaussian of a cell round each point,
squared error. Output: 17 maps of 32x24 cells; xnor_rrm.decoding.PointDecoding finds their peaks. Trained on
persons of all clips and the first third of dance.mp4; judged on its last third.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from augment import Array, Clip, Frame, Rng, View, log_uniform, recolour
from binary import Body, head, split_cells
from label import PERSON_TRAIN, SEEN, default_folder, overlap, stem
from torch import Tensor, nn
from training import Batch, arguments, outputs_of, train, truth_of

from xnor_rrm.decoding import Placement, PointDecoding
from xnor_rrm.evaluate import score

SIZE, CELL = (256, 192), 8
CELLS = (SIZE[0] // CELL, SIZE[1] // CELL)
SIGMA = 1.0
NAMES = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)
BONES = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
)
DECODING = PointDecoding(cell=CELL, bones=BONES, split=2)
#: Channels, stride, dilation. A point is placed by what is seen of the whole person.
LAYERS = ((128, 2, 1), (128, 1, 1), (256, 2, 1), (512, 1, 1), (512, 1, 2), (256, 1, 1))
MIRRORED = [0, *(i + 1 if i % 2 else i - 1 for i in range(1, 17))]
#: A point scored below this has an empty map; between it and SEEN a map does not count.
HIDDEN = 0.15
DANCE = "dance.mp4"
SHARES = {DANCE: 3.0, "vtest.avi": 3.0, "imagenet_sample224": 1.0, "biking.avi": 1.0}


class PoseNetwork(nn.Module):
    """float[N, 3, 256, 192] normalised -> float[N, 68, 16, 12]: 17 values for each of 2x2 cells."""

    def __init__(self, *, binary: bool = True) -> None:
        super().__init__()
        self.body, self.head = Body(LAYERS, binary=binary), head(LAYERS[-1][0], 17)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def standard_view(box: Array, factor: float = 1.25) -> View:
    """The box in the middle, with room round it."""
    size = (box[2:4] - box[:2]) * factor
    scale = SIZE[0] / max(size[1], size[0] * 4 / 3)
    return View.around((box[:2] + box[2:4]) / 2, (scale, scale), SIZE)


def sample(clips: Sequence[Clip], rng: Rng) -> list[tuple[Frame, Array]]:
    """Two images, a frame and the next one seen alike, and the points of each, float32[17, 3]."""
    shares = np.array([SHARES.get(each.name, 0.5) for each in clips])
    clip = clips[rng.choice(len(clips), p=shares / shares.sum())]
    row = clip.points[rng.integers(len(clip.points))]
    box = row[1:5]
    plain = SIZE[0] / max(box[3] - box[1], (box[2] - box[0]) * 4 / 3)
    scale = plain * log_uniform(rng, 0.5, 1.0)
    mirror = rng.choice([-1, 1])
    angle = np.deg2rad(np.clip(rng.normal(0, 15), -40, 40)) * (rng.random() < 0.6)
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    place = rng.uniform(0.42, 0.58, 2)
    view = View.around((box[:2] + box[2:]) / 2, (mirror * scale * stretch, scale), SIZE, place, angle)
    colours, hide, seed = rng.integers(1 << 62), rng.random() < 0.4, rng.integers(1 << 62)
    pair = []
    for each in (row, same_person_after(clip, row)):
        points = each[6:].reshape(17, 3).copy()
        points[:, :2] = view.points(points[:, :2])
        if mirror < 0:
            points = points[MIRRORED]
        image = recolour(view(clip.frames[int(each[0])]), np.random.default_rng(colours), rng)
        if hide:  # something in front of the person
            again = np.random.default_rng(seed)
            for _ in range(again.integers(1, 4)):
                h, w = again.integers(12, 56, 2)
                top, left = again.integers(0, SIZE[0] - h), again.integers(0, SIZE[1] - w)
                image[top : top + h, left : left + w] = again.integers(0, 256, 3)
        pair.append((image, points))
    return pair


def same_person_after(clip: Clip, row: Array) -> Array:
    """The row of the person in the next frame, or the same one again."""
    there = clip.points[clip.points[:, 0] == clip.after(int(row[0]))]
    if not len(there):
        return row
    union, _ = overlap(row[1:5], there[:, 1:5])
    return there[union.argmax()] if union.max() > 0.5 else row


def targets(points: Array) -> tuple[Array, Array]:
    """Of one image: heat maps float32[17, 32, 24] and whether each counts, float32[17, 1, 1]."""
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
    output = split_cells(output)
    return {"heat": ((output - heat) ** 2 * counts).sum() / (heat**2).sum().clamp(min=1)}


def unlike(output: Tensor, teacher: Tensor) -> Tensor:
    """Squared error against the teacher's maps, over their own size."""
    return ((output - teacher) ** 2).sum() / (teacher**2).sum().clamp(min=1)


@torch.no_grad()
def evaluate(model: nn.Module, clip: Clip, every: int = 2) -> dict[str, float]:
    """PCK@0.2 on the last third of a clip: the person cut out by the detector's box, and the whole frame."""
    rows = clip.points[clip.points[:, 0] >= len(clip.frames) * 2 // 3][::every]
    whole, figures = View.whole(*clip.frames.shape[1:3], SIZE), {}
    for name in ("pck", "pck_whole"):
        views = [standard_view(row[1:5]) if name == "pck" else whole for row in rows]
        outputs = outputs_of(
            model, [np.asarray(view(clip.frames[int(row[0])])) for view, row in zip(views, rows, strict=True)]
        )
        labels = rows.copy()
        for label, view in zip(labels, views, strict=True):
            label[1:5] = view.boxes(label[None, 1:5])
            points = label[6:].reshape(17, 3)
            points[:, :2] = view.points(points[:, :2])
        numbers = [int(row[0]) for row in rows]
        found = {
            n: DECODING.decode(maps, Placement.whole(SIZE)) for n, maps in zip(numbers, outputs, strict=True)
        }
        figures[name] = score(truth_of(clip.name, labels, numbers, SIZE), found)["pck"] or 0.0
    return figures


def make_batch(clips: Sequence[Clip], rng: Rng, size: int) -> Batch:
    pairs = zip(*(sample(clips, rng) for _ in range(size // 2)), strict=True)
    images, points = zip(*(each for half in pairs for each in half), strict=True)
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
    args = arguments(argv, __doc__, steps=(3000, 1500), lr=(2e-3, 1e-3), batch=24, calm=(0.2, 1.0))
    labels: Path = args.labels or default_folder()
    training = training_clips(labels)
    dance = Clip.load(labels, DANCE)
    train(
        args,
        "pose_float" if args.float else "pose",
        lambda binary: PoseNetwork(binary=binary),
        lambda rng, size: make_batch(training, rng, size),
        loss,
        unlike,
        lambda model: evaluate(model, dance),
        SIZE,
        decoding=DECODING,
        labels=NAMES,
        info={"source": "recipes/train_pose.py", "teacher": "SimplePose", "licence": "Apache-2.0"},
    )


if __name__ == "__main__":
    main()
