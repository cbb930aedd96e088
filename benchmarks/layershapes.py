"""Layer shapes from shapes/*.txt, and random layers and frames of such a shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xnor_rrm.kernels.layer import BinaryLayer

FOLDER = Path(__file__).parent / "shapes"


@dataclass(frozen=True)
class LayerShape:
    """One line of a shape file. padding : (top, bottom, left, right).  pad_value : 0, +1 or -1."""

    network: str
    name: str
    cin: int
    cout: int
    h: int
    w: int
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int, int, int]
    pad_value: int

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, bottom, left, right = self.padding
        high = (self.h + top + bottom - self.kernel[0]) // self.stride + 1
        return high, (self.w + left + right - self.kernel[1]) // self.stride + 1

    @property
    def bits(self) -> int:
        """Bits of an input frame."""
        return self.h * self.w * self.cin

    @property
    def macs(self) -> int:
        """Bit-MACs of a dense frame, taps in the padding included."""
        high, wide = self.output
        return high * wide * self.cout * self.kernel[0] * self.kernel[1] * self.cin

    @property
    def geometry(self) -> dict[str, Any]:
        """Keyword arguments of a `BinaryLayer` besides its weights."""
        return {
            "shape": (self.h, self.w, self.cin),
            "stride": (self.stride, self.stride),
            "padding": self.padding,
            "pad_value": self.pad_value,
        }

    def layer(self, weight: Any) -> BinaryLayer:
        """A layer with its own state; weight : uint64[Cout, kH, kW, Cw]."""
        return BinaryLayer(weight, **self.geometry)

    def random_weight(self, rng: np.random.Generator) -> Any:
        """uint64[Cout, kH, kW, Cw] of fair coin flips."""
        return random_words(rng, (self.cout, *self.kernel), self.cin)

    def random_frame(self, rng: np.random.Generator) -> Any:
        """uint64[H, W, Cw] of fair coin flips."""
        return random_words(rng, (self.h, self.w), self.cin)

    def flipped(self, rng: np.random.Generator, frame: Any, share: float) -> Any:
        """A copy of the frame with this share of its bits flipped, spread uniformly; at least one."""
        flat = np.zeros(self.bits, np.uint8)
        flat[rng.choice(self.bits, max(1, round(share * self.bits)), replace=False)] = 1
        return frame ^ pack(flat.reshape(self.h, self.w, self.cin))


def pack(bits: Any) -> Any:
    """uint64[..., ceil(C / 64)] of 0/1 [..., C]: channel c is bit c % 64 of word c // 64, spare bits 0."""
    spare = [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % 64)]
    return np.packbits(np.pad(bits, spare).astype(np.uint8), axis=-1, bitorder="little").view(np.uint64)


def unpack(words: Any, channels: int) -> Any:
    """int8[..., C] of -1 and +1 of uint64[..., Cw]."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, bitorder="little", count=channels)
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)


def random_words(rng: np.random.Generator, shape: tuple[int, ...], channels: int) -> Any:
    """uint64[*shape, ceil(C / 64)] of packed random signs."""
    return pack(rng.integers(0, 2, (*shape, channels), dtype=np.uint8))


def read_shapes(path: Path) -> list[LayerShape]:
    """The layers of one file. Raises ValueError naming the line that is wrong."""
    shapes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        try:
            shapes.append(_parse(path.stem, fields))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; got {line!r}") from error
    return shapes


def _parse(network: str, fields: Sequence[str]) -> LayerShape:
    if len(fields) != 9:
        raise ValueError("expected name, Cin, Cout, H, W, kernel, stride, padding, pad value")
    cin, cout, h, w, stride, pad_value = (int(fields[i]) for i in (1, 2, 3, 4, 6, 8))
    kh, kw = (int(size) for size in fields[5].split("x"))
    sides = [int(side) for side in fields[7].split(",")]
    top, bottom, left, right = sides if len(sides) == 4 else sides * 4
    if min(cin, cout, h, w, kh, kw, stride) < 1 or min(sides) < 0 or pad_value not in (-1, 0, 1):
        raise ValueError("expected sizes above 0, padding from 0 on and a pad value of -1, 0 or 1")
    padding = top, bottom, left, right
    shape = LayerShape(network, fields[0], cin, cout, h, w, (kh, kw), stride, padding, pad_value)
    if min(shape.output) < 1:
        raise ValueError("expected a kernel that fits the padded input")
    return shape


def select(names: Sequence[str], folder: Path = FOLDER) -> list[LayerShape]:
    """Layers of the named files ("resnet18"), or single ones ("resnet18:64@56"); all where none is named."""
    chosen: list[LayerShape] = []
    for name in names or sorted(path.stem for path in folder.glob("*.txt")):
        network, _, layer = name.partition(":")
        path = folder / f"{network}.txt"
        found = [s for s in read_shapes(path) if layer in ("", s.name)] if path.exists() else []
        if not found:
            known = ", ".join(sorted(path.stem for path in folder.glob("*.txt")))
            raise ValueError(f"expected one of {known}, or NETWORK:LAYER of one; got {name!r}")
        chosen += found
    return chosen
