"""The registered op behind `per_sample_norms`: squared norms of the gradients of single images.

    weight_i = |G_i|^2,  G_i[o, k] = sum_t d_i[o, t] a_i[patch k of t]
    bias_i   = |sum_t d_i[., t]|^2

The kernel stores no G_i. Derivatives do, of as many images at a time as fit a bounded memory:

    d bar = 2 bar_i (a_i convolved with G_i),   a bar = 2 bar_i (d_i convolved with G_i, transposed)

which are made of differentiable ops, so that derivatives of every order are offered.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decoct.ops._backend import Execution, as_matrix, backend_for
from decoct.ops._registry import Op
from decoct.ops._segment_outer import LINEAR, describe, kernel_dtype, segment_outer

__all__ = ["KEPT_BYTES", "image_convolve", "image_squares", "image_transposed", "is_single", "pieces"]

KEPT_BYTES = 64 << 20
"""Of gradients of single images that are there at a time."""


def is_single(a: Tensor, d: Tensor, convolution: Sequence[int]) -> bool:
    """Whether these are rows of a linear layer, without further positions."""
    return tuple(convolution) == LINEAR and a.shape[2] * a.shape[3] == 1 and d.shape[2] * d.shape[3] == 1


def pieces(a: Tensor, d: Tensor, convolution: Sequence[int]) -> list[slice]:
    """Images whose gradients fit KEPT_BYTES."""
    count = a.shape[0]
    each = d.shape[1] * (a.shape[1] // convolution[8]) * convolution[0] * convolution[1]
    step = max(KEPT_BYTES // (8 * max(each, 1)), 1)
    if count <= step:
        return [slice(0, count)]
    return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]


# ---- Each image with a kernel of its own


def image_convolve(a: Tensor, weight: Tensor, bias: Tensor | None, convolution: Sequence[int]) -> Tensor:
    """(N, P, H', W'): image i with kernel i, (N, P, D), and bias i, (N, P). Plain torch."""
    a, count = a.to(weight.dtype), a.shape[0]
    with torch.autocast(a.device.type, enabled=False):
        if tuple(convolution) == LINEAR:
            y: Tensor = (weight @ a.flatten(2)).unflatten(2, a.shape[2:])
            return y if bias is None else y + bias[:, :, None, None]
        if count == 0:
            return a.new_zeros((0, weight.shape[1], 1, 1))
        kernels = weight.reshape(count * weight.shape[1], -1, *convolution[:2])
        stride, padding, dilation = (tuple(convolution[k : k + 2]) for k in (2, 4, 6))
        y = F.conv2d(
            a.reshape(1, -1, *a.shape[2:]),
            kernels,
            None if bias is None else bias.reshape(-1),
            stride,
            padding,
            dilation,
            count * convolution[8],
        )
        return y.reshape(count, -1, *y.shape[2:])


def image_transposed(d: Tensor, weight: Tensor, convolution: Sequence[int], size: Sequence[int]) -> Tensor:
    """(N, C, *size): the adjoint of `image_convolve` in its images. Plain torch."""
    d, count = d.to(weight.dtype), d.shape[0]
    with torch.autocast(d.device.type, enabled=False):
        if tuple(convolution) == LINEAR:
            x: Tensor = (weight.transpose(1, 2) @ d.flatten(2)).unflatten(2, d.shape[2:])
            return x
        channels = weight.shape[2] // (convolution[0] * convolution[1])
        if count == 0:
            return d.new_zeros((0, channels * convolution[8], *size))
        kernels = weight.reshape(count * weight.shape[1], channels, *convolution[:2])
        rest = []
        for k in range(2):
            kernel, stride, padding, dilation = (convolution[2 * part + k] for part in range(4))
            rest.append(size[k] + 2 * padding - dilation * (kernel - 1) - 1 - (d.shape[2 + k] - 1) * stride)
        stride_, padding_, dilation_ = (tuple(convolution[k : k + 2]) for k in (2, 4, 6))
        x = F.conv_transpose2d(
            d.reshape(1, -1, *d.shape[2:]),
            kernels,
            None,
            stride_,
            padding_,
            tuple(rest),
            count * convolution[8],
            dilation_,
        )
        return x.reshape(count, -1, *x.shape[2:])


# ---- image_squares


@functools.lru_cache(maxsize=512)
def _plan(
    engine: Any, described: tuple[Any, Any], convolution: tuple[int, ...], threads: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    activations, gradients = (engine.Images(0, *(list(p) for p in part[:2]), part[2]) for part in described)
    layout, workspace = engine.plan_image_squares(
        activations=activations, gradients=gradients, convolution=list(convolution), threads=threads
    )
    schedule = torch.from_numpy(layout.reshape(-1))
    return schedule, schedule.to(device), int(workspace)


def _squares(a: Tensor, d: Tensor, convolution: Sequence[int], bias: bool) -> tuple[Tensor, Tensor]:
    weight_out, bias_out = _squares_fake(a, d, convolution, bias)
    engine = backend_for("per_sample_norms", a.device)
    threads = torch.get_num_threads()
    described = describe(a), describe(d)
    planned = _plan(engine, described, tuple(convolution), threads, a.device)
    execution = Execution.of_plan(engine, a.device, *planned, threads)
    execution.run(
        "image_squares",
        activations=engine.Images(a.data_ptr(), *(list(p) for p in described[0][:2]), described[0][2]),
        gradients=engine.Images(d.data_ptr(), *(list(p) for p in described[1][:2]), described[1][2]),
        convolution=list(convolution),
        weight=as_matrix(engine, weight_out),
        bias=as_matrix(engine, bias_out) if bias else None,
    )
    return weight_out, bias_out


def _squares_fake(a: Tensor, d: Tensor, convolution: Sequence[int], bias: bool) -> tuple[Tensor, Tensor]:
    dtype = kernel_dtype(a, d)
    return a.new_empty((a.shape[0],), dtype=dtype), a.new_empty((a.shape[0] if bias else 0,), dtype=dtype)


def _squares_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, Tensor]:
    a, d, ctx.convolution, ctx.bias = inputs
    return a, d


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _single_gradients(
    a: Tensor, d: Tensor, weight_bar: Tensor, bias_bar: Tensor | None
) -> tuple[Tensor, Tensor]:
    a, d = a.to(weight_bar.dtype), d.to(weight_bar.dtype)
    of_d = weight_bar * a.square().sum((1, 2, 3))
    if bias_bar is not None:
        of_d = of_d + bias_bar
    return 2 * _column(weight_bar * d.square().sum((1, 2, 3))) * a, 2 * _column(of_d) * d


def _gradients(
    a: Tensor, d: Tensor, weight_bar: Tensor | None, bias_bar: Tensor | None, convolution: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Of <weight_bar, weight> + <bias_bar, bias> by a and d."""
    if weight_bar is None:
        assert bias_bar is not None
        weight_bar = torch.zeros_like(bias_bar)
    if is_single(a, d, convolution):
        a_bar, d_bar = _single_gradients(a, d, weight_bar, bias_bar)
        return a_bar.to(a.dtype), d_bar.to(d.dtype)
    if a.numel() == 0 or d.numel() == 0:
        return torch.zeros_like(a), torch.zeros_like(d)
    of_a, of_d = [], []
    for part in pieces(a, d, convolution):
        x, y = a[part], d[part]
        weight, bias = segment_outer(x, y, None, None, x.shape[0], convolution, bias_bar is not None)
        weight = 2 * weight_bar[part, None, None] * weight
        shift = None if bias_bar is None else 2 * bias_bar[part, None] * bias
        of_a.append(image_transposed(y, weight, convolution, x.shape[2:]))
        of_d.append(image_convolve(x, weight, shift, convolution))
    return torch.cat(of_a).to(a.dtype), torch.cat(of_d).to(d.dtype)


def _squares_backward(ctx: Any, weight_bar: Tensor | None, bias_bar: Tensor | None) -> Any:
    a, d = ctx.saved_tensors
    if not ctx.bias:
        bias_bar = None
    if weight_bar is None and bias_bar is None:
        return None, None, None, None
    a_bar, d_bar = _gradients(a, d, weight_bar, bias_bar, ctx.convolution)
    return a_bar, d_bar, None, None


def _squares_jvp(ctx: Any, *tangents: Any) -> Any:
    a, d = ctx.saved_tensors
    a_dot, d_dot = tangents[:2]
    dtype = kernel_dtype(a, d)
    ones = a.new_ones((a.shape[0],), dtype=dtype)
    a_bar, d_bar = _gradients(a, d, ones, None, ctx.convolution)
    weight_dot, bias_dot = torch.zeros_like(ones), ones.new_zeros((a.shape[0] if ctx.bias else 0,))
    if a_dot is not None:
        weight_dot = weight_dot + (a_bar * a_dot).to(dtype).sum((1, 2, 3))
    if d_dot is not None:
        weight_dot = weight_dot + (d_bar * d_dot).to(dtype).sum((1, 2, 3))
        if ctx.bias:
            bias_dot = 2 * (d.to(dtype).sum((2, 3)) * d_dot.to(dtype).sum((2, 3))).sum(1)
    return weight_dot, bias_dot


_op = Op(
    "image_squares(Tensor a, Tensor d, int[] convolution, bool bias) -> (Tensor, Tensor)",
    _squares,
    _squares_fake,
    backward=_squares_backward,
    jvp=_squares_jvp,
    vmap="rr--",
    save=_squares_save,
)


def image_squares(a: Tensor, d: Tensor, convolution: Sequence[int], bias: bool) -> tuple[Tensor, Tensor]:
    """(N,) squared norms of the weight gradient of each image, and of the bias gradient (N,), or (0,)
    without `bias`, in the compute dtype. a (N, C, H, W) and d (N, P, H', W') of any strides. Differentiable
    to any order."""
    return _op(a, d, list(convolution), bias)
