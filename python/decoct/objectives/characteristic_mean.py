"""The mean of random Fourier features of every group as a statistic."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import decoct

from .context import Context, seeded
from .measure import Measure
from .statistic import Statistic

__all__ = ["CharacteristicMean"]


class CharacteristicMean(Statistic):
    """Mean of random Fourier features of every group: two tensors (G, F), of cosines and of sines.

    A row x has the features ``[cos(W x), sin(W x)] / sqrt(F)``, whose norm is 1: what one row adds to a sum
    is bounded without clipping. Their inner products approximate the Gaussian kernel
    ``exp(-|x - y|^2 / (2 length^2))``, squared distances of their means the squared MMD of that kernel.

    frequencies: F. length: that of the kernel; None is the square root of the columns, a length that no data
    decided. seed: of the frequencies, normal with standard deviation 1 / length; None is the run's.
    features: maps rows (N, ...) to (N, D); flattening by default.

    With noise the mean embedding of DP-MERF (Harder et al., AISTATS 2021, arXiv 2002.11603).
    """

    name = "characteristic_mean"

    def __init__(
        self,
        frequencies: int = 1024,
        *,
        length: float | None = None,
        seed: int | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if frequencies < 1:
            raise ValueError(f"CharacteristicMean: frequencies must be at least 1, got {frequencies}")
        if length is not None and not 0 < length < math.inf:
            raise ValueError(f"CharacteristicMean: length must be positive and finite, got {length}")
        self.frequencies, self.length, self.seed, self.features = frequencies, length, seed, features
        self._drawn: dict[object, Tensor] = {}  # shared by the copies of a run's steps

    def of_step(self, context: Context) -> CharacteristicMean:
        if self.seed is not None:
            return self
        bound = CharacteristicMean(
            self.frequencies, length=self.length, seed=context.seed, features=self.features
        )
        bound._drawn = self._drawn
        return bound

    def mean(self, measure: Measure) -> tuple[Tensor, ...]:
        return self._sums(measure, measure.mass)

    def clipped_sum(self, measure: Measure, clip: float) -> tuple[Tensor, ...]:
        """Sums of features; scaled down for a `clip` below 1, their norm."""
        weights = measure.x.new_full((len(measure),), min(clip, 1.0))
        return self._sums(measure, weights)

    def _sums(self, measure: Measure, weights: Tensor | None) -> tuple[Tensor, ...]:
        rows = torch.flatten(measure.x, 1) if self.features is None else self.features(measure.x)
        parts = decoct.characteristic_mean(
            rows, self._frequencies(rows), weights=weights, x_offsets=measure.groups
        )
        return tuple(part / math.sqrt(self.frequencies) for part in parts)

    def _frequencies(self, rows: Tensor) -> Tensor:
        columns = rows.shape[1]
        key = self.seed, columns, rows.dtype, rows.device
        if key not in self._drawn:
            length = math.sqrt(columns) if self.length is None else self.length
            rng = seeded(self.seed or 0, "characteristic mean")
            drawn = torch.randn(self.frequencies, columns, generator=rng) / length
            self._drawn[key] = drawn.to(rows.device, rows.dtype)
        return self._drawn[key]

    def __repr__(self) -> str:
        return f"CharacteristicMean(frequencies={self.frequencies}, length={self.length}, seed={self.seed})"
