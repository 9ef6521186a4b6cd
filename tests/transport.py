"""Entropic transport as the table of ops takes it: solved to the end, with weights that fit each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import decoct
from decoct import reference
from table import RAGGED, Errors, Op, Sample, cases, row_errors, rows, weight_errors, weights


def tolerance(dtype: torch.dtype) -> float:
    """What rows of a dtype are solved to."""
    return 1e-13 if dtype == torch.float64 else 1e-6


def fitting(weights: Tensor | None, offsets: Any) -> Tensor | None:
    """Weights that sum to 1 in each segment."""
    if weights is None:
        return None
    if offsets is None:
        return weights / weights.sum(-1, keepdim=True)
    ends = torch.as_tensor(offsets).tolist()
    parts = [weights[i:j] / weights[i:j].sum() for i, j in pairwise(ends)]
    return torch.cat(parts) if parts else weights


def solved(function: Callable[..., Any]) -> Callable[..., Any]:
    """A solver that goes on until nothing changes, so that a twin's unrolled derivatives are those of the
    solution. Where both marginals are kept, weights are scaled to the same total, on which the value
    depends."""

    def call(x: Tensor, y: Tensor, **options: Any) -> Any:
        options = {"tol": tolerance(x.dtype), "max_iterations": 20000, **options}
        if options.get("reach") is None:
            for side in ("x", "y"):
                name = "a" if side == "x" else "b"
                options[name] = fitting(options.get(name), options.get(f"{side}_offsets"))
        return function(x, y, **options)

    return call


divergence = solved(decoct.sinkhorn_divergence)
divergence_twin = solved(reference.sinkhorn_divergence)


def largest_cost(arguments: dict[str, Any]) -> float:
    """Bounds the terms of which a divergence is the difference."""
    z = torch.cat([arguments[name].reshape(-1, arguments[name].shape[-1]) for name in ("x", "y")])
    cost = reference.transport_cost(z, z, arguments.get("p", 2), arguments.get("cost", "euclidean"))
    finite = cost.detach().nan_to_num(0.0, 0.0, 0.0)
    return float(finite.max()) if finite.numel() else 0.0


VARIANTS: dict[str, dict[str, Any]] = {
    "p2": {"p": 2},
    "p1": {"p": 1},
    "p2-reach": {"p": 2, "reach": 2.5},
    "p1-reach": {"p": 1, "reach": 2.5},
    "one-sided": {"p": 2, "reach": (None, 2.5)},
    "biased": {"p": 2, "debias": False},
    "cosine": {"p": 2, "cost": "cosine"},
}
PLANS: dict[str, dict[str, Any]] = {name: VARIANTS[name] for name in ("p2", "p1", "cosine")}


def divergence_samples() -> Iterator[Sample]:
    x, y = rows(19, 7), rows(13, 7, seed=1, shift=0.3)
    weighted = {"x": x, "y": y, "a": weights(19), "b": weights(13, seed=1)}
    for name, options in VARIANTS.items():
        blur = 0.8 if name == "cosine" else 3.0
        yield Sample(name, {"x": x, "y": y}, {"blur": blur, **options})
        yield Sample(f"{name}-weighted", weighted, {"blur": blur, **options})
    packed = {"x": rows(43, 5), "y": rows(19, 5, seed=1)}
    yield Sample("ragged", packed, {**RAGGED, "blur": 2.5})
    uneven = {**packed, "a": weights(43), "b": weights(19)}
    yield Sample("ragged-weighted", uneven, {**RAGGED, "blur": 2.5, "p": 1, "reach": (2.0, 3.0)})
    yield Sample("batched", {"x": rows(3, 9, 4), "y": rows(3, 6, 4, seed=1)}, {"blur": 2.5})
    for columns in (1, 2, 3):
        narrow = {"x": rows(33, columns), "y": rows(31, columns, seed=1)}
        yield Sample(f"narrow-{columns}", narrow, {"blur": 1.5, "p": 1 + columns % 2})
    yield Sample("wide", {"x": rows(17, 700), "y": rows(5, 700, seed=1)}, {"blur": 25.0})


def plan_samples() -> Iterator[Sample]:
    x, y = rows(19, 7), rows(13, 7, seed=1, shift=0.3)
    potentials = {"f": rows(19, seed=3), "g": rows(13, seed=4)}
    for name, options in PLANS.items():
        yield Sample(name, {"x": x, "y": y, "v": rows(13), **potentials}, {"blur": 2.5, **options})
    held = {"x": x, "y": y, "v": rows(13, 3), **potentials, "a": weights(19), "b": weights(13)}
    yield Sample("columns", held, {"blur": 2.5})
    yield Sample("transposed", {**held, "v": rows(19, 2)}, {"blur": 2.5, "p": 1, "transpose": True})
    ragged = {"x": rows(43, 5), "y": rows(19, 5, seed=1), "f": rows(43, seed=3), "g": rows(19, seed=4)}
    yield Sample("ragged", {**ragged, "v": rows(19, 2)}, {**RAGGED, "blur": 2.0})
    batch = {"x": rows(3, 9, 4), "y": rows(3, 6, 4, seed=1), "f": rows(3, 9), "g": rows(3, 6)}
    yield Sample("batched", {**batch, "v": rows(3, 6)}, {"blur": 2.0})
    yield Sample("batched-columns", {**batch, "v": rows(3, 6, 2)}, {"blur": 2.0, "p": 1})


def _cost_errors(op: str) -> Errors:
    case = cases(op)
    yield from row_errors(op)
    for p in (3, 1.5, "2", True):
        yield case(ValueError, f"p must be 1 or 2, got {p!r}", p=p)
    yield case(ValueError, "cost must be 'euclidean' or 'cosine', got 'l2'", cost="l2")
    yield case(ValueError, "cost must be 'euclidean' with p=1, got 'cosine'", p=1, cost="cosine")
    for blur in (0.0, -1.0, float("inf"), float("nan")):
        yield case(ValueError, f"blur must be a positive number, got {blur}", blur=blur)
    yield case(TypeError, "blur must be a positive number, got Tensor", blur=torch.tensor(1.0))
    labels = {"x_labels": torch.zeros(10, dtype=torch.int64), "y_labels": torch.ones(6, dtype=torch.int64)}
    costs = torch.ones(2, 2, dtype=torch.float64)
    group = "with the other two of x_labels, y_labels, label_cost, got None"
    yield case(ValueError, f"label_cost must be given {group}", **labels)
    yield case(ValueError, f"x_labels must be given {group}", label_cost=costs)
    good = {**labels, "label_cost": costs}
    yield case(ValueError, "label_cost must be (L, L), got (2, 1)", **{**good, "label_cost": costs[:, :1]})
    yield case(ValueError, "label_cost must be finite", **{**good, "label_cost": costs / 0})
    yield case(
        ValueError,
        "label_cost must not need a gradient, which is not offered; pass it detached",
        **{**good, "label_cost": costs.clone().requires_grad_()},
    )
    beyond = "y_labels must be in 0 ... L-1 with L=2 as in label_cost, got"
    yield case(ValueError, f"{beyond} 2", **{**good, "y_labels": labels["y_labels"] * 2})
    yield case(ValueError, f"{beyond} -1", **{**good, "y_labels": -labels["y_labels"]})
    short = {**good, "x_labels": labels["x_labels"][1:]}
    yield case(ValueError, "x_labels must be (10,) as the rows of x, got (9,)", **short)
    yield case(TypeError, "x_labels must be int64, got float64", **{**good, "x_labels": rows(10)})
    yield case(TypeError, "x_labels must be a tensor, got list", **{**good, "x_labels": [0] * 10})


def divergence_errors() -> Errors:
    op = "sinkhorn_divergence"
    case = cases(op)
    yield from weight_errors(op, _cost_errors)
    yield case(ValueError, "a must not be negative, got -0.5", a=torch.full((10,), -0.5))
    totals = "b must have the total of a, 5, in each segment unless reach= or mass= is given, got 1"
    yield case(ValueError, totals, a=torch.full((10,), 0.5))
    powers = "blur must be a number whose power eps = blur^p is in range"
    yield case(ValueError, f"{powers}, got 1e-200", blur=1e-200)
    far = "times the diameter, where rounding takes a hundredth of the cost in float64"
    yield case(ValueError, f"blur must be at most 4.75e+06 {far}, got 10000000.0", blur=1e7, diameter=1.0)
    words = "a positive number, None or a pair of these"
    yield case(ValueError, f"reach must be {words}, got -1.0", reach=-1.0)
    yield case(ValueError, f"reach must be {words}, got (1.0, 2.0, 3.0)", reach=(1.0, 2.0, 3.0))
    yield case(TypeError, f"reach must be {words}, got str", reach=("1", None))
    yield case(ValueError, "diameter must be a positive number or None, got 0", diameter=0)
    for scaling in (0.0, 1.0, 2):
        yield case(ValueError, f"scaling must be a number between 0 and 1, got {scaling}", scaling=scaling)
    yield case(TypeError, "debias must be True or False, got int", debias=1)
    yield case(ValueError, "tol must be a positive number or None, got 0.0", tol=0.0)
    single = {"x": rows(10, 4).float(), "y": rows(6, 4).float(), "tol": 1e-7}
    yield case(ValueError, "tol must be at least 1e-06 for rows below float64, got 1e-07", **single)
    sharp = {**single, "tol": 1e-6, "diameter": 1.0, "blur": 0.05}
    floor = "tol must be at least 1.49e-06 for rows below float64 at this diameter and blur, got 1e-06"
    yield case(ValueError, floor, **sharp)
    yield case(ValueError, "max_iterations must be a positive int or None, got 0", max_iterations=0)
    yield case(TypeError, "max_iterations must be a positive int or None, got float", max_iterations=1.0)
    yield case(ValueError, "mass must be a positive number or None, got -0.5", mass=-0.5, debias=False)
    yield case(ValueError, "debias must be False with mass, got True", mass=0.5)
    yield case(ValueError, "reach must be None with mass, got 1.0", mass=0.5, debias=False, reach=1.0)
    yield case(ValueError, "mass must be at most the least total of a, 1, got 1.5", mass=1.5, debias=False)
    yield case(ValueError, "cost_budget must be a number of bytes, got -1", cost_budget=-1)
    yield case(TypeError, "cost_budget must be a number of bytes, got float", cost_budget=1e6)
    yield case(TypeError, "start must be a SinkhornSolution or None, got tuple", start=(rows(10), rows(6)))
    term = torch.tensor(0.5, dtype=torch.float64)
    yield case(TypeError, "xx must be None, False or a tensor, got bool", xx=True)
    yield case(ValueError, "xx must be (), one for each segment, got (1,)", xx=term[None])
    yield case(ValueError, "xx must be None with debias=False, got False", xx=False, debias=False)
    for xx, shown in ((False, "False"), (term, "a tensor")):
        for name, tensor in (("x", rows(10, 4)), ("a", torch.full((10,), 0.1))):
            message = f"xx must be None while {name} needs a gradient, got {shown}"
            yield case(ValueError, message, xx=xx, **{name: tensor.requires_grad_()})
    lopsided = {
        "x_labels": torch.zeros(10, dtype=torch.int64),
        "y_labels": torch.zeros(6, dtype=torch.int64),
        "label_cost": torch.tensor([[0.0, 1.0], [2.0, 0.0]]),
    }
    yield case(ValueError, "label_cost must be symmetric", **lopsided)


def plan_errors() -> Errors:
    case = cases("apply_plan")
    yield from weight_errors("apply_plan", _cost_errors)
    flat = "v must be (M,) or (M, E) with M=6 as in y"
    yield case(ValueError, f"{flat}, got (10,)", v=rows(10))
    backwards = "v must be (N,) or (N, E) with N=10 as in x, got (6,)"
    yield case(ValueError, backwards, transpose=True)
    yield case(ValueError, "f must be (10,) as the rows of x, got (6,)", f=rows(6))
    yield case(TypeError, "solution must be given, or f and g, got None", f=None)
    yield case(TypeError, "solution must be a SinkhornSolution, got float", solution=1.0)
    solution = decoct.SinkhornSolution(*[rows(10)] * 8)
    yield case(TypeError, "f and g must be None with a solution", solution=solution)


OPS = (
    Op(
        "sinkhorn_divergence",
        divergence,
        divergence_twin,
        divergence_samples,
        divergence_errors,
        scale=largest_cost,
        variants=VARIANTS,
        invariant=("p2", "p1", "p2-reach", "p1-reach"),
        compiled=("p2", "one-sided", "cosine", "ragged", "batched"),
        length="blur",
        solved_to=tolerance,
        checked=decoct.sinkhorn_divergence,
    ),
    Op(
        "apply_plan",
        decoct.apply_plan,
        reference.apply_plan,
        plan_samples,
        plan_errors,
        scale=lambda arguments: 0.0,
        variants=PLANS,
        invariant=("p2", "p1"),
        compiled=("p2", "cosine", "ragged", "batched"),
        length="blur",
    ),
)
