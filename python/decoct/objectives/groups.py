"""Objectives that compare two measures group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .context import Context
from .measure import Measure
from .objective import REDUCTIONS, Objective, reduce_groups

__all__ = ["GroupObjective"]


class GroupObjective(Objective):
    """One value for each group of the real and the synthetic measure, reduced over groups.

    source: name of the real source. name: key under which the value is recorded.
    reduction: "sum" | "max" | "cvar" (with `tail`, see `reduce_groups`).
    A group that is missing on one side is left out before any network runs: its value is 0, its gradient 0,
    and "max" and "cvar" look at the other groups alone.
    """

    def __init__(self, *, source: str, reduction: str, tail: float, name: str) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"{type(self).__name__}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
            )
        self.source, self.reduction, self.tail, self.name = source, reduction, tail, name

    def compare(self, context: Context, real: Measure, synthetic: Measure, kept: Sequence[int]) -> Tensor:
        """Values (K,) of the groups numbered `kept`, which are all that the two measures hold."""
        raise NotImplementedError

    def values(self, context: Context) -> tuple[Tensor, Tensor]:
        """Values (G,), zero where a group is missing, and which groups are present, (G,) bool."""
        real, synthetic = context.real_view(self.source), context.synthetic_view()
        if real.group_count != synthetic.group_count:
            raise ValueError(
                f"{type(self).__name__}: source {self.source!r} has {real.group_count} groups, the synthetic "
                f"measure {synthetic.group_count}"
            )
        present = (real.counts > 0) & (synthetic.counts > 0)

        def compare(kept: list[int]) -> Tensor:
            return self.compare(context, real.select(kept), synthetic.select(kept), kept)

        return self.of_groups(present, synthetic, compare), present

    @staticmethod
    def of_groups(present: Tensor, synthetic: Measure, compare: Callable[[list[int]], Tensor]) -> Tensor:
        """Values (G,) of which `compare` gives those of the groups that are present, by their numbers."""
        kept = present.nonzero().flatten().tolist()
        if not kept:
            return synthetic.x.sum() * 0 * torch.ones(len(present), device=synthetic.x.device)
        values = compare(kept)
        if len(kept) == len(present):
            return values
        return values.new_zeros(len(present)).index_put((torch.tensor(kept, device=values.device),), values)

    def forward(self, context: Context) -> Tensor:
        values, present = self.values(context)
        result = reduce_groups(values, present, self.reduction, self.tail)
        context.terms[self.name] = result.detach()
        return result
