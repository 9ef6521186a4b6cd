"""What a way to compute a loss and its gradient looks like to row.py and gpu_timings.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OURS = "decoct"
Call = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Contender:
    """`build` takes a case and its rows, and gives a call without arguments that returns (values, gradient
    by y). It may raise ImportError: that peer is not installed."""

    name: str
    build: Callable[[Any, Tensor, Tensor], Call]
    with_xx: bool = False
    """Whether the real-real term is computed."""
    factor: float = 1.0
    """What the result is multiplied by before it is compared, where a peer's definition has another one."""
    ours: bool = False

    def release(self) -> None:
        """Free what a call keeps for the next one."""
        if self.ours:
            from decoct.ops import release_scratch

            release_scratch()

    def record(self) -> dict[str, Any]:
        """What the tables and bounds need to know."""
        return {"with_xx": self.with_xx, "ours": self.ours}

    def too_large(self, case: Any) -> str:
        """Why this case is not tried; empty where it is."""
        return ""


def differentiate(loss: Callable[[], Tensor], y: Tensor, compiled: bool = False) -> Call:
    def call() -> tuple[Tensor, Tensor]:
        values = loss()
        (gradient,) = torch.autograd.grad(values.sum(), y)
        return values, gradient

    if compiled:
        call()  # compilation is not what is timed
    return call
