"""The sizes that bench_mmd.py times, and exact answers for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors of the squared bandwidth in the multi-bandwidth loss of the class-wise cases."""


@dataclass(frozen=True)
class Case:
    """`groups` = 0: one dense problem, gaussian kernel, fixed bandwidth sqrt(columns). Otherwise that many
    classes in packed rows, five gaussians around the mean squared distance of each class."""

    rows_x: int
    rows_y: int
    columns: int
    groups: int = 0
    only_ours: bool = False

    @property
    def name(self) -> str:
        if self.groups:
            return f"{self.groups}x({self.rows_x},{self.rows_y})x{self.columns}"
        return f"{self.rows_x}x{self.rows_y}x{self.columns}"

    @property
    def bandwidth(self) -> float:
        return math.sqrt(self.columns)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Float32 rows of both sides, packed by class; two distributions that differ a little."""
        generator = torch.Generator().manual_seed(0)
        groups = max(self.groups, 1)
        x = torch.randn(groups * self.rows_x, self.columns, generator=generator)
        y = torch.randn(groups * self.rows_y, self.columns, generator=generator).mul_(0.9).add_(0.2)
        return x, y.requires_grad_()


FULL = [
    *(Case(5000, 5000, columns) for columns in (3, 16, 64, 512)),
    Case(10000, 1000, 64),
    Case(2560, 500, 2048),
    Case(100_000, 100_000, 16, only_ours=True),
    *(Case(256, 10, 2048, groups) for groups in (10, 100, 1000)),
    Case(1300, 50, 512, 1000),
]
QUICK = [Case(400, 300, 3), Case(400, 300, 64), Case(3000, 3000, 16, only_ours=True), Case(32, 5, 64, 5)]


@dataclass
class Exact:
    """Float64 sums of one group: the three means of the squared MMD, and its gradient by y in some rows."""

    group: int
    xx: float | None
    xy: float | None
    yy: float | None
    columns: Tensor
    gradient: Tensor


def _sums(rows: Tensor, y: Tensor, factors: list[float], wanted: Tensor) -> tuple[float, Tensor]:
    """Sum of k(rows, y) over all pairs with y[wanted]; sum_i k'(rows_i, y_j) (rows_i - y_j) for those j,
    where k' is minus twice the derivative by the squared distance."""
    y = y[wanted]
    total, gradient = 0.0, torch.zeros_like(y)
    for part in rows.split(1024):
        d2 = (part.square().sum(1)[:, None] + y.square().sum(1) - 2 * part @ y.T).clamp_(min=0)
        weight = torch.zeros_like(d2)
        for factor in factors:
            k = torch.exp(d2 / -factor)
            total += k.sum().item()
            weight += k * (2 / factor)
        gradient += weight.T @ part - weight.sum(0)[:, None] * y
    return total, gradient


def exact(case: Case, x: Tensor, y: Tensor, groups: int = 10, checked_rows: int = 256) -> list[Exact]:
    """Answers in float64 for some groups spread over all; of a huge problem some gradient rows only."""
    count = max(case.groups, 1)
    answers = []
    for group in torch.linspace(0, count - 1, min(groups, count)).round().long().unique().tolist():
        real = x[group * case.rows_x : (group + 1) * case.rows_x].double()
        synthetic = y.detach()[group * case.rows_y : (group + 1) * case.rows_y].double()
        n, m = case.rows_x, case.rows_y
        if case.groups:
            pooled = torch.cat([real, synthetic])
            pooled = pooled - pooled.mean(0)
            mean = 2 * (n + m) * pooled.square().sum().item() / ((n + m) ** 2 - (n + m))
            factors = [mean * scale for scale in SCALES]
        else:
            factors = [2 * case.bandwidth**2]
        huge = n * m > 10**9
        wanted = torch.linspace(0, m - 1, checked_rows).long() if huge else torch.arange(m)
        xy, gradient_xy = _sums(real, synthetic, factors, wanted)
        yy, gradient_yy = _sums(synthetic, synthetic, factors, wanted)
        gradient = gradient_yy * (2 / m**2) - gradient_xy * (2 / (n * m))
        xx = None if huge else _sums(real, real, factors, torch.arange(n))[0] / n**2
        means = (None, None) if huge else (xy / (n * m), yy / m**2)
        answers.append(Exact(group, xx, *means, group * m + wanted, gradient))
    return answers


def assessed(
    answers: list[Exact], contender: Any, case: Case, x: Tensor, y: Tensor, result: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """What is known of a contender's result beside its time."""
    values, gradient = (part * contender.factor for part in result)
    return {"error": errors(answers, values, gradient, contender.with_xx)}


def errors(answers: list[Exact], values: Tensor, gradient: Tensor, with_xx: bool) -> dict[str, float | None]:
    """Largest error of the values relative to the terms that were added up, and of the gradient's entries
    relative to the largest entry of the group; NaN where something is."""
    values = values.detach().double().reshape(-1)
    of_values, of_gradients = [], []
    for answer in answers:
        difference = gradient.detach()[answer.columns].double() - answer.gradient
        size = answer.gradient.abs().max().item()
        of_gradients.append(difference.abs().max().item() / size)
        if answer.xx is not None and answer.xy is not None and answer.yy is not None:
            xx = answer.xx if with_xx else 0.0
            wrong = abs(values[answer.group].item() - (xx - 2 * answer.xy + answer.yy))
            of_values.append(wrong / (xx + 2 * answer.xy + answer.yy))

    def worst(found: list[float]) -> float | None:
        # Unlike max(), a tensor's keeps a NaN.
        return torch.tensor(found, dtype=torch.float64).max().item() if found else None

    return {"value": worst(of_values), "gradient": worst(of_gradients)}
