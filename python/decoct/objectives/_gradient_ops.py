"""Gradients of every group's mean loss and their distance, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .measure import Measure

Loss = Callable[[nn.Module, Measure], Tensor]


def class_gradients(
    net: nn.Module, measure: Measure, loss: Loss, *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Gradient of every group's mass-weighted loss: (G, *shape) for each trainable parameter, in order."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    each = []
    for group in range(measure.group_count):
        rows = measure.select([group])
        losses = loss(net, rows)
        total = losses.mean() if rows.mass is None else (losses * rows.mass).sum()
        each.append(torch.autograd.grad(total, parameters, create_graph=create_graph, materialize_grads=True))
    return tuple(torch.stack(parts) for parts in zip(*each, strict=True))


def gradient_distance(
    real: Sequence[Tensor], synthetic: Sequence[Tensor], metric: str, tensors: Sequence[bool]
) -> Tensor:
    """(G,): distances of the gradients of every group, summed over the parameters that `tensors` names."""
    total = synthetic[0].new_zeros(len(synthetic[0]))
    for a, b, used in zip(real, synthetic, tensors, strict=True):
        if not used:
            continue
        if metric == "row_cosine":
            a, b = (g.reshape(len(g), g.shape[1] if g.dim() > 2 else 1, -1) for g in (a, b))
            norms = torch.linalg.vector_norm(a, dim=2) * torch.linalg.vector_norm(b, dim=2)
            total = total + (1 - (a * b).sum(2) / (norms + 1e-6)).sum(1)
        elif metric == "sse":
            total = total + (a - b).square().flatten(1).sum(1)
        else:
            total = total + (a - b).abs().flatten(1).sum(1)
    return total
