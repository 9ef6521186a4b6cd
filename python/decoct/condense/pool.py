"""Pools: where the step's network comes from."""

from __future__ import annotations

from torch import nn

from ..networks import reset
from ..objectives import Context, seeded

__all__ = ["FreshNetworks", "Pool"]


class Pool(nn.Module):
    """Networks (or experts) and their optimisers.

    `draw(context)` gives the step's network, `advance(context)` trains it or not once the step is done.
    Everything that must survive a resume belongs into `state_dict`.
    """

    def draw(self, context: Context) -> nn.Module:
        raise NotImplementedError

    def advance(self, context: Context) -> None:
        """Nothing by default."""


class FreshNetworks(Pool):
    """A freshly drawn random network every step (or every `keep` steps), never trained.

    net: the architecture. Its weights are drawn anew in place before every step, from a stream that
    depends on the run's seed and the step alone, so a resumed run sees the same networks.
    """

    def __init__(self, net: nn.Module, keep: int = 1) -> None:
        super().__init__()
        if keep < 1:
            raise ValueError(f"FreshNetworks: keep must be positive, got {keep}")
        self.keep = keep
        self.net = net.requires_grad_(False)

    def draw(self, context: Context) -> nn.Module:
        return reset(self.net, seeded(context.seed, "network", context.step // self.keep))
