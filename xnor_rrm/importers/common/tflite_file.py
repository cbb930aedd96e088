"""TensorFlow Lite's flatbuffers. Nothing in a file is trusted: each read is checked against the file's size.

A table is read by the slots of its schema (tensorflow/lite/schema/schema.fbs). Offsets are never followed
deeper than the schema is, so no file can make a loop, and no array is copied before it is used.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConvertError
from ...model import Array

MAGIC = b"TFL3"
MAGIC_AT = 4
INSTALL = 'pip install "xnor-rrm[convert]"'

#: Of TensorType, what is read; others are refused by their number.
DTYPES = {0: "<f4", 2: "<i4", 4: "<i8"}
CUSTOM = 32

MAX_FILE = 1 << 30
MAX_RANK = 8
MAX_NAME = 1 << 12
MAX_OPTION_BYTES = 1 << 12
MAX_OPTIONS = 32
#: How often a file's lists and constants are read: one may serve several tables, but not without end.
MAX_REREAD = 4
#: Most bytes of lists and names. Objects made of them take many times as much memory.
MAX_STRUCTURE = 1 << 22

CUT = "The file is cut or damaged."

#: Of BuiltinOperator, what is read: its name, and its options by name, each with its slot, kind and default.
Options = dict[str, tuple[int, str, float]]
_CONV: Options = {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0)}
_POOL: Options = {
    **_CONV,
    "filter_width": (3, "i", 0),
    "filter_height": (4, "i", 0),
    "activation": (5, "b", 0),
}
BUILTIN: dict[int, tuple[str, Options]] = {
    0: ("ADD", {"activation": (0, "b", 0), "pot_scale_int16": (1, "b", 1)}),
    1: ("AVERAGE_POOL_2D", _POOL),
    2: ("CONCATENATION", {"axis": (0, "i", 0), "activation": (1, "b", 0)}),
    3: (
        "CONV_2D",
        {
            **_CONV,
            "activation": (3, "b", 0),
            "dilation_w_factor": (4, "i", 1),
            "dilation_h_factor": (5, "i", 1),
        },
    ),
    4: (
        "DEPTHWISE_CONV_2D",
        {
            **_CONV,
            "depth_multiplier": (3, "i", 0),
            "activation": (4, "b", 0),
            "dilation_w_factor": (5, "i", 1),
            "dilation_h_factor": (6, "i", 1),
        },
    ),
    9: (
        "FULLY_CONNECTED",
        {"activation": (0, "b", 0), "weights_format": (1, "b", 0), "keep_num_dims": (2, "b", 0)},
    ),
    17: ("MAX_POOL_2D", _POOL),
    18: ("MUL", {"activation": (0, "b", 0)}),
    19: ("RELU", {}),
    20: ("RELU_N1_TO_1", {}),
    21: ("RELU6", {}),
    22: ("RESHAPE", {"new_shape": (0, "vector", 0)}),
    25: ("SOFTMAX", {"beta": (0, "f", 0.0)}),
    34: ("PAD", {}),
    40: ("MEAN", {"keep_dims": (0, "b", 0)}),
    54: ("PRELU", {}),
}


@dataclass(frozen=True)
class Tensor:
    """shape : as stored.  kind : its TensorType.  data : the bytes of a constant, else None."""

    index: int
    name: str
    shape: tuple[int, ...]
    kind: int
    data: memoryview | None


@dataclass(frozen=True)
class Operator:
    """op : a BuiltinOperator, or the name of a custom one.  inputs : indices of tensors, -1 for none."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, float]


@dataclass(frozen=True)
class Graph:
    """Operators in order of execution, each reading constants, the input, or outputs of earlier ones."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    input: int
    output: int
    size: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each tensor, no two the same; printable."""
        used = {"input"}
        names = []
        for tensor in self.tensors:
            name = tensor.name if tensor.name.isprintable() and tensor.name else f"tensor{tensor.index}"
            name = f"{name}#{tensor.index}" if name in used else name
            used.add(name)
            names.append(name)
        return tuple(names)

    def unread(self) -> dict[str, Array]:
        """The constants that no operator reads, by name."""
        read = {index for operator in self.operators for index in operator.inputs}
        constants = (
            tensor for tensor in self.tensors if tensor.data is not None and tensor.index not in read
        )
        return {self.names[tensor.index]: self.constant(tensor.index) for tensor in constants}

    def constant(self, index: int) -> Array:
        """The array of a constant tensor; raises ConvertError for one that is none, or is misshapen."""
        tensor = self.tensors[index]
        name = f"{self.names[index]!r}"
        if tensor.data is None:
            raise ConvertError(f"a constant {name}", "one that is computed")
        if tensor.kind not in DTYPES:
            raise ConvertError(f"float32, int32 or int64 in {name}", f"tensor type {tensor.kind}")
        dtype: np.dtype[Any] = np.dtype(DTYPES[tensor.kind])
        if not math.prod(tensor.shape) or math.prod(tensor.shape) * dtype.itemsize != len(tensor.data):
            found = f"{dtype.name}{list(tensor.shape)} in {len(tensor.data)} bytes"
            raise ConvertError(f"as many bytes as {name} has values, and some", found)
        return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


def read(path: Path) -> Graph:
    """The only graph of a file. Raises ConvertError for a damaged one, and where flatbuffers is missing."""
    size = path.stat().st_size
    if size > MAX_FILE:
        raise ConvertError(f"a file of at most {MAX_FILE} bytes", f"{size}")
    root = _Table.root(path.read_bytes())
    version = root.number(0, "I", 0)
    if version != 3:
        raise ConvertError("schema version 3", str(version))
    graphs = root.tables(2)
    if len(graphs) != 1:
        raise ConvertError("one graph in the file", str(len(graphs)))
    buffers = [buffer.bytes(0) for buffer in root.tables(4)]
    tensors = tuple(_tensor(i, table, buffers) for i, table in enumerate(graphs[0].tables(0)))
    codes = [_operator_code(table) for table in root.tables(1)]
    operators = tuple(_operator(table, codes, len(tensors)) for table in graphs[0].tables(3))
    inputs, outputs = graphs[0].integers(1), graphs[0].integers(2)
    if len(inputs) != 1 or len(outputs) != 1:
        raise ConvertError("one input and one output", f"{len(inputs)} and {len(outputs)}")
    if not all(0 <= index < len(tensors) for index in (*inputs, *outputs)):
        raise ConvertError(f"an input and an output among {len(tensors)} tensors", f"{inputs}, {outputs}")
    graph = Graph(tensors, operators, inputs[0], outputs[0], size)
    _check_order(graph)
    return graph


def _check_order(graph: Graph) -> None:
    """Raises ConvertError where an operator reads what is not there yet, or a tensor is made twice."""
    made = {graph.input}
    constants = {tensor.index for tensor in graph.tensors if tensor.data is not None}
    reused = 0
    for operator in graph.operators:
        for index in operator.inputs:
            if index >= 0 and index not in made and index not in constants:
                raise ConvertError(
                    f"operators in order of execution, inputs of {operator.op} before it", graph.names[index]
                )
            reused += len(graph.tensors[index].data or b"") if index >= 0 else 0
        for index in operator.outputs:
            if index < 0 or index in made or index in constants:
                found = graph.names[index] if index >= 0 else "none"
                raise ConvertError(f"outputs of {operator.op} made once", found)
            made.add(index)
    if reused > MAX_REREAD * graph.size:
        raise ConvertError(f"constants of at most {MAX_REREAD} times the file", f"{reused} bytes of them")
    if graph.output not in made:
        raise ConvertError("an output that an operator makes", graph.names[graph.output])


def _tensor(index: int, table: _Table, buffers: list[memoryview]) -> Tensor:
    shape = table.integers(0)
    if len(shape) > MAX_RANK:
        raise ConvertError(f"tensors of at most {MAX_RANK} dimensions", str(len(shape)))
    if shape and min(shape) < 0:
        raise ConvertError(f"sizes of at least 0 in tensor {index}", str(list(shape)))
    buffer = int(table.number(2, "I", 0))
    if buffer >= len(buffers):
        raise ConvertError(f"a buffer among {len(buffers)} in tensor {index}", str(buffer))
    data = buffers[buffer] if buffer and len(buffers[buffer]) else None
    return Tensor(index, table.text(3), shape, int(table.number(1, "b", 0)), data)


def _operator_code(table: _Table) -> tuple[int, str]:
    # The older field holds codes up to 127; where the newer one is there, the larger counts.
    code = max(int(table.number(0, "b", 0)), int(table.number(3, "i", 0)))
    return code, table.text(1) if code == CUSTOM else ""


def _operator(table: _Table, codes: list[tuple[int, str]], tensors: int) -> Operator:
    number = int(table.number(0, "I", 0))
    if number >= len(codes):
        raise ConvertError(f"an operator code among {len(codes)}", str(number))
    code, custom = codes[number]
    inputs, outputs = table.integers(1), table.integers(2)
    if not all(-1 <= index < tensors for index in (*inputs, *outputs)):
        raise ConvertError(f"inputs and outputs among {tensors} tensors", f"{inputs}, {outputs}")
    if code == CUSTOM:
        return Operator(custom, inputs, outputs, _custom_options(custom, bytes(table.bytes(5))))
    op, known = BUILTIN.get(code, (f"builtin operator {code}", {}))
    options = table.table(4)
    return Operator(op, inputs, outputs, _builtin_options(op, known, options) if code in BUILTIN else {})


def _builtin_options(op: str, known: Options, table: _Table | None) -> dict[str, float]:
    if table is None:
        return {name: default for name, (_, _, default) in known.items()}
    unknown = sorted(set(table.slots()) - {slot for slot, _, _ in known.values()})
    if unknown:
        raise ConvertError(f"known options of {op}", f"field {unknown[0]} of its table")
    scalars = {name: field for name, field in known.items() if field[1] != "vector"}
    return {name: table.number(slot, kind, default) for name, (slot, kind, default) in scalars.items()}


def _custom_options(op: str, data: bytes) -> dict[str, float]:
    """The integers of a flexbuffer map."""
    from flatbuffers import flexbuffers

    if not data:
        return {}
    if len(data) > MAX_OPTION_BYTES:
        raise ConvertError(f"options of {op} in at most {MAX_OPTION_BYTES} bytes", str(len(data)))
    try:
        options = flexbuffers.GetRoot(data).AsMap
        if len(options) > MAX_OPTIONS:
            raise ConvertError(f"at most {MAX_OPTIONS} options of {op}", str(len(options)))
        keys = [options.Keys[i].AsKeyBytes.decode("ascii") for i in range(len(options))]
        values = [options.Values[i] for i in range(len(keys))]
        if not all(value.IsInt or value.IsBool for value in values):
            raise ConvertError(f"options of {op} that are integers", "others")
        return {key: int(value.AsInt) for key, value in zip(keys, values, strict=True)}
    except (struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ConvertError(f"options of {op} as a flexbuffer map", "damaged ones") from error


class _File:
    """The bytes of a file. What is read of it is checked against its size, and counted."""

    def __init__(self, data: bytes) -> None:
        try:
            from flatbuffers import number_types
            from flatbuffers.table import Table
        except ImportError as error:
            raise ConvertError(
                "the package flatbuffers, to read .tflite files", "none installed", f"{INSTALL}."
            ) from error

        class Checked(Table):  # type: ignore[misc]  # the package has no types
            """flatbuffers.Table, whose every read comes through here."""

            __slots__ = ()

            def Get(self, flags: Any, off: int) -> Any:  # noqa: N802  # the package's name
                if not 0 <= off <= len(data) - flags.bytewidth:
                    raise ConvertError(f"fields within the file's {len(data)} bytes", f"one at {off}", CUT)
                return super().Get(flags, off)

        self.data, self._table = data, Checked
        self._left = min(MAX_REREAD * len(data), MAX_STRUCTURE)
        self._kinds = {
            "b": number_types.Int8Flags,
            "H": number_types.VOffsetTFlags,
            "i": number_types.Int32Flags,
            "I": number_types.Uint32Flags,
            "f": number_types.Float32Flags,
        }

    def number(self, kind: str, at: int) -> Any:
        return self._table(self.data, 0).Get(self._kinds[kind], at)

    def field(self, table: int, slot: int) -> int:
        """Where a table's field is, 0 if it is not there."""
        offset: int = self._table(self.data, table).Offset(4 + 2 * slot)
        return table + offset if offset else 0

    def target(self, at: int) -> int:
        """Where the offset at a place leads to: never backwards."""
        target: int = at + self.number("I", at)
        self.number("I", target)
        return target

    def vector(self, at: int, width: int) -> tuple[int, int]:
        """(Where the first element is, how many) of the list that a field at `at` leads to."""
        start = self.target(at)
        count: int = self.number("I", start)
        left = (len(self.data) - start - 4) // width
        if count > left:
            raise ConvertError(f"a list of at most {left} elements at {start}", str(count), CUT)
        return start + 4, count

    def spend(self, size: int) -> None:
        """Lists may be shared, but a file of lists of lists could be read for ever."""
        self._left -= size
        if self._left < 0:
            expected = f"a file whose parts are read at most {MAX_REREAD} times"
            raise ConvertError(f"{expected}, lists and names of {MAX_STRUCTURE} bytes", "more")


class _Table:
    """A table's fields by slot; one that is not there is its default, or empty."""

    def __init__(self, file: _File, at: int) -> None:
        self._file, self._at = file, at
        file.spend(4)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        found = data[MAGIC_AT : MAGIC_AT + len(MAGIC)]
        if found != MAGIC:
            raise ConvertError(f"{MAGIC!r} at byte {MAGIC_AT}", repr(found))
        file = _File(data)
        return cls(file, file.target(0))

    def slots(self) -> list[int]:
        """The fields that are there."""
        vtable = self._at - self._file.number("i", self._at)
        size: int = self._file.number("H", vtable)
        self._file.spend(size)
        return [slot for slot in range(max(size - 4, 0) // 2) if self._file.field(self._at, slot)]

    def number(self, slot: int, kind: str, default: float) -> float:
        at = self._file.field(self._at, slot)
        value: float = self._file.number(kind, at) if at else default
        return value

    def table(self, slot: int) -> _Table | None:
        at = self._file.field(self._at, slot)
        return _Table(self._file, self._file.target(at)) if at else None

    def tables(self, slot: int) -> list[_Table]:
        at, count = self._vector(slot, 4)
        self._file.spend(4 * count)
        return [_Table(self._file, self._file.target(at + 4 * i)) for i in range(count)]

    def integers(self, slot: int) -> tuple[int, ...]:
        at, count = self._vector(slot, 4)
        self._file.spend(4 * count)
        return struct.unpack_from(f"<{count}i", self._file.data, at)

    def text(self, slot: int) -> str:
        at, count = self._vector(slot, 1)
        if count > MAX_NAME:
            raise ConvertError(f"names of at most {MAX_NAME} bytes", str(count))
        self._file.spend(count)
        return self._file.data[at : at + count].decode("utf-8", errors="replace")

    def bytes(self, slot: int) -> memoryview:
        at, count = self._vector(slot, 1)
        return memoryview(self._file.data)[at : at + count]

    def _vector(self, slot: int, width: int) -> tuple[int, int]:
        at = self._file.field(self._at, slot)
        return self._file.vector(at, width) if at else (0, 0)
