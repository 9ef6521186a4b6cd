"""The registered ops behind `characteristic_mean`: the sums, their gradient, and the derivatives of that.

The value hands the products <x_i, f_j> on to its gradient where it is told to keep them.

Derivatives of both orders are those of one form. With bars of both results and a tangent of each of x,
frequencies and weights, Phi = <bars, J tangents>: `characteristic_mean_grad` gives its derivatives by the
tangents, `characteristic_mean_second` those by the bars, x, frequencies and weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoct.ops._backend import (
    Execution,
    as_matrix,
    backend_for,
    compute_dtype,
    dtype_name,
    offsets_or_uniform,
    readable,
)
from decoct.ops._registry import Op, autograd_function, chosen, needed, refuse
from decoct.ops._transforms import one_by_one

__all__ = ["characteristic_sums"]

BY_X, BY_FREQUENCIES, BY_WEIGHTS, BY_BARS = 1, 2, 4, 8
"""Bits of a `need` mask: which derivatives an op computes. The others are returned without an element."""
_BITS = BY_X, BY_FREQUENCIES, BY_WEIGHTS

_PARTS = (
    *("cosine", "sine", "tangent_x", "tangent_frequencies"),
    *("tangent_weights", "out_x", "out_frequencies", "out_weights"),
)
"""What not every call has, as the engine counts it."""

_THIRD = "characteristic_mean: first and second derivatives are computed, a third one is not offered"
_PROBLEM = "Tensor x, Tensor frequencies, Tensor weights, Tensor? offsets, SymInt segments"

Triple = tuple[Tensor, Tensor, Tensor]


@functools.lru_cache(maxsize=512)
def _plan(
    engine: Any,
    op: str,
    sizes: tuple[int, int, int],
    dtype: str,
    offsets: bytes,
    parts: int,
    threads: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, int]:
    rows, columns, dim = sizes
    host = torch.frombuffer(bytearray(offsets), dtype=torch.int64)
    layout, workspace = engine.plan_characteristic(
        op=op,
        x=engine.Matrix(0, rows, dim, dim, dtype),
        frequencies=engine.Matrix(0, columns, dim, dim, dtype),
        offsets=as_matrix(engine, host),
        parts=parts,
        threads=threads,
    )
    schedule = torch.from_numpy(layout.reshape(-1))
    return schedule, schedule.to(device), int(workspace)


def _solid(tensor: Tensor) -> Tensor:
    """The tensor; memory with zeros for one of autograd's that has none."""
    if not tensor._is_zerotensor():
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _run(
    op: str,
    x: Tensor,
    frequencies: Tensor,
    weights: Tensor,
    offsets: Tensor | None,
    segments: int,
    **others: Tensor | None,
) -> None:
    engine = backend_for("characteristic_mean", x.device)
    host = offsets_or_uniform(offsets, x.shape[0], segments)
    x, frequencies, weights = readable(x), readable(frequencies), readable(weights)
    read = {name: readable(_solid(value)) for name, value in others.items() if value is not None}
    parts = sum(1 << k for k, name in enumerate(_PARTS) if name in read)
    threads = torch.get_num_threads()
    sizes = (x.shape[0], frequencies.shape[0], x.shape[1])
    planned = _plan(engine, op, sizes, dtype_name(x.dtype), host.numpy().tobytes(), parts, threads, x.device)
    execution = Execution.of_plan(engine, x.device, *planned, threads)
    execution.run(
        "characteristic",
        op=op,
        x=as_matrix(engine, x),
        frequencies=as_matrix(engine, frequencies),
        weights=as_matrix(engine, weights),
        offsets=as_matrix(engine, host),
        **{name: as_matrix(engine, value) for name, value in read.items()},
    )


def _cast(parts: tuple[Tensor | None, ...], *inputs: Tensor) -> tuple[Tensor | None, ...]:
    """Derivatives in the dtypes of what they are derivatives by."""
    pairs = zip(parts, inputs, strict=True)
    return tuple(None if part is None else part.to(given.dtype) for part, given in pairs)


def _plus(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


# ---- the sums


def _value(
    x: Tensor, frequencies: Tensor, weights: Tensor, offsets: Tensor | None, segments: int, keep: bool
) -> Triple:
    cosine, sine, products = _value_fake(x, frequencies, weights, offsets, segments, keep)
    kept = {"products": products if keep else None}
    _run("value", x, frequencies, weights, offsets, segments, cosine=cosine, sine=sine, **kept)
    return cosine, sine, products


def _value_fake(
    x: Tensor, frequencies: Tensor, weights: Tensor, offsets: Tensor | None, segments: int, keep: bool
) -> Triple:
    shape = (segments, frequencies.shape[0])
    dtype = compute_dtype(x.dtype)
    products = x.new_empty((x.shape[0], frequencies.shape[0]) if keep else (0,), dtype=dtype)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype), products


def _value_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor | None]:
    *tensors, ctx.segments, keep = inputs
    ctx.mark_non_differentiable(output[2])
    return [*tensors, output[2] if keep else None]


def _both(bars: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
    """The two bars, of which one may be missing."""
    cosine, sine = bars
    if cosine is None:
        assert sine is not None
        return torch.zeros_like(sine), sine
    return cosine, torch.zeros_like(cosine) if sine is None else sine


def _value_backward(ctx: Any, *bars: Tensor | None) -> Any:
    need = needed(ctx.needs_input_grad[:3], *_BITS)
    bars = bars[:2]
    if all(bar is None for bar in bars) or not need:
        return (None,) * 6
    *problem, products = ctx.saved_tensors
    own = chosen(_grad(*_both(bars), *problem, ctx.segments, products, need), need, *_BITS)
    return (*_cast(own, *problem[:3]), None, None, None)


# ---- their gradient: derivatives of <bars, sums> by x, frequencies and weights


def _outputs(x: Tensor, frequencies: Tensor, weights: Tensor, need: int) -> Triple:
    dtype = compute_dtype(x.dtype)

    def like(tensor: Tensor, bit: int) -> Tensor:
        return tensor.new_empty(tensor.shape if need & bit else (0,), dtype=dtype)

    return like(x, BY_X), like(frequencies, BY_FREQUENCIES), like(weights, BY_WEIGHTS)


def _named(parts: Triple, need: int) -> dict[str, Tensor | None]:
    names = ("out_x", "out_frequencies", "out_weights")
    return dict(zip(names, chosen(parts, need, *_BITS), strict=True))


def _grad_run(
    bar_cosine: Tensor,
    bar_sine: Tensor,
    x: Tensor,
    frequencies: Tensor,
    weights: Tensor,
    offsets: Tensor | None,
    segments: int,
    products: Tensor | None,
    need: int,
) -> Triple:
    parts = _outputs(x, frequencies, weights, need)
    bars = {"bar_cosine": bar_cosine, "bar_sine": bar_sine, "products": products}
    _run("grad", x, frequencies, weights, offsets, segments, **bars, **_named(parts, need))
    return parts


def _grad_fake(*arguments: Any) -> Triple:
    x, frequencies, weights, *_, need = arguments[2:]
    return _outputs(x, frequencies, weights, need)


def _grad_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor | None]:
    *tensors, ctx.segments, _, ctx.need = inputs
    return tensors


def _grad_backward(ctx: Any, *tangents: Tensor | None) -> Any:
    wanted = ctx.needs_input_grad
    need = needed(wanted[2:5], *_BITS) | (BY_BARS if any(wanted[:2]) else 0)
    tangents = chosen(tangents, ctx.need, *_BITS)
    if all(tangent is None for tangent in tangents) or not need:
        return (None,) * 9
    inputs = ctx.saved_tensors
    parts = _second(*tangents, *inputs, ctx.segments, need)
    own = chosen(parts, need, BY_BARS, BY_BARS, *_BITS)
    return (*_cast(own, *inputs[:5]), None, None, None, None)


# ---- derivatives of <tangents, gradient> by the bars, x, frequencies and weights


def _second_run(
    tangent_x: Tensor | None,
    tangent_frequencies: Tensor | None,
    tangent_weights: Tensor | None,
    bar_cosine: Tensor | None,
    bar_sine: Tensor | None,
    x: Tensor,
    frequencies: Tensor,
    weights: Tensor,
    offsets: Tensor | None,
    segments: int,
    need: int,
) -> tuple[Tensor, ...]:
    parts = _second_fake(*(None,) * 5, x, frequencies, weights, offsets, segments, need)
    cosine, sine, *rest = parts
    tangents = {
        "tangent_x": tangent_x,
        "tangent_frequencies": tangent_frequencies,
        "tangent_weights": tangent_weights,
    }
    others = {
        **{name: None if t is None else t.to(compute_dtype(x.dtype)) for name, t in tangents.items()},
        "bar_cosine": bar_cosine,
        "bar_sine": bar_sine,
        "cosine": cosine if need & BY_BARS else None,
        "sine": sine if need & BY_BARS else None,
        **_named((rest[0], rest[1], rest[2]), need),
    }
    _run("second", x, frequencies, weights, offsets, segments, **others)
    return parts


def _second_fake(*arguments: Any) -> tuple[Tensor, ...]:
    x, frequencies, weights, _, segments, need = arguments[5:]
    shape = (segments, frequencies.shape[0]) if need & BY_BARS else (0,)
    dtype = compute_dtype(x.dtype)
    sums = x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)
    return (*sums, *_outputs(x, frequencies, weights, need))


# ---- the ops, pushed forward; frequencies have no segments that a batch of them could be folded into


def _value_jvp(ctx: Any, *tangents: Any) -> Any:
    if all(tangent is None for tangent in tangents[:3]):
        return None, None, None
    return *_tangent(*tangents[:3], *ctx.saved_tensors[:4], ctx.segments), None


def _grad_jvp(ctx: Any, *tangents: Any) -> Any:
    bar_cosine, bar_sine, *problem = ctx.saved_tensors
    bars, moved = tangents[:2], tangents[2:5]
    parts: list[Tensor | None] = [None, None, None]
    if any(bar is not None for bar in bars):
        found = _grad(*_both(bars), *problem, ctx.segments, None, ctx.need)
        parts = list(chosen(found, ctx.need, *_BITS))
    if any(tangent is not None for tangent in moved):
        along = _second(*moved, bar_cosine, bar_sine, *problem, ctx.segments, ctx.need)[2:]
        parts = [_plus(*pair) for pair in zip(parts, chosen(along, ctx.need, *_BITS), strict=True)]
    # What was not wanted has no elements, and must have a tangent all the same.
    return tuple(bar_sine.new_zeros(0) if part is None else part for part in parts)


def _tangent_value(*arguments: Any) -> Any:
    """The derivative of the sums along tangents of x, frequencies and weights: that of Phi by the bars."""
    tangents, problem, segments = arguments[:3], arguments[3:7], arguments[7]
    return tuple(_second.registered(*tangents, None, None, *problem, segments, BY_BARS)[:2])


def _tangent_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Sequence[Tensor | None]:
    *tensors, ctx.segments = inputs
    return tensors


def _tangent_backward(ctx: Any, *bars: Tensor | None) -> Any:
    tangents, problem = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    moved: tuple[Tensor | None, ...] = (None, None, None)
    rest = moved
    need = needed(ctx.needs_input_grad[:3], *_BITS)
    if need:
        moved = chosen(_grad(*_both(bars), *problem, ctx.segments, None, need), need, *_BITS)
        moved = _cast(moved, *problem[:3])
    need = needed(ctx.needs_input_grad[3:6], *_BITS)
    if need:
        parts = _second(*tangents, *_both(bars), *problem, ctx.segments, need)
        rest = _cast(chosen(parts[2:], need, *_BITS), *problem[:3])
    return (*moved, *rest, None, None)


_value_op = Op(
    f"characteristic_mean({_PROBLEM}, bool keep) -> (Tensor, Tensor, Tensor)",
    _value,
    _value_fake,
    backward=_value_backward,
    jvp=_value_jvp,
    vmap=one_by_one,
    save=_value_save,
)
_grad = Op(
    f"characteristic_mean_grad(Tensor bar_cosine, Tensor bar_sine, {_PROBLEM}, Tensor? products, int need)"
    " -> (Tensor, Tensor, Tensor)",
    _grad_run,
    _grad_fake,
    backward=_grad_backward,
    jvp=_grad_jvp,
    vmap=one_by_one,
    save=_grad_save,
)
_second = Op(
    "characteristic_mean_second(Tensor? tangent_x, Tensor? tangent_frequencies, Tensor? tangent_weights, "
    f"Tensor? bar_cosine, Tensor? bar_sine, {_PROBLEM}, int need)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _second_run,
    _second_fake,
    backward=refuse(_THIRD),
    jvp=refuse(_THIRD),
    vmap=one_by_one,
)
_tangent = autograd_function(
    "characteristic_mean_tangent",
    _tangent_value,
    backward=_tangent_backward,
    jvp=refuse("characteristic_mean: forward-mode derivatives of forward-mode ones are not offered"),
    vmap=one_by_one,
    save=_tangent_save,
)


def characteristic_sums(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Weighted sums of cosines and sines, (segments, F) each; arguments of the registered op."""
    cosine, sine, _ = _value_op(*arguments)
    return cosine, sine
