"""The rows of gpu_timings.py for per-sample gradients and characteristic means, as in bench_persample.py and
bench_means.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

import means_cases
import means_contenders
import peaks
import persample_cases
import persample_contenders
from contenders import Contender
from gpu_device import Device
from gpu_row import Errors, Row


@dataclass(frozen=True)
class SampleRow(Row):
    op: ClassVar[str] = "samples"

    def at(self, toy: bool) -> Any:
        return replace(self.case, images=3, others=min(self.case.others, 2), size=8) if toy else self.case

    def inputs(self, case: Any, device: Device) -> tuple[Any, Any]:
        """Nothing is differentiated by the images."""
        x, y = (images.to(device.device) for images in case.rows())
        return x, y

    def offered(self) -> list[Contender]:
        return persample_contenders.contenders_for(self.case)

    def answers(self, case: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return persample_cases.exact(case, x, y)

    def errors(self, answers: Any, contender: Any, values: Tensor, gradient: Tensor) -> Errors:
        found = persample_cases.assessed(answers, contender, self.case, None, None, (values, gradient))
        return {"value": found["error"]["value"], "gradient": None}

    def allowed(self, contender: Any) -> tuple[float, float]:
        """Wide as for whole networks in gpu_gradients.py."""
        return (1e-3, 0.0) if self.precision == "highest" else (5e-2, 0.0)

    def work(self, contender: Any, case: Any, x: Tensor, y: Tensor) -> peaks.Work | None:
        work: peaks.Work | None = case.work()
        return work


@dataclass(frozen=True)
class MeansRow(Row):
    op: ClassVar[str] = "means"

    def at(self, toy: bool) -> Any:
        if not toy:
            return self.case
        few = {"classes": min(self.case.classes, 2), "rows_real": min(self.case.rows_real, 9)}
        return replace(self.case, **few, rows_synthetic=9, columns=12, frequencies=16)

    def offered(self) -> list[Contender]:
        return means_contenders.contenders_for(self.case)

    def answers(self, case: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return means_cases.exact(case, x, y)

    def errors(self, answers: Any, contender: Any, values: Tensor, gradient: Tensor) -> Errors:
        found = means_cases.assessed(answers, contender, self.case, None, None, (values, gradient))
        errors: Errors = found["error"]
        return errors

    def allowed(self, contender: Any) -> tuple[float, float]:
        """The second is wide, for torch's own products in TF32."""
        return (1e-4, 1e-3) if self.precision == "highest" else (5e-2, 1e-1)

    def work(self, contender: Any, case: Any, x: Tensor, y: Tensor) -> peaks.Work:
        work: peaks.Work = case.work()
        return work


def listed() -> list[Row]:
    """By importance; what is compiled at run time last."""
    rows: list[Row] = [SampleRow(case, "highest", False) for case in persample_cases.FULL]
    rows += [MeansRow(case, "highest", False) for case in means_cases.FULL]
    rows += [MeansRow(case, "high", False) for case in means_cases.FULL if case.kind == "characteristic"]
    return [*rows, MeansRow(means_cases.FULL[0], "highest", True)]
