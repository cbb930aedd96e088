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
only that of traced_module is a module in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConvertError
from ..model import Model
from . import (
    binarynet,
    bireal,
    bmxnet,
    larq,
    lce,
    onnx_graph,
    packed_pytorch,
    reactnet,
    traced_module,
    xnor_net_pytorch,
)
from .checkpoint import Checkpoint, summary
from .original import Original
from .torch_file import INSTALL


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
    bireal,
    reactnet,
    binarynet,
    lce,
    larq,
    onnx_graph,
)


@dataclass(frozen=True, eq=False)
class Conversion:
    """A network brought over.

    model : what it became; its info tells what was accepted.  sizes : bytes of each tensor of the checkpoint
    that went into it.  original : makes the network as it was, to compare with; needs torch.
    """

    model: Model
    sizes: Mapping[str, int]
    original: Callable[[], Original]


def bring_over(
    network: object, *, accept_unused: bool = False, accept_rounded: bool = False, **options: Any
) -> Conversion:
    """Bring over the checkpoint at a path, with the importer that recognises it, or a torch.nn.Module.

    accept_unused, accept_rounded : note in the model's info what else is an error: tensors that nothing
        reads, weights that are not quite -1 or +1.
    Raises ConvertError for an unknown kind of file, naming those that are known, and for an unknown option.
    """
    source: Any = network
    if isinstance(network, Path):
        source = Checkpoint(network, accept_unused=accept_unused, accept_rounded=accept_rounded)
    importer = _importer(source) if isinstance(network, Path) else traced_module
    if importer is traced_module and not traced_module.recognise(source):
        raise ConvertError(f"a path or a {traced_module.TITLE}", type(source).__name__)
    unknown = sorted(options.keys() - importer.OPTIONS.keys())
    if unknown:
        known = ", ".join(importer.OPTIONS) or "none"
        raise ConvertError(f"options of {importer.TITLE}: {known}", ", ".join(unknown))
    model = importer.read(source, **options)
    notes, sizes = (source.notes, source.sizes) if isinstance(source, Checkpoint) else ({}, {})
    model = replace(model, info=model.info | notes)
    return Conversion(model, sizes, partial(_original, importer, source, options))


def _original(importer: Importer, source: Any, options: Mapping[str, Any]) -> Original:
    try:
        return importer.original(source, **options)
    except ModuleNotFoundError as error:
        missing = f"no package {error.name}"
        raise ConvertError("PyTorch, to run the original", missing, f"{INSTALL}.") from error


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
