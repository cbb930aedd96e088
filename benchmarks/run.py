"""One command for all measurements; then it rewrites docs/benchmarks.md and the README's table.

    python -m benchmarks.run [--only bench pipeline ...] [--models ...] [--clips ...] [--frames N] ...

bench    whole networks, dense against cached and other engines: results/bench_<model>_<clip>.json
pipeline from a file to answers, on one core: results/pipeline.json
accuracy embedded networks against their teachers: results/evaluate_<network>_<clip>.json
kernels  every kernel on the shape files, against other engines: results/kernels.json
replay   the kernels on what ResNet-18 feeds its layers (recorded first, if need be): results/replay.json
stems    float convolutions of first layers, against PyTorch's: results/stems.json

Real networks and clips come from ../shared/data or $XNOR_RRM_DATA; what needs them is skipped, with a word,
where they are absent. With --results the tables go to that folder too, and the repository stays as it is.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a script: find the package `benchmarks`, not the modules beside this file
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import accuracy, kernels, output, pipeline, record, replay, stems, tables
from benchmarks.layershapes import select
from benchmarks.openvino_network import OpenVinoLane, OpenVinoNetwork
from benchmarks.peers import OpenVino
from xnor_rrm.api import EMBEDDED
from xnor_rrm.bench import bench
from xnor_rrm.errors import XnorError
from xnor_rrm.model import Model
from xnor_rrm.video import VideoReader

PARTS = ("bench", "pipeline", "accuracy", "kernels", "replay", "stems")


def openvino_network(name: str, model: Model) -> OpenVinoNetwork | None:
    """The model in OpenVINO; None, with a word, where it cannot be had."""
    why = OpenVino.missing()
    if why is None:
        try:
            return OpenVinoNetwork(model)
        except (ValueError, RuntimeError) as error:
            why = str(error).splitlines()[0]
    print(f"{name} without OpenVINO: {why}")
    return None


def run_bench(models: Sequence[str], clips: Sequence[str], frames: int, results: Path) -> None:
    """Whole networks over clips; one JSON file each."""
    for name in models:
        try:
            model = record.open_model(name)
        except (XnorError, OSError) as error:
            print(f"skipped {name}: {error}")
            continue
        theirs = openvino_network(name, model)
        for clip in clips:
            video = VideoReader(record.clip_path(clip), planes=model.input_rule.takes_planes)
            lane = OpenVinoLane(model, theirs) if theirs else None
            measured = bench(model, video, frames, video=Path(clip).name, peer=lane)
            if lane:
                facts = lane.facts()
                measured["spread"]["openvino_ms"] = facts.pop("quartiles_ms")
                measured |= facts
            short = record.short_name(name), record.short_name(clip)
            command = [
                "--only",
                "bench",
                "--models",
                short[0],
                "--clips",
                Path(clip).name,
                "--frames",
                str(frames),
            ]
            made_by = output.made_by("run", command)
            content = {
                **measured,
                "model": short[0],
                "command": made_by["command"],
                "commit": made_by["commit"],
                "versions": made_by["versions"],
            }
            path = output.write(results, f"bench_{short[0]}_{short[1]}", content)
            print(
                f"{path.name}: identical {measured['identical']}, flipped {measured['flip_rate']:.2%}, "
                f"binary {measured['binary_speedup']}x, whole {measured['speedup']}x, "
                f"{measured['dense_ms']} ms dense, OpenVINO {measured.get('openvino_ms')} ms",
                flush=True,
            )


def run_replay(clips: Sequence[str], frames: int, recordings: Path, results: Path) -> None:
    """Record what ResNet-18 feeds its binary layers, where that was not done, and replay it."""
    try:
        model = record.open_model("resnet18")
    except (XnorError, OSError) as error:
        print(f"skipped replay: {error}")
        return
    paths = [record.record_clip("resnet18", model, clip, frames, recordings) for clip in clips]
    replay.main([*map(str, paths), "--results", str(results)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = output.parser(__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=PARTS)
    add("--models", nargs="+", default=[*EMBEDDED, *record.NETWORKS, "alexnet"], help="or files, for bench")
    add("--clips", nargs="+", default=record.clips(), help="names or paths (all of the data folder)")
    add("--frames", type=int, default=200, help="of each clip, for bench (%(default)s)")
    add("--replay-frames", type=int, default=60, help="of each clip, for replay (%(default)s)")
    add("--recordings", type=Path, default=record.recordings_folder(), help="folder (%(default)s)")
    add("--shapes", nargs="+", default=[], help="for kernels: NETWORK or NETWORK:LAYER (all)")
    add("--rounds", type=int, default=200, help="for kernels and stems, a layer, at most (%(default)s)")
    add("--seconds", type=float, default=8.0, help="for kernels and stems, a layer (%(default)s)")
    add("--results", type=Path, default=output.RESULTS, help="folder (%(default)s)")
    options = parser.parse_args(arguments)

    clips = [clip for clip in options.clips if record.clip_path(clip).exists()]
    for clip in (*(set(options.clips) - set(clips)), *(() if options.clips else ("every clip",))):
        print(
            f"skipped {clip}: not in {record.data_folder() / 'video'}; set XNOR_RRM_DATA to the data folder"
        )
    if "bench" in options.only and clips:
        run_bench(options.models, clips, options.frames, options.results)
    if "pipeline" in options.only and clips:
        pipeline.main(["--results", str(options.results)])
    if "accuracy" in options.only and clips:
        accuracy.main(["--results", str(options.results)])
    limits = ["--rounds", str(options.rounds), "--seconds", str(options.seconds)]
    if "kernels" in options.only:
        select(options.shapes)  # a misspelt name is told before the long part
        kernels.main([*options.shapes, *limits, "--results", str(options.results)])
    if "replay" in options.only and clips:
        run_replay(clips, options.replay_frames, options.recordings, options.results)
    if "stems" in options.only:
        stems.main([*limits, "--results", str(options.results)])
    tables.update(options.results)


if __name__ == "__main__":
    main()
