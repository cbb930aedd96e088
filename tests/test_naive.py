"""Pins the oracle: by cases worked out by hand, exact fractions, and torch on integers."""

import itertools
from fractions import Fraction
from types import SimpleNamespace

import naive
import numpy as np
import pytest
from models import random_frames, random_model

from xnor_rrm.model import LAYER_KINDS

F32 = np.float32
NO_PADDING = (0, 0, 0, 0)


def image(*rows: list[float], dtype: type = F32) -> np.ndarray:
    """One channel."""
    return np.array(rows, dtype)[..., None]


def test_unpack_reads_the_lowest_bit_first():
    words = np.array([[0b0110, 1 << 1]], np.uint64)
    signs = naive.unpack(words, 66)
    assert signs.shape == (1, 66)
    assert signs[0, :4].tolist() == [-1, 1, 1, -1]
    assert signs[0, 63:].tolist() == [-1, -1, 1]


@pytest.mark.parametrize(
    ("pad_value", "expected"),
    [
        # x = + -   w = + +   the window at (y, x) covers rows y-1, y and columns x-1, x
        #     - -       - +
        # e.g. (0, 0) sees pad pad / pad +: 1 + (pad + pad - pad); (1, 1) sees + - / - -: 1 - 1 + 1 - 1.
        (0, [[1, -2], [0, 0]]),
        (1, [[2, 0], [0, 0]]),
        (-1, [[0, -4], [0, 0]]),
    ],
)
def test_binary_conv_by_hand(pad_value, expected):
    x = image([1, -1], [-1, -1], dtype=np.int64)
    w = np.array([[1, 1], [-1, 1]])[None, ..., None]
    y = naive.binary_conv(x, w, (1, 1), (1, 0, 1, 0), pad_value=pad_value)
    assert y.dtype == np.int64
    assert y[..., 0].tolist() == expected


def test_binary_conv_sums_channels_with_stride_and_dilation():
    x = np.ones((4, 5, 3), np.int64)
    x[0, 0] = -1
    w = np.ones((2, 2, 2, 3), np.int64)
    w[1, 0, 0, 2] = -1
    y = naive.binary_conv(x, w, (1, 2), NO_PADDING, (3, 2))
    # Taps at rows 0 and 3, columns x and x + 2: one row, two columns of outputs, 12 weights each.
    # Output 0 at column 0 loses 2 * 3 by the corner; output 1 has 10 elsewhere, and at the corner -2 + 1 + 9.
    assert y.tolist() == [[[6, 8], [12, 10]]]


def test_fma_does_not_round_twice():
    a, b, c = F32(1 + 2**-23), F32((1 - 2**-23) * 2**-24), F32(1 + 2**-23)
    # Exactly 1 + 2^-23 + 2^-24 - 2^-70: just below the tie that float64 would make of it.
    assert F32(np.float64(a) * np.float64(b) + np.float64(c)) == F32(1 + 2**-22)
    assert naive.fma(a, b, c) == F32(1 + 2**-23)


def test_fma_is_the_nearest_float_with_ties_to_even():
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(3000).astype(F32) for _ in range(3))
    c *= F32(2.0) ** rng.integers(-30, 31, c.shape).astype(F32)
    c[::3] = -a[::3] * b[::3]  # cancellation: only the product's rounding error is left
    for x, y, z, result in zip(a, b, c, naive.fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        distance = abs(Fraction(float(result)) - exact)
        for other in (np.nextafter(result, F32(-np.inf)), np.nextafter(result, F32(np.inf))):
            far = abs(Fraction(float(other)) - exact)
            assert distance < far or (distance == far and result.view(np.int32) % 2 == 0)


def test_float_conv_accumulates_in_order_and_fused():
    x = np.array([[[1, 1, 1]], [[1 + 2**-12, 0, 0]]], F32)
    w = np.zeros((1, 2, 1, 3), F32)
    w[0, 0, 0] = [2**24, 1, -(2**24)]
    # From the left 2^24 + 1 rounds to 2^24, so the first tap gives 0; another order would leave 1.
    assert naive.float_conv(x, w, np.zeros(1, F32), (1, 1), NO_PADDING).item() == 0
    # (1 + 2^-12)^2 - 1 = 2^-11 + 2^-24, which a rounded product would lose.
    w[0, 0, 0], w[0, 1, 0] = [-1, 0, 0], [1 + 2**-12, 0, 0]
    assert naive.float_conv(x, w, np.zeros(1, F32), (1, 1), NO_PADDING).item() == 2**-11 + 2**-24
    # The bias comes first: 2^24 + 1 + 1 stays 2^24, added last it would give 2^24 + 2.
    w[0, :, 0] = [[1, 1, 0], [0, 0, 0]]
    assert naive.float_conv(x, w, F32([2**24]), (1, 1), NO_PADDING).item() == 2**24


def test_affine_rounds_product_and_sum():
    x = np.array([[[1 + 2**-12]]], F32)
    # The product 1 + 2^-11 + 2^-24 rounds to 1 + 2^-11 before the sum.
    assert naive.affine(x, x[0, 0], np.array([-1], F32)).item() == 2**-11


def test_sign_of_zero_is_plus_one():
    assert naive.sign(image([0.0, -0.0, -1e-45, 1e-45])).ravel().tolist() == [1, 1, -1, 1]


def test_relu_and_add():
    x = image([-2.0, 0.0, 3.0])
    assert naive.relu(x).ravel().tolist() == [0, 0, 3]
    assert naive.add(x, x).ravel().tolist() == [-4, 0, 6]


def test_max_pool_never_takes_padding():
    x = image([-5.0, -1.0], [-7.0, -9.0])
    y = naive.max_pool(x, (2, 2), (1, 1), (1, 0, 1, 0))
    assert y[..., 0].tolist() == [[-5, -1], [-5, -1]]


def test_avg_pool_by_hand():
    x = image([1.0, 2.0], [3.0, 6.0])
    geometry = ((2, 2), (2, 2), (1, 1, 1, 1))
    assert naive.avg_pool(x, *geometry)[..., 0].tolist() == [[0.25, 0.5], [0.75, 1.5]]
    assert naive.avg_pool(x, *geometry, count_padding=False)[..., 0].tolist() == [[1, 2], [3, 6]]
    # In row-major order 2^24 + 1 + 1 stays 2^24.
    assert naive.avg_pool(image([2.0**24, 1.0, 1.0, 0.0]), (1, 4), (1, 1), NO_PADDING).item() == 2**22
    # A third of 10 is a product with float32(1 / 3).
    assert naive.avg_pool(image([1.0, 4.0, 5.0]), (1, 3), (1, 1), NO_PADDING).item() == F32(10) * F32(1 / 3)


def test_upsampling_by_hand():
    x = image([0.0, 4.0])
    assert naive.upsample(x, 2)[..., 0].tolist() == [[0, 0, 4, 4]] * 2
    # Centres of the outputs among the inputs: -1/4, 1/4, 3/4, 5/4; and by three -1/3, 0, 1/3, 2/3, 1, 4/3.
    assert naive.bilinear(x, 2)[..., 0].tolist() == [[0, 1, 3, 4]] * 2
    x = image([0.0, 6.0], [12.0, 18.0])
    expected = [[row + column for column in (0, 0, 2, 4, 6, 6)] for row in (0, 0, 4, 8, 12, 12)]
    np.testing.assert_allclose(naive.bilinear(x, 3)[..., 0], expected, rtol=1e-7)


def test_bilinear_rounds_products_and_sums_columns_first():
    rng, u, v = np.random.default_rng(0), F32(0.25), F32(0.75)
    otherwise = 0
    for a, b, c, d in rng.standard_normal((200, 4)).astype(F32):
        y = naive.bilinear(image([a, b], [c, d]), 2)
        assert y.dtype == F32
        assert y[1, 1, 0] == (a * v + b * u) * v + (c * v + d * u) * u
        otherwise += y[1, 1, 0] != (a * v + c * u) * v + (b * v + d * u) * u
    assert otherwise > 20


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 7])
def test_bilinear_agrees_with_torch(factor):
    torch = pytest.importorskip("torch")  # of an optional extra
    x = np.random.default_rng(0).standard_normal((3, 5, 2)).astype(F32)
    batch = torch.tensor(x.transpose(2, 0, 1)[None]).double()
    expected = torch.nn.functional.interpolate(batch, scale_factor=factor, mode="bilinear")
    np.testing.assert_allclose(naive.bilinear(x, factor), expected[0].numpy().transpose(1, 2, 0), atol=1e-6)


def test_exponentials_are_near_the_true_ones():
    x = -np.concatenate([np.linspace(0, 87, 40_000), np.geomspace(1e-30, 1, 1000)]).astype(F32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(naive.exp(x) / exact - 1) < 2**-22).all()
    assert naive.exp(F32([0, -0.0, -87.5, -1e30])).tolist() == [1, 1, 0, 0]


def test_softmax_by_hand():
    powers = naive.exp(F32([-1, 0, -3]))
    total = (powers[0] + powers[1]) + powers[2]
    assert naive.softmax(F32([[[9, 10, 7]]])).ravel().tolist() == (powers / total).tolist()
    assert naive.softmax(F32([[[1e38, 1e38, -1e38]]])).ravel().tolist() == [0.5, 0.5, 0]
    # From the first channel on, (2^-24 + 2^-24) + 1 is more than 1; from the last it would be 1.
    small = F32(-24 * np.log(2))
    y = naive.softmax(F32([[[small, small, 0]]])).ravel()
    assert y[2] < 1


def rule_of(**fields: object) -> object:
    return SimpleNamespace(**{"resize": 0, "fit": "crop", "step": 1, **fields})


def test_network_input_crops_the_centre():
    rule = rule_of(crop=(1, 2), mean=(10.0, 0.0, 0.0), std=(2.0, 1.0, 4.0))
    frame = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    # 3 rows and 3 columns to spare: row 1, columns 1 and 2, whose values are 18..23.
    y = naive.network_input(SimpleNamespace(input_rule=rule), frame)
    assert y.tolist() == [[[4, 19, 5], [5.5, 22, 5.75]]]


def test_network_input_in_steps():
    rule = rule_of(crop=(1, 1), mean=(10.0, 0.0, 0.0), std=(2.0, 1.0, 4.0), step=16)
    y = naive.network_input(SimpleNamespace(input_rule=rule), np.array([[[31, 32, 15]]], np.uint8))
    assert y.tolist() == [[[3, 32, 0]]]


def test_areas_worked_out_by_hand():
    """3 pixels to 2: each output has one and a half, weights 2/3 and 1/3, 171 and 85 of 256."""
    x = np.array([[[0]], [[60]], [[90]]], np.uint8)
    # (171 * 0 + 85 * 60 + 128) // 256, (85 * 60 + 171 * 90 + 128) // 256
    assert naive.area_resize(x, (2, 1)).ravel().tolist() == [20, 80]
    # 2 to 4: places 0 (held), 1/4, 3/4, 1 (held)
    assert naive.area_resize(x[1:], (4, 1)).ravel().tolist() == [60, 68, 83, 90]


def test_a_letterbox_worked_out_by_hand():
    frame = np.full((2, 4, 3), 200, np.uint8)
    y = naive.letterbox(frame, (3, 2), (9.6, 0.0, 300.0))
    assert y[:, :, 0].tolist() == [[10, 10], [200, 200], [10, 10]]
    assert y[2, 0].tolist() == [10, 0, 255]


def test_forward_follows_the_names():
    window = SimpleNamespace(kernel=(1, 1), stride=(1, 1), padding=NO_PADDING, dilation=(1, 1))

    def layer(kind: str, name: str, *inputs: str, **fields: object) -> object:
        return type(kind, (), {"name": name, "inputs": inputs, **fields})()

    model = SimpleNamespace(
        layers=[
            layer("Affine", "bn", "input", scale=F32([1, -1, 1]), shift=F32([0, 0, -4])),
            layer("Sign", "bits", "bn"),
            layer(
                "BinaryConv2d",
                "conv",
                "bits",
                weight=np.array([[[[0b101]]]], np.uint64),
                alpha=F32([2]),
                bias=F32([0.5]),
                channels=3,
                window=window,
                pad_value=0,
            ),
            layer("Relu", "relu", "conv"),
            layer("Add", "sum", "conv", "relu"),
        ]
    )
    values = naive.forward(model, F32([[[1, 2, 3]]]))
    # bn = 1, -2, -1; signs + - -; weights + - +: dot 1, times 2 plus 0.5.
    assert values["bits"].ravel().tolist() == [1, -1, -1]
    assert values["conv"].item() == 2.5
    assert values["sum"].item() == 5


def test_random_models_run_and_cover_every_kind_of_layer():
    seen = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        model = random_model(rng)
        (frame,) = random_frames(rng, 1, *model.input_rule.crop, "still")
        values = naive.forward(model, naive.network_input(model, frame))
        assert {name: value.shape for name, value in values.items()} == model.shapes
        assert all(np.isfinite(value).all() for value in values.values())
        seen |= {type(layer).__name__ for layer in model.layers}
    assert seen == set(LAYER_KINDS)


@pytest.mark.parametrize(
    ("motion", "least", "most"),
    [
        ("still", 0, 0),
        ("all", 99, 99),
        ("flip", 99, 99),
        ("border", 1, 1),
        ("pixel", 1, 1),
        ("patch", 1, 18),
        ("noise", 0, 40),
    ],
)
def test_random_frames_change_as_they_say(motion, least, most):
    frames = list(random_frames(np.random.default_rng(0), 12, 9, 11, motion))
    assert all(frame.shape == (9, 11, 3) and frame.dtype == np.uint8 for frame in frames)
    changed = [int((a != b).any(-1).sum()) for a, b in itertools.pairwise(frames)]
    assert len(changed) == 11
    assert all(least <= count <= most for count in changed)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_agrees_with_torch_on_integers(stride, dilation, groups):
    torch = pytest.importorskip("torch")  # of an optional extra
    rng = np.random.default_rng(1)
    x, w = rng.integers(-4, 5, (7, 8, 6)), rng.integers(-4, 5, (4, 3, 2, 6 // groups))
    expected = torch.nn.functional.conv2d(
        torch.nn.functional.pad(torch.tensor(x.transpose(2, 0, 1)[None]).double(), (0, 2, 2, 1)),
        torch.tensor(w.transpose(0, 3, 1, 2)).double(),
        stride=stride,
        dilation=dilation,
        groups=groups,
    )
    expected = expected[0].numpy().transpose(1, 2, 0)
    y = naive.float_conv(
        x.astype(F32), w.astype(F32), np.zeros(4, F32), stride, (2, 1, 0, 2), dilation, groups
    )
    assert y.dtype == F32
    np.testing.assert_array_equal(y, expected)
    if groups == 1:
        np.testing.assert_array_equal(naive.binary_conv(x, w, stride, (2, 1, 0, 2), dilation), expected)
