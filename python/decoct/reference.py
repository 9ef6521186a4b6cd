"""Plain-torch twins of the ops, written to be read.

They build the kernel matrix, loop over segments and leave all derivatives to autograd, to any order. Tests
compare the ops with them; they are the definition of what the ops compute. Results come in the dtype of the
inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from decoct.kernels import Kernel, resolve
from decoct.segments import host_offsets

__all__ = ["kernel_matrix", "kernel_matvec", "kernel_mean", "mean_bandwidth", "median_bandwidth", "mmd"]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) squared distances, by differences."""
    return (x[:, None, :] - y[None, :, :]).square().sum(-1)


def distances(d2: Tensor) -> Tensor:
    """Square roots whose derivatives are all 0 at 0, and NaN at NaN."""
    zero = d2 == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, d2).sqrt())


def kernel_matrix(x: Tensor, y: Tensor, kernel: Kernel | str = "gaussian", bandwidth: Any = 1.0) -> Tensor:
    """K (N, M) with K[i, j] = k(x_i, y_j) for rows x (N, D), y (M, D) and one length."""
    kernel = resolve(kernel)
    profile, parameter, offset, degree, scales = kernel.spec(x.shape[1])
    if profile == "linear":
        return x @ y.T
    if profile == "polynomial":
        return (parameter * (x @ y.T) + offset) ** degree
    d2 = squared_distances(x, y)
    if profile == "energy":
        return -distances(d2)
    total = torch.zeros_like(d2)
    for scale in scales:
        s2 = scale * torch.as_tensor(bandwidth, dtype=d2.dtype) ** 2
        if profile == "gaussian":
            total = total + torch.exp(-d2 / (2 * s2))
        elif profile == "laplacian":
            total = total + torch.exp(-distances(d2) / s2.sqrt())
        elif profile == "inverse_multiquadric":
            total = total + (1 + d2 / s2) ** -0.5
        elif profile == "rational_quadratic":
            total = total + (1 + d2 / (2 * parameter * s2)) ** -parameter
    return total


def mean_bandwidth(x: Tensor, y: Tensor) -> Tensor:
    """s with 2 s^2 = mean squared distance over ordered pairs i != j of the pooled rows, at least 1e-10."""
    z = torch.cat([x, y]).detach()
    n = max(z.shape[0], 2)
    square = squared_distances(z, z).sum() / (n * n - n)
    return (square.clamp(min=1e-10) / 2).sqrt()


def median_bandwidth(x: Tensor, y: Tensor) -> Tensor:
    """s with 2 s^2 = median squared distance of the pooled rows (lower of two), at least 1e-10."""
    z = torch.cat([x, y]).detach()
    z = z[:: -(-z.shape[0] // 4096) or 1]
    if z.shape[0] < 2:
        return z.new_tensor(1e-10 / 2).sqrt()
    upper = torch.triu_indices(z.shape[0], z.shape[0], 1)
    square = squared_distances(z, z)[upper[0], upper[1]].median()
    return (square.clamp(min=1e-10) / 2).sqrt()


def _parts(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, x_offsets: Any, y_offsets: Any
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Rows and weights of each segment."""
    if x.dim() == 3:
        for c in range(x.shape[0]):
            yield x[c], y[c], None if a is None else a[c], None if b is None else b[c]
    elif x_offsets is None:
        yield x, y, a, b
    else:
        xs = host_offsets("reference", "x_offsets", x_offsets).tolist()
        ys = host_offsets("reference", "y_offsets", y_offsets).tolist()
        for i, k, j, m in zip(xs[:-1], xs[1:], ys[:-1], ys[1:], strict=True):
            yield x[i:k], y[j:m], None if a is None else a[i:k], None if b is None else b[j:m]


def _shaped(values: list[Tensor], x: Tensor, x_offsets: Any) -> Tensor:
    if x.dim() == 2 and x_offsets is None:
        return values[0]
    return torch.stack(values) if values else x.new_zeros(0)


def _length(bandwidth: Any, x: Tensor, y: Tensor, segment: int) -> Any:
    if bandwidth == "mean" if isinstance(bandwidth, str) else False:
        return mean_bandwidth(x, y)
    if isinstance(bandwidth, str):
        return median_bandwidth(x, y)
    if isinstance(bandwidth, Tensor) and bandwidth.dim() == 1:
        return bandwidth[segment]
    return bandwidth


def _uniform(weights: Tensor | None, rows: Tensor) -> Tensor:
    return rows.new_full((rows.shape[0],), 1 / rows.shape[0]) if weights is None else weights


def _poison(*rows: Tensor) -> Tensor:
    """0, or NaN if any entry is not finite."""
    return sum(((0 * part.detach()).sum() for part in rows), torch.zeros((), dtype=rows[0].dtype))


def _self_term(matrix: Tensor, weights: Tensor, estimator: str) -> Tensor:
    if estimator == "biased":
        return weights @ matrix @ weights
    off_diagonal = matrix - torch.diag(matrix.diagonal())
    total = weights.sum() ** 2
    return weights @ off_diagonal @ weights * total / (total - weights.square().sum())


def mmd(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | str = "gaussian",
    bandwidth: Any = "mean",
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    x_offsets: Any = None,
    y_offsets: Any = None,
    estimator: str = "biased",
    xx: Any = None,
) -> Tensor:
    """Twin of :func:`decoct.mmd`."""
    values = []
    for c, (xc, yc, ac, bc) in enumerate(_parts(x, y, a, b, x_offsets, y_offsets)):
        if 0 in (xc.shape[0], yc.shape[0]):
            values.append(x.new_zeros(()))
            continue
        s = _length(bandwidth, xc, yc, c)
        ac, bc = _uniform(ac, xc), _uniform(bc, yc)
        value = _self_term(kernel_matrix(yc, yc, kernel, s), bc, estimator)
        value = value - 2 * (ac @ kernel_matrix(xc, yc, kernel, s) @ bc)
        if xx is None:
            value = value + _self_term(kernel_matrix(xc, xc, kernel, s), ac, estimator)
        elif xx is not False:
            value = value + xx.reshape(-1)[c]
        values.append(value + _poison(xc, yc))
    return _shaped(values, x, x_offsets)


def kernel_mean(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | str = "gaussian",
    bandwidth: Any = "mean",
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    x_offsets: Any = None,
    y_offsets: Any = None,
) -> Tensor:
    """Twin of :func:`decoct.kernel_mean`."""
    values = []
    for c, (xc, yc, ac, bc) in enumerate(_parts(x, y, a, b, x_offsets, y_offsets)):
        if 0 in (xc.shape[0], yc.shape[0]):
            values.append(x.new_zeros(()))
            continue
        matrix = kernel_matrix(xc, yc, kernel, _length(bandwidth, xc, yc, c))
        values.append(_uniform(ac, xc) @ matrix @ _uniform(bc, yc) + _poison(xc, yc))
    return _shaped(values, x, x_offsets)


def kernel_matvec(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    kernel: Kernel | str = "gaussian",
    bandwidth: Any = "mean",
    *,
    x_offsets: Any = None,
    y_offsets: Any = None,
) -> Tensor:
    """Twin of :func:`decoct.kernel_matvec`."""
    products = []
    for c, (xc, yc, _, vc) in enumerate(_parts(x, y, None, v, x_offsets, y_offsets)):
        assert vc is not None
        matrix = kernel_matrix(xc, yc, kernel, _length(bandwidth, xc, yc, c))
        products.append(matrix @ vc + _poison(xc, yc))
    if x.dim() == 3:
        return torch.stack(products) if products else v.new_zeros((0, x.shape[1], *v.shape[2:]))
    return torch.cat(products) if products else v.new_zeros((0, *v.shape[1:]))
