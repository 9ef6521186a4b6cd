"""The rows of gpu_timings.py: sizes, contenders, what they are compared with, and the least work."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import gpu_gradients
import gpu_samples
import mmd_cases
import mmd_contenders
import peaks
import sinkhorn_cases
import sinkhorn_contenders
from contenders import Contender
from gpu_row import Errors, Row
from mmd_targets import SPEED
from sinkhorn_contenders import GEOMLOSS, LOOPS, OURS_KEPT, OURS_NO_XX, OURS_TOL
from sinkhorn_exact import Exact, annealed, converged
from sinkhorn_flash import FLASH


@dataclass(frozen=True)
class MmdRow(Row):
    op: ClassVar[str] = "mmd"

    def offered(self) -> list[Contender]:
        return mmd_contenders.contenders_for(self.case)

    def answers(self, case: Any, x: Tensor, y: Tensor) -> list[mmd_cases.Exact]:
        return mmd_cases.exact(case, x, y)

    def errors(self, answers: Any, contender: Any, values: Tensor, gradient: Tensor) -> Errors:
        return mmd_cases.errors(answers, values, gradient, contender.with_xx)

    def allowed(self, contender: Any) -> tuple[float, float]:
        """The second is wide, for torch's own products in TF32."""
        return 1e-3, 5e-2

    def work(self, contender: Any, case: Any, x: Tensor, y: Tensor) -> peaks.Work:
        return peaks.mmd_work(case.rows_x, case.rows_y, case.columns, max(case.groups, 1), contender.with_xx)


POLISHED = 10**8
"""Pairs beyond which the solution is not iterated for, nor by those that go on to a tolerance."""
LOOPED = 100
"""Problems beyond which loops over them are not timed."""


@dataclass
class SinkhornAnswer:
    group: int
    annealed: Exact
    converged: Exact | None


@dataclass(frozen=True)
class SinkhornRow(Row):
    op: ClassVar[str] = "sinkhorn"

    def offered(self) -> list[Contender]:
        """Those that iterate to a tolerance where they can be checked; KeOps, which knows no TF32, once."""
        ours, *others = sinkhorn_contenders.contenders_for(self.case)
        wanted = {OURS_NO_XX, GEOMLOSS[0], "GeomLoss, batch", "POT, batch"}
        if self.case.rows_x * self.case.rows_y <= POLISHED:
            wanted.add(OURS_TOL)
        if self.case.groups:
            wanted.add(OURS_KEPT)
        if self.case.groups <= LOOPED:
            wanted.add(LOOPS[0])
        if self.precision == "highest":
            wanted.add(GEOMLOSS[1])
        chosen = [c for c in others if c.name in wanted]
        return [ours, *([FLASH] if self.case.groups <= LOOPED else []), *chosen]

    def answers(self, case: Any, x: Tensor, y: Tensor) -> list[SinkhornAnswer]:
        """Of three problems spread over all."""
        found = []
        width = sinkhorn_cases.diameter(x, y)
        blur, scaling = sinkhorn_cases.BLUR * width, sinkhorn_cases.SCALING
        for group in torch.linspace(0, max(case.groups, 1) - 1, 3).round().long().unique().tolist():
            real, synthetic = (part.double() for part in case.group(x, y, group))
            start = annealed(real, synthetic, width, blur, scaling)
            needed = any(not c.anneals for c in self.offered() if isinstance(c, sinkhorn_contenders.Solver))
            found.append(SinkhornAnswer(group, start, converged(start) if needed else None))
        return found

    def errors(self, answers: Any, contender: Any, values: Tensor, gradient: Tensor) -> Errors:
        """Against the same schedule; of what iterates to a tolerance, against the solution."""
        of_values, of_gradients = [], []
        for answer in answers:
            exact = answer.annealed if contender.anneals else answer.converged
            if exact is None:
                continue
            first = answer.group * len(exact.y)
            wanted, terms = exact.value(contender.with_xx, contender.debias)
            value = values.detach().reshape(-1)[answer.group].double()
            of_values.append(abs(value.item() - wanted) / terms)
            slope = exact.gradient(contender.debias)
            ours = gradient.detach()[first : first + len(exact.y)].double()
            of_gradients.append(((ours - slope).abs().max() / slope.abs().max()).item())

        def worst(found: list[float]) -> float | None:
            # Unlike max(), a tensor's keeps a NaN.
            return torch.tensor(found, dtype=torch.float64).max().item() if found else None

        return {"value": worst(of_values), "gradient": worst(of_gradients)}

    def allowed(self, contender: Any) -> tuple[float, float]:
        """The second is wide for TF32, and for a tolerance of the marginals."""
        return (1e-4, 2e-3) if self.precision == "highest" and contender.anneals else (1e-3, 5e-2)

    def work(self, contender: Any, case: Any, x: Tensor, y: Tensor) -> peaks.Work | None:
        """None where each term stops by itself."""
        if not contender.anneals:
            return None
        return peaks.sinkhorn_work(
            case.rows_x,
            case.rows_y,
            case.columns,
            sinkhorn_contenders.passes(case, x, y),
            max(case.groups, 1),
            contender.with_xx,
            dict(contender.options).get("cost_budget", 0),
        )


SINKHORN = (
    "5000x5000x64",
    "20000x20000x16",
    "1000x1000x64",
    "100x(256,50)x512",
    "5000x5000x3",
    "1000x(256,50)x512",
    "100x(1300,100)x512",
)
"""Cases by importance; the first two in TF32 as well."""


def of_clouds() -> list[Row]:
    """By importance: cases with a target first, peers that need no building before those that do. Products
    in TF32 only where there are enough columns for them to matter."""
    named = {name for name, *_ in SPEED}
    cases = sorted(mmd_cases.FULL, key=lambda case: case.name not in named)
    wide = [case for case in cases if case.columns >= 64]
    beside = [[case for case in group if not case.only_ours] for group in (cases, wide)]
    of_name = {case.name: case for case in sinkhorn_cases.FULL}
    clouds = [of_name[name] for name in SINKHORN]
    rows: list[Row] = []
    rows += [MmdRow(case, "highest", False) for case in cases]
    rows += [SinkhornRow(case, "highest", False) for case in clouds]
    rows += [MmdRow(case, "high", False) for case in wide]
    rows += [SinkhornRow(case, "high", False) for case in clouds[:2]]
    rows += [SinkhornRow(case, precision, True) for case in clouds[:2] for precision in ("high", "highest")]
    rows += [MmdRow(case, "highest", True) for case in beside[0]]
    rows += [MmdRow(case, "high", True) for case in beside[1]]
    rows += [SinkhornRow(case, "highest", True) for case in clouds[2:] if case.groups <= LOOPED]
    return rows


def listed(patterns: Sequence[str] = ("*",)) -> list[Row]:
    """All rows whose names match: those that need no building first, each op's by importance."""
    rows = sorted([*of_clouds(), *gpu_gradients.listed(), *gpu_samples.listed()], key=lambda row: row.built)
    return [row for row in rows if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)]
