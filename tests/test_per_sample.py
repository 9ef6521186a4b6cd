"""Norms, clipped sums and inner products of per-sample gradients, against one pass for each sample."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import decoct
import table
from decoct import reference
from decoct.networks import build
from decoct.ops._image_gram import image_gram
from decoct.ops._image_squares import image_squares
from decoct.ops._segment_outer import LINEAR
from test_class_gradients import LAYERS, network, rows

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

N, M = 6, 4
# Those that capture does not record are refused.
REFUSED = ("conv-3d", "conv-transposed", "rnn", "twice", "tokens-first", "weight-norm", "prelu")
KNOWN = [name for name in LAYERS if name not in REFUSED]


def targets(count: int, seed: int = 0) -> Tensor:
    drawn = torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(seed))
    return drawn.to(table.DEVICE)


def of_pass(
    net: nn.Module, x: Tensor, y: Tensor, reduction: str = "mean", create_graph: bool = False
) -> decoct.Capture:
    with decoct.capture(net) as pairs:
        loss = F.cross_entropy(net(x), y, reduction=reduction)
    pairs.backward(loss, create_graph=create_graph)
    return pairs


class Shared(nn.Module):
    """A layer and a norm used twice, and the layer's weight in another one. (Not LayerNorm: torch's third
    derivative of it is wrong, as differences tell.)"""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.tied = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm, self.last = nn.GroupNorm(2, 6), nn.Linear(6, 5)
        self.tied.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(torch.tanh(self.norm(self.layer(torch.tanh(self.first(x)))))))
        output: Tensor = self.last(torch.tanh(self.tied(x)))
        return output


def small_net(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(3)
    if kind == "mlp":
        made: nn.Module = nn.Sequential(
            nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 5)
        )
        return made.to(table.DEVICE, dtype), (3,)
    if kind == "shared":
        return Shared().to(table.DEVICE, dtype), (3,)
    convolutions = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8 * 9, 5),
    )
    return convolutions.to(table.DEVICE, dtype), (2, 6, 6)


NETS = ("mlp", "conv", "shared")


def whole(net: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """(N, P): all gradients side by side."""
    return torch.cat([g.flatten(1) for g in reference.per_sample_gradients(net, x, y, **options)], 1)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_layers(name: str, reduction: Any) -> None:
    net, x = network(name)
    x = x[:N]
    y = targets(x.shape[0])
    pairs = of_pass(net, x, y, reduction)
    exact = reference.per_sample_norms(net, x, y, per_layer=True)
    ours = decoct.per_sample_norms(pairs, per_layer=True, loss_reduction=reduction)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)
    total = decoct.per_sample_norms(pairs, loss_reduction=reduction)
    torch.testing.assert_close(total, exact.norm(dim=0), rtol=1e-9, atol=1e-12)
    limit = float(total.median())
    sums = decoct.clipped_gradient_sum(pairs, max_grad_norm=limit, loss_reduction=reduction)
    divisor = x.shape[0] if reduction == "mean" else 1
    for mine, theirs in zip(
        sums, reference.clipped_gradient_sum(net, x, y, max_grad_norm=limit), strict=True
    ):
        torch.testing.assert_close(mine, theirs / divisor, rtol=1e-9, atol=1e-12)
    g = whole(net, x, y)
    gram = decoct.gradient_gram(pairs, loss_reduction=reduction)
    torch.testing.assert_close(gram, g @ g.T, rtol=1e-9, atol=1e-11)
    assert torch.equal(gram, gram.T)


@pytest.mark.parametrize("name", KNOWN)
def test_against_vmap(name: str) -> None:
    """Explicit gradients of torch.func, an independent engine."""
    net, x = network(name)
    y = targets(x.shape[0])

    def loss(parameters: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, parameters, (row[None],)), target[None])

    parameters = {k: p.detach() for k, p in net.named_parameters()}
    gradients = vmap(grad(loss), (None, 0, 0))(parameters, x, y)
    exact = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()])
    ours = decoct.per_sample_norms(of_pass(net, x, y), per_layer=True)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "tokens-first"])
def test_layers_that_are_not_recorded(name: str) -> None:
    """No gradient is left out without a word."""
    net, x = network(name)
    pairs = of_pass(net, x, targets(x.shape[0]))
    for call in (decoct.per_sample_norms, decoct.gradient_gram):
        with pytest.raises(ValueError, match=r"is used by a layer that capture\(\) does not record"):
            call(pairs)
    with pytest.raises(ValueError, match="turn its requires_grad off"):
        decoct.clipped_gradient_sum(pairs, max_grad_norm=1.0)


def test_rows_that_are_not_samples() -> None:
    net, x = network("tokens-first")
    pairs = of_pass(net, x, targets(x.shape[0]))
    with pytest.raises(ValueError, match="must see each sample as a row of every layer's input"):
        decoct.per_sample_norms(pairs)


def test_batch_statistics() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).to(table.DEVICE)
    x = rows(6, 3).float()
    pairs = of_pass(net, x, targets(6))
    words = r"not defined for BatchNorm1d '1', .* call net.eval\(\) before the pass, or put GroupNorm"
    for call in (decoct.per_sample_norms, decoct.gradient_gram):
        with pytest.raises(ValueError, match=words):
            call(pairs)
    assert decoct.per_sample_norms(of_pass(net.eval(), x, targets(6))).shape == (6,)


@pytest.mark.parametrize("kind", NETS)
def test_networks(kind: str) -> None:
    net, shape = small_net(kind)
    x, y = rows(N, *shape), targets(N)
    u, v = rows(M, *shape, seed=1), targets(M, 1)
    pairs, other = of_pass(net, x, y), of_pass(net, u, v)
    exact = reference.per_sample_norms(net, x, y)
    torch.testing.assert_close(decoct.per_sample_norms(pairs), exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        decoct.gradient_gram(pairs, other), reference.gradient_gram(net, x, y, u, v), rtol=1e-9, atol=1e-12
    )
    limits = [0.1 * (1 + k) for k, _ in enumerate(net.parameters())]
    sums = decoct.clipped_gradient_sum(pairs, max_grad_norm=limits)
    for mine, theirs in zip(
        sums, reference.clipped_gradient_sum(net, x, y, max_grad_norm=limits), strict=True
    ):
        torch.testing.assert_close(mine, theirs / N, rtol=1e-9, atol=1e-12)
    listed = decoct.per_sample_norms(list(pairs))
    torch.testing.assert_close(listed, exact, rtol=1e-9, atol=1e-12)


def live(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, decoct.Capture]:
    leaf = x.clone().requires_grad_()
    return leaf, of_pass(net, leaf, y, create_graph=True)


SCALARS: dict[str, Callable[[decoct.Capture, decoct.Capture], Tensor]] = {
    "norms": lambda x, s: decoct.per_sample_norms(s).sin().sum(),
    "layers": lambda x, s: decoct.per_sample_norms(s, per_layer=True).sin().sum(),
    "clipped": lambda x, s: sum(
        (g.sin().sum() for g in decoct.clipped_gradient_sum(s, max_grad_norm=0.4) if g is not None),
        torch.zeros((), dtype=torch.float64),
    ),
    "gram": lambda x, s: decoct.gradient_gram(x, s).sin().sum(),
    "self": lambda x, s: decoct.gradient_gram(s).sin().sum(),
}


def twins(net: nn.Module, x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    def gradients() -> list[Tensor]:
        return reference.per_sample_gradients(net, u, v, create_graph=True)

    def norms() -> Tensor:
        return torch.stack([g.flatten(1).square().sum(1) for g in gradients()])

    def clipped() -> Tensor:
        factor = (0.4 / (norms().sum(0).sqrt() + 1e-6)).clamp(max=1) / M
        return sum(
            (torch.einsum("n,n...->...", factor, g).sin().sum() for g in gradients()),
            torch.zeros((), dtype=torch.float64),
        )

    def side() -> Tensor:
        return torch.cat([g.flatten(1) for g in gradients()], 1)

    return {
        "norms": lambda: norms().sum(0).sqrt().sin().sum(),
        "layers": lambda: norms().sqrt().sin().sum(),
        "clipped": clipped,
        "gram": lambda: (whole(net, x, y) @ side().T).sin().sum(),
        "self": lambda: (side() @ side().T).sin().sum(),
    }


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("what", list(SCALARS))
def test_derivatives_by_the_synthetic_side(kind: str, what: str) -> None:
    """First and second ones."""
    net, shape = small_net(kind)
    x, y, v = rows(N, *shape), targets(N), targets(M, 1)
    leaf, synthetic = live(net, rows(M, *shape, seed=1), v)
    value = SCALARS[what](of_pass(net, x, y), synthetic)
    (first,) = torch.autograd.grad(value, leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    u = leaf.detach().clone().requires_grad_()
    exact = twins(net, x, y, u, v)[what]()
    torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-12)
    (exact_first,) = torch.autograd.grad(exact, u, create_graph=True)
    torch.testing.assert_close(first, exact_first, rtol=1e-8, atol=1e-11)
    (exact_second,) = torch.autograd.grad(exact_first.square().sum(), u)
    torch.testing.assert_close(second, exact_second, rtol=1e-7, atol=1e-10)


KERNELS = ("gaussian", "laplacian", "energy", "inverse_multiquadric", "linear", "polynomial")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("xx", [None, False])
@pytest.mark.parametrize("bandwidth", ["mean", 0.7])
def test_mmd_in_gradient_space(kernel: str, xx: Any, bandwidth: Any) -> None:
    net, shape = small_net("conv")
    x, y, v = rows(N, *shape), targets(N), targets(M, 1)
    leaf, synthetic = live(net, rows(M, *shape, seed=1), v)
    value = decoct.gradient_mmd(of_pass(net, x, y), synthetic, kernel, bandwidth, xx=xx)
    (first,) = torch.autograd.grad(value, leaf)
    u = leaf.detach().clone().requires_grad_()
    g, h = whole(net, x, y), whole(net, u, v, create_graph=True)
    exact = reference.mmd(g, h, kernel, bandwidth)
    if xx is False:
        length = reference.mean_bandwidth(g, h) if bandwidth == "mean" else bandwidth
        exact = exact - reference.kernel_matrix(g, g, kernel, length).mean()
    torch.testing.assert_close(value, exact, rtol=1e-8, atol=1e-10)
    (exact_first,) = torch.autograd.grad(exact, u)
    torch.testing.assert_close(first, exact_first, rtol=1e-7, atol=1e-10)


def test_no_graph_without_create_graph() -> None:
    """Nothing keeps the pass alive, and the activations' own graph is not gone through again."""
    net, shape = small_net("conv")
    x = rows(N, *shape).requires_grad_()
    pairs = of_pass(net, x, targets(N))
    assert not decoct.per_sample_norms(pairs).requires_grad
    assert not decoct.gradient_gram(pairs).requires_grad
    sums = decoct.clipped_gradient_sum(pairs, max_grad_norm=1.0)
    assert not any(g.requires_grad for g in sums if g is not None)


def test_frozen_and_unused_parameters() -> None:
    net, shape = small_net("mlp")
    x, y = rows(N, *shape), targets(N)
    first = net.get_submodule("0")
    first.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    net.get_submodule("2").bias.requires_grad_(False)  # type: ignore[union-attr, operator]
    net.add_module("unused", nn.Linear(5, 5).to(x))
    with decoct.capture(net) as pairs:
        hidden = x
        for name, module in net.named_children():
            hidden = hidden if name == "unused" else module(hidden)
        loss = F.cross_entropy(hidden, y)
    pairs.backward(loss)
    norms = decoct.per_sample_norms(pairs, per_layer=True)
    assert norms.shape == (6, N)
    assert not norms[4:].any()
    assert (norms[:4] > 0).all()
    sums = decoct.clipped_gradient_sum(pairs, max_grad_norm=1.0)
    assert [g is None for g in sums] == [True, False, False, True, False, False, False, False]
    assert not sums[6].any()  # type: ignore[union-attr]


def test_zero_gradients() -> None:
    """Norm zero has derivative zero, and is not clipped by a division by zero."""
    a, d = (torch.zeros(3, width, 1, 1, device=table.DEVICE) for width in (4, 5))
    assert not image_squares(a, d, LINEAR, True)[0].any()
    net = nn.Linear(3, 5).to(table.DEVICE)
    x = torch.zeros(4, 3, device=table.DEVICE, requires_grad=True)
    with decoct.capture(net) as pairs:
        loss = (net(x) * 0).sum()
    pairs.backward(loss, create_graph=True)
    norms = decoct.per_sample_norms(pairs, loss_reduction="sum")
    assert not norms.any()
    (slope,) = torch.autograd.grad(norms.sum(), x, allow_unused=True)
    assert slope is None or not slope.any()
    for total in decoct.clipped_gradient_sum(pairs, max_grad_norm=1.0, loss_reduction="sum"):
        assert total is not None
        assert not total.any()


@pytest.mark.usual_backends("cpu")
def test_wrong_arguments() -> None:
    net, shape = small_net("mlp")
    pairs = of_pass(net, rows(N, *shape), targets(N))
    op = "clipped_gradient_sum"
    good: dict[str, Any] = {"max_grad_norm": 1.0}
    for kind, words, changes in (
        (ValueError, "max_grad_norm must be positive and finite, got 0", {"max_grad_norm": 0}),
        (ValueError, "max_grad_norm must be positive and finite, got nan", {"max_grad_norm": float("nan")}),
        (TypeError, "max_grad_norm must be a number, got str", {"max_grad_norm": "1"}),
        (
            ValueError,
            "max_grad_norm must have a number for each of the L=6 parameters",
            {"max_grad_norm": [1.0]},
        ),
        (ValueError, "noise_multiplier must be at least 0 and finite, got -1", {"noise_multiplier": -1}),
        (ValueError, "expected_batch_size must be given with noise", {"noise_multiplier": 1.0}),
        (ValueError, "expected_batch_size must be positive and finite, got 0", {"expected_batch_size": 0}),
        (ValueError, "loss_reduction must be 'mean' or 'sum', got 'none'", {"loss_reduction": "none"}),
        (TypeError, "insecure_seed must be None or an int, got float", {"insecure_seed": 1.0}),
    ):
        with pytest.raises(kind, match=f"^{re.escape(f'{op}: {words}')}"):
            decoct.clipped_gradient_sum(pairs, **{**good, **changes})
    wrong: Any = 3
    with pytest.raises(
        TypeError, match=r"^per_sample_norms: pairs must be a Capture or a list of its pairs, got int"
    ):
        decoct.per_sample_norms(wrong)
    wrong = [1]
    with pytest.raises(TypeError, match=r"^gradient_gram: other must hold decoct.Pair objects, got int"):
        decoct.gradient_gram(pairs, wrong)
    with decoct.capture(net) as before:
        F.cross_entropy(net(rows(N, *shape)), targets(N))
    with pytest.raises(ValueError, match=r"call Capture.backward\(loss\) first"):
        decoct.per_sample_norms(before)
    other, _ = small_net("mlp")
    with pytest.raises(ValueError, match="must be of the same network as pairs"):
        decoct.gradient_gram(pairs, of_pass(other, rows(N, *shape), targets(N)))
    with pytest.raises(ValueError, match=r"^gradient_mmd: bandwidth must be positive and finite, got -1"):
        decoct.gradient_mmd(pairs, pairs, bandwidth=-1.0)
    wrong = True
    with pytest.raises(TypeError, match=r"^gradient_mmd: xx must be None or False, got bool"):
        decoct.gradient_mmd(pairs, pairs, xx=wrong)


@pytest.mark.usual_backends("cpu")
def test_transforms_are_refused() -> None:
    net, shape = small_net("mlp")
    pairs = of_pass(net, rows(N, *shape), targets(N))

    def scaled(factor: Tensor) -> Tensor:
        return factor * decoct.per_sample_norms(pairs).sum()

    with pytest.raises(RuntimeError, match=r"torch.func and forward-mode AD are not offered"):
        grad(scaled)(torch.tensor(2.0, device=table.DEVICE))


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 12),
    st.booleans(),
)
def test_rows_of_linear_layers(n: int, m: int, c: int, p: int, tokens: int, bias: bool) -> None:
    """A law of any sizes: norms are the diagonal of inner products, which are those of the gradients."""
    a, d = rows(n, c, 1, tokens).float(), rows(n, p, 1, tokens, seed=1).float()
    b, e = rows(m, c, 1, tokens, seed=2).float(), rows(m, p, 1, tokens, seed=3).float()
    exact = reference.image_gram(*(part.double() for part in (a, d, b, e)), convolution=LINEAR, bias=bias)
    size = (
        reference.image_squares(a.double(), d.double(), convolution=LINEAR)[0].sqrt()[:, None]
        * reference.image_squares(b.double(), e.double(), convolution=LINEAR)[0].sqrt()
        + exact.abs()
        + tokens
    )
    assert ((image_gram(a, d, b, e, LINEAR, bias).double() - exact).abs() <= 2e-5 * size).all()
    own = image_gram(a, d, None, None, LINEAR, bias)
    weight, shift = image_squares(a, d, LINEAR, bias)
    total = weight + shift if bias else weight
    torch.testing.assert_close(own.diagonal(), total, rtol=2e-4, atol=1e-4)
    assert torch.equal(own, own.T)


def test_half_precision() -> None:
    """16-bit networks: norms in float32, sums in the parameters' dtype."""
    net, shape = small_net("conv", torch.bfloat16)
    x = rows(N, *shape).bfloat16()
    pairs = of_pass(net, x, targets(N))
    norms = decoct.per_sample_norms(pairs)
    assert norms.dtype == torch.float32
    wide = small_net("conv")[0]
    wide.load_state_dict(net.state_dict())
    exact = reference.per_sample_norms(wide, x.double(), targets(N))
    torch.testing.assert_close(norms.double(), exact, rtol=0.1, atol=0.05)
    sums = decoct.clipped_gradient_sum(pairs, max_grad_norm=1.0)
    assert {g.dtype for g in sums if g is not None} == {torch.bfloat16}
    assert decoct.gradient_gram(pairs).dtype == torch.float32


@pytest.mark.usual_backends("cpu")
def test_convnet() -> None:
    """The network of the field, its fused norms among the layers."""
    net = build("convnet", (3, 16, 16), 5, width=16, depth=2).to(table.DEVICE, torch.float64)
    x, y = rows(N, 3, 16, 16), targets(N)
    pairs = of_pass(net, x, y)
    exact = reference.per_sample_norms(net, x, y)
    torch.testing.assert_close(decoct.per_sample_norms(pairs), exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        decoct.gradient_gram(pairs), reference.gradient_gram(net, x, y), rtol=1e-8, atol=1e-10
    )
