"""Labels frames of clips for training: boxes of persons by FastestDet, 17 key points by SimplePose.

    python recipes/label.py --data FOLDER [--out CACHE/labels]
    python recipes/label.py --data FOLDER --coco-only     # the .json files again, from the .npy files

FOLDER is that of public networks and clips: `float/fastestdet/FastestDet.onnx`,
`float/simplepose/deploy.onnx`, `video/`, `images/`. For each clip named in CLIPS the output holds

    NAME.frames.npy    uint8[N, H, W, 3], RGB, no side above 640 (a memory map when it is read)
    NAME.persons.npy   float32[M, 6]: frame, x0, y0, x1, y1, score; pixels of those frames
    NAME.points.npy    float32[K, 57]: frame, box (4), score of the box, then x, y, score of each of 17
                       points; dance.mp4 has those of its label file, which were not made here
    NAME.persons.json  the persons as COCO has them, for `xnor-rrm evaluate`: in pixels of the clip's own
                       frames, with the uncertain ones as crowds
    NAME.points.json   persons with key points, of frames with one person only: a pose network answers one
    dance.mp4.points_last_third.json   of those, the part that no network is trained on

A box with a score below SURE is no label but a place where training neither rewards nor punishes an answer.
The teachers run once, on one thread, in OpenVINO; all of it takes a few minutes. None of it may be published.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xnor_rrm import read_video

Array = npt.NDArray[np.float32]
Frame = npt.NDArray[np.uint8]

#: Clips (and a folder of single pictures) by use; cup.mp4 is a lone arm, wallflower too small.
PERSON_TRAIN = (
    "video/vtest.avi",
    "video/biking.avi",
    "video/rowing.avi",
    "video/bikes.mp4",
    "video/makeup.avi",
    "video/carphone_pristine.mp4",
    "video/highway.mp4",
    "video/car-detection.mp4",
    "images/imagenet_sample224",
)
PERSON_HELD_OUT = ("video/pets2001_ds3_cam1_jpg", "video/dance.mp4")
CLIPS = PERSON_TRAIN + PERSON_HELD_OUT

LONGEST = 640
#: Scores of FastestDet: a label from SURE on, uncertain from MAYBE on.
SURE, MAYBE = 0.6, 0.35
#: Factor of scores in quarters of a frame: the teacher sees more small persons there, and more that are none.
CLOSER = 0.85
#: Clips of fixed cameras: what stands at one place in this part of the frames is a tripod or a cone.
FIXED, STANDS = ("vtest.avi", "pets2001_ds3_cam1_jpg"), 0.2
#: Least score of a key point that counts as seen, as train_pose.py has it.
SEEN = 0.35
#: Persons at least this many pixels high, in the clip's own frames, get key points.
POINTS_FROM = 72
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def default_folder() -> Path:
    """Where labels lie unless told otherwise: outside every repository."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "xnor_rrm" / "labels"


def stem(clip: str) -> str:
    return Path(clip).name


def overlap(box: Array, boxes: Array) -> tuple[Array, Array]:
    """Intersection of (x0, y0, x1, y1) with each of [M, 4]: over the union, and over the smaller area."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:4], boxes[:, 2:4])
    shared = (high - low).clip(0).prod(1)
    area, areas = (box[2:4] - box[:2]).prod(), (boxes[:, 2:4] - boxes[:, :2]).prod(1)
    return shared / (area + areas - shared + 1e-9), shared / (np.minimum(area, areas) + 1e-9)


def suppress(boxes: Array, union: float = 0.45, inside: float = 0.75) -> Array:
    """Rows (x0, y0, x1, y1, score) by falling score, less those that overlap a better one too much."""
    left, kept = boxes[np.argsort(-boxes[:, 4], kind="stable")], []
    while len(left):
        kept.append(left[0])
        iou, part = overlap(left[0], left[1:])
        left = left[1:][(iou < union) & (part < inside)]
    return np.array(kept, np.float32).reshape(-1, 5)


def compiled(path: Path) -> Callable[[Array], Array]:
    """A network as a function from float32[1, 3, H, W] to its first output without the batch."""
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1})
    network = core.compile_model(str(path), "CPU")
    return lambda x: network([x])[0][0]


class FastestDet:
    """Persons in a frame: in all of it, and closer in four overlapping quarters of it."""

    def __init__(self, path: Path) -> None:
        self.network = compiled(path)

    def once(self, image: Frame) -> Array:
        """float32[M, 5]: boxes in pixels and their scores, overlapping ones too."""
        height, width = image.shape[:2]
        small = Image.fromarray(image).resize((352, 352), Image.Resampling.BILINEAR)
        bgr = np.asarray(small)[:, :, ::-1].transpose(2, 0, 1)
        out = self.network(bgr[None].astype(np.float32) / 255)
        score = out[0] ** 0.6 * out[5] ** 0.4 * (out[5:].argmax(0) == 0)
        y, x = np.mgrid[:22, :22]
        centre = np.stack([(np.tanh(out[1]) + x) / 22 * width, (np.tanh(out[2]) + y) / 22 * height], -1)
        half = np.stack([width / (1 + np.exp(-out[3])), height / (1 + np.exp(-out[4]))], -1) / 2
        size = np.array([width, height])
        corners = [(centre - half).clip(0, size), (centre + half).clip(0, size)]
        rows = np.concatenate([*corners, score[..., None]], -1).reshape(-1, 5)
        return rows[rows[:, 4] >= MAYBE].astype(np.float32)

    def __call__(self, image: Frame) -> Array:
        height, width = image.shape[:2]
        found, h, w = [self.once(image)], height * 3 // 5, width * 3 // 5
        for top in (0, height - h):
            for left in (0, width - w):
                rows = self.once(np.ascontiguousarray(image[top : top + h, left : left + w]))
                cut_x = rows[:, 0] < 4 if left else rows[:, 2] > w - 4
                cut_y = rows[:, 1] < 4 if top else rows[:, 3] > h - 4
                rows = rows[~(cut_x | cut_y)] + np.array([left, top, left, top, 0], np.float32)
                rows[:, 4] *= CLOSER
                found.append(rows[(rows[:, 3] - rows[:, 1] < 0.4 * height) & (rows[:, 4] >= MAYBE)])
        return suppress(np.concatenate(found))


class SimplePose:
    """17 key points of the person in a box."""

    def __init__(self, path: Path) -> None:
        self.network = compiled(path)

    def __call__(self, image: Frame, box: Array) -> Array:
        """float32[17, 3]: x, y in pixels of the frame, score."""
        centre, size = (box[:2] + box[2:4]) / 2, (box[2:4] - box[:2]) * 1.25
        height = max(size[1], size[0] * 4 / 3)
        corner, scale = centre - (height * 3 / 8, height / 2), height / 256
        window = (*corner, corner[0] + height * 3 / 4, corner[1] + height)
        crop = Image.fromarray(image).transform(
            (192, 256), Image.Transform.EXTENT, window, Image.Resampling.BILINEAR
        )
        x = (np.asarray(crop, np.float32) / 255 - MEAN) / STD
        maps = self.network(x.transpose(2, 0, 1)[None].astype(np.float32))
        points = np.array([(*refine(each), each.max()) for each in maps], np.float32)
        points[:, :2] = (points[:, :2] * 4 + 0.5) * scale + corner
        return points


def refine(heat: Array) -> tuple[float, float]:
    """(x, y) of the largest value of a map, a quarter of a cell towards the larger neighbour on each axis."""
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    padded = np.pad(heat, 1, mode="edge")
    return (
        x + 0.25 * np.sign(padded[y + 1, x + 2] - padded[y + 1, x]),
        y + 0.25 * np.sign(padded[y + 2, x + 1] - padded[y, x + 1]),
    )


def read_dance(path: Path) -> Array:
    """float32[N, 17, 3] by frame of the SLEAP label file: x, y, score; 0 where there is no point."""
    import h5py

    with h5py.File(path) as file:
        frames, instances, points = file["frames"][:], file["instances"][:], file["pred_points"][:]
    result = np.zeros((len(frames), 17, 3), np.float32)
    for frame in frames:
        mine = instances[int(frame["instance_id_start"]) : int(frame["instance_id_end"])]
        predicted = next(each for each in mine if each["instance_type"] == 1)
        rows = points[int(predicted["point_id_start"]) : int(predicted["point_id_end"])]
        result[frame["frame_idx"]] = np.stack([rows["x"], rows["y"], rows["score"]], 1)
    return np.nan_to_num(result)


def read_frames(path: Path) -> Iterator[Frame]:
    """Frames of a clip, or the single pictures of a folder whose sizes differ, cut to a square."""
    if path.parent.name != "images":
        yield from read_video(path)
        return
    for file in sorted(path.glob("*.jpg")):
        image = Image.open(file).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        yield np.asarray(image.resize((224, 224), box=(left, top, left + side, top + side)))


def doubt_what_stands(persons: Array, frames: int) -> None:
    """Makes those of float32[M, 6] uncertain that have a box at their place in many other frames."""
    for row in persons:
        there = persons[overlap(row[1:5], persons[:, 1:5])[0] > 0.55, 0]
        if row[5] >= SURE and len(np.unique(there)) > STANDS * frames:
            row[5] = MAYBE


def shrinking(frame: Frame) -> float:
    """The factor by which frames of a clip are resized."""
    return min(1.0, LONGEST / max(frame.shape[:2]))


def label(data: Path, clip: str, out: Path) -> str:
    detector = FastestDet(data / "float/fastestdet/FastestDet.onnx")
    pose = SimplePose(data / "float/simplepose/deploy.onnx")
    dance = clip.endswith("dance.mp4")
    known = read_dance(data / "video/labels/dance.mp4.labels.slp") if dance else None
    frames, persons, points = [], [], []
    for number, frame in enumerate(read_frames(data / clip)):
        factor = shrinking(frame)
        size = (round(frame.shape[1] * factor), round(frame.shape[0] * factor))
        frames.append(np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)))
        boxes = detector(frame)
        persons += [(number, *(box[:4] * factor), box[4]) for box in boxes]
        for box in boxes:
            if box[4] >= SURE and box[3] - box[1] >= POINTS_FROM:
                found = pose(frame, box) if known is None else known[number]
                row = np.concatenate([box[:4], box[4:], found.ravel()])
                row[:4] *= factor
                row[5:].reshape(17, 3)[:, :2] *= factor
                points.append((number, *row))
                if known is not None:
                    break
    folder, table = out / stem(clip), np.array(persons, np.float32).reshape(-1, 6)
    if stem(clip) in FIXED:
        doubt_what_stands(table, len(frames))
    np.save(f"{folder}.frames.npy", np.stack(frames))
    np.save(f"{folder}.persons.npy", table)
    np.save(f"{folder}.points.npy", np.array(points, np.float32).reshape(-1, 57))
    sure = int((table[:, 5] >= SURE).sum())
    return (
        f"{clip}: {len(frames)} frames of {size[0]}x{size[1]}, {sure} persons, {len(table) - sure} uncertain"
    )


def annotation(row: Array, factor: float) -> dict[str, Any]:
    """As COCO has it, of a row of NAME.persons.npy or NAME.points.npy, in pixels of frames not resized."""
    x0, y0, x1, y1 = row[1:5].astype(float) / factor
    box = {
        "image_id": int(row[0]),
        "category_id": 1,
        "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
        "area": round((x1 - x0) * (y1 - y0), 2),
        "iscrowd": int(row[5] < SURE),
    }
    if len(row) == 6:
        return box
    points = row[6:].reshape(17, 3).astype(float)
    seen = points[:, 2] >= SEEN
    points[:, :2] = (points[:, :2] / factor).round(2)
    points[:, 2] = 2
    points[~seen] = 0
    return {**box, "keypoints": points.ravel().tolist(), "num_keypoints": int(seen.sum())}


def write_coco(data: Path, clip: str, out: Path) -> str:
    """Writes the .json files of a clip that is labelled."""
    folder, dance = out / stem(clip), clip.endswith("dance.mp4")
    frame = next(read_frames(data / clip))
    factor, (height, width) = shrinking(frame), frame.shape[:2]
    count = len(np.load(f"{folder}.frames.npy", mmap_mode="r"))
    persons, points = np.load(f"{folder}.persons.npy"), np.load(f"{folder}.points.npy")

    def write(kind: str, frames: Iterable[int], rows: Sequence[Array]) -> None:
        document = {
            "images": [
                {"id": i, "width": width, "height": height, "file_name": f"{i:06}.png"} for i in frames
            ],
            "annotations": [{"id": i, **annotation(row, factor)} for i, row in enumerate(rows, 1)],
            "categories": [{"id": 1, "name": "person"}],
        }
        Path(f"{folder}.{kind}.json").write_text(json.dumps(document), encoding="utf-8")

    write("persons", range(count), persons)
    sure = persons[persons[:, 5] >= SURE]
    _, first, times = np.unique(sure[:, 0], return_index=True, return_counts=True)
    alone = {tuple(row[:5]) for row in sure[first[times == 1]]}
    poses = [row for row in points if dance or tuple(row[:5]) in alone]
    if poses:
        write("points", [int(row[0]) for row in poses], poses)
    if dance:
        held_out = [row for row in poses if row[0] >= count * 2 // 3]
        write("points_last_third", [int(row[0]) for row in held_out], held_out)
    return f"{clip}: {len(persons)} boxes and {len(poses)} poses as COCO has them"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=default_folder())
    parser.add_argument("--clips", nargs="*", default=CLIPS)
    parser.add_argument("--coco-only", action="store_true", help="write the .json files again, no others")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for clip in args.clips:
        if not args.coco_only:
            print(label(args.data, clip, args.out), flush=True)
        print(write_coco(args.data, clip, args.out), flush=True)


if __name__ == "__main__":
    main()
