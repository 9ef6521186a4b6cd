"""The registered ops behind `gradient_distance`: values and wanted gradients in one pass over lists of
tensors, and the derivative of these gradients along tangents.

What describes a call travels as `settings`: shapes (outer, rows, inner of each tensor, one behind the other),
classes, metric, form of epsilon, epsilon. Gradients are flat, one tensor behind the other, in the dtype of
computation. Without a compiler or a transform to watch it, a call is one autograd function of all tensors,
whose gradient the first backward pass hands out as it is: no number is written twice.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoct.ops import _transforms
from decoct.ops._backend import as_matrix, backend_for, compute_dtype, dtype_name, stream_of
from decoct.ops._memory import result, scratch
from decoct.ops._registry import autograd_function, refuse, register

__all__ = ["REAL", "SYNTHETIC", "distance"]

REAL, SYNTHETIC = 1, 2
"""Bits of `need`: the sides whose gradients are wanted."""


@functools.lru_cache(maxsize=256)
def _layout(
    engine: Any, dtype: str, shapes: tuple[int, ...], classes: int, metric: str, form: str, epsilon: float
) -> tuple[Any, int]:
    """The engine's layout of a call, and how many bytes it works in."""
    triples = list(zip(shapes[::3], shapes[1::3], shapes[2::3], strict=True))
    layout = engine.GradientLayout(
        metric=metric, epsilon_form=form, epsilon=epsilon, dtype=dtype, classes=classes, shapes=triples
    )
    return layout, layout.workspace_bytes


def _run(
    real: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    settings: Sequence[Any],
    need: int,
    tangents: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    some = synthetic[0]
    device, dtype = some.device, compute_dtype(some.dtype)
    engine = backend_for("gradient_distance", device)
    shapes, classes, *rest = settings
    layout, size = _layout(engine, dtype_name(some.dtype), tuple(shapes), classes, *rest)
    # Kept until the call returns: copies of what is not contiguous.
    sides = [[t if t.is_contiguous() else t.contiguous() for t in side] for side in (real, synthetic)]
    value = torch.empty(classes if tangents is None else 0, dtype=dtype, device=device)
    elements = sum(t.numel() for t in synthetic)
    out = [result(some, (elements if need & side else 0,), dtype) for side in (REAL, SYNTHETIC)]
    moved = (None, None) if tangents is None else tuple(t.contiguous() for t in tangents)
    kept = scratch(size, device)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        engine.gradient_distance(
            layout,
            [t.data_ptr() for t in sides[0]],
            [t.data_ptr() for t in sides[1]],
            as_matrix(engine, value) if tangents is None else None,
            as_matrix(engine, moved[0]),
            as_matrix(engine, moved[1]),
            as_matrix(engine, out[0]) if need & REAL else None,
            as_matrix(engine, out[1]) if need & SYNTHETIC else None,
            as_matrix(engine, kept),
            torch.get_num_threads(),
            stream_of(device),
        )
    return value, out[0], out[1]


def _views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The same as `_parts` for tensors that nobody watches, by one call."""
    return list(torch._utils._unflatten_dense_tensors(flat, like))


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of what is flat in the shapes of a list."""
    pieces = flat.split([t.numel() for t in like])
    return [piece.view(t.shape) for piece, t in zip(pieces, like, strict=True)]


def _scaled(part: Tensor, bar: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """The gradient of one tensor times what arrives at each class's value."""
    return (part.reshape(classes, -1) * bar.reshape(classes, 1)).reshape(part.shape).to(dtype)


def _typed(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
    return [g if g is None else g.to(t.dtype) for g, t in zip(grads, like, strict=True)]


# ---- the derivative of the gradients: terminal


def _hvp(
    real: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    tangent_real: Tensor,
    tangent_synthetic: Tensor,
    shapes: Sequence[int],
    classes: int,
    metric: str,
    form: str,
    epsilon: float,
    need: int,
) -> tuple[Tensor, Tensor]:
    settings = (shapes, classes, metric, form, epsilon)
    return _run(real, synthetic, settings, need, (tangent_real, tangent_synthetic))[1:]


def _flats_fake(synthetic: Sequence[Tensor], need: int) -> tuple[Tensor, Tensor]:
    some, elements = synthetic[0], sum(t.numel() for t in synthetic)
    real, other = (
        some.new_empty(elements if need & side else 0, dtype=compute_dtype(some.dtype))
        for side in (REAL, SYNTHETIC)
    )
    return real, other


def _hvp_fake(real: Any, synthetic: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    return _flats_fake(synthetic, rest[-1])


_SETTINGS = "SymInt[] shapes, SymInt classes, str metric, str epsilon_form, float epsilon, int need"
_no_third = refuse("gradient_distance has first and second derivatives; a third one is not offered")
_hvp_op = register(
    "gradient_distance_hvp(Tensor[] real, Tensor[] synthetic, Tensor tangent_real, "
    f"Tensor tangent_synthetic, {_SETTINGS}) -> (Tensor, Tensor)",
    _hvp,
    _hvp_fake,
    _no_third,
)


def _hvp_parts(settings: Any, need: int, *tensors: Tensor) -> Any:
    """The same on lists: real, synthetic and the tangents of both, to the wanted parts of both."""
    count = len(tensors) // 4
    lists = [tensors[i * count : (i + 1) * count] for i in range(4)]
    dtype = compute_dtype(tensors[0].dtype)
    flat = [torch.cat([t.reshape(-1) for t in moved]).to(dtype) for moved in lists[2:]]
    compute: Any = _hvp if _transforms.unwatched(tensors) else _hvp_op
    outputs = compute(*lists[:2], *flat, *settings, need)
    wanted = [(lists[i], outputs[i]) for i in (0, 1) if need & 1 << i]
    return tuple(part for like, out in wanted for part in _parts(out, like))


def _hvp_vmap(function: Any, info: Any, dims: Any, settings: Any, need: int, *tensors: Tensor) -> Any:
    settings, whole = _folded(info.batch_size, dims[2:], settings, tensors)
    outputs = function(settings, need, *whole)
    return outputs, (0,) * len(outputs)


_hvp_function = autograd_function(
    "gradient_distance_hvp", _hvp_parts, backward=_no_third, jvp=_no_third, vmap=_hvp_vmap
)


def _folded(
    batch: int, dims: Sequence[int | None], settings: Sequence[Any], tensors: Sequence[Tensor]
) -> tuple[tuple[Any, ...], list[Tensor]]:
    """A batch of calls as one call with that many times the classes: they lie in memory as classes do."""
    _transforms.refuse_tracing()
    shapes, classes, *rest = settings
    whole = [
        t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, dims, strict=True)
    ]
    return (shapes, classes * batch, *rest), whole


# ---- value and gradients


def _values(
    real: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    shapes: Sequence[int],
    classes: int,
    metric: str,
    form: str,
    epsilon: float,
    need: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _run(real, synthetic, (shapes, classes, metric, form, epsilon), need, None)


def _values_fake(real: Any, synthetic: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    some = synthetic[0]
    value = some.new_empty(rest[1], dtype=compute_dtype(some.dtype))
    return value, *_flats_fake(synthetic, rest[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
    real, synthetic, *ctx.settings, ctx.need = inputs
    return *real, *synthetic, *output[1:]


def _backward(ctx: Any, bar: Tensor | None, *bars: Tensor | None) -> Any:
    *tensors, flat_real, flat_synthetic = ctx.saved_tensors
    count = len(tensors) // 2
    lists, flats = (tensors[:count], tensors[count:]), (flat_real, flat_synthetic)
    grads: list[Any] = [[None] * count, [None] * count]
    classes = ctx.settings[1]
    for i, side in enumerate((REAL, SYNTHETIC)):
        if bar is not None and ctx.need & side:
            for k, part in enumerate(_parts(flats[i], lists[i])):
                grads[i][k] = _scaled(part, bar, classes, part.dtype)
    if any(moved is not None for moved in bars):
        still = flat_real.new_zeros(sum(t.numel() for t in lists[0]))
        sides = zip(bars, (REAL, SYNTHETIC), strict=True)
        moved = [still if b is None or not ctx.need & side else b for b, side in sides]
        second = _hvp_op(*lists, *moved, *ctx.settings, ctx.need)
        for i, side in enumerate((REAL, SYNTHETIC)):
            if ctx.need & side:
                for k, part in enumerate(_parts(second[i], lists[i])):
                    grads[i][k] = part if grads[i][k] is None else grads[i][k] + part
    return _typed(grads[0], lists[0]), _typed(grads[1], lists[1]), *[None] * 6


_op = register(
    f"gradient_distance(Tensor[] real, Tensor[] synthetic, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    _values,
    _values_fake,
    _backward,
    _save,
)


def _distance_parts(settings: Any, need: int, *tensors: Tensor) -> Any:
    """Value and the wanted parts of the gradients as differentiable outputs: for torch.func, forward-mode AD
    and second derivatives."""
    count = len(tensors) // 2
    lists = tensors[:count], tensors[count:]
    compute: Any = _values if _transforms.unwatched(tensors) else _op
    value, *flats = compute(*lists, *settings, need)
    wanted = [(lists[i], flats[i]) for i in (0, 1) if need & 1 << i]
    return value, *(part for like, flat in wanted for part in _parts(flat, like))


def _distance_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
    ctx.settings, ctx.need, *tensors = inputs
    ctx.count = len(tensors)
    return *tensors, *output[1:]


def _along(ctx: Any, moved: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The derivative of both sides' gradients along tangents of the tensors; None where not wanted."""
    tensors = ctx.saved_tensors[: ctx.count]
    filled = [torch.zeros_like(t) if m is None else m for m, t in zip(moved, tensors, strict=True)]
    outputs = list(_hvp_function(ctx.settings, ctx.need, *tensors, *filled))
    return _spread(outputs, ctx.need, ctx.count)


def _distance_backward(ctx: Any, bar: Tensor | None, *bars: Tensor | None) -> Any:
    tensors = ctx.saved_tensors[: ctx.count]
    parts = _spread(list(ctx.saved_tensors[ctx.count :]), ctx.need, ctx.count)
    grads: list[Tensor | None] = [None] * ctx.count
    if bar is not None:
        grads = [p if p is None else _scaled(p, bar, ctx.settings[1], p.dtype) for p in parts]
    if any(b is not None for b in bars):
        second = _along(ctx, _spread(list(bars), ctx.need, ctx.count))
        pairs = zip(grads, second, strict=True)
        grads = [g if s is None else s if g is None else g + s for g, s in pairs]
    return None, None, *_typed(grads, tensors)


def _distance_jvp(ctx: Any, *tangents: Any) -> Any:
    moved = list(tangents[2:])
    parts = _spread(list(ctx.saved_tensors[ctx.count :]), ctx.need, ctx.count)
    classes, value = ctx.settings[1], None
    for part, tangent in zip(parts, moved, strict=True):
        if part is not None and tangent is not None:
            term = (part * tangent.to(part.dtype)).reshape(classes, -1).sum(1)
            value = term if value is None else value + term
    along = _along(ctx, moved)
    return value, *(a for a in along if a is not None)


def _distance_vmap(function: Any, info: Any, dims: Any, settings: Any, need: int, *tensors: Tensor) -> Any:
    settings, whole = _folded(info.batch_size, dims[2:], settings, tensors)
    value, *parts = function(settings, need, *whole)
    return (value.reshape(info.batch_size, -1), *parts), (0,) * (1 + len(parts))


_distance_function = autograd_function(
    "gradient_distance",
    _distance_parts,
    backward=_distance_backward,
    jvp=_distance_jvp,
    vmap=_distance_vmap,
    save=_distance_save,
)


def _spread(wanted: list[Any], need: int, count: int) -> list[Any]:
    """The wanted parts in the places of all tensors, None elsewhere."""
    half: list[Any] = [None] * (count // 2)
    if need == REAL | SYNTHETIC:
        return wanted
    return [*wanted, *half] if need == REAL else [*half, *wanted] if need else [*half, *half]


class _Once(torch.autograd.Function):
    """The value alone. The first backward pass without a graph of its own gives the gradient away, a later
    one computes it anew."""

    @staticmethod
    def forward(ctx: Any, settings: Any, scalar: bool, need: int, count: int, *tensors: Tensor) -> Tensor:
        value, *ctx.flats = _run(tensors[:count], tensors[count:], settings, need, None)
        ctx.save_for_backward(*tensors)
        ctx.settings, ctx.need, ctx.count = settings, need, count
        return value.view(()) if scalar else value

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:
        tensors, classes, count = ctx.saved_tensors, ctx.settings[1], ctx.count
        if torch.is_grad_enabled():
            outputs = _distance_function(ctx.settings, ctx.need, *tensors)
            parts = _spread(list(outputs[1:]), ctx.need, len(tensors))
            grads = [p if p is None else _scaled(p, bar, classes, p.dtype) for p in parts]
            return None, None, None, None, *_typed(grads, tensors)
        flats, ctx.flats = ctx.flats, None
        if flats is None:
            flats = _run(tensors[:count], tensors[count:], ctx.settings, ctx.need, None)[1:]
        grads = [None] * len(tensors)
        for i, side in enumerate((REAL, SYNTHETIC)):
            if ctx.need & side:
                own = slice(i * count, (i + 1) * count)
                grads[own] = _given_away(flats[i], tensors[own], bar, classes)
        return None, None, None, None, *grads


def _given_away(flat: Tensor, like: Sequence[Tensor], bar: Tensor, classes: int) -> list[Tensor]:
    """Gradients that nobody else has, times what arrives: in place, and on the CPU not at all where it is
    1."""
    dtype = like[0].dtype
    if flat.device.type == "cpu" and (bar.item() == 1 if classes == 1 else bool((bar == 1).all())):
        return _views(flat.to(dtype), like)
    if classes == 1:
        return _views(flat.mul_(bar).to(dtype), like)
    return [_scaled(part, bar, classes, dtype) for part in _parts(flat, like)]


def distance(
    real: Sequence[Tensor], synthetic: Sequence[Tensor], settings: tuple[Any, ...], scalar: bool
) -> Tensor:
    """Values (classes,), or () where `scalar`, of lists of one dtype on one device."""
    tensors = (*real, *synthetic)
    if _transforms.active():
        need = sum(
            side
            for side, tensors_of in ((REAL, real), (SYNTHETIC, synthetic))
            if any(_transforms.needs_gradient(t) for t in tensors_of)
        )
        value = _distance_function(settings, need, *tensors)[0]
        return value.reshape(()) if scalar else value  # type: ignore[no-any-return]
    need = 0
    if torch.is_grad_enabled():
        need = REAL * any(t.requires_grad for t in real) + SYNTHETIC * any(t.requires_grad for t in synthetic)
    if _transforms.unwatched(tensors):
        if need:
            return _Once.apply(settings, scalar, need, len(real), *tensors)  # type: ignore[no-any-return, no-untyped-call]
        value = _run(real, synthetic, settings, 0, None)[0]
        return value.view(()) if scalar else value
    shapes, *rest = settings
    value = _op(list(real), list(synthetic), list(shapes), *rest, need)[0]
    return value.reshape(()) if scalar else value  # type: ignore[no-any-return]
