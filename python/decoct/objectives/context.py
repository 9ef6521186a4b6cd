"""One step's shared state: all terms of an objective see the same draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..augment import View
from .measure import Measure
from .source import Source
from .statistic import Statistic, UnderView

__all__ = ["Context", "seeded"]

T = TypeVar("T")


def seeded(seed: int, *keys: object) -> torch.Generator:
    """A generator whose stream depends on the seed and all keys, and on nothing that was drawn before.

    Streams that are addressed by (seed, step, purpose) make a resumed run equal to an uninterrupted one,
    and keep one purpose's draws (say the real rows) the same when another (say the augmentation) is
    switched off.
    """
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Context:
    """What an objective may use in one step.

    step: number of the step in the whole run, from 0.
    real: the named sources. synthetic: the synthetic measure, attached to the graph.
    net: the network the pool drew for this step, or None. loss: the task's loss(net, measure) -> (N,), or
    None.
    batch_real: rows per group that `draw` takes of a source. view: this step's augmentation, or None.
    rng: a generator of this step; `generator(purpose)` gives one of its own to each purpose.
    """

    def __init__(
        self,
        *,
        step: int,
        real: Mapping[str, Source],
        synthetic: Measure,
        seed: int = 0,
        net: nn.Module | None = None,
        loss: Callable[[nn.Module, Measure], Tensor] | None = None,
        batch_real: int = 256,
        view: View | None = None,
    ) -> None:
        self.step, self.real, self.synthetic, self.seed = step, real, synthetic, seed
        self.net, self.loss, self.batch_real, self.view = net, loss, batch_real, view
        self.rng = self.generator("objective")
        self.terms: dict[str, Tensor] = {}
        self._kept: dict[object, object] = {}
        self._draws: dict[str, Measure] = {}
        self._groups: list[int] | None = None
        self._answers: dict[tuple[str, int], tuple[Tensor, ...]] = {}
        self._whole = self

    @property
    def narrow(self) -> bool:
        """Whether it holds some of the groups alone."""
        return self._groups is not None

    @property
    def groups(self) -> list[int]:
        """Numbers in the whole of the groups that this context holds."""
        return list(range(self.synthetic.group_count)) if self._groups is None else self._groups

    def generator(self, purpose: str) -> torch.Generator:
        return seeded(self.seed, self.step, purpose)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """`make()`, computed on the first call with this key in this step and shared afterwards."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value]  # the key fixes the type

    def draw(self, name: str = "real") -> Measure:
        """This step's rows of a source, drawn once; groups without synthetic rows stay empty."""
        if name not in self._draws:
            self._draws[name] = self.real[name].sample(self._wanted(), self.generator(f"draw {name}"))
        drawn = self._draws[name]
        return drawn if self._groups is None else drawn.select(self._groups)

    def expect(self, statistic: Statistic, name: str = "real") -> tuple[Tensor, ...]:
        """A source's answer under this step's view, for all groups of the whole; asked for once in a step."""
        whole, key = self._whole, (name, id(statistic))
        if key not in whole._answers:
            asked = statistic.of_step(whole)
            if whole.view is not None:
                asked = UnderView(asked, whole.view)
            rng = whole.generator(f"expect {name}")
            whole._answers[key] = whole.real[name].expect(asked, whole._wanted(), rng)
        return whole._answers[key]

    def augmented(self, measure: Measure) -> Measure:
        """The measure under this step's view, the same one for every measure."""
        return measure if self.view is None else measure.replace(x=self.view(measure.x, measure.groups))

    def real_view(self, name: str = "real") -> Measure:
        """The drawn rows of a source under this step's view."""
        return self.once(("real view", name), lambda: self.augmented(self.draw(name)))

    def synthetic_view(self) -> Measure:
        """The synthetic rows under this step's view."""
        return self.once("synthetic view", lambda: self.augmented(self.synthetic))

    def restrict(self, groups: Sequence[int], synthetic: Measure) -> Context:
        """This step for some groups alone, with a newer synthetic measure; draws and network are shared."""
        narrow = Context(
            step=self.step,
            real=self.real,
            synthetic=synthetic.select(groups),
            seed=self.seed,
            net=self.net,
            loss=self.loss,
            batch_real=self.batch_real,
            view=None if self.view is None else self.view.select(groups),
        )
        for name in self.real:
            if self.real[name].shows_rows:
                self.draw(name)
        narrow._draws, narrow._groups, narrow._whole = self._draws, list(groups), self._whole
        return narrow

    def _wanted(self) -> list[int]:
        """Rows to draw of each group; none of those without synthetic rows."""
        return [self.batch_real if count > 0 else 0 for count in self.synthetic.counts.tolist()]
