"""Inner products of per-sample gradients, and the MMD in gradient space that is made of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from decoct.capture import Capture, Pair
from decoct.kernels import Kernel, resolve
from decoct.ops._captured import Captured, Reduction, captured, check_reduction
from decoct.ops._image_gram import image_gram
from decoct.ops._kernel_values import kernel_values
from decoct.ops._segment_ops import SMALLEST_SQUARE

__all__ = ["gradient_gram", "gradient_mmd"]

Pairs = Capture | Iterable[Pair]


def gradient_gram(pairs: Pairs, other: Pairs | None = None, *, loss_reduction: Reduction = "mean") -> Tensor:
    """Inner products of all samples' gradients, an empirical neural tangent kernel.

    Equivalent to, with ``gradients`` (N, P) and ``others`` (M, P) of :func:`torch.func.vmap` over
    :func:`torch.func.grad`, side by side for all parameters::

        gradients @ others.T

    without either: memory beyond the result is O(N + M), whatever P is.

    Parameters
    ----------
    pairs : :class:`decoct.Capture` after its ``backward``, or pairs of one, of N samples.
    other : the same of M samples through the same network; by default the first ones again.
    loss_reduction : how the losses that ``backward`` was given had reduced the samples' losses: by their
        "mean" over N or M, which is undone here, or their "sum".

    Returns
    -------
    (N, M), or (N, N), symmetric; in float32, or float64 where there is any.

    Layers
    ------
    Those that :func:`decoct.capture` records, used any number of times. Of a layer that is used once no
    gradients are stored but tiles of some 24 MiB in all; those of a layer that is used several times, of some
    samples at a time. Products are of activations and output gradients where that takes fewer operations (of
    linear layers always, but for long sequences), else of tiles of gradients.

    Gradients
    ---------
    Of every order, with ``create_graph=True`` in ``Capture.backward`` of the side that is differentiated.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As :func:`decoct.per_sample_norms`; a ValueError where both sides share no parameter.

    References
    ----------
    Jacot et al., Neural tangent kernel, 2018. Novak et al., Fast finite width neural tangent kernel, 2022,
    for the two forms.
    """
    op = "gradient_gram"
    check_reduction(op, loss_reduction)
    x = captured(op, "pairs", pairs)
    y = None if other is None else captured(op, "other", other)
    _check_sides(op, x, y)
    return _gram(x, y, loss_reduction)


def _check_sides(op: str, x: Captured, y: Captured | None) -> None:
    if y is None:
        return
    if x.device != y.device:
        raise ValueError(f"{op}: other must be on the device of pairs, {x.device}, got {y.device}")
    if not {id(p) for p in x.parameters} & {id(p) for p in y.parameters}:
        raise ValueError(f"{op}: other must be of the same network as pairs, got no parameter that both have")


def _gram(x: Captured, y: Captured | None, loss_reduction: Reduction) -> Tensor:
    other = x if y is None else y
    grad = torch.is_grad_enabled() and (x.differentiable or other.differentiable)
    with torch.set_grad_enabled(grad):
        parts = _parts(x, y)
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts), torch.float32)
        if not parts:
            return torch.zeros(x.rows, other.rows, dtype=dtype, device=x.device)
        total = functools.reduce(torch.add, (part.to(dtype) for part in parts))
        return total * (x.rows * other.rows) if loss_reduction == "mean" else total


def _side(layers: Captured, tensor: Tensor) -> Tensor:
    """Without its graph, where nothing may be differentiated on this side."""
    return tensor if layers.differentiable else tensor.detach()


def _images(layers: Captured, use: Any) -> tuple[Tensor, Tensor, Any]:
    a, d, convolution = use.pair.images()
    return _side(layers, a), _side(layers, d), convolution.packed()


def _parts(x: Captured, y: Captured | None) -> list[Tensor]:
    """Of each parameter, or of a weight and its bias, (N, M)."""
    other = x if y is None else y
    parts: list[Tensor] = []
    done: set[int] = set()
    for parameter in x.parameters:
        if id(parameter) in done or not x.of(parameter) or not other.of(parameter):
            continue
        if not x.lone(parameter) or not other.lone(parameter):
            parts.append(_whole(x, y, parameter))
            continue
        use, theirs = x.of(parameter)[0], other.of(parameter)[0]
        bias = use.pair.bias
        with_bias = (
            bias is not None and theirs.pair.bias is bias and len(x.of(bias)) == len(other.of(bias)) == 1
        )
        if with_bias:
            done.add(id(bias))
        a, d, convolution = _images(x, use)
        b, e = (None, None) if y is None else _images(y, theirs)[:2]
        parts.append(image_gram(a, d, b, e, convolution, with_bias))
    return parts


def _whole(x: Captured, y: Captured | None, parameter: Any) -> Tensor:
    """From gradients of some samples at a time."""
    other = x if y is None else y
    rows = []
    # Products of matrices in float64 where they are, else in float32: not in what autocast would take.
    with torch.autocast(x.device.type, enabled=False):
        for part in x.slices(parameter):
            left = _side(x, x.gradients(parameter, part))
            columns = []
            for some in other.slices(parameter):
                right = _side(other, other.gradients(parameter, some))
                dtype = torch.promote_types(left.dtype, right.dtype)
                columns.append(left.to(dtype) @ right.to(dtype).T)
            rows.append(torch.cat(columns, 1))
    return torch.cat(rows)


def gradient_mmd(
    real: Pairs,
    synthetic: Pairs,
    kernel: Kernel | str = "gaussian",
    bandwidth: float | Literal["mean"] = "mean",
    *,
    xx: Literal[False] | None = None,
    loss_reduction: Reduction = "mean",
) -> Tensor:
    """Squared MMD of the per-sample gradients of two sets of samples.

    Equivalent to, without the gradients (N, P) and (M, P)::

        decoct.mmd(real_gradients, synthetic_gradients, kernel, bandwidth, xx=xx)

    of the kernels on Gram matrices, |g - h|^2 = <g, g> - 2 <g, h> + <h, h>.

    Parameters
    ----------
    real, synthetic : :class:`decoct.Capture` after its ``backward``, or pairs of one, of N and M samples
        through the same network.
    kernel, bandwidth : as in :func:`decoct.mmd`; lengths are those of gradients. "mean" is a constant for
        autograd, there as here.
    xx : False leaves the real samples' term with themselves out, which carries no gradient for the synthetic
        side; their Gram matrix is then not computed, but for the bandwidth "mean".
    loss_reduction : as in :func:`decoct.gradient_gram`.

    Returns
    -------
    A scalar, in the dtype of the Gram matrices.

    Gradients, layers, errors
    -------------------------
    As for :func:`decoct.gradient_gram`. Derivatives of distances are 0 at distance 0.

    References
    ----------
    Gretton et al., A kernel two-sample test, JMLR 2012; Zhao et al., Dataset condensation with gradient
    matching, ICLR 2021, which the linear kernel amounts to.
    """
    op = "gradient_mmd"
    check_reduction(op, loss_reduction)
    chosen = resolve(kernel, op)
    if xx is not None and xx is not False:
        raise TypeError(f"{op}: xx must be None or False, got {type(xx).__name__}")
    if bandwidth != "mean":
        if isinstance(bandwidth, bool) or not isinstance(bandwidth, (int, float)):
            raise TypeError(f'{op}: bandwidth must be a number or "mean", got {type(bandwidth).__name__}')
        if not 0 < bandwidth < float("inf"):
            raise ValueError(f"{op}: bandwidth must be positive and finite, got {bandwidth}")
    x, y = captured(op, "real", real), captured(op, "synthetic", synthetic)
    _check_sides(op, x, y)
    cross, own = _gram(x, y, loss_reduction), _gram(y, None, loss_reduction)
    pooled = chosen.translation_invariant and bandwidth == "mean"
    of_real = _gram(x, None, loss_reduction) if xx is None or pooled else None
    grad = torch.is_grad_enabled() and (x.differentiable or y.differentiable)
    with torch.set_grad_enabled(grad):
        squares = _real_squares(x, of_real, loss_reduction) if chosen.translation_invariant else None
        columns = sum(parameter.numel() for parameter in y.parameters)
        length = _mean_length(of_real, cross, own) if pooled else bandwidth
        value = -2 * _mean(chosen, columns, length, cross, squares, own.diagonal())
        value = value + _mean(chosen, columns, length, own, own.diagonal(), own.diagonal())
        if xx is None and of_real is not None:
            value = value + _mean(chosen, columns, length, of_real, of_real.diagonal(), of_real.diagonal())
        return value


def _real_squares(x: Captured, gram: Tensor | None, loss_reduction: Reduction) -> Tensor:
    if gram is not None:
        return gram.diagonal()
    from decoct.ops.per_sample_norms import squared_norms

    return squared_norms(x).sum(0) * (x.rows**2 if loss_reduction == "mean" else 1)


def _mean_length(xx: Tensor | None, xy: Tensor, yy: Tensor) -> Tensor:
    """s with 2 s^2 = mean squared distance over ordered pairs of different pooled rows."""
    assert xx is not None
    with torch.no_grad():
        count = max(xx.shape[0] + yy.shape[0], 2)
        squares = xx.diagonal().double().sum() + yy.diagonal().double().sum()
        total = xx.double().sum() + 2 * xy.double().sum() + yy.double().sum()
        mean = 2 * (count * squares - total) / (count * count - count)
        return (mean.clamp(min=SMALLEST_SQUARE) / 2).sqrt().to(xy.dtype)


def _mean(
    kernel: Kernel, columns: int, length: Any, products: Tensor, of_rows: Tensor | None, of_columns: Tensor
) -> Tensor:
    d2 = None
    if kernel.translation_invariant:
        assert of_rows is not None
        d2 = (of_rows[:, None] + of_columns - 2 * products).clamp(min=0)
    if products.numel() == 0:
        return products.sum()
    return kernel_values(kernel.spec(columns), length, products, d2).mean()
