"""From a model to a plan: layers grouped into steps, weights laid out for the kernels, state counted.

Convolutions, pools, concatenations and upsamplings are steps of their own. Everything elementwise between
them (batch-norm, activations, shortcut add, sign, and the alpha and bias of a binary convolution) is fused:
one program, one pass over the changed pixels (kernels/elementwise.py). A plan holds no state; a `Stream`
allocates what it counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import policy
from .bits import pack_signs
from .errors import ModelError
from .fold import FOLDABLE, fold
from .kernels import float_conv, head, row_table, set_rows, sliced, xnor
from .kernels.elementwise import FIELDS, REGISTER, SCALE_FIELD, SHIFT_FIELD, SLOPE_FIELD, Op
from .kernels.frame import REPORT, Constants, Kind
from .kernels.layer import padding_word_mask
from .kernels.packed import Packed, pack
from .kernels.simd import aligned
from .kernels.step import STEP, geometry, segment_offsets, window_starts
from .kernels.window import scratch_bytes
from .model import (
    INPUT,
    MAX_WINDOW_BITS,
    Add,
    Affine,
    Array,
    AvgPool,
    BinaryConv2d,
    Clip,
    Concat,
    Conv2d,
    Layer,
    MaxPool,
    Model,
    PRelu,
    Relu,
    Shape,
    Sign,
    Softmax,
    Upsample,
    Window,
)

ELEMENTWISE = (Affine, Relu, PRelu, Clip, Softmax, Sign, Add)

#: Bytes of sums a convolution leaves before its fused program reads them: few enough to stay in the
#: second-level cache, many enough that the calls do not count (16 KB bands took 5 % more of the frame).
BAND_BYTES = 1 << 17


class Arena:
    """Constants or state of one dtype, laid end to end, each piece on a cache line."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.size = np.dtype(dtype), 0
        self._pieces: list[tuple[int, Array]] = []

    def reserve(self, count: int) -> int:
        """Offset of `count` new elements."""
        start, line = self.size, 64 // self.dtype.itemsize
        self.size += -(-count // line) * line
        return start

    def add(self, values: Any) -> int:
        """Offset of a copy of `values`, flattened."""
        flat = np.asarray(values, self.dtype).reshape(-1)
        start = self.reserve(flat.size)
        self._pieces.append((start, flat))
        return start

    def build(self) -> Array:
        """The arena: aligned, zero where nothing was added. A vector of slack ends it."""
        array: Array = aligned(self.size + 512 // self.dtype.itemsize, self.dtype)
        for start, values in self._pieces:
            array[start : start + values.size] = values
        return array


@dataclass(frozen=True, eq=False)
class StepInfo:
    """What people see of a step: the layers it computes, and in which role.

    leaves : what later steps read of it: "bits", "floats", a convolution's "sums", which a program reads, or
        the input's "bytes".
    state, constants : bytes that a stream keeps for the step, and bytes of weights and tables.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    outputs: int
    bits: int
    macs: int
    leaves: tuple[str, ...] = ()
    state: int = 0
    constants: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """Steps and constants, ready for `frame.run`; shared by all streams of a model.

    steps : STEP[n].  info : StepInfo of each.  constants : of `frame.run`, the output too.
    state : elements of the arenas u64, f32, u16, u8 that a stream allocates.  initial_bits : (offset in u64,
    words) to write there once, the borders of padding +1.  scratch : sizes of the arrays the steps share.
    output : (offset in f32, pixels, elements a pixel, channels) of the network's output.
    bits : (offset in u64, (H, W, C)) of each Sign layer's packed signs, ceil(C / 64) words a pixel.
    floats : (offset in f32, elements a pixel, (H, W, C)) of each layer whose float values are kept.
    """

    steps: Array
    info: tuple[StepInfo, ...]
    constants: Packed[Constants]
    state: dict[str, int]
    initial_bits: tuple[tuple[int, Array], ...]
    scratch: dict[str, int]
    output: tuple[int, int, int, int]
    bits: dict[str, tuple[int, Shape]]
    floats: dict[str, tuple[int, int, Shape]]


@dataclass
class _Tensor:
    """Where a layer's output lives. stride : elements a pixel.  mask : its change mask in u8."""

    offset: int
    stride: int
    mask: int


#: Sizes of a stream's scratch arrays, each the largest any step needs.
SCRATCH_SIZES = (
    *("flips", "row_starts", "list_words", "counts", "set_entries", "set_pixels", "set_sums"),
    *("pixels", "registers", "identity", "band_f32", "band_u16", "patches", "timespec"),
)


@dataclass
class _Builder:
    model: Model
    costs: policy.Costs | None
    fuse: bool
    steps: list[Any] = field(default_factory=list)
    info: list[StepInfo] = field(default_factory=list)
    floats: dict[str, _Tensor] = field(default_factory=dict)
    #: Input that is read as bytes, its offset in u8, and the line that makes values of them.
    as_bytes: dict[str, tuple[_Tensor, int]] = field(default_factory=dict)
    counts: dict[str, _Tensor] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    initial_bits: list[tuple[int, Array]] = field(default_factory=list)
    scratch: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SCRATCH_SIZES, 64))

    def __post_init__(self) -> None:
        self.layers = {layer.name: layer for layer in self.model.layers}
        self.readers: dict[str, list[Layer]] = {name: [] for name in self.model.shapes}
        for layer in self.model.layers:
            for name in layer.inputs:
                self.readers[name].append(layer)
        self.const = {name: Arena(name) for name in ("uint64", "float32", "int64", "int32", "uint16")}
        self.state = {name: Arena(name) for name in ("uint64", "float32", "uint16", "uint8")}
        windows = [n for n in self.model.layers if isinstance(n, Conv2d | BinaryConv2d | MaxPool)]
        widths = [self.model.shapes[n.inputs[0]][1] + sum(n.window.padding[2:]) for n in windows]
        # The first bytes are scratch of `list_windows`.
        self.state["uint8"].reserve(scratch_bytes(max(widths, default=0)))
        self.told = self.sizes()

    def sizes(self) -> tuple[int, int, int, int]:
        """Tensors of bits and of floats, bytes of state and of constants, of all steps so far."""
        state, const = (sum(a.size * a.dtype.itemsize for a in x.values()) for x in (self.state, self.const))
        return len(self.bits), len(self.floats), state, const

    def need(self, **sizes: int) -> None:
        for name, size in sizes.items():
            self.scratch[name] = max(self.scratch[name], size + 96)

    def finish(self, step: Any, info: StepInfo) -> None:
        step["macs"] = info.macs
        self.need(pixels=int(step["ho"] * step["wo"]))
        bits, floats, state, const = (
            now - before for now, before in zip(self.sizes(), self.told, strict=True)
        )
        kept = "bytes" if step["kind"] == Kind.INPUT else "sums"
        leaves = (*["bits"] * (bits > 0), *["floats"] * (floats > 0)) or (kept,)
        self.told = self.sizes()
        self.steps.append(step)
        self.info.append(replace(info, leaves=leaves, state=state, constants=const))

    def float_tensor(self, name: str, stride: int = 0) -> _Tensor:
        """Reserve the float output of a layer, by default padded to whole register tiles."""
        h, w, c = self.model.shapes[name]
        stride = stride or -(-c // float_conv.BLOCK) * float_conv.BLOCK
        tensor = _Tensor(
            self.state["float32"].reserve(h * w * stride), stride, self.state["uint8"].reserve(h * w)
        )
        self.floats[name] = tensor
        return tensor

    # --- steps ------------------------------------------------------------------------------------

    def input_step(self) -> set[str]:
        """The step that makes the input values. Returns the layers that its table of values has absorbed."""
        h, w, c = self.model.input_shape
        step = geometry((h, w, c), c, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), binary=False)
        table, name, absorbed = self.model.input_rule.table(), INPUT, []
        while (
            self.fuse and len(readers := self.readers[name]) == 1 and isinstance(affine := readers[0], Affine)
        ):
            table, name = table * affine.scale + affine.shift, affine.name
            absorbed.append(name)
        step["kind"], step["padded"] = Kind.INPUT, self.state["uint8"].reserve(h * w * c + 64)
        step["weights"] = self.const["float32"].add(table)
        step["mask"] = 256 - self.model.input_rule.step
        line = _line(table, self.model.input_rule.step)
        step["line"] = -1 if line is None else self.const["float32"].add(line)
        readers = self.readers[name]
        if line is not None and self.fuse and readers and all(_takes_patches(each, c) for each in readers):
            x = _Tensor(int(step["padded"]), c, self.state["uint8"].reserve(h * w))
            self.as_bytes[name] = x, int(step["line"])
            step["y"], step["y_mask"] = -1, x.mask
        else:
            x = self.float_tensor(name, stride=c)
            step["y"], step["y_mask"] = x.offset, x.mask
        self.finish(step, StepInfo(INPUT, "elementwise", (INPUT, *absorbed), h * w, 0, 0))
        return set(absorbed)

    def _window_step(self, layer: Conv2d | BinaryConv2d | MaxPool) -> Any:
        """A step with the geometry of the layer, its index tables and its input."""
        binary = isinstance(layer, BinaryConv2d)
        shape, window = self.model.shapes[layer.inputs[0]], layer.window
        cout = self.model.shapes[layer.name][2]
        step = geometry(
            shape, cout, window.kernel, window.stride, window.padding, window.dilation, binary=binary
        )
        step["starts"] = self.const["int64"].add(window_starts(step))
        step["segment_at"] = self.const["int64"].add(segment_offsets(step))
        if binary:
            step["x"] = self.bits[layer.inputs[0]]
            step["x_mask"] = self.state["uint8"].reserve(int(step["h"] * step["w"]))
        else:
            name = layer.inputs[0]
            x, line = self.as_bytes[name] if name in self.as_bytes else (self.floats[name], -1)
            step["x"], step["x_stride"], step["x_mask"], step["line"] = x.offset, x.stride, x.mask, line
        return step

    def _info(self, layer: Layer, kind: str, bits: int = 0) -> StepInfo:
        h, w, _ = self.model.shapes[layer.name]
        return StepInfo(layer.name, kind, (layer.name,), h * w, bits, self.model.macs(layer))

    def float_conv_step(self, layer: Conv2d, fused: bool) -> None:
        step = self._window_step(layer)
        weights = float_conv.pack_weights(layer.weight, layer.groups)
        step["kind"], step["groups"] = Kind.FLOAT_CONV, layer.groups
        if fused:
            step["band"] = max(8, BAND_BYTES // (4 * int(step["lanes"])))
            self.need(band_f32=int(step["band"] * step["lanes"]), identity=int(step["band"]))
        else:
            y = self.float_tensor(layer.name)
            step["y"], step["y_mask"] = y.offset, y.mask
        if step["line"] >= 0:
            self._patches(step)
        elif any(layer.window.padding) or step["x_stride"] != step["words"]:
            step["padded"] = self.state["float32"].reserve(int(step["hp"] * step["wp"] * step["words"]))
        else:  # the input is laid out as the kernel reads it
            step["padded"] = step["x"]
        step["weights"], step["weights_size"] = self.const["float32"].add(weights), weights.size
        step["bias"] = self.const["float32"].add(_padded(layer.bias, int(step["lanes"])))
        self.finish(step, self._info(layer, "float"))

    def _patches(self, step: Any) -> None:
        """Let a float convolution read patches, one after the other, made of the input's bytes."""
        size = int(step["kh"] * step["kw"] * step["cin"])
        step["segments"], step["run"] = 1, size
        step["band"] = step["band"] or max(8, BAND_BYTES // (4 * int(step["lanes"])))
        step["starts"] = self.const["int64"].add(size * np.arange(step["band"]))
        step["segment_at"] = self.const["int64"].add([0])
        self.need(patches=size * int(step["band"]), identity=int(step["band"]))

    def pool_step(self, layer: MaxPool) -> None:
        step = self._window_step(layer)
        y = self.float_tensor(layer.name)
        step["kind"], step["y"], step["y_mask"] = Kind.POOL, y.offset, y.mask
        if isinstance(layer, AvgPool):
            step["average"], step["count_padding"] = 1, layer.count_padding
        self.finish(step, self._info(layer, "float"))

    def copy_step(self, layer: Concat | Upsample) -> None:
        h, w, _ = self.model.shapes[layer.inputs[0]]
        ho, wo, c = self.model.shapes[layer.name]
        step = geometry((ho, wo, c), c, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), binary=False)
        sources = [
            (x.offset, x.stride, self.model.shapes[name][2], x.mask)
            for name in layer.inputs
            for x in (self.floats[name],)
        ]
        y = self.float_tensor(layer.name)
        step["kind"], step["h"], step["w"], step["factor"] = Kind.COPY, h, w, ho // h
        step["y"], step["y_mask"] = y.offset, y.mask
        step["sources"], step["program"] = len(sources), self.const["int64"].add(sources)
        self.finish(step, self._info(layer, "float"))

    def bilinear_step(self, layer: Upsample) -> None:
        shape, (ho, wo, c) = self.model.shapes[layer.inputs[0]], self.model.shapes[layer.name]
        step = geometry((ho, wo, c), c, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), binary=False)
        rows, columns = (_bilinear_taps(size, layer.factor) for size in shape[:2])
        x, y = self.floats[layer.inputs[0]], self.float_tensor(layer.name)
        step["kind"], step["h"], step["w"] = Kind.BILINEAR, shape[0], shape[1]
        step["x"], step["x_stride"], step["x_mask"] = x.offset, x.stride, x.mask
        step["y"], step["y_mask"] = y.offset, y.mask
        step["starts"] = self.const["int64"].add(np.concatenate([rows[0], columns[0]]))
        step["weights"] = self.const["float32"].add(np.concatenate([rows[1], columns[1]]))
        self.finish(step, self._info(layer, "float"))

    def binary_conv_step(self, layer: BinaryConv2d, group: list[Layer] | None) -> bool:
        """The step of the layer. group : the elementwise layers that alone read it, if any.

        Returns whether it has absorbed the group, a chain that ends in a sign, into integer limits.
        """
        step = self._window_step(layer)
        outputs, padded = int(step["ho"] * step["wo"]), int(step["hp"] * step["wp"] * step["words"])
        y = _Tensor(
            self.state["uint16"].reserve(outputs * int(step["lanes"])),
            int(step["lanes"]),
            self.state["uint8"].reserve(outputs + 8),  # marks are stored eight at a time
        )
        self.counts[layer.name] = y
        step["kind"], step["y"], step["y_mask"] = Kind.BINARY_CONV, y.offset, y.mask
        step["padded"] = self.state["uint64"].reserve(padded)
        step["diff"] = self.state["uint64"].reserve(padded)
        if layer.pad_value == 1:
            pixels = int(step["hp"] * step["wp"])
            self.initial_bits.append(
                (int(step["padded"]), np.tile(padding_word_mask(layer.channels), pixels))
            )
        weights = xnor.pack_weights(layer.weight)
        step["weights"], step["weights_size"] = self.const["uint64"].add(weights), weights.size
        step["classes"] = -1
        classes, outside, valid = xnor.outside_tables(layer.weight, step)
        if layer.pad_value == 0 and any(layer.window.padding):
            step["classes"] = self.const["int64"].add(classes)
            step["outside"] = self.const["uint16"].add(outside)
        else:
            classes, outside, valid = classes[:0], outside[:1], valid[:0]
        touching = layer.window.dilation[1] == 1 or layer.window.kernel[1] == 1
        step["tile"] = row_table.tile_pixels(int(step["out_words"]), touching)
        absorbed = group is not None and self._to_bits(step, layer, group, classes, outside, valid)
        step["table"] = self.const["uint64"].add(row_table.build_table(layer.weight, layer.channels, step))
        step["band"] = max(1, BAND_BYTES // int(2 * step["lanes"] * step["wo"]))
        self.need(
            band_u16=max(512, int(step["band"] * step["wo"] * step["lanes"])),
            identity=int(step["band"] * step["wo"]),
        )
        bits = int(step["h"] * step["w"] * step["cin"])
        step["rows_limit"] = policy.rows_limit(step, self.costs)
        self.need(
            flips=int(step["rows_limit"]),
            row_starts=int(step["hp"] * (step["wp"] + 1)),
            list_words=5 * int(step["wp"] * step["words"] + 8),
            counts=int(step["wo"]),
        )
        if set_rows.can_sum_sets(step) and (limit := policy.set_limit(step, self.costs)):
            step["set_limit"] = limit
            step["base"] = self.const["uint16"].add(
                set_rows.base_of_sets(layer.weight, step, layer.pad_value)
            )
            step["base_classes"] = self.const["int64"].add(xnor.outside_tables(layer.weight, step)[0])
            self.need(
                set_entries=int(step["hp"] * step["wp"]) * (layer.channels + 16),
                set_pixels=int(step["hp"] * step["wp"]),
                set_sums=int(step["band"] * step["wo"]) * 112,
            )
        names = (layer.name, *(member.name for member in group or ())) if absorbed else (layer.name,)
        self.finish(step, replace(self._info(layer, "binary", bits), layers=names))
        return absorbed

    def _to_bits(
        self, step: Any, layer: BinaryConv2d, group: list[Layer], classes: Array, outside: Array, valid: Array
    ) -> bool:
        """Let the step write the group's sign by integer limits, if the group is a chain that can be folded.

        classes, outside, valid : `xnor.outside_tables`; of one class, and no pixels, without zero padding.
        """
        *chain, sign = group
        before = [layer.name, *(member.name for member in chain)]
        linear = all(member.inputs == (name,) for name, member in zip(before, group, strict=True))
        if not (linear and isinstance(sign, Sign) and all(isinstance(member, FOLDABLE) for member in chain)):
            return False
        if any(len(self.readers[name]) != 1 for name in before) or layer.window_bits >= MAX_WINDOW_BITS:
            return False
        of_class = np.full(len(outside), layer.window_bits)
        of_class[classes] = valid
        cout = len(layer.alpha)
        folded = fold(layer, chain, of_class, outside[:, :cout].astype(np.int64))
        if folded is None:
            return False
        limits: Array = np.zeros(outside.shape, np.uint16)
        limits[:, :cout] = folded[0]
        h, w, _ = self.model.shapes[layer.name]
        words = -(-cout // 64)
        self.bits[sign.name] = self.state["uint64"].reserve(h * w * words)
        inverted = pack_signs(folded[1][None, None, None]).reshape(-1)
        step["limits"] = self.const["uint16"].add(limits)
        step["inverted"] = self.const["uint64"].add(inverted)
        step["bits"], step["bits_words"] = self.bits[sign.name], words
        if sliced.can_slice(step) and words == step["out_words"]:
            self._slice(step, layer, limits, inverted)
        return True

    def _slice(self, step: Any, layer: BinaryConv2d, limits: Array, inverted: Array) -> None:
        """Let the step keep its sums in bit planes while the rows kernel updates them."""
        step["planes"] = sliced.count_planes(layer.window_bits)
        planes, ones = sliced.state_sizes(step)
        added, parities, flipped = sliced.sign_tables(layer.weight, limits, inverted, step)
        step["sliced"], step["ones"] = (self.state["uint64"].reserve(size) for size in (planes, ones))
        step["in_planes"] = self.state["uint64"].reserve(1)
        step["added"] = self.const["uint16"].add(added)
        step["parities"] = self.const["uint64"].add(parities)
        step["flipped"] = self.const["uint64"].add(flipped)

    def elementwise_step(
        self, name: str, group: list[Layer], stored: set[str], own: str = "", head_layer: Conv2d | None = None
    ) -> None:
        """One program for the group.

        stored : the members whose values are read outside it as floats; without a group, `name` itself is
        stored.  own : the convolution just before, if the program is fused with it.  head_layer : what alone
        reads the one value stored, if it is computed with it.
        """
        h, w, c = self.model.shapes[name]
        cout = len(head_layer.weight) if head_layer else c
        step = geometry((h, w, c), cout, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), binary=False)
        program = _Program(self, -(-c // float_conv.BLOCK) * float_conv.BLOCK, group, own)
        for layer in group:
            program.run(layer)
            if layer.name in stored and not head_layer:
                program.store(layer.name, self.float_tensor(layer.name))
            program.release(layer)
        if not group:
            program.store(name, self.float_tensor(name))
        const = self.const["int64"]
        step["kind"], step["fused"] = Kind.ELEMENTWISE, own != ""
        step["y_mask"] = self.state["uint8"].reserve(h * w)
        step["program"], step["program_size"] = const.add(program.code), len(program.code) * FIELDS
        step["sources"], step["source_masks"] = len(program.source_masks), const.add(program.source_masks)
        step["targets"], step["target_masks"] = len(program.target_masks), const.add(program.target_masks)
        self.need(registers=program.most_registers * max(REGISTER, program.width))
        fused = (*program.dots, *(layer.name for layer in group))
        info = StepInfo(name if group else f"{name}.float", "elementwise", fused, h * w, 0, 0)
        if head_layer:
            self._with_head(step, head_layer)
            info = replace(self._info(head_layer, "float"), layers=(*fused, head_layer.name))
        self.finish(step, info)

    def _with_head(self, step: Any, layer: Conv2d) -> None:
        """Let the program's step compute the convolution that reads what it leaves."""
        weights, y = head.pack_weights(layer.weight, layer.bias), self.float_tensor(layer.name)
        step["weights"], step["weights_size"] = self.const["float32"].add(weights), weights.size
        step["y"] = y.offset
        outputs = head.padded_outputs(len(layer.weight))
        self.need(band_f32=head.CHANNELS * head.PIXELS, registers=outputs * head.PIXELS, identity=outputs)

    def valid_bits(self, layer: BinaryConv2d) -> int:
        """Offset of int32[P]: bits under each window that lie inside the image (all, unless zero-padded)."""
        h, w, _ = self.model.shapes[layer.name]
        valid = np.full(h * w, layer.window_bits, np.int32)
        if layer.pad_value == 0 and any(layer.window.padding):
            window = layer.window
            step = geometry(
                self.model.shapes[layer.inputs[0]], layer.weight.shape[0],
                window.kernel, window.stride, window.padding, window.dilation, binary=True,
            )  # fmt: skip
            valid = xnor.outside_tables(layer.weight, step)[2]
        return self.const["int32"].add(valid)


class _Program:
    """Writes the instructions of one elementwise group, giving registers to values while they are needed."""

    def __init__(self, builder: _Builder, width: int, group: list[Layer], own: str) -> None:
        self._b, self.width, self._own = builder, width, own
        self._reads_sums, self._alone = builder.fuse or not group, len(group) == 2
        self._uses: dict[str, int] = {}
        for layer in group:
            for name in layer.inputs:
                self._uses[name] = self._uses.get(name, 0) + 1
        self._register: dict[str, int] = {}
        self._free: list[int] = []
        self.most_registers = 0
        self.code: list[list[int]] = []
        self.source_masks: list[int] = []
        self.target_masks: list[int] = []
        self.dots: list[str] = []

    def _emit(self, op: Op, target: int, *operands: int) -> None:
        self.code.append([int(op), target, *operands, *[0] * (FIELDS - 2 - len(operands))])

    def _new(self, name: str) -> int:
        if not self._free:
            self._free.append(self.most_registers)
            self.most_registers += 1
        self._register[name] = self._free.pop()
        return self._register[name]

    def _constants(self, values: Array) -> int:
        return self._b.const["float32"].add(_padded(values, self.width))

    def _fetch(self, name: str) -> int:
        """Register of a value, loaded from outside the group where it is not made inside."""
        if name in self._register:
            return self._register[name]
        target = self._new(name)
        if name in self._b.counts and self._reads_sums:
            layer, y = self._b.layers[name], self._b.counts[name]
            assert isinstance(layer, BinaryConv2d)
            alpha, bias = self._constants(layer.alpha), self._constants(layer.bias)
            op, offset = (Op.OWN_DOTS, 0) if name == self._own else (Op.DOTS, y.offset)
            self._emit(op, target, offset, y.stride, alpha, bias, self._b.valid_bits(layer), -1, -1, -1)
            self.source_masks.append(y.mask)
            self.dots.append(name)
        elif name == self._own:
            self._emit(Op.OWN_VALUES, target)
        else:
            x = self._b.floats[name]
            self._emit(Op.LOAD, target, x.offset, x.stride)
            self.source_masks.append(x.mask)
        return target

    def run(self, layer: Layer) -> None:
        sources = [self._fetch(name) for name in layer.inputs]
        if isinstance(layer, Sign):
            h, w, c = self._b.model.shapes[layer.name]
            words = -(-c // 64)
            self._b.bits[layer.name] = self._b.state["uint64"].reserve(h * w * words)
            to = self._b.bits[layer.name], words, c
            # an affine and this sign are all that reads a float convolution: a stem's batch-norm
            if self._alone and [Op(op) for op, *_ in self.code] == [Op.OWN_VALUES, Op.AFFINE]:
                scale, shift = self.code.pop()[3:5]
                self.code.clear()
                self._emit(Op.OWN_SIGN, 0, *to, scale, shift)
            else:
                self._emit(Op.SIGN, sources[0], *to)
            return
        if self._follows_dots(layer):
            return
        target = self._new(layer.name)
        if isinstance(layer, Affine):
            scale, shift = self._constants(layer.scale), self._constants(layer.shift)
            self._emit(Op.AFFINE, target, sources[0], scale, shift)
        elif isinstance(layer, Relu):
            self._emit(Op.RELU, target, sources[0])
        elif isinstance(layer, PRelu):
            self._emit(Op.PRELU, target, sources[0], self._constants(layer.slope))
        elif isinstance(layer, Clip):
            limits = self._b.const["float32"].add([layer.low, layer.high])
            self._emit(Op.CLIP, target, sources[0], limits)
        elif isinstance(layer, Softmax):
            self._emit(Op.SOFTMAX, target, sources[0], self._b.model.shapes[layer.name][2])
        else:
            self._emit(Op.ADD, target, sources[0], sources[1])

    def _follows_dots(self, layer: Layer) -> bool:
        """Whether the instruction before, the dots that this layer alone reads, now computes it too."""
        source, last = layer.inputs[0], self.code[-1]
        dots = last[0] in (Op.DOTS, Op.OWN_DOTS) and last[1] == self._register[source]
        if not dots or self._uses[source] > 1:
            return False
        if isinstance(layer, Affine) and last[SCALE_FIELD] == last[SLOPE_FIELD] == -1:
            last[SCALE_FIELD], last[SHIFT_FIELD] = self._constants(layer.scale), self._constants(layer.shift)
        elif isinstance(layer, PRelu) and last[SLOPE_FIELD] == -1:
            last[SLOPE_FIELD] = self._constants(layer.slope)
        else:
            return False
        self._register[layer.name] = self._register.pop(source)
        return True

    def store(self, name: str, tensor: _Tensor) -> None:
        """Keep a value: a member's own, or a convolution's dots that a pool or the caller reads."""
        self._emit(Op.STORE, self._fetch(name), tensor.offset, tensor.stride, tensor.mask)
        self.target_masks.append(tensor.mask)

    def release(self, layer: Layer) -> None:
        for name in layer.inputs:
            self._uses[name] -= 1
            if self._uses[name] == 0 and name in self._register:
                self._free.append(self._register[name])


def _bilinear_taps(size: int, factor: int) -> tuple[Array, Array]:
    """Of one axis, as model.Upsample says: inputs of each output, int64[outputs, 2], and their weights."""
    half = 2 * factor  # places are counted in halves of an output
    place = np.clip(2 * np.arange(size * factor) + 1 - factor, 0, half * (size - 1))
    first, rest = np.divmod(place, half)
    weights: Array = (np.stack([half - rest, rest], axis=1) / half).astype(np.float32)
    return np.stack([first, first + (rest > 0)], axis=1), weights


def _takes_patches(reader: Layer, channels: int) -> bool:
    """Whether a layer is a convolution of windows that do not overlap, each row of one a vector at most."""
    if not isinstance(reader, Conv2d) or reader.groups > 1 or channels != 3:
        return False
    window = reader.window
    apart = window.kernel == window.stride and window.dilation == (1, 1) and not any(window.padding)
    return apart and window.kernel[1] * channels <= 16


def _line(table: Array, step: int) -> Array | None:
    """float32[96], scale and shift of 48 neighbouring values, if fma(v, scale, shift) is the very table.

    table : float32[256, C], of which multiples of `step` are looked up.
    """
    seen = np.arange(0, 256, step)[:, None]
    shift = table[0].astype(np.float64)
    scale = ((table[seen[-1, 0]] - shift) / seen[-1, 0]).astype(np.float32).astype(np.float64)
    # float64 holds the product exactly and rounds the sum; rounded again it is the fma, unless the first
    # rounding ends halfway between two float32: then this table is taken for none
    exact = seen * scale + shift
    found = exact.astype(np.float32)
    halfway = (exact.view(np.uint64) & np.uint64((1 << 29) - 1)) == 1 << 28
    bits = found.view(np.uint32) != table[seen[:, 0]].view(np.uint32)  # by their bits: -0 is not 0
    if bits.any() or halfway.any():
        return None
    return np.concatenate([np.tile(each.astype(np.float32), 48)[:48] for each in (scale, shift)])


def _padded(values: Array, width: int) -> Array:
    padded: Array = np.zeros(width, np.float32)
    padded[: values.size] = values
    return padded


def _levels(model: Model) -> dict[str, int]:
    """Number of layers that are not elementwise on the longest way from the input, itself included."""
    levels = {INPUT: 0}
    for layer in model.layers:
        levels[layer.name] = max(levels[name] for name in layer.inputs) + (not isinstance(layer, ELEMENTWISE))
    return levels


def _groups(layers: list[Layer], levels: dict[str, int]) -> list[list[Layer]]:
    """Elementwise layers joined by an edge and of one level: no convolution lies between two members."""
    group_of: dict[str, list[Layer]] = {}
    for layer in layers:
        if not isinstance(layer, ELEMENTWISE):
            continue
        group: list[Layer] = [layer]
        for name in layer.inputs:
            other = group_of.get(name)
            if other is not None and levels[name] == levels[layer.name] and other is not group:
                other.extend(group)
                for member in group:
                    group_of[member.name] = other
                group = other
        group_of[layer.name] = group
    order = {layer.name: i for i, layer in enumerate(layers)}
    unique = {id(group): group for group in group_of.values()}
    return [sorted(group, key=lambda member: order[member.name]) for group in unique.values()]


def _fused_group(
    layer: Layer, here: list[Layer], groups: list[list[Layer]], readers: dict[str, list[Layer]]
) -> list[Layer] | None:
    """The group that runs band by band with a convolution: its only reader, with all else it reads at hand.

    here, groups : the layers and the elementwise groups of the convolution's level, in order of execution.
    A float convolution's values are not kept, so its group must read nothing else.
    """
    if not isinstance(layer, Conv2d | BinaryConv2d) or not readers[layer.name]:
        return None
    for group in groups:
        names = {member.name for member in group}
        if all(reader.name in names for reader in readers[layer.name]):
            sources = {name for member in group for name in member.inputs} - names
            later = [
                other.name for other in here[here.index(layer) + 1 :] if not isinstance(other, ELEMENTWISE)
            ]
            ready = not sources.intersection(later)
            return group if ready and (isinstance(layer, BinaryConv2d) or sources == {layer.name}) else None
    return None


def _head(
    model: Model, own: Layer, group: list[Layer], levels: dict[str, int], readers: dict[str, list[Layer]]
) -> Conv2d | None:
    """The output, if it is a 1x1 convolution that can run with the program of a group fused with `own`.

    That program is one instruction: a batch-norm, a PReLU or both of a binary convolution. The head alone
    reads what it leaves, and nothing comes in between: no other layer is of their level or behind it.
    """
    layer, level, kinds = model.layers[-1], levels[own.name], [type(member) for member in group]
    if not isinstance(layer, Conv2d) or not isinstance(own, BinaryConv2d):
        return None
    plain = layer.window == Window((1, 1)) and layer.groups == 1
    chain = [own.name, *(member.name for member in group)]
    linear = all(
        reader.inputs == (name,) and readers[name] == [reader]
        for name, reader in zip(chain, [*group, layer], strict=True)
    )
    others = {other.name for other in model.layers if levels[other.name] >= level} - {*chain, layer.name}
    one = kinds in ([Affine], [PRelu], [Affine, PRelu])
    return layer if plain and linear and one and not others else None


def build_plan(model: Model, costs: policy.Costs | None = None, *, fuse: bool = True) -> Plan:
    """Lay out a model for `frame.run`.

    costs : by which kernels are chosen; the machine's unless given.
    fuse : without, each layer is a step of its own, whose values are kept: for tests, which compare the two.
    """
    b = _Builder(model, costs, fuse)
    absorbed = b.input_step()
    layers = [layer for layer in model.layers if layer.name not in absorbed]
    levels, output = _levels(model), model.layers[-1].name
    apart: list[list[Layer]] = [[layer] for layer in layers if isinstance(layer, ELEMENTWISE)]
    groups = _groups(layers, levels) if fuse else apart

    def group_step(group: list[Layer], own: str = "") -> None:
        names = {layer.name for layer in group}
        stored = {
            layer.name
            for layer in group
            if not isinstance(layer, Sign)
            and (layer.name == output or any(r.name not in names for r in b.readers[layer.name]))
        }
        head_layer = _head(model, b.layers[own], group, levels, b.readers) if own else None
        b.elementwise_step(group[0].name, group, stored, own, head_layer)

    for level in range(max(levels.values()) + 1):
        here = [layer for layer in layers if levels[layer.name] == level]
        waiting = [group for group in groups if levels[group[0].name] == level]
        for layer in here:
            fused = _fused_group(layer, here, waiting, b.readers) if fuse else None
            if isinstance(layer, BinaryConv2d):
                if b.binary_conv_step(layer, fused):
                    assert fused is not None
                    waiting.remove(fused)
                    fused = None
                others = [r for r in b.readers[layer.name] if not isinstance(r, ELEMENTWISE)]
                if layer.name == output or others or not fuse:
                    b.elementwise_step(layer.name, [], set())
            elif isinstance(layer, Conv2d) and layer.name not in b.floats:  # else done, as a head
                b.float_conv_step(layer, fused is not None)
            elif isinstance(layer, MaxPool):
                b.pool_step(layer)
            elif isinstance(layer, Upsample) and layer.interpolation == "bilinear":
                b.bilinear_step(layer)
            elif isinstance(layer, Concat | Upsample):
                b.copy_step(layer)
            if fused is not None:
                group_step(fused, layer.name)
                waiting.remove(fused)
        for group in waiting:
            group_step(group)

    if output in absorbed:
        raise ModelError("a layer besides batch-norms of the input", model.name)
    h, w, c = model.shapes[output]
    y = b.floats[output]
    place = y.offset, h * w, y.stride, c
    return Plan(
        steps=np.array(b.steps, STEP),
        info=tuple(b.info),
        constants=pack(Constants(*[*(arena.build() for arena in b.const.values()), np.array(place)])),
        state={name: arena.size for name, arena in b.state.items()},
        initial_bits=tuple(b.initial_bits),
        scratch={**b.scratch, "report": len(b.steps) * REPORT},
        output=place,
        bits={name: (offset, model.shapes[name]) for name, offset in b.bits.items()},
        floats={name: (x.offset, x.stride, model.shapes[name]) for name, x in b.floats.items()},
    )


def xnor_alone(plan: Plan) -> Plan:
    """The plan with dense binary frames always computed by xnor-popcount: every other engine's way."""
    steps = plan.steps.copy()
    steps["set_limit"] = 0
    return replace(plan, steps=steps)


def describe(model: Model) -> list[tuple[str, tuple[str, ...], str]]:
    """(step name, layers fused into it, kind) of every step, in order of execution."""
    return [(info.name, info.layers, info.kind) for info in model.plan.info]
