"""Read and write model files. The contract is docs/format.md; nothing in a file is trusted.

The description follows the dataclasses of model.py, so a new kind of layer needs no change here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import reprlib
import secrets
import sys
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from safetensors.numpy import save as write_container

from .decoding import DECODING_KINDS, Decoding
from .errors import ModelError, ModelFileError
from .model import LAYER_KINDS, MAX_ACTIVATION, Array, Layer, Model

#: Version written, and the newest that is read.
VERSION = 1
#: The metadata key of the container that holds the description.
KEY = "xnor_rrm"

MAX_FILE = 1 << 30
MAX_HEADER = 1 << 20
MAX_RANK = 8
#: Largest magnitude of any integer in the description.
MAX_INTEGER = 65535

DTYPES = {
    "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
    "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "F32": "<f4", "F64": "<f8",
}  # fmt: skip

DAMAGED = "The file is damaged or badly made: copy it again, or convert the checkpoint again."
UPGRADE = "Upgrade: pip install --upgrade xnor-rrm."
NOT_A_MODEL = "If it is a checkpoint, convert it first: xnor-rrm convert SOURCE -o MODEL."

_repr = reprlib.Repr()
_repr.maxstring, _repr.maxlist = 120, MAX_RANK
_NO_DIGEST = "0" * 64
#: Control characters (they drive terminals) and lone surrogates; newline and tab are allowed.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def save(model: Model, path: Path) -> None:
    """Write `model`. The file appears whole or not at all; an existing one is kept until then.

    Raises ModelFileError where `load` would refuse the result, or the folder cannot be written to.
    """
    try:
        data = _encode(model)
        _decode(io.BytesIO(data), len(data))
    except ModelFileError as error:
        remedy = "Nothing was written, because it could not be loaded again."
        raise ModelFileError(error.expected, error.got, remedy) from error
    temporary = path.parent / f"{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ModelFileError("a place to write the model to", f"{error.strerror}: {path}") from error


def load(path: Path) -> Model:
    """Read a model; raises ModelFileError. Allocates the file's size and a small multiple of its header."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise ModelFileError("a model file", "no regular file" if path.exists() else "nothing")
        with path.open("rb") as file:
            return _decode(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise ModelFileError("a readable model file", f"{error.strerror}: {path}") from error
    except ModelFileError as error:
        raise ModelFileError(error.expected, f"{error.got}, in {path}", error.remedy) from error


def _encode(model: Model) -> bytes:
    tensors = {
        f"{layer.name}.{field}": value for layer in model.layers for field, value in layer.tensors().items()
    }
    document = {"format": VERSION, "sha256": _NO_DIGEST, "model": _plain(model)}
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace(_NO_DIGEST, _digest(text, tensors), 1)
    return write_container(tensors, {KEY: text})


def _plain(value: Any) -> Any:
    """`value` as JSON types; arrays are left out, layers name their kind."""
    if dataclasses.is_dataclass(value):
        fields = {
            f.name: getattr(value, f.name)
            for f in dataclasses.fields(value)
            if not (f.metadata.get("omit_default") and getattr(value, f.name) == f.default)
        }
        plain = {name: _plain(field) for name, field in fields.items() if not isinstance(field, np.ndarray)}
        is_one_of_several = isinstance(value, Layer | Decoding)
        return {"kind": type(value).__name__, **plain} if is_one_of_several else plain
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return _text(value, "a name, label or info text")
    return value.item() if isinstance(value, np.generic) else value


def _digest(text: str, tensors: Mapping[str, Array]) -> str:
    """SHA-256 of the description, its own digest written as zeros, and of the tensors in order of name."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name, value in sorted(tensors.items()):
        shape = ",".join(map(str, value.shape))
        digest.update(f"\n{name} {value.dtype.name} {shape}\n".encode("utf-8", "surrogatepass"))
        digest.update(value.data)
    return digest.hexdigest()


def _decode(file: BinaryIO, size: int) -> Model:
    """The model in a file of `size` bytes; checks container, version, digest and layers, in that order."""
    _require(size <= MAX_FILE, f"a file of at most {MAX_FILE} bytes", size, NOT_A_MODEL)
    length = int.from_bytes(file.read(8), "little")
    size -= 8 + length
    expected = f"a safetensors header within the file, of {max(length + size, 0)} bytes at most"
    _require(size >= 0, expected, length, f"The file is cut short. {NOT_A_MODEL}")
    _require(length <= MAX_HEADER, f"a header of at most {MAX_HEADER} bytes", length, NOT_A_MODEL)
    header = _object(_json(file.read(length), "the header"), "the header")
    metadata = _object(header.pop("__metadata__", {}), "__metadata__")
    text = metadata.pop(KEY, None)
    _require(isinstance(text, str), f"a model description as __metadata__.{KEY}", text, NOT_A_MODEL)
    document = _object(_json(text, KEY), KEY)
    version, digest, description = (document.pop(key, None) for key in ("format", "sha256", "model"))
    _require(type(version) is int and version >= 1, "a format version of at least 1", version)
    _require(version <= VERSION, f"format version {VERSION} or older", version, UPGRADE)
    _require_empty(metadata, "__metadata__")
    _require_empty(document, KEY)
    spans = _spans(header, size)

    data = file.read(size)
    _require(len(data) == size, f"{size} bytes of tensors", len(data), "The file changed while it was read.")
    tensors: dict[str, Array] = {
        name: np.frombuffer(data, dtype, math.prod(shape), begin).reshape(shape)
        for name, (dtype, shape, begin) in spans.items()
    }
    is_digest = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None
    _require(is_digest, "64 hexadecimal digits as sha256", digest)
    found = _digest(text.replace(digest, _NO_DIGEST, 1), tensors)
    _require(found == digest, f"contents with SHA-256 {digest!r}", found)

    model: Model = _Reader(tensors).record(Model, description, "model")
    _require_empty(tensors, "the tensors")
    for name, shape in model.shapes.items():
        expected = f"at most {MAX_ACTIVATION} values from {_show(name)}"
        _require(math.prod(shape) <= MAX_ACTIVATION, expected, shape)
    return model


def _json(data: bytes | str, where: str) -> Any:
    """Strict JSON: UTF-8, no key twice, no NaN or infinity."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ValueError("the same key twice in one object")
        return result

    def constant(name: str) -> None:
        raise ValueError(f"the number {name}")

    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"valid JSON as {where}", f"a fault ({error})", DAMAGED) from error


def _spans(header: dict[str, Any], size: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]:
    """Dtype, shape and first byte of each tensor; together they cover `size` bytes exactly once."""
    spans = {}
    ends = []
    for name, value in header.items():
        where = f"tensor {_show(name)}"
        entry = _object(value, where)
        code, shape, offsets = (entry.pop(key, None) for key in ("dtype", "shape", "data_offsets"))
        _require_empty(entry, where)
        known = isinstance(code, str) and code in DTYPES
        _require(known, f"a dtype among {', '.join(DTYPES)} for {where}", code, UPGRADE)
        fits = _integers(shape, 1, size) and len(shape) <= MAX_RANK
        _require(fits, f"at most {MAX_RANK} sizes between 1 and the {size} bytes of data for {where}", shape)
        dtype = np.dtype(DTYPES[code])
        fits = _integers(offsets, 0, size) and len(offsets) == 2 and offsets[0] % dtype.itemsize == 0
        _require(fits, f"aligned offsets [begin, end] within the {size} bytes of data for {where}", offsets)
        begin, end = offsets
        length = math.prod(shape) * dtype.itemsize
        _require(end - begin == length, f"{length} bytes for {where}, {code}{_show(shape)}", end - begin)
        spans[name] = (dtype, tuple(shape), begin)
        ends.append((begin, end, where))
    covered = 0
    for begin, end, where in sorted(ends):
        _require(begin == covered, f"{where} at byte {covered}, without gap or overlap", begin)
        covered = end
    _require(covered == size, f"{covered} bytes of tensors", size)
    return spans


class _Reader:
    """Builds dataclasses from their JSON; `tensors` loses each array that a layer takes."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self.tensors = tensors

    def record(self, kind: type[Any], value: Any, where: str) -> Any:
        """A `kind` from a JSON object: its fields by name, those with a default optional, no others."""
        source = _object(value, where)
        hints = typing.get_type_hints(kind)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(kind):
            hint, inner = hints[field.name], f"{where}.{field.name}"
            if typing.get_origin(hint) is np.ndarray:
                values[field.name] = self.tensor(f"{values['name']}.{field.name}")
            elif field.name in source:
                values[field.name] = self.value(hint, source.pop(field.name), inner)
            elif field.default is MISSING and field.default_factory is MISSING:
                raise ModelFileError(inner, "no such field", DAMAGED)
        _require_empty(source, where)
        try:
            return kind(**values)
        except ModelError as error:
            got, remedy = f"{error.got}, in {where}", error.remedy or DAMAGED
            raise ModelFileError(error.expected, got, remedy) from error

    def layer(self, value: Any, where: str) -> Any:
        """A layer of the kind that its JSON object names."""
        source = _object(value, where)
        where = f"layer {_show(_text(source.get('name'), f'{where}.name'))}"
        return self.one_of(LAYER_KINDS, source, where)

    def one_of(self, kinds: Mapping[str, type[Any]], value: Any, where: str) -> Any:
        """A record of the kind that its JSON object names."""
        source = _object(value, where)
        kind = source.pop("kind", None)
        known = isinstance(kind, str) and kind in kinds
        _require(known, f"a kind among {', '.join(kinds)} as {where}", kind, UPGRADE)
        return self.record(kinds[kind], source, where)

    def value(self, hint: Any, value: Any, where: str) -> Any:
        """`value` as the type that `hint` names."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Layer:
            return self.layer(value, where)
        if hint == Decoding | None:
            return self.one_of(DECODING_KINDS, value, where)
        if dataclasses.is_dataclass(hint):
            return self.record(cast("type[Any]", hint), value, where)
        if hint is str:
            return _text(value, where)
        if origin is dict:  # of texts
            items = _object(value, where).items()
            return {_text(k, f"a name in {where}"): _text(v, f"{where}[{_show(k)}]") for k, v in items}
        if origin is tuple:
            many = arguments[-1] is ...
            fits = isinstance(value, list) and (many or len(value) == len(arguments))
            _require(fits, f"a list{'' if many else f' of {len(arguments)}'} as {where}", value)
            hints = arguments[:1] * len(value) if many else arguments
            return tuple(self.value(hints[i], item, f"{where}[{i}]") for i, item in enumerate(value))
        if origin is Literal:
            fits, expected = isinstance(value, str) and value in arguments, f"one of {arguments}"
        elif hint is bool:
            fits, expected = isinstance(value, bool), "true or false"
        elif hint is int:
            fits = type(value) is int and abs(value) <= MAX_INTEGER
            expected = f"an integer of magnitude at most {MAX_INTEGER}"
        elif hint is float:
            fits = type(value) in (int, float) and abs(value) <= sys.float_info.max
            expected = "a finite number"
        else:
            raise TypeError(f"{where}: model files hold no {hint}")
        _require(fits, f"{expected} as {where}", value)
        return float(value) if hint is float else value

    def tensor(self, name: str) -> Array:
        if name not in self.tensors:
            raise ModelFileError(f"a tensor {_show(name)}", "none of that name", DAMAGED)
        return self.tensors.pop(name)


def _object(value: Any, where: str) -> dict[str, Any]:
    """A copy of `value`, a JSON object."""
    _require(isinstance(value, dict), f"a JSON object as {where}", value)
    return dict(value)


def _text(value: Any, where: str) -> str:
    fits = isinstance(value, str) and not _UNPRINTABLE.search(value)
    _require(fits, f"text without control characters as {where}", value)
    return str(value)


def _integers(value: Any, low: int, high: int) -> bool:
    return isinstance(value, list) and all(type(item) is int and low <= item <= high for item in value)


def _require_empty(left: Mapping[str, Any], where: str) -> None:
    _require(not left, f"only known names in {where}", min(left, default=None), f"{UPGRADE} Or: {DAMAGED}")


def _require(fits: bool, expected: str, got: object, remedy: str = DAMAGED) -> None:
    if not fits:
        raise ModelFileError(expected, _show(got), remedy)


def _show(value: Any) -> str:
    return _repr.repr(value)
