"""Characteristic means: closed forms, sine and cosine of any argument, panels, transforms."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import decoct
from comparison import compare, evaluate
from decoct import reference
from samples import OPS, Sample
from table import rows, weights

pytestmark = pytest.mark.usefixtures("backend")
OP = OPS["characteristic_mean"]


def of_numbers(t: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each number: every one a segment, and the only frequency 1."""
    offsets = list(range(len(t) + 1))
    cosine, sine = decoct.characteristic_mean(t[:, None], torch.ones(1, 1, dtype=t.dtype), x_offsets=offsets)
    return cosine[:, 0], sine[:, 0]


def kept(t: Tensor) -> Tensor:
    """Numbers of 16 binary digits, of which products in TF32 lose none."""
    return t if t.dtype == torch.float64 else (t.view(torch.int32) & -(1 << 8)).view(torch.float32)


SIZES = pytest.mark.parametrize("largest", [1.0, 100.0, 1e4, 2e5, 1e8, 1e12, 1e15])


def numbers(largest: float, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return ((torch.rand(4000, generator=generator, dtype=torch.float64) * 2 - 1) * largest).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@SIZES
def test_sine_and_cosine(dtype: torch.dtype, largest: float) -> None:
    """To 2 units in the last place of 1, for arguments of any size that has a place on the circle."""
    assert_sine_and_cosine(kept(numbers(largest, dtype)))


@SIZES
@pytest.mark.usual_backends("cpu")
def test_sine_and_cosine_of_all_digits(largest: float, backend: str) -> None:
    """Where products are exact, as those of tensor cores are not."""
    given = numbers(largest, torch.float32)
    assert_sine_and_cosine(given if backend == "cpu" else kept(given))


def assert_sine_and_cosine(t: Tensor) -> None:
    dtype = t.dtype
    for ours, exact in zip(of_numbers(t), (t.double().cos(), t.double().sin()), strict=True):
        assert (ours.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps
        assert ours.abs().max() <= 1 + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_quarters_of_the_circle(dtype: torch.dtype) -> None:
    """Where the one or the other is nearly zero it keeps its own digits; signs are those of all quadrants."""
    t = kept((torch.arange(-5000, 5000, dtype=torch.float64) * (math.pi / 2)).to(dtype))
    for ours, exact in zip(of_numbers(t), (t.double().cos(), t.double().sin()), strict=True):
        small = exact.abs() < 0.1
        bound = torch.where(small, exact.abs(), 1.0) * 4 * torch.finfo(dtype).eps
        # float64's own values are to half a unit of 1 only once they are this small
        slack = 1e-12 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert ((ours.double() - exact).abs() <= bound + slack).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_that_have_none(dtype: torch.dtype) -> None:
    t = torch.tensor([0.5, math.nan, math.inf, -math.inf, 1.0], dtype=dtype)
    for ours in of_numbers(t):
        assert ours.isnan().tolist() == [False, True, True, True, False]


def test_zero_frequencies_and_opposite_rows() -> None:
    x = rows(12, 5)
    cosine, sine = decoct.characteristic_mean(x, torch.zeros(3, 5, dtype=x.dtype))
    assert torch.equal(cosine, torch.ones(3).double()) or (cosine - 1).abs().max() < 1e-15
    assert not sine.any()
    _, sine = decoct.characteristic_mean(torch.cat([x, -x]), rows(7, 5, seed=1))
    assert sine.abs().max() < 1e-15


def test_normal_rows_have_the_normal_function() -> None:
    """exp(-|f|^2 / 2), to what 20000 rows tell."""
    x, f = torch.randn(20000, 3, generator=torch.Generator().manual_seed(2)), rows(9, 3, seed=1).float()
    cosine, sine = decoct.characteristic_mean(x, f)
    assert (cosine - torch.exp(-f.square().sum(1) / 2)).abs().max() < 0.02
    assert sine.abs().max() < 0.02


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one backend for all examples
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31))
def test_a_shift_turns_it(n: int, f: int, d: int, seed: int) -> None:
    """E exp(i <f, x + s>) = exp(i <f, s>) E exp(i <f, x>)."""
    x, frequencies, shift = rows(n, d, seed=seed), rows(f, d, seed=seed + 1), rows(d, seed=seed + 2)
    before = torch.complex(*decoct.characteristic_mean(x, frequencies))
    after = torch.complex(*decoct.characteristic_mean(x + shift, frequencies))
    turned = before * torch.polar(torch.ones(f).double(), frequencies @ shift)
    torch.testing.assert_close(after, turned, rtol=1e-11, atol=1e-12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 2**31))
def test_segments_are_calls_of_their_own(counts: list[int], seed: int) -> None:
    segments = decoct.Segments.from_lengths(counts)
    x, f = rows(sum(counts), 4, seed=seed), rows(5, 4, seed=seed + 1)
    together = decoct.characteristic_mean(x, f, x_offsets=segments)
    for c, (begin, end) in enumerate(zip(segments.offsets[:-1], segments.offsets[1:], strict=True)):
        alone = decoct.characteristic_mean(x[begin:end], f)
        for part, one in zip(together, alone, strict=True):
            torch.testing.assert_close(part[c], one, rtol=1e-13, atol=1e-15)


LENGTHS = [0, 1, 95, 96, 97, 0, 0, 64, 480, 3, 2, 1, 1, 300]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("f", [1, 47, 96, 193, 1100])
def test_panels(dtype: torch.dtype, f: int) -> None:
    """Many tiles, and segments that end at, before and after their edges."""
    offsets = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    n = offsets[-1]
    tensors = {"weights": weights(n) * 30, "frequencies": rows(f, 6, seed=1), "x": rows(n, 6)}
    compare(OP, Sample(f"F={f}", tensors, {"x_offsets": offsets}, typed=None), dtype, second=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("f", [1, 47, 193])
def test_kept_products_change_nothing(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, f: int) -> None:
    """Bit for bit, in gradients of both orders."""
    offsets = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    n = offsets[-1]
    tensors = {"weights": weights(n) * 30, "frequencies": rows(f, 6, seed=1), "x": rows(n, 6)}
    sample = Sample("", tensors, {"x_offsets": offsets}, typed=None)
    found = []
    module = importlib.import_module("decoct.ops.characteristic_mean")
    for limit in (module.KEPT_BYTES, 0):
        monkeypatch.setattr(module, "KEPT_BYTES", limit)
        found.append(evaluate(OP.function, sample.cast(dtype, requires_grad=True), list(tensors), True))
    for key, kept in found[0].items():
        assert torch.equal(kept, found[1][key]), key


@pytest.mark.usual_backends("cpu")
@pytest.mark.parametrize("d", [1, 2, 3, 15, 16, 17, 33, 64, 127, 129, 257, 512, 1031])
def test_columns(d: int) -> None:
    tensors = {"frequencies": rows(10, d, seed=1) / d**0.5, "x": rows(21, d)}
    compare(OP, Sample(f"D={d}", tensors, {}, typed=None), torch.float32, second=True)
    compare(OP, Sample(f"D={d}", tensors, {}, typed=None), torch.float64, second=True)


@pytest.mark.parametrize(("n", "f"), [(0, 4), (4, 0), (0, 0)])
def test_nothing(n: int, f: int) -> None:
    x, frequencies = rows(n, 3).requires_grad_(), rows(f, 3).requires_grad_()
    w = weights(n).requires_grad_() if n else torch.zeros(0).double().requires_grad_()
    cosine, sine = decoct.characteristic_mean(x, frequencies, weights=w)
    assert cosine.shape == sine.shape == (f,)
    assert not cosine.any()
    gradients = torch.autograd.grad((cosine + sine).sum(), (x, frequencies, w), create_graph=True)
    for gradient in gradients:
        assert not gradient.any()
    empty = decoct.characteristic_mean(rows(0, 3), rows(2, 3), x_offsets=[0])
    assert empty[0].shape == (0, 2)


def test_a_row_that_is_not_finite() -> None:
    """It makes the results and the rows' gradients of its own segment NaN at most."""
    x, f = rows(20, 5), rows(6, 5, seed=1)
    spoilt = x.clone()
    spoilt[7, 2] = math.inf
    found = []
    for given_rows in (x, spoilt):
        leaf = given_rows.clone().requires_grad_()
        cosine, sine = decoct.characteristic_mean(leaf, f, x_offsets=[0, 6, 12, 20])
        found.append((cosine, sine, *torch.autograd.grad((cosine * 2 + sine).sum(), leaf)))
    (clean_c, clean_s, clean_g), (cosine, sine, gradient) = found
    for ours, clean in ((cosine, clean_c), (sine, clean_s)):
        assert ours[1].isnan().all()
        assert torch.equal(ours[[0, 2]], clean[[0, 2]])
    others = [k for k in range(20) if k != 7]
    assert gradient[7].isnan().all()
    assert torch.equal(gradient[others], clean_g[others])


def test_one_of_both_results() -> None:
    """The other one's derivative is then missing, not zero."""
    for k in range(2):
        x, f = rows(9, 4).requires_grad_(), rows(5, 4, seed=1).requires_grad_()
        (ours,) = torch.autograd.grad(decoct.characteristic_mean(x, f)[k].sum(), x, create_graph=True)
        (exact,) = torch.autograd.grad(reference.characteristic_mean(x, f)[k].sum(), x, create_graph=True)
        torch.testing.assert_close(ours, exact)
        torch.testing.assert_close(
            torch.autograd.grad(ours.square().sum(), f), torch.autograd.grad(exact.square().sum(), f)
        )


def _loss(function, x: Tensor, f: Tensor, w: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    cosine, sine = function(x, f, weights=w)
    return (cosine * torch.linspace(-1, 1, len(f)).to(cosine)).sum() + sine.square().sum()


# torch's own forward-mode rules use torch.jit.script when they load.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_transforms(argument: int) -> None:
    """grad, vmap, jvp and their compositions, against the twin's."""
    point = rows(7, 3), rows(5, 3, seed=1), weights(7)
    moved = rows(*point[argument].shape, seed=4)

    def of(function):  # type: ignore[no-untyped-def]
        def call(value: Tensor) -> Tensor:
            return _loss(function, *(value if k == argument else part for k, part in enumerate(point)))

        return call

    ours, exact = of(decoct.characteristic_mean), of(reference.characteristic_mean)
    value = point[argument]
    batch = torch.stack([value, value + 0.5, -value])

    def both(transform):  # type: ignore[no-untyped-def]
        torch.testing.assert_close(transform(ours), transform(exact), rtol=1e-10, atol=1e-12)

    both(lambda call: torch.func.grad(call)(value))
    both(lambda call: torch.func.vmap(call)(batch))
    both(lambda call: torch.func.vmap(torch.func.grad(call))(batch))
    both(lambda call: torch.func.jvp(call, (value,), (moved,)))
    both(lambda call: torch.func.jvp(torch.func.grad(call), (value,), (moved,)))
    both(lambda call: torch.func.grad(lambda v: torch.func.jvp(call, (v,), (moved,))[1])(value))
    both(lambda call: torch.func.grad(lambda v: torch.func.grad(call)(v).square().sum())(value))


@pytest.mark.usual_backends("cpu")
def test_compiled_transforms_raise() -> None:
    x, f = rows(7, 3), rows(5, 3, seed=1)
    compiled = torch.compile(
        torch.func.grad(lambda v: decoct.characteristic_mean(v, f)[0].sum()), fullgraph=True, backend="eager"
    )
    with pytest.raises(Exception, match=r"torch\.func cannot be traced"):
        compiled(x)


@pytest.mark.usual_backends("cpu")
def test_opcheck() -> None:
    x, f, w = (t.float().requires_grad_() for t in (rows(9, 4), rows(5, 4, seed=1), weights(9)))
    offsets = torch.tensor([0, 4, 9])
    bars = rows(2, 5).float(), rows(2, 5, seed=3).float()
    names = torch.ops.decoct
    for keep in (False, True):
        torch.library.opcheck(names.characteristic_mean.default, (x, f, w, offsets, 2, keep))
    products = (x @ f.T).detach()
    for need in (1, 6, 7):
        torch.library.opcheck(
            names.characteristic_mean_grad.default, (*bars, x, f, w, offsets, 2, products, need)
        )
    plain = [t.detach() for t in (x, f, w)]
    tangents = rows(9, 4, seed=5).float(), None, rows(9, seed=6).float()
    second = (*tangents, *bars, *plain, offsets, 2, 15)
    torch.library.opcheck(names.characteristic_mean_second.default, second)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
@pytest.mark.usual_backends("cpu")
def test_nested_rows() -> None:
    parts = [rows(4, 3), rows(7, 3, seed=1)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    ours = decoct.characteristic_mean(nested, rows(5, 3, seed=2))
    packed = decoct.characteristic_mean(torch.cat(parts), rows(5, 3, seed=2), x_offsets=[0, 4, 11])
    assert all(torch.equal(a, b) for a, b in zip(ours, packed, strict=True))


@pytest.mark.usual_backends("cpu")
@pytest.mark.filterwarnings("ignore:.*Profiler clears events at the end of each cycle")
def test_no_array_of_all_pairs() -> None:
    """Beyond inputs and results some panels, where the products are too many to be kept."""
    x, f = rows(4000, 4).float().requires_grad_(), rows(4000, 4, seed=1).float()
    decoct.ops.release_scratch()
    with torch.profiler.profile(profile_memory=True) as profile:
        cosine, sine = decoct.characteristic_mean(x, f)
        (cosine + sine).sum().backward()
    largest = max(max(event.cpu_memory_usage, event.device_memory_usage) for event in profile.events())
    assert largest < 4000 * 4000 * 4 / 2, largest
