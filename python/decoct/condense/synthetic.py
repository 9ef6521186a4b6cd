"""The synthetic measure: what the loop moves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..objectives import Measure, PublicSource, counts_to_offsets

__all__ = ["MultiFormation", "Synthetic"]


class Synthetic(nn.Module):
    """Points with labels, packed by group; `forward` hands them out as a measure attached to the graph.

    x: (M, ...) starting points; y: (M,) ids or (M, ...) soft labels, by default the group of each point.
    groups: host int64 offsets (G+1,); unequal and empty groups are normal.
    lr: learning rate of the points. learn_labels: move y as well (soft labels or targets), at `label_lr`.
    mass: (M,), kept as given. student_lr: a positive learning rate handed on in the measure's extras,
    learned at `student_lr_rate` where that is not 0.
    value_range: (low, high), both numbers or tensors that broadcast against x: `project_` clips to it.
    A generator's latents or up-sampled formations (`MultiFormation`) are a subclass with its own `decode`.
    """

    # Rows that `decode` makes of one point, consecutive ones.
    rows_per_point = 1

    def __init__(
        self,
        x: Tensor,
        groups: Tensor,
        y: Tensor | None = None,
        *,
        lr: float = 1.0,
        learn_labels: bool = False,
        label_lr: float = 0.01,
        mass: Tensor | None = None,
        student_lr: float | None = None,
        student_lr_rate: float = 0.0,
        value_range: tuple[float | Tensor, float | Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.mass: Tensor | None
        if not x.is_floating_point():
            raise TypeError(f"Synthetic: x must be floating point, got {x.dtype}")
        labels = torch.arange(len(groups) - 1).repeat_interleave(groups.diff()) if y is None else y
        Measure(x, labels, mass, groups)  # checks the sizes
        self.x = nn.Parameter(x.detach().clone().contiguous())
        self.groups = groups
        if learn_labels and not labels.is_floating_point():
            raise TypeError(f"Synthetic: learn_labels needs floating-point y, got {labels.dtype}")
        if learn_labels:
            self.y: Tensor = nn.Parameter(labels.detach().clone())
        else:
            self.register_buffer("y", labels.detach().clone())
        self.register_buffer("mass", None if mass is None else mass.detach().clone())
        self.log_student_lr = None
        if student_lr is not None:
            learned = student_lr_rate != 0
            self.log_student_lr = nn.Parameter(torch.tensor(student_lr).log(), requires_grad=learned)
        self.lr, self.label_lr, self.student_lr_rate = lr, label_lr, student_lr_rate
        self.value_range = value_range

    @classmethod
    def from_noise(
        cls, counts: Sequence[int], shape: Sequence[int], rng: torch.Generator, **options: Any
    ) -> Synthetic:
        """Standard normal points, `counts[g]` of them in group g, each of the given shape."""
        return cls(torch.randn(sum(counts), *shape, generator=rng), counts_to_offsets(counts), **options)

    @classmethod
    def from_source(
        cls, source: PublicSource, counts: Sequence[int], rng: torch.Generator, **options: Any
    ) -> Synthetic:
        """Random real rows, `counts[g]` of group g. ValueError where a group has fewer."""
        short = [
            g
            for g, (have, want) in enumerate(zip(source.counts.tolist(), counts, strict=True))
            if have < want
        ]
        if short:
            g = short[0]
            raise ValueError(
                f"Synthetic: counts asks {counts[g]} rows of group {g}, which has {source.counts[g]}"
            )
        rows = source.sample(list(counts), rng)
        return cls(rows.x, rows.groups, rows.y, **options)

    def decode(self) -> Tensor:
        """The points in the space of the data; here the parameters themselves."""
        return self.x

    def forward(self, n: int | None = None, rng: torch.Generator | None = None) -> Measure:
        """All decoded rows, or a random `n` of each group (all where it has fewer)."""
        extras = {} if self.log_student_lr is None else {"student_lr": self.log_student_lr.exp()}
        measure = Measure(self.decode(), self._labels(), self._masses(), self._offsets(), extras=extras)
        if n is None or int(measure.counts.max()) <= n:
            return measure
        bounds = measure.groups.tolist()
        taken = [
            start + torch.randperm(stop - start, generator=rng)[:n].sort().values
            for start, stop in itertools.pairwise(bounds)
        ]
        rows = torch.cat(taken)
        return measure.replace(
            x=measure.x[rows],
            y=None if measure.y is None else measure.y[rows],
            mass=None if measure.mass is None else measure.mass[rows],
            groups=counts_to_offsets([len(t) for t in taken]),
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One optimiser group for each kind of thing that moves, with its learning rate and a name."""
        groups: list[dict[str, Any]] = [{"params": [self.x], "lr": self.lr, "name": "points"}]
        if isinstance(self.y, nn.Parameter):
            groups.append({"params": [self.y], "lr": self.label_lr, "name": "labels"})
        if self.log_student_lr is not None and self.log_student_lr.requires_grad:
            groups.append({"params": [self.log_student_lr], "lr": self.student_lr_rate, "name": "student_lr"})
        return groups

    @torch.no_grad()
    def project_(self) -> None:
        """Clip the points to `value_range`, where one is set."""
        if self.value_range is not None:
            low, high = (
                torch.as_tensor(bound, dtype=self.x.dtype, device=self.x.device) for bound in self.value_range
            )
            self.x.copy_(torch.minimum(torch.maximum(self.x, low), high))

    @torch.no_grad()
    def rows(self) -> tuple[Tensor, Tensor]:
        """The finished set as networks are trained on it, detached: x and y."""
        return self.decode().detach().clone(), self._labels().detach().clone()

    @torch.no_grad()
    def stored(self) -> tuple[Tensor, Tensor]:
        """What has to be kept of the set, detached: the points before `decode`, and their labels."""
        return self.x.detach().clone(), self.y.detach().clone()

    def _labels(self) -> Tensor:
        return self.y if self.rows_per_point == 1 else self.y.repeat_interleave(self.rows_per_point, dim=0)

    def _masses(self) -> Tensor | None:
        if self.mass is None or self.rows_per_point == 1:
            return self.mass
        return (self.mass / self.rows_per_point).repeat_interleave(self.rows_per_point)

    def _offsets(self) -> Tensor:
        return self.groups * self.rows_per_point


class MultiFormation(Synthetic):
    """Images that each hold a grid of `factor` x `factor` smaller ones; decoded, those stand at full size.

    Equivalent to, for every cell of the grid::

        F.interpolate(cell, (height, width), mode="bilinear", align_corners=False)

    x: (M, C, H, W) stored images, the size of the decoded ones. factor: cells per side; 1 changes nothing.
    A set of M stored images becomes M * factor**2 rows, an image's cells one after the other, row by row;
    labels are repeated, masses divided. Where factor divides a side not, cells have ceil(side / factor)
    pixels and the last one ends in repeated edge pixels.
    The formation is the one of IDC (Kim et al., ICML 2022, arXiv 2205.14959, section 4).
    Raises ValueError for rows that are no images and for a factor that is below 1 or above the smaller side.
    """

    def __init__(
        self, x: Tensor, groups: Tensor, y: Tensor | None = None, *, factor: int = 2, **options: Any
    ) -> None:
        if x.dim() != 4:
            raise ValueError(f"MultiFormation: x must be images (M, C, H, W), got {tuple(x.shape)}")
        if not 1 <= factor <= min(x.shape[2:]):
            raise ValueError(
                f"MultiFormation: factor must be between 1 and the smaller side of {tuple(x.shape)}, "
                f"got {factor}"
            )
        super().__init__(x, groups, y, **options)
        self.factor, self.rows_per_point = factor, factor**2

    @classmethod
    def from_rows(cls, x: Tensor, groups: Tensor, *, factor: int = 2, **options: Any) -> MultiFormation:
        """Stored images made of `factor**2` images each: a group's are shrunk into the cells of its first
        stored image, then of the next. x: (M * factor**2, C, H, W); groups: offsets of the stored images."""
        if len(x) != int(groups[-1]) * factor**2:
            raise ValueError(
                f"MultiFormation: from_rows: x must hold {int(groups[-1])} x {factor}**2 images, got {len(x)}"
            )
        height, width = x.shape[2:]
        cell = -(-height // factor), -(-width // factor)
        small = F.adaptive_avg_pool2d(x, cell).unflatten(0, (-1, factor, factor))
        grid = small.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return cls(grid[..., :height, :width], groups, factor=factor, **options)

    def decode(self) -> Tensor:
        """The cells at full size, (M * factor**2, C, H, W)."""
        if self.factor == 1:
            return self.x
        height, width = self.x.shape[2:]
        down, across = -height % self.factor, -width % self.factor
        x = F.pad(self.x, (0, across, 0, down), mode="replicate") if down or across else self.x
        cells = x.unflatten(3, (self.factor, -1)).unflatten(2, (self.factor, -1))
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        return F.interpolate(cells, (height, width), mode="bilinear", align_corners=False)
