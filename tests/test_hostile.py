"""Files made to harm: what the fuzzer found, what an attacker would think of, and a short run of the fuzzer.

Each is refused by an error of ours before it takes memory or time; tests/fuzz.py makes more by the thousand.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fuzz
import numpy as np
import pytest
from test_importers import params, residual_graph
from test_importers_larq import H5_BYTES, Keras, TfLite, grey_model
from test_modelfile import GOLDEN, layer, put_together, take_apart

from xnor_rrm import convert, load
from xnor_rrm.errors import ConvertError, ModelFileError, XnorError
from xnor_rrm.importers.common import torch_file

torch = pytest.importorskip("torch")  # of an optional extra
h5py = pytest.importorskip("h5py")  # of an optional extra


@contextmanager
def refused(message: str, error: type[XnorError] = ConvertError, most: int = 64 << 20) -> Iterator[None]:
    """By that error, within seconds and `most` bytes."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(error, match=message):
            yield
        assert time.process_time() - start < 20
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_damaged_files_are_models_or_errors(name: str) -> None:
    report = fuzz.fuzz(name, range(150), seed=1)
    assert not report.findings
    assert report.outcomes["model"] > 0
    assert len(report.messages) > 5


def test_the_fuzzer_tells_faults_from_errors(tmp_path: Path) -> None:
    def outcome(error: BaseException) -> str:
        def read(_: Path) -> None:
            raise error

        return fuzz.attempt(fuzz.Kind(list, read, converts=False), tmp_path, {})[0]

    hidden = ConvertError("a", "b")
    hidden.__cause__ = MemoryError()
    assert [outcome(error) for error in (ConvertError("a", "b"), ValueError(), SystemExit(), hidden)] == [
        *("ConvertError", "traceback", "traceback", "memory")
    ]


# PyTorch


def zipped(program: bytes, **members: bytes) -> bytes:
    """A checkpoint whose pickle is `program`, an operator or more that leave the content on the stack."""
    records = {"data.pkl": b"\x80\x02" + program + b".", "version": b"3", **members}
    return fuzz.archive_of([(f"net/{name}", content) for name, content in records.items()])


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    """A float32 tensor of the storage "0", in the operators of a pickle."""
    storage = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + integer(count)
    sizes = b"".join(b"(" + b"".join(map(integer, each)) + b"t" for each in (shape, stride))
    rest = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + integer(offset) + sizes + rest + b"tR"


def state(*values: bytes) -> bytes:
    items = (text(f"w{i}") + value for i, value in enumerate(values))
    return b"}(" + b"".join(items) + b"u"


FOUR = np.arange(4, dtype=np.float32).tobytes()


def test_tensors_written_here_are_read(tmp_path: Path) -> None:
    program = state(tensor((2, 2), (1, 2)), tensor((3,), (1,), offset=1), tensor((), ()))
    (tmp_path / "net.pth").write_bytes(zipped(program, **{"data/0": FOUR}))
    arrays = torch_file.read(tmp_path / "net.pth")
    for name, value in torch.load(tmp_path / "net.pth", weights_only=True).items():
        np.testing.assert_array_equal(arrays[name], np.atleast_1d(value.numpy()))


OUTSIDE = "'w0' within a storage of the file"
TORCH: dict[str, tuple[bytes, str]] = {
    # torch.load, weights_only, fills as much memory as the file says.
    "bytes": (state(b"cbuiltins\nbytearray\n" + integer(10**9) + b"\x85R"), "got builtins.bytearray"),
    "old tensor": (state(b"ctorch\nFloatTensor\n" + integer(10**12) + b"\x85R"), "got torch.FloatTensor"),
    "command": (state(b"cposix\nsystem\n" + text("touch canary") + b"\x85R"), "which holds posix.system"),
    "module": (b"ctorch.nn.modules.linear\nLinear\n)\x81", "which holds torch.nn.modules.linear.Linear"),
    "shape": (state(tensor((2, 3), (3, 1))), OUTSIDE),
    "offset": (state(tensor((4,), (1,), offset=1)), OUTSIDE),
    "negative offset": (state(tensor((4,), (1,), offset=-1)), OUTSIDE),
    "stride": (state(tensor((2,), (4,))), OUTSIDE),
    "negative stride": (state(tensor((4,), (-1,))), OUTSIDE),
    "negative size": (state(tensor((-4,), (1,))), OUTSIDE),
    "large size": (state(tensor((2**62, 0, 2**62), (0, 0, 0))), OUTSIDE),
    "large product": (state(tensor((2**40,), (0,))), "'w0' within the file's"),
    "too few strides": (state(tensor((2, 2), (1,))), OUTSIDE),
    "dimensions": (state(tensor((1,) * 100_000, (1,) * 100_000)), "damaged"),
    "text as a size": (state(tensor((4,), (1,)).replace(integer(4), text("4"))), "damaged"),
    "no storage": (state(tensor((4,), (1,)).replace(text("0"), text("7"))), OUTSIDE),
    "many views": (state(*[tensor((2, 100), (1, 0))] * 500), "tensors of at most 4 times the file's"),
    # Dictionaries of numbers that are all of one hash take quadratic time.
    "one hash": (
        b"}(" + b"".join(b"\x8a\x0c" + (i * (2**61 - 1)).to_bytes(12, "little") + b"N" for i in range(99)),
        "damaged",
    ),
    "a list as a key": (b"}]Ns", "damaged"),
    "itself": (b"}q\x00" + text("state_dict") + b"h\x00s", "tensors by name in the state_dict, got dict"),
    "nested": (b")" + b"\x85" * 200_000, "a state_dict, got tuple"),
    "memo": (b"}r\xff\xff\xff\x7f", "tensors|state|one of"),
    "nothing": (b"", "damaged"),
    "marks": (b"(((t", "a state_dict|damaged"),
    "below a mark": (b"}(u" + b"t", "damaged"),
    "long": (b"]" * 2_000_000, "a pickle of at most 1048576 operators"),
}


@pytest.mark.parametrize("case", TORCH)
def test_a_pickle_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    program, message = TORCH[case]
    Path("net.pth").write_bytes(zipped(program, **{"data/0": FOUR}))
    with refused(message, most=128 << 20):
        convert("net.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_a_storage_is_as_long_as_the_file_holds_it(tmp_path: Path) -> None:
    """What a pickle says of its length is not believed: torch 2.4 reads beyond."""
    program = state(tensor((64,), (1,), count=64))
    (tmp_path / "net.pth").write_bytes(zipped(program, pad=bytes(999), **{"data/0": FOUR}))
    with refused(OUTSIDE):
        convert(tmp_path / "net.pth")


def test_storages_left_out_of_an_old_checkpoint(tmp_path: Path) -> None:
    """torch.load takes what lies in memory for their values."""
    store = io.BytesIO()
    torch.save({"w": torch.ones(4)}, store, _use_new_zipfile_serialization=False)
    whole = store.getvalue()
    keys = whole.rindex(b"\x80\x02]")
    (tmp_path / "net.pth").write_bytes(whole[:keys] + pickle.dumps([], 2) + bytes(99))
    with refused("'w' within a storage of the file"):
        convert(tmp_path / "net.pth")
    for count in (-1, 5, 2**62):
        (tmp_path / "net.pth").write_bytes(whole[:-24] + struct.pack("<q", count) + whole[-16:])
        with refused("damaged"):
            convert(tmp_path / "net.pth")


def test_a_member_of_a_zip_there_twice_or_encrypted(tmp_path: Path) -> None:
    """Readers of zips differ in which one they take."""
    whole = zipped(state(tensor((4,), (1,))), **{"data/0": FOUR})
    members = list(fuzz.members_of(whole).items())
    encrypted = bytearray(whole)
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1
    for content in (fuzz.archive_of([*members, members[0]]), bytes(encrypted)):
        (tmp_path / "net.pth").write_bytes(content)
        with refused("damaged"):
            convert(tmp_path / "net.pth")
    big = zipped(state(tensor((4,), (1,))), **{"data/0": FOUR, "byteorder": b"big"})
    (tmp_path / "net.pth").write_bytes(big)
    with refused("lowest byte first"):
        convert(tmp_path / "net.pth")


# MXNet


@pytest.mark.parametrize("index", ["Infinity", "1e999", "NaN", '"1"', "1.5", "1" * 5000, "[0]"])
def test_a_symbols_edges_are_numbers_of_nodes(tmp_path: Path, index: str) -> None:
    path = residual_graph()[0].save(tmp_path)
    symbol = path.with_name("net-symbol.json")
    symbol.write_text(symbol.read_text().replace("[[0, 0, 0]", f"[[{index}, 0, 0]", 1))
    with refused("a symbol JSON|inputs of bn_data|an input of|inputs of"):
        convert(path, size=12)


def test_a_symbol_of_many_nodes(tmp_path: Path) -> None:
    """Each looks through all layers before it."""
    nodes = [{"op": "null", "name": str(i), "inputs": []} for i in range(20_000)]
    (tmp_path / "net-symbol.json").write_text(json.dumps({"nodes": nodes}))
    (tmp_path / "net-0001.params").write_bytes(params({"a": np.zeros(1, np.float32)}))
    with refused("at most 16384 nodes"):
        convert(tmp_path / "net-0001.params", size=12)
    (tmp_path / "net-symbol.json").write_text('{"nodes": [' + "[]," * 2_000_000 + "[]]}")
    with refused("a symbol JSON of at most"):
        convert(tmp_path / "net-0001.params", size=12)


# TensorFlow Lite


def test_one_table_as_many_tensors(tmp_path: Path) -> None:
    """An offset takes 4 bytes, and a tensor some hundred."""
    net = TfLite()
    net.operator("RELU", [net.input], (1, 12, 12, 3), lambda x: x)
    whole, count = net.bytes(), 3_000_000
    # Offsets lead forwards only: the table, without any field, follows the list.
    end = 4 * (count + 1)
    offsets = (end + 4 - 4 * np.arange(1, count + 1, dtype=np.int64)).astype("<u4").tobytes()
    changed = bytearray(whole + struct.pack("<I", count) + offsets + struct.pack("<HHi", 4, 4, 4))
    field = field_of_tensors(whole)
    struct.pack_into("<I", changed, field, len(whole) - field)
    (tmp_path / "net.tflite").write_bytes(changed)
    with refused("whose parts are read at most 4 times", most=256 << 20):
        convert(tmp_path / "net.tflite")


def field_of_tensors(content: bytes) -> int:
    """Where the offset is that leads to the list of a graph's tensors."""

    def follow(at: int) -> int:
        return at + int(struct.unpack_from("<I", content, at)[0])

    def slot(table: int, number: int) -> int:
        vtable = table - struct.unpack_from("<i", content, table)[0]
        return table + int(struct.unpack_from("<H", content, vtable + 4 + 2 * number)[0])

    graphs = follow(slot(follow(0), 2))
    return slot(follow(graphs + 4), 0)


def test_channels_beyond_all_numbers(tmp_path: Path) -> None:
    """Of more digits than Python writes: an error that tells them would be another."""
    keras = Keras()
    for i in range(3600):
        keras.layer("Concatenate", f"c{i}", [f"c{i - 1}" if i else "image"] * 16, lambda x: x, axis=-1)
    with refused("at most 268435456 values from 'c4'", XnorError):
        convert(keras.save(tmp_path, "keras 2"))


# Keras


def test_heaps_within_heaps(tmp_path: Path) -> None:
    """Each of many headers leads to the same long row of objects."""
    count, row = 20_000, 20_000
    end = len(H5_BYTES) + 32 * count
    heaps = b"".join(
        b"GCOL\x01\0\0\0" + struct.pack("<QHxxxxxxQ", 2**40, 0, end - (len(H5_BYTES) + 32 * i + 16))
        for i in range(count)
    )
    (tmp_path / "net.h5").write_bytes(H5_BYTES + heaps + struct.pack("<HxxxxxxQ", 1, 0) * row)
    with refused("heaps of the HDF5 file beside each other"):
        convert(tmp_path / "net.h5")


@pytest.mark.parametrize("sequential", [True, False])
def test_a_config_of_many_layers(tmp_path: Path, sequential: bool) -> None:
    config = grey_model().config(2, sequential)
    entry = config["config"]["layers"][-1]
    config["config"]["layers"] += [entry] * 20_000
    (tmp_path / "net.h5").write_bytes(H5_BYTES)
    with h5py.File(tmp_path / "net.h5", "a", libver="latest") as file:
        del file.attrs["model_config"]
        file.attrs["model_config"] = json.dumps(config, separators=(",", ":"))
    with refused("at most 16384 layers|a config of at most"):
        convert(tmp_path / "net.h5")


# ONNX


@pytest.mark.parametrize("field", [b"\x0a\x00", b"\x2a\x00", b"\x5a\x00"])
def test_messages_of_two_bytes(tmp_path: Path, field: bytes) -> None:
    """Each is a hundred once protobuf has parsed it: nodes, initializers, inputs."""
    graph = field * 2_000_000
    size = len(graph)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x3a" + length + graph)
    with refused("at most 524288 fields in an ONNX file"):
        convert(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "content", [b"\x3a", b"\x3a\xff", b"\x3b", b"\x3a" + b"\xff" * 20, b"\x3f", b"\x39\0"]
)
def test_a_message_that_breaks_off(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08" + content)
    with refused("a whole ONNX file|an opset|one of: "):
        convert(tmp_path / "net.onnx")


# Model files


def test_a_model_enlarged_again_and_again(tmp_path: Path) -> None:
    header, document, tensors = take_apart(GOLDEN.read_bytes())
    layers = document["model"]["layers"]
    for i in range(2000):
        layers.append(layer("Upsample", f"up{i}", layers[-1]["name"], factor=65535))
    (tmp_path / "model.xnor").write_bytes(put_together(header, document, tensors))
    with refused("at most 268435456 values from 'up0'", ModelFileError):
        load(tmp_path / "model.xnor")


def test_an_archive_that_is_several_formats_is_one_or_refused(tmp_path: Path) -> None:
    """A zip with the members of a PyTorch and of a Keras file."""
    members = [("net/data.pkl", b"\x80\x02}."), ("config.json", b"{}"), ("model.weights.h5", H5_BYTES)]
    (tmp_path / "net").write_bytes(fuzz.archive_of(members))
    assert zipfile.is_zipfile(tmp_path / "net")
    with refused("config as JSON|one of|only tensors"):
        convert(tmp_path / "net")
