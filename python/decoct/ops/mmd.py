"""Squared maximum mean discrepancy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from decoct.kernels import Kernel, KernelSpec, Linear, Polynomial, resolve
from decoct.ops._backend import XX, XY, YY, A, B, X, Y
from decoct.ops._problem import (
    Offsets,
    Problem,
    check_tensor,
    fixed_bandwidth,
    needs_bandwidth_gradient,
    prepare,
    resolve_bandwidth,
)
from decoct.ops._segment_ops import segment_sums
from decoct.ops._sums import kernel_sums
from decoct.ops._transforms import needs_gradient, public

__all__ = ["mmd", "pair_sums", "row_sums"]

Estimator = Literal["biased", "unbiased"]


@public
def mmd(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | str = "gaussian",
    bandwidth: float | Tensor | Literal["mean", "median"] = "mean",
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    x_offsets: Offsets = None,
    y_offsets: Offsets = None,
    estimator: Estimator = "biased",
    xx: Tensor | Literal[False] | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy of two weighted clouds, one value for each segment.

    Equivalent to, but for memory, which is O(N + M)::

        K(x, x).mean() - 2 * K(x, y).mean() + K(y, y).mean()

    and with weights ``a @ K(x, x) @ a - 2 * a @ K(x, y) @ b + b @ K(y, y) @ b``. GeomLoss gives half of it.

    Parameters
    ----------
    x, y : (N, D) and (M, D) for a scalar; (B, N, D) and (B, M, D) for (B,); packed rows with ``x_offsets``
        and ``y_offsets`` for (C,); jagged nested tensors (eager mode) for (C,). Real rows first, synthetic
        second. float64, float32, float16 or bfloat16; mixed ones promote.
    kernel : name or object of :mod:`decoct.kernels`, where each formula is given.
    bandwidth : the length s of the kernel, in the units of the rows. A positive number; a tensor, () or one
        per segment; ``"mean"``: 2 s^2 is the mean squared distance over ordered pairs i != j of the segment's
        pooled rows; ``"median"``: 2 s^2 is the median one (the lower of two middle values), exact up to 4096
        pooled rows, beyond that over every ceil(n / 4096)-th row. Both rules ignore weights, are constants
        for autograd, and take 1e-10 for a smaller 2 s^2. Ignored by the energy, polynomial and linear
        kernels.
    a, b : weights of the rows, (N,) and (M,) or (B, N) and (B, M), used as given; by default 1 / rows of the
        segment.
    x_offsets, y_offsets : int64 (C + 1,) tensor, list or :class:`decoct.Segments`: segment c of x is rows
        ``x_offsets[c]:x_offsets[c + 1]``. Segments may be of any length; one that is empty on either side
        gives 0.
    estimator : ``"biased"`` as above (never negative but for rounding), or ``"unbiased"``, which leaves out
        the pairs of a row with itself: the sum of a_i a_j k(x_i, x_j) over i != j, times A^2 / (A^2 - sum_i
        a_i^2) with A = sum_i a_i; with uniform weights the mean over i != j. Likewise for y.
    xx : the real-real term. None: computed. A tensor of the result's shape: that value. False: left out; it
        is most of the work and has no gradient in y.

    Returns
    -------
    float32, or float64 if anything passed is float64.

    Gradients
    ---------
    First and second order in x, y, a, b and a tensor bandwidth; a third order raises. In the dtype of each
    input. A pair at distance zero has no gradient for a radial kernel, nor a second derivative for laplacian
    and energy. A row with NaN or Inf makes its own segment NaN.

    Raises
    ------
    TypeError
        A dtype that is not floating, or an argument of the wrong kind.
    ValueError
        Shapes, offsets, devices or values that do not fit; one row in a segment with ``"unbiased"``; a tensor
        ``xx`` with a bandwidth rule; ``xx`` cached or left out while x, a or the bandwidth needs a gradient.
    RuntimeError
        No kernels for the device in this build.

    References
    ----------
    Gretton et al., A kernel two-sample test, JMLR 13 (2012), equations 3 and 5.
    """
    kernel = resolve(kernel, "mmd")
    problem = prepare("mmd", x, y, a, b, x_offsets, y_offsets)
    if estimator not in ("biased", "unbiased"):
        raise ValueError(f"mmd: estimator must be 'biased' or 'unbiased', got {estimator!r}")
    _check_xx(problem, kernel, bandwidth, xx)
    with_xx = xx is None
    if estimator == "unbiased":
        _check_lengths(problem, with_xx)
    if isinstance(kernel, Linear):
        value = _linear(problem, estimator, with_xx)
    else:
        problem, length = resolve_bandwidth(problem, kernel, bandwidth)
        compute = _biased if estimator == "biased" else _unbiased
        value = compute(problem, kernel, length, with_xx)
    if isinstance(xx, Tensor):
        value = problem.zero_if_empty(value + xx.to(torch.float64).reshape(problem.segments))
    return problem.finish(value)


def _check_xx(problem: Problem, kernel: Kernel, bandwidth: Any, xx: Any) -> None:
    if xx is None:
        return
    if xx is not False and not isinstance(xx, Tensor):
        raise TypeError(f"mmd: xx must be None, False or a tensor, got {type(xx).__name__}")
    shown = "False" if xx is False else "a tensor"
    if xx is not False:
        check_tensor("mmd", "xx", xx, problem.x.device)
        if tuple(xx.shape) != problem.shape:
            raise ValueError(f"mmd: xx must be {problem.shape}, one for each segment, got {tuple(xx.shape)}")
        if isinstance(bandwidth, str) and kernel.uses_bandwidth:
            raise ValueError(
                f'mmd: xx must be None or False with bandwidth "{bandwidth}", which changes with y, '
                "got a tensor"
            )
    for name, needed in (
        ("x", needs_gradient(problem.x)),
        ("a", needs_gradient(problem.a)),
        ("bandwidth", kernel.uses_bandwidth and needs_bandwidth_gradient(bandwidth)),
    ):
        if needed:
            raise ValueError(f"mmd: xx must be None while {name} needs a gradient, got {shown}")


def _check_lengths(problem: Problem, with_xx: bool) -> None:
    """An unbiased estimate needs two rows. Offsets are data, so under torch.compile such a segment gives
    NaN."""
    sides = [("y", problem.y, problem.y_offsets)]
    if with_xx:
        sides.insert(0, ("x", problem.x, problem.x_offsets))
    for name, rows, offsets in sides:
        if offsets is None:
            single = [0] if problem.segments and rows.shape[0] == problem.segments else []
        elif torch.compiler.is_compiling():
            single = []
        else:
            single = (offsets.diff() == 1).nonzero()[:, 0].tolist()
        if single:
            raise ValueError(
                f'mmd: {name} must have at least 2 rows in each segment with estimator="unbiased", '
                f"got 1 in segment {single[0]}"
            )


def pair_sums(
    problem: Problem, spec: KernelSpec, bandwidth: Tensor | None, coefficients: Tensor, terms: int
) -> Tensor:
    """Float64 (C,) value of the sums that `terms` selects, with the gradients that are needed of this
    problem."""
    x, y, a, b = problem.x, problem.y, problem.a, problem.b
    wanted = ((X, x), (Y, y), (A, a), (B, b))
    need = sum(bit for bit, tensor in wanted if needs_gradient(tensor))
    outputs = kernel_sums(
        x,
        y,
        a,
        b,
        problem.x_offsets,
        problem.y_offsets,
        problem.segments,
        coefficients,
        bandwidth,
        None,
        None,
        *spec.packed(),
        terms,
        need,
    )
    return outputs[0]


def _biased(problem: Problem, kernel: Kernel, bandwidth: Tensor | None, with_xx: bool) -> Tensor:
    spec = kernel.spec(problem.x.shape[1])
    coefficients = problem.constant(1.0 if with_xx else 0.0, -2.0, 1.0)
    return pair_sums(problem, spec, bandwidth, coefficients, (XX if with_xx else 0) | XY | YY)


def _total(values: Tensor, offsets: Tensor | None, segments: int) -> Tensor:
    """Float64 sums (C,) of row values (N,) over the segments."""
    column = values.to(torch.float64)[:, None]
    return segment_sums(column, torch.ones_like(column[:, 0]), offsets, segments)[:, 0]


def _side(problem: Problem, side: str) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Rows, weights, offsets and lengths of one cloud."""
    counts = problem.counts()
    if side == "x":
        return problem.x, problem.a, problem.x_offsets, counts[0]
    return problem.y, problem.b, problem.y_offsets, counts[1]


def _ratio(problem: Problem, side: str) -> Tensor:
    """A^2 / (A^2 - sum a_i^2) of each segment; n / (n - 1) with uniform weights; 0 without rows."""
    _, weights, offsets, count = _side(problem, side)
    if weights is None:
        return count / torch.where(count > 0, count - 1, 1.0)
    total = _total(weights, offsets, problem.segments).square()
    rest = total - _total(weights.to(torch.float64).square(), offsets, problem.segments)
    return total / torch.where(count > 0, rest, 1.0)


def _diagonal(problem: Problem, kernel: Kernel, side: str) -> Tensor:
    """sum_i a_i^2 k(x_i, x_i) of each segment."""
    rows, weights, offsets, count = _side(problem, side)
    squares = None if weights is None else weights.to(torch.float64).square()
    if kernel.translation_invariant:
        mass = 1 / count.clamp(min=1) if squares is None else _total(squares, offsets, problem.segments)
        return mass * kernel.at_zero
    norms = rows.to(torch.float64).square().sum(-1)
    if isinstance(kernel, Polynomial):
        spec = kernel.spec(rows.shape[1])
        norms = (spec.parameter * norms + spec.offset) ** spec.degree
    if squares is None:
        return _total(norms, offsets, problem.segments) / count.clamp(min=1).square()
    return _total(squares * norms, offsets, problem.segments)


def _unbiased(problem: Problem, kernel: Kernel, bandwidth: Tensor | None, with_xx: bool) -> Tensor:
    spec = kernel.spec(problem.x.shape[1])
    ratio_y = _ratio(problem, "y")
    ratio_x = _ratio(problem, "x") if with_xx else torch.zeros_like(ratio_y)
    if needs_gradient(problem.a) or needs_gradient(problem.b):
        # The ratios depend on the weights: each term is its own op, and torch differentiates the products.
        # Rows of half precision are widened first: the terms' gradients cancel before they are rounded.
        problem = replace(problem, x=problem.x.to(problem.dtype), y=problem.y.to(problem.dtype))
        bandwidth = fixed_bandwidth(problem, bandwidth)
        value = -2 * pair_sums(problem, spec, bandwidth, problem.constant(0.0, 1.0, 0.0), XY)
        value = value + ratio_y * pair_sums(problem, spec, bandwidth, problem.constant(0.0, 0.0, 1.0), YY)
        if with_xx:
            value = value + ratio_x * pair_sums(problem, spec, bandwidth, problem.constant(1.0, 0.0, 0.0), XX)
    else:
        coefficients = torch.stack([ratio_x, torch.full_like(ratio_y, -2.0), ratio_y], 1)
        value = pair_sums(problem, spec, bandwidth, coefficients, (XX if with_xx else 0) | XY | YY)
    value = value - ratio_y * _diagonal(problem, kernel, "y")
    if with_xx:
        value = value - ratio_x * _diagonal(problem, kernel, "x")
    return problem.zero_if_empty(value)


def row_sums(problem: Problem) -> tuple[Tensor, Tensor]:
    """Weighted sums of the rows of x and of y, float64 (C, D); all NaN where a row of either is not
    finite."""
    sum_x = segment_sums(problem.x, problem.a, problem.x_offsets, problem.segments).to(torch.float64)
    sum_y = segment_sums(problem.y, problem.b, problem.y_offsets, problem.segments).to(torch.float64)
    one_or_nan = 1 + 0 * (sum_x.detach() + sum_y.detach()).sum(-1, keepdim=True)
    return sum_x * one_or_nan, sum_y * one_or_nan


def _linear(problem: Problem, estimator: str, with_xx: bool) -> Tensor:
    """From the weighted sums of the rows, O((N + M) D)."""
    sum_x, sum_y = row_sums(problem)
    if estimator == "biased" and with_xx:
        value = (sum_x - sum_y).square().sum(-1)
    elif estimator == "biased":
        value = (sum_y * (sum_y - 2 * sum_x)).sum(-1)
    else:
        kernel = Linear()
        value = -2 * (sum_x * sum_y).sum(-1)
        yy = sum_y.square().sum(-1) - _diagonal(problem, kernel, "y")
        value = value + _ratio(problem, "y") * yy
        if with_xx:
            xx = sum_x.square().sum(-1) - _diagonal(problem, kernel, "x")
            value = value + _ratio(problem, "x") * xx
    return problem.zero_if_empty(value)
