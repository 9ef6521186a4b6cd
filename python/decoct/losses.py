"""Modules over the ops: they hold hyper-parameters only, no parameters and no buffers."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from decoct.kernels import Kernel, resolve
from decoct.ops import mmd

__all__ = ["MMDLoss"]

Reduction = Literal["sum", "mean", "none"]


class MMDLoss(nn.Module):
    """:func:`decoct.mmd` as a module, reduced over the segments.

    Parameters
    ----------
    kernel, bandwidth, estimator : as in :func:`decoct.mmd`.
    reduction : ``"sum"`` (the default: a mean would divide a class-wise learning rate by the number of
        classes), ``"mean"`` or ``"none"``, over the values of the segments.
    """

    def __init__(
        self,
        kernel: Kernel | str = "gaussian",
        bandwidth: float | Tensor | Literal["mean", "median"] = "mean",
        *,
        estimator: Literal["biased", "unbiased"] = "biased",
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__()
        if reduction not in ("sum", "mean", "none"):
            raise ValueError(f"MMDLoss: reduction must be 'sum', 'mean' or 'none', got {reduction!r}")
        if estimator not in ("biased", "unbiased"):
            raise ValueError(f"MMDLoss: estimator must be 'biased' or 'unbiased', got {estimator!r}")
        self.kernel = resolve(kernel, "MMDLoss")
        self.bandwidth = bandwidth
        self.estimator = estimator
        self.reduction = reduction

    def forward(self, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        """Loss of real ``x`` and synthetic ``y``; ``a``, ``b``, ``x_offsets``, ``y_offsets`` and ``xx``
        as in :func:`decoct.mmd`."""
        value = mmd(x, y, self.kernel, self.bandwidth, estimator=self.estimator, **options)
        if self.reduction == "none":
            return value
        return value.sum() if self.reduction == "sum" else value.mean()

    def extra_repr(self) -> str:
        options = f"estimator={self.estimator!r}, reduction={self.reduction!r}"
        return f"{self.kernel}, bandwidth={self.bandwidth!r}, {options}"
