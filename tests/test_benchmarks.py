"""The benchmarks run on tiny shapes, refuse wrong sums, and write what the tables are made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
from models import Builder, random_frames
from xnor_rrm.kernels import xnor
from xnor_rrm.kernels.layer import VARIANTS, BinaryLayer, Variant

from xnor_rrm.model import INPUT, Window
from xnor_rrm.stats import flip_rate

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import bounds, kernels, output, peers, record, replay, run, tables, timing
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
        pytest.skip(why)
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
        pytest.skip(why)
    with pytest.raises(ValueError, match="multiple of 8"):
        peers.OpenVino(peers.Problem(shape, shape.random_weight(rng), shape.random_frame(rng)))


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setattr(peers.OpenVino, "package", "a_package_that_is_not_there")
    present, absent = peers.available(("openvino",))
    assert not present
    assert "not installed" in absent["openvino"]


# --- the commands ---------------------------------------------------------------------------------


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
