"""The registered op behind `free_support_barycenter`.

The engine of the CPU runs all turns of all groups in one call. On CUDA a turn is one call of the op
`sinkhorn` for all measures at once, with a copy of the points for each measure: its derivative by the points
is what they have to move by, and where the second marginal is free, which is a reach of next to nothing,
its potentials are the logarithms of that marginal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decoct.ops._backend import XY, Y, as_matrix, backend_for, compute_dtype, readable
from decoct.ops._backend import offsets_or_uniform as ends_of
from decoct.ops._barycenter_start import first_points
from decoct.ops._memory import scratch
from decoct.ops._plan import Settings, uniform
from decoct.ops._registry import Op, refuse
from decoct.ops._rows import lengths, segment_ids, spread
from decoct.ops._segment_ops import segment_sums, totals
from decoct.ops._sinkhorn import Outputs as Solution
from decoct.ops._sinkhorn import _implementation as solve

__all__ = ["Options", "barycenter"]

FREE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""The reach, over blur, at which a marginal counts for nothing: by its square, of what is returned for it."""
EXACT = {torch.float64: 1e-13, torch.float32: 1e-6}
"""How closely the first marginal is met where the second is free: one step would do it but for its averaging
with the one before."""


class Options(NamedTuple):
    """The numbers of a barycentre; packed, as the op takes them."""

    blur: float
    first_blur: float
    scaling: float
    step: float
    tolerance: float
    marginal_tolerance: float
    iterations: int
    inner_iterations: int
    learned: bool

    @classmethod
    def unpacked(cls, numbers: Sequence[float]) -> Options:
        whole = {"iterations": int, "inner_iterations": int, "learned": bool}
        pairs = zip(cls._fields, numbers, strict=True)
        return cls(**{name: whole.get(name, float)(value) for name, value in pairs})

    def packed(self) -> list[float]:
        return [float(number) for number in self]

    def blurs(self) -> list[float]:
        """Of each turn."""
        return [max(self.blur, self.first_blur * self.scaling**turn) for turn in range(self.iterations)]


_SCHEMA = (
    "Tensor x, Tensor? a, Tensor? x_offsets, SymInt segments, Tensor? points, Tensor? masses, "
    "Tensor? measures, Tensor? shares, Tensor? point_offsets, SymInt groups, SymInt count, str start, "
    "int seed, float[] numbers"
)
_LAYOUT = "rrosrroross---"


class Outputs(NamedTuple):
    points: Tensor  # (K, D)
    masses: Tensor  # (K,)
    cost: Tensor  # (groups,) float64
    movement: Tensor  # (groups,) float64
    made: Tensor  # (groups,) int64


def _outputs(x: Tensor, groups: Any, count: Any) -> Outputs:
    dtype = compute_dtype(x.dtype)
    return Outputs(
        x.new_zeros((count, x.shape[1]), dtype=dtype),
        x.new_zeros((count,), dtype=dtype),
        x.new_zeros((groups,), dtype=torch.float64),
        x.new_zeros((groups,), dtype=torch.float64),
        x.new_zeros((groups,), dtype=torch.int64),
    )


class _Groups(NamedTuple):
    """Host offsets, and the shares of the measures that have rows, which add up to 1 in each group."""

    rows: Tensor
    measures: Tensor
    points: Tensor
    shares: Tensor  # on the device

    @property
    def whole(self) -> Tensor:
        """Offsets of the rows of each group."""
        return self.rows[self.measures]


def _groups(
    x: Tensor,
    x_offsets: Any,
    segments: int,
    measures: Any,
    shares: Any,
    point_offsets: Any,
    groups: int,
    count: int,
) -> _Groups:
    rows = ends_of(x_offsets, x.shape[0], segments)
    ends = ends_of(measures, segments, groups)
    given = torch.ones(segments, dtype=torch.float64, device=x.device) if shares is None else shares.double()
    given = given * (lengths(rows, x.shape[0], segments, x.device) > 0)
    all_of = totals(given, ends, groups) if segments and groups else given.new_zeros(groups)
    given = given / spread(torch.where(all_of == 0, 1.0, all_of), ends, segments, groups)
    return _Groups(rows, ends, ends_of(point_offsets, count, groups), given)


def _implementation(*arguments: Any) -> tuple[Tensor, ...]:
    x, a, x_offsets, segments, points, masses, measures, shares, point_offsets, groups, count, *rest = (
        arguments
    )
    start, seed, numbers = rest
    options = Options.unpacked(numbers)
    made = _outputs(x, groups, count)
    engine = backend_for("free_support_barycenter", x.device)
    if groups == 0 or count == 0 or segments == 0:
        return made
    with torch.no_grad():
        parts = _groups(x, x_offsets, segments, measures, shares, point_offsets, groups, count)
        if a is not None:
            all_of = totals(a.double(), parts.rows, segments)
            a = (a / spread(torch.where(all_of == 0, 1.0, all_of), parts.rows, x.shape[0], segments)).to(
                a.dtype
            )
        there = (
            (parts.whole.diff() > 0).repeat_interleave(parts.points.diff(), output_size=count).to(x.device)
        )
        if points is None:
            made.points.copy_(first_points(x, a, parts.whole, parts.points, start, seed))
        else:
            made.points.copy_(torch.where(there[:, None], points, 0.0))
        if masses is None:
            of_group = 1 / lengths(parts.points, count, groups, x.device).clamp(min=1)
        else:
            made.masses.copy_(masses)
            all_of = totals(masses.double(), parts.points, groups)
            of_group = 1 / torch.where(all_of == 0, 1.0, all_of)
        shared = spread(of_group, parts.points, count, groups)
        made.masses.copy_(torch.where(there, shared if masses is None else masses * shared, 0.0))
        if hasattr(engine, "barycenter"):
            _in_engine(engine, x, a, parts, made, options)
        else:
            _in_turns(x, a, parts, made, options)
    return made


def _in_engine(
    engine: Any, x: Tensor, a: Tensor | None, parts: _Groups, made: Outputs, options: Options
) -> None:
    tensors = {"x": readable(x), "points": made.points, "x_offsets": parts.rows.contiguous()}
    tensors |= {"measure_offsets": parts.measures.contiguous(), "point_offsets": parts.points.contiguous()}
    sizes = {name: as_matrix(engine, tensor) for name, tensor in tensors.items()}
    threads = torch.get_num_threads()
    kept = scratch(engine.barycenter_workspace_bytes(**sizes, threads=threads), x.device)
    weights = None if a is None else readable(a)
    engine.barycenter(
        **sizes,
        a=as_matrix(engine, weights),
        shares=as_matrix(engine, parts.shares),
        masses=as_matrix(engine, made.masses),
        **options._asdict(),
        cost=as_matrix(engine, made.cost),
        movement=as_matrix(engine, made.movement),
        made=as_matrix(engine, made.made),
        workspace=as_matrix(engine, kept),
        threads=threads,
    )


def _in_turns(x: Tensor, a: Tensor | None, parts: _Groups, made: Outputs, options: Options) -> None:
    turns = _Turns(x.to(made.points.dtype), a, parts, made, options)
    for turn, blur in enumerate(options.blurs()):
        turns.run(blur, blur == options.blur)
        # Waiting for the device at every turn would cost more than turns that change nothing.
        if (x.device.type == "cpu" or turn % 8 == 7) and not bool(turns.moving.any()):
            break
    made.cost.copy_(turns.plans(options.blur)[0])


class _Turns:
    """The state between turns of what the CPU's engine does in one call."""

    def __init__(self, x: Tensor, a: Tensor | None, parts: _Groups, made: Outputs, options: Options) -> None:
        self.x, self.parts, self.made, self.options = x, parts, made, options
        self.groups, self.segments = made.cost.shape[0], parts.rows.shape[0] - 1
        self.a = uniform(a, x, parts.rows, self.segments)
        self.copies = _Copies(parts, x.device, x.dtype)
        self.group = segment_ids(parts.points, made.points.shape[0], x.device)
        self.weights = made.masses[self.copies.of_point]
        self.moving = torch.ones(self.groups, dtype=torch.bool, device=x.device)
        self.f: Tensor | None = None
        self.g: Tensor | None = None

    def plans(self, blur: float) -> tuple[Tensor, Tensor, Tensor]:
        """Values of the groups, logarithms of the copies' marginals, and the derivative by the copies."""
        options, parts, cold = self.options, self.parts, self.f is None
        settings = Settings(
            2,
            blur,
            reach_y=FREE[self.x.dtype] * blur if options.learned else math.inf,
            tolerance=EXACT[self.x.dtype] if options.learned else options.marginal_tolerance,
            max_iterations=(100 if options.learned else options.inner_iterations) + (64 if cold else 0),
        )
        g = torch.zeros_like(self.g) if self.g is not None and options.learned else self.g
        rows = self.x, self.made.points[self.copies.of_point], self.a, self.weights
        problem = *rows, parts.rows, self.copies.offsets, self.segments, None, None, None
        found = Solution(*solve(*problem, self.f, g, None, None, settings.packed(), XY, Y))
        self.f, self.g = found.f, found.g
        value, log_marginals = found.value, self.weights.log()
        if options.learned:
            value = totals((self.a * found.f).double(), parts.rows, self.segments)
            log_marginals = log_marginals - found.g / settings.strength(1)
        value = parts.shares * torch.where(parts.shares > 0, value, 0.0)
        return totals(value, parts.measures, self.groups), log_marginals, found.grad_y

    def run(self, blur: float, last: bool) -> None:
        made, options, copies = self.made, self.options, self.copies
        _, log_marginals, gradient = self.plans(blur)
        marginals = copies.total(copies.shares * log_marginals.exp())
        there = marginals != 0
        way = copies.total(copies.shares[:, None] * gradient) / torch.where(there, marginals, 1.0)[:, None]
        moving = self.moving[self.group] & there
        old = made.points.clone()
        made.points.copy_(torch.where(moving[:, None], old - options.step * way, old))
        square = totals(made.masses.double() * (made.points - old).double().square().sum(1), *self._of_groups)
        whole = totals(made.masses.double(), *self._of_groups)
        moved = (square / torch.where(whole == 0, 1.0, whole)).sqrt()
        made.movement.copy_(torch.where(self.moving, moved, made.movement))
        made.made.add_(self.moving & (whole != 0))
        if options.learned:
            self._weigh(log_marginals)
        if last:
            self.moving = self.moving & ~(made.movement <= options.tolerance)

    @property
    def _rows_of_groups(self) -> tuple[Tensor, int, int]:
        return self.parts.points, len(self.group), self.groups

    @property
    def _of_groups(self) -> tuple[Tensor, int]:
        return self.parts.points, self.groups

    def _weigh(self, log_marginals: Tensor) -> None:
        """Masses as the plan of the only measure has them."""
        masses, moving = self.made.masses, self.moving[self.group]
        share = torch.where(masses != 0, self.copies.total(log_marginals.exp()), 0.0)
        whole = totals(share.double(), *self._of_groups)
        share = share / spread(torch.where(whole == 0, 1.0, whole), *self._rows_of_groups)
        masses.copy_(torch.where(moving, share, masses))
        self.weights = masses[self.copies.of_point]


class _Copies:
    """The points once for each measure of their group, and sums over them."""

    def __init__(self, parts: _Groups, device: torch.device, dtype: torch.dtype) -> None:
        host = torch.device("cpu")
        owner = segment_ids(parts.measures, int(parts.measures[-1]), host)
        each = parts.points.diff()[owner]
        self.offsets = torch.cat([each.new_zeros(1), each.cumsum(0)])
        measure = segment_ids(self.offsets, int(self.offsets[-1]), host)
        place = torch.arange(len(measure)) - self.offsets[measure] + parts.points[owner[measure]]
        self.of_point = place.to(device)
        # The copies of a point one after the other: sums over them go in one order.
        self._order = torch.argsort(place, stable=True).to(device)
        counted = torch.bincount(place, minlength=int(parts.points[-1]))
        self._ends = torch.cat([counted.new_zeros(1), counted.cumsum(0)])
        self.shares = parts.shares[measure.to(device)].to(dtype)

    def total(self, values: Tensor) -> Tensor:
        """Sums of values (copies, ...) over the copies of each point."""
        ordered = values[self._order].reshape(len(values), -1)
        sums = segment_sums(ordered, torch.ones_like(ordered[:, 0]), self._ends, len(self._ends) - 1)
        return sums.reshape(-1, *values.shape[1:])


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    return _outputs(arguments[0], arguments[9], arguments[10])


_no_derivative = refuse("derivatives of free_support_barycenter are not offered; pass detached tensors")
_op = Op(
    f"free_support_barycenter({_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _implementation,
    _fake,
    backward=_no_derivative,
    jvp=_no_derivative,
    vmap=_LAYOUT,
)


def barycenter(*arguments: Any) -> Outputs:
    """Points and masses of all groups."""
    return Outputs(*_op(*arguments))
