"""The original of a graph: run operator by operator in its own framework, which knows of no Sign layers.

So it is followed what each value is the sign of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...model import Array, Model, Sign
from .original import Original

#: Arrays or tensors by name.
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One operator.

    name : of the value it makes.  inputs : of those it reads.  run : makes it from them.
    signed : what it takes the sign of, if it does.  moves : it only compares or moves values, and so does the
    same to what signs are of.  padding : (top, left) of what it puts around an image, if it does.
    """

    name: str
    inputs: tuple[str, ...]
    run: Callable[[Values], Any]
    signed: Callable[[Values], Any] | None = None
    moves: bool = False
    padding: Callable[[Values], tuple[int, int]] | None = None


def graph_original(
    model: Model,
    steps: Iterable[Step],
    constants: Values,
    source: str,
    output: str,
    load: Callable[[Array], Any] = np.asarray,
) -> Original:
    """source, output : names of the network's input and its logits.  load : an array [1, C, H, W] as a value.

    model : what was made of the graph; its Sign layers have the names of the values they make.
    """
    signs = [layer.name for layer in model.layers if isinstance(layer, Sign)]
    steps = list(steps)

    def run(x: Array) -> tuple[Array, dict[str, Array]]:
        values: dict[str, Any] = {**constants, source: load(np.array(x.transpose(2, 0, 1)[None], order="C"))}
        computed, before, inside = {source}, dict[str, Any](), dict[str, Any]()
        for step in steps:
            made = values[step.name] = step.run(values)
            sources = [name for name in step.inputs if name in computed]
            if not sources:
                continue
            computed.add(step.name)
            shape = _shape(values[sources[0]])
            if step.padding:
                (top, left), (height, width) = step.padding(values), shape[2:]
                inside[step.name] = np.s_[..., top : top + height, left : left + width]
            elif sources[0] in inside and _shape(made) == shape:
                inside[step.name] = inside[sources[0]]
            known = {name: before[name] for name in sources if name in before}
            if step.signed:
                before[step.name] = step.signed(values)
            elif step.moves and known.keys() == set(sources):
                before[step.name] = step.run(values | known)
            elif len(known) == len(sources) == 1 and _size(known[sources[0]]) == _size(made):
                before[step.name] = known[sources[0]]
        kept = {}
        for name in signs:
            height, width, channels = model.shapes[name]
            image = np.asarray(_first(before[name])[inside.get(name, ())])
            kept[name] = image.reshape(channels, height, width).transpose(1, 2, 0)
        return np.asarray(values[output]).reshape(-1), kept

    return run


def _first(value: Any) -> Any:
    """Of the results of an operator that has several."""
    return value[0] if isinstance(value, tuple) else value


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(_first(value), "shape", ()))


def _size(value: Any) -> int:
    return math.prod(_shape(value))
