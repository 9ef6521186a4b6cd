"""Per-sample gradients: norms, clipped sums and inner products, decoct beside Opacus and torch.func.

    python bench/bench_persample.py --quick
    python bench/bench_persample.py --json bench/results/persample.json
    python bench/bench_persample.py --rows 'norms*' --threads 2

bench/README.md says what the columns mean.
"""

from __future__ import annotations

import sys

import peaks
import persample_cases
import persample_targets
import runner


def _work(case: persample_cases.Case, entry: runner.Entry) -> peaks.Work | None:
    return case.work()


OP = runner.Op(
    name="persample",
    text=__doc__ or "",
    full=persample_cases.FULL,
    quick=persample_cases.QUICK,
    case=persample_cases.Case,
    work=_work,
    columns=(("error", lambda entry: entry.get("error", {}).get("value")),),
    verdicts=persample_targets.verdicts,
)

if __name__ == "__main__":
    sys.exit(runner.main(OP))
