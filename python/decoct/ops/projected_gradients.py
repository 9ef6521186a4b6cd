"""Random projections of per-sample gradients, from captured pairs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decoct.capture import Capture, Convolution, Pair
from decoct.ops._backend import compute_dtype
from decoct.ops._captured import Captured, Reduction, captured, check_reduction
from decoct.ops._segment_outer import LINEAR, segment_outer
from decoct.ops.random_projection import check_seed, random_projection

__all__ = ["projected_gradients"]


def projected_gradients(
    pairs: Capture | Iterable[Pair],
    size: int | tuple[int, int],
    *,
    seed: int = 0,
    per_layer: bool = False,
    loss_reduction: Reduction = "mean",
) -> Tensor:
    """Random projections of all samples' gradients, which keep their inner products on average.

    Equivalent to, with ``size=(p, q)``, random signs S as in :func:`decoct.random_projection`, and gradients
    g (N, outputs, inputs of one output) of weights, h (N, numbers) of all else::

        sum((S_out @ g @ S_in.T).flatten(1) for g in weights) / sqrt(p * q)     # S_out (p, outputs)
        + sum(h @ S.T for h in others) / sqrt(p * q)                            # S (p * q, numbers)

    but no g is stored: activations and output gradients are projected before they are multiplied. Each S
    is of a stream of its own, so that the terms of different parameters are independent.

    Parameters
    ----------
    pairs : :class:`decoct.Capture` after its ``backward``, or pairs of one, of N samples.
    size : (p, q): numbers on the side of the outputs and on that of the inputs; an int is both. The
        projections have p q.
    seed : from 0 to 2^63 - 1. Projections of one seed may be compared: of samples of any batch, on any
        device, at any of the network's parameters.
    per_layer : whether projections of each parameter are given, instead of their sum.
    loss_reduction : how the loss that ``backward`` was given had reduced the samples' losses: by their "mean"
        over N, which is undone here, or their "sum".

    Returns
    -------
    (N, p q), or with ``per_layer`` (L, N, p q) in the order of the ``net.parameters()`` that want a gradient;
    in float32, or float64 where there is any.

    Layers, errors
    --------------
    As for :func:`decoct.per_sample_norms`; also a TypeError or ValueError for a size or seed out of range. Of
    a layer that is used several times gradients are formed, of some samples at a time.

    Gradients
    ---------
    Of every order, with ``create_graph=True`` in ``Capture.backward``.

    References
    ----------
    Park et al., TRAK: attributing model behavior at scale, 2023. Choe et al., What is your data worth to
    GPT?, 2024, for projections on two sides.
    """
    op = "projected_gradients"
    check_reduction(op, loss_reduction)
    sides = _sides(op, size)
    check_seed(op, "seed", seed)
    layers = captured(op, "pairs", pairs)
    with layers.grad_mode(), torch.autocast(layers.device.type, enabled=False):
        found = [_of_parameter(layers, k, sides, seed) for k in range(len(layers.parameters))]
        dtypes = (f.dtype for f in found if f is not None)
        dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
        zeros = torch.zeros(layers.rows, math.prod(sides), dtype=dtype, device=layers.device)
        parts = [zeros if f is None else f.to(dtype) for f in found]
        whole = torch.stack(parts) if per_layer and parts else functools.reduce(torch.add, parts, zeros)
        if per_layer and not parts:
            whole = zeros.new_zeros((0, *zeros.shape))
        return whole * layers.rows if loss_reduction == "mean" else whole


def _sides(op: str, size: Any) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    words = "a positive int or two of them"
    if isinstance(size, bool) or not isinstance(sides, tuple) or len(sides) != 2:
        raise TypeError(f"{op}: size must be {words}, got {size!r}")
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in sides):
        raise TypeError(f"{op}: size must be {words}, got {size!r}")
    if min(sides) < 1:
        raise ValueError(f"{op}: size must be {words}, got {size!r}")
    return sides


def _of_parameter(layers: Captured, number: int, sides: tuple[int, int], seed: int) -> Tensor | None:
    """(N, p q) of the parameter of this number, None where the loss does not depend on it. Its streams are
    2 number and 2 number + 1."""
    parameter = layers.parameters[number]
    if not layers.of(parameter):
        return None
    if layers.lone(parameter):
        a, d, convolution = layers.of(parameter)[0].pair.images()
        return _of_products(a, d, convolution, sides, seed, 2 * number)
    whole = layers.of(parameter)[0].by_products
    parts = []
    for part in layers.slices(parameter):
        rows = layers.gradients(parameter, part)
        if whole:
            rows = rows.unflatten(1, (parameter.shape[0], -1))
            rows = random_projection(rows, sides[1], seed=seed, stream=2 * number)
            rows = random_projection(rows.transpose(1, 2), sides[0], seed=seed, stream=2 * number + 1)
            parts.append(rows.transpose(1, 2).flatten(1))
        else:
            parts.append(random_projection(rows, math.prod(sides), seed=seed, stream=2 * number))
    return torch.cat(parts)


def _of_products(
    a: Tensor, d: Tensor, convolution: Convolution, sides: tuple[int, int], seed: int, stream: int
) -> Tensor:
    """Patches and output gradients projected, position by position, then multiplied and summed up."""
    dtype = compute_dtype(torch.promote_types(a.dtype, d.dtype))
    a, d = a.to(dtype), d.to(dtype)
    groups, count = convolution.groups, a.shape[0]
    inputs = _projected_patches(a, convolution, sides[1], seed, stream)
    outputs = d.unflatten(1, (groups, -1)) if groups > 1 else d[:, None]
    # The signs of an output do not depend on its group: those of all outputs are one matrix.
    signs = _signs(sides[0], d, d.shape[1], seed, stream + 1).unflatten(1, (groups, -1))
    outputs = torch.einsum("ngohw,kgo->nkghw", outputs, signs).flatten(3)
    inputs = inputs.unflatten(1, (groups, -1)).transpose(1, 2).flatten(3)
    projected, _ = segment_outer(inputs, outputs, None, None, count, LINEAR, False)
    return projected.flatten(1)


def _signs(rows: int, like: Tensor, columns: int, seed: int, stream: int) -> Tensor:
    """(rows, columns): S / sqrt(rows)."""
    one = torch.eye(rows, dtype=like.dtype, device=like.device)
    return random_projection(one, columns, seed=seed, stream=stream, transpose=True)


def _projected_patches(a: Tensor, convolution: Convolution, size: int, seed: int, stream: int) -> Tensor:
    """(N, groups * size, H', W'): S / sqrt(size) times the patch of each position of each group."""
    if convolution == Convolution():
        rows = random_projection(a.flatten(2).transpose(1, 2), size, seed=seed, stream=stream)
        whole: Tensor = rows.transpose(1, 2).unflatten(2, a.shape[2:])
        return whole
    channels, (height, width) = a.shape[1] // convolution.groups, convolution.kernel
    kernels = _signs(size, a, channels * height * width, seed, stream)
    kernels = kernels.reshape(size, channels, height, width).repeat(convolution.groups, 1, 1, 1)
    projected: Tensor = F.conv2d(
        a,
        kernels,
        None,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
    return projected
