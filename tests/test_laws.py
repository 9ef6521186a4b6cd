"""Laws that hold for all inputs, and values known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decoct
from decoct.kernels import Kernel
from samples import KERNELS, RADIAL, rows

EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
EVERY_RADIAL = pytest.mark.parametrize("kernel", [KERNELS[name] for name in RADIAL], ids=RADIAL)


@st.composite
def clouds(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two clouds with duplicates now and then, and positive weights of mass 1."""
    n, m, d = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 20))
    seed, spread = draw(st.integers(0, 10_000)), draw(st.sampled_from([0.01, 1.0, 30.0]))
    x, y = rows(n, d, seed=seed) * spread, rows(m, d, seed=seed + 1) * spread
    if draw(st.booleans()):
        y[0] = x[-1]
    a, b = rows(n, seed=seed).abs() + 0.1, rows(m, seed=seed + 1).abs() + 0.1
    return x, y, a / a.sum(), b / b.sum()


def size(x: torch.Tensor, y: torch.Tensor, kernel: Kernel) -> float:
    """Magnitude of the terms whose difference an MMD is."""
    z = torch.cat([x, y])
    return float(decoct.reference.kernel_matrix(z, z, kernel, 1.5).abs().max()) + 1e-300


@EVERY_KERNEL
@given(case=clouds())
def test_a_cloud_has_no_distance_to_itself(kernel: Kernel, case: tuple[torch.Tensor, ...]) -> None:
    x, _, a, _ = case
    value = decoct.mmd(x, x.clone(), kernel, 1.5, a=a, b=a.clone())
    assert value.abs() <= 1e-14 * size(x, x, kernel)


@EVERY_KERNEL
@given(case=clouds())
def test_symmetric(kernel: Kernel, case: tuple[torch.Tensor, ...]) -> None:
    x, y, a, b = case
    one, other = decoct.mmd(x, y, kernel, 1.5, a=a, b=b), decoct.mmd(y, x, kernel, 1.5, a=b, b=a)
    assert (one - other).abs() <= 1e-14 * size(x, y, kernel)


@EVERY_KERNEL
@given(case=clouds())
def test_biased_is_not_negative(kernel: Kernel, case: tuple[torch.Tensor, ...]) -> None:
    x, y, a, b = case
    assert decoct.mmd(x, y, kernel, 1.5, a=a, b=b) >= -1e-14 * size(x, y, kernel)
    assert decoct.mmd(x, y, kernel) >= -1e-14 * size(x, y, kernel)


@EVERY_KERNEL
@given(case=clouds(), seed=st.integers(0, 1000))
def test_order_of_rows_does_not_matter(kernel: Kernel, case: tuple[torch.Tensor, ...], seed: int) -> None:
    x, y, a, b = case
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(seed))
    y = y.requires_grad_()
    results = []
    for p, w in ((x, a), (x[order], a[order])):
        value = decoct.mmd(p, y, kernel, 1.5, a=w, b=b)
        results.append((value.detach(), torch.autograd.grad(value, y)[0]))
    tolerance = 1e-13 * size(x, y.detach(), kernel)
    assert (results[0][0] - results[1][0]).abs() <= tolerance
    gradient = results[0][1]
    assert (gradient - results[1][1]).abs().max() <= 1e-11 * (gradient.abs().max() + tolerance)


@EVERY_RADIAL
@given(case=clouds())
def test_translation_invariant(kernel: Kernel, case: tuple[torch.Tensor, ...]) -> None:
    x, y, a, b = case
    base, moved = decoct.mmd(x, y, kernel, 1.5, a=a, b=b), decoct.mmd(x + 64, y + 64, kernel, 1.5, a=a, b=b)
    assert (base - moved).abs() <= 1e-11 * size(x, y, kernel)


@EVERY_KERNEL
@given(case=clouds())
def test_a_duplicate_row_is_a_heavier_row(kernel: Kernel, case: tuple[torch.Tensor, ...]) -> None:
    """Splitting a weight over two copies of a row changes nothing."""
    x, y, a, b = case
    doubled = torch.cat([y, y[:1]])
    split = torch.cat([b[:1] / 4, b[1:], 3 * b[:1] / 4])
    base, ours = decoct.mmd(x, y, kernel, 1.5, a=a, b=b), decoct.mmd(x, doubled, kernel, 1.5, a=a, b=split)
    assert (base - ours).abs() <= 1e-14 * size(x, y, kernel)


@EVERY_KERNEL
@given(case=clouds())
def test_matvec_and_mean_agree(kernel: Kernel, case: tuple[torch.Tensor, ...]) -> None:
    """a . (K b) = (K' a) . b = the kernel mean."""
    x, y, a, b = case
    mean = decoct.kernel_mean(x, y, kernel, 1.5, a=a, b=b)
    tolerance = 1e-14 * size(x, y, kernel)
    assert (a @ decoct.kernel_matvec(x, y, b, kernel, 1.5) - mean).abs() <= tolerance
    assert (decoct.kernel_matvec(y, x, a, kernel, 1.5) @ b - mean).abs() <= tolerance


@EVERY_RADIAL
@given(case=clouds())
def test_gradients_of_a_translation_cancel(kernel: Kernel, case: tuple[torch.Tensor, ...]) -> None:
    """All rows moved together: the gradients over x and y sum to 0."""
    x, y, a, b = (t.clone() for t in case)
    x.requires_grad_()
    y.requires_grad_()
    gradients = torch.autograd.grad(decoct.mmd(x, y, kernel, 1.5, a=a, b=b), (x, y))
    total = gradients[0].sum(0) + gradients[1].sum(0)
    assert total.abs().max() <= 1e-11 * max(1e-3, float(gradients[0].abs().max()))


@EVERY_KERNEL
@given(
    lengths=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12),
    d=st.integers(1, 40),
)
def test_segments_do_not_see_each_other(kernel: Kernel, lengths: list[tuple[int, int]], d: int) -> None:
    ends = [[0, *torch.tensor([pair[side] for pair in lengths]).cumsum(0).tolist()] for side in (0, 1)]
    x, y = rows(ends[0][-1], d), rows(ends[1][-1], d, seed=1)
    together = decoct.mmd(x, y, kernel, 2.0, x_offsets=ends[0], y_offsets=ends[1])
    for c in range(len(lengths)):
        alone = decoct.mmd(x[ends[0][c] : ends[0][c + 1]], y[ends[1][c] : ends[1][c + 1]], kernel, 2.0)
        torch.testing.assert_close(together[c], alone, rtol=1e-12, atol=1e-13)


DIRACS = {
    "gaussian": lambda t: math.exp(-t * t / 2),
    "laplacian": lambda t: math.exp(-t),
    "energy": lambda t: -0.8 * t,  # ignores s, so the distance itself
    "inverse_multiquadric": lambda t: (1 + t * t) ** -0.5,
    "rational_quadratic": lambda t: 1 / (1 + t * t / 2),
}


@pytest.mark.parametrize("kernel", DIRACS)
@pytest.mark.parametrize("t", [1e-3, 0.5, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_points(kernel: str, t: float, dtype: torch.dtype) -> None:
    """Diracs at distance t s: 2 k(0) - 2 k(t)."""
    s = 0.8
    x, y = torch.zeros(1, 4, dtype=dtype), torch.zeros(1, 4, dtype=dtype)
    y[0, 2] = t * s
    at_zero = 0.0 if kernel == "energy" else 1.0
    expected = 2 * at_zero - 2 * DIRACS[kernel](t)
    tolerance = 8 * torch.finfo(dtype).eps
    assert abs(float(decoct.mmd(x, y, kernel, s)) - expected) <= tolerance * (
        at_zero + abs(DIRACS[kernel](t))
    )
    assert abs(float(decoct.kernel_mean(x, y, kernel, s)) - DIRACS[kernel](t)) <= tolerance * (
        at_zero + abs(DIRACS[kernel](t))
    )


def test_gaussian_kernel_between_gaussians() -> None:
    """E k(X, Y) of N(m, u^2 I) and N(0, v^2 I) is (s^2 / (s^2 + u^2 + v^2))^(D/2) exp(-|m|^2 / (2 (s^2 + u^2
    + v^2))), here against 4096 points of a Sobol sequence."""
    s, u, v, d = 1.3, 0.7, 1.1, 3
    shift = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)

    def mean(scale: float, distance2: float) -> float:
        total = s * s + scale
        return (s * s / total) ** (d / 2) * math.exp(-distance2 / (2 * total))

    expected = mean(2 * u * u, 0) - 2 * mean(u * u + v * v, float(shift.square().sum())) + mean(2 * v * v, 0)
    sobol = torch.quasirandom.SobolEngine(d, scramble=True, seed=3)
    normal = [
        torch.special.ndtri(sobol.draw(2048, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)) for _ in range(2)
    ]
    value = decoct.mmd(normal[0] * u + shift, normal[1] * v, "gaussian", s, estimator="unbiased")
    assert abs(float(value) - expected) < 2e-3 * abs(expected) + 3e-4


def test_energy_distance_on_a_line() -> None:
    """In one dimension it is twice the integral of (F - G)^2 over the two distribution functions."""
    x, y = rows(40, 1, seed=4), rows(25, 1, seed=5, shift=0.5)
    grid = torch.cat([x, y]).flatten().sort().values
    f, g = ((points <= grid).double().mean(0) for points in (x, y))
    expected = 2 * ((f - g)[:-1].square() * grid.diff()).sum()
    torch.testing.assert_close(decoct.mmd(x, y, "energy"), expected, rtol=1e-11, atol=1e-13)
