"""The accountant: its epsilons, its limit, charges that are resumed."""

from __future__ import annotations

import math

import pytest
import torch

from decoct import privacy
from decoct.objectives import (
    FeatureMean,
    PrivateSource,
    seeded,
)
from decoct.privacy import Accountant, BudgetSpent, Mechanism, epsilon_of, noise_multiplier_for

COUNTS = (40, 7, 0, 3)


def records(counts=COUNTS, shape=(5,), seed=0):
    groups_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = torch.randperm(len(groups_of), generator=seeded(seed, "order"))
    return torch.randn(len(groups_of), *shape, generator=seeded(seed, "rows")), groups_of[order]


def private(counts=COUNTS, shape=(5,), **options):
    options = {"noise_multiplier": 1.0, "group_count": len(counts), **options}
    return PrivateSource(*records(counts, shape), **options)


def ask(source, statistic=None, **options):
    return source.expect(statistic or FeatureMean(), 3, seeded(0))


# ---- accountant


def renyi_epsilon(rate, noise, answers, delta):
    """Another accountant: Renyi divergences at whole orders (Mironov et al. 2019, arXiv 1908.10530, section
    3.3), turned into epsilon as Canonne et al. 2020 (arXiv 2004.00010, proposition 12) do."""
    best = math.inf
    for order in range(2, 200):
        terms = [
            math.log(math.comb(order, k))
            + k * math.log(rate)
            + (order - k) * math.log1p(-rate)
            + (k * k - k) / (2 * noise**2)
            for k in range(order + 1)
        ]
        top = max(terms)
        spent = answers * (top + math.log(math.fsum(math.exp(t - top) for t in terms))) / (order - 1)
        extra = math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        best = min(best, spent + extra)
    return best


# Moments accountant: Abadi et al. 2016 (arXiv 1607.00133), figure 2; Renyi accountant: the tutorial of
# TensorFlow Privacy (tutorials/README.md), 60000 rows in batches of 256.
PUBLISHED = [
    (0.01, 4.0, 10_000, 1e-5, 1.26),
    (256 / 60_000, 1.12, 60 * 60_000 // 256, 1e-5, 2.92),
    (256 / 60_000, 1.2, 10 * 60_000 // 256, 1e-5, 1.20),
]


@pytest.mark.parametrize(("rate", "noise", "answers", "delta", "published"), PUBLISHED)
def test_epsilon_against_published_values_and_another_accountant(rate, noise, answers, delta, published):
    """These are looser bounds of the same quantity, by known shares."""
    ours = epsilon_of({Mechanism(noise, rate): answers}, delta)
    renyi = renyi_epsilon(rate, noise, answers, delta)
    assert 0.84 * renyi < ours < renyi
    assert 0.65 * published < ours < published


@pytest.mark.parametrize("noise", [0.7, 3.0])
@pytest.mark.parametrize("answers", [1, 9])
def test_epsilon_without_sampling_is_that_of_the_gaussian_mechanism(noise, answers):
    """The exact curve of Balle and Wang 2018 (arXiv 1805.06530, theorem 8)."""
    delta = 1e-5
    epsilon = epsilon_of({Mechanism(noise, 1.0): answers}, delta)
    ratio = math.sqrt(answers) / noise

    def normal(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    exact = normal(ratio / 2 - epsilon / ratio) - math.exp(epsilon) * normal(-ratio / 2 - epsilon / ratio)
    assert exact == pytest.approx(delta, rel=2e-3)
    assert exact <= delta * (1 + 1e-9)


def test_epsilon_of_different_mechanisms_adds_up():
    one, other = Mechanism(2.0, 0.1), Mechanism(5.0, 1.0)
    alone = [epsilon_of({one: 20}, 1e-5), epsilon_of({other: 1}, 1e-5)]
    assert max(alone) < epsilon_of({one: 20, other: 1}, 1e-5) < sum(alone)
    assert epsilon_of({}, 1e-5) == 0
    assert epsilon_of({one: 20}, 1e-5) == epsilon_of({one: 15, Mechanism(2.0, 0.1): 5} | {one: 20}, 1e-5)
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="delta must be in"):
            epsilon_of({one: 1}, wrong)


@pytest.mark.parametrize(("epsilon", "rate", "answers"), [(1.0, 0.2, 50), (10.0, 1.0, 1), (0.3, 1.0, 4)])
def test_noise_is_found_for_an_epsilon(epsilon, rate, answers):
    noise = noise_multiplier_for(epsilon, 1e-4, sampling_rate=rate, answers=answers)
    assert epsilon_of({Mechanism(noise, rate): answers}, 1e-4) <= epsilon
    assert epsilon_of({Mechanism(noise / 1.004, rate): answers}, 1e-4) > epsilon
    for changes, says in (
        ({"epsilon": 0.0}, r"epsilon must be in \(0, 100\], got 0"),
        ({"answers": 0}, "answers must be at least 1"),
        ({"sampling_rate": 1.5}, "sampling_rate must be in"),
        ({"epsilon": 101.0}, "epsilon must be in"),
    ):
        with pytest.raises(ValueError, match=says):
            noise_multiplier_for(
                **{"epsilon": 1.0, "delta": 1e-4, "sampling_rate": 1.0, "answers": 1} | changes
            )


def test_the_answer_that_would_exceed_the_limit_is_refused_before_a_record_is_read(monkeypatch):
    limit = epsilon_of({Mechanism(2.0, 0.5): 11}, 1e-4)
    accountant = Accountant(limit, 1e-4)
    source = private(noise_multiplier=2.0, sampling_rate=0.5, accountant=accountant)
    for _ in range(11):
        ask(source)
    assert accountant.epsilon() == pytest.approx(limit)
    monkeypatch.setattr(PrivateSource, "_chosen", lambda *_: pytest.fail("records were read"))
    for _ in range(2):
        with pytest.raises(BudgetSpent, match=r"one more answer than the 11 given would exceed epsilon="):
            ask(source)
    assert accountant.charges() == {Mechanism(2.0, 0.5): 11}


def test_sources_of_one_accountant_share_its_limit():
    limit = epsilon_of({Mechanism(2.0, 0.5): 4, Mechanism(3.0, 1.0): 2}, 1e-4)
    accountant = Accountant(limit * (1 + 1e-9), 1e-4)
    first = private(noise_multiplier=2.0, sampling_rate=0.5, accountant=accountant)
    second = private(noise_multiplier=3.0, accountant=accountant)
    for source in (first, second, first, first, second, first):
        ask(source)
    for source in (first, second):
        with pytest.raises(BudgetSpent):
            ask(source)


def test_a_charge_is_resumed():
    accountant = Accountant(epsilon_of({Mechanism(2.0, 1.0): 8}, 1e-4), 1e-4)
    source = private(noise_multiplier=2.0)
    for _ in range(7):
        ask(source)
    state = source.state_dict()
    assert state == {"charges": [[2.0, 1.0, 7]], "insecure": False}
    resumed = private(noise_multiplier=2.0, accountant=accountant)
    for _ in range(4):  # of its own, in whose place the charge is put
        ask(resumed)
    resumed.load_state_dict(state)
    ask(resumed)
    assert accountant.charges() == {Mechanism(2.0, 1.0): 8}
    with pytest.raises(BudgetSpent):
        ask(resumed)


def test_no_epsilon_without_a_delta_or_with_a_seed_or_without_the_package(monkeypatch):
    with pytest.raises(ValueError, match="delta must be given with epsilon"):
        Accountant(1.0)
    source = private()
    with pytest.raises(ValueError, match="delta must be given"):
        source.accountant.epsilon()
    seedy = private(insecure_seed=1, accountant=source.accountant)
    assert source.accountant.epsilon(1e-4) == 0
    ask(seedy)
    with pytest.raises(RuntimeError, match="came from a seed"):
        source.accountant.epsilon(1e-4)
    fresh = private()
    fresh.load_state_dict(seedy.state_dict())
    with pytest.raises(RuntimeError, match="came from a seed"):
        fresh.accountant.epsilon(1e-4)

    def missing(module, extra="demo"):
        raise ImportError(f'{module} is not installed: pip install "decoct[{extra}]"', name=module)

    monkeypatch.setattr(privacy, "require", missing)
    privacy._epsilon.cache_clear()
    for call in (
        lambda: Accountant(1.0, 1e-4),
        lambda: epsilon_of({Mechanism(1.0, 1.0): 1}, 1e-4),
        lambda: noise_multiplier_for(1.0, 1e-4, sampling_rate=1.0, answers=1),
    ):
        with pytest.raises(ImportError, match=r'pip install "decoct\[private\]"'):
            call()
    plain = private()
    ask(plain)  # noise needs no accountant, a claim does
    assert plain.accountant.charges() == {Mechanism(1.0, 1.0): 1}
