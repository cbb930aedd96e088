"""Packing of signs into words offline: importers, model files, tests. Frames are packed by the kernels.

Bit c % 64 of word c // 64 is element c, least significant bit first; 1 is +1; pad bits are zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from bitarray import bitarray

from .errors import ShapeError


def pack_signs(signs: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """uint64[..., ceil(C / 64)] from bool[..., C], True being +1. Raises ShapeError for another dtype."""
    if signs.dtype != np.bool_ or not signs.ndim:
        raise ShapeError("bool[..., C]", f"{signs.dtype.name}{list(signs.shape)}")
    *rows, channels = signs.shape
    words = -(-channels // 64)
    padded = np.zeros((*rows, words * 64), np.bool_)
    padded[..., :channels] = signs
    bits = bitarray(endian="little")
    bits.pack(padded.tobytes())
    return np.frombuffer(bits.tobytes(), "<u8").astype(np.uint64).reshape(*rows, words)


def unpack_signs(words: npt.NDArray[np.unsignedinteger[Any]], channels: int) -> npt.NDArray[np.bool_]:
    """bool[..., channels] from unsigned words[..., W] of any width, the first bits of each row.

    Raises ShapeError where the words hold fewer bits than that.
    """
    if words.dtype.kind != "u" or not words.ndim or not 0 <= channels <= words.shape[-1] * words.itemsize * 8:
        raise ShapeError(f"unsigned words of {channels} bits a row", f"{words.dtype.name}{list(words.shape)}")
    bits = bitarray(endian="little")
    bits.frombytes(words.astype(words.dtype.newbyteorder("<")).tobytes())
    rows, width = words.shape[:-1], words.shape[-1] * words.itemsize * 8
    return np.frombuffer(bits.unpack(), np.bool_).reshape(*rows, width)[..., :channels]
