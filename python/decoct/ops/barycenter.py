"""Barycentres of weighted clouds with few free points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from decoct.ops._backend import backend_for, compute_dtype
from decoct.ops._barycenter import Options, barycenter
from decoct.ops._problem import Offsets, _check_weights, _unnested, check_tensor
from decoct.ops._transforms import public
from decoct.ops._transport import _number, _values_are_known, check_blur
from decoct.segments import host_offsets

__all__ = ["Barycenter", "free_support_barycenter"]

OP = "free_support_barycenter"


class Barycenter(NamedTuple):
    """What :func:`free_support_barycenter` returns."""

    points: Tensor
    masses: Tensor
    offsets: Tensor
    cost: Tensor
    iterations: Tensor
    converged: Tensor


@public
def free_support_barycenter(
    x: Tensor,
    size: int | Sequence[int],
    *,
    a: Tensor | None = None,
    x_offsets: Offsets = None,
    measures: Offsets = None,
    measure_weights: Tensor | None = None,
    weights: Literal["uniform", "learned"] | Tensor = "uniform",
    init: Literal["kmeans++", "rows"] | Tensor = "kmeans++",
    p: int = 2,
    blur: float = 0.05,
    first_blur: float | None = None,
    scaling: float = 0.5,
    iterations: int = 100,
    tol: float | None = None,
    inner_iterations: int = 100,
    marginal_tol: float = 1e-3,
    step: float = 1.0,
    seed: int = 0,
) -> Barycenter:
    """Entropic Wasserstein barycentres with free support, of all segments in one call.

    For each barycentre the points y (k, D), and masses b (k,) if these are learned, at which ::

        sum(w * sinkhorn_divergence(x_m, y, a=a_m, b=b, blur=blur, debias=False) for w, x_m, a_m in measures)

    no longer falls, in turns: the plans P for the points, then ``y = P.T @ x / P.sum(0)[:, None]``, weighted
    over the measures. Of one measure, the default, it is an entropic quantisation: at k = 1 the mean, and as
    blur goes to 0 with learned masses the centroids of k-means. A local minimum is found, near ``init``.

    Parameters
    ----------
    x : rows of the measures: (N, D) for one barycentre; (B, N, D), packed rows with ``x_offsets``, or a
        jagged nested tensor (eager mode) for one of each segment. float64, float32, float16 or bfloat16.
    size : points of each barycentre: a number k, or one for each of them, 0 included.
    a : masses of the rows, (N,) or (B, N); divided by their total in each segment. None is negative:
        checked on the CPU, outside of transforms and compilers. By default equal ones.
    x_offsets : int64 (C + 1,) tensor, list or :class:`decoct.Segments`.
    measures : offsets (S + 1,) into the segments: barycentre s is that of segments ``measures[s]:measures[s +
        1]``. None: each segment has one of its own.
    measure_weights : (C,), weights of the segments in their barycentre, divided by their total there. Equal
        by default; segments without rows count for nothing.
    weights : masses of the points: ``"uniform"``, ``"learned"``, or a tensor as ``masses`` is returned,
        divided by its totals. Learned ones start equal; not offered with ``measures``.
    init : ``"kmeans++"``, rows drawn one after the other, each with a probability that is its mass times the
        squared distance to those before, out of 8 k rows at random and 64 at least; ``"rows"``, rows at
        random, once each as far as they go; or a tensor as ``points`` is returned.
    p : 2, the cost |x - y|^2 / 2; no other has a closed form for the points.
    blur : length of the entropy, in the units of the rows: eps = blur^2.
    first_blur : at least blur, which is the default: blur of the first turn, which falls by ``scaling`` a
        turn. A length near the rows' own spread draws all points to the mean, where they stay together.
    scaling : between 0 and 1.
    iterations : turns at most; 0 gives the starting points and their cost.
    tol : turns end where the points of a barycentre moved by no more, as the root of the mean square weighted
        by their masses, in the units of the rows. None: blur / 100.
    inner_iterations, marginal_tol : of the plans of masses that are not learned: iterations at most, from the
        potentials of the turn before, and the share of the mass by which a marginal may be missed.
    step : at most 1, the part of the way to their new places that points go.
    seed : of ``init``.

    Returns
    -------
    points : (k, D), or (C, k, D) with an int ``size``, C barycentres; packed (K, D) with a sequence. float64
        for float64 rows, else float32.
    masses : (k,), (C, k) or (K,), with a total of 1.
    offsets : host int64 (C + 1,): barycentre c has points ``offsets[c]:offsets[c + 1]`` of the packed ones.
    cost : (), or (C,): the sum above at these points; with learned masses, whose plans leave the second
        marginal free, ``-eps * a @ logsumexp(b.log() - C / eps, 1)``, which is the same where masses no
        longer change.
    iterations : int64, turns made.
    converged : bool, whether the last turn was at ``blur`` and within ``tol``.

    A barycentre of no rows or points has cost 0, and points and masses 0. A row with NaN or Inf makes its
    own barycentre NaN.

    Gradients
    ---------
    None: asking for one raises. Put the points into :func:`decoct.sinkhorn_divergence` for those of the cost.

    Raises
    ------
    TypeError
        A dtype that is not floating, or an argument of the wrong kind.
    ValueError
        Shapes, offsets, devices or values that do not fit; p other than 2.
    RuntimeError
        No kernels for the device in this build; a gradient is asked for.

    References
    ----------
    Cuturi and Doucet, Fast computation of Wasserstein barycenters, ICML 2014, section 4.4, for the points;
    Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm, 1977, for learned
    masses, which are those of a mixture of Gaussians of width blur. Wasserstein metric distillation (Liu et
    al., arXiv 2311.18531) solves exact transport on the CPU, class by class, and moves the masses along the
    dual potential in small steps; here eps > 0, masses have a closed form, and all classes go at once.
    """
    rows, offsets, segments, single = _rows(x, x_offsets)
    ends, groups = _measures(measures, segments)
    if ends is not None:
        single = False
        if isinstance(weights, str) and weights == "learned":
            raise ValueError(f"{OP}: weights must be 'uniform' or a tensor with measures, got 'learned'")
    point_ends, each, count = _sizes(size, groups)
    dtype = rows.dtype
    masses = weights if isinstance(weights, Tensor) else None
    points = init if isinstance(init, Tensor) else None
    lead: tuple[int, ...] = (groups, each)
    if point_ends is not None:
        lead = (count,)
    elif single:
        lead = (each,)
    if points is not None:
        _like(points, "init", "points", (*lead, rows.shape[1]), rows)
        dtype = torch.promote_types(dtype, points.dtype)
    elif init not in ("kmeans++", "rows"):
        raise ValueError(f"{OP}: init must be 'kmeans++', 'rows' or a tensor, got {init!r}")
    if masses is not None:
        _like(masses, "weights", "masses", lead, rows)
        _not_negative("weights", masses)
    elif weights not in ("uniform", "learned"):
        raise ValueError(f"{OP}: weights must be 'uniform', 'learned' or a tensor, got {weights!r}")
    a = a.values() if a is not None and isinstance(a, Tensor) and a.is_nested else a
    flat = _check_weights(OP, "a", a, "x", x.values() if _nested(x) else x, rows.device)
    _not_negative("a", flat)
    shares = _shares(measure_weights, segments, rows)
    if any(part is not None and part.dtype == torch.float64 for part in (flat, masses)):
        dtype = torch.float64
    rows = rows.to(dtype)
    compute = compute_dtype(dtype)
    options = _options(
        p, blur, first_blur, scaling, iterations, tol, inner_iterations, marginal_tol, step, weights
    )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{OP}: seed must be an int, got {type(seed).__name__}")
    found = barycenter(
        rows,
        None if flat is None else flat.to(compute),
        offsets,
        segments,
        None if points is None else points.reshape(count, rows.shape[1]).to(compute),
        None if masses is None else masses.reshape(count).to(compute),
        ends,
        shares,
        point_ends,
        groups,
        count,
        init if isinstance(init, str) else "",
        seed,
        options.packed(),
    )
    shape = () if single else (groups,)
    if point_ends is None:
        point_ends = torch.arange(groups + 1, dtype=torch.int64) * each
    finished = (found.movement <= options.tolerance) & (found.made >= _turns_to(options))
    return Barycenter(
        found.points.reshape(*lead, rows.shape[1]),
        found.masses.reshape(lead),
        point_ends,
        found.cost.to(compute).reshape(shape),
        found.made.reshape(shape),
        finished.reshape(shape),
    )


def _turns_to(options: Options) -> int:
    """Turns until the blur is the last one."""
    blurs = options.blurs()
    return blurs.index(options.blur) + 1 if options.blur in blurs else len(blurs) + 1


def _nested(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_nested


def _rows(x: Any, x_offsets: Offsets) -> tuple[Tensor, Tensor | None, int, bool]:
    """Packed rows, their offsets or None for equal segments, how many these are, and whether it is one cloud
    without a dimension for that."""
    x, x_offsets = _unnested(OP, "x", x, x_offsets)
    x = check_tensor(OP, "x", x, None)
    backend_for(OP, x.device)
    if x.dim() not in (2, 3):
        raise ValueError(f"{OP}: x must be (N, D) or (B, N, D), got {tuple(x.shape)}")
    if x.shape[-1] == 0:
        raise ValueError(f"{OP}: x must be at least one column wide, got {tuple(x.shape)}")
    if x_offsets is None:
        if x.dim() == 3:
            return x.reshape(-1, x.shape[2]), None, x.shape[0], False
        return x, None, 1, True
    if x.dim() != 2:
        raise ValueError(f"{OP}: x must be (N, D) with x_offsets, got {tuple(x.shape)}")
    host = host_offsets(OP, "x_offsets", x_offsets)
    if not torch.compiler.is_compiling() and int(host[-1]) != x.shape[0]:
        raise ValueError(f"{OP}: x_offsets must end at N={x.shape[0]}, the rows of x, got {int(host[-1])}")
    return x, host, host.shape[0] - 1, False


def _measures(measures: Offsets, segments: int) -> tuple[Tensor | None, int]:
    if measures is None:
        return None, segments
    host = host_offsets(OP, "measures", measures)
    if not torch.compiler.is_compiling() and int(host[-1]) != segments:
        raise ValueError(f"{OP}: measures must end at C={segments}, the segments of x, got {int(host[-1])}")
    return host, host.shape[0] - 1


def _sizes(size: Any, groups: int) -> tuple[Tensor | None, int, int]:
    """Offsets of the points, None for equal sizes; that size; and how many points there are in all."""
    words = f"an int or a sequence of S={groups} ints, not negative"
    each = [size] if isinstance(size, int) else size
    if isinstance(size, bool) or isinstance(each, str) or not isinstance(each, Sequence):
        raise TypeError(f"{OP}: size must be {words}, got {type(size).__name__}")
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in each):
        raise TypeError(f"{OP}: size must be {words}, got {list(each)[:4]}")
    if any(k < 0 for k in each) or (each is size and len(each) != groups):
        raise ValueError(f"{OP}: size must be {words}, got {size}")
    if each is not size:
        return None, size, size * groups
    ends = [0]
    for k in each:
        ends.append(ends[-1] + k)
    return torch.tensor(ends, dtype=torch.int64), 0, ends[-1]


def _like(given: Tensor, name: str, result: str, shape: tuple[int, ...], rows: Tensor) -> None:
    check_tensor(OP, name, given, rows.device)
    if tuple(given.shape) != shape:
        raise ValueError(f"{OP}: {name} must be {shape} as {result} are returned, got {tuple(given.shape)}")


def _not_negative(name: str, given: Tensor | None) -> None:
    if given is not None and _values_are_known(given) and bool((given < 0).any()):
        raise ValueError(f"{OP}: {name} must not be negative, got {float(given.detach().min()):.6g}")


def _shares(given: Tensor | None, segments: int, rows: Tensor) -> Tensor | None:
    if given is None:
        return None
    check_tensor(OP, "measure_weights", given, rows.device)
    if tuple(given.shape) != (segments,):
        raise ValueError(
            f"{OP}: measure_weights must be (C,) with C={segments}, the segments of x, "
            f"got {tuple(given.shape)}"
        )
    _not_negative("measure_weights", given)
    return given.to(torch.float64)


def _options(
    p: Any,
    blur: Any,
    first_blur: Any,
    scaling: Any,
    iterations: Any,
    tol: Any,
    inner_iterations: Any,
    marginal_tol: Any,
    step: Any,
    weights: Any,
) -> Options:
    if isinstance(p, bool) or p != 2:
        raise ValueError(f"{OP}: p must be 2, got {p!r}")
    last = check_blur(OP, blur, 2)
    first = (
        last
        if first_blur is None
        else _number(OP, "first_blur", first_blur, "a number, at least blur, or None")
    )
    if not last <= first or not first * first < math.inf:
        raise ValueError(f"{OP}: first_blur must be at least blur={last}, got {first_blur}")
    ratio = _number(OP, "scaling", scaling, "a number between 0 and 1")
    if ratio >= 1:
        raise ValueError(f"{OP}: scaling must be a number between 0 and 1, got {scaling}")
    part = _number(OP, "step", step, "a positive number, at most 1")
    if part > 1:
        raise ValueError(f"{OP}: step must be a positive number, at most 1, got {step}")
    for name, value, least in (("iterations", iterations, 0), ("inner_iterations", inner_iterations, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{OP}: {name} must be an int, got {type(value).__name__}")
        if not least <= value < 2**31:
            raise ValueError(f"{OP}: {name} must be at least {least}, got {value}")
    length = last / 100 if tol is None else _number(OP, "tol", tol, "a positive number or None")
    missed = _number(OP, "marginal_tol", marginal_tol, "a positive number")
    learned = isinstance(weights, str) and weights == "learned"
    return Options(last, first, ratio, part, length, missed, iterations, inner_iterations, learned)
