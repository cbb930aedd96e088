"""A stream: all state of one video, and the step from a frame to its answer."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import numpy.typing as npt

from .bits import unpack_signs
from .decoding import Answer
from .errors import XnorError
from .frames import Frame
from .kernels.frame import REPORT, Kind, Path, Scratch, State, run
from .kernels.packed import dtypes, pack
from .kernels.step import windows_holding
from .model import Array, Mode, Model
from .plan import Plan
from .preprocess import Preprocessor
from .stats import LayerStats

_PATHS = {Path.DENSE: "dense", Path.CHANGED: "cached", Path.ROWS: "cached", Path.CLEAN: "clean"}


#: By which of the plan's sizes each array of a stream's scratch is as long as it is.
_SIZES = Scratch(
    risen="flips",
    fallen="flips",
    starts="row_starts",
    list_words="list_words",
    risen_places="flips",
    fallen_places="flips",
    counts="counts",
    set_entries="set_entries",
    set_starts="set_pixels",
    set_ones="set_pixels",
    set_sums="set_sums",
    pixels="pixels",
    more_pixels="pixels",
    registers="registers",
    identity="identity",
    band_f32="band_f32",
    band_u16="band_u16",
    patches="patches",
    timespec="timespec",
    report="report",
)


def _scratch(plan: Plan) -> Scratch:
    """The arrays the steps of one frame use in turn."""
    arrays = Scratch(
        *(np.zeros(plan.scratch[size], dtype) for size, dtype in zip(_SIZES, dtypes(Scratch), strict=True))
    )
    arrays.identity[:] = np.arange(len(arrays.identity))
    return arrays


class Stream:
    """Runs a model over the frames of one video.

    model : shared, never written.  mode : "cached" computes what the changes since the last frame can
    reach; "dense" computes every frame from nothing. Both give the same bits on every frame.
    plan : another one of the model than its own, by which kernels are chosen (plan.build_plan).
    threshold : for noisy cameras, 0 to 255, in units of the resized frame's values (as the input rule's step
        leaves them). Of each pixel the network sees the last value let through; a new one is let through
        only where some channel differs from that by more than this. Both modes give the bits that the frames
        so let through have, whole.

    One thread at a time may use a stream; different streams are independent.
    """

    def __init__(
        self, model: Model, mode: Mode = "cached", plan: Plan | None = None, *, threshold: int = 0
    ) -> None:
        if mode not in ("cached", "dense"):
            raise XnorError("mode 'cached' or 'dense'", repr(mode))
        is_integer = isinstance(threshold, int | np.integer) and not isinstance(threshold, bool)
        if not is_integer or not 0 <= threshold <= 255:
            raise XnorError("a threshold that is an integer from 0 to 255", repr(threshold))
        self.model, self.mode, self.threshold = model, mode, int(threshold)
        self._keep = mode == "cached"
        self._plan = plan or model.plan
        self._preprocess = Preprocessor(model.input_rule)
        state = pack(State(*(np.zeros(size + 128, name) for name, size in self._plan.state.items())))
        scratch = pack(_scratch(self._plan))
        self._state, self._scratch = state.views, scratch.views
        self._report = scratch.views.report.reshape(-1, REPORT)
        self._output, self._output_shape = self._plan.output[1] * self._plan.output[3], model.output_shape
        self._decoder: Callable[[Array], Answer]
        self._decoder_of = -1  # which of the preprocessor's preparations it is for
        steps, constants = self._plan.steps, self._plan.constants
        places = steps.ctypes.data, steps.nbytes, constants.address, state.address, scratch.address
        self._places = np.array(places, np.int64)
        self._began = 0.0
        for offset, words in self._plan.initial_bits:
            self._state.u64[offset : offset + words.size] = words
        self._stats: tuple[LayerStats, ...] | None = ()
        self.reset()

    def reset(self) -> None:
        """Forget all frames: the next one is let through and computed whole, as the first one was."""
        self._prepared = 0  # as the preprocessor was when the last frame came; 0: its state is not trusted

    def __call__(self, frame: Frame) -> Answer:
        """The answer for one frame, by the model's task.

        frame : uint8[H, W, 3] RGB, any size; a size other than the last frame's starts afresh. A network with
            one input channel also takes uint8[H, W], luminance; one that `takes_planes` also `Yuv420`.
        Returns `Detections` or `KeyPoints` in pixels of the frame; of a classifier what `values` returns.
        Raises FrameError for anything else; the next good frame then starts afresh.
        """
        return self.answer(self.values(frame))

    def answer(self, values: npt.NDArray[np.float32]) -> Answer:
        """What `__call__` makes of the last frame's `values`."""
        if self.model.decoding is None:
            return values
        if self._decoder_of != self._preprocess.prepared:
            self._decoder_of = self._preprocess.prepared
            self._decoder = self.model.decoding.decoder(self._output_shape, self._preprocess.placement)
        return self._decoder(values.reshape(self._output_shape))

    def values(self, frame: Frame) -> npt.NDArray[np.float32]:
        """The network's output for one frame, before it is decoded.

        A new float32 array of all output values (for a classifier, one logit a class). See `__call__`.
        """
        before, self._prepared = self._prepared, 0  # whatever fails from here on
        start = perf_counter()
        image = self._preprocess.begin(frame)
        self._began = perf_counter() - start
        afresh, keep = before != self._preprocess.prepared, self._keep
        values: Array = np.empty(self._output, np.float32)
        run(*image, values, afresh or not keep, keep, 0 if afresh else self.threshold, self._places)
        self._prepared, self._stats = self._preprocess.prepared, None
        return values

    @property
    def stats(self) -> tuple[LayerStats, ...]:
        """What the last frame took, step by step; empty before the first frame."""
        if self._stats is None:
            self._stats = tuple(
                LayerStats(
                    name=info.name,
                    kind=info.kind,
                    path=_PATHS[Path(int(path))],
                    rows=int(path) == Path.ROWS,
                    bits=info.bits,
                    flips=int(flips) if info.kind == "binary" else 0,
                    outputs=info.outputs,
                    skipped=info.outputs - int(outputs),
                    macs=info.macs,
                    seconds=int(nanoseconds) * 1e-9,
                )
                for info, (path, flips, outputs, nanoseconds, _) in zip(
                    self._plan.info, self._report, strict=True
                )
            )
        return self._stats

    @property
    def preprocess_seconds(self) -> float:
        """Wall-clock that the last frame's resizing and cropping took."""
        return self._began + int(self._report[0, 4]) * 1e-9

    @property
    def held_back(self) -> float:
        """Share of the last frame's input pixels that the threshold held back: changed, but too little."""
        return int(self._report[0, 1]) / self._plan.info[0].outputs

    def computed(self) -> tuple[npt.NDArray[np.bool_], ...]:
        """bool[H, W] of each step, in the order of `stats`: the output pixels that the last frame computed.

        All False before the first frame. A pixel that was computed need not have changed.
        """
        masks: list[npt.NDArray[np.bool_]] = []
        for step, (path, *_) in zip(self._plan.steps, self._report, strict=True):
            shape = int(step["ho"]), int(step["wo"])
            if self._stats == () or path in (Path.DENSE, Path.CLEAN):
                masks.append(np.full(shape, self._stats != () and path == Path.DENSE))
            elif step["kind"] in (Kind.FLOAT_CONV, Kind.POOL):  # keep no list of what they compute
                changed = self._mask(step["x_mask"], int(step["h"]), int(step["w"]))
                masks.append(windows_holding(changed, step))
            elif step["fused"] and self._plan.steps[len(masks) - 1]["kind"] == Kind.FLOAT_CONV:
                masks.append(masks[-1].copy())
            else:
                masks.append(self._mask(step["y_mask"], *shape))
        return tuple(masks)

    def signs(self) -> dict[str, npt.NDArray[np.bool_]]:
        """bool[H, W, C] of each Sign layer for the last frame, True being +1; all False before the first."""
        signs = {}
        for name, (offset, (height, width, channels)) in self._plan.bits.items():
            count = height * width * -(-channels // 64)
            words = self._state.u64[offset : offset + count].reshape(height, width, -1)
            signs[name] = unpack_signs(words, channels)
        return signs

    def _mask(self, offset: int, height: int, width: int) -> npt.NDArray[np.bool_]:
        mask: Array = self._state.u8[offset : offset + height * width]
        marked: npt.NDArray[np.bool_] = mask.reshape(height, width) != 0
        return marked

    @property
    def state_bytes(self) -> int:
        """Bytes that this stream holds: state, scratch, and buffers for frames of the last one's size.

        A frame allocates its answer and some objects of Python, nothing else.
        """
        own: int = sum(array.nbytes for array in (*self._state, *self._scratch))
        return own + self._preprocess.state_bytes
