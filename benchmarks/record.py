"""Record what a network really feeds its binary layers: their packed inputs over a clip, for replay.py.

    python -m benchmarks.record MODEL VIDEO [VIDEO ...] [--frames N] [--out FOLDER]

MODEL is an embedded network's name, "resnet18" or "quicknet" (converted from the data folder), "alexnet"
(random weights), a model file, or a checkpoint that can be converted. VIDEO is a path, or the name of a clip
in the data folder. Recordings are large (ResNet-18: 6 to 15 MB for 60 frames) and made of other people's
clips: they go to a cache folder outside the repository.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from xnor_rrm.kernels.layer import BinaryLayer

import xnor_rrm
from xnor_rrm.api import EMBEDDED, embedded_model
from xnor_rrm.model import BinaryConv2d, Model
from xnor_rrm.video import VideoReader

from . import output
from .alexnet import random_alexnet

#: Networks of the data folder, by the name that stands for them here.
NETWORKS = {
    "resnet18": "models/bmxnet_resnet18_imagenet/binarized_32_resnet-18-binary-0001.params",
    "quicknet": "models/quicknet_imagenet/quicknet.tflite",
}


def data_folder() -> Path:
    """Real networks and clips: $XNOR_RRM_DATA, else ../shared/data beside the repository."""
    return Path(os.environ.get("XNOR_RRM_DATA", output.ROOT.parent / "shared" / "data"))


def recordings_folder() -> Path:
    """Where recordings go: $XNOR_RRM_RECORDINGS, else the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("XNOR_RRM_RECORDINGS", cache / "xnor_rrm" / "recordings"))


def open_model(name: str) -> Model:
    """What MODEL stands for; see the module's text. Raises XnorError, or OSError where there is no file."""
    if name in EMBEDDED:
        return embedded_model(name)
    if name == "alexnet":
        readers = (VideoReader(clip_path(clip)) for clip in clips())
        return random_alexnet(next(iter(reader)) for reader in readers)
    path = data_folder() / NETWORKS[name] if name in NETWORKS else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no network at {path}; set XNOR_RRM_DATA to the data folder")
    return xnor_rrm.load(path) if path.suffix == ".xnor" else xnor_rrm.convert(path)


def clip_path(name: str) -> Path:
    """A path as it is, or a clip of the data folder."""
    return Path(name) if Path(name).exists() else data_folder() / "video" / name


def clips() -> list[str]:
    """Names of all clips in the data folder: files and folders of images."""
    folder = data_folder() / "video"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry.name for entry in entries if entry.is_file() or entry.name != "labels"]


def short_name(name: str) -> str:
    """Part of a result's file name: a model's name, or a clip's without its folder and suffix."""
    return name if name in (*EMBEDDED, *NETWORKS, "alexnet") else Path(name).stem


@dataclass(frozen=True)
class RecordedLayer:
    """One binary layer. geometry : keyword arguments of `BinaryLayer`.  macs : of a dense frame.

    weight : uint64[Cout, kH, kW, Cw].  differences : uint64[T, H, W, Cw], the first frame, then what flipped.
    signs_only : whether nothing but a sign reads it, so that its sums may stay in bit planes.
    """

    name: str
    geometry: dict[str, Any]
    macs: int
    weight: Any
    differences: Any
    signs_only: bool = False

    @property
    def bits(self) -> int:
        """Bits of an input frame."""
        height, width, channels = self.geometry["shape"]
        return int(height * width * channels)

    @cached_property
    def frames(self) -> Any:
        """uint64[T, H, W, Cw]."""
        return np.bitwise_xor.accumulate(self.differences, axis=0)

    @cached_property
    def flips(self) -> Any:
        """int64[T]: bits flipped in each frame; 0 for the first."""
        counts = np.bitwise_count(self.differences).sum(axis=(1, 2, 3), dtype=np.int64)
        counts[0] = 0
        return counts

    def layer(self) -> BinaryLayer:
        """A layer with its own state."""
        return BinaryLayer(self.weight, **self.geometry)


def record(model: Model, frames: Iterator[Any], out: Path) -> Path:
    """Run a cached stream over the frames, and write every binary layer's inputs to the npz file `out`."""
    stream, plan = model.stream(mode="cached"), model.plan
    binary = {layer.name: layer for layer in model.layers if isinstance(layer, BinaryConv2d)}
    steps = {info.name: step for info, step in zip(plan.info, plan.steps, strict=True) if info.name in binary}
    words: dict[str, list[Any]] = {name: [] for name in binary}
    for frame in frames:
        stream.values(frame)
        for name, s in steps.items():
            size = int(s["h"] * s["w"] * s["words"])
            words[name].append(stream._state.u64[s["x"] : s["x"] + size].copy())

    arrays: dict[str, Any] = {}
    layers = []
    for index, (name, layer) in enumerate(binary.items()):
        shape = model.shapes[layer.inputs[0]]
        seen = np.array(words[name]).reshape(-1, *shape[:2], -(-shape[2] // 64))
        seen[1:] ^= seen[:-1].copy()
        arrays[f"differences{index}"], arrays[f"weight{index}"] = seen, layer.weight
        window = layer.window
        geometry = {
            "shape": shape,
            "stride": window.stride,
            "padding": window.padding,
            "dilation": window.dilation,
            "pad_value": layer.pad_value,
        }
        signs_only = bool(steps[name]["planes"])
        layers.append(
            {"name": name, "geometry": geometry, "macs": model.macs(layer), "signs_only": signs_only}
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, layers=np.array(json.dumps(layers)), **arrays)
    return out


def read(path: Path) -> list[RecordedLayer]:
    """The binary layers of a recording, in the network's order."""
    with np.load(path) as stored:
        return [
            RecordedLayer(
                name=layer["name"],
                geometry={k: tuple(v) if isinstance(v, list) else v for k, v in layer["geometry"].items()},
                macs=layer["macs"],
                weight=stored[f"weight{index}"],
                differences=stored[f"differences{index}"],
                signs_only=layer["signs_only"],
            )
            for index, layer in enumerate(json.loads(str(stored["layers"])))
        ]


def record_clip(model_name: str, model: Model, clip: str, frames: int, folder: Path) -> Path:
    """Record the clip's first frames under the name replay.py looks for; an existing recording is kept."""
    out = folder / f"{short_name(model_name)}_{short_name(clip)}_{frames}.npz"
    if not out.exists():
        reader = VideoReader(clip_path(clip), planes=model.input_rule.takes_planes)
        partial = out.with_suffix(".part.npz")
        record(model, islice(reader, frames), partial).rename(out)
    return out


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    parser = output.parser(__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="every clip of the data folder if none")
    parser.add_argument("--frames", type=int, default=60, help="of each clip (default %(default)s)")
    parser.add_argument("--out", type=Path, default=recordings_folder(), help="folder (%(default)s)")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    model, written = open_model(options.model), []
    for clip in options.videos or clips():
        written.append(record_clip(options.model, model, clip, options.frames, options.out))
        print(f"{written[-1]}  {written[-1].stat().st_size / 1e6:.1f} MB", flush=True)
    return written


if __name__ == "__main__":
    main()
