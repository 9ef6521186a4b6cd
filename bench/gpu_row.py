"""What a row of gpu_timings.py is: a case of an op, its contenders, and what they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

import peaks
from contenders import Call, Contender
from gpu_device import Device
from sinkhorn_flash import FLASH

Errors = dict[str, float | None]
BUILT_AT_RUN_TIME = ("compiled", "KeOps", FLASH.name)
"""Contenders of a row of their own: building them takes most of the time."""


def replayed(contender: Contender, device: Device) -> Contender:
    """Without the host's part of a call."""

    def build(case: Any, x: Any, y: Any) -> Call:
        # A leaf of its own: where earlier graphs of y are alive, backward would wait for their stream.
        own = y.detach() if isinstance(y, Tensor) else [tensor.detach() for tensor in y]
        for leaf in [own] if isinstance(own, Tensor) else own:
            leaf.requires_grad_()
        return device.capture(contender.build(case, x, own))

    return replace(contender, name=f"{contender.name}, CUDA graph", build=build)


@dataclass(frozen=True)
class Row:
    """A case of an op in one precision."""

    case: Any
    precision: str
    built: bool
    """Whether the contenders are those that are built at run time."""
    op: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return f"{self.op} {self.case.name}, {self.precision}{', built at run time' if self.built else ''}"

    def at(self, toy: bool) -> Any:
        """The sizes that are run."""
        if not toy:
            return self.case
        n, m = (min(40, max(6, count // 100)) for count in (self.case.rows_x, self.case.rows_y))
        columns, groups = min(self.case.columns, 300), min(self.case.groups, 3)
        return replace(self.case, rows_x=n, rows_y=m, columns=columns, groups=groups)

    def contenders(self, device: Device) -> list[Contender]:
        """Ours first."""
        ours, *others = self.offered()
        others = [c for c in others if any(word in c.name for word in BUILT_AT_RUN_TIME) == self.built]
        if FLASH in others and not self.case.groups:
            others.insert(others.index(FLASH) + 1, replayed(FLASH, device))
        if not self.built or FLASH in others:
            others.insert(0, replayed(ours, device))
        return [ours, *others]

    def inputs(self, case: Any, device: Device) -> tuple[Any, Any]:
        """What the contenders are given, on the device; the second is differentiated."""
        x, y = (rows.detach().to(device.device) for rows in case.rows())
        return x, y.requires_grad_()

    def offered(self) -> list[Contender]:
        raise NotImplementedError

    def answers(self, case: Any, x: Tensor, y: Tensor) -> Any:
        """What float64 gives."""
        raise NotImplementedError

    def errors(self, answers: Any, contender: Any, values: Tensor, gradient: Tensor) -> Errors:
        """Of value and gradient; None where there is nothing to compare with."""
        raise NotImplementedError

    def allowed(self, contender: Any) -> tuple[float, float]:
        """Errors of both beyond which a contender is not timed: it computes something else."""
        raise NotImplementedError

    def work(self, contender: Any, case: Any, x: Tensor, y: Tensor) -> peaks.Work | None:
        """Of one of ours, for its bound."""
        raise NotImplementedError
