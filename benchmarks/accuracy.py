"""The embedded networks against their teachers' labels, with their float twins beside them.

    python -m benchmarks.accuracy [--labels FOLDER] [--twins RUNS]

Labels are those of recipes/label.py; a twin is RUNS/NAME_float/NAME_float.xnor, as recipes/README.md makes
it, and left out where there is none. Clips are those that no recipe trains on, and of dance.mp4 for the key
points the last third. Writes results/evaluate_<network>_<clip>.json.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import xnor_rrm
from xnor_rrm.evaluate import evaluate, read_truth
from xnor_rrm.video import VideoReader

from . import output, record

#: Network, clip, and the kind of its labels.
CASES = (
    ("person", "pets2001_ds3_cam1_jpg", "persons"),
    ("person", "dance.mp4", "persons"),
    ("pose", "dance.mp4", "points_last_third"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = output.parser(__doc__)
    labels = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "xnor_rrm" / "labels"
    parser.add_argument("--labels", type=Path, default=labels, help="folder (the cache)")
    parser.add_argument("--twins", type=Path, default=output.ROOT / "runs", help="folder (runs)")
    parser.add_argument("--results", type=Path, default=output.RESULTS, help="folder (%(default)s)")
    options = parser.parse_args(arguments)
    for name, clip, kind in CASES:
        truth, video = options.labels / f"{clip}.{kind}.json", record.clip_path(clip)
        missing = next((path for path in (truth, video) if not path.exists()), None)
        if missing:
            print(f"skipped {name} on {clip}: no {missing.name}")
            continue
        model, twin = record.open_model(name), options.twins / f"{name}_float" / f"{name}_float.xnor"
        result = evaluate(
            model,
            VideoReader(video, planes=model.input_rule.takes_planes),
            read_truth(truth, model),
            xnor_rrm.load(twin) if twin.exists() else None,
            video=clip,
        )
        content = {**result, "model": name, **output.made_by("accuracy", [])}
        path = output.write(options.results, f"evaluate_{name}_{record.short_name(clip)}", content)
        print(f"{path.name}: identical {result['identical']}, {result['rows']}", flush=True)


if __name__ == "__main__":
    main()
