"""Argument checks shared by the ops of entropic transport, and the form in which they go on."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from decoct.ops._backend import XX, XY, YY, X, Y, dtype_name
from decoct.ops._plan import Settings, uniform
from decoct.ops._problem import Offsets, Problem, check_tensor, is_nested, prepare
from decoct.ops._rows import lengths, segment_totals
from decoct.ops._sinkhorn import VALUE_ONLY, Outputs, sinkhorn
from decoct.ops._transforms import active, needs_gradient, pushed_once

__all__ = ["Cost", "Reach", "Transport", "check_options", "normalised", "transport"]

Cost = Literal["euclidean", "cosine"]
Reach = float | tuple[float | None, float | None] | None

FLOOR = 1e-6
"""The least error of a marginal that float32 potentials can be asked for."""
PARTIAL_TOL = 1e-3
"""What partial transport goes on to where no tol is given."""
STALL = 1 / 16
"""Errors of float32 stall where an exponent's rounding, 2^-23 times the largest cost over eps, is about this
share: measured from 0.01 (below 8 columns, p=2) to 0.1 of it, blur 0.02 ... 0.5, 2 ... 64 columns, 50 ... 200
rows."""
LOST = 0.01
"""The share of the largest cost that the rounding of eps may reach."""
UNEQUAL = 1e-3
"""The share by which totals of both sides may differ where both marginals are kept: more than rounding."""
NO_CAP = 2**31 - 1


@dataclass(frozen=True)
class Transport:
    """Checked arguments of a transport problem."""

    problem: Problem
    settings: Settings
    x_labels: Tensor | None
    y_labels: Tensor | None
    label_cost: Tensor | None
    start: tuple[Tensor | None, ...]

    def solve(self, terms: int, value_only: bool = False) -> Outputs:
        """The terms' signed sum; the potentials' derivatives are offered whatever is asked for, but in a push
        forward of which the value alone is used."""
        problem = self.problem
        x, y, a, b = problem.x, problem.y, problem.a, problem.b
        need = (X if needs_gradient(x) else 0) | (Y if needs_gradient(y) else 0)
        if value_only and pushed_once(x, y, a, b):
            need |= VALUE_ONLY
        wanted = (XX if terms & XX else 0, YY if terms & YY else 0)
        own = [part if want else None for part, want in zip(self.start[2:], wanted, strict=True)]
        return sinkhorn(
            x,
            y,
            a,
            b,
            problem.x_offsets,
            problem.y_offsets,
            problem.segments,
            self.x_labels,
            self.y_labels,
            self.label_cost,
            *self.start[:2],
            *own,
            self.settings.packed(),
            terms | XY,
            need,
        )


def normalised(rows: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays, with zero gradient.

    A power of two, constant for autograd, is divided out first: squares of any row's entries are in range.
    """
    most = rows.detach().abs().amax(-1, keepdim=True)
    unit = torch.ldexp(torch.ones_like(most), torch.frexp(most).exponent - 1)
    rows = rows / torch.where((most > 0) & most.isfinite(), unit, 1.0)
    square = rows.square().sum(-1, keepdim=True)
    zero = square == 0
    return torch.where(zero, 0.0, rows / torch.where(zero, 1.0, square).sqrt())


def _number(op: str, name: str, value: Any, words: str, low: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{op}: {name} must be {words}, got {type(value).__name__}")
    if not low < value < math.inf:
        raise ValueError(f"{op}: {name} must be {words}, got {value}")
    return float(value)


def check_cost(op: str, p: Any, cost: Any) -> None:
    if isinstance(p, bool) or p not in (1, 2):
        raise ValueError(f"{op}: p must be 1 or 2, got {p!r}")
    if cost not in ("euclidean", "cosine"):
        raise ValueError(f"{op}: cost must be 'euclidean' or 'cosine', got {cost!r}")
    if cost == "cosine" and p != 2:
        raise ValueError(f"{op}: cost must be 'euclidean' with p=1, got 'cosine'")


def check_blur(op: str, blur: Any, p: int) -> float:
    """Of which eps = blur^p is a normal number."""
    length = _number(op, "blur", blur, "a positive number")
    eps = length if p == 1 else length * length
    if not sys.float_info.min <= eps < math.inf:
        raise ValueError(f"{op}: blur must be a number whose power eps = blur^p is in range, got {blur}")
    return length


def _check_precision(op: str, settings: Settings, dtype: torch.dtype, tol: Any) -> None:
    """That rows of this dtype can give what is asked for, as far as that is known without the rows."""
    size, rounding = settings.diameter, torch.finfo(dtype).eps
    cost = size if settings.power == 1 else size * size / 2
    if cost > 0 and rounding * settings.eps > LOST * cost:
        most = (LOST / rounding / settings.power) ** (1 / settings.power)
        raise ValueError(
            f"{op}: blur must be at most {most:.3g} times the diameter, where rounding takes a hundredth of "
            f"the cost in {dtype_name(dtype)}, got {settings.blur}"
        )
    floor = max(FLOOR, STALL * rounding * cost / settings.eps)
    if dtype == torch.float32 and 0 < settings.tolerance < floor:
        where = " at this diameter and blur" if floor > FLOOR else ""
        raise ValueError(f"{op}: tol must be at least {floor:.3g} for rows below float64{where}, got {tol}")


def _reaches(op: str, reach: Any) -> tuple[float, float]:
    words = "a positive number, None or a pair of these"
    pair = reach if isinstance(reach, tuple | list) else (reach, reach)
    if len(pair) != 2:
        raise ValueError(f"{op}: reach must be {words}, got {reach!r}")
    first, second = (math.inf if part is None else _number(op, "reach", part, words) for part in pair)
    return first, second


def _iterations(op: str, tol: Any, max_iterations: Any) -> tuple[float, int]:
    tolerance = 0.0 if tol is None else _number(op, "tol", tol, "a positive number or None")
    if max_iterations is None:
        return tolerance, NO_CAP if tol is None else 1000
    words = "a positive int or None"
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int):
        raise TypeError(f"{op}: max_iterations must be {words}, got {type(max_iterations).__name__}")
    if max_iterations < 1:
        raise ValueError(f"{op}: max_iterations must be {words}, got {max_iterations}")
    return tolerance, min(max_iterations, NO_CAP)


def check_options(
    op: str,
    *,
    p: Any,
    cost: Any,
    blur: Any,
    reach: Any,
    diameter: Any,
    scaling: Any,
    debias: Any,
    tol: Any,
    max_iterations: Any,
    mass: Any,
    cost_budget: Any,
) -> Settings:
    """The options of a solver that are plain values."""
    check_cost(op, p, cost)
    blur = check_blur(op, blur, p)
    reach_x, reach_y = _reaches(op, reach)
    size = 0.0 if diameter is None else _number(op, "diameter", diameter, "a positive number or None")
    ratio = _number(op, "scaling", scaling, "a number between 0 and 1")
    if ratio >= 1:
        raise ValueError(f"{op}: scaling must be a number between 0 and 1, got {scaling}")
    if not isinstance(debias, bool):
        raise TypeError(f"{op}: debias must be True or False, got {type(debias).__name__}")
    # Annealing alone leaves a partial problem far from its solution.
    tolerance, cap = _iterations(op, PARTIAL_TOL if tol is None and mass is not None else tol, max_iterations)
    amount = 0.0 if mass is None else _number(op, "mass", mass, "a positive number or None")
    if mass is not None and debias:
        raise ValueError(f"{op}: debias must be False with mass, got True")
    if mass is not None and reach is not None:
        raise ValueError(f"{op}: reach must be None with mass, got {reach}")
    if isinstance(cost_budget, bool) or not isinstance(cost_budget, int):
        raise TypeError(f"{op}: cost_budget must be a number of bytes, got {type(cost_budget).__name__}")
    if cost_budget < 0:
        raise ValueError(f"{op}: cost_budget must be a number of bytes, got {cost_budget}")
    return Settings(int(p), blur, ratio, size, reach_x, reach_y, amount, tolerance, cap, cost_budget)


def _values_are_known(tensor: Tensor) -> bool:
    """Without a sync, and outside of whatever gives tensors no values."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return plain and tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not active()


def _one_label_side(op: str, name: str, labels: Any, rows: Tensor, count: int) -> Tensor:
    if not isinstance(labels, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(labels).__name__}")
    labels = labels.values() if is_nested(labels) else labels
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"{op}: {name} must be int64, got {dtype_name(labels.dtype)}")
    if labels.device != rows.device:
        raise ValueError(f"{op}: {name} must be on the device of x, {rows.device}, got {labels.device}")
    if labels.shape != rows.shape[:-1]:
        side, expected = name[0], tuple(rows.shape[:-1])
        raise ValueError(f"{op}: {name} must be {expected} as the rows of {side}, got {tuple(labels.shape)}")
    flat: Tensor = labels.reshape(-1).to(torch.int64)
    if _values_are_known(flat) and flat.numel():
        least, most = (int(end) for end in flat.aminmax())
        if least < 0 or most >= count:
            worst = least if least < 0 else most
            raise ValueError(
                f"{op}: {name} must be in 0 ... L-1 with L={count} as in label_cost, got {worst}"
            )
    return flat


def check_labels(
    op: str, x: Any, y: Any, x_labels: Any, y_labels: Any, label_cost: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    given = {"x_labels": x_labels, "y_labels": y_labels, "label_cost": label_cost}
    if all(part is None for part in given.values()):
        return None, None, None
    for name, part in given.items():
        if part is None:
            raise ValueError(f"{op}: {name} must be given with the other two of {', '.join(given)}, got None")
    x, y = (rows.values() if is_nested(rows) else rows for rows in (x, y))
    check_tensor(op, "label_cost", label_cost, x.device)
    if label_cost.dim() != 2 or label_cost.shape[0] != label_cost.shape[1] or not label_cost.shape[0]:
        raise ValueError(f"{op}: label_cost must be (L, L), got {tuple(label_cost.shape)}")
    if needs_gradient(label_cost):
        raise ValueError(f"{op}: label_cost must not need a gradient, which is not offered; pass it detached")
    costs = label_cost.detach().to(torch.float64)
    if _values_are_known(costs):
        if not bool(costs.isfinite().all()):
            raise ValueError(f"{op}: label_cost must be finite")
        if not torch.equal(costs, costs.T):
            raise ValueError(f"{op}: label_cost must be symmetric")
    count = costs.shape[0]
    return (
        _one_label_side(op, "x_labels", x_labels, x, count),
        _one_label_side(op, "y_labels", y_labels, y, count),
        costs,
    )


def _check_totals(problem: Problem, settings: Settings) -> None:
    """Of the weights of segments that are not empty: none is negative, both sides have the same total or, of
    partial transport, the mass."""
    op, segments = problem.op, problem.segments
    sides = (("a", problem.x, problem.a, problem.x_offsets), ("b", problem.y, problem.b, problem.y_offsets))
    given = [w for _, _, w, _ in sides if w is not None]
    if segments == 0 or (not given and settings.mass == 0):
        return
    if not all(map(_values_are_known, (problem.x, problem.y, *given))):
        return
    totals, counts = [], []
    for name, rows, weights, offsets in sides:
        if weights is not None and bool((weights < 0).any()):
            raise ValueError(f"{op}: {name} must not be negative, got {float(weights.detach().min()):.6g}")
        w = uniform(weights, rows, offsets, segments).detach().double()
        totals.append(segment_totals(w, offsets, segments))
        counts.append(lengths(offsets, rows.shape[0], segments, rows.device))
    there = (counts[0] > 0) & (counts[1] > 0)
    a, b = (total[there] for total in totals)
    if settings.mass > 0 and a.numel():
        for name, total in (("a", a), ("b", b)):
            least = float(total.min())
            if settings.mass > least * (1 + 1e-6):
                words = f"mass must be at most the least total of {name}, {least:.6g}, got {settings.mass}"
                raise ValueError(f"{op}: {words}")
    unequal = (a - b).abs() > UNEQUAL * torch.maximum(a, b)
    if settings.balanced and bool(unequal.any()):
        raise ValueError(
            f"{op}: b must have the total of a, {float(a[unequal][0]):.6g}, in each segment unless reach= or "
            f"mass= is given, got {float(b[unequal][0]):.6g}"
        )


def _check_start(
    problem: Problem, start: Any, clouds: tuple[Any, Any], own: tuple[bool, bool], solution: type
) -> tuple[Tensor | None, ...]:
    """Potentials to start from; `own`: which of the self terms are solved."""
    op = problem.op
    if start is None:
        return None, None, None, None
    if not isinstance(start, solution):
        raise TypeError(f"{op}: start must be a SinkhornSolution or None, got {type(start).__name__}")
    names = ("f", "g", "f_self", "g_self")
    potentials: list[Tensor | None] = []
    for name, cloud, wanted in zip(names, clouds * 2, (True, True, *own), strict=True):
        part = getattr(start, name)
        if part is None and name.endswith("self"):
            if wanted:
                raise ValueError(f"{op}: start must have {name} with debias=True, got None")
            potentials.append(None)
            continue
        part, rows = (value.values() if is_nested(value) else value for value in (part, cloud))
        check_tensor(op, f"start.{name}", part, rows.device)
        if part.shape != rows.shape[:-1]:
            side = "x" if cloud is clouds[0] else "y"
            shape = tuple(rows.shape[:-1])
            raise ValueError(
                f"{op}: start.{name} must be {shape} as the rows of {side}, got {tuple(part.shape)}"
            )
        potentials.append(part.detach().reshape(-1).to(problem.dtype))
    return tuple(potentials)


def transport(
    op: str,
    x: Any,
    y: Any,
    *,
    a: Any,
    b: Any,
    x_offsets: Offsets,
    y_offsets: Offsets,
    x_labels: Any,
    y_labels: Any,
    label_cost: Any,
    start: Any,
    solution: type,
    pooled: bool,
    own_x: bool = True,
    **options: Any,
) -> Transport:
    """Checks the arguments of a solver. `pooled`: without a diameter that of the box around all segments.
    `own_x`: whether a debiased value needs the term of x with itself."""
    settings = check_options(op, **options)
    problem = prepare(op, x, y, a, b, x_offsets, y_offsets)
    _check_precision(op, settings, problem.dtype, options["tol"])
    debias = options["debias"]
    labels = check_labels(op, x, y, x_labels, y_labels, label_cost)
    _check_totals(problem, settings)
    begin = _check_start(problem, start, (x, y), (debias and own_x, debias), solution)
    if options["cost"] == "cosine":
        rows = [normalised(part.to(problem.dtype)) for part in (problem.x, problem.y)]
        problem = problem.moved(*rows)
    if pooled and options["diameter"] is None and problem.segments > 1:
        settings = settings._replace(diameter=-1.0)
    return Transport(problem, settings, *labels, begin)
