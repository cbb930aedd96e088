"""Keras's whole models: HDF5 files, and .keras archives of Keras 2.12 and later. Nothing in them is trusted.

    .h5      attribute model_config: JSON; /model_weights/LAYER/(paths in the attribute weight_names)
    .keras   a zip, stored: config.json; model.weights.h5: /layers/CLASS_N/vars/I

The archive names a layer's weights by its class and its number among the layers of that class, and a weight
by its number in the layer. Of HDF5 only plain datasets are read, by hard links: nothing that leads to another
file, is compressed or is not there.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConvertError
from ...model import Array
from .checkpoint import summary
from .torch_file import ZIP_MAGIC

if TYPE_CHECKING:
    import h5py

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
#: Where the layers of a .keras archive are: Keras 3, Keras 2.
LAYERS = ("layers", "_layer_checkpoint_dependencies")
#: Beside a layer's own variables; of training.
STATELESS = ("input_quantizer", "kernel_quantizer", "seed_generator")
#: How a collection of strings begins in HDF5, and the size of its header and of each object's.
HEAP, HEAP_HEADER = b"GCOL\x01\0\0\0", 16
#: Messages of HDF5's object headers, and the class of strings of variable length.
ATTRIBUTE, CONTINUATION, VARIABLE = 12, 16, 9
#: By version of an HDF5 file: where the address is that all others are relative to.
BASE_ADDRESS = {0: slice(24, 32), 1: slice(28, 36), 2: slice(12, 20), 3: slice(12, 20)}
INSTALL = 'pip install "xnor-rrm[convert]"'

MAX_CONFIG_BYTES = 1 << 22
MAX_FILE = 1 << 30
MAX_NAMES, MAX_LAYERS = 1 << 16, 1 << 14
#: Most messages looked at in the object headers of a file.
MAX_MESSAGES = 1 << 16
#: Every weight is read once; so much of a file may have several names.
MAX_REREAD = 2
MAX_SIDE = 8192

#: What training alone needs.
SILENT = re.compile(
    r"name|trainable|dtype|autocast|seed|rate|noise_shape|stddev|momentum|metrics"
    r"|batch_size|batch_shape|batch_input_shape|\w+_(initializer|regularizer|constraint)"
)


class Layer:
    """A layer of the graph.  kind : its class.  inputs : names of layers.

    arrays : its weights by name.  Options and weights are taken one by one, as checked values.
    """

    def __init__(self, kind: str, name: str, inputs: tuple[str, ...], config: Mapping[str, Any]) -> None:
        self.kind, self.name, self.inputs = kind, name, inputs
        self.where = f"{kind} {name}"
        self.config = dict(config)
        self.arrays: dict[str, Array] = {}
        self._left = dict(config)

    def weight(self, name: str, *shape: int | None) -> Array:
        """A weight float32 of this shape (None: any size but 0), every value finite."""
        if name not in self.arrays:
            raise ConvertError(f"a weight {name} of {self.where}", summary(sorted(self.arrays)) or "none")
        array = self.arrays.pop(name)
        fits = array.ndim == len(shape) and array.size
        if not fits or any(b not in (None, a) for a, b in zip(array.shape, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ConvertError(f"float32[{wanted}] as {name} of {self.where}", str(list(array.shape)))
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise ConvertError(
                f"finite values in {name} of {self.where}", f"{bad} NaN or infinite of {array.size}"
            )
        return array

    def take(self, key: str, default: Any = None) -> Any:
        return self._left.pop(key, default)

    def require(self, key: str, *values: Any) -> None:
        """Raises ConvertError where an option has any but the supported values; the first is the default."""
        if (found := self.take(key, values[0])) not in values:
            raise ConvertError(f"{key} {values[0]} in {self.where}", repr(found))

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise ConvertError(f"{key} true or false in {self.where}", repr(value))
        return value

    def number(self, key: str, default: float) -> float:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            raise ConvertError(f"a finite {key} in {self.where}", repr(value))
        return float(value)

    def count(self, key: str) -> int:
        value = self.take(key)
        if type(value) is not int or not 1 <= value <= MAX_SIDE * 8:
            raise ConvertError(f"{key} of at least 1 in {self.where}", repr(value))
        return value

    def pair(self, key: str, default: Any = (1, 1)) -> tuple[int, int]:
        found = self.take(key)
        value = default if found is None else found
        value = (value, value) if type(value) is int else value
        sizes = list(value) if isinstance(value, list | tuple) else []
        if len(sizes) != 2 or not all(type(size) is int and 1 <= size <= MAX_SIDE for size in sizes):
            raise ConvertError(f"{key} of two numbers of 1 to {MAX_SIDE} in {self.where}", repr(found))
        return sizes[0], sizes[1]

    def same(self) -> bool:
        value = str(self.take("padding", "valid")).lower()
        if value not in ("same", "valid"):
            raise ConvertError(f"padding same or valid in {self.where}", repr(value))
        return value == "same"

    def function(self, key: str) -> str | None:
        """The name of a function, or the class of an object, stored as text or as class_name and config."""
        value = self.take(key)
        if isinstance(value, dict):
            kind = plain_name(value.get("class_name"))
            value = value.get("config") if kind == "function" else kind
        if value is not None and not isinstance(value, str):
            raise ConvertError(f"{key} by its name in {self.where}", repr(value))
        return value

    def finish(self) -> None:
        """Raises ConvertError for options not taken, but those of training and those turned off."""
        left = [
            key
            for key, value in self._left.items()
            if value not in (None, False) and not SILENT.fullmatch(key)
        ]
        if left:
            raise ConvertError(f"known options of {self.where}", summary(sorted(left)))


@dataclass(frozen=True)
class Network:
    """Layers in order of execution.  shape : of the input, None for a size that is left open."""

    layers: tuple[Layer, ...]
    input: str
    output: str
    shape: tuple[int | None, ...]


def recognise(path: Path, head: bytes) -> bool:
    """Whether the file is HDF5, or a .keras archive."""
    if head.startswith(HDF5_MAGIC):
        return True
    if not head.startswith(ZIP_MAGIC):
        return False
    with _damaged(path), zipfile.ZipFile(path) as archive:
        return {CONFIG, WEIGHTS} <= set(archive.namelist())


def read(path: Path, head: bytes) -> Network:
    """The network with its weights. Raises ConvertError for anything else, and without the package h5py."""
    if path.stat().st_size > MAX_FILE:
        raise ConvertError(f"a file of at most {MAX_FILE} bytes", f"{path.stat().st_size}")
    with _damaged(path):
        if head.startswith(HDF5_MAGIC):
            with _Store(path.read_bytes(), path) as store:
                network = _network(store.text("model_config"))
                _take_named_weights(store, network)
            return network
        with zipfile.ZipFile(path) as archive:
            members = [archive.getinfo(name) for name in (CONFIG, WEIGHTS)]
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > path.stat().st_size:
                raise ConvertError(
                    "a .keras archive, stored without compression", f"{path.name}, which expands"
                )
            if members[0].file_size > MAX_CONFIG_BYTES:
                raise ConvertError(f"a config of at most {MAX_CONFIG_BYTES} bytes", f"{members[0].file_size}")
            network = _network(archive.read(CONFIG).decode())
            with _Store(archive.read(WEIGHTS), path) as store:
                _take_numbered_weights(store, network)
        return network


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """What the libraries and the shape of the JSON raise, as a ConvertError."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        RuntimeError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        MemoryError,
        ArithmeticError,
    ) as error:
        raise ConvertError("a whole Keras model", f"{path.name}, which is cut or damaged") from error


# The architecture


def plain_name(name: object) -> str:
    """A class's name without the package it is registered for: 'Larq>SteSign'."""
    return str(name).rpartition(">")[2]


def _network(config: str) -> Network:
    try:
        root = json.loads(config)
        kind, content = plain_name(root["class_name"]), root["config"]
        if kind == "Sequential":
            return _sequential(content, root)
        if kind in ("Functional", "Model"):
            return _functional(content)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertError("a Keras model's config as JSON", "another, or a damaged one") from error
    raise ConvertError("a Sequential or Functional model", kind)


def _sequential(content: Any, root: Mapping[str, Any]) -> Network:
    entries = content if isinstance(content, list) else content["layers"]
    first = entries[0]["config"]
    shape = first.get("batch_input_shape") or first.get("batch_shape")
    if shape is None and isinstance(content, dict):
        shape = content.get("build_input_shape") or (root.get("build_config") or {}).get("input_shape")
    last = "input"
    layers: list[Layer] = []
    _check_count(entries)
    for number, entry in enumerate(entries):
        kind, config = plain_name(entry["class_name"]), entry["config"]
        name = str(entry.get("name") or config.get("name") or f"{kind}_{number}")
        if name == last or any(layer.name == name for layer in layers) or (kind == "InputLayer" and number):
            raise ConvertError("an input and then layers, by different names", f"{kind} {name}")
        if kind != "InputLayer":
            layers.append(Layer(kind, name, (last,), config))
        last = name
    return Network(tuple(layers), layers[0].inputs[0], last, _shape(shape))


def _functional(content: Mapping[str, Any]) -> Network:
    source, output = _endpoint(content["input_layers"]), _endpoint(content["output_layers"])
    layers: list[Layer] = []
    shape: object = None
    known: set[str] = set()
    _check_count(content["layers"])
    for entry in content["layers"]:
        kind, config = plain_name(entry["class_name"]), entry["config"]
        name = str(entry.get("name") or config["name"])
        inputs = _inputs(entry["inbound_nodes"], f"{kind} {name}")
        if name in known or not known.issuperset(inputs):
            raise ConvertError("layers by different names, each after those it reads", f"{kind} {name}")
        known.add(name)
        if kind != "InputLayer":
            layers.append(Layer(kind, name, inputs, config))
        elif name != source:
            raise ConvertError("a network with one input", name)
        else:
            shape = config.get("batch_input_shape") or config.get("batch_shape")
    if not known.issuperset((source, output)):
        raise ConvertError("an input and an output among the layers", f"{source}, {output}")
    return Network(tuple(layers), source, output, _shape(shape))


def _check_count(entries: Any) -> None:
    if len(entries) > MAX_LAYERS:
        raise ConvertError(f"at most {MAX_LAYERS} layers", str(len(entries)))


def _endpoint(value: Any) -> str:
    """The layer of the only input or output: [name, 0, 0], or a list of one such."""
    entry = value[0] if isinstance(value[0], list) else value
    if (entry is not value and len(value) != 1) or len(entry) != 3 or list(entry[1:]) != [0, 0]:
        raise ConvertError("a network with one input and one output", repr(value)[:80])
    return str(entry[0])


def _inputs(nodes: Any, where: str) -> tuple[str, ...]:
    """The layers that a layer reads, in the form of Keras 2 or 3."""
    if not nodes:
        return ()
    if len(nodes) != 1:
        raise ConvertError(f"a layer used once, {where}", f"{len(nodes)} times")
    node = nodes[0]
    if isinstance(node, dict):
        tensors = node["args"][0] if len(node["args"]) == 1 else node["args"]
        tensors = tensors if isinstance(tensors, list) else [tensors]
        found = [(*tensor["config"]["keras_history"], node.get("kwargs") or {}) for tensor in tensors]
    else:
        found = [
            tuple(entry) if len(entry) == 4 else (*entry, {})
            for entry in (node if isinstance(node[0], list) else [node])
        ]
    for _name, index, output, options in found:
        if (index, output) != (0, 0) or any(value not in (None, False) for value in options.values()):
            raise ConvertError(f"inputs of {where} that are layers' first outputs", "others, or options")
    return tuple(str(name) for name, *_ in found)


def _shape(value: Any) -> tuple[int | None, ...]:
    """(height, width, channels) of [batch, height, width, channels]."""
    if value is None or len(value) != 4 or not all(size is None or type(size) is int for size in value[1:]):
        raise ConvertError("an input [batch, height, width, channels] in the config", repr(value)[:80])
    return tuple(value[1:])


# The weights


class _Store:
    """An HDF5 file. What is read of it lies within the file, and is counted."""

    def __init__(self, data: bytes, path: Path) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ConvertError(
                "the package h5py, to read Keras models", "none installed", f"{INSTALL}."
            ) from error
        _check_heaps(data)
        if any(data[BASE_ADDRESS[data[len(HDF5_MAGIC)]]]):
            raise ConvertError("an HDF5 file without a user block", "one with, or a damaged one")
        self._h5py = h5py
        self._data, self._size = data, len(data)
        self._left, self._turns = MAX_REREAD * self._size, iter(range(MAX_MESSAGES))
        self.root: h5py.File = h5py.File(io.BytesIO(data), "r")

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.root.close()

    def text(self, attribute: str) -> str:
        if attribute not in self.root.attrs:
            raise ConvertError(
                f"a whole model, its architecture in the attribute {attribute}",
                f"attributes {summary(sorted(self.root.attrs)) or 'none'}",
                "Save the model with model.save(path), not its weights alone.",
            )
        value = self._attribute(self.root, attribute)
        text = value.decode() if isinstance(value, bytes) else str(value)
        if len(text) > MAX_CONFIG_BYTES:
            raise ConvertError(f"a config of at most {MAX_CONFIG_BYTES} bytes", str(len(text)))
        return text

    def names(self, group: h5py.Group, attribute: str) -> list[str]:
        """A list of names, which Keras cuts into several attributes where it is long."""
        keys = [attribute] if attribute in group.attrs else []
        while not keys or keys[-1] != attribute:
            key = f"{attribute}{len(keys)}"
            if key not in group.attrs:
                break
            keys.append(key)
        values = [
            value for key in keys for value in np.asarray(self._attribute(group, key)).reshape(-1).tolist()
        ]
        if not keys or len(values) > MAX_NAMES:
            raise ConvertError(f"{attribute} of {group.name}", "none" if not keys else f"{len(values)}")
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]

    def _attribute(self, group: h5py.Group, key: str) -> Any:
        """A string or a list of strings."""
        stored = group.attrs.get_id(key)
        lengths = _string_lengths(self._data, self._h5py.h5o.get_info(group.id).addr, key, self._turns)
        self._left -= sum(lengths)
        count = math.prod(stored.shape)
        if max(count * stored.dtype.itemsize, sum(lengths)) > self._size or self._left < 0:
            raise ConvertError(f"{key} of {group.name} within the file's {self._size} bytes", "more")
        return group.attrs[key]

    def group(self, parent: h5py.Group, path: str) -> h5py.Group:
        found = self._find(parent, path)
        if not isinstance(found, self._h5py.Group):
            raise ConvertError(f"a group {path!r} in {parent.name}", "none")
        return found

    def children(self, group: h5py.Group) -> list[str]:
        if len(group) > MAX_NAMES:
            raise ConvertError(f"at most {MAX_NAMES} members of {group.name}", str(len(group)))
        return list(group)

    def array(self, parent: h5py.Group, path: str) -> Array:
        """A float32 dataset that lies in the file as it is."""
        found = self._find(parent, path)
        if not isinstance(found, self._h5py.Dataset):
            raise ConvertError(f"an array {path!r} in {parent.name}", "none")
        plain = found.chunks is None and found.external is None and not found.is_virtual
        if found.dtype != np.float32 or found.dtype.byteorder == ">" or not plain or found.shape is None:
            raise ConvertError(f"a plain float32 array {found.name!r}", f"{found.dtype}, or stored otherwise")
        if not found.nbytes or found.nbytes > self._size or found.id.get_storage_size() != found.nbytes:
            raise ConvertError(
                f"{found.name!r} within the file's {self._size} bytes", f"shape {list(found.shape)}"
            )
        self._left -= found.nbytes
        if self._left < 0:
            raise ConvertError(f"weights of at most {MAX_REREAD} times the file", "more")
        array: Array = found[()]
        return array

    def _find(self, parent: h5py.Group, path: str) -> object:
        """What is at the end of hard links, or None."""
        found: object = parent
        for name in path.split("/"):
            if not isinstance(found, self._h5py.Group) or name in ("", "."):
                return None
            link = found.get(name, getlink=True)
            if not isinstance(link, self._h5py.HardLink):
                return None
            found = found[name]
        return found


def _check_heaps(data: bytes) -> None:
    """Raises ConvertError for a heap of strings over which the HDF5 library would go on for ever.

    It walks a heap object by object, and never leaves a free one of size 0 (HDFGroup/hdf5 issue 1707). Heaps
    within others are walked again and again: all of them may have as many objects as the file has room for.
    """
    start, left = data.find(HEAP), len(data) // HEAP_HEADER
    while start >= 0:
        size = int.from_bytes(data[start + 8 : start + 16], "little")
        end = min(start + size, len(data)) - HEAP_HEADER
        at = start + HEAP_HEADER
        while at <= end:
            index, length = struct.unpack_from("<H6xQ", data, at)
            step = HEAP_HEADER + -(-length // 8) * 8 if index else length
            if not step:
                raise ConvertError("objects of some size in a heap of the HDF5 file", f"one of none at {at}")
            if not (left := left - 1):
                raise ConvertError("heaps of the HDF5 file beside each other", "some within others")
            at += step
        start = data.find(HEAP, start + 1)


def _string_lengths(data: bytes, header: int, name: str, turns: Iterator[int]) -> list[int]:
    """The lengths that an attribute's strings claim, which the HDF5 library allocates before it looks.

    header : where the object header is.  turns : one is taken for each message looked at.
    None for strings of fixed length, which lie in the attribute.
    """
    for at, size in _messages(data, header, turns):
        version, flags, *sizes = struct.unpack_from("<BBHHH", data, at)
        start = at + (9 if version == 3 else 8)
        name_size, type_size, space_size = (-(-s // 8) * 8 if version == 1 else s for s in sizes)
        if data[start : start + sizes[0]].rstrip(b"\0") != name.encode():
            continue
        kind = data[start + name_size] & 15
        first = start + name_size + type_size + space_size
        if version > 3 or (version > 1 and flags):
            break
        places = range(first, at + size - 15, 16) if kind == VARIABLE else ()
        return [struct.unpack_from("<I", data, place)[0] for place in places]
    raise ConvertError(f"the attribute {name} in the header of an HDF5 group", "stored otherwise")


def _messages(data: bytes, header: int, turns: Iterator[int]) -> Iterator[tuple[int, int]]:
    """(Where it is, its size) of each attribute message of an object header of version 1 or 2."""
    if data[header : header + 4] == b"OHDR":
        flags = data[header + 5]
        start = header + 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
        width = 1 << (flags & 3)
        layout, prefix = "<BH", 6 if flags & 4 else 4
        blocks = [(start + width, int.from_bytes(data[start : start + width], "little"))]
    else:
        layout, prefix = "<HH", 8
        blocks = [(header + 16, struct.unpack_from("<I", data, header + 8)[0])]
    while blocks:
        at, size = blocks.pop()
        end = min(at + size, len(data))
        while at + prefix <= end:
            if next(turns, None) is None:
                raise ConvertError(f"at most {MAX_MESSAGES} messages in an HDF5 file's headers", "more")
            kind, length = struct.unpack_from(layout, data, at)
            at += prefix
            if kind == CONTINUATION:
                where, size = struct.unpack_from("<QQ", data, at)
                blocks.append((where, size) if layout == "<HH" else (where + 4, max(size - 8, 0)))
            elif kind == ATTRIBUTE:
                yield at, length
            at += length


def _take_named_weights(store: _Store, network: Network) -> None:
    """The weights of an .h5 file, by the names of layers and weights."""
    weights = store.group(store.root, "model_weights")
    layers = {layer.name: layer for layer in network.layers}
    for name in store.names(weights, "layer_names"):
        group = store.group(weights, name)
        paths = store.names(group, "weight_names")
        if paths and name not in layers:
            raise ConvertError("weights of the network's layers only", f"those of {name!r}")
        for path in paths:
            # LAYER/kernel:0, LAYER/SCOPE/kernel
            weight = path.rpartition("/")[2].partition(":")[0]
            if weight in layers[name].arrays:
                raise ConvertError(f"a name for each weight of {name}", f"{weight!r} twice")
            layers[name].arrays[weight] = store.array(group, path)


def _take_numbered_weights(store: _Store, network: Network) -> None:
    """The weights of a .keras archive, by class and number."""
    top = next((name for name in LAYERS if name in store.root), LAYERS[0])
    groups = store.group(store.root, top)
    found: dict[str, dict[int, list[Array]]] = {}
    for name in store.children(groups):
        arrays = _variables(store, store.group(groups, name))
        if arrays:
            base, number = _numbered(name)
            found.setdefault(base, {})[number] = arrays
    for layer in network.layers:
        names = _weight_names(layer)
        if not names:
            continue
        numbers = found.get(_snake_case(layer.kind), {})
        arrays = numbers.pop(min(numbers)) if numbers else []
        if len(arrays) != len(names):
            raise ConvertError(f"weights {', '.join(names)} of {layer.where}", f"{len(arrays)} arrays")
        layer.arrays.update(zip(names, arrays, strict=True))
    left = sorted(base for base, numbers in found.items() if numbers)
    if left:
        raise ConvertError("weights of the network's layers only", f"more of {summary(left)}")


def _variables(store: _Store, group: h5py.Group) -> list[Array]:
    """A layer's arrays, in order."""
    names = store.children(group)
    unknown = [name for name in names if name not in ("vars", *STATELESS)]
    if unknown:
        raise ConvertError(f"layers without layers inside, as {group.name}", summary(unknown))
    if "vars" not in names:
        return []
    variables = store.group(group, "vars")
    if any(isinstance(variables.get(str(i), getlink=True), type(None)) for i in range(len(variables))):
        raise ConvertError(
            f"variables numbered from 0 in {variables.name}", summary(store.children(variables))
        )
    return [store.array(variables, str(i)) for i in range(len(store.children(variables)))]


def _numbered(name: str) -> tuple[str, int]:
    """'conv2d' and 'conv2d_3' as ('conv2d', 0) and ('conv2d', 3)."""
    base, _, number = name.rpartition("_")
    return (base, int(number)) if base and number.isdecimal() and len(number) < 9 else (name, 0)


def _snake_case(kind: str) -> str:
    """As Keras names a class: QuantConv2D is quant_conv2d, PReLU p_re_lu."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def _weight_names(layer: Layer) -> list[str]:
    """Which weights a layer has, in the order in which it makes them."""
    bias = ["bias"] if layer.config.get("use_bias", True) else []
    match layer.kind:
        case "Conv2D" | "QuantConv2D" | "Dense" | "QuantDense":
            return ["kernel", *bias]
        case "DepthwiseConv2D":
            return ["depthwise_kernel", *bias]
        case "BatchNormalization":
            gamma = ["gamma"] if layer.config.get("scale", True) else []
            beta = ["beta"] if layer.config.get("center", True) else []
            return [*gamma, *beta, "moving_mean", "moving_variance"]
        case "PReLU":
            return ["alpha"]
    return []
