"""Gradient matching: the network learns from the synthetic rows what it learns from the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import class_gradients, gradient_distance
from ..ops.gradient_distance import METRICS, Metric
from .context import Context
from .groups import GroupObjective
from .measure import Measure

__all__ = ["TENSORS", "GradientMatch", "cross_entropy", "group_gradients"]

Loss = Callable[[nn.Module, Measure], Tensor]
# Fewest axes of the parameters that are compared.
TENSORS = {"all": 0, "matrices": 2, "convolutions": 3}


def cross_entropy(net: nn.Module, measure: Measure) -> Tensor:
    """Cross entropy of each row, (N,), for class ids (N,) or soft labels (N, C)."""
    if measure.y is None:
        raise ValueError("cross_entropy: measure must hold labels y")
    return F.cross_entropy(net(measure.x), measure.y, reduction="none")


class _Losses(nn.Module):
    """A network with the loss of each of its rows in a measure, by their numbers."""

    def __init__(self, net: nn.Module, measure: Measure, loss: Loss) -> None:
        super().__init__()
        self.net, self.measure, self.loss = net, measure, loss

    def forward(self, numbers: Tensor) -> Tensor:
        x, y = self.measure.x, self.measure.y
        rows = self.measure.replace(x=x[numbers], y=None if y is None else y[numbers], mass=None, groups=None)
        return self.loss(self.net, rows)


def group_gradients(net: nn.Module, measure: Measure, loss: Loss, **options: Any) -> list[Tensor]:
    """Of every group's mass-weighted mean loss, by each parameter that can be trained."""
    numbers = torch.arange(len(measure), device=measure.x.device)
    found = class_gradients(
        _Losses(net, measure, loss),
        numbers,
        numbers,
        measure.groups,
        loss=lambda losses, _: losses,
        weights=measure.mass,
        **options,
    )
    return [gradient for gradient in found if gradient is not None]


class GradientMatch(GroupObjective):
    """Distance of the gradients that real and synthetic rows give the step's network, group by group.

    Equivalent to, summed over groups::

        real = torch.autograd.grad(loss(net, real_rows).mean(), net.parameters())
        synthetic = torch.autograd.grad(loss(net, rows).mean(), net.parameters(), create_graph=True)
        sum(distance(a.detach(), b) for a, b in zip(real, synthetic))

    metric: one of :func:`decoct.gradient_distance`; "row_cosine", one minus the cosine of every row (output
    channel) of a parameter, summed; "sse" and "l1", sums of squared and absolute differences.
    tensors: the parameters that are compared: "all"; "matrices", those with two axes or more, which leaves
    out biases and affine maps of norms; "convolutions", those with three or more, which leaves out linear
    layers too. The defaults of the method of Zhao et al. (ICLR 2021, arXiv 2006.05929) are "row_cosine" and
    "matrices"; those of IDC (Kim et al., ICML 2022, arXiv 2205.14959) are "l1" or "sse" and "convolutions".
    chunk: real rows of one pass through the network; smaller ones bound the memory, that of the activations.
    source, reduction, tail, name: see `GroupObjective`.

    The loss is the context's, or cross entropy where it has none; rows of a measure with masses count with
    their mass, as given. The network is called for all groups at once (:func:`decoct.class_gradients`) and
    must treat rows alone: `TrainedNetworks` hands out networks whose batch norms use statistics of real rows
    and whose dropout is off. All parameters with ``requires_grad`` take part.
    Raises RuntimeError without a network, or where none of its parameters that `tensors` names can be
    trained; ValueError for a network that mixes rows.
    """

    def __init__(
        self,
        metric: Metric = "row_cosine",
        tensors: str = "matrices",
        *,
        source: str = "real",
        reduction: str = "sum",
        tail: float = 0.5,
        chunk: int = 256,
        name: str = "gradients",
    ) -> None:
        super().__init__(source=source, reduction=reduction, tail=tail, name=name)
        for argument, value, known in (
            ("metric", metric, METRICS),
            ("tensors", tensors, tuple(TENSORS)),
        ):
            if value not in known:
                raise ValueError(
                    f"GradientMatch: {argument} must be one of {', '.join(known)}, got {value!r}"
                )
        if chunk < 1:
            raise ValueError(f"GradientMatch: chunk must be positive, got {chunk}")
        self.metric, self.tensors, self.chunk = metric, tensors, chunk

    def values(self, context: Context) -> tuple[Tensor, Tensor]:
        self._network(context)  # refused before any row is drawn
        return super().values(context)

    def compare(self, context: Context, real: Measure, synthetic: Measure, kept: Sequence[int]) -> Tensor:
        net, used = self._network(context)
        loss: Loss = context.loss or cross_entropy
        wanted = group_gradients(net, real, loss, chunk_size=self.chunk)
        found = group_gradients(net, synthetic, loss, create_graph=True)
        return gradient_distance(wanted, found, self.metric, classes=True, tensors=used)

    def _network(self, context: Context) -> tuple[nn.Module, list[bool]]:
        """The step's network, and which of its trainable parameters are compared."""
        if context.net is None:
            raise RuntimeError("GradientMatch: the context holds no network; give the Condenser a pool")
        axes = [p.dim() for p in context.net.parameters() if p.requires_grad]
        used = [count >= TENSORS[self.tensors] for count in axes]
        if not any(used):
            raise RuntimeError(
                f"GradientMatch: of the network's parameters tensors={self.tensors!r} leaves "
                f"none that can be trained ({len(axes)} have requires_grad); a pool of TrainedNetworks gives "
                "networks that can"
            )
        return context.net, used

    def extra_repr(self) -> str:
        return f"metric={self.metric!r}, tensors={self.tensors!r}, reduction={self.reduction!r}"
