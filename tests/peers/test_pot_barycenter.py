"""Free-support barycentres against POT's, at the same eps and, for exact transport, by the unregularised
objective. POT's costs are squared distances: its reg is twice eps, and it regularises by the plan's entropy,
which for given masses has the same plan as KL to a b^T."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import decoct

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def ot() -> Any:
    import ot

    return ot


def _modes(rows: int = 120, modes: int = 5, dim: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    centres = 3 * torch.randn(modes, dim, generator=generator, dtype=torch.float64)
    which = torch.randint(modes, (rows,), generator=generator)
    return centres[which] + torch.randn(rows, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("blur", [1.0, 3.0])
def test_entropic(ot: Any, blur: float) -> None:
    """Two measures with weights; the same number of turns from the same points."""
    x, z = _modes(), _modes(90) + 1
    start = x[:5].clone()
    share = torch.tensor([0.3, 0.7], dtype=torch.float64)
    theirs = ot.bregman.free_support_sinkhorn_barycenter(
        [x.numpy(), z.numpy()],
        [torch.full((len(part),), 1 / len(part), dtype=torch.float64).numpy() for part in (x, z)],
        start.numpy(),
        reg=2 * blur**2,
        weights=share.numpy(),
        numItermax=4,
        numInnerItermax=20_000,
        stopThr=1e-12,
        method="sinkhorn_log",
    )
    ours = decoct.free_support_barycenter(
        torch.cat([x, z]),
        5,
        x_offsets=[0, len(x), len(x) + len(z)],
        measures=[0, 2],
        measure_weights=share,
        init=start[None],
        blur=blur,
        iterations=4,
        tol=1e-12,
        marginal_tol=1e-11,
        inner_iterations=20_000,
    )
    torch.testing.assert_close(ours.points[0], torch.from_numpy(theirs), rtol=0, atol=1e-6)


def test_objective_of_exact_transport(ot: Any) -> None:
    """With little blur, from the same points, the unregularised objective is POT's but for a per cent."""
    x = _modes()
    start = decoct.free_support_barycenter(x, 5, iterations=0).points
    a = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    b = torch.full((5,), 1 / 5, dtype=torch.float64)
    theirs = ot.lp.free_support_barycenter([x.numpy()], [a.numpy()], start.numpy(), numItermax=200)
    ours = decoct.free_support_barycenter(x, 5, init=start, blur=0.3, inner_iterations=2000)

    def objective(points: Tensor) -> float:
        return float(ot.emd2(a, b, torch.cdist(x, points).square()))

    assert objective(ours.points) <= 1.01 * objective(torch.from_numpy(theirs))
