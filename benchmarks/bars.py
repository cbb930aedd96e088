"""What was set out to be reached, and what was: the least favourable layer, clip or stem of each bar."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Case = tuple[float, str]  # a ratio, and the layer or clip it belongs to
Value = Callable[[str], float | None]

COLUMNS = ("bar", "at least", "reached", "case", "met")
FOUR = tuple(f"resnet18 {name}" for name in ("64@56", "128@28", "256@14", "512@7"))
#: Share of flipped bits, and P / cached at least, for each of the four.
CACHED = (("0.01", (6, 10, 15, 25)), ("0.05", (3.5, 5, 8, 10)))

# --- clips ----------------------------------------------------------------------------------------

#: How each clip of the data folder was filmed, and stored, which no measurement here tells; by its README.
#: Stored frame by frame, a clip has noise in every pixel of every frame, whatever stands still: it is a group
#: of its own. A camera that hardly moves (dance, makeup) counts as fixed, one in a driving car as moving.
FILMED = {
    "vtest.avi": "fixed",
    "highway.mp4": "fixed",
    "car-detection.mp4": "fixed",
    "dance.mp4": "fixed",
    "makeup.avi": "fixed",
    "cup.mp4": "fixed",
    "carphone_pristine.mp4": "moving",
    "biking.avi": "moving",
    "rowing.avi": "moving",
    "bikes.mp4": "moving",
    "pets2001_ds3_cam1_jpg": "intra-coded",
    "wallflower_wavingtrees_bmp": "intra-coded",
}
#: A fixed camera's clip is quiet where fewer of ResNet-18's bits than this flip, and else busy. ResNet-18's
#: for every network, so that a clip is of one group. The share of unchanged pixels would not do: a codec
#: copies most of a busy square (vtest: 66 %), and less of a quiet road (car-detection: 43 %).
QUIET_BELOW = 0.05
YARDSTICK = "resnet18"


def groups(benches: Iterable[Json]) -> dict[str, str]:
    """Of each clip: quiet, busy, moving or intra-coded. Unknown and unmeasured ones are left out."""
    flips = {b["video"]: b["flip_rate"] for b in benches if b["model"] == YARDSTICK}
    found = {}
    for video, filmed in FILMED.items():
        if filmed != "fixed":
            found[video] = filmed
        elif video in flips:
            found[video] = "quiet" if flips[video] < QUIET_BELOW else "busy"
    return found


# --- bars -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """what : a ratio or a share.  limit : its least, with `most` its largest.  got : its worst case."""

    what: str
    limit: float
    got: Case | None
    most: bool = False

    @property
    def row(self) -> Sequence[str]:
        """Cells of `COLUMNS`; dashes where it was not measured."""
        limit = f"at most {self.limit:g}" if self.most else f"{self.limit:.3g}"
        if self.got is None:
            return self.what, limit, "-", "-", "-"
        value, case = self.got
        met = value <= self.limit if self.most else value >= self.limit
        return self.what, limit, f"{value:.3g}", case, "yes" if met else "**no**"


def rows(
    kernels: Json | None,
    replay: Json | None,
    benches: Sequence[Json] = (),
    stems: Json | None = None,
    evaluations: Sequence[Json] = (),
    pipeline: Json | None = None,
) -> list[Sequence[str]]:
    """A row a bar, from results of run.py's parts; dashes where a bar was not measured."""
    bars = [
        *_network_bars(benches),
        *_task_bars(benches, evaluations, pipeline or {"cases": {}}),
        *_stem_bars(stems or {"stems": []}),
        *_kernel_bars(kernels or {"layers": [], "geometric_means": {}}),
        *_replay_bars(replay or {"clips": {}}),
    ]
    return [bar.row for bar in bars]


def over(bench: Json, slower: str, faster: str) -> float | None:
    """The ratio of two of its times; 0 if dense and cached differed on a frame, None if a time is missing."""
    if not bench.get(slower) or not bench.get(faster):
        return None
    return float(bench[slower] / bench[faster]) if bench["identical"] else 0.0


#: Network, group, and dense / cached at least.
SPEEDUPS = (
    ("resnet18", "quiet", 4),
    ("resnet18", "busy", 1.8),
    ("resnet18", "moving", 1.1),
    ("quicknet", "quiet", 3),
    ("quicknet", "busy", 1.5),
    ("quicknet", "moving", 0.95),
    ("resnet18", "intra-coded", 0.95),
    ("quicknet", "intra-coded", 0.95),
)


def _network_bars(benches: Sequence[Json]) -> list[Bar]:
    group = groups(benches)
    by_clip = {
        network: {b["video"]: b for b in benches if b["model"] == network} for network, _, _ in SPEEDUPS
    }
    resnet = by_clip["resnet18"]

    def of(network: str, slower: str, faster: str) -> Value:
        return lambda video: over(by_clip[network][video], slower, faster)

    def within(network: str, name: str) -> list[str]:
        return [video for video in by_clip[network] if group.get(video) == name]

    quietest = sorted(resnet, key=lambda video: float(resnet[video]["flip_rate"]))[:1]
    return [
        Bar(
            "PyTorch fp32 / dense, resnet18",
            8,
            _pick(min, of("resnet18", "torch_fp32_ms", "dense_ms"), resnet),
        ),
        *(
            Bar(
                f"dense / cached, {network}, {name}",
                least,
                _pick(min, of(network, "dense_ms", "cached_ms"), within(network, name)),
            )
            for network, name, least in SPEEDUPS
        ),
        Bar(
            "PyTorch fp32 / cached, resnet18, quietest",
            40,
            _pick(min, of("resnet18", "torch_fp32_ms", "cached_ms"), quietest),
        ),
        Bar("OpenVINO / dense, resnet18", 2, _pick(min, of("resnet18", "openvino_ms", "dense_ms"), resnet)),
        Bar(
            "overhead, share of cached, resnet18",
            0.05,
            _pick(max, lambda video: resnet[video].get("overhead"), resnet),
            most=True,
        ),
    ]


#: Scores of an evaluation, and how they are called.
MEASURES = {"ap50": "AP50", "ap": "AP .5:.95", "pck": "PCK@0.2"}
#: Network, clips, and dense / cached at least.
TASK_SPEEDUPS = (("person", ("vtest.avi", "highway.mp4"), 3), ("pose", ("dance.mp4",), 2.5))
#: Network, score, and its distance to the float twin's at most.
DISTANCES = (("person", "ap50", 0.08), ("pose", "pck", 0.05))
#: Frames a second from the file, at 768x576.
PIPELINE, RATE = "person:vtest.avi", 300


def _task_bars(benches: Sequence[Json], evaluations: Sequence[Json], pipeline: Json) -> list[Bar]:
    speedups = {(b["model"], b["video"]): over(b, "dense_ms", "cached_ms") for b in benches}

    def distance(evaluation: Json, score: str) -> float | None:
        scores = {row["name"]: row.get(score) for row in evaluation["rows"]}
        twin, binary = scores.get("float twin"), scores["binary dense"]
        return None if twin is None or binary is None else float(twin - binary)

    rate = pipeline["cases"].get(PIPELINE)
    found = [
        Bar(
            f"dense / cached, {network}, {' and '.join(clips)}",
            least,
            _pick(min, lambda clip, network=network: speedups.get((network, clip)), clips),
        )
        for network, clips, least in TASK_SPEEDUPS
    ]
    for network, score, most in DISTANCES:
        mine = {each["video"]: distance(each, score) for each in evaluations if each["model"] == network}
        worst = _pick(max, lambda video, mine=mine: mine[video], mine) if mine else None
        found.append(Bar(f"{MEASURES[score]} of the float twin less {network}'s", most, worst, most=True))
    reached = (float(rate["frames_per_s"]), PIPELINE) if rate else None
    return [*found, Bar("frames a second from the file, 768x576", RATE, reached)]


def _stem_bars(stems: Json) -> list[Bar]:
    ratios = {stem["name"]: stem["ratios"] for stem in stems["stems"]}
    worst = _pick(min, lambda name: ratios[name]["dense_vs_torch"], ratios)
    return [Bar("oneDNN / dense, stems (1.3x its time)", 1 / 1.3, worst)]


def _kernel_bars(kernels: Json) -> list[Bar]:
    ratios = {f"{layer['network']} {layer['name']}": layer["ratios"] for layer in kernels["layers"]}
    outputs = {f"{layer['network']} {layer['name']}": layer["cout"] for layer in kernels["layers"]}
    wide = [name for name, count in outputs.items() if count >= 256 and "dense_vs_openvino" in ratios[name]]
    mean = kernels["geometric_means"].get("dense_vs_torch_fp32")

    def of(name: str) -> Value:
        return lambda layer: ratios.get(layer, {}).get(name)

    def cached(rate: str) -> Value:
        return lambda layer: ratios.get(layer, {}).get("cached_vs_popcount", {}).get(rate)

    return [
        Bar("OpenVINO node / P, ResNet-18's four 3x3", 1.0, _pick(min, of("popcount_vs_openvino"), FOUR)),
        Bar("OpenVINO node / dense, 256 outputs or more", 1.8, _pick(min, of("dense_vs_openvino"), wide)),
        Bar("OpenVINO / ours, float to float, the four", 2.5, _pick(min, of("whole_vs_openvino"), FOUR)),
        Bar("PyTorch fp32 / dense, geometric mean", 25, (mean, f"{len(ratios)} layers") if mean else None),
        *(
            Bar(f"P / cached, {float(rate):.0%} flips, {name}", least, _pick(min, cached(rate), [name]))
            for rate, limits in CACHED
            for name, least in zip(FOUR, limits, strict=True)
        ),
        Bar("P / cached, 3% flips, 9216-4096", 30, _pick(min, cached("0.03"), ["fully_connected 9216-4096"])),
    ]


def _replay_bars(replay: Json) -> list[Bar]:
    clips = replay["clips"]

    def of(state: str, key: str) -> Value:
        return lambda clip: clips[clip][state][key]

    bars: list[Bar] = []
    for state in ("warm", "cold"):
        against_p, worst_layer = of(state, "speedup_x_flip_rate"), of(state, "worst_layer_choice_vs_dense")
        floats = of(state, "choice_vs_torch_fp32")
        bars += [
            Bar(f"replayed, {state}: P / choice x flip rate", 0.30, _pick(min, against_p, clips)),
            Bar(f"replayed, {state}: PyTorch fp32 / choice", 200, _pick(max, floats, clips)),
            Bar(f"replayed, {state}: dense / choice, any layer", 0.95, _pick(min, worst_layer, clips)),
        ]
    return bars


def _pick(pick: Any, value: Value, names: Collection[str]) -> Case | None:
    """The least or the largest ratio and its name; None unless all of them were measured."""
    known = [(ratio, name) for name in names if (ratio := value(name)) is not None]
    return pick(known) if known and len(known) == len(names) else None
