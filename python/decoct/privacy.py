"""Differential privacy: what noised answers cost, by an accountant that others keep.

Every answer of a :class:`decoct.objectives.PrivateSource` is a Gaussian mechanism, on a Poisson sample of the
records where its sampling rate is below 1. Their composition is left to Google's `dp-accounting` (the extra
``private``), whose privacy loss distributions bound epsilon from above. Without it no epsilon is named.

Neighbouring data sets differ in one record, which one of them holds and the other replaces by a record that
contributes nothing ("zero-out", Kairouz et al. 2021, arXiv 2103.00039, definition 1.1). So the groups' sizes
are the same in both: they count as public, and so do the names of the classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ._extras import require

__all__ = [
    "NEIGHBOURS",
    "Accountant",
    "BudgetSpent",
    "Ledger",
    "Mechanism",
    "epsilon_of",
    "noise_multiplier_for",
]

NEIGHBOURS = "one record of a group replaced by one that contributes nothing; group sizes are public"


class BudgetSpent(RuntimeError):
    """An answer was refused, since with it the charge would exceed the accountant's limit."""


class Mechanism(NamedTuple):
    """Gaussian noise of standard deviation `noise_multiplier` times the sensitivity, on a sum over a sample
    that holds each record with probability `sampling_rate`."""

    noise_multiplier: float
    sampling_rate: float

    def check(self, op: str) -> None:
        """ValueError for numbers out of range."""
        if not 0 < self.noise_multiplier < math.inf:
            raise ValueError(
                f"{op}: noise_multiplier must be positive and finite, got {self.noise_multiplier}"
            )
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"{op}: sampling_rate must be in (0, 1], got {self.sampling_rate}")


Charges = Mapping[Mechanism, int]


def epsilon_of(charges: Charges, delta: float) -> float:
    """Epsilon at `delta` of so many answers of each mechanism; 0 for none.

    charges: number of answers by :class:`Mechanism`. delta: in (0, 1); below one over the number of records,
    else publishing a random record would be within it.
    ImportError without dp-accounting, ValueError for numbers out of range.
    """
    if not 0 < delta < 1:
        raise ValueError(f"epsilon_of: delta must be in (0, 1), got {delta}")
    return _epsilon(tuple(sorted(charges.items())), delta)


@functools.lru_cache(maxsize=1024)  # an evaluation takes a second
def _epsilon(charges: tuple[tuple[Mechanism, int], ...], delta: float) -> float:
    events, losses = require("dp_accounting", "private"), require("dp_accounting.pld", "private")
    accountant = losses.PLDAccountant(events.NeighboringRelation.REPLACE_SPECIAL)
    for mechanism, count in charges:
        mechanism.check("epsilon_of")
        event = events.GaussianDpEvent(mechanism.noise_multiplier)
        if mechanism.sampling_rate < 1:
            event = events.PoissonSampledDpEvent(mechanism.sampling_rate, event)
        if count:
            accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def noise_multiplier_for(epsilon: float, delta: float, *, sampling_rate: float, answers: int) -> float:
    """A noise multiplier with which `answers` answers cost at most `epsilon`, 0.3 % above the smallest one or
    less.

    ImportError without dp-accounting; ValueError for numbers out of range: an epsilon above 100 protects
    nobody.
    """
    if not 0 < epsilon <= 100:
        raise ValueError(f"noise_multiplier_for: epsilon must be in (0, 100], got {epsilon}")
    if answers < 1:
        raise ValueError(f"noise_multiplier_for: answers must be at least 1, got {answers}")

    def excess(log_noise: float) -> float:
        spent = epsilon_of({Mechanism(math.exp(log_noise), sampling_rate): answers}, delta)
        return math.log(max(spent, 1e-12) / epsilon)

    low = high = 0.0
    below = above = excess(0.0)
    while above > 0:  # too little noise
        low, below, high = high, above, high + math.log(4)
        above = excess(high)
    while below <= 0:
        high, above, low = low, below, low - math.log(4)
        below = excess(low)
    # Epsilon is nearly a power of the noise: the secant through both ends, kept away from them.
    while high - low > 1e-3:
        share = min(max(below / (below - above), 0.02), 0.98)
        middle = low + share * (high - low) + 3e-4
        value = excess(middle)
        if value > 0:
            low, below = middle, value
        else:
            high, above = middle, value
            if value > -1e-3:
                break
    return float(f"{math.exp(high) * 1.001:.4g}")


class Accountant:
    """The charge of all sources that share it.

    epsilon, delta: a limit; the answer that would exceed it is refused before any record is read. Neither
    for none. Sources of the same records share one accountant: what they cost adds up, and releases are
    judged by the sum.
    """

    def __init__(self, epsilon: float | None = None, delta: float | None = None) -> None:
        if epsilon is not None:
            if delta is None:
                raise ValueError("Accountant: delta must be given with epsilon, got None")
            epsilon_of({}, delta)  # without the package the limit could not be kept
        self.limit, self.delta = epsilon, delta
        self._ledgers: list[Ledger] = []
        # Answers of one mechanism that are known to be within the limit, and how many to ask for next: the
        # accountant is called for growing numbers of them, not for each.
        self._cleared: tuple[Mechanism | None, int] = None, 0
        self._block = 1

    def open(self) -> Ledger:
        """A new ledger, of one source."""
        self._ledgers.append(Ledger(self))
        return self._ledgers[-1]

    def charges(self) -> dict[Mechanism, int]:
        """Answers given, by mechanism."""
        total: dict[Mechanism, int] = {}
        for ledger in self._ledgers:
            for mechanism, count in ledger.charges.items():
                total[mechanism] = total.get(mechanism, 0) + count
        return total

    def epsilon(self, delta: float | None = None) -> float:
        """What has been spent, at `delta` or that of the limit.

        RuntimeError where noise came from a seed: whoever knows it can take the noise away.
        """
        chosen = self.delta if delta is None else delta
        if chosen is None:
            raise ValueError("Accountant: epsilon: delta must be given, got None")
        if any(ledger.insecure for ledger in self._ledgers):
            raise RuntimeError("Accountant: epsilon: noise came from a seed, so there is none to name")
        return epsilon_of(self.charges(), chosen)

    def allow(self, mechanism: Mechanism) -> None:
        """BudgetSpent where one more answer would exceed the limit."""
        if self.limit is None or self.delta is None:
            return
        known, left = self._cleared
        if known != mechanism:
            left, self._block = 0, 1
        if left == 0:
            while not self._fits(mechanism, self._block):
                if self._block == 1:
                    given = sum(self.charges().values())
                    raise BudgetSpent(
                        f"Accountant: one more answer than the {given} given would exceed "
                        f"epsilon={self.limit:g} at delta={self.delta:g} (noise multiplier "
                        f"{mechanism.noise_multiplier:g}, sampling rate {mechanism.sampling_rate:g})"
                    )
                self._block //= 2
            left, self._block = self._block, self._block * 2
        self._cleared = mechanism, left - 1

    def forget_clearance(self) -> None:
        """Ask again: charges have come from elsewhere."""
        self._cleared = None, 0

    def _fits(self, mechanism: Mechanism, count: int) -> bool:
        charges = self.charges()
        charges[mechanism] = charges.get(mechanism, 0) + count
        assert self.limit is not None
        assert self.delta is not None
        return epsilon_of(charges, self.delta) <= self.limit


class Ledger:
    """The answers of one source. insecure: whether one of them was noised from a seed."""

    def __init__(self, accountant: Accountant) -> None:
        self._accountant = accountant
        self.charges: dict[Mechanism, int] = {}
        self.insecure = False

    @property
    def answers(self) -> int:
        """How many were given."""
        return sum(self.charges.values())

    def charge(self, mechanism: Mechanism, *, insecure: bool = False) -> None:
        """Enter an answer that is about to be given. BudgetSpent, and nothing entered, past the limit."""
        self._accountant.allow(mechanism)
        self.charges[mechanism] = self.charges.get(mechanism, 0) + 1
        self.insecure = self.insecure or insecure

    def state_dict(self) -> dict[str, Any]:
        """Plain values: how many answers of which noise, nothing about the noise itself."""
        return {
            "charges": [[*mechanism, count] for mechanism, count in self.charges.items()],
            "insecure": self.insecure,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s result in place of what is entered here."""
        self.charges = {Mechanism(noise, rate): count for noise, rate, count in state["charges"]}
        self.insecure = self.insecure or bool(state["insecure"])
        self._accountant.forget_clearance()
