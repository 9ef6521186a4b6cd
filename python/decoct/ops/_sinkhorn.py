"""The registered op behind `sinkhorn_divergence` and `sinkhorn_potentials`.

`sinkhorn` solves, for each segment, the entropic problem of x with y and, where `terms` says so, those of x
and of y with themselves, all in one call. It returns the signed sum of their values, by what share of its
mass a marginal is missed, the iterations taken, the potentials, and in the same pass the derivatives by the
points that `need` asks for (envelope theorem). Derivatives by the weights are made of the potentials.

A cotangent that arrives at a derivative or at a potential goes through `sinkhorn_implicit`, which
differentiates the equations that the potentials solve.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decoct.ops import _transforms
from decoct.ops._backend import (
    XX,
    YY,
    Execution,
    X,
    Y,
    as_matrix,
    backend_for,
    compute_dtype,
    offsets_or_uniform,
    readable,
)
from decoct.ops._implicit import implicit, pushed
from decoct.ops._memory import result
from decoct.ops._plan import Settings, plan_product, uniform
from decoct.ops._registry import Op
from decoct.ops._rows import segment_totals, spread

__all__ = ["VALUE_ONLY", "Outputs", "sinkhorn"]

VALUE_ONLY = 1 << 8
"""A bit of `need`: no tangent but that of the value is used, which the others' equations need not be solved
for."""

_SCHEMA = (
    "Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? x_offsets, Tensor? y_offsets, SymInt segments, "
    "Tensor? x_labels, Tensor? y_labels, Tensor? label_cost, "
    "Tensor? f, Tensor? g, Tensor? f_self, Tensor? g_self, float[] numbers, int terms, int need"
)
_LAYOUT = "rrrroosrr-rrrr---"
_LABEL_COST = 9
_NO_SECOND = (
    "decoct: second derivatives of sinkhorn, and derivatives of its potentials, are not offered with mass or "
    "label_cost"
)


class Outputs(NamedTuple):
    """What the op returns; potentials in the compute dtype, those of self terms empty where there are
    none."""

    value: Tensor  # (C,) float64
    error: Tensor  # (C,) float64
    iterations: Tensor  # (C,) int64
    f: Tensor
    g: Tensor
    f_self: Tensor
    g_self: Tensor
    grad_x: Tensor
    grad_y: Tensor


def _outputs(x: Tensor, y: Tensor, segments: Any, terms: int, need: int) -> Outputs:
    """Zeros, but for derivatives, which engines write in full."""
    dtype = compute_dtype(x.dtype)

    def potential(rows: Tensor, wanted: bool) -> Tensor:
        return rows.new_zeros((rows.shape[0] if wanted else 0,), dtype=dtype)

    def points(rows: Tensor, wanted: int) -> Tensor:
        return result(rows, rows.shape if wanted else (0,), dtype)

    return Outputs(
        x.new_zeros((segments,), dtype=torch.float64),
        x.new_zeros((segments,), dtype=torch.float64),
        x.new_zeros((segments,), dtype=torch.int64),
        potential(x, True),
        potential(y, True),
        potential(x, bool(terms & XX)),
        potential(y, bool(terms & YY)),
        points(x, need & X),
        points(y, need & Y),
    )


def _check_labels(labels: Tensor | None, name: str, count: int) -> None:
    """The engine reads its table at these places."""
    if labels is None or labels.shape[0] == 0:
        return
    if labels.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    least, most = (int(end) for end in labels.aminmax())
    if least < 0 or most >= count:
        worst = least if least < 0 else most
        raise ValueError(
            f"sinkhorn: {name} must be in 0 ... L-1 with L={count} as in label_cost, got {worst}"
        )


def _pooled_diameter(x: Tensor, y: Tensor) -> float:
    """Of the box around the finite rows of all segments."""
    rows = torch.cat([x, y]).to(torch.float64)
    rows = rows[rows.isfinite().all(1)]
    if not rows.shape[0]:
        return 1.0
    return float((rows.amax(0) - rows.amin(0)).norm())


def _implementation(*arguments: Any) -> tuple[Tensor, ...]:
    x, y, a, b, x_offsets, y_offsets, segments, x_labels, y_labels, label_cost, *rest = arguments
    *start, numbers, terms, need = rest
    settings = Settings.unpacked(numbers)
    need &= X | Y
    outputs = _outputs(x, y, segments, terms, need)
    if segments == 0 or 0 in (x.shape[0], y.shape[0]):
        outputs.grad_x.zero_()
        outputs.grad_y.zero_()
        return tuple(outputs)
    engine = backend_for("sinkhorn", x.device)
    labels = 1 if label_cost is None else label_cost.shape[0]
    _check_labels(x_labels, "x_labels", labels)
    _check_labels(y_labels, "y_labels", labels)
    potentials = (outputs.f, outputs.g, outputs.f_self, outputs.g_self)
    for potential, begin in zip(potentials, start, strict=True):
        if begin is not None and potential.numel():
            potential.copy_(begin)
    ends = (
        offsets_or_uniform(x_offsets, x.shape[0], segments),
        offsets_or_uniform(y_offsets, y.shape[0], segments),
    )
    tensors: dict[str, Any] = {"x": readable(x), "y": readable(y), "x_offsets": ends[0], "y_offsets": ends[1]}
    given = {"a": a, "b": b, "x_labels": x_labels, "y_labels": y_labels, "label_cost": label_cost}
    tensors |= {name: None if part is None else readable(part) for name, part in given.items()}
    wanted = {"f_self": terms & XX, "g_self": terms & YY, "grad_x": need & X, "grad_y": need & Y}
    tensors |= {name: part if wanted.get(name, 1) else None for name, part in outputs._asdict().items()}
    diameter = _pooled_diameter(x, y) if settings.diameter < 0 else settings.diameter
    execution = Execution(
        engine,
        "sinkhorn",
        tensors["x"],
        tensors["y"],
        *ends,
        need=need,
        terms=terms,
        columns=labels,
        cost_budget=settings.cost_budget,
    )
    execution.run(
        "sinkhorn",
        **{name: as_matrix(engine, tensor) for name, tensor in tensors.items()},
        **settings.for_engine(diameter),
        warm=start[0] is not None,
        terms=terms,
        need=need,
    )
    return tuple(outputs)


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    return _outputs(arguments[0], arguments[1], arguments[6], *arguments[-2:])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    ctx.mark_non_differentiable(*output[1:3])
    ctx.segments, (ctx.numbers, ctx.terms, ctx.need) = inputs[6], inputs[14:]
    return *inputs[:6], *inputs[7:10], *output[3:]


class _Saved(NamedTuple):
    x: Tensor
    y: Tensor
    a: Tensor | None
    b: Tensor | None
    x_offsets: Tensor | None
    y_offsets: Tensor | None
    x_labels: Tensor | None
    y_labels: Tensor | None
    label_cost: Tensor | None
    f: Tensor
    g: Tensor
    f_self: Tensor
    g_self: Tensor
    grad_x: Tensor
    grad_y: Tensor


def _of_weights(saved: _Saved, settings: Settings, side: int, segments: int) -> Tensor:
    """The derivative of the value by the weights of one side: its potential, damped where the marginal may be
    missed, less that of the self term."""
    potential, own = ((saved.f, saved.f_self), (saved.g, saved.g_self))[side]
    if settings.mass > 0:
        return _of_partial_weights(saved, settings, side, segments)
    reach, eps = settings.strength(side), settings.eps

    def part(values: Tensor) -> Tensor:
        return values if math.isinf(reach) else -(reach + eps) * torch.expm1(-values / reach)

    if own.shape[0]:
        return part(potential) - part(own)
    # Half of eps, by which each term's value depends on its mass, is left where no self term takes it off.
    return part(potential) if settings.balanced else part(potential) - eps / 2


def _of_partial_weights(saved: _Saved, settings: Settings, side: int, segments: int) -> Tensor:
    """What a row adds, less what it sends: its potential without the multiplier of the mass, less eps times
    the share of the row that is transported."""
    rows = (
        (saved.x, saved.a, saved.x_offsets, saved.x_labels),
        (saved.y, saved.b, saved.y_offsets, saved.y_labels),
    )
    potentials = (saved.f, saved.g)
    (x, _, x_offsets, x_labels), (y, b, y_offsets, y_labels) = rows[side], rows[1 - side]
    plan = (x, y, x_offsets, y_offsets, segments, x_labels, y_labels, saved.label_cost)
    weights = uniform(b, y, y_offsets, segments)
    sent = plan_product(
        settings, *plan, potentials[side].detach(), potentials[1 - side].detach(), weights.detach()[:, None]
    )[:, 0]
    if side == 0:
        return saved.f - _multiplier(saved, segments) - settings.eps * sent
    return saved.g - settings.eps * sent


def _multiplier(saved: _Saved, segments: int) -> Tensor:
    """The multiplier of a partial problem's mass, for each row of x: the potentials without it are at most
    0, and 0 for some row unless all of x is sent."""
    f = saved.f.detach()
    if saved.x_offsets is None:
        most = f.reshape(segments, -1).amax(1) if f.shape[0] else f.new_zeros(segments)
    else:
        ids = spread(torch.arange(segments, device=f.device), saved.x_offsets, f.shape[0], segments)
        most = f.new_full((segments,), -math.inf).scatter_reduce(0, ids, f, "amax")
    return spread(most, saved.x_offsets, f.shape[0], segments)


def _backward(
    ctx: Any, value_bar: Tensor | None, error_bar: None, iterations_bar: None, *bars: Tensor | None
) -> Any:
    saved, settings = _Saved(*ctx.saved_tensors), Settings.unpacked(ctx.numbers)
    result: list[Tensor | None] = [None] * 4
    wanted = [bit for bit in range(4) if ctx.needs_input_grad[bit]]
    if value_bar is not None:
        for bit in wanted:
            side = bit % 2
            rows, offsets = ((saved.x, saved.x_offsets), (saved.y, saved.y_offsets))[side]
            if bit < 2:
                if not ctx.need >> bit & 1:
                    raise RuntimeError(
                        "decoct: a gradient is asked for that the forward pass was not told to compute"
                    )
                gradient = (saved.grad_x, saved.grad_y)[side]
            else:
                gradient = _of_weights(saved, settings, side, ctx.segments)
            scale = spread(value_bar.to(gradient.dtype), offsets, rows.shape[0], ctx.segments)
            result[bit] = (scale[:, None] if bit < 2 else scale) * gradient
    present = [saved.f, saved.g, saved.f_self, saved.g_self, saved.grad_x, saved.grad_y]
    bars = tuple(bar if part.numel() else None for bar, part in zip(bars, present, strict=True))
    if wanted and any(bar is not None for bar in bars):
        if settings.mass > 0 or saved.label_cost is not None:
            raise RuntimeError(_NO_SECOND)
        second = implicit(
            *saved[:6],
            ctx.segments,
            *saved[9:13],
            *bars,
            ctx.numbers,
            ctx.terms,
            sum(1 << bit for bit in wanted),
        )
        for bit in wanted:
            first = result[bit]
            result[bit] = second[bit] if first is None else first + second[bit]
    points = [part if part is None else part.to(saved.x.dtype) for part in result[:2]]
    return *points, *result[2:], *[None] * (len(_LAYOUT) - 4)


def _jvp(ctx: Any, *tangents: Any) -> Any:
    saved, settings = _Saved(*ctx.saved_tensors), Settings.unpacked(ctx.numbers)
    value_only = bool(ctx.need & VALUE_ONLY)
    if not value_only and (settings.mass > 0 or saved.label_cost is not None):
        raise RuntimeError(_NO_SECOND)
    value: Tensor | None = None
    dtype = saved.f.dtype
    for bit, tangent in enumerate(tangents[:4]):
        if tangent is None:
            continue
        side = bit % 2
        if bit < 2 and not ctx.need >> bit & 1:
            raise RuntimeError("decoct: a tangent arrived that the forward pass was not told of")
        gradient = (saved.grad_x, saved.grad_y)[side] if bit < 2 else None
        if gradient is None:
            gradient = _of_weights(saved, settings, side, ctx.segments)
        products = tangent.to(torch.float64) * gradient
        rows = products.sum(-1) if bit < 2 else products
        part = segment_totals(rows, (saved.x_offsets, saved.y_offsets)[side], ctx.segments)
        value = part if value is None else value + part
    if value_only:
        return value, None, None, *map(torch.zeros_like, saved[9:])  # the rest is not read
    moved = [None if tangent is None else tangent.to(dtype) for tangent in tangents[:4]]
    others = pushed(*saved[:6], ctx.segments, *saved[9:13], *moved, ctx.numbers, ctx.terms, ctx.need)
    return value, None, None, *others


def _vmap(function: Any, info: Any, dims: Any, *arguments: Any) -> Any:
    if dims[_LABEL_COST] is not None:
        raise RuntimeError("vmap over label_cost is not offered: a batch may differ in its rows and labels")
    if Settings.unpacked(arguments[14]).diameter < 0:
        raise RuntimeError("vmap over batches that share a diameter is not offered: give a number")
    return _transforms.batched(_LAYOUT, function, info, dims, *arguments)


_op = Op(
    f"sinkhorn({_SCHEMA}) -> ({', '.join(['Tensor'] * len(Outputs._fields))})",
    _implementation,
    _fake,
    backward=_backward,
    jvp=_jvp,
    vmap=_vmap,
    save=_save,
)


def sinkhorn(*arguments: Any) -> Outputs:
    """Solve all segments."""
    return Outputs(*_op(*arguments))
