"""Characteristic means and moments of classes, decoct beside plain torch.

    python bench/bench_means.py --quick
    python bench/bench_means.py --json bench/results/means.json
    python bench/bench_means.py --rows 'characteristic*' --threads 1

bench/README.md says what the columns mean.
"""

from __future__ import annotations

import sys

import means_cases
import means_targets
import peaks
import runner


def _work(case: means_cases.Case, entry: runner.Entry) -> peaks.Work | None:
    return case.work()


OP = runner.Op(
    name="means",
    text=__doc__ or "",
    full=means_cases.FULL,
    quick=means_cases.QUICK,
    case=means_cases.Case,
    work=_work,
    columns=(
        ("error of value", lambda entry: entry.get("error", {}).get("value")),
        ("of gradient", lambda entry: entry.get("error", {}).get("gradient")),
    ),
    verdicts=means_targets.verdicts,
)

if __name__ == "__main__":
    sys.exit(runner.main(OP))
