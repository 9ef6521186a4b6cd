"""The registered ops behind `mmd` and `kernel_mean`: weighted sums of kernel values over pairs of rows.

`kernel_sums` computes, for each segment c,

    value_c = C[c, 0] sum_ik a_i a_k k(x_i, x_k) + C[c, 1] sum_ij a_i b_j k(x_i, y_j) + C[c, 2] sum_jl b_j b_l
    k(y_j, y_l)

where the potentials f, g, if there are any, make exp(f_i + g_j) k(x_i, y_j) of k(x_i, y_j), and in the same
pass those of its gradients that `need` asks for. Its backward scales these saved gradients; a
cotangent that arrives at a gradient output (second order) goes through `kernel_sums_hvp`, the product of the
Hessian of sum_c value_c with a tangent. There is no third derivative: asking for one raises.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decoct.ops._backend import (
    Execution,
    as_matrix,
    backend_for,
    compute_dtype,
    engine_kernel,
    offsets_or_uniform,
    readable,
)
from decoct.ops._memory import result
from decoct.ops._registry import KERNEL_SCHEMA, Op, refuse
from decoct.ops._rows import segment_totals, spread

__all__ = ["hessian_product", "hvp", "kernel_sums", "outputs_for"]

_SCHEMA = (
    "Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? x_offsets, Tensor? y_offsets, SymInt segments, "
    f"Tensor coefficients, Tensor? bandwidth, Tensor? f, Tensor? g, {KERNEL_SCHEMA}, int terms"
)
_LAYOUT = "rrrroosrrrr---"
_COMMON = len(_LAYOUT)
_GRADIENTS = slice(2, 6)


class _Call:
    """What both ops do before and after their engine call."""

    def __init__(self, op: str, need: int, arguments: tuple[Any, ...]) -> None:
        (x, y, a, b, x_offsets, y_offsets, segments, coefficients, bandwidth, f, g, *kernel, terms) = (
            arguments
        )
        self.engine = engine = backend_for("kernel_sums", x.device)
        self.from_data = bandwidth is None
        self.x, self.y = readable(x), readable(y)
        self.a, self.b, self.f, self.g = (None if w is None else readable(w) for w in (a, b, f, g))
        self.offsets = (
            offsets_or_uniform(x_offsets, x.shape[0], segments),
            offsets_or_uniform(y_offsets, y.shape[0], segments),
        )
        self.coefficients = coefficients.contiguous()
        self.bandwidth = (
            torch.ones(segments, dtype=torch.float64, device=x.device)
            if bandwidth is None
            else bandwidth.clone(memory_format=torch.contiguous_format)
        )
        self.execution = Execution(engine, op, self.x, self.y, *self.offsets, need=need, terms=terms)
        self.keywords = {
            **self.matrices(x=self.x, y=self.y, a=self.a, b=self.b, f=self.f, g=self.g),
            **self.matrices(x_offsets=self.offsets[0], y_offsets=self.offsets[1]),
            **self.matrices(coefficients=self.coefficients, bandwidth=self.bandwidth),
            "kernel": engine_kernel(engine, *kernel),
            "need": need,
        }

    def matrices(self, **tensors: Tensor | None) -> dict[str, Any]:
        return {name: as_matrix(self.engine, tensor) for name, tensor in tensors.items()}


def outputs_for(x: Tensor, y: Tensor, need: int) -> list[Tensor]:
    """Room for the derivatives that `need` asks for; one that is not asked for has no rows."""
    dtype = compute_dtype(x.dtype)
    shapes = (x.shape, y.shape, x.shape[:1], y.shape[:1])
    return [result(x, shape if need >> bit & 1 else (0,), dtype) for bit, shape in enumerate(shapes)]


def _wanted(need: int, outputs: list[Tensor]) -> list[Tensor | None]:
    return [output if need >> bit & 1 else None for bit, output in enumerate(outputs)]


def _implementation(*arguments: Any) -> tuple[Tensor, ...]:
    *common, need = arguments
    x, y, segments = common[0], common[1], common[6]
    value = torch.zeros(segments, dtype=torch.float64, device=x.device)
    gradients = outputs_for(x, y, need)
    call = _Call("sums", need, tuple(common))
    if segments > 0:
        names = ("grad_x", "grad_y", "grad_a", "grad_b")
        call.execution.run(
            "kernel_sums",
            **call.keywords,
            **call.matrices(value=value, **dict(zip(names, _wanted(need, gradients), strict=True))),
            bandwidth_from_data=call.from_data,
        )
    return value, call.bandwidth, *gradients


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    x, y, segments, need = arguments[0], arguments[1], arguments[6], arguments[-1]
    scalars = [x.new_empty((segments,), dtype=torch.float64) for _ in range(2)]
    return *scalars, *outputs_for(x, y, need)


def hessian_product(*arguments: Any) -> tuple[Tensor, ...]:
    common, tangents, need = arguments[:_COMMON], arguments[_COMMON:-1], arguments[-1]
    x, y, segments = common[0], common[1], common[6]
    outputs = outputs_for(x, y, need)
    call = _Call("hvp", need, common)
    kept = [None if tangent is None else readable(tangent) for tangent in tangents]
    if segments > 0:
        tangent_names = ("tangent_x", "tangent_y", "tangent_a", "tangent_b")
        output_names = ("out_x", "out_y", "out_a", "out_b")
        call.execution.run(
            "kernel_sums_hvp",
            **call.keywords,
            **call.matrices(**dict(zip(tangent_names, kept, strict=True))),
            **call.matrices(**dict(zip(output_names, _wanted(need, outputs), strict=True))),
        )
    return tuple(outputs)


def _hvp_fake(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(outputs_for(arguments[0], arguments[1], arguments[-1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    ctx.mark_non_differentiable(output[1])
    ctx.segments, ctx.plain = inputs[6], inputs[11:]
    return *inputs[:6], inputs[7], output[1], *inputs[9:11], *output[_GRADIENTS]


def _saved_hvp(ctx: Any, tangents: Any, need: int) -> tuple[Tensor, ...]:
    """The product at the point that a context saved."""
    x, y, a, b, x_offsets, y_offsets, coefficients, bandwidth, f, g = ctx.saved_tensors[:10]
    kernel_and_terms = ctx.plain[:-1]
    return hvp(
        x,
        y,
        a,
        b,
        x_offsets,
        y_offsets,
        ctx.segments,
        coefficients,
        bandwidth,
        f,
        g,
        *kernel_and_terms,
        *tangents,
        need,
    )


def _backward(ctx: Any, value_bar: Tensor | None, bandwidth_bar: None, *gradients_bar: Tensor | None) -> Any:
    x, y, _, _, x_offsets, y_offsets = ctx.saved_tensors[:6]
    gradients, need = ctx.saved_tensors[10:], ctx.plain[-1]
    if any(ctx.needs_input_grad[9:11]):
        raise RuntimeError(
            "decoct: potentials are constants for kernel sums; differentiate through the weights"
        )
    wanted = [bit for bit in range(4) if ctx.needs_input_grad[bit]]
    result: list[Tensor | None] = [None] * 4
    if value_bar is not None:
        for bit in wanted:
            if not need >> bit & 1:
                raise RuntimeError(
                    "decoct: a gradient is asked for that the forward pass was not told to compute"
                )
            offsets, rows = ((x_offsets, x.shape[0]), (y_offsets, y.shape[0]))[bit % 2]
            scale = spread(value_bar.to(gradients[bit].dtype), offsets, rows, ctx.segments)
            result[bit] = (scale[:, None] if bit < 2 else scale) * gradients[bit]
    tangents = [bar if need >> bit & 1 else None for bit, bar in enumerate(gradients_bar)]
    if any(tangent is not None for tangent in tangents):
        second = _saved_hvp(ctx, tangents, sum(1 << bit for bit in wanted))
        for bit in wanted:
            first = result[bit]
            result[bit] = second[bit] if first is None else first + second[bit]
    points = (part if part is None else part.to(x.dtype) for part in result[:2])
    return *points, *result[2:], *[None] * (_COMMON + 1 - 4)


def _jvp(ctx: Any, *tangents: Any) -> Any:
    x_offsets, y_offsets = ctx.saved_tensors[4:6]
    gradients, need = ctx.saved_tensors[10:], ctx.plain[-1]
    total: Tensor | None = None
    for bit, tangent in enumerate(tangents[:4]):
        if tangent is None:
            continue
        if not need >> bit & 1:
            raise RuntimeError("decoct: a tangent arrived that the forward pass was not told of")
        products = tangent.to(torch.float64) * gradients[bit]
        rows = products.sum(-1) if bit < 2 else products
        part = segment_totals(rows, (x_offsets, y_offsets)[bit % 2], ctx.segments)
        total = part if total is None else total + part
    moved = [None if t is None else t.to(g.dtype) for t, g in zip(tangents[:4], gradients, strict=True)]
    second = _saved_hvp(ctx, moved, need)
    return total, None, *second


_no_third = refuse("kernel sums have first and second derivatives; a third one is not offered")
hvp = Op(
    f"kernel_sums_hvp({_SCHEMA}, Tensor? tangent_x, Tensor? tangent_y, Tensor? tangent_a, Tensor? tangent_b, "
    "int need) -> (Tensor, Tensor, Tensor, Tensor)",
    hessian_product,
    _hvp_fake,
    backward=_no_third,
    jvp=_no_third,
    vmap=_LAYOUT + "rrrr-",
)
"""The product of Hessian and tangents."""
kernel_sums = Op(
    f"kernel_sums({_SCHEMA}, int need) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _implementation,
    _fake,
    backward=_backward,
    jvp=_jvp,
    vmap=_LAYOUT + "-",
    save=_save,
)
"""Values of the sums, the bandwidths in use, and the gradients that `need` asks for."""
