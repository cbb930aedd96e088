"""A stream's memory: all of it is there after two frames, and each later frame gives back what it takes."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from models import MOTIONS, Builder, every_kind, random_frames
from numba.core.runtime import _nrt_python, rtsys
from test_stream import ALWAYS, MIXED, laid_out

from xnor_rrm.model import INPUT, Model, Window
from xnor_rrm.stream import Stream

Array = np.ndarray[Any, Any]

#: Bytes that a frame may take besides its answer: objects of Python, whatever the size of the frame.
OBJECTS = 4096
#: Allocations of compiled code in a frame: one for each array that it is passed, freed when it returns.
HANDLES = 56

SAME = Window((3, 3), padding=(1, 1, 1, 1))


@pytest.fixture
def statistics() -> Iterator[None]:
    """Numba counts what compiled code allocates; cycles, which would be garbage, are not collected."""
    counted = _nrt_python.memsys_stats_enabled()
    _nrt_python.memsys_enable_stats()
    gc.collect()
    gc.disable()
    yield
    tracemalloc.stop()
    gc.enable()
    if not counted:
        _nrt_python.memsys_disable_stats()


def of_size(height: int, width: int, channels: int = 3, resize: int = 0) -> Model:
    """Signs read by a limit, a program and a pool, and a map as the answer."""
    net = Builder(np.random.default_rng(0), height, width, channels=channels)
    top = net.relu(net.affine(net.conv(INPUT, 20, SAME)))
    top = net.plus(net.affine(net.binary(net.affine(net.binary(top, 40, SAME)), 20, SAME)), top)
    net.softmax(net.upsample(net.conv(net.max_pool(top, SAME), 5, SAME), 2, "bilinear"))
    return net.model(resize=resize)


MODELS = {
    "every kind": lambda: every_kind(np.random.default_rng(0)),
    "large": lambda: of_size(40, 56),
    "grey": lambda: of_size(9, 12, channels=1),
    "resized": lambda: of_size(24, 24, resize=32),
    "grey, resized": lambda: of_size(24, 24, channels=1, resize=32),
}


@dataclass(frozen=True)
class Footprint:
    """Of each frame in turn: int64[n].

    most : bytes that it took at most.  allocated, kept : allocations of compiled code, and those not freed.
    """

    most: Array
    allocated: Array
    kept: Array


def footprint(stream: Stream, frames: list[Array]) -> Footprint:
    found = Footprint(*(np.zeros(len(frames), np.int64) for _ in range(3)))
    for i, frame in enumerate(frames):
        before, counts = tracemalloc.get_traced_memory()[0], rtsys.get_allocation_stats()
        tracemalloc.reset_peak()
        stream(frame)
        now = rtsys.get_allocation_stats()
        found.most[i] = tracemalloc.get_traced_memory()[1] - before
        found.allocated[i] = now.alloc - counts.alloc
        found.kept[i] = found.allocated[i] - (now.free - counts.free)
    return found


def array_bytes() -> int:
    """What NumPy holds for the values of arrays."""
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)


@pytest.mark.usefixtures("statistics")
@pytest.mark.parametrize("threshold", [0, 12])
@pytest.mark.parametrize("mode", ["cached", "dense"])
@pytest.mark.parametrize("share", [MIXED, ALWAYS])
@pytest.mark.parametrize("name", MODELS)
def test_no_frame_after_the_second_takes_more(name, share, mode, threshold):
    """Whatever changes, and how much; frames are the caller's, some of them read-only or mirrored."""
    model = laid_out(MODELS[name](), share)
    rng, size = np.random.default_rng(1), model.input_rule.crop
    size = (200, 260) if model.input_rule.resize else size  # far more bytes than the answer
    frames = [frame for motion in (*MOTIONS, *MOTIONS) for frame in random_frames(rng, 2, *size, motion)]
    frames[5::7] = [frame[::-1, ::-1] for frame in frames[5::7]]
    for frame in frames[3::5]:
        frame.flags.writeable = False
    stream = model.stream(mode, threshold=threshold)
    addresses = [array.ctypes.data for array in (*stream._state, *stream._scratch)]
    tracemalloc.start()
    footprint(stream, frames[:2])
    before = array_bytes()
    found = footprint(stream, frames[2:])
    assert array_bytes() - before == sum(array.nbytes for array in vars(found).values())
    assert found.most.max() <= 4 * model.classes + OBJECTS
    assert (found.kept == 0).all()
    assert found.allocated.max() <= HANDLES
    assert addresses == [array.ctypes.data for array in (*stream._state, *stream._scratch)]

    # Python's own objects, counted: tracemalloc misses some that Numba frees where it calls compiled code.
    tracemalloc.stop()
    blocks = []
    for _ in range(3):
        for frame in 6 * frames:
            stream(frame)
        blocks.append(sys.getallocatedblocks())
    assert blocks[2] - blocks[1] < len(frames)  # a sixth of an object a frame: free lists fill up
