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
from dataclasses import dataclass, replace
from functools import partial
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
    path: Path, *, accept_unused: bool = False, accept_rounded: bool = False, **options: Any
) -> Conversion:
    """Bring over the checkpoint at `path` with the importer that recognises it; see `xnor_rrm.convert`.

    accept_unused, accept_rounded : note in the model's info what else is an error: tensors that nothing
        reads, weights that are not quite -1 or +1.
    Raises ConvertError for an unknown kind of file, naming those that are known, and for an unknown option.
    """
    source = Checkpoint(path, accept_unused=accept_unused, accept_rounded=accept_rounded)
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
    model = importer.read(source, **options)
    model = replace(model, info=model.info | source.notes)
    return Conversion(model, source.sizes, partial(importer.original, source, **options))


def convert(path: Path, **options: Any) -> Model:
    """The model alone of `bring_over`."""
    return bring_over(path, **options).model
