"""What the kernels set out to reach, and what they reached: the least favourable case of each bar."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

Json = dict[str, Any]
Case = tuple[float, str]  # a ratio, and the layer or clip it belongs to
Value = Callable[[str], float | None]

COLUMNS = ("bar", "at least", "reached", "case", "met")
FOUR = tuple(f"resnet18 {name}" for name in ("64@56", "128@28", "256@14", "512@7"))
#: Share of flipped bits, and P / cached at least, for each of the four.
CACHED = (("0.01", (6, 10, 15, 25)), ("0.05", (3.5, 5, 8, 10)))


def rows(kernels: Json | None, replay: Json | None) -> list[Sequence[str]]:
    """A row a bar, from results of kernels.py and replay.py; dashes where a bar was not measured."""
    found = [
        *_kernel_bars(kernels or {"layers": [], "geometric_means": {}}),
        *_replay_bars(replay or {"clips": {}}),
    ]
    return [
        (
            what,
            f"{least:g}",
            *((f"{got[0]:.3g}", got[1], _verdict(got[0], least)) if got else ("-", "-", "-")),
        )
        for what, least, got in found
    ]


def _kernel_bars(kernels: Json) -> list[tuple[str, float, Case | None]]:
    ratios = {f"{layer['network']} {layer['name']}": layer["ratios"] for layer in kernels["layers"]}
    outputs = {f"{layer['network']} {layer['name']}": layer["cout"] for layer in kernels["layers"]}
    wide = [name for name, count in outputs.items() if count >= 256 and "dense_vs_openvino" in ratios[name]]
    mean = kernels["geometric_means"].get("dense_vs_torch_fp32")

    def of(name: str) -> Value:
        return lambda layer: ratios.get(layer, {}).get(name)

    def cached(rate: str) -> Value:
        return lambda layer: ratios.get(layer, {}).get("cached_vs_popcount", {}).get(rate)

    return [
        ("OpenVINO node / P, ResNet-18's four 3x3", 1.0, _pick(min, of("popcount_vs_openvino"), FOUR)),
        ("OpenVINO node / dense, 256 outputs or more", 1.8, _pick(min, of("dense_vs_openvino"), wide)),
        ("OpenVINO / ours, float to float, the four", 2.5, _pick(min, of("whole_vs_openvino"), FOUR)),
        ("PyTorch fp32 / dense, geometric mean", 25, (mean, f"{len(ratios)} layers") if mean else None),
        *(
            (f"P / cached, {float(rate):.0%} flips, {name}", bar, _pick(min, cached(rate), [name]))
            for rate, least in CACHED
            for name, bar in zip(FOUR, least, strict=True)
        ),
        ("P / cached, 3% flips, 9216-4096", 30, _pick(min, cached("0.03"), ["fully_connected 9216-4096"])),
    ]


def _replay_bars(replay: Json) -> list[tuple[str, float, Case | None]]:
    clips = replay["clips"]

    def of(state: str, key: str) -> Value:
        return lambda clip: clips[clip][state][key]

    bars: list[tuple[str, float, Case | None]] = []
    for state in ("warm", "cold"):
        against_p, worst_layer = of(state, "speedup_x_flip_rate"), of(state, "worst_layer_choice_vs_dense")
        bars += [
            (f"replayed, {state}: P / choice x flip rate", 0.30, _pick(min, against_p, clips)),
            (
                f"replayed, {state}: PyTorch fp32 / choice",
                200,
                _pick(max, of(state, "choice_vs_torch_fp32"), clips),
            ),
            (f"replayed, {state}: dense / choice, any layer", 0.95, _pick(min, worst_layer, clips)),
        ]
    return bars


def _pick(pick: Any, value: Value, names: Collection[str]) -> Case | None:
    """The least or the largest ratio and its name; None unless all of them were measured."""
    known = [(ratio, name) for name in names if (ratio := value(name)) is not None]
    return pick(known) if known and len(known) == len(names) else None


def _verdict(got: float, least: float) -> str:
    return "yes" if got >= least else "**no**"
