"""The part of `decoct.reference` that is about layers and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["class_gradients", "group_norm", "instance_norm", "segment_outer"]


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
