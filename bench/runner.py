"""Runs the rows of one op's benchmark, each in a process of its own, and prints and records what they gave.

bench_mmd.py and bench_sinkhorn.py are command lines over this. For an op NAME, row.py imports NAME_cases.py
(Case, exact, assessed) and NAME_contenders.py (contenders_for).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import peaks
from contenders import OURS

ROW = Path(__file__).with_name("row.py")
HEADER = ("", "time", "ratio", "share of bound", "extra memory")
Entry = dict[str, Any]


@dataclass(frozen=True)
class Op:
    """One benchmark."""

    name: str
    text: str
    full: Sequence[Any]
    quick: Sequence[Any]
    case: Callable[..., Any]
    """Makes a case of its fields."""
    work: Callable[[Any, Entry], peaks.Work | None]
    """Of one of ours, for the bound; None where it is not known."""
    columns: Sequence[tuple[str, Callable[[Entry], float | None]]]
    """Columns of errors, after those that are in every table."""
    verdicts: Callable[[list[dict[str, Any]]], list[list[str]]]


def _ended(command: list[str], environment: dict[str, str], out: Path, limit: float) -> str:
    """Run it; how it ended, empty where well. It is stopped when it has not written `out`, which it does
    before each step, for `limit` seconds."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        written = time.time()
        while process.poll() is None:
            time.sleep(0.1)
            written = max(written, out.stat().st_mtime if out.exists() else 0.0)
            if time.time() - written > limit:
                process.kill()
                process.wait()
                return f"over {limit:g} s"
        errors.seek(0)
        return f"ended with {process.returncode}: {errors.read()[-1500:]}" if process.returncode else ""


def _stage(
    op: Op, case: Any, threads: int, stage: str, skip: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Run row.py; a contender that dies or takes too long is left out and the rest started again."""
    stopped: dict[str, Any] = {}
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    if stage == "memory":
        environment |= harness.memory_environment()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        while True:
            job = {"op": op.name, "case": asdict(case), "threads": threads, "stage": stage}
            job |= {"budget": options.budget}
            job["skip"] = [*skip, *stopped]
            command = [sys.executable, "-X", "faulthandler", str(ROW), json.dumps(job), str(out)]
            out.unlink(missing_ok=True)
            ended = _ended(command, environment, out, options.limit)
            record = json.loads(out.read_text()) if out.exists() else {"running": None, "contenders": {}}
            found: dict[str, Any] = record["contenders"]
            if not ended:
                return found | stopped
            known = [*found, record["running"]]
            if record["running"] is None or record["running"] in stopped or "seconds" in known:
                return found | stopped | {"row": {"note": ended}}
            if record["running"] in ("timing in turns", "exact answers"):
                return found | stopped | {"row": {"note": f"{record['running']}: {ended}"}}
            stopped[record["running"]] = {"note": ended}


def run_row(
    op: Op, case: Any, threads: int, with_memory: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """Times, errors and, once for each case, memory of all contenders."""
    contenders = _stage(op, case, threads, "time", [], options)
    if with_memory:
        # Memory takes two calls.
        left_out = [
            n for n, entry in contenders.items() if entry.get("seconds", math.inf) > options.limit / 3
        ]
        for name, entry in _stage(op, case, threads, "memory", left_out, options).items():
            if name in contenders and "memory" in entry:
                contenders[name]["memory"] = entry["memory"]
    return {"name": case.name, "case": asdict(case), "threads": threads, "contenders": contenders}


def add_shares(op: Op, row: dict[str, Any], rates: dict[str, Any] | None) -> None:
    """Least time at the measured rates over the time taken; for ours."""
    if rates is None:
        return
    case = op.case(**row["case"])
    for entry in row["contenders"].values():
        work = op.work(case, entry) if entry.get("ours") and "seconds" in entry else None
        if work is not None:
            entry["bound"] = work.seconds(rates)
            entry["share"] = entry["bound"] / entry["seconds"]


def _cells(op: Op, name: str, entry: Entry, base: float | None) -> list[str]:
    if "seconds" not in entry:
        note = " ".join(entry.get("note", "-").split())[:80]
        return [name, note, *["-"] * (len(HEADER) - 2 + len(op.columns) + 1)]
    errors = [column(entry) for _, column in op.columns]
    return [
        name,
        harness.show_seconds(entry["seconds"]),
        f"{entry['seconds'] / base:.3g}" if base else "-",
        f"{entry['share']:.2f}" if "share" in entry else "-",
        harness.show_bytes(entry.get("memory")),
        *("-" if error is None else f"{error:.1e}" for error in errors),
        str(entry["runs"]),
    ]


def show(op: Op, row: dict[str, Any]) -> str:
    contenders = row["contenders"]
    body = []
    for name, entry in contenders.items():
        base = contenders.get(entry.get("against", OURS), {}).get("seconds")
        body.append(_cells(op, name, entry, base))
    header = (*HEADER, *(title for title, _ in op.columns), "runs")
    return f"\n### {row['name']}, {row['threads']} thread(s)\n\n{harness.table(header, body)}"


def validity(before: dict[int, Any] | None, after: dict[int, Any] | None) -> tuple[bool, str]:
    """Whether the cores were ours alone, before and after."""
    if before is None or after is None:
        return False, "INVALID: no measured peaks"
    scalings = [peaks.scaling(before), peaks.scaling(after)]
    if None in scalings:
        return False, "INVALID: one core only, two threads cannot be compared with one"
    shown = " before and ".join(f"{value:.2f}" for value in scalings)
    good = all(value >= peaks.SCALING_WANTED for value in scalings if value is not None)
    text = f"two threads gave {shown} after, times one thread's FMA rate"
    return good, text if good else f"INVALID, the cores were in use: {text} (wanted {peaks.SCALING_WANTED})"


def parse(op: Op, arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=op.text.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that everything runs")
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", help="names or patterns of rows: '5000x*' '100x(256*'"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--threads", help="numbers of threads, with commas; default: all cores, then 1")
    parser.add_argument("--budget", type=float, help="seconds for each contender of a row (3; quick: 0.2)")
    parser.add_argument(
        "--limit", type=float, default=900, help="seconds after which a contender is stopped (900)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything measured here")
    parser.add_argument("--resume", action="store_true", help="keep the rows that PATH holds, add the others")
    options = parser.parse_args(arguments)
    options.budget = options.budget or (0.2 if options.quick else 3.0)
    cores = os.cpu_count() or 1
    try:
        chosen = [int(part) for part in options.threads.split(",")] if options.threads else [cores, 1]
    except ValueError:
        parser.error(f"--threads takes numbers with commas, got {options.threads!r}")
    if min(chosen) < 1:
        parser.error(f"--threads takes positive numbers, got {options.threads!r}")
    options.threads = list(dict.fromkeys(chosen))
    cases = op.quick if options.quick else op.full
    patterns = options.rows or ["*"]
    if options.resume and not (options.json and options.json.is_file()):
        parser.error("--resume takes the file of an earlier run: --json PATH")
    options.cases = [case for case in cases if any(fnmatch.fnmatchcase(case.name, p) for p in patterns)]
    if not options.cases:
        names = ", ".join(case.name for case in cases)
        parser.error(f"--rows {' '.join(patterns)} matches none of: {names}")
    return options


def _peaks(options: argparse.Namespace) -> tuple[dict[int, Any] | None, str]:
    try:
        return peaks.measure_all(options.threads), ""
    except peaks.NoPeaks as reason:
        return None, f"no peaks: {reason}"


def main(op: Op, arguments: list[str] | None = None) -> int:
    options = parse(op, arguments)
    if options.list:
        print("\n".join(case.name for case in options.cases))
        return 0
    start = time.perf_counter()
    record: dict[str, Any] = {"machine": harness.machine(), "quick": options.quick, "rows": []}
    if options.resume:
        record["rows"] = json.loads(options.json.read_text())["rows"]
    done = {(row["name"], row["threads"]) for row in record["rows"]}
    before, reason = _peaks(options)
    record["peaks_before"], record["note"] = before, reason
    for number, threads in enumerate(options.threads):
        for case in options.cases:
            if (case.name, threads) in done:
                continue
            row = run_row(op, case, threads, with_memory=number == 0, options=options)
            row["commit"] = record["machine"]["commit"]
            add_shares(op, row, before[threads] if before else None)
            record["rows"].append(row)
            print(show(op, row), flush=True)
            if options.json:
                harness.write_json(options.json, record)
    after, _ = _peaks(options)
    record["peaks_after"] = after
    if before and after:
        rates = peaks.higher(before, after)
        for row in record["rows"]:
            add_shares(op, row, rates.get(row["threads"]))
        record["peaks"] = rates
        for threads, found in rates.items():
            fma, exp, read = (found[key] / 1e9 for key in ("fma", "exp", "read"))
            print(
                f"\npeaks, {threads} thread(s), G/s: FMA {fma:.0f} FLOP, exp {exp:.1f}, read {read:.1f} bytes"
            )
        print("\nshares of the bound, with the higher of the peaks before and after:")
        for row in record["rows"]:
            shares = [f"{e['share']:.2f}" for e in row["contenders"].values() if "share" in e]
            print(f"  {row['name']}, {row['threads']} thread(s): {', '.join(shares)}")
    record["valid"], record["validity"] = validity(before, after)
    record["targets"] = op.verdicts(record["rows"])
    if record["targets"]:
        print("\n" + harness.table(("target", "wanted", "reached", "met"), record["targets"]))
    record["seconds"] = time.perf_counter() - start
    if options.json:
        harness.write_json(options.json, record)
    print(f"\n{record['validity']}{'; ' + reason if reason else ''}; {record['seconds']:.0f} s in all")
    return 0
