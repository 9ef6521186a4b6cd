"""The registered op behind `kernel_matvec`: K(x, y) @ v inside each segment.

Its derivatives are kernel ops again: the one of v is the transposed product, those of x and y are, for each
column, the gradient of sum_ij g_i v_j k(x_i, y_j), which `kernel_sums` computes and differentiates once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decoct.ops import _transforms
from decoct.ops._backend import (
    XY,
    A,
    B,
    Execution,
    X,
    Y,
    as_matrix,
    backend_for,
    compute_dtype,
    engine_kernel,
    offsets_or_uniform,
    readable,
)
from decoct.ops._registry import KERNEL_SCHEMA, Op
from decoct.ops._sums import hvp, kernel_sums

__all__ = ["matvec", "product"]


def product(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    x_offsets: Tensor | None,
    y_offsets: Tensor | None,
    segments: int,
    bandwidth: Tensor,
    f: Tensor | None,
    g: Tensor | None,
    *kernel: Any,
) -> Tensor:
    engine = backend_for("kernel_matvec", x.device)
    out = torch.zeros((x.shape[0], v.shape[1]), dtype=compute_dtype(x.dtype), device=x.device)
    if segments == 0 or v.shape[1] == 0:
        return out
    x, y, v, lengths = readable(x), readable(y), readable(v), bandwidth.contiguous()
    f, g = (None if potential is None else readable(potential) for potential in (f, g))
    x_ends = offsets_or_uniform(x_offsets, x.shape[0], segments)
    y_ends = offsets_or_uniform(y_offsets, y.shape[0], segments)
    execution = Execution(engine, "matvec", x, y, x_ends, y_ends, terms=XY, columns=v.shape[1])
    execution.run(
        "kernel_matvec",
        x=as_matrix(engine, x),
        y=as_matrix(engine, y),
        v=as_matrix(engine, v),
        x_offsets=as_matrix(engine, x_ends),
        y_offsets=as_matrix(engine, y_ends),
        bandwidth=as_matrix(engine, lengths),
        kernel=engine_kernel(engine, *kernel),
        out=as_matrix(engine, out),
        f=as_matrix(engine, f),
        g=as_matrix(engine, g),
    )
    return out


def _fake(x: Tensor, y: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], v.shape[1]), dtype=compute_dtype(x.dtype))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor | None, ...]:
    ctx.segments, ctx.kernel = inputs[5], inputs[9:]
    return *inputs[:5], *inputs[6:9]


def _cross_only(bandwidth: Tensor, segments: int) -> Tensor:
    """Coefficients that select sum_ij a_i b_j k(x_i, y_j)."""
    # Filled in place: a copy from the host would end the capture of a CUDA graph.
    row = torch.zeros(3, dtype=torch.float64, device=bandwidth.device)
    row[1].fill_(1.0)
    return row.expand(segments, 3)


def _backward(ctx: Any, bar: Tensor) -> Any:
    x, y, v, x_offsets, y_offsets, bandwidth, f, g = ctx.saved_tensors
    if any(ctx.needs_input_grad[7:9]):
        raise RuntimeError("decoct: potentials are constants for kernel_matvec; differentiate through v")
    wants_x, wants_y, wants_v = ctx.needs_input_grad[:3]
    grad_x, grad_y, grad_v = None, None, None
    if wants_v:
        grad_v = matvec(y, x, bar, y_offsets, x_offsets, ctx.segments, bandwidth, g, f, *ctx.kernel)
    need = (X if wants_x else 0) | (Y if wants_y else 0)
    if need:
        coefficients = _cross_only(bandwidth, ctx.segments)
        if _transforms.active():  # forward over reverse moves all of them
            parts_moved = zip((X, Y, A, B), (x, y, bar, v), strict=True)
            need |= sum(bit for bit, tensor in parts_moved if _transforms.needs_gradient(tensor))
        for column in range(v.shape[1]):
            parts = kernel_sums(
                x,
                y,
                bar[:, column],
                v[:, column],
                x_offsets,
                y_offsets,
                ctx.segments,
                coefficients,
                bandwidth,
                f,
                g,
                *ctx.kernel,
                XY,
                need,
            )
            grad_x = _plus(grad_x, parts[2]) if wants_x else None
            grad_y = _plus(grad_y, parts[3]) if wants_y else None
        grad_x, grad_y = (g if g is None else g.to(x.dtype) for g in (grad_x, grad_y))
        if v.shape[1] == 0:
            grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    return grad_x, grad_y, grad_v, *[None] * 8


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part


def _jvp(ctx: Any, *tangents: Any) -> Any:
    x, y, v, x_offsets, y_offsets, bandwidth, f, g = ctx.saved_tensors
    moved = list(tangents[:2])
    out: Tensor | None = None
    if tangents[2] is not None:
        out = matvec(x, y, tangents[2], x_offsets, y_offsets, ctx.segments, bandwidth, f, g, *ctx.kernel)
    if all(tangent is None for tangent in moved):
        return out
    moved = [None if t is None else t.to(compute_dtype(x.dtype)) for t in moved]
    # The derivative of sum_ij a_i v_j k(x_i, y_j) by a is the product, its derivative along the tangents
    # is ours.
    ones, columns = torch.ones_like(x[:, 0], dtype=v.dtype), []
    for column in range(v.shape[1]):
        parts = hvp(
            x,
            y,
            ones,
            v[:, column],
            x_offsets,
            y_offsets,
            ctx.segments,
            _cross_only(bandwidth, ctx.segments),
            bandwidth,
            f,
            g,
            *ctx.kernel,
            XY,
            *moved,
            None,
            None,
            A,
        )
        columns.append(parts[2])
    along = torch.stack(columns, 1) if columns else torch.zeros_like(x[:, :0], dtype=v.dtype)
    return _plus(out, along)


matvec = Op(
    "kernel_matvec(Tensor x, Tensor y, Tensor v, Tensor? x_offsets, Tensor? y_offsets, SymInt segments, "
    f"Tensor bandwidth, Tensor? f, Tensor? g, {KERNEL_SCHEMA}) -> Tensor",
    product,
    _fake,
    backward=_backward,
    jvp=_jvp,
    vmap="rrroosrrr--",
    save=_save,
)
"""K(x, y) @ v."""
