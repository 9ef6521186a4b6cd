"""Free-support barycentres as the table of ops takes them: a few turns from given points."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import decoct
from decoct import reference
from table import FLOATS, RAGGED, Errors, Op, Sample, rows, weights

TO = 1e-5
TURNS: dict[str, Any] = {"blur": 1.5, "iterations": 2, "marginal_tol": TO, "inner_iterations": 300}
LEARNED = {**TURNS, "weights": "learned"}


def ours(**arguments: Any) -> Tensor:
    """Points, masses and costs one after the other."""
    found = decoct.free_support_barycenter(**arguments)
    return torch.cat([part.reshape(-1) for part in (found.points, found.masses, found.cost)])


def twin(
    x: Tensor,
    size: int | list[int],
    *,
    init: Tensor,
    a: Tensor | None = None,
    x_offsets: list[int] | None = None,
    weights: str = "uniform",
    blur: float,
    iterations: int,
    **solved: Any,
) -> Tensor:
    """The same, barycentre by barycentre."""
    whole = [0, x.shape[0]] if x.dim() == 2 else [b * x.shape[1] for b in range(x.shape[0] + 1)]
    ends, wide = x_offsets or whole, torch.promote_types(x.dtype, torch.float32)
    rows = x.reshape(-1, x.shape[-1]).to(wide)
    mass = torch.ones_like(rows[:, 0]) if a is None else a.reshape(-1).to(wide)
    sizes = [size] * (len(ends) - 1) if isinstance(size, int) else size
    starts = init.reshape(-1, x.shape[-1]).to(wide).split(sizes)
    made = []
    for (first, last), start in zip(itertools.pairwise(ends), starts, strict=True):
        if first == last or not len(start):
            made.append((torch.zeros_like(start), torch.zeros_like(start[:, 0]), rows.new_zeros(())))
            continue
        measure = rows[first:last], mass[first:last] / mass[first:last].sum(), 1.0
        equal = torch.full_like(start[:, 0], 1 / len(start))
        blurs = [blur] * (iterations + 1)
        made.append(
            reference.free_support_barycenter([measure], start, equal, blurs, learned=weights == "learned")[
                :3
            ]
        )
    return torch.cat([part.reshape(-1) for kind in zip(*made, strict=True) for part in kind])


def samples() -> Iterator[Sample]:
    start = {"init": rows(4, 7, seed=1), "x": rows(19, 7)}
    weighted = {"a": weights(19), **start}
    packed = {"a": weights(43), "init": rows(9, 5, seed=1), "x": rows(43, 5)}
    batch = {"init": rows(3, 2, 4, seed=1), "x": rows(3, 9, 4)}
    for name, options in (("uniform", TURNS), ("learned", LEARNED)):
        yield Sample(name, start, {"size": 4, **options}, typed=None)
        yield Sample(f"{name}-weighted", weighted, {"size": 4, **options}, typed=("x",))
        ragged = {"size": [2, 0, 3, 3, 1], "x_offsets": RAGGED["x_offsets"]}
        yield Sample(f"{name}-ragged", packed, {**ragged, **options}, typed=None)
        yield Sample(f"{name}-batched", batch, {"size": 2, **options}, typed=None)
        narrow = {"init": rows(3, 1, seed=1), "x": rows(33, 1)}
        yield Sample(f"{name}-one-column", narrow, {"size": 3, **options}, typed=None)


def errors() -> Errors:
    op, x = "free_support_barycenter", rows(6, 3)

    def case(kind: type[Exception], message: str, **changes: Any) -> Any:
        return kind, f"{op}: {message}", {"x": x, "size": 2, **changes}

    yield case(TypeError, "x must be a tensor, got list", x=[[1.0]])
    yield case(TypeError, f"x must be {FLOATS}, got int64", x=torch.ones(3, 2, dtype=torch.int64))
    yield case(ValueError, "x must be (N, D) or (B, N, D), got (3,)", x=x[:, 0][:3])
    yield case(ValueError, "init must be (2, 3) as points are returned, got (3, 3)", init=rows(3, 3))
    yield case(ValueError, "x_offsets must end at N=6, the rows of x, got 5", x_offsets=[0, 5])


OPS = (
    Op(
        "free_support_barycenter",
        ours,
        twin,
        samples,
        errors,
        scale=lambda arguments: float(arguments["x"].square().sum(-1).max()),
        variants={"uniform": {"size": 3, **TURNS}, "learned": {"size": 3, **LEARNED}},
        invariant=(),
        compiled=("uniform", "learned-ragged", "learned-batched"),
        length=None,
        solved_to=lambda dtype: TO,
        checked=decoct.free_support_barycenter,
        example=lambda: {"a": weights(11), "init": rows(3, 5, seed=1), "x": rows(11, 5)},
        large=lambda: Sample(
            "large",
            {"init": rows(24, 40, seed=1), "x": rows(1400, 40)},
            {"size": [6] * 4, "x_offsets": [0, 300, 300, 700, 1400], **TURNS, "blur": 6.0},
            typed=None,
        ),
        shorter=lambda sample: None,
        differentiable=False,
    ),
)
