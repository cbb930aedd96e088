"""The original of a traced module: every operator as torch computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..model import Array, Shape
from .original import Original
from .torch_trace import execute, first_tensor, layer_name, operator_name, trace

if TYPE_CHECKING:
    import torch
    from torch import fx

#: Operators that compare or move values: those after a sign do the same to what the sign is of.
MOVING = ("cat", "getitem", "max_pool2d_with_indices", "upsample_nearest2d")


def original(module: torch.nn.Module, shape: Shape, signs: Mapping[str, Shape]) -> Original:
    """shape : (H, W, C) of the input.  signs : that of each Sign layer, by name. Raises ConvertError."""
    import torch

    traced = trace(module, shape)
    logits = traced.output
    if operator_name(logits) in ("_log_softmax", "_softmax"):
        logits = logits.all_input_nodes[0]

    def run(x: Array) -> tuple[Array, dict[str, Array]]:
        values: dict[fx.Node, Any] = dict(traced.constants)
        values[traced.input] = torch.tensor(x).permute(2, 0, 1)[None].contiguous()
        computed, kept = {traced.input}, {}
        before: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in traced.nodes:
                values[node] = execute(node, values)
                if computed.isdisjoint(node.all_input_nodes):
                    continue
                computed.add(node)
                sources = [each for each in node.all_input_nodes if each in computed]
                if (value := _signed(node, values)) is None and all(each in before for each in sources):
                    value = _moved(node, sources, values, before)
                if value is not None:
                    before[node] = value
                    if (size := signs.get(layer_name(node))) is not None:
                        image = _unpadded(node, values, first_tensor(value)).reshape(size[2], *size[:2])
                        kept[layer_name(node)] = image.permute(1, 2, 0).numpy()
        return values[logits].reshape(-1).numpy(), kept

    return run


def _signed(node: fx.Node, values: dict[fx.Node, Any]) -> torch.Tensor | None:
    """What the sign is taken of, in the original, if the operator is one."""
    import torch

    operands: list[Any] = [values.get(each, each) for each in node.args]  # type: ignore[arg-type]
    match operator_name(node):
        case "sign":
            return torch.as_tensor(operands[0])
        case "ge" | "lt":
            return torch.as_tensor(operands[0] - operands[1])
        case "gt" | "le":
            return torch.as_tensor(operands[1] - operands[0])
    return None


def _moved(
    node: fx.Node, sources: list[fx.Node], values: dict[fx.Node, Any], before: dict[fx.Node, Any]
) -> Any:
    """Of what signs are signs after an operator that only compares or moves them; None after others."""
    import torch

    if operator_name(node) in MOVING:
        return execute(node, values | {each: before[each] for each in sources})
    made, source = values[node], before[sources[0]]
    single = len(sources) == 1 and isinstance(made, torch.Tensor) and isinstance(source, torch.Tensor)
    return source if single and made.numel() == source.numel() else None


def _unpadded(node: fx.Node, values: dict[fx.Node, Any], image: torch.Tensor) -> torch.Tensor:
    """The image [1, C, H, W] without what was padded before its sign was taken: signs are of the rest."""
    source: Any = node.args[0]
    while getattr(values.get(source), "shape", None) == first_tensor(values[node]).shape:
        if operator_name(source) == "constant_pad_nd":
            pads = [*source.args[1], 0, 0][:4]
            height, width = values[source.args[0]].shape[2:]
            return image[..., pads[2] : pads[2] + height, pads[0] : pads[0] + width]
        source = source.args[0] if source.args else None
    return image
