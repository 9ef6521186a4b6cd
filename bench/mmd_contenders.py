"""Ways to compute a squared MMD and its gradient by y: ours, and those that people use today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contenders import OURS, Call, Contender, differentiate
from mmd_cases import SCALES, Case

# Dense: one gaussian, fixed bandwidth.


def ours(case: Case, x: Tensor, y: Tensor) -> Call:
    import decoct

    return differentiate(lambda: decoct.mmd(x, y, "gaussian", case.bandwidth, xx=False), y)


def ours_with_xx(case: Case, x: Tensor, y: Tensor) -> Call:
    import decoct

    return differentiate(lambda: decoct.mmd(x, y, "gaussian", case.bandwidth), y)


def _cdist_kernel(x: Tensor, y: Tensor, factor: float) -> Tensor:
    return torch.exp(torch.cdist(x, y).square() / -factor)


def _product_kernel(x: Tensor, y: Tensor, factor: float) -> Tensor:
    d2 = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.T)
    return torch.exp(d2.clamp(min=0) / -factor)


def _torch(kernel: Callable[..., Tensor], with_xx: bool, compiled: bool = False) -> Callable[..., Call]:
    def build(case: Case, x: Tensor, y: Tensor) -> Call:
        factor = 2 * case.bandwidth**2

        def loss(x: Tensor, y: Tensor) -> Tensor:
            value = kernel(y, y, factor).mean() - 2 * kernel(x, y, factor).mean()
            return value + kernel(x, x, factor).mean() if with_xx else value

        function = torch.compile(loss, dynamic=False) if compiled else loss
        return differentiate(lambda: function(x, y), y, compiled)

    return build


def geomloss(case: Case, x: Tensor, y: Tensor) -> Call:
    from geomloss import SamplesLoss

    loss = SamplesLoss("gaussian", blur=case.bandwidth, backend="tensorized")
    return differentiate(lambda: loss(x, y), y)


def keops(case: Case, x: Tensor, y: Tensor) -> Call:
    from pykeops.torch import LazyTensor

    def mean(x: Tensor, y: Tensor) -> Tensor:
        d2 = ((LazyTensor(x[:, None, :]) - LazyTensor(y[None, :, :])) ** 2).sum(-1)
        total: Tensor = (d2 * (-0.5 / case.bandwidth**2)).exp().sum(1).sum()
        return total / (x.shape[0] * y.shape[0])

    def value(x: Tensor, y: Tensor) -> Tensor:
        return mean(y, y) - 2 * mean(x, y)

    # Formulas are compiled at first use; a tiny problem of the same width does that.
    small = y[:8].detach().requires_grad_()
    differentiate(lambda: value(x[:8], small), small)()
    return differentiate(lambda: value(x, y), y)


# Class-wise: five gaussians around the mean squared distance.


def _offsets(case: Case) -> dict[str, Any]:
    groups = torch.arange(case.groups + 1)
    return {"x_offsets": groups * case.rows_x, "y_offsets": groups * case.rows_y}


def ours_m3d(case: Case, x: Tensor, y: Tensor) -> Call:
    from decoct.compat import m3d_loss

    offsets = _offsets(case)
    return differentiate(lambda: m3d_loss(x, y, **offsets), y)


def ours_ragged(case: Case, x: Tensor, y: Tensor) -> Call:
    import decoct
    from decoct.kernels import Gaussian

    kernel, offsets = Gaussian(scales=SCALES), _offsets(case)
    return differentiate(lambda: decoct.mmd(x, y, kernel, "mean", xx=False, **offsets), y)


def class_loss(source: Tensor, target: Tensor) -> Tensor:
    """The multi-bandwidth loss that condensation code calls for one class after the other."""
    n, rows = source.shape[0], source.shape[0] + target.shape[0]
    pooled = torch.vstack([source, target])
    d2 = torch.cdist(pooled, pooled) ** 2
    width = d2.detach().sum() / (rows**2 - rows)
    kernel = torch.stack([torch.exp(-d2 / (width * scale)) for scale in SCALES]).sum(0)
    return kernel[:n, :n].mean() - 2 * kernel[:n, n:].mean() + kernel[n:, n:].mean()


def _class_loop(compiled: bool) -> Callable[..., Call]:
    def build(case: Case, x: Tensor, y: Tensor) -> Call:
        function = torch.compile(class_loss, dynamic=False) if compiled else class_loss

        # Each class is differentiated at once: the graphs of all classes together would not fit into memory.
        def call() -> tuple[Tensor, Tensor]:
            values, gradients = [], []
            for real, rows in zip(x.split(case.rows_x), y.detach().split(case.rows_y), strict=True):
                synthetic = rows.requires_grad_()
                values.append(function(real, synthetic))
                gradients += torch.autograd.grad(values[-1], synthetic)
            return torch.stack(values).detach(), torch.cat(gradients)

        if compiled:
            call()
        return call

    return build


def batched_loss(x: Tensor, y: Tensor) -> Tensor:
    """What equal class sizes allow in plain torch: all classes in batched products, no real-real block."""
    rows = x.shape[1] + y.shape[1]
    with torch.no_grad():
        squares = x.square().sum((1, 2)) + y.square().sum((1, 2))
        spread = rows * squares - (x.sum(1) + y.sum(1)).square().sum(1)
        width = (2 * spread / (rows**2 - rows))[:, None, None]

    def mean(a: Tensor, b: Tensor) -> Tensor:
        d2 = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None, :] - 2 * a @ b.transpose(1, 2)
        d2 = d2.clamp(min=0) / -width
        return sum((torch.exp(d2 / scale) for scale in SCALES), torch.zeros_like(d2)).mean((1, 2))

    return mean(y, y) - 2 * mean(x, y)


def _batched(compiled: bool) -> Callable[..., Call]:
    def build(case: Case, x: Tensor, y: Tensor) -> Call:
        function = torch.compile(batched_loss, dynamic=False) if compiled else batched_loss
        real, shape = x.view(case.groups, case.rows_x, -1), (case.groups, case.rows_y, case.columns)
        return differentiate(lambda: function(real, y.view(shape)), y, compiled)

    return build


DENSE = [
    Contender(OURS, ours, ours=True),
    Contender("decoct, real-real computed", ours_with_xx, with_xx=True, ours=True),
    Contender("torch cdist", _torch(_cdist_kernel, True), with_xx=True),
    Contender("torch cdist, no real-real", _torch(_cdist_kernel, False)),
    Contender("torch products, no real-real", _torch(_product_kernel, False)),
    Contender("torch cdist, compiled", _torch(_cdist_kernel, False, compiled=True)),
    Contender("torch products, compiled", _torch(_product_kernel, False, compiled=True)),
    # GeomLoss gives half of the squared MMD.
    Contender("GeomLoss tensorized", geomloss, with_xx=True, factor=2.0),
    Contender("KeOps, no real-real", keops),
]
RAGGED = [
    Contender(OURS, ours_ragged, ours=True),
    Contender("decoct, real-real computed", ours_m3d, with_xx=True, ours=True),
    Contender("class loop", _class_loop(False), with_xx=True),
    Contender("class loop, compiled", _class_loop(True), with_xx=True),
    Contender("torch batched products, no real-real", _batched(False)),
    Contender("torch batched products, compiled", _batched(True)),
]


def contenders_for(case: Case) -> list[Contender]:
    """In the order of the tables; ours first."""
    if case.only_ours:
        return DENSE[:1]
    return RAGGED if case.groups else DENSE
