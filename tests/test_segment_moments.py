"""Moments of segments: closed forms, clipping, and agreement of the two second moments."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import decoct
from table import rows

pytestmark = pytest.mark.usefixtures("backend")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one backend for all examples
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.integers(1, 9),
    st.floats(0.1, 10),
    st.integers(0, 2**31),
)
def test_no_row_moves_a_clipped_sum_by_more(counts: list[int], d: int, limit: float, seed: int) -> None:
    segments = decoct.Segments.from_lengths(counts)
    x = rows(sum(counts), d, seed=seed) * 5
    options = {"x_offsets": segments, "max_norm": limit, "reduction": "sum"}
    total = decoct.segment_moments(x, **options)
    assert torch.linalg.vector_norm(total, dim=1).le(segments.lengths.double() * limit * (1 + 1e-12)).all()
    for k in range(len(x)):
        changed = x.clone()
        changed[k] = 0
        by = torch.linalg.vector_norm(total - decoct.segment_moments(changed, **options), dim=1)
        assert float(by.max()) <= limit * (1 + 1e-9)
        assert int((by > 0).sum()) <= 1  # of its own segment


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_plain_means(dtype: torch.dtype) -> None:
    """Linear in the rows: right means, and one over the rows of the segment as gradient."""
    x = rows(43, 5).to(dtype).requires_grad_()
    ends = [0, 3, 3, 10, 41, 43]
    means = decoct.segment_moments(x, x_offsets=ends)
    for c, (begin, end) in enumerate(itertools.pairwise(ends)):
        expected = x[begin:end].double().sum(0) / max(end - begin, 1)
        torch.testing.assert_close(means[c].double(), expected, rtol=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(means.sum(), x)
    assert gradient.dtype == dtype
    each = torch.tensor([1 / 3] * 3 + [1 / 7] * 7 + [1 / 31] * 31 + [1 / 2] * 2)
    torch.testing.assert_close(gradient, each.to(dtype)[:, None].expand(43, 5), rtol=1e-2, atol=0)


def test_short_rows_are_left_alone() -> None:
    x = rows(30, 6)
    longest = float(x.norm(dim=1).max())
    plain = decoct.segment_moments(x, second="full")
    same = decoct.segment_moments(x, second="full", max_norm=longest * 1.001)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))


def test_lengths_that_squares_cannot_hold() -> None:
    """Rows are clipped to their directions, however long."""
    for size in (1e25, 1e-25, 5e37):
        x = torch.tensor([[3.0, 4.0], [-4.0, 3.0]]) * size
        clipped = decoct.segment_moments(x, max_norm=size / 1e4, reduction="sum")
        torch.testing.assert_close(clipped / size, torch.tensor([-0.2, 1.4]) / 1e4, rtol=1e-6, atol=0)


def test_zero_rows() -> None:
    x = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    value = decoct.segment_moments(x, max_norm=1.0)
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, torch.full_like(x, 1 / 3))
    assert not torch.autograd.grad(gradient.sum(), x, allow_unused=True)[0].any()


def test_the_diagonal_is_that_of_the_full_moment() -> None:
    x, ends = rows(40, 7), [0, 3, 3, 30, 40]
    options = {"x_offsets": ends, "max_norm": 2.0}
    mean, full = decoct.segment_moments(x, second="full", **options)
    same, diagonal = decoct.segment_moments(x, second="diagonal", **options)
    assert torch.equal(mean, same)
    torch.testing.assert_close(full.diagonal(dim1=1, dim2=2), diagonal, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(full, full.mT, rtol=1e-12, atol=1e-14)
    covariance = full - mean[:, :, None] * mean[:, None, :]
    assert torch.linalg.eigvalsh(covariance[[0, 2, 3]]).min() > -1e-12


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite(bad: float) -> None:
    x = rows(20, 5)
    clean = decoct.segment_moments(x, x_offsets=[0, 6, 12, 20], second="diagonal", max_norm=2.0)
    x[7, 2] = bad
    ours = decoct.segment_moments(x, x_offsets=[0, 6, 12, 20], second="diagonal", max_norm=2.0)
    for part, other in zip(ours, clean, strict=True):
        assert part[1].isnan().any()
        assert torch.equal(part[[0, 2]], other[[0, 2]])


# torch's own forward-mode rules use torch.jit.script when they load.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_transforms() -> None:
    x = rows(9, 4)

    def value(rows: torch.Tensor) -> torch.Tensor:
        mean, second = decoct.segment_moments(rows, second="full", max_norm=1.5)
        return mean.sum() + second.square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(value)(x), expected)
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.func.vmap(value)(batch), torch.stack([value(x), value(2 * x)]))
    along = torch.func.jvp(value, (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(along, expected.sum())
