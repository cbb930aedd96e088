"""From trained checkpoints to models. One module a kind of checkpoint, one line here each.

An importer module has

    TITLE                           what it reads, in words
    OPTIONS                         its options by name, each with a line of help
    recognise(source) -> bool       by the file's contents, never by its name
    read(source, **options) -> Model
    original(source, **options) -> Original

`read` brings a network over whole or raises ConvertError: every tensor is used, every operator is known.
`original` rebuilds the network as the training code has it, in torch's own operations (original.py), and
shares no code with `read` beyond opening the file: verify.py compares the two. The source is a Checkpoint;
only that of torch_module is a module in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConvertError
from ..model import Model
from . import bmxnet, onnx_graph, packed_pytorch, torch_module, xnor_net_pytorch
from .checkpoint import Checkpoint, summary
from .original import Original


class Importer(Protocol):
    """The shape of an importer module."""

    @property
    def TITLE(self) -> str: ...  # noqa: N802  # stands for a module's constant

    @property
    def OPTIONS(self) -> Mapping[str, str]: ...  # noqa: N802  # stands for a module's constant

    @property
    def recognise(self) -> Callable[[Any], bool]: ...

    @property
    def read(self) -> Callable[..., Model]: ...

    @property
    def original(self) -> Callable[..., Original]: ...


IMPORTERS: tuple[Importer, ...] = (
    bmxnet,
    xnor_net_pytorch,
    packed_pytorch,
    onnx_graph,
)


@dataclass(frozen=True, eq=False)
class Conversion:
    """A network brought over.

    model : what it became.  original : makes the network as it was, to compare with; needs torch.
    """

    model: Model
    original: Callable[[], Original]


def bring_over(network: object, **options: Any) -> Conversion:
    """Bring over the checkpoint at a path, with the importer that recognises it, or a torch.nn.Module.

    Raises ConvertError for an unknown kind of file, naming those that are known, and for an unknown option.
    """
    source = Checkpoint(network) if isinstance(network, Path) else network
    importer = _importer(source) if isinstance(source, Checkpoint) else torch_module
    if importer is torch_module and not torch_module.recognise(source):
        raise ConvertError(f"a path or a {torch_module.TITLE}", type(source).__name__)
    unknown = sorted(options.keys() - importer.OPTIONS.keys())
    if unknown:
        known = ", ".join(importer.OPTIONS) or "none"
        raise ConvertError(f"options of {importer.TITLE}: {known}", ", ".join(unknown))
    return Conversion(importer.read(source, **options), partial(importer.original, source, **options))


def _importer(source: Checkpoint) -> Importer:
    importer = next((each for each in IMPORTERS if each.recognise(source)), None)
    if importer is None:
        names = list(source.state_dict or ())
        found = f"tensors {summary(names)}" if names else f"first bytes {source.head[:8].hex(' ')!r}"
        raise ConvertError(
            "one of: " + "; ".join(each.TITLE for each in IMPORTERS), f"{source.path.name} with {found}"
        )
    return importer


def convert(network: object, **options: Any) -> Model:
    """The model alone of `bring_over`."""
    return bring_over(network, **options).model
