"""How well a detector or a pose network answers on a labelled video, as COCO's evaluation and PCK score it.

Labels come in COCO's annotation format, from strangers. Image ids are frame numbers from 0; frames that
cannot be decoded are not counted, as everywhere. Category c is class c - 1 of a detector; a pose network
knows category 1 only.
"""

from __future__ import annotations

import io
import json
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata, util
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .decoding import BoxDecoding, Detections, KeyPoints
from .errors import EvaluateError, XnorError
from .frames import Frame
from .machine import machine_fingerprint, versions
from .model import Mode, Model
from .report import Rows, coco_results

#: Largest file of labels that is read; parsed it may be 25 times as large.
MAX_TRUTH_BYTES = 64 << 20

#: Sides of frames, and how far from a frame's corner labels may lie, in pixels.
MAX_SIDE = 1 << 16

#: Annotations of a frame: COCOeval compares each with each answer, in Python.
MAX_LABELS = 1000

#: Boxes count from this score on, whatever the model's own threshold: precision over recall wants the unsure
#: ones too.
LEAST_SCORE = 0.05

#: A point is right up to this part of its person's size away.
PCK_PART = 0.2

#: COCO's key points: how many, and the two whose distance is a person's size.
COCO_POINTS, LEFT_SHOULDER, RIGHT_HIP = 17, 5, 12


@dataclass(frozen=True, eq=False)
class Truth:
    """Labels of a video, checked.

    name : of their file.  sizes : (height, width) of each labelled frame, by its number.
    categories : ids of those labelled.  labels : annotations as COCO has them, with ids from 1.
    """

    name: str
    sizes: dict[int, tuple[int, int]]
    categories: tuple[int, ...]
    labels: tuple[dict[str, Any], ...]

    @property
    def frames(self) -> int:
        """Frames of the video up to the last labelled one."""
        return max(self.sizes) + 1

    def within(self, frames: int | None) -> Truth:
        """Of the first frames only. Raises EvaluateError where none of them is labelled."""
        if frames is None or frames >= self.frames:
            return self
        sizes = {number: size for number, size in self.sizes.items() if number < frames}
        if not sizes:
            raise EvaluateError(f"labels of the first {frames} frames", f"the first is of {min(self.sizes)}")
        labels = tuple(label for label in self.labels if label["image_id"] in sizes)
        return Truth(self.name, sizes, self.categories, labels)


# --- scoring --------------------------------------------------------------------------------------


def evaluate(
    model: Model, frames: Iterable[Frame], truth: Truth, twin: Model | None = None, *, video: str = ""
) -> dict[str, Any]:
    """Run a dense and a cached stream up to the last labelled frame and score both; JSON-ready results.

    frames : as the models take them (`Stream`).  truth : `read_truth` of the same model.
    video : its name, for the record.
    twin : another network of the same task, run dense and scored beside it.

    rows : by network name and, rounded to 5 digits or None where there is nothing to score, ap and ap50;
        pck too for key points. Boxes are decoded from LEAST_SCORE on, whatever the model's threshold.
        ap, ap50 : mean average precision over IoU .5, .55 ... .95, and at .5; for key points over OKS, where
            there are COCO's 17. Labels of a crowd reward and punish nothing.
        pck : share of labelled points (v > 0) that the answer is at most 0.2 of the torso away from (left
            shoulder to right hip); of other than 17 points, of the box's longer side. Counted in frames with
            one labelled person (not a crowd) whose torso's ends are both labelled.
    frames, scored : how many were run, and how many of them are labelled.  labels : without crowds.
    identical, first_difference : whether dense and cached outputs had the same bytes on every frame run; else
        the first frame, from 0, where they had not.
    Raises EvaluateError where the video lacks a labelled frame or has another size there.
    """
    require_pycocotools()
    _check_task(model)
    model, twin = _unsure(model), twin and _unsure(twin)
    rows = [_Row("binary dense", model, "dense"), _Row("binary cached", model, "cached")]
    if twin:
        _check_twin(model, twin)
        rows.insert(0, _Row("float twin", twin, "dense"))
    differing: list[int] = []
    count = 0
    for number, frame in enumerate(islice(frames, truth.frames)):
        size = truth.sizes.get(number)
        if size and size != frame.shape[:2]:
            height, width = frame.shape[:2]
            raise EvaluateError(
                f"frame {number} to be {size[1]}x{size[0]} (width x height), as labelled", f"{width}x{height}"
            )
        *_, dense, cached = (row(frame, number if size else None) for row in rows)
        if dense != cached:
            differing.append(number)
        count += 1
    if count < truth.frames:
        raise EvaluateError(
            f"a video of at least {truth.frames} frames, the last of which is labelled",
            f"{count}",
            "Image ids are frame numbers, from 0.",
        )
    return {
        "model": model.name,
        "twin": twin.name if twin else None,
        "video": video,
        "truth": truth.name,
        "task": model.task,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "frames": count,
        "scored": len(truth.sizes),
        "labels": sum(not label["iscrowd"] for label in truth.labels),
        "identical": not differing,
        "first_difference": differing[0] if differing else None,
        "rows": [{"name": row.name, **score(truth, row.answers)} for row in rows],
        "machine": machine_fingerprint(),
        "versions": {**versions(), "pycocotools": metadata.version("pycocotools")},
    }


def score(truth: Truth, answers: Mapping[int, Detections | KeyPoints]) -> dict[str, float | None]:
    """ap, ap50 and, of key points, pck: see `evaluate`.

    answers : of each labelled frame, by its number, all of one kind.
    """
    found = [each for number, answer in answers.items() for each in coco_results(answer, number)]
    points = {number: answer.points for number, answer in answers.items() if isinstance(answer, KeyPoints)}
    if not points:
        return _average_precision(truth, found, "bbox")
    if all(len(each) == COCO_POINTS for each in points.values()):
        return {**_average_precision(truth, found, "keypoints"), "pck": _correct_points(truth, points)}
    return {"ap": None, "ap50": None, "pck": _correct_points(truth, points)}


def require_pycocotools() -> None:
    """Raise XnorError, saying how to install it, unless pycocotools is there."""
    if util.find_spec("pycocotools") is None:
        raise XnorError(
            "pycocotools, which scores answers", "none installed", 'Run: pip install "xnor-rrm[evaluate]"'
        )


FACTS = ("model", "twin", "video", "truth", "frames", "scored", "labels", "skipped", "identical")


def score_facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """The headline; where outputs differed, the first frame that did."""
    facts = {name: result[name] for name in FACTS if result.get(name) is not None}
    if not result["identical"]:
        facts["first_difference"] = result["first_difference"]
    return facts


def score_table(result: Mapping[str, Any]) -> tuple[Sequence[str], Rows]:
    """Columns, and one row a network."""
    titles = {"name": "network", "ap": "AP", "ap50": "AP50", "pck": f"PCK@{PCK_PART}"}
    rows = result["rows"]
    return [titles[key] for key in rows[0]], [tuple(row.values()) for row in rows]


def _unsure(model: Model) -> Model:
    """The model with boxes from LEAST_SCORE on."""
    if not isinstance(model.decoding, BoxDecoding):
        return model
    return replace(model, decoding=replace(model.decoding, threshold=LEAST_SCORE))


class _Row:
    """A stream and its answers, by the number of the frame."""

    def __init__(self, name: str, model: Model, mode: Mode) -> None:
        self.name, self._stream = name, model.stream(mode)
        self.answers: dict[int, Detections | KeyPoints] = {}

    def __call__(self, frame: Frame, number: int | None) -> bytes:
        """The network's output.  number : of a labelled frame, whose answer is kept."""
        values = self._stream.values(frame)
        if number is not None:
            answer = self._stream.answer(values)
            assert not isinstance(answer, np.ndarray)  # _check_task
            self.answers[number] = answer
        return values.tobytes()


def _check_task(model: Model) -> None:
    if model.task == "classification":
        raise EvaluateError("a detector or a pose network", f"{model.name!r}, which classifies")


def _check_twin(model: Model, twin: Model) -> None:
    if (twin.task, twin.classes) != (model.task, model.classes):
        raise EvaluateError(
            f"a twin that answers as {model.name!r} does ({model.task}, {model.classes} classes or points)",
            f"{twin.name!r} ({twin.task}, {twin.classes})",
        )


def _average_precision(truth: Truth, found: Sequence[dict[str, Any]], kind: str) -> dict[str, float | None]:
    """found : COCO's results.  kind : "bbox" or "keypoints", COCO's names of IoU and OKS."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def indexed(annotations: Iterable[dict[str, Any]]) -> Any:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in truth.sizes],
            "annotations": [dict(each) for each in annotations],  # it writes into them
            "categories": [{"id": category} for category in truth.categories],
        }
        coco.createIndex()
        return coco

    # As COCO.loadRes has it, which fails where there are none. Areas of answers choose among classes of size.
    answers = ({"area": 0.0, **each, "id": i, "iscrowd": 0} for i, each in enumerate(found, 1))
    with redirect_stdout(io.StringIO()):
        scorer = COCOeval(indexed(truth.labels), indexed(answers), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    ap, ap50 = (None if value < 0 else round(float(value), 5) for value in scorer.stats[:2])
    return {"ap": ap, "ap50": ap50}


def _correct_points(truth: Truth, points: Mapping[int, npt.NDArray[np.float32]]) -> float | None:
    """PCK, see `evaluate`.  points : float32[K, 2] by frame."""
    persons: dict[int, list[dict[str, Any]]] = {}
    for label in truth.labels:
        if not label["iscrowd"] and label["num_keypoints"]:
            persons.setdefault(label["image_id"], []).append(label)
    right = total = 0
    for number, labels in persons.items():
        x, y, v = np.array(labels[0]["keypoints"]).reshape(-1, 3).T
        size: float = max(labels[0]["bbox"][2:])
        if len(v) == COCO_POINTS:
            torso = [LEFT_SHOULDER, RIGHT_HIP]
            size = float(np.hypot(np.ptp(x[torso]), np.ptp(y[torso]))) if v[torso].all() else -1
        if len(labels) > 1 or size < 0:
            continue
        away = np.hypot(*(points[number].T.astype(np.float64) - (x, y)))
        right += int((away[v > 0] <= PCK_PART * size).sum())
        total += int((v > 0).sum())
    return round(right / total, 5) if total else None


# --- labels ---------------------------------------------------------------------------------------


def read_truth(path: Path, model: Model) -> Truth:
    """Read labels in COCO's format for a model. Nothing in the file is trusted.

    Of an image id, width and height are read; of a category id, name and, for a pose network, keypoints; of
    an annotation image_id, category_id, bbox, area, iscrowd (0 where it is missing) and keypoints.
    Raises EvaluateError where they are missing or out of bounds, or name other classes or points than the
    model.
    """
    _check_task(model)
    with path.open("rb") as file:
        data = file.read(MAX_TRUTH_BYTES + 1)
    if len(data) > MAX_TRUTH_BYTES:
        raise EvaluateError(f"at most {MAX_TRUTH_BYTES} bytes of labels", f"more in {path.name!r}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EvaluateError(
            "labels as JSON, in COCO's format", f"{path.name!r}, which is not ({error})"
        ) from error
    images, categories, annotations = (
        _list(_get(document, name, "the file"), name) for name in ("images", "categories", "annotations")
    )
    sizes: dict[int, tuple[int, int]] = {}
    for i, image in enumerate(images):
        where = f"images[{i}]"
        number = _integer(_get(image, "id", where), f"{where}.id", 0, 1 << 31)
        if number in sizes:
            raise EvaluateError("an image once", f"{where}: id {number} again")
        height, width = (
            _integer(_get(image, name, where), f"{where}.{name}", 1, MAX_SIDE) for name in ("height", "width")
        )
        sizes[number] = height, width
    if not sizes:
        raise EvaluateError("labelled images", f"none in {path.name!r}")
    known = {_category(each, f"categories[{i}]", model) for i, each in enumerate(categories)}
    labels = [
        _label(each, f"annotations[{i}]", i + 1, model, sizes, known) for i, each in enumerate(annotations)
    ]
    counts = Counter(label["image_id"] for label in labels)
    if counts and max(counts.values()) > MAX_LABELS:
        raise EvaluateError(f"at most {MAX_LABELS} annotations of an image", f"{max(counts.values())}")
    return Truth(path.name, sizes, tuple(sorted(known)), tuple(labels))


def _category(category: Any, where: str, model: Model) -> int:
    """Its id, if it is what the model has there: other names would be scored as errors of the model."""
    pose = model.task == "pose"
    number = _integer(_get(category, "id", where), f"{where}.id", 1, 1 if pose else model.classes)
    given = category.get("keypoints") if pose else [_get(category, "name", where)]
    expected = model.labels if pose else model.labels[number - 1 : number]
    if given is None or not expected:
        return number
    names = _list(given, f"{where}.keypoints")
    if [_plain(name) for name in names] != [_plain(name) for name in expected]:
        raise EvaluateError(
            f"names as the model has them ({', '.join(expected)})", f"{where}: {reprlib.repr(names)}"
        )
    return number


def _label(
    label: Any,
    where: str,
    number: int,
    model: Model,
    images: Collection[int],
    categories: Collection[int],
) -> dict[str, Any]:
    """The annotation, of what is scored only.  number : its new id; to COCOeval an id of 0 says no match."""
    image, category = (
        _integer(_get(label, name, where), f"{where}.{name}", 0, 1 << 31)
        for name in ("image_id", "category_id")
    )
    if image not in images or category not in categories:
        raise EvaluateError(
            "annotations of images and categories that the file lists",
            f"{where}: image {image}, category {category}",
        )
    box = [
        _number(value, f"{where}.bbox", -MAX_SIDE, MAX_SIDE)
        for value in _list(_get(label, "bbox", where), f"{where}.bbox", 4)
    ]
    area = _number(_get(label, "area", where), f"{where}.area", 0, MAX_SIDE**2)
    if min(*box[2:], area) <= 0:
        raise EvaluateError("boxes of positive width, height and area", f"{where}: {box}, {area:g}")
    crowd = _integer(label.get("iscrowd", 0), f"{where}.iscrowd", 0, 1)
    read = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": area,
        "iscrowd": crowd,
    }
    if model.task == "pose":
        values = _list(_get(label, "keypoints", where), f"{where}.keypoints", 3 * model.classes)
        points = [_number(value, f"{where}.keypoints", -MAX_SIDE, MAX_SIDE) for value in values]
        if not set(points[2::3]) <= {0, 1, 2}:
            raise EvaluateError("key points x, y, v with v 0, 1 or 2", f"{where}: {set(points[2::3])}")
        read |= {"keypoints": points, "num_keypoints": sum(v > 0 for v in points[2::3])}
    return read


def _get(entry: Any, name: str, where: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise EvaluateError(f"an object with {name!r}", f"{where}: {reprlib.repr(entry)}")
    return entry[name]


def _list(value: Any, where: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        many = "" if length is None else f" of {length} values"
        raise EvaluateError(f"a list{many}", f"{where}: {reprlib.repr(value)}")
    return value


def _integer(value: Any, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise EvaluateError(f"an integer from {low} to {high}", f"{where}: {reprlib.repr(value)}")
    return value


def _number(value: Any, where: str, low: float, high: float) -> float:
    """Neither NaN nor infinity: json reads both."""
    if type(value) not in (int, float) or not low <= value <= high:
        raise EvaluateError(f"a number from {low:g} to {high:g}", f"{where}: {reprlib.repr(value)}")
    return float(value)


def _plain(name: Any) -> str | None:
    """A name as it is compared: neither case nor what stands between words matters. None if it is no text."""
    return "".join(c for c in name.casefold() if c.isalnum()) if isinstance(name, str) else None
