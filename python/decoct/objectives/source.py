"""Sources: the only door to real data. What a source refuses, no objective can do by accident."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .measure import Measure, counts_to_offsets
from .statistic import Statistic

__all__ = ["PublicSource", "Source", "StoredSource"]


class Source(ABC):
    """Real data behind two questions: rows (`sample`) and statistics (`expect`).

    A source that must not show rows leaves `sample` as it is here, a refusal; objectives that need only
    statistics ask `expect`, where such a source can clip, noise and charge its budget.
    """

    shows_rows: bool = False
    private: bool = False

    @property
    @abstractmethod
    def group_count(self) -> int: ...

    @property
    def present(self) -> Tensor:
        """Which groups have rows, (G,) bool on the host; all of them where that is not known."""
        return torch.ones(self.group_count, dtype=torch.bool)

    def sample(self, n: int | Sequence[int], rng: torch.Generator) -> Measure:
        """At most `n` rows of every group (one number, or one per group), without replacement."""
        raise RuntimeError(f"{type(self).__name__}: sample: this source gives statistics only, no rows")

    @abstractmethod
    def expect(
        self, statistic: Statistic, n: int | Sequence[int], rng: torch.Generator
    ) -> tuple[Tensor, ...]:
        """The statistic's value over the real rows, estimated from at most `n` of them per group."""


class RowSource(Source):
    """A source of rows (N, ...) in groups (N,): how many each group has. ValueError for groups that do not
    fit the rows."""

    def __init__(self, x: Tensor, groups_of: Tensor, group_count: int | None) -> None:
        name = type(self).__name__
        if groups_of.shape != x.shape[:1]:
            raise ValueError(
                f"{name}: groups_of must be ({len(x)},) as x has rows, got {tuple(groups_of.shape)}"
            )
        self.counts = torch.bincount(groups_of, minlength=group_count or 0)
        if group_count is not None and len(self.counts) > group_count:
            raise ValueError(f"{name}: groups_of must stay below {group_count}, got {len(self.counts) - 1}")

    @property
    def group_count(self) -> int:
        return len(self.counts)

    @property
    def present(self) -> Tensor:
        return self.counts > 0


class PublicSource(RowSource):
    """Rows in memory, free to be shown.

    x: (N, ...); groups_of: (N,) int64, the group of each row (usually its class), 0..G-1; y: (N,) labels,
    by default the groups themselves; group_count: G, by default one more than the largest group in use.
    """

    shows_rows = True

    def __init__(
        self, x: Tensor, groups_of: Tensor, *, y: Tensor | None = None, group_count: int | None = None
    ) -> None:
        super().__init__(x, groups_of, group_count)
        self.x, self.y = x, groups_of if y is None else y
        order = torch.argsort(groups_of, stable=True)
        self._rows = order.split(self.counts.tolist())

    def sample(self, n: int | Sequence[int], rng: torch.Generator) -> Measure:
        wanted = [n] * self.group_count if isinstance(n, int) else list(n)
        if len(wanted) != self.group_count:
            raise ValueError(
                f"PublicSource: sample: n must name {self.group_count} groups, got {len(wanted)}"
            )
        taken = []
        for rows, count in zip(self._rows, wanted, strict=True):
            if count >= len(rows):
                taken.append(rows)
            elif count > 0:
                taken.append(rows[torch.randperm(len(rows), generator=rng)[:count]])
            else:
                taken.append(rows[:0])
        index = torch.cat(taken)
        return Measure(self.x[index], self.y[index], groups=counts_to_offsets([len(t) for t in taken]))

    def expect(
        self, statistic: Statistic, n: int | Sequence[int], rng: torch.Generator
    ) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return statistic.mean(self.sample(n, rng))


class StoredSource(Source):
    """Statistics computed earlier, kept by name (`Statistic.name`); the rows themselves are gone."""

    def __init__(self, values: Mapping[str, Sequence[Tensor]], group_count: int) -> None:
        self._values = {name: tuple(tensors) for name, tensors in values.items()}
        self._group_count = group_count

    @property
    def group_count(self) -> int:
        return self._group_count

    def expect(
        self, statistic: Statistic, n: int | Sequence[int], rng: torch.Generator
    ) -> tuple[Tensor, ...]:
        if statistic.name not in self._values:
            known = ", ".join(sorted(self._values)) or "none"
            raise ValueError(
                f"StoredSource: expect: statistic must be a stored one ({known}), got {statistic.name!r}"
            )
        return self._values[statistic.name]
