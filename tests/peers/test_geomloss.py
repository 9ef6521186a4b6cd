"""`SinkhornLoss` in the place of GeomLoss's `SamplesLoss("sinkhorn")`: same arguments, same numbers.

Known differences:

* p=1: GeomLoss takes the root of max(d^2, 1e-8), so that equal rows are 1e-4 apart. Its self terms, whose
  diagonals are such pairs, and with them the debiased value, are off by some 1e-5; ours are not. In float32
  its d^2 of equal rows is what rounding leaves of |x|^2 - 2 x y + |y|^2 and its root some 1e-3: there our
  float32 is compared with its float64.
* reach: GeomLoss's gradient by the points is too small by (rho + eps / 2) / (rho + eps), rho = reach^p. The
  weight that it gives the potentials has to be rho + eps / 2 in the value and rho + eps in its derivative.
  Its `UnbalancedWeight` has a method `backward` for that, but is a torch module, whose derivative is made by
  autograd and never asks for the method. `test_gradient_with_reach` holds ours to the definition.
* batches: without a `diameter`, GeomLoss begins all of a batch at one diameter, and so does `SinkhornLoss`;
  the op beneath it, `sinkhorn_divergence`, begins each at its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import decoct

pytestmark = pytest.mark.peers

BLUR, REACH = 0.4, 1.5
# What 1e-8 under the root does to a debiased value of p=1, and to its gradient.
CLAMPED = 2e-4


@pytest.fixture(scope="module")
def samples_loss() -> Any:
    from geomloss import SamplesLoss

    return SamplesLoss


def _clouds(dtype: torch.dtype, *batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*batch, 70, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(*batch, 50, 4, generator=generator, dtype=torch.float64) * 0.8 + 0.3
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def _weights(rows: Tensor) -> Tensor:
    """Unequal ones, of total 1."""
    weights = torch.linspace(1, 3, rows.shape[-2], dtype=rows.dtype).expand(rows.shape[:-1])
    return weights / weights.sum(-1, keepdim=True)


def _results(loss: Any, x: Tensor, y: Tensor, weighted: bool) -> tuple[Tensor, Tensor, Tensor]:
    value = loss(_weights(x), x, _weights(y), y) if weighted else loss(x, y)
    return value.detach(), *torch.autograd.grad(value.sum(), (x, y))


def _compare(samples_loss: Any, x: Tensor, y: Tensor, weighted: bool, options: dict[str, Any]) -> None:
    p, reach, blur = options["p"], options["reach"], options["blur"]
    ours = _results(decoct.SinkhornLoss(**options, reduction="none"), x, y, weighted)
    assert all(result.dtype == x.dtype for result in ours)
    if p == 1 and options["debias"]:
        x, y = (rows.detach().double().requires_grad_() for rows in (x, y))
    theirs = _results(samples_loss("sinkhorn", backend="tensorized", **options), x, y, weighted)
    lost = 1.0 if reach is None else (reach**p + blur**p / 2) / (reach**p + blur**p)
    tolerance = 1e-9 if ours[0].dtype == torch.float64 else 5e-5
    if p == 1:
        tolerance = max(tolerance, CLAMPED if options["debias"] else 1e-6)
    for mine, other, factor in zip(ours, theirs, (1.0, lost, lost), strict=True):
        assert mine.shape == other.shape
        assert (mine * factor - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("weighted", [False, True], ids=["two arguments", "four arguments"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("scaling", [0.5, 0.8])
@pytest.mark.parametrize("debias", [True, False], ids=["debiased", "blunt"])
@pytest.mark.parametrize("reach", [None, REACH])
@pytest.mark.parametrize("p", [1, 2])
def test_value_and_gradient(
    samples_loss: Any,
    p: int,
    reach: float | None,
    debias: bool,
    scaling: float,
    dtype: torch.dtype,
    weighted: bool,
) -> None:
    options = {"p": p, "blur": BLUR, "reach": reach, "debias": debias, "scaling": scaling}
    _compare(samples_loss, *_clouds(dtype), weighted, options)


@pytest.mark.parametrize("blur", [0.05, 0.2, 2.0])
@pytest.mark.parametrize("diameter", [None, 7.0])
def test_schedules(samples_loss: Any, blur: float, diameter: float | None) -> None:
    options = {"p": 2, "blur": blur, "reach": None, "diameter": diameter}
    _compare(samples_loss, *_clouds(torch.float64), False, options | {"debias": True, "scaling": 0.5})


@pytest.mark.parametrize("weighted", [False, True], ids=["two arguments", "four arguments"])
@pytest.mark.parametrize("p", [1, 2])
def test_batches(samples_loss: Any, p: int, weighted: bool) -> None:
    options = {"p": p, "blur": BLUR, "reach": None, "debias": True, "scaling": 0.5}
    _compare(samples_loss, *_clouds(torch.float64, 3), weighted, options)


def test_defaults(samples_loss: Any) -> None:
    x, y = _clouds(torch.float64)
    torch.testing.assert_close(decoct.SinkhornLoss()(x, y), samples_loss("sinkhorn")(x, y))


@pytest.mark.parametrize("p", [1, 2])
def test_gradient_with_reach(p: int) -> None:
    """Against the derivative of the dual value by the points, at potentials that solve the problem."""
    x, y = _clouds(torch.float64)
    options = {"p": p, "blur": BLUR, "reach": REACH, "debias": False, "tol": 1e-10, "scaling": 0.8}
    value = decoct.sinkhorn_divergence(x, y, **options)
    ours = torch.autograd.grad(value, (x, y))
    solution = decoct.sinkhorn_potentials(x.detach(), y.detach(), **options)
    f, g, eps, rho = solution.f, solution.g, BLUR**p, REACH**p
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** p / p
    mass = torch.exp((f[:, None] + g - cost) / eps).mean()
    kept = torch.expm1(-f / rho).mean() + torch.expm1(-g / rho).mean()
    dual = -rho * kept - eps * (mass - 1)
    torch.testing.assert_close(value, dual, rtol=1e-8, atol=0)
    for mine, wanted in zip(ours, torch.autograd.grad(dual, (x, y)), strict=True):
        assert (mine - wanted).abs().max() <= 1e-7 * wanted.abs().max()
