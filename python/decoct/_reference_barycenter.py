"""Free-support barycentres in plain PyTorch, for :mod:`decoct.reference`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BarycenterTwin", "free_support_barycenter"]


class BarycenterTwin(NamedTuple):
    """One barycentre after the turns asked for."""

    points: Tensor
    masses: Tensor
    cost: Tensor
    movement: Tensor


def _cost(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y).square().sum(-1) / 2


def _balanced(cost: Tensor, a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The plan with marginals a and b, and its value, to convergence."""
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    close = max(1e-13, 4 * torch.finfo(cost.dtype).eps)
    for _ in range(100_000):
        f = -eps * torch.logsumexp(b.log() + (g - cost) / eps, 1)
        old, g = g, -eps * torch.logsumexp(a.log()[:, None] + (f[:, None] - cost) / eps, 0)
        if float((g - old).abs().max()) <= close * float(cost.abs().max() + eps):
            break
    plan = a[:, None] * b * torch.exp((f[:, None] + g - cost) / eps)
    return plan, a @ f + b @ g


def free_support_barycenter(
    measures: Sequence[tuple[Tensor, Tensor, float]],
    points: Tensor,
    masses: Tensor,
    blurs: Sequence[float],
    *,
    learned: bool = False,
    step: float = 1.0,
) -> BarycenterTwin:
    """One barycentre of ``(x, a, weight)`` measures, weights with a sum of 1, one alone with learned masses:
    a turn at each blur but the last, and the cost at that one."""
    movement = torch.zeros((), dtype=points.dtype)

    def plans(eps: float) -> tuple[list[Tensor], Tensor]:
        found, total = [], torch.zeros((), dtype=points.dtype)
        for x, a, share in measures:
            cost = _cost(x, points)
            if learned:
                f = -eps * torch.logsumexp(masses.log() - cost / eps, 1)
                plan, value = a[:, None] * masses * torch.exp((f[:, None] - cost) / eps), a @ f
            else:
                plan, value = _balanced(cost, a, masses, eps)
            found.append(plan)
            total = total + share * value
        return found, total

    for blur in blurs[:-1]:
        found, _ = plans(blur**2)
        pairs = list(zip(measures, found, strict=True))
        sums = torch.stack([share * plan.T @ x for (x, _, share), plan in pairs]).sum(0)
        mass = torch.stack([share * plan.sum(0) for (_, _, share), plan in pairs]).sum(0)
        moved = step * (sums / mass[:, None] - points)
        movement = (masses @ moved.square().sum(1) / masses.sum()).sqrt()
        points = points + moved
        if learned:
            masses = mass / mass.sum()
    return BarycenterTwin(points, masses, plans(blurs[-1] ** 2)[1], movement)
