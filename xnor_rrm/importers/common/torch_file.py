"""PyTorch checkpoints as plain arrays, views of the file's bytes. Nothing is unpickled: see torch_pickle.

zip     NAME/data.pkl: a pickle, its storages by key; NAME/data/KEY: the bytes of each
legacy  five pickles (magic number, version, system, content, keys of storages), then of each storage
        int64 count, count values                                                    (before 1.6)
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConvertError
from ...model import Array
from . import torch_pickle

#: How a file of PyTorch before 1.6 begins: its magic number, pickled with protocol 2.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_MAGIC = b"PK\x03\x04"
PICKLE = "/data.pkl"

INSTALL = 'pip install "xnor-rrm[torch]"'

MAX_FILE = 1 << 30
#: Storages may be shared, but few bytes may not become many arrays.
MAX_REREAD = 4

#: By kind of storage: torch's name for the type, and bytes of a value.
STORAGES = {
    "FloatStorage": ("float32", 4), "DoubleStorage": ("float64", 8), "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}  # fmt: skip
#: What the package zipfile raises.
DAMAGE = (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError)
DTYPES = {"float32": "<f4", "int32": "<i4", "int64": "<i8"}


def recognise(path: Path, head: bytes) -> bool:
    """Whether the file is a PyTorch checkpoint of either container. Raises ConvertError for a damaged zip."""
    if not head.startswith(ZIP_MAGIC):
        return head.startswith(LEGACY_MAGIC)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGE as error:
        raise ConvertError("a whole zip container", f"{path.name}, which is cut or damaged") from error
    if not any(member.filename.endswith(PICKLE) for member in members):
        return False
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise ConvertError("a PyTorch zip, stored without compression", f"{path.name}, which expands")
    return True


def read(path: Path) -> dict[str, Array]:
    """The state_dict of a checkpoint, itself or under the key `state_dict`, with `module.` stripped.

    Raises ConvertError for a damaged file, and for one with anything but tensors.
    """
    if (size := path.stat().st_size) > MAX_FILE:
        raise ConvertError(f"a checkpoint of at most {MAX_FILE} bytes", str(size))
    try:
        data = path.read_bytes()
        content, storages = (_zip if data.startswith(ZIP_MAGIC) else _legacy)(data)
    except (*DAMAGE, TypeError, LookupError, ArithmeticError, struct.error) as error:
        raise ConvertError("a whole PyTorch checkpoint", f"{path.name}, which is damaged") from error

    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise ConvertError("a state_dict", f"{type(state).__name__} in {path.name}")
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    arrays = {}
    left = MAX_REREAD * size
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch_pickle.Tensor | torch_pickle.Opaque)):
            raise ConvertError("tensors by name in the state_dict", f"{type(value).__name__} under {name!r}")
        array = _array(value, storages, size, repr(name))
        left -= array.nbytes
        if left < 0:
            raise ConvertError(f"tensors of at most {MAX_REREAD} times the file's {size} bytes", "more")
        arrays[name.removeprefix(prefix)] = np.ascontiguousarray(array)
    return arrays


def _array(value: Any, storages: Mapping[str, memoryview], size: int, name: str) -> Array:
    """A view of a tensor's values. Raises ConvertError where they do not lie in its storage."""
    if isinstance(value, torch_pickle.Opaque):
        raise ConvertError(f"a dense float32, int32 or int64 tensor {name}", value.name)
    kind, itemsize = STORAGES.get(value.storage.kind, (value.storage.kind, 1))
    if kind not in DTYPES:
        raise ConvertError(f"a dense float32, int32 or int64 tensor {name}", f"torch.{kind}")
    try:
        # A stride of zero lets a few bytes claim any shape.
        if math.prod(value.shape) * itemsize > size:
            raise ConvertError(f"{name} within the file's {size} bytes", f"shape {list(value.shape)}")
        strides = [itemsize * step for step in value.stride]
        buffer, offset = storages[value.storage.key], itemsize * value.offset
        return np.ndarray(value.shape, DTYPES[kind], buffer, offset, strides)  # which checks that it fits
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise ConvertError(f"{name} within a storage of the file", "a tensor that is not") from error


def _zip(data: bytes) -> tuple[Any, Mapping[str, memoryview]]:
    members: dict[str, memoryview] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            # Those of the directory may be others than these, which are before the content.
            sizes = struct.unpack_from("<2H", data, member.header_offset + 26)
            start = member.header_offset + 30 + sum(sizes)
            content = memoryview(data)[start : start + member.file_size]
            plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
            if not plain or len(content) != member.file_size or member.filename in members:
                raise ValueError(f"the member {member.filename!r}")
            members[member.filename] = content
    (pickle,) = (name for name in members if name.endswith(PICKLE))
    folder = pickle.removesuffix(PICKLE)
    if bytes(members.get(f"{folder}/byteorder", b"little")) != b"little":
        raise ConvertError("values with their lowest byte first", "a checkpoint of another kind of machine")
    content = torch_pickle.load(io.BytesIO(members[pickle]))
    start = f"{folder}/data/"
    return content, {
        name.removeprefix(start): each for name, each in members.items() if name.startswith(start)
    }


def _legacy(data: bytes) -> tuple[Any, Mapping[str, memoryview]]:
    stream = io.BytesIO(data)
    stream.seek(len(LEGACY_MAGIC))
    kinds: dict[str, str] = {}
    _version, _system = torch_pickle.load(stream), torch_pickle.load(stream)
    content, keys = torch_pickle.load(stream, kinds), torch_pickle.load(stream)
    at, storages = stream.tell(), {}
    for key in keys:
        (count,) = struct.unpack_from("<q", data, at)
        size = count * STORAGES[kinds[key]][1]
        storages[key] = memoryview(data)[at + 8 : at + 8 + size]
        if count < 0 or len(storages[key]) != size:
            raise ValueError(f"a storage of {count} values")
        at += 8 + size
    return content, storages
