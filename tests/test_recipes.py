"""The recipes of the detector and of the key points, on a few invented frames."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xnor_rrm import load

torch = pytest.importorskip("torch")  # of an optional extra

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
import label  # noqa: E402
import train_person  # noqa: E402
import train_pose  # noqa: E402
from training import MEAN, STD  # noqa: E402

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
    x = ((frame - np.array(MEAN)) / np.array(STD)).astype(np.float32).transpose(2, 0, 1)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(x[None]))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(model.stream("dense")(frame).reshape(expected.shape), expected, atol=1e-4)
    assert weights.with_suffix(".xnor").stat().st_size < (4_000_000 if twin else 1_500_000)


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


def test_boxes_come_back_from_their_targets() -> None:
    boxes = np.array([[10, 20, 40, 100, 0.9], [200, 30, 310, 185, 0.9], [120, 60, 131, 92, 0.9]], np.float32)
    heat, sides, counts = train_person.targets(np.vstack([boxes, [[60, 8, 90, 60, 0.4]]]).astype(np.float32))
    assert counts[4, 9] == 0  # the uncertain one
    y, x = np.mgrid[: heat.shape[0], : heat.shape[1]] * 8.0 + 4
    distances = np.stack([x - sides[0], y - sides[1], sides[2] - x, sides[3] - y]) / 8
    raw = np.vstack([np.log(heat[None] + 1e-6) - np.log(1 - heat[None] + 1e-3), np.log(distances.clip(0.1))])
    (found,) = train_person.decode(torch.from_numpy(raw[None].astype(np.float32)), 0.9)
    assert len(found) == 3
    for box in boxes:
        assert np.abs(found[:, :4] - box[:4]).max(1).min() < 0.01


def test_average_precision_is_that_of_a_case_worked_out_by_hand() -> None:
    truth = np.array([[0, 0, 10, 10, 1], [50, 0, 60, 10, 1], [80, 80, 99, 99, 0.4]], np.float32)
    found = np.array(
        [
            [0, 0, 10, 9, 0.9],  # right
            [0, 1, 10, 10, 0.8],  # the same one again: wrong
            [80, 80, 99, 99, 0.7],  # uncertain: neither
            [50, 0, 60, 10, 0.6],  # right
        ],
        np.float32,
    )
    # precision 1 up to recall 1/2 (51 of 101 points), 2/3 for the rest
    expected = (51 + 50 * 2 / 3) / 101
    assert train_person.average_precision([found], [truth]) == pytest.approx(expected)
    assert train_person.average_precision([found[:0]], [truth]) == 0


def test_points_come_back_from_their_heat_maps() -> None:
    rng = np.random.default_rng(2)
    points = np.concatenate([rng.uniform(8, 184, (17, 2)), np.ones((17, 1))], 1).astype(np.float32)
    points[3, 2], points[4, 2] = 0.2, 0.0
    heat, counts = train_pose.targets(points)
    assert counts.ravel()[[2, 3, 4]].tolist() == [1, 0, 1]
    assert not heat[3].any()
    assert not heat[4].any()
    found = train_pose.decode(torch.from_numpy(heat[None]))[0]
    seen = points[:, 2] == 1
    assert np.abs(found[seen, :2] - points[seen, :2]).max() <= 1.01  # a quarter of a cell of four pixels


def test_correct_points_are_counted_by_the_torso() -> None:
    truth = np.ones((2, 17, 3), np.float32)
    truth[:, :, :2] = np.arange(17)[None, :, None] * 10
    torso = np.hypot(70, 70)  # from point 5 to point 12
    truth[0, 0, 2] = 0  # not seen
    truth[1, 12, 2] = 0  # no torso: the whole frame is left out
    found = truth.copy()
    found[0, 1, 0] += 0.19 * torso
    found[0, 2, 0] += 0.21 * torso
    assert train_pose.correct_points(found, truth) == pytest.approx(15 / 16)


def test_what_stands_still_is_doubted() -> None:
    still = [(frame, 5, 5, 15, 25, 0.9) for frame in range(10)]
    walking = [(frame, 20 * frame, 40, 20 * frame + 12, 70, 0.9) for frame in range(10)]
    persons = np.array(still + walking, np.float32)
    label.doubt_what_stands(persons, 10)
    assert (persons[:10, 5] < label.SURE).all()
    assert (persons[10:, 5] >= label.SURE).all()
