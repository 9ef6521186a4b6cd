"""Argument checks shared by the pairwise ops, and the packed form in which they go on."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decoct.kernels import Kernel
from decoct.ops._backend import backend_for, compute_dtype, dtype_name
from decoct.ops._rows import lengths, spread
from decoct.ops._segment_ops import mean_rule, median_rule, segment_sums
from decoct.ops._transforms import needs_gradient
from decoct.segments import Segments, host_offsets

__all__ = ["Offsets", "PackedRows", "Problem", "prepare", "prepare_rows", "resolve_bandwidth"]

Offsets = Tensor | Sequence[int] | Segments | None
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Problem:
    """Two packed clouds: rows (N, D) and (M, D) of one dtype, weights in the compute dtype, one value per
    segment."""

    op: str
    x: Tensor
    y: Tensor
    a: Tensor | None
    b: Tensor | None
    x_offsets: Tensor | None  # host int64, or None for equal segments
    y_offsets: Tensor | None
    segments: int
    shape: tuple[int, ...]  # of the result: () or (segments,)

    @property
    def dtype(self) -> torch.dtype:
        """Of the results: float64 for float64 rows, else float32."""
        return compute_dtype(self.x.dtype)

    @property
    def rows(self) -> tuple[Any, ...]:
        """What the reduction ops take."""
        return self.x, self.y, self.x_offsets, self.y_offsets, self.segments

    def counts(self) -> tuple[Tensor, Tensor]:
        """Rows in each segment of x and of y, float64 (C,)."""
        return (
            lengths(self.x_offsets, self.x.shape[0], self.segments, self.x.device),
            lengths(self.y_offsets, self.y.shape[0], self.segments, self.x.device),
        )

    def constant(self, *values: float) -> Tensor:
        """The same float64 values for each segment, (C, len(values))."""
        if self.x.device.type == "cpu":
            return torch.tensor(values, dtype=torch.float64).expand(self.segments, len(values))
        # Fills rather than a copy from the host: a copy would end the capture of a CUDA graph.
        columns = [torch.full((self.segments,), v, dtype=torch.float64, device=self.x.device) for v in values]
        return torch.stack(columns, 1)

    def zero_if_empty(self, value: Tensor) -> Tensor:
        """`value` with 0 where a segment has no rows on one side."""
        n, m = self.counts()
        return torch.where((n > 0) & (m > 0), value, torch.zeros_like(value))

    def finish(self, value: Tensor) -> Tensor:
        """Per-segment values in the result's dtype and shape."""
        return value.to(self.dtype).reshape(self.shape)

    def moved(self, x: Tensor, y: Tensor) -> Problem:
        """The same problem with other rows."""
        return Problem(
            self.op, x, y, self.a, self.b, self.x_offsets, self.y_offsets, self.segments, self.shape
        )


def check_tensor(op: str, name: str, value: Any, device: torch.device | None) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(
            f"{op}: {name} must be float64, float32, float16 or bfloat16, got {dtype_name(value.dtype)}"
        )
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name} must be on the device of x, {device}, got {value.device}")
    return value


def is_nested(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_nested


def _unnested(op: str, name: str, rows: Any, offsets: Offsets) -> tuple[Any, Offsets]:
    """A jagged nested tensor as packed rows and offsets."""
    if not is_nested(rows):
        return rows, offsets
    if rows.layout != torch.jagged:
        raise ValueError(f"{op}: a nested {name} must have the jagged layout, got {rows.layout}")
    if torch.compiler.is_compiling():
        raise RuntimeError(f"{op}: nested tensors are accepted in eager mode only; pass values and offsets")
    if offsets is not None:
        raise ValueError(f"{op}: {name}_offsets must be None with a nested {name}, which has its own")
    if rows.lengths() is not None:
        raise ValueError(f"{op}: a nested {name} must be contiguous, got one with holes")
    return rows.values(), host_offsets(op, f"{name}_offsets", rows.offsets())


def _check_first(op: str, x: Tensor, packed: bool) -> None:
    got_x = tuple(x.shape)
    if packed and x.dim() != 2:
        raise ValueError(f"{op}: x must be (N, D) with x_offsets, got {got_x}")
    if x.dim() not in (2, 3):
        raise ValueError(f"{op}: x must be (N, D) or (B, N, D), got {got_x}")
    if x.shape[-1] == 0:
        raise ValueError(f"{op}: x must be at least one column wide, got {got_x}")


def _check_rows(op: str, x: Tensor, y: Tensor, packed: bool) -> None:
    _check_first(op, x, packed)
    got_y = tuple(y.shape)
    if x.dim() == 2 and (y.dim() != 2 or y.shape[1] != x.shape[1]):
        raise ValueError(f"{op}: y must be (M, D) with D={x.shape[1]} as in x, got {got_y}")
    if x.dim() == 3 and (y.dim() != 3 or y.shape[0] != x.shape[0] or y.shape[2] != x.shape[2]):
        raise ValueError(
            f"{op}: y must be (B, M, D) with B={x.shape[0]} and D={x.shape[2]} as in x, got {got_y}"
        )


def _check_weights(
    op: str, name: str, weights: Any, side: str, rows: Tensor, device: torch.device
) -> Tensor | None:
    if weights is None:
        return None
    check_tensor(op, name, weights, device)
    if weights.shape != rows.shape[:-1]:
        letter = "N" if side == "x" else "M"
        if rows.dim() == 3:
            expected = f"(B, {letter}) with B={rows.shape[0]} and {letter}={rows.shape[1]}"
        else:
            expected = f"({letter},) with {letter}={rows.shape[0]}"
        raise ValueError(f"{op}: {name} must be {expected} as in {side}, got {tuple(weights.shape)}")
    flat: Tensor = weights.reshape(-1)
    return flat


def _check_offsets(
    op: str, x: Tensor, y: Tensor, x_offsets: Offsets, y_offsets: Offsets
) -> tuple[Tensor, Tensor]:
    if x_offsets is None:
        raise ValueError(f"{op}: x_offsets must be given with y_offsets, got None")
    if y_offsets is None:
        raise ValueError(f"{op}: y_offsets must be given with x_offsets, got None")
    ends = host_offsets(op, "x_offsets", x_offsets), host_offsets(op, "y_offsets", y_offsets)
    if ends[0].shape != ends[1].shape:
        raise ValueError(
            f"{op}: y_offsets must be (C+1,) with C={ends[0].shape[0] - 1} as in x_offsets, "
            f"got {tuple(ends[1].shape)}"
        )
    for name, letter, host, rows in (("x", "N", ends[0], x), ("y", "M", ends[1], y)):
        _check_end(op, name, letter, host, rows)
    return ends


def _check_end(op: str, name: str, letter: str, host: Tensor, rows: Tensor) -> None:
    if not torch.compiler.is_compiling() and int(host[-1]) != rows.shape[0]:
        raise ValueError(
            f"{op}: {name}_offsets must end at {letter}={rows.shape[0]}, the rows of {name}, "
            f"got {int(host[-1])}"
        )


def _common_dtype(x: Tensor, y: Tensor, *others: Tensor | None) -> torch.dtype:
    """Rows of one 16-bit dtype stay as they are; anything mixed promotes, weights included."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    if any(other is not None and other.dtype == torch.float64 for other in others):
        dtype = torch.float64
    return dtype


def prepare(
    op: str,
    x: Any,
    y: Any,
    a: Any,
    b: Any,
    x_offsets: Offsets,
    y_offsets: Offsets,
    others: tuple[Any, ...] = (),
) -> Problem:
    """Check the arguments that all pairwise ops share and pack them. `others` take part in type promotion
    only."""
    x, x_offsets = _unnested(op, "x", x, x_offsets)
    y, y_offsets = _unnested(op, "y", y, y_offsets)
    a, b = (w.values() if is_nested(w) else w for w in (a, b))
    x = check_tensor(op, "x", x, None)
    y = check_tensor(op, "y", y, x.device)
    packed = x_offsets is not None or y_offsets is not None
    _check_rows(op, x, y, packed)
    a = _check_weights(op, "a", a, "x", x, x.device)
    b = _check_weights(op, "b", b, "y", y, x.device)
    x_ends: Tensor | None = None
    y_ends: Tensor | None = None
    if packed:
        x_ends, y_ends = _check_offsets(op, x, y, x_offsets, y_offsets)
    backend_for(op, x.device)

    dtype = _common_dtype(x, y, a, b, *others)
    compute = compute_dtype(dtype)
    segments = 1
    shape: tuple[int, ...] = ()
    if x.dim() == 3:
        segments = x.shape[0]
        shape = (segments,)
        x, y = (rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[2]) for rows in (x, y))
    elif x_ends is not None:
        segments = x_ends.shape[0] - 1
        shape = (segments,)
    x, y = x.to(dtype), y.to(dtype)
    a, b = (None if w is None else w.to(compute) for w in (a, b))
    return Problem(op, x, y, a, b, x_ends, y_ends, segments, shape)


class PackedRows(NamedTuple):
    """One packed cloud: rows (N, D), weights (N,) in the compute dtype, one result per segment."""

    x: Tensor
    weights: Tensor | None
    offsets: Tensor | None  # host int64, or None for equal segments
    segments: int
    shape: tuple[int, ...]  # that results begin with: () or (segments,)


def prepare_rows(op: str, x: Any, weights: Any, x_offsets: Offsets, *others: Any) -> PackedRows:
    """Check and pack the arguments of an op on one cloud. `others` take part in type promotion only."""
    x, x_offsets = _unnested(op, "x", x, x_offsets)
    weights = weights.values() if is_nested(weights) else weights
    x = check_tensor(op, "x", x, None)
    _check_first(op, x, x_offsets is not None)
    weights = _check_weights(op, "weights", weights, "x", x, x.device)
    ends = None if x_offsets is None else host_offsets(op, "x_offsets", x_offsets)
    if ends is not None:
        _check_end(op, "x", "N", ends, x)
    backend_for(op, x.device)
    dtype = functools.reduce(torch.promote_types, [other.dtype for other in others], x.dtype)
    if weights is not None and weights.dtype == torch.float64:
        dtype = torch.float64
    segments = 1 if ends is None else ends.shape[0] - 1
    shape: tuple[int, ...] = () if ends is None else (segments,)
    if x.dim() == 3:
        segments = x.shape[0]
        shape = (segments,)
        x = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
    weights = None if weights is None else weights.to(compute_dtype(dtype))
    return PackedRows(x.to(dtype), weights, ends, segments, shape)


def needs_bandwidth_gradient(bandwidth: Any) -> bool:
    return isinstance(bandwidth, Tensor) and needs_gradient(bandwidth)


def _check_bandwidth_tensor(problem: Problem, bandwidth: Tensor) -> Tensor:
    op, segments = problem.op, problem.segments
    check_tensor(op, "bandwidth", bandwidth, problem.x.device)
    if bandwidth.shape not in ((), problem.shape):
        expected = f"() or ({segments},), one for each segment" if problem.shape else "()"
        raise ValueError(f"{op}: bandwidth must be {expected}, got {tuple(bandwidth.shape)}")
    readable_now = bandwidth.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable_now and not torch._C._are_functorch_transforms_active():
        bad = bandwidth.detach().reshape(-1)
        bad = bad[~((bad > 0) & (bad < math.inf))]
        if bad.numel():
            raise ValueError(f"{op}: bandwidth must be positive and finite, got {float(bad[0])}")
    return bandwidth.to(torch.float64).expand(segments)


def resolve_bandwidth(problem: Problem, kernel: Kernel, bandwidth: Any) -> tuple[Problem, Tensor | None]:
    """The length of each segment as float64 (C,), or None for the "mean" rule, which the engine applies
    itself.

    A length that needs a gradient is divided out of the rows, centred, and the op sees length 1: all kernels
    with a length depend on d / s only, so that each derivative by s, mixed ones too, follows from those by
    the rows.
    """
    op = problem.op
    if not kernel.uses_bandwidth:
        return problem, problem.constant(1.0)[:, 0]
    if isinstance(bandwidth, str):
        if bandwidth == "mean":
            return problem, None
        if bandwidth == "median":
            return problem, median_rule(*problem.rows)
        raise ValueError(f'{op}: bandwidth must be a number, a tensor, "mean" or "median", got {bandwidth!r}')
    if isinstance(bandwidth, Tensor):
        length = _check_bandwidth_tensor(problem, bandwidth)
        if not needs_gradient(bandwidth):
            return problem, length.detach()
        return _divided(problem, length), problem.constant(1.0)[:, 0]
    if isinstance(bandwidth, bool) or not isinstance(bandwidth, int | float):
        kind = type(bandwidth).__name__
        raise TypeError(f'{op}: bandwidth must be a number, a tensor, "mean" or "median", got {kind}')
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"{op}: bandwidth must be positive and finite, got {bandwidth}")
    return problem, problem.constant(float(bandwidth))[:, 0]


def _divided(problem: Problem, length: Tensor) -> Problem:
    x, y, x_offsets, y_offsets, segments = problem.rows
    dtype = problem.dtype
    centre = segment_sums(x.detach(), None, x_offsets, segments)
    scale = length.to(dtype)[:, None]
    points = []
    for rows, offsets in ((x, x_offsets), (y, y_offsets)):
        around = spread(centre, offsets, rows.shape[0], segments)
        points.append((rows.to(dtype) - around) / spread(scale, offsets, rows.shape[0], segments))
    return problem.moved(*points)


def fixed_bandwidth(problem: Problem, bandwidth: Tensor | None) -> Tensor:
    """The lengths with the "mean" rule evaluated, for ops that are called more than once."""
    return mean_rule(*problem.rows) if bandwidth is None else bandwidth
