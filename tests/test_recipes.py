"""The recipes of the detector and of the key points, on a few invented frames."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xnor_rrm import load
from xnor_rrm.decoding import Placement

torch = pytest.importorskip("torch")  # of an optional extra

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
import label  # noqa: E402  # needs torch, or is skipped
import train_person  # noqa: E402  # needs torch, or is skipped
import train_pose  # noqa: E402  # needs torch, or is skipped
import training  # noqa: E402  # needs torch, or is skipped
from augment import Clip  # noqa: E402  # needs torch, or is skipped
from binary import Sign  # noqa: E402  # needs torch, or is skipped
from training import MEAN, STD, STEPS  # noqa: E402  # needs torch, or is skipped

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPES = pytest.mark.parametrize("recipe", [train_person, train_pose], ids=["person", "pose"])


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Labels of all clips: twelve frames of noise each, a person in the middle of every one."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "labels"
    folder.mkdir()
    height, width, count = 96, 128, 12
    box = np.array([50, 16, 78, 80], np.float32)
    for clip in label.CLIPS:
        name = folder / label.stem(clip)
        frames = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        numbers = np.arange(count)[:, None]
        boxes = np.repeat(box[None], count, 0)
        points = np.concatenate([rng.uniform(box[:2], box[2:], (count, 17, 2)), np.ones((count, 17, 1))], 2)
        np.save(f"{name}.frames.npy", frames)
        np.save(f"{name}.persons.npy", np.hstack([numbers, boxes, np.ones((count, 1))]).astype(np.float32))
        rows = np.hstack([numbers, boxes, np.ones((count, 1)), points.reshape(count, 51)])
        np.save(f"{name}.points.npy", rows.astype(np.float32))
    return folder


def options(labels: Path, out: Path, *more: str) -> list[str]:
    return ["--labels", str(labels), "--out", str(out), "--steps", "2", "--batch", "2", *more]


@RECIPES
@pytest.mark.parametrize("twin", [False, True], ids=["binary", "float"])
def test_two_steps_end_in_a_file_that_computes_what_torch_does(
    recipe: Any, twin: bool, labels: Path, tmp_path: Path
) -> None:
    recipe.main(options(labels, tmp_path / "run", *["--float"][: int(twin)]))
    network = {train_person: train_person.PersonDetector, train_pose: train_pose.PoseNetwork}[recipe](
        binary=not twin
    )
    weights = next((tmp_path / "run").glob("*.pth"))
    network.load_state_dict(torch.load(weights, weights_only=True))
    model = load(weights.with_suffix(".xnor"))
    frame = np.random.default_rng(1).integers(0, 256, (*recipe.SIZE, 3), dtype=np.uint8)
    seen = frame - frame % STEPS[not twin]
    x = ((seen - np.array(MEAN)) / np.array(STD)).astype(np.float32).transpose(2, 0, 1)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(x[None]))[0].permute(1, 2, 0).numpy()
    values = model.stream("dense").values(frame).reshape(expected.shape)
    # a sign within rounding of its limit may turn
    assert np.quantile(np.abs(values - expected), 1 if twin else 0.98) < 1e-4
    assert (model.task, model.plan.steps[0]["line"] >= 0) == (recipe.DECODING.task, True)
    assert twin or weights.with_suffix(".xnor").stat().st_size < 1_500_000


@RECIPES
def test_a_teacher_is_learnt_from(recipe: Any, labels: Path, tmp_path: Path) -> None:
    recipe.main(options(labels, tmp_path / "twin", "--float"))
    twin = next((tmp_path / "twin").glob("*.pth"))
    recipe.main(options(labels, tmp_path / "run", "--teacher", str(twin)))
    (row,) = json.loads((tmp_path / "run" / "curve.json").read_text())
    assert row["unlike"] > 0
    channels = 20 if recipe is train_person else 68
    teacher = torch.randn(2, channels, 4, 6, generator=torch.manual_seed(0))
    far, near = (recipe.unlike(teacher + by, teacher).item() for by in (0.5, 0.1))
    assert far > near > abs(recipe.unlike(teacher, teacher).item())


@RECIPES
def test_an_interrupted_run_ends_as_it_would_have(
    recipe: Any, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    recipe.main(options(labels, whole, "--minutes", "0"))
    made, original = [], recipe.make_batch

    def stops(*args: Any) -> Any:
        made.append(args)
        if len(made) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(recipe, "make_batch", stops)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(options(labels, parts, "--minutes", "0"))
    recipe.main(options(labels, parts, "--minutes", "0"))
    assert len(made) == 3
    a, b = (torch.load(next(each.glob("*.pth")), weights_only=True) for each in (whole, parts))
    assert all(torch.equal(a[key], b[key]) for key in a)


def joined(cells: Any) -> Any:
    """Maps (C, 2 h, 2 w) of cells as a network's output (h, w, 4 C)."""
    c, h, w = cells.shape
    return cells.reshape(c, h // 2, 2, w // 2, 2).transpose(1, 3, 2, 4, 0).reshape(h // 2, w // 2, 4 * c)


def test_boxes_come_back_from_their_targets() -> None:
    boxes = np.array([[10, 20, 40, 100, 0.9], [200, 30, 310, 185, 0.9], [120, 60, 131, 92, 0.9]], np.float32)
    heat, sides, counts = train_person.targets(np.vstack([boxes, [[60, 8, 90, 60, 0.4]]]).astype(np.float32))
    assert counts[4, 9] == 0  # the uncertain one
    y, x = np.mgrid[: heat.shape[0], : heat.shape[1]] * 8.0 + 4
    distances = np.stack([x - sides[0], y - sides[1], sides[2] - x, sides[3] - y]) / 8
    raw = np.vstack([np.log(heat[None] + 1e-6) - np.log(1 - heat[None] + 1e-3), np.log(distances.clip(0.1))])
    decoding = replace(train_person.DECODING, threshold=0.9)
    found = decoding.decode(joined(raw).astype(np.float32), Placement.whole(train_person.SIZE))
    assert len(found) == 3
    for box in boxes:
        assert np.abs(found.boxes - box[:4]).max(1).min() < 0.01


def test_points_come_back_from_their_heat_maps() -> None:
    rng = np.random.default_rng(2)
    points = np.concatenate([rng.uniform(8, 184, (17, 2)), np.ones((17, 1))], 1).astype(np.float32)
    points[3, 2], points[4, 2] = 0.2, 0.0
    heat, counts = train_pose.targets(points)
    assert counts.ravel()[[2, 3, 4]].tolist() == [1, 0, 1]
    assert not heat[3].any()
    assert not heat[4].any()
    found = train_pose.DECODING.decode(joined(heat), Placement.whole(train_pose.SIZE))
    seen = points[:, 2] == 1
    assert np.abs(found.points[seen] - points[seen, :2]).max() <= 1.0  # an eighth of a cell
    assert found.visible.tolist() == seen.tolist()


def test_a_pair_is_a_frame_and_the_next_one_seen_alike(labels: Path) -> None:
    """The boxes are at one place, because the invented person does not move; the frames are noise."""
    for recipe, clips in (
        (train_person, [Clip.load(labels, "vtest.avi")]),
        (train_pose, train_pose.training_clips(labels)[:1]),
    ):
        images, *targets = recipe.make_batch(clips, np.random.default_rng(5), 8)
        first, second = images[:4].numpy(), images[4:].numpy()
        assert (first != second).any(axis=(1, 2, 3)).all()
        if recipe is train_person:
            assert torch.equal(targets[0][:4], targets[0][4:])


def test_change_is_the_mean_over_signs_of_values_held_within_one() -> None:
    first, second = torch.tensor([[0.5, 3.0]]), torch.tensor([[-0.5, 2.0]])
    seen = [torch.cat([first, second]), torch.zeros(2, 7)]
    assert training.change(seen).item() == pytest.approx((1.0 + 0.0) / 2 / 2)
    assert not seen


def test_a_sign_that_is_near_to_its_change_is_watched_closely() -> None:
    values = torch.tensor([[0.1, -0.5]])
    for activation, factor in ((Sign(), training.NEAR), (torch.nn.Hardtanh(), 1)):
        network = torch.nn.Sequential(activation)
        seen = training.watch_signs(network)
        network(values)
        assert torch.equal(seen[0], factor * values)


def test_what_stands_still_is_doubted() -> None:
    still = [(frame, 5, 5, 15, 25, 0.9) for frame in range(10)]
    walking = [(frame, 20 * frame, 40, 20 * frame + 12, 70, 0.9) for frame in range(10)]
    persons = np.array(still + walking, np.float32)
    label.doubt_what_stands(persons, 10)
    assert (persons[:10, 5] < label.SURE).all()
    assert (persons[10:, 5] >= label.SURE).all()


@pytest.mark.parametrize("clip", ["video/vtest.avi", "video/dance.mp4"])
def test_labels_are_written_as_coco_has_them(clip: str, tmp_path: Path) -> None:
    """In pixels of the clip's own frames, here twice as large; poses of frames with one person."""
    (tmp_path / clip).mkdir(parents=True)
    Image.new("RGB", (1280, 768)).save(tmp_path / clip / "0.png")
    place = (10, 20, 40, 100)
    persons = [
        *((0, *place, 0.9), (0, 60, 20, 80, 70, 0.4)),
        *((1, *place, 0.9), (1, 60, 20, 80, 70, 0.7)),  # two
        *((2, *place, 0.4), (2, 60, 20, 80, 70, 0.7)),  # one, but not that of the points
        (5, *place, 0.9),
    ]
    points = np.ones((17, 3)) * (11.25, 30, 0.8)
    points[3, 2] = 0.3
    name = tmp_path / label.stem(clip)
    np.save(f"{name}.frames.npy", np.zeros((6, 384, 640, 3), np.uint8))
    np.save(f"{name}.persons.npy", np.array(persons, np.float32))
    rows = [(frame, *place, 0.9, *points.ravel()) for frame in (0, 1, 2, 5)]
    np.save(f"{name}.points.npy", np.array(rows, np.float32))
    label.write_coco(tmp_path, clip, tmp_path)

    def read(kind: str) -> Any:
        return json.loads(Path(f"{name}.{kind}.json").read_text(encoding="utf-8"))

    found = read("persons")
    assert [(each["id"], each["width"], each["height"]) for each in found["images"]] == [
        (i, 1280, 768) for i in range(6)
    ]
    assert [each["image_id"] for each in found["annotations"]] == [0, 0, 1, 1, 2, 2, 5]
    assert [each["iscrowd"] for each in found["annotations"]] == [0, 1, 0, 0, 1, 0, 0]
    first = found["annotations"][0]
    assert (first["bbox"], first["area"], first["category_id"]) == ([20, 40, 60, 160], 9600, 1)
    found, dance = read("points"), clip.endswith("dance.mp4")
    assert [each["id"] for each in found["images"]] == ([0, 1, 2, 5] if dance else [0, 5])
    assert [each["image_id"] for each in found["annotations"]] == [each["id"] for each in found["images"]]
    first = found["annotations"][0]
    assert (first["num_keypoints"], first["iscrowd"], first["area"]) == (16, 0, 9600)
    assert first["keypoints"] == [22.5, 60, 2] * 3 + [0, 0, 0] + [22.5, 60, 2] * 13
    assert Path(f"{name}.points_last_third.json").exists() == dance
    if dance:
        assert [each["id"] for each in read("points_last_third")["images"]] == [5]
