"""Registered op: the Euclidean norm of every row, of numbers of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decoct.ops import _transforms
from decoct.ops._backend import compute_dtype
from decoct.ops._registry import register

__all__ = ["row_norms"]

BLOCK_BYTES = 1 << 20
"""Of rows that are looked at together on the CPU: what is made of them on the way fits into a cache, where
arrays of all rows would be fresh memory, which costs more than the sums."""


def _plain(x: Tensor) -> Tensor:
    wide = x.to(compute_dtype(x.dtype))
    largest = wide.detach().abs().amax(1, keepdim=True)
    # Squares of numbers up to 1 neither overflow nor vanish.
    unit = torch.where((largest > 0) & (largest < torch.inf), largest, 1)
    squares = (wide / unit).square().sum(1)
    zero = squares == 0
    return torch.where(zero, 0, torch.where(zero, 1, squares).sqrt() * unit[:, 0])


def _norms(x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return _plain(x)
    out = _norms_fake(x)
    step = max(BLOCK_BYTES // (x.shape[1] * out.element_size()), 1)
    for begin in range(0, x.shape[0], step):
        out[begin : begin + step] = _plain(x[begin : begin + step])
    return out


def _norms_fake(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0],), dtype=compute_dtype(x.dtype))


def _norms_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> list[Tensor]:
    return [inputs[0], output]


def _norms_backward(ctx: Any, bar: Tensor | None) -> Any:
    if bar is None:
        return None
    x, norms = ctx.saved_tensors
    zero = norms == 0
    return (x * torch.where(zero, 0, bar / torch.where(zero, 1, norms))[:, None]).to(x.dtype)


_op = register("row_norms(Tensor x) -> Tensor", _norms, _norms_fake, _norms_backward, _norms_save)


def row_norms(x: Tensor) -> Tensor:
    """(N,) norms of rows (N, D), in the compute dtype. Differentiable to any order; a row of zeros has no
    derivative through its norm, which is taken for 0."""
    norms: Tensor = _plain(x) if _transforms.active() else _op(x)
    return norms
