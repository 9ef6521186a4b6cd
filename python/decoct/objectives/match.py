"""Matching: a discrepancy between the real and the synthetic measure, one value per group."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import cast

import torch
from torch import Tensor, nn

from .context import Context
from .features import FeatureMap, Identity
from .measure import Measure
from .objective import REDUCTIONS, Objective, reduce_groups

__all__ = ["Match"]


class Match(Objective):
    """Discrepancy of two measures on feature maps of both sides, reduced over groups.

    discrepancy: (real, synthetic) -> (G,), both `Measure`s of features (N, D).
    features: feature map, the rows themselves by default.
    source: name of the real source. name: key under which the value is recorded.
    reduction: "sum" | "max" | "cvar" (with `tail`, see `reduce_groups`).
    real_gradient: keep a graph through the real side's features; False computes them under no_grad.
    A group that is missing on one side is left out before any network runs: its value is 0, its gradient 0,
    and "max" and "cvar" look at the other groups alone.
    """

    def __init__(
        self,
        discrepancy: Callable[[Measure, Measure], Tensor],
        features: FeatureMap | None = None,
        *,
        source: str = "real",
        reduction: str = "sum",
        tail: float = 0.5,
        real_gradient: bool = False,
        name: str = "match",
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"Match: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        if reduction != "sum" and not getattr(discrepancy, "real_term", True):
            raise ValueError(
                f"Match: reduction {reduction!r} compares groups, so the discrepancy must keep its real_term"
            )
        self.discrepancy = discrepancy if isinstance(discrepancy, nn.Module) else _Function(discrepancy)
        self.features = features or Identity()
        self.source, self.reduction, self.tail = source, reduction, tail
        self.real_gradient, self.name = real_gradient, name

    def values(self, context: Context) -> tuple[Tensor, Tensor]:
        """Values (G,), zero where a group is missing, and which groups are present, (G,) bool."""
        real, synthetic = context.real_view(self.source), context.synthetic_view()
        if real.group_count != synthetic.group_count:
            raise ValueError(
                f"Match: source {self.source!r} has {real.group_count} groups, the synthetic measure "
                f"{synthetic.group_count}"
            )
        present = (real.counts > 0) & (synthetic.counts > 0)
        kept = present.nonzero().flatten().tolist()
        if not kept:
            return synthetic.x.sum() * 0 * torch.ones(len(present), device=synthetic.x.device), present
        values = cast(
            Tensor,
            self.discrepancy(
                self._side(context, real.select(kept), True, ("features", self.source, id(self.features))),
                self._side(
                    context, synthetic.select(kept), False, ("features", None, id(self.features), tuple(kept))
                ),
            ),
        )
        if len(kept) < len(present):
            values = values.new_zeros(len(present)).index_put(
                (torch.tensor(kept, device=values.device),), values
            )
        return values, present

    def forward(self, context: Context) -> Tensor:
        values, present = self.values(context)
        result = reduce_groups(values, present, self.reduction, self.tail)
        context.terms[self.name] = result.detach()
        return result

    def _side(self, context: Context, measure: Measure, real: bool, key: Hashable) -> Measure:
        def compute() -> Measure:
            with torch.set_grad_enabled(torch.is_grad_enabled() and (not real or self.real_gradient)):
                return measure.replace(x=self.features(context, measure.x, real and not self.real_gradient))

        return context.once(key, compute)

    def extra_repr(self) -> str:
        return f"source={self.source!r}, reduction={self.reduction!r}"


class _Function(nn.Module):
    """A plain function in a module's place."""

    def __init__(self, function: Callable[[Measure, Measure], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, real: Measure, synthetic: Measure) -> Tensor:
        return self.function(real, synthetic)
