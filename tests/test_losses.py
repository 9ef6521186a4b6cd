"""Modules, drop-in losses and the package's own surface."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import decoct
from decoct import compat, reference
from decoct.kernels import Gaussian
from samples import rows

ENDS = {"x_offsets": [0, 4, 4, 14], "y_offsets": [0, 3, 6, 9]}


def test_reductions() -> None:
    x, y = rows(14, 3), rows(9, 3, seed=1)
    each = decoct.mmd(x, y, "laplacian", 1.5, **ENDS)
    values = {
        reduction: decoct.MMDLoss("laplacian", 1.5, reduction=reduction)(x, y, **ENDS)
        for reduction in ("none", "sum", "mean")
    }
    assert torch.equal(values["none"], each)
    assert torch.equal(values["sum"], each.sum())
    assert torch.equal(values["mean"], each.mean())
    assert torch.equal(decoct.MMDLoss("laplacian", 1.5)(x, y, **ENDS), each.sum())


def test_a_module_holds_only_settings() -> None:
    loss = decoct.MMDLoss(Gaussian(scales=(1, 2)), "median", estimator="unbiased", reduction="none")
    assert not list(loss.parameters())
    assert not list(loss.buffers())
    expected = (
        "MMDLoss(Gaussian(scales=(1.0, 2.0)), bandwidth='median', estimator='unbiased', reduction='none')"
    )
    assert repr(loss) == expected
    x, y = rows(8, 3), rows(5, 3)
    assert torch.equal(loss(x, y), decoct.mmd(x, y, Gaussian(scales=(1, 2)), "median", estimator="unbiased"))
    assert torch.equal(
        decoct.MMDLoss("gaussian", 1.0)(x, y, xx=False), decoct.mmd(x, y, "gaussian", 1.0, xx=False)
    )


def test_module_refusals() -> None:
    with pytest.raises(ValueError, match="MMDLoss: reduction must be 'sum', 'mean' or 'none', got 'max'"):
        decoct.MMDLoss(reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="MMDLoss: estimator must be"):
        decoct.MMDLoss(estimator="u")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="MMDLoss: kernel must be one of"):
        decoct.MMDLoss("rbf")


def copied_loss(source: torch.Tensor, target: torch.Tensor, mul: float, num: int) -> torch.Tensor:
    """The loss as its formula is written down for M3D, with its own distance matrix."""
    z, n = torch.cat([source, target]), len(source)
    d2 = reference.squared_distances(z, z)
    h = d2.detach().sum() / (len(z) ** 2 - len(z)) / mul ** (num // 2)
    k = sum(torch.exp(-d2 / (h * mul**i)) for i in range(num))
    return k[:n, :n].mean() - 2 * k[:n, n:].mean() + k[n:, n:].mean()


@pytest.mark.parametrize(("mul", "num"), [(2.0, 5), (2.0, 4), (1.5, 7), (3.0, 1)])
def test_m3d_loss(mul: float, num: int) -> None:
    results = []
    for loss in (lambda s, t: compat.m3d_loss(s, t, mul, num), lambda s, t: copied_loss(s, t, mul, num)):
        source, target = rows(30, 50).requires_grad_(), rows(10, 50, seed=1, shift=0.5).requires_grad_()
        value = loss(source, target)
        results.append((value, *torch.autograd.grad(value, (source, target))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-14)


def test_m3d_loss_by_default_and_over_classes() -> None:
    x, y = rows(14, 3), rows(9, 3, seed=1)
    torch.testing.assert_close(compat.m3d_loss(x, y), copied_loss(x, y, 2.0, 5), rtol=1e-11, atol=0)
    together = compat.m3d_loss(x, y, **ENDS)
    torch.testing.assert_close(together[2], copied_loss(x[4:], y[6:], 2.0, 5), rtol=1e-11, atol=0)


def test_import_is_light_and_quiet() -> None:
    """The layers above the ops load when they are asked for, and importing prints nothing."""
    script = """
import sys, decoct
layers = ("decoct.objectives", "decoct.condense", "decoct.tasks")
layers += ("sklearn", "matplotlib", "rich", "torch._dynamo")
heavy = [name for name in sys.modules if name.startswith(layers)]
assert not heavy, heavy
assert "objectives" in dir(decoct)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with pytest.raises(AttributeError, match="module 'decoct' has no attribute 'nothing'"):
        decoct.nothing  # noqa: B018
