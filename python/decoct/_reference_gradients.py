"""Plain-torch twins of the ops on gradients; part of `decoct.reference`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["gradient_distance"]


def _as_rows(tensor: Tensor, axis: int | None) -> Tensor:
    """(C, rows, length) of (C, *shape)."""
    if axis is None or tensor.dim() == 1:
        return tensor.reshape(tensor.shape[0], 1, tensor.shape[1:].numel())
    return tensor[..., None].movedim(axis - 1 if axis < 0 else axis + 1, 1).flatten(2)


def _cosine(r: Tensor, s: Tensor, epsilon: float, form: str) -> Tensor:
    r_norm, s_norm = torch.linalg.vector_norm(r, dim=-1), torch.linalg.vector_norm(s, dim=-1)
    if form == "product":
        norms = r_norm * s_norm + epsilon
    else:
        norms = r_norm.clamp(min=epsilon) * s_norm.clamp(min=epsilon)
    cosine: Tensor = (r * s).sum(-1) / norms
    return cosine


def gradient_distance(
    real: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    metric: str = "row_cosine",
    *,
    classes: bool = False,
    tensors: Any = None,
    row_axis: Any = 0,
    epsilon: float = 1e-6,
    epsilon_form: str = "product",
) -> Tensor:
    """See :func:`decoct.gradient_distance`."""
    if not classes:
        real, synthetic = [t[None] for t in real], [t[None] for t in synthetic]
    if tensors is None:
        tensors = "matrices" if metric in ("row_cosine", "cosine_l2") else "all"
    if isinstance(tensors, str):
        tensors = [tensors == "all" or t.dim() > 2 for t in real]
    axes = row_axis if isinstance(row_axis, Sequence) else [row_axis] * len(real)
    pairs = [
        (_as_rows(r, axis), _as_rows(s, axis))
        for r, s, axis, flag in zip(real, synthetic, axes, tensors, strict=True)
        if flag and r.shape[1:].numel() > 0
    ]
    some = real[0]
    dtype = torch.float64 if some.dtype == torch.float64 else torch.float32
    total = torch.zeros(some.shape[0], dtype=dtype, device=some.device)
    if metric == "cosine" and pairs:
        sides = [torch.cat([pair[i].flatten(1) for pair in pairs], 1).to(dtype) for i in (0, 1)]
        total = 1 - _cosine(sides[0], sides[1], epsilon, epsilon_form)
    for r, s in pairs if metric != "cosine" else ():
        r, s = r.to(dtype), s.to(dtype)
        if metric in ("row_cosine", "cosine_l2"):
            total = total + (1 - _cosine(r, s, epsilon, epsilon_form)).sum(-1)
        if metric == "cosine_l2":
            total = total + torch.linalg.vector_norm(r - s, dim=-1).sum(-1)
        elif metric == "sse":
            total = total + (r - s).square().sum((-2, -1))
        elif metric in ("l1", "l1_mean"):
            total = total + (r - s).abs().sum((-2, -1)) / (r.shape[-1] if metric == "l1_mean" else 1)
    return total if classes else total[0]
