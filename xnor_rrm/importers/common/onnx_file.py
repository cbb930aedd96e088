"""ONNX files as plain nodes and arrays. Nothing in them is trusted, and nothing outside of them is read.

Only the protobuf message is parsed by the `onnx` package; its checker and shape inference, which are C++ that
strangers' files would reach, are not called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConvertError
from ...model import Array

if TYPE_CHECKING:
    import onnx

INSTALL = 'pip install "xnor-rrm[convert]"'

#: The operator sets whose definitions are known here, of the default domain.
OPSETS = range(7, 27)
DEFAULT_DOMAINS = ("", "ai.onnx")

#: What protobuf itself can hold in one message.
MAX_BYTES = (1 << 31) - 1
MAX_DIMENSIONS, MAX_NODES = 8, 1 << 14
#: Most fields in a file. A message takes two bytes of it, and a hundred once it is parsed.
MAX_FIELDS = 1 << 19
#: Of protobuf: how the values of a field are stored, and the bytes of those of one size.
VARINT, DELIMITED, FIXED = 0, 2, {1: 8, 5: 4}

#: By ONNX's number of a type: its numpy type, and the field that holds values not kept as raw bytes.
TYPES = {
    1: ("<f4", "float_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("?", "int32_data"),
    11: ("<f8", "double_data"),
}
EXTERNAL = 1
FLOAT, INTEGERS = 1, (2, 3, 4, 5, 6, 7, 12, 13)


def text(value: str | bytes) -> str:
    """A name. Raises ConvertError for one that is no UTF-8, which protobuf leaves as bytes."""
    if isinstance(value, bytes):
        raise ConvertError("names in UTF-8", repr(value[:40]))
    return value


class Node:
    """An operator. op : its type, with its domain if not the default.  output : its first output.

    Attributes are taken one by one; `finish` raises for those left over.
    """

    def __init__(self, proto: onnx.NodeProto) -> None:
        domain = "" if proto.domain in DEFAULT_DOMAINS else f"{text(proto.domain)}::"
        self.op = domain + text(proto.op_type)
        self.inputs, self.outputs = list(map(text, proto.input)), list(map(text, proto.output))
        self.output = self.outputs[0] if self.outputs else ""
        self.name = text(proto.name) or self.output
        self._attributes = {text(attribute.name): attribute for attribute in proto.attribute}

    @property
    def where(self) -> str:
        return f"{self.op} {self.name}"

    def has(self, key: str) -> bool:
        return key in self._attributes

    def number(self, key: str, default: float) -> float:
        return float(self._take(key, "f", default))

    def integer(self, key: str, default: int) -> int:
        return int(self._take(key, "i", default))

    def integers(self, key: str, default: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._take(key, "ints", default))

    def text(self, key: str, default: str) -> str:
        value = self._take(key, "s", default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def array(self, key: str) -> Array:
        """A tensor's values. Raises ConvertError where it does not hold them."""
        return read_tensor(self._take(key, "t", None), self.where)

    def floats(self, key: str) -> Array:
        return np.array(self._take(key, "floats", ()), np.float32)

    def require(self, key: str, value: int | str, default: int | str) -> None:
        """Raises ConvertError where an attribute has any but the one supported value."""
        found = self.integer(key, int(default)) if isinstance(value, int) else self.text(key, str(default))
        if found != value:
            raise ConvertError(f"{key} {value} in {self.where}", f"{found}")

    def finish(self) -> None:
        """Raises ConvertError for an attribute that was not taken."""
        if self._attributes:
            raise ConvertError(f"known attributes in {self.where}", ", ".join(sorted(self._attributes)[:8]))

    def _take(self, key: str, field: str, default: Any) -> Any:
        attribute = self._attributes.pop(key, None)
        if attribute is None:
            if default is None:
                raise ConvertError(f"an attribute {key} in {self.where}", "none")
            return default
        kinds = {"f": 1, "i": 2, "s": 3, "t": 4, "floats": 6, "ints": 7}
        if attribute.type != kinds[field]:
            raise ConvertError(f"{key} of type {kinds[field]} in {self.where}", f"{attribute.type}")
        return getattr(attribute, field)


@dataclass(frozen=True)
class Graph:
    """nodes : in order of execution.  constants : the initializers.  output : the value computed.

    input, dims : the name and shape of the one input; a size that the file leaves open is 0.
    unread : names of initializers that no node reads.
    """

    nodes: list[Node]
    constants: dict[str, Array]
    input: str
    dims: tuple[int, ...]
    output: str
    unread: list[str]


def parse(path: Path) -> onnx.ModelProto:
    """The message of a file. Raises ConvertError for a damaged one, and without the onnx package."""
    try:
        import onnx
    except ImportError as error:
        raise ConvertError("the onnx package, to read ONNX files", "none installed", f"{INSTALL}.") from error
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConvertError(f"an ONNX file of at most {MAX_BYTES} bytes", f"{path.name}, a larger one")
        data = path.read_bytes()
        _check_fields(data, onnx.ModelProto.DESCRIPTOR)
        return onnx.load_model_from_string(data)
    except OSError as error:
        raise ConvertError("a readable ONNX file", f"{path}: {error.strerror}") from error
    except ConvertError:
        raise
    except Exception as error:  # protobuf's implementations differ in what they raise
        raise ConvertError("a whole ONNX file", f"{path.name}, which is cut or damaged") from error


def _check_fields(data: bytes, kind: Any) -> None:
    """Raises ConvertError for more than MAX_FIELDS in a message and those inside, ValueError for damage.

    kind : the message's descriptor.
    """
    at, left, open_messages = 0, MAX_FIELDS, [(len(data), kind)]
    while open_messages:
        end, kind = open_messages[-1]
        if at >= end:
            open_messages.pop()
            continue
        if not (left := left - 1):
            raise ConvertError(f"at most {MAX_FIELDS} fields in an ONNX file", "more")
        tag, at = _varint(data, at)
        stored = tag & 7
        if stored == VARINT:
            _, at = _varint(data, at)
        elif stored in FIXED:
            at += FIXED[stored]
        elif stored == DELIMITED:
            size, at = _varint(data, at)
            field = kind.fields_by_number.get(tag >> 3)
            if field is not None and field.message_type is not None:
                open_messages.append((min(at + size, end), field.message_type))
            else:
                at += size
        else:
            raise ValueError(f"a field stored in way {stored}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, the last without the highest bit; and where it ends."""
    value = shift = 0
    while data[at] > 127:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return value | data[at] << shift, at + 1


def read(path: Path) -> Graph:
    """The graph of a file: one input, one output, each value made before it is read. Raises ConvertError."""
    model = parse(path)
    opsets = [each.version for each in model.opset_import if each.domain in DEFAULT_DOMAINS]
    if len(opsets) != 1 or opsets[0] not in OPSETS:
        raise ConvertError(f"an opset of {OPSETS.start} to {OPSETS.stop - 1}", f"{opsets or 'none'}")
    proto = model.graph
    if model.functions or proto.sparse_initializer:
        raise ConvertError("plain operators and dense weights", f"functions or sparse weights in {path.name}")

    constants: dict[str, Array] = {}
    for tensor in proto.initializer:
        if not tensor.name or tensor.name in constants:
            raise ConvertError("a name for each initializer", repr(tensor.name))
        constants[text(tensor.name)] = read_tensor(tensor, f"initializer {tensor.name}")
    inputs = [each for each in proto.input if text(each.name) not in constants]
    if len(inputs) != 1 or len(proto.output) != 1:
        raise ConvertError("one input and one output", f"{len(inputs)} and {len(proto.output)}")
    if len(proto.node) > MAX_NODES:
        raise ConvertError(f"at most {MAX_NODES} nodes", f"{len(proto.node)}")
    nodes = [Node(each) for each in proto.node]
    _check_order(nodes, {inputs[0].name, *constants})
    unread = constants.keys() - {name for node in nodes for name in node.inputs}
    kind = inputs[0].type.tensor_type
    if kind.elem_type != FLOAT:
        raise ConvertError(f"a float32 input {inputs[0].name!r}", f"type {kind.elem_type}")
    dims = tuple(max(int(each.dim_value), 0) for each in kind.shape.dim)
    return Graph(nodes, constants, inputs[0].name, dims, text(proto.output[0].name), sorted(unread))


def _check_order(nodes: list[Node], known: set[str]) -> None:
    for node in nodes:
        # An optional input that is left out has no name.
        early = [name for name in node.inputs if name and name not in known]
        if early:
            raise ConvertError(f"inputs of {node.where} made before it", f"{early[0]!r}")
        if not node.output or known & set(node.outputs):
            raise ConvertError(f"new names for the outputs of {node.where}", f"{node.outputs[:8]}")
        known.update(filter(None, node.outputs))


def read_tensor(tensor: onnx.TensorProto, where: str) -> Array:
    """The values of a tensor, a view of the file's bytes where it holds them so. Raises ConvertError."""
    if tensor.data_location == EXTERNAL or tensor.external_data:
        raise ConvertError(
            f"{where} inside the file",
            "external data",
            "Save the model as one file: onnx.save(onnx.load(path), path).",
        )
    if tensor.data_type not in TYPES or tensor.HasField("segment"):
        raise ConvertError(f"{where} of type {', '.join(map(str, TYPES))}", f"type {tensor.data_type}")
    dtype, field = TYPES[tensor.data_type]
    dims = tuple(tensor.dims)
    if len(dims) > MAX_DIMENSIONS or min(dims, default=0) < 0:
        raise ConvertError(f"up to {MAX_DIMENSIONS} sizes of {where}", f"{dims[:MAX_DIMENSIONS]}")
    raw, count = tensor.raw_data, math.prod(dims)
    itemsize = np.dtype(dtype).itemsize
    held = len(raw) / itemsize if raw else len(getattr(tensor, field))
    if held != count:
        raise ConvertError(f"{count} values of {where}, which is {list(dims)}", f"{held:g}")
    values = np.frombuffer(raw, dtype) if raw else np.array(getattr(tensor, field), dtype)
    return values.reshape(dims)
