"""Squared MMD and its gradient: decoct beside eager torch, torch.compile, GeomLoss and KeOps.

    python bench/bench_mmd.py --quick                     # toy sizes, a minute or two
    python bench/bench_mmd.py --json bench/results/mmd.json
    python bench/bench_mmd.py --rows '5000x*,100x*' --threads 2

bench/README.md says what the columns mean.
"""

from __future__ import annotations

import sys

import mmd_cases
import mmd_targets
import peaks
import runner


def _work(case: mmd_cases.Case, entry: runner.Entry) -> peaks.Work:
    groups = max(case.groups, 1)
    return peaks.mmd_work(case.rows_x, case.rows_y, case.columns, groups, entry["with_xx"])


OP = runner.Op(
    name="mmd",
    text=__doc__ or "",
    full=mmd_cases.FULL,
    quick=mmd_cases.QUICK,
    case=mmd_cases.Case,
    work=_work,
    columns=(
        ("error of value", lambda entry: entry.get("error", {}).get("value")),
        ("of gradient", lambda entry: entry.get("error", {}).get("gradient")),
    ),
    verdicts=mmd_targets.verdicts,
)

if __name__ == "__main__":
    sys.exit(runner.main(OP))
