"""Random numbers for privacy: of the operating system, unless a seed is given that says it is insecure."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

__all__ = ["Noise"]


class Noise:
    """Standard normal and uniform numbers of the operating system's entropy; of a seed for tests alone.

    They never touch torch's generators, so that no state of those that is stored tells anything about them.
    """

    def __init__(self, insecure_seed: int | None = None) -> None:
        self._generator = None if insecure_seed is None else torch.Generator().manual_seed(insecure_seed)

    def like(self, tensor: Tensor) -> Tensor:
        """As many normal numbers as the tensor has elements, in its dtype and on its device."""
        if self._generator is not None:
            drawn = torch.randn(tensor.shape, generator=self._generator, dtype=torch.float64)
        else:
            drawn = entropic_normal(tensor.numel()).reshape(tensor.shape)
        return drawn.to(tensor)

    def chosen(self, count: int, rate: float) -> Tensor:
        """(count,) bool: each true with probability `rate`, independently of the others."""
        if self._generator is not None:
            return torch.rand(count, generator=self._generator, dtype=torch.float64) < rate
        return entropic_uniform(count) < rate


def entropic_uniform(count: int) -> Tensor:
    """Numbers in (0, 1) in float64, each of 53 random bits."""
    if count == 0:
        return torch.empty(0, dtype=torch.float64)
    words = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
    return (((words >> 11) & ((1 << 53) - 1)).to(torch.float64) + 0.5) * 2.0**-53


def entropic_normal(count: int) -> Tensor:
    """Standard normal numbers by the method of Box and Muller, of 53 random bits for each number."""
    pairs = (count + 1) // 2
    uniform = entropic_uniform(2 * pairs)
    radius = (-2 * uniform[:pairs].log()).sqrt()
    angle = 2 * math.pi * uniform[pairs:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
