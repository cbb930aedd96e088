"""What people and scripts read: tables, facts, progress, and the files of results.

On a terminal tables are drawn and coloured; elsewhere they are tab-separated lines under a header, and
facts are `name: value` lines, so that both can be parsed.
"""

from __future__ import annotations

import csv
import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from .decoding import Answer, Detections, KeyPoints
from .kernels.frame import Kind
from .model import INPUT, BinaryConv2d, Clip, Conv2d, Layer, Model, Sign, Upsample
from .plan import describe

if TYPE_CHECKING:
    from .verify import VerifyReport

#: Fields of one frame's record, in order: number from 0, class, its label and value, share of input bits
#: flipped since the last frame (null for the first frame and in dense mode), milliseconds from raw frame
#: to answer.
RECORD = ("frame", "top1", "label", "score", "flip_rate", "ms")

#: The same of detection and pose, with `coco_results` of the frame.
COCO_RECORD = ("image_id", "annotations", "flip_rate", "ms")

Rows = list[tuple[Any, ...]]


# --- printing -------------------------------------------------------------------------------------


def show_facts(console: Console, facts: Mapping[str, Any]) -> None:
    """One `name: value` line each."""
    for name, value in facts.items():
        line = Text.assemble((f"{name}:", "bold"), " ", text_of(value))
        console.print(line, soft_wrap=True)


def show_table(console: Console, columns: Sequence[str], rows: Rows) -> None:
    """Columns whose first value is a number are aligned right on a terminal."""
    if not console.is_terminal:
        for row in (columns, *rows):
            print("\t".join(map(text_of, row)), file=console.file)  # Rich would turn tabs into spaces
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        is_number = any(isinstance(row[i], int | float) for row in rows)
        side: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(column, justify=side, no_wrap=is_number, overflow="fold")
    for row in rows:
        table.add_row(*(Text(text_of(value)) for value in row))
    console.print(table)


def text_of(value: Any) -> str:
    """As tables and facts show it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short(name: str, length: int = 28) -> str:
    """A name as pictures show it: printable, and of no more than so many characters."""
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable if len(printable) <= length else f"{printable[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


class FrameProgress:
    """A bar on stderr, silent off a terminal.

    Drawn between frames and by the caller's thread: a thread that draws would disturb measurements.
    """

    def __init__(self, total: int | None) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("frames"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)
        self._drawn = 0.0

    def advance(self, text: str = "") -> None:
        """One frame more; `text` stands beside the bar."""
        self._bar.update(self._task, advance=1, description=text)
        if monotonic() - self._drawn > 0.1:
            self._bar.refresh()
            self._drawn = monotonic()

    def __enter__(self) -> FrameProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def label(model: Model, number: int) -> str:
    """A class's name, or "class 7" where the model has none."""
    return model.labels[number] if model.labels else f"class {number}"


def most_seen(model: Model, classes: Counter[int], count: int = 3) -> str:
    """The most frequent answers with their share: "tabby, tabby cat 80%; lynx 20%"."""
    total = classes.total()
    return "; ".join(f"{label(model, c)} {n / total:.0%}" for c, n in classes.most_common(count))


class Tally:
    """What a network answers: of each frame as text and as a record, of all of them as facts."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._classes: Counter[int] = Counter()
        self._shares: list[float] = []

    def add(self, answer: Answer) -> str:
        """One frame; in short "tabby", "person 3; dog 1" or "12 of 17 points"."""
        if isinstance(answer, Detections):
            self._shares.append(len(answer))
            found = Counter(answer.classes.tolist()).most_common()
            return "; ".join(f"{label(self._model, c)} {n}" for c, n in found) or "nothing"
        if isinstance(answer, KeyPoints):
            self._shares.append(float(answer.visible.mean()))
            return f"{answer.visible.sum()} of {len(answer)} points"
        top = int(answer.argmax())
        self._classes[top] += 1
        return label(self._model, top)

    def record(self, number: int, answer: Answer) -> tuple[Any, ...]:
        """The first fields of the frame's `RECORD` or `COCO_RECORD`."""
        if isinstance(answer, Detections | KeyPoints):
            return number, coco_results(answer, number)
        top = int(answer.argmax())
        return number, top, label(self._model, top), float(answer[top])

    def facts(self) -> dict[str, Any]:
        """top1 : `most_seen`.  detections : mean of a frame.  visible : mean share of the points."""
        if self._model.task == "classification":
            return {"top1": most_seen(self._model, self._classes)}
        mean = round(statistics.fmean(self._shares), 5)
        return {"detections" if self._model.task == "detection" else "visible": mean}


# --- models ---------------------------------------------------------------------------------------

LAYER_COLUMNS = ("layer", "kind", "output", "weights", "bits", "bytes", "type", "step", "fused with")

#: What a conversion adds to each row: the checkpoint's tensors that became the layer, and their bytes.
CONVERSION_COLUMNS = (*LAYER_COLUMNS, "was", "bytes before")


def layer_rows(model: Model) -> Rows:
    """One row a layer: output and weight shapes, bits a weight, bytes stored, step and who shares it."""
    steps = describe(model)
    rows: Rows = []
    for layer in model.layers:
        binary = isinstance(layer, BinaryConv2d)
        mine = [(step, layers) for step, layers, _ in steps if layer.name in layers]
        together = dict.fromkeys(name for _, layers in mine for name in layers)
        rows.append(
            (
                layer.name,
                _kind(layer),
                "x".join(map(str, model.shapes[layer.name])),
                _weight_shape(layer),
                (1 if binary else 32) if layer.tensors() else None,
                _bytes(layer),
                "binary" if binary or isinstance(layer, Sign) else "float",
                mine[0][0],
                " ".join(name for name in together if name != layer.name) or None,
            )
        )
    return rows


def conversion_rows(model: Model, sizes: Mapping[str, int]) -> Rows:
    """`layer_rows` and what each layer was; tensors that no layer has its name from come in a last row.

    sizes : bytes of each tensor of the checkpoint. It belongs to the layer whose name begins its own, and is
    told by what follows it.
    """
    became: dict[str, list[str]] = {}
    names = {layer.name for layer in model.layers}
    for tensor in sizes:
        became.setdefault(_longest_name(tensor, names), []).append(tensor)

    def was(name: str) -> tuple[str | None, int]:
        tensors = became.get(name, [])
        told = (tensor.removeprefix(name) or tensor for tensor in tensors)
        return " ".join(told) or None, sum(sizes[tensor] for tensor in tensors)

    rows: Rows = [(*row, *was(row[0])) for row in layer_rows(model)]
    if "" in became:
        rows.append((*[None] * len(LAYER_COLUMNS), *was("")))
    return rows


def _longest_name(tensor: str, names: Container[str]) -> str:
    """The longest name that the tensor's begins with, up to a separator or its end; "" for none."""
    ends = [*(found.start() for found in re.finditer(r"[^A-Za-z0-9]", tensor)), len(tensor)]
    return next((tensor[:end] for end in reversed(ends) if tensor[:end] in names), "")


def model_facts(model: Model) -> dict[str, Any]:
    """Totals of a model, and how much smaller it is than in float32."""
    size, full = sum(map(_bytes, model.layers)), 4 * sum(map(_parameters, model.layers))
    macs = {layer.name: model.macs(layer) for layer in model.layers}
    binary = sum(macs[layer.name] for layer in model.layers if isinstance(layer, BinaryConv2d))
    facts = {
        "model": model.name,
        "input": "x".join(map(str, model.input_shape)),
        "classes": len(model.labels) or None,
        "layers": len(model.layers),
        "parameters": sum(map(_parameters, model.layers)),
        "macs": sum(macs.values()),
        "binary_macs": f"{binary / max(sum(macs.values()), 1):.1%}",
        "bytes": size,
        "float32_bytes": full,
        "compression": round(full / size, 2) if size else None,
    }
    return {**facts, **{name: text for name, text in model.info.items() if name not in facts}}


def _kind(layer: Layer) -> str:
    """The kind, with what neither its shapes nor its weights tell."""
    kind = type(layer).__name__
    match layer:
        case Conv2d(groups=groups) if groups > 1:
            return f"{kind} in {groups} groups"
        case Clip(low=low, high=high):
            return f"{kind} to {low:g}..{high:g}"
        case Upsample(factor=factor, interpolation=interpolation):
            return f"{kind} by {factor}" + (", bilinear" if interpolation == "bilinear" else "")
    return kind


def _weight_shape(layer: Layer) -> str | None:
    """Outputs x kernel x inputs (of a group) of a convolution, channels of an Affine or PRelu."""
    if isinstance(layer, BinaryConv2d):
        return "x".join(map(str, (*layer.weight.shape[:3], layer.channels)))
    tensors = list(layer.tensors().values())
    return "x".join(map(str, tensors[0].shape)) if tensors else None


def _bytes(layer: Layer) -> int:
    return sum(tensor.nbytes for tensor in layer.tensors().values())


def _parameters(layer: Layer) -> int:
    """Numbers a float network would store; a packed word holds up to 64."""
    count = sum(tensor.size for tensor in layer.tensors().values())
    if isinstance(layer, BinaryConv2d):
        count += layer.weight.shape[0] * layer.window_bits - layer.weight.size
    return count


PLAN_COLUMNS = ("step", "kind", "leaves", "state", "constants", "fused with")


def plan_rows(model: Model) -> Rows:
    """One row a step, in order of execution: what later steps read of it, bytes of state and constants.

    An elementwise step that runs band by band with the convolution before it is marked with a +.
    """
    rows: Rows = []
    for step, info in zip(model.plan.steps, model.plan.info, strict=True):
        kind = Kind(int(step["kind"])).name.lower().replace("_", " ")
        others = " ".join(name for name in info.layers if name != info.name)
        rows.append(
            (
                info.name,
                f"+ {kind}" if step["fused"] else kind,
                " ".join(info.leaves),
                info.state,
                info.constants,
                others or None,
            )
        )
    return rows


def plan_facts(model: Model) -> dict[str, Any]:
    """Totals of a plan."""
    return {
        "steps": len(model.plan.info),
        "state_bytes": sum(info.state for info in model.plan.info),
        "constant_bytes": sum(info.constants for info in model.plan.info),
    }


# --- verification ---------------------------------------------------------------------------------

SIGN_COLUMNS = ("signs", "after", "bits", "differing", "smallest", "largest", "off")


def sign_rows(report: VerifyReport) -> Rows:
    """One row a Sign layer: share of bits that differ from the original's, |values| where, and `off`."""
    return [
        (
            layer.name,
            layer.source.name if layer.source else INPUT,
            layer.bits,
            layer.share,
            layer.smallest,
            layer.largest,
            layer.off,
        )
        for layer in report.layers.values()
    ]


def verify_facts(report: VerifyReport) -> dict[str, Any]:
    """Whole-network agreement, and what the signs say."""
    return {
        "verified_frames": report.frames,
        "same_top1": f"{report.agreeing / report.frames:.1%}",
        "logit_difference": report.logit_difference,
        "signs": report.summary,
        "failures": report.failed,
    }


# --- benchmarks -----------------------------------------------------------------------------------

BENCH_FACTS = (
    "model",
    "video",
    "frames",
    "skipped",
    "identical",
    "dense_ms",
    "cached_ms",
    "speedup",
    "binary_dense_ms",
    "binary_cached_ms",
    "binary_speedup",
    "flip_rate",
    "torch_fp32_ms",
    *("threshold", "held_back", "other_top1", "logit_difference"),
)

STEP_COLUMNS = ("step", "kind", "dense_ms", "cached_ms", "flip_rate", "skipped", "paths")


def bench_facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """The headline of `bench`; where outputs differed, the first frame that did."""
    facts = {name: result[name] for name in BENCH_FACTS if name in result}
    if not result["identical"]:
        facts["first_difference"] = result["first_difference"]
    return facts


def step_rows(result: Mapping[str, Any]) -> Rows:
    """One row a step of the plan, paths as "cached 98% clean 2%"."""
    return [
        (
            *(step[name] for name in ("name", "kind", "dense_ms", "cached_ms", "flip_rate", "skipped")),
            _paths(step["paths"]),
        )
        for step in result["per_layer"]
    ]


PROFILE_COLUMNS = (
    *("step", "kind", "dense_ms", "cached_ms", "flips", "flip_rate", "recomputed", "paths", "state"),
)


def profile_rows(result: Mapping[str, Any]) -> Rows:
    """One row a step: median times, mean flips and share of outputs recomputed, shares of frames by path.

    paths : "rows" and "changed" are the ways of caching: rows of flipped bits, or windows that hold a change.
    state : bytes a stream keeps for the step.
    """
    return [
        (
            *(step[name] for name in ("name", "kind", "dense_ms", "cached_ms")),
            None if step["flips"] is None else round(step["flips"]),
            step["flip_rate"],
            1 - step["skipped"],
            _paths(
                {
                    "dense": step["paths"]["dense"],
                    "changed": step["paths"]["cached"] - step["rows"],
                    "rows": step["rows"],
                    "clean": step["paths"]["clean"],
                }
            ),
            step["state_bytes"],
        )
        for step in result["per_layer"]
    ]


def profile_facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Totals of a profile: over all steps, and `recomputed` weighted by their multiply-accumulates."""
    steps = result["per_layer"]
    totals = {
        f"steps_{lane}": round(sum(step[lane] for step in steps), 4) for lane in ("dense_ms", "cached_ms")
    }
    macs = sum(step["macs"] for step in steps)
    again = sum(step["macs"] * (1 - step["skipped"]) for step in steps)
    return {
        **bench_facts({name: value for name, value in result.items() if value is not None}),
        **totals,
        "flips": sum(round(step["flips"] or 0) for step in steps),
        "recomputed": round(again / macs, 5) if macs else None,
        "state_bytes": sum(step["state_bytes"] for step in steps),
    }


def _paths(shares: Mapping[str, float]) -> str:
    return " ".join(f"{path} {share:.0%}" for path, share in shares.items() if round(share, 4))


# --- files ----------------------------------------------------------------------------------------


def coco_results(answer: Detections | KeyPoints, image_id: int) -> list[dict[str, Any]]:
    """The answer as entries of COCO's results format: one an object, or the person.

    Pixels are rounded to 2 decimals, scores to 4; category_id is the class, counted from 1.
    keypoints : x, y, v of each point, v = 2 where it is visible and else 0; their score is the visible ones'
        mean, 0 if there are none.
    """
    if isinstance(answer, Detections):
        corners = answer.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).round(2).tolist()
        scores = answer.scores.astype(np.float64).round(4).tolist()
        return [
            {"image_id": image_id, "category_id": number + 1, "bbox": box, "score": score}
            for number, box, score in zip(answer.classes.tolist(), boxes, scores, strict=True)
        ]
    places = answer.points.astype(np.float64).round(2).tolist()
    visible = answer.visible.tolist()
    points = [number for (x, y), v in zip(places, visible, strict=True) for number in (x, y, 2 * v)]
    seen = answer.scores[answer.visible].tolist()
    score = round(statistics.fmean(seen), 4) if seen else 0.0
    return [{"image_id": image_id, "category_id": 1, "keypoints": points, "score": score}]


class ResultWriter:
    """Writes one record a frame to a .jsonl or .csv file, each flushed, so that what is written stays."""

    SUFFIXES = (".jsonl", ".csv")

    def __init__(self, path: Path, fields: Sequence[str] = RECORD) -> None:
        self._fields = fields
        self._file = path.open("w", encoding="utf-8", newline="", buffering=1)
        self._csv = csv.writer(self._file, lineterminator="\n") if path.suffix == ".csv" else None
        if self._csv:
            self._csv.writerow(fields)

    def write(self, values: Iterable[Any]) -> None:
        """values : as `fields` names them."""
        if self._csv:
            self._csv.writerow(values)
        else:
            record = dict(zip(self._fields, values, strict=True))
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, see `write_whole`."""
    write_whole(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
