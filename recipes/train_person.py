"""Trains a binary detector of persons for cameras: heat map and boxes at an eighth of the image, no anchors.

    python recipes/label.py --data FOLDER
    python recipes/train_person.py --out runs/person_float --float     # its float twin
    python recipes/train_person.py --out runs/person
    python recipes/train_person.py --out runs/person_calm ...          # a little further: recipes/README.md

The binary network begins with random weights. With the twin's it learns its clips better, but not those held
out: after 1,500 steps its heat's loss was 0.72 for 0.85, and AP50 on pets2001 0.41 for 0.44; with the twin's
answers to learn as well, 0.40 after 2,500. From random weights with those answers it had 0.25 after 1,500
steps, for 0.40 without.

Targets and losses follow CenterNet and TTFNet (Liu et al., 2020): a Gaussian at each person's centre under a
focal loss, and the distances to the box's four sides, learnt by IoU wherever that Gaussian is not small.

Output, by cell of 8x8 pixels: a logit, and the logarithms of the distances from the cell's middle to the
left, top, right and bottom side, in cells; xnor_rrm.decoding.BoxDecoding makes boxes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from augment import Array, Clip, Frame, Rng, View, log_uniform, recolour, relight
from binary import Body, head, split_cells
from label import PERSON_HELD_OUT, PERSON_TRAIN, SURE, default_folder, overlap, stem
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from training import Batch, arguments, input_rule, outputs_of, step_of, train, truth_of

from xnor_rrm import evaluate as scoring
from xnor_rrm.decoding import BoxDecoding, Placement
from xnor_rrm.preprocess import Preprocessor

SIZE, CELL = (192, 320), 8
CELLS = (SIZE[0] // CELL, SIZE[1] // CELL)
DECODING = BoxDecoding(cell=CELL, split=2)
#: Channels, stride and dilation. With 512 channels in the fourth and fifth, as the key points have, AP50 on
#: pets2001 was 0.37 after 2,000 steps, the fifth dilated or not; with these it was 0.42.
#: One more layer of 256 before the last of a trained network, 1,500 steps, twice: 0.45 and 0.40 on pets2001
#: for 0.48, 0.15 and 0.22 on dance.mp4 for 0.06 (its twin 0.46 and 0.11, for 0.52 and 0.05), and 3 to 9 %
#: more time a cached frame.
LAYERS = ((128, 2, 1), (128, 1, 1), (256, 2, 1), (256, 1, 1), (256, 1, 1), (256, 1, 1))
#: How often each clip is drawn: by what there is to learn from it.
SHARES = {"vtest.avi": 6, "imagenet_sample224": 3, "bikes.mp4": 2, "biking.avi": 1.5, "highway.mp4": 1.5}


class PersonDetector(nn.Module):
    """float[N, 3, H, W] normalised -> float[N, 20, H / 16, W / 16]: five values for each of 2x2 cells."""

    def __init__(self, *, binary: bool = True) -> None:
        super().__init__()
        self.body, self.head = Body(LAYERS, binary=binary), head(LAYERS[-1][0], 5)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([-4.0, 0.5, 0.5, 0.5, 0.5]).repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


# Samples


def random_view(clip: Clip, persons: Array, rng: Rng) -> View:
    """All of the frame, more or less; or a person of any size in it."""
    height, width = clip.frames.shape[1:3]
    mirror, stretch = rng.choice([-1, 1]), np.exp(rng.uniform(-0.15, 0.15))
    fit = min(SIZE[0] / height, SIZE[1] / width)
    sure = persons[persons[:, 4] >= SURE]
    if len(sure) and rng.random() < 0.5:
        box = sure[rng.integers(len(sure))]
        wanted = log_uniform(rng, 18, 180) / max(box[3] - box[1], box[2] - box[0])
        scale = float(np.clip(wanted, 0.6 * fit, 3.0))
        centre, place = (box[:2] + box[2:4]) / 2, rng.uniform(0.15, 0.85, 2)
    else:
        scale = fit * log_uniform(rng, 0.8, 1.6)
        centre, place = np.array([width, height]) / 2, rng.uniform(0.4, 0.6, 2)
    return View.around(centre, (mirror * scale * stretch, scale), SIZE, place)


def paste_person(image: Image.Image, boxes: Array, clips: Sequence[Clip], rng: Rng) -> Array:
    """Puts a person of some clip into `image`, in other colours and soft at the edges, where there is room.

    boxes : what is in the image.  Returns them, with the new one if there was room.
    """
    clip = clips[rng.integers(len(clips))]
    sure = clip.persons[clip.persons[:, 5] >= SURE + 0.05]
    row = sure[rng.integers(len(sure))]
    box, grown = row[1:5], (row[3:5] - row[1:3]) * 0.08
    size = box[2:] - box[:2]
    scale = min(log_uniform(rng, 20, 150) / max(size), 3.0)
    low = rng.uniform((0, 0), np.maximum(1, (SIZE[1], SIZE[0]) - size * scale))
    new = np.array([*low, *(low + size * scale), row[5]], np.float32)
    shared, part = overlap(new, boxes) if len(boxes) else (np.zeros(1), np.zeros(1))
    outside = new[2] > SIZE[1] or new[3] > SIZE[0]
    if outside or shared.max() > 0.2 or part.max() > 0.4 or min(size * scale) < 5:
        return boxes
    cut = View.around(
        (box[:2] + box[2:]) / 2,
        (rng.choice([-1, 1]) * scale, scale),
        tuple(((size + 2 * grown) * scale).astype(int)[::-1]),
    )
    y, x = (np.abs(np.linspace(-1, 1, n)) for n in cut.size)
    mask = (1 - np.maximum(y[:, None] ** 4 + x[None] ** 4, 0)).clip(0, 0.5) * 2 * 255
    corner = tuple(int(v) for v in low - grown * scale)
    person = relight(cut(clip.frames[int(row[0])]), rng, 2.0)
    image.paste(person, corner, Image.fromarray(mask.astype(np.uint8)))
    return np.concatenate([boxes, new[None]])


def sample(clips: Sequence[Clip], rng: Rng) -> list[tuple[Frame, Array]]:
    """Two images, a frame and the next one seen alike, and the boxes float32[M, 5] of each, uncertain too."""
    shares = np.array([SHARES.get(each.name, 1.0) for each in clips])
    clip = clips[rng.choice(len(clips), p=shares / shares.sum())]
    frame = int(rng.integers(len(clip.frames)))
    view = random_view(clip, clip.persons_in(frame), rng)
    givers = [each for each in clips if (each.persons[:, 5] >= SURE + 0.05).sum() > 50]
    crowd, chance, *seeds = int(rng.integers(1, 4)), rng.random(), *rng.integers(1 << 62, size=2)
    pair = []
    for number in (frame, clip.after(frame)):
        persons = clip.persons_in(number)
        image, boxes = view(clip.frames[number]), view.boxes(persons)
        whole = (persons[:, 2:4] - persons[:, :2]).prod(1) * abs(np.linalg.det(view.matrix[:, :2]))
        left = (boxes[:, 2:4] - boxes[:, :2]).prod(1)
        boxes = boxes[left > 0.1 * whole]
        boxes[(left < 0.5 * whole)[left > 0.1 * whole], 4] = 0  # mostly cut off: uncertain
        again = np.random.default_rng(seeds[0])
        if not pair:
            pasted = bool(givers) and chance < (0.3 if (boxes[:, 4] >= SURE).any() else 0.7)
        for _ in range(crowd * pasted):
            boxes = paste_person(image, boxes, givers, again)
        pair.append((recolour(image, np.random.default_rng(seeds[1]), rng), boxes))
    return pair


# Targets and losses


def targets(boxes: Array) -> tuple[Array, Array, Array]:
    """Of one image, by cell: heat float32[h, w]; sides float32[5, h, w], x0, y0, x1, y1 in pixels and their
    weight; and whether the heat counts, float32[h, w]."""
    heat, counts = np.zeros(CELLS, np.float32), np.ones(CELLS, np.float32)
    sides, best = np.zeros((5, *CELLS), np.float32), np.full(CELLS, np.inf, np.float32)
    y, x = np.mgrid[: CELLS[0], : CELLS[1]]
    for x0, y0, x1, y1, score in boxes[np.argsort(boxes[:, 4])]:  # the uncertain first: labels overrule them
        if score < SURE:
            low, high = np.array([y0, x0]) / CELL, np.array([y1, x1]) / CELL
            counts[int(low[0]) : int(np.ceil(high[0])), int(low[1]) : int(np.ceil(high[1]))] = 0
            continue
        width, height = (x1 - x0) / CELL, (y1 - y0) / CELL
        cx = min(int((x0 + x1) / 2 / CELL), CELLS[1] - 1)
        cy = min(int((y0 + y1) / 2 / CELL), CELLS[0] - 1)
        sx, sy = max(0.54 * width / 6, 0.2), max(0.54 * height / 6, 0.2)
        bell = np.exp(-((x - cx) ** 2) / (2 * sx * sx) - (y - cy) ** 2 / (2 * sy * sy)).astype(np.float32)
        heat = np.maximum(heat, bell)
        area = width * height
        mine = (bell > 0.2) & (area < best)  # where two reach, the smaller has it
        best[mine] = area
        weight = bell / bell.sum() * np.log(area + 2)
        for plane, value in zip(sides, (x0, y0, x1, y1, weight), strict=True):
            plane[mine] = value[mine] if isinstance(value, np.ndarray) else value
    counts[heat > 0.3] = 1
    return heat, sides, counts


def boxes_of(raw: Tensor) -> Tensor:
    """float[N, 4, h, w] logarithms of distances -> x0, y0, x1, y1 in pixels."""
    h, w = raw.shape[2:]
    middle_y = (torch.arange(h) + 0.5).view(1, h, 1) * CELL
    middle_x = (torch.arange(w) + 0.5).view(1, 1, w) * CELL
    left, top, right, bottom = (raw.clamp(-4, 4).exp() * CELL).unbind(1)
    return torch.stack([middle_x - left, middle_y - top, middle_x + right, middle_y + bottom], 1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes [N, 4, ...], in [-1, 1]."""
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return shared / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def loss(output: Tensor, batch: Batch) -> dict[str, Tensor]:
    _, heat, sides, counts = batch
    output = split_cells(output)
    logit = output[:, 0]
    p = logit.sigmoid()
    centre = (heat >= 0.999).float()
    towards_1 = -functional.logsigmoid(logit) * (1 - p) ** 2 * centre
    towards_0 = -functional.logsigmoid(-logit) * p**2 * (1 - heat) ** 4 * counts * (1 - centre)
    weight = sides[:, 4]
    misfit = (1 - giou(boxes_of(output[:, 1:]), sides[:, :4])) * weight
    return {
        "heat": (towards_1 + towards_0).sum() / centre.sum().clamp(min=1),
        "box": 3 * misfit.sum() / weight.sum().clamp(min=1e-3),
    }


def unlike(output: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of heats, and distances' logarithms where the teacher sees a person."""
    output, teacher = split_cells(output), split_cells(teacher)
    p = teacher[:, 0].sigmoid()
    cross = functional.binary_cross_entropy_with_logits(output[:, 0], p, reduction="sum")
    own = functional.binary_cross_entropy_with_logits(teacher[:, 0], p, reduction="sum")
    sides = ((output - teacher)[:, 1:].abs().mean(1) * p).sum()
    return (cross - own + sides) / p.sum().clamp(min=1)


# How good answers are


@torch.no_grad()
def evaluate(model: nn.Module, clips: Sequence[Clip], every: int = 5) -> dict[str, float]:
    """AP50 on every fifth frame of each clip against the teacher, and the mean over clips."""
    decoding, prepare, figures = (
        replace(DECODING, threshold=scoring.LEAST_SCORE),
        Preprocessor(input_rule(SIZE, step_of(model))),
        {},
    )
    for clip in clips:
        view, numbers = View.whole(*clip.frames.shape[1:3], SIZE), range(0, len(clip.frames), every)
        boxes = [view.boxes(clip.persons_in(number)) for number in numbers]
        labels = [[number, *box] for number, each in zip(numbers, boxes, strict=True) for box in each]
        outputs = outputs_of(model, [prepare(clip.frames[number]).copy() for number in numbers])
        found = {
            number: decoding.decode(maps, Placement.whole(SIZE))
            for number, maps in zip(numbers, outputs, strict=True)
        }
        truth = truth_of(clip.name, labels, numbers, SIZE)
        figures[clip.name.split(".")[0]] = scoring.score(truth, found)["ap50"] or 0.0
    return {"ap50": round(float(np.mean(list(figures.values()))), 4), **figures}


def make_batch(clips: Sequence[Clip], rng: Rng, size: int) -> Batch:
    pairs = zip(*(sample(clips, rng) for _ in range(size // 2)), strict=True)
    images, boxes = zip(*(each for half in pairs for each in half), strict=True)
    planes = zip(*map(targets, boxes), strict=True)
    return (torch.from_numpy(np.stack(images)), *(torch.from_numpy(np.stack(each)) for each in planes))


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv, __doc__, steps=(3000, 3000), lr=(2e-3, 2e-3), batch=24, calm=(2.0, 3.0))
    labels: Path = args.labels or default_folder()
    training = [Clip.load(labels, stem(clip)) for clip in PERSON_TRAIN]
    held_out = [Clip.load(labels, stem(clip)) for clip in PERSON_HELD_OUT]
    train(
        args,
        "person_float" if args.float else "person",
        lambda binary: PersonDetector(binary=binary),
        lambda rng, size: make_batch(training, rng, size),
        loss,
        unlike,
        lambda model: evaluate(model, held_out),
        SIZE,
        decoding=DECODING,
        labels=("person",),
        info={"source": "recipes/train_person.py", "teacher": "FastestDet", "licence": "Apache-2.0"},
    )


if __name__ == "__main__":
    main()
