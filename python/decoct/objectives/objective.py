"""The root notion: an objective maps one step's context to a scalar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from .context import Context

__all__ = ["Objective", "WeightedSum", "reduce_groups"]

REDUCTIONS = ("sum", "max", "cvar")


def reduce_groups(values: Tensor, present: Tensor, reduction: str, tail: float = 0.5) -> Tensor:
    """One scalar from the values (G,) of the groups that are `present` (G,) bool; none present gives 0.

    reduction: "sum"; "max", the worst group; "cvar", the mean of the worst share `tail` of the groups, in
    (0, 1]: with k = tail * (groups present), the k largest values with the last one weighted by the
    fraction left, over k.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduce_groups: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
        )
    if not 0 < tail <= 1:
        raise ValueError(f"reduce_groups: tail must be in (0, 1], got {tail}")
    kept = values if bool(present.all()) else values[present]
    if kept.numel() == 0:
        return values.sum() * 0
    if reduction == "sum":
        return kept.sum()
    if reduction == "max":
        return kept.max()
    share = tail * kept.numel()
    ordered = kept.sort(descending=True).values
    weight = (share - torch.arange(kept.numel(), device=kept.device)).clamp(0, 1).to(kept.dtype)
    return (ordered * weight).sum() / share


class Objective(nn.Module):
    """What is minimised over the synthetic measure: `forward(context)` -> scalar.

    Objectives add and scale: ``2.0 * a + b``. Parameters an objective owns (critics, frequencies,
    perturbations)
    are its adversary: the loop lets them *ascend* the same scalar.
    """

    def forward(self, context: Context) -> Tensor:
        raise NotImplementedError

    def adversaries(self) -> Iterator[nn.Parameter]:
        """The parameters that ascend."""
        return (p for p in self.parameters() if p.requires_grad)

    def __add__(self, other: Objective) -> WeightedSum:
        return WeightedSum([*_terms(self), *_terms(other)])

    def __mul__(self, weight: float) -> WeightedSum:
        return WeightedSum([(weight * w, term) for w, term in _terms(self)])

    __rmul__ = __mul__


class WeightedSum(Objective):
    """Sum of weighted objectives; a term of weight zero is not evaluated."""

    def __init__(self, terms: list[tuple[float, Objective]]) -> None:
        super().__init__()
        self.weights = tuple(float(weight) for weight, _ in terms)
        self.terms = nn.ModuleList(term for _, term in terms)

    def forward(self, context: Context) -> Tensor:
        total: Tensor | None = None
        for weight, module in zip(self.weights, self.terms, strict=True):
            if weight == 0:
                continue
            value = weight * cast(Tensor, module(context))
            total = value if total is None else total + value
        return context.synthetic.x.sum() * 0 if total is None else total

    def extra_repr(self) -> str:
        return f"weights={self.weights}"


def _terms(objective: Objective) -> list[tuple[float, Objective]]:
    if isinstance(objective, WeightedSum):
        return list(zip(objective.weights, cast(list[Objective], list(objective.terms)), strict=True))
    if not isinstance(objective, Objective):
        raise TypeError(f"Objective: expected an Objective beside +, got {type(objective).__name__}")
    return [(1.0, objective)]
