"""Entropic transport against closed forms, laws and its twin; the contract has the rules that all ops
share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import decoct
from decoct import reference
from samples import RAGGED, rows
from table import on_device
from transport import fitting

LONG = pytest.mark.usual_backends("cpu")
"""Problems that are long ones for CUDA executed on the CPU; --backend names it, or a device."""
pytestmark = pytest.mark.usefixtures("backend")
apply_plan, sinkhorn_divergence, sinkhorn_potentials = (
    on_device(function)
    for function in (decoct.apply_plan, decoct.sinkhorn_divergence, decoct.sinkhorn_potentials)
)
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
REACHES = [None, 0.7, (0.7, None), (None, 0.5), (0.3, 0.9)]


def clouds(n: int = 12, m: int = 9, d: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows in boxes of side 1 and weights that sum to 1."""
    generator = torch.Generator().manual_seed(n * 1000 + m * 10 + d)
    x, y = (torch.rand(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.2 for k in (n, m))
    return x, y + 0.2, a / a.sum(), b / b.sum()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize("debias", [True, False])
def test_iterations_are_those_of_the_twin(p: int, reach: Any, debias: bool) -> None:
    """Unconverged, so that schedule, averaging and damping are seen."""
    x, y, a, b = clouds(30, 20)
    options = {"p": p, "reach": reach, "debias": debias, "a": a, "b": b, "blur": 0.1}
    ours, twin = sinkhorn_potentials(x, y, **options), reference.sinkhorn_potentials(x, y, **options)
    assert float(ours.error) > 1e-4
    for name, one, other in zip(ours._fields, ours, twin, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, **CLOSE, msg=name)
    assert torch.equal(sinkhorn_divergence(x, y, **options), ours.value)


@pytest.mark.parametrize("p", [1, 2])
def test_single_points(p: int) -> None:
    """Between two points it is their cost, whatever the blur; its gradient is the cost's."""
    x, y = rows(1, 4).requires_grad_(), rows(1, 4, seed=1, shift=2.0)
    distance = (x - y).norm()
    for options in ({}, {"debias": False}, {"blur": 3.0}):
        value = sinkhorn_divergence(x, y, p=p, **options)
        expected = distance**p / p
        torch.testing.assert_close(value, expected, **CLOSE)
        ours, theirs = (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (value, expected))
        torch.testing.assert_close(ours, theirs, **CLOSE)


@LONG
@pytest.mark.parametrize("blur", [0.3, 1.0, 2.0])
def test_gaussians(blur: float) -> None:
    """N(0, s^2) to N(m, t^2): the best coupling is gaussian, with a covariance c that solves c^2 + eps c =
    s^2 t^2."""
    s, t, m, eps = 0.8, 1.3, 0.7, blur**2
    grid = torch.linspace(-9, 9, 900, dtype=torch.float64)
    a, b = (torch.exp(-((grid - at) ** 2) / (2 * w**2)) for at, w in ((0.0, s), (m, t)))
    c = (math.sqrt(eps**2 + 4 * s**2 * t**2) - eps) / 2
    expected = (m**2 + s**2 + t**2 - 2 * c) / 2 - eps / 2 * math.log(1 - (c / (s * t)) ** 2)
    value = sinkhorn_divergence(
        grid[:, None], grid[:, None], a=a / a.sum(), b=b / b.sum(), blur=blur, debias=False, tol=1e-11
    )
    assert value.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("blur", [0.05, 0.5, 5.0])
def test_translation(blur: float) -> None:
    """A shift by t is at divergence |t|^2 / 2 for p=2, at any blur."""
    x, shift = rows(15, 3), torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64)
    value = sinkhorn_divergence(x, x + shift, blur=blur, scaling=0.9, tol=1e-9, max_iterations=20000)
    assert value.item() == pytest.approx(float(shift.square().sum()) / 2, rel=1e-6)


@pytest.mark.parametrize("p", [1, 2])
def test_permutation(p: int) -> None:
    """With little blur, rows go to their copies and the divergence vanishes."""
    x = rows(20, 5)
    y = x[torch.randperm(20)]
    options: dict[str, Any] = {"p": p, "blur": 0.05, "scaling": 0.8, "tol": 1e-9}
    assert sinkhorn_divergence(x, y, **options).abs() < 1e-9
    solution = sinkhorn_potentials(x, y, **options)
    image = apply_plan(x, y, y, solution, p=p, blur=0.05, normalize=True)
    torch.testing.assert_close(image, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_zero_and_symmetric(p: int, dtype: torch.dtype) -> None:
    x, y, a, b = (part.to(dtype) for part in clouds(40, 31, 5))
    same = sinkhorn_divergence(x, x, a=a, b=a, p=p, blur=0.2)
    assert same.abs() <= 8 * torch.finfo(dtype).eps
    forth = sinkhorn_divergence(x, y, a=a, b=b, p=p, blur=0.2)
    back = sinkhorn_divergence(y, x, a=b, b=a, p=p, blur=0.2)
    torch.testing.assert_close(forth, back, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)
    assert forth > 0


@pytest.mark.parametrize("p", [1, 2])
def test_the_cost_grows_with_eps(p: int) -> None:
    """Its derivative by eps is a divergence of the plan from the product."""
    x, y, a, b = clouds()
    values = [
        float(
            sinkhorn_divergence(x, y, a=a, b=b, p=p, blur=blur, debias=False, tol=1e-8, max_iterations=50000)
        )
        for blur in (0.1, 0.3, 1.0, 3.0, 30.0)
    ]
    assert values == sorted(values)
    product = a @ reference.transport_cost(x, y, p) @ b
    assert values[-1] == pytest.approx(float(product), rel=1e-2)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_marginals(p: int, reach: Any) -> None:
    """Of the plan: the weights, times exp(-f / rho) where they are relaxed."""
    x, y, a, b = clouds()
    solution = sinkhorn_potentials(
        x, y, a=a, b=b, p=p, reach=reach, blur=0.5, tol=1e-12, max_iterations=20000
    )
    assert bool(solution.converged)
    plan: dict[str, Any] = {"a": a, "b": b, "p": p, "blur": 0.5}
    both = reach if isinstance(reach, tuple) else (reach, reach)
    row = apply_plan(x, y, torch.ones_like(b), solution, **plan)
    column = apply_plan(x, y, torch.ones_like(a), solution, transpose=True, **plan)
    for sums, weights, potential, r in ((row, a, solution.f, both[0]), (column, b, solution.g, both[1])):
        kept = weights if r is None else weights * torch.exp(-potential / r**p)
        torch.testing.assert_close(sums, kept, rtol=1e-10, atol=1e-13)
    dense = apply_plan(x, y, torch.eye(len(b), dtype=torch.float64), solution, **plan)
    torch.testing.assert_close(dense.sum(1), row, **CLOSE)
    image = apply_plan(x, y, y, solution, normalize=True, **plan)
    torch.testing.assert_close(image, dense @ y / row[:, None], **CLOSE)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("mass", [0.3, 0.8])
def test_partial(p: int, mass: float) -> None:
    """The plan has that mass and stays under the weights; value and gradients are the twin's."""
    x, y, a, b = (part.requires_grad_() for part in clouds())
    options: dict[str, Any] = {"p": p, "blur": 0.3, "mass": mass, "debias": False, "tol": 1e-12}
    options["max_iterations"] = 20000
    solution = sinkhorn_potentials(x, y, a=a, b=b, **options)
    assert bool(solution.converged)
    plan: dict[str, Any] = {"a": a, "b": b, "p": p, "blur": 0.3}
    row = apply_plan(x, y, torch.ones_like(b), solution, **plan)
    column = apply_plan(x, y, torch.ones_like(a), solution, transpose=True, **plan)
    assert row.sum().item() == pytest.approx(mass, rel=1e-9)
    assert bool((row <= a * (1 + 1e-9)).all())
    assert bool((column <= b * (1 + 1e-9)).all())
    leaves = (x, y, a, b)
    ours = torch.autograd.grad(sinkhorn_divergence(x, y, a=a, b=b, **options), leaves)
    twin = reference.sinkhorn_divergence(x, y, a=a, b=b, **options)
    torch.testing.assert_close(solution.value, twin, rtol=1e-9, atol=1e-11)
    for mine, theirs in zip(ours, torch.autograd.grad(twin, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_all_of_the_mass_is_the_balanced_problem() -> None:
    x, y, a, b = clouds()
    options: dict[str, Any] = {"a": a, "b": b, "blur": 0.5, "debias": False, "tol": 1e-10}
    options["max_iterations"] = 50000
    balanced = sinkhorn_divergence(x, y, **options)
    torch.testing.assert_close(sinkhorn_divergence(x, y, mass=1.0, **options), balanced, rtol=1e-6, atol=0)


@pytest.mark.parametrize("debias", [True, False])
def test_labels(debias: bool) -> None:
    """Against the twin, with gradients, and in the plan."""
    x, y, a, b = (part.requires_grad_() for part in clouds())
    costs = torch.tensor([[0.0, 0.5, 1.0], [0.5, 0.0, 0.2], [1.0, 0.2, 0.0]])
    labels: dict[str, Any] = {"x_labels": torch.arange(12) % 3, "y_labels": torch.arange(9) // 3}
    labels["label_cost"] = costs
    options: dict[str, Any] = {"blur": 0.6, "debias": debias, "tol": 1e-12, **labels}
    value = sinkhorn_divergence(x, y, a=a, b=b, **options)
    twin = reference.sinkhorn_divergence(x, y, a=fitting(a, None), b=fitting(b, None), **options)
    torch.testing.assert_close(value, twin, **CLOSE)
    for one, other in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(twin, (x, y)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    solution = sinkhorn_potentials(x, y, a=a, b=b, **options)
    row = apply_plan(x, y, torch.ones_like(b), solution, a=a, b=b, blur=0.6, **labels)
    torch.testing.assert_close(row, a, rtol=1e-9, atol=1e-12)
    back = apply_plan(x, y, torch.ones_like(a), solution, a=a, b=b, blur=0.6, transpose=True, **labels)
    torch.testing.assert_close(back, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("extra", ["labels", "mass"])
def test_what_has_no_second_order_raises(extra: str) -> None:
    x, y, _, _ = clouds()
    options: dict[str, Any] = {"debias": False, "blur": 0.5}
    if extra == "mass":
        options["mass"] = 0.5
    else:
        labels = torch.zeros(12, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)
        options |= {"x_labels": labels[0], "y_labels": labels[1], "label_cost": torch.zeros(1, 1)}
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn_divergence(x, y, **options), y, create_graph=True)
    with pytest.raises(RuntimeError, match="not offered with mass or label_cost"):
        torch.autograd.grad(gradient.square().sum(), y)


def test_warm_start() -> None:
    x, y, a, b = clouds(40, 30)
    options: dict[str, Any] = {"a": a, "b": b, "blur": 0.3, "tol": 1e-9, "max_iterations": 5000}
    cold = sinkhorn_potentials(x, y, **options)
    before = cold.f.clone()
    warm = sinkhorn_potentials(x, y, start=cold, **options)
    assert torch.equal(cold.f, before)
    assert int(warm.iterations) <= 3 < int(cold.iterations)
    torch.testing.assert_close(warm.value, cold.value, rtol=1e-8, atol=0)
    moved = sinkhorn_potentials(x + 1e-3, y, start=cold, **options)
    fresh = sinkhorn_potentials(x + 1e-3, y, **options)
    assert int(moved.iterations) < int(fresh.iterations)
    torch.testing.assert_close(moved.value, fresh.value, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_tolerance_and_cap(dtype: torch.dtype) -> None:
    x, y, a, b = (part.to(dtype) for part in clouds(40, 30))
    tols = (1e-2, 1e-4, 1e-6)
    counts = []
    for tol in tols:
        solution = sinkhorn_potentials(x, y, a=a, b=b, blur=0.3, tol=tol)
        assert float(solution.error) <= tol
        assert bool(solution.converged)
        counts.append(int(solution.iterations))
    assert counts == sorted(set(counts))
    capped = sinkhorn_potentials(x, y, a=a, b=b, blur=0.3, tol=1e-6, max_iterations=counts[0])
    assert float(capped.error) > 1e-6
    assert not bool(capped.converged)
    assert int(capped.iterations) <= counts[0] + 1
    loose = sinkhorn_potentials(x, y, a=a, b=b, blur=0.02)
    assert bool(loose.converged) == (float(loose.error) <= 1e-3)


def test_the_cached_term() -> None:
    x, y = rows(43, 5), rows(19, 5, seed=1)
    options: dict[str, Any] = {**RAGGED, "blur": 1.5, "tol": 1e-10}
    own = {**options, "y_offsets": options["x_offsets"]}
    xx = sinkhorn_divergence(x, x, debias=False, **own)
    y.requires_grad_()
    whole, cached, without = (sinkhorn_divergence(x, y, xx=term, **options) for term in (None, xx, False))
    torch.testing.assert_close(cached, whole, rtol=1e-9, atol=1e-11)
    shared = torch.tensor(RAGGED["x_offsets"]).diff().ne(0) & torch.tensor(RAGGED["y_offsets"]).diff().ne(0)
    torch.testing.assert_close(without, whole + torch.where(shared, xx / 2, 0.0), rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(value.sum(), y)[0] for value in (whole, cached, without)]
    torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)
    torch.testing.assert_close(gradients[2], gradients[0], **CLOSE)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rows_of_weight_zero(p: int, dtype: torch.dtype) -> None:
    """Are as if they were not there, and their potentials and derivatives are those of the extension."""
    x, y, a, b = (part.to(dtype) for part in clouds())
    a, b = a.clone(), b.clone()
    a[3] = b[0] = b[5] = 0
    a, b = (fitting(w, None) for w in (a, b))  # type: ignore[assignment]
    tol = 1e-12 if dtype == torch.float64 else 1e-6
    options: dict[str, Any] = {"p": p, "blur": 0.5, "tol": tol, "max_iterations": 5000}
    kept_x, kept_y = a > 0, b > 0
    x.requires_grad_()
    results = []
    for left, right, u, v in ((x, y, a, b), (x[kept_x], y[kept_y], a[kept_x], b[kept_y])):
        value = sinkhorn_divergence(left, right, a=u, b=v, **options)
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        (second,) = torch.autograd.grad((first * torch.sin(torch.arange(36.0).reshape(12, 3))).sum(), x)
        results.append((value, first, second))
    close = {"rtol": 1e-8, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **close)
    solution = sinkhorn_potentials(x.detach(), y, a=a, b=b, **options)
    cost = reference.transport_cost(x.detach(), y, p)
    eps = 0.5**p
    extended = -eps * torch.logsumexp((solution.g - cost[3]) / eps + b.log(), 0)
    torch.testing.assert_close(solution.f[3], extended, **close)


@pytest.mark.parametrize("p", [1, 2])
def test_duplicates(p: int) -> None:
    """Two equal rows are one row of their weight."""
    x, y, a, b = clouds()
    twice = torch.cat([x, x[:4]])
    halves = torch.cat([a[:4] / 2, a[4:], a[:4] / 2])
    options: dict[str, Any] = {"p": p, "blur": 0.4, "tol": 1e-12, "max_iterations": 5000}
    one = sinkhorn_divergence(x, y, a=a, b=b, **options)
    torch.testing.assert_close(sinkhorn_divergence(twice, y, a=halves, b=b, **options), one, **CLOSE)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("distance", [1e2, 1e4])
def test_far_apart(p: int, distance: float) -> None:
    """Clouds a multiple of the blur apart: exponents far outside of float32's range."""
    x, y = rows(30, 3).float(), (rows(25, 3, seed=1) + distance).float()
    x.requires_grad_()
    value = sinkhorn_divergence(x, y, p=p, blur=0.05)
    twin = reference.sinkhorn_divergence(x.detach().double(), y.double(), p=p, blur=0.05)
    torch.testing.assert_close(value.double(), twin, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(value, x)
    assert bool(gradient.isfinite().all())
    direction = x.detach().mean(0) - y.mean(0)
    push = direction if p == 2 else direction / direction.norm()
    torch.testing.assert_close(gradient.sum(0), push, rtol=1e-2, atol=1e-3)


@LONG
def test_little_blur() -> None:
    """eps = 1e-4 diameter^2 in float64."""
    x, y, a, b = clouds(60, 50, 2)
    diameter = reference.box_diameter(x, y)
    options: dict[str, Any] = {"a": a, "b": b, "blur": 0.01 * diameter, "scaling": 0.9}
    ours, twin = sinkhorn_potentials(x, y, **options), reference.sinkhorn_potentials(x, y, **options)
    torch.testing.assert_close(ours.value, twin.value, **CLOSE)
    torch.testing.assert_close(ours.f, twin.f, **CLOSE)
    solved = sinkhorn_potentials(x, y, tol=1e-6, max_iterations=100000, **options)
    assert bool(solved.converged)
    row = apply_plan(x, y, torch.ones_like(b), solved, a=a, b=b, blur=options["blur"])
    assert (row - a).abs().sum() < 1e-5


@pytest.mark.parametrize("p", [1, 2])
def test_all_points_in_one_place(p: int) -> None:
    """A box without size: eps begins and ends at blur^p."""
    x = rows(1, 3).repeat(5, 1).requires_grad_()
    solution = sinkhorn_potentials(x, x.detach()[:4], p=p, blur=0.5)
    assert solution.value.abs() < 1e-14
    assert solution.f.detach().abs().max() < 1e-14
    assert not torch.autograd.grad(solution.value, x)[0].abs().sum()


def test_layouts_agree() -> None:
    """Three problems alone, in a batch and packed."""
    x, y = rows(3, 9, 4), rows(3, 6, 4, seed=1)
    options: dict[str, Any] = {"blur": 0.8, "p": 1}
    alone = torch.stack([sinkhorn_divergence(x[c], y[c], **options) for c in range(3)])
    batch = sinkhorn_divergence(x, y, **options)
    ends = {"x_offsets": [0, 9, 18, 27], "y_offsets": [0, 6, 12, 18]}
    packed = sinkhorn_divergence(x.reshape(27, 4), y.reshape(18, 4), **ends, **options)
    assert torch.equal(batch, packed)
    torch.testing.assert_close(batch, alone, rtol=1e-13, atol=1e-15)
    solution = sinkhorn_potentials(x, y, **options)
    assert solution.f.shape == (3, 9)
    assert solution.g_self is not None
    assert solution.g_self.shape == (3, 6)
    assert solution.iterations.shape == solution.converged.shape == (3,)
    image = apply_plan(x, y, y, solution, normalize=True, **options)
    assert image.shape == x.shape


def test_nested() -> None:
    parts_x, parts_y = [rows(n, 3) for n in (4, 7)], [rows(n, 3, seed=1) for n in (5, 2)]
    x, y = (torch.nested.nested_tensor(parts, layout=torch.jagged) for parts in (parts_x, parts_y))
    solution = sinkhorn_potentials(x, y, blur=0.7)
    each = [sinkhorn_potentials(i, j, blur=0.7) for i, j in zip(parts_x, parts_y, strict=True)]
    torch.testing.assert_close(solution.value, torch.stack([s.value for s in each]), **CLOSE)
    torch.testing.assert_close(solution.f.values(), torch.cat([s.f for s in each]), **CLOSE)
    image = apply_plan(x, y, y, solution, blur=0.7, normalize=True)
    assert image.is_nested
    torch.testing.assert_close(image.values()[:4].mean(0), image.unbind()[0].mean(0))


@LONG
@pytest.mark.parametrize("segments", [1, 12])
def test_threads_do_not_matter(segments: int) -> None:
    x, y = rows(segments, 150, 40).float(), rows(segments, 130, 40, seed=1).float()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
        value, f, g = sinkhorn_potentials(*leaves, blur=3.0)[:3]
        first = torch.autograd.grad(value.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(part.square().sum() for part in first), leaves)
        results.append(tuple(part.detach() for part in (value, f, g, *first, *second)))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@LONG
@pytest.mark.parametrize("budget", [0, 1 << 26])
def test_the_cost_budget_changes_nothing(budget: int) -> None:
    x, y = rows(1100, 20).float(), rows(1050, 20, seed=1).float()
    value = sinkhorn_divergence(x, y, blur=2.0, cost_budget=budget)
    twin = reference.sinkhorn_divergence(x.double(), y.double(), blur=2.0)
    torch.testing.assert_close(value.double(), twin, rtol=1e-5, atol=1e-5)


@LONG
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_the_potentials_have_derivatives(p: int, reach: Any) -> None:
    x, y, a, b = (part.requires_grad_() for part in clouds(5, 4))

    def call(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        if reach is None:
            a, b = a / a.sum(), b / b.sum()
        options = {"p": p, "reach": reach, "blur": 0.8, "tol": 1e-13, "max_iterations": 20000}
        return tuple(sinkhorn_potentials(x, y, a=a, b=b, **options)[1:5])  # type: ignore[return-value]

    assert torch.autograd.gradcheck(call, (x, y, a, b), fast_mode=True)


@LONG
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize("debias", [True, False])
def test_second_derivatives(p: int, reach: Any, debias: bool) -> None:
    """All of x, y, a and b, mixed ones too, against differences of gradients."""
    leaves = [part.requires_grad_() for part in clouds(5, 4)]

    def call(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if reach is None:
            a, b = a / a.sum(), b / b.sum()
        options = {"p": p, "reach": reach, "debias": debias, "blur": 0.7}
        return sinkhorn_divergence(x, y, a=a, b=b, tol=1e-13, max_iterations=20000, **options)

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def test_ragged_second_derivatives_are_those_of_the_segments() -> None:
    """Conjugate gradients of all segments at once, with empty ones among them."""
    x, y = rows(43, 5).requires_grad_(), rows(19, 5, seed=1).requires_grad_()

    def product(value: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
        probe = sum((g * torch.cos(torch.arange(g.numel()).reshape(g.shape))).sum() for g in first)
        return torch.autograd.grad(probe, (x, y))

    options: dict[str, Any] = {"blur": 2.0, "tol": 1e-13, "max_iterations": 5000}
    ends = zip(*(torch.tensor(RAGGED[k]).unfold(0, 2, 1).tolist() for k in RAGGED), strict=True)
    alone = [sinkhorn_divergence(x[i:j], y[k:m], **options) for (i, j), (k, m) in ends]
    for one, other in zip(
        product(sinkhorn_divergence(x, y, **RAGGED, **options)), product(torch.stack(alone)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_equations_that_do_not_converge_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoct.ops._equations.MOST_ITERATIONS", 2)
    x, y, _, _ = clouds(30, 20)
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn_divergence(x, y, blur=0.1), y, create_graph=True)
    with pytest.raises(RuntimeError, match="did not converge in 2 steps"):
        torch.autograd.grad(gradient.square().sum(), y)


def test_sinkhorn_loss() -> None:
    x, y = rows(3, 9, 4), rows(3, 6, 4, seed=1, shift=1.0)
    a, b = (fitting(rows(3, n).abs() + 0.1, None) for n in (9, 6))
    box = reference.box_diameter(x.reshape(-1, 4), y.reshape(-1, 4))
    pooled = sinkhorn_divergence(x, y, a=a, b=b, diameter=box)
    each = decoct.SinkhornLoss(reduction="none")(a, x, b, y)
    torch.testing.assert_close(each, pooled, **CLOSE)
    assert not torch.allclose(each, sinkhorn_divergence(x, y, a=a, b=b), **CLOSE)
    assert torch.equal(decoct.SinkhornLoss()(x, y, a=a, b=b), each.sum())
    assert torch.equal(decoct.SinkhornLoss(reduction="mean")(a, x, b, y), each.mean())
    single = decoct.SinkhornLoss(p=1, blur=0.3, reach=2.0)
    assert torch.equal(single(x[0], y[0]), sinkhorn_divergence(x[0], y[0], p=1, blur=0.3, reach=2.0))
    assert repr(single) == "SinkhornLoss(p=1, blur=0.3, reach=2.0, reduction='sum')"
    assert repr(decoct.SinkhornLoss()) == "SinkhornLoss(p=2, blur=0.05, reduction='sum')"
    with pytest.raises(TypeError, match=r"clouds must be \(x, y\) or \(a, x, b, y\), got 3 tensors"):
        single(a, x, y)
    with pytest.raises(TypeError, match="a must be given once"):
        single(a, x, b, y, a=a)
    with pytest.raises(ValueError, match="SinkhornLoss: blur must be a positive number, got 0"):
        decoct.SinkhornLoss(blur=0)
    with pytest.raises(ValueError, match="SinkhornLoss: reduction must be"):
        decoct.SinkhornLoss(reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"SinkhornLoss: y must be \(B, M, D\)"):
        single(x, y[0])
