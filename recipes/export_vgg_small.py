"""Turns the checkpoint of train_vgg_small.py into the embedded model file, and measures that file.

    python recipes/export_vgg_small.py --data FOLDER --run runs/vgg_small --out xnor_rrm/data/vgg_small.xnor

The accuracy written into the file and the model card is that of the bit-packed engine on the test images.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from train_vgg_small import CLASSES, MEAN, STD, read_split

import xnor_rrm
from xnor_rrm.bits import pack_signs
from xnor_rrm.model import (
    INPUT,
    Affine,
    AvgPool,
    BinaryConv2d,
    Conv2d,
    InputRule,
    Layer,
    MaxPool,
    Model,
    Relu,
    Sign,
    Window,
)

SAME = Window((3, 3), padding=(1, 1, 1, 1))
HALF = Window((2, 2), stride=(2, 2))
#: Blocks followed by a 2x2 max pool.
POOLED = (1, 3)


def to_model(state: dict[str, torch.Tensor]) -> Model:
    """The network of train_vgg_small.VggSmall from its state_dict."""
    arrays = {name: value.double().numpy() for name, value in state.items()}

    def batch_norm(name: str, source: str) -> Affine:
        part = {key: arrays[f"{name}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
        gamma, beta, mean, var = part.values()
        return Affine.from_batch_norm(name, source, gamma=gamma, beta=beta, mean=mean, var=var, eps=1e-5)

    stem = arrays["stem.weight"].transpose(0, 2, 3, 1).astype(np.float32)
    layers: list[Layer] = [
        Conv2d("stem", (INPUT,), stem, arrays["stem.bias"].astype(np.float32), SAME),
        MaxPool("stem_pool", ("stem",), HALF),
    ]
    blocks = sum(name.endswith("conv.weight") for name in state)
    for i in range(blocks):
        name = f"blocks.{i}"
        weight = arrays[f"{name}.conv.weight"].transpose(0, 2, 3, 1)
        cout, channels = weight.shape[0], weight.shape[3]
        layers += [
            batch_norm(f"{name}.bn", layers[-1].name),
            Sign(f"{name}.sign", (f"{name}.bn",)),
            BinaryConv2d(
                f"{name}.conv",
                (f"{name}.sign",),
                pack_signs(weight >= 0),
                np.abs(weight).mean((1, 2, 3)).astype(np.float32),
                np.zeros(cout, np.float32),
                channels,
                SAME,
            ),
        ]
        if i in POOLED:
            layers.append(MaxPool(f"{name}.pool", (f"{name}.conv",), HALF))
    weight = arrays["fc.weight"].astype(np.float32)[:, None, None, :]
    layers += [
        batch_norm("bn", layers[-1].name),
        Relu("relu", ("bn",)),
        AvgPool("pool", ("relu",), Window((4, 4))),
        Conv2d("fc", ("pool",), weight, arrays["fc.bias"].astype(np.float32), Window((1, 1))),
    ]
    rule = InputRule(crop=(32, 32), resize=32, mean=MEAN, std=STD)
    return Model("vgg_small", rule, tuple(layers), CLASSES)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    model = to_model(torch.load(args.run / "vgg_small.pth", weights_only=True, map_location="cpu"))
    images, labels = read_split(args.data / "cifar10_test_jpeg.tar.xz")
    stream = model.stream("dense")
    frames = images.permute(0, 2, 3, 1).contiguous().numpy()
    right = sum(int(stream(x).argmax() == int(y)) for x, y in zip(frames, labels, strict=True))
    accuracy = f"{100 * right / len(frames):.2f} % of the {len(frames)} JPEG CIFAR-10 test images"
    info = {"source": "recipes/train_vgg_small.py", "licence": "Apache-2.0", "accuracy": accuracy}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    dataclasses.replace(model, info=info).save(args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} KB, {accuracy}")
    assert xnor_rrm.load(args.out).info == info


if __name__ == "__main__":
    main()
