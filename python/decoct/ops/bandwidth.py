"""The bandwidth rules as functions: a length to keep fixed over a run, or to compute a cached term with."""

from __future__ import annotations

from torch import Tensor

from decoct.ops._problem import Offsets, prepare
from decoct.ops._segment_ops import mean_rule, median_rule
from decoct.ops._transforms import public

__all__ = ["mean_bandwidth", "median_bandwidth"]


@public
def mean_bandwidth(x: Tensor, y: Tensor, *, x_offsets: Offsets = None, y_offsets: Offsets = None) -> Tensor:
    """The length s with 2 s^2 = mean squared distance over ordered pairs i != j of a segment's pooled rows.

    Equivalent to ``z = torch.cat([x, y]); (torch.pdist(z).square().mean() / 2).sqrt()``, in O((N + M) D) time
    and float64. Shapes and errors are those of :func:`decoct.mmd`; one value for each segment, float32 or
    float64 as there; a constant for autograd. A 2 s^2 below 1e-10 is taken as 1e-10.
    """
    problem = prepare("mean_bandwidth", x, y, None, None, x_offsets, y_offsets)
    return problem.finish(mean_rule(*problem.rows))


@public
def median_bandwidth(x: Tensor, y: Tensor, *, x_offsets: Offsets = None, y_offsets: Offsets = None) -> Tensor:
    """The length s with 2 s^2 = median squared distance (the lower of two middle values) of a segment's
    pooled rows.

    Equivalent to ``z = torch.cat([x, y]); (torch.pdist(z).median().square() / 2).sqrt()``; beyond 4096 pooled
    rows only every ceil(n / 4096)-th is used. Otherwise as :func:`mean_bandwidth`.
    """
    problem = prepare("median_bandwidth", x, y, None, None, x_offsets, y_offsets)
    return problem.finish(median_rule(*problem.rows))
