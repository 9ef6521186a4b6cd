"""The sizes that bench_sinkhorn.py times, and how far a result is from the exact one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkhorn_exact import Exact, annealed, converged

BLUR = 0.05
"""Of the diameter, so that eps is 2.5e-3 of the squared diameter."""
SCALING = 0.5
MARGINAL = 1e-3
"""What those that iterate at one eps stop at: the total by which a marginal is missed."""
MAX_ITERATIONS = 2000
HUGE = 10**8
"""Pairs beyond which float64 matrices are not made."""
Potentials = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """`groups` = 0: one problem. Otherwise that many problems of one size, in packed rows."""

    rows_x: int
    rows_y: int
    columns: int
    groups: int = 0

    @property
    def name(self) -> str:
        if self.groups:
            return f"{self.groups}x({self.rows_x},{self.rows_y})x{self.columns}"
        return f"{self.rows_x}x{self.rows_y}x{self.columns}"

    def rows(self) -> tuple[Tensor, Tensor]:
        """Float32 rows of both sides, packed by problem; two distributions that differ a little."""
        generator = torch.Generator().manual_seed(0)
        groups = max(self.groups, 1)
        x = torch.randn(groups * self.rows_x, self.columns, generator=generator)
        y = torch.randn(groups * self.rows_y, self.columns, generator=generator).mul_(0.9).add_(0.2)
        return x, y.requires_grad_()

    def group(self, x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The rows of one problem."""
        n, m = self.rows_x, self.rows_y
        return x[number * n : (number + 1) * n], y.detach()[number * m : (number + 1) * m]

    @property
    def pairs(self) -> int:
        return self.rows_x * self.rows_y * max(self.groups, 1)


FULL = [
    Case(1000, 1000, 64),
    Case(5000, 5000, 3),
    Case(5000, 5000, 64),
    Case(20000, 20000, 16),
    *(Case(256, 50, 512, groups) for groups in (10, 100, 1000)),
    *(Case(1300, 100, 512, groups) for groups in (10, 100, 1000)),
]
QUICK = [Case(300, 200, 3), Case(300, 200, 64), Case(64, 20, 32, 5)]


def diameter(x: Tensor, y: Tensor) -> float:
    """Diagonal of the box around all rows."""
    pooled = torch.cat([x.detach(), y.detach()])
    return float((pooled.amax(0) - pooled.amin(0)).norm())


@dataclass
class Answer:
    """Of one problem: after the annealing schedule alone, and after convergence."""

    group: int
    annealed: Exact
    converged: Exact
    missed: float
    """By the second: it, too, iterates, and not for ever."""


def exact(case: Case, x: Tensor, y: Tensor, groups: int = 3) -> list[Answer]:
    """Answers in float64 for some problems spread over all; none for a huge one."""
    if case.rows_x * case.rows_y > HUGE:
        return []
    width = diameter(x, y)
    answers = []
    for group in torch.linspace(0, max(case.groups, 1) - 1, groups).round().long().unique().tolist():
        real, synthetic = (rows.double() for rows in case.group(x, y, group))
        start = annealed(real, synthetic, width, BLUR * width, SCALING)
        end = converged(start)
        answers.append(Answer(group, start, end, end.missed(end.f, end.g)))
    return answers


def _centred(f: Tensor, g: Tensor) -> Tensor:
    """Potentials without the constant that may move from one side to the other."""
    shift = (f.mean() - g.mean()) / 2
    return torch.cat([f - shift, g + shift])


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _errors(
    found: Exact, value: Tensor, gradient: Tensor, potentials: tuple[Tensor, Tensor], contender: Any
) -> dict[str, float]:
    wanted, terms = found.value(contender.with_xx, contender.debias)
    return {
        "value": float((value.double() - wanted).abs()) / terms,
        "gradient": _difference(gradient.double(), found.gradient(contender.debias)),
        "potentials": _difference(_centred(*potentials), _centred(found.f, found.g)),
    }


def _errors_of_huge(
    contender: Any, case: Case, x: Tensor, y: Tensor, value: Tensor, gradient: Tensor
) -> dict[str, float]:
    """Against the same op in float64, whose memory does not grow with the pairs."""
    wanted = contender.in_float64(case, x, y)
    f, g = contender.potentials(case, x, y, 0)
    return {
        "value": float((value - wanted[0]).abs() / (wanted[2].mean() + wanted[3].mean())),
        "gradient": _difference(gradient.double(), wanted[1]),
        "potentials": _difference(_centred(f.double(), g.double()), _centred(*wanted[2:])),
    }


def _worst(found: list[dict[str, float]]) -> dict[str, float]:
    # Unlike max(), a tensor's keeps a NaN.
    keys = found[0] if found else {}
    return {key: float(torch.tensor([errors[key] for errors in found]).max()) for key in keys}


def assessed(
    answers: list[Answer], contender: Any, case: Case, x: Tensor, y: Tensor, result: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """What is known of a contender's result beside its time. `error`: against the solution of the problem;
    `rounding`: against the same schedule in float64, of those that keep to it; `marginal`: total by which the
    transport plan of its potentials misses a marginal, in float64."""
    values, gradient = (part.detach() * contender.factor for part in result)
    found: dict[str, Any] = {"smallest": float(values.min()), **contender.counted(case, x, y)}
    errors, rounding, marginals = [], [], []
    if not answers and contender.in_full:
        rounding.append(_errors_of_huge(contender, case, x, y, values, gradient))
    for answer in answers:
        value = values.reshape(-1)[answer.group]
        of_group = gradient[answer.group * case.rows_y : (answer.group + 1) * case.rows_y]
        f, g = (part.detach().double() for part in contender.potentials(case, x, y, answer.group))
        errors.append(_errors(answer.converged, value, of_group, (f, g), contender))
        marginals.append({"marginal": answer.converged.missed(f, g)})
        if contender.anneals:
            rounding.append(_errors(answer.annealed, value, of_group, (f, g), contender))
    if answers:
        found["missed_by_reference"] = max(answer.missed for answer in answers)
    return {**found, "error": _worst(errors), "rounding": _worst(rounding), **_worst(marginals)}
