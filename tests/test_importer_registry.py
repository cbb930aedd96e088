"""Importers as a package: each found by itself, told from all others, its options on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli import invoke

from xnor_rrm import importers
from xnor_rrm.errors import ConvertError
from xnor_rrm.importers import IMPORTERS, OPTIONS, bring_over
from xnor_rrm.importers.common.checkpoint import Checkpoint

torch = pytest.importorskip("torch")  # of an optional extra
for package in ("onnx", "h5py", "flatbuffers"):
    pytest.importorskip(package)  # of an optional extra
import test_importers as general  # noqa: E402  # needs what is imported above, or is skipped
import test_importers_graphs as graphs  # noqa: E402  # needs what is imported above, or is skipped
import test_importers_larq as larq  # noqa: E402  # needs what is imported above, or is skipped
import test_importers_pytorch as pytorch  # noqa: E402  # needs what is imported above, or is skipped
import torch_networks as networks  # noqa: E402  # needs what is imported above, or is skipped


def state_of(make: Callable[[], Any]) -> Callable[[Path], Path]:
    """Writes a network of torch_networks."""

    def write(folder: Path) -> Path:
        network = networks.randomized(make())
        packed = type(network).__name__.startswith("Packed")
        torch.save(networks.packed_state(network) if packed else network.state_dict(), folder / "net.pth")
        return folder / "net.pth"

    return write


def form(name: str) -> Callable[[Path], Path]:
    """Writes a network of test_importers_pytorch."""

    def write(folder: Path) -> Path:
        pytorch.saved(name, folder / "net.pth")
        return folder / "net.pth"

    return write


def onnx_net(folder: Path) -> Path:
    net = graphs.Net()
    net.head(net.conv("x", 4))
    return net.save(folder)


#: By the module of the importer that reads them: what writes a file of each kind it knows, or makes a module.
SAMPLES: dict[str, list[Callable[[Path], Any]]] = {
    "binarynet": [form("vgg"), form("alexnet"), form("resnet"), form("mlp")],
    "bireal": [form("bireal"), form("bireal_cifar")],
    "bmxnet": [lambda folder: general.write_bmxnet(folder)[0]],
    "larq": [
        lambda folder: larq.larq_model().save(folder),
        lambda folder: larq.larq_model().save(folder, "keras 2"),
        lambda folder: larq.larq_model().save(folder, "keras 3"),
    ],
    "lce": [lambda folder: larq.lce_graph().save(folder)],
    "onnx_graph": [onnx_net],
    "packed_pytorch": [
        lambda folder: general.write_legacy_vgg(folder)[0],
        state_of(networks.PackedLeNet),
        state_of(lambda: networks.PackedVGG(11)),
    ],
    "reactnet": [form("reactnet"), form("mobilenet")],
    "traced_module": [lambda folder: graphs.sequence()],
    "xnor_net_pytorch": [
        lambda folder: general.write_nin(folder)[0],
        state_of(networks.LeNet5),
        state_of(lambda: networks.AlexNet(parallel=True)),
        state_of(lambda: networks.ResNet(1)),
        state_of(lambda: networks.ResNet(1, project=True)),
    ],
}


def short(importer: Any) -> str:
    return str(importer.__name__.rpartition(".")[2])


def test_every_module_of_the_package_is_an_importer() -> None:
    files = {path.stem for path in Path(importers.__file__).parent.glob("*.py")} - {"__init__"}
    assert {short(importer) for importer in IMPORTERS} == files == SAMPLES.keys()
    assert len({importer.TITLE for importer in IMPORTERS}) == len(IMPORTERS)


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_is_recognised_by_one_importer(tmp_path: Path, name: str) -> None:
    for make in SAMPLES[name]:
        source = Checkpoint(make(tmp_path))
        assert [short(importer) for importer in IMPORTERS if importer.recognise(source)] == [name]


@pytest.mark.parametrize("importer", IMPORTERS, ids=short)
def test_options_are_those_that_read_and_original_take(importer: Any) -> None:
    names = [option.name for option in importer.OPTIONS]
    assert list(inspect.signature(importer.read).parameters) == ["source", *names]
    taken = inspect.signature(importer.original).parameters
    assert list(taken) in (["source", *names], ["source", "options"])
    for option in importer.OPTIONS:
        assert OPTIONS[option.name] == option, "importers mean different things by one name"
        assert option.help.endswith(".")


def test_options_are_on_the_command_line(tmp_path: Path) -> None:
    text = " ".join(invoke("convert", "--help").stdout.split())
    for option in OPTIONS.values():
        if option.kind is not object:
            assert f"--{option.name} " in text
            assert option.help in text
    assert "--input" not in text

    output = tmp_path / "net.xnor"
    invoke("convert", onnx_net(tmp_path), "-o", output, "--mean", "1,2,3", "--std", "4")
    rule = graphs.load(output).input_rule
    assert (rule.mean, rule.std) == ((1, 2, 3), (4, 4, 4))
    path, _ = general.write_bmxnet(tmp_path)
    symbol = (tmp_path / "net-symbol.json").rename(tmp_path / "other.json")
    invoke("convert", path, "-o", output, "--size", "12", "--symbol", symbol)
    assert graphs.load(output).input_shape == (12, 12, 3)
    invoke("convert", general.write_nin(tmp_path)[0], "-o", output, "--transposed")
    assert "--size" in invoke("convert", path, "-o", output, "--size", "0", code=2).stderr
    stderr = invoke("convert", path, "-o", output, "--transposed", "--size", "12", code=2).stderr
    assert "options of BMXNet" in stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("size", 0, "size as an integer of at least 1, got 0"),
        ("size", True, "size as an integer of at least 1, got True"),
        ("size", "12", "size as an integer of at least 1, got '12'"),
        ("symbol", 3, "symbol as a path, got 3"),
    ],
)
def test_options_of_another_kind_are_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    path, options = general.write_bmxnet(tmp_path)
    with pytest.raises(ConvertError, match=message):
        bring_over(path, **(options | {name: value}))
    bring_over(path, **options, symbol=str(tmp_path / "net-symbol.json"))


def test_names_of_classes_may_lie_beside_any_file(tmp_path: Path) -> None:
    path = onnx_net(tmp_path)
    classes = bring_over(path).model.classes
    (tmp_path / "synset.txt").write_text("".join(f"n0000000{i} kind {i}\n" for i in range(classes)))
    model = bring_over(path).model
    assert model.labels == tuple(f"kind {i}" for i in range(classes))
    assert (model.info["source"], model.info["format"]) == (path.name, "ONNX .onnx")
    (tmp_path / "synset.txt").write_text("one\n" * (classes + 1))
    assert bring_over(path).model.labels == ()
