"""The synthetic measure: what the loop moves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..objectives import Measure, PublicSource, counts_to_offsets

__all__ = ["Synthetic"]


class Synthetic(nn.Module):
    """Points with labels, packed by group; `forward` hands them out as a measure attached to the graph.

    x: (M, ...) starting points; y: (M,) ids or (M, ...) soft labels, by default the group of each point.
    groups: host int64 offsets (G+1,); unequal and empty groups are normal.
    lr: learning rate of the points. learn_labels: move y as well (soft labels or targets), at `label_lr`.
    mass: (M,), kept as given. student_lr: a positive learning rate handed on in the measure's extras,
    learned at `student_lr_rate` where that is not 0.
    value_range: (low, high), both numbers or tensors that broadcast against x: `project_` clips to it.
    A generator's latents or up-sampled formations are a subclass with its own `decode`.
    """

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
        """All points, or a random `n` of each group (all where it has fewer)."""
        extras = {} if self.log_student_lr is None else {"student_lr": self.log_student_lr.exp()}
        measure = Measure(self.decode(), self.y, self.mass, self.groups, extras=extras)
        if n is None or int(measure.counts.max()) <= n:
            return measure
        bounds = self.groups.tolist()
        taken = [
            start + torch.randperm(stop - start, generator=rng)[:n].sort().values
            for start, stop in itertools.pairwise(bounds)
        ]
        rows = torch.cat(taken)
        return measure.replace(
            x=measure.x[rows],
            y=self.y[rows],
            mass=None if self.mass is None else self.mass[rows],
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
        """The finished set, detached: x (M, ...) and y."""
        return self.decode().detach().clone(), self.y.detach().clone()
