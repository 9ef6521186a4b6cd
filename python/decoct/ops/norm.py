"""Group and instance normalisation fused with ReLU and average pooling."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from decoct.ops._backend import compute_dtype
from decoct.ops._norm import norm
from decoct.ops._problem import check_tensor
from decoct.ops._transforms import public

__all__ = ["group_norm", "instance_norm"]

Activation = Literal["relu"]


@public
def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    activation: Activation | None = None,
    pool: int = 1,
) -> Tensor:
    """Group normalisation, an affine map, ReLU and average pooling in one pass over x.

    Equivalent, with ``activation="relu"`` and two spatial axes, to::

        y = torch.nn.functional.group_norm(x, groups, weight, bias, epsilon)
        torch.nn.functional.avg_pool2d(torch.relu(y), pool)

    but x is read once, and nothing of its size is kept for the backward passes but x itself.

    Parameters
    ----------
    x : (N, C, *spatial), any number of spatial axes. float64, float32, float16 or bfloat16. A channels-last
        x is read in place if each channel is a group; other layouts are copied.
    groups : number of groups, which divides C. Mean and variance (divided by n) are those of the
        C / groups channels of a group and all their positions, for each of the N on its own.
    weight, bias : (C,), by default ones and zeros; or (N, C), a row for each of the N, whose gradients then
        stay apart (a channels-last x is copied for that). float64 ones make all of the call float64.
    epsilon : added to the variance.
    activation : None or ``"relu"``.
    pool : side and stride of the windows that are averaged, over one or two spatial axes; positions at the
        far edges that fill no window are dropped. 1: no pooling.

    Returns
    -------
    (N, C, *spatial // pool) in the dtype and layout of x; 16 bits are computed in float32. Autocast changes
    nothing on the CPU; on CUDA it gives float32, as it does for torch's own.

    Gradients
    ---------
    First and second order in x, weight and bias; a third order raises. In the dtype of each input. Where a
    number is exactly 0 before ReLU its derivative is 0. A group with NaN or Inf is NaN and changes no other.

    Raises
    ------
    TypeError
        A dtype that is not floating, or an argument of the wrong kind.
    ValueError
        Shapes, devices or values that do not fit.
    RuntimeError
        No kernels for the device in this build.

    References
    ----------
    Wu and He, Group normalization, ECCV 2018.
    """
    return _checked("group_norm", x, groups, weight, bias, epsilon, activation, pool)


@public
def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    activation: Activation | None = None,
    pool: int = 1,
) -> Tensor:
    """:func:`decoct.group_norm` with a group for each channel: the statistics are those of one channel of one
    image.

    Equivalent, with ``activation="relu"`` and two spatial axes, to::

        y = torch.nn.functional.instance_norm(x, None, None, weight, bias, eps=epsilon)
        torch.nn.functional.avg_pool2d(torch.relu(y), pool)

    All else is as there. A channel of one position has variance 0 and gives the bias.

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky, Instance normalization, arXiv 1607.08022.
    """
    channels = x.shape[1] if isinstance(x, Tensor) and x.dim() > 1 else 1
    return _checked("instance_norm", x, channels, weight, bias, epsilon, activation, pool)


def _whole(op: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{op}: {name} must be at least 1, got {value}")


def _parameter(op: str, name: str, value: Tensor | None, x: Tensor) -> Tensor | None:
    if value is None:
        return None
    check_tensor(op, name, value, x.device)
    if value.dim() not in (1, 2) or value.shape != x.shape[2 - value.dim() : 2]:
        raise ValueError(
            f"{op}: {name} must be (C,) or (N, C) with C={x.shape[1]} and N={x.shape[0]} as in x, got "
            f"{tuple(value.shape)}"
        )
    return value


def check_options(op: str, epsilon: Any, activation: Any, pool: Any) -> None:
    """Refuses what no input could be normalised with."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float, torch.SymFloat)):
        raise TypeError(f"{op}: epsilon must be a number, got {type(epsilon).__name__}")
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"{op}: epsilon must not be negative, and finite, got {epsilon}")
    if activation not in (None, "relu"):
        raise ValueError(f"{op}: activation must be None or 'relu', got {activation!r}")
    _whole(op, "pool", pool)


def _checked(
    op: str,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    activation: Activation | None,
    pool: int,
) -> Tensor:
    check_tensor(op, "x", x, None)
    if x.dim() < 2 or x.shape[1] == 0:
        raise ValueError(f"{op}: x must be (N, C, *spatial) with C at least 1, got {tuple(x.shape)}")
    _whole(op, "groups", groups)
    if x.shape[1] % groups:
        raise ValueError(f"{op}: groups must divide C={x.shape[1]}, the channels of x, got {groups}")
    weight, bias = _parameter(op, "weight", weight, x), _parameter(op, "bias", bias, x)
    check_options(op, epsilon, activation, pool)
    if pool != 1:
        if x.dim() not in (3, 4):
            raise ValueError(
                f"{op}: pool must be 1 unless x has one or two spatial axes, got {pool} and {tuple(x.shape)}"
            )
        if min(x.shape[2:]) < pool:
            raise ValueError(f"{op}: pool must be at most {min(x.shape[2:])}, a side of x, got {pool}")
    dtype = x.dtype
    if any(p is not None and p.dtype == torch.float64 for p in (weight, bias)):
        dtype = torch.float64
    elif x.is_cuda and x.dtype != torch.float64 and torch.is_autocast_enabled("cuda"):
        dtype = torch.float32
    compute = compute_dtype(dtype)
    if weight is not None and weight.dtype != compute:
        weight = weight.to(compute)
    if bias is not None and bias.dtype != compute:
        bias = bias.to(compute)
    x = x if x.dtype == dtype else x.to(dtype)
    options = float(epsilon), activation == "relu", pool
    if any(p is not None and p.dim() == 2 for p in (weight, bias)):
        return _by_rows(x, weight, bias, groups, *options)
    return norm(x, weight, bias, groups, *options)[0]


def _by_rows(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, *options: Any) -> Tensor:
    """With parameters for each image: one image that has the channels of all."""
    count, channels = x.shape[:2]
    if count == 0:
        unused = [p.sum() * 0 for p in (weight, bias) if p is not None]
        return norm(x, None, None, groups, *options)[0] + sum(unused).to(x.dtype)  # type: ignore[union-attr]
    flat = [None if p is None else p.expand(count, channels).reshape(-1) for p in (weight, bias)]
    out = norm(x.reshape(1, count * channels, *x.shape[2:]), *flat, groups * count, *options)[0]
    return out.reshape(count, channels, *out.shape[2:])
