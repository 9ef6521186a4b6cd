"""The product behind gradient matching, and the closed form of a linear head, against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import decoct
from table import rows


def problem() -> tuple[Any, Tensor, Tensor]:
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
    return net, rows(7, 6).requires_grad_(), torch.arange(7) % 4


def test_against_autograd() -> None:
    net, images, labels = problem()
    parameters = list(net.parameters())
    vectors: list[Tensor | None] = [rows(*p.shape, seed=9) for p in parameters]
    vectors[1] = None
    loss = functional.cross_entropy(net(images), labels)
    ours = decoct.gradient_vector_product(loss, parameters, images, vectors, create_graph=True)
    gradients = torch.autograd.grad(
        functional.cross_entropy(net(images), labels), parameters, create_graph=True
    )
    total = sum((g * v).sum() for g, v in zip(gradients, vectors, strict=True) if v is not None)
    (expected,) = torch.autograd.grad(total, images, create_graph=True)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), images)[0],
        torch.autograd.grad(expected.square().sum(), images)[0],
    )


def test_it_is_the_gradient_of_a_distance() -> None:
    """With v = dD/dg it is what the distance sends back to the images."""
    net, images, labels = problem()
    parameters = list(net.parameters())
    real = [rows(*p.shape, seed=5) for p in parameters]
    made = torch.autograd.grad(functional.cross_entropy(net(images), labels), parameters, create_graph=True)
    (expected,) = torch.autograd.grad(decoct.gradient_distance(real, made, "cosine"), images)
    fixed = [g.detach().requires_grad_() for g in made]
    v = torch.autograd.grad(decoct.gradient_distance(real, fixed, "cosine"), fixed)
    loss = functional.cross_entropy(net(images), labels)
    torch.testing.assert_close(decoct.gradient_vector_product(loss, parameters, images, v), expected)


def test_several_inputs_and_those_it_does_not_depend_on() -> None:
    net, images, _ = problem()
    other = rows(3).requires_grad_()
    soft = torch.softmax(rows(7, 4, seed=3), -1).requires_grad_()
    loss = functional.cross_entropy(net(images), soft)
    parameters = list(net.parameters())
    vectors = [torch.ones_like(p) for p in parameters]
    by_images, by_labels, by_other = decoct.gradient_vector_product(
        loss, parameters, [images, soft, other], vectors
    )
    assert by_images.abs().sum() > 0
    assert by_labels.abs().sum() > 0
    assert torch.equal(by_other, torch.zeros(3, dtype=torch.float64))
    nothing = decoct.gradient_vector_product(loss, parameters, images, [None] * 4)
    assert not nothing.any()


def test_product_refusals() -> None:
    net, images, labels = problem()
    loss = functional.cross_entropy(net(images), labels)
    parameters = list(net.parameters())
    good: list[Any] = [torch.ones_like(p) for p in parameters]
    with pytest.raises(ValueError, match="vectors must hold P=4 tensors as parameters does, got 1"):
        decoct.gradient_vector_product(loss, parameters, images, good[:1])
    with pytest.raises(ValueError, match=r"vectors\[0\] must be \(5, 6\) as parameters\[0\] is, got \(5,\)"):
        decoct.gradient_vector_product(loss, parameters, images, [good[1], *good[1:]])
    with pytest.raises(TypeError, match=r"vectors\[0\] must be a tensor or None, got float"):
        decoct.gradient_vector_product(loss, parameters, images, [1.0, *good[1:]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"loss must be a scalar, got \(7, 4\)"):
        decoct.gradient_vector_product(net(images), parameters, images, good)
    with pytest.raises(TypeError, match="loss must be a tensor, got float"):
        decoct.gradient_vector_product(1.0, parameters, images, good)  # type: ignore[call-overload]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_linear_head(bias: bool, hard: bool) -> None:
    """Values and the distance's gradient by all of its inputs, first and second order."""
    features, weight = rows(7, 6).requires_grad_(), rows(4, 6, seed=1).requires_grad_()
    shift = rows(4, seed=2).requires_grad_()
    soft = rows(7, 4, seed=4).abs().requires_grad_()
    targets = torch.arange(7) % 4 if hard else soft
    head = [weight, shift] if bias else [weight]
    ours = decoct.linear_head_gradients(features, targets, *head)
    scores = features @ weight.T + (shift if bias else 0)
    expected = torch.autograd.grad(functional.cross_entropy(scores, targets), head, create_graph=True)
    real = [rows(*g.shape, seed=8) for g in ours]
    results = []
    for gradients in (ours, expected):
        value = decoct.gradient_distance(real, gradients, "cosine")
        inputs = [features, *head, *([] if hard else [soft])]
        first = torch.autograd.grad(value, inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append([value, *gradients, *first, *second])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_linear_head_of_each_class() -> None:
    features, weight, bias = rows(3, 7, 6), rows(4, 6, seed=1), rows(4, seed=2)
    targets = torch.arange(21).reshape(3, 7) % 4
    together = decoct.linear_head_gradients(features, targets, weight, bias)
    for c in range(3):
        alone = decoct.linear_head_gradients(features[c], targets[c], weight, bias)
        for mine, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[c], expected)


def test_linear_head_refusals() -> None:
    features, weight, labels = rows(7, 6), rows(4, 6), torch.zeros(7, dtype=torch.int64)
    call = decoct.linear_head_gradients
    with pytest.raises(ValueError, match=r"features must be \(..., N, D\), got \(6,\)"):
        call(features[0], labels, weight)
    with pytest.raises(ValueError, match=r"weight must be \(..., K, D\) with D=6 as in features, got"):
        call(features, labels, weight[:, 1:])
    with pytest.raises(ValueError, match=r"bias must be \(..., K\) with K=4 as in weight, got \(3,\)"):
        call(features, labels, weight, rows(3))
    with pytest.raises(ValueError, match=r"targets must be \(..., N\) with N=7, got \(6,\)"):
        call(features, labels[1:], weight)
    with pytest.raises(ValueError, match=r"targets must be \(..., N, K\) with N=7 and K=4, got \(7, 6\)"):
        call(features, features, weight)
    with pytest.raises(TypeError, match="targets must be int64 or floating-point, got int32"):
        call(features, labels.int(), weight)
    with pytest.raises(TypeError, match="weight must be a tensor, got list"):
        call(features, labels, [1.0])  # type: ignore[arg-type]
