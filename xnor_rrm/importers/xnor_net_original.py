"""The networks of XNOR-Net-PyTorch as their training code has them, module by module, in torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .checkpoint import Checkpoint
from .original import Keep, Original, batch_norm, in_float64, in_torch

if TYPE_CHECKING:
    from torch import Tensor


def original(source: Checkpoint, *, transposed: bool = False) -> Original:
    """The network as it was trained; a NIN's input is transposed where its images were."""
    state = {name.replace("features.module", "features"): value for name, value in _state(source).items()}
    if "bin_conv2.conv.weight" in state:
        return in_torch(lambda x, keep: _lenet(_Modules(state, keep), x))
    if "classifier.0.linear.weight" in state:
        return in_torch(lambda x, keep: _alexnet(_Modules(state, keep), x))
    if "layer1.0.conv1.conv.weight" in state:
        return in_torch(lambda x, keep: _resnet(_Modules(state, keep), x))
    if not transposed:
        return in_torch(lambda x, keep: _nin(_Modules(state, keep), x))

    def turned(keep: Keep) -> Keep:
        return lambda name, value: keep(name, value.transpose(2, 3)).transpose(2, 3)

    return in_torch(lambda x, keep: _nin(_Modules(state, turned(keep)), x.transpose(2, 3)))


def _state(source: Checkpoint) -> Mapping[str, Tensor]:
    return in_float64(source.state_dict or {})


class _Modules:
    """What the networks are made of, by the names of their tensors."""

    def __init__(self, state: Mapping[str, Tensor], keep: Keep) -> None:
        self.state, self._keep = state, keep

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        import torch.nn.functional as F  # noqa: N812  # torch's own name for it

        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), stride, padding)

    def linear(self, name: str, x: Tensor) -> Tensor:
        import torch.nn.functional as F  # noqa: N812  # torch's own name for it

        return F.linear(x.flatten(1), self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def bn(self, name: str, x: Tensor, eps: float = 1e-4) -> Tensor:
        return batch_norm(self.state, name, x, eps)

    def block(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        import torch.nn.functional as F  # noqa: N812  # torch's own name for it

        x = self._keep(f"{name}.sign", self.bn(f"{name}.bn", x)).sign()
        weight, bias = self._binarized(f"{name}.conv.weight"), self.state.get(f"{name}.conv.bias")
        return F.conv2d(x, weight, bias, stride, padding).relu()

    def linear_block(self, name: str, x: Tensor) -> Tensor:
        import torch.nn.functional as F  # noqa: N812  # torch's own name for it

        if len(self.state[f"{name}.bn.running_mean"]) != x.shape[1]:  # a BatchNorm1d of what is flattened
            x = x.flatten(1)
        x = self._keep(f"{name}.sign", self.bn(f"{name}.bn", x)).sign()
        weight = self._binarized(f"{name}.linear.weight")
        return F.linear(x.flatten(1), weight, self.state[f"{name}.linear.bias"]).relu()

    def _binarized(self, name: str) -> Tensor:
        w = self.state[name]
        w = (w - w.mean(1, keepdim=True)).clamp(-1, 1)
        return w.sign() * w.abs().mean(tuple(range(1, w.dim())), keepdim=True)


def _nin(net: _Modules, x: Tensor) -> Tensor:
    import torch.nn.functional as F  # noqa: N812  # torch's own name for it

    x = net.bn("xnor.1", net.conv("xnor.0", x, padding=2)).relu()
    x = net.block("xnor.4", net.block("xnor.3", x))
    x = F.max_pool2d(x, 3, 2, 1)
    x = net.block("xnor.8", net.block("xnor.7", net.block("xnor.6", x, padding=2)))
    x = F.avg_pool2d(x, 3, 2, 1)
    x = net.block("xnor.11", net.block("xnor.10", x, padding=1))
    return F.avg_pool2d(net.conv("xnor.13", net.bn("xnor.12", x)).relu(), 8, 1)


def _lenet(net: _Modules, x: Tensor) -> Tensor:
    import torch.nn.functional as F  # noqa: N812  # torch's own name for it

    x = F.max_pool2d(net.bn("bn_conv1", net.conv("conv1", x)).relu(), 2)
    x = F.max_pool2d(net.block("bin_conv2", x), 2)
    return net.linear("ip2", net.linear_block("bin_ip1", x))


def _alexnet(net: _Modules, x: Tensor) -> Tensor:
    import torch.nn.functional as F  # noqa: N812  # torch's own name for it

    x = F.max_pool2d(net.bn("features.1", net.conv("features.0", x, stride=4)).relu(), 3, 2)
    x = F.max_pool2d(net.block("features.4", x, padding=2), 3, 2)
    x = net.block("features.6", x, padding=1)
    x = net.block("features.7", x, padding=1)
    x = F.max_pool2d(net.block("features.8", x, padding=1), 3, 2)
    x = net.linear_block("classifier.1", net.linear_block("classifier.0", x.flatten(1)))
    return net.linear("classifier.4", net.bn("classifier.2", x, 1e-3))


def _resnet(net: _Modules, x: Tensor) -> Tensor:
    import torch.nn.functional as F  # noqa: N812  # torch's own name for it

    def shortcut(name: str, x: Tensor, like: Tensor) -> Tensor:
        stride, more = x.shape[2] // like.shape[2], like.shape[1] - x.shape[1]
        if f"{name}.downsample.conv.weight" in net.state:
            return net.block(f"{name}.downsample", x, stride)
        return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, more // 2, more // 2))

    x = net.bn("bn1", net.conv("conv1", x, padding=1), 1e-5).relu()
    for stage in (1, 2, 3):
        for index in itertools.count():
            name = f"layer{stage}.{index}"
            if f"{name}.conv1.conv.weight" not in net.state:
                break
            y = net.block(f"{name}.conv1", x, 2 if stage > 1 and not index else 1, padding=1)
            y = net.block(f"{name}.conv2", y, padding=1)
            x = y + shortcut(name, x, y)
    return net.linear("fc", F.avg_pool2d(x, 8))
