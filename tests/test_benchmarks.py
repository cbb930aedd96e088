"""The benchmarks run on tiny shapes, refuse wrong sums, and write what the tables are made of."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import naive
import numpy as np
import pytest
from models import Builder, random_frames
from xnor_rrm.kernels import xnor
from xnor_rrm.kernels.layer import VARIANTS, BinaryLayer, Variant

from xnor_rrm.bench import bench
from xnor_rrm.decoding import BoxDecoding
from xnor_rrm.model import INPUT, Sign, Upsample, Window
from xnor_rrm.preprocess import Preprocessor
from xnor_rrm.stats import flip_rate
from xnor_rrm.video import VideoReader

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import (
    bars,
    bounds,
    kernels,
    openvino_network,
    output,
    peers,
    pipeline,
    record,
    replay,
    run,
    stems,
    tables,
    timing,
)
from benchmarks.layershapes import LayerShape, read_shapes, select, unpack

SAME = Window((3, 3), padding=(1, 1, 1, 1))


@pytest.fixture
def shape_folder(tmp_path, monkeypatch):
    """Two tiny shape files in place of the real ones."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "tiny.txt").write_text(
        "# a comment\n"
        "plain   64 128 5 6 3x3 1 1       1\n"
        "uneven  70  40 6 7 3x3 2 0,1,0,1 0  # behind a shape\n"
    )
    (folder / "fc.txt").write_text("fc 130 70 1 1 1x1 1 0 0\n")
    monkeypatch.setattr(select, "__defaults__", (folder,))
    return folder


def tiny_model():
    net = Builder(np.random.default_rng(0), 8, 8)
    top = net.relu(net.affine(net.conv(INPUT, 70, SAME)))
    top = net.affine(net.binary(net.affine(top), 64, SAME, pad_value=1))
    top = net.affine(net.binary(top, 33, Window((3, 3), (2, 2))))
    net.conv(top, 4, net.whole(top))
    return net.model()


# --- shapes ---------------------------------------------------------------------------------------


def test_shape_files_hold_real_layers():
    shapes = {f"{shape.network}:{shape.name}": shape for shape in select([])}
    assert {shape.network for shape in shapes.values()} >= {"alexnet", "resnet18", "quicknet", "vgg_small"}
    four = [shapes[f"resnet18:{name}"] for name in ("64@56", "128@28", "256@14", "512@7")]
    assert {shape.macs for shape in four} == {9 * 64 * 64 * 56 * 56}
    assert shapes["fully_connected:9216-4096"].macs == 9216 * 4096
    assert shapes["quicknet:stage1/2(1)"].output == (28, 28)


@pytest.mark.parametrize(
    "line",
    [
        "few 64 64 5 5 3x3 1 1",
        "zero 0 64 5 5 3x3 1 1 0",
        "pad 64 64 5 5 3x3 1 1 2",
        "big 64 64 2 2 5x5 1 1 0",
    ],
)
def test_a_wrong_line_is_named(tmp_path, line):
    path = tmp_path / "wrong.txt"
    path.write_text(f"# header\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_shapes(path)


def test_an_unknown_shape_is_told():
    with pytest.raises(ValueError, match="resnet18"):
        select(["resnet18:nothing"])


def test_flipped_bits_are_counted_exactly():
    shape, rng = LayerShape("", "", 70, 8, 9, 5, (3, 3), 1, (0, 0, 0, 0), 0), np.random.default_rng(0)
    frame = shape.random_frame(rng)
    other = shape.flipped(rng, frame, 0.1)
    assert (unpack(frame, 70) != unpack(other, 70)).sum() == round(0.1 * shape.bits)
    assert np.bitwise_count(frame ^ other).sum() == round(0.1 * shape.bits)  # spare bits stay 0


# --- timing and bounds ----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_timed_kernel_computes_the_layer(variant):
    """The compiled sequence of a variant's kernels, on frame after frame, against the oracle."""
    shape, rng = LayerShape("", "", 65, 500, 6, 5, (3, 3), 1, (1, 1, 1, 1), 0), np.random.default_rng(0)
    weight, frame = shape.random_weight(rng), shape.random_frame(rng)
    kernel = timing.Kernel(VARIANTS[variant], shape.layer(weight), frame)
    for share in (0.02, 0.5, 0.01):
        frame = shape.flipped(rng, frame, share)
        load, total = kernel(frame)
        assert 0 < load <= total
        signs, weights = (unpack(words, 65).astype(np.int64) for words in (frame, weight))
        assert np.array_equal(
            kernel.dots(), naive.binary_conv(signs, weights, (1, 1), shape.padding, (1, 1), 0)
        )


def test_rounds_take_turns_and_count():
    calls = []

    def entry():
        calls.append(1)
        return [("a", 1_000_000), ("a", 3_000_000)]

    rounds = timing.Rounds()
    rounds.run([entry], rounds=3, seconds=60)
    assert (rounds.rounds, len(calls), len(rounds.samples["a"])) == (3, 3, 6)
    assert rounds.median_ms("a") == 2.0
    assert 0.1 < np.median(rounds.clock) < 20


def test_bounds_count_rows_under_windows():
    """Against a plain count: one row for each flip and each tile of outputs that sees it."""
    shape, rng = LayerShape("", "", 64, 64, 5, 19, (3, 3), 1, (1, 1, 1, 1), 0), np.random.default_rng(0)
    layer, frame = shape.layer(shape.random_weight(rng)), shape.random_frame(rng)
    other = frame.copy()
    other[2, 0] ^= np.uint64(0b101)  # two flips at the left border, in the middle row
    assert int(layer.step["tile"]) == 8
    assert bounds.operations("rows", True, layer, frame, other) == 2 * 2 * 3
    assert bounds.operations("xnor", False, layer, frame, other) == 3 * (5 * 19) * 9 * 8
    assert bounds.bound_ms(2_000_000, clock_ghz=1.0) == 1.0


# --- peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
def test_peers_compute_the_layer(name, pad_value):
    if why := peers.PEERS[name].missing():
        pytest.skip(why)  # the engine compared with is not installed
    rng = np.random.default_rng(0)
    for padding, kernel, stride in (
        ((1, 1, 1, 1), (3, 3), 1),
        ((0, 1, 0, 1), (3, 3), 2),
        ((0,) * 4, (1, 1), 1),
    ):
        shape = LayerShape("", "", 72, 48, 6, 8, kernel, stride, padding, pad_value)
        weight, frame = shape.random_weight(rng), shape.random_frame(rng)
        signs, weights = (unpack(words, 72).astype(np.int64) for words in (frame, weight))
        dots = naive.binary_conv(signs, weights, (stride, stride), padding, (1, 1), pad_value)
        problem = peers.Problem(shape, weight, frame)
        peer = peers.PEERS[name](problem)
        peer.check(problem, dots)
        assert all(nanoseconds >= 0 for nanoseconds in peer().values())
        with pytest.raises(ArithmeticError, match="differs"):
            peer.check(problem, -dots - 2)


def test_openvino_is_not_asked_what_it_gets_wrong():
    shape, rng = LayerShape("", "", 70, 48, 6, 8, (1, 1), 1, (0, 0, 0, 0), 0), np.random.default_rng(0)
    if why := peers.OpenVino.missing():
        pytest.skip(why)  # the engine compared with is not installed
    with pytest.raises(ValueError, match="multiple of 8"):
        peers.OpenVino(peers.Problem(shape, shape.random_weight(rng), shape.random_frame(rng)))


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setattr(peers.OpenVino, "package", "a_package_that_is_not_there")
    present, absent = peers.available(("openvino",))
    assert not present
    assert "not installed" in absent["openvino"]


# --- a whole network in OpenVINO ------------------------------------------------------------------


def network_for_openvino(seed=0, ties=False):
    """Every kind of layer that is built there: shortcuts with one reader and with two, each value of padding.

    Added and normalised sums stand before signs, which is where engines fuse most; scales of both signs.
    """
    net = Builder(np.random.default_rng(seed), 16, 16, ties=ties)
    top = net.relu(net.affine(net.conv(INPUT, 64, Window((3, 3), (2, 2), (0, 1, 0, 1)))))
    top = net.max_pool(top, Window((3, 3), padding=(1, 1, 1, 1)))
    sign = net.sign(net.affine(top))
    top = net.plus(net.binary(sign, 64, SAME, pad_value=1), net.binary(sign, 64, Window((1, 1))))
    sign = net.sign(net.affine(top))  # alone reads the addition
    top = net.binary(sign, 64, SAME, pad_value=-1)
    other = net.plus(net.prelu(top), net.clip(net.affine(net.binary(sign, 64, SAME, pad_value=0))))
    top = net.concat(other, net.plus(net.binary(net.affine(other), 64, SAME), other))
    top = net.conv(top, 128, SAME, groups=4)
    top = net.avg_pool(net.binary(top, 72, Window((3, 3), (2, 2), (0, 1, 0, 1)), pad_value=1), Window((2, 2)))
    net.conv(top, 10, net.whole(top))
    return net.model()


@pytest.fixture
def openvino():
    if why := peers.OpenVino.missing():
        pytest.skip(why)  # the engine compared with is not installed


@pytest.mark.parametrize("seed", range(3))
def test_openvino_computes_the_network(openvino, seed):
    """Sums exactly, on the signs it has itself; logits against the oracle's, where no sign is turned."""
    model = network_for_openvino(seed)
    network = openvino_network.OpenVinoNetwork(model)
    for frame in random_frames(np.random.default_rng(seed), 3, 16, 16, "all"):
        values = naive.network_input(model, frame)
        compared = openvino_network.check(model, values)
        assert list(compared.values()) == [*[8 * 8 * 64] * 5, 4 * 4 * 72]
        expected = naive.forward(model, values)[model.layers[-1].name].reshape(-1)
        assert np.allclose(network(values), expected, rtol=1e-4, atol=1e-4)


def test_openvino_takes_zero_as_plus_one(openvino):
    """Sums of small integers meet zero, where a FakeQuantize of its own would answer -1."""
    net = Builder(np.random.default_rng(0), 8, 8, ties=True)
    top = net.binary(net.binary(net.conv(INPUT, 64, SAME), 64, SAME, pad_value=1), 64, SAME, pad_value=1)
    net.conv(top, 10, net.whole(top))
    model = net.model()
    frame = next(iter(random_frames(np.random.default_rng(0), 1, 8, 8, "all")))
    values = naive.network_input(model, frame)
    every = naive.forward(model, values)
    assert any((every[layer.inputs[0]] == 0).any() for layer in model.layers if isinstance(layer, Sign))
    expected = every[model.layers[-1].name].reshape(-1)
    assert np.allclose(openvino_network.OpenVinoNetwork(model)(values), expected, rtol=1e-5, atol=1e-2)


def test_limits_are_those_of_the_sign():
    """At each limit and the floats beside it, by the oracle's batch-norms; scales of both signs, 0, ties."""
    net = Builder(np.random.default_rng(0), 1, 1, channels=3)
    net.affine(net.affine(net.conv(INPUT, 200, Window((1, 1)))))
    first, second = ((layer.scale.copy(), layer.shift.copy()) for layer in net.layers[1:])
    first[0][:4], first[1][:4] = (1, 2, -1, 0.5), (0, 3, 7, 288)
    second[0][:4], second[1][:4] = 1, (0, 0, 0, -300)
    limits, falling = openvino_network.sign_limits((first, second), 200)
    for x in (np.nextafter(limits, -np.inf), limits, np.nextafter(limits, np.inf)):
        x = x.astype(np.float32)
        expected = naive.affine(naive.affine(x, *first), *second) >= 0
        # Denormal values may be taken for 0, and larger ones than any sum do not come.
        steady = (np.abs(x) >= openvino_network.SMALLEST) & (np.abs(x) < openvino_network.FURTHEST)
        assert np.array_equal(np.where(falling, x <= limits, x > limits)[steady], expected[steady])
    assert 20 < falling.sum() < 180
    assert (limits == openvino_network.FURTHEST).any()  # of scale 0, never +1
    zero = openvino_network.sign_limits((), 1)[0]
    assert -1e-37 < zero[0] < 0


def test_openvino_s_wrong_sums_are_told(openvino, monkeypatch):
    model = network_for_openvino()
    values = np.zeros(model.input_shape, np.float32)
    right = openvino_network.exact_dots

    def one_off(signs, layer):
        dots = right(signs, layer)
        dots[0, 0, 0] += 2
        return dots

    monkeypatch.setattr(openvino_network, "exact_dots", one_off)
    with pytest.raises(ArithmeticError, match="binary"):
        openvino_network.check(model, values)


@pytest.mark.parametrize("pad_value", [-1, 0, 1])
def test_exact_dots_are_the_oracle_s(pad_value):
    net = Builder(np.random.default_rng(0), 7, 6, channels=3)
    net.binary(net.conv(INPUT, 70, SAME), 5, Window((3, 2), (2, 1), (1, 0, 0, 1), (1, 2)), pad_value)
    layer = net.layers[-1]
    signs = np.random.default_rng(1).random((7, 6, 70)) < 0.5
    weights = unpack(layer.weight, 70).astype(np.int64)
    window = layer.window
    geometry = (window.stride, window.padding, window.dilation, pad_value)
    expected = naive.binary_conv(np.where(signs, 1, -1), weights, *geometry)
    assert np.array_equal(openvino_network.exact_dots(signs, layer), expected)


def test_networks_openvino_gets_wrong_are_refused(openvino):
    net = Builder(np.random.default_rng(0), 8, 8)
    net.binary(net.conv(INPUT, 70, SAME), 8, SAME)
    with pytest.raises(ValueError, match="multiple of 8"):
        openvino_network.OpenVinoNetwork(net.model())
    net = Builder(np.random.default_rng(0), 8, 8)
    net.upsample(net.conv(INPUT, 8, SAME), 2)
    with pytest.raises(ValueError, match=Upsample.__name__):
        openvino_network.OpenVinoNetwork(net.model())


def test_openvino_takes_its_turn_in_a_bench(openvino):
    model = network_for_openvino()
    lane = openvino_network.OpenVinoLane(model, openvino_network.OpenVinoNetwork(model))
    bench(model, random_frames(np.random.default_rng(0), 4, 16, 16, "noise"), peers=False, peer=lane)
    facts = lane.facts()
    assert facts["openvino_same_top1"] == 1
    assert 0 < facts["quartiles_ms"][0] <= facts["openvino_ms"] <= facts["quartiles_ms"][1]


def test_openvino_runs_resnet18(openvino, data_folder, monkeypatch):
    """The real network: exact sums in each of its binary layers, and our class on every frame."""
    monkeypatch.setenv("XNOR_RRM_DATA", str(data_folder))
    model = record.open_model("resnet18")
    network = openvino_network.OpenVinoNetwork(model)
    stream = model.stream("dense")
    frames = islice(VideoReader(record.clip_path("vtest.avi")), 0, 30, 10)
    table = model.input_rule.table()
    for frame in frames:
        values = table[Preprocessor(model.input_rule)(frame), np.arange(3)]
        assert len(openvino_network.check(model, values)) == 19 + 1
        ours, theirs = stream(frame), network(values)
        assert ours.argmax() == theirs.argmax()


# --- stems ----------------------------------------------------------------------------------------


@pytest.fixture
def small_stems(monkeypatch):
    small = (stems.Stem("even", 3, 2, (0, 1, 0, 1), 8, 32), stems.Stem("wide", 7, 4, (3, 3, 3, 3), 40, 40))
    monkeypatch.setattr(stems, "STEMS", small)


def test_stems_write_their_results(small_stems, tmp_path):
    stems.main(["--rounds", "2", "--results", str(tmp_path)])
    result = json.loads((tmp_path / "stems.json").read_text())
    assert [stem["name"] for stem in result["stems"]] == ["even", "wide"]
    assert {"command", "date", "machine", "versions", "assumption"} <= result.keys()
    even, _ = result["stems"]
    assert even["macs"] == 16 * 16 * 8 * 27
    for stem in result["stems"]:
        assert stem["rounds"] == 2
        assert set(stem["changed"]) == {"0.05", "0.2", "0.5"}
        for share, row in stem["changed"].items():
            assert row["outputs"] == pytest.approx(float(share), rel=0.4)
        for row in (stem["dense"], *stem["changed"].values()):
            assert row["quartiles_ms"][0] <= row["ms"] <= row["quartiles_ms"][1]
            assert row["bound_ms"] > 0
    text = tables.update(tmp_path).read_text()
    assert "## Stems" in text
    assert "even 3->8@32x32, 3x3/2" in text


def test_a_stem_that_differs_is_refused(small_stems, tmp_path, monkeypatch):
    right = stems.Stream.__call__

    def wrong(stream, frame):
        logits = right(stream, frame)
        if stream.mode == "cached":
            logits[0] = -logits[0]
        return logits

    monkeypatch.setattr(stems.Stream, "__call__", wrong)
    with pytest.raises(ArithmeticError, match="cached differs"):
        stems.main(["even", "--rounds", "1", "--no-torch", "--results", str(tmp_path)])
    assert not (tmp_path / "stems.json").exists()


def test_pytorch_s_stem_is_compared(small_stems, one_thread, monkeypatch):
    contest = stems.Contest(stems.STEMS[0], (0.2,), seed=0)
    contest.check()
    other = stems.Contest(stems.STEMS[0], (0.2,), seed=1)
    contest.torch = other.torch
    with pytest.raises(ArithmeticError, match="PyTorch"):
        contest.check()


@pytest.mark.parametrize(
    ("target", "features", "expected"),
    [("znver4", ["avx512f"], 1), ("sapphirerapids", ["avx512f"], 2), ("haswell", ["avx2"], 1)],
)
def test_float_bounds_know_the_machine(monkeypatch, target, features, expected):
    monkeypatch.setattr(bounds, "machine_fingerprint", lambda: {"target": target, "features": features})
    assert bounds.fmas_a_cycle() == expected
    assert bounds.fma_bound_ms(16e6 * expected, clock_ghz=1.0) == 1.0
    assert bounds.fma_assumption().startswith(f"{16 * expected} ")


# --- bars -----------------------------------------------------------------------------------------


def bench_of(model, video, **facts):
    known = {"identical": True, "flip_rate": 0.06, "dense_ms": 4.0, "cached_ms": 2.0, "overhead": 0.02}
    return {"model": model, "video": video, **known, "torch_fp32_ms": 40.0, "openvino_ms": 9.0, **facts}


def bars_of(*benches):
    return {row[0]: row[1:] for row in bars.rows(None, None, benches)}


def test_clips_are_grouped_by_camera_and_resnet18_s_flips():
    benches = [
        bench_of("resnet18", "vtest.avi", flip_rate=0.0499),
        bench_of("resnet18", "cup.mp4", flip_rate=0.05),
        bench_of("quicknet", "highway.mp4", flip_rate=0.01),  # unknown: another network's
        bench_of("resnet18", "somebody_s.mp4", flip_rate=0.01),
    ]
    group = bars.groups(benches)
    assert group["vtest.avi"] == "quiet"
    assert group["cup.mp4"] == "busy"
    assert group["bikes.mp4"] == "moving"
    assert group["pets2001_ds3_cam1_jpg"] == "intra-coded"
    assert {"highway.mp4", "somebody_s.mp4"}.isdisjoint(group)


def test_bars_take_the_worst_clip_of_their_group():
    found = bars_of(
        bench_of("resnet18", "vtest.avi", cached_ms=1.0, flip_rate=0.01),
        bench_of("resnet18", "highway.mp4", cached_ms=0.8, flip_rate=0.02),
        bench_of("resnet18", "cup.mp4", cached_ms=2.5, overhead=0.06),
        bench_of("quicknet", "vtest.avi", flip_rate=0.2),
    )
    assert found["dense / cached, resnet18, quiet"] == ("4", "4", "vtest.avi", "yes")
    assert found["dense / cached, resnet18, busy"] == ("1.8", "1.6", "cup.mp4", "**no**")
    assert found["dense / cached, resnet18, moving"] == ("1.1", "-", "-", "-")
    assert found["dense / cached, quicknet, quiet"] == ("3", "2", "vtest.avi", "**no**")
    assert found["PyTorch fp32 / cached, resnet18, quietest"] == ("40", "40", "vtest.avi", "yes")
    assert found["PyTorch fp32 / dense, resnet18"][0:2] == ("8", "10")
    assert found["OpenVINO / dense, resnet18"][1] == "2.25"
    overhead = found["overhead, share of cached, resnet18"]
    assert overhead == ("at most 0.05", "0.06", "cup.mp4", "**no**")


def test_a_difference_meets_no_bar():
    found = bars_of(bench_of("resnet18", "bikes.mp4", identical=False))
    assert found["dense / cached, resnet18, moving"] == ("1.1", "0", "bikes.mp4", "**no**")


def test_a_bar_without_all_its_cases_is_open():
    found = bars_of(bench_of("resnet18", "bikes.mp4"), bench_of("resnet18", "cup.mp4", openvino_ms=None))
    assert found["OpenVINO / dense, resnet18"] == ("2", "-", "-", "-")


def evaluation(model, video, twin, binary, score):
    rows = [{"name": "binary dense", score: binary}, {"name": "binary cached", score: binary}]
    if twin is not None:
        rows.insert(0, {"name": "float twin", score: twin})
    made = {"date": "2026-01-01", "commit": "0", "command": "evaluate", "versions": {}}
    machine = {"cpu": "x", "target": "y", "cores": 1, "load_average": None, "system": "z"}
    facts = {"scored": 9, "identical": True, "rows": rows, "machine": machine}
    return {"model": model, "video": video, **facts, **made}


def test_bars_of_tasks_take_the_worst_clip():
    benches = [
        bench_of("person", "vtest.avi", cached_ms=1.0),
        bench_of("person", "highway.mp4", cached_ms=2.0),
        bench_of("pose", "dance.mp4", cached_ms=1.0),
    ]
    evaluations = [
        evaluation("person", "a", 0.5, 0.45, "ap50"),
        evaluation("person", "b", 0.5, 0.4, "ap50"),
        evaluation("pose", "c", None, 0.9, "pck"),
    ]
    pipeline = {"cases": {"person:vtest.avi": {"frames_per_s": 310.0}}}
    found = {row[0]: row[1:] for row in bars.rows(None, None, benches, None, evaluations, pipeline)}
    assert found["dense / cached, person, vtest.avi and highway.mp4"] == ("3", "2", "highway.mp4", "**no**")
    assert found["dense / cached, pose, dance.mp4"] == ("2.5", "4", "dance.mp4", "yes")
    assert found["AP50 of the float twin less person's"] == ("at most 0.08", "0.1", "b", "**no**")
    assert found["PCK@0.2 of the float twin less pose's"] == ("at most 0.05", "-", "-", "-")
    assert found["frames a second from the file, 768x576"] == ("300", "310", "person:vtest.avi", "yes")


def test_the_readme_shows_the_least_the_middle_and_the_greatest():
    benches = [bench_of("pose", f"clip{speedup}", speedup=speedup) for speedup in (3, 1, 2, 5, 4)]
    benches += [bench_of("person", "a", speedup=1.5), bench_of("vgg_small", "a", speedup=9)]
    shown = [(b["model"], b["speedup"]) for b in tables.selected(benches)]
    assert shown == [("person", 1.5), ("pose", 1), ("pose", 3), ("pose", 5)]


def test_all_layers_are_told_apart_from_the_whole():
    layers = [{"dense_ms": 1.5, "cached_ms": 0.25}, {"dense_ms": 0.5, "cached_ms": 0.25}]
    rows = tables.bench_rows(
        [bench_of("pose", "a", speedup=2.5, binary_speedup=6, per_layer=each) for each in (layers, [])]
    )
    assert [row[5:7] for row in rows] == [("4x", "2.5x"), ("-", "2.5x")]


def test_accuracy_is_told_with_the_twin_where_there_is_one(tmp_path):
    for each in (evaluation("person", "a", 0.5, 0.45, "ap50"), evaluation("pose", "c", None, 0.9, "pck")):
        output.write(tmp_path, f"evaluate_{each['model']}", each)
    text = tables.document(tmp_path)
    assert "| person, a | 9 | AP50 | 0.500 | 0.450 | 0.050 | yes |" in text
    assert "| pose, c | 9 | PCK@0.2 | - | 0.900 | - | yes |" in text


# --- the commands ---------------------------------------------------------------------------------


def test_the_pipeline_is_timed_in_its_parts(tmp_path, monkeypatch):
    from PIL import Image

    clip, model = tmp_path / "clip", tmp_path / "tiny.xnor"
    clip.mkdir()
    for number, frame in enumerate(random_frames(np.random.default_rng(1), 6, 32, 48, "noise")):
        Image.fromarray(frame).save(clip / f"{number}.png")
    net = Builder(np.random.default_rng(0), 32, 48)
    net.conv(net.affine(net.conv(INPUT, 40, Window((8, 8), (8, 8)))), 5, Window((1, 1)))
    replace(net.model(), decoding=BoxDecoding(cell=8)).save(model)
    cores = getattr(os, "sched_getaffinity", lambda _: None)
    before = cores(0)
    pipeline.main([f"{model}:{clip}", "--frames", "4", "--results", str(tmp_path)])
    assert cores(0) == before
    (case,) = json.loads((tmp_path / "pipeline.json").read_text())["cases"].values()
    assert (case["frames"], case["size"]) == (4, "48x32")
    seconds = 4 / case["frames_per_s"]
    assert 0 < case["decode_ms"] + case["network_ms"] + case["records_ms"] < 1e3 * seconds
    assert case["speedup"] == pytest.approx(case["dense_network_ms"] / case["network_ms"], abs=1e-3)
    assert "48x32" in tables.document(tmp_path)


def test_kernels_write_their_results(shape_folder, tmp_path):
    names = [name for name, peer in peers.PEERS.items() if not peer.missing()]
    kernels.main(["--rounds", "2", "--rates", "0.01", "0.2", "--results", str(tmp_path / "results")])
    result = json.loads((tmp_path / "results" / "kernels.json").read_text())
    assert [layer["name"] for layer in result["layers"]] == ["fc", "plain", "uneven"]
    assert {"command", "date", "machine", "versions", "assumption"} <= result.keys()
    for layer in result["layers"]:
        assert layer["rounds"] == 2
        assert set(layer["dense"]) | set(layer["cached"]) == set(VARIANTS) - {"set_rows"}  # too few outputs
        assert set(layer["peers"]) | set(layer["refused"]) == set(names)
        assert set(layer["ratios"]["cached_vs_popcount"]) == {"0.01", "0.2"}
        cached = [row for by_rate in layer["cached"].values() for row in by_rate.values()]
        for row in (*layer["dense"].values(), *cached):
            assert row["operations"] > 0
            assert row["quartiles_ms"][0] <= row["ms"] <= row["quartiles_ms"][1]


def test_a_wrong_variant_is_refused(shape_folder, tmp_path, monkeypatch):
    def forget_the_last_pixel(layer: BinaryLayer) -> None:
        x, listed = layer, (layer.pixels, layer.pixels, layer.outputs - 1)
        xnor.conv_xnor(x.last, x.weights, x.step, x.starts, x.segment_at, *listed, x.mismatches)

    monkeypatch.setitem(VARIANTS, "wrong", Variant(forget_the_last_pixel, cached=False))
    monkeypatch.setattr(kernels, "DENSE", [*kernels.DENSE, "wrong"])
    with pytest.raises(ArithmeticError, match="wrong differs"):
        kernels.main(["tiny:plain", "--rounds", "1", "--rates", "0.5", "--peers", "--results", str(tmp_path)])
    assert not (tmp_path / "kernels.json").exists()


def test_recordings_hold_what_the_stream_saw(tmp_path):
    model = tiny_model()
    frames = list(random_frames(np.random.default_rng(1), 6, 8, 8, "patch"))
    layers = record.read(record.record(model, iter(frames), tmp_path / "clip.npz"))
    assert [layer.weight.shape[0] for layer in layers] == [64, 33]
    stream = model.stream("cached")
    for number, frame in enumerate(frames):
        stream(frame)
        binary = [stats for stats in stream.stats if stats.kind == "binary"]
        macs = sum(layer.macs for layer in layers)
        if number:
            assert [stats.flips for stats in binary] == [layer.flips[number] for layer in layers]
            rate = sum(layer.macs * layer.flips[number] / layer.bits for layer in layers) / macs
            assert rate == pytest.approx(flip_rate(stream.stats))


def test_replay_and_tables(shape_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "COLD_BYTES", 1 << 12)
    clip = record.record(
        tiny_model(), random_frames(np.random.default_rng(1), 5, 8, 8, "noise"), tmp_path / "clip.npz"
    )
    replay.main([str(clip), "--results", str(tmp_path)])
    result = json.loads((tmp_path / "replay.json").read_text())
    replayed = result["clips"]["clip"]
    assert 0 < replayed["flip_rate"] < 1
    assert str(tmp_path) not in result["command"].split(" --results")[0]
    for column in ("warm", "cold"):
        assert len(replayed[column]["layers"]) == 2
        assert replayed[column]["popcount_ms"] > 0
        assert replayed[column]["choice_ms"] > 0

    kernels.main(["--rounds", "1", "--rates", "0.05", "--peers", "--results", str(tmp_path)])
    text = tables.update(tmp_path).read_text()
    assert "Generated by" in text
    for heading in ("## Bars", "## Replayed clips", "## Dense kernels", "## Cached kernels", "## Operations"):
        assert heading in text
    assert result["machine"]["cpu"] in text
    assert result["command"] in text
    widths = {
        line.count("|") for line in text.split("## Replayed")[1].split("##")[0].splitlines() if "|" in line
    }
    assert len(widths) == 1  # every row has a cell for every column


def test_run_benches_a_clip(tmp_path, monkeypatch):
    """The bench part and the README's table, over a folder of images."""
    from PIL import Image

    clip, results, model = tmp_path / "clip", tmp_path / "results", tmp_path / "tiny.xnor"
    clip.mkdir()
    for number, frame in enumerate(random_frames(np.random.default_rng(1), 4, 8, 8, "noise")):
        Image.fromarray(frame).save(clip / f"{number}.png")
    tiny_model().save(model)
    arguments = [
        "--only",
        "bench",
        "--models",
        str(model),
        "missing.xnor",
        "--clips",
        str(clip),
        "--frames",
        "3",
    ]
    run.main([*arguments, "--results", str(results)])
    result = json.loads((results / "bench_tiny_clip.json").read_text())
    assert (result["frames"], result["identical"], result["model"]) == (3, True, "tiny")
    assert 0 < result["preprocess_ms"] + result["overhead_ms"] < result["cached_ms"]
    assert 0 < result["overhead"] < 1
    assert "tiny, clip" in (results / "benchmarks.md").read_text()

    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.START}\nold\n{tables.END}\nafter\n")
    assert tables.update_readme(readme, results)
    text = readme.read_text()
    assert "| tiny | clip |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    readme.write_text("no markers\n")
    assert not tables.update_readme(readme, results)


def test_results_name_their_command():
    made = output.made_by("kernels", ["resnet18:64@56"])
    assert made["command"] == "python -m benchmarks.kernels resnet18:64@56"
    assert {"machine", "date", "versions", "commit"} <= made.keys()
