"""Matching: a discrepancy between the real and the synthetic measure, one value per group."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .context import Context
from .features import FeatureMap, Identity
from .groups import GroupObjective
from .measure import Measure

__all__ = ["Match"]


class Match(GroupObjective):
    """Discrepancy of two measures on feature maps of both sides, reduced over groups.

    discrepancy: (real, synthetic) -> (G,), both `Measure`s of features (N, D).
    features: feature map, the rows themselves by default.
    real_gradient: keep a graph through the real side's features; False computes them under no_grad.
    source, reduction, tail, name: see `GroupObjective`.
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
        super().__init__(source=source, reduction=reduction, tail=tail, name=name)
        if reduction != "sum" and not getattr(discrepancy, "real_term", True):
            raise ValueError(
                f"Match: reduction {reduction!r} compares groups, so the discrepancy must keep its real_term"
            )
        self.discrepancy = discrepancy if isinstance(discrepancy, nn.Module) else _Function(discrepancy)
        self.features = features or Identity()
        self.real_gradient = real_gradient

    def compare(self, context: Context, real: Measure, synthetic: Measure, kept: Sequence[int]) -> Tensor:
        return cast(Tensor, self.discrepancy(*self.sides(context, real, synthetic, kept)))

    def sides(
        self, context: Context, real: Measure, synthetic: Measure, kept: Sequence[int]
    ) -> tuple[Measure, Measure]:
        """Both measures on the feature map."""
        of_real = ("features", self.source, id(self.features))
        of_synthetic = ("features", None, id(self.features), tuple(kept))
        return (
            self._side(context, real, True, of_real),
            self._side(context, synthetic, False, of_synthetic),
        )

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
