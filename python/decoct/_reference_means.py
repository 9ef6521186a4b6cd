"""Plain-torch twins of the ops on the rows of one cloud, segment by segment (see reference.py)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from decoct.segments import host_offsets

__all__ = ["characteristic_mean", "segment_moments"]


def _segments(
    x: Tensor, weights: Tensor | None, x_offsets: Any, reduction: str = "mean"
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of each segment and their weights."""
    if x.dim() == 3:
        pieces = [(x[c], None if weights is None else weights[c]) for c in range(x.shape[0])]
    elif x_offsets is None:
        pieces = [(x, weights)]
    else:
        ends = host_offsets("reference", "x_offsets", x_offsets).tolist()
        pieces = [
            (x[begin:end], None if weights is None else weights[begin:end])
            for begin, end in itertools.pairwise(ends)
        ]
    for rows, w in pieces:
        each = 1.0 if reduction == "sum" else 1.0 / max(rows.shape[0], 1)
        yield rows, rows.new_full(rows.shape[:1], each) if w is None else w


def _shaped(parts: list[Tensor], x: Tensor, x_offsets: Any, *shape: int) -> Tensor:
    if x.dim() == 2 and x_offsets is None:
        return parts[0]
    return torch.stack(parts) if parts else x.new_zeros((0, *shape))


def characteristic_mean(
    x: Tensor, frequencies: Tensor, *, weights: Tensor | None = None, x_offsets: Any = None
) -> tuple[Tensor, Tensor]:
    """Weighted sums of cos(x @ frequencies.T) and sin(x @ frequencies.T), means by default."""
    cosines, sines = [], []
    for rows, w in _segments(x, weights, x_offsets):
        t = rows @ frequencies.T
        cosines.append(w @ torch.cos(t))
        sines.append(w @ torch.sin(t))
    columns = frequencies.shape[0]
    return _shaped(cosines, x, x_offsets, columns), _shaped(sines, x, x_offsets, columns)


def segment_moments(
    x: Tensor,
    *,
    weights: Tensor | None = None,
    x_offsets: Any = None,
    second: str | None = None,
    max_norm: float | None = None,
    reduction: str = "mean",
) -> Tensor | tuple[Tensor, Tensor]:
    """Weighted sums of the rows of each segment, clipped to a norm, and of their squares or products."""
    first, others = [], []
    for rows, w in _segments(x, weights, x_offsets, reduction):
        if max_norm is not None:
            norm = rows.norm(dim=1, keepdim=True)
            rows = torch.where(norm > max_norm, rows * (max_norm / norm), rows)
        first.append(w @ rows)
        if second == "diagonal":
            others.append(w @ rows.square())
        elif second == "full":
            others.append((w[:, None] * rows).T @ rows)
    dim = x.shape[-1]
    means = _shaped(first, x, x_offsets, dim)
    if second is None:
        return means
    shape = (dim,) if second == "diagonal" else (dim, dim)
    return means, _shaped(others, x, x_offsets, *shape)
