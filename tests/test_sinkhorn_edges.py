"""Entropic transport at the edges of what it takes: potentials far above eps, numbers that are not finite,
extreme rows, weights that do not fit, tolerances out of reach."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import decoct
from decoct import reference
from decoct.objectives import Measure, Sinkhorn
from decoct.ops import _equations
from table import on_device

pytestmark = pytest.mark.usefixtures("backend")
apply_plan, sinkhorn_divergence, sinkhorn_potentials = (
    on_device(function)
    for function in (decoct.apply_plan, decoct.sinkhorn_divergence, decoct.sinkhorn_potentials)
)
NAN = math.nan


def clouds(n: int = 8, m: int = 6, shift: float = 0.2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normal rows and weights that sum to 1."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.2 for k in (n, m))
    return x, y + shift, a / a.sum(), b / b.sum()


# ---- Potentials so large that a pair with a row that is not there would overflow

FAR = 20.0
"""Between clouds at this shift, potentials are some 300 eps at blur 1, those at the rows' mean, where padded
rows lie, 150."""


def assert_near(ours: Tensor, exact: Tensor, share: float) -> None:
    """To a share of the largest entry. Exponents of 600 are off by 4e-5 in float32, and the equations of
    second derivatives take off numbers of |x - y|^2 = 1200 from one another."""
    assert ours.isfinite().all()
    assert (ours - exact).abs().max() <= share * exact.abs().max()


def test_far_clouds_second_order() -> None:
    x, y, _, _ = clouds(33, 9, FAR)
    results = []
    for function, dtype, tol in (
        (sinkhorn_divergence, torch.float32, 1e-5),
        (sinkhorn_divergence, torch.float64, 1e-12),
        (reference.sinkhorn_divergence, torch.float64, 1e-12),
    ):
        left, right = (rows.to(dtype).clone().requires_grad_() for rows in (x, y))
        value = function(left, right, blur=1.0, tol=tol, max_iterations=20000)
        firsts = torch.autograd.grad(value, (left, right), create_graph=True)
        along = sum((torch.sin(first.detach() * 7) * first).sum() for first in firsts)
        seconds = torch.autograd.grad(along, (left, right))  # type: ignore[arg-type]
        results.append([part.detach() for part in (*firsts, *seconds)])
    for ours, exact, twin, share in zip(*results, (1e-4, 1e-4, 0.05, 0.05), strict=True):
        assert_near(ours, exact, share)
        assert (exact - twin).abs().max() <= 1e-7 * twin.abs().max()


@pytest.mark.parametrize("p", [1, 2])
def test_far_clouds_plan(p: int) -> None:
    """First and second order of a product with the plan, in the rows and potentials."""
    x, y, _, _ = clouds(33, 9, FAR)
    blur = 1.0 if p == 2 else 0.1
    solution = sinkhorn_potentials(x.float(), y.float(), p=p, blur=blur)
    assert solution.f.min() > 88 * blur**p
    results = []
    for function, dtype in (
        (apply_plan, torch.float32),
        (apply_plan, torch.float64),
        (reference.apply_plan, torch.float64),
    ):
        inputs = [part.to(dtype).clone().requires_grad_() for part in (x.float(), y.float(), *solution[1:3])]
        left, right, f, g = inputs
        sums = function(left, right, right.detach(), f=f, g=g, p=p, blur=blur)
        firsts = torch.autograd.grad(sums.sin().sum(), inputs, create_graph=True)
        along = sum((torch.sin(first.detach()) * first).sum() for first in firsts)
        seconds = torch.autograd.grad(along, inputs)  # type: ignore[arg-type]
        results.append([part.detach() for part in (*firsts, *seconds)])
    for ours, exact, twin in zip(*results, strict=True):
        torch.testing.assert_close(exact, twin, rtol=1e-8, atol=1e-10 * float(twin.abs().max()))
        assert_near(ours, exact, 5e-3)


# ---- Numbers that are not finite


def test_a_row_that_is_not_finite_has_not_converged() -> None:
    """Nor has its segment a potential; the other segment is as it was."""
    x, y, _, _ = clouds(12, 9)
    ends: dict[str, Any] = {"x_offsets": [0, 5, 12], "y_offsets": [0, 4, 9], "blur": 1.0}
    ends |= {"tol": 1e-6}
    clean = sinkhorn_potentials(x, y, **ends)
    x[2, 1] = NAN
    spoilt = sinkhorn_potentials(x, y, **ends)
    assert spoilt.error[0].isnan()
    assert spoilt.converged.tolist() == [False, True]
    assert clean.converged.tolist() == [True, True]
    for name in ("value", "error", "f", "g", "f_self", "g_self"):
        ours, before = getattr(spoilt, name), getattr(clean, name)
        own = 1 if name in ("value", "error") else 5 if name.startswith("f") else 4
        assert ours[:own].isnan().all(), name
        assert torch.equal(ours[own:], before[own:]), name


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("debias", [True, False])
def test_a_weight_that_is_not_a_number_has_not_converged(side: str, debias: bool) -> None:
    x, y, a, b = clouds()
    weights = {"a": a, "b": b}
    weights[side][1] = NAN
    solution = sinkhorn_potentials(x, y, **weights, blur=1.0, tol=0.2, debias=debias)
    assert solution.value.isnan()
    assert solution.error.isnan()
    assert not bool(solution.converged)


def test_an_equation_that_loses_its_numbers_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all that was given is finite; a cotangent that is not makes its segment NaN and no other."""
    x, y, _, _ = clouds(12, 9)
    ends: dict[str, Any] = {"x_offsets": [0, 5, 12], "y_offsets": [0, 4, 9], "blur": 1.0}
    y.requires_grad_()
    (first,) = torch.autograd.grad(sinkhorn_divergence(x, y, **ends).sum(), y, create_graph=True)
    weights = torch.ones_like(first)
    (expected,) = torch.autograd.grad((weights * first).sum(), y, retain_graph=True)
    weights[2, 0] = NAN
    (spoilt,) = torch.autograd.grad((weights * first).sum(), y, retain_graph=True)
    assert spoilt[:4].isnan().all()
    assert torch.equal(spoilt[4:], expected[4:])
    product = _equations._product
    monkeypatch.setattr(_equations, "_product", lambda *arguments: product(*arguments) * NAN)
    with pytest.raises(RuntimeError, match="did not converge"):
        torch.autograd.grad(first.sum(), y)


# ---- Extreme rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-70, 2.0**70, 2.0**120], ids=lambda s: f"2^{math.log2(s)}")
def test_cosine_does_not_depend_on_lengths(dtype: torch.dtype, scale: float) -> None:
    """Value, gradients and second derivatives of one side's rows, times the scale for each order."""
    x, y, _, _ = (part.to(dtype) for part in clouds())
    results = []
    for unit in (1.0, scale):
        right = (y * unit).requires_grad_()
        value = sinkhorn_divergence(x, right, cost="cosine", blur=0.8, tol=1e-5)
        (first,) = torch.autograd.grad(value, right, create_graph=True)
        (second,) = torch.autograd.grad((first * x[:6].sin()).sum() * unit, right)
        results.append((value.detach(), first.detach() * unit, second * unit))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_cosine_keeps_rows_without_a_direction() -> None:
    """A row of zeros stays one; a row with a number that is not finite makes its segment NaN."""
    x, y, _, _ = clouds()
    y[1] = 0
    y.requires_grad_()
    value = sinkhorn_divergence(x, y, cost="cosine", blur=0.8)
    (gradient,) = torch.autograd.grad(value, y)
    assert gradient.isfinite().all()
    assert not gradient[1].abs().sum()
    for bad in (NAN, math.inf, -math.inf):
        spoilt = x.clone()
        spoilt[3, 1] = bad
        assert sinkhorn_divergence(spoilt, y.detach(), cost="cosine", blur=0.8).isnan()


# ---- Weights and starts that do not fit


def test_weights_that_do_not_fit() -> None:
    x, y, a, b = clouds()
    negative = b.clone()
    negative[2] = -0.125
    with pytest.raises(ValueError, match=r"^sinkhorn_divergence: b must not be negative, got -0\.125$"):
        decoct.sinkhorn_divergence(x, y, a=a, b=negative)
    text = (
        r"^sinkhorn_potentials: b must have the total of a, 2, in each segment unless reach= or mass= is "
        r"given, got 1$"
    )
    with pytest.raises(ValueError, match=text):
        decoct.sinkhorn_potentials(x, y, a=2 * a)
    assert sinkhorn_divergence(x, y, a=2 * a, b=b, blur=1.0, reach=1.0).isfinite()
    assert sinkhorn_divergence(x, y, a=2 * a, b=b, blur=1.0, reach=(None, 1.0)).isfinite()
    assert sinkhorn_divergence(x, y, a=2 * a, b=b, blur=1.0, mass=0.5, debias=False).isfinite()
    assert sinkhorn_divergence(x, y, a=a * (1 + 1e-4), b=b, blur=1.0).isfinite()


def test_weights_that_do_not_fit_in_one_segment() -> None:
    """Of segments that are empty on one side nothing is asked."""
    x, y, _, _ = clouds(8, 6)
    ends: dict[str, Any] = {"x_offsets": [0, 3, 3, 8], "y_offsets": [0, 2, 4, 6], "blur": 1.0}
    a = torch.tensor([1.0] * 3 + [0.4] * 5, dtype=torch.float64)
    b = torch.tensor([1.5, 1.5, 9.0, 9.0, 1.0, 1.0], dtype=torch.float64)
    assert sinkhorn_divergence(x, y, a=a, b=b, **ends).isfinite().all()
    b[5] = 2.0
    with pytest.raises(ValueError, match="b must have the total of a, 2, in each segment"):
        decoct.sinkhorn_divergence(x, y, a=a, b=b, **ends)


def test_weights_are_checked_where_they_have_values() -> None:
    """Not under transforms, a compiler or as fakes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, y, a, b = clouds()

    def call(w: Tensor) -> Tensor:
        return decoct.sinkhorn_divergence(x, y, a=w, b=b, blur=1.0)

    batched = torch.func.vmap(call)(torch.stack([a, a]))
    torch.testing.assert_close(batched, call(a).expand(2), rtol=1e-12, atol=0)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a), call(a))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(part) for part in (x, y, a, b)]
        shape = decoct.sinkhorn_divergence(fakes[0], fakes[1], a=fakes[2], b=fakes[3], blur=1.0).shape
    assert shape == ()


def test_the_objective_compares_shares() -> None:
    """Masses of ones of different counts are as good as none; with a reach they are used as given."""
    x, y, _, _ = clouds(12, 5)
    groups = {"real": torch.tensor([0, 7, 12]), "synthetic": torch.tensor([0, 2, 5])}
    objective = Sinkhorn(blur=0.5, real_term=True)
    plain = objective(Measure(x, groups=groups["real"]), Measure(y, groups=groups["synthetic"]))
    ones = (
        Measure(x, groups=groups["real"], mass=torch.ones(12, dtype=torch.float64)),
        Measure(y, groups=groups["synthetic"], mass=torch.full((5,), 3.0, dtype=torch.float64)),
    )
    torch.testing.assert_close(objective(*ones), plain, rtol=1e-12, atol=0)
    relaxed = Sinkhorn(blur=0.5, real_term=True, reach=1.0)
    assert bool((relaxed(*ones) > 2 * relaxed(*(m.replace(mass=None) for m in ones))).all())


def test_a_start_of_another_shape() -> None:
    x, y, _, _ = clouds(16, 12)
    x, y = x.reshape(2, 8, 3), y.reshape(2, 6, 3)
    cold = sinkhorn_potentials(x, y, blur=1.0)
    for wrong in (cold.f.T, cold.f.reshape(4, 4), cold.f.reshape(-1)):
        shape = str(tuple(wrong.shape)).replace("(", r"\(").replace(")", r"\)")
        text = rf"start\.f must be \(2, 8\) as the rows of x, got {shape}$"
        with pytest.raises(ValueError, match=text):
            sinkhorn_divergence(x, y, blur=1.0, start=cold._replace(f=wrong))
    with pytest.raises(ValueError, match=r"start\.g_self must be \(2, 6\) as the rows of y, got \(2, 8\)$"):
        sinkhorn_divergence(x, y, blur=1.0, start=cold._replace(g_self=cold.f_self))


def test_a_start_has_what_is_solved() -> None:
    """Without the term of x with itself there need be no potentials of it."""
    x, y, _, _ = clouds()
    cold = sinkhorn_potentials(x, y, blur=1.0)
    options: dict[str, Any] = {"blur": 1.0, "xx": False}
    expected = sinkhorn_divergence(x, y, start=cold, **options)
    assert torch.equal(sinkhorn_divergence(x, y, start=cold._replace(f_self=None), **options), expected)
    for name, given in (("g_self", options), ("f_self", {"blur": 1.0})):
        with pytest.raises(ValueError, match=rf"start must have {name} with debias=True, got None$"):
            sinkhorn_divergence(x, y, start=cold._replace(**{name: None}), **given)  # type: ignore[arg-type]


# ---- Numbers that a dtype cannot give


def test_a_tolerance_below_rounding() -> None:
    """The floor rises with the largest cost over eps; a few times it is reached."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(rows, 64, generator=generator) for rows in (20, 15))
    options: dict[str, Any] = {"diameter": 8.0, "blur": 0.4, "max_iterations": 5000, "debias": False}
    floor = 2.0**-23 * (8.0**2 / 2) / 0.4**2 / 16
    text = rf"tol must be at least {floor:.3g} for rows below float64 at this diameter and blur, got 1.2e-06$"
    with pytest.raises(ValueError, match=text):
        sinkhorn_divergence(x, y, tol=1.2e-6, **options)
    assert bool(sinkhorn_potentials(x.double(), y.double(), tol=1.2e-6, **options).converged)
    assert bool(sinkhorn_potentials(x, y, tol=4 * floor, **options).converged)


@pytest.mark.parametrize("p", [1, 2])
def test_a_blur_out_of_range(p: int) -> None:
    x, y, _, _ = clouds()
    extremes = [5e-324] if p == 1 else [5e-324, 1e-200, 1e200]
    for blur in extremes:
        text = "blur must be a number whose power eps = blur\\^p is in range"
        with pytest.raises(ValueError, match=text):
            sinkhorn_divergence(x, y, p=p, blur=blur)
        with pytest.raises(ValueError, match=text):
            apply_plan(x, y, y, f=x[:, 0], g=y[:, 0], p=p, blur=blur)
    for dtype, small, large in ((torch.float32, 50.0, 1e6), (torch.float64, 1e3, 1e15)):
        rows: dict[str, Any] = {"x": x.to(dtype), "y": y.to(dtype), "p": p, "diameter": 4.0}
        assert sinkhorn_divergence(**rows, blur=4 * small).isfinite()
        with pytest.raises(ValueError, match=f"times the diameter.* in {str(dtype)[6:]}, got"):
            sinkhorn_divergence(**rows, blur=4 * large)


# ---- Forward mode

# torch's own forward-mode rules use torch.jit.script when they load.
FORWARD = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@FORWARD
@pytest.mark.parametrize("extra", ["sharp", "mass", "labels"])
def test_a_push_of_the_value_alone(extra: str) -> None:
    """Solves no equations: it is there where second derivatives are not. Reverse mode agrees."""
    x, y, a, b = clouds()
    options: dict[str, Any] = {"blur": 0.7, "debias": False}
    if extra == "sharp":
        options |= {"blur": 0.01, "debias": True}
    elif extra == "mass":
        options["mass"] = 0.5
    else:
        options |= {"x_labels": torch.arange(8) % 2, "y_labels": torch.arange(6) % 2}
        options["label_cost"] = torch.tensor([[0.0, 0.4], [0.4, 0.0]])
    inputs, tangents = (x, y, a, b), tuple((part * 5).sin() for part in (x, y, a, b))

    def call(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return decoct.sinkhorn_divergence(x, y, a=a, b=b, **options)

    value, pushed = torch.func.jvp(call, inputs, tangents)
    leaves = [part.clone().requires_grad_() for part in inputs]
    gradients = torch.autograd.grad(call(*leaves), leaves)
    expected = sum((one * other).sum() for one, other in zip(gradients, tangents, strict=True))
    torch.testing.assert_close(value, call(*inputs))
    torch.testing.assert_close(pushed, expected, rtol=1e-10, atol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        duals = map(torch.autograd.forward_ad.make_dual, inputs, tangents)
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(call(*duals)).tangent, pushed)
    each = torch.func.vmap(lambda t: torch.func.jvp(call, inputs, (t, *tangents[1:]))[1])(
        torch.stack([tangents[0], 2 * tangents[0]])
    )
    torch.testing.assert_close(each[0], pushed, rtol=1e-10, atol=1e-12)


@FORWARD
def test_pushes_through_other_derivatives() -> None:
    """Forward over reverse and reverse over forward have the second derivative; forward twice raises."""
    x, y, _, _ = clouds()
    along = (y * 5).sin()

    def call(y: Tensor) -> Tensor:
        return decoct.sinkhorn_divergence(x, y, blur=1.5, tol=1e-12)

    leaf = y.clone().requires_grad_()
    (first,) = torch.autograd.grad(call(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * along).sum(), leaf)
    pushed = torch.func.jvp(torch.func.grad(call), (y,), (along,))[1]
    torch.testing.assert_close(pushed, second, rtol=1e-7, atol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(leaf, along)
        (gradient,) = torch.autograd.grad(call(dual), leaf)
        pushed = torch.autograd.forward_ad.unpack_dual(gradient).tangent
        torch.testing.assert_close(pushed, second, rtol=1e-7, atol=1e-10)

    def push(y: Tensor) -> Tensor:
        return torch.func.jvp(call, (y,), (along,))[1]  # type: ignore[no-any-return]

    (reverse,) = torch.autograd.grad(push(leaf), leaf)
    torch.testing.assert_close(reverse, second, rtol=1e-7, atol=1e-10)
    with pytest.raises(RuntimeError, match="a third one is not offered"):
        torch.func.jvp(push, (y,), (along,))
