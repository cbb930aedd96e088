"""Verification: it passes what is right, and names the layer and the place where something is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import naive
import numpy as np
import numpy.typing as npt
import pytest
from models import Builder, every_kind, random_frames, random_model
from PIL import Image
from test_cli import facts, invoke
from test_importers import WRITERS, write_legacy_vgg

import xnor_rrm
from xnor_rrm import Model
from xnor_rrm.errors import ConvertError, XnorError
from xnor_rrm.importers import bring_over, packed_pytorch
from xnor_rrm.importers.common.original import Original
from xnor_rrm.model import INPUT, Affine, BinaryConv2d, Conv2d, Layer, Sign, Window
from xnor_rrm.report import conversion_rows
from xnor_rrm.stream import Stream
from xnor_rrm.verify import MAX_FRAMES, MAX_TOLD, verify

pytest.importorskip("torch")  # of an optional extra

Array = npt.NDArray[Any]


def network(seed: int = 0, ties: bool = False) -> Model:
    """A float stem, a residual block with a pooled shortcut, uneven windows of every padding, a head."""
    net = Builder(np.random.default_rng(seed), 9, 7, ties)
    stem = net.relu(net.affine(net.conv(INPUT, 33, Window((3, 3), padding=(1, 1, 1, 1)))))
    block = net.affine(net.binary(net.affine(stem), 65, Window((3, 3), (2, 2), (1, 1, 1, 1)), pad_value=1))
    pooled = net.avg_pool(stem, Window((2, 2), (2, 2), (0, 1, 0, 1)), count_padding=False)
    top = net.plus(block, net.conv(pooled, 65, Window((1, 1))))
    top = net.max_pool(top, Window((3, 3), (1, 1), (2, 2, 0, 1)))
    top = net.affine(net.binary(top, 40, Window((2, 3), (1, 1), (1, 1, 2, 2), (3, 2)), pad_value=-1))
    top = net.relu(net.binary(top, 12, Window((3, 3), (1, 1), (1, 1, 1, 1))))
    top = net.conv(top, 6, Window((1, 1)), groups=3)
    net.conv(net.avg_pool(top, net.whole(top)), 4, Window((1, 1)))
    return net.model()


def frames(model: Model, count: int = 4) -> Iterator[Array]:
    return random_frames(np.random.default_rng(1), count, *model.input_rule.crop, "noise")


def by_oracle(model: Model) -> Original:
    """An original that computes what the model's layers say, by the oracle in float32."""

    def run(x: Array) -> tuple[Array, dict[str, Array]]:
        values = naive.forward(model, x)
        read = {layer.name: values[layer.inputs[0]] for layer in model.layers if isinstance(layer, Sign)}
        return values[model.layers[-1].name].flatten(), read

    return run


def changed(model: Model, kind: type[Layer], change: Callable[[Any], dict[str, Any]]) -> tuple[Model, str]:
    """The model with other fields in its last layer of a kind, and that layer's name."""
    at = max(i for i, layer in enumerate(model.layers) if isinstance(layer, kind))
    layer = dataclasses.replace(model.layers[at], **change(model.layers[at]))
    layers = (*model.layers[:at], layer, *model.layers[at + 1 :])
    return dataclasses.replace(model, layers=layers), layer.name


@pytest.mark.parametrize("ties", [False, True])
def test_a_right_conversion_passes(ties: bool) -> None:
    for seed in range(4):
        model = network(seed, ties)
        report = verify(model, by_oracle(model), frames(model))
        assert report.passed, report.failures
        assert (report.frames, report.agreeing, report.logit_difference) == (4, 4, 0.0)
        assert [*report.layers] == [each.name for each in model.layers if isinstance(each, Sign)]
        for name, layer in report.layers.items():
            assert layer.bits == 4 * np.prod(model.shapes[name])
            assert layer.off < 1
        assert report.summary == "all signs are those of the original"


@pytest.mark.parametrize("seed", range(6))
def test_every_kind_of_layer_passes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = every_kind(rng) if seed == 0 else random_model(rng, blocks=3)
    report = verify(model, by_oracle(model), frames(model))
    assert report.passed, report.failures
    assert all(layer.off < 1 for layer in report.layers.values())


def shifted(model: Model, change: Callable[[str, Array], Array]) -> Original:
    """The original with values changed by layer."""
    right = by_oracle(model)

    def run(x: Array) -> tuple[Array, dict[str, Array]]:
        logits, values = right(x)
        return change("logits", logits), {name: change(name, value) for name, value in values.items()}

    return run


def test_a_rounded_original_passes() -> None:
    """Values off by what sums in float32 are off by, as those of torch are in another order."""
    rng, model = np.random.default_rng(0), network()

    def rounded(_: str, values: Array) -> Array:
        return values * (1 + np.float32(2**-23) * rng.integers(-2, 3, values.shape)).astype(np.float32)

    assert verify(model, shifted(model, rounded), frames(model)).passed


def test_signs_that_rounding_turns_are_reported_but_no_failures() -> None:
    """A batch-norm puts the value of one place on zero: rounding takes it to either side."""
    model = network()
    at, affine = next((i, x) for i, x in enumerate(model.layers) if isinstance(x, Affine) and i > 2)
    [sign] = judged_after(model, affine.name)
    frame = next(frames(model))
    read = by_oracle(model)(model.input_rule.table()[frame, np.arange(3)])[1][sign]
    shift = affine.shift.copy()
    shift[5] -= read[2, 3, 5]
    centred = dataclasses.replace(affine, shift=shift)
    model = dataclasses.replace(model, layers=(*model.layers[:at], centred, *model.layers[at + 1 :]))

    def turn(name: str, values: Array) -> Array:
        values = values.copy()
        if name == sign:
            assert abs(values[2, 3, 5]) < 1e-6
            values[2, 3, 5] = -1e-8 if values[2, 3, 5] >= 0 else 1e-8
        return values

    # What follows the turned sign was computed from the one before it was turned: it is not looked at.
    report = verify(model, shifted(model, turn), [frame])
    layer = report.layers[sign]
    assert (layer.differing, layer.share) == (1, 1 / layer.bits)
    assert layer.smallest == layer.largest == pytest.approx(1e-8)
    assert sign not in {failure.layer for failure in report.failures}
    assert report.summary == (
        f"the first differing bits are those of {sign}, right after the float layer conv0, "
        "whose rounding they make visible"
    )


@pytest.mark.parametrize("by", [0.5, -0.5])
def test_wrong_logits_fail(by: float) -> None:
    model = network()
    wrong = shifted(model, lambda name, values: values + np.float32(by * (name == "logits")))
    report = verify(model, wrong, frames(model))
    assert report.failed == 4 * 4
    assert len(report.failures) == MAX_TOLD
    first = report.failures[0]
    assert (first.check, first.layer, first.position) == ("conversion", model.layers[-1].name, (0, 0, 0))
    assert first.found - first.expected == pytest.approx(-by, rel=1e-4)


def other_padding(layer: BinaryConv2d) -> dict[str, Any]:
    return {"pad_value": -layer.pad_value if layer.pad_value else 1}


def other_weights(layer: BinaryConv2d) -> dict[str, Any]:
    weight = layer.weight.copy()
    weight[:, 0, 0, 0] ^= np.uint64(15)
    return {"weight": weight}


def other_shift(layer: Affine) -> dict[str, Any]:
    return {"shift": layer.shift + np.float32(0.2)}


def other_stem(layer: Conv2d) -> dict[str, Any]:
    return {"weight": layer.weight + np.float32(0.02)}


WRONG: list[tuple[type[Layer], Callable[[Any], dict[str, Any]]]] = [
    (BinaryConv2d, other_padding),
    (BinaryConv2d, other_weights),
    (Affine, other_shift),
    (Conv2d, other_stem),
]


@pytest.mark.parametrize(("kind", "change"), WRONG)
@pytest.mark.parametrize("which", [0, -1])
def test_a_wrong_conversion_fails_where_it_is_wrong(
    kind: type[Layer], change: Callable[[Any], dict[str, Any]], which: int
) -> None:
    """Only what reads the changed layer without a sign between may fail: all others are fed right signs."""
    model = network()
    at = [i for i, layer in enumerate(model.layers) if isinstance(layer, kind)][which]
    wrong = dataclasses.replace(model.layers[at], **change(model.layers[at]))
    converted = dataclasses.replace(model, layers=(*model.layers[:at], wrong, *model.layers[at + 1 :]))
    report = verify(converted, by_oracle(model), frames(model, 8))
    judged = judged_after(model, wrong.name)
    assert {name for name, layer in report.layers.items() if layer.off > 1} == judged & {*report.layers}
    assert {failure.check for failure in report.failures} == {"conversion"}
    assert {failure.layer for failure in report.failures} <= judged
    assert report.failures[0].layer in str(report.failures[0])


def judged_after(model: Model, name: str) -> set[str]:
    """The Sign layers, and the output, that a layer's values reach without passing another sign."""
    reached, judged = {name}, set()
    for layer in model.layers:
        if reached.intersection(layer.inputs):
            if isinstance(layer, Sign):
                judged.add(layer.name)
            else:
                reached.add(layer.name)
    return judged | ({model.layers[-1].name} & reached)


def test_a_wrong_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of the last Sign turned: its inputs do not give it, and it does not give the output."""
    model = network()
    name = [layer.name for layer in model.layers if isinstance(layer, Sign)][-1]
    right = Stream.signs

    def signs(stream: Stream) -> dict[str, Array]:
        found = {each: bits.copy() for each, bits in right(stream).items()}
        found[name][1, 2, 3] ^= True
        return found

    monkeypatch.setattr(Stream, "signs", signs)
    report = verify(model, by_oracle(model), frames(model, 1))
    engine = [failure for failure in report.failures if failure.check == "engine"]
    assert engine == report.failures
    assert (engine[0].layer, engine[0].position, abs(engine[0].found)) == (name, (1, 2, 3), 1.0)
    assert {failure.layer for failure in engine} == {name, model.layers[-1].name}


def test_the_stream_tells_its_signs() -> None:
    model = network()
    stream, exact = model.stream(), by_oracle(model)
    for frame in frames(model):
        stream(frame)
        values = exact(naive.network_input(model, frame))[1]
        for name, bits in stream.signs().items():
            np.testing.assert_array_equal(bits, values[name] >= 0)


def test_only_the_first_frames_are_compared() -> None:
    model = network()
    seen = iter(list(frames(model, MAX_FRAMES + 2)))
    assert verify(model, by_oracle(model), seen).frames == MAX_FRAMES
    assert len(list(seen)) == 2
    with pytest.raises(XnorError, match="a frame to verify the model with, got none"):
        verify(model, by_oracle(model), [])


def test_an_original_must_give_every_value() -> None:
    model = network()
    right = by_oracle(model)
    name = next(layer.name for layer in model.layers if isinstance(layer, Sign))

    def without(x: Array) -> tuple[Array, dict[str, Array]]:
        logits, values = right(x)
        return logits, {each: value for each, value in values.items() if each != name}

    with pytest.raises(ConvertError, match=rf"\(9, 7, 33\) of the original as {name}, got nothing"):
        verify(model, without, frames(model))
    with pytest.raises(ConvertError, match=r"\(4,\) of the original as logits, got \(3,\)"):
        verify(model, lambda x: (right(x)[0][:3], right(x)[1]), frames(model))
    more = {"other": np.zeros(2)}
    with pytest.raises(ConvertError, match=r"nothing of the original as other, got \(2,\)"):
        verify(model, lambda x: (right(x)[0], right(x)[1] | more), frames(model))


# Importers, and the command


@pytest.mark.parametrize("write", WRITERS)
def test_importers_pass(tmp_path: Path, write: Callable[[Path], tuple[Path, dict[str, Any]]]) -> None:
    path, options = write(tmp_path)
    conversion = bring_over(path, **options)
    report = verify(conversion.model, conversion.original(), frames(conversion.model))
    assert report.passed, report.failures
    assert max(layer.off for layer in report.layers.values()) < 1


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tmp_path / "clip"
    folder.mkdir()
    for i, frame in enumerate(random_frames(np.random.default_rng(2), 3, 40, 36, "patch")):
        Image.fromarray(frame).save(folder / f"{i}.png")
    return folder


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """Each table of an output: its rows by their first value, each by its columns."""
    found: list[dict[str, dict[str, str]]] = []
    for block in text.split("\n\n"):
        header, *rows = [line.split("\t") for line in block.splitlines()]
        if len(header) > 1:
            found.append({row[0]: dict(zip(header, row, strict=True)) for row in rows})
    return found


def test_convert_tells_what_each_layer_was_and_became(tmp_path: Path) -> None:
    path, _ = write_legacy_vgg(tmp_path)
    text = invoke("convert", path, "-o", tmp_path / "vgg.xnor").stdout
    [layers] = tables(text)
    assert list(layers) == [layer.name for layer in xnor_rrm.load(tmp_path / "vgg.xnor").layers]
    conv = layers["features.conv5"]
    assert set(conv["was"].split()) == {".weight", ".alpha", ".bias"}
    assert int(conv["bytes before"]) == 33 * (5 + 1 + 1) * 4
    assert (conv["kind"], conv["type"], conv["step"]) == ("BinaryConv2d", "binary", "features.conv5")
    # Between two binary convolutions they are limits of the first one's sums; before a pool, floats.
    assert layers["features.bn6"]["step"] == layers["features.relu7"]["step"] == "features.conv5"
    assert layers["features.bn9"]["step"] == layers["features.relu10"]["step"] == "features.bn9"
    assert layers["features.conv0"]["type"] == "float"
    assert layers["features.relu7"]["was"] == "-"
    assert int(facts(text)["bytes_before"]) == sum(int(row["bytes before"]) for row in layers.values())


def test_tensors_belong_to_the_layer_with_the_longest_name() -> None:
    model = network()
    layers = (
        dataclasses.replace(model.layers[0], name="conv1"),
        dataclasses.replace(model.layers[1], name="conv1.bn", inputs=("conv1",)),
        dataclasses.replace(model.layers[2], name="conv10", inputs=("conv1.bn",)),
    )
    model = Model("three", model.input_rule, layers)
    sizes = {"conv1.bn.mean": 1, "conv1_weight": 2, "conv10/w": 4, "conv10": 8, "conv": 16, "other": 32}
    rows = [row[-2:] for row in conversion_rows(model, sizes)]
    assert rows == [("_weight", 2), (".mean", 1), ("/w conv10", 12), ("conv other", 48)]


def test_convert_verifies_before_it_writes(tmp_path: Path, clip: Path) -> None:
    path, _ = write_legacy_vgg(tmp_path)
    text = invoke("convert", path, "-o", tmp_path / "vgg.xnor", "--verify", clip).stdout
    assert (tmp_path / "vgg.xnor").is_file()
    told = facts(text)
    assert (told["verified_frames"], told["failures"], told["same_top1"]) == ("3", "0", "100.0%")
    by_name = tables(text)[1]
    assert list(by_name) == ["features.conv1.sign", "features.conv5.sign", "features.conv8.sign"]
    assert by_name["features.conv1.sign"]["after"] == "features.conv0"
    assert int(by_name["features.conv1.sign"]["bits"]) == 3 * 32 * 32 * 16


def test_convert_writes_nothing_that_fails(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_legacy_vgg(tmp_path)
    monkeypatch.setattr(packed_pytorch.Net, "eps", 0.1)
    stderr = invoke("convert", path, "-o", tmp_path / "vgg.xnor", "--verify", clip, code=2).stderr
    assert "conversion: features.conv1.sign at (" in stderr
    assert "error: the model does not compute what the original does" in stderr
    assert not (tmp_path / "vgg.xnor").exists()
