"""Inner product of two kernel mean embeddings."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from decoct.kernels import Kernel, Linear, resolve
from decoct.ops._backend import XY
from decoct.ops._problem import Offsets, prepare, resolve_bandwidth
from decoct.ops._transforms import public
from decoct.ops.mmd import pair_sums, row_sums

__all__ = ["kernel_mean"]


@public
def kernel_mean(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | str = "gaussian",
    bandwidth: float | Tensor | Literal["mean", "median"] = "mean",
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    x_offsets: Offsets = None,
    y_offsets: Offsets = None,
) -> Tensor:
    """Inner product of the kernel mean embeddings of two weighted clouds, one value for each segment.

    Equivalent to ``K(x, y).mean()``, with weights ``a @ K(x, y) @ b``, in O(N + M) memory. ``kernel_mean(x,
    x, ...)`` is the term that :func:`decoct.mmd` takes as ``xx`` (biased estimator, a bandwidth that is not a
    rule).

    Parameters, dtypes, gradients and errors are those of :func:`decoct.mmd`.
    """
    kernel = resolve(kernel, "kernel_mean")
    problem = prepare("kernel_mean", x, y, a, b, x_offsets, y_offsets)
    if isinstance(kernel, Linear):
        sum_x, sum_y = row_sums(problem)
        return problem.finish(problem.zero_if_empty((sum_x * sum_y).sum(-1)))
    problem, length = resolve_bandwidth(problem, kernel, bandwidth)
    spec = kernel.spec(problem.x.shape[1])
    return problem.finish(pair_sums(problem, spec, length, problem.constant(0.0, 1.0, 0.0), XY))
