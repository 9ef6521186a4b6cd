"""Ways to compute characteristic means and moments of classes: ours, and those that people use today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contenders import OURS, Contender, differentiate
from means_cases import Case

Means = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def four_products(f: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """As NCFM's code writes it: the product once for the cosine and once for the sine, and each again for its
    derivative."""
    return torch.cos(torch.matmul(f, x.t())).mean(1), torch.sin(torch.matmul(f, x.t())).mean(1)


def two_products(f: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The product once for both."""
    t = torch.matmul(f, x.t())
    return torch.cos(t).mean(1), torch.sin(t).mean(1)


def combined(real: tuple[Tensor, Tensor] | None, synthetic: tuple[Tensor, Tensor]) -> Tensor:
    """A value of each class that depends on all of the means."""
    weight = torch.linspace(0.5, 1.5, synthetic[0].shape[-1], device=synthetic[0].device)
    if real is None:
        return ((synthetic[0] + 2 * synthetic[1]) * weight).mean(-1)
    parts = [(a - b).square() * weight for a, b in zip(real, synthetic, strict=True)]
    return (parts[0] + parts[1]).mean(-1)


def ours_characteristic(case: Case, x: Tensor, y: Tensor) -> Any:
    import decoct

    frequencies = case.drawn(y)
    ends = [decoct.Segments(case.ends(count)) for count in (case.rows_real, case.rows_synthetic)]

    def loss() -> Tensor:
        real = decoct.characteristic_mean(x, frequencies, x_offsets=ends[0]) if case.rows_real else None
        return combined(real, decoct.characteristic_mean(y, frequencies, x_offsets=ends[1]))

    return differentiate(loss, y)


def _loop(means: Means, compiled: bool = False) -> Callable[..., Any]:
    """Class by class, as public code does it."""

    def build(case: Case, x: Tensor, y: Tensor) -> Any:
        frequencies = case.drawn(y)
        function = torch.compile(means, dynamic=False) if compiled else means

        def of(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
            found = [function(frequencies, part) for part in rows.split(count)]
            return torch.stack([part[0] for part in found]), torch.stack([part[1] for part in found])

        def loss() -> Tensor:
            real = of(x, case.rows_real) if case.rows_real else None
            return combined(real, of(y, case.rows_synthetic))

        return differentiate(loss, y, compiled)

    return build


LIMIT = 0.5
"""Of the length of rows that are clipped, which are about 1 long."""


def ours_moments(case: Case, x: Tensor, y: Tensor) -> Any:
    import decoct

    ends = decoct.Segments(case.ends(case.rows_synthetic))
    clipped = {"max_norm": LIMIT, "reduction": "sum"} if case.kind == "clipped" else {}
    return differentiate(lambda: decoct.segment_moments(y, x_offsets=ends, **clipped).square().sum(1), y)


def _prepared(case: Case, y: Tensor) -> Tensor:
    if case.kind != "clipped":
        return y / case.rows_synthetic
    return y * (LIMIT / y.norm(dim=1, keepdim=True)).clamp(max=1)


def index_add(case: Case, x: Tensor, y: Tensor) -> Any:
    of_row = torch.arange(case.classes).repeat_interleave(case.rows_synthetic).to(y.device)

    def loss() -> Tensor:
        sums = y.new_zeros(case.classes, case.columns).index_add(0, of_row, _prepared(case, y))
        return sums.square().sum(1)

    return differentiate(loss, y)


def class_loop(case: Case, x: Tensor, y: Tensor) -> Any:
    def loss() -> Tensor:
        return (
            torch.stack([part.sum(0) for part in _prepared(case, y).split(case.rows_synthetic)])
            .square()
            .sum(1)
        )

    return differentiate(loss, y)


def contenders_for(case: Case) -> list[Contender]:
    if case.kind == "characteristic":
        return [
            Contender(OURS, ours_characteristic, ours=True),
            Contender("four products", _loop(four_products)),
            Contender("two products", _loop(two_products)),
            Contender("four products, compiled", _loop(four_products, True)),
        ]
    return [
        Contender(OURS, ours_moments, ours=True),
        Contender("index_add", index_add),
        Contender("class loop", class_loop),
    ]
