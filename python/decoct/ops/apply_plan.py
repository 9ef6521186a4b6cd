"""Product of an entropic transport plan and vectors, without the plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decoct.ops._plan import Settings, plan_product, uniform
from decoct.ops._problem import Offsets, Problem, check_tensor, is_nested, prepare
from decoct.ops._transforms import public
from decoct.ops._transport import Cost, check_blur, check_cost, check_labels, normalised
from decoct.ops.sinkhorn import SinkhornSolution

__all__ = ["apply_plan"]

OP = "apply_plan"


@public
def apply_plan(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    solution: SinkhornSolution | None = None,
    *,
    f: Tensor | None = None,
    g: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    x_offsets: Offsets = None,
    y_offsets: Offsets = None,
    p: int = 2,
    cost: Cost = "euclidean",
    blur: float = 0.05,
    x_labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    label_cost: Tensor | None = None,
    transpose: bool = False,
    normalize: bool = False,
) -> Tensor:
    """``plan @ v`` inside each segment: marginals, labels carried over, barycentric maps.

    Equivalent to, in O(N + M) memory::

        plan = a[:, None] * b * torch.exp((f[:, None] + g - C) / eps)
        plan @ v

    Parameters
    ----------
    v : (M,) or (M, E), with batches (B, M) or (B, M, E); rows belong to those of ``y``, with ``transpose`` to
        those of ``x``.
    solution : what :func:`decoct.sinkhorn_potentials` returned for the same rows, or else
    f, g : its potentials.
    x, y, a, b, x_offsets, y_offsets, p, cost, blur, x_labels, y_labels, label_cost : those that were
        solved; see :func:`decoct.sinkhorn_divergence`.
    transpose : ``plan.T @ v``.
    normalize : divide each row by the row's sum of the plan. ``apply_plan(x, y, y, solution,
        normalize=True)`` is the barycentric map of x to y; it is defined for rows of weight zero too.

    Returns
    -------
    (N,) or (N, E), with batches (B, N) or (B, N, E), and of M rows with ``transpose``; nested if these rows
    are. float32, or float64 if anything passed is float64; float16 and bfloat16 are accumulated in float32.
    Rows whose segment is empty on the other side are 0.

    Gradients
    ---------
    First and second order in x, y, v, a, b, f and g; a third order by the rows raises. Potentials that carry
    their own dependence on rows and weights pass first derivatives on to these; second derivatives through
    potentials are not offered and raise, so detach them where a second order is asked for. With labels,
    ``label_cost`` has no gradient. A row with NaN or Inf makes its own segment NaN.

    Raises
    ------
    TypeError
        A dtype that is not floating, or an argument of the wrong kind; neither ``solution`` nor f and g, or
        both.
    ValueError
        Shapes, offsets, devices or values that do not fit; a ``label_cost`` that needs a gradient.
    RuntimeError
        No kernels for the device in this build; derivatives that are not offered.

    References
    ----------
    Cuturi, Sinkhorn distances: lightspeed computation of optimal transport, NeurIPS 2013, for the plan;
    Ferradans et al., Regularized discrete optimal transport, SIAM Journal on Imaging Sciences 2014, for the
    barycentric map; Alvarez-Melis and Fusi, Geometric dataset distances via optimal transport, NeurIPS 2020,
    arXiv 2002.02923, for ``label_cost``.
    """
    if solution is not None:
        if not isinstance(solution, SinkhornSolution):
            raise TypeError(f"{OP}: solution must be a SinkhornSolution, got {type(solution).__name__}")
        if f is not None or g is not None:
            raise TypeError(f"{OP}: f and g must be None with a solution")
        f, g = solution.f, solution.g
    elif f is None or g is None:
        raise TypeError(f"{OP}: solution must be given, or f and g, got None")
    problem = prepare(OP, x, y, a, b, x_offsets, y_offsets, others=tuple(filter(_is_tensor, (v, f, g))))
    check_cost(OP, p, cost)
    settings = Settings(int(p), check_blur(OP, blur, p))
    labels = check_labels(OP, x, y, x_labels, y_labels, label_cost)
    f, g = _potential(problem, "f", f, x), _potential(problem, "g", g, y)
    out_rows, in_rows, letter, side = (y, x, "N", "x") if transpose else (x, y, "M", "y")
    packed, columns = _vectors(problem, v, in_rows, letter, side)

    rows = [(problem.x, problem.x_offsets, f, problem.a), (problem.y, problem.y_offsets, g, problem.b)]
    if cost == "cosine":
        rows = [(normalised(points.to(problem.dtype)), *rest) for points, *rest in rows]  # type: ignore[misc]
    x_side, y_side = rows[::-1] if transpose else rows
    x_labels, y_labels, costs = labels
    if transpose:
        x_labels, y_labels = y_labels, x_labels
    out = _product(problem, settings, x_side, y_side, (x_labels, y_labels, costs), packed, normalize)
    out = (
        out.reshape(*out_rows.shape[:-1], *columns) if not is_nested(out_rows) else out.reshape(-1, *columns)
    )
    if not is_nested(out_rows):
        return out
    nested: Any = out_rows
    return torch.nested.nested_tensor_from_jagged(out, nested.offsets())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _potential(problem: Problem, name: str, potential: Any, rows: Tensor) -> Tensor:
    values = potential.values() if is_nested(potential) else potential
    check_tensor(OP, name, values, problem.x.device)
    shape = (rows.values() if is_nested(rows) else rows).shape[:-1]
    if values.shape != shape:
        side = "x" if name == "f" else "y"
        raise ValueError(
            f"{OP}: {name} must be {tuple(shape)} as the rows of {side}, got {tuple(values.shape)}"
        )
    flat: Tensor = values.reshape(-1).to(problem.dtype)
    return flat


def _vectors(
    problem: Problem, v: Any, rows: Tensor, letter: str, side: str
) -> tuple[Tensor, tuple[int, ...]]:
    """Packed (rows, E) vectors and the shape of their columns."""
    vectors = v.values() if is_nested(v) else v
    check_tensor(OP, "v", vectors, problem.x.device)
    lead = tuple((rows.values() if is_nested(rows) else rows).shape[:-1])
    if tuple(vectors.shape[: len(lead)]) != lead or vectors.dim() - len(lead) not in (0, 1):
        if len(lead) == 2:
            expected = f"(B, {letter}) or (B, {letter}, E) with B={lead[0]} and {letter}={lead[1]}"
        else:
            expected = f"({letter},) or ({letter}, E) with {letter}={lead[0]}"
        raise ValueError(f"{OP}: v must be {expected} as in {side}, got {tuple(vectors.shape)}")
    columns = tuple(vectors.shape[len(lead) :])
    count = problem.x.shape[0] if side == "x" else problem.y.shape[0]
    return vectors.to(problem.dtype).reshape(count, *(columns or (1,))), columns


def _product(
    problem: Problem, settings: Settings, x_side: Any, y_side: Any, labels: Any, v: Tensor, normalize: bool
) -> Tensor:
    (x, x_offsets, f, a), (y, y_offsets, g, b) = x_side, y_side
    x_labels, y_labels, costs = labels
    a = uniform(a, x, x_offsets, problem.segments)
    b = uniform(b, y, y_offsets, problem.segments)
    # The op takes potentials as constants: what they change is left to the weights, by factors of 1.
    left, right = (torch.exp((part - part.detach()) / settings.eps) for part in (f, g))
    columns = torch.cat([v, torch.ones_like(v[:, :1])], 1) if normalize else v
    out = plan_product(
        settings,
        x,
        y,
        x_offsets,
        y_offsets,
        problem.segments,
        x_labels,
        y_labels,
        costs,
        f.detach(),
        g.detach(),
        (b * right)[:, None] * columns,
    )
    if not normalize:
        return (a * left)[:, None] * out
    mass = out[:, -1:]
    return out[:, :-1] / torch.where(mass == 0, 1.0, mass)
