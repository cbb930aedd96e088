"""PyTorch checkpoints as plain arrays. Nothing is unpickled: `weights_only=True` always."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np

from ...errors import ConvertError
from ...model import Array

#: How a file of PyTorch before 1.6 begins: its magic number, pickled with protocol 2.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_MAGIC = b"PK\x03\x04"

INSTALL = 'pip install "xnor-rrm[torch]"'


def recognise(path: Path, head: bytes) -> bool:
    """Whether the file is a PyTorch checkpoint of either container. Raises ConvertError for a damaged zip."""
    if not head.startswith(ZIP_MAGIC):
        return head.startswith(LEGACY_MAGIC)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError) as error:
        raise ConvertError("a whole zip container", f"{path.name}, which is cut or damaged") from error
    if not any(member.filename.endswith("/data.pkl") for member in members):
        return False
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise ConvertError("a PyTorch zip, stored without compression", f"{path.name}, which expands")
    return True


def read(path: Path) -> dict[str, Array]:
    """The state_dict of a checkpoint, itself or under the key `state_dict`, with `module.` stripped.

    Raises ConvertError for a damaged file, a file with anything but tensors, or without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise ConvertError("PyTorch, to read its checkpoints", "none installed", f"{INSTALL}.") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents no set of exceptions for damaged files
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        raise ConvertError(
            "a whole PyTorch checkpoint of tensors only",
            f"{path.name}, which holds {forbidden[1]}" if forbidden else f"{path.name}, which is damaged",
            "Nothing else is unpickled: save with torch.save(model.state_dict(), path)." if forbidden else "",
        ) from error

    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise ConvertError("a state_dict", f"{type(state).__name__} in {path.name}")
    size = path.stat().st_size
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    arrays = {}
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise ConvertError("tensors by name in the state_dict", f"{type(value).__name__} under {name!r}")
        dense = value.layout == torch.strided and value.device.type == "cpu"
        if not dense or value.dtype not in (torch.float32, torch.int32, torch.int64):
            found = f"{value.dtype}, {value.layout} on {value.device}"
            raise ConvertError(f"a dense float32, int32 or int64 tensor {name!r}", found)
        # A stride of zero lets a few bytes claim any shape.
        if value.numel() * value.element_size() > size:
            raise ConvertError(f"{name!r} within the file's {size} bytes", f"shape {list(value.shape)}")
        arrays[name.removeprefix(prefix)] = np.ascontiguousarray(value.numpy(force=True))
    return arrays
