"""The public functions. Each imports what it needs when it is called, so `import xnor_rrm` stays light."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import XnorError
from .frames import Frame
from .model import Model

if TYPE_CHECKING:
    from torch.nn import Module


def convert(source: str | PathLike[str] | Module, **options: Any) -> Model:
    """Bring over a trained network.

    source : path of a checkpoint, whose kind is recognised by its contents, or a torch.nn.Module.
    options : what the source cannot say, e.g. `transposed=True`, and what to accept, `accept_unused=True`;
        see `xnor-rrm convert --help`. For a module `input=(3, 32, 32)`, the input's shape, or an `InputRule`.
    Raises ConvertError, naming what is unknown and what is supported.
    """
    from .importers import convert as convert_any

    return convert_any(Path(source) if isinstance(source, str | PathLike) else source, **options)


def load(path: str | Path) -> Model:
    """Read a model file (docs/format.md). Raises ModelFileError; nothing in the file is trusted."""
    from .modelfile import load as load_file

    return load_file(Path(path))


#: The networks that the package carries (docs/model_cards.md), the default one first.
EMBEDDED = ("person", "pose", "vgg_small")


def embedded_model(name: str = EMBEDDED[0]) -> Model:
    """A network that the package carries: docs/model_cards.md.

    "person" finds persons in a camera's pictures, "pose" the 17 key points of one person, "vgg_small" tells
    CIFAR-10's classes apart.
    """
    if name not in EMBEDDED:
        raise XnorError(f"one of {', '.join(EMBEDDED)}", repr(name))
    with resources.as_file(resources.files("xnor_rrm") / "data" / f"{name}.xnor") as path:
        return load(path)


def read_video(source: str | Path | int, *, planes: bool = False) -> Iterator[Frame]:
    """uint8[H, W, 3] RGB frames of a video file, a folder of images in name order, or a camera by its number.

    planes : give them as `Yuv420` where the video has them so, which is faster to decode and to run; for
        networks with `model.input_rule.takes_planes`, as the embedded "person" and "pose".
    """
    from .video import read_video as read

    return read(source, planes=planes)
