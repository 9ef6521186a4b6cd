"""Times one case with one number of threads, in a process of its own: started by runner.py.

    python row.py '{"op": "mmd", "case": {...}, "threads": 2, "stage": "time", "budget": 3, "skip": []}' OUT

OUT is written again after each step, so that what was measured survives when the process is stopped; its
`running` names the contender that was at work.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

import harness
from contenders import Call, Contender

Report = dict[str, dict[str, Any]]


def _built(contender: Contender, case: Any, x: torch.Tensor, y: torch.Tensor) -> Call | str:
    """Or the reason why there is none."""
    if reason := contender.too_large(case):
        return f"too large: {reason}"
    try:
        return contender.build(case, x, y)
    except ImportError as missing:
        return f"not installed ({missing.name or missing})"
    except Exception as error:
        return f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def main(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(job["threads"])
    cases = importlib.import_module(f"{job['op']}_cases")
    case = cases.Case(**job["case"])
    contenders = importlib.import_module(f"{job['op']}_contenders")
    x, y = case.rows()
    report: Report = {}

    def write(running: str | None) -> None:
        harness.write_json(out, {"running": running, "contenders": report})

    ready: dict[str, Call] = {}
    results: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    first: dict[str, float] = {}
    listed = [c for c in contenders.contenders_for(case) if c.name not in job["skip"]]
    for contender in listed:
        name = contender.name
        write(name)
        call = _built(contender, case, x, y)
        entry: dict[str, Any] = contender.record()
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
        answers = cases.exact(case, x, y)
        for contender in listed:
            name = contender.name
            if name in results:
                report[name] |= cases.assessed(answers, contender, case, x, y, results[name])
                write("exact answers")
    write(None)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
