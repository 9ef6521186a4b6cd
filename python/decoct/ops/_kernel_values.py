"""Kernels of squared distances or inner products, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decoct.kernels import KernelSpec

__all__ = ["distances", "kernel_values"]


def distances(d2: Tensor) -> Tensor:
    """Square roots whose derivatives are all 0 at 0, and NaN at NaN."""
    zero = d2 == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, d2).sqrt())


def kernel_values(spec: KernelSpec, bandwidth: Any, products: Tensor | None, d2: Tensor | None) -> Tensor:
    """k of inner products (linear and polynomial kernels) or squared distances (all others), element by
    element, with one length."""
    profile, parameter, offset, degree, scales = spec
    if profile in ("linear", "polynomial"):
        assert products is not None
        return products if profile == "linear" else (parameter * products + offset) ** degree
    assert d2 is not None
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
