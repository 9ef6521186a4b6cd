"""Discrepancies between two measures of features, one value per group."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

import decoct

from ..kernels import Kernel, resolve
from .measure import Measure

__all__ = ["MMD"]

Bandwidth = Literal["mean", "median"]


class MMD(nn.Module):
    """Squared maximum mean discrepancy of every group, all groups in one call of `decoct.mmd`.

    kernel, bandwidth, estimator: as in `decoct.mmd`.
    real_term: compute the real-real term too. Without it (the default) a value is the squared MMD less a
    number
    that does not depend on the synthetic rows: same gradient, most of the work saved. Keep it where values of
    groups are compared or shown. The linear kernel always has it; there it costs nothing.
    """

    def __init__(
        self,
        kernel: Kernel | str = "gaussian",
        bandwidth: float | Tensor | Bandwidth = "mean",
        *,
        estimator: Literal["biased", "unbiased"] = "biased",
        real_term: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.bandwidth, self.estimator = resolve(kernel, "MMD"), bandwidth, estimator
        self.real_term = real_term or self.kernel.profile == "linear"

    def forward(self, real: Measure, synthetic: Measure) -> Tensor:
        return decoct.mmd(
            real.x,
            synthetic.x,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            a=real.mass,
            b=synthetic.mass,
            x_offsets=real.groups,
            y_offsets=synthetic.groups,
            estimator=self.estimator,
            xx=None if self.real_term else False,
        )

    def extra_repr(self) -> str:
        return f"kernel={self.kernel!r}, bandwidth={self.bandwidth!r}, real_term={self.real_term}"
