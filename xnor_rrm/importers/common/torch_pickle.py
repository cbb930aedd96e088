"""The pickles in PyTorch's files, taken as data.

A pickle is a program for a small stack machine, and may name any function and call it. Of that language this
runs what checkpoints of tensors are written in: numbers, texts and containers. Names are never looked up. A
call of what rebuilds a tensor becomes a `Tensor`, that of an ordered dictionary a dict; other calls are noted
as `Opaque` where they are PyTorch's own, and refused where not.
"""

from __future__ import annotations

import io
import pickletools
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from ...errors import ConvertError

MAX_OPERATORS = 1 << 20
MAX_DIMENSIONS = 8
#: Dictionaries of longer numbers, all of one hash, would take quadratic time.
MAX_INTEGER = (1 << 63) - 1

ORDERED = "collections.OrderedDict"
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETER = "torch._utils._rebuild_parameter"
#: Types, shapes, devices, tensors that are not plain, and what schedulers count with: may be there, unread.
KNOWN = re.compile(
    r"torch\.(\w+|_utils\.\w+|storage\.\w+|serialization\._get_layout|nn\.parameter\.Parameter)"
    r"|collections\.(OrderedDict|Counter)|(builtins|__builtin__)\.(set|bytearray|complex)|_codecs\.encode"
)


@dataclass(frozen=True)
class Name:
    """A class or function, by its module and name."""

    text: str


@dataclass(frozen=True)
class Opaque:
    """What a call of that name would have made."""

    name: str


@dataclass(frozen=True)
class Storage:
    """kind : such as FloatStorage.  key : its name in the file."""

    kind: str
    key: str


@dataclass(frozen=True)
class Tensor:
    """Values of a storage, at an offset, of this shape and these strides, as the file claims."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def load(stream: io.BytesIO, kinds: dict[str, str] | None = None) -> Any:
    """What the pickle at the stream's position makes; the stream is left behind it.

    kinds : is told the kind of each storage, by its key.
    Raises ConvertError for names that are not known, and ValueError, TypeError or LookupError for damage.
    """
    machine = _Machine({} if kinds is None else kinds)
    for count, (operator, argument, _) in enumerate(pickletools.genops(stream)):
        if count == MAX_OPERATORS:
            raise ConvertError(f"a pickle of at most {MAX_OPERATORS} operators", "a longer one")
        if operator.name == "STOP":
            break
        machine.run(operator.name, argument)
    return machine.stack.pop()


class _Machine:
    def __init__(self, kinds: dict[str, str]) -> None:
        self.stack: list[Any] = []
        self._kinds = kinds
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, operator: str, argument: Any) -> None:
        """One operator, by its name in pickletools."""
        push = self.stack.append
        match operator:
            case "PROTO":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operator])
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                push(argument)
            case "LONG1" if abs(argument) <= MAX_INTEGER:
                push(argument)
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                push({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[operator])
            case "MARK":
                self._marks.append(len(self.stack))
            case "TUPLE":
                push(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._pop(int(operator[-1]))))
            case "APPEND" | "APPENDS":
                items = self._above_mark() if operator == "APPENDS" else self._pop(1)
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._above_mark() if operator == "SETITEMS" else self._pop(2)
                self._top(dict).update(_dictionary(zip(items[::2], items[1::2], strict=True)))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL":
                push(_name(argument))
            case "REDUCE":
                function, arguments = self._pop(2)
                push(_call(function, arguments))
            case "BUILD":  # a dictionary's attributes
                self._pop(1)
                self._top(dict, Opaque)
            case "BINPERSID":
                storage = _storage(*self._pop(1))
                self._kinds[storage.key] = storage.kind
                push(storage)
            case _:
                raise ValueError(f"the operator {operator}")

    def _above_mark(self) -> list[Any]:
        return self._pop(len(self.stack) - self._marks.pop())

    def _pop(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < 0 or count < 0:
            raise ValueError("a stack that is too short")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self, *kinds: type) -> Any:
        if type(self.stack[-1]) not in kinds:
            raise TypeError(type(self.stack[-1]).__name__)
        return self.stack[-1]


def _name(argument: str) -> Name:
    name = argument.replace(" ", ".", 1)
    if not KNOWN.fullmatch(name):
        _refuse(name)
    return Name(name)


def _refuse(name: str) -> NoReturn:
    raise ConvertError(
        "a PyTorch checkpoint of tensors only",
        f"one which holds {name}",
        "Nothing else is unpickled: save with torch.save(model.state_dict(), path).",
    )


def _call(function: Any, arguments: Any) -> Any:
    name = _of(Name, function).text
    _of(tuple, arguments)
    if name == ORDERED:
        return _dictionary(*arguments) if arguments else {}
    if name in TENSORS:
        storage, offset, shape, stride = arguments[:4]
        return Tensor(_of(Storage, storage), _of(int, offset), _sizes(shape), _sizes(stride))
    return arguments[0] if name == PARAMETER else Opaque(name)


def _sizes(value: Any) -> tuple[int, ...]:
    if len(_of(tuple, value)) > MAX_DIMENSIONS:
        raise ValueError(f"{len(value)} dimensions")
    return tuple(_of(int, size) for size in value)


def _storage(identity: Any) -> Storage:
    tag, kind, key, _device, _count, *view = _of(tuple, identity)
    if tag != "storage" or any(each is not None for each in view):
        raise ValueError(f"{tag}, or a part of a storage")
    return Storage(_of(Name, kind).text.rpartition(".")[2], _of(str, key))


def _dictionary(items: Any) -> dict[str | int, Any]:
    result = {}
    for key, value in items:
        result[_of((str, int), key)] = value
    return result


def _of(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(type(value).__name__)
    return value
