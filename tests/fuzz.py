"""Hostile files by the thousand: python -m tests.fuzz READER --inputs 10000 --seed 0

Small valid files, made by the tests' own writers, are damaged in the terms of their format (fields and
operators exchanged, removed, repeated, replaced) and of their bytes. Each goes to the reader and then to the
whole of `convert`, in a process that may take only so much memory and time, and write to no file. Whatever
becomes neither a model nor an XnorError is a finding: it is told, and kept if --keep names a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import os
import pickletools
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

if __package__:  # run as tests.fuzz, and not by pytest, for which the writers beside it are modules
    sys.path.insert(0, str(Path(__file__).parent))

Rng = np.random.Generator
#: Contents by name; the first is the one that is given to the reader.
Files = dict[str, bytes]

#: What a reader and the conversion of one small file may take, beyond what the process has when it starts.
MEMORY, SECONDS = 1 << 28, 3.0
#: After this long without an answer it is ended. Other programs may be running.
PATIENCE = 60.0

NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 4096, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        33,
        65536,
        2**31,
        2**63,
        10**30,
        0.5,
        -0.0,
        1e300,
        float("nan"),
        float("inf"),
    ),
    *("", "input", "data", "x" * 300, "\x00", "\ud800", "(1, 1)", "(3,)", "1e400", "[" * 5000),
    *([], [0], [[]], [None, 3, 9, 9], [1] * 40, {}, {"a": 0}, b"", b"\xff" * 8),
)


@dataclass(frozen=True)
class Seed:
    """A valid file.  vary : a version of it damaged in the terms of its format."""

    files: Files
    vary: Callable[[Rng], Files]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """seeds : valid files.  read : the reader alone.  converts : whether `convert` reads such files."""

    seeds: Callable[[], list[Seed]]
    read: Callable[[Path], object]
    converts: bool = True


def damaged(seeds: list[Seed], rng: Rng) -> tuple[Files, dict[str, Any]]:
    """One of the files, damaged, and the options that bring it over."""
    seed = seeds[rng.integers(len(seeds))]
    files = dict(seed.files)
    if rng.random() < 0.6:
        try:
            files = dict(seed.vary(rng))
        except Exception:  # the writers are not made for what they are given
            files = dict(seed.files)
    if files == seed.files or rng.random() < 0.2:
        donor = list(seeds[rng.integers(len(seeds))].files.values())
        name = list(files)[rng.integers(len(files))]
        files[name] = damaged_bytes(files[name], donor[rng.integers(len(donor))], rng)
    return files, seed.options


# Damage to bytes


def damaged_bytes(content: bytes, donor: bytes, rng: Rng) -> bytes:
    """A few changes, most of them where the format's own fields are."""
    changed = bytearray(content)
    where = fields_of(content)
    for _ in range(int(rng.geometric(0.5))):
        size = len(changed)
        if not size:
            break
        at = int(rng.choice(where)) if rng.random() < 0.85 and len(where) else int(rng.integers(size))
        at = min(at, size - 1)
        length = min(int(2 ** rng.uniform(0, 9)), size - at)
        match rng.integers(10):
            case 0:
                changed[at] ^= 1 << int(rng.integers(8))
            case 1:
                changed[at] = int(rng.integers(256))
            case 2 | 3:
                width = int(rng.choice([1, 2, 4, 8]))
                number = NUMBERS[rng.integers(len(NUMBERS))] + int(rng.choice([0, 0, -1, 1, size]))
                changed[at : at + width] = (number % 2 ** (8 * width)).to_bytes(
                    width, str(rng.choice(["little", "little", "big"]))
                )
            case 4:
                del changed[at:]
            case 5:
                del changed[at : at + length]
            case 6:
                changed[at:at] = changed[at : at + length]
            case 7:
                start = int(rng.integers(max(len(donor) - length, 1)))
                changed[at : at + length] = donor[start : start + length]
            case 8:
                other = min(int(rng.choice(where)) if len(where) else 0, size - length)
                length = min(length, 8)
                changed[at : at + length], changed[other : other + length] = (
                    changed[other : other + length],
                    changed[at : at + length],
                )
            case 9:
                changed[at : at + length] = bytes(length)
    return bytes(changed)


@cache
def fields_of(content: bytes) -> Any:
    """Where a file's own fields are, by guess: all but long stretches that look like weights.

    Blocks of 32 bytes in which nearly all values differ and few are text or zero are weights.
    """
    data = np.frombuffer(content, np.uint8)
    blocks = data[: len(data) // 32 * 32].reshape(-1, 32)
    plain = ((blocks == 0) | ((blocks >= 32) & (blocks < 127))).mean(axis=1) > 0.55
    plain |= np.roll(plain, 1) | np.roll(plain, -1)
    places = np.flatnonzero(np.repeat(plain, 32))
    return np.concatenate([places, np.arange(len(blocks) * 32, len(data)), np.arange(min(64, len(data)))])


# Damage to trees of lists, dictionaries and values, to pickles, archives and protobuf messages


def varied_tree(tree: Any, rng: Rng) -> Any:
    """A copy with values replaced, removed, repeated, or exchanged for others of the tree."""
    tree = copy.deepcopy(tree)
    for _ in range(int(rng.geometric(0.6))):
        places = list(_places(tree))
        if not places:
            break
        at, key = places[rng.integers(len(places))]
        other, other_key = places[rng.integers(len(places))]
        match rng.integers(6):
            case 0 | 1:
                at[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
            case 2:
                at[key] = copy.deepcopy(other[other_key])
            case 3:
                at[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(at[key])
            case 4:
                del at[key]
            case 5 if isinstance(at, list):
                at.insert(int(rng.integers(len(at) + 1)), copy.deepcopy(at[key]))
            case _:
                at[key] = _neighbour(at[key], rng)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def _neighbour(value: Any, rng: Rng) -> Any:
    """Something like a value, but not it."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + NUMBERS[rng.integers(len(NUMBERS))]
    if isinstance(value, str | bytes):
        return value[: len(value) // 2] if rng.random() < 0.5 else value + value
    if isinstance(value, list):
        return value[::-1]
    return value


#: What torch's own reader of pickles knows, and what none may.
PROGRAMS = (
    b"cposix\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\nbytearray\n", b"cbuiltins\nset\n",
    b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n", b"c_codecs\nencode\n", b"ctorch\nSize\n",
    b"ctorch\nTensor\n", b"ctorch\nFloatTensor\n", b"ctorch\nDoubleStorage\n", b"ctorch\nBoolStorage\n",
    b"ctorch\nfloat32\n", b"ctorch\nLongStorage\n", b"ctorch.storage\nUntypedStorage\n", b"ctorch\ndevice\n",
    b"ctorch.nn.parameter\nParameter\n", b"ctorch.serialization\n_get_layout\n",
    *(f"ctorch._utils\n_rebuild_{name}\n".encode() for name in (
        "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "qtensor", "sparse_tensor",
        "meta_tensor_no_storage", "nested_tensor", "wrapper_subclass", "device_tensor_from_numpy",
    )),
    b"ctorch._tensor\n_rebuild_from_type_v2\n", b"X\x04\x00\x00\x00meta", b"X\x06\x00\x00\x00cuda:0",
    *(bytes([op]) for op in b"(.0N}]){atbusRQ\x81\x85\x86\x87\x88\x89\x8fd2oe1"),
    b"U\x03abc", b"\x93", b"\x95" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"B\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"h\xff", b"I9999\n", b"L99L\n", b"F1e999\n",
    b"G\x7f\xf0\0\0\0\0\0\0", b"P1\n", b"i" b"os\nsystem\n", b"\x82\x01",
    b"cposix\nsystem\n(X\x05\x00\x00\x00touch\x8c\x06canarytR",
    b"cbuiltins\nbytearray\nJ\x00\x00\x00\x70\x85R",
    b"ctorch\nFloatTensor\n\x8a\x05\x00\x00\x00\x00\x01\x85R",
)  # fmt: skip


def varied_pickle(content: bytes, rng: Rng) -> bytes:
    """Pickles, one after another and then other data, with a few operators changed."""
    operators, at = [], 0
    while content[at : at + 1] == b"\x80":
        try:
            starts = [(place or 0) for _, _, place in pickletools.genops(content[at:])]
        except ValueError:
            break
        ends = [*starts[1:], starts[-1] + 1]
        operators += [content[at + a : at + b] for a, b in zip(starts, ends, strict=True)]
        at += ends[-1]
    for _ in range(int(rng.geometric(0.5))):
        i, j = (int(n) for n in rng.integers(0, len(operators), 2))
        match rng.integers(6):
            case 0:
                operators[i] = PROGRAMS[rng.integers(len(PROGRAMS))]
            case 1:
                operators.insert(i, PROGRAMS[rng.integers(len(PROGRAMS))])
            case 2:
                operators[i], operators[j] = operators[j], operators[i]
            case 3:
                operators[i:i] = operators[j : j + int(rng.integers(1, 12))]
            case 4:
                del operators[i : i + int(rng.integers(1, 4))]
            case 5:
                numbers = [k for k, each in enumerate(operators) if each[:1] in b"KMJ"]
                number = NUMBERS[rng.integers(len(NUMBERS))]
                if numbers:
                    long = b"\x8a\x09" + (number % 2**71).to_bytes(9, "little")
                    small = b"J" + struct.pack("<i", (number + 2**31) % 2**32 - 2**31)
                    operators[int(rng.choice(numbers))] = long if rng.random() < 0.5 else small
    return b"".join(operators) + content[at:]


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    store = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(store, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names there twice
        for name, member in members:
            archive.writestr(name, member)
    return store.getvalue()


def varied_archive(content: bytes, name: str, vary: Callable[[bytes, Rng], bytes], rng: Rng) -> bytes:
    """An archive in which one member is varied, now and then others exchanged, cut, renamed or repeated."""
    members = list(members_of(content).items())
    chosen = next(i for i, (each, _) in enumerate(members) if each.endswith(name))
    if rng.random() < 0.85:
        members[chosen] = members[chosen][0], vary(members[chosen][1], rng)
    method = zipfile.ZIP_STORED
    while rng.random() < 0.25:
        i, j = (int(n) for n in rng.integers(0, len(members), 2))
        match rng.integers(6):
            case 0:
                members[i] = members[i][0], members[j][1]
            case 1:
                members[i] = members[i][0], members[i][1][: int(rng.integers(len(members[i][1]) + 1))]
            case 2:
                members.append((members[i][0], members[j][1]))
            case 3:
                members[i] = str(rng.choice(["../x", "/x", "", "a/data.pkl", "data.pkl"])), members[i][1]
            case 4:
                del members[i]
                if not members:
                    break
            case 5:
                method = zipfile.ZIP_DEFLATED
    return archive_of(members, method)


def varied_message(content: bytes, kind: Callable[[], Any], rng: Rng) -> bytes:
    """A protobuf message with fields changed anywhere in it."""
    root = kind()
    root.ParseFromString(content)
    for _ in range(int(rng.geometric(0.6))):
        fields = list(_fields(root))
        message, name, value = fields[rng.integers(len(fields))]
        donor, other_name, other = fields[rng.integers(len(fields))]
        try:
            if hasattr(value, "extend"):
                _vary_repeated(value, rng)
            elif hasattr(value, "CopyFrom"):
                alike = [each for _, _, each in fields if type(each) is type(value)]
                value.CopyFrom(copy.deepcopy(alike[rng.integers(len(alike))]))
            elif rng.random() < 0.2:
                message.ClearField(name)
            elif type(other) is type(value) and rng.random() < 0.6:
                setattr(message, name, other)
                setattr(donor, other_name, value)
            else:
                new = _neighbour(value, rng) if rng.random() < 0.5 else VALUES[rng.integers(len(VALUES))]
                setattr(message, name, new)
        except (TypeError, ValueError):  # of another type
            continue
    return bytes(root.SerializeToString())


def _fields(message: Any) -> Iterator[tuple[Any, str, Any]]:
    for descriptor, value in message.ListFields():
        yield message, descriptor.name, value
        parts = value if hasattr(value, "extend") else [value]
        for part in parts:
            if hasattr(part, "ListFields"):
                yield from _fields(part)


def _vary_repeated(values: Any, rng: Rng) -> None:
    items = [copy.deepcopy(each) for each in values]
    i, j = (int(n) for n in rng.integers(0, len(items), 2))
    match rng.integers(5):
        case 0:
            del items[i]
        case 1:
            items.insert(j, items[i])
        case 2:
            items[i], items[j] = items[j], items[i]
        case 3 if not hasattr(items[0], "ListFields"):
            items[i] = _neighbour(items[i], rng)
        case _:
            items[i] = items[j]
    del values[:]
    values.extend(items)


# PyTorch checkpoints


def torch_seeds() -> list[Seed]:
    import test_importers as net
    import test_importers_pytorch as more
    import torch

    states = [(net.nin_state(), {}), (net.vgg_state()[0], {})]
    for form in ("bireal", "vgg", "mlp", "mobilenet"):
        network, options = more.STATES[form]()
        states.append((more.randomise(network, seed=9).state_dict(), options))
    seeds = []
    for index, (state, options) in enumerate(states):
        content = {"epoch": 3, "state_dict": state, "best": torch.ones(2)} if index % 2 else state
        for zipped in (True, False):
            store = io.BytesIO()
            torch.save(content, store, _use_new_zipfile_serialization=zipped)
            whole = store.getvalue()

            def vary(rng: Rng, whole: bytes = whole, zipped: bool = zipped) -> Files:
                if zipped:
                    return {"net.pth": varied_archive(whole, "/data.pkl", varied_pickle, rng)}
                return {"net.pth": varied_pickle(whole, rng)}

            seeds.append(Seed({"net.pth": whole}, vary, options))
    return seeds


def read_torch(path: Path) -> object:
    from xnor_rrm.importers.common import torch_file

    return torch_file.recognise(path, path.read_bytes()[:16]) and torch_file.read(path)


# MXNet


def mxnet_seeds() -> list[Seed]:
    import test_importers as net

    def seed(graph: Any, version: int) -> Seed:
        symbol = {"nodes": graph.nodes}

        def written(nodes: Any, arrays: Any) -> Files:
            text = json.dumps(nodes).encode(errors="surrogatepass")
            return {"net-0001.params": net.params(arrays, version), "net-symbol.json": text}

        def vary(rng: Rng) -> Files:
            if rng.random() < 0.7:
                return written(varied_tree(symbol, rng), graph.arrays)
            arrays = dict(graph.arrays)
            names = list(arrays)
            for _ in range(int(rng.geometric(0.5))):
                one, other = (names[i] for i in rng.integers(0, len(names), 2))
                match rng.integers(4):
                    case 0:
                        arrays[one] = graph.arrays[other]
                    case 1:
                        arrays.pop(one, None)
                    case 2:
                        arrays[str(VALUES[rng.integers(len(VALUES))]).encode(errors="replace").decode()] = (
                            graph.arrays[one]
                        )
                    case 3:
                        values = graph.arrays[one].copy().reshape(-1)
                        values[rng.integers(len(values))] = rng.choice(np.float32([np.nan, np.inf, 0, 1e38]))
                        arrays[one] = values.reshape(graph.arrays[one].shape[:: int(rng.choice([1, -1]))])
            return written(symbol, arrays)

        return Seed(written(symbol, graph.arrays), vary, {"size": 12})

    return [seed(net.residual_graph(version)[0], version) for version in range(3)]


def read_mxnet(path: Path) -> object:
    from xnor_rrm.errors import ConvertError
    from xnor_rrm.importers.common import mxnet_file

    with contextlib.suppress(ConvertError):
        mxnet_file.read_params(path)
    return mxnet_file.read_symbol(mxnet_file.find_symbol(path))


# TensorFlow Lite


def tflite_seeds() -> list[Seed]:
    import test_importers_larq as net

    def seed(graph: Any) -> Seed:
        parts = {"tensors": graph.tensors, "operators": graph.operators, "input": [graph.input]}

        def vary(rng: Rng) -> Files:
            changed = net.TfLite()
            tree = varied_tree(parts, rng)
            changed.tensors, changed.operators = tree["tensors"], tree["operators"]
            (changed.input,) = tree["input"]
            return {"net.tflite": changed.bytes()}

        return Seed({"net.tflite": graph.bytes()}, vary)

    return [seed(net.lce_graph(number)) for number in range(2)]


def read_tflite(path: Path) -> object:
    from xnor_rrm.importers.common import tflite_file

    graph = tflite_file.read(path)
    return graph.names, graph.unread()


# Keras


def keras_seeds() -> list[Seed]:
    import h5py
    import test_importers_larq as net

    seeds = []
    for make in (net.grey_model, net.larq_model):
        for form in net.FORMS:
            for sequential in (True, False) if make is net.grey_model else (False,):
                seeds.append(_keras_seed(h5py, make(), form, sequential))
    return seeds


def _keras_seed(h5py: Any, network: Any, form: str, sequential: bool) -> Seed:
    with tempfile.TemporaryDirectory() as folder:
        whole = network.save(Path(folder), form, sequential).read_bytes()
    config = network.config(int(form[-1]), sequential)
    name = "net.keras"

    def vary_store(content: bytes, rng: Rng) -> bytes:
        store = io.BytesIO(content)
        with h5py.File(store, "a") as file:
            for _ in range(int(rng.geometric(0.6))):
                _vary_hdf5(h5py, file, rng)
        return store.getvalue()

    def vary(rng: Rng) -> Files:
        text = json.dumps(varied_tree(config, rng))
        if form.startswith("keras"):
            if rng.random() < 0.5:
                return {name: varied_archive(whole, "config.json", lambda *_: text.encode(), rng)}
            return {name: varied_archive(whole, "model.weights.h5", vary_store, rng)}
        if rng.random() < 0.5:
            return {name: vary_store(whole, rng)}
        store = io.BytesIO(whole)
        with h5py.File(store, "a") as file:
            file.attrs["model_config"] = text
        return {name: store.getvalue()}

    return Seed({name: whole}, vary)


def _vary_hdf5(h5py: Any, file: Any, rng: Rng) -> None:
    paths: list[str] = []
    file.visit(paths.append)
    path, other = (paths[i] for i in rng.integers(0, len(paths), 2))
    owner = file[path]
    match rng.integers(8):
        case 0:
            del file[path]
        case 1:  # perhaps a group within itself
            del file[path]
            file[path] = file.get(other, file)
        case 2:
            file[f"{path}x" if path in file else path] = file[other.rpartition("/")[0] or "/"]
        case 3:
            links = h5py.SoftLink(f"/{other}"), h5py.ExternalLink("/etc/passwd", "/x"), h5py.SoftLink("/")
            del file[path]
            file[path] = links[rng.integers(3)]
        case 4 | 5:
            keys = list(owner.attrs)
            values = [
                *("", "x", 3, b"\xff", np.float32(2), np.array(["a", "b"], "S"), np.zeros((3, 0))),
                *(["../x", "conv1"], np.void(b"abc"), h5py.Empty("f4"), np.array([[1, 2]]), ["kernel"] * 40),
            ]
            if keys:
                key = keys[rng.integers(len(keys))]
                owner.attrs[key] = values[rng.integers(len(values))]
        case _:
            shape = [(), (0,), (3,), (1, 1), (3, 3, 16, 8), (10**6, 10**6), (2**62,)][rng.integers(7)]
            dtype = ["f4", ">f4", "f2", "f8", "i4", "S3", h5py.string_dtype(), h5py.ref_dtype][
                rng.integers(8)
            ]
            options: dict[str, Any] = [
                {}, {"chunks": True}, {"external": "/etc/passwd"}, {"compression": "gzip"}, {"fillvalue": 3},
            ][rng.integers(5)]  # fmt: skip
            del file[path]
            file.create_dataset(path, shape, dtype, **options)


def read_keras(path: Path) -> object:
    from xnor_rrm.importers.common import keras_file

    head = path.read_bytes()[:16]
    return keras_file.recognise(path, head) and keras_file.read(path, head)


# ONNX


def onnx_seeds() -> list[Seed]:
    import onnx
    import test_importers_graphs as net

    def seed(network: Callable[[Any], str]) -> Seed:
        graph = net.Net()
        network(graph)
        whole = graph.build().SerializeToString()
        return Seed(
            {"net.onnx": whole}, lambda rng: {"net.onnx": varied_message(whole, onnx.ModelProto, rng)}
        )

    return [seed(network) for network in net.NETS]


def read_onnx(path: Path) -> object:
    from xnor_rrm.importers.common import onnx_file

    return onnx_file.read(path)


# Model files


def model_seeds() -> list[Seed]:
    import test_modelfile as net
    from models import every_kind, random_model

    from xnor_rrm.model import Model

    def seed(model: Model) -> Seed:
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder, "model.xnor"))
            whole = Path(folder, "model.xnor").read_bytes()
        header, document, tensors = net.take_apart(whole)

        def vary(rng: Rng) -> Files:
            parts = {"table": header, "document": document}
            parts[str(rng.choice(list(parts)))] = varied_tree(parts[str(rng.choice(list(parts)))], rng)
            table, description = parts["table"], parts["document"]
            changed = damaged_bytes(tensors, tensors, rng) if rng.random() < 0.1 else tensors
            try:
                return {"model.xnor": net.put_together(table, description, changed)}
            except (KeyError, TypeError, ValueError, AttributeError):  # no digest for it
                text = json.dumps(description)
                return {"model.xnor": net.container({"__metadata__": {"xnor_rrm": text}, **table}, changed)}

        return Seed({"model.xnor": whole}, vary)

    return [seed(every_kind(np.random.default_rng(0))), seed(random_model(np.random.default_rng(1)))]


def read_model(path: Path) -> object:
    from xnor_rrm import load

    return load(path)


KINDS = {
    "torch": Kind(torch_seeds, read_torch),
    "mxnet": Kind(mxnet_seeds, read_mxnet),
    "tflite": Kind(tflite_seeds, read_tflite),
    "keras": Kind(keras_seeds, read_keras),
    "onnx": Kind(onnx_seeds, read_onnx),
    "model": Kind(model_seeds, read_model, converts=False),
}


# The process that reads


def attempt(kind: Kind, path: Path, options: dict[str, Any]) -> tuple[str, str]:
    """What becomes of a file: "model", an error of ours, or anything else, which is a finding."""
    from xnor_rrm import XnorError, convert

    outcome = "model", ""
    for stage in (kind.read, lambda path: convert(path, **options)) if kind.converts else (kind.read,):
        try:
            stage(path)
        except XnorError as error:
            if short := _out_of_memory(error):
                return "memory", short
            outcome = type(error).__name__, re.sub(r"'[^']*'|[\d.]+", "_", error.expected)[:60]
        except BaseException:
            return "traceback", traceback.format_exc()
    return outcome


def _out_of_memory(error: BaseException | None) -> str:
    """What was tried, where an error of ours has a want of memory as its cause."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return f"{type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__
    return ""


#: Of audit events: what no reader does. Files are opened to be read.
FORBIDDEN = re.compile(
    r"os\.(system|exec|posix_spawn|spawn|fork|remove|rename|mkdir|rmdir|link|symlink|truncate|chmod)"
    r"|subprocess\.Popen|socket\.\w+|shutil\.\w+|ctypes\.dlopen|pickle\.find_class|tempfile\.\w+"
)


def serve(name: str, connection: Connection) -> None:
    """Reads one file after another, as told, under limits; answers what became of each."""
    warnings.simplefilter("ignore")
    kind, found = KINDS[name], []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or FORBIDDEN.fullmatch(event):
            found.append(f"{event} {arguments}"[:200])

    path, options = connection.recv()
    attempt(kind, path, options)  # a valid file: everything is imported, and takes its memory
    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    connection.send(None)
    while (message := connection.recv()) is not None:
        del found[:]
        start = time.process_time()
        outcome = attempt(kind, *message)
        if (spent := time.process_time() - start) > SECONDS:
            outcome = "time", f"{spent:.1f} s: {outcome}"
        connection.send(("acts", "; ".join(found)) if found else outcome)


class Server:
    """The process, started again after each file that ends it."""

    def __init__(self, name: str, folder: Path, first: tuple[Path, dict[str, Any]]) -> None:
        self._name, self._folder, self._first = name, folder, first
        self._process: Any = None

    def ask(self, path: Path, options: dict[str, Any]) -> tuple[str, str]:
        if self._process is None:
            self._start()
        self._connection.send((path, options))
        try:
            if self._connection.poll(PATIENCE):
                outcome: tuple[str, str] = self._connection.recv()
                return outcome
            self._process.kill()
            found = "time", f"no end after {PATIENCE:.0f} s"
        except (EOFError, OSError):
            self._process.join()
            found = "crash", f"exit code {self._process.exitcode}"
        self._process.join()
        self._process = None
        return found

    def close(self) -> None:
        if self._process is not None:
            self._connection.send(None)
            self._process.join()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(self._name, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.send(self._first)
        self._connection.recv()


@dataclass
class Report:
    """outcomes : how often there was a model, or an error of which kind.  messages : different ones.

    findings : (kind, what is known) by number of the input.
    """

    outcomes: Counter[str]
    messages: set[str]
    findings: dict[int, tuple[str, str]]


def fuzz(name: str, inputs: range, seed: int, keep: Path | None = None) -> Report:
    """Each input depends on the seed and its own number alone."""
    kind, report = KINDS[name], Report(Counter(), set(), {})
    seeds = kind.seeds()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write(seeds[0].files, folder / "valid")
        server = Server(name, folder, (paths[0], seeds[0].options))
        for number in inputs:
            files, options = damaged(seeds, np.random.default_rng([seed, number]))
            paths = write(files, folder / "input")
            outcome, detail = server.ask(paths[0], options)
            left = {path.name for path in (folder / "input").iterdir()} ^ {path.name for path in paths}
            if left:
                outcome, detail = "acts", f"left {left}"
                shutil.rmtree(folder / "input")
            report.outcomes[outcome] += 1
            report.messages.add(detail if outcome.endswith("Error") else "")
            if outcome in ("traceback", "memory", "time", "crash", "acts"):
                report.findings[number] = outcome, detail
                if keep:
                    write(files, keep / f"{name}-{seed}-{number}")
        server.close()
    return report


def write(files: Files, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("reader", choices=[*KINDS, "all"])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    given = parser.parse_args()
    found = 0
    for name in KINDS if given.reader == "all" else [given.reader]:
        start = time.perf_counter()
        report = fuzz(name, range(given.start, given.start + given.inputs), given.seed, given.keep)
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.most_common())
        print(
            f"{name}: {outcomes}; {len(report.messages)} messages; {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        for number, (outcome, detail) in report.findings.items():
            print(f"  input {number}: {outcome}: {detail}")
        found += len(report.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
