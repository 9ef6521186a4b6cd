"""The registered ops under torch's machinery: opcheck, torch.func, forward-mode AD, compilation of
transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import decoct
from decoct import reference
from samples import rows, weights

# torch's own forward-mode rules use torch.jit.script when they load.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

X, Y = rows(5, 3), rows(4, 3, seed=1)
TANGENTS = rows(5, 3, seed=2), rows(4, 3, seed=3)
BATCH = rows(6, 5, 3, seed=4)
ENDS = {"x_offsets": torch.tensor([0, 2, 2, 5]), "y_offsets": torch.tensor([0, 1, 3, 4])}

SOLVED: dict[str, Any] = {"blur": 2.0, "tol": 1e-13, "max_iterations": 5000}

FUNCTIONS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "gaussian": lambda m, x, y: m.mmd(x, y, "gaussian", 1.1),
    "mean": lambda m, x, y: m.mmd(x, y, "inverse_multiquadric", "mean"),
    "median": lambda m, x, y: m.mmd(x, y, "laplacian", "median"),
    "weights": lambda m, x, y: m.mmd(x, y, "gaussian", 1.1, estimator="unbiased", a=x[:, 0] ** 2),
    "linear": lambda m, x, y: m.mmd(x, y, "linear", estimator="unbiased"),
    "linear-weighted": lambda m, x, y: m.mmd(x, y, "linear", a=x[:, 1]),
    "polynomial": lambda m, x, y: m.mmd(x, y, "polynomial", estimator="unbiased"),
    "length": lambda m, x, y: m.mmd(x, y, "gaussian", y[0, 0] ** 2 + 1),
    "ragged": lambda m, x, y: m.mmd(x, y, "energy", **ENDS).square().sum(),
    "ragged-linear": lambda m, x, y: m.mmd(x, y, "linear", **ENDS).square().sum(),
    "kernel_mean": lambda m, x, y: m.kernel_mean(x, y, "rational_quadratic", 1.1),
    "matvec": lambda m, x, y: m.kernel_matvec(x, y, y[:, :2] * 2, "gaussian", 1.1).square().sum(),
    "sinkhorn": lambda m, x, y: m.sinkhorn_divergence(x, y, **SOLVED),
    "sinkhorn-ragged": lambda m, x, y: m.sinkhorn_divergence(x, y, **ENDS, **SOLVED).square().sum(),
    "sinkhorn-weights": lambda m, x, y: m.sinkhorn_divergence(
        x, y, a=x[:, 0] ** 2 + 0.1, reach=2.0, **{**SOLVED, "p": 1}
    ),
    "plan": lambda m, x, y: m.apply_plan(x, y, y[:, :2], f=x[:, 0], g=y[:, 1], blur=1.5).square().sum(),
}


def by_forward_mode(f: Callable[..., Tensor]) -> Tensor:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip((X, Y), TANGENTS, strict=True)]
        return forward_ad.unpack_dual(f(*duals)).tangent


def forward_over_reverse(f: Callable[..., Tensor]) -> Tensor:
    with forward_ad.dual_level():
        x = forward_ad.make_dual(X.clone().requires_grad_(), TANGENTS[0])
        (gradient,) = torch.autograd.grad(f(x, Y), x, create_graph=True)
        return forward_ad.unpack_dual(gradient).tangent


def outer_autograd(f: Callable[..., Tensor]) -> Tensor:
    y = Y.clone().requires_grad_()
    return torch.autograd.grad(grad(f)(X, y).square().sum(), y)[0]


def vectorised_hessian(f: Callable[..., Tensor]) -> Tensor:
    return torch.autograd.functional.hessian(lambda x: f(x, Y), X, vectorize=True)


def each(f: Callable[..., Any]) -> Callable[..., Any]:
    """vmap over x by a loop: what the batched form of the ops must equal."""
    return lambda x, y: torch.utils._pytree.tree_map(lambda *t: torch.stack(t), *[f(part, y) for part in x])


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Any]] = {
    "grad": lambda f: grad(f, (0, 1))(X, Y),
    "vjp": lambda f: vjp(f, X, Y)[1](torch.tensor(2.0, dtype=torch.float64)),
    "jvp": lambda f: jvp(f, (X, Y), TANGENTS),
    "grad of grad": lambda f: grad(lambda x: grad(f)(x, Y).square().sum())(X),
    "hessian": lambda f: hessian(f, 1)(X, Y),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f, 1), 0)(X, Y),
    "jacfwd of grad": lambda f: jacfwd(grad(f, 1), 0)(X, Y),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f, 1), 1)(X, Y),
    "forward mode": by_forward_mode,
    "forward over reverse": forward_over_reverse,
    "vectorised hessian": vectorised_hessian,
    "autograd outside": outer_autograd,
}
# The tangent of a matrix-vector product is already a second-order kernel, and there is no third-order one.
THIRD = "a third one is not offered"
RAISES = {("matvec", "jacrev of jacfwd"): THIRD, ("plan", "jacrev of jacfwd"): THIRD}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(name: str, transform: str) -> None:
    """The value of each transform, so that a silent zero is seen."""
    apply = TRANSFORMS[transform]
    if (name, transform) in RAISES:
        with pytest.raises(RuntimeError, match=RAISES[name, transform]):
            apply(lambda x, y: FUNCTIONS[name](decoct, x, y))
        return
    ours = apply(lambda x, y: FUNCTIONS[name](decoct, x, y))
    expected = apply(lambda x, y: FUNCTIONS[name](reference, x, y))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap(name: str) -> None:
    """A batch of ragged problems folds into one; alone, under grad and inside of it."""
    ours = lambda x, y: FUNCTIONS[name](decoct, x, y)  # noqa: E731
    twin = lambda x, y: FUNCTIONS[name](reference, x, y)  # noqa: E731
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(vmap(ours, (0, None))(BATCH, Y), each(twin)(BATCH, Y), **close)
    batched = vmap(grad(ours, (0, 1)), (0, None))(BATCH, Y)
    torch.testing.assert_close(batched, each(grad(twin, (0, 1)))(BATCH, Y), **close)
    outer = grad(lambda x: vmap(ours, (0, None))(x, Y).square().sum())(BATCH)
    torch.testing.assert_close(outer, grad(lambda x: each(twin)(x, Y).square().sum())(BATCH), **close)
    twice = vmap(lambda s: vmap(lambda x: ours(x * s, Y))(BATCH))(
        torch.tensor([1.0, 2.0], dtype=torch.float64)
    )
    expected = torch.stack([each(twin)(BATCH * s, Y) for s in (1, 2)])
    torch.testing.assert_close(twice, expected, **close)


def test_vmap_with_an_omitted_term() -> None:
    """vmap alone needs no gradient, so leaving out the real-real term is allowed; under grad of x it is
    not."""
    loss = lambda x: decoct.mmd(x, Y, "gaussian", 1.0, xx=False)  # noqa: E731
    expected = torch.stack([decoct.mmd(x, Y, "gaussian", 1.0, xx=False) for x in BATCH])
    torch.testing.assert_close(vmap(loss)(BATCH), expected)
    with pytest.raises(ValueError, match="xx must be None while x needs a gradient"):
        vmap(grad(loss))(BATCH)
    with pytest.raises(ValueError, match="xx must be None while x needs a gradient"):
        jvp(loss, (X,), (TANGENTS[0],))


def test_vmap_over_offsets_raises() -> None:
    with pytest.raises(RuntimeError):
        vmap(lambda ends: decoct.mmd(X, Y, x_offsets=ends, y_offsets=[0, 4]))(torch.tensor([[0, 5], [0, 5]]))


# The tracer touches .grad of what it looks at and instantiates autograd functions, and warns about both.
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore:<class 'torch.autograd.function.Function'>")
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: grad(f)(X),
        lambda f: jvp(f, (X,), (TANGENTS[0],))[1],
        lambda f: vmap(f)(BATCH),
    ],
    ids=["grad", "jvp", "vmap"],
)
def test_a_compiled_transform_is_right_or_raises(transform: Callable[..., Any]) -> None:
    """fullgraph raises; without it the transform runs uncompiled and its value is right."""
    loss = lambda x: decoct.mmd(x, Y, "gaussian", 1.1)  # noqa: E731
    expected = transform(loss)
    whole = torch.compile(lambda: transform(loss), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"torch\.func|Observed exception"):
        whole()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(lambda: transform(loss), backend="eager")(), expected)


@pytest.mark.parametrize("segments", [False, True])
def test_compiled_offsets(segments: bool) -> None:
    """Offsets as tensors are a graph's inputs; Segments are read through."""
    ends = [decoct.Segments(t) if segments else t for t in ENDS.values()]
    call = lambda x, y, p, q: decoct.mmd(x, y, x_offsets=p, y_offsets=q)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    y = Y.clone().requires_grad_()
    ours, expected = compiled(X, y, *ends), call(X, y, *ends)
    assert torch.equal(ours, expected)
    assert torch.equal(torch.autograd.grad(ours.sum(), y)[0], torch.autograd.grad(expected.sum(), y)[0])


def test_bad_offsets_inside_a_graph() -> None:
    """Their values are unknown while tracing; the engine refuses them when the graph runs."""
    call = lambda x, y, p, q: decoct.mmd(x, y, x_offsets=p, y_offsets=q)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="offsets"):
        compiled(X, Y, torch.tensor([0, 4]), torch.tensor([0, 4]))


def _kernel(name: str = "gaussian") -> tuple[Any, ...]:
    return decoct.kernels.resolve(name).spec(3).packed()


def _sums_arguments(need: int) -> tuple[Any, ...]:
    live = [
        t.clone().requires_grad_(bool(need >> i & 1)) for i, t in enumerate((X, Y, weights(5), weights(4)))
    ]
    coefficients = torch.tensor([[1.0, -2.0, 1.0]] * 3, dtype=torch.float64)
    lengths = torch.ones(3, dtype=torch.float64)
    return *live, *ENDS.values(), 3, coefficients, lengths, None, None, *_kernel(), 7, need


NUMBERS = [2.0, 1.5, 0.5, 0.0, float("inf"), 2.0, 0.0, 1e-12, 1000.0, 0.0]
"""A problem with one relaxed marginal, packed."""


def _sinkhorn_arguments(terms: int, need: int) -> tuple[Any, ...]:
    live = [t.clone().requires_grad_(i > 1 or bool(need >> i & 1)) for i, t in enumerate((X, Y))]
    held = [weights(5).requires_grad_(), weights(4).requires_grad_()]
    return *live, *held, *ENDS.values(), 3, *[None] * 7, NUMBERS, terms, need


def _implicit_arguments() -> tuple[Any, ...]:
    potentials = [t[:, i].clone() for t, i in ((X, 0), (Y, 0), (X, 1), (Y, 1))]
    bars = [potentials[2], None, potentials[0], None, TANGENTS[0], TANGENTS[1]]
    return X, Y, weights(5), weights(4), *ENDS.values(), 3, *potentials, *bars, NUMBERS, 7, 15


def opchecks() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Direct calls of each registered op."""
    ops = torch.ops.decoct
    bare = (
        X,
        Y,
        None,
        None,
        None,
        None,
        1,
        torch.tensor([[0.0, -2.0, 1.0]], dtype=torch.float64),
        *[None] * 3,
    )
    tangents = (rows(5, 3), None, weights(5), None)
    live = [t.clone().requires_grad_() for t in (X, Y, rows(4, 2))]
    return {
        "kernel_sums": (ops.kernel_sums, _sums_arguments(15)),
        "kernel_sums, y only": (ops.kernel_sums, _sums_arguments(2)),
        "kernel_sums, mean rule": (ops.kernel_sums, (*bare, *_kernel("laplacian"), 6, 0)),
        "kernel_sums_hvp": (
            ops.kernel_sums_hvp,
            (*(t.detach() if isinstance(t, Tensor) else t for t in _sums_arguments(15)[:-1]), *tangents, 15),
        ),
        "kernel_matvec": (
            ops.kernel_matvec,
            (*live, *ENDS.values(), 3, torch.ones(3, dtype=torch.float64), None, None, *_kernel()),
        ),
        "kernel_matvec, potentials": (
            ops.kernel_matvec,
            (*live, *ENDS.values(), 3, torch.ones(3, dtype=torch.float64), X[:, 0], Y[:, 0], *_kernel()),
        ),
        "sinkhorn": (ops.sinkhorn, _sinkhorn_arguments(7, 3)),
        "sinkhorn, biased": (ops.sinkhorn, _sinkhorn_arguments(2, 1)),
        "sinkhorn_implicit": (ops.sinkhorn_implicit, _implicit_arguments()),
        "sinkhorn_pushed": (
            ops.sinkhorn_pushed,
            (*_implicit_arguments()[:11], *TANGENTS, weights(5), None, NUMBERS, 7, 3),
        ),
        "segment_sums": (ops.segment_sums, (live[0], weights(5).requires_grad_(), ENDS["x_offsets"], 3)),
        "segment_sums, means": (ops.segment_sums, (live[0], None, None, 1)),
        "mean_bandwidth": (ops.mean_bandwidth, (X, Y, *ENDS.values(), 3)),
        "median_bandwidth": (ops.median_bandwidth, (X, Y, None, None, 1)),
    }


@pytest.mark.parametrize("name", list(opchecks()))
def test_opcheck(name: str) -> None:
    op, arguments = opchecks()[name]
    torch.library.opcheck(op.default, arguments)


def test_the_rules_refuse_a_gradient() -> None:
    """Called directly, past the public function, an op without derivative raises instead of returning
    zeros."""
    length = torch.ops.decoct.mean_bandwidth(X.clone().requires_grad_(), Y, None, None, 1)
    with pytest.raises(RuntimeError, match="bandwidth rules are constants for autograd"):
        length.sum().backward()


def test_a_gradient_that_was_not_computed_raises() -> None:
    """`need` says what the forward pass computes; a backward pass that wants more is refused."""
    arguments = list(_sums_arguments(3))
    arguments[-1] = 2
    value = torch.ops.decoct.kernel_sums(*arguments)[0]
    with pytest.raises(RuntimeError, match="not told to compute"):
        value.sum().backward()
