"""Product of a kernel matrix and vectors, without the matrix."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from decoct.kernels import Kernel, resolve
from decoct.ops._matvec import matvec
from decoct.ops._problem import Offsets, check_tensor, fixed_bandwidth, is_nested, prepare, resolve_bandwidth
from decoct.ops._transforms import public

__all__ = ["kernel_matvec"]


@public
def kernel_matvec(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    kernel: Kernel | str = "gaussian",
    bandwidth: float | Tensor | Literal["mean", "median"] = "mean",
    *,
    x_offsets: Offsets = None,
    y_offsets: Offsets = None,
) -> Tensor:
    """``K(x, y) @ v`` inside each segment: witness functions, densities, herding, kernel ridge.

    Equivalent to ``K(x, y) @ v`` with ``K[i, j] = k(x_i, y_j)``, in O(N + M) memory.

    Parameters
    ----------
    v : (M,) or (M, E), with batches (B, M) or (B, M, E); rows belong to those of ``y``.
    x, y, kernel, bandwidth, x_offsets, y_offsets : as in :func:`decoct.mmd`; "mean" and "median" take the
        pooled rows of x and y.

    Returns
    -------
    (N,) or (N, E), with batches (B, N) or (B, N, E); nested if ``x`` is. float32, or float64 if anything
    passed is float64. Rows whose segment of ``y`` is empty are 0.

    Gradients
    ---------
    First and second order in x, y, v and a tensor bandwidth; a third order by the rows raises. The backward
    pass takes one sweep over the pairs for v and one for each column of ``v`` for x and y.

    Errors are those of :func:`decoct.mmd`.
    """
    op = "kernel_matvec"
    kernel = resolve(kernel, op)
    nested: Any = x if is_nested(x) else None
    vectors = v.values() if is_nested(v) else v
    problem = prepare(
        op, x, y, None, None, x_offsets, y_offsets, others=(v if isinstance(v, Tensor) else None,)
    )
    check_tensor(op, "v", vectors, problem.x.device)
    batched = nested is None and x.dim() == 3
    lead = tuple(y.shape[:2]) if batched else (problem.y.shape[0],)
    if tuple(vectors.shape[: len(lead)]) != tuple(lead) or vectors.dim() - len(lead) not in (0, 1):
        expected = (
            f"(B, M) or (B, M, E) with B={lead[0]} and M={lead[1]}"
            if batched
            else f"(M,) or (M, E) with M={lead[0]}"
        )
        raise ValueError(f"{op}: v must be {expected} as in y, got {tuple(vectors.shape)}")
    columns = vectors.shape[len(lead) :]
    packed = vectors.to(problem.dtype).reshape(problem.y.shape[0], *(columns or (1,)))

    problem, length = resolve_bandwidth(problem, kernel, bandwidth)
    out = matvec(
        problem.x,
        problem.y,
        packed,
        problem.x_offsets,
        problem.y_offsets,
        problem.segments,
        fixed_bandwidth(problem, length),
        None,
        None,
        *kernel.spec(problem.x.shape[1]).packed(),
    )
    out = out.reshape(*x.shape[:2], *columns) if batched else out.reshape(problem.x.shape[0], *columns)
    return out if nested is None else torch.nested.nested_tensor_from_jagged(out, nested.offsets())
