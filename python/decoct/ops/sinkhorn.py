"""Entropic optimal transport between two weighted clouds."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from decoct.ops._backend import XX, XY, YY
from decoct.ops._problem import Offsets, Problem, check_tensor, is_nested
from decoct.ops._transforms import needs_gradient, public
from decoct.ops._transport import Cost, Reach, transport

__all__ = ["SinkhornSolution", "sinkhorn_divergence", "sinkhorn_potentials"]

ENOUGH = 1e-3


class SinkhornSolution(NamedTuple):
    """What :func:`sinkhorn_potentials` returns; :func:`apply_plan` and ``start`` take it."""

    value: Tensor
    f: Tensor
    g: Tensor
    f_self: Tensor | None
    g_self: Tensor | None
    error: Tensor
    iterations: Tensor
    converged: Tensor


@public
def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    x_offsets: Offsets = None,
    y_offsets: Offsets = None,
    p: int = 2,
    cost: Cost = "euclidean",
    blur: float = 0.05,
    reach: Reach = None,
    diameter: float | None = None,
    scaling: float = 0.5,
    debias: bool = True,
    tol: float | None = None,
    max_iterations: int | None = None,
    xx: Tensor | Literal[False] | None = None,
    x_labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    label_cost: Tensor | None = None,
    mass: float | None = None,
    start: SinkhornSolution | None = None,
    cost_budget: int = 0,
) -> Tensor:
    """Sinkhorn divergence, or entropic transport cost, of two weighted clouds, one value for each segment.

    Equivalent to, but for memory, which is O(N + M)::

        OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2

    with, where ``C[i, j] = |x_i - y_j|^p / p`` and ``eps = blur^p``, at the fixed point of the last two
    lines ::

        OT = a @ f + b @ g
        f = -eps * torch.logsumexp(b.log() + (g - C) / eps, 1)
        g = -eps * torch.logsumexp(a.log() + (f - C.T) / eps, 1)

    Names, meanings and defaults are those of GeomLoss's ``SamplesLoss("sinkhorn")``. Its iteration is too:
    both potentials are updated at once and averaged with their old values while eps falls from
    ``diameter^p`` to ``blur^p`` by ``scaling^p`` a step; the last step is taken whole.

    Parameters
    ----------
    x, y : (N, D) and (M, D) for a scalar; (B, N, D) and (B, M, D) for (B,); packed rows with ``x_offsets``
        and ``y_offsets`` for (C,); jagged nested tensors (eager mode) for (C,). Real rows first, synthetic
        second. float64, float32, float16 or bfloat16; mixed ones promote.
    a, b : weights of the rows, (N,) and (M,) or (B, N) and (B, M), used as given; by default 1 / rows of the
        segment. Both must have the same total, unless ``reach`` or ``mass`` is given, and none may be
        negative: checked on the CPU, outside of transforms and compilers.
    x_offsets, y_offsets : int64 (C + 1,) tensor, list or :class:`decoct.Segments`: segment c of x is rows
        ``x_offsets[c]:x_offsets[c + 1]``. A segment that is empty on either side gives 0.
    p : 2 for the cost |x - y|^2 / 2, 1 for |x - y|.
    cost : ``"euclidean"``, or with p=2 ``"cosine"``: rows are normalised first, which makes it 1 - cos; a
        row of zeros stays one, however long or short the others are.
    blur : the length at which mass is spread out, in the units of the rows: eps = blur^p. Potentials are
        differences of numbers of eps: far above the rows' diameter rounding takes the value, at p=2 in
        float32 a hundredth of the largest cost at 200 diameters. With a ``diameter`` more than that raises.
    reach : None keeps both marginals. A length relaxes them: the marginals of the plan pay rho = reach^p
        times their Kullback-Leibler divergence from a and b, and ``a @ f`` becomes ``(rho + eps / 2) * a @
        (1 - exp(-f / rho))``. A pair (reach_x, reach_y) does so for each side, None in it keeps that one.
    diameter : the length at which eps begins; None: of the box around each segment's rows.
    scaling : between 0 and 1; nearer to 1 is slower and closer to convergence.
    debias : whether OT(x, x) / 2 and OT(y, y) / 2 are taken off.
    tol : go on at eps = blur^p until no marginal is missed by more than this share of its mass. Below
        float64 the rounding of exponents leaves about 2^-23 / 16 times the largest cost over eps: a ``tol``
        below 1e-6 raises, and with a ``diameter`` one below 2^-23 / 16 * diameter^p / p / eps. What else is
        out of reach ends at ``max_iterations``, and :func:`decoct.sinkhorn_potentials` tells.
    max_iterations : a cap on the iterations; by default 1000 with ``tol``, else those of the annealing. Four
        are made at least: two at the diameter, two at blur^p; with ``start`` the last two.
    xx : OT(x, x). None: computed. A tensor of the result's shape: that value, ``sinkhorn_divergence(x, x,
        debias=False)``. False: left out.
    x_labels, y_labels, label_cost : int (N,) and (M,), and (L, L): ``label_cost[l_i, l_j]`` is added to the
        cost of a pair; symmetric.
    mass : partial transport of this mass, at most the lesser total; needs ``debias=False`` and no reach. With
        h, the multiplier of the mass, the value is ``a @ (f - h) + b @ g + mass * h``, f - h and g at most 0.
        Goes on to a ``tol`` of 1e-3 if none is given, for annealing alone ends far from the solution.
    start : potentials to start from, in the shapes returned; then eps is blur^p at once.
    cost_budget : bytes that may hold the products of a segment's rows, which are otherwise made again in each
        iteration. 0 keeps those that fit in a cache or take little more than the rows.

    Returns
    -------
    float32, or float64 if anything passed is float64.

    Gradients
    ---------
    First and second order in x, y, a and b; a third order raises. The first order is the one of a converged
    problem at the potentials found (envelope theorem), the second order comes from the equations that
    potentials solve, by conjugate gradients in O(N + M) memory: ask for a ``tol`` where it matters. A
    gradient by the weights of a problem that keeps both marginals is known up to a constant. At distance
    zero the cost of p=1 has no gradient. No second order with ``mass`` or labels: it raises. Forward mode
    pushes a tangent once, over no or one reverse mode; alone it takes no equations, and so goes with ``mass``
    and labels. A row with NaN or Inf makes its own segment NaN.

    Raises
    ------
    TypeError
        A dtype that is not floating, or an argument of the wrong kind.
    ValueError
        Shapes, offsets, devices or values that do not fit, totals of weights among them; a ``tol`` or
        ``blur`` that the dtype cannot give; ``xx`` cached or left out while x or a needs a gradient; a
        ``label_cost`` that needs one.
    RuntimeError
        No kernels for the device in this build; second derivatives whose equations do not converge.

    References
    ----------
    Feydy et al., Interpolating between optimal transport and MMD using Sinkhorn divergences, AISTATS 2019,
    equations 2 to 4 and 11; Sejourne et al., Sinkhorn divergences for unbalanced optimal transport, 2019, for
    ``reach``; Chapel et al., Partial optimal transport with applications on positive-unlabeled learning,
    NeurIPS 2020, for ``mass``; Alvarez-Melis and Fusi, Geometric dataset distances via optimal transport,
    NeurIPS 2020, arXiv 2002.02923, for ``label_cost``.
    """
    return divergence_of(
        "sinkhorn_divergence",
        x,
        y,
        False,
        a=a,
        b=b,
        x_offsets=x_offsets,
        y_offsets=y_offsets,
        p=p,
        cost=cost,
        blur=blur,
        reach=reach,
        diameter=diameter,
        scaling=scaling,
        debias=debias,
        tol=tol,
        max_iterations=max_iterations,
        xx=xx,
        x_labels=x_labels,
        y_labels=y_labels,
        label_cost=label_cost,
        mass=mass,
        start=start,
        cost_budget=cost_budget,
    )


def divergence_of(
    op: str,
    x: Tensor,
    y: Tensor,
    pooled: bool,
    *,
    a: Any = None,
    b: Any = None,
    x_offsets: Offsets = None,
    y_offsets: Offsets = None,
    xx: Any = None,
    x_labels: Any = None,
    y_labels: Any = None,
    label_cost: Any = None,
    start: Any = None,
    debias: bool,
    **options: Any,
) -> Tensor:
    """The value under the name of its caller. `pooled`: all segments begin at the diameter of the box around
    all."""
    made = transport(
        op,
        x,
        y,
        a=a,
        b=b,
        x_offsets=x_offsets,
        y_offsets=y_offsets,
        x_labels=x_labels,
        y_labels=y_labels,
        label_cost=label_cost,
        start=start,
        solution=SinkhornSolution,
        pooled=pooled,
        own_x=xx is None,
        debias=debias,
        **options,
    )
    problem = made.problem
    _check_xx(problem, debias, xx)
    terms = XY | (YY if debias else 0) | (XX if debias and xx is None else 0)
    value = made.solve(terms, value_only=True).value
    if isinstance(xx, Tensor):
        value = problem.zero_if_empty(value - xx.to(torch.float64).reshape(problem.segments) / 2)
    return problem.finish(value)


def _check_xx(problem: Problem, debias: bool, xx: Any) -> None:
    if xx is None:
        return
    op = problem.op
    if xx is not False and not isinstance(xx, Tensor):
        raise TypeError(f"{op}: xx must be None, False or a tensor, got {type(xx).__name__}")
    shown = "False" if xx is False else "a tensor"
    if xx is not False:
        check_tensor(op, "xx", xx, problem.x.device)
        if tuple(xx.shape) != problem.shape:
            raise ValueError(f"{op}: xx must be {problem.shape}, one for each segment, got {tuple(xx.shape)}")
    if not debias:
        raise ValueError(f"{op}: xx must be None with debias=False, got {shown}")
    for name, tensor in (("x", problem.x), ("a", problem.a)):
        if needs_gradient(tensor):
            raise ValueError(f"{op}: xx must be None while {name} needs a gradient, got {shown}")


@public
def sinkhorn_potentials(
    x: Tensor,
    y: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    x_offsets: Offsets = None,
    y_offsets: Offsets = None,
    p: int = 2,
    cost: Cost = "euclidean",
    blur: float = 0.05,
    reach: Reach = None,
    diameter: float | None = None,
    scaling: float = 0.5,
    debias: bool = True,
    tol: float | None = None,
    max_iterations: int | None = None,
    x_labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    label_cost: Tensor | None = None,
    mass: float | None = None,
    start: SinkhornSolution | None = None,
    cost_budget: int = 0,
) -> SinkhornSolution:
    """The potentials of entropic transport, and how well they solve it.

    Equivalent to the fixed point in :func:`decoct.sinkhorn_divergence`, in O(N + M) memory. With both
    marginals kept, (f + c, g - c) solves the problem as well: the ones returned have ``a @ f == b @ g``.

    Parameters, dtypes and errors are those of :func:`decoct.sinkhorn_divergence`.

    Returns
    -------
    value : what :func:`decoct.sinkhorn_divergence` returns.
    f, g : (N,) and (M,), with batches (B, N) and (B, M); nested if the rows are. With ``mass``, f holds the
        multiplier of the mass, which is the largest f unless all of x is sent.
    f_self, g_self : those of x and of y with itself, f == g there; None with ``debias=False``.
    error : by what share of its mass a marginal was missed before the last step, the worst of all terms, in
        the shape of ``value``.
    iterations : int64, in the same shape: of the term that took the most.
    converged : bool, in the same shape: ``error <= tol``; without a ``tol``, ``error <= 1e-3``.

    Gradients
    ---------
    ``value`` as :func:`decoct.sinkhorn_divergence`. The potentials have first derivatives in x, y, a and b,
    with respect to the equations that they solve; none with ``mass`` or labels, where asking for one
    raises. The others have none.
    """
    made = transport(
        "sinkhorn_potentials",
        x,
        y,
        a=a,
        b=b,
        x_offsets=x_offsets,
        y_offsets=y_offsets,
        p=p,
        cost=cost,
        blur=blur,
        reach=reach,
        diameter=diameter,
        scaling=scaling,
        debias=debias,
        tol=tol,
        max_iterations=max_iterations,
        x_labels=x_labels,
        y_labels=y_labels,
        label_cost=label_cost,
        mass=mass,
        start=start,
        cost_budget=cost_budget,
        solution=SinkhornSolution,
        pooled=False,
    )
    problem = made.problem
    solved = made.solve(XY | (XX | YY if debias else 0))

    def shaped(potential: Tensor, rows: Tensor) -> Tensor:
        if is_nested(rows):
            nested: Any = rows
            return torch.nested.nested_tensor_from_jagged(potential, nested.offsets())
        return potential.reshape(rows.shape[:-1])

    return SinkhornSolution(
        problem.finish(solved.value),
        shaped(solved.f, x),
        shaped(solved.g, y),
        shaped(solved.f_self, x) if debias else None,
        shaped(solved.g_self, y) if debias else None,
        problem.finish(solved.error),
        solved.iterations.reshape(problem.shape),
        (solved.error <= (ENOUGH if tol is None else tol)).reshape(problem.shape),
    )
