"""Norms and clipped sums against Opacus: hooks, and its DPOptimizer without noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import decoct

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook"),
]

N = 9


@pytest.fixture(scope="module")
def opacus() -> Any:
    import opacus

    return opacus


def network(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(4)
    targets = torch.randint(0, 5, (N,))
    if kind == "mlp":
        net: nn.Module = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 5))
        return net, torch.randn(N, 12), targets
    if kind == "tokens":
        layers = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.LayerNorm(20), nn.Flatten(), nn.Linear(140, 5))
        return layers, torch.randn(N, 7, 6), targets
    convolutions = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=2),
        nn.InstanceNorm2d(24, affine=True),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 5),
    )
    return convolutions, torch.randn(N, 3, 8, 8), targets


NETS = ("mlp", "tokens", "conv")


def of_pass(net: nn.Module, x: Tensor, y: Tensor) -> decoct.Capture:
    with decoct.capture(net) as pairs:
        loss = F.cross_entropy(net(x), y)
    pairs.backward(loss)
    return pairs


@pytest.mark.parametrize("kind", NETS)
def test_norms(opacus: Any, kind: str) -> None:
    net, x, y = network(kind)
    ours = decoct.per_sample_norms(of_pass(net, x, y), per_layer=True)
    hooked = opacus.GradSampleModule(net)
    F.cross_entropy(hooked(x), y).backward()
    theirs = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in net.parameters()])
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_clipped_sums(opacus: Any, kind: str, per_layer: bool, reduction: Any) -> None:
    from opacus.optimizers import DPOptimizer, DPPerLayerOptimizer

    net, x, y = network(kind)
    count = len(list(net.parameters()))
    limits: Any = [0.02 * (1 + k) for k in range(count)] if per_layer else 0.7
    with decoct.capture(net) as pairs:
        loss = F.cross_entropy(net(x), y, reduction=reduction)
    pairs.backward(loss)
    ours = decoct.clipped_gradient_sum(
        pairs, max_grad_norm=limits, expected_batch_size=7, loss_reduction=reduction
    )
    hooked = opacus.GradSampleModule(net, loss_reduction=reduction)
    plain = torch.optim.SGD(net.parameters(), lr=0.1)
    kind_of = DPPerLayerOptimizer if per_layer else DPOptimizer
    optimizer = kind_of(
        plain, noise_multiplier=0.0, max_grad_norm=limits, expected_batch_size=7, loss_reduction=reduction
    )
    F.cross_entropy(hooked(x), y, reduction=reduction).backward()
    optimizer.pre_step()
    for mine, parameter in zip(ours, net.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=2e-5, atol=1e-6)
