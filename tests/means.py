"""Characteristic means and moments of segments as the table of ops takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import decoct
from decoct import reference
from table import FLOATS, RAGGED, Errors, Op, Sample, rows, weights

X_RAGGED: dict[str, Any] = {"x_offsets": RAGGED["x_offsets"]}  # 43 rows in 5 segments


def joined(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """Both results side by side."""

    def call(*positional: Any, **named: Any) -> Tensor:
        result = function(*positional, **named)
        if isinstance(result, Tensor):
            return result
        first, second = result
        return torch.cat([first, second.reshape(*first.shape[:-1], -1)], -1)

    return call


def pair(n: int, f: int, d: int) -> dict[str, Tensor]:
    return {"frequencies": rows(f, d, seed=1), "x": rows(n, d)}


def characteristic_samples() -> Iterator[Sample]:
    yield Sample("plain", pair(19, 11, 7), {}, typed=None)
    yield Sample("weighted", {"weights": weights(19), **pair(19, 11, 7)}, {}, typed=None)
    yield Sample("mixed", {"weights": weights(19), **pair(19, 11, 7)}, {}, typed=("x",))
    yield Sample("ragged", pair(43, 6, 5), X_RAGGED, typed=None)
    yield Sample("ragged-weighted", {"weights": weights(43), **pair(43, 6, 5)}, X_RAGGED, typed=None)
    yield Sample("batched", {"frequencies": rows(7, 4, seed=1), "x": rows(3, 9, 4)}, {}, typed=None)
    batch = {"weights": weights(3, 9), "frequencies": rows(7, 4, seed=1), "x": rows(3, 9, 4)}
    yield Sample("batched-weighted", batch, {}, typed=None)
    yield Sample("one-column", pair(33, 31, 1), {}, typed=None)
    yield Sample("wide", pair(17, 5, 700), {}, typed=None)
    yield Sample("many-frequencies", pair(5, 300, 3), {}, typed=None)
    yield Sample("many-rows", pair(300, 5, 3), {"x_offsets": [0, 90, 100, 101, 101, 300]}, typed=None)
    far = {"frequencies": rows(8, 5, seed=1) * 64, "x": rows(12, 5) * 64}
    yield Sample("far", far, {}, typed=None)


def shared_errors(op: str, **others: Any) -> Errors:
    x = rows(10, 4)

    def case(kind: type[Exception], message: str, **changes: Any) -> Any:
        return kind, f"{op}: {message}", {"x": x, **others, **changes}

    yield case(TypeError, "x must be a tensor, got list", x=[1.0])
    yield case(TypeError, f"x must be {FLOATS}, got int64", x=torch.ones(10, 4, dtype=torch.int64))
    yield case(ValueError, "x must be (N, D) or (B, N, D), got (4,)", x=x[0])
    yield case(ValueError, "x must be at least one column wide, got (10, 0)", x=x[:, :0])
    yield case(
        ValueError, "x must be (N, D) with x_offsets, got (2, 5, 4)", x=rows(2, 5, 4), x_offsets=[0, 5]
    )
    yield case(TypeError, "weights must be a tensor, got list", weights=[0.1] * 10)
    yield case(TypeError, f"weights must be {FLOATS}, got int64", weights=torch.ones(10, dtype=torch.int64))
    yield case(ValueError, "weights must be (N,) with N=10 as in x, got (9,)", weights=weights(9))
    sizes = "weights must be (B, N) with B=2 and N=5 as in x, got (5,)"
    yield case(ValueError, sizes, x=rows(2, 5, 4), weights=weights(5))
    away = "weights must be on the device of x, cpu, got meta"
    yield case(ValueError, away, weights=weights(10).to("meta"))
    yield case(ValueError, "x_offsets must start at 0 and never fall, got [1, 10]", x_offsets=[1, 10])
    yield case(ValueError, "x_offsets must end at N=10, the rows of x, got 9", x_offsets=[0, 9])
    yield case(ValueError, "x_offsets must be (C+1,), got (0,)", x_offsets=[])
    yield case(TypeError, "x_offsets must hold ints only, got [0, 10.0]", x_offsets=[0, 10.0])


def characteristic_errors() -> Errors:
    good = {"x": rows(10, 4), "frequencies": rows(6, 4)}
    yield from shared_errors("characteristic_mean", frequencies=good["frequencies"])

    def case(kind: type[Exception], message: str, frequencies: Any) -> Any:
        return (
            kind,
            f"characteristic_mean: frequencies must be {message}",
            {**good, "frequencies": frequencies},
        )

    yield case(TypeError, "a tensor, got ndarray", rows(6, 4).numpy())
    yield case(TypeError, f"{FLOATS}, got int64", torch.ones(6, 4, dtype=torch.int64))
    yield case(ValueError, "on the device of x, cpu, got meta", rows(6, 4).to("meta"))
    yield case(ValueError, "(F, D) with D=4 as in x, got (6, 3)", rows(6, 3))
    yield case(ValueError, "(F, D) with D=4 as in x, got (1, 6, 4)", rows(1, 6, 4))


def moments_samples() -> Iterator[Sample]:
    x, w = {"x": rows(19, 7)}, {"weights": weights(19)}
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "diagonal": {"second": "diagonal"},
        "full": {"second": "full"},
        "clipped": {"max_norm": 2.5},
        "clipped-diagonal": {"max_norm": 2.5, "second": "diagonal"},
        "clipped-full-sum": {"max_norm": 2.5, "second": "full", "reduction": "sum"},
        "sum": {"reduction": "sum", "second": "diagonal"},
    }
    for name, chosen in options.items():
        if name != "plain":  # which is linear: it has no second derivative
            yield Sample(name, x, chosen, typed=None)
        yield Sample(f"{name}-weighted", {**w, **x}, chosen, typed=None)
    packed = {"weights": weights(43), "x": rows(43, 5)}
    for name in ("plain", "clipped-diagonal", "clipped-full-sum"):
        if name != "plain":
            yield Sample(f"ragged-{name}", {"x": packed["x"]}, {**X_RAGGED, **options[name]}, typed=None)
        yield Sample(f"ragged-{name}-weighted", packed, {**X_RAGGED, **options[name]}, typed=None)
    batch = {"weights": weights(3, 9), "x": rows(3, 9, 4)}
    yield Sample("batched", batch, options["clipped-diagonal"], typed=None)
    yield Sample("wide", {"x": rows(17, 700)}, {"max_norm": 26.0, "second": "diagonal"}, typed=None)


def moments_errors() -> Errors:
    op, x = "segment_moments", rows(10, 4)
    yield from shared_errors(op)

    def case(kind: type[Exception], message: str, **changes: Any) -> Any:
        return kind, f"{op}: {message}", {"x": x, **changes}

    yield case(ValueError, "second must be None, 'diagonal' or 'full', got True", second=True)
    yield case(ValueError, "reduction must be 'mean' or 'sum', got 'max'", reduction="max")
    yield case(TypeError, "max_norm must be None or a number, got bool", max_norm=True)
    yield case(TypeError, "max_norm must be None or a number, got str", max_norm="1")
    for bad in (0, -1.0, float("inf"), float("nan")):
        yield case(ValueError, f"max_norm must be positive and finite, got {bad}", max_norm=bad)


def total_weight(arguments: dict[str, Any]) -> float:
    """Bounds the sum of the terms of a value that is a mean of numbers up to 1."""
    given = arguments.get("weights")
    return 1.0 if given is None else float(given.detach().abs().sum())


def largest_sum(arguments: dict[str, Any]) -> float:
    """Bounds the sums of squares of rows."""
    x, given = arguments["x"].detach(), arguments.get("weights")
    each = 1.0 if given is None else float(given.detach().abs().max())
    count = x.shape[-2] if given is not None or arguments.get("reduction") == "sum" else 1
    return each * count * float(x.abs().max()) ** 2


OPS = (
    Op(
        "characteristic_mean",
        joined(decoct.characteristic_mean),
        joined(reference.characteristic_mean),
        characteristic_samples,
        characteristic_errors,
        scale=total_weight,
        variants={"plain": {}},
        invariant=(),
        compiled=("plain", "weighted", "ragged", "batched"),
        length=None,
        checked=decoct.characteristic_mean,
        example=lambda: {"weights": weights(5), **pair(5, 4, 3)},
        large=lambda: Sample("large", pair(600, 1100, 40), {"x_offsets": [0, 7, 500, 500, 600]}, typed=None),
    ),
    Op(
        "segment_moments",
        joined(decoct.segment_moments),
        joined(reference.segment_moments),
        moments_samples,
        moments_errors,
        scale=largest_sum,
        variants={
            "plain": {},
            "clipped": {"max_norm": 1.5, "second": "full"},
            "diagonal": {"second": "diagonal"},
        },
        invariant=(),
        compiled=("plain-weighted", "clipped-diagonal-weighted", "ragged-clipped-diagonal", "batched"),
        length=None,
        checked=decoct.segment_moments,
        example=lambda: {"weights": weights(5), "x": rows(5, 3)},
        large=lambda: Sample(
            "large", {"x": rows(900, 64)}, {"second": "diagonal", "max_norm": 8.0}, typed=None
        ),
        any_order=True,
    ),
)
