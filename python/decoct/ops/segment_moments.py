"""Means and second moments of the rows of each segment."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from decoct.ops._backend import compute_dtype
from decoct.ops._plan import uniform
from decoct.ops._problem import Offsets, prepare_rows
from decoct.ops._row_norms import row_norms
from decoct.ops._segment_ops import segment_sums
from decoct.ops._segment_outer import LINEAR, segment_outer
from decoct.ops._transforms import public

__all__ = ["segment_moments"]


@public
def segment_moments(
    x: Tensor,
    *,
    weights: Tensor | None = None,
    x_offsets: Offsets = None,
    second: Literal["diagonal", "full"] | None = None,
    max_norm: float | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor | tuple[Tensor, Tensor]:
    """Means of the rows of each segment and, on request, of their squares or outer products.

    Equivalent, without segments, to::

        r = x * (max_norm / x.norm(dim=1, keepdim=True)).clamp(max=1)     # with max_norm
        r.mean(0)
        r.square().mean(0)               # second="diagonal"
        r.T @ r / len(r)                 # second="full"

    Parameters
    ----------
    x : (N, D) rows; (B, N, D) for a batch; (N, D) with ``x_offsets`` for packed segments; or a jagged nested
        tensor. float64, float32, float16 or bfloat16.
    weights : (N,), with batches (B, N), used as given: weighted sums of rows, squares and products, whatever
        ``reduction`` says. By default one over the rows of the segment, or 1 with ``reduction="sum"``.
    x_offsets : (C+1,) int64 on the host, or decoct.Segments: segment c is rows ``x_offsets[c]`` to
        ``x_offsets[c + 1]``. Unequal and empty segments are fine; an empty one gives 0.
    second : ``"diagonal"``: squares too, ``"full"``: outer products. They are moments about 0.
    max_norm : rows longer than this are scaled to this length before all else, so that with
        ``reduction="sum"`` no row moves the first moment by more (the clipped sum of differential privacy).
    reduction : ``"mean"`` or ``"sum"``.

    Returns
    -------
    (D,), and with ``second`` also (D,) or (D, D); each with a first dimension of segments or batches where
    there are such. float32, or float64 if anything passed is float64; 16-bit rows are computed in float32.

    Gradients
    ---------
    In x and weights, of every order. At a row whose norm is ``max_norm`` it is that of a longer one, at a row
    of zeros that of rows which are not scaled.

    Raises
    ------
    TypeError
        x or weights is no tensor of floating-point numbers, or max_norm is no number.
    ValueError
        Shapes, devices, offsets or options are not as above.
    RuntimeError
        The device has no kernels in this build; or torch.compile traces a torch.func transform of it.

    Notes
    -----
    Clipped sums: Abadi et al., "Deep learning with differential privacy" (2016); of feature embeddings with
    both moments: Harder et al., "Pre-trained perceptual features improve differentially private image
    generation" (2023).
    """
    op = "segment_moments"
    if second not in (None, "diagonal", "full"):
        raise ValueError(f"{op}: second must be None, 'diagonal' or 'full', got {second!r}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{op}: reduction must be 'mean' or 'sum', got {reduction!r}")
    _check_norm(op, max_norm)
    rows, given, offsets, segments, shape = prepare_rows(op, x, weights, x_offsets)
    if given is None and reduction == "sum":
        given = torch.ones(rows.shape[0], dtype=compute_dtype(rows.dtype), device=rows.device)
    factors = uniform(given, rows, offsets, segments)
    squares = factors
    if max_norm is not None:
        scale = _scale(rows, max_norm)
        factors, squares = factors * scale, factors * scale.square()
    dim = rows.shape[1]
    first = segment_sums(rows, factors, offsets, segments).reshape(*shape, dim)
    if second is None:
        return first
    if second == "diagonal":
        wide = rows.to(compute_dtype(rows.dtype))
        return first, segment_sums(wide.square(), squares, offsets, segments).reshape(*shape, dim)
    images = rows[:, :, None, None]
    products, _ = segment_outer(images, images, squares, offsets, segments, LINEAR, False)
    return first, products.reshape(*shape, dim, dim)


def _check_norm(op: str, max_norm: float | None) -> None:
    if max_norm is None:
        return
    if isinstance(max_norm, bool) or not isinstance(max_norm, int | float):
        raise TypeError(f"{op}: max_norm must be None or a number, got {type(max_norm).__name__}")
    if not 0 < max_norm < math.inf:
        raise ValueError(f"{op}: max_norm must be positive and finite, got {max_norm}")


def _scale(rows: Tensor, max_norm: float) -> Tensor:
    """What each row is multiplied by; a row of zeros has no direction, and no derivative through its norm."""
    norms = row_norms(rows)
    zero = norms == 0
    ratio = max_norm / torch.where(zero, 1, norms)
    return torch.where(zero | (ratio > 1), 1, ratio)
