"""Trains the embedded default: a VGG-small XNOR-Net on CIFAR-10 stored as JPEG.

    python recipes/train_vgg_small.py --data FOLDER --out runs/vgg_small

FOLDER holds `cifar10_train_jpeg.tar.xz` and `cifar10_test_jpeg.tar.xz` (one folder a class inside).
The run is seeded, prints and saves its curve, writes a checkpoint after every epoch, and picks up
from the last one when it is started again with the same `--out`.

The method is XNOR-Net's (Rastegari et al., 2016): block order batch-norm, sign, binary convolution;
binary weights are alpha * sign(w) with alpha = mean |w| of each filter, w centred over its input
channels and clamped to [-1, 1]; gradients pass the activations' sign where |x| <= 1 and pass the
weights' sign unchanged (the straight-through estimator).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # of the training images, 0..255


class SignActivation(torch.autograd.Function):
    """sign(x), +1 at zero; the gradient of clip(x, -1, 1)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class BinaryConv(nn.Conv2d):
    """3x3 convolution with weights alpha * sign(w); `weight` is the latent float weight."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.weight.abs().mean((1, 2, 3), keepdim=True)
        binary = torch.where(self.weight >= 0, alpha, -alpha)
        return functional.conv2d(x, self.weight + (binary - self.weight).detach(), padding=1)

    @torch.no_grad()
    def centre_and_clamp(self) -> None:
        self.weight.sub_(self.weight.mean(1, keepdim=True)).clamp_(-1, 1)


class Block(nn.Module):
    """Batch-norm, sign, binary convolution, and a 2x2 max pool where the map shrinks."""

    def __init__(self, cin: int, cout: int, pool: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(cin)
        self.conv = BinaryConv(cin, cout)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(SignActivation.apply(self.bn(x))))


class VggSmall(nn.Module):
    """Float 3x3 stem, six binary 3x3 convolutions at 16x16, 8x8 and 4x4, a float last layer.

    Input: float[N, 3, 32, 32], normalised.  Output: float[N, 10] logits.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        w = width
        self.stem = nn.Conv2d(3, w // 2, 3, padding=1)
        self.stem_pool = nn.MaxPool2d(2)
        self.blocks = nn.ModuleList(
            [
                Block(w // 2, w, pool=False),
                Block(w, w, pool=True),
                Block(w, 2 * w, pool=False),
                Block(2 * w, 2 * w, pool=True),
                Block(2 * w, 4 * w, pool=False),
                Block(4 * w, 4 * w, pool=False),
            ]
        )
        self.bn = nn.BatchNorm2d(4 * w)
        self.fc = nn.Linear(4 * w, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_pool(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.fc(functional.relu(self.bn(x)).mean((2, 3)))


def read_split(archive: Path) -> tuple[Tensor, Tensor]:
    """uint8[N, 3, 32, 32] images and int64[N] labels of one tar.xz, in archive order."""
    images, labels = [], []
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                data = tar.extractfile(member)
                assert data is not None
                image = Image.open(io.BytesIO(data.read())).convert("RGB")
                images.append(np.asarray(image).transpose(2, 0, 1))
                labels.append(CLASSES.index(Path(member.name).parent.name))
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def augment(images: Tensor) -> Tensor:
    """Random horizontal flip and a random crop after 4 pixels of reflected border, one per image."""
    n = len(images)
    padded = functional.pad(images.float(), (4, 4, 4, 4), mode="reflect").to(images.dtype)
    rows = torch.randint(0, 9, (n, 1)) + torch.arange(32)
    columns = torch.randint(0, 9, (n, 1)) + torch.arange(32)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def normalise(images: Tensor) -> Tensor:
    shape = (1, 3, 1, 1)
    mean = torch.tensor(MEAN, device=images.device).view(shape)
    return (images.float() - mean) / torch.tensor(STD, device=images.device).view(shape)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = sum(
        int((model(normalise(x).contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    model.train()
    return right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 convolutions, but for the last tenth")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, curve_file = args.out / "checkpoint.pt", args.out / "curve.json"

    train_x, train_y = (t.to(device) for t in read_split(args.data / "cifar10_train_jpeg.tar.xz"))
    test_x, test_y = (t.to(device) for t in read_split(args.data / "cifar10_test_jpeg.tar.xz"))
    model = VggSmall(args.width).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    steps = args.epochs * (len(train_x) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    curve: list[dict[str, float]] = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"].cpu())
        curve = json.loads(curve_file.read_text())

    for epoch in range(len(curve), args.epochs):
        start, total_loss = time.perf_counter(), 0.0
        order = torch.randperm(len(train_x)).to(device)
        batches = order.split(args.batch)[: len(train_x) // args.batch]
        low_precision = args.bf16 and epoch < 0.9 * args.epochs
        for step, batch in enumerate(batches):
            x = normalise(augment(train_x[batch])).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
                loss = functional.cross_entropy(model(x).float(), train_y[batch], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            for module in model.modules():
                if isinstance(module, BinaryConv):
                    module.centre_and_clamp()
            total_loss += loss.item()
            if step % 100 == 0:
                print(f"epoch {epoch} step {step}/{len(batches)} loss {loss.item():.3f}", flush=True)
        curve.append(
            {
                "epoch": epoch,
                "loss": round(total_loss / len(batches), 4),
                "test_accuracy": accuracy(model, test_x, test_y),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(curve[-1], flush=True)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "rng": torch.get_rng_state(),
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)
        curve_file.write_text(json.dumps(curve, indent=1) + "\n")
    torch.save(model.state_dict(), args.out / "vgg_small.pth")


if __name__ == "__main__":
    main()
