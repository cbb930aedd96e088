"""The file to convert, opened once, and its tensors, each taken once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ...errors import ConvertError
from ...model import Affine, Array
from . import torch_file


class Checkpoint:
    """What to convert, a file by its path or a module in memory, and what is noted on the way.

    path : of the file; of a module, the name of its class.  head : the file's first 16 bytes.  module : in
        memory; None for a file.
    accept_unused, accept_rounded : note tensors that nothing reads, and weights that are not quite -1 or +1,
        where they would be errors.
    sizes : bytes of each tensor brought over.  notes : what was accepted, for people.
    Raises ConvertError where the file cannot be read.
    """

    def __init__(self, network: object, *, accept_unused: bool = False, accept_rounded: bool = False) -> None:
        self.accept_unused, self.accept_rounded = accept_unused, accept_rounded
        self.sizes: dict[str, int] = {}
        self.notes: dict[str, str] = {}
        self.path, self.head, self.module = Path(type(network).__name__), b"", cast(Any, network)
        if isinstance(network, Path):
            self.path, self.head, self.module = network, _head(network), None

    @property
    def name(self) -> str:
        """The file's name up to its first dot."""
        return self.path.name.partition(".")[0] or self.path.name

    @cached_property
    def state_dict(self) -> dict[str, Array] | None:
        """The tensors of a PyTorch file, `module.` stripped from their names; None for any other file."""
        return torch_file.read(self.path) if torch_file.recognise(self.path, self.head) else None

    def has(self, wanted: Callable[[str], object]) -> bool:
        """Whether this is a PyTorch file with a tensor of such a name."""
        return any(wanted(name) for name in self.state_dict or ())


def _head(path: Path) -> bytes:
    """The first bytes of a file."""
    if not path.is_file():
        found = "is no file" if path.exists() else "is not there"
        raise ConvertError("a checkpoint file", f"{path}, which {found}")
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise ConvertError("a readable checkpoint", f"{path}: {error.strerror}") from error


class Tensors:
    """Named arrays of a checkpoint, each taken once. What does not fit is a ConvertError that names it."""

    def __init__(self, arrays: Mapping[str, Array], source: Checkpoint) -> None:
        self._arrays, self._source = dict(arrays), source

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def take_raw(self, name: str) -> Array:
        """The array as it is stored."""
        if name not in self._arrays:
            raise ConvertError(f"a tensor {name!r} in the checkpoint", "none of that name")
        array = self._arrays.pop(name)
        self._source.sizes[name] = array.nbytes
        return array

    def take(self, name: str, *shape: int | None) -> Array:
        """float32 of this shape (None: any size but 0), every value finite."""
        array = self.take_raw(name)
        fits = len(array.shape) == len(shape)
        fits = fits and all(wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True))
        if array.dtype != np.float32 or not fits or not array.size:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ConvertError(f"float32[{wanted}] as {name!r}", f"{array.dtype.name}{list(array.shape)}")
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise ConvertError(
                f"finite values in {name!r}",
                f"{bad} NaN or infinite of {array.size}",
                "The checkpoint is damaged or its training diverged.",
            )
        return array

    def require_signs(self, name: str, remedy: str = "Take their signs: accept_rounded.") -> None:
        """Raises ConvertError for weights other than -1 and +1 where just these are stored, or notes them."""
        weights = self._arrays.get(name, np.ones(1))
        deviation = np.abs(np.abs(weights) - 1)
        if rounded := int(np.count_nonzero(deviation)):
            found = f"{rounded / weights.size:.2%} others in {name!r}, off by at most {deviation.max():.3g}"
            zeros = int((weights == 0).sum())
            if zeros or not self._source.accept_rounded:
                remedy = f"{zeros} are 0, of no sign." if zeros else remedy
                raise ConvertError("weights of exactly -1 and +1", found, remedy)
            notes = self._source.notes
            notes["rounded"] = "; ".join([*filter(None, [notes.get("rounded")]), found])

    def take_affine(
        self, name: str, source: str, *, gamma: str | None, beta: str | None, mean: str, var: str, eps: float
    ) -> Affine:
        """The layer `name` of a batch-norm whose tensors have these names; no gamma is 1, no beta is 0."""
        variance = self.take(var, None)
        channels = len(variance)
        return batch_norm(
            name,
            source,
            repr(var),
            gamma=self.take(gamma, channels) if gamma else None,
            beta=self.take(beta, channels) if beta else None,
            mean=self.take(mean, channels),
            var=variance,
            eps=eps,
        )

    def take_torch_batch_norm(self, name: str, source: str, *, eps: float) -> Affine:
        """The layer of a torch.nn.BatchNorm1d or 2d of that name; gamma and beta where it has either."""
        self._arrays.pop(f"{name}.num_batches_tracked", None)
        affine = f"{name}.weight" in self or f"{name}.bias" in self
        return self.take_affine(
            name,
            source,
            gamma=f"{name}.weight" if affine else None,
            beta=f"{name}.bias" if affine else None,
            mean=f"{name}.running_mean",
            var=f"{name}.running_var",
            eps=eps,
        )

    def finish(self) -> None:
        """Raises ConvertError where tensors are left: they belong to something the importer does not know."""
        if self._arrays:
            names = sorted(self._arrays)
            found = f"{len(names)} more: {summary(names)}"
            if not self._source.accept_unused:
                raise ConvertError("only tensors this importer knows", found)
            self._source.notes["unused"] = found


def batch_norm(
    name: str,
    source: str,
    where: str,
    *,
    gamma: Array | None,
    beta: Array | None,
    mean: Array,
    var: Array,
    eps: float,
) -> Affine:
    """The layer `name` of a batch-norm, folded; no gamma is 1, no beta is 0.

    Raises ConvertError, saying `where`, for variances less than 0.
    """
    if not (var + np.float64(eps) > 0).all():
        raise ConvertError(f"variances of at least 0 in {where}", f"{var.min()}")
    gamma = np.ones_like(mean) if gamma is None else gamma
    beta = np.zeros_like(mean) if beta is None else beta
    return Affine.from_batch_norm(name, source, gamma=gamma, beta=beta, mean=mean, var=var, eps=eps)


def scaled_signs(latent: Array, where: str) -> tuple[npt.NDArray[np.bool_], Array]:
    """bool[Cout, kH, kW, Cin] and float32[Cout] of latent weights of that shape: signs, and alpha = mean |w|.

    Raises ConvertError, saying `where`, for a weight of exactly 0: the originals give it no sign. Filters of
    zeros alone have alpha 0 and need none.
    """
    alpha = np.abs(latent).mean((1, 2, 3), dtype=np.float64).astype(np.float32)
    refuse_zero_weights(latent[alpha > 0], where)
    return latent > 0, alpha


def refuse_zero_weights(latent: Array, where: str) -> None:
    """Raises ConvertError, saying `where`, if a weight is exactly 0: the originals give it no sign."""
    zeros = int((latent == 0).sum())
    if zeros:
        raise ConvertError(f"weights above or below 0 in {where}", f"{zeros} zeros, of sign 0")


def summary(names: list[str], most: int = 8) -> str:
    """The first few names, and how many follow."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
