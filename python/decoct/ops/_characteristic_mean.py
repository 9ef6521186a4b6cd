"""The registered ops behind `characteristic_mean`: the sums, their gradient, and the derivatives of that.

Derivatives of both orders are those of one form. With bars of both results and a tangent of each of x,
frequencies and weights, Phi = <bars, J tangents>: `characteristic_mean_grad` gives its derivatives by the
tangents, `characteristic_mean_second` those by the bars, x, frequencies and weights.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from decoct.ops import _transforms
from decoct.ops._backend import (
    Execution,
    as_matrix,
    backend_for,
    compute_dtype,
    dtype_name,
    offsets_or_uniform,
    readable,
)
from decoct.ops._registry import refuse, register

__all__ = ["characteristic_sums"]

BY_X, BY_FREQUENCIES, BY_WEIGHTS, BY_BARS = 1, 2, 4, 8
"""Bits of a `need` mask: which derivatives an op computes. The others are returned without an element."""

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


def _needed(wanted: Any, *bits: int) -> int:
    return sum(bit for bit, want in zip(bits, wanted, strict=True) if want)


def _chosen(parts: Any, need: int, *bits: int) -> tuple[Tensor | None, ...]:
    return tuple(part if need & bit else None for part, bit in zip(parts, bits, strict=True))


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
    x: Tensor, frequencies: Tensor, weights: Tensor, offsets: Tensor | None, segments: int
) -> tuple[Tensor, Tensor]:
    cosine, sine = _value_fake(x, frequencies, weights, offsets, segments)
    _run("value", x, frequencies, weights, offsets, segments, cosine=cosine, sine=sine)
    return cosine, sine


def _value_fake(
    x: Tensor, frequencies: Tensor, weights: Tensor, offsets: Tensor | None, segments: int
) -> tuple[Tensor, Tensor]:
    shape = (segments, frequencies.shape[0])
    dtype = compute_dtype(x.dtype)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


def _value_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.segments = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _both(bars: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
    """The two bars, of which one may be missing."""
    cosine, sine = bars
    if cosine is None:
        assert sine is not None
        return torch.zeros_like(sine), sine
    return cosine, torch.zeros_like(cosine) if sine is None else sine


def _value_backward(ctx: Any, *bars: Tensor | None) -> Any:
    need = _needed(ctx.needs_input_grad[:3], BY_X, BY_FREQUENCIES, BY_WEIGHTS)
    if all(bar is None for bar in bars) or not need:
        return (None,) * 5
    problem = ctx.saved_tensors
    parts = _grad(*_both(bars), *problem, ctx.segments, need)
    chosen = _chosen(parts, need, BY_X, BY_FREQUENCIES, BY_WEIGHTS)
    return (*_cast(chosen, *problem[:3]), None, None)


_value_op = register(
    f"characteristic_mean({_PROBLEM}) -> (Tensor, Tensor)", _value, _value_fake, _value_backward, _value_setup
)


# ---- their gradient: derivatives of <bars, sums> by x, frequencies and weights


def _outputs(x: Tensor, frequencies: Tensor, weights: Tensor, need: int) -> Triple:
    dtype = compute_dtype(x.dtype)

    def like(tensor: Tensor, bit: int) -> Tensor:
        return tensor.new_empty(tensor.shape if need & bit else (0,), dtype=dtype)

    return like(x, BY_X), like(frequencies, BY_FREQUENCIES), like(weights, BY_WEIGHTS)


def _named(parts: Triple, need: int) -> dict[str, Tensor | None]:
    names = ("out_x", "out_frequencies", "out_weights")
    return dict(zip(names, _chosen(parts, need, BY_X, BY_FREQUENCIES, BY_WEIGHTS), strict=True))


def _grad_run(
    bar_cosine: Tensor,
    bar_sine: Tensor,
    x: Tensor,
    frequencies: Tensor,
    weights: Tensor,
    offsets: Tensor | None,
    segments: int,
    need: int,
) -> Triple:
    parts = _outputs(x, frequencies, weights, need)
    bars = {"bar_cosine": bar_cosine, "bar_sine": bar_sine}
    _run("grad", x, frequencies, weights, offsets, segments, **bars, **_named(parts, need))
    return parts


def _grad_fake(
    bar_cosine: Tensor,
    bar_sine: Tensor,
    x: Tensor,
    frequencies: Tensor,
    weights: Tensor,
    offsets: Tensor | None,
    segments: int,
    need: int,
) -> Triple:
    return _outputs(x, frequencies, weights, need)


def _grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.segments, ctx.need = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _grad_backward(ctx: Any, *tangents: Tensor | None) -> Any:
    wanted = ctx.needs_input_grad
    need = _needed(wanted[2:5], BY_X, BY_FREQUENCIES, BY_WEIGHTS) | (BY_BARS if any(wanted[:2]) else 0)
    tangents = _chosen(tangents, ctx.need, BY_X, BY_FREQUENCIES, BY_WEIGHTS)
    if all(tangent is None for tangent in tangents) or not need:
        return (None,) * 8
    inputs = ctx.saved_tensors
    parts = _second(*tangents, *inputs, ctx.segments, need)
    chosen = _chosen(parts, need, BY_BARS, BY_BARS, BY_X, BY_FREQUENCIES, BY_WEIGHTS)
    return (*_cast(chosen, *inputs[:5]), None, None, None)


_grad_op = register(
    f"characteristic_mean_grad(Tensor bar_cosine, Tensor bar_sine, {_PROBLEM}, int need)"
    " -> (Tensor, Tensor, Tensor)",
    _grad_run,
    _grad_fake,
    _grad_backward,
    _grad_setup,
)


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
    parts = _second_fake(
        *(tangent_x, tangent_frequencies, tangent_weights, bar_cosine, bar_sine),
        *(x, frequencies, weights, offsets, segments, need),
    )
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


def _second_fake(
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
    shape = (segments, frequencies.shape[0]) if need & BY_BARS else (0,)
    dtype = compute_dtype(x.dtype)
    sums = x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)
    return (*sums, *_outputs(x, frequencies, weights, need))


_second_op = register(
    "characteristic_mean_second(Tensor? tangent_x, Tensor? tangent_frequencies, Tensor? tangent_weights, "
    f"Tensor? bar_cosine, Tensor? bar_sine, {_PROBLEM}, int need)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _second_run,
    _second_fake,
    refuse(_THIRD),
)


# ---- the same ops as autograd functions, for torch.func and forward-mode AD


def _one_by_one(function: Any) -> Any:
    """The rule by which an autograd function is batched: call by call, for frequencies have no segments into
    which a batch of them could be folded."""

    def vmap(info: Any, dims: Any, *arguments: Any) -> Any:
        _transforms.refuse_tracing()
        calls = []
        for k in range(info.batch_size):
            chosen = [
                part if dim is None else part.select(dim, k)
                for part, dim in zip(arguments, dims, strict=True)
            ]
            calls.append(_transforms.run(function(), *chosen))
        outputs = tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
        return outputs, (0,) * len(outputs)

    return vmap


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _transforms.forward(_value, _value_op, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _value_setup(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])

    backward = staticmethod(_value_backward)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        if all(tangent is None for tangent in tangents[:3]):
            return None, None
        return _transforms.run(_Tangent, *tangents[:3], *ctx.saved_tensors, ctx.segments)

    vmap = staticmethod(_one_by_one(lambda: _Value))


class _Grad(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _transforms.forward(_grad_run, _grad_op, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _grad_setup(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:6])

    backward = staticmethod(_grad_backward)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        bar_cosine, bar_sine, *problem = ctx.saved_tensors
        bars, moved = tangents[:2], tangents[2:5]
        bits = (BY_X, BY_FREQUENCIES, BY_WEIGHTS)
        parts: list[Tensor | None] = [None, None, None]
        if any(bar is not None for bar in bars):
            parts = list(_chosen(_grad(*_both(bars), *problem, ctx.segments, ctx.need), ctx.need, *bits))
        if any(tangent is not None for tangent in moved):
            along = _second(*moved, bar_cosine, bar_sine, *problem, ctx.segments, ctx.need)[2:]
            chosen = _chosen(along, ctx.need, *bits)
            parts = [_plus(*pair) for pair in zip(parts, chosen, strict=True)]
        # What was not wanted has no elements, and must have a tangent all the same.
        return tuple(bar_sine.new_zeros(0) if part is None else part for part in parts)

    vmap = staticmethod(_one_by_one(lambda: _Grad))


class _Second(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _transforms.forward(_second_run, _second_op, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    backward = staticmethod(refuse(_THIRD))
    jvp = staticmethod(refuse(_THIRD))
    vmap = staticmethod(_one_by_one(lambda: _Second))


class _Tangent(torch.autograd.Function):
    """The derivative of the sums along tangents of x, frequencies and weights: that of Phi by the bars."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        tangents, problem, segments = arguments[:3], arguments[3:7], arguments[7]
        return tuple(_second_op(*tangents, None, None, *problem, segments, BY_BARS)[:2])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.segments = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> Any:
        if all(bar is None for bar in bars):
            return (None,) * 8
        tangents, problem = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        bits = (BY_X, BY_FREQUENCIES, BY_WEIGHTS)
        moved: tuple[Tensor | None, ...] = (None, None, None)
        rest = moved
        need = _needed(ctx.needs_input_grad[:3], *bits)
        if need:
            moved = _chosen(_grad(*_both(bars), *problem, ctx.segments, need), need, *bits)
            moved = _cast(moved, *problem[:3])
        need = _needed(ctx.needs_input_grad[3:6], *bits)
        if need:
            parts = _second(*tangents, *_both(bars), *problem, ctx.segments, need)
            rest = _cast(_chosen(parts[2:], need, *bits), *problem[:3])
        return (*moved, *rest, None, None)

    jvp = staticmethod(
        refuse("characteristic_mean: forward-mode derivatives of forward-mode ones are not offered")
    )
    vmap = staticmethod(_one_by_one(lambda: _Tangent))


def characteristic_sums(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Weighted sums of cosines and sines, (segments, F) each."""
    return _transforms.call(_Value, _value_op, *arguments)  # type: ignore[no-any-return]


def _grad(*arguments: Any) -> Triple:
    return _transforms.call(_Grad, _grad_op, *arguments)  # type: ignore[no-any-return]


def _second(*arguments: Any) -> tuple[Tensor, ...]:
    return _transforms.call(_Second, _second_op, *arguments)  # type: ignore[no-any-return]
