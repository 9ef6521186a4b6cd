"""Feature maps: where two measures are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from .context import Context

__all__ = ["FeatureMap", "Identity", "NetFeatures"]


class FeatureMap(nn.Module):
    """Maps rows (N, ...) to features (N, D) within a step's context; `real`: no graph is being built."""

    def forward(self, context: Context, x: Tensor, real: bool) -> Tensor:
        raise NotImplementedError


class Identity(FeatureMap):
    """The rows themselves, flattened."""

    def forward(self, context: Context, x: Tensor, real: bool) -> Tensor:
        return torch.flatten(x, 1)


class NetFeatures(FeatureMap):
    """Activations before the classifier of the step's network, `net.features(x)`, called on row chunks.

    chunk: rows per call; it bounds memory and keeps activations in cache, and is part of a run's record.
    bf16: run the real side under bfloat16 autocast (it has no graph); features come back as float32.
    The real side's images are laid out channels-last, except under bf16, where the contiguous layout is
    faster.
    """

    def __init__(self, chunk: int = 32, bf16: bool = False) -> None:
        super().__init__()
        if chunk < 1:
            raise ValueError(f"NetFeatures: chunk must be positive, got {chunk}")
        self.chunk, self.bf16 = chunk, bf16

    def forward(self, context: Context, x: Tensor, real: bool) -> Tensor:
        if context.net is None:
            raise RuntimeError("NetFeatures: the context holds no network; give the Condenser a pool")
        features = cast(Callable[[Tensor], Tensor], context.net.features)
        low = self.bf16 and real
        if real and not low and x.dim() == 4:
            x = channels_last(x)
        with torch.autocast(x.device.type, torch.bfloat16) if low else contextlib.nullcontext():
            parts = [features(rows) for rows in x.split(self.chunk)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"chunk={self.chunk}, bf16={self.bf16}"


def channels_last(x: Tensor) -> Tensor:
    """Channels-last strides in every case: torch leaves those of one-channel images ambiguous."""
    _, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).contiguous()
    return rows.as_strided(x.shape, (channels * height * width, 1, width * channels, channels))
