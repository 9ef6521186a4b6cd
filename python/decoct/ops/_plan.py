"""What solvers, derivatives and plans of entropic transport share: the problem's numbers, and products with
its plan, which is a kernel matrix between potentials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decoct.ops._matvec import matvec
from decoct.ops._rows import lengths, spread

__all__ = ["Settings", "plan_product", "uniform"]

NEVER = -1e6
"""A potential over eps of pairs that are not in the plan; finite, so that no sum of two is undefined."""


class Settings(NamedTuple):
    """An entropic problem's numbers; packed, as registered ops take them."""

    power: int
    blur: float
    scaling: float = 0.5
    diameter: float = 0.0  # 0: of each segment's box; negative: of the box around all segments
    reach_x: float = math.inf
    reach_y: float = math.inf
    mass: float = 0.0
    tolerance: float = 0.0
    max_iterations: int = 1
    cost_budget: int = 0

    @classmethod
    def unpacked(cls, numbers: Sequence[float]) -> Settings:
        whole = {"power", "max_iterations", "cost_budget"}
        pairs = zip(cls._fields, numbers, strict=True)
        return cls(**{name: int(value) if name in whole else value for name, value in pairs})  # type: ignore[arg-type]

    def packed(self) -> list[float]:
        return [float(number) for number in self]

    @property
    def eps(self) -> float:
        return self.blur**self.power

    def strength(self, side: int) -> float:
        """What keeps a marginal: rho = reach^p."""
        return float((self.reach_x, self.reach_y)[side] ** self.power)

    @property
    def balanced(self) -> bool:
        """Whether both marginals are kept."""
        return math.isinf(self.reach_x) and math.isinf(self.reach_y) and self.mass == 0

    @property
    def kernel(self) -> tuple[str, list[float]]:
        """exp(-C / eps) as a packed kernel with the bandwidth `blur`."""
        return ("gaussian" if self.power == 2 else "laplacian"), [0.0, 0.0, 0.0, 1.0]

    def bandwidth(self, segments: int, device: torch.device) -> Tensor:
        return torch.full((segments,), self.blur, dtype=torch.float64, device=device)

    def for_engine(self, diameter: float) -> dict[str, Any]:
        numbers = self._asdict()
        del numbers["cost_budget"]
        return {**numbers, "diameter": diameter}


def uniform(weights: Tensor | None, rows: Tensor, offsets: Tensor | None, segments: int) -> Tensor:
    """Weights, or 1 / rows of the segment in the compute dtype."""
    if weights is not None:
        return weights
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    count = lengths(offsets, rows.shape[0], segments, rows.device)
    return spread((1 / count.clamp(min=1)).to(dtype), offsets, rows.shape[0], segments)


def plan_product(
    settings: Settings,
    x: Tensor,
    y: Tensor,
    x_offsets: Tensor | None,
    y_offsets: Tensor | None,
    segments: int,
    x_labels: Tensor | None,
    y_labels: Tensor | None,
    label_cost: Tensor | None,
    f: Tensor,
    g: Tensor,
    v: Tensor,
) -> Tensor:
    """sum_j exp((f_i + g_j - C_ij) / eps) v_j for (M, E) vectors; f and g are constants for autograd.

    With labels it is a product for each label of y, whose rows alone have a potential there.
    """
    bandwidth = settings.bandwidth(segments, x.device)
    f, g = f / settings.eps, g / settings.eps

    def product(left: Tensor, right: Tensor) -> Tensor:
        return matvec(x, y, v, x_offsets, y_offsets, segments, bandwidth, left, right, *settings.kernel)

    if label_cost is None or x_labels is None or y_labels is None:
        return product(f, g)
    costs = (label_cost / settings.eps).to(f.dtype)
    total: Tensor | None = None
    for label in range(label_cost.shape[1]):
        part = product(f - costs[:, label][x_labels], torch.where(y_labels == label, g, NEVER))
        total = part if total is None else total + part
    assert total is not None
    return total
