"""Gradient matching: distances, whole steps of it and of distribution matching, decoct beside plain torch.

    python bench/bench_gradients.py --quick
    python bench/bench_gradients.py --json bench/results/gradients.json
    python bench/bench_gradients.py --rows 'dc*' --threads 2

bench/README.md says what the columns mean.
"""

from __future__ import annotations

import sys

import gradients_cases
import gradients_targets
import peaks
import runner


def _work(case: gradients_cases.Case, entry: runner.Entry) -> peaks.Work | None:
    return case.work()


OP = runner.Op(
    name="gradients",
    text=__doc__ or "",
    full=gradients_cases.FULL,
    quick=gradients_cases.QUICK,
    case=gradients_cases.Case,
    work=_work,
    columns=(
        ("error of value", lambda entry: entry.get("error", {}).get("value")),
        ("of gradient", lambda entry: entry.get("error", {}).get("gradient")),
        ("dispatched ops", lambda entry: entry.get("ops")),
    ),
    verdicts=gradients_targets.verdicts,
)

if __name__ == "__main__":
    sys.exit(runner.main(OP))
