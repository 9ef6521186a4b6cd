"""The registered ops behind `group_norm`: the value, its gradient, and the derivatives of that.

Derivatives of both orders are those of one form. With s a cotangent of the result, t a tangent of each of x,
weight and bias, and J the first derivative, Phi(s, t) = <s, J t>: `group_norm_grad` gives its derivatives by
t, `group_norm_second` those by s, x and weight. By bias it has none, for where ReLU is on does not change.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decoct.ops import _transforms
from decoct.ops._backend import backend_for, compute_dtype, dtype_name, stream_of
from decoct.ops._memory import result, scratch
from decoct.ops._registry import Op, autograd_function, chosen, needed, refuse

__all__ = ["norm"]

BY_X, BY_WEIGHT, BY_BIAS = 1, 2, 4
BY_GRAD = 8
"""Bits of a `need` mask: which derivatives an op computes. The others are returned without an element."""

_no_third = refuse("group_norm: first and second derivatives are computed, a third one is not offered")
_STATIC = "SymInt groups, float epsilon, bool relu, SymInt pool"
_PROBLEM = f"Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor factor, {_STATIC}"


@functools.lru_cache(maxsize=512)
def _planned(
    engine: Any,
    op: str,
    sizes: tuple[int, ...],
    relu: bool,
    last: bool,
    epsilon: float,
    dtype: str,
    threads: int,
) -> tuple[Any, int]:
    images, channels, groups, height, width, pool_height, pool_width = sizes
    shape = engine.NormShape(
        images=images,
        channels=channels,
        groups=groups,
        height=height,
        width=width,
        pool_height=pool_height,
        pool_width=pool_width,
        relu=relu,
        channels_last=last,
        epsilon=epsilon,
    )
    return shape, engine.group_norm_workspace(op, shape, dtype, threads)


def _windows(x: Tensor, pool: int) -> tuple[Any, Any, Any, Any]:
    """Height and width of the planes that the engine sees, and of their windows."""
    if x.dim() == 4:
        return x.shape[2], x.shape[3], pool, pool
    return 1, math.prod(x.shape[2:]), 1, pool


def _pooled_shape(x: Tensor, pool: int) -> tuple[Any, ...]:
    return (*x.shape[:2], *(side // pool for side in x.shape[2:]))


def _format(x: Tensor, groups: int) -> torch.memory_format:
    """Channels-last images are read in place where each channel is a group; else they are copied."""
    if x.dim() != 4 or groups != x.shape[1] or x.is_contiguous():
        return torch.contiguous_format
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class _Call:
    """One call of the engine: its shape, its scratch, and its tensors as the engine sees them. On a small
    problem this is most of the time."""

    def __init__(self, op: str, x: Tensor, groups: int, epsilon: float, relu: bool, pool: int) -> None:
        engine = backend_for("group_norm", x.device)
        self._engine, self._device = engine, x.device
        self._layout = _format(x, groups)
        self._images, self._groups = x.shape[0], groups
        self._rows = dtype_name(x.dtype)
        self._numbers = dtype_name(compute_dtype(x.dtype))
        self._kept: list[Tensor] = []
        threads = torch.get_num_threads()
        height, width, pool_height, pool_width = _windows(x, pool)
        sizes = (x.shape[0], x.shape[1], groups, height, width, pool_height, pool_width)
        last = self._layout is torch.channels_last
        shape, size = _planned(engine, op, sizes, relu, last, epsilon, self._rows, threads)
        self._scratch = scratch(size, x.device)
        self._options = {
            "shape": shape,
            "workspace": engine.Matrix(self._scratch.data_ptr(), size, 1, 1, "uint8"),
            "threads": threads,
            "stream": stream_of(x.device),
        }

    def image(self, tensor: Tensor | None) -> Any:
        """Of images; copied if they are laid out in another way than x is read."""
        if tensor is None:
            return None
        if not tensor.is_contiguous(memory_format=self._layout):
            tensor = tensor.contiguous(memory_format=self._layout)
            self._kept.append(tensor)
        columns = tensor.numel() // self._images
        return self._engine.Matrix(tensor.data_ptr(), self._images, columns, columns, self._rows)

    def statistic(self, tensor: Tensor) -> Any:
        """Of a number for each group of each image."""
        return self._matrix(tensor, self._images, self._groups)

    def vector(self, tensor: Tensor | None) -> Any:
        """Of a number for each channel."""
        return None if tensor is None else self._matrix(tensor, tensor.shape[0], 1)

    def _matrix(self, tensor: Tensor, rows: int, columns: int) -> Any:
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
            self._kept.append(tensor)
        return self._engine.Matrix(tensor.data_ptr(), rows, columns, columns, self._numbers)

    def run(self, name: str, **arguments: Any) -> None:
        function = getattr(self._engine, name)
        if self._device.type != "cuda":
            function(**arguments, **self._options)
            return
        with torch.cuda.device(self._device):
            function(**arguments, **self._options)


def _in_use(
    call: _Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, factor: Tensor
) -> dict[str, Any]:
    return {
        "x": call.image(x),
        "weight": call.vector(weight),
        "bias": call.vector(bias),
        "mean": call.statistic(mean),
        "factor": call.statistic(factor),
    }


# ---- the value, with the statistics of each group


def _value(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, epsilon: float, relu: bool, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    out, mean, factor = _value_fake(x, weight, bias, groups, epsilon, relu, pool)
    if x.numel() == 0:
        return out, mean.zero_(), factor.zero_()
    call = _Call("value", x, groups, epsilon, relu, pool)
    call.run("group_norm", **_in_use(call, x, weight, bias, mean, factor), out=call.image(out))
    return out, mean, factor


def _value_fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, epsilon: float, relu: bool, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    out = result(x, _pooled_shape(x, pool), x.dtype, _format(x, groups))
    statistics = compute_dtype(x.dtype)
    mean = x.new_empty((x.shape[0], groups), dtype=statistics)
    return out, mean, torch.empty_like(mean)


def _value_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    ctx.static = inputs[3:]
    ctx.mark_non_differentiable(*output[1:])
    return *inputs[:3], *output[1:]


def _value_backward(ctx: Any, bar: Tensor | None, *others: Any) -> Any:
    nothing = (None,) * 7
    need = needed(ctx.needs_input_grad[:3], BY_X, BY_WEIGHT, BY_BIAS)
    if bar is None or not need:
        return nothing
    parts = _grad(bar, *ctx.saved_tensors, *ctx.static, need)
    return (*chosen(parts, need, BY_X, BY_WEIGHT, BY_BIAS), *nothing[3:])


# ---- its gradient: derivatives of <grad, value> by x, weight and bias


def _grad_run(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    factor: Tensor,
    groups: int,
    epsilon: float,
    relu: bool,
    pool: int,
    need: int,
) -> tuple[Tensor, Tensor, Tensor]:
    parts = _grad_fake(grad, x, weight, bias, mean, factor, groups, need)
    if x.numel() == 0:
        return tuple(part.zero_() for part in parts)  # type: ignore[return-value]
    call = _Call("grad", x, groups, epsilon, relu, pool)
    call.run(
        "group_norm_grad",
        **_in_use(call, x, weight, bias, mean, factor),
        grad=call.image(grad),
        grad_x=call.image(parts[0]) if need & BY_X else None,
        grad_weight=call.vector(parts[1]) if need & BY_WEIGHT else None,
        grad_bias=call.vector(parts[2]) if need & BY_BIAS else None,
    )
    return parts


def _parameter(mean: Tensor, x: Tensor, wanted: int) -> Tensor:
    return mean.new_empty((x.shape[1] if wanted else 0,))


def _grad_fake(grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, _, _, mean, _, groups, *_, need = rest
    grad_x = result(x, x.shape, x.dtype, _format(x, groups)) if need & BY_X else x.new_empty((0,))
    return grad_x, _parameter(mean, x, need & BY_WEIGHT), _parameter(mean, x, need & BY_BIAS)


def _grad_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor | None, ...]:
    ctx.static, ctx.need = inputs[6:10], inputs[10]
    return inputs[:6]


def _grad_backward(ctx: Any, *bars: Tensor | None) -> Any:
    nothing = (None,) * 11
    need = needed(ctx.needs_input_grad[:3], BY_GRAD, BY_X, BY_WEIGHT)
    bars = chosen(bars, ctx.need, BY_X, BY_WEIGHT, BY_BIAS)
    if all(bar is None for bar in bars) or not need:
        return nothing
    parts = _second(*bars, *ctx.saved_tensors, *ctx.static, need)
    return (*chosen(parts, need, BY_GRAD, BY_X, BY_WEIGHT), *nothing[3:])


# ---- derivatives of <tangents, gradient> by grad, x and weight


def _second_run(
    tangent_x: Tensor | None,
    tangent_weight: Tensor | None,
    tangent_bias: Tensor | None,
    grad: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    factor: Tensor,
    groups: int,
    epsilon: float,
    relu: bool,
    pool: int,
    need: int,
) -> tuple[Tensor, Tensor, Tensor]:
    parts = _second_fake(None, None, None, grad, x, weight, bias, mean, factor, groups, pool, need)
    if x.numel() == 0:
        return tuple(part.zero_() for part in parts)  # type: ignore[return-value]
    call = _Call("second", x, groups, epsilon, relu, pool)
    call.run(
        "group_norm_second",
        **_in_use(call, x, weight, bias, mean, factor),
        grad=call.image(grad),
        tangent_x=call.image(tangent_x),
        tangent_weight=call.vector(tangent_weight),
        tangent_bias=call.vector(tangent_bias),
        out_grad=call.image(parts[0]) if need & BY_GRAD else None,
        out_x=call.image(parts[1]) if need & BY_X else None,
        out_weight=call.vector(parts[2]) if need & BY_WEIGHT else None,
    )
    return parts


def _second_fake(
    tangent_x: Tensor | None, tangent_weight: Tensor | None, tangent_bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _, x, _, _, mean, _, groups, *_, pool, need = rest
    layout = _format(x, groups)
    out_grad = result(x, _pooled_shape(x, pool), x.dtype, layout) if need & BY_GRAD else x.new_empty((0,))
    out_x = result(x, x.shape, x.dtype, layout) if need & BY_X else x.new_empty((0,))
    return out_grad, out_x, _parameter(mean, x, need & BY_WEIGHT)


# ---- the ops, batched and pushed forward


def _fold(info: Any, dims: Any, tensors: tuple[Any, ...], groups: int) -> tuple[list[Any], int]:
    """A batch of calls as one with `batch` times the channels: gradients of parameters then stay apart."""
    batch = info.batch_size
    folded: list[Any] = []
    for dim, tensor in zip(dims, tensors, strict=False):
        if tensor is None:
            folded.append(None)
            continue
        at = min(tensor.dim() - (dim is not None), 2) - 1  # before the channels
        if dim is None:
            whole = tensor.unsqueeze(at).expand(*tensor.shape[:at], batch, *tensor.shape[at:])
        else:
            whole = tensor.movedim(dim, at)
        folded.append(whole.flatten(at, at + 1))
    return folded, groups * batch


def _unfold(info: Any, outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    parts, dims = [], []
    for output in outputs:
        at = 0 if output.dim() == 1 else 1
        parts.append(output.unflatten(at, (info.batch_size, output.shape[at] // info.batch_size)))
        dims.append(at)
    return tuple(parts), tuple(dims)


def _batched(tensors: int) -> Callable[..., Any]:
    """The rule by which a function of `tensors` tensors, then groups and the rest, is batched."""

    def vmap(function: Any, info: Any, dims: Any, *arguments: Any) -> Any:
        _transforms.refuse_tracing()
        folded, groups = _fold(info, dims, arguments[:tensors], arguments[tensors])
        return _unfold(info, function(*folded, groups, *arguments[tensors + 1 :]))

    return vmap


def _value_jvp(ctx: Any, *tangents: Any) -> Any:
    moved = tangents[:3]
    if all(tangent is None for tangent in moved):
        return None, None, None
    return _tangent(*moved, *ctx.saved_tensors, *ctx.static)[0], None, None


def _grad_jvp(ctx: Any, *tangents: Any) -> Any:
    grad, *problem = ctx.saved_tensors
    moved_grad, *moved = tangents[:4]
    parts: list[Tensor | None] = [None, None, None]
    if moved_grad is not None:
        parts = list(_grad(moved_grad, *problem, *ctx.static, ctx.need))
    need = ctx.need & (BY_X | BY_WEIGHT)
    if need and any(tangent is not None for tangent in moved):
        _, by_x, by_weight = _second(*moved, grad, *problem, *ctx.static, need)
        for k, part in enumerate((by_x, by_weight)):
            if need & (BY_X, BY_WEIGHT)[k]:
                parts[k] = part if parts[k] is None else parts[k] + part  # type: ignore[operator]
    return tuple(parts)


def _tangent_value(*arguments: Any) -> Any:
    """The derivative of the value along tangents of x, weight and bias: Phi's by s."""
    tensors, static = arguments[:8], arguments[8:]
    return _second.registered(*tensors[:3], None, *tensors[3:], *static, BY_GRAD)


def _tangent_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor | None, ...]:
    ctx.static = inputs[8:]
    return inputs[:8]


def _tangent_backward(ctx: Any, bar: Tensor, *others: Any) -> Any:
    tangents, problem = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    need = needed(ctx.needs_input_grad[:3], BY_X, BY_WEIGHT, BY_BIAS)
    moved: tuple[Tensor | None, ...] = (None, None, None)
    if need:
        moved = chosen(_grad(bar, *problem, *ctx.static, need), need, BY_X, BY_WEIGHT, BY_BIAS)
    need = needed(ctx.needs_input_grad[3:5], BY_X, BY_WEIGHT)
    rest: tuple[Tensor | None, ...] = (None, None)
    if need:
        parts = _second(*tangents, bar, *problem, *ctx.static, need)
        rest = chosen(parts[1:], need, BY_X, BY_WEIGHT)
    return (*moved, *rest, *(None,) * 7)


norm = Op(
    f"group_norm(Tensor x, Tensor? weight, Tensor? bias, {_STATIC}) -> (Tensor, Tensor, Tensor)",
    _value,
    _value_fake,
    backward=_value_backward,
    jvp=_value_jvp,
    vmap=_batched(3),
    save=_value_save,
)
"""The result and the mean and 1 / sqrt(variance + epsilon) of each group."""
_grad = Op(
    f"group_norm_grad(Tensor grad, {_PROBLEM}, int need) -> (Tensor, Tensor, Tensor)",
    _grad_run,
    _grad_fake,
    backward=_grad_backward,
    jvp=_grad_jvp,
    vmap=_batched(6),
    save=_grad_save,
)
_second = Op(
    "group_norm_second(Tensor? tangent_x, Tensor? tangent_weight, Tensor? tangent_bias, Tensor? grad, "
    f"{_PROBLEM}, int need) -> (Tensor, Tensor, Tensor)",
    _second_run,
    _second_fake,
    backward=_no_third,
    jvp=_no_third,
    vmap=_batched(9),
)
_tangent = autograd_function(
    "group_norm_tangent",
    _tangent_value,
    backward=_tangent_backward,
    jvp=refuse("group_norm: forward-mode derivatives of forward-mode ones are not offered"),
    vmap=_batched(8),
    save=_tangent_save,
)
