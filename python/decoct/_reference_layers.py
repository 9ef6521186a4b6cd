"""The part of `decoct.reference` that is about layers and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "class_gradients",
    "clipped_gradient_sum",
    "gradient_gram",
    "group_norm",
    "image_gram",
    "image_squares",
    "instance_norm",
    "per_sample_gradients",
    "per_sample_norms",
    "segment_outer",
]


def segment_outer(
    a: Tensor,
    d: Tensor,
    w: Tensor | None = None,
    *,
    offsets: Sequence[int],
    convolution: Sequence[int],
    bias: bool = True,
) -> tuple[Tensor, Tensor]:
    """Weight and bias gradients of a convolution, summed over segments of images; the numbers of
    `convolution` are height and width of kernel, stride, padding and dilation, and the groups."""
    kernel, stride, padding, dilation = ((convolution[k], convolution[k + 1]) for k in range(0, 8, 2))
    groups = convolution[8]
    patches = F.unfold(a, kernel, dilation, padding, stride).reshape(a.shape[0], groups, -1, d[0, 0].numel())
    gradients = d.reshape(a.shape[0], groups, -1, patches.shape[-1])
    if w is not None:
        gradients = gradients * w[:, None, None, None]
    products = torch.einsum("ngot,ngkt->ngok", gradients, patches).flatten(1, 2)
    sums = gradients.sum(-1).flatten(1)
    pieces = [slice(begin, end) for begin, end in pairwise(offsets)]
    weight = torch.stack([products[piece].sum(0) for piece in pieces])
    return weight, torch.stack([sums[piece].sum(0) for piece in pieces]) if bias else sums.new_zeros(
        len(pieces), 0
    )


def class_gradients(
    net: torch.nn.Module,
    x: Tensor,
    targets: Tensor,
    x_offsets: Sequence[int],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    weights: Tensor | None = None,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Twin of :func:`decoct.class_gradients`: one pass for each class."""
    parameters = list(net.parameters())
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    rows: list[list[Tensor]] = []
    for begin, end in pairwise(x_offsets):
        zeros = [torch.zeros_like(parameter) for parameter in wanted]
        if begin == end:
            rows.append(zeros)
            continue
        output = net(x[begin:end])
        each = (
            F.cross_entropy(output, targets[begin:end], reduction="none")
            if loss is None
            else loss(output, targets[begin:end])
        )
        value = each.mean() if weights is None else (weights[begin:end] * each).sum()
        found = torch.autograd.grad(value, wanted, create_graph=create_graph, allow_unused=True)
        rows.append([zero if g is None else g for zero, g in zip(zeros, found, strict=True)])
    stacked = dict(zip(map(id, wanted), map(torch.stack, zip(*rows, strict=True)), strict=True))
    return tuple(stacked.get(id(parameter)) for parameter in parameters)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    activation: str | None = None,
    pool: int = 1,
) -> Tensor:
    """Twin of :func:`decoct.group_norm`."""
    rows = x.reshape(x.shape[0], groups, x.numel() // max(x.shape[0] * groups, 1))
    centred = rows - rows.mean(-1, keepdim=True)
    out = (centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()).reshape(x.shape)
    ones = [1] * (x.dim() - 2)
    if weight is not None:
        out = out * weight.reshape(*weight.shape, *ones)
    if bias is not None:
        out = out + bias.reshape(*bias.shape, *ones)
    if activation == "relu":
        out = out.relu()
    for axis in range(2, x.dim()) if pool > 1 else ():
        out = out.unfold(axis, pool, pool).mean(-1)
    return out


def instance_norm(x: Tensor, *parameters: Tensor | None, **options: Any) -> Tensor:
    """Twin of :func:`decoct.instance_norm`."""
    return group_norm(x, x.shape[1], *parameters, **options)


def sample_gradients(a: Tensor, d: Tensor, convolution: Sequence[int], bias: bool = True) -> Tensor:
    """(N, size): the weight gradient, and with `bias` that of the bias, that each image alone gives."""
    weight, shift = segment_outer(a, d, offsets=range(a.shape[0] + 1), convolution=convolution, bias=bias)
    return torch.cat([weight.flatten(1), shift], 1)


def image_squares(
    a: Tensor, d: Tensor, *, convolution: Sequence[int], bias: bool = True
) -> tuple[Tensor, Tensor]:
    """Squared norms of the weight gradient of each image, and of the bias gradient."""
    weight = sample_gradients(a, d, convolution, False).square().sum(1)
    return weight, d.sum((2, 3)).square().sum(1) if bias else weight[:0]


def image_gram(
    a: Tensor,
    d: Tensor,
    b: Tensor | None = None,
    e: Tensor | None = None,
    *,
    convolution: Sequence[int],
    bias: bool = True,
) -> Tensor:
    """Inner products of the gradients of single images."""
    x = sample_gradients(a, d, convolution, bias)
    return x @ (x if b is None or e is None else sample_gradients(b, e, convolution, bias)).T


def per_sample_gradients(
    net: torch.nn.Module,
    x: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    create_graph: bool = False,
) -> list[Tensor]:
    """(N, `*parameter.shape`) for each parameter with `requires_grad`: one pass for each sample."""
    wanted = [parameter for parameter in net.parameters() if parameter.requires_grad]
    rows = []
    for row, target in zip(x.split(1), targets.split(1), strict=True):
        value = loss(net(row), target)
        found = torch.autograd.grad(value, wanted, create_graph=create_graph, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def per_sample_norms(
    net: torch.nn.Module, x: Tensor, targets: Tensor, *, per_layer: bool = False, **options: Any
) -> Tensor:
    """Twin of :func:`decoct.per_sample_norms`, from the network itself."""
    squares = torch.stack(
        [g.flatten(1).square().sum(1) for g in per_sample_gradients(net, x, targets, **options)]
    )
    return (squares if per_layer else squares.sum(0)).sqrt()


def clipped_gradient_sum(
    net: torch.nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    max_grad_norm: float | Sequence[float],
    **options: Any,
) -> list[Tensor]:
    """Twin of :func:`decoct.clipped_gradient_sum` without noise, from the network itself."""
    gradients = per_sample_gradients(net, x, targets, **options)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients])
    if not isinstance(max_grad_norm, Sequence):
        norms = norms.norm(dim=0).expand_as(norms)
        max_grad_norm = [max_grad_norm] * len(gradients)
    factors = [(c / (row + 1e-6)).clamp(max=1) for c, row in zip(max_grad_norm, norms, strict=True)]
    return [torch.einsum("n,n...->...", f, g) for f, g in zip(factors, gradients, strict=True)]


def gradient_gram(
    net: torch.nn.Module,
    x: Tensor,
    targets: Tensor,
    y: Tensor | None = None,
    y_targets: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Twin of :func:`decoct.gradient_gram`, from the network itself."""
    left = torch.cat([g.flatten(1) for g in per_sample_gradients(net, x, targets, **options)], 1)
    if y is None or y_targets is None:
        return left @ left.T
    return left @ torch.cat([g.flatten(1) for g in per_sample_gradients(net, y, y_targets, **options)], 1).T
