"""The registered ops behind `class_gradients`: the three products of a trilinear form.

For segment c, its images i, outputs o, positions t of a convolution and places k of its patches,

    segment_outer                G_c[o, k] = sum_it w_i d_i[o, t] a_i[patch k of t]
                                 b_c[o]    = sum_it w_i d_i[o, t]
    segment_convolve             y_i[o, t] = sum_k G_c[o, k] a_i[patch k of t] + b_c[o]
    segment_convolve_transposed  x_i       = sum_ot G_c[o, k] d_i[o, t], added at patch k of t

are derivatives of one another, so that derivatives of every order are offered. The first one is a kernel of
the engine's, the others, which only derivatives ask for, are torch's convolutions segment by segment.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decoct.ops._backend import (
    Execution,
    as_matrix,
    backend_for,
    compute_dtype,
    dtype_name,
    offsets_or_uniform,
)
from decoct.ops._registry import Op

__all__ = ["LINEAR", "describe", "kernel_dtype", "outputs_of", "segment_outer"]

LINEAR = (1, 1, 1, 1, 0, 0, 1, 1, 1)
"""A linear layer as a convolution: kernel, stride, padding, dilation (height and width of each), groups."""

_OFFSETS = "Tensor? offsets, SymInt segments, int[] convolution"


def kernel_dtype(first: Tensor, second: Tensor) -> torch.dtype:
    """What products of these two are computed in."""
    return compute_dtype(torch.promote_types(first.dtype, second.dtype))


def outputs_of(size: int, k: int, convolution: Sequence[int]) -> int:
    """Height (k = 0) or width (k = 1) of what a convolution makes of one."""
    kernel, stride, padding, dilation = (convolution[2 * part + k] for part in range(4))
    return max((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1, 0)


# ---- segment_outer


@functools.lru_cache(maxsize=512)
def _plan(
    engine: Any,
    images: tuple[tuple[tuple[int, ...], tuple[int, ...], str], ...],
    offsets: bytes,
    convolution: tuple[int, ...],
    threads: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, int]:
    host = torch.frombuffer(bytearray(offsets), dtype=torch.int64)
    activations, gradients = (engine.Images(0, *(list(p) for p in part[:2]), part[2]) for part in images)
    layout, workspace = engine.plan_segment_outer(
        activations=activations,
        gradients=gradients,
        offsets=as_matrix(engine, host),
        convolution=list(convolution),
        threads=threads,
    )
    schedule = torch.from_numpy(layout.reshape(-1))
    return schedule, schedule.to(device), int(workspace)


def describe(images: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Sizes, strides and dtype: what a plan depends on."""
    return tuple(images.shape), images.stride(), dtype_name(images.dtype)


def _outer(
    a: Tensor,
    d: Tensor,
    w: Tensor | None,
    offsets: Tensor | None,
    segments: int,
    convolution: Sequence[int],
    bias: bool,
) -> tuple[Tensor, Tensor]:
    weight_out, bias_out = _outer_fake(a, d, w, offsets, segments, convolution, bias)
    if segments == 0:
        return weight_out, bias_out
    engine = backend_for("segment_outer", a.device)
    host = offsets_or_uniform(offsets, a.shape[0], segments)
    threads = torch.get_num_threads()
    described = describe(a), describe(d)
    planned = _plan(engine, described, host.numpy().tobytes(), tuple(convolution), threads, a.device)
    execution = Execution.of_plan(engine, a.device, *planned, threads)
    weights = None if w is None else w.to(weight_out.dtype).contiguous()
    execution.run(
        "segment_outer",
        activations=engine.Images(a.data_ptr(), *(list(p) for p in described[0][:2]), described[0][2]),
        gradients=engine.Images(d.data_ptr(), *(list(p) for p in described[1][:2]), described[1][2]),
        weights=as_matrix(engine, weights),
        offsets=as_matrix(engine, host),
        convolution=list(convolution),
        weight=as_matrix(engine, weight_out.view(segments, -1)),
        bias=as_matrix(engine, bias_out) if bias else None,
    )
    return weight_out, bias_out


def _outer_fake(
    a: Tensor,
    d: Tensor,
    w: Tensor | None,
    offsets: Tensor | None,
    segments: int,
    convolution: Sequence[int],
    bias: bool,
) -> tuple[Tensor, Tensor]:
    patch = a.shape[1] // convolution[8] * convolution[0] * convolution[1]
    dtype = kernel_dtype(a, d)
    outputs = d.shape[1]
    return (
        a.new_empty((segments, outputs, patch), dtype=dtype),
        a.new_empty((segments, outputs if bias else 0), dtype=dtype),
    )


def _outer_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> list[Tensor | None]:
    *tensors, ctx.segments, ctx.convolution, ctx.bias = inputs
    return tensors


def _per_image(w: Tensor | None, images: Tensor) -> Tensor:
    return images if w is None else w.to(kernel_dtype(w, images))[:, None, None, None] * images


def _outer_backward(ctx: Any, weight_bar: Tensor | None, bias_bar: Tensor | None) -> Any:
    a, d, w, offsets = ctx.saved_tensors
    rest = offsets, ctx.segments, ctx.convolution
    if not ctx.bias:
        bias_bar = None
    if weight_bar is None and bias_bar is None:
        return (None,) * 7
    if weight_bar is None:
        patch = a.shape[1] // ctx.convolution[8] * ctx.convolution[0] * ctx.convolution[1]
        weight_bar = bias_bar.new_zeros((ctx.segments, d.shape[1], patch))  # type: ignore[union-attr]
    a_bar = d_bar = w_bar = None
    if ctx.needs_input_grad[0]:
        size = list(a.shape[2:])
        a_bar = segment_convolve_transposed(_per_image(w, d), weight_bar, *rest, size).to(a.dtype)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        y = segment_convolve(a, weight_bar, bias_bar, *rest)
        d_bar = _per_image(w, y).to(d.dtype)
        if w is not None and ctx.needs_input_grad[2]:
            w_bar = (d * y).sum((1, 2, 3)).to(w.dtype)
    return a_bar, d_bar, w_bar, None, None, None, None


def _sum(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return functools.reduce(torch.add, there) if there else None


def _outer_jvp(ctx: Any, *tangents: Any) -> Any:
    a, d, w, offsets = ctx.saved_tensors
    rest = offsets, ctx.segments, ctx.convolution, ctx.bias
    a_dot, d_dot, w_dot = tangents[:3]
    moved = [segment_outer(a, d_dot, w, *rest)] if d_dot is not None else []
    if w_dot is not None:
        moved.append(segment_outer(a, d, w_dot, *rest))
    bias_dot = _sum([part[1] for part in moved])
    if a_dot is not None:
        moved.append(segment_outer(a_dot, d, w, *rest))
    return _sum([part[0] for part in moved]), bias_dot


_outer_op = Op(
    f"segment_outer(Tensor a, Tensor d, Tensor? w, {_OFFSETS}, bool bias) -> (Tensor, Tensor)",
    _outer,
    _outer_fake,
    backward=_outer_backward,
    jvp=_outer_jvp,
    vmap="rrros--",
    save=_outer_save,
)


def segment_outer(
    a: Tensor,
    d: Tensor,
    w: Tensor | None,
    offsets: Tensor | None,
    segments: int,
    convolution: Sequence[int],
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """(S, P, D) weight gradients of every segment, and (S, P) or, without `bias`, (S, 0) bias gradients, in
    the compute dtype. a (N, C, H, W) and d (N, P, H', W') of any strides; w (N,); offsets None: equal
    segments; convolution: nine numbers as in LINEAR. Differentiable to any order."""
    return _outer_op(a, d, w, offsets, segments, list(convolution), bias)


# ---- segment_convolve and its adjoint


def _pieces(offsets: Tensor | None, rows: int, segments: int) -> list[tuple[int, int, int]]:
    ends = offsets_or_uniform(offsets, rows, segments).tolist()
    return [(c, ends[c], ends[c + 1]) for c in range(segments) if ends[c] < ends[c + 1]]


def _kernels(weight: Tensor, a_channels: int, convolution: Sequence[int]) -> Tensor:
    return weight.reshape(*weight.shape[:2], a_channels // convolution[8], *convolution[:2])


def _convolve(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor | None,
    segments: int,
    convolution: Sequence[int],
) -> Tensor:
    y = _convolve_fake(a, weight, bias, offsets, segments, convolution).zero_()
    if y.numel() == 0:
        return y
    kernels = _kernels(weight.to(y.dtype), a.shape[1], convolution)
    with torch.autocast(a.device.type, enabled=False):
        for c, begin, end in _pieces(offsets, a.shape[0], segments):
            part = a[begin:end].to(y.dtype)
            shift = None if bias is None else bias[c].to(y.dtype)
            if tuple(convolution) == LINEAR:
                y[begin:end] = torch.einsum("nchw,pc->nphw", part, kernels[c, :, :, 0, 0])
                if shift is not None:
                    y[begin:end] += shift[:, None, None]
            elif part.numel():
                stride, padding, dilation = convolution[2:4], convolution[4:6], convolution[6:8]
                y[begin:end] = F.conv2d(part, kernels[c], shift, stride, padding, dilation, convolution[8])
            elif shift is not None:
                y[begin:end] = shift[:, None, None]
    return y


def _convolve_fake(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor | None,
    segments: int,
    convolution: Sequence[int],
) -> Tensor:
    height, width = (outputs_of(a.shape[2 + k], k, convolution) for k in range(2))
    return a.new_empty((a.shape[0], weight.shape[1], height, width), dtype=kernel_dtype(a, weight))


def _convolve_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> list[Tensor | None]:
    *tensors, ctx.segments, ctx.convolution = inputs
    return tensors


def _convolve_backward(ctx: Any, bar: Tensor) -> Any:
    a, weight, bias, offsets = ctx.saved_tensors
    rest = offsets, ctx.segments, ctx.convolution
    a_bar = weight_bar = bias_bar = None
    if ctx.needs_input_grad[0]:
        a_bar = segment_convolve_transposed(bar, weight, *rest, list(a.shape[2:])).to(a.dtype)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        weight_bar, bias_bar = segment_outer(a, bar, None, *rest, ctx.needs_input_grad[2])
        weight_bar = weight_bar.to(weight.dtype)
        bias_bar = None if bias is None else bias_bar.to(bias.dtype)
    return a_bar, weight_bar, bias_bar, None, None, None


def _convolve_jvp(ctx: Any, *tangents: Any) -> Any:
    a, weight, _, offsets = ctx.saved_tensors
    rest = offsets, ctx.segments, ctx.convolution
    a_dot, weight_dot, bias_dot = tangents[:3]
    parts: list[Tensor | None] = []
    if a_dot is not None:
        parts.append(segment_convolve(a_dot, weight, None, *rest))
    if weight_dot is not None or bias_dot is not None:
        there = torch.zeros_like(weight) if weight_dot is None else weight_dot
        parts.append(segment_convolve(a, there, bias_dot, *rest))
    return _sum(parts)


_convolve_op = Op(
    f"segment_convolve(Tensor a, Tensor weight, Tensor? bias, {_OFFSETS}) -> Tensor",
    _convolve,
    _convolve_fake,
    backward=_convolve_backward,
    jvp=_convolve_jvp,
    vmap="rrros-",
    save=_convolve_save,
)


def segment_convolve(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor | None,
    segments: int,
    convolution: Sequence[int],
) -> Tensor:
    """(N, P, H', W') convolutions of each segment's images with its own kernels (S, P, D) and bias (S, P)."""
    return _convolve_op(a, weight, bias, offsets, segments, list(convolution))


def _transposed(
    d: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    segments: int,
    convolution: Sequence[int],
    size: Sequence[int],
) -> Tensor:
    x = _transposed_fake(d, weight, offsets, segments, convolution, size).zero_()
    if x.numel() == 0 or d.numel() == 0:
        return x
    kernels = _kernels(weight.to(x.dtype), x.shape[1], convolution)
    with torch.autocast(d.device.type, enabled=False):
        for c, begin, end in _pieces(offsets, d.shape[0], segments):
            part = d[begin:end].to(x.dtype)
            if tuple(convolution) == LINEAR:
                x[begin:end] = torch.einsum("nphw,pc->nchw", part, kernels[c, :, :, 0, 0])
            else:
                stride, padding, dilation = convolution[2:4], convolution[4:6], convolution[6:8]
                x[begin:end] = torch.ops.aten.convolution_backward(
                    part,
                    x[begin:end],
                    kernels[c],
                    None,
                    stride,
                    padding,
                    dilation,
                    False,
                    [0, 0],
                    convolution[8],
                    [True, False, False],
                )[0]
    return x


def _transposed_fake(
    d: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    segments: int,
    convolution: Sequence[int],
    size: Sequence[int],
) -> Tensor:
    channels = weight.shape[2] // (convolution[0] * convolution[1]) * convolution[8]
    return d.new_empty((d.shape[0], channels, *size), dtype=kernel_dtype(d, weight))


def _transposed_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> list[Tensor | None]:
    *tensors, ctx.segments, ctx.convolution, ctx.size = inputs
    return tensors


def _transposed_backward(ctx: Any, bar: Tensor) -> Any:
    d, weight, offsets = ctx.saved_tensors
    rest = offsets, ctx.segments, ctx.convolution
    d_bar = weight_bar = None
    if ctx.needs_input_grad[0]:
        d_bar = segment_convolve(bar, weight, None, *rest).to(d.dtype)
    if ctx.needs_input_grad[1]:
        weight_bar = segment_outer(bar, d, None, *rest, False)[0].to(weight.dtype)
    return d_bar, weight_bar, None, None, None, None


def _transposed_jvp(ctx: Any, *tangents: Any) -> Any:
    d, weight, offsets = ctx.saved_tensors
    rest = offsets, ctx.segments, ctx.convolution, ctx.size
    d_dot, weight_dot = tangents[:2]
    return _sum(
        [
            None if d_dot is None else segment_convolve_transposed(d_dot, weight, *rest),
            None if weight_dot is None else segment_convolve_transposed(d, weight_dot, *rest),
        ]
    )


_transposed_op = Op(
    f"segment_convolve_transposed(Tensor d, Tensor weight, {_OFFSETS}, SymInt[] size) -> Tensor",
    _transposed,
    _transposed_fake,
    backward=_transposed_backward,
    jvp=_transposed_jvp,
    vmap="rros--",
    save=_transposed_save,
)


def segment_convolve_transposed(
    d: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    segments: int,
    convolution: Sequence[int],
    size: Sequence[int],
) -> Tensor:
    """(N, C, *size): the adjoint of `segment_convolve` in its images."""
    return _transposed_op(d, weight, offsets, segments, list(convolution), list(size))
