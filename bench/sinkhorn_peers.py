"""GeomLoss and POT as contenders, with uniform weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contenders import Call, differentiate
from sinkhorn_cases import BLUR, MARGINAL, MAX_ITERATIONS, SCALING, Case, Potentials, diameter

# GeomLoss.


def _samples_loss(x: Tensor, y: Tensor, backend: str, **options: Any) -> Any:
    from geomloss import SamplesLoss

    width = diameter(x, y)
    return SamplesLoss(
        "sinkhorn", p=2, blur=BLUR * width, scaling=SCALING, diameter=width, backend=backend, **options
    )


def geomloss(backend: str, case: Case, x: Tensor, y: Tensor) -> Call:
    loss = _samples_loss(x, y, backend)
    if backend == "online":  # formulas are compiled at first use
        small = y[:8].detach().requires_grad_()
        differentiate(lambda: loss(x[:8], small), small)()
    return differentiate(lambda: loss(x, y), y)


def geomloss_potentials(backend: str, case: Case, x: Tensor, y: Tensor, group: int) -> Potentials:
    loss = _samples_loss(x, y, backend, debias=False, potentials=True)
    f, g = loss(*case.group(x, y, group))
    return f.reshape(-1), g.reshape(-1)


def _batches(case: Case, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    shape = (case.groups, -1, case.columns)
    return x.view(shape), y.view(shape)


def geomloss_batch(case: Case, x: Tensor, y: Tensor) -> Call:
    loss = _samples_loss(x, y, "tensorized")
    return differentiate(lambda: loss(*_batches(case, x, y)), y)


def _loop(case: Case, x: Tensor, y: Tensor, one: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """One problem after the other, each differentiated at once."""

    def call() -> tuple[Tensor, Tensor]:
        values, gradients = [], []
        for real, rows in zip(x.split(case.rows_x), y.detach().split(case.rows_y), strict=True):
            synthetic = rows.requires_grad_()
            values.append(one(real, synthetic))
            gradients += torch.autograd.grad(values[-1], synthetic)
        return torch.stack(values).detach(), torch.cat(gradients)

    return call


def geomloss_loop(case: Case, x: Tensor, y: Tensor) -> Call:
    return _loop(case, x, y, _samples_loss(x, y, "tensorized"))


# POT: costs are squared distances, so that eps is doubled and results are halved.


def _pot_tolerance(rows: int) -> float:
    """It stops by the Euclidean norm of what the marginal misses."""
    return MARGINAL / rows**0.5


def _pot_one(eps: float, real: Tensor, synthetic: Tensor, debias: bool = True) -> Any:
    import ot

    tolerance = _pot_tolerance(len(synthetic))
    return ot.solve_sample(
        real, synthetic, reg=2 * eps, debias=debias, grad="envelope", max_iter=MAX_ITERATIONS, tol=tolerance
    )


def pot(case: Case, x: Tensor, y: Tensor) -> Call:
    import ot  # noqa: F401

    eps = (BLUR * diameter(x, y)) ** 2

    def one(real: Tensor, synthetic: Tensor) -> Tensor:
        value: Tensor = _pot_one(eps, real, synthetic).value
        return value

    return _loop(case, x, y, one) if case.groups else differentiate(lambda: one(x, y), y)


def pot_potentials(case: Case, x: Tensor, y: Tensor, group: int) -> Potentials:
    eps = (BLUR * diameter(x, y)) ** 2
    log_u, log_v = _pot_one(eps, *case.group(x, y, group), debias=False).potentials
    return _of_scalings(log_u, log_v, eps)


def _of_scalings(log_u: Tensor, log_v: Tensor, eps: float) -> Potentials:
    """Potentials beside the weights, which scalings contain; uniform ones."""
    return eps * (log_u + math.log(len(log_u))), eps * (log_v + math.log(len(log_v)))


def _pot_batch_one(eps: float, real: Tensor, synthetic: Tensor) -> Any:
    import ot.batch

    return ot.batch.solve_sample_batch(
        real,
        synthetic,
        reg=2 * eps,
        reg_type="kl",
        max_iter=MAX_ITERATIONS,
        tol=_pot_tolerance(real.shape[1]),
        grad="envelope",
    )


def pot_batch(case: Case, x: Tensor, y: Tensor) -> Call:
    import ot.batch  # noqa: F401

    eps = (BLUR * diameter(x, y)) ** 2

    def value() -> Tensor:
        real, synthetic = _batches(case, x, y)
        cross, own, fixed = (
            _pot_batch_one(eps, *pair).value
            for pair in ((real, synthetic), (synthetic, synthetic), (real, real))
        )
        return cross - (own + fixed) / 2

    return differentiate(value, y)


def pot_batch_potentials(case: Case, x: Tensor, y: Tensor, group: int) -> Potentials:
    eps = (BLUR * diameter(x, y)) ** 2
    real, synthetic = case.group(x, y, group)
    log_u, log_v = _pot_batch_one(eps, real[None], synthetic[None]).potentials
    return _of_scalings(log_u[0], log_v[0], eps)
