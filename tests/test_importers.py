"""Importers: what they bring over computes what the original does, and nothing hostile gets through."""

from __future__ import annotations

import json
import re
import struct
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import numpy.typing as npt
import pytest
from models import Builder, every_kind

from xnor_rrm import Model, XnorError, convert
from xnor_rrm.bits import pack_signs, unpack_signs
from xnor_rrm.errors import ConvertError, ShapeError
from xnor_rrm.importers import IMPORTERS, bmxnet, bring_over, packed_pytorch, xnor_net_pytorch
from xnor_rrm.importers.common.checkpoint import Checkpoint, Tensors
from xnor_rrm.model import INPUT, AvgPool, BinaryConv2d, Sign, Window
from xnor_rrm.torch_reference import FloatTwin

torch = pytest.importorskip("torch")  # of an optional extra
F = torch.nn.functional

Array = npt.NDArray[Any]
State = dict[str, Any]

pytestmark = pytest.mark.usefixtures("one_thread")


# Packing


@pytest.mark.parametrize("channels", [1, 3, 31, 33, 63, 64, 65, 128, 130])
def test_bits_are_least_significant_first_and_come_back(channels: int) -> None:
    signs = np.random.default_rng(channels).random((2, 3, channels)) < 0.5
    words = pack_signs(signs)
    assert words.dtype == np.uint64
    assert words.shape == (2, 3, -(-channels // 64))
    for c in range(channels):
        np.testing.assert_array_equal(words[..., c // 64] >> np.uint64(c % 64) & np.uint64(1), signs[..., c])
    assert int(np.bitwise_count(words).sum()) == signs.sum(), "a pad bit is set"
    np.testing.assert_array_equal(unpack_signs(words, channels), signs)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_unpack_takes_words_of_any_width(dtype: type) -> None:
    signs = np.random.default_rng(0).random((5, 128)) < 0.5
    words = np.packbits(signs, axis=-1, bitorder="little").view(dtype)
    np.testing.assert_array_equal(unpack_signs(words, 100), signs[:, :100])


def test_packing_refuses_what_are_no_signs() -> None:
    with pytest.raises(ShapeError, match=r"expected bool\[\.\.\., C\], got float64\[3\]"):
        pack_signs(np.zeros(3))
    with pytest.raises(ShapeError, match="65 bits a row"):
        unpack_signs(np.zeros((2, 1), np.uint64), 65)


# BMXNet, from files written here. All values are small dyadic numbers, so every sum is exact in any order.


class Graph:
    """An MXNet symbol and its arrays, put together node by node."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.arrays: dict[str, Array] = {}

    def node(self, op: str, name: str, *inputs: str, attr: dict[str, str] | None = None) -> None:
        index = {node["name"]: i for i, node in enumerate(self.nodes)}
        edges = [[index[each], 0, 0] for each in inputs]
        self.nodes.append({"op": op, "name": name, "inputs": edges} | ({"attr": attr} if attr else {}))

    def layer(self, op: str, name: str, *inputs: str, arrays: dict[str, Array], **attr: object) -> None:
        """An operator with parameters, which become nodes of their own before it."""
        for suffix, array in arrays.items():
            self.node("null", f"{name}_{suffix}")
            self.arrays[f"{'aux' if 'moving' in suffix else 'arg'}:{name}_{suffix}"] = array
        names = [f"{name}_{suffix}" for suffix in arrays]
        self.node(op, name, *inputs, *names, attr={key: str(value) for key, value in attr.items()})

    def save(self, folder: Path, version: int = 0, prefix: str = "net") -> Path:
        (folder / f"{prefix}-symbol.json").write_text(json.dumps({"nodes": self.nodes}))
        path = folder / f"{prefix}-0001.params"
        path.write_bytes(params(self.arrays, version))
        return path


def params(arrays: dict[str, Array], version: int = 0) -> bytes:
    parts = [struct.pack("<3Q", 0x112, 0, len(arrays))]
    for array in arrays.values():
        dims = array.ndim
        parts += [
            struct.pack(f"<I{dims}I", dims, *array.shape)
            if version == 0
            else struct.pack(f"<II{dims}q", 0xF993FAC8, dims, *array.shape)
            if version == 1
            else struct.pack(f"<IiI{dims}q", 0xF993FAC9, 0, dims, *array.shape),
            struct.pack("<3i", 1, 0, {"float32": 0, "float64": 1, "int32": 4}[array.dtype.name]),
            array.tobytes(),
        ]
    parts.append(struct.pack("<Q", len(arrays)))
    parts += [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    return b"".join(parts)


def residual_graph(seed: int = 0, words: str = "<f4") -> tuple[Graph, Callable[[Array], Array]]:
    """A network with every supported operator on 12x12 images, and what it computes, by the oracle."""
    rng, graph = np.random.default_rng(seed), Graph()

    def integers(*shape: int, most: int = 2) -> Array:
        return rng.integers(-most, most + 1, shape).astype(np.float32)

    def batch_norm(
        name: str, source: str, channels: int, fix_gamma: bool = False
    ) -> Callable[[Array], Array]:
        gamma = rng.choice(np.float32([-2, -0.5, 1, 2]), channels)
        beta, mean = integers(channels), integers(channels, most=20) + np.float32(0.5)
        var = rng.choice(np.float32([0.75, 3.75]), channels)
        arrays = {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_var": var}
        graph.layer("BatchNorm", name, source, arrays=arrays, eps=0.25, fix_gamma=fix_gamma, momentum=0.9)
        scale = (1 if fix_gamma else gamma) / np.sqrt(var + np.float32(0.25))
        return lambda x: (x - mean) * scale + beta

    def q_convolution(
        name: str, source: str, cin: int, cout: int, kernel: int, stride: int
    ) -> Callable[[Array], Array]:
        signs, pad = rng.random((cout, cin, kernel, kernel)) < 0.5, kernel // 2
        packed = np.packbits(signs.reshape(-1), bitorder="little").view(words)
        shape = {
            "kernel": (kernel, kernel),
            "pad": (pad, pad),
            "stride": (stride, stride),
            "num_filter": cout,
        }
        binary = {"act_bit": 1, "no_bias": True, "binarized_weights_only": True, "workspace": 256}
        graph.layer("QConvolution", name, source, arrays={"weight": packed}, **shape, **binary)
        w = np.where(signs.transpose(0, 2, 3, 1), 1, -1)

        def apply(x: Array) -> Array:
            dot = naive.binary_conv(naive.sign(x), w, (stride, stride), (pad,) * 4, pad_value=1)
            return ((dot + kernel * kernel * cin) // 2).astype(np.float32)

        return apply

    graph.node("null", "data")
    bn_data = batch_norm("bn_data", "data", 3, fix_gamma=True)
    w0, b0 = integers(32, 3, 3, 3), integers(32, most=50)
    stem = {"kernel": "(3, 3)", "pad": "(1, 1)", "num_filter": 32}
    graph.layer("Convolution", "conv0", "bn_data", arrays={"weight": w0, "bias": b0}, **stem)
    bn0 = batch_norm("bn0", "conv0", 32)
    graph.node("Activation", "relu0", "bn0", attr={"act_type": "relu"})
    pool = {"kernel": "(3, 3)", "pad": "(1, 1)", "stride": "(2, 2)", "pool_type": "max"}
    graph.node("Pooling", "pool0", "relu0", attr=pool)
    bn1 = batch_norm("bn1", "pool0", 32)
    graph.node("QActivation", "sign1", "bn1", attr={"act_bit": "1", "backward_only": "True"})
    conv1 = q_convolution("conv1", "sign1", 32, 64, kernel=3, stride=1)
    shortcut = q_convolution("shortcut", "sign1", 32, 64, kernel=1, stride=1)
    graph.node("elemwise_add", "plus0", "conv1", "shortcut")
    bn2 = batch_norm("bn2", "plus0", 64)
    conv2 = q_convolution("conv2", "bn2", 64, 64, kernel=3, stride=2)  # binarizes its input itself
    bn3 = batch_norm("bn3", "conv2", 64)
    graph.node("Flatten", "flat", "bn3")
    fc, fb = integers(5, 64 * 3 * 3, most=1), integers(5)
    graph.layer("FullyConnected", "fc", "flat", arrays={"weight": fc, "bias": fb}, num_hidden=5)
    graph.node("null", "softmax_label")
    graph.node("SoftmaxOutput", "softmax", "fc", "softmax_label")

    def forward(x: Array) -> Array:
        x = naive.float_conv(bn_data(x), w0.transpose(0, 2, 3, 1), b0, (1, 1), (1, 1, 1, 1))
        x = naive.max_pool(naive.relu(bn0(x)), (3, 3), (2, 2), (1, 1, 1, 1))
        x = bn1(x)
        x = bn3(conv2(bn2(conv1(x) + shortcut(x))))
        return fc @ x.transpose(2, 0, 1).reshape(-1) + fb

    return graph, forward


@pytest.mark.parametrize(("version", "words"), [(0, "<f4"), (1, "<f4"), (2, "<f4"), (2, "<f8")])
def test_bmxnet_computes_what_its_graph_says(tmp_path: Path, version: int, words: str) -> None:
    graph, forward = residual_graph(version, words)
    model = convert(graph.save(tmp_path, version), size=12)
    assert model.input_shape == (12, 12, 3)
    assert [layer.name for layer in model.layers if isinstance(layer, Sign)] == ["sign1", "bn2.sign"]
    assert all(layer.pad_value == 1 for layer in model.layers if isinstance(layer, BinaryConv2d))
    twin = FloatTwin(model)
    for seed in range(3):
        x = np.random.default_rng(seed).integers(0, 256, model.input_shape).astype(np.float32)
        np.testing.assert_array_equal(twin(x), forward(x))
        logits, kept = bmxnet.original(Checkpoint(tmp_path / "net-0001.params"), size=12)(x)
        np.testing.assert_allclose(logits, forward(x), rtol=1e-6)
        assert {name: value.shape for name, value in kept.items()} == {
            "sign1": (6, 6, 32),
            "bn2.sign": (6, 6, 64),
        }


def test_bmxnet_labels_come_from_a_synset_of_the_right_length(tmp_path: Path) -> None:
    path = residual_graph()[0].save(tmp_path)
    synset = tmp_path / "synset.txt"
    synset.write_text("".join(f"n0000000{i} kind {i}, the {i}th\n" for i in range(5)))
    assert convert(path, size=12).labels == tuple(f"kind {i}, the {i}th" for i in range(5))
    synset.write_text("n00000000 only\n")
    assert convert(path, size=12).labels == ()


def test_bmxnet_finds_its_symbol_by_prefix_or_alone_or_by_option(tmp_path: Path) -> None:
    graph = residual_graph()[0]
    path = graph.save(tmp_path)
    (tmp_path / "other-symbol.json").write_text("{}")
    convert(path, size=12)
    (tmp_path / "net-symbol.json").rename(tmp_path / "third-symbol.json")
    with pytest.raises(
        ConvertError, match=r"net-symbol\.json, or one .*got other-symbol\.json, third-symbol\.json"
    ):
        convert(path, size=12)
    convert(path, size=12, symbol=tmp_path / "third-symbol.json")
    (tmp_path / "other-symbol.json").unlink()
    convert(path, size=12)
    (tmp_path / "third-symbol.json").unlink()
    with pytest.raises(ConvertError, match="got none"):
        convert(path, size=12)
    with pytest.raises(ConvertError, match="a readable symbol JSON"):
        convert(path, size=12, symbol="nowhere.json")


def test_bmxnet_asks_for_the_input_size_of_heads_other_than_imagenets(tmp_path: Path) -> None:
    path = residual_graph()[0].save(tmp_path)
    with pytest.raises(ConvertError, match="give its height and width as the option size"):
        convert(path)
    for size in (0, -1, 12.0, True, "12"):
        with pytest.raises(ConvertError, match="size as an integer of at least 1"):
            convert(path, size=size)


def change_node(name: str, **changes: Any) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        node = next(node for node in graph.nodes if node["name"] == name)
        node.update({key: value for key, value in changes.items() if key != "attr"})
        node["attr"] = node.get("attr", {}) | changes.get("attr", {})

    return change


def change_array(name: str, change: Callable[[Array], Array] | None) -> Callable[[Graph], None]:
    def apply(graph: Graph) -> None:
        if change is None:
            del graph.arrays[name]
        else:
            graph.arrays[name] = change(graph.arrays.get(name, np.zeros(3, np.float32)))

    return apply


def poison(array: Array) -> Array:
    array.reshape(-1)[1] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_node("relu0", op="LeakyReLU"), r"operators among Activation, .*got LeakyReLU \(relu0\)"),
        (change_node("relu0", attr={"act_type": "tanh"}), "act_type relu in Activation relu0, got tanh"),
        (change_node("relu0", attr={"slope": "1"}), "known attributes in Activation relu0, got slope"),
        (change_node("sign1", attr={"act_bit": "2"}), "act_bit 1 in QActivation sign1, got 2"),
        (change_node("conv1", attr={"act_bit": "4"}), "act_bit 1 in QConvolution conv1, got 4"),
        (change_node("conv1", attr={"scaling_mode": "forward"}), "scaling_mode none"),
        (change_node("conv1", attr={"binarized_weights_only": "False"}), "binarized_weights_only True"),
        (change_node("conv1", attr={"num_filter": "-64"}), "bits in 'conv1_weight'"),
        (change_node("conv1", attr={"kernel": "(1e9, 3)"}), "kernel of two numbers"),
        (change_node("conv1", attr={"kernel": "(" * 90}), "kernel like"),
        (change_node("conv1", attr={"stride": "(0, 0)"}), "positive kernel, stride"),
        (change_node("conv0", attr={"layout": "NHWC"}), "layout NCHW in Convolution conv0, got NHWC"),
        (change_node("conv0", attr={"no_bias": "True"}), "no bias in Convolution conv0"),
        (change_node("conv0", attr={"num_group": "3"}), "conv0"),
        (change_node("bn0", attr={"eps": "1e999"}), "a finite eps in BatchNorm bn0"),
        (change_node("bn0", attr={"eps": "-9"}), "variances of at least 0 in 'bn0_moving_var'"),
        (change_node("pool0", attr={"pool_type": "sum"}), "pool_type max or avg in Pooling pool0, got sum"),
        (change_node("pool0", attr={"pooling_convention": "full"}), "pooling_convention valid"),
        (change_node("plus0", inputs=[[0, 0, 0]]), "2 inputs of elemwise_add plus0, got 1"),
        (change_node("plus0", inputs=[[999, 0, 0], [0, 0, 0]]), "its nodes in order"),
        (change_node("plus0", inputs=[[-1, 0, 0], [0, 0, 0]]), "earlier nodes' first outputs"),
        (change_node("plus0", inputs=[[1, 0, 0], [0, 0, 0]]), "an input of elemwise_add plus0 computed from"),
        (change_node("plus0", inputs="ab"), "its nodes in order"),
        (lambda graph: graph.nodes.clear(), "only tensors this importer knows"),
        (change_array("arg:conv0_weight", None), "a tensor 'conv0_weight' in the checkpoint"),
        (change_array("arg:spare", lambda a: a), "only tensors this importer knows, got 1 more: spare"),
        (
            change_array("arg:conv0_weight", poison),
            "finite values in 'conv0_weight', got 1 NaN or infinite of 864",
        ),
        (change_array("arg:bn0_gamma", poison), "finite values in 'bn0_gamma'"),
        (change_array("aux:bn0_moving_var", np.negative), "variances of at least 0 in 'bn0_moving_var'"),
        (change_array("arg:conv0_weight", lambda a: a[:16]), r"float32\[32, any, 3, 3\] as 'conv0_weight'"),
        (change_array("arg:conv1_weight", lambda a: a[:-1]), "18432 bits in 'conv1_weight'"),
        (change_array("arg:conv0_weight", lambda a: a.astype(np.float64)), "'conv0_weight', got float64"),
        (change_array("arg:fc_bias", lambda a: a.astype(np.int32)), "dtype 0 .*got 4"),
    ],
)
def test_bmxnet_names_what_it_cannot_bring_over(
    tmp_path: Path, change: Callable[[Graph], None], message: str
) -> None:
    graph = residual_graph()[0]
    change(graph)
    with pytest.raises(XnorError, match=message):
        convert(graph.save(tmp_path), size=12)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"nodes": 3}', '{"nodes": [{}]}', "[" * 100_000, '{"nodes": [null]}', "\udcff"]
)
def test_bmxnet_refuses_a_symbol_that_is_none(tmp_path: Path, text: str) -> None:
    path = residual_graph()[0].save(tmp_path)
    (tmp_path / "net-symbol.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConvertError, match="a symbol JSON"):
        convert(path, size=12)


def test_bmxnet_refuses_every_cut(tmp_path: Path) -> None:
    path = residual_graph()[0].save(tmp_path)
    whole = path.read_bytes()
    for end in (*range(200), *range(200, len(whole), 499), len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ConvertError):
            convert(path, size=12)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ConvertError, match="1 more bytes"):
        convert(path, size=12)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (16, struct.pack("<Q", 2**60), "an array of 1 to 8 dimensions"),
        (24, struct.pack("<I", 0xDEADBEEF), "an array of 1 to 8 dimensions"),
        (28, struct.pack("<i", 1), "a dense array"),
        (32, struct.pack("<I", 0), "an array of 1 to 8 dimensions"),
        (32, struct.pack("<I", 2**32 - 1), "an array of 1 to 8 dimensions"),
        (36, struct.pack("<q", -3), "positive sizes"),
        (36, struct.pack("<q", 0), "positive sizes"),
        (36, struct.pack("<q", 2**62), "cut or damaged"),
        (52, struct.pack("<i", 99), "dtype"),
        (-1, struct.pack("<B", 0xFF), "a tensor 'fc_bias'"),
    ],
)
def test_bmxnet_believes_no_number_of_the_file(
    tmp_path: Path, offset: int, value: bytes, message: str
) -> None:
    path = residual_graph()[0].save(tmp_path, version=2)
    content = bytearray(path.read_bytes())
    offset %= len(content)
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ConvertError, match=message):
        convert(path, size=12)
    assert time.perf_counter() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


# PyTorch checkpoints, from random weights and the original's arithmetic written out in float64


NIN_BLOCKS: dict[int, Any] = {3: 1, 4: 1, 5: "max", 6: 5, 7: 1, 8: 1, 9: "avg", 10: 3, 11: 1}


def random_batch_norm(rng: Any, name: str, channels: int, affine: bool = True) -> State:
    state = {
        f"{name}.running_mean": rng.normal(size=channels),
        f"{name}.running_var": rng.uniform(0.5, 2, channels),
        f"{name}.num_batches_tracked": np.int64(7),
    }
    if affine:
        state |= {f"{name}.weight": rng.normal(size=channels), f"{name}.bias": rng.normal(size=channels)}
    return state


def tensors(state: State) -> State:
    return {
        name: torch.tensor(value if np.asarray(value).dtype.kind == "i" else np.float32(value))
        for name, value in state.items()
    }


def assert_keeps_signs(model: Model, kept: dict[str, Array]) -> None:
    """An original gives float32 of the right shape for each Sign layer, and nothing else."""
    shapes = {layer.name: model.shapes[layer.name] for layer in model.layers if isinstance(layer, Sign)}
    assert {name: value.shape for name, value in kept.items()} == shapes
    assert all(value.dtype == np.float32 for value in kept.values())


def nin_state(seed: int = 0) -> State:
    rng, cin = np.random.default_rng(seed), 12

    def conv(name: str, cout: int, cin: int, kernel: int) -> State:
        weight = rng.normal(size=(cout, cin, kernel, kernel)) * 0.3
        return {f"{name}.weight": weight, f"{name}.bias": rng.normal(size=cout)}

    state = conv("xnor.0", cin, 3, 5) | random_batch_norm(rng, "xnor.1", cin, affine=False)
    for index, kernel in NIN_BLOCKS.items():
        if kernel in ("max", "avg"):
            continue
        cout = 8 + index % 5
        state |= random_batch_norm(rng, f"xnor.{index}.bn", cin)
        state |= conv(f"xnor.{index}.conv", cout, cin, kernel)
        cin = cout
    state |= random_batch_norm(rng, "xnor.12", cin, affine=False) | conv("xnor.13", 10, cin, 1)
    return tensors(state)


def batch_norm(state: State, name: str, x: Any, eps: float) -> Any:
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    return F.batch_norm(x, state[f"{name}.running_mean"], state[f"{name}.running_var"], weight, bias, eps=eps)


def sign(x: Any) -> Any:
    # The twin works in float32: only networks whose values keep away from 0 can be compared through a sign.
    assert x.abs().min() > 1e-6, "choose another seed"
    return x.sign()


def nin_forward(state: State, image: Array) -> Array:
    state = {name: value.double() for name, value in state.items()}
    x = torch.tensor(image).double().permute(2, 0, 1)[None]
    x = F.conv2d(x, state["xnor.0.weight"], state["xnor.0.bias"], padding=2)
    x = F.relu(batch_norm(state, "xnor.1", x, 1e-4))
    for index, kernel in NIN_BLOCKS.items():
        if kernel == "max":
            x = F.max_pool2d(x, 3, 2, 1)
        elif kernel == "avg":
            x = F.avg_pool2d(x, 3, 2, 1)
        else:
            w = state[f"xnor.{index}.conv.weight"]
            w = (w - w.mean(1, keepdim=True)).clamp(-1, 1)
            w = w.sign() * w.abs().mean((1, 2, 3), keepdim=True)
            x = sign(batch_norm(state, f"xnor.{index}.bn", x, 1e-4))
            x = F.relu(F.conv2d(x, w, state[f"xnor.{index}.conv.bias"], padding=kernel // 2))
    x = batch_norm(state, "xnor.12", x, 1e-4)
    x = F.relu(F.conv2d(x, state["xnor.13.weight"], state["xnor.13.bias"]))
    return np.asarray(F.avg_pool2d(x, 8).flatten())


VGG_LAYOUT = (("conv", 1, 16), ("pool", 4, 0), ("conv", 5, 33), ("conv", 8, 16), ("pool", 11, 0))


def vgg_state(seed: int = 0) -> tuple[State, dict[str, Array]]:
    """A state_dict and the signs it packs, bool[Cout, Cin, 3, 3] by layer."""
    rng, cin = np.random.default_rng(seed), 16
    state: State = {"features.conv0.weight": rng.normal(size=(cin, 3, 3, 3)) * 0.3}
    state |= {"features.conv0.bias": rng.normal(size=cin)} | random_batch_norm(rng, "features.bn0", cin)
    signs = {}
    for kind, index, cout in VGG_LAYOUT:
        if kind == "conv":
            name = f"features.conv{index}"
            signs[name] = rng.random((cout, cin, 3, 3)) < 0.5
            rows = np.packbits(signs[name].reshape(cout, -1), axis=1, bitorder="little")
            padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
            state |= {f"{name}.weight": padded.view("<i4"), f"{name}.bias": rng.normal(size=cout)}
            state |= {f"{name}.alpha": rng.uniform(0.1, 1, (cout, 1, 1, 1))}
            state |= random_batch_norm(rng, f"{name}.bn", cin)
            state |= random_batch_norm(rng, f"features.bn{index + 1}", cout)
            cin = cout
    state |= {
        "classifier.weight": rng.normal(size=(10, cin * 64)) * 0.1,
        "classifier.bias": rng.normal(size=10),
    }
    return tensors(state), signs


def vgg_forward(state: State, signs: dict[str, Array], image: Array) -> Array:
    state = {name: value.double() for name, value in state.items()}
    x = torch.tensor(image).double().permute(2, 0, 1)[None]
    x = F.conv2d(x, state["features.conv0.weight"], state["features.conv0.bias"], padding=1)
    x = F.relu(batch_norm(state, "features.bn0", x, 1e-5))
    for kind, index, _ in VGG_LAYOUT:
        if kind == "pool":
            x = F.max_pool2d(x, 2)
            continue
        name = f"features.conv{index}"
        w = torch.tensor(np.where(signs[name], 1.0, -1.0)) * state[f"{name}.alpha"]
        x = F.conv2d(sign(batch_norm(state, f"{name}.bn", x, 1e-5)), w, state[f"{name}.bias"], padding=1)
        x = F.relu(batch_norm(state, f"features.bn{index + 1}", x, 1e-5))
    return np.asarray(F.linear(x.flatten(), state["classifier.weight"], state["classifier.bias"]))


def random_image(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(32, 32, 3)).astype(np.float32)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_nin_computes_what_the_original_does(tmp_path: Path, prefix: str, container: str) -> None:
    state, path = nin_state(), tmp_path / "nin.pth.tar"
    named = {prefix + name: value for name, value in state.items()}
    checkpoint = {"best_acc": 86.0, "state_dict": named} if prefix else named
    torch.save(checkpoint, path, _use_new_zipfile_serialization=container == "zip")
    image = random_image()
    np.testing.assert_allclose(
        FloatTwin(convert(path))(image), nin_forward(state, image), rtol=1e-3, atol=1e-4
    )
    transposed = np.ascontiguousarray(image.transpose(1, 0, 2))
    np.testing.assert_allclose(
        FloatTwin(convert(path, transposed=True))(image), nin_forward(state, transposed), rtol=1e-3, atol=1e-4
    )
    for flag, turned in ((False, image), (True, transposed)):
        logits, kept = xnor_net_pytorch.original(Checkpoint(path), transposed=flag)(image)
        np.testing.assert_allclose(logits, nin_forward(state, turned), rtol=1e-5, atol=1e-6)
        assert_keeps_signs(convert(path, transposed=flag), kept)


def test_nin_declares_its_pools_padding_and_labels(tmp_path: Path) -> None:
    torch.save(nin_state(), tmp_path / "nin.pth")
    model = convert(tmp_path / "nin.pth")
    assert model.labels[:2] == ("airplane", "automobile")
    assert {layer.pad_value for layer in model.layers if isinstance(layer, BinaryConv2d)} == {0}
    assert [layer.count_padding for layer in model.layers if isinstance(layer, AvgPool)] == [True, True]
    assert {layer.name for layer in model.layers} >= {
        "xnor.0",
        "xnor.3.bn",
        "xnor.3.sign",
        "xnor.3.conv",
        "xnor.5",
    }


def test_vgg_computes_what_the_original_does(tmp_path: Path) -> None:
    state, signs = vgg_state()
    torch.save(state, tmp_path / "vgg.pth")
    model = convert(tmp_path / "vgg.pth")
    assert [layer.name for layer in model.layers if "pool" in layer.name] == [
        "features.pool4",
        "features.pool11",
    ]
    image = random_image()
    np.testing.assert_allclose(
        FloatTwin(model)(image), vgg_forward(state, signs, image), rtol=1e-3, atol=1e-4
    )
    logits, kept = packed_pytorch.original(Checkpoint(tmp_path / "vgg.pth"))(image)
    np.testing.assert_allclose(logits, vgg_forward(state, signs, image), rtol=1e-5, atol=1e-6)
    assert_keeps_signs(model, kept)


def set_value(name: str, index: tuple[int, ...], value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name][index] = value

    return change


def replace(name: str, value: Any) -> Callable[[State], None]:
    return lambda state: state.update({name: value})


def balance_filter(state: State) -> None:
    """One filter whose weights, less their mean, are 1, -1 and zeros."""
    state["xnor.4.conv.weight"][2] = 0
    state["xnor.4.conv.weight"][2, :2, 0, 0] = torch.tensor([1.0, -1.0])


NOT_A_NIN: list[tuple[Callable[[State], Any], str]] = [
    (
        set_value("xnor.4.conv.weight", (0, 0, 0, 0), np.nan),
        "finite values in 'xnor.4.conv.weight', got 1 NaN",
    ),
    (set_value("xnor.13.bias", (3,), np.inf), "finite values in 'xnor.13.bias'"),
    (set_value("xnor.1.running_var", (3,), -1), "variances of at least 0 in 'xnor.1.running_var'"),
    (lambda state: state.pop("xnor.7.conv.bias"), "a tensor 'xnor.7.conv.bias' in the checkpoint"),
    (lambda state: state.pop("xnor.11.bn.weight"), "a tensor 'xnor.11.bn.weight' in the checkpoint"),
    (
        replace("xnor.99.weight", torch.zeros(2)),
        "only tensors this importer knows, got 1 more: xnor.99.weight",
    ),
    (replace("xnor.0.weight", torch.zeros(4, 3, 7, 7)), r"float32\[any, 3, 5, 5\] as 'xnor.0.weight'"),
    (replace("xnor.0.weight", torch.zeros(0, 3, 5, 5)), "as 'xnor.0.weight'"),
    (replace("xnor.0.weight", torch.zeros(4, 3, 5, 5).double()), "'xnor.0.weight', got torch.float64"),
    (replace("xnor.0.weight", torch.zeros(1).expand(10**6, 3, 5, 5)), "'xnor.0.weight' within the file's"),
    (
        replace("xnor.0.weight", torch.eye(2).to_sparse()),
        "a dense float32, int32 or int64 tensor 'xnor.0.weight'",
    ),
    (replace("xnor.0.weight", torch.zeros(2, device="meta")), "a dense float32, int32 or int64 tensor"),
    (replace("xnor.0.weight", 3), "tensors by name in the state_dict, got int under 'xnor.0.weight'"),
    (balance_filter, "in 'xnor.4.conv.weight', less their mean, got 9 zeros, of sign 0"),
]


@pytest.mark.parametrize(("change", "message"), NOT_A_NIN)
def test_nin_names_what_it_cannot_bring_over(
    tmp_path: Path, change: Callable[[State], Any], message: str
) -> None:
    state = nin_state()
    change(state)
    torch.save(state, tmp_path / "nin.pth")
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "nin.pth")


def test_nin_keeps_a_filter_of_zeros_whose_signs_do_not_matter(tmp_path: Path) -> None:
    state = nin_state()
    state["xnor.4.conv.weight"][2] = 0
    torch.save(state, tmp_path / "nin.pth")
    layer = next(layer for layer in convert(tmp_path / "nin.pth").layers if layer.name == "xnor.4.conv")
    assert isinstance(layer, BinaryConv2d)
    assert layer.alpha[2] == 0


NOT_A_VGG: list[tuple[Callable[[State], Any], str]] = [
    (set_value("features.conv5.alpha", (0,), np.nan), "finite values in 'features.conv5.alpha'"),
    (lambda state: state.pop("features.bn9.weight"), "a tensor 'features.bn9.weight'"),
    (lambda state: state.pop("features.conv5.alpha"), "or conv5 after a pool, got features.conv8"),
    (
        replace("features.conv5.weight", torch.zeros(33, 4, dtype=torch.int32)),
        r"int32\[any, 5\] as .*, got int32",
    ),
    (replace("features.conv5.weight", torch.zeros(33, 5)), r"int32\[any, 5\] as .*got float32\[33, 5\]"),
    (replace("features.conv5.weight", torch.zeros(9, 5, dtype=torch.int32)), r"float32\[9, 1, 1, 1\] as"),
    (replace("classifier.weight", torch.zeros(10, 17)), "inputs of classifier.weight, got 17"),
    (replace("features.conv2.bias", torch.zeros(2)), "only tensors this importer knows, got 1 more"),
]


@pytest.mark.parametrize(("change", "message"), NOT_A_VGG)
def test_vgg_names_what_it_cannot_bring_over(
    tmp_path: Path, change: Callable[[State], Any], message: str
) -> None:
    state, _ = vgg_state()
    change(state)
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "vgg.pth")


def test_unused_tensors_may_be_accepted_and_are_noted(tmp_path: Path) -> None:
    state = nin_state() | {"xnor.99.weight": torch.zeros(2), "epoch": torch.zeros(1)}
    torch.save(state, tmp_path / "nin.pth")
    with pytest.raises(ConvertError, match=r"got 2 more: epoch, xnor\.99\.weight"):
        convert(tmp_path / "nin.pth")
    assert convert(tmp_path / "nin.pth", accept_unused=True).info["unused"] == "2 more: epoch, xnor.99.weight"
    torch.save(nin_state(), tmp_path / "nin.pth")
    assert "unused" not in convert(tmp_path / "nin.pth", accept_unused=True).info


def test_weights_not_quite_binary_may_be_accepted_and_are_noted(tmp_path: Path) -> None:
    path = write_nin(tmp_path)[0]
    exact = np.where(np.random.default_rng(0).random((4, 5)) < 0.5, np.float32(-1), np.float32(1))
    rounded, zero = exact.copy(), exact.copy()
    rounded[1, 2], rounded[3, 3], zero[0, 1] = -0.75, 1.125, 0
    arrays = {"exact": exact, "rounded": rounded, "zero": zero, "again": rounded}
    strict = Tensors(arrays, Checkpoint(path))
    strict.require_signs("exact")
    with pytest.raises(
        ConvertError, match=r"of exactly -1 and \+1, got 10.00% others in 'rounded', off by at mo"
    ):
        strict.require_signs("rounded")
    source = Checkpoint(path, accept_rounded=True)
    lenient = Tensors(arrays, source)
    lenient.require_signs("rounded")
    lenient.require_signs("again")
    told = "10.00% others in {!r}, off by at most 0.25"
    assert source.notes["rounded"] == f"{told.format('rounded')}; {told.format('again')}"
    with pytest.raises(
        ConvertError, match=r"5\.00% others in 'zero', off by at most 1\. 1 are 0, of no sign"
    ):
        lenient.require_signs("zero")


# Any file


def write_bmxnet(folder: Path) -> tuple[Path, dict[str, Any]]:
    return residual_graph()[0].save(folder), {"size": 12}


def write_nin(folder: Path) -> tuple[Path, dict[str, Any]]:
    torch.save(nin_state(), folder / "nin.pth")
    return folder / "nin.pth", {"transposed": True}


def write_legacy_vgg(folder: Path) -> tuple[Path, dict[str, Any]]:
    torch.save(vgg_state()[0], folder / "vgg.pth", _use_new_zipfile_serialization=False)
    return folder / "vgg.pth", {}


WRITERS = [write_bmxnet, write_nin, write_legacy_vgg]


@pytest.mark.parametrize("write", WRITERS)
def test_the_name_of_the_file_does_not_matter(tmp_path: Path, write: Callable[..., Any]) -> None:
    path, options = write(tmp_path)
    model = convert(path, **options)
    other = path.rename(tmp_path / "net.bin")
    assert [layer.name for layer in convert(str(other), **options).layers] == [x.name for x in model.layers]


@pytest.mark.parametrize("write", WRITERS)
def test_damage_is_an_error_or_harmless(tmp_path: Path, write: Callable[..., Any]) -> None:
    path, options = write(tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for end in rng.integers(0, len(whole), 30):
        path.write_bytes(whole[:end])
        with pytest.raises(ConvertError):
            convert(path, **options)
    for _ in range(150):
        content = bytearray(whole)
        # Most of a file is weights; the structure is at its ends.
        for at in rng.choice([*range(400), *range(len(whole) - 3000, len(whole))], rng.integers(1, 4)):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            convert(path, **options)
        except XnorError:
            continue


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"P", b"PNG and more", b"\x80\x02}q\0.", b"PK\x05\x06" + b"\0" * 18]
)
def test_an_unknown_file_is_told_what_is_supported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.params").write_bytes(content)
    with pytest.raises(ConvertError) as caught:
        convert(tmp_path / "net.params")
    assert all(importer.TITLE in str(caught.value) for importer in IMPORTERS)


def test_an_unknown_network_is_told_what_is_supported(tmp_path: Path) -> None:
    torch.save({"layer1.weight": torch.zeros(2), "layer2.weight": torch.zeros(2)}, tmp_path / "net.pth")
    with pytest.raises(
        ConvertError, match=r"one of: .*BMXNet.*got net.pth with tensors layer1.weight, layer2.weight"
    ):
        convert(tmp_path / "net.pth")
    np.savez(tmp_path / "net.npz", weight=np.zeros(3))
    with pytest.raises(ConvertError, match=r"one of: .*BMXNet"):
        convert(tmp_path / "net.npz")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="which is not there"):
        convert(tmp_path / "none.params")
    with pytest.raises(ConvertError, match="which is no file"):
        convert(tmp_path)


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    path, _ = write_nin(tmp_path)
    with pytest.raises(
        ConvertError, match=r"options of XNOR-Net-PyTorch NIN.*: transposed, got size, symbols"
    ):
        convert(path, symbols="x", size=3)
    with pytest.raises(ConvertError, match="transposed as True or False, got 'yes'"):
        convert(path, transposed="yes")


class Stranger:
    """Something a checkpoint may not hold."""


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    for zipped in (True, False):
        checkpoint = {"state_dict": nin_state(), "optimizer": Stranger()}
        torch.save(checkpoint, tmp_path / "nin.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ConvertError, match=r"which holds \S*Stranger. .*torch\.save\(model\.state_dict"):
            convert(tmp_path / "nin.pth")


def test_a_zip_that_expands_is_refused(tmp_path: Path) -> None:
    torch.save(nin_state(), tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(ConvertError, match="which expands"):
        convert(tmp_path / "bomb.pth")


def test_without_torch_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = write_nin(tmp_path)
    model = convert(path)
    monkeypatch.setitem(sys.modules, "torch", None)
    remedy = re.escape('pip install "xnor-rrm[torch]"')
    assert [layer.name for layer in convert(path).layers] == [layer.name for layer in model.layers]
    with pytest.raises(ConvertError, match=remedy):
        bring_over(path).original()
    with pytest.raises(XnorError, match=remedy):
        FloatTwin(model)
    path, options = write_bmxnet(tmp_path)
    with pytest.raises(ConvertError, match=remedy):
        bring_over(path, **options).original()


# The float network, layer by layer against the oracle


def one_layer(rng: np.random.Generator, kind: str) -> Model:
    net = Builder(rng, int(rng.integers(4, 10)), int(rng.integers(4, 10)), channels=int(rng.choice([1, 3])))
    window = net.window(INPUT)
    match kind:
        case "conv":
            channels = net.shapes[INPUT][2]
            net.conv(INPUT, 6, window, groups=int(rng.choice([1, channels])))
        case "depthwise":
            net.conv(net.conv(INPUT, 7, Window((1, 1))), 7, window, groups=7)
        case "binary":
            net.binary(INPUT, 5, window, pad_value=int(rng.integers(-1, 2)))
        case "max_pool":
            net.max_pool(INPUT, net.window(INPUT, dilate=False))
        case "avg_pool":
            net.avg_pool(INPUT, net.window(INPUT, dilate=False), count_padding=bool(rng.integers(2)))
        case "folded":
            net.relu(net.affine(net.binary(INPUT, 5, window)))
        case "residual":
            stem = net.conv(INPUT, 4, window)
            net.relu(net.plus(net.affine(stem), stem))
        case "activations":
            net.clip(net.prelu(net.prelu(net.conv(INPUT, 4, window))))
        case "concat":
            stem = net.conv(INPUT, 4, window)
            net.concat(stem, net.relu(stem), stem)
        case "upsample":
            net.upsample(INPUT, int(rng.integers(1, 4)))
    return net.model()


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(
    "kind",
    [
        "conv",
        "depthwise",
        "binary",
        "max_pool",
        "avg_pool",
        "folded",
        "residual",
        "activations",
        "concat",
        "upsample",
    ],
)
def test_float_twin_computes_each_layer(kind: str, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        model = one_layer(rng, kind)
        x = rng.normal(size=model.input_shape).astype(np.float32)
        expected = naive.forward(model, x)[model.layers[-1].name].reshape(-1)
        np.testing.assert_allclose(FloatTwin(model)(x), expected, rtol=1e-4, atol=1e-4)


def test_float_twin_runs_every_kind_of_layer_and_refuses_other_inputs() -> None:
    rng = np.random.default_rng(1)
    model = every_kind(rng)
    x = rng.normal(size=model.input_shape).astype(np.float32)
    x.flags.writeable = False
    twin = FloatTwin(model)
    np.testing.assert_allclose(twin(x), naive.forward(model, x)[model.layers[-1].name].reshape(-1), rtol=1e-3)
    np.testing.assert_array_equal(twin(np.asfortranarray(x)), twin(x))
    for wrong in (x[1:], x.astype(np.float64), x[None]):
        with pytest.raises(ShapeError):
            twin(wrong)
