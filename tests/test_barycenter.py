"""Free-support barycentres against their twin, closed forms and laws."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import decoct
from decoct import reference
from table import DTYPES, on_device, rows

pytestmark = pytest.mark.usefixtures("backend")
LONG = pytest.mark.usual_backends("cpu")
barycenter = on_device(decoct.free_support_barycenter)
divergence = on_device(decoct.sinkhorn_divergence)
EXACT: dict[str, Any] = {"marginal_tol": 1e-11, "inner_iterations": 20_000, "tol": 1e-9}
SIZES = {"balanced": "uniform", "learned": "learned"}


def ends(*counts: int) -> list[int]:
    return list(itertools.accumulate(counts, initial=0))


def masses(*shape: int, seed: int = 0) -> Tensor:
    return rows(*shape, seed=seed).abs() + 0.1


def clusters(*, dim: int = 3, counts: tuple[int, ...] = (12, 6, 2), gap: float = 30.0) -> list[Tensor]:
    """Far from each other, each with rows around a corner."""
    return [rows(n, dim, seed=n) + gap * torch.eye(dim, dtype=torch.float64)[c] for c, n in enumerate(counts)]


def twins(
    x: Tensor,
    a: Tensor,
    groups: list[list[tuple[int, int, float]]],
    points: Tensor,
    b: Tensor,
    where: list[int],
    **more: Any,
) -> list[Any]:
    """A twin for each barycentre, of measures (first row, last, weight)."""
    made = []
    for g, measures in enumerate(groups):
        parts = [(x[i:j], a[i:j] / a[i:j].sum(), w / sum(m[2] for m in measures)) for i, j, w in measures]
        own = b[where[g] : where[g + 1]]
        made.append(
            reference.free_support_barycenter(parts, points[where[g] : where[g + 1]], own / own.sum(), **more)
        )
    return made


@pytest.mark.parametrize("weights", ["uniform", "learned", "given"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_turns_are_those_of_the_twin(weights: str, dtype: torch.dtype) -> None:
    """Ragged in rows, measures and points, after three turns while blur falls."""
    learned = weights == "learned"
    counts, sizes, dim = (7, 30, 1, 12, 9), (4, 3, 5), 9
    x = rows(sum(counts), dim).to(dtype)
    a, b, w = masses(sum(counts)), masses(sum(sizes), seed=1), masses(len(counts), seed=2)
    points = rows(sum(sizes), dim, seed=3)
    bounds, where = ends(*counts), ends(*sizes)
    measures = [0, 2, 3, 5]
    if learned:  # of one measure each
        bounds, measures, w = [bounds[m] for m in measures], [0, 1, 2, 3], torch.ones(3)
    wide = dtype == torch.float64
    exact = dict(EXACT) if wide else {"marginal_tol": 1e-6, "inner_iterations": 500}
    kind = torch.float64 if wide else torch.float32
    found = barycenter(
        x,
        sizes,
        a=a.to(kind),
        x_offsets=bounds,
        measures=None if learned else measures,
        measure_weights=w,
        weights=b.to(kind) if weights == "given" else weights,
        init=points.to(kind),
        blur=1.5,
        first_blur=2.0,
        scaling=0.9,
        iterations=3,
        step=0.8,
        **exact,
    )
    assert found.points.dtype == found.masses.dtype == found.cost.dtype == kind
    groups = [
        [(bounds[m], bounds[m + 1], float(w[m])) for m in range(i, j)]
        for i, j in itertools.pairwise(measures)
    ]
    b = b.to(kind).double() if weights == "given" else torch.ones_like(b)
    expected = twins(
        x.double(),
        a.to(kind).double(),
        groups,
        points,
        b,
        where,
        blurs=[2.0, 1.8, 1.62, 1.5],
        learned=learned,
        step=0.8,
    )
    # A plan is as wrong, relatively, as the rounding of what its exponents are made of, products of rows and
    # points over eps, and the marginal that it may miss; points by that times the rows' distances. Turns add
    # up.
    largest = float(x.double().norm(dim=1).max() * points.norm(dim=1).max()) / 1.5**2
    share = torch.finfo(kind).eps * 2 * (largest + 4) + exact["marginal_tol"]
    close = {"rtol": 0.0, "atol": 4 * share * float(torch.cdist(x.double(), points).max())}
    for g, twin in enumerate(expected):
        own = slice(where[g], where[g + 1])
        torch.testing.assert_close(found.points[own].double(), twin.points, **close)
        torch.testing.assert_close(found.masses[own].double(), twin.masses, **close)
        torch.testing.assert_close(found.cost[g].double(), twin.cost, **close)
    assert found.iterations.tolist() == [3, 3, 3]
    assert found.offsets.tolist() == where
    assert not found.converged.any()


@pytest.mark.parametrize("weights", ["uniform", "learned"])
@pytest.mark.parametrize("dim", [1, 2, 40])
def test_one_point_is_the_mean(weights: Any, dim: int) -> None:
    x, a = rows(20, dim, shift=3.0), masses(20)
    found = barycenter(x, 1, a=a, weights=weights, blur=0.7, **EXACT)
    share = a / a.sum()
    mean = share @ x
    torch.testing.assert_close(found.points, mean[None])
    torch.testing.assert_close(found.masses, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(found.cost, share @ (x - mean).square().sum(1) / 2)
    assert bool(found.converged)
    assert found.points.shape == (1, dim)
    assert found.cost.shape == ()


def test_clusters_are_found_with_their_masses() -> None:
    """k-means, where eps is far below the distances."""
    parts = clusters()
    x = torch.cat(parts)
    found = barycenter(x, 3, weights="learned", blur=0.5, **EXACT)
    order = found.points.argmax(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(found.points[order.argsort()], torch.stack([part.mean(0) for part in parts]))
    expected = torch.tensor([len(part) / len(x) for part in parts], dtype=torch.float64)
    torch.testing.assert_close(found.masses[order.argsort()], expected)
    # Each row pays for the entropy of one choice out of three with these masses.
    inertia = sum((part - part.mean(0)).square().sum() / 2 for part in parts) / len(x)
    entropy = -(expected * expected.log()).sum() * 0.25
    torch.testing.assert_close(found.cost, inertia + entropy)


def test_uniform_masses_share_equal_clusters() -> None:
    parts = clusters(counts=(8, 8, 8))
    found = barycenter(torch.cat(parts), 3, blur=1.0, **EXACT)
    order = found.points.argmax(1).argsort()
    torch.testing.assert_close(found.points[order], torch.stack([part.mean(0) for part in parts]))
    assert torch.equal(found.masses, torch.full((3,), 1 / 3, dtype=torch.float64))


@LONG
@pytest.mark.parametrize("k", [2, 7, 23])
def test_masses_are_kept_after_few_iterations(k: int) -> None:
    """Of points that share clusters unevenly, which Sinkhorn's iteration takes hundreds for."""
    x = torch.cat(clusters(counts=(40, 25, 15), gap=4.0))
    options = {"init": x[:: len(x) // k][:k], "blur": 0.5, "iterations": 3, "marginal_tol": 1e-10}
    few = decoct.free_support_barycenter(x, k, inner_iterations=30, **options)
    many = decoct.free_support_barycenter(x, k, inner_iterations=20_000, **options)
    torch.testing.assert_close(few.points, many.points, rtol=0, atol=1e-7)
    torch.testing.assert_close(few.cost, many.cost, rtol=1e-9, atol=0)


def test_a_moved_copy_moves_the_points_by_its_share() -> None:
    """A translation adds to the cost what depends on one side alone, so that no plan changes."""
    x, shift = rows(15, 4), torch.tensor([3.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    first = rows(3, 4, seed=5)
    options = {"blur": 1.0, "iterations": 4, **EXACT}
    alone = barycenter(x, 3, init=first, **options)
    two = barycenter(
        torch.cat([x, x + shift]),
        3,
        init=first[None] + shift / 4,
        x_offsets=[0, 15, 30],
        measures=[0, 2],
        measure_weights=torch.tensor([3.0, 1.0]),
        **options,
    )
    torch.testing.assert_close(two.points[0], alone.points + shift / 4)


def assert_cost_is_that_of_the_result(x: Tensor, k: int) -> None:
    for weights in ("uniform", "learned"):
        found = barycenter(x, k, weights=weights, blur=1.5, iterations=2000, tol=1e-5, marginal_tol=1e-6)
        again = divergence(x, found.points, b=found.masses, blur=1.5, debias=False, tol=2e-6)
        assert bool(found.converged)
        # A dual value at potentials that miss a share of the mass is off by that times their range.
        largest = float(torch.cdist(x, found.points).square().max()) / 2
        close = (1e-6 + 2e-6 + 8 * torch.finfo(x.dtype).eps) * largest
        torch.testing.assert_close(found.cost, again, rtol=0, atol=close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_cost_is_that_of_the_result(dtype: torch.dtype) -> None:
    assert_cost_is_that_of_the_result(rows(40, 12, dtype=dtype), 4)


@LONG
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_cost_of_more_points_than_newtons_step_is_taken_for(dtype: torch.dtype) -> None:
    assert_cost_is_that_of_the_result(rows(90, 12, dtype=dtype), 66)


@given(
    st.integers(0, 2**31),
    st.integers(1, 25),
    st.integers(1, 6),
    st.sampled_from([1, 3, 17]),
    st.sampled_from([0.3, 2.0]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@LONG
def test_cost_never_rises_with_learned_masses(seed: int, n: int, k: int, dim: int, blur: float) -> None:
    """Points and masses are each the best ones for the plans."""
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    costs = [
        float(barycenter(x, k, weights="learned", blur=blur, iterations=turns, seed=seed, tol=1e-300).cost)
        for turns in range(5)
    ]
    for before, after in itertools.pairwise(costs):
        assert after <= before + 1e-10 * (1 + abs(before))


@pytest.mark.parametrize("weights", ["uniform", "learned"])
def test_moves_with_its_rows(weights: Any) -> None:
    """Shifts and lengths of the rows are those of the result."""
    x, points = rows(30, 5), rows(4, 5, seed=1)
    options = {"weights": weights, "iterations": 5, **EXACT}
    one = barycenter(x, 4, init=points, blur=1.0, **options)
    two = barycenter(8 * x + 5, 4, init=8 * points + 5, blur=8.0, **options)
    torch.testing.assert_close(two.points, 8 * one.points + 5)
    torch.testing.assert_close(two.masses, one.masses)
    torch.testing.assert_close(two.cost, 64 * one.cost)


@pytest.mark.parametrize("weights", ["uniform", "learned"])
def test_odd_sizes(weights: Any) -> None:
    """No rows, no points, one row, more points than rows, equal rows; their neighbours are as alone."""
    counts, sizes = (0, 5, 1, 3, 6, 8), (2, 0, 3, 7, 2, 2)
    x = rows(sum(counts), 10)
    bounds, where = ends(*counts), ends(*sizes)
    x[bounds[4] : bounds[5]] = 2.5
    options = {"weights": weights, "blur": 0.8, "iterations": 3, **EXACT}
    found = barycenter(x, sizes, x_offsets=bounds, **options)
    for tensor in (found.points, found.masses, found.cost):
        assert bool(tensor.isfinite().all())
    parts = [slice(i, j) for i, j in itertools.pairwise(where)]
    assert not found.points[parts[0]].any()
    assert not found.masses[parts[0]].any()
    assert found.cost[:2].tolist() == [0, 0]
    assert found.iterations[:2].tolist() == [0, 0]
    assert found.converged[:2].all() == found.converged[0]
    torch.testing.assert_close(found.points[parts[2]], x[5:6].expand(3, -1))
    torch.testing.assert_close(found.points[parts[4]], torch.full((2, 10), 2.5, dtype=torch.float64))
    last = barycenter(x[bounds[5] :], 2, init=x[-2:], **options)
    again = barycenter(x, [0] * 5 + [2], x_offsets=bounds, init=x[-2:], **options)
    torch.testing.assert_close(again.points, last.points, rtol=1e-10, atol=1e-12)
    for size in (0, [0]):
        nothing = barycenter(x, size)
        assert nothing.points.shape == (0, 10)
        assert not nothing.cost.any()


@pytest.mark.parametrize("weights", ["uniform", "learned"])
def test_a_row_that_is_not_finite_spoils_its_own_barycentre(weights: Any) -> None:
    x = rows(3, 20, 9)
    clean = barycenter(x, 3, weights=weights, blur=1.0, iterations=3)
    for bad in (torch.nan, torch.inf):
        spoilt = x.clone()
        spoilt[1, 4, 2] = bad
        found = barycenter(spoilt, 3, weights=weights, blur=1.0, iterations=3, init=clean.points)
        same = barycenter(x, 3, weights=weights, blur=1.0, iterations=3, init=clean.points)
        assert bool(found.points[1].isnan().any())
        assert bool(found.cost[1].isnan())
        assert found.converged.tolist()[1] is False
        for one, other in zip(found, same, strict=True):
            if one.dim() and len(one) == 3:
                assert torch.equal(one[[0, 2]], other[[0, 2]])


def test_zero_masses() -> None:
    """Rows without mass are not there; points without mass stay where they are."""
    x, a = rows(12, 4), masses(12)
    a[8:] = 0
    options = {"blur": 1.0, "iterations": 4, **EXACT}
    for weights in ("uniform", "learned"):
        points = rows(3, 4, seed=2)
        torch.testing.assert_close(
            barycenter(x, 3, a=a, init=points, weights=weights, **options)[:2],
            barycenter(x[:8], 3, a=a[:8], init=points, weights=weights, **options)[:2],
        )
    b = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    found = barycenter(x, 3, init=points, weights=b, **options)
    assert torch.equal(found.points[1], points[1])
    fewer = barycenter(x, 2, init=points[::2], **options)
    torch.testing.assert_close(found.points[::2], fewer.points)
    rows_drawn = barycenter(x, 6, a=a, iterations=0).points
    assert all((row == x[:8]).all(1).any() for row in rows_drawn)


def test_forms_of_the_rows() -> None:
    """A batch, packed rows, a nested tensor, and any layout in memory give the same bits."""
    x = rows(3, 11, 7)
    packed, bounds = x.reshape(33, 7), ends(11, 11, 11)
    options = {"blur": 1.0, "iterations": 3}
    batch = barycenter(x, 2, **options)
    assert batch.points.shape == (3, 2, 7)
    assert batch.masses.shape == (3, 2)
    assert batch.cost.shape == batch.iterations.shape == batch.converged.shape == (3,)
    nested = torch.nested.nested_tensor_from_jagged(packed, torch.tensor(bounds))
    for found in (
        barycenter(packed, 2, x_offsets=bounds, **options),
        barycenter(packed, 2, x_offsets=decoct.Segments(bounds), **options),
        barycenter(packed.T.contiguous().T, 2, x_offsets=bounds, **options),
        barycenter(torch.cat([packed, packed], 1)[:, :7], 2, x_offsets=bounds, **options),
        barycenter(nested, 2, **options),
    ):
        for one, other in zip(found, batch, strict=True):
            assert torch.equal(one, other)
    listed = barycenter(x, [2, 2, 2], **options)
    assert torch.equal(listed.points, batch.points.reshape(6, 7))
    assert listed.offsets.tolist() == [0, 2, 4, 6]
    expanded = barycenter(x[:1].expand(3, -1, -1), 2, init=batch.points[:1].expand(3, -1, -1), **options)
    assert torch.equal(expanded.points[0], expanded.points[2])


@LONG
def test_threads_change_no_bit() -> None:
    x = rows(900, 33)
    bounds = ends(300, 0, 250, 250, 100)
    for offsets in (bounds, [0, 900]):
        for weights in ("uniform", "learned"):
            found = []
            for threads in (1, 2, 3, 1):
                torch.set_num_threads(threads)
                found.append(
                    barycenter(x.float(), 5, x_offsets=offsets, weights=weights, blur=2.0, iterations=5)
                )
            for other in found[1:]:
                for one, two in zip(found[0], other, strict=True):
                    assert torch.equal(one, two)


def test_start() -> None:
    """k-means++ finds each of far clusters; both ways draw rows, by their seed alone, and each once where
    they go round."""
    x = torch.cat(clusters(counts=(30, 30, 30), gap=1000.0))
    for seed in range(5):
        points = barycenter(x, 3, iterations=0, seed=seed).points
        assert sorted(points.argmax(1).tolist()) == [0, 1, 2]
    for init in ("rows", "kmeans++"):
        drawn = barycenter(x[:20], 20, iterations=0, init=init, seed=3)
        assert sorted(drawn.points.tolist()) == sorted(x[:20].tolist())
        assert torch.equal(drawn.points, barycenter(x[:20], 20, iterations=0, init=init, seed=3).points)
        assert not torch.equal(drawn.points, barycenter(x[:20], 20, iterations=0, init=init, seed=4).points)


def test_turns_end_at_the_tolerance() -> None:
    x = rows(2, 40, 6)
    found = barycenter(x, 3, blur=1.0, first_blur=1.6, scaling=0.8, tol=1e-3, iterations=500)
    assert bool(found.converged.all())
    assert int(found.iterations.min()) >= 4
    assert int(found.iterations.max()) < 500
    fewer = barycenter(
        x, 3, blur=1.0, first_blur=1.6, scaling=0.8, tol=1e-3, iterations=int(found.iterations.max()) - 1
    )
    assert not bool(fewer.converged.all())
    longer = barycenter(x, 3, blur=1.0, tol=1e-12, iterations=500, init=found.points, marginal_tol=1e-9)
    assert float((longer.points - found.points).norm(dim=-1).max()) < 0.1


# torch's own forward-mode rules use torch.jit.script when they load.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_derivatives_are_refused() -> None:
    x = rows(8, 3).requires_grad_()
    found = barycenter(x, 2, blur=1.0, iterations=2)
    for part in (found.points, found.cost):
        with pytest.raises(RuntimeError, match="not offered"):
            part.sum().backward()
    with pytest.raises(RuntimeError, match="not offered"):
        torch.func.grad(lambda x: barycenter(x, 2, blur=1.0).cost)(x.detach())
    with pytest.raises(RuntimeError, match="not offered"):
        torch.func.jvp(lambda x: barycenter(x, 2, blur=1.0).cost, (x.detach(),), (x.detach(),))


def test_transforms_and_compilers() -> None:
    x = rows(4, 9, 3)
    options = {"blur": 1.0, "iterations": 3}
    points = rows(4, 2, 3, seed=1)
    expected = barycenter(x, 2, init=points, **options)
    mapped = torch.func.vmap(lambda x, y: tuple(barycenter(x, 2, init=y, **options)[:2]))(x, points)
    for one, other in zip(mapped, expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        cast = barycenter(x, 2, init=points, **options)
    assert torch.equal(cast.points, expected.points)
    compiled = torch.compile(
        lambda x, y: decoct.free_support_barycenter(x, 2, init=y, **options).points,
        fullgraph=True,
        backend="eager",
    )
    assert torch.equal(on_device(compiled)(x, points), expected.points)


@LONG
def test_registered_op_is_sound() -> None:
    x = rows(12, 3)
    from decoct.ops._barycenter import Options

    numbers = Options(1.0, 1.0, 0.5, 1.0, 1e-3, 1e-3, 2, 10, True).packed()
    arguments = (x, None, None, 3, None, None, None, None, None, 3, 6, "kmeans++", 0, numbers)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.decoct.free_support_barycenter.default, arguments, test_utils=checks)


X = rows(6, 3)
WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "x must be a tensor, got list", {"x": [[1.0]]}),
    (TypeError, "x must be float64, float32, float16 or bfloat16, got int64", {"x": torch.ones(3, 2).long()}),
    (ValueError, r"x must be \(N, D\) or \(B, N, D\), got \(3,\)", {"x": torch.ones(3)}),
    (ValueError, "x must be at least one column wide", {"x": torch.ones(3, 0)}),
    (ValueError, r"x must be \(N, D\) with x_offsets", {"x": X[None], "x_offsets": [0, 6]}),
    (ValueError, "x_offsets must end at N=6, the rows of x, got 5", {"x_offsets": [0, 5]}),
    (ValueError, "x_offsets must start at 0 and never fall", {"x_offsets": [0, 7, 6]}),
    (
        ValueError,
        "measures must end at C=2, the segments of x, got 1",
        {"x_offsets": [0, 3, 6], "measures": [0, 1]},
    ),
    (TypeError, "size must be an int or a sequence of S=1 ints, not negative, got float", {"size": 2.0}),
    (TypeError, "size must be .* got bool", {"size": True}),
    (TypeError, "size must be .* got str", {"size": "ab"}),
    (TypeError, "size must be", {"size": [1.5]}),
    (ValueError, "size must be .* got -1", {"size": -1}),
    (ValueError, r"size must be .* got \[1, 2\]", {"size": [1, 2]}),
    (ValueError, r"a must be \(N,\) with N=6 as in x, got \(5,\)", {"a": torch.ones(5)}),
    (ValueError, "a must not be negative, got -1", {"a": -torch.ones(6)}),
    (
        ValueError,
        r"measure_weights must be \(C,\) with C=1, the segments of x, got \(2,\)",
        {"measure_weights": torch.ones(2)},
    ),
    (ValueError, "measure_weights must not be negative", {"measure_weights": -torch.ones(1)}),
    (ValueError, "weights must be 'uniform', 'learned' or a tensor, got 'equal'", {"weights": "equal"}),
    (
        ValueError,
        "weights must be 'uniform' or a tensor with measures, got 'learned'",
        {"weights": "learned", "x_offsets": [0, 3, 6], "measures": [0, 2]},
    ),
    (ValueError, r"weights must be \(2,\) as masses are returned, got \(3,\)", {"weights": torch.ones(3)}),
    (ValueError, "weights must not be negative", {"weights": -torch.ones(2)}),
    (ValueError, r"init must be 'kmeans\+\+', 'rows' or a tensor, got 'random'", {"init": "random"}),
    (ValueError, r"init must be \(2, 3\) as points are returned, got \(2, 4\)", {"init": torch.ones(2, 4)}),
    (
        TypeError,
        "init must be float64, float32, float16 or bfloat16, got int64",
        {"init": torch.ones(2, 3).long()},
    ),
    (ValueError, "p must be 2, got 1", {"p": 1}),
    (ValueError, "blur must be a positive number, got 0", {"blur": 0}),
    (TypeError, "blur must be a positive number, got str", {"blur": "1"}),
    (ValueError, "first_blur must be at least blur=1.0, got 0.5", {"blur": 1.0, "first_blur": 0.5}),
    (ValueError, "scaling must be a number between 0 and 1, got 1", {"scaling": 1.0}),
    (ValueError, "step must be a positive number, at most 1, got 1.5", {"step": 1.5}),
    (ValueError, "iterations must be at least 0, got -1", {"iterations": -1}),
    (TypeError, "iterations must be an int, got float", {"iterations": 3.0}),
    (ValueError, "inner_iterations must be at least 1, got 0", {"inner_iterations": 0}),
    (ValueError, "tol must be a positive number or None, got 0", {"tol": 0}),
    (ValueError, "marginal_tol must be a positive number, got 0", {"marginal_tol": 0}),
    (TypeError, "seed must be an int, got float", {"seed": 1.0}),
]


@pytest.mark.parametrize(("error", "message", "change"), WRONG, ids=lambda v: str(v)[:50])
def test_wrong_arguments(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"x": X, "size": 2, **change}
    with pytest.raises(error, match=f"^free_support_barycenter: {message}"):
        decoct.free_support_barycenter(arguments.pop("x"), arguments.pop("size"), **arguments)
