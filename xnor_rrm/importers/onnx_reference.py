"""The original of an ONNX graph: every operator as onnx's own reference evaluator computes it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from ..model import Array
from . import onnx_file
from .original import Original

#: Operators that compare or move values: those after a sign do the same to what the sign is of.
MOVING = ("Concat", "MaxPool", "Resize", "Upsample")

#: Where values get another shape, and so stop being the image that they were.
MIXING = ("Gemm", "MatMul")


def original(path: Path, names: Collection[str]) -> Original:
    """names : of Sign layers, which are those of the values that they make. Raises ConvertError."""
    from onnx import helper, reference
    from onnx.reference.op_run import OpRun

    class BipolarQuant(OpRun):
        op_domain = "qonnx.custom_op.general"

        def _run(self, x: Array, scale: Array) -> tuple[Array]:
            return (np.where(x >= 0, scale, -scale).astype(np.float32),)

    graph, proto = onnx_file.read(path), onnx_file.parse(path)
    makers = {name: node for node in proto.graph.node for name in node.output}
    last = makers[graph.output]
    logits = last.input[0] if last.op_type in ("LogSoftmax", "Softmax") else graph.output
    needed = {logits}
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            needed.update(node.input)

    def evaluator(node: Any) -> Callable[[dict[str, Array]], list[Array]]:
        inputs = [helper.make_tensor_value_info(name, 1, None) for name in dict.fromkeys(node.input) if name]
        outputs = [helper.make_tensor_value_info(name, 1, None) for name in node.output if name]
        model = helper.make_model(
            helper.make_graph([node], "node", inputs, outputs), opset_imports=proto.opset_import
        )
        evaluate: Any = reference.ReferenceEvaluator(model, new_ops=[BipolarQuant])
        return lambda read: evaluate.run(None, read)

    nodes = [(node, evaluator(node)) for node in proto.graph.node if needed & set(node.output)]

    def run(x: Array) -> tuple[Array, dict[str, Array]]:
        values = dict(graph.constants)
        values[graph.input] = np.ascontiguousarray(x.transpose(2, 0, 1))[None]
        computed, shapes = {graph.input}, {graph.input: values[graph.input].shape[1:]}
        inside: dict[str, tuple[slice, slice]] = {}
        before: dict[str, Array] = {}
        for node, evaluate in nodes:
            read = {name: values[name] for name in node.input if name}
            made = evaluate(read)
            values.update(zip(filter(None, node.output), made, strict=True))
            sources, output = [name for name in node.input if name in computed], node.output[0]
            if not sources:
                continue
            computed.add(output)
            flat = (values[output].size, 1, 1) if node.op_type in MIXING else shapes[sources[0]]
            shapes[output] = values[output].shape[1:] if values[output].ndim == 4 else flat
            if node.op_type == "Pad":
                inside[output] = _inside(read[sources[0]], node, read)
            elif sources[0] in inside and made[0].shape == read[sources[0]].shape:
                inside[output] = inside[sources[0]]
            known = [before[name] for name in sources if name in before]
            if node.op_type in ("Sign", "BipolarQuant"):
                before[output] = read[sources[0]]
            elif node.op_type in ("GreaterOrEqual", "Less"):
                before[output] = read[node.input[0]] - read[node.input[1]]
            elif node.op_type in ("Greater", "LessOrEqual"):
                before[output] = read[node.input[1]] - read[node.input[0]]
            elif node.op_type in MOVING and len(known) == len(sources):
                before[output] = evaluate(read | dict(zip(sources, known, strict=True)))[0]
            elif len(known) == 1 and len(sources) == 1 and known[0].size == values[output].size:
                before[output] = known[0]
        kept = {
            name: before[name].reshape(shapes[name]).transpose(1, 2, 0)[inside.get(name, ())]
            for name in names
        }
        return values[logits].reshape(-1), kept

    return run


def _inside(x: Array, node: Any, read: dict[str, Array]) -> tuple[slice, slice]:
    """Rows and columns of a value in its padded one: signs are those of what was padded."""
    pads = next((each.ints for each in node.attribute if each.name == "pads"), None)
    axes = read[node.input[3]] % 4 if len(node.input) > 3 and node.input[3] else np.arange(4)
    first = dict(zip(axes.tolist(), pads or read[node.input[1]].tolist(), strict=False))
    top, left = first.get(2, 0), first.get(3, 0)
    return slice(top, top + x.shape[2]), slice(left, left + x.shape[3])
