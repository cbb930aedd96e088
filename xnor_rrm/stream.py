"""A stream: all state of one video, and the step from a frame to its answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .errors import XnorError
from .kernels.frame import REPORT, Path, run
from .kernels.simd import aligned
from .model import Array, Mode, Model
from .plan import Plan
from .preprocess import Preprocessor
from .stats import LayerStats

_PATHS = {Path.DENSE: "dense", Path.CHANGED: "cached", Path.ROWS: "cached", Path.CLEAN: "clean"}

def _scratch(plan: Plan) -> tuple[Array, ...]:
    """The arrays the steps of one frame share, in the order of `frame.run`."""
    sizes = plan.scratch
    return (
        aligned(sizes["entries"], np.int32),
        aligned(sizes["places"], np.int32),
        aligned(sizes["row_starts"], np.int64),
        aligned(sizes["pixels"], np.int64),
        aligned(sizes["registers"], np.float32),
        aligned(72, np.uint64),
        aligned(2, np.int64),
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
        self._state = {name: aligned(size + 64, name) for name, size in self._plan.state.items()}
        for offset, words in self._plan.initial_bits:
            self._state["uint64"][offset : offset + words.size] = words
        self._arguments = (*self._plan.constants, *self._state.values(), *_scratch(self._plan))
        self._stats: tuple[LayerStats, ...] | None = ()
        self.reset()

    def reset(self) -> None:
        """Forget all frames: the next one is computed from nothing, as the first one was."""
        self._frame_size: tuple[int, ...] | None = None

    def __call__(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The network's output for one frame.

        frame : uint8[H, W, 3] RGB, any size; a size other than the last frame's starts afresh.
        Returns a new float32 array of all output values (for a classifier, one logit a class).
        Raises FrameError for anything else; the next good frame then starts afresh.
        """
        started = self._frame_size
        self._frame_size = None  # whatever fails from here on, the caches are not trusted again
        pixels = self._preprocess(frame)
        all_pixels = self.mode == "dense" or started != frame.shape
        keep = self.mode == "cached"
        run(self._plan.steps, pixels.reshape(-1), all_pixels, keep, self._report, *self._arguments)
        self._frame_size = frame.shape
        self._stats = None
        offset, count, stride, channels = self._plan.output
        values = self._state["float32"][offset : offset + count * stride]
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
                for info, (path, flips, outputs, nanoseconds) in zip(self._plan.info, self._report, strict=True)
            )
        return self._stats

    @property
    def state_bytes(self) -> int:
        """Bytes of state and scratch this stream holds."""
        return sum(array.nbytes for array in self._arguments[len(self._plan.constants) :])
