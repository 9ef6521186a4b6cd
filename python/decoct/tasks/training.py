"""Training of a network on a small set held in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..augment import STRATEGIES, Augmentation
from ..objectives import Measure, seeded

__all__ = ["PROTOCOLS", "TrainingProtocol", "protocol", "scores", "train"]

# Rows a forward pass sees at once outside training: bounds memory, changes no result of a network without
# batch norm.
CHUNK = 512


@dataclass(frozen=True)
class TrainingProtocol:
    """How a network is trained: SGD, the learning rate a tenth from each share of the epochs in `drops` on.

    epochs, batch, lr: None leaves the choice to the size of the set (`resolve`) and the network.
    augmentation: None, or drawn anew for every row of every batch.
    """

    name: str
    epochs: int | None = None
    batch: int | None = None
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    drops: tuple[float, ...] = (0.5,)
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        for field in ("epochs", "batch", "lr"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"TrainingProtocol: {field} must be positive, got {value}")

    def resolve(self, rows: int, lr: float = 0.01) -> TrainingProtocol:
        """The protocol for a set of this many rows, nothing left open; `lr` is the network's own choice."""
        return replace(
            self,
            # 200 epochs for 25 rows and fewer, 100 for 100 rows, 26 for 1500, 5 for 40000 and more.
            epochs=self.epochs or min(200, max(5, round(1000 / math.sqrt(rows)))),
            batch=self.batch or (32 if rows < 1000 else 64 if rows < 10000 else 128),
            lr=self.lr or lr,
        )


_PUBLISHED = TrainingProtocol("published", epochs=300, batch=256, lr=0.01)

PROTOCOLS: dict[str, TrainingProtocol] = {
    "quick": TrainingProtocol("quick", augmentation=Augmentation()),
    "published": _PUBLISHED,
    "published-augmented": replace(_PUBLISHED, name="published-augmented", augmentation=Augmentation()),
}


def protocol(name: str, *, flip: bool = False, epochs: int | None = None) -> TrainingProtocol:
    """A training protocol by name.

    "quick": epochs and batch from the size of the set, images under the standard augmentation. "published":
    the field's 300 epochs, batch 256, learning rate 0.01, a tenth of it from the half on, no augmentation.
    "published-augmented": the same under the standard augmentation. That has mirror images where `flip` is
    set (they change a digit's meaning). epochs: instead of the protocol's own.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: name must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    chosen = PROTOCOLS[name]
    if flip and chosen.augmentation is not None:
        chosen = replace(chosen, augmentation=replace(chosen.augmentation, strategies=STRATEGIES))
    return chosen if epochs is None else replace(chosen, name=f"{name}, {epochs} epochs", epochs=epochs)


def train(
    network: nn.Module, measure: Measure, protocol: TrainingProtocol, seed: int, lr: float = 0.01
) -> nn.Module:
    """Train `network` in place on all rows of `measure`; the last epoch's weights stay.

    measure: rows x (N, ...); y (N,) class ids or (N, C) soft labels; mass (N,) weighs the rows' losses.
    seed: of the order of the rows and the augmentation. lr: where the protocol leaves it open.
    Raises ValueError where the measure is empty or has no labels.
    """
    x, y, mass = measure.x.detach(), measure.y, measure.mass
    if y is None or not len(x):
        raise ValueError(
            f"train: measure must hold rows with labels, got {len(x)} rows, y {type(y).__name__}"
        )
    y = y.detach()
    plan = protocol.resolve(len(x), lr)
    epochs, batch, rate = plan.epochs or 1, plan.batch or len(x), plan.lr or lr
    weights = torch.ones(len(x)) if mass is None else mass.detach() * (len(x) / mass.detach().sum())
    order, views = seeded(seed, "batches"), seeded(seed, "training augmentation")
    image = x.dim() == 4
    network.train()
    optimiser = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=plan.momentum, weight_decay=plan.weight_decay, foreach=True
    )
    falls = {round(share * epochs) for share in plan.drops}
    for epoch in range(epochs):
        if epoch in falls and epoch > 0:
            for group in optimiser.param_groups:
                group["lr"] *= 0.1
        for rows in torch.randperm(len(x), generator=order).split(batch):
            inputs = x[rows]
            if image and plan.augmentation is not None:
                view = plan.augmentation.draw(len(rows), views)
                inputs = view(inputs, torch.arange(len(rows) + 1))
            optimiser.zero_grad()
            losses = F.cross_entropy(network(inputs), y[rows], reduction="none")
            (losses * weights[rows]).mean().backward()
            optimiser.step()
    return network.eval()


def scores(network: nn.Module, x: Tensor) -> Tensor:
    """The network's outputs (N, C) on rows x (N, ...), in chunks and without a graph."""
    with torch.no_grad():
        return torch.cat([network(part) for part in torch.split(x, CHUNK)])
