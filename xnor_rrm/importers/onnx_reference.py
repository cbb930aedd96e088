"""The original of an ONNX graph: every operator as onnx's own reference evaluator computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..model import Array, Shape
from . import onnx_file
from .original import Original

#: Operators that compare or move values: those after a sign do the same to what the sign is of.
MOVING = ("Concat", "MaxPool", "Resize", "Upsample")


def original(path: Path, signs: Mapping[str, Shape]) -> Original:
    """signs : (H, W, C) of Sign layers, whose names are those of the values that they make."""
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
        computed, inside = {graph.input}, dict[str, Any]()
        before: dict[str, Array] = {}
        for node, evaluate in nodes:
            read = {name: values[name] for name in node.input if name}
            made = evaluate(read)
            values.update(zip(filter(None, node.output), made, strict=True))
            sources, output = [name for name in node.input if name in computed], node.output[0]
            if not sources:
                continue
            computed.add(output)
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
        kept = {}
        for name, (height, width, channels) in signs.items():
            image = before[name][inside.get(name, ())].reshape(channels, height, width)
            kept[name] = image.transpose(1, 2, 0)
        return values[logits].reshape(-1), kept

    return run


def _inside(x: Array, node: Any, read: dict[str, Array]) -> Any:
    """The index of a value in its padded one: signs are those of what was padded."""
    pads = next((each.ints for each in node.attribute if each.name == "pads"), None)
    axes = read[node.input[3]] % 4 if len(node.input) > 3 and node.input[3] else np.arange(4)
    first = dict(zip(axes.tolist(), pads or read[node.input[1]].tolist(), strict=False))
    top, left = first.get(2, 0), first.get(3, 0)
    return np.s_[..., top : top + x.shape[2], left : left + x.shape[3]]
