"""Plain-torch twins of the ops, written to be read.

They build the kernel matrix, loop over segments and leave all derivatives to autograd, to any order. Tests
compare the ops with them; they are the definition of what the ops compute. Results come in the dtype of the
inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decoct._reference_barycenter import free_support_barycenter
from decoct._reference_gradients import gradient_distance
from decoct._reference_layers import (
    class_gradients,
    clipped_gradient_sum,
    gradient_gram,
    group_norm,
    image_gram,
    image_squares,
    instance_norm,
    per_sample_gradients,
    per_sample_norms,
    segment_outer,
)
from decoct._reference_means import characteristic_mean, segment_moments
from decoct._reference_projections import random_projection, random_signs
from decoct.kernels import Kernel, resolve
from decoct.ops._kernel_values import distances, kernel_values
from decoct.ops.sinkhorn import SinkhornSolution
from decoct.segments import host_offsets

__all__ = [
    "apply_plan",
    "characteristic_mean",
    "class_gradients",
    "clipped_gradient_sum",
    "free_support_barycenter",
    "gradient_distance",
    "gradient_gram",
    "group_norm",
    "image_gram",
    "image_squares",
    "instance_norm",
    "kernel_matrix",
    "kernel_matvec",
    "kernel_mean",
    "mean_bandwidth",
    "median_bandwidth",
    "mmd",
    "per_sample_gradients",
    "per_sample_norms",
    "random_projection",
    "random_signs",
    "segment_moments",
    "segment_outer",
    "sinkhorn_divergence",
    "sinkhorn_potentials",
]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) squared distances, by differences."""
    return (x[:, None, :] - y[None, :, :]).square().sum(-1)


def kernel_matrix(x: Tensor, y: Tensor, kernel: Kernel | str = "gaussian", bandwidth: Any = 1.0) -> Tensor:
    """K (N, M) with K[i, j] = k(x_i, y_j) for rows x (N, D), y (M, D) and one length."""
    kernel = resolve(kernel)
    d2 = squared_distances(x, y) if kernel.translation_invariant else None
    return kernel_values(kernel.spec(x.shape[1]), bandwidth, x @ y.T if d2 is None else None, d2)


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


def transport_cost(
    x: Tensor, y: Tensor, p: int = 2, cost: str = "euclidean", labels: Any = None, label_cost: Any = None
) -> Tensor:
    """C (N, M) of rows, with what the pair `labels` adds."""
    if cost == "cosine":
        x, y = (torch.nn.functional.normalize(rows, dim=1) for rows in (x, y))
    d2 = squared_distances(x, y)
    matrix = d2 / 2 if p == 2 else distances(d2)
    if label_cost is None:
        return matrix
    added: Tensor = label_cost[labels[0][:, None], labels[1]].to(matrix.dtype)
    return matrix + added


def box_diameter(x: Tensor, y: Tensor) -> float:
    """Of the box around all rows."""
    z = torch.cat([x, y]).detach()
    return float((z.amax(0) - z.amin(0)).norm())


ALTERNATING = 40
"""Updates after a solution; its derivatives take as many to converge to float64 where half of a deviation is
left by one of both potentials."""


class _Term(NamedTuple):
    f: Tensor
    g: Tensor
    value: Tensor
    error: float
    iterations: int


def _multiplier(w: Tensor, full: Tensor, mass: float, eps: float) -> Tensor:
    """The h with sum_i w_i min(1, exp((h - full_i) / eps)) = mass: the largest of those that take the first k
    rows for full, and no more than it takes to fill all."""
    w, full = w[w > 0], full[w > 0]
    full, order = full.sort()
    logs = torch.logcumsumexp((w[order].log() - full / eps).flip(0), 0).flip(0)
    left = mass - torch.cat([w.new_zeros(1), w[order].cumsum(0)[:-1]])
    each = torch.where(left > 0, eps * (left.clamp(min=1e-300).log() - logs), -math.inf)
    return each.max().clamp(max=full[-1])


def _solve(
    matrix: Tensor,
    a: Tensor,
    b: Tensor,
    eps: tuple[float, float, float],
    rho: tuple[float, float],
    mass: float,
    tol: float,
    cap: float,
    start: tuple[Tensor, Tensor] | None,
) -> _Term:
    """Sinkhorn's iteration, both potentials at once and averaged; eps goes from the first of three to the
    second, times the third in each step. Once solved to a `tol`, derivatives are those of further,
    alternating updates: they converge to the solution's, and faster than those of averaged ones."""
    first, last, factor = eps
    balanced = math.isinf(rho[0]) and math.isinf(rho[1]) and not mass
    log_a, log_b = (torch.where(w > 0, torch.where(w > 0, w, 1.0).log(), -math.inf) for w in (a, b))
    f, g = (w.new_zeros(w.shape) for w in (a, b)) if start is None else start
    shift, iterations, missed = matrix.new_zeros(()), 0, math.inf
    if start is not None and mass:
        # They come with the multiplier, without which none is above 0 and the largest is 0.
        shift = f.detach().max()
        f = f - shift

    def update(eps: float, whole: bool = False) -> None:
        nonlocal f, g, shift, iterations, missed
        new_f = -eps * torch.logsumexp(log_b + (g - matrix) / eps, 1) - shift
        new_g = -eps * torch.logsumexp(log_a + (f - matrix.T) / eps, 1) - shift
        logs = (f - new_f) / eps, (g - new_g) / eps
        sums = logs[0].exp(), logs[1].exp()
        new_f, new_g = new_f / (1 + eps / rho[0]), new_g / (1 + eps / rho[1])
        share = 1.0 if whole else 0.5
        missed, moves = 0.0, [shift.new_zeros(())] * 2
        if mass:
            full = new_f + shift, new_g + shift
            multipliers = [_multiplier(*side, mass, eps) for side in zip((a, b), full, strict=True)]
            new_f, new_g = ((of - h).clamp(max=0) for of, h in zip(full, multipliers, strict=True))
            moves = [h - shift for h in multipliers]
            shift = shift + share * (moves[0] + moves[1]) / 2
            missed = abs(float((a @ sums[0]).detach()) / mass - 1)
        for w, old, new, total, r, move in zip((a, b), (f, g), (new_f, new_g), sums, rho, moves, strict=True):
            kept = 1.0 if math.isinf(r) and not mass else total * ((new - old + move) / eps).exp()
            missed = max(missed, float(((w * (total - kept).abs()).sum() / w.sum()).detach()))
        f, g = f + share * (new_f - f), g + share * (new_g - g)
        iterations += 1

    alternate = tol > 0 and not mass
    with torch.set_grad_enabled(torch.is_grad_enabled() and not alternate):
        if start is None:
            update(first, whole=True)
            update(first)
            at = first
            while at > last and iterations + 2 < cap:
                update(at)
                at *= factor
        update(last)
        while tol and missed > tol and iterations + 1 < cap:
            update(last)
        update(last, whole=True)
    for _ in range(ALTERNATING if alternate else 0):
        f = -last * torch.logsumexp(log_b + (g - matrix) / last, 1) / (1 + last / rho[0])
        g = -last * torch.logsumexp(log_a + (f - matrix.T) / last, 1) / (1 + last / rho[1])

    def share_of(w: Tensor, potential: Tensor, r: float) -> Tensor:
        return w @ (potential if math.isinf(r) else -(r + last / 2) * torch.expm1(-potential / r))

    value = share_of(a, f, rho[0]) + share_of(b, g, rho[1]) + mass * shift
    if balanced:
        centre = (a @ f - b @ g) / (a.sum() + b.sum())
        f, g = f - centre, g + centre
    return _Term(f + shift, g, value, missed, iterations)


def _transport(
    x: Tensor, y: Tensor, options: dict[str, Any]
) -> Iterator[tuple[_Term, _Term | None, _Term | None]]:
    """The three terms of each segment."""
    given = dict(options)
    p, blur, reach = given.get("p", 2), given.get("blur", 0.05), given.get("reach")
    reach = reach if isinstance(reach, tuple | list) else (reach, reach)
    rho = tuple(math.inf if r is None else float(r) ** p for r in reach)
    tol, debias = given.get("tol") or (1e-3 if given.get("mass") else None), given.get("debias", True)
    cap = given.get("max_iterations") or (math.inf if tol is None else 1000)
    layout = given.get("x_offsets"), given.get("y_offsets")
    labels = given.get("label_cost")
    pieces = _parts(x, y, given.get("a"), given.get("b"), *layout)
    if labels is None:
        kinds: Any = ((None, None) for _ in iter(int, 1))
    else:
        kinds = (
            (lx, ly) for lx, ly, _, _ in _parts(given["x_labels"], given["y_labels"], None, None, *layout)
        )
        if x.dim() == 3:
            kinds = zip(given["x_labels"], given["y_labels"], strict=True)
    start = given.get("start")
    for (xc, yc, ac, bc), (lx, ly) in zip(pieces, kinds, strict=False):
        if 0 in (xc.shape[0], yc.shape[0]):
            nothing = [w.new_zeros(w.shape[0]) for w in (xc, yc)]
            yield tuple(  # type: ignore[misc]
                _Term(nothing[i], nothing[j], x.new_zeros(()), 0.0, 0) for i, j in ((0, 1), (0, 0), (1, 1))
            )
            continue
        ac, bc = _uniform(ac, xc), _uniform(bc, yc)
        matrices = [
            transport_cost(one, two, p, given.get("cost", "euclidean"), kinds_of, labels)
            for one, two, kinds_of in ((xc, yc, (lx, ly)), (xc, xc, (lx, lx)), (yc, yc, (ly, ly)))
        ]
        ends = [
            rows if given.get("cost") != "cosine" else torch.nn.functional.normalize(rows, dim=1)
            for rows in (xc, yc)
        ]
        size = given.get("diameter")
        first = (box_diameter(*ends) if size is None else float(size)) ** p
        if labels is not None and size is None:
            first += float(labels.abs().max())
        eps = (first, float(blur) ** p, given.get("scaling", 0.5) ** p)

        def term(
            matrix: Tensor, w: Tensor, u: Tensor, sides: Any, begin: Any = None, eps: Any = eps
        ) -> _Term:
            return _solve(matrix, w, u, eps, sides, given.get("mass") or 0.0, tol or 0.0, cap, begin)

        begins = (None, None, None) if start is None else (start[1:3], (start[3],) * 2, (start[4],) * 2)
        yield (
            term(matrices[0], ac, bc, rho, begins[0]),
            term(matrices[1], ac, ac, (rho[0], rho[0]), begins[1]) if debias else None,
            term(matrices[2], bc, bc, (rho[1], rho[1]), begins[2]) if debias else None,
        )


def sinkhorn_divergence(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """Twin of :func:`decoct.sinkhorn_divergence`; its derivatives are those of the iterations taken."""
    xx, values = options.pop("xx", None), []
    for c, (cross, own_x, own_y) in enumerate(_transport(x, y, options)):
        value = cross.value
        if own_x is not None and xx is None:
            value = value - own_x.value / 2
        elif isinstance(xx, Tensor) and cross.iterations:
            value = value - xx.reshape(-1)[c] / 2
        values.append(value if own_y is None else value - own_y.value / 2)
    return _shaped(values, x, options.get("x_offsets"))


def sinkhorn_potentials(x: Tensor, y: Tensor, **options: Any) -> SinkhornSolution:
    """Twin of :func:`decoct.sinkhorn_potentials`."""
    solved = list(_transport(x, y, options))
    value = sinkhorn_divergence(x, y, **options)

    def joined(parts: list[Tensor], rows: Tensor) -> Tensor:
        return torch.cat(parts).reshape(rows.shape[:-1]) if parts else rows.new_zeros(rows.shape[:-1])

    def per_segment(numbers: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(numbers, dtype=dtype).reshape(value.shape)

    own = [[t[side].f for t in solved if t[side] is not None] for side in (1, 2)]  # type: ignore[union-attr]
    debias = options.get("debias", True)
    errors = [max(t.error for t in terms if t is not None) for terms in solved]
    tol = options.get("tol")
    return SinkhornSolution(
        value,
        joined([t[0].f for t in solved], x),
        joined([t[0].g for t in solved], y),
        joined(own[0], x) if debias else None,
        joined(own[1], y) if debias else None,
        per_segment(errors, value.dtype),
        per_segment([max(t.iterations for t in terms if t is not None) for terms in solved], torch.int64),
        per_segment([error <= (1e-3 if tol is None else tol) for error in errors], torch.bool),
    )


def apply_plan(
    x: Tensor, y: Tensor, v: Tensor, solution: Any = None, *, f: Any = None, g: Any = None, **options: Any
) -> Tensor:
    """Twin of :func:`decoct.apply_plan`."""
    p, eps = options.get("p", 2), options.get("blur", 0.05) ** options.get("p", 2)
    f, g = (f, g) if solution is None else solution[1:3]
    layout = options.get("x_offsets"), options.get("y_offsets")
    transpose = options.get("transpose", False)
    products = []
    parts = zip(
        _parts(x, y, options.get("a"), options.get("b"), *layout),
        _parts(f[..., None], g[..., None], None, None, *layout),
        _parts(*((v, y) if transpose else (x, v)), None, None, *layout),
        strict=True,
    )
    for (xc, yc, ac, bc), (fc, gc, _, _), (v_x, v_y, _, _) in parts:
        matrix = transport_cost(xc, yc, p, options.get("cost", "euclidean"))
        plan = torch.exp((fc + gc.T - matrix) / eps)
        if 0 not in plan.shape:
            plan = plan * _uniform(ac, xc)[:, None] * _uniform(bc, yc)
        plan, vectors = (plan.T, v_x) if transpose else (plan, v_y)
        product = plan @ vectors
        if options.get("normalize"):
            total = plan.sum(1).reshape(-1, *[1] * (product.dim() - 1))
            product = product / torch.where(total == 0, 1.0, total)
        products.append(product)
    rows = y if transpose else x
    if x.dim() == 3:
        return torch.stack(products) if products else v.new_zeros((0, rows.shape[1], *v.shape[2:]))
    return torch.cat(products) if products else v.new_zeros((0, *v.shape[1:]))
