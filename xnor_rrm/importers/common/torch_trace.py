"""Modules of PyTorch as torch.export traces them: calls of ATen operators on tensors."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConvertError
from ...model import Shape

if TYPE_CHECKING:
    import torch
    from torch import fx

#: Operators that torch.export would take apart.
KEPT = ("_prelu_kernel", "leaky_relu", "upsample_bilinear2d", "upsample_nearest2d")

FRAME = re.compile(r'File "([^"]+)", line (\d+), in \S+\n\s*(.*)')


@dataclass(frozen=True)
class Trace:
    """nodes : calls, in order of execution.  constants : parameters, buffers and other tensors."""

    nodes: list[fx.Node]
    constants: dict[fx.Node, torch.Tensor]
    input: fx.Node
    output: fx.Node


def trace(module: torch.nn.Module, shape: Shape) -> Trace:
    """The operators of a module for an input (H, W, C), without side effects. Raises ConvertError."""
    import torch

    if any(each.training for each in module.modules()):
        raise ConvertError("a module in evaluation mode", "one in training mode", "Call module.eval() first.")
    height, width, channels = shape
    if not hasattr(torch.export, "default_decompositions"):
        raise ConvertError("PyTorch 2.6 or newer, to trace modules", torch.__version__)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the inside of torch
            program = torch.export.export(module, (torch.zeros(1, channels, height, width),), strict=False)
            table = torch.export.default_decompositions()
            for name in KEPT:
                packet = getattr(torch.ops.aten, name)
                for overload in packet.overloads():
                    table.pop(getattr(packet, overload), None)  # type: ignore[no-untyped-call]  # of torch
            program = program.run_decompositions(table)
    except Exception as error:  # whatever the module's own code raises, and torch about it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        expected = f"a module that torch.export traces for {channels}x{height}x{width}"
        raise ConvertError(expected, reason) from error

    placeholders = program.graph.find_nodes(op="placeholder")
    constants, inputs = {}, []
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT:
            inputs.append(node)
        elif isinstance(value := {**program.state_dict, **program.constants}.get(spec.target), torch.Tensor):
            constants[node] = value.detach()
    outputs = program.graph_signature.user_outputs
    nodes = [node for node in program.graph.nodes if node.op in ("call_function", "get_attr")]
    named = {node.name: node for node in [*nodes, *placeholders]}
    if len(inputs) != 1 or len(outputs) != 1 or outputs[0] not in named:
        raise ConvertError("a module of one input and one output", f"{len(inputs)} and {len(outputs)}")
    return Trace(nodes, constants, inputs[0], named[outputs[0]])


def layer_name(node: fx.Node) -> str:
    """The path of the module that calls it, and its own name in the trace."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return f"{stack[-1]}.{node.name}" if stack and stack[-1] else node.name


def operator_name(node: fx.Node) -> str:
    """Of ATen, without its overload."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", str(node.target))
    return str(schema.name.removeprefix("aten::"))


def place(node: fx.Node) -> str:
    """The operator, and the line of source that calls it."""
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    at = f" in {Path(frames[-1][0]).name}, line {frames[-1][1]}: {frames[-1][2]}" if frames else ""
    return f"{operator_name(node)} ({layer_name(node)}{at})"


def arguments(node: fx.Node) -> dict[str, Any]:
    """By the names of the operator's schema, with its defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]  # of an operator
    return {
        each.name: node.args[i] if i < len(node.args) else node.kwargs.get(each.name, each.default_value)
        for i, each in enumerate(schema)
    }


def execute(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The node's result, by torch."""
    from torch import fx

    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda each: values[each])
    return node.target(*args, **kwargs)  # type: ignore[operator]  # a function


def first_tensor(value: Any) -> torch.Tensor:
    """The first result of an operator that has more."""
    first: torch.Tensor = value[0] if isinstance(value, tuple) else value
    return first
