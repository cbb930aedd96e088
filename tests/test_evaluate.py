"""Scores against ones worked out by hand or plainly, and label files of any kind."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from models import every_kind, maps_model, random_frames
from test_cli import facts, invoke

from xnor_rrm import evaluate as scoring
from xnor_rrm.decoding import BoxDecoding, Detections, KeyPoints, PointDecoding
from xnor_rrm.errors import EvaluateError
from xnor_rrm.evaluate import Truth, evaluate, read_truth, score
from xnor_rrm.report import coco_results
from xnor_rrm.stream import Stream

pytest.importorskip("pycocotools")  # of an optional extra

SIZE, FRAMES = (32, 48), 6
FRAME_SIZE = (40, 52)


def detector(seed=0, binary=True):
    return maps_model(6, BoxDecoding(cell=4), ("person", "bicycle"), seed=seed, size=SIZE, binary=binary)


def pose(seed=0, points=17):
    return maps_model(points, PointDecoding(cell=4), seed=seed, size=SIZE)


@pytest.fixture
def frames():
    return list(random_frames(np.random.default_rng(1), FRAMES, *FRAME_SIZE, "patch"))


def image(number, size=FRAME_SIZE):
    return {"id": number, "width": size[1], "height": size[0], "file_name": f"{number}.png"}


def box(image_id, corners, category=1, crowd=0, **more):
    x0, y0, x1, y1 = corners
    bbox = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": image_id, "category_id": category, "bbox": bbox, "iscrowd": crowd} | {
        "area": bbox[2] * bbox[3],
        **more,
    }


def document(images, annotations, categories=("person", "bicycle")):
    return {
        "images": images,
        "annotations": [{"id": i, **each} for i, each in enumerate(annotations)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)],
    }


def own_answers(model, frames, wanted=range(FRAMES)):
    """The labels by which a model answers without fault."""
    stream, labels = model.stream("dense"), []
    for number, frame in enumerate(frames):
        for result in coco_results(stream(frame), number):
            points = np.array(result.get("keypoints", [])).reshape(-1, 3)
            if len(points):
                points[:, 2] = 2
                low, high = points[:, :2].min(0), points[:, :2].max(0)
                more = {"keypoints": points.ravel().tolist(), "num_keypoints": len(points)}
                labels.append(box(number, (*low, *high), **more))
            else:
                x, y, width, height = result["bbox"]
                labels.append(box(number, (x, y, x + width, y + height), result["category_id"]))
    return document(
        [image(number) for number in wanted],
        [label for label in labels if label["image_id"] in wanted],
        ("person", "bicycle") if model.task == "detection" else ("person",),
    )


def truth_of(tmp_path, model, data):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    return read_truth(path, model)


def detections(*rows):
    """Of rows x0, y0, x1, y1, score and class."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


# --- scores ---------------------------------------------------------------------------------------


def test_average_precision_is_that_of_a_case_worked_out_by_hand(tmp_path):
    labels = [
        box(0, (0, 0, 10, 10)),
        box(0, (30, 0, 40, 10)),
        box(0, (20, 20, 39, 39), crowd=1),  # uncertain
    ]
    truth = truth_of(tmp_path, detector(), document([image(0)], labels, ("person",)))
    found = detections(
        (0, 0, 10, 9, 0.9, 0),  # right up to an IoU of .9
        (0, 1, 10, 10, 0.8, 0),  # the same one again: wrong
        (20, 20, 30, 39, 0.7, 0),  # in the uncertain one: neither
        (30, 0, 40, 10, 0.6, 0),  # right
        (30, 0, 40, 10, 0.5, 1),  # of a category that is not labelled: neither
    )
    # precision 1 up to recall 1/2 (51 of 101 points), 2/3 for the rest; at .95 of the last one alone, 1/3
    ap50 = (51 + 50 * 2 / 3) / 101
    scores = score(truth, {0: found})
    assert scores["ap50"] == pytest.approx(ap50, abs=1e-5)
    assert scores["ap"] == pytest.approx((9 * ap50 + 51 / 3 / 101) / 10, abs=1e-5)
    assert score(truth, {0: detections()}) == {"ap": 0, "ap50": 0}


def test_an_annotation_of_id_0_is_one_like_the_others(tmp_path):
    """COCOeval itself takes its id for "no match"."""
    data = document([image(0)], [box(0, (0, 0, 10, 10))])
    assert data["annotations"][0]["id"] == 0
    truth = truth_of(tmp_path, detector(), data)
    assert score(truth, {0: detections((0, 0, 10, 10, 0.9, 0))}) == {"ap": 1, "ap50": 1}


def test_without_labels_there_is_no_score(tmp_path):
    for categories in ((), ("person",)):
        truth = truth_of(tmp_path, detector(), document([image(0)], [], categories))
        assert score(truth, {0: detections((0, 0, 10, 10, 0.9, 0))}) == {"ap": None, "ap50": None}


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])
    shared = (high - low).clip(0).prod()
    return shared / ((a[2:4] - a[:2]).prod() + (b[2:4] - b[:2]).prod() - shared), shared / (
        a[2:4] - a[:2]
    ).prod()


def plain_ap(answers, at):
    """By frame (scores, similarity [answers, labels], similarity to crowds): AP of one class at a limit."""
    hits = []
    for scores, similarity, crowds in answers:
        free = np.ones(similarity.shape[1], bool)
        for i in np.argsort(-np.array(scores), kind="stable"):
            best = np.where(free, similarity[i], -1)
            if len(best) and best.max() >= at:
                free[best.argmax()] = False
                hits.append((scores[i], 1))
            elif not (crowds[i] >= at).any():
                hits.append((scores[i], 0))
    total = sum(similarity.shape[1] for _, similarity, _ in answers)
    right = np.cumsum([hit for _, hit in sorted(hits, key=lambda each: -each[0])])
    precision = right / np.arange(1, len(right) + 1)
    values = []
    for recall in np.linspace(0, 1, 101):
        reached = np.nonzero(right / total >= recall)[0]
        values.append(precision[reached[0] :].max() if len(reached) else 0.0)
    return np.mean(values)


LIMITS = np.linspace(0.5, 0.95, 10)


def test_detections_score_as_a_plain_computation_has_it(tmp_path):
    rng = np.random.default_rng(2)
    corners = rng.integers(0, 25, (20, 6, 2)).astype(float)
    truths = np.concatenate([corners, corners + rng.integers(8, 20, corners.shape)], -1)
    labels, answers = [], {}
    scores = rng.permutation(np.arange(1, 201) / 1000)  # no ties
    for number, boxes in enumerate(truths):
        labels += [box(number, each, 1 + i % 2, crowd=int(i > 3)) for i, each in enumerate(boxes.tolist())]
        found = np.round(rng.permutation(boxes.repeat(2, 0))[:10] + rng.normal(0, 1.3, (10, 4)), 2)
        rows = [(*each, scores[10 * number + i], rng.integers(2)) for i, each in enumerate(found)]
        answers[number] = detections(*rows)
    truth = truth_of(tmp_path, detector(), document([image(i) for i in range(20)], labels))
    plain = []
    for category in (0, 1):
        parts = []
        for number, boxes in enumerate(truths):
            mine = answers[number].classes == category
            pairs = np.array([[iou(a, b) for b in boxes] for a in answers[number].boxes[mine].astype(float)])
            pairs = pairs.reshape(-1, 6, 2)
            own, crowds = [i for i in range(4) if i % 2 == category], [4 + category]
            parts.append((answers[number].scores[mine], pairs[:, own, 0], pairs[:, crowds, 1]))
        plain.append([plain_ap(parts, at) for at in LIMITS])
    scored = score(truth, answers)
    assert scored["ap50"] == pytest.approx(np.mean(plain, 0)[0], abs=1e-4)
    assert scored["ap"] == pytest.approx(np.mean(plain), abs=1e-4)
    assert 0.1 < scored["ap"] < scored["ap50"] < 0.9


#: COCO's, of its 17 points.
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


def test_key_points_score_as_a_plain_computation_has_it(tmp_path):
    rng = np.random.default_rng(3)
    labels, answers, parts, right = [], {}, [], []
    scores = rng.permutation(np.arange(1, 31) / 100)
    for number in range(30):
        places = rng.uniform(2, 38, (17, 2)).round(2)
        seen = rng.random(17) < 0.8
        flat = np.column_stack([places, seen * rng.integers(1, 3, 17)]).ravel().tolist()
        area = rng.uniform(300, 900)
        labels.append(box(number, (2, 2, 38, 38), keypoints=flat, area=area))
        found = (places + rng.normal(0, rng.uniform(0.1, 2.5), (17, 2))).round(2)
        answers[number] = KeyPoints(
            found.astype(np.float32), np.full(17, scores[number], np.float32), np.ones(17, bool)
        )
        away = ((found - places) ** 2).sum(1)
        oks = np.exp(-away / (8 * SIGMAS**2 * area))[seen].mean()
        parts.append((scores[number : number + 1], np.array([[oks]]), np.zeros((1, 0))))
        if seen[5] and seen[12]:
            torso = np.hypot(*(places[5] - places[12]))
            right += (np.sqrt(away) <= 0.2 * torso)[seen].tolist()
    truth = truth_of(tmp_path, pose(), document([image(i) for i in range(30)], labels, ["person"]))
    scored = score(truth, answers)
    plain = [plain_ap(parts, at) for at in LIMITS]
    assert scored["ap50"] == pytest.approx(plain[0], abs=1e-4)
    assert scored["ap"] == pytest.approx(np.mean(plain), abs=1e-4)
    assert scored["pck"] == pytest.approx(np.mean(right), abs=1e-5)
    assert 0.2 < scored["ap"] < scored["ap50"] < 1
    assert 0.2 < scored["pck"] < 1


def person(number, values, crowd=0):
    """A label of float[K, 3]."""
    return box(number, (0, 0, 20, 10), crowd=crowd, keypoints=np.asarray(values, float).ravel().tolist())


def answer(values):
    points = np.array(values, np.float32)[:, :2]
    return KeyPoints(points, np.ones(len(points), np.float32), np.ones(len(points), bool))


def test_correct_points_are_counted_by_the_torso(tmp_path):
    known = np.full((17, 3), 2.0)
    known[:, :2] = np.arange(17)[:, None]
    torso = np.hypot(7, 7)  # from point 5 to point 12
    unseen, no_torso = known.copy(), known.copy()
    unseen[0, 2] = no_torso[12, 2] = 0
    labels = [
        *(person(0, unseen), person(0, known, crowd=1)),  # a crowd does not make two of one
        person(1, no_torso),  # left out
        *(person(2, known), person(2, known)),  # two persons: left out
    ]
    truth = truth_of(tmp_path, pose(), document([image(i) for i in range(3)], labels, ["person"]))
    found = known.copy()
    found[1, 0] += 0.19 * torso
    found[2, 0] += 0.21 * torso
    wrong = answer(known + 30)
    assert score(truth, {0: answer(found), 1: wrong, 2: wrong})["pck"] == pytest.approx(15 / 16)


def test_other_points_are_counted_by_the_box_and_have_no_precision(tmp_path):
    known = np.array([[5, 5, 2], [10, 5, 1], [15, 5, 0]])
    truth = truth_of(tmp_path, pose(points=3), document([image(0)], [person(0, known)], ["person"]))
    found = known + np.array([[3.9, 0, 0], [4.1, 0, 0], [0, 0, 0]])
    assert score(truth, {0: answer(found)}) == {"ap": None, "ap50": None, "pck": 0.5}


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(params=[detector, pose], ids=["detection", "pose"])
def model(request):
    return request.param()


def written(tmp_path, model, data, name="tiny.xnor"):
    model.save(tmp_path / name)
    (tmp_path / "truth.json").write_text(json.dumps(data))
    return tmp_path / name, tmp_path / "truth.json"


def test_answers_that_are_the_labels_score_1(model, frames, folder, tmp_path):
    data = own_answers(model, frames)
    assert len(data["annotations"]) >= FRAMES
    file, truth = written(tmp_path, model, data)
    text = invoke("evaluate", file, folder, "--truth", truth, "--json", tmp_path / "scores.json").stdout
    header, *rows = [line.split("\t") for line in text.splitlines() if "\t" in line]
    more = ["PCK@0.2"] if model.task == "pose" else []
    assert header == ["network", "AP", "AP50", *more]
    assert rows == [[name, "1", "1", *("1" for _ in more)] for name in ("binary dense", "binary cached")]
    told = facts(text)
    assert told["identical"] == "true"
    assert (told["model"], told["video"], told["truth"]) == ("maps", "frames", "truth.json")
    assert (told["frames"], told["scored"], told["skipped"]) == (str(FRAMES), str(FRAMES), "0")
    result = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert result["identical"] is True
    assert result["labels"] == len(data["annotations"])
    assert [row["ap50"] for row in result["rows"]] == [1, 1]
    assert result["versions"]["pycocotools"]
    assert result["machine"]["cpu"]
    assert result["command"].startswith("xnor-rrm")
    assert "twin" in result


def test_a_twin_is_scored_beside_it(frames, folder, tmp_path):
    model, twin = detector(), detector(1, binary=False)
    file, truth = written(tmp_path, model, own_answers(twin, frames))
    twin.save(tmp_path / "twin.xnor")
    text = invoke("evaluate", file, folder, "--truth", truth, "--twin", tmp_path / "twin.xnor").stdout
    rows = [line.split("\t") for line in text.splitlines() if "\t" in line][1:]
    assert [row[0] for row in rows] == ["float twin", "binary dense", "binary cached"]
    assert float(rows[0][1]) == 1
    assert rows[1][1:] == rows[2][1:]
    assert float(rows[1][1]) < 1
    pose().save(tmp_path / "pose.xnor")
    result = invoke("evaluate", file, folder, "--truth", truth, "--twin", tmp_path / "pose.xnor", code=2)
    assert "a twin that answers" in result.stderr


def test_only_labelled_frames_are_scored_and_those_before_them_run(model, frames, tmp_path):
    truth = truth_of(tmp_path, model, own_answers(model, frames, (1, 4)))
    result = evaluate(model, frames, truth)
    assert (result["frames"], result["scored"]) == (5, 2)
    assert [row["ap"] for row in result["rows"]] == [1, 1]
    first = evaluate(model, frames, truth.within(4))
    assert (first["frames"], first["scored"]) == (2, 1)
    assert truth.within(5) is truth
    with pytest.raises(EvaluateError, match="labels of the first 1 frames"):
        truth.within(1)


@pytest.mark.parametrize("mode", ["cached", "dense"])
def test_a_difference_of_one_bit_is_told_after_the_scores(model, frames, folder, tmp_path, monkeypatch, mode):
    file, truth = written(tmp_path, model, own_answers(model, frames))
    values, seen = Stream.values, []

    def lie(self, frame):
        result = values(self, frame)
        if self.mode == mode:
            seen.append(frame)
            if len(seen) == 4:
                result[0] = np.nextafter(result[0], np.float32(np.inf))
        return result

    monkeypatch.setattr(Stream, "values", lie)
    result = invoke("evaluate", file, folder, "--truth", truth, "--json", tmp_path / "r.json", code=2)
    assert facts(result.stdout)["identical"] == "false"
    assert "binary cached\t" in result.stdout
    assert "first on frame 3" in result.stderr
    assert json.loads((tmp_path / "r.json").read_text())["first_difference"] == 3


def test_labels_that_do_not_fit_the_video_end_in_one_message(frames, folder, tmp_path):
    model = detector()
    for data, message in (
        (document([image(0), image(FRAMES)], []), f"at least {FRAMES + 1} frames"),
        (document([image(1, (40, 51))], []), "frame 1 to be 51x40"),
    ):
        file, truth = written(tmp_path, model, data)
        result = invoke("evaluate", file, folder, "--truth", truth, code=2)
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""


def test_a_classifier_and_missing_files_end_in_one_message(folder, tmp_path, monkeypatch):
    every_kind(np.random.default_rng(0)).save(tmp_path / "class.xnor")
    file, truth = written(tmp_path, detector(), document([image(0)], []))
    missing = tmp_path / "missing.json"
    for arguments, message in {
        (tmp_path / "class.xnor", folder, "--truth", truth): "which classifies",
        (file, folder, "--truth", missing): "No such file or directory",
        (file, folder, "--truth", tmp_path): "directory",
        (file, folder): "--truth",
        (file, folder, "--truth", truth, "--json", tmp_path / "no" / "r.json"): "no folder",
    }.items():
        result = invoke("evaluate", *arguments, code=2)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stdout == ""
    monkeypatch.setattr(scoring.util, "find_spec", lambda name: None)
    result = invoke("evaluate", file, folder, "--truth", truth, code=2)
    assert 'pip install "xnor-rrm[evaluate]"' in result.stderr


# --- labels ---------------------------------------------------------------------------------------

GOOD = document([image(0)], [box(0, (0, 0, 10, 10))])


def changed(part, **fields):
    """GOOD with fields of its only image, annotation or category replaced; None takes one away."""
    entry = {**GOOD[part][0], **fields}
    return {**GOOD, part: [{key: value for key, value in entry.items() if value is not None}]}


HOSTILE = {
    "empty": "",
    "no JSON": "frame,x,y\n0,1,2\n",
    "cut short": json.dumps(GOOD)[:-9],
    "deep": "[" * 200_000,
    "deep objects": '{"images":' * 200_000,
    "not UTF-8": b'{"images": "\xff\xfe\xfa"}',
    "digits": '{"images": ' + "9" * 10_000 + "}",
    "no object": "[]",
    "null": "null",
    "no images": {**GOOD, "images": []},
    "images no list": {**GOOD, "images": {"id": 0}},
    "no annotations": {key: value for key, value in GOOD.items() if key != "annotations"},
    "image no object": {**GOOD, "images": [0]},
    "image id text": changed("images", id="0"),
    "image id true": changed("images", id=True),
    "image id float": changed("images", id=0.0),
    "image id negative": changed("images", id=-1),
    "image id huge": changed("images", id=10**400),
    "image twice": {**GOOD, "images": [image(0), image(0)]},
    "no width": changed("images", width=None),
    "width 0": changed("images", width=0),
    "width huge": changed("images", width=1 << 40),
    "category id": changed("categories", id=0),
    "category of no class": changed("categories", id=3),
    "category by another name": changed("categories", name="cat"),
    "no name": changed("categories", name=None),
    "name no text": changed("categories", name=[[]]),
    "name deep": json.dumps(GOOD).replace('"person"', "[" * 900 + "]" * 900),
    "annotation no object": {**GOOD, "annotations": [[]]},
    "of no image": changed("annotations", image_id=7),
    "of no category": changed("annotations", category_id=7),
    "list for an id": changed("annotations", image_id=[0]),
    "no bbox": changed("annotations", bbox=None),
    "bbox of 3": changed("annotations", bbox=[0, 0, 1]),
    "bbox text": changed("annotations", bbox="0011"),
    "bbox of texts": changed("annotations", bbox=["0", "0", "1", "1"]),
    "bbox flat": changed("annotations", bbox=[0, 0, 5, 0]),
    "bbox negative": changed("annotations", bbox=[0, 0, -5, 5]),
    "bbox NaN": changed("annotations", bbox=[float("nan"), 0, 5, 5]),
    "bbox infinite": changed("annotations", bbox=[0, 0, float("inf"), 5]),
    "bbox past float64": json.dumps(GOOD).replace('"bbox": [0', '"bbox": [1e999'),
    "bbox huge": changed("annotations", bbox=[0, 0, 10**400, 5]),
    "no area": changed("annotations", area=None),
    "area 0": changed("annotations", area=0),
    "area NaN": changed("annotations", area=float("nan")),
    "crowd 2": changed("annotations", iscrowd=2),
    "crowd of many": {**GOOD, "annotations": GOOD["annotations"] * (scoring.MAX_LABELS + 1)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_message(name, folder, tmp_path):
    file, truth = written(tmp_path, detector(), GOOD)
    assert read_truth(truth, detector()).labels
    data = HOSTILE[name] if isinstance(HOSTILE[name], str | bytes) else json.dumps(HOSTILE[name])
    truth.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(EvaluateError):
        read_truth(truth, detector())
    result = invoke("evaluate", file, folder, "--truth", truth, code=2)
    assert result.stderr.startswith("error: expected ")
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 400
    assert result.stdout == ""


@pytest.mark.parametrize(
    "values",
    [None, {}, [], [0] * 50, [0] * 52, ["0"] * 51, [float("nan")] * 51, [3] * 51, [0, 0, 0.5] * 17],
)
def test_hostile_key_points_end_in_one_message(values, tmp_path):
    data = document([image(0)], [box(0, (0, 0, 10, 10), keypoints=values)], ["person"])
    with pytest.raises(EvaluateError):
        truth_of(tmp_path, pose(), data)


def test_a_file_past_the_limit_is_not_parsed(tmp_path):
    path = tmp_path / "truth.json"
    with path.open("wb") as file:
        file.truncate(scoring.MAX_TRUTH_BYTES + 1)
    with pytest.raises(EvaluateError, match="at most"):
        read_truth(path, detector())


def test_names_are_those_of_the_model_whatever_their_case(tmp_path):
    model = detector()
    data = document([image(0)], [], ("Person", "BICYCLE"))
    assert truth_of(tmp_path, model, data).categories == (1, 2)
    data["categories"].reverse()
    assert truth_of(tmp_path, model, data).categories == (1, 2)
    with pytest.raises(EvaluateError, match="names as the model has them"):
        truth_of(tmp_path, model, document([image(0)], [], ("bicycle", "person")))
    points = replace(pose(points=2), labels=("left_eye", "right_eye"))
    data = document([image(0)], [], ["person"])
    for names in (["Left eye", "Right eye"], None):
        if names:
            data["categories"][0]["keypoints"] = names
        assert isinstance(truth_of(tmp_path, points, data), Truth)
    data["categories"][0]["keypoints"] = ["right_eye", "left_eye"]
    with pytest.raises(EvaluateError, match="names as the model has them"):
        truth_of(tmp_path, points, data)
