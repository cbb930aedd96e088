"""From trained checkpoints to models. One module a kind of checkpoint, one line here each.

An importer module has

    TITLE                           what it reads, in words
    OPTIONS                         its options by name, each with a line of help
    recognise(source) -> bool       by the file's contents, never by its name
    read(source, **options) -> Model
    original(source, **options) -> Original

`read` brings a network over whole or raises ConvertError: every tensor is used, every operator is known.
`original` rebuilds the network as the training code has it, in torch's own operations (original.py), and
shares no code with `read` beyond opening the file: verify.py compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConvertError
from ..model import Model
from . import bmxnet, larq, lce, packed_pytorch, xnor_net_pytorch
from .checkpoint import Checkpoint, summary
from .original import Original


class Importer(Protocol):
    """The shape of an importer module."""

    @property
    def TITLE(self) -> str: ...  # noqa: N802  # stands for a module's constant

    @property
    def OPTIONS(self) -> Mapping[str, str]: ...  # noqa: N802  # stands for a module's constant

    @property
    def recognise(self) -> Callable[[Checkpoint], bool]: ...

    @property
    def read(self) -> Callable[..., Model]: ...

    @property
    def original(self) -> Callable[..., Original]: ...


IMPORTERS: tuple[Importer, ...] = (
    bmxnet,
    xnor_net_pytorch,
    packed_pytorch,
    lce,
    larq,
)


def convert(path: Path, **options: Any) -> Model:
    """Bring over the checkpoint at `path` with the importer that recognises it; see `xnor_rrm.convert`.

    Raises ConvertError for an unknown kind of file, naming those that are known, and for an unknown option.
    """
    source = Checkpoint(path)
    importer = next((each for each in IMPORTERS if each.recognise(source)), None)
    if importer is None:
        names = list(source.state_dict or ())
        found = f"tensors {summary(names)}" if names else f"first bytes {source.head[:8].hex(' ')!r}"
        raise ConvertError(
            "one of: " + "; ".join(each.TITLE for each in IMPORTERS), f"{path.name} with {found}"
        )
    unknown = sorted(options.keys() - importer.OPTIONS.keys())
    if unknown:
        known = ", ".join(importer.OPTIONS) or "none"
        raise ConvertError(f"options of {importer.TITLE}: {known}", ", ".join(unknown))
    return importer.read(source, **options)
