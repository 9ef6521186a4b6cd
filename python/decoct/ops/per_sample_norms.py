"""Norms of per-sample gradients, and their clipped, noised sum, from captured pairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decoct._noise import Noise
from decoct.capture import Capture, Pair
from decoct.ops._backend import compute_dtype
from decoct.ops._captured import Captured, Reduction, captured, check_reduction
from decoct.ops._image_squares import image_squares
from decoct.ops._segment_ops import segment_sums
from decoct.ops._segment_outer import segment_outer
from decoct.segments import Segments, host_offsets

__all__ = ["clipped_gradient_sum", "per_sample_norms", "squared_norms"]

CLIP_EPSILON = 1e-6
"""Added to norms before they divide, as Opacus does."""


def per_sample_norms(
    pairs: Capture | Iterable[Pair], *, per_layer: bool = False, loss_reduction: Reduction = "mean"
) -> Tensor:
    """The norm of every sample's gradient, from one pass over all of them.

    Equivalent to, but without the N gradients, each as large as the network::

        def loss_of(parameters, x, y):
            return F.cross_entropy(torch.func.functional_call(net, parameters, (x[None],)), y[None])
        gradients = vmap(grad(loss_of), (None, 0, 0))(dict(net.named_parameters()), x, y)
        torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)

    of a pass that was captured as ::

        with decoct.capture(net) as pairs:
            loss = F.cross_entropy(net(x), y)
        pairs.backward(loss)
        norms = decoct.per_sample_norms(pairs)

    Parameters
    ----------
    pairs : :class:`decoct.Capture` after its ``backward``, or pairs of one, of N samples.
    per_layer : whether the norms of each parameter tensor are given, which Opacus calls layers.
    loss_reduction : how the loss that ``backward`` was given had reduced the samples' losses: by their
        "mean" over N, torch's default, which is undone here, or their "sum".

    Returns
    -------
    (N,); with ``per_layer`` (L, N) in the order of the ``net.parameters()`` that want a gradient (of a list
    of pairs: in theirs). In float32, or float64 where there is any.

    Layers
    ------
    Those that :func:`decoct.capture` records, used any number of times. Of a layer that is used once no
    gradient is stored; those of one that is used several times are formed, of some samples at a time.

    Gradients
    ---------
    Of every order, with ``create_graph=True`` in ``Capture.backward``; zero where a norm is zero.

    Raises
    ------
    TypeError
        ``pairs`` of another kind.
    ValueError
        Pairs without output gradients; BatchNorm that uses statistics of the batch, for which per-sample
        gradients are not defined; a parameter of a layer that capture does not record; layers whose input has
        not N rows.
    RuntimeError
        Under torch.func, forward-mode AD or torch.compile; no kernels for the device in this build.

    References
    ----------
    Goodfellow, Efficient per-example gradient computations, 2015. Rochette et al., the same in convolutional
    neural networks, 2019.
    """
    op = "per_sample_norms"
    check_reduction(op, loss_reduction)
    layers = captured(op, "pairs", pairs)
    with layers.grad_mode():
        squares = squared_norms(layers)
        chosen = squares if per_layer else squares.sum(0)
        return _roots(chosen) * (layers.rows if loss_reduction == "mean" else 1)


def _roots(squares: Tensor) -> Tensor:
    """Square roots whose derivatives are 0 at 0."""
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def squared_norms(layers: Captured) -> Tensor:
    """(L, N): of each sample's gradient by each parameter."""
    found: dict[int, Tensor] = {}
    for parameter in layers.parameters:
        if id(parameter) in found or not layers.of(parameter):
            continue
        if layers.lone(parameter):
            pair = layers.of(parameter)[0].pair
            a, d, convolution = pair.images()
            with_bias = pair.bias is not None and len(layers.of(pair.bias)) == 1
            weight, bias = image_squares(a, d, convolution.packed(), with_bias)
            found[id(parameter)] = weight
            if with_bias:
                found[id(pair.bias)] = bias
            continue
        parts = [layers.gradients(parameter, part).square().sum(1) for part in layers.slices(parameter)]
        found[id(parameter)] = torch.cat(parts)
    dtype = torch.float32
    for part in found.values():
        dtype = torch.promote_types(dtype, part.dtype)
    zeros = torch.zeros(layers.rows, dtype=dtype, device=layers.device)
    rows = [found.get(id(parameter), zeros).to(dtype) for parameter in layers.parameters]
    return torch.stack(rows) if rows else zeros.new_zeros((0, layers.rows))


def clipped_gradient_sum(
    pairs: Capture | Iterable[Pair],
    *,
    max_grad_norm: float | Sequence[float],
    noise_multiplier: float = 0.0,
    expected_batch_size: float | None = None,
    loss_reduction: Reduction = "mean",
    insecure_seed: int | None = None,
    x_offsets: Tensor | Sequence[int] | Segments | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
) -> list[Tensor | None]:
    """The sum of all samples' clipped gradients with Gaussian noise, from one pass: a step of DP-SGD.

    Equivalent to, with ``gradients`` and ``norms`` as in :func:`decoct.per_sample_norms`::

        factor = (max_grad_norm / (norms + 1e-6)).clamp(max=1)
        deviation = noise_multiplier * max_grad_norm
        sums = [torch.einsum("n,n...->...", factor, g) for g in gradients]
        noised = [total + deviation * torch.randn_like(total) for total in sums]
        [g / expected_batch_size for g in noised]        # with loss_reduction="mean"

    Arguments, clip factor and scaling are those of Opacus. There is one pass backward: the sum is a product
    of the activations and output gradients that also gave the norms.

    Parameters
    ----------
    pairs : :class:`decoct.Capture` after its ``backward``, or pairs of one, of N samples.
    max_grad_norm : the largest norm that a sample's gradient keeps; a list has one for each parameter with
        ``requires_grad``, which are then clipped each by itself (Opacus: ``clipping="per_layer"``).
    noise_multiplier : standard deviation of the noise over ``max_grad_norm`` (a list's Euclidean norm).
    expected_batch_size : with ``loss_reduction="mean"``, what the noised sum is divided by. Under Poisson
        sampling that is the sampling rate times the data set's size, not N, which would tell the number of
        samples; so it must be given where there is noise. N by default otherwise.
    loss_reduction : how the loss that ``backward`` was given had reduced the samples' losses: "mean" over
        N, or "sum".
    insecure_seed : an int makes the noise repeatable, for tests; who knows it can subtract the noise. By
        default all of the noise is made of the operating system's random numbers.
    x_offsets : int64 (C + 1,) tensor, list or :class:`decoct.Segments`: a sum, with noise of its own, for
        each class of samples ``x_offsets[c]:x_offsets[c + 1]``. A sample adds to one of them, so that the
        noise is what it is without classes. ``expected_batch_size`` is one number for all of them.
    parameters : those that take part; norms and sums are over them alone. By default all of the network's
        that want a gradient.

    Returns
    -------
    A gradient for each parameter, in its dtype and in the order of ``net.parameters()`` (of a list of pairs:
    in theirs), with ``x_offsets`` (C, ``*parameter.shape``); None for one that has ``requires_grad`` off or
    is not among ``parameters``.

    Layers, errors
    --------------
    As for :func:`decoct.per_sample_norms`; also a ValueError for a norm, multiplier or batch size out of
    range, and for ``x_offsets`` that do not end at N or ``parameters`` of another network.

    Gradients
    ---------
    Of every order, with ``create_graph=True`` in ``Capture.backward``.

    References
    ----------
    Abadi et al., Deep learning with differential privacy, 2016. Bu et al., Differentially private
    optimization on large model at small cost, 2023, for the one pass.
    """
    op = "clipped_gradient_sum"
    check_reduction(op, loss_reduction)
    layers = _chosen(op, captured(op, "pairs", pairs), parameters)
    offsets = None if x_offsets is None else host_offsets(op, "x_offsets", x_offsets)
    if offsets is not None and int(offsets[-1]) != layers.rows:
        raise ValueError(f"{op}: x_offsets must end at N={layers.rows}, the samples, got {int(offsets[-1])}")
    limits = _checked_limits(op, max_grad_norm, len(layers.parameters))
    _check_numbers(op, noise_multiplier, expected_batch_size, loss_reduction, insecure_seed)
    deviation = noise_multiplier * math.sqrt(math.fsum(limit * limit for limit in limits))
    divisor = 1.0 if loss_reduction == "sum" else float(expected_batch_size or max(layers.rows, 1))
    noise = Noise(insecure_seed)
    results: dict[int, Tensor] = {}
    with layers.grad_mode():
        weights = _clip_weights(layers, max_grad_norm, limits, layers.rows if loss_reduction == "mean" else 1)
        for parameter, total in zip(layers.parameters, _weighted_sums(layers, weights, offsets), strict=True):
            noised = total + deviation * noise.like(total) if deviation > 0 else total
            results[id(parameter)] = (noised / divisor).to(parameter.dtype)
    return [results.get(id(parameter)) for parameter in layers.every]


def _chosen(op: str, layers: Captured, parameters: Iterable[nn.Parameter] | None) -> Captured:
    if parameters is None:
        return layers
    wanted = {id(parameter) for parameter in parameters}
    known = [parameter for parameter in layers.parameters if id(parameter) in wanted]
    if len(known) < len(wanted):
        raise ValueError(
            f"{op}: parameters must be some of the network's L={len(layers.parameters)} with requires_grad, "
            f"got {len(wanted) - len(known)} others"
        )
    return dataclasses.replace(layers, parameters=known)


def _clip_weights(layers: Captured, max_grad_norm: Any, limits: list[float], scale: int) -> list[Tensor]:
    """What each sample's gradient by each parameter counts, (N,): its clip factor, and `scale` for what a
    mean over the samples has taken away."""
    squares = squared_norms(layers)
    if not isinstance(max_grad_norm, Sequence):
        norms = _roots(squares.sum(0)) * scale
        return [(limits[0] / (norms + CLIP_EPSILON)).clamp(max=1) * scale] * len(layers.parameters)
    norms = _roots(squares) * scale
    return [(c / (row + CLIP_EPSILON)).clamp(max=1) * scale for c, row in zip(limits, norms, strict=True)]


def _number(op: str, name: str, value: Any, least: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value) or value < least or (least == 0 and what == "positive" and value == 0):
        raise ValueError(f"{op}: {name} must be {what} and finite, got {value}")
    return float(value)


def _checked_limits(op: str, max_grad_norm: Any, count: int) -> list[float]:
    if not isinstance(max_grad_norm, Sequence) or isinstance(max_grad_norm, str):
        return [_number(op, "max_grad_norm", max_grad_norm, 0, "positive")]
    if len(max_grad_norm) != count:
        raise ValueError(
            f"{op}: max_grad_norm must have a number for each of the L={count} parameters with "
            f"requires_grad, got {len(max_grad_norm)}"
        )
    return [_number(op, "max_grad_norm", value, 0, "positive") for value in max_grad_norm]


def _check_numbers(
    op: str, noise_multiplier: Any, expected_batch_size: Any, loss_reduction: Reduction, insecure_seed: Any
) -> None:
    noise = _number(op, "noise_multiplier", noise_multiplier, 0, "at least 0")
    if expected_batch_size is not None:
        _number(op, "expected_batch_size", expected_batch_size, 0, "positive")
    elif noise > 0 and loss_reduction == "mean":
        raise ValueError(
            f"{op}: expected_batch_size must be given with noise and loss_reduction='mean', got None; it is "
            "the sampling rate times the size of the data set"
        )
    if insecure_seed is not None and (isinstance(insecure_seed, bool) or not isinstance(insecure_seed, int)):
        raise TypeError(f"{op}: insecure_seed must be None or an int, got {type(insecure_seed).__name__}")


def _weighted_sums(layers: Captured, weights: list[Tensor], offsets: Tensor | None) -> list[Tensor]:
    """sum_i w_i g_i for each parameter, with weights (N,) of its own; one for each class with offsets."""
    segments = 1 if offsets is None else offsets.shape[0] - 1
    leading = () if offsets is None else (segments,)
    by_parameter = {id(p): w for p, w in zip(layers.parameters, weights, strict=True)}
    found: dict[int, Tensor] = {}

    def add(parameter: nn.Parameter, total: Tensor) -> None:
        total = total.reshape(*leading, *parameter.shape)
        known = found.get(id(parameter))
        found[id(parameter)] = total if known is None else known + total

    for parameter in layers.parameters:
        for use in layers.of(parameter):
            w, pair = by_parameter[id(parameter)], use.pair
            if not use.by_products:
                if pair.is_norm or pair.weight is None or by_parameter.get(id(pair.weight)) is not w:
                    rows = use.row_gradients()
                    add(parameter, segment_sums(rows, w.to(rows.dtype), offsets, segments))
                continue
            a, d, convolution = pair.images()
            together = pair.bias is not None and by_parameter.get(id(pair.bias)) is w
            weight, bias = segment_outer(a, d, w, offsets, segments, convolution.packed(), together)
            add(parameter, weight)
            if together:
                add(pair.bias, bias)  # type: ignore[arg-type]
    return [
        found[id(p)]
        if id(p) in found
        else p.detach().new_zeros((*leading, *p.shape), dtype=compute_dtype(p.dtype))
        for p in layers.parameters
    ]
