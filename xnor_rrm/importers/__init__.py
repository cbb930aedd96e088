"""From trained checkpoints to models. Each module here is an importer, of one kind of source.

An importer module has

    TITLE                           what it reads, in words
    OPTIONS                         what the source cannot say (common/options.py)
    recognise(source) -> bool       by the file's contents, never by its name, and as no other importer does
    read(source, **options) -> Model
    original(source, **options) -> Original

`read` brings a network over whole or raises ConvertError: every tensor is used, every operator is known.
`original` rebuilds the network as the training code has it (common/original.py), and shares no code with
`read` beyond opening the file: verify.py compares the two. The source is a Checkpoint.

What importers are made of is in `common`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from ..errors import ConvertError
from ..model import Model
from .common.checkpoint import Checkpoint, summary
from .common.datasets import read_labels
from .common.options import Option
from .common.original import Original
from .common.torch_file import INSTALL


class Importer(Protocol):
    """The shape of an importer module."""

    @property
    def TITLE(self) -> str: ...  # noqa: N802  # stands for a module's constant

    @property
    def OPTIONS(self) -> tuple[Option, ...]: ...  # noqa: N802  # stands for a module's constant

    @property
    def recognise(self) -> Callable[[Checkpoint], bool]: ...

    @property
    def read(self) -> Callable[..., Model]: ...

    @property
    def original(self) -> Callable[..., Original]: ...


#: Every module of this package that is no package itself.
IMPORTERS: tuple[Importer, ...] = tuple(
    cast(Importer, import_module(f"{__name__}.{module.name}"))
    for module in iter_modules(__path__)
    if not module.ispkg
)

#: The options of all importers by name; importers that share one mean the same by it.
OPTIONS: dict[str, Option] = {option.name: option for each in IMPORTERS for option in each.OPTIONS}


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
    """Bring over the checkpoint at a path, or a torch.nn.Module, with the importer that recognises it.

    accept_unused, accept_rounded : note in the model's info what else is an error: tensors that nothing
        reads, weights that are not quite -1 or +1.
    Classes that the importer cannot name have the names of a synset.txt beside the file, if it has as many.
    Raises ConvertError for an unknown kind of source, naming those that are known, and for an unknown option.
    """
    source = Checkpoint(network, accept_unused=accept_unused, accept_rounded=accept_rounded)
    importer = importer_of(source)
    known = {option.name: option for option in importer.OPTIONS}
    if unknown := sorted(options.keys() - known.keys()):
        expected = f"options of {importer.TITLE}: {', '.join(known) or 'none'}"
        raise ConvertError(expected, ", ".join(unknown))
    options = {name: known[name].checked(value) for name, value in options.items()}
    model = importer.read(source, **options)
    labels = model.labels
    if not labels and source.module is None:
        labels = read_labels(source.path.with_name("synset.txt"))
    model = replace(
        model,
        labels=labels if len(labels) == model.classes else (),
        info={"source": source.path.name, "format": importer.TITLE} | model.info | source.notes,
    )
    return Conversion(model, source.sizes, partial(_original, importer, source, options))


def _original(importer: Importer, source: Checkpoint, options: Mapping[str, Any]) -> Original:
    try:
        return importer.original(source, **options)
    except ModuleNotFoundError as error:
        missing = f"no package {error.name}"
        raise ConvertError("PyTorch, to run the original", missing, f"{INSTALL}.") from error


def importer_of(source: Checkpoint) -> Importer:
    """Raises ConvertError where there is none."""
    importer = next((each for each in IMPORTERS if each.recognise(source)), None)
    if importer is None:
        names = list(source.state_dict or ())
        found = f"tensors {summary(names)}" if names else f"first bytes {source.head[:8].hex(' ')!r}"
        got = f"{source.path.name} with {found}" if source.module is None else source.path.name
        raise ConvertError("one of: " + "; ".join(each.TITLE for each in IMPORTERS), got)
    return importer


def convert(network: object, **options: Any) -> Model:
    """The model alone of `bring_over`."""
    return bring_over(network, **options).model
