"""A finite measure: rows with labels and masses, packed by group."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Measure", "counts_to_offsets"]


def counts_to_offsets(counts: Sequence[int] | Tensor) -> Tensor:
    """Group sizes (G,) -> host int64 offsets (G+1,), starting at 0."""
    sizes = torch.as_tensor(counts, dtype=torch.int64, device="cpu")
    if sizes.dim() != 1 or bool((sizes < 0).any()):
        raise ValueError(f"counts_to_offsets: counts must be (G,) and not negative, got {sizes.tolist()}")
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


@dataclass(frozen=True)
class Measure:
    """Rows `x` with what belongs to them, packed end to end by group.

    x: (N, ...) rows in any shape.
    y: (N,) ids or (N, ...) soft labels or targets; may need a gradient. None where the rows have none.
    mass: (N,) used as given; None means uniform inside each group.
    groups: host int64 offsets (G+1,) of the groups (class, site, boundary condition), stated, never deduced
    from y; one group by default. Unequal and empty groups are normal.
    columns: (D,) bool, the observed features; None means all of them.
    extras: anything else that a method hands on (a student's learning rate, a teacher).

    Raises ValueError when the sizes disagree.
    """

    x: Tensor
    y: Tensor | None = None
    mass: Tensor | None = None
    groups: Tensor = None  # type: ignore[assignment]  # filled in below; never None afterwards
    columns: Tensor | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = self.x.shape[0]
        if self.groups is None:
            object.__setattr__(self, "groups", torch.tensor([0, rows]))
        offsets = self.groups
        if offsets.dim() != 1 or offsets.dtype != torch.int64 or offsets.numel() < 1 or offsets.is_cuda:
            raise ValueError(
                f"Measure: groups must be host int64 (G+1,), got {offsets.dtype} {tuple(offsets.shape)}"
            )
        if int(offsets[0]) != 0 or int(offsets[-1]) != rows or bool((offsets.diff() < 0).any()):
            raise ValueError(
                f"Measure: groups must rise from 0 to {rows}, the rows of x, got {offsets.tolist()}"
            )
        for name in ("y", "mass"):
            value = getattr(self, name)
            if value is not None and value.shape[0] != rows:
                raise ValueError(f"Measure: {name} must have {rows} rows as x has, got {tuple(value.shape)}")

    def __len__(self) -> int:
        return int(self.x.shape[0])

    @property
    def group_count(self) -> int:
        return int(self.groups.numel()) - 1

    @property
    def counts(self) -> Tensor:
        """Rows of each group, (G,) int64 on the host."""
        return self.groups.diff()

    def replace(self, **changes: Any) -> Measure:
        return dataclasses.replace(self, **changes)

    def select(self, indices: Sequence[int]) -> Measure:
        """The groups with these indices, in this order: one row gather, none where all are kept in order."""
        indices = list(indices)
        if indices == list(range(self.group_count)):
            return self
        bounds = self.groups.tolist()
        if not indices:
            rows = torch.zeros(0, dtype=torch.int64)
        else:
            rows = torch.cat([torch.arange(bounds[i], bounds[i + 1]) for i in indices])
        rows = rows.to(self.x.device)
        return self.replace(
            x=self.x[rows],
            y=None if self.y is None else self.y[rows],
            mass=None if self.mass is None else self.mass[rows],
            groups=counts_to_offsets([bounds[i + 1] - bounds[i] for i in indices]),
        )
