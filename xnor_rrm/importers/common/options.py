"""Options of importers: what a source cannot say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConvertError

#: By kind of option: what is expected of it.
EXPECTED = {bool: "True or False", int: "an integer of at least 1", Path: "a path"}


@dataclass(frozen=True)
class Option:
    """Given to `convert` by name, or on the command line as --name.

    help : a sentence.  kind : bool, int (at least 1), Path (from Python, text as well), str (from Python,
    whatever the importer understands) or object (as str, but not on the command line).
    """

    name: str
    help: str
    kind: type

    def checked(self, value: Any) -> Any:
        """The value, None for none. Raises ConvertError where it is of another kind."""
        if value is None or self.kind in (str, object):
            return value
        if self.kind is Path and isinstance(value, str):
            return Path(value)
        right = isinstance(value, Path) if self.kind is Path else type(value) is self.kind
        if not right or (self.kind is int and value < 1):
            raise ConvertError(f"{self.name} as {EXPECTED[self.kind]}", repr(value))
        return value
