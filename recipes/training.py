"""One training loop for all networks here: seeded, resumable, with its curve.

A run's folder holds `checkpoint.pt` (network, optimizer, step), `curve.json` and, at the end, `curve.png`,
the network alone (`NAME.pth`) and the model file that the engine runs (`NAME.xnor`). A step's batch and its
augmentation depend on the seed and the step's number alone, so a run that was interrupted ends as it would
have. Started again with more --steps, a finished run goes on from where it ended, at the later rate of the
schedule.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from binary import BinaryConv, Sign
from label import annotation
from torch import Tensor, nn

from xnor_rrm import convert
from xnor_rrm.evaluate import Truth
from xnor_rrm.model import InputRule

#: Input values: (v - mean) / std, v in 0..255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: Of v only multiples of a step are seen, by a float twin and by a binary network: most of a camera's noise
#: is no change, so nothing is computed. Steps of 32 cost the trained twins nothing, of 64 the
#: detector's a quarter of its AP50.
STEPS = (16, 32)
#: How near to 0 a value counts as one whose sign may change: within 1 / NEAR.
NEAR = 3.0
#: What lies outside a frame. Model files have (v - FILL) / SCALE, whole numbers and a power of two, which the
#: engine computes without a table: `export` moves the difference into the first layer.
FILL, SCALE = (124, 116, 104), 64.0

Batch = tuple[Tensor, ...]


def arguments(
    argv: Sequence[str] | None,
    description: str | None,
    *,
    batch: int,
    steps: tuple[int, int],
    lr: tuple[float, float],
    calm: tuple[float, float],
) -> argparse.Namespace:
    """The options that every recipe has.  steps, lr, calm : of the float twin, and of the binary network."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=Path, help="folder that label.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--float", action="store_true", help="train the float twin")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, help="the highest learning rate")
    parser.add_argument("--start", type=Path, help="a .pth to begin with in place of random weights")
    parser.add_argument("--teacher", type=Path, help="a float twin's .pth, whose answers to learn too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=500, help="steps between validations")
    parser.add_argument("--minutes", type=float, default=3, help="between checkpoints")
    parser.add_argument("--calm", type=float, help="weight of changes between frames")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 layers, but for the last tenth")
    args = parser.parse_args(argv)
    for name, default in (("steps", steps), ("lr", lr), ("calm", calm)):
        if getattr(args, name) is None:
            setattr(args, name, default[not args.float])
    return args


def step_of(model: nn.Module) -> int:
    """The step of the values that it sees."""
    return STEPS[any(isinstance(each, BinaryConv) for each in model.modules())]


def seen_by(model: nn.Module, images: Tensor) -> Tensor:
    """Its input: uint8[N, H, W, 3] -> float32[N, 3, H, W], in memory as it was."""
    values = ((images - images % step_of(model)).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.permute(0, 3, 1, 2)


def learning_rate(step: int, steps: int, highest: float) -> float:
    """A linear rise over the first twentieth, then half a cosine down to 0."""
    rise = max(1, steps // 20)
    if step < rise:
        return highest * (step + 1) / rise
    return highest * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def optimizer_of(model: nn.Module, decay: float = 1e-4) -> torch.optim.Optimizer:
    """Adam. Weight decay on float convolutions alone: a binary weight's size is only its inertia."""
    kinds: tuple[list[Tensor], list[Tensor]] = ([], [])
    for module in model.modules():
        plain = isinstance(module, nn.Conv2d) and not isinstance(module, BinaryConv)
        for key, each in module.named_parameters(recurse=False):
            kinds[plain and key == "weight"].append(each)
    groups = [{"params": kinds[0], "weight_decay": 0.0}, {"params": kinds[1], "weight_decay": decay}]
    return torch.optim.AdamW(groups)


def train(
    args: argparse.Namespace,
    name: str,
    make: Callable[[bool], nn.Module],
    batch: Callable[[np.random.Generator, int], Batch],
    loss: Callable[[Tensor, Batch], dict[str, Tensor]],
    unlike: Callable[[Tensor, Tensor], Tensor],
    evaluate: Callable[[nn.Module], dict[str, float]],
    size: tuple[int, int],
    **about: Any,
) -> nn.Module:
    """A trained network, after args.steps steps, from the checkpoint in args.out where there is one.

    make : the network at random weights, binary or not.  batch : of a generator and a size, images
    uint8[N, H, W, 3] and targets; the second half are those of the first half a frame later.
    loss : of the network's output and the batch, its terms, to be added up.
    unlike : how far an output is from the teacher's.  evaluate : figures of the network on frames held out.
    size : (height, width) of the input.  about : fields of the model file, such as its decoding.
    """
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = make(not args.float)
    for each in model.modules():
        if isinstance(each, nn.Conv2d) and each.bias is None:
            nn.init.kaiming_normal_(each.weight)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, curve_file = args.out / "checkpoint.pt", args.out / "curve.json"
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    model = model.to(memory_format=torch.channels_last)
    optimizer, first, curve = optimizer_of(model), 0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, curve = saved["step"], saved["curve"]

    def save(step: int) -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "curve": curve,
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        curve_file.write_text(json.dumps(curve, indent=1) + "\n")

    teacher = None
    if args.teacher:
        teacher = make(False).eval().to(memory_format=torch.channels_last)
        teacher.load_state_dict(torch.load(args.teacher, weights_only=True))
    seen = watch_signs(model)
    sums: dict[str, float] = {}
    started = saved_at = time.monotonic()
    done = 0
    for step in range(first, args.steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        data = batch(np.random.default_rng([args.seed, step]), args.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16 and step < 0.9 * args.steps):
            output = model(seen_by(model, data[0]))
        terms = {**loss(output.float(), data), "change": args.calm * change(seen)}
        if teacher:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                answer = teacher(seen_by(teacher, data[0]))
            terms["unlike"] = unlike(output.float(), answer.float())
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        done += 1
        for key, value in terms.items():
            sums[key] = sums.get(key, 0.0) + value.item()
        if not all(math.isfinite(value) for value in sums.values()):
            raise SystemExit(f"step {step}: the loss is no number any more; lower --lr")
        last = step + 1 == args.steps
        if done % 50 == 0 or last:
            means = "  ".join(f"{key} {value / done:.4f}" for key, value in sums.items())
            rate = done / (time.monotonic() - started)
            print(f"{name} step {step + 1}/{args.steps}  {means}  {rate:.2f} steps/s", flush=True)
        if (step + 1) % args.evaluate_every == 0 or last:
            figures = evaluate(model.eval())
            losses = {key: round(value / done, 4) for key, value in sums.items()}
            curve.append({"step": step + 1, **losses, **figures})
            print(curve[-1], flush=True)
            sums, done, started = {}, 0, time.monotonic()
        if last or time.monotonic() - saved_at > 60 * args.minutes:
            save(step + 1)
            saved_at = time.monotonic()
    model.eval()
    torch.save(model.state_dict(), args.out / f"{name}.pth")
    draw_curve(curve, args.out / "curve.png")
    export(model, args.out / f"{name}.xnor", size, name=name, **about)
    return model


def watch_signs(model: nn.Module) -> list[Tensor]:
    """A list to which every forward pass adds what each sign is given, NEAR times, or each clip of a twin."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if model.training:
            seen.append(inputs[0] * NEAR if isinstance(module, Sign) else inputs[0])

    for module in model.modules():
        if isinstance(module, Sign | nn.Hardtanh):
            module.register_forward_pre_hook(note)
    return seen


def change(seen: list[Tensor]) -> Tensor:
    """By how much clip(x, -1, 1) changes from a frame to the next, mean over layers; empties the list.

    Where it is small few bits flip. What is beyond -1 and 1 costs nothing, so that it also draws values away
    from where a sign changes.
    """
    halves = [x.float().clamp(-1, 1).chunk(2) for x in seen]
    seen.clear()
    return torch.stack([(now - after).abs().mean() for now, after in halves]).mean()


def input_rule(size: tuple[int, int], step: int) -> InputRule:
    """Whole frames of any size."""
    return InputRule(size, 0, FILL, (SCALE,) * 3, "area", fit="letterbox", step=step)


def outputs_of(model: nn.Module, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """float32[N, h, w, C] of uint8[H, W, 3] each, as the engine has them."""
    parts = torch.from_numpy(np.stack(images)).split(16)
    outputs = torch.cat([model(seen_by(model, part)).float() for part in parts])
    return outputs.permute(0, 2, 3, 1).contiguous().numpy()


def truth_of(
    name: str, rows: Sequence[Sequence[float]], frames: Iterable[int], size: tuple[int, int]
) -> Truth:
    """Labels for `xnor_rrm.evaluate.score`: rows as label.py has them, in pixels of images of a size."""
    labels = [annotation(np.array(row, np.float32), 1.0) for row in rows]
    numbered = tuple({"id": i, "num_keypoints": 0, **each} for i, each in enumerate(labels, 1))
    return Truth(name, dict.fromkeys(frames, size), (1,), numbered)


def export(model: nn.Module, path: Path, size: tuple[int, int], **about: Any) -> None:
    """The network as a model file of the engine."""
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    conv, bn = list(model.modules())[2:4]  # behind the network and its body
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(bn, nn.BatchNorm2d)
    weight, mean, std = conv.weight.double(), torch.tensor(MEAN).double(), torch.tensor(STD).double()
    offset = ((torch.tensor(FILL) - mean) / std).view(1, 3, 1, 1)
    with torch.no_grad():
        bn.running_mean -= (weight * offset).sum((1, 2, 3)).float()
        conv.weight.copy_(weight * (SCALE / std).view(1, 3, 1, 1))
    dataclasses.replace(convert(model, input=input_rule(size, step_of(model))), **about).save(path)


def draw_curve(curve: list[dict[str, float]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:  # of an optional extra
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = [key for key in curve[-1] if key != "step"]
    figure, axes = pyplot.subplots(1, len(keys), figsize=(3.2 * len(keys), 2.6), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        axis.plot([row["step"] for row in curve], [row[key] for row in curve], marker=".")
        axis.set_title(key)
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
