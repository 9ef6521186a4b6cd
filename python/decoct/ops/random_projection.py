"""Random projections by signs that nobody stores."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from decoct.ops._problem import check_tensor
from decoct.ops._random_projection import projection
from decoct.ops._transforms import public

__all__ = ["check_seed", "random_projection"]


@public
def random_projection(
    x: Tensor, size: int, *, seed: int = 0, stream: int = 0, transpose: bool = False
) -> Tensor:
    """Products of rows with a matrix of random signs, which keep inner products up to 1 / sqrt(size).

    Equivalent to, but without S (size, D), whose entries are 1 and -1 with equal odds::

        x @ S.T / math.sqrt(size)

    Entry (j, d) of S follows from ``seed``, ``stream``, j and d alone: it is the same on every device and
    for all sizes, threads and batches, so that projections of different calls may be compared.

    Parameters
    ----------
    x : (..., D); float64, float32, float16 or bfloat16.
    size : columns of the result.
    seed, stream : two numbers from 0 to 2^63 - 1 that choose S. Different streams of a seed are independent.
    transpose : the adjoint instead: x is (..., K), S (K, size), and the result ``x @ S / math.sqrt(K)``.
        ``random_projection(y, D, transpose=True)`` is the adjoint of ``random_projection(x, K)``.

    Returns
    -------
    (..., size); float64 for float64 rows, else float32.

    Gradients
    ---------
    In x, of every order.

    Raises
    ------
    TypeError
        x is no tensor of floating-point numbers, or size, seed or stream no int.
    ValueError
        x has no dimension, or a number is out of range.
    RuntimeError
        The device has no kernels in this build; or torch.compile traces a torch.func transform of it.

    References
    ----------
    Achlioptas, Database-friendly random projections, 2003, for signs. Salmon et al., Parallel random numbers:
    as easy as 1, 2, 3, SC 2011, for the counter-based generator, Philox4x32-10.
    """
    op = "random_projection"
    x = check_tensor(op, "x", x, None)
    if x.dim() == 0:
        raise ValueError(f"{op}: x must be (..., D), got a scalar")
    _whole(op, "size", size, 2**29)
    check_seed(op, "seed", seed)
    check_seed(op, "stream", stream)
    if not isinstance(transpose, bool):
        raise TypeError(f"{op}: transpose must be True or False, got {type(transpose).__name__}")
    rows = x.shape[-1] if transpose else size
    factor = 1 / math.sqrt(rows) if rows else 0.0
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return projection(flat, size, seed, stream, factor, transpose).reshape(*x.shape[:-1], size)


def _whole(op: str, name: str, value: Any, end: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if not 0 <= value < end:
        raise ValueError(f"{op}: {name} must be from 0 to 2^{end.bit_length() - 1} - 1, got {value}")


def check_seed(op: str, name: str, value: Any) -> None:
    _whole(op, name, value, 2**63)
