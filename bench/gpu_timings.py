"""Measured ceilings of a GPU, and ops with their gradients beside their peers: a worker of gpu.py.

    python gpu_timings.py '{"device": "cuda", "kind": "timings", "rows": [...], "until": 1.8e9, ...}' OUT

OUT is written after each step: {"running": [row, step] or null, "rows": [...]}.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import harness
import peaks
from contenders import OURS, Call, Contender
from gpu_device import CHAIN, Device, open_device
from gpu_rows import Row, listed

Rates = dict[str, float | None]
HEADER = (
    "",
    "time",
    "ratio",
    "from",
    "to",
    "share of bound",
    "extra memory",
    "error of value",
    "of gradient",
)
NO_TIME = "not run: budget"
NEEDED = {False: 3.0, True: 30.0}
"""Seconds that must be left for a contender to begin; the second for one that is built at run time."""


# ---- ceilings


def ceilings(device: Device) -> Rates:
    """Best rates a second of torch's own operations: FLOP of products in each precision, bytes copied,
    exponentials. `exp_torch` reads and writes its data in the cache, which bounds it well below the
    arithmetic; `exp_chain` does not, where torch can compile it at run time."""
    n, elements, bytes_copied = (128, 4096, 1 << 20) if device.toy else (8192, 1 << 22, 1 << 30)

    def best(work: float, call: Callable[[], Any], count: int = 3) -> float:
        device.seconds(call)
        return work / min(device.seconds(call, count) for _ in range(5))

    rates: Rates = {}
    for name, precision, dtype in (
        ("float32", "highest", torch.float32),
        ("tf32", "high", torch.float32),
        ("bfloat16", "highest", torch.bfloat16),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(n, n, device=device.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        rates[name] = best(2.0 * n**3, partial(torch.mm, a, b, out=out))
    source = torch.zeros(bytes_copied, dtype=torch.uint8, device=device.device)
    target = torch.empty_like(source)
    rates["copy"] = best(2.0 * bytes_copied, lambda: target.copy_(source))
    values = torch.rand(elements, device=device.device)
    powers = torch.empty_like(values)
    simple = best(elements, partial(torch.exp2, values, out=powers), 20)
    kernel = device.chained_exp()
    chained = best(elements * CHAIN, partial(kernel, values), 20) if kernel else None
    return {**rates, "exp_torch": simple, "exp_chain": chained, "exp": max(simple, chained or 0.0)}


def products(rates: Rates, precision: str) -> float:
    """FLOP a second in a precision. The highest has two ways: float32, or three products in TF32."""
    float32, tf32 = rates["float32"] or 0.0, rates["tf32"] or 0.0
    return max(float32, tf32 / 3) if precision == "highest" else tf32


def least_seconds(work: peaks.Work, precision: str, rates: Rates) -> float:
    """Under the ceilings. Products, exponentials and copies have units of their own: the slowest counts."""
    exps, copied = rates["exp"] or 0.0, rates["copy"] or 0.0
    return max(work.flops / products(rates, precision), work.exps / exps, work.bytes / copied)


# ---- rows


def in_rounds(
    calls: dict[str, Call], first: dict[str, float], budget: float, device: Device
) -> dict[str, list[float]]:
    """Times of each call; every round times all of them, so that a ratio is of neighbours. `first` is the
    time of a warm call; one that takes more than three budgets is not run again."""
    samples = {name: [first[name]] for name in calls if first[name] > 3 * budget}
    again = [name for name in calls if name not in samples]
    fitting = int(budget * len(again) / max(sum(first[name] for name in again), 1e-9))
    rounds = max(1 if device.toy else 3, min(20, fitting))
    for turn in range(rounds if again else 0):
        start = turn % len(again)
        for name in again[start:] + again[:start]:
            count = max(1, min(100, int(2e-3 / max(first[name], 1e-7))))
            samples.setdefault(name, []).append(device.seconds(calls[name], count))
    return samples


def ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Median and range of the ratios of the rounds."""
    if len(theirs) != len(ours):
        theirs, ours = [statistics.median(theirs)], [statistics.median(ours)]
    ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def together(gradient: Any) -> torch.Tensor:
    """A copy of a gradient, or of a list of them."""
    parts = [gradient] if isinstance(gradient, torch.Tensor) else list(gradient)
    return parts[0].clone() if len(parts) == 1 else torch.cat([part.flatten() for part in parts])


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"not installed ({error.name or error})"
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def compared(
    row: Row, contender: Contender, answers: Any, values: torch.Tensor, gradient: torch.Tensor
) -> dict[str, Any]:
    """Errors against float64, and a note where they are those of something else."""
    scaled = values * contender.factor, gradient * contender.factor
    found = row.errors(answers, contender, *scaled)
    if not all(bool(part.isfinite().all()) for part in scaled):  # errors look at some groups only
        return {"error": found, "note": "not finite"}
    if all(error is None for error in found.values()):
        return {"error": found, "note": "nothing to compare with"}
    value, slope = found["value"] or 0.0, found["gradient"] or 0.0
    most = row.allowed(contender)
    if value <= most[0] and slope <= most[1]:
        return {"error": found}
    return {"error": found, "note": f"differs from float64: value {value:.1e}, gradient {slope:.1e}"}


@dataclass
class Bench:
    """The rows of one process."""

    device: Device
    job: dict[str, Any]
    out: Path

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.known: dict[tuple[str, str], Any] = {}
        self.budget: float = self.job["budget"]

    def write(self, *running: str) -> None:
        harness.write_json(self.out, {"running": running or None, "rows": self.rows})

    def left(self) -> float:
        seconds: float = self.job["until"] - time.time()
        return seconds

    def run_all(self) -> None:
        done = set(self.job["done"])
        for row in listed(self.job["rows"]):
            if row.name in done:
                continue
            record: dict[str, Any] = {"name": row.name, "precision": row.precision}
            record["case"] = asdict(row.at(self.device.toy))
            if self.left() < NEEDED[row.built and not self.device.toy]:
                self.rows.append({**record, "contenders": {}, "note": NO_TIME})
                continue
            stopped = self.job["stopped"].get(row.name, {})
            contenders = row.contenders(self.device)
            record["contenders"] = self.run_row(row, contenders, stopped)
            record["stopped"] = stopped
            self.rows.append(record)
            self.device.release()
            self.write()
            print(show(record), flush=True)
        self.write()

    def run_row(self, row: Row, contenders: list[Contender], stopped: dict[str, str]) -> dict[str, Any]:
        """What is known of each contender. `stopped`: steps at which an earlier process died, and how."""
        torch.set_float32_matmul_precision(row.precision)
        torch.backends.cudnn.allow_tf32 = row.precision != "highest"
        torch._dynamo.reset()  # the number of forms that are compiled of one function is bounded
        report: dict[str, Any] = {c.name: {"with_xx": c.with_xx, "ours": c.ours} for c in contenders}
        if "rows" in stopped:
            return report
        self.write(row.name, "rows")
        case = row.at(self.device.toy)
        x, y = row.inputs(case, self.device)
        ready: dict[str, Call] = {}
        results: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        first: dict[str, float] = {}
        for contender in contenders:
            name, entry = contender.name, report[contender.name]
            self.write(row.name, name)
            slow = row.built and not contender.ours and not self.device.toy
            if name in stopped or self.left() < NEEDED[slow]:
                entry["note"] = stopped.get(name, NO_TIME)
                continue
            try:
                call = contender.build(case, x, y)
                values, gradient = call()
                results[name] = values.detach().clone(), together(gradient)
                first[name] = self.device.seconds(call)
                ready[name] = call
            except Exception as error:
                entry["note"] = _reason(error)
            if "note" in entry:
                self.device.synchronize()  # raises where the device is lost: the process is started again
                self.device.release()
        if "float64" not in stopped:
            self.write(row.name, "float64")
            answers = self.answers(row, x, y) if results else None
            for contender in contenders:
                if contender.name in results:
                    report[contender.name] |= compared(row, contender, answers, *results[contender.name])
        ready = {name: call for name, call in ready.items() if "note" not in report[name]}
        if ready and "timing" not in stopped:
            self.write(row.name, "timing")
            self._time(ready, first, report)
            for contender in contenders:
                if contender.ours and "seconds" in report[contender.name]:
                    self._bound(row, contender, x, y, report[contender.name])
        return report

    def answers(self, row: Row, x: Any, y: Any) -> Any:
        """Of float64; the rows of one case are the same in every precision."""
        key = row.op, row.case.name
        if key not in self.known:
            self.known[key] = row.answers(row.at(self.device.toy), x, y)
        return self.known[key]

    def _bound(self, row: Row, contender: Contender, x: Any, y: Any, entry: dict[str, Any]) -> None:
        rates = self.job.get("rates")
        work = row.work(contender, row.at(self.device.toy), x, y) if rates else None
        if work is not None:
            entry["bound"] = least_seconds(work, row.precision, rates)
            entry["share"] = entry["bound"] / entry["seconds"]

    def _time(self, ready: dict[str, Call], first: dict[str, float], report: dict[str, Any]) -> None:
        samples = in_rounds(ready, first, self.budget, self.device)
        for name, found in samples.items():
            entry = report[name]
            entry.update(harness.summary(found))
            if OURS in samples:
                entry["ratio"] = ratio(found, samples[OURS])
        for name, call in ready.items():
            try:
                report[name]["memory"] = self.device.extra_memory(call)
            except Exception as error:
                report[name]["memory_note"] = _reason(error)


def _cells(name: str, entry: dict[str, Any]) -> list[str]:
    error = entry.get("error", {})
    shown = ["-" if error.get(key) is None else f"{error[key]:.1e}" for key in ("value", "gradient")]
    if "seconds" not in entry:
        return [name, " ".join(entry.get("note", "-").split())[:80], *["-"] * (len(HEADER) - 4), *shown]
    ratios = [f"{entry['ratio'][key]:.3g}" if "ratio" in entry else "-" for key in ("median", "low", "high")]
    share = f"{entry['share']:.2g}" if "share" in entry else "-"
    memory = harness.show_bytes(entry.get("memory"))
    return [name, harness.show_seconds(entry["seconds"]), *ratios, share, memory, *shown]


def show(row: dict[str, Any]) -> str:
    body = [_cells(name, entry) for name, entry in row["contenders"].items()]
    return f"\n### {row['name']}\n\n{harness.table(HEADER, body)}"


def main(job: dict[str, Any], out: Path) -> None:
    device = open_device(job["device"])
    if job["kind"] == "ceilings":
        harness.write_json(out, ceilings(device))
    else:
        Bench(device, job, out).run_all()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
