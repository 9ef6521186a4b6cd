"""Attention maps: where in an image the layers of a network respond."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks import FusedNorm
from .context import Context
from .features import FeatureMap, channels_last

__all__ = ["AttentionFeatures"]


def attention_map(out: Tensor, power: float) -> Tensor:
    """(N, positions) of a layer's output (N, C, *spatial): the sum over channels of |out|^power, divided by
    its length. Of vectors (N, C) the channels are the positions."""
    strength = out.abs().pow(power)
    if out.dim() > 2:
        strength = strength.sum(1).flatten(1)
    return F.normalize(strength, dim=1)


class AttentionFeatures(FeatureMap):
    """Attention maps of all layers of the step's network side by side, and its features.

    The squared distance of their means, ``Match(MMD("linear"), AttentionFeatures())``, is over layers l

        sum_l |mean a_l(real) - mean a_l(synthetic)|^2 + balance |mean f(real) - mean f(synthetic)|^2

    with a_l the outputs' absolute values to the power `power`, summed over channels and divided by their
    length, and f the activations before the classifier: DataDAM (Sajedi et al., ICCV 2023, arXiv 2310.00093),
    whose power and balance are the defaults. All layers go through one call.

    power: of the maps. balance: weight of the features' term; 0 leaves it out.
    layers: names of the modules whose outputs are compared, as in ``net.named_modules()``; by default every
    :class:`decoct.networks.FusedNorm` with an activation and every ``nn.ReLU``. One that is called several
    times in a pass counts as often.
    chunk: rows per call, part of a run's record.

    Raises RuntimeError without a network, where it has no such layer, or where one of them was not reached;
    TypeError where one returns no tensor (N, ...).
    """

    def __init__(
        self,
        power: float = 4.0,
        balance: float = 0.01,
        *,
        layers: Sequence[str] | None = None,
        chunk: int = 256,
    ) -> None:
        super().__init__()
        if not power > 0:
            raise ValueError(f"AttentionFeatures: power must be positive, got {power}")
        if not balance >= 0:
            raise ValueError(f"AttentionFeatures: balance must not be negative, got {balance}")
        if chunk < 1:
            raise ValueError(f"AttentionFeatures: chunk must be positive, got {chunk}")
        self.power, self.balance, self.chunk = power, balance, chunk
        self.layers = None if layers is None else tuple(layers)

    def forward(self, context: Context, x: Tensor, real: bool) -> Tensor:
        if context.net is None:
            raise RuntimeError("AttentionFeatures: the context holds no network; give the Condenser a pool")
        net = context.net
        features = cast(Callable[[Tensor], Tensor], net.features)
        if real and x.dim() == 4:
            x = channels_last(x)
        parts = []
        with _outputs(self._watched(net)) as outputs:
            for rows in x.split(self.chunk):
                outputs.clear()
                last = features(rows)
                if not outputs:
                    raise RuntimeError("AttentionFeatures: net.features(x) calls none of the layers")
                maps = [attention_map(out, self.power) for out in outputs]
                if self.balance:
                    maps.append(self.balance**0.5 * torch.flatten(last, 1))
                parts.append(torch.cat(maps, 1))
        return torch.cat(parts)

    def _watched(self, net: nn.Module) -> list[nn.Module]:
        named = dict(net.named_modules())
        if self.layers is None:
            found = [module for module in named.values() if _responds(module)]
            if not found:
                raise RuntimeError(
                    "AttentionFeatures: the network has no nn.ReLU and no FusedNorm with an activation; name "
                    "layers of it, as in layers=('blocks.3', 'blocks.7')"
                )
            return found
        missing = [name for name in self.layers if name not in named]
        if missing:
            raise RuntimeError(
                f"AttentionFeatures: the network has no layer {missing[0]!r}; it has "
                f"{', '.join(name for name in named if name)}"
            )
        return [named[name] for name in self.layers]

    def extra_repr(self) -> str:
        return f"power={self.power}, balance={self.balance}, layers={self.layers}, chunk={self.chunk}"


def _responds(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU) or (isinstance(module, FusedNorm) and module.activation is not None)


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What these modules return while the context lasts, in the order of their calls."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, out: Any) -> None:
        if not isinstance(out, Tensor) or out.dim() < 2:
            found = f"{tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(
                f"AttentionFeatures: {type(module).__name__} must return a tensor (N, C, ...), got {found}"
            )
        kept.append(out)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
