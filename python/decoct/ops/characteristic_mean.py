"""Empirical characteristic functions, segment by segment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decoct.ops._characteristic_mean import characteristic_sums
from decoct.ops._plan import uniform
from decoct.ops._problem import Offsets, check_tensor, prepare_rows
from decoct.ops._transforms import needs_gradient, public

__all__ = ["characteristic_mean"]

KEPT_BYTES = 32 << 20
"""Of products that are kept for the backward pass."""


def _keeps(x: Tensor, frequencies: Tensor, weights: Tensor | None) -> bool:
    """Whether a gradient is asked for that the products are kept for."""
    bytes_of_one = 8 if x.dtype == torch.float64 else 4
    few = x.shape[0] * frequencies.shape[0] * bytes_of_one <= KEPT_BYTES
    return few and any(needs_gradient(part) for part in (x, frequencies, weights))


@public
def characteristic_mean(
    x: Tensor,
    frequencies: Tensor,
    *,
    weights: Tensor | None = None,
    x_offsets: Offsets = None,
) -> tuple[Tensor, Tensor]:
    """Means of cos <f, x> and sin <f, x> over the rows of each segment, for every frequency f.

    These are the real and the imaginary part of the empirical characteristic function
    ``E exp(i <f, x>)``. Equivalent, without segments, to::

        t = x @ frequencies.T
        torch.cos(t).mean(0), torch.sin(t).mean(0)

    but each product is computed once for both. For the backward pass the (N, F) products are kept where they
    take at most ``KEPT_BYTES`` (32 MiB); of more pairs nothing is kept, and that pass computes them again.

    Parameters
    ----------
    x : (N, D) rows; (B, N, D) for a batch; (N, D) with ``x_offsets`` for packed segments; or a jagged nested
        tensor. float64, float32, float16 or bfloat16.
    frequencies : (F, D), shared by all segments; their unit is one over that of x.
    weights : (N,), with batches (B, N), used as given: weighted sums. By default one over the rows of the
        segment.
    x_offsets : (C+1,) int64 on the host, or decoct.Segments: segment c is rows ``x_offsets[c]`` to
        ``x_offsets[c + 1]``. Unequal and empty segments are fine; an empty one gives 0.

    Returns
    -------
    (cosine, sine), each (F,); (C, F) with segments and (B, F) with batches. float32, or float64 if anything
    passed is float64; 16-bit rows are computed in float32, mixed floats promote.

    Gradients
    ---------
    First and second order in x, frequencies and weights, in the dtype of each; a third one raises. Rows that
    are not finite make the results of their segment NaN.

    Products past 1e4 (float32) or 1e8 (float64) take a slower way to their sine on the CPU. On CUDA products
    past 2^50 give NaN; they are in the precision that torch is set to for float32 matrix products.

    Raises
    ------
    TypeError
        x, frequencies or weights is no tensor of floating-point numbers.
    ValueError
        Shapes, devices or offsets do not fit together.
    RuntimeError
        The device has no kernels in this build; or torch.compile traces a torch.func transform of it.

    Notes
    -----
    The features of Rahimi and Recht, "Random features for large-scale kernel machines" (2007); as a distance
    of characteristic functions in condensation: Wang et al., "Dataset distillation with neural characteristic
    function" (2025).
    """
    op = "characteristic_mean"
    if isinstance(x, Tensor):
        check_tensor(op, "frequencies", frequencies, x.device)
    others: tuple[Any, ...] = (frequencies,) if isinstance(frequencies, Tensor) else ()
    packed = prepare_rows(op, x, weights, x_offsets, *others)
    columns = packed.x.shape[1]
    if frequencies.dim() != 2 or frequencies.shape[1] != columns:
        raise ValueError(
            f"{op}: frequencies must be (F, D) with D={columns} as in x, got {tuple(frequencies.shape)}"
        )
    cosine, sine = characteristic_sums(
        packed.x,
        frequencies.to(packed.x.dtype),
        uniform(packed.weights, packed.x, packed.offsets, packed.segments),
        packed.offsets,
        packed.segments,
        _keeps(packed.x, frequencies, weights),
    )
    shape = (*packed.shape, frequencies.shape[0])
    return torch.reshape(cosine, shape), torch.reshape(sine, shape)
