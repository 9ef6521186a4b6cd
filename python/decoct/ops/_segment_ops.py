"""Registered ops that reduce the rows of a segment: weighted sums, and the bandwidth rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decoct.ops import _transforms
from decoct.ops._backend import (
    Execution,
    as_matrix,
    backend_for,
    compute_dtype,
    offsets_or_uniform,
    readable,
)
from decoct.ops._registry import Op, refuse, register
from decoct.ops._rows import lengths, segment_totals, spread

__all__ = ["mean_rule", "median_rule", "segment_sums", "totals"]

MEDIAN_ROWS = 4096
SMALLEST_SQUARE = 1e-10
"""Floor of the mean or median squared distance, so that equal rows leave a usable length."""


# ---- segment_sums: sum of a_i x_i over a segment, or the mean without weights


def _sums(x: Tensor, a: Tensor | None, offsets: Tensor | None, segments: int) -> Tensor:
    engine = backend_for("segment_sums", x.device)
    out = x.new_zeros((segments, x.shape[1]), dtype=compute_dtype(x.dtype))
    rows, weights = readable(x), None if a is None else readable(a)
    host = offsets_or_uniform(offsets, x.shape[0], segments)
    if segments > 0:
        execution = Execution(engine, "rows", rows, rows[:0], host, torch.zeros_like(host))
        execution.run(
            "segment_sums",
            x=as_matrix(engine, rows),
            a=as_matrix(engine, weights),
            offsets=as_matrix(engine, host),
            out=as_matrix(engine, out),
        )
    return out


def totals(values: Tensor, offsets: Tensor | None, segments: int) -> Tensor:
    """(C,) sums of row values (N,) by the engine, whose order of summation no thread count changes; for the
    insides of ops."""
    return _sums(values[:, None], torch.ones_like(values), offsets, segments)[:, 0]


def _sums_fake(x: Tensor, a: Tensor | None, offsets: Tensor | None, segments: int) -> Tensor:
    return x.new_empty((segments, x.shape[1]), dtype=compute_dtype(x.dtype))


def _sums_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> list[Tensor | None]:
    *tensors, ctx.segments = inputs
    return tensors


def _sums_backward(ctx: Any, bar: Tensor | None) -> Any:
    x, a, offsets = ctx.saved_tensors
    if bar is None:
        return (None,) * 4
    by_x, by_a = ctx.needs_input_grad[:2]
    if a is None:
        # Of means: one over the rows of a segment, before it is spread.
        bar = bar / lengths(offsets, x.shape[0], ctx.segments, x.device).clamp(min=1).to(bar.dtype)[:, None]
    rows = spread(bar, offsets, x.shape[0], ctx.segments)
    of_a = (x * rows).sum(-1).to(a.dtype) if a is not None and by_a else None
    if not by_x:
        return None, of_a, None, None
    if a is not None:
        # Memory for another array of all rows costs more than what is done with it. Offsets: those that
        # were spread by them are nobody else's.
        in_place = offsets is not None and not torch.is_grad_enabled() and a.dtype == rows.dtype
        rows = rows.mul_(a[:, None]) if in_place else a[:, None] * rows
    return rows.to(x.dtype), of_a, None, None


_sums_op = register(
    "segment_sums(Tensor x, Tensor? a, Tensor? offsets, SymInt segments) -> Tensor",
    _sums,
    _sums_fake,
    _sums_backward,
    _sums_save,
)


def segment_sums(x: Tensor, a: Tensor | None, offsets: Tensor | None, segments: int) -> Tensor:
    """(C, D) sums of a_i x_i, or means where a is None; zero for an empty segment. Differentiable to any
    order."""
    if not _transforms.active():
        return _sums_op(x, a, offsets, segments)  # type: ignore[no-any-return]
    rows = x.to(compute_dtype(x.dtype))
    if a is not None:
        return segment_totals(a[:, None] * rows, offsets, segments)
    count = lengths(offsets, x.shape[0], segments, x.device).clamp(min=1)
    return segment_totals(rows, offsets, segments) / count.to(rows.dtype)[:, None]


# ---- the rules that choose a length from the pooled rows of a segment; constants for autograd


def _mean(x: Tensor, y: Tensor, x_offsets: Tensor | None, y_offsets: Tensor | None, segments: int) -> Tensor:
    engine = backend_for("mean_bandwidth", x.device)
    out = torch.ones(segments, dtype=torch.float64, device=x.device)
    rows = readable(x), readable(y)
    hosts = (
        offsets_or_uniform(x_offsets, x.shape[0], segments),
        offsets_or_uniform(y_offsets, y.shape[0], segments),
    )
    if segments > 0:
        execution = Execution(engine, "rows", *rows, *hosts)
        execution.run(
            "mean_bandwidth",
            x=as_matrix(engine, rows[0]),
            y=as_matrix(engine, rows[1]),
            x_offsets=as_matrix(engine, hosts[0]),
            y_offsets=as_matrix(engine, hosts[1]),
            bandwidth=as_matrix(engine, out),
        )
    return out


def _median_of_rows(rows: Tensor) -> Tensor:
    if rows.shape[0] < 2:
        return rows.new_zeros((), dtype=torch.float64)
    stride = -(-rows.shape[0] // MEDIAN_ROWS)
    rows = rows[::stride].to(compute_dtype(rows.dtype))
    # Distances by differences, not by a matrix product: exact, and the same for every number of threads.
    return torch.pdist(rows).median().to(torch.float64).square()


def _median(
    x: Tensor, y: Tensor, x_offsets: Tensor | None, y_offsets: Tensor | None, segments: int
) -> Tensor:
    x_ends = offsets_or_uniform(x_offsets, x.shape[0], segments).tolist()
    y_ends = offsets_or_uniform(y_offsets, y.shape[0], segments).tolist()
    squares = torch.zeros(segments, dtype=torch.float64, device=x.device)
    for c in range(segments):
        pooled = torch.cat([x[x_ends[c] : x_ends[c + 1]], y[y_ends[c] : y_ends[c + 1]]])
        squares[c] = _median_of_rows(pooled)
    return (squares.clamp(min=SMALLEST_SQUARE) / 2).sqrt()


def _rule_fake(
    x: Tensor, y: Tensor, x_offsets: Tensor | None, y_offsets: Tensor | None, segments: int
) -> Tensor:
    return x.new_empty((segments,), dtype=torch.float64)


def _rule_jvp(ctx: Any, *tangents: Any) -> None:
    return None


def _rule(name: str, implementation: Callable[..., Tensor]) -> Op[Tensor]:
    schema = "(Tensor x, Tensor y, Tensor? x_offsets, Tensor? y_offsets, SymInt segments) -> Tensor"
    constant = refuse("bandwidth rules are constants for autograd")
    return Op(name + schema, implementation, _rule_fake, backward=constant, jvp=_rule_jvp, vmap="rroos")


_mean_op = _rule("mean_bandwidth", _mean)
_median_op = _rule("median_bandwidth", _median)


def mean_rule(
    x: Tensor, y: Tensor, x_offsets: Tensor | None, y_offsets: Tensor | None, segments: int
) -> Tensor:
    """s (C,) with 2 s^2 = mean squared distance over ordered pairs i != j of the segment's pooled rows."""
    return _mean_op(x.detach(), y.detach(), x_offsets, y_offsets, segments).detach()


def median_rule(
    x: Tensor, y: Tensor, x_offsets: Tensor | None, y_offsets: Tensor | None, segments: int
) -> Tensor:
    """s (C,) with 2 s^2 = median (the lower of two) squared distance over pairs of the segment's pooled rows,
    of which every ceil(n / 4096)-th is used."""
    return _median_op(x.detach(), y.detach(), x_offsets, y_offsets, segments).detach()
