"""Entropic transport in plain torch, float64, by dense matrices: what results are compared with.

OT(a, b) = min_P <P, C> + eps KL(P | a b^T),   C = |x - y|^2 / 2,   S = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def costs(x: Tensor, y: Tensor) -> Tensor:
    centre = x.mean(0)
    x, y = x - centre, y - centre
    d2 = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return d2.clamp_(min=0).mul_(0.5)


@dataclass
class Exact:
    """Uniform weights. f, g: of x with y; f_self, g_self: of each with itself. `slope_*`: derivatives of the
    terms by y."""

    x: Tensor
    y: Tensor
    eps: float
    f: Tensor
    g: Tensor
    f_self: Tensor
    g_self: Tensor
    slope_xy: Tensor
    slope_yy: Tensor

    def value(self, with_xx: bool, debias: bool) -> tuple[float, float]:
        """And the sum of the terms that were added up."""
        cross = float(self.f.mean() + self.g.mean())
        own = float(self.g_self.mean()) if debias else 0.0
        real = float(self.f_self.mean()) if debias and with_xx else 0.0
        return cross - own - real, abs(cross) + abs(own) + abs(real)

    def gradient(self, debias: bool) -> Tensor:
        return self.slope_xy - self.slope_yy if debias else self.slope_xy

    def missed(self, f: Tensor, g: Tensor) -> float:
        """Total by which the plan of these potentials misses a marginal, the larger of both sides."""
        n, m = len(f), len(g)
        plan = costs(self.x, self.y).sub_(g).sub_(f[:, None]).div_(-self.eps).exp_().div_(n * m)
        sides = (plan.sum(1) - 1 / n).abs().sum(), (plan.sum(0) - 1 / m).abs().sum()
        return float(torch.stack(sides).max())


def schedule(diameter: float, blur: float, scaling: float) -> list[float]:
    """GeomLoss's: squared lengths from the diameter down, then the target."""
    lengths = [diameter]
    length = diameter
    while length > blur:
        lengths.append(length)
        length *= scaling
    return [length**2 for length in [*lengths, blur]]


def _softmin(cost: Tensor, potential: Tensor, eps: float) -> Tensor:
    """Of each row; `potential` is of the columns."""
    return -eps * (torch.logsumexp((potential - cost).div_(eps), 1) - math.log(cost.shape[1]))


def _barycentric(cost: Tensor, potential: Tensor, eps: float, points: Tensor) -> Tensor:
    """Mean of the column points under the plan's rows."""
    return torch.softmax((potential - cost).div_(eps), 1) @ points


def _annealed_pair(x: Tensor, y: Tensor, eps_list: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    cost, back = costs(x, y), costs(y, x)
    zero_x, zero_y = x.new_zeros(len(x)), x.new_zeros(len(y))
    f, g = _softmin(cost, zero_y, eps_list[0]), _softmin(back, zero_x, eps_list[0])
    for eps in eps_list:
        f, g = (f + _softmin(cost, g, eps)) / 2, (g + _softmin(back, f, eps)) / 2
    eps = eps_list[-1]
    mean = _barycentric(back, f, eps, x)
    return _softmin(cost, g, eps), _softmin(back, f, eps), (y - mean) / len(y)


def _annealed_self(x: Tensor, eps_list: list[float]) -> tuple[Tensor, Tensor]:
    cost = costs(x, x)
    f = _softmin(cost, x.new_zeros(len(x)), eps_list[0])
    for eps in eps_list:
        f = (f + _softmin(cost, f, eps)) / 2
    eps = eps_list[-1]
    return _softmin(cost, f, eps), (x - _barycentric(cost, f, eps, x)) / len(x)


def annealed(x: Tensor, y: Tensor, diameter: float, blur: float, scaling: float) -> Exact:
    """GeomLoss's iteration: averaged steps along the schedule, and the last one whole."""
    eps_list = schedule(diameter, blur, scaling)
    f, g, slope_xy = _annealed_pair(x, y, eps_list)
    f_self, _ = _annealed_self(x, eps_list)
    g_self, slope_yy = _annealed_self(y, eps_list)
    return Exact(x, y, eps_list[-1], f, g, f_self, g_self, slope_xy, slope_yy)


def _polished(cost: Tensor, f: Tensor, g: Tensor, eps: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """Alternating scaling of the plan of potentials that are nearly right: products with one matrix."""
    n, m = cost.shape
    plan = (g - cost).add_(f[:, None]).div_(eps).exp_()
    v = cost.new_ones(m)
    for _ in range(10_000):
        u = m / (plan @ v)
        missed = (v * (u @ plan) / n - 1).abs().mean()
        if missed < tolerance:
            break
        v = n / (u @ plan)
    return f + eps * u.log(), g + eps * v.log()


def _polished_self(cost: Tensor, f: Tensor, eps: float, tolerance: float) -> Tensor:
    n = len(f)
    plan = (f - cost).add_(f[:, None]).div_(eps).exp_()
    u = cost.new_ones(n)
    for _ in range(10_000):
        sums = (plan @ u) / n
        if (u * sums - 1).abs().mean() < tolerance:
            break
        u = (u / sums).sqrt()
    return f + eps * u.log()


def converged(start: Exact, tolerance: float = 1e-9) -> Exact:
    """The solution: marginals are met to `tolerance`."""
    x, y, eps = start.x, start.y, start.eps
    f, g = _polished(costs(x, y), start.f, start.g, eps, tolerance)
    f_self = _polished_self(costs(x, x), start.f_self, eps, tolerance)
    cost = costs(y, y)
    g_self = _polished_self(cost, start.g_self, eps, tolerance)
    slope_xy = (y - _barycentric(costs(y, x), f, eps, x)) / len(y)
    slope_yy = (y - _barycentric(cost, g_self, eps, y)) / len(y)
    return replace(start, f=f, g=g, f_self=f_self, g_self=g_self, slope_xy=slope_xy, slope_yy=slope_yy)
