"""Points that a free-support barycentre begins with: rows of its own measures, drawn by seed."""

from __future__ import annotations

import torch
from torch import Tensor

from decoct.ops._backend import compute_dtype
from decoct.ops._rows import segment_ids

__all__ = ["first_points"]

CANDIDATES = 8
"""Rows among which k-means++ chooses, for each point to choose; 64 at least."""


def _shuffled(ends: Tensor, draw: torch.Generator) -> Tensor:
    """The numbers of all rows, those of each group in a random order."""
    rows = int(ends[-1])
    ids = segment_ids(ends, rows, torch.device("cpu"))
    return torch.argsort(ids + torch.rand(rows, generator=draw, dtype=torch.float64))


def first_points(
    x: Tensor, a: Tensor | None, ends: Tensor, point_ends: Tensor, how: str, seed: int
) -> Tensor:
    """(K, D): for the points of each group, rows of that group. `ends`, `point_ends`: host offsets of the
    groups' rows and points. Groups without rows get zeros."""
    draw = torch.Generator().manual_seed(seed)
    count, wanted = ends.diff(), point_ends.diff()
    order = _shuffled(ends, draw)
    points = torch.zeros(int(point_ends[-1]), x.shape[1], dtype=compute_dtype(x.dtype), device=x.device)
    group = segment_ids(point_ends, points.shape[0], torch.device("cpu"))
    number = torch.arange(points.shape[0]) - point_ends[:-1][group]
    filled = count[group] > 0
    if how == "rows":
        chosen = order[ends[:-1][group] + number % count[group].clamp(min=1)][filled]
    else:
        drawn = _plus_plus(x, a, ends, wanted, order, draw)
        chosen = drawn[group, number][filled]
    points[filled.to(x.device)] = x[chosen.to(x.device)].to(points.dtype)
    return points


def _plus_plus(
    x: Tensor, a: Tensor | None, ends: Tensor, wanted: Tensor, order: Tensor, draw: torch.Generator
) -> Tensor:
    """Numbers of rows, (groups, most points): each is drawn with a probability that is its weight times its
    squared distance to those drawn before; where all of these are 0, its weight."""
    groups, most = wanted.shape[0], int(wanted.max()) if wanted.numel() else 0
    count = torch.minimum(ends.diff(), (CANDIDATES * wanted).clamp(min=64))
    width = int(count.max()) if count.numel() else 0
    if width == 0 or most == 0:
        return torch.zeros(groups, most, dtype=torch.int64)
    column = torch.arange(width)
    there = column < count[:, None]
    rows = order[torch.where(there, ends[:-1, None] + column, 0).clamp(max=order.shape[0] - 1)]
    uniform = torch.rand(most, groups, 1, generator=draw, dtype=torch.float64).to(x.device)
    there, on_device = there.to(x.device), rows.to(x.device)
    candidates = x[on_device].to(compute_dtype(x.dtype))
    weight = there.to(torch.float64) if a is None else a[on_device].to(torch.float64) * there
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, there.to(torch.float64))
    masked = candidates * there[:, :, None]
    candidates = candidates - (masked.sum(1) / there.sum(1, keepdim=True).clamp(min=1))[:, None]
    square = candidates.square().sum(-1)
    nearest = torch.full_like(square, torch.inf)
    group = torch.arange(groups, device=x.device)
    chosen = []
    for turn in range(most):
        share = weight if turn == 0 else weight * nearest
        total = share.sum(1, keepdim=True)
        share = torch.where((total > 0) & (total < torch.inf), share, weight)
        sums = share.cumsum(1)
        at = torch.searchsorted(sums, uniform[turn] * sums[:, -1:], right=True)[:, 0].clamp(max=width - 1)
        chosen.append(on_device[group, at].cpu())
        picked = candidates[group, at]
        norms = square + square[group, at][:, None]
        distance = norms - 2 * torch.bmm(candidates, picked[:, :, None])[:, :, 0]
        # What rounding leaves of a row's distance to itself must not make it likely.
        nearest = torch.minimum(nearest, torch.where(distance > 1e-5 * norms, distance, 0.0))
    return torch.stack(chosen, 1)
