"""Profiles: what they add up is what the network did, and pictures and pages that hold together."""

from __future__ import annotations

import base64
import html.parser
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from models import Builder
from PIL import Image
from test_cli import facts, invoke
from test_stream import ALWAYS, laid_out

from xnor_rrm import cli, profile
from xnor_rrm.errors import VideoError
from xnor_rrm.model import INPUT, Model, Window
from xnor_rrm.report import PROFILE_COLUMNS

SAME = Window((3, 3), padding=(1, 1, 1, 1))
SIZE = 24


def flat_model(name: str = "flat") -> Model:
    """Three 3x3 layers, the second binary: what changes at one place is seen three pixels around it."""
    net = Builder(np.random.default_rng(0), SIZE, SIZE)
    net.conv(net.binary(net.affine(net.conv(INPUT, 40, SAME)), 70, SAME), 5, SAME)
    model = net.model()
    return Model(name, model.input_rule, model.layers)


@pytest.fixture(scope="module")
def model():
    return flat_model()


@pytest.fixture
def frames():
    """A still picture but for the four upper rows, where all is new on every frame."""
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return [np.vstack([rng.integers(0, 256, (4, SIZE, 3), np.uint8), picture[4:]]) for _ in range(6)]


def test_maps_show_where_work_was_done(model, frames):
    measured = profile.profile(model, frames)
    assert measured.recomputed.shape == measured.flipped.shape == (SIZE, SIZE)
    assert np.allclose(measured.recomputed[:4], 1)
    assert (measured.recomputed[4:7] > 0).all()
    assert not measured.recomputed[7:].any()
    assert (measured.flipped[:4] > 0).all()
    assert not measured.flipped[5:].any()
    assert measured.flipped.mean() == pytest.approx(np.mean(measured.flip_rates))
    assert len(measured.dense_ms) == len(measured.cached_ms) == len(measured.flip_rates) == len(frames) - 1
    assert np.array_equal(measured.seen, frames[-1])


def test_maps_of_a_network_that_shrinks_its_input(frames):
    """Each step is spread over the input's pixels, and weighs what it multiplies."""
    net = Builder(np.random.default_rng(0), SIZE, SIZE)
    top = net.binary(net.conv(INPUT, 40, Window((4, 4), (4, 4))), 70, Window((1, 1)))  # 6 x 6
    last = net.conv(net.max_pool(top, Window((2, 2), (2, 2))), 5, Window((1, 1)))  # 3 x 3
    model = laid_out(net.model(), ALWAYS)
    measured = profile.profile(model, frames)
    macs = {layer.name: model.macs(layer) for layer in model.layers}
    assert np.allclose(measured.recomputed[:4], 1)
    assert np.allclose(measured.recomputed[4:8], macs[last] / sum(macs.values()))
    assert not measured.recomputed[8:].any()
    assert (measured.flipped[:4] > 0).all()
    assert not measured.flipped[4:].any()


def test_one_frame_is_too_few(model, frames):
    with pytest.raises(VideoError, match="two frames"):
        profile.profile(model, frames[:1])


def test_the_table_adds_up(model, folder, tmp_path):
    path = tmp_path / "flat.xnor"
    model.save(path)
    text = invoke("profile", path, folder, "--max-frames", 5).stdout
    header, *rows = [line.split("\t") for line in text.splitlines() if "\t" in line]
    assert tuple(header) == PROFILE_COLUMNS
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    totals = facts(text)
    assert (totals["frames"], totals["identical"], totals["skipped"]) == ("5", "true", "0")
    for column, total in {"state": "state_bytes", "dense_ms": "steps_dense_ms", "flips": "flips"}.items():
        values = [float(row[column]) for row in rows if row[column] != "-"]
        assert float(totals[total]) == pytest.approx(sum(values), rel=1e-3)
    assert float(totals["steps_dense_ms"]) < float(totals["dense_ms"]) * 1.5
    for row in rows:
        shares = [int(share) for share in re.findall(r"(\d+)%", row["paths"])]
        assert sum(shares) == pytest.approx(100, abs=2)
        assert {word for word in row["paths"].split() if "%" not in word} <= {"changed", "rows", "clean"}
        assert (row["flips"] == "-") == (row["kind"] != "binary")
        assert 0 < float(row["recomputed"]) < 1


class Page(html.parser.HTMLParser):
    """Tags in order, cells, and where pictures come from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("name", ["flat", "<script>alert(1)</script>", r"$\frac{$ & \N{x} 猫" + "x" * 300])
def test_pictures_and_pages(name, folder, tmp_path, monkeypatch):
    """Whatever a network is called: a picture of the right width, a page that needs nothing else."""
    pytest.importorskip("matplotlib")  # of an optional extra
    monkeypatch.setattr(cli.api, "embedded_model", lambda _: flat_model(name))
    for suffix in (".png", ".html"):
        text = invoke("profile", "person", folder, "--plot", tmp_path / f"plot{suffix}").stdout
        assert facts(text)["plot"] == str(tmp_path / f"plot{suffix}")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert image.width == 1200
        assert len(image.convert("L").getcolors()) > 100
    page = Page((tmp_path / "plot.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert name in page.text
    (source,) = page.sources
    kind, encoded = source.split(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert image.width == 1200
    assert {"conv0", "binary3", *PROFILE_COLUMNS} <= set(page.text)
    assert {path.name for path in tmp_path.iterdir()} == {"frames", "plot.png", "plot.html"}


def test_without_matplotlib_it_says_what_to_install(model, folder, tmp_path):
    """Before anything is measured; without --plot nothing is missed."""
    code = """
import sys
sys.modules["matplotlib"] = None
from xnor_rrm.cli import main
main()
"""
    model.save(tmp_path / "flat.xnor")

    def run(*arguments):
        command = [sys.executable, "-c", code, "profile", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    result = run(tmp_path / "flat.xnor", folder, "--plot", tmp_path / "plot.png")
    assert result.returncode == 2
    assert 'pip install "xnor-rrm[plot]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "plot.png").exists()
    assert run(tmp_path / "flat.xnor", folder).returncode == 0
