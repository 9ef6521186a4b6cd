"""Distance of two lists of parameter gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from decoct.ops._backend import dtype_name
from decoct.ops._gradient_distance import distance
from decoct.ops._transforms import public

__all__ = ["METRICS", "Metric", "RowAxis", "Tensors", "check_options", "gradient_distance"]

Metric = Literal["row_cosine", "cosine", "cosine_l2", "sse", "l1", "l1_mean"]
METRICS = ("row_cosine", "cosine", "cosine_l2", "sse", "l1", "l1_mean")
FORMS = ("product", "clamp")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_FLOATS = frozenset(FLOATS)
OP = "gradient_distance"

Tensors = Literal["matrices", "all"] | Sequence[bool] | None
RowAxis = int | Sequence[int | None] | None


@public
def gradient_distance(
    real: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    metric: Metric = "row_cosine",
    *,
    classes: bool = False,
    tensors: Tensors = None,
    row_axis: RowAxis = 0,
    epsilon: float = 1e-6,
    epsilon_form: Literal["product", "clamp"] = "product",
) -> Tensor:
    """Distance of two lists of parameter gradients, of all classes at once: what gradient matching minimises.

    Equivalent, with the defaults, to::

        total = 0
        for r, s in zip(real, synthetic):
            if s.dim() > 1:
                r, s = r.flatten(1), s.flatten(1)
                norms = r.norm(dim=1) * s.norm(dim=1)
                total = total + (1 - (r * s).sum(1) / (norms + epsilon)).sum()

    which is "ours" of the code of Dataset Condensation with Gradient Matching (Zhao, Mopuri, Bilen, ICLR
    2021). One pass gives the distance and its gradient.

    Parameters
    ----------
    real, synthetic : lists of T tensors of the same shapes, in the order of ``net.parameters()``, real first.
        With ``classes=True`` each has a leading axis of C classes, (C, *shape).
    metric : how the lists are compared. With rows r and s, summed over all rows of the chosen tensors:

        - ``"row_cosine"``: 1 - cos(r, s);
        - ``"cosine"``: the same of the lists as one row each;
        - ``"cosine_l2"``: 1 - cos(r, s) + abs(r - s), as in Jiang et al., arXiv 2208.00311;
        - ``"sse"``: the square of abs(r - s);
        - ``"l1"``: the sum of absolute differences;
        - ``"l1_mean"``: the mean of absolute differences in the row.
    tensors : which tensors count: "matrices" (those of two axes and more), "all", or a flag for each.
        Default: "matrices" with row_cosine and cosine_l2, else "all". What does not count gets no gradient,
        and neither does a tensor without elements, which adds nothing.
    row_axis : the axis along which a tensor's rows lie side by side, without that of the classes; None: the
        whole tensor is one row. One for all tensors or one for each. 0 suits (out, in) weights, 1 their
        transposes; a vector along axis 0 is as many rows of one number.
    epsilon, epsilon_form : cos(r, s) is <r, s> / (abs(r) abs(s) + epsilon) in the form "product", and
        <r, s> / (max(abs(r), epsilon) max(abs(s), epsilon)) in the form "clamp", as in
        ``torch.nn.functional.cosine_similarity``.

    Returns
    -------
    A scalar, or (C,) with ``classes=True``; float64 for float64 tensors, else float32. Tensors of float16
    and bfloat16 are read as they are and their gradients have their dtype; mixed dtypes are promoted.

    Gradients
    ---------
    First and second order in both lists; a third one raises. A row of zeros adds nothing to the derivatives
    by its own direction, nor do equal rows to those of abs(r - s): nothing becomes NaN.

    Raises
    ------
    TypeError
        For what is no list of floating-point tensors.
    ValueError
        For lists of different lengths, shapes or devices, and options out of range.
    """
    real, synthetic, shapes, dtype = _checked_lists(real, synthetic)
    check_options(OP, metric, epsilon, epsilon_form, classes)
    chosen = tensors if tensors is None or isinstance(tensors, str) else tuple(tensors)
    axes = row_axis if row_axis is None or isinstance(row_axis, int) else tuple(row_axis)
    select = _selection.__wrapped__ if torch.compiler.is_compiling() else _selection
    indices, triples, count = select(shapes, metric, classes, chosen, axes)
    if not indices:
        # Nothing counts: 0, with gradients of 0.
        nothing = torch.cat([t.reshape(-1)[:0] for t in (*real, *synthetic)]).sum()
        value = nothing.to(torch.float64 if nothing.dtype == torch.float64 else torch.float32)
        return value.expand(count) if classes else value
    if len(indices) < len(real):
        real, synthetic = [real[i] for i in indices], [synthetic[i] for i in indices]
    if dtype is None:
        real, synthetic = _of_one_dtype(real, synthetic)
    return distance(real, synthetic, (triples, count, metric, epsilon_form, float(epsilon)), not classes)


def _checked_lists(
    real: Any, synthetic: Any
) -> tuple[Sequence[Tensor], Sequence[Tensor], tuple[torch.Size, ...], torch.dtype | None]:
    """The lists, the shapes of their tensors, and their dtype if they all have the same."""
    for name, value in (("real", real), ("synthetic", synthetic)):
        if isinstance(value, Tensor) or not hasattr(value, "__iter__"):
            raise TypeError(f"{OP}: {name} must be a list of tensors, got {type(value).__name__}")
    real = real if isinstance(real, Sequence) else list(real)
    synthetic = synthetic if isinstance(synthetic, Sequence) else list(synthetic)
    if not real:
        raise ValueError(f"{OP}: real must hold at least one tensor, got none")
    if len(real) != len(synthetic):
        raise ValueError(
            f"{OP}: synthetic must hold T={len(real)} tensors as real does, got {len(synthetic)}"
        )
    # The usual case by few steps: a message needs more.
    both = [*real, *synthetic]
    if all(isinstance(t, Tensor) for t in both):
        shapes = tuple([t.shape for t in synthetic])
        dtypes = {t.dtype for t in both}
        if (
            tuple([t.shape for t in real]) == shapes
            and dtypes <= _FLOATS
            and len({t.device for t in both}) == 1
        ):
            return real, synthetic, shapes, dtypes.pop() if len(dtypes) == 1 else None
    device = real[0].device if isinstance(real[0], Tensor) else None
    for i, pair in enumerate(zip(real, synthetic, strict=True)):
        for name, value in zip(("real", "synthetic"), pair, strict=True):
            if not isinstance(value, Tensor):
                raise TypeError(f"{OP}: {name}[{i}] must be a tensor, got {type(value).__name__}")
            if value.dtype not in FLOATS:
                raise TypeError(
                    f"{OP}: {name}[{i}] must be float64, float32, float16 or bfloat16, "
                    f"got {dtype_name(value.dtype)}"
                )
            if value.device != device:
                raise ValueError(
                    f"{OP}: {name}[{i}] must be on the device of real[0], {device}, got {value.device}"
                )
        if pair[0].shape != pair[1].shape:
            raise ValueError(
                f"{OP}: synthetic[{i}] must be {tuple(pair[0].shape)} as real[{i}] is, "
                f"got {tuple(pair[1].shape)}"
            )
    raise AssertionError("lists that are refused have a reason")


def check_options(op: str, metric: Any, epsilon: Any, epsilon_form: Any, classes: Any) -> None:
    if metric not in METRICS:
        raise ValueError(f"{op}: metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)):
        raise TypeError(f"{op}: epsilon must be a positive number, got {type(epsilon).__name__}")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"{op}: epsilon must be a positive number, got {epsilon}")
    if epsilon_form not in FORMS:
        raise ValueError(f"{op}: epsilon_form must be 'product' or 'clamp', got {epsilon_form!r}")
    if not isinstance(classes, bool):
        raise TypeError(f"{op}: classes must be True or False, got {type(classes).__name__}")


@functools.lru_cache(maxsize=256)
def _selection(
    shapes: tuple[torch.Size, ...], metric: str, classes: bool, tensors: Any, row_axis: Any
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The tensors that count, their (outer, rows, inner) one behind the other, and the number of classes."""
    count = 1
    own = shapes
    if classes:
        for i, shape in enumerate(shapes):
            if not shape or shape[0] != shapes[0][0]:
                raise ValueError(
                    f"{OP}: real[{i}] must be (C, ...) with C={shapes[0][0] if shapes[0] else 'classes'} "
                    f"as in real[0], got {tuple(shape)}"
                )
        count = shapes[0][0]
        own = tuple(shape[1:] for shape in shapes)
    flags = _flags(own, metric, tensors)
    axes = _axes(own, row_axis)
    indices, triples = [], []
    for i, (shape, flag, axis) in enumerate(zip(own, flags, axes, strict=True)):
        if not flag or 0 in shape:
            continue
        indices.append(i)
        if axis is None or not shape:
            triples += [1, 1, math.prod(shape)]
            continue
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"{OP}: row_axis must be an axis of real[{i}], {tuple(shape)}, got {axis}")
        axis %= len(shape)
        triples += [math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])]
    return tuple(indices), tuple(triples), count


def _flags(shapes: Sequence[Sequence[int]], metric: str, tensors: Any) -> Sequence[bool]:
    if tensors is None:
        tensors = "matrices" if metric in ("row_cosine", "cosine_l2") else "all"
    if tensors == "all":
        return [True] * len(shapes)
    if tensors == "matrices":
        return [len(shape) > 1 for shape in shapes]
    if isinstance(tensors, str):
        raise ValueError(f"{OP}: tensors must be 'matrices', 'all' or a flag for each, got {tensors!r}")
    if not all(isinstance(flag, bool) for flag in tensors):
        raise TypeError(f"{OP}: tensors must hold bools only, got {list(tensors)}")
    if len(tensors) != len(shapes):
        raise ValueError(f"{OP}: tensors must hold T={len(shapes)} flags, got {len(tensors)}")
    return tensors  # type: ignore[no-any-return]


def _axes(shapes: Sequence[Sequence[int]], row_axis: Any) -> Sequence[int | None]:
    if row_axis is None or (isinstance(row_axis, int) and not isinstance(row_axis, bool)):
        return [row_axis] * len(shapes)
    if not isinstance(row_axis, tuple) or not all(
        axis is None or (isinstance(axis, int) and not isinstance(axis, bool)) for axis in row_axis
    ):
        raise TypeError(f"{OP}: row_axis must be an int, None or one of these for each tensor")
    if len(row_axis) != len(shapes):
        raise ValueError(f"{OP}: row_axis must hold T={len(shapes)} axes, got {len(row_axis)}")
    return row_axis


def _of_one_dtype(
    real: Sequence[Tensor], synthetic: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    dtype = real[0].dtype
    for t in (*real, *synthetic):
        dtype = torch.promote_types(dtype, t.dtype)
    return [t.to(dtype) for t in real], [t.to(dtype) for t in synthetic]
