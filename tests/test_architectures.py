"""Each architecture at its full size, of random weights: brought over, it computes what torch does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from models import random_frames
from PIL import Image
from test_importers import Graph

from xnor_rrm import Model, convert
from xnor_rrm.errors import ConvertError
from xnor_rrm.importers import bring_over
from xnor_rrm.model import BinaryConv2d
from xnor_rrm.verify import verify

torch = pytest.importorskip("torch")  # of an optional extra
import test_importers_graphs as graphs  # noqa: E402  # needs what is imported above, or is skipped
import test_importers_larq as larq  # noqa: E402  # needs what is imported above, or is skipped
import test_importers_pytorch as training  # noqa: E402  # needs what is imported above, or is skipped
import torch_networks as networks  # noqa: E402  # needs what is imported above, or is skipped

Array = npt.NDArray[Any]

pytestmark = pytest.mark.usefixtures("one_thread")


def frames(model: Model, count: int) -> list[Array]:
    return list(random_frames(np.random.default_rng(1), count, *model.input_rule.crop, "patch"))


def network_input(model: Model, frame: Array) -> Array:
    """Of a frame of the input's size, by the rule's definition; luminance by Pillow."""
    values = (
        frame
        if model.input_rule.channels == 3
        else np.asarray(Image.fromarray(frame).convert("L"))[..., None]
    )
    mean, std = np.array(model.input_rule.mean), np.array(model.input_rule.std)
    return ((values.astype(np.float64) - mean) / std).astype(np.float32)


#: By name: what builds the network, how many binary layers it has, its classes.
NETWORKS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "lenet": (networks.LeNet5, 2, 10),
    "lenet_flat": (lambda: networks.LeNet5(flat=True), 2, 10),
    "alexnet": (lambda: networks.AlexNet(parallel=True), 6, 1000),
    "resnet20": (networks.ResNet, 18, 10),
    "resnet8_projected": (lambda: networks.ResNet(1, project=True), 8, 10),
    "packed_lenet": (networks.PackedLeNet, 2, 10),
    "packed_vgg11": (lambda: networks.PackedVGG(11), 7, 10),
    "packed_vgg13": (lambda: networks.PackedVGG(13), 9, 10),
    "packed_vgg16": (lambda: networks.PackedVGG(16), 12, 10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_architecture_computes_what_torch_does(tmp_path: Path, name: str) -> None:
    make, binary, classes = NETWORKS[name]
    network = networks.randomized(make())
    packed = name.startswith("packed")
    torch.save(networks.packed_state(network) if packed else network.state_dict(), tmp_path / "net.pth")
    conversion = bring_over(tmp_path / "net.pth")
    model, original = conversion.model, conversion.original()
    assert sum(isinstance(layer, BinaryConv2d) for layer in model.layers) == binary
    assert model.shapes[model.layers[-1].name] == (1, 1, classes)
    given: list[tuple[Array, Array]] = []

    def recorded(x: Array) -> tuple[Array, dict[str, Array]]:
        logits, values = original(x)
        given.append((x, logits))
        return logits, values

    seen = frames(model, 2)
    report = verify(model, recorded, seen)
    assert report.passed, report.failures
    assert max(layer.off for layer in report.layers.values()) < 1
    x, found = given[0]
    np.testing.assert_array_equal(x, network_input(model, seen[0]))
    np.testing.assert_allclose(found, networks.logits(network, x), rtol=1e-5, atol=1e-5)


def resnet18() -> Graph:
    """BMXNet's pre-activation ResNet-18 for ImageNet."""
    rng, graph = np.random.default_rng(0), Graph()

    def floats(*shape: int) -> Array:
        return rng.normal(0, 0.1, shape).astype(np.float32)

    def batch_norm(name: str, source: str, channels: int, fix_gamma: bool = False) -> str:
        arrays = {name: floats(channels) for name in ("gamma", "beta", "moving_mean")}
        arrays["moving_var"] = rng.uniform(0.5, 2, channels).astype(np.float32)
        graph.layer("BatchNorm", name, source, arrays=arrays, eps=2e-5, fix_gamma=fix_gamma)
        return name

    def q_conv(name: str, source: str, cin: int, cout: int, kernel: int, stride: int) -> str:
        words = rng.integers(0, 256, cout * cin * kernel * kernel // 8, np.uint8).view("<f4")
        pairs = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "pad": (kernel // 2,) * 2}
        binary = {"no_bias": True, "binarized_weights_only": True, "num_filter": cout}
        graph.layer("QConvolution", name, source, arrays={"weight": words}, **pairs, **binary)
        return name

    def q_activation(name: str, source: str) -> str:
        graph.node("QActivation", name, source)
        return name

    graph.node("null", "data")
    top = batch_norm("bn_data", "data", 3, fix_gamma=True)
    stem = {"kernel": (7, 7), "stride": (2, 2), "pad": (3, 3), "num_filter": 64, "no_bias": True}
    graph.layer("Convolution", "conv0", top, arrays={"weight": floats(64, 3, 7, 7)}, **stem)
    graph.node("Activation", "relu0", batch_norm("bn0", "conv0", 64), attr={"act_type": "relu"})
    pool = {"kernel": "(3, 3)", "stride": "(2, 2)", "pad": "(1, 1)", "pool_type": "max"}
    graph.node("Pooling", "pool0", "relu0", attr=pool)
    top, cin = "pool0", 64
    for stage, cout in enumerate((64, 128, 256, 512)):
        for unit in range(2):
            name, stride = f"stage{stage}_unit{unit}", 2 if stage and not unit else 1
            signs = q_activation(f"{name}_sign1", batch_norm(f"{name}_bn1", top, cin))
            conv = batch_norm(f"{name}_bn2", q_conv(f"{name}_conv1", signs, cin, cout, 3, stride), cout)
            conv = q_conv(f"{name}_conv2", q_activation(f"{name}_sign2", conv), cout, cout, 3, 1)
            shortcut = (
                top if (stride, cin) == (1, cout) else q_conv(f"{name}_sc", signs, cin, cout, 1, stride)
            )
            graph.node("elemwise_add", f"{name}_plus", conv, shortcut)
            top, cin = f"{name}_plus", cout
    graph.node("Activation", "relu1", batch_norm("bn1", top, 512), attr={"act_type": "relu"})
    pool = {"kernel": "(7, 7)", "pool_type": "avg", "global_pool": "True"}
    graph.node("Pooling", "pool1", "relu1", attr=pool)
    graph.node("Flatten", "flat", "pool1")
    arrays = {"weight": floats(1000, 512), "bias": floats(1000)}
    graph.layer("FullyConnected", "fc1", "flat", arrays=arrays, num_hidden=1000)
    return graph


def test_resnet18_passes(tmp_path: Path) -> None:
    conversion = bring_over(resnet18().save(tmp_path, version=2))
    model = conversion.model
    assert sum(isinstance(layer, BinaryConv2d) for layer in model.layers) == 19
    assert model.input_shape == (224, 224, 3)
    report = verify(model, conversion.original(), frames(model, 2))
    assert report.passed, report.failures
    assert max(layer.off for layer in report.layers.values()) < 1


# Networks that the tests of each importer put together, in the engine; of full size where they take a size

Save = Callable[[Path], Path]


def checkpoint(make: Callable[[], Any]) -> Save:
    """A state_dict as training codes save it."""

    def save(folder: Path) -> Path:
        torch.save({"state_dict": training.randomise(make(), seed=3).state_dict()}, folder / "net.pth")
        return folder / "net.pth"

    return save


RESNET18, RESNET34 = (4, 4, 4, 4), (6, 8, 12, 6)  # blocks of one convolution
WEIGHTS_4D, WITH_BIAS = training.FORMS[2:]
MOBILENET = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)

#: By name: what saves the file to bring over in a folder, and the options that it takes.
SOURCES: dict[str, tuple[Save, dict[str, Any]]] = {
    "bireal18": (checkpoint(lambda: training.ResNet(RESNET18, 64, 1000)), {}),
    "bireal34": (checkpoint(lambda: training.ResNet(RESNET34, 64, 1000)), {}),
    "bireal20_cifar": (
        checkpoint(lambda: training.ResNet((6, 6, 6), 16, 10, WITH_BIAS, small=True, padded=True)),
        {},
    ),
    "reactnet18": (checkpoint(lambda: training.ResNet(RESNET18, 64, 1000, WEIGHTS_4D, react=True)), {}),
    "reactnet_mobilenet": (checkpoint(lambda: training.MobileNet(MOBILENET, 1000)), {}),
    "binarynet_vgg": (checkpoint(lambda: training.vgg(128, True, (512, 512), (1024, 1024))), {}),
    "binarynet_alexnet": (
        checkpoint(lambda: training.alexnet((192, 576, 1152, 768, 256), (4096, 4096), 1000)),
        {},
    ),
    "binarynet_resnet": (checkpoint(lambda: training.BinaryResNet(80, 3)), {}),
    "binarynet_mlp": (checkpoint(lambda: training.Mlp(2048)), {"binarized": True}),
    "lce": (larq.lce_graph().save, {}),
    **{f"larq {form}": (partial(larq.larq_model().save, form=form), {}) for form in larq.FORMS},
    "larq sequence": (partial(larq.grey_model().save, sequential=True), {}),
    **{f"onnx {each.__name__}": (partial(graphs.save, each), {}) for each in graphs.NETS},
}


@pytest.mark.parametrize("name", SOURCES)
def test_they_pass_in_the_engine(tmp_path: Path, name: str) -> None:
    save, options = SOURCES[name]
    conversion = bring_over(save(tmp_path), **options)
    report = verify(conversion.model, conversion.original(), frames(conversion.model, 2))
    assert report.passed, report.failures
    assert max(layer.off for layer in report.layers.values()) < 1  # and there are some


# What cannot be brought over


def saved(folder: Path, network: Any, **changes: Any) -> Path:
    """The network's state with other tensors; None takes one out."""
    state = networks.randomized(network).state_dict() | changes
    torch.save({name: value for name, value in state.items() if value is not None}, folder / "net.pth")
    return folder / "net.pth"


@pytest.mark.parametrize(("flat", "block"), [(False, "bin_conv2"), (False, "bin_ip1"), (True, "bin_ip1")])
def test_a_batch_norm_that_leaves_zeros_is_refused(tmp_path: Path, flat: bool, block: str) -> None:
    network = networks.randomized(networks.LeNet5(flat=flat))
    norm = getattr(network, block).bn
    beta, mean = norm.bias.detach().clone(), norm.running_mean.clone()
    beta[3:5] = mean[3:5] = 0
    changes = {f"{block}.bn.bias": beta, f"{block}.bn.running_mean": mean}
    with pytest.raises(ConvertError, match=rf"exactly 0, got {block}\.sign, of which channel 3 can be"):
        convert(saved(tmp_path, network, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bin_ip1.bn.running_mean": torch.zeros(49)}, r"float32\[50\] as 'bin_ip1.bn.running_mean'"),
        ({"bin_ip1.linear.weight": torch.ones(500, 801)}, r"float32\[any, 800\] as 'bin_ip1.linear.weight'"),
        ({"bin_ip1.linear.bias": None}, "a tensor 'bin_ip1.linear.bias'"),
        ({"bin_ip2.linear.bias": torch.ones(3)}, "1 more: bin_ip2.linear.bias"),
        ({"conv1.weight": torch.ones(20, 3, 5, 5)}, r"float32\[any, 1, 5, 5\] as 'conv1.weight'"),
    ],
)
def test_lenet_names_what_it_cannot_bring_over(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        convert(saved(tmp_path, networks.LeNet5(), **changes))


def test_a_shortcut_that_no_channels_of_zeros_make_is_named(tmp_path: Path) -> None:
    conv = "layer1.0.conv2.conv"
    changes = {f"{conv}.weight": torch.randn(17, 16, 3, 3), f"{conv}.bias": torch.randn(17)}
    with pytest.raises(
        ConvertError, match=r"layer1\.0\.downsample with weights, got none, from 16 channels to 17"
    ):
        convert(saved(tmp_path, networks.ResNet(1), **changes))


def test_only_a_nin_may_be_transposed(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="expected transposed for a NIN"):
        convert(saved(tmp_path, networks.LeNet5()), transposed=True)


def test_a_flat_batch_norm_of_another_size_is_named(tmp_path: Path) -> None:
    tensors = {"weight": 30, "bias": 30, "running_mean": 30, "running_var": 30}
    changes = {f"bin_ip1.bn.{name}": torch.ones(size) for name, size in tensors.items()}
    with pytest.raises(ConvertError, match=r"expected 800 channels in 'bin_ip1\.bn', got 30"):
        convert(saved(tmp_path, networks.LeNet5(), **changes))
