"""Drop-in forms of losses that public condensation code copies from project to project: their argument order,
their defaults, their values."""

from __future__ import annotations

from torch import Tensor

from decoct.kernels import Gaussian
from decoct.ops import mmd
from decoct.ops._problem import Offsets

__all__ = ["m3d_loss"]


def m3d_loss(
    source: Tensor,
    target: Tensor,
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
    *,
    x_offsets: Offsets = None,
    y_offsets: Offsets = None,
) -> Tensor:
    """The multi-bandwidth Gaussian MMD of M3D and of the domain adaptation code before it.

    Equivalent to::

        z = torch.cat([source, target]); n = len(z)
        d2 = torch.cdist(z, z).square()
        h = d2.detach().sum() / (n * n - n) / kernel_mul ** (kernel_num // 2)
        K = sum(torch.exp(-d2 / (h * kernel_mul**i)) for i in range(kernel_num))
        K[:N, :N].mean() - 2 * K[:N, N:].mean() + K[N:, N:].mean()

    which is ``mmd(source, target, Gaussian(scales=(0.25, 0.5, 1, 2, 4)), "mean")`` with the default
    arguments. The order is that of the copied code, ``(source, target)``; the value is symmetric, and callers
    pass the real features first, as everywhere here.

    Parameters
    ----------
    source, target : (N, D) and (M, D), or any form that :func:`decoct.mmd` takes.
    kernel_mul, kernel_num : ratio of neighbouring squared bandwidths and their number (at most 16).
    """
    scales = tuple(float(kernel_mul) ** (i - kernel_num // 2) for i in range(kernel_num))
    return mmd(source, target, Gaussian(scales=scales), "mean", x_offsets=x_offsets, y_offsets=y_offsets)
