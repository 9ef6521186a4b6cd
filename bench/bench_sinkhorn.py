"""Sinkhorn divergence and its gradient: decoct beside GeomLoss, POT and OTT-JAX.

    python bench/bench_sinkhorn.py --quick                # toy sizes, a minute or two
    python bench/bench_sinkhorn.py --json bench/results/sinkhorn.json
    python bench/bench_sinkhorn.py --rows '5000x*' '100x(256*' --threads 2

bench/README.md says what the columns mean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import peaks
import runner
import sinkhorn_cases
import sinkhorn_targets


def _work(case: sinkhorn_cases.Case, entry: runner.Entry) -> peaks.Work | None:
    # Terms that stop by themselves take different numbers of passes, of which the largest is known.
    if "passes" not in entry or not entry["anneals"]:
        return None
    return peaks.sinkhorn_work(
        case.rows_x,
        case.rows_y,
        case.columns,
        entry["passes"],
        max(case.groups, 1),
        entry["with_xx"],
        entry["cost_budget"],
    )


def _error(kind: str, part: str) -> Callable[[runner.Entry], float | None]:
    return lambda entry: entry.get(kind, {}).get(part)


OP = runner.Op(
    name="sinkhorn",
    text=__doc__ or "",
    full=sinkhorn_cases.FULL,
    quick=sinkhorn_cases.QUICK,
    case=sinkhorn_cases.Case,
    work=_work,
    columns=(
        ("marginals missed", lambda entry: entry.get("marginal")),
        ("error of value", _error("error", "value")),
        ("of gradient", _error("error", "gradient")),
        ("of potentials", _error("error", "potentials")),
        ("rounding of value", _error("rounding", "value")),
        ("of gradient", _error("rounding", "gradient")),
        ("of potentials", _error("rounding", "potentials")),
    ),
    verdicts=sinkhorn_targets.verdicts,
)

if __name__ == "__main__":
    sys.exit(runner.main(OP))
