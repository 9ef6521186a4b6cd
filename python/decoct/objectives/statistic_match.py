"""Matching of statistics: the real side is asked for numbers alone, so that it may be a private source."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ops import gradient_distance
from ..ops.gradient_distance import METRICS, Metric
from .context import Context
from .groups import GroupObjective
from .statistic import Statistic

__all__ = ["StatisticMatch"]


class StatisticMatch(GroupObjective):
    """Distance of a statistic of the synthetic rows from the source's answer, group by group.

    Equivalent, for the metric "sse" and summed over groups, to::

        wanted = source.expect(statistic, ...)
        found = statistic.mean(synthetic)
        sum((a - b).square().sum() for a, b in zip(wanted, found))

    statistic: what is compared, such as `GradientMean`, `CharacteristicMean` or `FeatureMean`.
    metric: one of :func:`decoct.gradient_distance`, of tensors (G, ...) with a group in each row.
    once: ask the source in the first step and keep the answer for the whole run, in the state dict too: one
    charge instead of one a step. Such a statistic must not depend on the step, and no view is drawn.
    source, reduction, tail, name: see `GroupObjective`.

    With a `PublicSource` the answer is the plain mean of a batch; with a `PrivateSource` it is clipped and
    noised. The synthetic side is differentiated; only what `expect` returns is known of the real one.
    RuntimeError for `once` under augmentation.
    """

    def __init__(
        self,
        statistic: Statistic,
        metric: Metric = "sse",
        *,
        once: bool = False,
        source: str = "real",
        reduction: str = "sum",
        tail: float = 0.5,
        name: str = "statistic",
    ) -> None:
        super().__init__(source=source, reduction=reduction, tail=tail, name=name)
        if metric not in METRICS:
            raise ValueError(f"StatisticMatch: metric must be one of {', '.join(METRICS)}, got {metric!r}")
        self.statistic, self.metric, self.once = statistic, metric, once
        self._kept: list[Tensor] | None = None

    def values(self, context: Context) -> tuple[Tensor, Tensor]:
        if self.once and context.view is not None:
            raise RuntimeError(
                "StatisticMatch: once: an answer that is kept fits no augmentation; leave it out"
            )
        source, synthetic, numbers = context.real[self.source], context.synthetic_view(), context.groups
        if len(numbers) != synthetic.group_count or max(numbers, default=-1) >= source.group_count:
            raise ValueError(
                f"StatisticMatch: source {self.source!r} has {source.group_count} groups, the synthetic "
                f"measure {synthetic.group_count}"
            )
        statistic = self.statistic.of_step(context)  # refused before the source is asked

        def compare(kept: list[int]) -> Tensor:
            rows = [numbers[index] for index in kept]
            wanted = [part[rows] for part in self._wanted(context)]
            found = statistic.mean(synthetic.select(kept))
            return gradient_distance(wanted, list(found), self.metric, classes=True)

        present = (synthetic.counts > 0) & source.present[numbers]
        return self.of_groups(present, synthetic, compare), present

    def _wanted(self, context: Context) -> list[Tensor]:
        if not self.once:
            return list(context.expect(self.statistic, self.source))
        if self._kept is None:
            self._kept = [part.detach().clone() for part in context.expect(self.statistic, self.source)]
        return self._kept

    def get_extra_state(self) -> Any:
        """The answer that is kept."""
        return self._kept

    def set_extra_state(self, state: Any) -> None:
        self._kept = None if state is None else [part.clone() for part in state]

    def extra_repr(self) -> str:
        return (
            f"statistic={self.statistic!r}, metric={self.metric!r}, once={self.once}, "
            f"source={self.source!r}, reduction={self.reduction!r}"
        )
