"""The registered op behind `gradient_gram`: inner products of the gradients of single images.

    K_ij = <G_i, H_j>,  G_i[o, k] = sum_t d_i[o, t] a_i[patch k of t],  H_j the same of b and e
    and with a bias + <sum_t d_i[., t], sum_s e_j[., s]>

The kernel stores no G. Its derivatives, with V_i = sum_j bar_ij H_j the direction that image i is pulled in,

    d bar_i = a_i convolved with V_i,   a bar_i = d_i convolved with V_i, transposed

are made of differentiable ops: those of rows without further positions of products of matrices, the others
of V and H of as many images at a time as fit a bounded memory. So derivatives of every order are offered.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoct.ops._backend import Execution, as_matrix, backend_for
from decoct.ops._image_squares import image_convolve, image_transposed, is_single, pieces
from decoct.ops._registry import Op
from decoct.ops._segment_outer import describe, kernel_dtype, segment_outer
from decoct.ops._transforms import one_by_one

__all__ = ["image_gram"]


def _gram_dtype(*tensors: Tensor | None) -> torch.dtype:
    there = [tensor for tensor in tensors if tensor is not None]
    return functools.reduce(torch.promote_types, (kernel_dtype(tensor, tensor) for tensor in there))


@functools.lru_cache(maxsize=512)
def _plan(
    engine: Any,
    described: tuple[Any, ...],
    convolution: tuple[int, ...],
    bias: bool,
    threads: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, int]:
    views = [None if part is None else engine.Images(0, *map(list, part[:2]), part[2]) for part in described]
    layout, workspace = engine.plan_image_gram(
        activations=views[0],
        gradients=views[1],
        other_activations=views[2],
        other_gradients=views[3],
        convolution=list(convolution),
        bias=bias,
        threads=threads,
    )
    schedule = torch.from_numpy(layout.reshape(-1))
    return schedule, schedule.to(device), int(workspace)


def _gram(
    a: Tensor, d: Tensor, b: Tensor | None, e: Tensor | None, convolution: Sequence[int], bias: bool
) -> Tensor:
    out = _gram_fake(a, d, b, e, convolution, bias)
    engine = backend_for("gradient_gram", a.device)
    threads = torch.get_num_threads()
    tensors = a, d, b, e
    described = tuple(None if tensor is None else describe(tensor) for tensor in tensors)
    planned = _plan(engine, described, tuple(convolution), bias, threads, a.device)
    execution = Execution.of_plan(engine, a.device, *planned, threads)
    views = [
        None
        if tensor is None or part is None
        else engine.Images(tensor.data_ptr(), *map(list, part[:2]), part[2])
        for tensor, part in zip(tensors, described, strict=True)
    ]
    execution.run(
        "image_gram",
        activations=views[0],
        gradients=views[1],
        other_activations=views[2],
        other_gradients=views[3],
        convolution=list(convolution),
        bias=bias,
        gram=as_matrix(engine, out),
    )
    return out


def _gram_fake(
    a: Tensor, d: Tensor, b: Tensor | None, e: Tensor | None, convolution: Sequence[int], bias: bool
) -> Tensor:
    return a.new_empty((a.shape[0], (a if b is None else b).shape[0]), dtype=_gram_dtype(a, d, b, e))


def _gram_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> list[Tensor | None]:
    *tensors, ctx.convolution, ctx.bias = inputs
    return tensors


def _pulled(
    bar: Tensor, a: Tensor, d: Tensor, b: Tensor, e: Tensor, convolution: Sequence[int], bias: bool
) -> tuple[Tensor, Tensor]:
    """Of <bar, K> by a and d."""
    if is_single(a, d, convolution) and is_single(b, e, convolution):
        # Not autocast: products of matrices would be rounded to 16 bits.
        with torch.autocast(a.device.type, enabled=False):
            x, y, u, v = (part.flatten(1).to(bar.dtype) for part in (a, b, d, e))
            patches, gradients = x @ y.T, u @ v.T
            if bias:
                patches = patches + 1
            of_a, of_d = (bar * gradients) @ y, (bar * patches) @ v
        return of_a.reshape(a.shape).to(a.dtype), of_d.reshape(d.shape).to(d.dtype)
    if not all(part.numel() for part in (a, d, b, e)):
        return torch.zeros_like(a), torch.zeros_like(d)
    parts_a, parts_d = [], []
    for mine in pieces(a, d, convolution):
        weight: Any = 0
        shift: Any = 0
        for theirs in pieces(b, e, convolution):
            some = theirs.stop - theirs.start
            of_weight, of_bias = segment_outer(b[theirs], e[theirs], None, None, some, convolution, bias)
            part = bar[mine, theirs]
            with torch.autocast(a.device.type, enabled=False):
                weight = weight + (part @ of_weight.to(bar.dtype).flatten(1)).unflatten(
                    1, of_weight.shape[1:]
                )
                shift = shift + part @ of_bias.to(bar.dtype)
        parts_a.append(image_transposed(d[mine], weight, convolution, a.shape[2:]))
        parts_d.append(image_convolve(a[mine], weight, shift if bias else None, convolution))
    return torch.cat(parts_a).to(a.dtype), torch.cat(parts_d).to(d.dtype)


def _gram_backward(ctx: Any, bar: Tensor | None) -> Any:
    a, d, b, e = ctx.saved_tensors
    if bar is None:
        return (None,) * 6
    rest = ctx.convolution, ctx.bias
    if b is None:
        return (*_pulled(bar + bar.T, a, d, a, d, *rest), None, None, None, None)
    of_x: tuple[Tensor | None, ...] = (None, None)
    of_y: tuple[Tensor | None, ...] = (None, None)
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        of_x = _pulled(bar, a, d, b, e, *rest)
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        of_y = _pulled(bar.T, b, e, a, d, *rest)
    return (*of_x, *of_y, None, None)


def _gram_jvp(ctx: Any, *tangents: Any) -> Any:
    a, d, b, e = ctx.saved_tensors
    other = (a, d) if b is None else (b, e)
    moved: list[Tensor] = []
    for k, dot in enumerate(tangents[:4]):
        if dot is None:
            continue
        parts: list[Any] = [a, d, *other]
        parts[k] = dot
        # The bias has no part of the activations.
        part = _op(*parts, ctx.convolution, ctx.bias and k % 2 == 1)
        moved.append(part + part.T if b is None else part)
    return functools.reduce(torch.add, moved)


_op = Op(
    "image_gram(Tensor a, Tensor d, Tensor? b, Tensor? e, int[] convolution, bool bias) -> Tensor",
    _gram,
    _gram_fake,
    backward=_gram_backward,
    jvp=_gram_jvp,
    vmap=one_by_one,
    save=_gram_save,
)


def image_gram(
    a: Tensor, d: Tensor, b: Tensor | None, e: Tensor | None, convolution: Sequence[int], bias: bool
) -> Tensor:
    """(N, M) inner products of the weight gradients, and with `bias` of the bias gradients, of images a
    (N, C, H, W), d (N, P, ., .) and b (M, C, ., .), e (M, P, ., .), in the compute dtype; (N, N) of the
    former alone, symmetric to the bit, where b and e are None. Differentiable to any order."""
    return _op(a, d, b, e, list(convolution), bias)
