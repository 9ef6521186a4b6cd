"""The mean gradient of every group as a statistic: plain, or with every row's gradient clipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..capture import capture
from ..ops import clipped_gradient_sum
from .context import Context
from .gradients import TENSORS, cross_entropy, group_gradients
from .measure import Measure
from .statistic import Statistic

__all__ = ["GradientMean"]

Loss = Callable[[nn.Module, Measure], Tensor]


class GradientMean(Statistic):
    """Mean gradient of the loss of every group's rows by the network's parameters, (G, ``*shape``) for each.

    net, loss: None takes the step's network, and the context's loss or cross entropy.
    tensors: the parameters that take part: "all", "matrices" or "convolutions", see `GradientMatch`; the
    clipped norm is that over these. chunk: rows of one pass; smaller ones bound the memory.

    The network must treat rows alone. Of rows that are to be clipped one by one, gradients have to exist one
    by one: ValueError for a batch norm in training mode (call ``net.eval()``, or put GroupNorm in its place)
    and for layers that :func:`decoct.capture` does not record.
    """

    name = "gradient_mean"

    def __init__(
        self,
        net: nn.Module | None = None,
        loss: Loss | None = None,
        *,
        tensors: str = "matrices",
        chunk: int = 256,
    ) -> None:
        if tensors not in TENSORS:
            raise ValueError(f"GradientMean: tensors must be one of {', '.join(TENSORS)}, got {tensors!r}")
        if chunk < 1:
            raise ValueError(f"GradientMean: chunk must be positive, got {chunk}")
        self.net, self.loss, self.tensors, self.chunk = net, loss, tensors, chunk

    def of_step(self, context: Context) -> GradientMean:
        net = self.net or context.net
        if net is None:
            raise RuntimeError("GradientMean: the context holds no network; give the Condenser a pool")
        loss = self.loss or context.loss
        return GradientMean(net, loss, tensors=self.tensors, chunk=self.chunk)

    def mean(self, measure: Measure) -> tuple[Tensor, ...]:
        """Mass-weighted; it can be differentiated again where a graph is being built."""
        net, graph = self._network(), torch.is_grad_enabled()
        options = {"create_graph": True} if graph else {"chunk_size": self.chunk}
        found = group_gradients(net, measure, self.loss or cross_entropy, **options)
        return tuple(g for g, used in zip(found, self._used(net), strict=True) if used)

    def clipped_sum(self, measure: Measure, clip: float) -> tuple[Tensor, ...]:
        """Sums of the rows' gradients, each scaled to a norm of at most `clip` over all parameters."""
        net, loss = self._network(), self.loss or cross_entropy
        wanted = [p for p in net.parameters() if p.requires_grad]
        wanted = [p for p, used in zip(wanted, self._used(net), strict=True) if used]
        totals = [p.detach().new_zeros(measure.group_count, *p.shape) for p in wanted]
        for rows in self._chunks(measure):
            with torch.enable_grad(), capture(net) as pairs:
                total_loss = loss(net, rows).sum()
            pairs.backward(total_loss)
            sums = clipped_gradient_sum(
                pairs, max_grad_norm=clip, loss_reduction="sum", x_offsets=rows.groups, parameters=wanted
            )
            for total, part in zip(totals, (s for s in sums if s is not None), strict=True):
                total += part.detach()
        return tuple(totals)

    def _chunks(self, measure: Measure) -> Iterator[Measure]:
        for begin in range(0, len(measure), self.chunk):
            end = min(begin + self.chunk, len(measure))
            x, y = measure.x[begin:end], None if measure.y is None else measure.y[begin:end]
            yield Measure(x, y, groups=measure.groups.clamp(begin, end) - begin)

    def _network(self) -> nn.Module:
        if self.net is None:
            raise RuntimeError("GradientMean: net must be given outside of a step, got None")
        if not any(self._used(self.net)):
            raise RuntimeError(
                f"GradientMean: of the network's parameters tensors={self.tensors!r} leaves none that can be "
                "trained; a pool of TrainedNetworks gives networks that can"
            )
        return self.net

    def _used(self, net: nn.Module) -> list[bool]:
        return [p.dim() >= TENSORS[self.tensors] for p in net.parameters() if p.requires_grad]

    def __repr__(self) -> str:
        return f"GradientMean(tensors={self.tensors!r})"
