"""From a file to answers: decoding, network and records together, on one core.

    python -m benchmarks.pipeline [MODEL:CLIP ...] [--frames N]        e.g. person:vtest.avi

What a user waits for, and no benchmark of the network alone tells: the frame is decoded, to
planes where the network takes them and else to RGB, run through a cached stream, decoded to boxes or key
points, and turned into COCO's records. The process keeps to one core, the decoder's threads with it. Frames a
second are those of the whole loop; the parts are medians. A dense stream with a decoder of its own takes
turns with it, of as many frames as in `xnor_rrm.bench`.
Writes results/pipeline.json.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from xnor_rrm.bench import TURN
from xnor_rrm.model import Mode, Model
from xnor_rrm.report import coco_results
from xnor_rrm.video import VideoReader

from . import output, record

PARTS = ("decode_ms", "network_ms", "records_ms")

CASES = ("person:vtest.avi", "person:highway.mp4", "pose:dance.mp4")


@contextmanager
def one_core() -> Iterator[None]:
    """This process, and the threads it starts, on one of its cores, where the system can do that (Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class _Lane:
    """A stream and a decoder of its own.  seconds : of each frame, those of PARTS."""

    def __init__(self, model: Model, mode: Mode, video: str | Path) -> None:
        reader = VideoReader(video, planes=model.input_rule.takes_planes)
        self._stream, self._frames = model.stream(mode), iter(reader)
        self._stream.values(first := next(self._frames))
        self.size = f"{first.shape[1]}x{first.shape[0]}"
        self.seconds: list[tuple[float, ...]] = []

    def run(self, frames: int) -> bool:
        """Up to so many frames more. Returns whether there were as many."""
        wanted = len(self.seconds) + frames
        now = perf_counter()
        for frame in islice(self._frames, frames):
            decoded = perf_counter()
            values = self._stream.values(frame)
            computed = perf_counter()
            answer = self._stream.answer(values)
            coco_results(answer, len(self.seconds))  # type: ignore[arg-type]  # no classifier is a case
            end = perf_counter()
            self.seconds.append((decoded - now, computed - decoded, end - computed))
            now = end
        return len(self.seconds) == wanted

    def milliseconds(self) -> list[float]:
        """Medians of the parts."""
        return [round(1e3 * statistics.median(part), 4) for part in zip(*self.seconds, strict=True)]


def measure(model: Model, video: str | Path, frames: int) -> dict[str, Any]:
    """size, frames; frames_per_s and median milliseconds of each part with a cached stream; of a dense one
    that takes turns with it, the network's, and how many times faster the cached one is. The first frame is
    left out."""
    with one_core():
        cached, dense = _Lane(model, "cached", video), _Lane(model, "dense", video)
        for done in range(0, frames, TURN):
            turn = min(TURN, frames - done)
            if not all([cached.run(turn), dense.run(turn)]):
                break
    parts = dict(zip(PARTS, cached.milliseconds(), strict=True))
    network = dict(zip(PARTS, dense.milliseconds(), strict=True))["network_ms"]
    return {
        "size": cached.size,
        "frames": len(cached.seconds),
        "frames_per_s": round(len(cached.seconds) / sum(map(sum, cached.seconds)), 1),
        **parts,
        "dense_network_ms": network,
        "speedup": round(network / parts["network_ms"], 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = output.parser(__doc__)
    parser.add_argument("cases", nargs="*", default=CASES, help="(%(default)s)")
    parser.add_argument("--frames", type=int, default=300, help="of each clip (%(default)s)")
    parser.add_argument("--results", type=Path, default=output.RESULTS, help="folder (%(default)s)")
    options = parser.parse_args(arguments)
    rows = {}
    for case in options.cases:
        name, clip = case.split(":", 1)
        video = record.clip_path(clip)
        if not video.exists():
            print(f"skipped {case}: not in {record.data_folder() / 'video'}")
            continue
        rows[case] = measure(record.open_model(name), video, options.frames)
        print(case, rows[case], flush=True)
    if rows:
        made_by = output.made_by("pipeline", arguments if arguments is not None else sys.argv[1:])
        print("written:", output.write(options.results, "pipeline", {**made_by, "cases": rows}))


if __name__ == "__main__":
    main()
