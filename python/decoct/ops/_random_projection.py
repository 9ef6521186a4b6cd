"""The registered op behind `random_projection`: a linear map whose adjoint is the same op transposed, so that
derivatives of every order are offered."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from decoct.ops._backend import (
    Execution,
    as_matrix,
    backend_for,
    compute_dtype,
    dtype_name,
    readable,
)
from decoct.ops._registry import Op

__all__ = ["projection"]


@functools.lru_cache(maxsize=512)
def _plan(
    engine: Any,
    sizes: tuple[int, int, int],
    dtype: str,
    transpose: bool,
    threads: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, int]:
    rows, columns, size = sizes
    layout, workspace = engine.plan_random_projection(
        x=engine.Matrix(0, rows, columns, columns, dtype),
        out=engine.Matrix(0, rows, size, size, "float64" if dtype == "float64" else "float32"),
        transposed=transpose,
        threads=threads,
    )
    schedule = torch.from_numpy(layout.reshape(-1))
    return schedule, schedule.to(device), int(workspace)


def _run(x: Tensor, size: int, seed: int, stream: int, factor: float, transpose: bool) -> Tensor:
    out = _fake(x, size)
    engine = backend_for("random_projection", x.device)
    x = readable(x)
    threads = torch.get_num_threads()
    planned = _plan(engine, (*x.shape, size), dtype_name(x.dtype), transpose, threads, x.device)
    Execution.of_plan(engine, x.device, *planned, threads).run(
        "random_projection",
        x=as_matrix(engine, x),
        out=as_matrix(engine, out),
        transposed=transpose,
        seed=seed,
        stream=stream,
        factor=factor,
    )
    return out


def _fake(x: Tensor, size: int, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], size), dtype=compute_dtype(x.dtype))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
    x, *ctx.options = inputs
    ctx.columns, ctx.dtype = x.shape[1], x.dtype
    return ()


def _backward(ctx: Any, bar: Tensor) -> Any:
    _, seed, stream, factor, transpose = ctx.options
    pulled = projection(bar, ctx.columns, seed, stream, factor, not transpose)
    return pulled.to(ctx.dtype), None, None, None, None, None


def _jvp(ctx: Any, tangent: Tensor, *others: Any) -> Tensor:
    return projection(tangent, *ctx.options)


projection = Op(
    "random_projection(Tensor x, SymInt size, int seed, int stream, float factor, bool transpose) -> Tensor",
    _run,
    _fake,
    backward=_backward,
    jvp=_jvp,
    vmap="r-----",
    save=_save,
)
"""(N, size): factor x S^T of rows x (N, D), or with `transpose` factor x S, in the compute dtype."""
