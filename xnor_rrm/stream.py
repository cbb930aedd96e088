"""A stream: all state of one video, and the step from a frame to its answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .bits import unpack_signs
from .errors import XnorError
from .kernels.frame import REPORT, Path, Scratch, State, run
from .kernels.simd import aligned
from .model import Array, Mode, Model
from .plan import Plan
from .preprocess import Preprocessor
from .stats import LayerStats

_PATHS = {Path.DENSE: "dense", Path.CHANGED: "cached", Path.ROWS: "cached", Path.CLEAN: "clean"}


def _scratch(plan: Plan) -> Scratch:
    """The arrays the steps of one frame use in turn."""
    sizes = plan.scratch

    def new(name: str, dtype: Any) -> Array:
        array: Array = aligned(sizes[name], dtype)
        return array

    identity = new("identity", np.int64)
    identity[:] = np.arange(len(identity))
    return Scratch(
        risen=new("flips", np.int32),
        risen_starts=new("row_starts", np.int64),
        fallen=new("flips", np.int32),
        fallen_starts=new("row_starts", np.int64),
        risen_places=new("flips", np.int32),
        fallen_places=new("flips", np.int32),
        planes=aligned(80, np.uint64),
        pixels=new("pixels", np.int64),
        more_pixels=new("pixels", np.int64),
        registers=new("registers", np.float32),
        identity=identity,
        band_f32=new("band_f32", np.float32),
        band_u16=new("band_u16", np.uint16),
        timespec=aligned(2, np.int64),
    )


class Stream:
    """Runs a model over the frames of one video.

    model : shared, never written.  mode : "cached" computes what the changes since the last frame can
    reach; "dense" computes every frame from nothing. Both give the same bits on every frame.

    One thread at a time may use a stream; different streams are independent.
    """

    def __init__(self, model: Model, mode: Mode = "cached") -> None:
        if mode not in ("cached", "dense"):
            raise XnorError("mode 'cached' or 'dense'", repr(mode))
        self.model, self.mode = model, mode
        self._plan = model.plan
        self._preprocess = Preprocessor(model.input_rule)
        self._report = np.zeros((len(self._plan.steps), REPORT), np.int64)
        self._state = State(*(aligned(size + 128, name) for name, size in self._plan.state.items()))
        for offset, words in self._plan.initial_bits:
            self._state.u64[offset : offset + words.size] = words
        self._scratch = _scratch(self._plan)
        self._stats: tuple[LayerStats, ...] | None = ()
        self.reset()

    def reset(self) -> None:
        """Forget all frames: the next one is computed from nothing, as the first one was."""
        self._frame_size: tuple[int, ...] | None = None

    def __call__(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The network's output for one frame.

        frame : uint8[H, W, 3] RGB, any size; a size other than the last frame's starts afresh. A network with
            one input channel also takes uint8[H, W], luminance.
        Returns a new float32 array of all output values (for a classifier, one logit a class).
        Raises FrameError for anything else; the next good frame then starts afresh.
        """
        started = self._frame_size
        self._frame_size = None  # whatever fails from here on, the caches are not trusted again
        pixels = self._preprocess(frame)
        all_pixels = self.mode == "dense" or started != frame.shape
        keep = self.mode == "cached"
        plan = self._plan
        run(
            plan.steps,
            pixels.reshape(-1),
            all_pixels,
            keep,
            self._report,
            plan.constants,
            self._state,
            self._scratch,
        )
        self._frame_size = frame.shape
        self._stats = None
        offset, count, stride, channels = plan.output
        values: npt.NDArray[np.float32] = self._state.f32[offset : offset + count * stride]
        return values.reshape(count, stride)[:, :channels].flatten()

    @property
    def stats(self) -> tuple[LayerStats, ...]:
        """What the last frame took, step by step; empty before the first frame."""
        if self._stats is None:
            self._stats = tuple(
                LayerStats(
                    name=info.name,
                    kind=info.kind,
                    path=_PATHS[Path(int(path))],
                    bits=info.bits,
                    flips=int(flips) if info.kind == "binary" else 0,
                    outputs=info.outputs,
                    skipped=info.outputs - int(outputs),
                    macs=info.macs,
                    seconds=int(nanoseconds) * 1e-9,
                )
                for info, (path, flips, outputs, nanoseconds) in zip(
                    self._plan.info, self._report, strict=True
                )
            )
        return self._stats

    def signs(self) -> dict[str, npt.NDArray[np.bool_]]:
        """bool[H, W, C] of each Sign layer for the last frame, True being +1; all False before the first."""
        signs = {}
        for name, (offset, (height, width, channels)) in self._plan.bits.items():
            count = height * width * -(-channels // 64)
            words = self._state.u64[offset : offset + count].reshape(height, width, -1)
            signs[name] = unpack_signs(words, channels)
        return signs

    @property
    def state_bytes(self) -> int:
        """Bytes of state and scratch this stream holds."""
        return sum(array.nbytes for array in (*self._state, *self._scratch))
