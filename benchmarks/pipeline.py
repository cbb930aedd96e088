"""From a file to answers: decoding, network and records together, on one core.

    python -m benchmarks.pipeline [MODEL:CLIP ...] [--frames N]        e.g. person:vtest.avi

What a user waits for, and no benchmark of the network alone tells: the frame is decoded to RGB, run through a
cached stream, decoded to boxes or key points, and turned into COCO's records. The process keeps to one core,
the decoder's threads with it. Frames a second are those of the whole loop; the parts are medians.
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

from xnor_rrm.model import Model
from xnor_rrm.report import coco_results
from xnor_rrm.video import VideoReader

from . import output, record

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


def measure(model: Model, video: str | Path, frames: int) -> dict[str, Any]:
    """frames, frames_per_s, size, and median milliseconds of each part; the first frame is left out."""
    parts: dict[str, list[float]] = {"decode_ms": [], "network_ms": [], "records_ms": []}
    stream = model.stream()
    with one_core():
        reader = iter(VideoReader(video))
        stream.values(size := next(reader))
        begin = now = perf_counter()
        for number, frame in enumerate(islice(reader, frames), 1):
            decoded = perf_counter()
            values = stream.values(frame)
            computed = perf_counter()
            coco_results(stream.answer(values), number)  # type: ignore[arg-type]  # no classifier is a case
            ends = perf_counter()
            seconds = decoded - now, computed - decoded, ends - computed
            for part, each in zip(parts.values(), seconds, strict=True):
                part.append(1e3 * each)
            now = ends
    count = len(parts["decode_ms"])
    return {
        "size": f"{size.shape[1]}x{size.shape[0]}",
        "frames": count,
        "frames_per_s": round(count / (now - begin), 1),
        **{name: round(statistics.median(part), 4) for name, part in parts.items()},
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
