"""The distance of lists of gradients as the table of ops takes it: tensors by name, real0 ... synthetic0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import decoct
from decoct import reference
from table import FLOATS, Errors, Op, Sample, rows

CONVNET = [(8, 3, 3, 3), (8, 8, 3, 3), (5, 37)]
VECTORS = [(8,), (1,), ()]


def by_name(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of two lists as one of named tensors."""

    def call(**named: Any) -> Tensor:
        lists = [
            [named.pop(f"{side}{i}") for i in range(sum(name.startswith(side) for name in named))]
            for side in ("real", "synthetic")
        ]
        return function(*lists, **named)

    return call


def named(shapes: list[tuple[int, ...]], *lead: int, seed: int = 0) -> dict[str, Tensor]:
    return {
        f"{side}{i}": rows(*lead, *shape, seed=seed + 100 * k + i)
        for k, side in enumerate(("real", "synthetic"))
        for i, shape in enumerate(shapes)
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "row_cosine": {},
    "clamp": {"epsilon": 1e-8, "epsilon_form": "clamp"},
    "held": {"epsilon": 4.0, "epsilon_form": "clamp"},
    "wide-epsilon": {"epsilon": 3.0},
    "cosine": {"metric": "cosine"},
    "cosine_l2": {"metric": "cosine_l2"},
    "sse": {"metric": "sse"},
    "l1": {"metric": "l1"},
    "l1_mean": {"metric": "l1_mean"},
    "columns": {"row_axis": -1},
    "columns-l2": {"row_axis": 1, "metric": "cosine_l2"},
    "whole": {"row_axis": None},
}


def samples() -> Iterator[Sample]:
    for name, options in VARIANTS.items():
        yield Sample(name, named(CONVNET), options, typed=None)
        yield Sample(f"{name}-classes", named(CONVNET, 3), {**options, "classes": True}, typed=None)
    # The cosine of rows of one number has no derivative but for epsilon.
    every = {"tensors": "all", "epsilon": 3.0}
    for metric in ("row_cosine", "cosine", "cosine_l2", "l1_mean"):
        yield Sample(f"{metric}-vectors", named(CONVNET + VECTORS), {**every, "metric": metric}, typed=None)
    axes = {"row_axis": (0, 1, None, 2), **every, "metric": "cosine_l2"}
    yield Sample("axes", named([(4, 5), (4, 50), (70,), (3, 4, 5)]), axes, typed=None)
    yield Sample("long", named([(2, 70000), (1, 5)]), {}, typed=None)
    yield Sample("long-l2", named([(2, 70000), (3, 5)], 2), {"classes": True, "metric": "cosine_l2"}, None)
    yield Sample("tall", named([(200, 100)]), {"row_axis": 1}, typed=None)


def large() -> Sample:
    """For several threads: rows, columns and a row in pieces."""
    shapes = [(64, 1153), (80, 700), (1, 100001), (7, 9)]
    return Sample("large", named(shapes, 2), {"classes": True, "row_axis": (0, 1, 0, 0)}, typed=None)


def errors() -> Errors:
    good = [rows(4, 3), rows(5)]
    for options in _bad_options():
        kind, message, arguments = options
        lists = {"real": good, "synthetic": good, **arguments}
        yield kind, f"gradient_distance: {message}", lists


def _bad_options() -> Errors:
    one, two = rows(4, 3), rows(5)
    yield TypeError, "real must be a list of tensors, got Tensor", {"real": one}
    yield TypeError, "synthetic must be a list of tensors, got int", {"synthetic": 3}
    yield ValueError, "real must hold at least one tensor, got none", {"real": [], "synthetic": []}
    yield ValueError, "synthetic must hold T=2 tensors as real does, got 1", {"synthetic": [one]}
    yield TypeError, "synthetic[1] must be a tensor, got NoneType", {"synthetic": [one, None]}
    yield TypeError, f"real[1] must be {FLOATS}, got int64", {"real": [one, two.long()]}
    yield TypeError, f"real[0] must be {FLOATS}, got complex64", {"real": [one.to(torch.complex64), two]}
    on_meta = [one, two.to("meta")]
    yield ValueError, "synthetic[1] must be on the device of real[0], cpu, got meta", {"synthetic": on_meta}
    turned = [one.T, two]
    yield ValueError, "synthetic[0] must be (4, 3) as real[0] is, got (3, 4)", {"synthetic": turned}
    names = "row_cosine, cosine, cosine_l2, sse, l1, l1_mean"
    yield ValueError, f"metric must be one of {names}, got 'ours'", {"metric": "ours"}
    for epsilon in (0.0, -1.0, float("inf"), float("nan")):
        yield ValueError, f"epsilon must be a positive number, got {epsilon}", {"epsilon": epsilon}
    yield TypeError, "epsilon must be a positive number, got str", {"epsilon": "1e-6"}
    form = {"epsilon_form": "sum"}
    yield ValueError, "epsilon_form must be 'product' or 'clamp', got 'sum'", form
    yield TypeError, "classes must be True or False, got int", {"classes": 10}
    yield ValueError, "real[1] must be (C, ...) with C=4 as in real[0], got (5,)", {"classes": True}
    yield ValueError, "tensors must be 'matrices', 'all' or a flag for each, got 'conv'", {"tensors": "conv"}
    yield ValueError, "tensors must hold T=2 flags, got 1", {"tensors": [True]}
    yield TypeError, "tensors must hold bools only, got [1, 0]", {"tensors": [1, 0]}
    yield ValueError, "row_axis must be an axis of real[0], (4, 3), got 2", {"row_axis": 2}
    yield (
        ValueError,
        "row_axis must be an axis of real[1], (5,), got 1",
        {"row_axis": 1, "tensors": "all"},
    )
    yield ValueError, "row_axis must hold T=2 axes, got 3", {"row_axis": [0, 0, 0]}
    yield (
        TypeError,
        "row_axis must be an int, None or one of these for each tensor",
        {"row_axis": [0.0, 1]},
    )


def rows_of(arguments: dict[str, Any]) -> float:
    """How many terms of 1 a value is the sum of, about."""
    if arguments.get("metric") in ("sse", "l1", "l1_mean"):
        return 0.0
    return float(sum(t.shape[0] for t in arguments.values() if isinstance(t, Tensor) and t.dim()))


OPS = (
    Op(
        "gradient_distance",
        by_name(decoct.gradient_distance),
        by_name(reference.gradient_distance),
        samples,
        errors,
        scale=rows_of,
        variants=VARIANTS,
        invariant=(),
        compiled=("row_cosine", "row_cosine-classes", "cosine", "sse-classes", "columns-l2"),
        length=None,
        checked=decoct.gradient_distance,
        example=lambda: named([(4, 3, 2), (3, 5)]),
        large=large,
    ),
)
