"""Every kernel equals the oracle exactly: by itself where it stands alone, else through tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MOTIONS, Builder, every_kind, random_frames
from models import pack as pack_bits
from xnor_rrm.kernels import bitpack, rows, window, xnor
from xnor_rrm.kernels.layer import VARIANTS, BinaryLayer, Variant
from xnor_rrm.kernels.step import geometry

from xnor_rrm.model import (
    INPUT,
    Add,
    Affine,
    AvgPool,
    Clip,
    Concat,
    Conv2d,
    InputRule,
    MaxPool,
    Model,
    PRelu,
    Relu,
    Sign,
    Softmax,
    Upsample,
    Window,
)

Array = np.ndarray[Any, Any]
Size = tuple[int, int]

#: Computes from nothing: what brings a layer to the frame that a cached variant starts from.
DENSE = next(variant for variant in VARIANTS.values() if not variant.cached)
CACHED = [name for name, variant in VARIANTS.items() if variant.cached]

#: Around every boundary of a word, and real networks' sizes.
CHANNELS = (1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 320)


def signs(rng: np.random.Generator, *shape: int) -> Array:
    return 2 * rng.integers(0, 2, shape) - 1


class Twins:
    """One binary convolution, by a variant and by the oracle. Weights and frames are int64 of -1 and +1."""

    def __init__(self, variant: str, weight: Array, size: Size, win: Window, pad_value: int = 0) -> None:
        self.variant: Variant = VARIANTS[variant]
        self.weight, self.size = weight, size
        self.geometry = (win.stride, win.padding, win.dilation, pad_value)
        self.layer = BinaryLayer(pack_bits(weight > 0), (*size, weight.shape[3]), *self.geometry)
        self.last: Array | None = None

    def check(self, x: Array) -> None:
        """Both see the frame x next. Nothing is checked of a layer that the variant does not take."""
        if not self.variant.takes(self.layer.step):
            return
        self.layer.load(pack_bits(x > 0))
        (DENSE if self.last is None else self.variant).run(self.layer)
        assert np.array_equal(self.layer.dots(), naive.binary_conv(x, self.weight, *self.geometry))
        if self.last is not None:
            assert self.layer.flips == (x != self.last).sum()
        self.last = x


def changing(rng: np.random.Generator, *shape: int) -> Iterator[Array]:
    """Frames: few and many bits flip, none, one border bit, a border pixel, all; then a new one."""
    x = signs(rng, *shape)
    yield x
    for share in (0.01, 0.3):
        x = np.where(rng.random(shape) < share, -x, x)
        yield x
    yield x
    for border in ((-1, 0, 0), (0, -1, slice(None))):
        x = x.copy()
        x[border] *= -1
        yield x
    yield -x
    yield signs(rng, *shape)


def check(variant: str, size: Size, cin: int, cout: int, win: Window, pad_value: int = 0) -> None:
    rng = np.random.default_rng(cin * 1000 + cout)
    twins = Twins(variant, signs(rng, cout, *win.kernel, cin), size, win, pad_value)
    for x in changing(rng, *size, cin):
        twins.check(x)


SAME, POINT = Window((3, 3), padding=(1, 1, 1, 1)), Window((1, 1))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("cin", "cout"),
    # Each count as input and as output, and outputs of more than four words.
    [*zip(CHANNELS, CHANNELS[5:] + CHANNELS[:5], strict=True), (3, 256), (40, 448), (33, 576), (2, 1100)],
)
def test_channels(variant, cin, cout):
    check(variant, (4, 5), cin, cout, SAME)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 3, 5, 11])
def test_windows(variant, kernel, stride, dilation, pad_value):
    before, after = kernel // 2, (kernel - 1) // 3  # uneven, unless 0
    win = Window((kernel, kernel), (stride, stride), (before, after, after, before), (dilation, dilation))
    spare = max(dilation * (kernel - 1) + 1 - before - after, 1)
    check(variant, (spare + 2, spare + 9), 35, 70, win, pad_value)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cout", [1, 64, 100, 129, 300, 600])  # 8, 8, 4, 2, 1 and 1 pixels a vector
@pytest.mark.parametrize("width", [1, 2, 5, 7, 8, 9, 13, 17])
def test_widths_that_leave_a_tile_unfilled(variant, width, cout):
    check(variant, (2, width), 5, cout, SAME, pad_value=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "win",
    [
        Window((1, 7), padding=(0, 0, 3, 3)),
        Window((5, 2), stride=(1, 3)),
        Window((2, 3), (3, 1), dilation=(1, 3)),
        Window((3, 1), dilation=(2, 5)),
        Window((3, 2), padding=(2, 0, 0, 1)),
        Window((3, 3), (2, 2), (9, 2, 1, 12)),  # windows wholly in the padding
        Window((1, 1), (3, 3)),  # pixels under no window
    ],
    ids=str,
)
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
def test_uneven_windows(variant, win, pad_value):
    check(variant, (6, 10), 66, 20, win, pad_value)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("size", "cin", "cout"), [((4, 4), 64, 10), ((1, 1), 192, 320), ((6, 5), 33, 2)])
def test_fully_connected(variant, size, cin, cout):
    check(variant, size, cin, cout, Window(size))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), variant=st.sampled_from(list(VARIANTS)), seed=st.integers(0, 2**32 - 1))
def test_any_geometry_and_any_flips(data, variant, seed):
    def draw(strategy: Any) -> tuple[int, int]:
        return data.draw(st.tuples(strategy, strategy))

    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    stride, pads = draw(st.integers(1, 4)), (*draw(st.integers(0, 5)), *draw(st.integers(0, 5)))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(1, r - sum(pads[2 * i : 2 * i + 2])) for i, r in enumerate(reach)]
    size = tuple(data.draw(st.integers(n, n + 9)) for n in least)
    cin, cout = draw(st.integers(1, 140) | st.sampled_from(CHANNELS))

    rng = np.random.default_rng(seed)
    weight = signs(rng, cout, *kernel, cin)
    win, pad_value = Window(kernel, stride, pads, dilation), data.draw(st.integers(-1, 1))
    twins = Twins(variant, weight, size, win, pad_value)
    x = signs(rng, *size, cin)
    twins.check(x)
    for share in data.draw(st.lists(st.sampled_from([0, 0.001, 0.05, 0.5, 1]), min_size=1, max_size=4)):
        x = np.where(rng.random(x.shape) < share, -x, x)
        twins.check(x)


@pytest.mark.parametrize("count", range(1, 20))
def test_listed_pixels_and_no_others(count):
    """The dense kernel on some pixels: each at its own place, or side by side."""
    rng = np.random.default_rng(count)
    twins = Twins("xnor", signs(rng, 40, 3, 3, 70), (3, 7), SAME)
    twins.check(signs(rng, 3, 7, 70))
    s = twins.layer
    counts = s.mismatches[: 21 * s.step["lanes"]].reshape(21, -1)[:, :40]
    right, listed = counts.copy(), np.sort(rng.permutation(21)[:count])
    for slots in (listed, np.arange(count)):
        counts[:] = 12345
        where = (listed, slots, count)
        xnor.conv_xnor(s.last, s.weights, s.step, s.starts, s.segment_at, *where, s.mismatches)
        xnor.subtract_outside(s.mismatches, s.step, s.classes, s.outside.reshape(-1), *where)
        expected = np.full_like(counts, 12345)
        expected[slots] = right[listed]
        assert np.array_equal(counts, expected)


# --- the rows kernel: flips summed into bit planes --------------------------------------------------

#: Around what eight bit planes hold: 248 rows, or 120 of each direction; and what the kernel says it sums.
CHUNKS = {120, 128, 248, 256, rows.MAX_ROWS}
EDGES = sorted({0, 1, 8} | {chunk + d for chunk in CHUNKS for d in (-1, 0, 1)})


@pytest.mark.parametrize("variant", CACHED)
@pytest.mark.parametrize("cout", [10, 70, 200, 320])  # 8, 4, 2 and 1 pixels a vector
def test_row_counts_around_a_chunk(variant, cout):
    """So many bits under a tile rise, under one pixel or several, then fall; some channels agree with all."""
    rng = np.random.default_rng(cout)
    width, cin = 8, 800
    weight = signs(rng, cout, 1, 1, cin)
    weight[0], weight[1], weight[-1] = 1, -1, 1
    twins = Twins(variant, weight, (1, width), POINT)
    low = np.full((1, width, cin), -1)
    for count in [*EDGES, 496, 497, 3 * rows.MAX_ROWS, 3 * rows.MAX_ROWS + 1]:
        for pixels in (1, 8 * 64 // max(64, cout)):
            bits, high = rng.permutation(pixels * cin)[:count], low.copy()
            high[0, bits % pixels, bits // pixels] = 1
            for x in (low, high, low):
                twins.check(x)


@pytest.mark.parametrize("variant", CACHED)
@pytest.mark.parametrize("risen", EDGES)
def test_rising_and_falling_bits_together(variant, risen):
    """Channel 0 gains by every flip, channel 1 loses by every flip: the sums at their extremes."""
    half = 400
    after = np.where(np.arange(2 * half) < half, 1, -1)
    weight = signs(np.random.default_rng(0), 66, 1, 1, 2 * half)
    weight[0, 0, 0], weight[1, 0, 0], weight[2], weight[3] = after, -after, 1, -1
    twins = Twins(variant, weight, (1, 1), POINT)
    for fallen in (*EDGES, half):
        before = after.copy()
        before[:risen] = -1
        before[half : half + fallen] = 1
        for x in (before, after, before):
            twins.check(x.reshape(1, 1, -1))


def test_rows_marks_exactly_the_pixels_it_updates():
    rng = np.random.default_rng(0)
    win = Window((3, 2), (1, 2), (1, 0, 1, 1), (2, 1))
    twins = Twins("rows", signs(rng, 9, 3, 2, 70), (7, 12), win)
    x = signs(rng, 7, 12, 70)
    twins.check(x)
    for share in (0, 0.05, 1, 0.05, 0):
        flipped = rng.random((7, 12, 1)) < share
        x = np.where(flipped, -x, x)
        twins.check(x)
        seen = sum(naive.taps(flipped.astype(int), win.kernel, win.stride, win.padding, win.dilation, 0))
        assert np.array_equal(twins.layer.changed != 0, seen.reshape(-1) > 0)


# --- accumulators at their extremes -----------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cout", [3, 130])
@pytest.mark.parametrize(
    ("kernel", "cin", "n"),
    [((1, 1), 65472, 65472), ((1, 1), 65535, 65535), ((3, 5), 4369, 65535), ((11, 11), 512, 61952)],
)
def test_all_agree_and_all_disagree(variant, cout, kernel, cin, n):
    rng = np.random.default_rng(0)
    weight = signs(rng, cout, *kernel, cin)
    weight[-1] = -weight[0]
    twins = Twins(variant, weight, kernel, Window(kernel))
    for x in (weight[0], -weight[0], -weight[0], signs(rng, *kernel, cin), weight[0]):
        twins.check(x)
    if twins.variant.takes(twins.layer.step):
        assert twins.layer.dots()[0, 0, [0, -1]].tolist() == [n, -n]


@pytest.mark.parametrize("cin", [16383, 16384])
def test_set_rows_takes_what_its_planes_can_count(cin):
    rng = np.random.default_rng(0)
    weight = np.ones((512, 1, 1, cin), int)
    weight[-1] = -1
    twins = Twins("set_rows", weight, (1, 1), Window((1, 1)))
    assert twins.variant.takes(twins.layer.step) == (cin == 16383)
    for x in (weight[:1], -weight[:1], signs(rng, 1, 1, 1, cin)):
        twins.check(x[0])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize("agree", [-1, 1])
def test_extremes_beside_padding(variant, pad_value, agree):
    """n = 65535 where most taps lie outside: mismatches are counted against them, and taken back."""
    weight = np.full((2, 3, 5, 4369), agree)
    twins = Twins(variant, weight, (2, 2), Window((3, 5), padding=(2, 2, 4, 4)), pad_value)
    ones = np.ones((2, 2, 4369), np.int64)
    for x in (ones, -ones, ones):
        twins.check(x)


# --- bit packing ------------------------------------------------------------------------------------

AWKWARD = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 1, -1, 3e38, -3e38, np.inf, -np.inf], np.float32)


@pytest.mark.parametrize("spare", [0.0, -1.0])
@pytest.mark.parametrize("channels", [*CHANNELS, 576])
def test_pack(channels, spare):
    """What lies between the pixels, and behind the last, does not reach the words."""
    rng = np.random.default_rng(channels)
    values = rng.choice(AWKWARD, (7, channels))
    for stride in (channels, -(-channels // 32) * 32):
        flat = np.full(7 * stride + 16, spare, np.float32)
        flat[: 7 * stride].reshape(7, stride)[:, :channels] = values
        words = np.full((7, -(-channels // 64)), 0xDEADBEEF, np.uint64)
        bitpack.pack(flat, channels, stride, words.reshape(-1))
        assert np.array_equal(naive.unpack(words, channels), naive.sign(values))
        assert channels % 64 == 0 or not (words[:, -1] >> np.uint64(channels % 64)).any()


# --- which outputs a change reaches -----------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0, 0.02, 0.2, 1]))
def test_windows_that_hold_a_change_are_listed(seed, share):
    rng = np.random.default_rng(seed)
    net = Builder(rng, *(int(n) for n in rng.integers(1, 14, 2)))
    h, w, _ = net.shapes[INPUT]
    win = net.window(INPUT)
    step = geometry((h, w, 70), 5, win.kernel, win.stride, win.padding, win.dilation, binary=True)
    changed = (rng.random((h, w, 1)) < share).astype(np.uint8)
    marks = np.concatenate(
        [changed.reshape(-1), np.full(64, 7, np.uint8)]
    )  # what lies behind is not looked at
    pixels = np.zeros(int(step["ho"] * step["wo"]) + 1, np.int64)
    scratch = np.full(window.scratch_bytes(int(step["wp"])), 7, np.uint8)
    count = window.list_windows(marks, np.array([step])[0], 0, int(step["ho"]), scratch, pixels)
    listed = pixels[:count].tolist()
    holds = sum(naive.taps(changed.astype(int), win.kernel, win.stride, win.padding, win.dilation, 0)) > 0
    assert listed == np.flatnonzero(holds).tolist()


# --- floats, through tiny models --------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 8, 16, 17])
@pytest.mark.parametrize("groups", [3, 8, 33])
def test_groups_of_one_channel(outputs, groups):
    """Several groups share a block of lanes, or each has its own."""
    rng = np.random.default_rng(outputs * 100 + groups)
    net = Builder(rng, 6, 5)
    window = Window((3, 3), padding=(1, 1, 1, 1))
    net.conv(net.conv(INPUT, groups, POINT), groups * outputs, window, groups)
    check_model(net.model(), rng, frames=1)


@pytest.mark.parametrize("cout", [1, 16, 17, 33, 130])
@pytest.mark.parametrize("size", [1, 5])
def test_narrow_convolutions_and_single_pixels(cout, size):
    """Of up to 16 outputs 16 pixels share a tile; a single pixel has a kernel of its own."""
    rng = np.random.default_rng(cout)
    net = Builder(rng, 5, 5)
    net.conv(INPUT, cout, Window((6 - size, 6 - size)))
    check_model(net.model(), rng, frames=5)


def check_model(model: Model, rng: np.random.Generator, frames: int = 3) -> None:
    """Both modes give the oracle's bits on frames that move in every way; computed is what changes reach."""
    dense, cached, last = model.stream("dense"), model.stream("cached"), None
    for motion in MOTIONS:
        for frame in random_frames(rng, frames, *model.input_rule.crop, motion):
            values = naive.forward(model, naive.network_input(model, frame))
            expected = values[model.layers[-1].name]
            assert expected.dtype == np.float32
            assert dense(frame).tobytes() == expected.tobytes()
            assert cached(frame).tobytes() == expected.tobytes()
            reached = naive.reached(model, values, last)
            for step, taken, mask in zip(model.plan.info, cached.stats, cached.computed(), strict=True):
                assert mask.sum() == taken.outputs - taken.skipped, step.name
                assert not (mask & ~np.any([reached[name] for name in step.layers], axis=0)).any(), step.name
            last = values


LAYERS: dict[str, Callable[[Builder, str], Any]] = {
    "conv": lambda net, top: net.conv(top, 33, net.window(top)),
    "conv, grouped": lambda net, top: net.conv(net.conv(top, 8, POINT), 12, net.window(top), groups=4),
    "conv, groups of one input": lambda net, top: net.conv(
        net.conv(top, 3, POINT), 105, net.window(top), groups=3
    ),
    "conv, groups of one output": lambda net, top: net.conv(
        net.conv(top, 70, POINT), 35, net.window(top), groups=35
    ),
    "conv, depthwise": lambda net, top: _depthwise(net, top),
    "conv, depthwise and fused": lambda net, top: net.relu(net.affine(_depthwise(net, top))),
    "conv, grouped and fused": lambda net, top: net.affine(
        net.conv(net.conv(top, 4, POINT), 40, net.window(top), groups=2)
    ),
    "conv, whole": lambda net, top: net.conv(top, 10, net.whole(top)),
    "conv, whole and fused": lambda net, top: net.relu(net.conv(top, 10, net.whole(top))),
    "max pool": lambda net, top: net.max_pool(top, net.window(top, dilate=False)),
    "average pool": lambda net, top: net.avg_pool(top, net.window(top, dilate=False)),
    "average pool inside": lambda net, top: net.avg_pool(top, net.window(top, dilate=False), False),
    "average pool, whole": lambda net, top: net.avg_pool(top, net.whole(top)),
    "affine, relu": lambda net, top: net.relu(net.affine(top)),
    "prelu": lambda net, top: net.prelu(top),
    "rprelu": lambda net, top: net.affine(net.prelu(net.affine(top))),
    "clip": lambda net, top: net.clip(net.affine(top)),
    "concat": lambda net, top: net.concat(top, net.affine(top), INPUT, top),
    "concat, read by a binary layer": lambda net, top: net.binary(net.concat(INPUT, top), 9, POINT),
    "upsample": lambda net, top: net.upsample(top, 3),
    "upsample of a convolution": lambda net, top: net.prelu(net.upsample(net.conv(top, 20, POINT), 2)),
    "bilinear": lambda net, top: net.upsample(top, 3, "bilinear"),
    "bilinear, between": lambda net, top: net.prelu(net.upsample(net.conv(top, 20, POINT), 2, "bilinear")),
    "bilinear, read by a binary layer": lambda net, top: net.binary(
        net.upsample(top, 4, "bilinear"), 9, POINT
    ),
    "softmax": lambda net, top: net.softmax(top),
    "softmax, between": lambda net, top: net.affine(net.softmax(net.affine(net.conv(top, 40, POINT)))),
    "add": lambda net, top: net.plus(net.relu(top), net.affine(net.affine(top))),
    "add to itself": lambda net, top: net.plus(top, top),
    "binary": lambda net, top: net.binary(net.affine(top), 33, net.window(top), pad_value=-1),
    "binary, head": lambda net, top: net.conv(net.affine(net.binary(top, 70, SAME)), 21, POINT),
    "binary, head behind both": lambda net, top: net.conv(
        net.prelu(net.affine(net.binary(top, 33, SAME, pad_value=0))), 5, POINT
    ),
    "binary, read twice": lambda net, top: _read_twice(net, net.binary(top, 40, net.window(top))),
}


def _depthwise(net: Builder, top: str) -> str:
    channels = net.shapes[top][2]
    return net.conv(top, channels, net.window(top), groups=channels)


def _read_twice(net: Builder, top: str) -> str:
    """By a pool, which needs it stored as floats, and by an elementwise layer."""
    win = net.window(top, dilate=False)
    return net.plus(net.max_pool(top, win), net.max_pool(net.relu(top), win))


@pytest.mark.parametrize("channels", [0, 1, 16, 33, 65])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("seed", range(3))
def test_layer(kind, channels, seed):
    """Each kind on the input itself (channels 0), which is grey now and then, or behind a convolution."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(4, 10, 2))
    net = Builder(rng, height, width, channels=1 if seed == 2 else 3)
    LAYERS[kind](net, net.conv(INPUT, channels, POINT) if channels else INPUT)
    check_model(net.model(), rng)


NETWORK = every_kind(np.random.default_rng(0))


@pytest.mark.parametrize("output", [layer.name for layer in NETWORK.layers if not isinstance(layer, Sign)])
def test_network_cut_after_any_layer(output):
    """Each layer of a network once as its output, so that fusion meets every neighbourhood."""
    count = [layer.name for layer in NETWORK.layers].index(output) + 1
    check_model(Model("cut", NETWORK.input_rule, NETWORK.layers[:count]), np.random.default_rng(1))


def test_more_channels_than_a_register_holds():
    net = Builder(np.random.default_rng(0), 3, 4)
    top = net.affine(net.conv(INPUT, 1100, POINT))
    bits = net.binary(top, 1100, POINT)
    net.relu(net.plus(top, net.relu(bits)))
    check_model(net.model(), net.rng, frames=2)


RULE = InputRule(crop=(4, 5), resize=0, mean=(0.0,) * 3, std=(1.0,) * 3)


def constant(value: float, *shape: int) -> Array:
    return np.full(shape, value, np.float32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the oracle
@pytest.mark.parametrize("groups", [2, 4])
def test_an_infinite_value_stays_in_its_group(groups):
    """Zeros in place of the other groups' weights would spread it as NaN."""
    weight = constant(0.25, 4, 1, 1, 3)
    weight[0] = 3e38
    layers = (
        Conv2d("huge", (INPUT,), weight, constant(1, 4), POINT),
        Conv2d("top", ("huge",), constant(0.5, 4, 3, 3, 4 // groups), constant(1, 4), SAME, groups),
    )
    model = Model("infinite", RULE, layers)
    frame = np.full((4, 5, 3), 9, np.uint8)
    top = naive.forward(model, naive.network_input(model, frame))["top"]
    assert np.isposinf(top[..., 0]).all()
    assert np.isfinite(top[..., 4 // groups :]).all()
    check_model(model, np.random.default_rng(0), frames=2)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the oracle
def test_nan():
    """Infinity less infinity, through every layer whose definition says what becomes of it."""
    signs = np.array([1, -1, 0, 0], np.float32)
    layers = (
        Conv2d("huge", (INPUT,), constant(3e38, 4, 1, 1, 3), constant(0, 4), POINT),
        Affine("minus", ("huge",), constant(-1, 4), constant(0, 4)),
        Add("nan", ("huge", "minus")),
        Clip("clip", ("nan",), -1.0, 1.0),
        PRelu("prelu", ("nan",), signs),
        Relu("relu", ("nan",)),
        Concat("top", ("clip", "prelu", "relu", "nan")),
    )
    model = Model("nan", RULE, layers)
    values = naive.forward(model, naive.network_input(model, np.full((4, 5, 3), 9, np.uint8)))
    for name in ("clip", "prelu", "nan"):
        assert np.isnan(values[name]).all()
    check_model(model, np.random.default_rng(0), frames=2)


def minus_zeros(name: str, source: str, per_output: int, groups: int = 1) -> Conv2d:
    """-0.0 from inputs of no negative value: the sign of a zero, too, comes out as the definition has it."""
    weight, bias = np.full((4, 1, 1, per_output), -0.0, np.float32), np.full(4, -0.0, np.float32)
    return Conv2d(name, (source,), weight, bias, POINT, groups)


@pytest.mark.parametrize(
    "top",
    [
        Relu("top", ("zeros",)),
        Affine("top", ("zeros",), np.ones(4, np.float32), np.full(4, -0.0, np.float32)),
        PRelu("top", ("zeros",), np.array([1, 0, -0.0, -1], np.float32)),
        Clip("top", ("zeros",), 0.0, 1.0),
        Clip("top", ("zeros",), -1.0, 0.0),
        Concat("top", ("zeros", "zeros")),
        Upsample("top", ("zeros",), 2),
        Upsample("top", ("zeros",), 2, "bilinear"),
        Softmax("top", ("zeros",)),
        MaxPool("top", ("zeros",), Window((2, 2))),
        AvgPool("top", ("zeros",), Window((2, 2))),
        AvgPool("top", ("zeros",), Window((2, 2), padding=(1, 0, 1, 0)), count_padding=False),
        minus_zeros("top", "zeros", 2, groups=2),
        minus_zeros("top", "zeros", 1, groups=4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_minus_zero(top):
    model = Model("zeros", RULE, (minus_zeros("zeros", INPUT, 3), top))
    check_model(model, np.random.default_rng(0), frames=2)


@pytest.mark.parametrize(("outputs", "groups"), [(40, 1), (36, 3), (3, 3)])
def test_float_sums_that_another_order_would_round_differently(outputs, groups):
    """Terms of many magnitudes: the order of the sum, the fused product and the bias first all show."""
    rng = np.random.default_rng(0)
    shape = (outputs, 4, 5, 3 // groups)
    weight = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 7, shape)
    bias = rng.standard_normal(outputs) * 10.0 ** rng.integers(-3, 9, outputs)
    window = Window((4, 5))
    layer = Conv2d("sum", (INPUT,), weight.astype(np.float32), bias.astype(np.float32), window, groups)
    check_model(Model("sum", RULE, (layer,)), rng)
