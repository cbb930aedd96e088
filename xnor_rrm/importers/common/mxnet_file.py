"""MXNet's two files: the arrays (.params) and the graph (symbol JSON). Nothing in them is trusted.

The .params file is a list of arrays, little endian:

    uint64 0x112, uint64 0, uint64 count, count arrays, uint64 count, count names
    name:  uint64 length, UTF-8
    array: shape, int32 device type, int32 device id, int32 dtype, data
    shape: uint32 ndim, ndim uint32                                           (oldest; BMXNet's own)
           uint32 0xF993FAC8, uint32 ndim, ndim int64                         (version 1)
           uint32 0xF993FAC9, int32 storage type, uint32 ndim, ndim int64     (version 2)
"""

from __future__ import annotations

import ast
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConvertError
from ...model import Array, Window
from .checkpoint import summary

LIST_MAGIC = struct.pack("<QQ", 0x112, 0)
ARRAY_V1, ARRAY_V2 = 0xF993FAC8, 0xF993FAC9
DTYPES = {0: "<f4", 1: "<f8"}
MAX_DIMENSIONS = 8

MAX_SYMBOL_BYTES, MAX_NODES = 1 << 22, 1 << 14
MAX_LITERAL = 100
MAX_WINDOW = 1024


def read_params(path: Path) -> dict[str, Array]:
    """The arrays by name, `arg:` and `aux:` stripped; views of the file's bytes. Raises ConvertError."""
    reader = _Reader(path.read_bytes(), path.name)
    reader.bytes(len(LIST_MAGIC))
    arrays = [_read_array(reader) for _ in range(reader.field("Q"))]
    if (names := reader.field("Q")) != len(arrays):
        raise reader.error(f"{len(arrays)} names", str(names))
    named: dict[str, Array] = {}
    for array in arrays:
        name = bytes(reader.bytes(reader.field("Q"))).decode(errors="replace")
        name = name.removeprefix("arg:").removeprefix("aux:")
        if name in named:
            raise reader.error("a name for each array", f"{name!r} twice")
        named[name] = array
    reader.finish()
    return named


class _Reader:
    """Little-endian fields of a file held in memory; reading past its end is a ConvertError."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name, self._at = memoryview(data), name, 0

    def bytes(self, size: int) -> memoryview:
        left = len(self._data) - self._at
        if size > left:
            raise self.error(f"{size} bytes", f"{left} to the file's end", "The file is cut or damaged.")
        self._at += size
        return self._data[self._at - size : self._at]

    def fields(self, layout: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self.bytes(struct.calcsize("<" + layout)))

    def field(self, layout: str) -> int:
        return self.fields(layout)[0]

    def finish(self) -> None:
        if left := len(self._data) - self._at:
            raise self.error("the end", f"{left} more bytes")

    def error(self, expected: str, got: str, remedy: str = "") -> ConvertError:
        return ConvertError(f"{expected} at byte {self._at} of {self._name}", got, remedy)


def _read_array(reader: _Reader) -> Array:
    magic = reader.field("I")
    if magic == ARRAY_V2 and (storage := reader.field("i")):
        raise reader.error("a dense array", f"storage type {storage}")
    versioned = magic in (ARRAY_V1, ARRAY_V2)
    dimensions = reader.field("I") if versioned else magic
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise reader.error(f"an array of 1 to {MAX_DIMENSIONS} dimensions", f"{dimensions:#x}")
    shape = reader.fields(f"{dimensions}{'q' if versioned else 'I'}")
    if min(shape) < 1:
        raise reader.error("positive sizes", str(list(shape)))
    _device, _id, kind = reader.fields("3i")
    if kind not in DTYPES:
        raise reader.error("dtype 0 (float32) or 1 (float64)", str(kind))
    dtype: np.dtype[Any] = np.dtype(DTYPES[kind])
    return np.frombuffer(reader.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


class Node:
    """An operator of a graph. op, name.  inputs : names of nodes; parameters are nodes of op "null".

    Attributes are taken one by one and returned as a checked value; `finish` raises for those left over.
    """

    def __init__(self, op: str, name: str, inputs: list[str], attributes: dict[str, str]) -> None:
        self.op, self.name, self.inputs, self._attributes = op, name, inputs, attributes

    def text(self, key: str, default: str) -> str:
        return self._attributes.pop(key, default)

    def require(self, key: str, value: str, default: str) -> None:
        """Raises ConvertError where an attribute has any but the one supported value."""
        if (found := self.text(key, default)) != value:
            raise ConvertError(f"{key} {value} in {self.op} {self.name}", found)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._literal(key, default, int))

    def count(self, key: str, default: int) -> int:
        return int(self._literal(key, default, int))

    def number(self, key: str, default: float) -> float:
        value = float(self._literal(key, default, (int, float)))
        if not math.isfinite(value):
            raise ConvertError(f"a finite {key} in {self.op} {self.name}", str(value))
        return value

    def pair(self, key: str, default: int) -> tuple[int, int]:
        value = self._literal(key, (), tuple) or (default, default)
        if len(value) != 2 or not all(isinstance(v, int) and 0 <= v <= MAX_WINDOW for v in value):
            raise ConvertError(
                f"{key} of two numbers up to {MAX_WINDOW} in {self.op} {self.name}", repr(value)
            )
        return value

    def window(self) -> Window:
        """From kernel, stride, pad and dilate."""
        down, across = self.pair("pad", 0)
        padding = (down, down, across, across)
        return Window(self.pair("kernel", 1), self.pair("stride", 1), padding, self.pair("dilate", 1))

    def finish(self) -> None:
        """Raises ConvertError for an attribute that was not taken, those for training and tuning excepted."""
        silent = {"backward_only", "cudnn_off", "cudnn_tune", "gradient_update_mode", "momentum", "workspace"}
        unknown = sorted(key for key in self._attributes.keys() - silent if not key.startswith("__"))
        if unknown:
            raise ConvertError(f"known attributes in {self.op} {self.name}", summary(unknown))

    def _literal(self, key: str, default: Any, kind: type | tuple[type, ...]) -> Any:
        """MXNet writes numbers, booleans and tuples as Python does."""
        written = self.text(key, repr(default))[:MAX_LITERAL]
        try:
            value = ast.literal_eval(written)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if not isinstance(value, kind):
            raise ConvertError(f"{key} like {default!r} in {self.op} {self.name}", repr(written))
        return value


def find_symbol(params: Path) -> Path:
    """The symbol JSON in the same folder: prefix-symbol.json for prefix-0001.params, else the only one."""
    own = params.with_name(re.sub(r"(-\d{4})?\.params$", "", params.name) + "-symbol.json")
    found = [own] if own.is_file() else sorted(params.parent.glob("*-symbol.json"))
    if len(found) != 1:
        raise ConvertError(
            f"{own.name}, or one *-symbol.json, beside {params.name}",
            summary([path.name for path in found]) or "none",
            "Name the file with the option symbol.",
        )
    return found[0]


def read_symbol(path: Path) -> list[Node]:
    """The nodes of a graph in order of execution, each reading earlier ones. Raises ConvertError."""
    try:
        if path.stat().st_size > MAX_SYMBOL_BYTES:
            raise ConvertError(
                f"a symbol JSON of at most {MAX_SYMBOL_BYTES} bytes", f"{path.name}, a larger file"
            )
        graph: list[Node] = []
        nodes = json.loads(path.read_bytes())["nodes"]
        if len(nodes) > MAX_NODES:
            raise ConvertError(f"at most {MAX_NODES} nodes in {path.name}", str(len(nodes)))
        for node in nodes:
            inputs = [graph[int(index)].name for index, *_ in node["inputs"]]
            if any(index < 0 or output != 0 for index, output, *_ in node["inputs"]):
                raise ConvertError(
                    f"inputs of {node['name']} that are earlier nodes' first outputs", "others"
                )
            # The key was renamed twice; some versions write two of them.
            attributes = {**node.get("param", {}), **node.get("attr", {}), **node.get("attrs", {})}
            written = {str(key): str(value) for key, value in attributes.items()}
            graph.append(Node(str(node["op"]), str(node["name"]), inputs, written))
    except OSError as error:
        raise ConvertError("a readable symbol JSON", f"{path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ConvertError(
            "a symbol JSON, its nodes in order of execution", f"{path.name}, which is not"
        ) from error
    return graph
