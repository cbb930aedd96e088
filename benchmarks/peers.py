"""Other engines that compute the same layer on one thread, each optional: absent ones are named and skipped.

    pip install --no-deps openvino      (without its telemetry; any recent version)
    pip install torch                   (the project's `torch` extra)
    pip install --no-deps bnn-lab       (it pins older NumPy and PyTorch; only its C library is loaded)

A peer is built for a `Problem` and called for its nanoseconds by name. `PEERS` is the list of them. Every
peer computes the dots of the same frame; `check` compares them with ours before anything is timed.
"""

from __future__ import annotations

import ctypes
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .layershapes import LayerShape, unpack
from .timing import timed_ns


class Problem:
    """A layer, its weights and a frame, as bits and as -1 and +1."""

    def __init__(self, shape: LayerShape, weight: Any, frame: Any) -> None:
        """weight : uint64[Cout, kH, kW, Cw].  frame : uint64[H, W, Cw]."""
        self.shape, self.weight, self.frame = shape, weight, frame
        self.weight_signs = unpack(weight, shape.cin)  # int8[Cout, kH, kW, Cin]
        self.frame_signs = unpack(frame, shape.cin)  # int8[H, W, Cin]

    @property
    def inside(self) -> Any:
        """bool[Ho, Wo]: outputs whose whole window lies in the image, so that no padding counts."""
        s, (high, wide) = self.shape, self.shape.output
        top, left = (np.arange(n) * s.stride - p for n, p in ((high, s.padding[0]), (wide, s.padding[2])))
        fits_y, fits_x = (top >= 0) & (top + s.kernel[0] <= s.h), (left >= 0) & (left + s.kernel[1] <= s.w)
        return fits_y[:, None] & fits_x[None, :]


class Peer(ABC):
    """One engine on one problem.

    package : to install.  form : how it computes the layer, in words.
    pads : whether it pads as the layer asks; else only outputs that see no padding are compared.
    """

    package: str
    form: str = ""
    pads = False

    @classmethod
    def missing(cls) -> str | None:
        """Why the peer cannot run here, or None."""
        return None if importlib.util.find_spec(cls.package) else f"{cls.package} is not installed"

    @abstractmethod
    def __init__(self, problem: Problem) -> None:
        """Raises RuntimeError or ValueError for a shape it does not take."""

    @abstractmethod
    def __call__(self) -> dict[str, int]:
        """Run once: nanoseconds by part; "ms" is the layer alone, where there are several."""

    @abstractmethod
    def dots(self) -> Any:
        """[Ho, Wo, Cout]: the result of the last run."""

    def expected(self, dots: Any) -> Any:
        """What an exact engine of this precision answers for the dots, int64."""
        return dots

    def check(self, problem: Problem, dots: Any) -> None:
        """Raises ArithmeticError where the peer's answer differs from the dots, int64[Ho, Wo, Cout]."""
        self()
        where = np.ones(dots.shape[:2], bool) if self.pads else problem.inside
        if not np.array_equal(self.dots()[where], self.expected(dots)[where]):
            raise ArithmeticError(f"{type(self).__name__} differs from the dots on {problem.shape}")


#: OpenVINO's options for one request at a time on one thread.
ONE_THREAD = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}


def openvino_binary_convolution(
    source: Any,
    bits: Any,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    pad_value: int,
) -> tuple[Any, Any]:
    """(BinaryConvolution of a FakeQuantize's output, the buffer of its weights, to be kept as long as it).

    bits : bool[Cout, Cin, kH, kW], True being +1.  padding : (top, bottom, left, right).
    """
    import openvino as ov
    from openvino import opset1 as ops

    # The constant shares this buffer, least significant bit first.
    buffer = np.packbits(bits.reshape(-1), bitorder="little")
    tensor = ov.Tensor(buffer, ov.Shape(bits.shape), ov.Type.u1)
    node = ops.binary_convolution(
        source,
        ov.op.Constant(tensor, shared_memory=True),
        list(stride),
        [padding[0], padding[2]],
        [padding[1], padding[3]],
        list(dilation),
        "xnor-popcount",
        float(pad_value),
    )
    return node, buffer


class OpenVino(Peer):
    """OpenVINO's BinaryConvolution on one thread: Parameter, FakeQuantize, BinaryConvolution, Result.

    Parts, from OpenVINO's own counters except the last: ms, the BinaryConvolution node; binarized, with the
    FakeQuantize before it; nodes, with all re-orders too; wall, one call of infer() without counters.
    Input and output are NCHW: with a Transpose to and from NHWC in the graph, 2026.4 crashes.
    """

    package = "openvino"
    pads = True

    def __init__(self, problem: Problem) -> None:
        import openvino as ov
        from openvino import opset1 as ops

        s = problem.shape
        if s.cin % 8:
            raise ValueError(f"2026.4 answers wrongly where Cin is no multiple of 8; it is {s.cin}")
        source = ops.parameter([1, s.cin, s.h, s.w], np.float32)
        zero, one = (ops.constant(np.float32(value)) for value in (0, 1))
        binarized = ops.fake_quantize(source, zero, zero, zero, one, 2)
        bits = (problem.weight_signs > 0).transpose(0, 3, 1, 2)
        stride = (s.stride, s.stride)
        convolution, self._buffer = openvino_binary_convolution(
            binarized, bits, stride, s.padding, (1, 1), s.pad_value
        )
        graph = ov.Model([convolution], [source])
        self._input = np.ascontiguousarray(problem.frame_signs.transpose(2, 0, 1)[None].astype(np.float32))
        self._plain, self._counted = (
            ov.Core()
            .compile_model(graph, "CPU", {**ONE_THREAD, "PERF_COUNT": counted})
            .create_infer_request()
            for counted in (False, True)
        )
        for request in (self._plain, self._counted):
            request.set_input_tensor(ov.Tensor(self._input, shared_memory=True))
        self._counted.infer()
        node = next(n for n in self._counted.profiling_info if n.node_type == "BinaryConvolution")
        self.form = f"BinaryConvolution, {node.exec_type}"

    def __call__(self) -> dict[str, int]:
        wall = timed_ns(self._plain.infer)
        self._counted.infer()
        spent = {"BinaryConvolution": 0, "FakeQuantize": 0}
        every = 0
        for node in self._counted.profiling_info:
            nanoseconds = round(node.real_time.total_seconds() * 1e9)
            every += nanoseconds
            if node.node_type in spent:
                spent[node.node_type] += nanoseconds
        layer = spent["BinaryConvolution"]
        return {"ms": layer, "binarized": layer + spent["FakeQuantize"], "nodes": every, "wall": wall}

    def dots(self) -> Any:
        return self._plain.get_output_tensor().data[0].transpose(1, 2, 0)


class TorchFp32(Peer):
    """PyTorch's float convolution (oneDNN), channels last, on one thread, activations already -1.0 and +1.0.

    Of the forms it offers (conv2d, conv2d with prepacked weights, linear) the fastest is taken. Padding is
    zeros, the only one it has built in: any other would cost it a copy.
    """

    package = "torch"
    type_name = "float32"

    def __init__(self, problem: Problem) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch, s = torch, problem.shape
        self._type = getattr(torch, self.type_name)
        self.pads = s.pad_value == 0 or not any(s.padding)
        x = torch.from_numpy(problem.frame_signs.transpose(2, 0, 1)[None].copy()).to(self._type)
        w = torch.from_numpy(problem.weight_signs.transpose(0, 3, 1, 2).copy()).to(self._type)
        if (s.padding[0], s.padding[2]) != (s.padding[1], s.padding[3]):  # uneven: padded ahead, for nothing
            x = torch.nn.functional.pad(x, (*s.padding[2:], *s.padding[:2]))
            padding = (0, 0)
        else:
            padding = (s.padding[0], s.padding[2])
        x = x.contiguous(memory_format=torch.channels_last)
        w = w.contiguous(memory_format=torch.channels_last)
        forms = self._forms(x, w, (s.stride, s.stride), padding)
        with torch.inference_mode():
            self.form = min(forms, key=lambda name: min(_seconds(forms[name]) for _ in range(4)))
        self._run = forms[self.form]

    def _forms(
        self, x: Any, w: Any, stride: tuple[int, int], padding: tuple[int, int]
    ) -> dict[str, Callable[[], Any]]:
        torch = self._torch
        forms = {"conv2d": lambda: torch.nn.functional.conv2d(x, w, None, stride, padding)}
        if tuple(x.shape[2:]) == tuple(w.shape[2:]) == (1, 1):
            flat_x, flat_w = x.reshape(1, -1), w.reshape(len(w), -1)
            forms["linear"] = lambda: torch.nn.functional.linear(flat_x, flat_w)[:, :, None, None]
        try:
            prepacked = torch.ops.mkldnn_prepacked
            packed = prepacked.conv2d_prepack(w, None, stride, padding, (1, 1), 1, tuple(x.shape), "none")
            prepacked.conv2d_run(x, packed)
        except (RuntimeError, AttributeError):  # built without oneDNN, or not for this type
            return forms
        return {**forms, "prepacked conv2d": lambda: prepacked.conv2d_run(x, packed)}

    def __call__(self) -> dict[str, int]:
        with self._torch.inference_mode():
            start = perf_counter()
            self._result = self._run()
            return {"ms": round(1e9 * (perf_counter() - start))}

    def dots(self) -> Any:
        return self._result[0].permute(1, 2, 0).float().numpy()


class TorchBf16(TorchFp32):
    """The same in bfloat16; sums above 256 are rounded to its eight bits."""

    type_name = "bfloat16"

    def expected(self, dots: Any) -> Any:
        return self._torch.from_numpy(dots).float().bfloat16().float().numpy()


class BnnLab(Peer):
    """bnn-lab's binary GEMM through its C interface, on one thread.

    The windows are gathered into a matrix ahead, untimed, as its library has no convolution. Zero padding
    counts as -1.
    """

    package = "bnn"
    form = "binary_gemm_u64 on gathered windows"

    @classmethod
    def library(cls) -> Path | None:
        """The wheel's C library, found without importing the package, which wants an older NumPy."""
        spec = importlib.util.find_spec(cls.package)
        folders = (spec.submodule_search_locations or []) if spec else []
        found = [path for folder in folders for path in Path(folder).glob("kernels/_binary_gemm_native*.so")]
        return found[0] if found else None

    @classmethod
    def missing(cls) -> str | None:
        try:
            metadata.version("bnn-lab")
        except metadata.PackageNotFoundError:
            return "bnn-lab is not installed"
        return None if cls.library() else "bnn-lab is installed without its C library"

    def __init__(self, problem: Problem) -> None:
        s = problem.shape
        library = ctypes.CDLL(str(self.library()))
        library.binary_gemm_set_num_threads(1)
        self._x = _windows(problem)
        self._w = np.ascontiguousarray(problem.weight.reshape(s.cout, -1))
        self._y = np.zeros((len(self._x), s.cout), np.float32)
        self._shape = (*s.output, s.cout)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (self._x, self._w, self._y))
        sizes = (len(self._x), s.cout, self._x.shape[1], s.kernel[0] * s.kernel[1] * s.cin)
        arguments = (*pointers, *(ctypes.c_int(size) for size in sizes))
        self._run: Callable[[], object] = lambda: library.binary_gemm_u64(*arguments)

    def __call__(self) -> dict[str, int]:
        return {"ms": timed_ns(self._run)}

    def dots(self) -> Any:
        return self._y.reshape(self._shape)


#: Every peer, by name. "ms" of OpenVINO is the node alone.
PEERS: dict[str, type[Peer]] = {
    "openvino": OpenVino,
    "torch_fp32": TorchFp32,
    "torch_bf16": TorchBf16,
    "bnn_lab": BnnLab,
}


def available(names: tuple[str, ...] = tuple(PEERS)) -> tuple[dict[str, type[Peer]], dict[str, str]]:
    """(the peers that can run here, why the others cannot)."""
    why = {name: PEERS[name].missing() for name in names}
    present = {name: PEERS[name] for name in names if why[name] is None}
    return present, {name: reason for name, reason in why.items() if reason}


def versions() -> dict[str, str]:
    """Versions of the peers' packages that are installed."""
    found = {}
    for package in ("openvino", "torch", "bnn-lab"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _windows(problem: Problem) -> Any:
    """uint64[Ho * Wo, kH * kW * Cw]: the words under each output's window, bits 0 in the padding."""
    s = problem.shape
    top, bottom, left, right = s.padding
    padded = np.pad(problem.frame, ((top, bottom), (left, right), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, s.kernel, axis=(0, 1))
    views = views[:: s.stride, :: s.stride].transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(views).reshape(views.shape[0] * views.shape[1], -1)
