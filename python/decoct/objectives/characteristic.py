"""Matching of characteristic functions at random or learned frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import decoct

from .context import Context, seeded
from .features import FeatureMap
from .match import Match
from .measure import Measure

__all__ = ["CharacteristicDistance", "CharacteristicMatch"]

SMALLEST_SQUARE = 1e-12
"""Added below roots, so that equal characteristic functions have a gradient, of zero."""


class CharacteristicDistance(nn.Module):
    """Distance of the characteristic functions of every group, mean over frequencies t:

        mean_t sqrt(amplitude (|u| - |v|)^2 + phase 2 (|u| |v| - Re(u conj v)))

    with u and v those of the real and the synthetic rows, E exp(i <t, x>). With both weights 1 the root is
    |u - v|.

    amplitude, phase: weights of the two differences. normalise: rows are divided by their length first.
    Both default to what NCFM (Wang et al., CVPR 2025) computes, but for the factor of the whole.
    Masses of a measure are used as given.
    """

    def __init__(self, amplitude: float = 0.5, phase: float = 0.5, *, normalise: bool = True) -> None:
        super().__init__()
        if not (amplitude >= 0 and phase >= 0 and amplitude + phase > 0):
            raise ValueError(
                "CharacteristicDistance: amplitude and phase must not be negative, nor both 0, got "
                f"{amplitude} and {phase}"
            )
        self.amplitude, self.phase, self.normalise = amplitude, phase, normalise

    def forward(self, real: Measure, synthetic: Measure, frequencies: Tensor) -> Tensor:
        a, b = self._mean(real, frequencies), self._mean(synthetic, frequencies)
        lengths = [(part[0].square() + part[1].square() + SMALLEST_SQUARE).sqrt() for part in (a, b)]
        by_amplitude = (lengths[0] - lengths[1]).square()
        by_phase = 2 * (lengths[0] * lengths[1] - a[0] * b[0] - a[1] * b[1])
        squares = self.amplitude * by_amplitude + self.phase * by_phase.clamp(min=0)
        return (squares + SMALLEST_SQUARE).sqrt().mean(1)

    def _mean(self, measure: Measure, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        rows = F.normalize(measure.x, dim=1) if self.normalise else measure.x
        return decoct.characteristic_mean(rows, frequencies, weights=measure.mass, x_offsets=measure.groups)

    def extra_repr(self) -> str:
        return f"amplitude={self.amplitude}, phase={self.phase}, normalise={self.normalise}"


class CharacteristicMatch(Match):
    """`CharacteristicDistance` of real and synthetic rows on a feature map, at frequencies of its own.

    frequencies: how many. scale: their standard deviation; they are normal, the same for all groups.
    keep: steps that the same frequencies serve.
    learned: how many numbers a row of features has, for frequencies that are parameters of the objective:
    drawn once, they ascend it, as adversaries do (NCFM has a network for that). None: they are drawn anew.
    distance: `CharacteristicDistance()` by default. options: see `Match`.
    """

    def __init__(
        self,
        features: FeatureMap | None = None,
        *,
        frequencies: int = 1024,
        scale: float = 1.0,
        keep: int = 1,
        learned: int | None = None,
        distance: CharacteristicDistance | None = None,
        **options: Any,
    ) -> None:
        for name, value in (("frequencies", frequencies), ("keep", keep)):
            if value < 1:
                raise ValueError(f"CharacteristicMatch: {name} must be at least 1, got {value}")
        if not scale > 0:
            raise ValueError(f"CharacteristicMatch: scale must be positive, got {scale}")
        super().__init__(distance or CharacteristicDistance(), features, **options)
        self.frequencies, self.scale, self.keep = frequencies, scale, keep
        self.learned = None
        if learned is not None:
            drawn = torch.randn(frequencies, learned, generator=seeded(0, "frequencies")) * scale
            self.learned = nn.Parameter(drawn)
        self._drawn: tuple[object, Tensor] | None = None

    def compare(self, context: Context, real: Measure, synthetic: Measure, kept: Sequence[int]) -> Tensor:
        sides = self.sides(context, real, synthetic, kept)
        return cast(Tensor, self.discrepancy(*sides, self._frequencies(context, sides[0].x)))

    def _frequencies(self, context: Context, rows: Tensor) -> Tensor:
        columns = rows.shape[1]
        if self.learned is not None:
            if self.learned.shape[1] != columns:
                raise ValueError(
                    f"CharacteristicMatch: learned must be {columns}, the numbers of a row of features, got "
                    f"{self.learned.shape[1]}"
                )
            return self.learned
        key = context.seed, context.step // self.keep, columns, rows.dtype, rows.device
        if self._drawn is None or self._drawn[0] != key:
            rng = seeded(context.seed, "frequencies", context.step // self.keep)
            drawn = torch.randn(self.frequencies, columns, generator=rng) * self.scale
            self._drawn = key, drawn.to(rows.device, rows.dtype)
        return self._drawn[1]

    def extra_repr(self) -> str:
        drawn = f"frequencies={self.frequencies}, scale={self.scale}, keep={self.keep}"
        return f"{drawn}, learned={self.learned is not None}, {super().extra_repr()}"
