"""Streams: both modes give the oracle's bits after every frame, whatever the frames do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MOTIONS, Builder, every_kind, random_frames, random_model
from xnor_rrm.kernels.frame import BAND_ROWS, Kind
from xnor_rrm.kernels.frame import Path as Taken

import xnor_rrm
from xnor_rrm import plan
from xnor_rrm.errors import FrameError, XnorError
from xnor_rrm.frames import Yuv420
from xnor_rrm.model import INPUT, BinaryConv2d, Model, Window
from xnor_rrm.stats import flip_rate
from xnor_rrm.stream import Stream

Array = np.ndarray[Any, Any]

#: Shares of flipped bits up to which the rows kernel is taken: not even for one flip, now and then, always.
NEVER, MIXED, ALWAYS = -1, 0.1, 1
#: Bands of one row of outputs, and of more than any of these images.
BANDS = (0, plan.BAND_BYTES)

SEEDS, CLIP = st.integers(0, 2**32 - 1), st.lists(st.sampled_from(MOTIONS), min_size=1, max_size=4)
SHARE, BAND = st.sampled_from([MIXED, ALWAYS, NEVER]), st.sampled_from(BANDS)
SAME, POINT = Window((3, 3), padding=(1, 1, 1, 1)), Window((1, 1))


def clip(rng: np.random.Generator, model: Model, motions: Iterable[Any], each: int = 3) -> Iterator[Array]:
    """One clip that moves in each of the ways in turn, without a cut between them."""
    frame = None
    for motion in motions:
        before, *after = random_frames(rng, each + 1, *model.input_rule.crop, motion)
        if frame is None:
            yield (frame := before)
        for now in after:
            frame = frame + (now - before)  # modulo 256: changes where `now` does
            before = now
            yield frame.copy()


def oracle(model: Model, frame: Array) -> Array:
    output: Array = naive.forward(model, naive.network_input(model, frame))[model.layers[-1].name]
    assert output.dtype == np.float32
    return output.reshape(-1)


def check(streams: Iterable[Stream], frames: Iterable[Array]) -> None:
    """Every stream gives the oracle's bits on every frame."""
    streams = list(streams)
    for number, frame in enumerate(frames):
        expected = oracle(streams[0].model, frame)
        for stream in streams:
            result = stream(frame)
            assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
            assert result.tobytes() == expected.tobytes(), (stream.mode, number)


def both(model: Model) -> list[Stream]:
    return [model.stream("dense"), model.stream("cached")]


@contextmanager
def laying_out(share: float, band_bytes: int) -> Iterator[None]:
    """Plans are made with the rows kernel up to a share of flipped bits, and bands of a size.

    The cost model would never choose the rows kernel on images this small.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xnor_rrm.policy.rows_limit", lambda s, _: int(share * int(s["h"] * s["w"] * s["cin"])))
        patch.setattr(plan, "BAND_BYTES", band_bytes)
        yield


def laid_out(model: Model, share: float, band_bytes: int = plan.BAND_BYTES) -> Model:
    """The model with its plan made so."""
    with laying_out(share, band_bytes):
        assert len(model.plan.steps)
    return model


def small_model() -> Model:
    """Two binary layers that few flips take through the rows kernel, many through the dense one."""
    net = Builder(np.random.default_rng(0), 6, 7)
    top = net.affine(net.conv(INPUT, 40, SAME))
    top = net.affine(net.binary(top, 70, SAME))
    top = net.binary(top, 20, Window((3, 3), (2, 2), (1, 1, 1, 1)), pad_value=1)
    net.conv(top, 5, net.whole(top))
    return laid_out(net.model(), MIXED)


def paths(stream: Stream) -> set[str]:
    return {step.path for step in stream.stats}


# --- equality on every frame ------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=SEEDS, motions=CLIP, share=SHARE, band=BAND)
def test_random_models(seed, motions, share, band):
    rng = np.random.default_rng(seed)
    model = laid_out(random_model(rng), share, band)
    check(both(model), clip(rng, model, motions))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=SEEDS, motions=CLIP, share=SHARE, band=BAND)
def test_every_kind_of_layer(seed, motions, share, band):
    rng = np.random.default_rng(seed)
    model = laid_out(every_kind(rng), share, band)
    check(both(model), clip(rng, model, motions))


def test_long_clip():
    rng, model = np.random.default_rng(0), small_model()
    frames = list(clip(rng, model, rng.choice(MOTIONS, 110)))
    assert len(frames) > 300
    check(both(model), frames)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize(("share", "path"), [(ALWAYS, Taken.ROWS), (NEVER, Taken.CHANGED)])
def test_either_kernel_alone(share, path, band, seed):
    """And that it is the one meant."""
    rng = np.random.default_rng(seed)
    model = laid_out(random_model(rng, blocks=2), share, band)
    streams, taken = both(model), set()
    for frame in clip(rng, model, ("noise", "border", "all", "still", "flip", "noise"), each=2):
        check(streams, [frame])
        binary = [step.kind == "binary" for step in streams[1].stats]
        taken |= set(streams[1]._report[binary, 0])
    assert taken == {Taken.DENSE, Taken.CLEAN, path}


@pytest.mark.parametrize("fault", ["last input", "sums", "output"])
def test_that_these_tests_can_fail(fault):
    """State that is wrong in one place shows on the next frame, and a reset heals it."""
    rng, model = np.random.default_rng(0), small_model()
    _, before, frame = clip(rng, model, ["border"], each=2)  # the second step does flip bits of both layers
    stream = model.stream()
    *_, binary = (step for step in model.plan.steps if step["kind"] == Kind.BINARY_CONV)
    check([stream], [before])
    if fault == "last input":  # one bit of the first pixel inside the padding
        stream._state.u64[binary["padded"] + (binary["wp"] + 1) * binary["words"]] ^= 1
    elif fault == "sums":  # of one channel of each pixel: which of them the border reaches is not ours to say
        stream._state.u16[binary["y"] :: binary["lanes"]] ^= 1
    else:  # an unchanged frame does not compute it again
        stream._state.f32[model.plan.output[0]] += 1
        frame = before
    with pytest.raises(AssertionError, match="cached"):
        check([stream], [frame])
    stream.reset()
    check([stream], [frame])


# --- frames as callers have them --------------------------------------------------------------------


def test_results_of_earlier_frames_stay():
    rng, model = np.random.default_rng(0), small_model()
    for stream in both(model):
        results = [(result := stream(frame), result.copy()) for frame in clip(rng, model, ["all", "noise"])]
        assert all(np.array_equal(result, copy) for result, copy in results)
        assert len({result.tobytes() for result, _ in results}) > 1


def test_the_callers_buffer_is_read_and_left_alone():
    """Decoders hand out one buffer again and again; frames may be read-only, or views."""
    rng, model = np.random.default_rng(0), small_model()
    streams, buffer = both(model), np.zeros((6, 7, 3), np.uint8)
    for frame in clip(rng, model, ["noise", "all"]):
        buffer[:] = frame
        check(streams, [buffer])
        assert np.array_equal(buffer, frame)
        mirrored = frame[::-1, ::-1]
        mirrored.flags.writeable = False
        check(streams, [mirrored])


def test_grey_input():
    """RGB frames become luminance; frames of luminance give the same answers."""
    net = Builder(np.random.default_rng(0), 6, 7, channels=1)
    net.conv(net.binary(net.affine(net.conv(INPUT, 40, SAME)), 20, SAME), 5, Window((6, 7)))
    rng, model = np.random.default_rng(0), laid_out(net.model(), MIXED)
    streams, grey = both(model), both(model)
    for frame in clip(rng, model, MOTIONS):
        check(streams, [frame])
        check(grey, [naive.luminance(frame)[..., 0]])
        assert streams[1](frame).tobytes() == grey[1](naive.luminance(frame)[..., 0]).tobytes()
    assert paths(grey[1]) == {"clean"}
    check(grey, [frame])
    assert paths(grey[1]) == {"dense"}  # another shape


def test_another_frame_size_starts_afresh():
    rng, model = np.random.default_rng(0), small_model()
    stream = model.stream()
    last = None
    for size in ((6, 7), (6, 7), (9, 9), (9, 9), (9, 10), (6, 7), (6, 7)):
        frame = rng.integers(0, 256, (*size, 3), np.uint8)
        check([stream], [frame])
        assert (paths(stream) == {"dense"}) == (size != last)
        last = size


def test_reset_starts_afresh():
    rng, model = np.random.default_rng(0), small_model()
    stream = model.stream()
    frame = next(clip(rng, model, ["still"]))
    for _ in range(2):
        check([stream], [frame])
        assert paths(stream) == {"dense"}
        check([stream], [frame])
        assert "dense" not in paths(stream)
        stream.reset()


GOOD = np.full((6, 7, 3), 200, np.uint8)


@pytest.mark.parametrize(
    "bad",
    [
        GOOD[..., 0],
        GOOD[..., :1],
        np.repeat(GOOD, 2, axis=2)[..., :4],
        GOOD.astype(np.float32),
        GOOD.astype(np.int64),
        GOOD[:5],
        GOOD[:0],
        GOOD.transpose(2, 0, 1),
        GOOD[None],
        GOOD.tolist(),
        None,
    ],
    ids=lambda bad: f"{bad.dtype}{list(bad.shape)}" if isinstance(bad, np.ndarray) else type(bad).__name__,
)
@pytest.mark.parametrize("mode", ["dense", "cached"])
def test_a_bad_frame_in_the_middle(mode, bad):
    rng, model = np.random.default_rng(0), small_model()
    stream = model.stream(mode)
    frames = clip(rng, model, ["noise", "border"])
    check([stream], islice(frames, 3))
    with pytest.raises(FrameError, match=r"expected (a frame|frames of at least)"):
        stream(bad)
    check([stream], islice(frames, 1))
    assert paths(stream) == {"dense"}
    check([stream], frames)


def test_a_failure_inside_a_frame_starts_afresh(monkeypatch):
    """Whatever is raised: half a frame's state must not be answered from."""
    rng, model = np.random.default_rng(0), small_model()
    stream = model.stream()
    frames = clip(rng, model, ["noise", "border"])
    check([stream], islice(frames, 3))
    with monkeypatch.context() as patch:
        patch.setattr("xnor_rrm.stream.run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream(next(frames))
    check([stream], frames)


@pytest.mark.parametrize("threshold", [-1, 256, 1.0, "1", True, None])
def test_other_thresholds_are_refused(threshold):
    with pytest.raises(XnorError, match="integer from 0 to 255"):
        small_model().stream(threshold=threshold)


def test_an_unknown_mode_is_refused():
    with pytest.raises(XnorError, match=r"'cached' or 'dense', got 'fast'"):
        small_model().stream("fast")


# --- a threshold for noise ----------------------------------------------------------------------------


def drifting(rng: np.random.Generator, model: Model, size: int, n: int = 8) -> Iterator[Array]:
    """Frames whose values wander by up to `size` a frame, and now and then leap somewhere."""
    height, width = model.input_rule.crop
    frame = rng.integers(0, 256, (height, width, 3))
    for _ in range(n):
        shown = frame.astype(np.uint8)
        yield naive.luminance(shown)[..., 0] if model.input_rule.channels == 1 else shown
        frame = np.clip(frame + rng.integers(-size, size + 1, frame.shape), 0, 255)
        if rng.random() < 0.5:
            y, x = int(rng.integers(height)), int(rng.integers(width))
            frame[y : y + 2, x : x + 2] = rng.integers(0, 256, frame[y : y + 2, x : x + 2].shape)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=SEEDS,
    threshold=st.integers(0, 40) | st.just(255),
    size=st.integers(0, 25),
    share=SHARE,
    band=BAND,
)
def test_a_threshold_is_exact_on_what_it_lets_through(seed, threshold, size, share, band):
    """Both modes give the oracle's bits for the frames let through; and count what was held back."""
    rng = np.random.default_rng(seed)
    model = laid_out(random_model(rng, blocks=2), share, band)
    streams = [model.stream(mode, threshold=threshold) for mode in ("cached", "dense")]
    whole, last = model.stream("dense"), None
    for frame in drifting(rng, model, size):
        last = naive.let_through(frame, last, threshold)
        expected = oracle(model, last)
        assert whole(last).tobytes() == expected.tobytes()
        differ = (last != frame).any(axis=-1) if frame.ndim == 3 else last != frame
        for stream in streams:
            assert stream(frame).tobytes() == expected.tobytes(), stream.mode
            assert stream.held_back == pytest.approx(differ.mean())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=SEEDS,
    step=st.sampled_from([1, 2, 16, 64]),
    size=st.sampled_from([0, 1, 3, 40]),
    straight=st.booleans(),
    channels=st.sampled_from([1, 3]),
    threshold=st.sampled_from([0, 0, 9]),
)
def test_frames_seen_in_steps(seed, step, size, straight, channels, threshold):
    """Tables that are a straight line and others, images of whole vectors or not; steps hide changes."""
    rng = np.random.default_rng(seed)
    net = Builder(rng, int(rng.integers(3, 12)), int(rng.integers(3, 12)), channels=channels)
    net.conv(net.affine(net.conv(INPUT, 20, SAME)), 3, POINT)
    model = net.model()
    mean, std = ((128.0,), (64.0,)) if straight else ((123.7,), (58.4,))
    rule = replace(model.input_rule, mean=mean * channels, std=std * channels, step=step)
    model = replace(model, input_rule=rule)
    assert (model.plan.steps[0]["line"] >= 0) == straight
    streams, last, before = (
        [model.stream(mode, threshold=threshold) for mode in ("cached", "dense")],
        None,
        None,
    )
    for frame in drifting(rng, model, size):
        seen = frame // step * step
        last = naive.let_through(seen, last, threshold)
        expected = oracle(model, last)
        for stream in streams:
            assert stream.values(frame).tobytes() == expected.tobytes(), stream.mode
        if before is not None and np.array_equal(last, before):
            assert paths(streams[0]) == {"clean"}
        before = last


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=SEEDS,
    kernel=st.sampled_from([(4, 4), (2, 5), (3, 1), (1, 2), (5, 6)]),
    outputs=st.sampled_from([1, 20, 64]),
    pooled=st.booleans(),
    threshold=st.sampled_from([0, 0, 9]),
    size=st.sampled_from([0, 3, 40]),
    band=BAND,
)
def test_stems_of_patches(seed, kernel, outputs, pooled, threshold, size, band):
    """Windows that do not overlap are made of bytes, band by band, where a row of them fits a vector."""
    rng = np.random.default_rng(seed)
    net = Builder(rng, int(rng.integers(6, 40)), int(rng.integers(6, 40)))
    top = net.conv(INPUT, outputs, Window(kernel, kernel))
    if pooled:  # which reads the convolution itself
        top = net.max_pool(top, Window((1, 1)))
    net.binary(net.affine(top), 9, SAME)
    model = net.model()
    rule = replace(
        model.input_rule, mean=(124.0, 116.0, 104.0), std=(64.0,) * 3, step=int(rng.choice([1, 16]))
    )
    model = laid_out(replace(model, input_rule=rule), MIXED, band)
    assert (model.plan.steps[0]["y"] == -1) == (kernel[1] <= 5)
    streams, last = [model.stream(mode, threshold=threshold) for mode in ("cached", "dense")], None
    for frame in drifting(rng, model, size):
        last = naive.let_through(frame // rule.step * rule.step, last, threshold)
        expected = oracle(model, last)
        for stream in streams:
            assert stream.values(frame).tobytes() == expected.tobytes(), stream.mode


@pytest.mark.parametrize("size", [(400, 37), (90, 60), (300, 41), (BAND_ROWS * 2 + 20, 20), (60, 260)])
@pytest.mark.parametrize("kernel", [(4, 4), (5, 3)])
@pytest.mark.parametrize("threshold", [0, 40])
@pytest.mark.parametrize("in_planes", [False, True])
def test_frames_resized_band_by_band_ahead_of_a_stem(size, kernel, threshold, in_planes):
    """Images of three bands, letterboxed above and below, left and right, or not; shrunk and enlarged."""
    rng = np.random.default_rng(0)
    net = Builder(rng, BAND_ROWS * 2 + 20, 20)
    net.binary(net.affine(net.conv(INPUT, 40, Window(kernel, kernel))), 9, SAME)
    model = net.model()
    mean, crop = (124.0, 116.0, 104.0), model.input_rule.crop
    rule = replace(model.input_rule, resize=0, mean=mean, std=(64.0,) * 3, step=16, interpolation="area")
    model = replace(model, input_rule=replace(rule, fit="letterbox"))
    assert model.plan.steps[1]["line"] >= 0
    assert model.plan.steps[1]["kind"] == Kind.FLOAT_CONV
    streams, last = [model.stream(mode, threshold=threshold) for mode in ("cached", "dense")], None
    pixels = rng.integers(0, 256, size if in_planes else (*size, 3), dtype=np.uint8)
    if in_planes:
        pixels = pixels[: size[0] // 6 * 6, : size[1] // 2 * 2]
    for top in (0, size[0] // 3, size[0] - 2, size[0] // 2):
        frame = Yuv420(pixels) if in_planes else pixels
        last = naive.let_through(naive.letterbox(frame, crop, mean) // 16 * 16, last, threshold)
        expected = oracle(model, last)
        for stream in streams:
            assert stream.values(frame).tobytes() == expected.tobytes(), (stream.mode, top)
        pixels = pixels.copy()
        pixels[top : top + size[0] // 8] = rng.integers(0, 256, pixels[top : top + size[0] // 8].shape)


def test_tables_that_are_lines_but_for_a_bit():
    straight = ((np.arange(256, dtype=np.float32) - 124) / 64)[:, None]
    assert plan._line(straight, 1) is not None
    for place, value in ((124, np.float32(-0.0)), (200, np.nextafter(straight[200, 0], np.float32(9)))):
        table = straight.copy()
        table[place] = value
        assert plan._line(table, 1) is None
        assert (plan._line(table, 16) is None) == (place % 16 == 0)


def test_letterboxed_frames_of_any_size():
    net = Builder(np.random.default_rng(0), 24, 40)
    net.conv(net.affine(net.conv(INPUT, 40, Window((4, 4), (4, 4)))), 5, POINT)
    model = net.model()
    rule = replace(model.input_rule, interpolation="area", fit="letterbox", step=16)
    model, rng = replace(model, input_rule=rule), np.random.default_rng(1)
    streams = [model.stream(mode) for mode in ("cached", "dense")]
    for size in ((24, 40), (50, 90), (90, 50), (9, 11)):
        frame = rng.integers(0, 256, (*size, 3), np.uint8)
        for _ in range(3):
            frame[: size[0] // 2, 3:5] += np.uint8(31)
            check(streams, [frame])


def test_a_threshold_is_measured_from_what_was_let_through():
    """A slow drift passes once it has gone far enough, however little it moves from frame to frame."""
    model = small_model()
    stream, seen = model.stream(threshold=10), []
    for value in range(100, 130):
        stream(np.full((6, 7, 3), value, np.uint8))
        seen.append(stream.held_back == 0)
    assert [value for value, through in zip(range(100, 130), seen, strict=True) if through] == [100, 111, 122]


def test_one_channel_beyond_the_threshold_lets_the_pixel_through():
    model = small_model()
    stream = model.stream(threshold=10)
    frame = np.full((6, 7, 3), 100, np.uint8)
    stream(frame)
    frame[2, 3] = 105, 89, 110
    frame[4, 5] = 110, 90, 110
    check_seen = frame.copy()
    check_seen[4, 5] = 100
    assert stream(frame).tobytes() == oracle(model, check_seen).tobytes()
    assert stream.held_back == pytest.approx(1 / 42)


def test_a_threshold_lets_a_fresh_start_through_whole():
    model = small_model()
    for mode in ("cached", "dense"):
        stream, frame = model.stream(mode, threshold=255), np.full((6, 7, 3), 40, np.uint8)
        for start in ("the first", "a reset", "a bad frame"):
            frame = frame + np.uint8(20)
            if start == "a reset":
                stream.reset()
            elif start == "a bad frame":
                with pytest.raises(FrameError):
                    stream(frame[:2])
            check([stream], [frame])
            assert stream.held_back == 0
            assert stream(frame + np.uint8(5)).tobytes() == oracle(model, frame).tobytes()
            assert stream.held_back == 1
        check([stream], [np.full((9, 9, 3), 1, np.uint8)])


# --- streams beside each other ----------------------------------------------------------------------


def test_interleaved_streams_never_touch():
    """Streams of one model and of another, on different clips, in turns of uneven length."""
    rng = np.random.default_rng(0)
    models = [small_model(), laid_out(every_kind(rng), MIXED)]
    running = [
        (stream, clip(rng, model, rng.choice(MOTIONS, 4)))
        for model in models
        for stream in (model.stream(), model.stream(), model.stream("dense"))
    ]
    for turn in rng.integers(0, len(running), 90):
        stream, frames = running[turn]
        check([stream], islice(frames, 1))


def test_streams_in_threads():
    rng = np.random.default_rng(0)
    model = small_model()
    clips = [list(clip(rng, model, ["noise", "border"], each=8)) for _ in range(4)]
    expected = [[oracle(model, frame).tobytes() for frame in frames] for frames in clips]

    def results(frames: list[Array]) -> list[bytes]:
        stream = model.stream()
        return [stream(frame).tobytes() for frame in frames]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(results, clips)) == expected


def test_a_model_never_changes():
    rng, model = np.random.default_rng(0), laid_out(every_kind(np.random.default_rng(1)), MIXED)
    tensors = [array for layer in model.layers for array in layer.tensors().values()]
    shared = [*tensors, *model.plan.constants.views, model.plan.steps]
    before = [array.tobytes() for array in shared]
    check(both(model), clip(rng, model, MOTIONS))
    assert [array.tobytes() for array in shared] == before
    for array in tensors:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


# --- stats ------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=SEEDS, motions=CLIP, share=SHARE, band=BAND)
def test_stats_of_binary_layers(seed, motions, share, band):
    """Flips are those of the oracle's signs, and what was skipped did keep its value."""
    rng = np.random.default_rng(seed)
    model = laid_out(random_model(rng, blocks=2), share, band)
    layers = {layer.name: layer for layer in model.layers if isinstance(layer, BinaryConv2d)}
    stream, last = model.stream(), None
    for frame in clip(rng, model, motions):
        stream(frame)
        values = naive.forward(model, naive.network_input(model, frame))
        binary = {step.name: step for step in stream.stats if step.kind == "binary"}
        assert binary.keys() == layers.keys()
        for name, step in binary.items():
            height, width, _ = model.shapes[name]
            signs = layers[name].inputs[0]
            assert (step.bits, step.outputs) == (values[signs].size, height * width)
            assert step.macs == model.macs(layers[name])
            if last is None:
                assert (step.path, step.skipped) == ("dense", 0)
                continue
            assert step.flips == (values[signs] != last[signs]).sum()
            assert step.path == ("cached" if step.flips else "clean")
            assert 0 <= step.skipped <= step.outputs - (values[name] != last[name]).any(-1).sum()
            assert step.flips or step.skipped == step.outputs
        last = values


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=SEEDS, motions=CLIP, share=SHARE, band=BAND)
def test_computed_pixels(seed, motions, share, band):
    """As many as the stats say, all whose value by the oracle is another, and none that no change reaches."""
    rng = np.random.default_rng(seed)
    model = laid_out(every_kind(rng) if seed % 4 == 0 else random_model(rng, blocks=2), share, band)
    stream, last = model.stream(), None
    assert not any(mask.any() for mask in stream.computed())
    for frame in clip(rng, model, motions):
        stream(frame)
        values = naive.forward(model, naive.network_input(model, frame))
        reached = naive.reached(model, values, last)
        for step, info, mask in zip(stream.stats, model.plan.info, stream.computed(), strict=True):
            assert mask.sum() == step.outputs - step.skipped, step.name
            assert not (mask & ~np.any([reached[name] for name in info.layers], axis=0)).any(), step.name
            for name in info.layers if last is not None else ():
                if values[name].shape[:2] == mask.shape:
                    assert not ((values[name] != last[name]).any(axis=-1) & ~mask).any(), (step.name, name)
        last = values


def test_stats_of_a_clean_frame():
    """The same frame again, after the first and after one that changed a part: nothing is left to do."""
    rng, model = np.random.default_rng(0), every_kind(np.random.default_rng(0))
    stream = model.stream()
    assert stream.stats == ()
    assert flip_rate(stream.stats) == 0
    for path, frame in zip(("dense", "cached"), clip(rng, model, ["noise"], each=1), strict=True):
        stream(frame)
        assert {step.path for step in stream.stats} <= {path, "clean"}
        assert path == "cached" or all(step.path == path and step.skipped == 0 for step in stream.stats)
        stream(frame)
        for step in stream.stats:
            assert (step.path, step.flips, step.skipped) == ("clean", 0, step.outputs), step.name
            assert step.seconds >= 0
        assert flip_rate(stream.stats) == 0


def test_stats_of_a_dense_stream():
    rng, model = np.random.default_rng(0), small_model()
    stream = model.stream("dense")
    for frame in clip(rng, model, ["still", "noise"]):
        stream(frame)
        assert all((step.path, step.flips, step.skipped) == ("dense", 0, 0) for step in stream.stats)


def test_flip_rate_is_weighted_by_macs():
    rng, model = np.random.default_rng(0), small_model()
    stream = model.stream()
    for frame in clip(rng, model, ["noise"]):
        stream(frame)
    a, b = (step for step in stream.stats if step.kind == "binary")
    assert a.flips * b.flips > 0
    assert a.macs != b.macs
    expected = (a.macs * a.flips / a.bits + b.macs * b.flips / b.bits) / (a.macs + b.macs)
    assert flip_rate(stream.stats) == pytest.approx(expected, rel=1e-12)


# --- a trained network on a real clip ---------------------------------------------------------------


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Threads that wait for each other take 20 times as long where another process has a core."""
    torch = pytest.importorskip("torch")  # of an optional extra
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_torch_thread")
def test_resnet18_on_real_video(data_folder: Path):
    """Cached equals dense, and the float network in PyTorch sees the same class."""
    from xnor_rrm.preprocess import Preprocessor
    from xnor_rrm.torch_reference import FloatTwin

    folder = data_folder / "models" / "bmxnet_resnet18_imagenet"
    model = xnor_rrm.convert(folder / "binarized_32_resnet-18-binary-0001.params")
    dense, cached = both(model)
    twin, preprocess, table = FloatTwin(model), Preprocessor(model.input_rule), model.input_rule.table()
    for number, frame in enumerate(islice(xnor_rrm.read_video(data_folder / "video" / "vtest.avi"), 12)):
        expected, result = dense(frame), cached(frame)
        assert result.tobytes() == expected.tobytes(), number
        x = table[preprocess(frame), np.arange(3)]
        assert twin(x).argmax() == expected.argmax(), number
        assert number == 0 or 0 < flip_rate(cached.stats) < 0.5
