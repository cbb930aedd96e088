"""Each fused chain leaves the bits that its layers leave one after another, each a step of its own."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MOTIONS, Builder, random_frames, random_model
from test_stream import ALWAYS, BANDS, MIXED, NEVER, laying_out

from xnor_rrm import embedded_model
from xnor_rrm.model import INPUT, BinaryConv2d, Model, Sign, Window
from xnor_rrm.plan import Plan, build_plan
from xnor_rrm.policy import ALWAYS_ROWS
from xnor_rrm.stream import Stream

Array = np.ndarray[Any, Any]

SAME, POINT = Window((3, 3), padding=(1, 1, 1, 1)), Window((1, 1))
#: Sizes of groups of channels that fill words, spill into the next one, and are fewer.
CHANNELS = (5, 64, 70)

#: What may stand between a binary convolution and a sign. Each is given the block's input, too.
CHAIN = {
    "affine": lambda net, top, _: net.affine(top),
    "relu": lambda net, top, _: net.relu(top),
    "prelu": lambda net, top, _: net.prelu(top),
    "clip": lambda net, top, _: net.clip(top),
    "softmax": lambda net, top, _: net.softmax(top),
    "add": lambda net, top, shortcut: net.plus(top, shortcut),
    "add to itself": lambda net, top, _: net.plus(top, top),
}

#: Who else reads a value of the chain: nobody, another sign, a pool, a float convolution, a binary one.
CONSUMERS = {
    "none": lambda net, top: None,
    "sign": lambda net, top: net.binary(net.sign(net.affine(top)), 3, POINT),
    "pool": lambda net, top: net.max_pool(top, SAME),
    "conv": lambda net, top: net.relu(net.conv(top, 4, POINT)),
    "binary": lambda net, top: net.binary(top, 4, SAME),
}


def chained(rng: np.random.Generator, chain: list[str], consumer: str, at: int, binary: bool) -> Model:
    """A convolution, binary or float, the chain, a sign and another binary one; `at`: what else is read."""
    net = Builder(rng, int(rng.integers(3, 8)), int(rng.integers(3, 8)), ties=rng.random() < 0.3)
    channels = int(rng.choice(CHANNELS))
    shortcut = net.affine(net.conv(INPUT, channels, SAME))
    pad_value = int(rng.integers(-1, 2))
    top = net.binary(shortcut, channels, SAME, pad_value) if binary else net.conv(shortcut, channels, SAME)
    values = [top]
    for kind in chain:
        values.append(CHAIN[kind](net, values[-1], shortcut))
    other = CONSUMERS[consumer](net, values[at % len(values)])
    top = net.binary(values[-1], 9, SAME, pad_value)
    if other is not None:
        top = net.concat(top, other)
    net.conv(top, 5, net.whole(top))
    return net.model()


def tensors(stream: Stream) -> dict[str, Array]:
    """What the stream keeps of the last frame's values, by layer: floats, and signs as bool."""
    floats = {}
    for name, (offset, stride, (height, width, channels)) in stream._plan.floats.items():
        values = stream._state.f32[offset : offset + height * width * stride]
        floats[name] = values.reshape(height, width, stride)[..., :channels].copy()
    return {**floats, **stream.signs()}


def check(model: Model, rng: np.random.Generator, motions: list[Any], share: float, band: int) -> Plan:
    """Both plans, in both modes, after every frame. Returns the one that is fused."""
    with laying_out(share, band):
        fused, apart = build_plan(model), build_plan(model, fuse=False)
    streams = [Stream(model, mode, plan) for plan in (fused, apart) for mode in ("dense", "cached")]
    for motion in motions:
        for frame in random_frames(rng, 2, *model.input_rule.crop, motion):
            expected = naive.forward(model, naive.network_input(model, frame))
            for stream in streams:
                logits = stream(frame)
                assert logits.tobytes() == expected[model.layers[-1].name].tobytes()
                for name, found in tensors(stream).items():
                    value = expected[name] > 0 if found.dtype == bool else expected[name]
                    assert found.tobytes() == value.tobytes(), (name, stream.mode)
            assert tensors(streams[2]).keys() == expected.keys()  # one step a layer leaves all of them
    assert len(apart.steps) == 1 + len(model.layers) + sum(isinstance(x, BinaryConv2d) for x in model.layers)
    assert all(len(info.layers) == 1 for info in apart.info)
    return fused


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    chain=st.lists(st.sampled_from(list(CHAIN)), max_size=4),
    consumer=st.sampled_from(list(CONSUMERS)),
    at=st.integers(0, 4),
    binary=st.booleans(),
    motions=st.lists(st.sampled_from(MOTIONS), min_size=1, max_size=2),
    share=st.sampled_from([MIXED, ALWAYS, NEVER]),
    band=st.sampled_from(BANDS),
    seed=st.integers(0, 2**32 - 1),
)
def test_chains(chain, consumer, at, binary, motions, share, band, seed):
    rng = np.random.default_rng(seed)
    check(chained(rng, chain, consumer, at, binary), rng, motions, share, band)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([MIXED, ALWAYS]), band=st.sampled_from(BANDS))
def test_random_models(seed, share, band):
    rng = np.random.default_rng(seed)
    check(random_model(rng, blocks=2), rng, ["noise"], share, band)


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("kind", CHAIN)
def test_that_the_chains_are_fused(kind, consumer):
    """The sign becomes a limit where nothing else is read, and a program of several layers elsewhere."""
    model = chained(np.random.default_rng(0), ["affine", kind], consumer, 1, binary=True)
    plan = check(model, np.random.default_rng(0), ["pixel"], MIXED, BANDS[0])
    sign = [layer.name for layer in model.layers if isinstance(layer, Sign)][1]
    (step,) = (info for info in plan.info if sign in info.layers)
    limits = consumer == "none" and kind in ("affine", "relu", "clip")
    assert len(step.layers) >= 3
    assert (step.kind == "binary") == limits or kind == "prelu"  # of slopes below 0: not monotone


#: Chains of one instruction.
HEADED = (["affine"], ["prelu"], ["affine", "prelu"])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    chain=st.sampled_from(HEADED) | st.lists(st.sampled_from(list(CHAIN)), min_size=1, max_size=3),
    channels=st.sampled_from([5, 32, 64, 70, 96, 256]),
    outputs=st.sampled_from([1, 5, 20, 68]),
    beside=st.sampled_from(["nothing", "nothing", "a window", "a reader"]),
    motions=st.lists(st.sampled_from(MOTIONS), min_size=1, max_size=2),
    share=st.sampled_from([MIXED, ALWAYS, NEVER]),
    band=st.sampled_from(BANDS),
    seed=st.integers(0, 2**32 - 1),
)
def test_heads(chain, channels, outputs, beside, motions, share, band, seed):
    """The output's 1x1 convolution runs with the program before it, if that is a batch-norm and a PReLU."""
    rng = np.random.default_rng(seed)
    net = Builder(rng, int(rng.integers(3, 9)), int(rng.integers(3, 9)), ties=rng.random() < 0.3)
    shortcut = net.affine(net.conv(INPUT, channels, SAME))
    top = net.binary(shortcut, channels, SAME, int(rng.integers(-1, 2)))
    for kind in chain:
        top = CHAIN[kind](net, top, shortcut)
    if beside == "a reader":
        top = net.plus(top, net.affine(net.binary(top, channels, POINT)))
    net.conv(top, outputs, SAME if beside == "a window" else POINT)
    plan = check(net.model(), rng, motions, share, band)
    assert (len(plan.info[-1].layers) > 1) == (chain in HEADED and beside == "nothing")


@pytest.mark.parametrize("costs", [None, ALWAYS_ROWS], ids=["measured", "always rows"])
@pytest.mark.parametrize("name", ["person", "pose"])
def test_embedded_networks(name, costs):
    """Layers by themselves sum sets of rows a band at a time, of which wide ones have several."""
    model = embedded_model(name)
    streams = [
        Stream(model, mode, build_plan(model, costs, fuse=fuse))
        for mode in ("dense", "cached")
        for fuse in (True, False)
    ]
    assert model.plan.steps[-1]["fused"]
    assert len(model.plan.info[-1].layers) == 4
    before = np.zeros(model.output_shape, np.float32)
    for frame in random_frames(np.random.default_rng(0), 4, *model.input_rule.crop, "pixel"):
        values = [stream.values(frame) for stream in streams]
        assert len({each.tobytes() for each in values}) == 1
        now = values[0].reshape(model.output_shape)
        computed = streams[2].computed()[-1]
        assert computed[(now != before).any(axis=2)].all()
        assert computed.sum() == streams[2].stats[-1].outputs - streams[2].stats[-1].skipped
        before = now
    assert not computed.all()
