"""From trained checkpoints to models. One module a kind of checkpoint, one line here each.

An importer module has

    TITLE                           what it reads, in words
    OPTIONS                         its options by name, each with a line of help
    recognise(source) -> bool       by the file's contents, never by its name
    read(source, **options) -> Model
    original(source, **options) -> Original

(one of a module in memory, torch_module.py, gets that as its source). `read` brings a network over whole or raises ConvertError: every tensor is used, every operator is known.
`original` rebuilds the network as the training code has it, in torch's own operations (original.py), and
shares no code with `read` beyond opening the file: verify.py compares the two.
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
    def recognise(self) -> Callable[[Checkpoint], bool]: ...

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
    importer: Importer | None = torch_module
    source: Any = network
    if isinstance(network, Path):
        source = Checkpoint(network)
        importer = next((each for each in IMPORTERS if each.recognise(source)), None)
        if importer is None:
            names = list(source.state_dict or ())
            found = f"tensors {summary(names)}" if names else f"first bytes {source.head[:8].hex(' ')!r}"
            known = "; ".join(each.TITLE for each in IMPORTERS)
            raise ConvertError(f"one of: {known}", f"{network.name} with {found}")
    elif not torch_module.recognise(network):
        raise ConvertError(f"a path or a {torch_module.TITLE}", type(network).__name__)
    unknown = sorted(options.keys() - importer.OPTIONS.keys())
    if unknown:
        known = ", ".join(importer.OPTIONS) or "none"
        raise ConvertError(f"options of {importer.TITLE}: {known}", ", ".join(unknown))
    return Conversion(importer.read(source, **options), partial(importer.original, source, **options))


def convert(network: object, **options: Any) -> Model:
    """The model alone of `bring_over`."""
    return bring_over(network, **options).model
