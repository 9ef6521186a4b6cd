"""Random projections: of rows against all signs, of per-sample gradients against one pass for each sample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decoct
from decoct import reference
from test_class_gradients import network, rows
from test_per_sample import KNOWN, NETS, of_pass, small_net, targets

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

SIZE = (3, 4)
SEED = 11


def twin(
    net: nn.Module, x: Tensor, y: Tensor, size: tuple[int, int] = SIZE, seed: int = SEED, **options: Any
) -> Tensor:
    """(L, N, p q), of all gradients and all signs. A weight is one of products where the parameter's layer is
    linear or a convolution."""
    products = {id(m.weight) for m in net.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    wanted = [parameter for parameter in net.parameters() if parameter.requires_grad]
    found = []
    gradients = reference.per_sample_gradients(net, x, y, **options)
    for number, (parameter, g) in enumerate(zip(wanted, gradients, strict=True)):
        g = g.flatten(1)
        total = size[0] * size[1]
        if id(parameter) not in products:
            found.append(reference.random_projection(g, total, seed=seed, stream=2 * number))
            continue
        g = g.unflatten(1, (parameter.shape[0], -1))
        inside = reference.random_signs(size[1], g.shape[2], seed=seed, stream=2 * number).to(g)
        outside = reference.random_signs(size[0], g.shape[1], seed=seed, stream=2 * number + 1).to(g)
        found.append((outside @ g @ inside.T).flatten(1) / math.sqrt(total))
    return torch.stack(found)


def test_the_generator_gives_its_published_numbers() -> None:
    """The first known answer of Random123: key and counter 0 give 6627e8d5 e169c58d bc57ac4c 9b00dbd8."""
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    negative = [bool(words[d // 32] >> d % 32 & 1) for d in range(128)]
    signs = decoct.random_projection(torch.ones(1, 1), 128, transpose=True)[0]
    assert [bool(sign < 0) for sign in signs] == negative


def test_entries_depend_on_their_place_alone() -> None:
    whole = decoct.random_projection(torch.eye(40), 900, seed=3, stream=5, transpose=True) * math.sqrt(40)
    part = decoct.random_projection(torch.eye(7), 130, seed=3, stream=5, transpose=True) * math.sqrt(7)
    torch.testing.assert_close(part, whole[:7, :130])
    other = decoct.random_projection(torch.eye(130), 7, seed=3, stream=5) * math.sqrt(7)
    torch.testing.assert_close(other.T, part)
    for change in ({"seed": 4}, {"stream": 6}, {"seed": 3 + 2**32}, {"stream": 5 + 2**32}):
        options = {"seed": 3, "stream": 5, **change}
        differs = (
            decoct.random_projection(torch.eye(40), 900, transpose=True, **options) * math.sqrt(40) != whole
        )
        # Signs of independent matrices differ in half of the places, of 36000.
        assert 0.48 < differs.double().mean() < 0.52


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"), [((0, 7), 5), ((3, 0), 5), ((3, 7), 0), ((0, 0), 0), ((2, 0, 4), 3)]
)
def test_nothing_to_project(shape: tuple[int, ...], size: int, transpose: bool) -> None:
    x = torch.ones(shape, requires_grad=True)
    y = decoct.random_projection(x, size, transpose=transpose)
    assert y.shape == (*shape[:-1], size)
    assert torch.equal(y, reference.random_projection(x, size, transpose=transpose))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.zeros(shape))


def test_products_are_kept() -> None:
    x, y = rows(2, 500)
    size = 4000
    kept = (decoct.random_projection(x, size) * decoct.random_projection(y, size)).sum()
    # The variance is (|x|^2 |y|^2 + <x, y>^2) / size at most.
    deviation = ((x.square().sum() * y.square().sum() + (x @ y) ** 2) / size).sqrt()
    assert abs(kept - x @ y) < 4 * deviation


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_layers(name: str, reduction: Any) -> None:
    net, x = network(name)
    y = targets(x.shape[0])
    pairs = of_pass(net, x, y, reduction)
    exact = twin(net, x, y)
    each = decoct.projected_gradients(pairs, SIZE, seed=SEED, per_layer=True, loss_reduction=reduction)
    torch.testing.assert_close(each, exact, rtol=1e-9, atol=1e-11)
    whole = decoct.projected_gradients(pairs, SIZE, seed=SEED, loss_reduction=reduction)
    torch.testing.assert_close(whole, exact.sum(0), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", NETS)
def test_a_sample_is_projected_alike_in_every_batch(kind: str) -> None:
    net, shape = small_net(kind)
    x, y = rows(6, *shape), targets(6)
    together = decoct.projected_gradients(of_pass(net, x, y), 5, seed=2)
    alone = [
        decoct.projected_gradients(of_pass(net, x[i : i + 1], y[i : i + 1]), 5, seed=2) for i in range(6)
    ]
    torch.testing.assert_close(torch.cat(alone), together)


@pytest.mark.parametrize("kind", NETS)
def test_derivatives_of_two_orders(kind: str) -> None:
    net, shape = small_net(kind)
    x, y = rows(3, *shape), targets(3)

    def ours(inputs: Tensor) -> Tensor:
        pairs = of_pass(net, inputs, y, create_graph=True)
        return decoct.projected_gradients(pairs, (2, 3), seed=1).square().sum()

    def theirs(inputs: Tensor) -> Tensor:
        return twin(net, inputs, y, (2, 3), 1, create_graph=True).sum(0).square().sum()

    results = []
    for function in (ours, theirs):
        inputs = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(inputs), inputs, create_graph=True)
        (second,) = torch.autograd.grad(first.sin().sum(), inputs)
        results.append((first.detach(), second))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-10)


def test_refusals() -> None:
    net, shape = small_net("mlp")
    pairs = of_pass(net, rows(3, *shape), targets(3))
    with pytest.raises(TypeError, match=r"size must be a positive int or two of them, got 2\.0"):
        decoct.projected_gradients(pairs, 2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got \(1, True\)"):
        decoct.projected_gradients(pairs, (1, True))
    with pytest.raises(ValueError, match=r"got \(0, 2\)"):
        decoct.projected_gradients(pairs, (0, 2))
    with pytest.raises(ValueError, match="seed must be from 0 to"):
        decoct.projected_gradients(pairs, 2, seed=-1)
    with pytest.raises(ValueError, match="loss_reduction must be 'mean' or 'sum', got 'max'"):
        decoct.projected_gradients(pairs, 2, loss_reduction="max")  # type: ignore[arg-type]
