"""What bench_means.py times, and exact answers for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import peaks


@dataclass(frozen=True)
class Case:
    """kind "characteristic": characteristic means at `frequencies` of the rows of every class and their
    gradient by the synthetic rows; real rows, if there are any, without a gradient. "moments": means of the
    rows, and "clipped": sums of rows that are clipped to a length, with their gradient."""

    kind: str
    classes: int
    rows_real: int
    rows_synthetic: int
    columns: int
    frequencies: int = 0

    @property
    def name(self) -> str:
        if self.kind != "characteristic":
            return f"{self.kind} {self.classes}x{self.rows_synthetic}x{self.columns}"
        if self.rows_real:
            rows = f"{self.classes}x({self.rows_real},{self.rows_synthetic})x{self.columns}"
            return f"characteristic {self.frequencies}x{rows}"
        return f"characteristic {self.frequencies}x({self.rows_synthetic},{self.columns})"

    def rows(self) -> tuple[Tensor, Tensor]:
        """Real and synthetic rows, each of length about 1."""
        generator = torch.Generator().manual_seed(0)
        parts = [
            torch.randn(self.classes * count, self.columns, generator=generator) / self.columns**0.5
            for count in (self.rows_real, self.rows_synthetic)
        ]
        return parts[0], parts[1].requires_grad_()

    def drawn(self, like: Tensor) -> Tensor:
        """The frequencies."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.frequencies, self.columns, generator=generator).to(like)

    def ends(self, count: int) -> list[int]:
        return [c * count for c in range(self.classes + 1)]

    def work(self) -> peaks.Work:
        """One product forward and one backward, as if cosines and sines were kept; real rows forward only. A
        sine and a cosine are two exponentials. Of moments each row read once and a gradient written."""
        real, synthetic = self.classes * self.rows_real, self.classes * self.rows_synthetic
        if self.kind != "characteristic":
            return peaks.Work(flops=0.0, exps=0.0, bytes=8.0 * synthetic * self.columns)
        pairs = (real + synthetic) * self.frequencies
        products = 2.0 * self.frequencies * self.columns * (real + 2 * synthetic)
        return peaks.Work(flops=products, exps=2.0 * pairs, bytes=0.0)


FULL = [
    Case("characteristic", 1, 0, 1024, 2048, 4096),
    Case("characteristic", 10, 256, 10, 2048, 4096),
    Case("characteristic", 10, 256, 10, 256, 1024),
    Case("moments", 100, 0, 256, 2048),
    Case("clipped", 100, 0, 256, 2048),
]
QUICK = [
    Case("characteristic", 1, 0, 20, 12, 16),
    Case("characteristic", 2, 9, 3, 12, 16),
    Case("moments", 3, 0, 9, 12),
    Case("clipped", 3, 0, 9, 12),
]


def exact(case: Case, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Values and gradient of the plain code in float64."""
    import means_contenders

    plain = next(c for c in means_contenders.contenders_for(case) if not c.ours)
    wide = x.detach().double(), y.detach().double().requires_grad_()
    return plain.build(case, *wide)()


def assessed(
    answer: tuple[Tensor, Tensor], contender: Any, case: Case, x: Any, y: Any, result: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Errors, relative to the largest value and to the largest entry of the gradient."""
    pairs = zip(("value", "gradient"), result, answer, strict=True)
    return {
        "error": {
            name: ((ours.detach().double() - right).abs().max() / right.abs().max()).item()
            for name, ours, right in pairs
        }
    }
