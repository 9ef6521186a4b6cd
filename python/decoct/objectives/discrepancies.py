"""Discrepancies between two measures of features, one value per group."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

import decoct

from ..kernels import Kernel, resolve
from ..ops._rows import segment_totals, spread
from .measure import Measure

__all__ = ["MMD", "Sinkhorn"]

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


class Sinkhorn(nn.Module):
    """Sinkhorn divergence of every group, all groups in one call of `decoct.sinkhorn_divergence`.

    p, blur, reach, scaling, debias: as in `decoct.sinkhorn_divergence`.
    relative: `blur` and `reach` are in units of the root mean squared distance of a group's rows, real and
    synthetic together, a constant for autograd: the same number then suits the rows and the features of any
    network. The value is in the rows' own units either way.
    real_term: compute the transport of the real rows to themselves too. Without it (the default) a value is
    the divergence less a number that does not depend on the synthetic rows. Keep it where values of groups
    are compared or shown.

    Without `reach`, the masses of a group are divided by their total on either side: all of one side is
    carried to all of the other, so that only shares count. With it they are used as given.
    """

    def __init__(
        self,
        p: int = 2,
        blur: float = 0.1,
        *,
        relative: bool = True,
        reach: float | None = None,
        scaling: float = 0.5,
        debias: bool = True,
        real_term: bool = False,
    ) -> None:
        super().__init__()
        self.p, self.blur, self.reach, self.scaling, self.debias = p, blur, reach, scaling, debias
        self.relative, self.real_term = relative, real_term or not debias

    def forward(self, real: Measure, synthetic: Measure) -> Tensor:
        x, y = real.x, synthetic.x
        unit: Tensor | None = None
        if self.relative:
            groups = {"x_offsets": real.groups, "y_offsets": synthetic.groups}
            unit = decoct.mean_bandwidth(x.detach(), y.detach(), **groups) * 2**0.5
            x, y = (
                rows / unit.repeat_interleave(measure.counts.to(unit.device), output_size=len(rows))[:, None]
                for rows, measure in ((x, real), (y, synthetic))
            )
        value = decoct.sinkhorn_divergence(
            x,
            y,
            a=self._mass(real),
            b=self._mass(synthetic),
            x_offsets=real.groups,
            y_offsets=synthetic.groups,
            p=self.p,
            blur=self.blur,
            reach=self.reach,
            scaling=self.scaling,
            debias=self.debias,
            xx=None if self.real_term or not self.debias else False,
        )
        return value if unit is None else value * unit**self.p

    def _mass(self, measure: Measure) -> Tensor | None:
        if measure.mass is None or self.reach is not None:
            return measure.mass
        groups, count = measure.groups, measure.group_count
        total = segment_totals(measure.mass, groups, count)
        return measure.mass / spread(torch.where(total == 0, 1.0, total), groups, len(measure), count)

    def extra_repr(self) -> str:
        options = f"reach={self.reach}, relative={self.relative}, debias={self.debias}"
        return f"p={self.p}, blur={self.blur}, {options}"
