"""Pools: where the step's network comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from ..augment import Augmentation, cutmix
from ..networks import reset
from ..objectives import Context, Measure, cross_entropy, seeded

__all__ = ["FreshNetworks", "Pool", "PretrainedNetwork", "TrainedNetworks"]

Initialise = Callable[[nn.Module, torch.Generator], object]


class Pool(nn.Module):
    """Networks (or experts) and their optimisers.

    `draw(context)` gives the step's network, `advance(context)` trains it or not once the step is done; there
    `context.synthetic` is what the step has reached, without a graph.
    Everything that must survive a resume belongs into `state_dict`, everything that changes results into
    `settings`.
    """

    def draw(self, context: Context) -> nn.Module:
        raise NotImplementedError

    def advance(self, context: Context) -> None:
        """Nothing by default."""

    def settings(self) -> str:
        """The pool's settings as they are recorded with a run, which a resumed run must share."""
        return type(self).__name__


class FreshNetworks(Pool):
    """A freshly drawn random network every step (or every `keep` steps), never trained.

    net: the architecture. Its weights are drawn anew in place before every step, from a stream that
    depends on the run's seed and the step alone, so a resumed run sees the same networks.
    """

    def __init__(self, net: nn.Module, keep: int = 1) -> None:
        super().__init__()
        if keep < 1:
            raise ValueError(f"FreshNetworks: keep must be positive, got {keep}")
        for name, layer in net.named_modules():
            if isinstance(layer, _BatchNorm):
                raise ValueError(
                    f"FreshNetworks: net: batch norm {name!r} would mix the rows of a call; use an instance "
                    "or group norm, or TrainedNetworks(net, epochs=0), which freezes its statistics"
                )
        self.keep = keep
        self.net = net.requires_grad_(False)

    def draw(self, context: Context) -> nn.Module:
        return reset(self.net, seeded(context.seed, "network", context.step // self.keep))


class TrainedNetworks(Pool):
    """A random network that is kept for `keep` steps and trained between them, then drawn anew.

    net: the architecture, any module that maps rows to scores; all its parameters are trained.
    keep: steps that one network serves (the outer loop of gradient matching).
    epochs: passes over the training rows after each step but a network's last one (the inner loop).
    train_on: "synthetic", all synthetic rows as the step left them; or "real", `real_rows` rows of the
    source, drawn anew each time, equally many of every group.
    lr, momentum, weight_decay, batch: of the training by SGD.
    augmentation: of the training rows, drawn for every row of every batch (images only); None for none.
    mix: probability with which a batch of images is mixed by `decoct.augment.cutmix`.
    initialise: draws the weights of `net` anew from a generator; needed where `decoct.networks.reset` does
    not know a layer.
    source: name of the real source. norm_rows: real rows of each group for the statistics of batch norms.

    While gradients are matched the network is in evaluation mode: dropout is off, so that both sides meet the
    same network, and batch norms are frozen at the statistics of one batch of real rows of all groups, taken
    anew before every step. While it is trained it is in training mode; dropout masks come from a stream of
    the run's seed and the step, and torch's global state is left as it was.
    Raises ValueError for a batch norm that keeps no running statistics, which could not be frozen.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        keep: int = 1,
        epochs: int = 1,
        train_on: str = "synthetic",
        real_rows: int = 512,
        lr: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        batch: int = 256,
        augmentation: Augmentation | None = None,
        mix: float = 0.0,
        initialise: Initialise = reset,
        source: str = "real",
        norm_rows: int = 16,
    ) -> None:
        super().__init__()
        least = {"keep": (keep, 1), "real_rows": (real_rows, 1), "batch": (batch, 1), "epochs": (epochs, 0)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise ValueError(f"TrainedNetworks: {name} must be at least {bound}, got {value}")
        if train_on not in ("synthetic", "real"):
            raise ValueError(f"TrainedNetworks: train_on must be synthetic or real, got {train_on!r}")
        if not 0 <= mix <= 1:
            raise ValueError(f"TrainedNetworks: mix must be in [0, 1], got {mix}")
        self._norms = [layer for layer in net.modules() if isinstance(layer, _NormBase)]
        for name, layer in net.named_modules():
            if isinstance(layer, _BatchNorm) and layer.running_mean is None:
                raise ValueError(
                    f"TrainedNetworks: net: batch norm {name!r} keeps no running statistics; use "
                    "track_running_stats=True, so that they can be frozen while gradients are matched"
                )
        self.net = net.requires_grad_(True)
        self.keep, self.epochs, self.train_on, self.real_rows = keep, epochs, train_on, real_rows
        self.batch, self.augmentation, self.mix = batch, augmentation, mix
        self.initialise, self.source, self.norm_rows = initialise, source, norm_rows
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.optimiser = self._optimiser()
        self._width: int | None = None

    def draw(self, context: Context) -> nn.Module:
        if context.step % self.keep == 0:
            round_of = context.step // self.keep
            self.initialise(self.net, seeded(context.seed, "network", round_of))
            self.optimiser = self._optimiser()
        self.net.eval()
        self._freeze_norms(context)
        return self.net

    def advance(self, context: Context) -> None:
        if (context.step + 1) % self.keep == 0:
            return  # the next step draws another network
        self._train(context)

    def _train(self, context: Context) -> None:
        self.net.train()
        devices = [context.synthetic.x.device] if context.synthetic.x.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(torch.randint(2**62, (), generator=context.generator("dropout"))))
            for epoch in range(self.epochs):
                self._epoch(context, epoch)
        self.net.eval()

    def settings(self) -> str:
        trained = self.train_on if self.train_on == "synthetic" else f"{self.real_rows} real rows"
        return (
            f"TrainedNetworks: kept for {self.keep} steps, {self.epochs} epochs on {trained}, lr {self.lr}, "
            f"momentum {self.momentum}, weight decay {self.weight_decay}, batch {self.batch}, "
            f"{self.augmentation!r}, mix {self.mix}"
        )

    def get_extra_state(self) -> Any:
        """The optimiser's momentum, which a resumed run needs beside the weights."""
        return self.optimiser.state_dict()

    def set_extra_state(self, state: Any) -> None:
        self.optimiser.load_state_dict(state)

    def _optimiser(self) -> torch.optim.SGD:
        return torch.optim.SGD(
            self.net.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def _epoch(self, context: Context, epoch: int) -> None:
        rng = context.generator(f"network epoch {epoch}")
        if self.train_on == "real":
            source = context.real[self.source]
            rows = source.sample(-(-self.real_rows // source.group_count), rng)
        else:
            rows = context.synthetic
        loss = context.loss or cross_entropy
        for index in torch.randperm(len(rows), generator=rng).split(self.batch):
            batch = self._prepared(rows, index.to(rows.x.device), rng)
            losses = loss(self.net, batch)
            weights = batch.mass
            total = losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
            self.optimiser.zero_grad()
            total.backward()
            self.optimiser.step()

    def _prepared(self, rows: Measure, index: torch.Tensor, rng: torch.Generator) -> Measure:
        """The rows of one batch: augmented, and mixed now and then."""
        x, y = rows.x[index].detach(), None if rows.y is None else rows.y[index].detach()
        mass = None if rows.mass is None else rows.mass[index].detach()
        if x.dim() == 4 and self.augmentation is not None:
            x = self.augmentation.draw(len(x), rng)(x, torch.arange(len(x) + 1))
        if x.dim() == 4 and y is not None and self.mix and float(torch.rand((), generator=rng)) < self.mix:
            if not y.is_floating_point():
                y = nn.functional.one_hot(y, self._classes(x)).to(x.dtype)
            x, y = cutmix(x, y, rng)
        return Measure(x, y, mass)

    def _classes(self, x: torch.Tensor) -> int:
        if self._width is None:
            with torch.no_grad():
                self._width = int(self.net.eval()(x[:1]).shape[1])
            self.net.train()
        return self._width

    @torch.no_grad()
    def _freeze_norms(self, context: Context) -> None:
        """Batch norms, and other norms with running statistics, take over those of one batch of real rows."""
        norms = [layer for layer in self._norms if layer.running_mean is not None]
        if not norms:
            return
        source = context.real[self.source]
        if not source.shows_rows:
            raise RuntimeError(
                f"TrainedNetworks: net: {type(norms[0]).__name__} takes its statistics from real rows, which "
                f"{type(source).__name__} does not show; put GroupNorm in its place"
            )
        rows = source.sample(self.norm_rows, context.generator("norm statistics"))
        kept = [layer.momentum for layer in norms]
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # torch's way to ask for the plain mean over batches
            layer.train()
        self.net(rows.x)
        for layer, momentum in zip(norms, kept, strict=True):
            layer.momentum = momentum
            layer.eval()


class PretrainedNetwork(TrainedNetworks):
    """One network for the whole run, trained on the real rows before the first step, then left alone.

    epochs: passes over `real_rows` rows of the source, drawn anew for each, equally many of every group; 0
    for a network that comes trained, which keeps its weights. The rest as in `TrainedNetworks`.
    It is in evaluation mode from then on: batch norms use the statistics of the training.
    """

    def __init__(self, net: nn.Module, *, epochs: int = 30, **options: Any) -> None:
        super().__init__(net, epochs=epochs, train_on="real", **options)

    def draw(self, context: Context) -> nn.Module:
        if context.step == 0 and self.epochs > 0:
            self.initialise(self.net, seeded(context.seed, "network", 0))
            self.optimiser = self._optimiser()
            self._train(context)
        return self.net.eval().requires_grad_(False)

    def advance(self, context: Context) -> None:
        """The network stays."""

    def settings(self) -> str:
        return super().settings().replace("TrainedNetworks: kept for 1 steps", "PretrainedNetwork: kept")
