"""What is particular to mmd, kernel_mean, kernel_matvec and the bandwidth rules."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import decoct
import table
from comparison import compare
from decoct import reference
from decoct.kernels import Gaussian, Laplacian, Polynomial
from decoct.ops import _backend
from decoct.reference import kernel_matrix
from samples import KERNELS, OPS, Sample, rows, weights

pytestmark = pytest.mark.usefixtures("backend")
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS)
CLOSE = {"rtol": 1e-11, "atol": 1e-13}


@EVERY_KERNEL
def test_biased_is_its_formula(kernel: str) -> None:
    """Against the kernel matrix, not the twin's loop."""
    x, y, a, b = rows(8, 3), rows(6, 3, seed=1), weights(8), weights(6)
    k = KERNELS[kernel]
    xx, xy, yy = (kernel_matrix(p, q, k, 1.4) for p, q in ((x, x), (x, y), (y, y)))
    torch.testing.assert_close(decoct.mmd(x, y, k, 1.4), xx.mean() - 2 * xy.mean() + yy.mean(), **CLOSE)
    weighted = a @ xx @ a - 2 * a @ xy @ b + b @ yy @ b
    torch.testing.assert_close(decoct.mmd(x, y, k, 1.4, a=a, b=b), weighted, **CLOSE)
    torch.testing.assert_close(decoct.kernel_mean(x, y, k, 1.4, a=a, b=b), a @ xy @ b, **CLOSE)
    torch.testing.assert_close(decoct.kernel_matvec(x, y, b, k, 1.4), xy @ b, **CLOSE)


@EVERY_KERNEL
def test_unbiased_is_the_mean_over_distinct_pairs(kernel: str) -> None:
    x, y = rows(8, 3), rows(6, 3, seed=1)
    k = KERNELS[kernel]
    xx, xy, yy = (kernel_matrix(p, q, k, 1.4) for p, q in ((x, x), (x, y), (y, y)))
    expected = (xx.sum() - xx.trace()) / 56 - 2 * xy.mean() + (yy.sum() - yy.trace()) / 30
    torch.testing.assert_close(decoct.mmd(x, y, k, 1.4, estimator="unbiased"), expected, **CLOSE)
    # Uniform weights of any mass give A^2 times the U-statistic.
    third, fifth = torch.full((8,), 1 / 24), torch.full((6,), 1 / 30)
    weighted = decoct.mmd(x, y, k, 1.4, a=third.double(), b=fifth.double(), estimator="unbiased")
    mass = (xx.sum() - xx.trace()) / 56 / 9 - 2 * xy.mean() / 15 + (yy.sum() - yy.trace()) / 30 / 25
    torch.testing.assert_close(weighted, mass, rtol=1e-6, atol=1e-7)


def test_unbiased_has_mean_zero() -> None:
    """Two samples of one distribution: the mean over 400 draws is 0 within 5 standard errors; biased is
    not."""
    draws = [rows(400, 10, 2, seed=seed) for seed in (5, 6)]
    unbiased = decoct.mmd(*draws, "gaussian", 1.0, estimator="unbiased")
    assert unbiased.mean().abs() < 5 * unbiased.std() / 20
    assert decoct.mmd(*draws, "gaussian", 1.0).mean() > 20 * unbiased.std() / 20


@EVERY_KERNEL
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_cached_and_omitted_terms(kernel: str, estimator: str) -> None:
    """Value and gradient of y do not depend on where the real-real term comes from."""
    x = rows(20, 4)
    ends = {"x_offsets": [0, 6, 6, 20], "y_offsets": [0, 4, 7, 12]}
    grads, values = [], []
    term = decoct.mmd(x, x[:0], KERNELS[kernel], 2.0, x_offsets=ends["x_offsets"], y_offsets=[0, 0, 0, 0])
    assert torch.equal(term, torch.zeros(3, dtype=torch.float64))
    whole = reference.mmd(x, rows(12, 4, seed=1), KERNELS[kernel], 2.0, **ends, estimator=estimator)
    omitted = reference.mmd(
        x, rows(12, 4, seed=1), KERNELS[kernel], 2.0, **ends, estimator=estimator, xx=False
    )
    for xx in (None, False, whole - omitted):
        y = rows(12, 4, seed=1).requires_grad_()
        value = decoct.mmd(x, y, KERNELS[kernel], 2.0, **ends, estimator=estimator, xx=xx)
        values.append(value.detach())
        grads.append(torch.autograd.grad(value.sum(), y)[0])
    torch.testing.assert_close(values[0], whole, **CLOSE)
    torch.testing.assert_close(values[1], omitted, **CLOSE)
    torch.testing.assert_close(values[2], whole, **CLOSE)
    torch.testing.assert_close(grads[1], grads[0], **CLOSE)
    torch.testing.assert_close(grads[2], grads[0], **CLOSE)
    assert values[2][1] == 0


def test_a_cached_term_of_an_empty_segment_does_not_count() -> None:
    term = torch.tensor([0.5, 0.5], dtype=torch.float64)
    value = decoct.mmd(
        rows(6, 2), rows(3, 2), "gaussian", 1.0, x_offsets=[0, 3, 6], y_offsets=[0, 0, 3], xx=term
    )
    assert value[0] == 0
    assert value[1] != 0


def test_kernel_mean_gives_the_cached_term() -> None:
    x, y = rows(12, 3), rows(7, 3, seed=1)
    term = decoct.kernel_mean(x, x, "laplacian", 1.5)
    torch.testing.assert_close(
        decoct.mmd(x, y, "laplacian", 1.5, xx=term), decoct.mmd(x, y, "laplacian", 1.5), **CLOSE
    )


def test_omitting_the_term_is_fine_with_rules_and_without_gradients_of_x() -> None:
    x, y = rows(12, 3), rows(7, 3, seed=1).requires_grad_()
    for rule in ("mean", "median"):
        ours = torch.autograd.grad(decoct.mmd(x, y, "gaussian", rule, xx=False), y)[0]
        torch.testing.assert_close(
            ours, torch.autograd.grad(decoct.mmd(x, y, "gaussian", rule), y)[0], **CLOSE
        )
    # Kernels without a length take a cached term whatever the bandwidth argument says.
    assert decoct.mmd(x, y, "energy", xx=torch.tensor(1.0)).isfinite()
    with torch.no_grad():
        assert decoct.mmd(x.clone().requires_grad_(), y, xx=False).isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_bandwidth_rules(dtype: torch.dtype) -> None:
    x, y = rows(30, 6, dtype=dtype), rows(11, 6, seed=1, shift=1.0, dtype=dtype)
    z = torch.cat([x, y]).double()
    squares = torch.pdist(z).square()
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 2e-7, "atol": 0.0}
    mean, median = decoct.mean_bandwidth(x, y), decoct.median_bandwidth(x, y)
    assert mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(mean.double(), (squares.mean() / 2).sqrt(), **tolerance)
    torch.testing.assert_close(median.double(), (squares.median() / 2).sqrt(), **tolerance)
    for rule, length in (("mean", mean), ("median", median)):
        torch.testing.assert_close(
            decoct.mmd(x, y, "laplacian", rule),
            decoct.mmd(x, y, "laplacian", float(length)),
            rtol=1e-5,
            atol=1e-7,
        )


def test_rules_are_per_segment_and_survive_an_offset() -> None:
    x, y = rows(30, 6), rows(11, 6, seed=1)
    x[10:] *= 100
    ends = {"x_offsets": [0, 10, 10, 30], "y_offsets": [0, 4, 7, 11]}
    for rule in (decoct.mean_bandwidth, decoct.median_bandwidth):
        together = rule(x, y, **ends)
        for c, (i, j) in enumerate([((0, 10), (0, 4)), ((10, 10), (4, 7)), ((10, 30), (7, 11))]):
            torch.testing.assert_close(together[c], rule(x[slice(*i)], y[slice(*j)]), **CLOSE)
        torch.testing.assert_close(rule(x + 4096.0, y + 4096.0, **ends), together, rtol=1e-9, atol=0)


def test_median_takes_a_fixed_part_of_many_rows() -> None:
    x, y = rows(3000, 2), rows(2000, 2, seed=1)
    pooled = torch.cat([x, y])[::2]
    expected = (torch.pdist(pooled).median().square() / 2).sqrt()
    torch.testing.assert_close(decoct.median_bandwidth(x, y), expected, **CLOSE)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_equal_rows_leave_the_smallest_length(rule: str) -> None:
    """A floor, not a division by zero."""
    x = torch.ones(4, 3)
    length = getattr(decoct, f"{rule}_bandwidth")(x, x)
    torch.testing.assert_close(length, torch.tensor(math.sqrt(0.5e-10)), rtol=1e-6, atol=0)
    value = decoct.mmd(x, x, "gaussian", rule)
    assert value == 0
    one_pair = decoct.mmd(x[:1], x[:1], "gaussian", rule)
    assert one_pair == 0


def test_rules_are_constants_for_autograd() -> None:
    x, y = rows(8, 3).requires_grad_(), rows(5, 3, seed=1).requires_grad_()
    assert not decoct.mean_bandwidth(x, y).requires_grad
    assert not decoct.median_bandwidth(x, y).requires_grad
    length = float(decoct.mean_bandwidth(x, y))
    by_rule = torch.autograd.grad(decoct.mmd(x, y, "gaussian", "mean"), y, create_graph=True)[0]
    by_number = torch.autograd.grad(decoct.mmd(x, y, "gaussian", length), y, create_graph=True)[0]
    torch.testing.assert_close(by_rule, by_number, **CLOSE)
    second = [torch.autograd.grad(g.square().sum(), x)[0] for g in (by_rule, by_number)]
    torch.testing.assert_close(second[0], second[1], **CLOSE)


@pytest.mark.parametrize("kernel", ["gaussian-5", "laplacian", "inverse-multiquadric", "rational-quadratic"])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_bandwidth_that_is_learnt(kernel: str, ragged: bool) -> None:
    """First, second and mixed derivatives by the length, one for all or one per segment."""
    x, y = rows(14, 3, shift=50.0), rows(9, 3, seed=1, shift=50.0)
    ends = {"x_offsets": [0, 4, 4, 14], "y_offsets": [0, 3, 6, 9]} if ragged else {}
    start = torch.tensor([1.2, 2.0, 0.8] if ragged else 1.3, dtype=torch.float64)
    results = []
    for module in (decoct, reference):
        leaves = [t.clone().requires_grad_() for t in (start, x, y)]
        value = module.mmd(leaves[1], leaves[2], KERNELS[kernel], leaves[0], **ends).sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        probe = sum((g * (i + 1 + g.detach().cos())).sum() for i, g in enumerate(first))
        results.append([value, *first, *torch.autograd.grad(probe, leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_kernels_without_a_length_ignore_it() -> None:
    x, y = rows(8, 3), rows(6, 3)
    for kernel in ("energy", "polynomial", "linear"):
        values = [decoct.mmd(x, y, kernel, s) for s in (1.0, 7.0, "mean", "median", torch.tensor(2.0))]
        assert all(torch.equal(value, values[0]) for value in values), kernel


def test_scales_are_a_sum_of_kernels() -> None:
    x, y = rows(9, 4), rows(7, 4, seed=1)
    together = decoct.mmd(x, y, Laplacian(scales=(0.25, 4.0)), 1.5)
    apart = decoct.mmd(x, y, "laplacian", 0.75) + decoct.mmd(x, y, "laplacian", 3.0)
    torch.testing.assert_close(together, apart, **CLOSE)


def test_sixteen_scales() -> None:
    scales = tuple(2.0**i for i in range(-8, 8))
    x, y = rows(9, 4), rows(7, 4, seed=1)
    apart = sum(decoct.mmd(x, y, "gaussian", 2.0 * math.sqrt(c)) for c in scales)
    torch.testing.assert_close(decoct.mmd(x, y, Gaussian(scales=scales), 2.0), apart, **CLOSE)


def test_linear_is_the_distance_of_means() -> None:
    x, y = rows(50, 6, shift=2.0), rows(20, 6)
    torch.testing.assert_close(decoct.mmd(x, y, "linear"), (x.mean(0) - y.mean(0)).square().sum(), **CLOSE)


def test_polynomial_uses_the_rows_as_they_are() -> None:
    """Not translation invariant: a shift must change it."""
    x, y = rows(9, 4), rows(7, 4, seed=1)
    k = Polynomial(degree=2, gamma=1.0, coef0=1.0)
    shifted = reference.mmd(x + 3, y + 3, k)
    torch.testing.assert_close(decoct.mmd(x + 3, y + 3, k), shifted, **CLOSE)
    assert (shifted - reference.mmd(x, y, k)).abs() > 1e-3


def test_dtypes() -> None:
    """Promotion follows torch; 16-bit rows of one kind are not widened before the engine."""
    x, y = rows(9, 4), rows(7, 4, seed=1)
    pairs = {
        (torch.float32, torch.float64): torch.float64,
        (torch.float16, torch.float16): torch.float32,
        (torch.bfloat16, torch.float16): torch.float32,
        (torch.bfloat16, torch.float32): torch.float32,
    }
    for (left, right), result in pairs.items():
        p, q = x.to(left).requires_grad_(), y.to(right).requires_grad_()
        value = decoct.mmd(p, q, "gaussian", 2.0)
        assert value.dtype == result
        gradients = torch.autograd.grad(value, (p, q))
        assert [g.dtype for g in gradients] == [left, right]
        torch.testing.assert_close(
            value.double(),
            reference.mmd(p.double(), q.double(), "gaussian", 2.0).detach(),
            rtol=1e-5,
            atol=1e-7,
        )
    assert decoct.mmd(x.float(), y.float(), a=weights(9)).dtype == torch.float64
    assert decoct.mmd(x.half(), y.half(), a=weights(9).half()).dtype == torch.float32


def test_nested_tensors() -> None:
    """Jagged tensors are packed rows with offsets, gradients included."""
    parts = [[rows(n, 3, seed=seed) for n in counts] for seed, counts in enumerate([(2, 4, 5), (1, 3, 4)])]
    x, y = (torch.nested.nested_tensor(part, layout=torch.jagged, requires_grad=True) for part in parts)
    value = decoct.mmd(x, y, "laplacian", 1.5)
    packed = [torch.cat(part).requires_grad_() for part in parts]
    ends = {"x_offsets": [0, 2, 6, 11], "y_offsets": [0, 1, 4, 8]}
    expected = decoct.mmd(*packed, "laplacian", 1.5, **ends)
    assert torch.equal(value, expected)
    value.sum().backward()
    expected.sum().backward()
    for nested, flat in zip((x, y), packed, strict=True):
        assert torch.equal(nested.grad.values(), flat.grad)
    product = decoct.kernel_matvec(x, y, rows(8, 2), "laplacian", 1.5)
    assert product.is_nested
    assert torch.equal(product.values(), decoct.kernel_matvec(*packed, rows(8, 2), "laplacian", 1.5, **ends))
    with pytest.raises(ValueError, match="x_offsets must be None with a nested x"):
        decoct.mmd(x, y, x_offsets=[0, 11])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors is in prototype", UserWarning)
        strided = torch.nested.nested_tensor(parts[0], layout=torch.strided)
    with pytest.raises(ValueError, match="a nested x must have the jagged layout"):
        decoct.mmd(strided, y)


def test_through_a_network_twice() -> None:
    """The outer derivative of a step on the inner loss, as in bi-level condensation."""
    results = []
    for module in (decoct, reference):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()
        real, synthetic = rows(20, 5), rows(6, 5, seed=1).requires_grad_()
        inner = module.mmd(net(real), net(synthetic), "gaussian", 1.5)
        steps = torch.autograd.grad(inner, list(net.parameters()), create_graph=True)
        moved = {n: p - 0.5 * g for (n, p), g in zip(net.named_parameters(), steps, strict=True)}
        outer = torch.func.functional_call(net, moved, (real,)).square().mean()
        results.append(torch.autograd.grad(outer, synthetic)[0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)
    assert results[1].abs().max() > 1e-6


def test_a_device_without_kernels() -> None:
    with pytest.raises(RuntimeError, match=r"^mmd: no kernels for device meta; pass tensors on the CPU$"):
        decoct.mmd(rows(3, 2).to("meta"), rows(3, 2).to("meta"))


def test_a_build_without_cuda_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "backends", {})
    message = (
        "^mmd: no kernels for device cuda:0, as this build of decoct has none for CUDA; with a CUDA toolkit"
    )
    with pytest.raises(RuntimeError, match=message):
        _backend.backend_for("mmd", torch.device("cuda:0"))


def test_an_engine_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(_backend, "backends", {})
    monkeypatch.setattr(_backend.importlib, "import_module", refuse)
    message = "^mmd: decoct's compiled module decoct._cpu does not load: undefined symbol$"
    with pytest.raises(RuntimeError, match=message):
        _backend.backend_for("mmd", torch.device("cpu"))


def test_backends_can_be_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise NotImplementedError(name)

    monkeypatch.setitem(decoct.ops.backends, table.DEVICE, Broken())
    with pytest.raises(NotImplementedError):
        decoct.mmd(rows(3, 2), rows(3, 2))


def fixed_real_side(mmd: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The op as condensation calls it: y first, x and its weights without a gradient."""

    def call(y: Tensor, x: Tensor, a: Tensor | None = None, **options: Any) -> Tensor:
        a = a if a is None or y.dtype == torch.float64 else a.float()
        return mmd(x.to(y.dtype), y, a=a, xx=False, **options)

    return call


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_fixed_real_side(kernel: str, dtype: torch.dtype, backend: str) -> None:
    """Its rows pass through a buffer: several of them, and segments of all sizes."""
    op = replace(OPS["mmd"], public=fixed_real_side(decoct.mmd), reference=fixed_real_side(reference.mmd))
    sizes = {"x_offsets": [0, 500, 500, 501, 531], "y_offsets": [0, 33, 40, 41, 41]}
    # The buffers are the CPU's; elsewhere a few columns are as good as many.
    many = 2100 if backend == "cpu" else 70
    for n, m, d, offsets in ((200, 10, many, {}), (193, 2, 300, {}), (49, 49, 7, {}), (531, 41, 5, sizes)):
        y, b = rows(m, d, seed=1, shift=0.3), weights(m, seed=1)
        x = rows(n, d) * 0.5
        length = 2.0 * d**0.5
        for tensors, options in (
            ({"y": y}, {"bandwidth": "mean"}),
            ({"y": y, "b": b}, {"bandwidth": length, "a": weights(n)}),
        ):
            sample = Sample(
                f"{n}x{m}x{d}", tensors, {"x": x, "kernel": KERNELS[kernel], **options, **offsets}
            )
            compare(op, sample, dtype)


@pytest.mark.parametrize("rule", ["mean", 30.0])
def test_a_fixed_real_side_of_uneven_rows(rule: str | float) -> None:
    """Far from the origin; with a row far out that no sample shows; with one that is not finite."""
    x, y = rows(300, 40, dtype=torch.float32) + 1e4, rows(9, 40, seed=1, dtype=torch.float32) + 1e4
    exact = reference.mmd(x.double(), y.double(), "gaussian", rule, xx=False)
    near = [pair.double() - 1e4 for pair in (x, y)]
    torch.testing.assert_close(exact, reference.mmd(*near, "gaussian", rule, xx=False), rtol=1e-9, atol=0)
    assert abs(decoct.mmd(x, y, "gaussian", rule, xx=False) - exact) < 1e-6 * abs(exact)

    outlier = x - 1e4
    outlier[101] = 1e25
    for one, other in ((outlier, y - 1e4), (outlier.double(), y.double() - 1e4)):
        ours = decoct.mmd(one, other, "gaussian", rule, xx=False)
        exact = reference.mmd(one.double(), other.double(), "gaussian", rule, xx=False)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)

    for bad in (math.inf, -math.inf, math.nan):
        for side, row in ((x, 101), (x, 0), (y, 5)):
            ends = {"x_offsets": [0, 300, 600], "y_offsets": [0, 9, 18]}
            both = [torch.cat([x, x]), torch.cat([y, y])]
            both[0 if side is x else 1][row, 3] = bad
            leaf = both[1].requires_grad_()
            values = decoct.mmd(both[0], leaf, "gaussian", rule, xx=False, **ends)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
            assert values.isnan().tolist() == [True, False]
            assert gradient[:9].isnan().all()
            assert gradient[9:].isfinite().all()
