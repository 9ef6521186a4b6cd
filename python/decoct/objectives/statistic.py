"""Statistics of a measure, differentiable and per group; the form in which guarded sources answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..augment import View
from .measure import Measure

if TYPE_CHECKING:
    from .context import Context

__all__ = ["FeatureMean", "Statistic", "UnderView"]


class Statistic(ABC):
    """A tuple of tensors computed from a measure. `name` identifies it in stored sources."""

    name: str

    @abstractmethod
    def mean(self, measure: Measure) -> tuple[Tensor, ...]:
        """Mass-weighted mean per group, differentiable."""

    @abstractmethod
    def clipped_sum(self, measure: Measure, clip: float) -> tuple[Tensor, ...]:
        """Sum over the rows of each group, each row's contribution scaled to a norm of at most `clip` over
        all of the tensors: what the sums can change by when a row is left out."""

    def of_step(self, context: Context) -> Statistic:
        """The statistic with what it takes from a step, such as its network; itself where that is nothing."""
        return self


class UnderView(Statistic):
    """A statistic of rows under one step's view, which treats each row by itself."""

    def __init__(self, statistic: Statistic, view: View) -> None:
        self.statistic, self.view, self.name = statistic, view, statistic.name

    def mean(self, measure: Measure) -> tuple[Tensor, ...]:
        return self.statistic.mean(self._seen(measure))

    def clipped_sum(self, measure: Measure, clip: float) -> tuple[Tensor, ...]:
        return self.statistic.clipped_sum(self._seen(measure), clip)

    def _seen(self, measure: Measure) -> Measure:
        return measure.replace(x=self.view(measure.x, measure.groups))


class FeatureMean(Statistic):
    """Mean feature vector of every group: (G, D). An empty group gives zeros.

    features: maps rows (N, ...) to (N, D); flattening by default.
    """

    def __init__(
        self, features: Callable[[Tensor], Tensor] | None = None, name: str = "feature_mean"
    ) -> None:
        self.features, self.name = features, name

    def mean(self, measure: Measure) -> tuple[Tensor, ...]:
        rows = self._rows(measure)
        if measure.mass is None:
            mass = 1 / measure.counts.to(rows).clamp(min=1).repeat_interleave(measure.counts.to(rows.device))
        else:
            mass = measure.mass
        return (self._sum(measure, rows * mass[:, None]),)

    def clipped_sum(self, measure: Measure, clip: float) -> tuple[Tensor, ...]:
        rows = self._rows(measure)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return (self._sum(measure, rows * (clip / norms.clamp(min=clip))),)

    def _rows(self, measure: Measure) -> Tensor:
        return torch.flatten(measure.x, 1) if self.features is None else self.features(measure.x)

    @staticmethod
    def _sum(measure: Measure, rows: Tensor) -> Tensor:
        counts = measure.counts.to(rows.device)
        group_of = torch.arange(measure.group_count, device=rows.device).repeat_interleave(counts)
        return rows.new_zeros(measure.group_count, rows.shape[1]).index_add(0, group_of, rows)
