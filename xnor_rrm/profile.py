"""Where the time of a network goes on one video: step by step, frame by frame, and where on the frame."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .bench import Lane, bench
from .errors import VideoError, XnorError
from .frames import Frame, Pixels
from .model import BinaryConv2d, Model
from .preprocess import Preprocessor
from .report import PROFILE_COLUMNS, profile_facts, profile_rows, short, text_of, write_whole
from .stats import flip_rate, over_input

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

PLOT_SUFFIXES = (".png", ".html")

#: Steps that have a bar of their own, the slowest; the others share one.
BARS = 35

DENSE_COLOUR, CACHED_COLOUR = "#a9a9a9", "#1764ab"


@dataclass(frozen=True, eq=False)
class Profile:
    """What `profile` measured.

    result : as of `bench`; its `per_layer` with `state_bytes` of each step.
    dense_ms, cached_ms, flip_rates : float64[n] of each frame after the first.
    recomputed, flipped : float64[H, W] over the input, of the cached stream, mean over these frames: share of
        outputs computed, and share of input bits of binary layers flipped. A step counts by its
        multiply-accumulates.
    seen : uint8[H, W, C], the last frame as the network's input: resized and cropped.
    """

    result: Mapping[str, Any]
    dense_ms: Floats
    cached_ms: Floats
    flip_rates: Floats
    recomputed: Floats
    flipped: Floats
    seen: Pixels


def profile(
    model: Model,
    frames: Iterable[Frame],
    max_frames: int | None = None,
    *,
    video: str = "",
    threshold: int = 0,
) -> Profile:
    """Run a dense and a cached stream in turns as `bench` does, whose parameters these are, and look closer.

    Raises VideoError where there are fewer than two frames: on the first one nothing is cached.
    """
    watcher = _Watcher(model)
    result = bench(model, frames, max_frames, video=video, threshold=threshold, peers=False, watch=watcher)
    dense, cached = watcher.lanes
    if not watcher.frames:
        raise VideoError("at least two frames", "one", "On the first one nothing is cached.")
    steps = [
        {**step, "state_bytes": info.state}
        for step, info in zip(result["per_layer"], model.plan.info, strict=True)
    ]
    return Profile(
        result={**result, "per_layer": steps},
        dense_ms=1e3 * np.array(dense.seconds[1:]),
        cached_ms=1e3 * np.array(cached.seconds[1:]),
        flip_rates=np.array([flip_rate(stats) for stats in cached.stats[1:]]),
        recomputed=watcher.recomputed(),
        flipped=watcher.flipped(),
        seen=Preprocessor(model.input_rule)(watcher.last).copy(),
    )


class _Watcher:
    """Adds up, frame by frame, what each step computed and which signs flipped.

    lanes : dense and cached.  last : frame.  frames : how many after the first.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._computed = [np.zeros((int(step["ho"]), int(step["wo"]))) for step in model.plan.steps]
        self._flips = {name: np.zeros(shape[:2]) for name, (_, shape) in model.plan.bits.items()}
        self._signs: dict[str, npt.NDArray[np.bool_]] = {}
        self.frames = -1

    def __call__(self, frame: Frame, dense: Lane, cached: Lane) -> None:
        self.lanes, self.last = (dense, cached), frame
        self.frames += 1
        before, self._signs = self._signs, cached.stream.signs()
        if self.frames:
            for total, mask in zip(self._computed, cached.stream.computed(), strict=True):
                total += mask
            for name, signs in self._signs.items():
                self._flips[name] += (signs != before[name]).mean(axis=-1)

    def recomputed(self) -> Floats:
        """Share of outputs computed, by place."""
        steps = zip(self._computed, self._model.plan.info, strict=True)
        return self._over_input([(total, info.macs) for total, info in steps])

    def flipped(self) -> Floats:
        """Share of bits flipped, by place."""
        binary = [layer for layer in self._model.layers if isinstance(layer, BinaryConv2d)]
        return self._over_input([(self._flips[layer.inputs[0]], self._model.macs(layer)) for layer in binary])

    def _over_input(self, totals: list[tuple[Floats, int]]) -> Floats:
        """Mean over steps, by their weights, and over the frames."""
        return over_input(totals, *self._model.input_shape[:2]) / max(self.frames, 1)


# --- pictures -------------------------------------------------------------------------------------


def require_matplotlib() -> None:
    """Raise XnorError, saying how to install it, unless matplotlib is there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise XnorError(
            "matplotlib, which draws the plot", "none installed", 'Run: pip install "xnor-rrm[plot]"'
        )


def write_plot(path: Path, profile: Profile) -> None:
    """Write the picture as .png, or a page with picture, facts and table as .html, whole or not at all."""
    png = picture(profile)
    write_whole(path, png if path.suffix == ".png" else _page(profile, png).encode("utf-8"))


def picture(profile: Profile) -> bytes:
    """PNG, 1200 pixels wide: times and flips over frames, work over the frame, times by step."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Names come from files and may hold anything: no formulas, and no word about missing glyphs.
    style: dict[Any, Any] = {
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
    }
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a title may hold what the font has not
        figure = Figure(figsize=(12, 14), dpi=100, layout="constrained")
        grid = figure.add_gridspec(4, 2, height_ratios=(2, 1, 4, 4))
        times = figure.add_subplot(grid[0, :])
        _draw_times(times, profile)
        _draw_flips(figure.add_subplot(grid[1, :], sharex=times), profile)
        flips, computed = profile.flipped, profile.recomputed
        _draw_map(figure, grid[2, 0], flips, profile.seen, "Where bits flipped", "% of the input bits")
        _draw_map(figure, grid[3, 0], computed, profile.seen, "What was computed again", "% of the outputs")
        _draw_steps(figure.add_subplot(grid[2:, 1]), profile)
        png = io.BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


def _draw_times(axes: Axes, profile: Profile) -> None:
    result = profile.result
    frames = np.arange(1, len(profile.dense_ms) + 1)
    top = 1.2 * float(np.quantile([*profile.dense_ms, *profile.cached_ms], 0.98))
    for name, values, colour in (
        ("dense", profile.dense_ms, DENSE_COLOUR),
        ("cached", profile.cached_ms, CACHED_COLOUR),
    ):
        beyond = int((values > top).sum())
        label = f"{name}, median {np.median(values):.3g} ms" + (
            f" ({beyond} beyond the top)" if beyond else ""
        )
        axes.plot(frames, values, color=colour, linewidth=1.3, label=label)
    axes.set(ylim=(0, top), xlim=(1, max(len(frames), 2)), ylabel="ms a frame")
    axes.tick_params(labelbottom=False)
    axes.legend(loc="lower right", ncols=2, framealpha=0.85, edgecolor="none")
    speedup, names = (
        result["speedup"] or float("nan"),
        f"{short(result['model'], 40)} on {short(result['video'], 40)}",
    )
    axes.set_title(f"{names}: a cached frame is {speedup:.2f} times as fast as a dense one", loc="left")


def _draw_flips(axes: Axes, profile: Profile) -> None:
    frames, flips = np.arange(1, len(profile.flip_rates) + 1), 100 * profile.flip_rates
    axes.fill_between(frames, flips, color=CACHED_COLOUR, alpha=0.35, linewidth=0)
    axes.set(ylim=(0, None), xlabel="frame", ylabel="% flipped")
    axes.set_title(
        f"Input bits of binary layers flipped since the frame before: {flips.mean():.1f} % on average",
        loc="left",
    )


def _draw_map(figure: Figure, place: Any, shares: Floats, seen: Pixels, title: str, unit: str) -> None:
    axes, percent = figure.add_subplot(place), 100 * shares
    axes.imshow(64 + seen.mean(axis=2) / 2, cmap="gray", vmin=0, vmax=255)  # pale: colours stay legible
    top = max(float(np.quantile(percent, 0.999)), 1e-9)
    drawn = axes.imshow(percent, cmap="inferno", alpha=0.65, vmin=0, vmax=top, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axes)
    bar.ax.set_facecolor("0.5")  # as the colours look over the frame
    bar.set_label(f"{unit}, mean over frames and layers")
    axes.set(xlabel="column of the input", ylabel="row of the input")
    axes.set_title(f"{title}: {percent.mean():.1f} % on average", loc="left")


def _draw_steps(axes: Axes, profile: Profile) -> None:
    steps = profile.result["per_layer"]
    slowest = sorted(range(len(steps)), key=lambda i: -(steps[i]["dense_ms"] + steps[i]["cached_ms"]))[:BARS]
    bars = [(steps[i]["name"], steps[i]["dense_ms"], steps[i]["cached_ms"]) for i in sorted(slowest)]
    others = [step for i, step in enumerate(steps) if i not in slowest]
    if others:
        sums = (sum(step[name] for step in others) for name in ("dense_ms", "cached_ms"))
        bars.append((f"{len(others)} other steps", *sums))
    places = np.arange(len(bars))
    names, dense, cached = zip(*bars, strict=True)
    axes.barh(places - 0.2, dense, 0.4, color=DENSE_COLOUR, label="dense")
    axes.barh(places + 0.2, cached, 0.4, color=CACHED_COLOUR, label="cached")
    axes.set_yticks(places, [short(name) for name in names])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("ms a frame (median)")
    axes.legend(loc="lower right", frameon=False)
    first = max(steps, key=lambda step: step["cached_ms"])
    total = sum(step["cached_ms"] for step in steps)
    share = first["cached_ms"] / total if total else 0.0
    axes.set_title(f"Time by step: most, {share:.0%}, in {short(first['name'], 20)}", loc="left")


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.4 sans-serif; max-width: 1200px; margin: 1em auto; padding: 0 1em; color: #222 }}
img {{ max-width: 100% }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ padding: .15em .8em; text-align: left; border-bottom: 1px solid #ddd }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
</style></head><body>
<h1>{title}</h1>
<img alt="Times over frames, work over the frame, and times by step; in numbers below." src="{source}">
<table>{facts}</table>
<table>{steps}</table>
</body></html>
"""


def _page(profile: Profile, png: bytes) -> str:
    """A page that needs nothing else: the picture is inside it."""
    facts, rows = profile_facts(profile.result), profile_rows(profile.result)
    return _PAGE.format(
        title=html.escape(f"{profile.result['model']} on {profile.result['video']}"),
        source=f"data:image/png;base64,{base64.b64encode(png).decode()}",
        facts="".join(
            f"<tr><th>{html.escape(name)}</th>{_cell(value)}</tr>" for name, value in facts.items()
        ),
        steps="".join(
            ["<tr>", *(f"<th>{html.escape(column)}</th>" for column in PROFILE_COLUMNS), "</tr>"]
            + [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
        ),
    )


def _cell(value: Any) -> str:
    number = ' class="number"' if isinstance(value, int | float) else ""
    return f"<td{number}>{html.escape(text_of(value))}</td>"
