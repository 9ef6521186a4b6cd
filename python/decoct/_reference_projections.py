"""Plain twins of random projections: all signs are made, then multiplied (see reference.py)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["random_projection", "random_signs"]

_WORD = np.uint64(0xFFFFFFFF)


def _philox(counter: list[npt.NDArray[np.uint64]], key: int) -> list[npt.NDArray[np.uint64]]:
    """Philox4x32-10 of four words of a counter, as 32 bits in 64."""
    low, high = key & 0xFFFFFFFF, key >> 32
    a, b, c, d = counter
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a = (second >> np.uint64(32)) ^ b ^ np.uint64(low)
        c = (first >> np.uint64(32)) ^ d ^ np.uint64(high)
        b, d = second & _WORD, first & _WORD
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def random_signs(size: int, dim: int, *, seed: int = 0, stream: int = 0) -> Tensor:
    """(size, dim) of 1.0 and -1.0 in float64: bit d % 32 of word d // 32 % 4 of Philox at the counter
    (d // 128, j, stream) under the key `seed` makes entry (j, d) negative."""
    blocks = -(-dim // 128)
    numbers = np.arange(size, dtype=np.uint64), np.arange(blocks, dtype=np.uint64)
    j, block = np.meshgrid(*numbers, indexing="ij")
    halves = [np.full_like(j, stream & 0xFFFFFFFF), np.full_like(j, stream >> 32)]
    words = np.stack(_philox([block, j, *halves], seed), -1)  # (size, blocks, 4)
    bits = words[..., None] >> np.arange(32, dtype=np.uint64) & np.uint64(1)
    signs = 1.0 - 2.0 * bits.reshape(size, 128 * blocks)[:, :dim].astype(np.float64)
    return torch.from_numpy(signs)


def random_projection(
    x: Tensor, size: int, *, seed: int = 0, stream: int = 0, transpose: bool = False
) -> Tensor:
    """x @ S.T / sqrt(size), or transposed x @ S / sqrt(K) of x (..., K)."""
    columns = x.shape[-1]
    rows = columns if transpose else size
    signs = random_signs(rows, size if transpose else columns, seed=seed, stream=stream).to(x)
    return x @ (signs if transpose else signs.T) / math.sqrt(max(rows, 1))
