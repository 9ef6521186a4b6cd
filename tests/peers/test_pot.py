"""Entropic, unbalanced and partial transport against POT at the same eps, and exact transport as the limit.

POT's potentials are logarithms of scalings and contain the weights: f = eps (log u - log a). Its entropic
partial transport regularises by the plan's entropy, not by KL to a b^T; with uniform weights and a given mass
the two differ by a constant and have the same plan.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import decoct

pytestmark = pytest.mark.peers

EPS = 0.3
CLOSE = 1e-7


@pytest.fixture(scope="module")
def ot() -> Any:
    import ot

    return ot


def _problem(p: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows, weights and costs."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(30, 3, generator=generator, dtype=torch.float64) * 0.8 + 0.3
    a, b = (torch.rand(len(rows), generator=generator, dtype=torch.float64) + 0.2 for rows in (x, y))
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** p / p
    return x, y, a / a.sum(), b / b.sum(), cost


def _kl(plan: Tensor, reference: Tensor) -> Tensor:
    return (torch.xlogy(plan, plan / reference) - plan + reference).sum()


def _plan(solution: Any, a: Tensor, b: Tensor, cost: Tensor, eps: float) -> Tensor:
    return a[:, None] * b * torch.exp((solution.f[:, None] + solution.g - cost) / eps)


def _centred(f: Tensor, g: Tensor) -> Tensor:
    """Without the constant that may move from one side to the other."""
    shift = (f.mean() - g.mean()) / 2
    return torch.cat([f - shift, g + shift])


@pytest.mark.parametrize("p", [1, 2])
def test_entropic(ot: Any, p: int) -> None:
    x, y, a, b, cost = _problem(p)
    options = {"a": a, "b": b, "p": p, "blur": EPS ** (1 / p), "debias": False, "tol": 1e-10}
    plan, log = ot.bregman.sinkhorn_log(a, b, cost, EPS, numItermax=10_000, stopThr=1e-12, log=True)
    solution = decoct.sinkhorn_potentials(x, y, **options)
    assert solution.converged.all()
    theirs = _centred(EPS * (log["log_u"] - a.log()), EPS * (log["log_v"] - b.log()))
    torch.testing.assert_close(_centred(solution.f, solution.g), theirs, rtol=0, atol=CLOSE)
    value = (plan * cost).sum() + EPS * _kl(plan, a[:, None] * b)
    torch.testing.assert_close(decoct.sinkhorn_divergence(x, y, **options), value, rtol=CLOSE, atol=0)


def test_debiased(ot: Any) -> None:
    """POT's costs are squared distances: eps is doubled, the value halved."""
    x, y, *_ = _problem()
    theirs = ot.solve_sample(x, y, reg=2 * EPS, debias=True, max_iter=10_000, tol=1e-12).value / 2
    ours = decoct.sinkhorn_divergence(x, y, blur=EPS**0.5, tol=1e-10)
    # POT adds 1e-15 to each a_i b_j inside the logarithm.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", [1, 2])
def test_exact_transport_is_the_limit_of_small_eps(ot: Any, p: int) -> None:
    x, y, a, b, cost = _problem(p)
    exact = float(ot.emd2(a, b, cost))
    values = [
        float(
            decoct.sinkhorn_divergence(
                x,
                y,
                a=a,
                b=b,
                p=p,
                blur=eps ** (1 / p),
                debias=False,
                scaling=0.9,
                tol=1e-6,
                max_iterations=20_000,
            )
        )
        for eps in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
    ]
    assert values == sorted(values, reverse=True)
    # eps KL(P | a b^T) lies between 0 and eps times the entropy of a weight vector.
    assert exact <= values[-1] + 1e-6
    assert values[-1] - exact <= 0.003 * torch.log(torch.tensor(30.0))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("rho", [0.5, 4.0])
def test_unbalanced(ot: Any, p: int, rho: float) -> None:
    x, y, a, b, cost = _problem(p)
    options = {"a": a, "b": b, "p": p, "blur": EPS ** (1 / p), "reach": rho ** (1 / p)}
    options |= {"debias": False, "tol": 1e-11}
    reference = a[:, None] * b
    plan = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, EPS, rho, reg_type="kl", c=reference, numItermax=10_000, stopThr=1e-13
    )
    solution = decoct.sinkhorn_potentials(x, y, **options)
    torch.testing.assert_close(_plan(solution, a, b, cost, EPS), plan, rtol=1e-6, atol=1e-12)
    value = (
        (plan * cost).sum() + EPS * _kl(plan, reference) + rho * (_kl(plan.sum(1), a) + _kl(plan.sum(0), b))
    )
    torch.testing.assert_close(decoct.sinkhorn_divergence(x, y, **options), value, rtol=CLOSE, atol=0)


@pytest.mark.parametrize("mass", [0.3, 0.7, 0.95])
def test_partial(ot: Any, mass: float) -> None:
    x, y, _, _, cost = _problem()
    a, b = (torch.full((len(rows),), 1 / len(rows), dtype=torch.float64) for rows in (x, y))
    plan = ot.partial.entropic_partial_wasserstein(
        a, b, cost, EPS, m=torch.tensor(mass), method="sinkhorn_log", numItermax=20_000, stopThr=1e-14
    )
    options = {"blur": EPS**0.5, "debias": False, "mass": mass, "tol": 1e-10, "max_iterations": 20_000}
    solution = decoct.sinkhorn_potentials(x, y, **options)
    torch.testing.assert_close(_plan(solution, a, b, cost, EPS), plan, rtol=1e-6, atol=1e-9)
    value = (plan * cost).sum() + EPS * (_kl(plan, a[:, None] * b) + mass - 1)
    torch.testing.assert_close(decoct.sinkhorn_divergence(x, y, **options), value, rtol=1e-6, atol=0)
