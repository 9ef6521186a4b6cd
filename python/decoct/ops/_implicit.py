"""The registered ops behind second derivatives of `sinkhorn` and derivatives of its potentials.

`sinkhorn_implicit` pulls cotangents back, `sinkhorn_pushed` pushes tangents forward, both by the equations of
_equations.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decoct.ops import _sums
from decoct.ops._backend import XX, XY, YY, A, B, X, Y
from decoct.ops._equations import Equations, Problem
from decoct.ops._registry import Op, refuse

__all__ = ["implicit", "pushed"]

_SCHEMA = (
    "Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? x_offsets, Tensor? y_offsets, SymInt segments, "
    "Tensor f, Tensor g, Tensor f_self, Tensor g_self, "
    "Tensor? f_bar, Tensor? g_bar, Tensor? f_self_bar, Tensor? g_self_bar, "
    "Tensor? tangent_x, Tensor? tangent_y, float[] numbers, int terms, int need"
)
_LAYOUT = "rrrroosrrrrrrrrrr---"
_PUSHED_SCHEMA = (
    "Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? x_offsets, Tensor? y_offsets, SymInt segments, "
    "Tensor f, Tensor g, Tensor f_self, Tensor g_self, "
    "Tensor? tangent_x, Tensor? tangent_y, Tensor? tangent_a, Tensor? tangent_b, "
    "float[] numbers, int terms, int need"
)
_PUSHED_LAYOUT = "rrrroosrrrrrrrr---"
_no_third = refuse("sinkhorn has first and second derivatives; a third one is not offered")


def _cross(
    problem: Problem, f: Tensor, g: Tensor, bars: list[Tensor | None], moved: Any, need: int
) -> list[Any]:
    x, y = problem.sides(f, g)
    q_x, q_y = problem.cotangents(f, g, XY, (x, y), bars, moved)
    along_weights: list[Tensor] = []
    if problem.settings.balanced:
        # The potentials are those with a @ f == b @ g: see _centre in _sinkhorn.py.
        mass = x.total(x.weights) + y.total(y.weights)
        sums = [
            torch.zeros_like(mass) if b is None else s.total(b.double())
            for s, b in ((x, bars[0]), (y, bars[1]))
        ]
        gap = (sums[0] - sums[1]) / torch.where(mass == 0, 1.0, mass)
        q_x, q_y = q_x - x.weights * x.spread(gap), q_y + y.weights * y.spread(gap)
        along_weights = [-x.spread(gap) * f, y.spread(gap) * g]
    tangents = [part / problem.settings.eps for part in Equations(problem, x, y).transposed(q_x, q_y)]
    result = list(problem.hessian(f, g, XY, [*moved, *tangents], need))
    for i, extra in enumerate(along_weights):
        if need & (A, B)[i]:
            result[2 + i] = result[2 + i] + extra.to(problem.dtype)
    return result


def _own(
    problem: Problem, f: Tensor, g: Tensor, terms: int, bars: list[Tensor | None], moved: Any, need: int
) -> list[Any]:
    """Of the self terms that there are."""
    whole = problem.whole(f, g)
    sides = problem.sides(*whole)
    cotangents = problem.cotangents(whole[0], whole[1], terms, sides, bars, moved)
    tangents: list[Tensor | None] = [None, None]
    for i, (side, q) in enumerate(zip(sides, cotangents, strict=True)):
        if terms & (XX, YY)[i]:
            tangents[i] = -Equations(problem, side).transposed(q, q)[0] / problem.settings.eps
    return list(problem.hessian(whole[0], whole[1], terms, [*moved, *tangents], need))


def _implementation(*arguments: Any) -> tuple[Tensor, ...]:
    f, g, f_self, g_self, *bars, numbers, terms, need = arguments[7:]
    if 0 in (arguments[0].shape[0], arguments[1].shape[0]):
        return tuple(part.zero_() for part in _sums.outputs_for(arguments[0], arguments[1], need))
    problem = Problem(*arguments[:7], numbers)
    problem.note([f, problem.a, *bars[0::2]], [g, problem.b, *bars[1::2]])
    moved = bars[4:]
    result = _cross(problem, f, g, bars[:2], moved, need)
    own = terms & (XX | YY)
    if own:
        parts = _own(problem, f_self, g_self, own, bars[2:4], moved, need)
        result = [
            total + part if need >> bit & 1 else total
            for bit, (total, part) in enumerate(zip(result, parts, strict=True))
        ]
    return tuple(result)


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(_sums.outputs_for(arguments[0], arguments[1], arguments[-1]))


implicit = Op(
    f"sinkhorn_implicit({_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
    _implementation,
    _fake,
    backward=_no_third,
    jvp=_no_third,
    vmap=_LAYOUT,
)
"""Cotangents of x, y, a and b from those of the potentials and of the derivatives by the points."""


def _pushed_implementation(*arguments: Any) -> tuple[Tensor, ...]:
    f, g, f_self, g_self, *tangents, numbers, terms, need = arguments[7:]
    x, y = arguments[:2]
    problem = Problem(*arguments[:7], numbers)
    problem.note([f, problem.a, *tangents[0::2]], [g, problem.b, *tangents[1::2]])
    eps = problem.settings.eps
    outputs = list(_pushed_fake(*arguments))
    if 0 in (x.shape[0], y.shape[0]):
        return tuple(part.zero_() for part in outputs)
    points, weights = tangents[:2], tangents[2:]

    def moved_weights(sides: Any, potentials: tuple[Tensor, Tensor]) -> list[Tensor | None]:
        along = [s.weights * p / eps for s, p in zip(sides, potentials, strict=True)]
        return [part if w is None else part + w for part, w in zip(along, weights, strict=True)]

    sides = problem.sides(f, g)
    right = [part.double() / eps for part in problem.hessian(f, g, XY, tangents, A | B)[2:]]
    pushed = Equations(problem, *sides).solve(right[0], right[1])
    if problem.settings.balanced:
        mass = sides[0].total(sides[0].weights) + sides[1].total(sides[1].weights)
        sums = []
        for side, potential, change, w in zip(sides, (f, g), pushed, weights, strict=True):
            moved = side.weights * change
            sums.append(side.total(moved if w is None else moved + w * potential))
        gap = (sums[0] - sums[1]) / torch.where(mass == 0, 1.0, mass)
        pushed = pushed[0] - sides[0].spread(gap), pushed[1] + sides[1].spread(gap)
    gradients = problem.hessian(f, g, XY, [*points, *moved_weights(sides, pushed)], need)[:2]
    own = terms & (XX | YY)
    own_pushed = [f_self, g_self]
    if own:
        whole = problem.whole(f_self, g_self)
        sides = problem.sides(*whole)
        through = problem.hessian(*whole, own, tangents, A | B)[2:]
        for i, side in enumerate(sides):
            zero = torch.zeros_like(side.weights)
            load = -through[i].double() / eps
            own_pushed[i] = Equations(problem, side).solve(load, load)[0] if own & (XX, YY)[i] else zero
        more = problem.hessian(*whole, own, [*points, *moved_weights(sides, tuple(own_pushed))], need)[:2]
        gradients = tuple(one + other for one, other in zip(gradients, more, strict=True))
    found = [*pushed, *own_pushed, *gradients]
    return tuple(part.to(out.dtype) if out.numel() else out for part, out in zip(found, outputs, strict=True))


def _pushed_fake(*arguments: Any) -> tuple[Tensor, ...]:
    x, y, potentials = arguments[0], arguments[1], arguments[7:11]
    return *(torch.empty_like(part) for part in potentials), *_sums.outputs_for(
        x, y, arguments[-1] & (X | Y)
    )[:2]


pushed = Op(
    f"sinkhorn_pushed({_PUSHED_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _pushed_implementation,
    _pushed_fake,
    backward=_no_third,
    jvp=_no_third,
    vmap=_PUSHED_LAYOUT,
)
"""Tangents of the potentials and of the derivatives by the points from those of x, y, a and b."""
