"""A source that answers with clipped, noised sums and shows no rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._noise import Noise
from ..privacy import NEIGHBOURS, Accountant, Mechanism
from .context import seeded
from .measure import Measure, counts_to_offsets
from .source import RowSource
from .statistic import Statistic

__all__ = ["PrivateSource"]


class PrivateSource(RowSource):
    """Records behind the Gaussian mechanism: statistics with noise, charged to an accountant; no rows.

    An answer to `expect(statistic)` is, for every group g of n_g records::

        chosen = [record of g with probability sampling_rate, each by itself]
        total = sum(row's contribution, scaled to norm at most clip, for row in chosen)
        (total + noise_multiplier * clip * standard normal noise) / (sampling_rate * n_g)

    x, groups_of, y, group_count: as of `PublicSource`; rows must be finite.
    noise_multiplier: standard deviation of the noise over `clip`. clip: largest norm of what one record adds
    to a statistic, over all of its tensors. sampling_rate: in (0, 1]; 1 takes every record.
    accountant: counts the cost; sources of the same records share one. A new one, without a limit, by
    default.
    insecure_seed: makes sample and noise repeatable, for tests. Who knows it can take the noise away: with it
    nothing is private, and the accountant names no epsilon.

    Which records are sampled, and the noise, come from the operating system's entropy and are stored
    nowhere; a seed of the run or a generator passed to `expect` does not touch them. Public are the sizes
    and the names of the groups (see :mod:`decoct.privacy`); a group without records gives zeros.

    The noise is of double precision and not of a discrete distribution: attacks on the last bits of
    floating-point sums (Mironov 2012) are not defended against.
    """

    private = True

    def __init__(
        self,
        x: Tensor,
        groups_of: Tensor,
        *,
        noise_multiplier: float,
        clip: float = 1.0,
        sampling_rate: float = 1.0,
        accountant: Accountant | None = None,
        y: Tensor | None = None,
        group_count: int | None = None,
        insecure_seed: int | None = None,
    ) -> None:
        super().__init__(x, groups_of, group_count)
        if not 0 < clip < math.inf:
            raise ValueError(f"PrivateSource: clip must be positive and finite, got {clip}")
        if not bool(torch.isfinite(x).all()):
            raise ValueError("PrivateSource: x must be finite, got NaN or infinite values")
        self.mechanism, self.clip = Mechanism(float(noise_multiplier), float(sampling_rate)), float(clip)
        self.mechanism.check("PrivateSource")
        order = torch.argsort(groups_of, stable=True)
        self._x, self._y = x[order], (groups_of if y is None else y)[order]
        self._groups_of = groups_of[order]
        self.accountant = accountant or Accountant()
        self._ledger = self.accountant.open()
        self._seed = insecure_seed

    def sample(self, n: int | Sequence[int], rng: torch.Generator) -> Measure:
        """Refused: RuntimeError."""
        raise RuntimeError(
            "PrivateSource: sample: a private source shows no rows; start from noise (Synthetic.from_noise), "
            "match statistics (StatisticMatch) and train networks on synthetic rows, without batch norm"
        )

    def expect(
        self, statistic: Statistic, n: int | Sequence[int], rng: torch.Generator
    ) -> tuple[Tensor, ...]:
        """The noised mean of every group; `n` and `rng` are not used, the sampling rate and entropy are.

        BudgetSpent, before any record is read, where the accountant's limit would be exceeded; RuntimeError
        for contributions that are not finite.
        """
        answer = self._ledger.answers
        self._ledger.charge(self.mechanism, insecure=self._seed is not None)
        seed = None if self._seed is None else seeded(self._seed, "private", answer).initial_seed()
        noise = Noise(seed)
        with torch.no_grad():
            sums = statistic.clipped_sum(self._chosen(noise), self.clip)
        if not all(bool(torch.isfinite(part).all()) for part in sums):
            raise RuntimeError(f"PrivateSource: expect: {statistic.name} of a record is not finite")
        deviation = self.mechanism.noise_multiplier * self.clip
        return tuple(self._mean(part + deviation * noise.like(part)) for part in sums)

    def settings(self) -> dict[str, Any]:
        """What is recorded of it with a run: plain values that tell nothing about records or noise."""
        return {
            "noise_multiplier": self.mechanism.noise_multiplier,
            "clip": self.clip,
            "sampling_rate": self.mechanism.sampling_rate,
            "noise": "the operating system's" if self._seed is None else "of a seed: not private",
            "neighbours": NEIGHBOURS,
        }

    def state_dict(self) -> dict[str, Any]:
        """The charge so far."""
        return self._ledger.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a charge; new answers get new noise."""
        self._ledger.load_state_dict(state)

    def _chosen(self, noise: Noise) -> Measure:
        rate = self.mechanism.sampling_rate
        if rate == 1:
            return Measure(self._x, self._y, groups=counts_to_offsets(self.counts))
        rows = noise.chosen(len(self._x), rate).nonzero().flatten().to(self._x.device)
        counts = torch.bincount(self._groups_of[rows], minlength=self.group_count)
        return Measure(self._x[rows], self._y[rows], groups=counts_to_offsets(counts))

    def _mean(self, noised: Tensor) -> Tensor:
        expected = (self.mechanism.sampling_rate * self.counts).to(noised)
        means = noised / expected.reshape(-1, *[1] * (noised.dim() - 1))
        means[~self.present.to(noised.device)] = 0
        return means
