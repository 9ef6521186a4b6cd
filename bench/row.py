"""Times one case with one number of threads, in a process of its own: started by bench_mmd.py.

    python row.py '{"case": {...}, "threads": 2, "stage": "time", "budget": 3, "skip": []}' OUT

OUT is written again after each step, so that what was measured survives when the process is stopped; its
`running` names the contender that was at work.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

import harness
from cases import Case, errors, exact
from contenders import Call, Contender, contenders_for

Report = dict[str, dict[str, Any]]


def _built(contender: Contender, case: Case, x: torch.Tensor, y: torch.Tensor) -> Call | str:
    """Or the reason why there is none."""
    try:
        return contender.build(case, x, y)
    except ImportError as missing:
        return f"not installed ({missing.name or missing})"
    except Exception as error:
        return f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def main(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(job["threads"])
    case = Case(**job["case"])
    x, y = case.rows()
    report: Report = {}

    def write(running: str | None) -> None:
        harness.write_json(out, {"running": running, "contenders": report})

    ready: dict[str, Call] = {}
    results: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    first: dict[str, float] = {}
    listed = [c for c in contenders_for(case) if c.name not in job["skip"]]
    for contender in listed:
        name = contender.name
        write(name)
        call = _built(contender, case, x, y)
        entry: dict[str, Any] = {"with_xx": contender.with_xx, "ours": contender.ours}
        report[name] = entry
        if isinstance(call, str):
            entry["note"] = call
            continue
        try:
            if job["stage"] == "memory":
                entry["memory"] = harness.extra_memory(call, contender.release)
                continue
            cold = harness.once(lambda call=call, name=name: results.update({name: call()}))
            # First allocations are in the first call; a long one is not worth a second.
            first[name] = cold if cold > 20 * job["budget"] else harness.once(call)
        except Exception as error:
            entry["note"] = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            continue
        entry.update(harness.summary([first[name]]), first_call=cold)
        ready[name] = call
    if job["stage"] == "time":
        write("timing in turns")
        for name, samples in harness.interleave(ready, first, job["budget"]).items():
            report[name].update(harness.summary(samples))
        write("exact answers")
        answers = exact(case, x, y)
        for contender in listed:
            if contender.name in results:
                values, gradient = (part * contender.factor for part in results[contender.name])
                report[contender.name]["error"] = errors(answers, values, gradient, contender.with_xx)
    write(None)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
