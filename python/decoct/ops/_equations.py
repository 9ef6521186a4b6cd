"""Derivatives of potentials and of the transport derivatives, by the equations that the potentials solve.

With S_ij = exp((f_i + g_j - C_ij) / eps), the potentials of x and y solve

    G_i = exp(-f_i / rho_x) - sum_j b_j S_ij = 0,     H_j = exp(-g_j / rho_y) - sum_i a_i S_ij = 0,

where the first terms are 1 for a marginal that is kept. The derivatives by the points are those of -eps
sum_ij a_i b_j S_ij with the potentials held. So a cotangent of all of these reaches the points and weights
along two ways: the second derivative of that sum, and the potentials, whose cotangent q is pulled through
the equations by

    M' l = q,     M = -d(G, H) / d(f, g) = [[diag(d_x), S b / eps], [S' a / eps, diag(d_y)]],
    d_x = exp(-f / rho_x) / rho_x + S b / eps.

Both ways end in the same Hessian-vector product of the sum: q and l are tangents of its weights. M is
self-adjoint in the inner product weighted by (a, b); one side is eliminated, and conjugate gradients solve
for the other, all segments at once. M' l = q is solved as l = q / d + (a, b) z, so that no weight is
divided by. A self term has one potential and M = diag(d) + S a / eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoct.ops import _matvec, _sums
from decoct.ops._backend import XX, XY, YY, A, B, compute_dtype
from decoct.ops._plan import Settings, uniform
from decoct.ops._rows import spread
from decoct.ops._segment_ops import totals

__all__ = ["Equations", "Problem", "Side", "conjugate_gradient"]

MOST_ITERATIONS = 2000
BREAKDOWN = 1e-6
"""Share of the squared residual that rounding may leave where the operator is no longer positive."""

Solve = Callable[[Tensor], Tensor]


@dataclass
class Side:
    """Rows of a segment's cloud, in float64 but for what the engine reads."""

    rows: Tensor
    offsets: Tensor | None
    weights: Tensor  # float64
    potential: Tensor  # of the term, compute dtype
    reach: float  # rho
    segments: int

    def total(self, values: Tensor) -> Tensor:
        return totals(values, self.offsets, self.segments)

    def spread(self, values: Tensor) -> Tensor:
        return spread(values, self.offsets, self.rows.shape[0], self.segments)

    def kept(self) -> Tensor | float:
        """exp(-f / rho) / rho."""
        return (
            0.0 if math.isinf(self.reach) else torch.exp(-self.potential.double() / self.reach) / self.reach
        )


def _product(settings: Settings, rows: Side, columns: Side, v: Tensor) -> Tensor:
    """sum_j S_ij v_j / eps, float64."""
    out = _matvec.product(
        rows.rows,
        columns.rows,
        v.to(columns.potential.dtype)[:, None],
        rows.offsets,
        columns.offsets,
        rows.segments,
        settings.bandwidth(rows.segments, rows.rows.device),
        rows.potential / settings.eps,
        columns.potential / settings.eps,
        *settings.kernel,
    )
    return out[:, 0].to(torch.float64) / settings.eps


def conjugate_gradient(
    operator: Solve,
    right: Tensor,
    side: Side,
    weights: Tensor,
    singular: bool,
    tolerance: float,
    sound: Tensor,
) -> Tensor:
    """Solves operator(z) = right in each segment; the operator is self-adjoint in the inner product with
    these weights, and `singular` along the constants. Segments that are not `sound` are NaN, as what they
    were given is; in the others a number that is not finite is an error."""
    mass = side.total(weights)
    mass = torch.where(mass == 0, 1.0, mass)

    def projected(values: Tensor) -> Tensor:
        return values - side.spread(side.total(weights * values) / mass) if singular else values

    z = torch.zeros_like(right)
    residual = projected(right)
    direction = residual
    square = side.total(weights * residual * residual)
    # Where next to nothing but a constant is given, what is left of it is rounding, which no step makes less.
    start, target = square, tolerance**2 * side.total(weights * right * right)
    for _ in range(MOST_ITERATIONS):
        active = sound & ~(square <= target)
        if not bool(active.any()):
            return torch.where(side.spread(sound), z, math.nan)
        moved = operator(direction)
        curvature = side.total(weights * direction * moved)
        stuck = ~(curvature > 0) & ~(square <= BREAKDOWN * start)
        if bool((active & (stuck | curvature.isnan())).any()):
            break
        active = active & (curvature > 0)
        step = torch.where(active, square / curvature, 0.0)
        z = z + side.spread(step) * direction
        residual = projected(residual - side.spread(step) * moved)
        last, square = square, side.total(weights * residual * residual)
        direction = residual + side.spread(torch.where(active, square / last, 0.0)) * direction
        square = torch.where(active, square, 0.0)
    raise RuntimeError(
        f"decoct: second derivatives of sinkhorn did not converge in {MOST_ITERATIONS} steps of conjugate "
        "gradients, or met the rounding or the range of the rows' precision; take a larger blur, or float64"
    )


class Problem:
    """What an implicit derivative is taken of."""

    def __init__(self, *arguments: Any) -> None:
        (self.x, self.y, self.a, self.b, self.x_offsets, self.y_offsets, self.segments) = arguments[:7]
        self.settings = Settings.unpacked(arguments[7])
        self.dtype = compute_dtype(self.x.dtype)
        self.tolerance = 1e-14 if self.dtype == torch.float64 else 1e-7
        self.sound = torch.ones(self.segments, dtype=torch.bool, device=self.x.device)

    def note(self, of_x: list[Tensor | None], of_y: list[Tensor | None]) -> None:
        """Segments in which one of these is not finite are not `sound`."""
        for given, rows, offsets in ((of_x, self.x, self.x_offsets), (of_y, self.y, self.y_offsets)):
            broken = torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
            for part in given:
                if part is not None and part.numel():
                    broken |= ~part.reshape(rows.shape[0], -1).isfinite().all(1)
            self.sound &= totals(broken.double(), offsets, self.segments) == 0

    def sides(self, f: Tensor, g: Tensor) -> tuple[Side, Side]:
        clouds = ((self.x, self.x_offsets, self.a, f), (self.y, self.y_offsets, self.b, g))
        first, second = (
            Side(
                rows,
                offsets,
                uniform(weights, rows, offsets, self.segments).double(),
                potential,
                self.settings.strength(i),
                self.segments,
            )
            for i, (rows, offsets, weights, potential) in enumerate(clouds)
        )
        return first, second

    def whole(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Potentials of self terms, zeros in place of those that there are not."""
        return (
            f if f.numel() else f.new_zeros(self.x.shape[0]),
            g if g.numel() else g.new_zeros(self.y.shape[0]),
        )

    def hessian(
        self, f: Tensor, g: Tensor, terms: int, tangents: list[Tensor | None], need: int
    ) -> tuple[Tensor, ...]:
        """Of -eps sum_ij a_i b_j S_ij, or of halves of eps times the sums of the self terms."""
        eps = self.settings.eps
        row = torch.zeros(3, dtype=torch.float64, device=self.x.device)
        for i, (term, coefficient) in enumerate(((XX, eps / 2), (XY, -eps), (YY, eps / 2))):
            if terms & term:
                row[i].fill_(coefficient)
        return _sums.hessian_product(
            self.x,
            self.y,
            self.a,
            self.b,
            self.x_offsets,
            self.y_offsets,
            self.segments,
            row.expand(self.segments, 3),
            self.settings.bandwidth(self.segments, self.x.device),
            f / eps,
            g / eps,
            *self.settings.kernel,
            terms,
            *[None if tangent is None else tangent.to(self.dtype) for tangent in tangents],
            need,
        )

    def cotangents(
        self,
        f: Tensor,
        g: Tensor,
        terms: int,
        sides: tuple[Side, Side],
        bars: list[Tensor | None],
        moved: Any,
    ) -> list[Tensor]:
        """Of the potentials: what arrived, and what comes through the derivatives by the points."""
        total = [
            torch.zeros_like(s.weights) if bar is None else bar.double()
            for s, bar in zip(sides, bars, strict=True)
        ]
        if any(tangent is not None for tangent in moved):
            need = (A if sides[0].potential.numel() else 0) | (B if sides[1].potential.numel() else 0)
            through = self.hessian(f, g, terms, [*moved, None, None], need)[2:]
            for i, side in enumerate(sides):
                if through[i].numel():
                    total[i] = total[i] + side.weights * through[i].double() / self.settings.eps
        return total


class Equations:
    """M of the potentials of x with y, or of one cloud with itself, ready to be solved with."""

    def __init__(self, problem: Problem, *sides: Side) -> None:
        self.settings, self.problem, self.sides = problem.settings, problem, sides
        x, y = self.x, self.y = sides[0], sides[-1]
        diagonals = [
            side.kept() + self.product(i, other.weights) for i, side, other in ((0, x, y), (1, y, x))
        ]
        # 0 in segments without rows on the other side
        self.d_x, self.d_y = (torch.where(d == 0, 1.0, d) for d in diagonals)

    def product(self, side: int, v: Tensor) -> Tensor:
        """S v / eps for v of the other side."""
        rows, columns = (self.x, self.y) if side == 0 else (self.y, self.x)
        return _product(self.settings, rows, columns, v)

    def solve(self, right_x: Tensor, right_y: Tensor) -> tuple[Tensor, Tensor]:
        """M z = right; one right-hand side of a self term serves as both."""
        x, y, d_x, d_y = self.x, self.y, self.d_x, self.d_y
        tolerance, sound = self.problem.tolerance, self.problem.sound
        if len(self.sides) == 1:

            def own(z: Tensor) -> Tensor:
                return z + self.product(0, x.weights * z) / d_x

            z = conjugate_gradient(own, right_x / d_x, x, x.weights * d_x, False, tolerance, sound)
            z = (right_x - self.product(0, x.weights * z)) / d_x  # reaches rows of weight zero
            return z, z

        def reduced(z: Tensor) -> Tensor:
            return z - self.product(0, y.weights / d_y * self.product(1, x.weights * z)) / d_x

        right = (right_x - self.product(0, y.weights * right_y / d_y)) / d_x
        singular = self.settings.balanced
        z_x = conjugate_gradient(reduced, right, x, x.weights * d_x, singular, tolerance, sound)
        z_y = (right_y - self.product(1, x.weights * z_x)) / d_y
        return (right_x - self.product(0, y.weights * z_y)) / d_x, z_y

    def transposed(self, q_x: Tensor, q_y: Tensor) -> tuple[Tensor, Tensor]:
        """M' l = q."""
        z_x, z_y = self.solve(-self.product(0, q_y / self.d_y), -self.product(1, q_x / self.d_x))
        return q_x / self.d_x + self.x.weights * z_x, q_y / self.d_y + self.y.weights * z_y
