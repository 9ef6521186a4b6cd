"""What bench_persample.py times, and exact answers for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import peaks
from decoct.networks import ConvNet


@dataclass(frozen=True)
class Case:
    """kind "norms": norms of all gradients of a batch; "clipped": their clipped sum; "gram": their inner
    products with those of `others` samples. Each with the passes forward and backward that it takes. network
    "mlp": 3072-256-256-10, "convnet": the standard one of 32 x 32 colour images."""

    kind: str
    network: str
    images: int
    others: int = 0
    size: int = 32

    @property
    def name(self) -> str:
        numbers = f"{self.images}" + (f"x{self.others}" if self.others else "")
        return f"{self.kind} {self.network} {numbers}"

    def net(self, fused: bool = True) -> nn.Module:
        """The same weights each time; not `fused`: torch's own norm and pooling."""
        generator = torch.Generator().manual_seed(1)
        if self.network == "convnet":
            return ConvNet((3, self.size, self.size), 10, fused=fused, generator=generator)
        sizes = (3 * self.size**2, 256, 256, 10)
        layers: list[nn.Module] = [nn.Flatten()]
        for k in range(3):
            layer = nn.Linear(sizes[k], sizes[k + 1])
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / sizes[k] ** 0.5)
                layer.bias.zero_()
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def rows(self) -> tuple[Any, Any]:
        """Images of both sides, the second empty but for inner products."""
        generator = torch.Generator().manual_seed(0)
        shape = 3, self.size, self.size
        x = torch.randn(self.images, *shape, generator=generator)
        return x, torch.randn(self.others, *shape, generator=generator)

    def targets(self, images: Tensor) -> Tensor:
        return torch.arange(len(images), device=images.device) % 10

    def work(self) -> peaks.Work | None:
        """Of an MLP's inner products: both products of all pairs, and the two passes."""
        if self.kind != "gram" or self.network != "mlp":
            return None
        sizes = (3 * self.size**2, 256, 256, 10)
        each = sum(a + b for a, b in pairwise(sizes))
        weights = sum(a * b for a, b in pairwise(sizes))
        passes = 2 * (self.images + self.others) * (2 * weights - sizes[0] * sizes[1])
        return peaks.Work(flops=float(2 * self.images * self.others * each + passes), exps=0.0, bytes=0.0)


FULL = [
    Case("norms", "mlp", 64),
    Case("norms", "mlp", 256),
    Case("norms", "convnet", 64),
    Case("clipped", "mlp", 256),
    Case("clipped", "convnet", 64),
    Case("gram", "mlp", 256, 256),
    Case("gram", "convnet", 64, 16),
]
QUICK = [
    Case("norms", "mlp", 5, size=8),
    Case("clipped", "convnet", 3, size=8),
    Case("gram", "convnet", 3, 2, size=8),
]


def exact(case: Case, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, from one pass for each sample."""
    from decoct import reference

    net = case.net(fused=False).double().to(x.device)
    gradients = [
        torch.cat(
            [g.flatten(1) for g in reference.per_sample_gradients(net, part.double(), case.targets(part))],
            1,
        )
        for part in (x, y)
        if len(part)
    ]
    if case.kind == "gram":
        return gradients[0] @ gradients[1].T, torch.zeros(1, dtype=torch.float64)
    norms = gradients[0].norm(dim=1)
    if case.kind == "norms":
        return norms, torch.zeros(1, dtype=torch.float64)
    return (1 / (norms + 1e-6)).clamp(max=1) @ gradients[0], torch.zeros(1, dtype=torch.float64)


def assessed(
    answer: tuple[Tensor, Tensor], contender: Any, case: Case, x: Any, y: Any, result: tuple[Tensor, Any]
) -> dict[str, Any]:
    """The error, relative to the largest value."""
    values = result[0].detach().double()
    return {"error": {"value": ((values - answer[0]).abs().max() / answer[0].abs().max()).item()}}
