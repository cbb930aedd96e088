"""The model file: round trip, golden bytes, and every way a file can be wrong."""

import copy
import dataclasses
import hashlib
import json
import math
import os
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_same, every_kind, random_model

from xnor_rrm import Model, load
from xnor_rrm.errors import ModelFileError
from xnor_rrm.model import (
    LAYER_KINDS,
    Add,
    Affine,
    AvgPool,
    BinaryConv2d,
    Conv2d,
    InputRule,
    MaxPool,
    Relu,
    Sign,
    Window,
)

GOLDEN = Path(__file__).parent / "data" / "golden_v1.xnor"
CONTRACT = Path(__file__).parents[1] / "docs" / "format.md"
GOLDEN_SHA256 = "7c1a27d37b9de6dba41b42e006828fd39ce2fa42c8f2007a678afae4683f1fd8"
WORDS = np.array([[0x8000000000000001, 0x2], [0xFFFFFFFFFFFFFFFF, 0x3]], np.uint64)


def golden_model() -> Model:
    """The model of tests/data/golden_v1.xnor, in numbers that no library version can change."""
    window = Window((1, 1))
    weight = (np.arange(66 * 3, dtype=np.float32) - 99).reshape(66, 1, 1, 3) / np.float32(8)
    channels = np.arange(66, dtype=np.float32)
    layers = (
        Conv2d("stem", ("input",), weight, channels / np.float32(-2), window),
        Affine("bn", ("stem",), channels - np.float32(30), np.float32(0.1) * channels),
        Relu("relu", ("bn",)),
        Sign("sign", ("relu",)),
        BinaryConv2d(
            "binary",
            ("sign",),
            WORDS.reshape(2, 1, 1, 2),
            np.array([0.5, -1.25], np.float32),
            np.array([0, 3], np.float32),
            channels=66,
            window=window,
            pad_value=1,
        ),
        MaxPool("max", ("binary",), Window((3, 3), (1, 1), (1, 1, 1, 1))),
        Add("add", ("binary", "max")),
        AvgPool("avg", ("add",), Window((4, 5)), count_padding=False),
    )
    rule = InputRule((4, 5), 8, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "bicubic")
    return Model("golden", rule, layers, ("cat", "d\u00f6g"), {"licence": "CC0"})


# Taking files apart and putting them together again, by docs/format.md alone.


def take_apart(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The tensor table, the description and the tensors' bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header.pop("__metadata__")["xnor_rrm"]), data[8 + length :]


#: Marks a text that goes into the description as it stands, without quotes.
RAW = "raw:"


def put_together(header: dict[str, Any], document: dict[str, Any], tensors: bytes) -> bytes:
    """The file, its digest made to fit, so that only the checks behind it can refuse it."""
    text = re.sub(f'"{RAW}(.*?)"', r"\1", json.dumps({**document, "sha256": "0" * 64}))
    text = text.replace("0" * 64, digest_of(text, header, tensors), 1)
    return container({"__metadata__": {"xnor_rrm": text}, **header}, tensors)


def digest_of(text: str, header: dict[str, Any], tensors: bytes) -> str:
    digest = hashlib.sha256(text.encode())
    for name, entry in sorted(header.items()):
        dtype = {"U64": "uint64", "F32": "float32"}[entry["dtype"]]
        digest.update(f"\n{name} {dtype} {','.join(map(str, entry['shape']))}\n".encode())
        digest.update(tensors[slice(*entry["data_offsets"])])
    return digest.hexdigest()


def container(header: Any, tensors: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + tensors


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("valid") / "model.xnor"
    every_kind(np.random.default_rng(0)).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def load_bytes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Model]:
    path = tmp_path_factory.mktemp("load") / "model.xnor"

    def load_written(data: bytes) -> Model:
        path.write_bytes(data)
        return load(path)

    return load_written


# Good files


def test_round_trip_of_every_kind_of_layer(tmp_path):
    model = every_kind(np.random.default_rng(0))
    assert {type(layer).__name__ for layer in model.layers} == set(LAYER_KINDS)
    model.save(tmp_path / "a.xnor")
    loaded = load(tmp_path / "a.xnor")
    assert_same(model, loaded)
    assert not any(array.flags.writeable for layer in loaded.layers for array in layer.tensors().values())
    loaded.save(str(tmp_path / "b.xnor"))
    assert (tmp_path / "a.xnor").read_bytes() == (tmp_path / "b.xnor").read_bytes()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_round_trip_of_random_models(load_bytes, tmp_path_factory, seed):
    model = random_model(np.random.default_rng(seed))
    path = tmp_path_factory.getbasetemp() / "random.xnor"
    model.save(path)
    assert_same(model, load(path))


def test_golden_file_loads_to_known_arrays():
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == GOLDEN_SHA256
    model = load(GOLDEN)
    assert_same(model, golden_model())
    assert [hex(word) for word in model.layers[4].tensors()["weight"].ravel().tolist()] == [
        "0x8000000000000001",
        "0x2",
        "0xffffffffffffffff",
        "0x3",
    ]


def test_golden_bytes_are_what_is_written(tmp_path):
    golden_model().save(tmp_path / "golden.xnor")
    assert (tmp_path / "golden.xnor").read_bytes() == GOLDEN.read_bytes()


def test_input_channels_are_written_where_they_are_not_three(tmp_path):
    rule = InputRule((2, 2), 0, (0.1,), (2.0,), channels=1)
    model = Model("grey", rule, (Relu("relu", ("input",)),))
    model.save(tmp_path / "grey.xnor")
    _, document, _ = take_apart((tmp_path / "grey.xnor").read_bytes())
    assert document["model"]["input_rule"]["channels"] == 1
    assert load(tmp_path / "grey.xnor").input_shape == (2, 2, 1)
    assert load(GOLDEN).input_shape == (4, 5, 3)


def test_golden_file_read_by_the_contract_alone():
    raw = GOLDEN.read_bytes()
    header, document, tensors = take_apart(raw)
    begin, end = header["binary.weight"]["data_offsets"]
    words = "0100000000000080 0200000000000000 ffffffffffffffff 0300000000000000"
    assert tensors[begin:end] == bytes.fromhex(words)
    text = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["xnor_rrm"]
    assert digest_of(text.replace(document["sha256"], "0" * 64), header, tensors) == document["sha256"]


def test_the_example_of_the_contract(tmp_path):
    document, table = re.findall("```json\n(.*?)```", CONTRACT.read_text("utf-8"), re.DOTALL)
    layers = (
        Sign("sign", ("input",)),
        BinaryConv2d(
            "conv",
            ("sign",),
            np.array([0b101, 0b010], np.uint64).reshape(2, 1, 1, 1),
            np.ones(2, np.float32),
            np.zeros(2, np.float32),
            channels=3,
            window=Window((1, 1)),
        ),
    )
    rule = InputRule((1, 1), 0, (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
    Model("tiny", rule, layers).save(tmp_path / "tiny.xnor")
    written = take_apart((tmp_path / "tiny.xnor").read_bytes())
    assert written[:2] == (json.loads(table), json.loads(document))
    assert written[2][:16] == bytes.fromhex("05 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00")


# Damaged files


def test_every_truncation_is_refused(load_bytes, valid):
    ends = {*range(0, 64), *range(64, len(valid), 97), len(valid) - 1}
    for end in ends:
        with pytest.raises(ModelFileError):
            load_bytes(valid[:end])


def test_a_flipped_weight_is_noticed(load_bytes, valid):
    with pytest.raises(ModelFileError, match="expected contents with SHA-256"):
        load_bytes(valid[:-1] + bytes([valid[-1] ^ 1]))


@settings(deadline=None)
@given(data=st.data())
def test_random_damage_gives_the_same_model_or_an_error(load_bytes, valid, data):
    damaged = bytearray(valid)
    header = int.from_bytes(valid[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are a small part of real files, but the part where damage is interesting.
        end = data.draw(st.sampled_from((8, header, len(valid))))
        damaged[data.draw(st.integers(0, end - 1))] ^= data.draw(st.integers(1, 255))
    del damaged[data.draw(st.one_of(st.just(len(valid)), st.integers(0, len(valid)))) :]
    try:
        model = load_bytes(bytes(damaged))
    except ModelFileError:
        return
    assert_same(model, load_bytes(valid))


# Files that lie. Each case: what is done to the tensor table, and what the error says.


def entry(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update({key: value})


HOSTILE_TABLES = {
    "negative size": (entry("stem.bias", "shape", [-66]), r"sizes between 1 and .* got \[-66\]"),
    "negative sizes": (entry("stem.weight", "shape", [-66, 1, 1, -3]), "sizes between 1"),
    "no size": (entry("stem.bias", "shape", [0]), "sizes between 1"),
    "absurd size": (entry("stem.bias", "shape", [2**62]), "sizes between 1"),
    "absurd product": (entry("stem.weight", "shape", [1000] * 8), "expected 4000000000000000000000000 bytes"),
    "absurd rank": (entry("stem.bias", "shape", [1] * 1000), "at most 8 sizes"),
    "size is true": (entry("stem.bias", "shape", [True]), "sizes between 1"),
    "size is a fraction": (entry("stem.bias", "shape", [66.0]), "sizes between 1"),
    "shape is text": (entry("stem.bias", "shape", "66"), "sizes between 1"),
    "too small": (entry("stem.bias", "shape", [65]), r"expected 260 bytes for .*, F32\[65\], got 264"),
    "unknown dtype": (entry("stem.bias", "dtype", "F8_E4M3"), "a dtype among .* got 'F8_E4M3'"),
    "dtype is a list": (entry("stem.bias", "dtype", ["F32"]), "a dtype among"),
    "other dtype": (entry("stem.bias", "dtype", "I32"), "contents with SHA-256"),
    "offsets past the end": (entry("stem.weight", "data_offsets", [840, 9999]), "offsets .* within"),
    "negative offset": (entry("binary.weight", "data_offsets", [-32, 0]), "offsets .* within"),
    "swapped offsets": (entry("binary.weight", "data_offsets", [32, 0]), "got -32"),
    "one offset": (entry("binary.weight", "data_offsets", [0]), "offsets .* within"),
    "unaligned": (entry("binary.alpha", "data_offsets", [33, 41]), "aligned offsets"),
    "overlap": (entry("binary.bias", "data_offsets", [32, 40]), "at byte 40, without gap or overlap, got 32"),
    "unknown key": (entry("stem.bias", "codec", "zip"), "only known names .* got 'codec'"),
    "no table": (
        lambda header: header.update({"stem.bias": 3}),
        "a JSON object as tensor 'stem.bias', got 3",
    ),
    "hole": (lambda header: header.pop("bn.shift"), "at byte 312, without gap"),
    "unclaimed end": (lambda header: header.pop("stem.weight"), "expected 840 bytes of tensors, got 1632"),
}


@pytest.mark.parametrize("case", HOSTILE_TABLES)
def test_hostile_tensor_table(load_bytes, case):
    change, message = HOSTILE_TABLES[case]
    header, document, tensors = take_apart(GOLDEN.read_bytes())
    change(header)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_bytes(container({"__metadata__": {"xnor_rrm": json.dumps(document)}, **header}, tensors))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header within the file"),
        (b"PK\x03\x04", "header within the file"),
        (b"\x80\x02}q\x00(X\x06\x00\x00\x00weight", "convert it first"),
        (b"\xff" * 8 + b"{}", "header within the file, of 2 bytes at most, got 18446744073709551615"),
        (struct.pack("<Q", 2**20 + 1) + bytes(2**20 + 1), "header of at most 1048576 bytes, got 1048577"),
        (container(b""), "valid JSON as the header"),
        (container(b"\xff{}"), "can't decode byte 0xff"),
        (container(b"[" * 900_000), "valid JSON as the header"),
        (container(b'{"a":' * 200_000), "valid JSON as the header"),
        (container(b'{"a": ' + b"9" * 5000 + b"}"), "valid JSON as the header"),
        (container(b'{"a": NaN}'), "the number NaN"),
        (container(b'{"a": -Infinity}'), "the number -Infinity"),
        (container(b'{"a": {}, "a": {}}'), "the same key twice"),
        (container([]), "a JSON object as the header, got"),
        (container({}), "a model description as __metadata__.xnor_rrm, got None, .*If it is a checkpoint"),
        (container({"__metadata__": []}), "a JSON object as __metadata__"),
        (container({"__metadata__": {"format": "pt"}}), "model description"),
        (container({"__metadata__": {"xnor_rrm": {"format": 1}}}), "model description"),
        (container({"__metadata__": {"xnor_rrm": ""}}), "valid JSON as xnor_rrm"),
        (container({"__metadata__": {"xnor_rrm": "[" * 10**5}}), "valid JSON as xnor_rrm"),
        (container({"__metadata__": {"xnor_rrm": '{"format":1,"format":1}'}}), "same key twice"),
        (container({"__metadata__": {"xnor_rrm": '{"format":1}', "zip": ""}}), "in __metadata__, got 'zip'"),
        (container({"__metadata__": {"xnor_rrm": '{"format":1,"zip":0}'}}), "in xnor_rrm, got 'zip'"),
        (
            container({"__metadata__": {"xnor_rrm": '{"format":1}'}}),
            "64 hexadecimal digits as sha256, got None",
        ),
        (container({"__metadata__": {"xnor_rrm": '{"format":1}'}}, b"\0"), "0 bytes of tensors, got 1"),
        (container({"__metadata__": {"xnor_rrm": "{}"}}), "version of at least 1, got None"),
        (container({"__metadata__": {"xnor_rrm": '{"format":0}'}}), "version of at least 1, got 0"),
        (container({"__metadata__": {"xnor_rrm": '{"format":true}'}}), "version of at least 1, got True"),
        (container({"__metadata__": {"xnor_rrm": '{"format":"1"}'}}), "version of at least 1, got '1'"),
    ],
)
def test_hostile_container(load_bytes, data, message):
    with pytest.raises(ModelFileError, match=message) as caught:
        load_bytes(data)
    assert caught.value.remedy


def test_a_newer_version_says_upgrade_whatever_else_is_new(load_bytes):
    text = json.dumps({"format": 2, "codec": "new"})
    data = container({"__metadata__": {"xnor_rrm": text, "new": ""}, "t": {"dtype": "B1"}})
    with pytest.raises(ModelFileError, match=r"expected format version 1 or older, got 2, in .*\. Upgrade"):
        load_bytes(data)


def test_lies_and_huge_files_allocate_nothing(tmp_path):
    lies = tmp_path / "lies.xnor"
    huge = {"dtype": "F32", "shape": [2**31, 64], "data_offsets": [0, 2**39]}
    lies.write_bytes(container({"__metadata__": {"xnor_rrm": '{"format":1}'}, "w": huge}))
    sparse = tmp_path / "sparse.xnor"
    sparse.write_bytes(container({"__metadata__": {"xnor_rrm": '{"format":1}'}, "w": huge}))
    os.truncate(sparse, 2**40)
    tracemalloc.start()
    try:
        for path, message in (
            (lies, "sizes between 1 and the 0 bytes"),
            (sparse, "a file of at most 1073741824"),
        ):
            with pytest.raises(ModelFileError, match=message):
                load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_deep_and_wide_headers_cost_a_small_multiple_of_their_size(load_bytes):
    for data in (container(b"[" * 2**20), container(b"[" + b"[]," * (2**20 // 3 - 1) + b"0]")):
        tracemalloc.start()
        try:
            with pytest.raises(ModelFileError):
                load_bytes(data)
            assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
        finally:
            tracemalloc.stop()


# Descriptions that lie, behind a container and a digest that are right.


def at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets model.PATH, e.g. layers.4.window.kernel; without a value (...) removes it."""

    def change(model: dict[str, Any]) -> None:
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        target: Any = model
        for part in parents:
            target = target[part]
        if value is ...:
            del target[last]
        else:
            target[last] = value

    return change


def all_of(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def change(model: dict[str, Any]) -> None:
        for each in changes:
            each(model)

    return change


def layer(kind: str, name: str = "relu", *inputs: str, **fields: Any) -> dict[str, Any]:
    """Takes the place of a layer of golden_model."""
    return {"kind": kind, "name": name, "inputs": inputs or ["bn"], **fields}


HOSTILE_DESCRIPTIONS = [
    (at("layers.2.kind", "Softplus"), "a kind among Conv2d, .* as layer 'relu', got 'Softplus'.* Upgrade"),
    (at("layers.2.kind", ["Relu"]), "a kind among"),
    (at("layers.2.kind", ...), "a kind among .* as layer 'relu', got None"),
    (at("layers.2.slope", 0.1), "only known names in layer 'relu', got 'slope'.* Upgrade"),
    (at("layers.0.window.shape", 1), "only known names in layer 'stem'.window, got 'shape'"),
    (at("author", "x"), "only known names in model, got 'author'"),
    (at("input_rule.gamma", 1), "only known names in model.input_rule"),
    (at("name", ...), "expected model.name, got no such field"),
    (at("layers.0.window", ...), "expected layer 'stem'.window, got no such field"),
    (at("layers.2.name", ...), r"text .* as model.layers\[2\].name, got None"),
    (at("layers.2.name", "bn"), "a name for each layer, got 'bn' twice"),
    (at("layers.2.inputs", ["binary"]), "inputs that earlier layers make, got relu reads 'binary'"),
    (at("layers.2.inputs", []), "1 inputs, got relu: 0"),
    (at("layers.2.inputs", "bn"), r"a list as layer 'relu'\.inputs, got 'bn'"),
    (at("layers.1.name", "bm"), "a tensor 'bm.scale', got none of that name"),
    (at("layers.0.groups", 0), "groups that divide 66 outputs"),
    (at("layers.0.groups", -1), "groups that divide 66 outputs"),
    (at("layers.0.groups", 1.0), "an integer .* as layer 'stem'.groups, got 1.0"),
    (at("layers.0.groups", True), "an integer .* as layer 'stem'.groups, got True"),
    (at("layers.0.groups", 2**70), "an integer of magnitude at most 65535"),
    (at("layers.0.window.kernel", [3, 3]), "as stem.weight"),
    (at("layers.0.window.kernel", [1]), r"a list of 2 as layer 'stem'.window.kernel, got \[1\]"),
    (at("layers.0.window.stride", [0, 1]), "positive kernel"),
    (at("layers.0.window.padding", [-1, 0, 0, 0]), "padding below the kernel"),
    (at("layers.0.window.padding", [60000] * 4), "padding below the kernel"),
    (at("layers.5.window.kernel", [9, 9]), "an input of at least 9"),
    (at("layers.4.channels", 65), "zero bits past channel 65"),
    (at("layers.4.channels", 67), "67 input channels"),
    (at("layers.4.channels", 0), "as binary.weight, got .* in layer 'binary'"),
    (at("layers.4.channels", -66), "as binary.weight"),
    (at("layers.4.pad_value", 2), "padding value -1, 0 or .1, got binary: 2"),
    (at("layers.7.count_padding", 0), "true or false as layer 'avg'.count_padding, got 0"),
    (
        at("layers.2", layer("Clip", low=1, high=0.5)),
        "finite float32 limits, low <= high, got relu: 1.0, 0.5",
    ),
    (at("layers.2", layer("Clip", low=0, high=1e300)), "finite float32 limits"),
    (at("layers.2", layer("Clip", low=0)), "expected layer 'relu'.high, got no such field"),
    (at("layers.2", layer("Clip", low=0, high="6")), "a finite number as layer 'relu'.high"),
    (at("layers.2", layer("PRelu")), "a tensor 'relu.slope', got none of that name"),
    (at("layers.2", layer("Concat")), "2 or more inputs, got relu: 1"),
    (at("layers.2", layer("Upsample", factor=0)), "a factor of at least 1, got relu: 0"),
    (at("layers.2", layer("Upsample", factor=1.5)), "an integer .* as layer 'relu'.factor"),
    (
        at("layers.2", layer("Upsample", factor=2, interpolation="cubic")),
        "one of .'nearest', 'bilinear'. as layer 'relu'.interpolation, got 'cubic'",
    ),
    (
        all_of(
            at("layers.5", layer("Upsample", "max", "binary", factor=2)),
            at("layers.6.kind", "Concat"),
        ),
        "inputs of one height and width, got add: 4x5 and 8x10",
    ),
    (
        at("layers.6", layer("Concat", "add", "sign", "relu")),
        "a Sign layer before each BinaryConv2d and nowhere",
    ),
    (at("input_rule.crop", [0, 5]), "crop sizes of at least 1"),
    (at("input_rule.interpolation", "lanczos"), "one of .'bilinear', 'bicubic', 'area'. as model"),
    (at("input_rule.fit", "stretch"), "one of .'crop', 'letterbox'. as model.input_rule.fit, got 'stretch'"),
    (at("input_rule.fit", "letterbox"), "fit 'crop', or 'letterbox' with resize 0, got .* resize 8"),
    (at("input_rule.step", 3), "a step that is a power of two from 1 to 64, got 3"),
    (at("input_rule.step", 2.0), "an integer .* as model.input_rule.step, got 2.0"),
    (at("decoding", []), "a JSON object as model.decoding"),
    (at("decoding", None), "a JSON object as model.decoding, got None"),
    (at("decoding", {"cell": 8}), "a kind among BoxDecoding, PointDecoding as model.decoding, got None"),
    (at("decoding", {"kind": ["PointDecoding"]}), "a kind among BoxDecoding, PointDecoding"),
    (at("decoding", {"kind": "BoxDecoding"}), "model.decoding.cell, got no such field"),
    (at("decoding", {"kind": "BoxDecoding", "cell": 0}), "cells of at least 1 pixel, .* got cell 0"),
    (at("decoding", {"kind": "BoxDecoding", "cell": 8, "threshold": 1}), r"threshold in \(0, 1\)"),
    (at("decoding", {"kind": "BoxDecoding", "cell": 8, "most": 0}), "most of at least 1"),
    (at("decoding", {"kind": "BoxDecoding", "cell": 8, "bones": []}), "only known names in model.decoding"),
    (at("decoding", {"kind": "BoxDecoding", "cell": 8}), "at least 5 channels as the output of a detector"),
    (
        at("decoding", {"kind": "PointDecoding", "cell": 8, "bones": [[0, 2]]}),
        "bones between points 0 to 1, got",
    ),
    (at("decoding", {"kind": "PointDecoding", "cell": 8, "bones": [[0]]}), "a list of 2 as model.decoding"),
    (at("decoding", {"kind": "PointDecoding", "cell": 8, "threshold": "0"}), "a finite number as model"),
    (at("input_rule.mean", [0, 0]), "3 numbers each as mean and std"),
    (at("input_rule.channels", 1), "1 numbers each as mean and std"),
    (at("input_rule.channels", 2), "1 or 3 channels, got 2"),
    (at("input_rule.channels", True), "an integer .* as model.input_rule.channels, got True"),
    (at("input_rule.mean", [0, 0, "0"]), r"a finite number as model.input_rule.mean\[2\], got '0'"),
    (at("input_rule.mean", [0, 0, 10**400]), "a finite number"),
    (at("input_rule.mean", [0, 0, RAW + "1e999"]), "a finite number"),
    (at("input_rule.mean", [0, 0, math.nan]), "the number NaN"),
    (at("input_rule.mean", [0, 0, -math.inf]), "the number -Infinity"),
    (at("input_rule.std", [1, 1, 0]), "positive std"),
    (at("labels", ["one"]), "2 labels, got 1"),
    (at("labels", {}), "a list"),
    (at("labels", ["cat", "\x1b[2J"]), "text without control characters"),
    (at("labels", ["cat", "\ud800"]), "text without control characters"),
    (at("info", {"accuracy": 0.9}), r"text .* as model.info\['accuracy'\], got 0.9"),
    (at("info", {"\x00": ""}), "text without control characters as a name in model.info"),
    (at("info", []), "a JSON object as model.info"),
    (at("layers", []), "at least one layer"),
    (at("layers", [3]), r"a JSON object as model.layers\[0\], got 3"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE_DESCRIPTIONS)
def test_hostile_description(load_bytes, change, message):
    header, document, tensors = take_apart(GOLDEN.read_bytes())
    change(document["model"])
    with pytest.raises(ModelFileError, match=message) as caught:
        load_bytes(put_together(header, document, tensors))
    assert caught.value.remedy


def test_absurd_sizes_of_activations(load_bytes, tmp_path):
    header, document, tensors = take_apart(GOLDEN.read_bytes())
    document["model"]["input_rule"].update(crop=[60000, 60000], resize=0)
    document["model"]["labels"] = []
    with pytest.raises(ModelFileError, match="at most 268435456 values from 'input', got "):
        load_bytes(put_together(header, document, tensors))
    document["model"]["input_rule"].update(crop=[4, 5])
    document["model"]["layers"].append(layer("Upsample", "up", "avg", factor=60000))
    with pytest.raises(ModelFileError, match="at most 268435456 values from 'up', got "):
        load_bytes(put_together(header, document, tensors))


def test_a_tensor_that_no_layer_reads(load_bytes):
    header, document, tensors = take_apart(GOLDEN.read_bytes())
    header["extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(tensors), len(tensors) + 4]}
    with pytest.raises(ModelFileError, match="only known names in the tensors, got 'extra'"):
        load_bytes(put_together(header, document, tensors + bytes(4)))


def test_nan_in_a_weight(load_bytes):
    header, document, tensors = take_apart(GOLDEN.read_bytes())
    begin = header["bn.shift"]["data_offsets"][0]
    tensors = tensors[:begin] + struct.pack("<f", math.nan) + tensors[begin + 4 :]
    with pytest.raises(ModelFileError, match=r"finite values in bn\.shift, got 1 NaN"):
        load_bytes(put_together(header, document, tensors))


def test_weights_of_another_type(load_bytes):
    header, document, tensors = take_apart(GOLDEN.read_bytes())
    header["stem.bias"] |= {"dtype": "U64", "shape": [33]}
    with pytest.raises(
        ModelFileError, match=r"float32\[66\] as stem.bias, got uint64\[33\], in layer 'stem'"
    ):
        load_bytes(put_together(header, document, tensors))


def nodes(value: Any, path: str = "") -> list[str]:
    """Paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in items for p in (f"{path}{key}", *nodes(item, f"{path}{key}."))]


VALUES = (
    None,
    True,
    -1,
    0,
    2,
    65535,
    2**63,
    0.5,
    1e300,
    "",
    "input",
    "x" * 1000,
    [],
    [1],
    [[]],
    {},
    {"a": 0},
)


def test_any_value_anywhere_gives_a_model_or_an_error(load_bytes):
    header, document, tensors = take_apart(GOLDEN.read_bytes())
    outcomes = set()
    cases = [(path, value) for path in nodes(document["model"]) for value in VALUES]
    for path, value in cases[::3]:
        changed = copy.deepcopy(document)
        at(path, value)(changed["model"])
        try:
            outcomes.add(type(load_bytes(put_together(header, changed, tensors))))
        except ModelFileError as error:
            outcomes.add(type(error))
    assert outcomes == {Model, ModelFileError}


def test_defaults_may_be_left_out(load_bytes):
    header, document, tensors = take_apart(GOLDEN.read_bytes())
    for path in (
        "layers.0.groups",
        "layers.0.window.stride",
        "layers.0.window.padding",
        "layers.0.window.dilation",
    ):
        at(path, ...)(document["model"])
    assert_same(load_bytes(put_together(header, document, tensors)), golden_model())


# Paths


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "none.xnor", "got nothing, in .*none.xnor"),
        (tmp_path, "got no regular file"),
        (tmp_path / "pipe", "got no regular file"),
        (Path("/dev/zero"), "got no regular file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(ModelFileError, match=message):
            load(path)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.xnor"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelFileError, match="No space left on device"):
        golden_model().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.xnor"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["no/folder.xnor", ".", "", "x" * 300])
def test_nowhere_to_save(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="a place to write"):
        golden_model().save(name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "\x1b[2J"}, "text without control characters"),
        ({"labels": ("a", "\ud800")}, "text without control characters"),
        ({"info": {"accuracy": 0.9}}, "got 0.9"),
        ({"info": {"text": "x" * 2**20}}, r"header of at most .* Nothing was written"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, fields, message):
    model = dataclasses.replace(golden_model(), **fields)
    with pytest.raises(ModelFileError, match=message):
        model.save(tmp_path / "model.xnor")
    assert not any(tmp_path.iterdir())
