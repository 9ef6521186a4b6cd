"""Barycentre matching: every synthetic row has a point of its class's barycentre to come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import decoct

from ..ops._rows import spread
from .context import Context
from .features import FeatureMap, NetFeatures
from .measure import Measure
from .objective import Objective

__all__ = ["BarycenterMatch"]


class BarycenterMatch(Objective):
    """Distance of synthetic rows to Wasserstein barycentres of real features, each to its own point.

    Equivalent to, summed over groups, with a group's barycentre (y, b) of as many points as it has synthetic
    rows, computed before the first step and kept::

        (b * (features(net, rows) - y).square().sum(1)).sum()

    and, for every batch norm of the network, ``statistics`` times the squared distances of mean and variance
    of its inputs over all synthetic rows, weighted by b, to the running ones.

    features: feature map of both sides. source: name of the real source.
    rows: real rows of each group, at most, of which the barycentre is made.
    weights: of the barycentre's points, "learned" or "uniform".
    blur: of :func:`decoct.free_support_barycenter`, in units of the root mean squared distance of a group's
    features. iterations: its turns. It begins with the features of the synthetic rows themselves, which is
    which point belongs to which row.
    statistics: weight of the batch norms' term. name: key under which the value is recorded.

    The network must stay the same for the whole run: `PretrainedNetwork` gives one trained on the real rows.
    A group that is missing on one side costs nothing. Barycentres are part of the state dict.
    Raises RuntimeError where synthetic rows are another number than points: with ``batch_synthetic``, or
    with updates of each group in turn.
    The method is WMDD (Liu et al., arXiv 2311.18531), with exact transport and statistics of every class.
    """

    def __init__(
        self,
        features: FeatureMap | None = None,
        *,
        source: str = "real",
        rows: int = 1300,
        weights: Literal["learned", "uniform"] = "learned",
        blur: float = 0.1,
        iterations: int = 100,
        statistics: float = 0.0,
        name: str = "barycenter",
    ) -> None:
        super().__init__()
        for argument, value in (("rows", rows), ("iterations", iterations)):
            if value < 1:
                raise ValueError(f"BarycenterMatch: {argument} must be positive, got {value}")
        if weights not in ("learned", "uniform"):
            raise ValueError(f"BarycenterMatch: weights must be learned or uniform, got {weights!r}")
        if not blur > 0 or not statistics >= 0:
            raise ValueError(
                "BarycenterMatch: blur must be positive and statistics not negative, "
                f"got {blur}, {statistics}"
            )
        self.features, self.source, self.rows = features or NetFeatures(), source, rows
        self.weights, self.blur, self.iterations = weights, blur, iterations
        self.statistics, self.name = statistics, name
        self.points: Tensor | None = None
        self.masses: Tensor | None = None
        self._groups: Tensor | None = None

    def forward(self, context: Context) -> Tensor:
        if context.net is None:
            raise RuntimeError("BarycenterMatch: the context holds no network; give the Condenser a pool")
        synthetic = context.synthetic_view()
        if self.points is None and not context.narrow:
            self._prepare(context, synthetic)
        groups = self._groups
        if (
            self.points is None
            or self.masses is None
            or groups is None
            or not torch.equal(synthetic.groups, groups)
        ):
            raise RuntimeError(
                "BarycenterMatch: each step must hold all synthetic rows, as many as the barycentres have "
                f"points, got {len(synthetic)}: no batch_synthetic, joint updates"
            )
        points, masses = (part.to(synthetic.x) for part in (self.points, self.masses))
        with _norm_statistics(context.net if self.statistics else None, masses) as missed:
            found = self.features(context, synthetic.x, False)
        value: Tensor = (masses * (found - points).square().sum(1)).sum()
        context.terms[self.name] = value.detach()
        for term in missed():
            value = value + self.statistics * term
        return value

    @torch.no_grad()
    def _prepare(self, context: Context, synthetic: Measure) -> None:
        wanted = [self.rows if count > 0 else 0 for count in synthetic.counts.tolist()]
        real = context.real[self.source].sample(wanted, context.generator("barycenter"))
        x, start = (self.features(context, measure.x, True) for measure in (real, synthetic))
        groups, count = real.groups, real.group_count
        length = decoct.mean_bandwidth(x, x[:0], x_offsets=groups, y_offsets=[0] * (count + 1)) * 2**0.5
        made = decoct.free_support_barycenter(
            x / spread(length, groups, len(x), count).to(x)[:, None],
            synthetic.counts.tolist(),
            a=real.mass,
            x_offsets=groups,
            weights=self.weights,
            init=start / spread(length, synthetic.groups, len(start), count).to(x)[:, None],
            blur=self.blur,
            iterations=self.iterations,
        )
        self.points = (
            made.points * spread(length, synthetic.groups, len(start), count).to(made.points)[:, None]
        )
        self.masses, self._groups = made.masses, synthetic.groups.clone()

    def get_extra_state(self) -> dict[str, Any]:
        return {"points": self.points, "masses": self.masses, "groups": self._groups}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.points, self.masses, self._groups = state["points"], state["masses"], state["groups"]

    def extra_repr(self) -> str:
        return (
            f"source={self.source!r}, rows={self.rows}, weights={self.weights!r}, blur={self.blur}, "
            f"iterations={self.iterations}, statistics={self.statistics}"
        )


@contextmanager
def _norm_statistics(net: nn.Module | None, weights: Tensor) -> Iterator[Callable[[], list[Tensor]]]:
    """While the context is open, rows that pass the batch norms of a network in order, chunk by chunk, are
    weighted and summed up; the result gives each norm's squared distance to its running statistics."""
    sums: dict[_BatchNorm, list[Any]] = {}

    def watch(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(2) if inputs[0].dim() > 2 else inputs[0][:, :, None]
        done, mean, square = sums.get(layer, [0, 0.0, 0.0])
        share = (weights[done : done + len(rows)] / weights.sum())[:, None]
        sums[layer] = [
            done + len(rows),
            mean + (share * rows.mean(2)).sum(0),
            square + (share * rows.square().mean(2)).sum(0),
        ]

    def missed() -> list[Tensor]:
        return [
            (mean - layer.running_mean).square().sum() + (square - mean**2 - layer.running_var).square().sum()
            for layer, (_, mean, square) in sums.items()
        ]

    layers = [] if net is None else [m for m in net.modules() if isinstance(m, _BatchNorm)]
    watched = [layer.register_forward_pre_hook(watch) for layer in layers if layer.running_mean is not None]
    try:
        yield missed
    finally:
        for hook in watched:
            hook.remove()
