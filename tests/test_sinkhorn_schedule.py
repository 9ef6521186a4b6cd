"""How many passes entropic transport takes, over how many bands of rows, and how partial transport ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import decoct
from decoct import reference
from table import on_device

pytestmark = pytest.mark.usefixtures("backend")
apply_plan, sinkhorn_divergence, sinkhorn_potentials = (
    on_device(function)
    for function in (decoct.apply_plan, decoct.sinkhorn_divergence, decoct.sinkhorn_potentials)
)


def boxes(n: int, m: int, shift: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Even rows in a unit cube, and in one that is moved along all axes."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    return x.to(dtype), (y + shift).to(dtype)


@pytest.mark.parametrize("tol", [None, 1e-9])
def test_the_cap_is_kept(tol: float | None) -> None:
    """Down to the passes without which there is no solution: two at the diameter, two at the last eps."""
    x, y = boxes(20, 15, 0.5)
    counts = [
        int(sinkhorn_potentials(x, y, blur=0.01, tol=tol, max_iterations=cap).iterations)
        for cap in (1, 3, 4, 5, 7, 12)
    ]
    assert counts[:4] == [4, 4, 4, 5]
    assert counts[4:] == [7, 12 if tol else counts[5]]
    assert counts[5] <= 12
    start = sinkhorn_potentials(x, y, blur=0.01)
    assert [
        int(sinkhorn_potentials(x, y, blur=0.01, start=start, max_iterations=k).iterations) for k in (1, 2)
    ] == [
        2,
        2,
    ]


@pytest.mark.parametrize(("n", "m"), [(1500, 1600), (1600, 1500), (97, 50), (63, 49), (112, 64), (1, 1537)])
@pytest.mark.usual_backends("cpu")
def test_any_number_of_bands(n: int, m: int) -> None:
    """Rows are cut into bands that become higher, and so fewer, as the rows become more."""
    x, y = boxes(n, m, 0.2)
    leaves = x.requires_grad_(), y.requires_grad_()
    options: dict[str, Any] = {"blur": 0.2, "diameter": 2.0}
    value, twin = (f(*leaves, **options) for f in (sinkhorn_divergence, reference.sinkhorn_divergence))
    torch.testing.assert_close(value, twin, rtol=1e-10, atol=1e-13)
    ours = torch.autograd.grad(value, leaves)
    solution = reference.sinkhorn_potentials(x.detach(), y.detach(), **options)
    assert all(bool(part.isfinite().all()) for part in (*ours, solution.f))


@pytest.mark.parametrize(
    ("shift", "dtype"),
    [
        (0.0, torch.float64),
        (3.0, torch.float64),
        (10.0, torch.float64),
        (0.0, torch.float32),
        (3.0, torch.float32),
    ],
)
def test_partial_transport_of_far_boxes(shift: float, dtype: torch.dtype) -> None:
    """Half of the mass goes where it is cheapest, and to a tolerance by default."""
    x, y = boxes(24, 20, shift, dtype)
    options: dict[str, Any] = {"mass": 0.5, "debias": False, "blur": 0.1, "diameter": 2.0 + 2 * shift}
    solution = sinkhorn_potentials(x, y, max_iterations=4000, **options)
    assert bool(solution.converged)
    a, b = (torch.full((k,), 1 / k, dtype=dtype) for k in (24, 20))
    row = apply_plan(x, y, torch.ones_like(b), solution, blur=0.1)
    column = apply_plan(x, y, torch.ones_like(a), solution, blur=0.1, transpose=True)
    slack = 3e-3 if dtype == torch.float64 else 3e-2  # float32 potentials lie far above eps
    assert row.sum().item() == pytest.approx(0.5, rel=slack)
    assert bool((row <= a * (1 + slack)).all())
    assert bool((column <= b * (1 + 10 * slack)).all())
    exact = decoct.sinkhorn_potentials(x.double(), y.double(), tol=1e-9, max_iterations=100000, **options)
    assert bool(exact.converged)
    torch.testing.assert_close(solution.value.double(), exact.value, rtol=2e-3, atol=1e-5)


def test_a_partial_problem_goes_on_from_its_solution() -> None:
    x, y = boxes(24, 20, 1.0)
    options: dict[str, Any] = {
        "mass": 0.5,
        "debias": False,
        "blur": 0.2,
        "tol": 1e-6,
        "max_iterations": 20000,
    }
    first = sinkhorn_potentials(x, y, **options)
    again = sinkhorn_potentials(x, y, start=first, **options)
    assert bool(first.converged)
    assert bool(again.converged)
    assert int(first.iterations) > 50
    assert int(again.iterations) <= 5
    torch.testing.assert_close(again.value, first.value, rtol=1e-6, atol=0)
