"""Group and instance normalisation as the table of ops takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import decoct
from decoct import reference
from table import FLOATS, Errors, Op, Sample, rows


def tensors(*shape: int, affine: bool = True) -> dict[str, Tensor]:
    """Images and their parameters. x is the last."""
    channels = shape[1]
    images = {"x": rows(*shape, shift=0.2)}
    if not affine:
        return images
    return {"weight": rows(channels, seed=1, shift=0.5), "bias": rows(channels, seed=2), **images}


RELU: dict[str, Any] = {"activation": "relu"}
POOLED: dict[str, Any] = {"activation": "relu", "pool": 2}


def group_samples() -> Iterator[Sample]:
    yield Sample("plain", tensors(3, 6, 5, 7), {"groups": 2})
    yield Sample("plain-bare", tensors(3, 6, 5, 7, affine=False), {"groups": 3, "epsilon": 0.1})
    yield Sample("relu", tensors(3, 6, 5, 7), {"groups": 3, **RELU})
    yield Sample("pooled", tensors(3, 6, 8, 8), {"groups": 3, **POOLED})
    yield Sample("pooled-odd", tensors(2, 4, 9, 7), {"groups": 2, **POOLED})
    yield Sample("pooled-only", tensors(2, 4, 6, 6), {"groups": 1, "pool": 3})
    yield Sample("pooled-to-one", tensors(2, 4, 5, 5), {"groups": 4, "activation": "relu", "pool": 5})
    yield Sample("rows", tensors(9, 24), {"groups": 2, **RELU})
    yield Sample("signals", tensors(3, 4, 37), {"groups": 4, **POOLED})
    yield Sample("volumes", tensors(2, 4, 3, 4, 5), {"groups": 2, **RELU})
    yield Sample("one-group", tensors(2, 3, 40, 40), {"groups": 1, **POOLED})
    weight = tensors(2, 6, 4, 4)
    yield Sample("weight-only", {k: weight[k] for k in ("weight", "x")}, {"groups": 2, **RELU})
    yield Sample("bias-only", {k: weight[k] for k in ("bias", "x")}, {"groups": 2, **RELU})
    each = {"weight": rows(2, 6, seed=1, shift=0.5), "bias": rows(2, 6, seed=2), "x": weight["x"]}
    yield Sample("each-image", each, {"groups": 2, **POOLED})
    yield Sample("each-image-bias", {**each, "weight": weight["weight"]}, {"groups": 3, **RELU})


def instance_samples() -> Iterator[Sample]:
    for side in (32, 16, 8, 28, 7):
        yield Sample(f"side-{side}", tensors(2, 5, side, side), POOLED)
    yield Sample("plain", tensors(3, 33, 6, 6), {})
    yield Sample("bare", tensors(3, 4, 6, 6, affine=False), RELU)


def shared_errors(op: str) -> Errors:
    options: dict[str, Any] = {"groups": 2} if op == "group_norm" else {}
    x = rows(3, 4, 5, 6)

    def case(kind: type[Exception], message: str, **changes: Any) -> Any:
        return kind, f"{op}: {message}", {"x": x, **options, **changes}

    yield case(TypeError, "x must be a tensor, got list", x=[1.0])
    yield case(TypeError, f"x must be {FLOATS}, got int64", x=torch.ones(3, 4, dtype=torch.int64))
    yield case(ValueError, "x must be (N, C, *spatial) with C at least 1, got (4,)", x=rows(4))
    yield case(ValueError, "x must be (N, C, *spatial) with C at least 1, got (3, 0)", x=rows(3, 0))
    yield case(TypeError, "weight must be a tensor, got float", weight=1.0)
    sizes = "must be (C,) or (N, C) with C=4 and N=3 as in x"
    yield case(TypeError, f"bias must be {FLOATS}, got bool", bias=torch.ones(4, dtype=torch.bool))
    yield case(ValueError, f"weight {sizes}, got (3,)", weight=rows(3))
    yield case(ValueError, f"bias {sizes}, got (4, 1)", bias=rows(4, 1))
    yield case(ValueError, "bias must be on the device of x, cpu, got meta", bias=rows(4).to("meta"))
    yield case(TypeError, "epsilon must be a number, got str", epsilon="small")
    yield case(TypeError, "epsilon must be a number, got bool", epsilon=True)
    for value in (-1e-5, float("inf"), float("nan")):
        yield case(ValueError, f"epsilon must not be negative, and finite, got {value}", epsilon=value)
    yield case(ValueError, "activation must be None or 'relu', got 'gelu'", activation="gelu")
    yield case(TypeError, "pool must be an int, got float", pool=2.0)
    yield case(ValueError, "pool must be at least 1, got 0", pool=0)
    yield case(ValueError, "pool must be at most 5, a side of x, got 6", pool=6)
    few = "pool must be 1 unless x has one or two spatial axes, got 2 and"
    yield case(ValueError, f"{few} (3, 4)", x=rows(3, 4), pool=2)
    yield case(ValueError, f"{few} (3, 4, 2, 2, 2)", x=rows(3, 4, 2, 2, 2), pool=2)


def group_errors() -> Errors:
    yield from shared_errors("group_norm")
    x = rows(3, 4, 5, 6)
    yield TypeError, "group_norm: groups must be an int, got float", {"x": x, "groups": 2.0}
    yield TypeError, "group_norm: groups must be an int, got bool", {"x": x, "groups": True}
    yield ValueError, "group_norm: groups must be at least 1, got 0", {"x": x, "groups": 0}
    yield ValueError, "group_norm: groups must divide C=4, the channels of x, got 3", {"x": x, "groups": 3}


def largest_term(arguments: dict[str, Any]) -> float:
    """Bounds what a value is the sum of."""
    largest = [float(arguments[k].detach().abs().max()) for k in ("weight", "bias") if k in arguments]
    return 4.0 * max([1.0, *largest])


def one_image_less(sample: Sample) -> Sample:
    return replace(sample, tensors={k: v[1:] if v.dim() > 1 else v for k, v in sample.tensors.items()})


def made(name: str, samples: Any, errors: Any, groups: dict[str, Any], compiled: tuple[str, ...]) -> Op:
    return Op(
        name,
        getattr(decoct, name),
        getattr(reference, name),
        samples,
        errors,
        scale=largest_term,
        variants={"plain": groups, "relu": {**groups, **RELU}, "pooled": {**groups, **POOLED}},
        invariant=(),
        compiled=compiled,
        length=None,
        example=lambda: tensors(3, 4, 5, 6),
        large=lambda: Sample("large", tensors(12, 16, 33, 34), {**groups, **POOLED}),
        shorter=one_image_less,
        result_as_input=True,
    )


OPS = (
    made(
        "group_norm",
        group_samples,
        group_errors,
        {"groups": 2},
        ("plain", "pooled-odd", "rows", "signals", "volumes", "bias-only", "each-image"),
    ),
    made("instance_norm", instance_samples, lambda: shared_errors("instance_norm"), {}, ("side-8", "bare")),
)
