"""Drop-in forms of losses that public condensation code copies from project to project: their argument order,
their defaults, their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from decoct.kernels import Gaussian
from decoct.ops import gradient_distance, mmd
from decoct.ops._problem import Offsets
from decoct.ops.gradient_distance import Metric

__all__ = ["idc_match_loss", "m3d_loss", "match_loss"]

_DC_METRICS: dict[str, Metric] = {"ours": "row_cosine", "mse": "sse", "cos": "cosine"}
_IDC_METRICS: dict[str, Metric] = {"mse": "sse", "l1": "l1", "l1_mean": "l1_mean", "cos": "row_cosine"}


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


def match_loss(gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor], args: Any = "ours") -> Tensor:
    """``match_loss`` of the code of Dataset Condensation (DC, DSA and what was copied from them).

    Equivalent to :func:`decoct.gradient_distance` with the lists the other way round: "ours" is its
    "row_cosine", "mse" its "sse", "cos" its "cosine".

    Parameters
    ----------
    gw_syn, gw_real : gradients in the order of ``net.parameters()``; here the synthetic ones come first.
    args : "ours", "mse" or "cos", or an object that has one of them as ``dis_metric``.
    """
    name = getattr(args, "dis_metric", args)
    if name not in _DC_METRICS:
        raise ValueError(
            f"match_loss: args must be or have as dis_metric 'ours', 'mse' or 'cos', got {name!r}"
        )
    return gradient_distance(gw_real, gw_syn, _DC_METRICS[name])


def idc_match_loss(
    g_real: Sequence[Tensor],
    g_syn: Sequence[Tensor],
    metric: Literal["mse", "l1", "l1_mean", "cos"] = "mse",
    *,
    bias: bool = False,
    fc: bool = False,
) -> Tensor:
    """The gradient part of ``matchloss`` of the code of IDC, DREAM and Acc-DD: the sum over tensors of its
    ``dist``.

    Equivalent to :func:`decoct.gradient_distance` with "sse", "l1", "l1_mean" or "row_cosine".

    Parameters
    ----------
    g_real, g_syn : gradients in the order of ``net.parameters()``.
    metric : as ``--metric``.
    bias, fc : whether tensors of one axis, and of two, count.
    """
    if metric not in _IDC_METRICS:
        raise ValueError(f"idc_match_loss: metric must be 'mse', 'l1', 'l1_mean' or 'cos', got {metric!r}")
    g_real, g_syn = list(g_real), list(g_syn)
    counted = [(bias or g.dim() != 1) and (fc or g.dim() != 2) for g in g_real]
    return gradient_distance(g_real, g_syn, _IDC_METRICS[metric], tensors=counted)
