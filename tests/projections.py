"""Random projections as the table of ops takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import decoct
from decoct import reference
from table import FLOATS, Errors, Op, Sample, rows

# (N, D), size: less and more than a block of rows, a counter of columns, and a step of the depth.
SIZES = {
    "small": ((3, 7), 5),
    "one": ((1, 1), 1),
    "edges": ((97, 129), 127),
    "deep": ((5, 700), 33),
    "wide": ((4, 31), 300),
    "batch": ((2, 3, 40), 6),
    "vector": ((40,), 6),
}


def _squared(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Squares of what a linear op gives, which alone has no second derivative."""
    return lambda x, size, **options: function(x, size, **options).square()


def _samples() -> Iterator[Sample]:
    for name, (shape, size) in SIZES.items():
        for transpose in (False, True):
            options = {"size": size, "transpose": transpose, "seed": 2**62 + 5, "stream": 2**40 + 3}
            yield Sample(
                f"{name}-transposed" if transpose else name, {"x": rows(*shape)}, options, typed=None
            )
    yield Sample("defaults", {"x": rows(6, 20)}, {"size": 4}, typed=None)


def _errors() -> Errors:
    op, x = "random_projection", rows(4, 6)

    def case(kind: type[Exception], message: str, **changes: Any) -> Any:
        return kind, f"{op}: {message}", {"x": x, "size": 3, **changes}

    yield case(TypeError, "x must be a tensor, got list", x=[1.0])
    yield case(TypeError, f"x must be {FLOATS}, got int64", x=torch.ones(4, 6, dtype=torch.int64))
    yield case(ValueError, "x must be (..., D), got a scalar", x=x[0, 0])
    yield case(TypeError, "size must be an int, got float", size=3.0)
    yield case(TypeError, "size must be an int, got bool", size=True)
    yield case(ValueError, "size must be from 0 to 2^29 - 1, got -1", size=-1)
    yield case(ValueError, "seed must be from 0 to 2^63 - 1, got -1", seed=-1)
    yield case(ValueError, f"stream must be from 0 to 2^63 - 1, got {2**63}", stream=2**63)
    yield case(TypeError, "transpose must be True or False, got int", transpose=1)


def _largest(arguments: dict[str, Any]) -> float:
    """Bounds the terms of which a value is made."""
    x = arguments["x"].detach()
    return float(x.abs().max()) ** 2 * max(x.shape[-1], 1) if x.numel() else 1.0


OPS = (
    Op(
        "random_projection",
        _squared(decoct.random_projection),
        _squared(reference.random_projection),
        _samples,
        _errors,
        scale=_largest,
        variants={"plain": {"size": 5}, "transposed": {"size": 5, "transpose": True}},
        invariant=(),
        compiled=("small", "small-transposed", "batch", "vector"),
        length=None,
        checked=decoct.random_projection,
        example=lambda: {"x": rows(5, 3)},
        large=lambda: Sample("large", {"x": rows(300, 700)}, {"size": 300}, typed=None),
        any_order=True,
    ),
)
