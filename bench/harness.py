"""Timing, memory and records shared by the benchmarks; nothing here knows what is measured."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("decoct", "torch", "triton", "numpy", "geomloss", "pykeops", "POT", "ott-jax", "jax"),
    "flash-sinkhorn",
)


def once(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeats_for(seconds: float, budget: float) -> int:
    """Runs that fit into `budget` seconds: at least 3, but one where a single run takes all of it."""
    if seconds >= budget:
        return 1 if seconds > 3 * budget else 2
    return max(3, min(40, int(budget / seconds)))


def interleave(
    calls: dict[str, Callable[[], Any]], first: dict[str, float], budget: float
) -> dict[str, list[float]]:
    """Times of each call, taken in turns, so that a change of the machine's speed meets all alike.

    `first` is the time of a warm call. One that alone takes more than three budgets is not run again: that
    time is its only sample. Calls under 2 ms are timed in blocks."""
    block = {name: max(1, int(2e-3 / max(first[name], 1e-7))) for name in calls}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    left = {name: repeats_for(first[name] * block[name], budget) for name in calls}
    for name in calls:
        if first[name] > 3 * budget:
            samples[name], left[name] = [first[name]], 0
    rounds = max(left.values(), default=0)
    wanted = dict(left)
    chance = random.Random(0)
    for turn in range(rounds):
        # In another order each time: what a call leaves in caches and threads meets all alike, too.
        for name in chance.sample(list(calls), len(calls)):
            # Calls with few repeats are spread over all rounds.
            if len(samples[name]) < wanted[name] and len(samples[name]) * rounds <= turn * wanted[name]:
                call = calls[name]
                start = time.perf_counter()
                for _ in range(block[name]):
                    call()
                samples[name].append((time.perf_counter() - start) / block[name])
    return samples


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, fastest and number of the samples."""
    return {"seconds": statistics.median(samples), "fastest": min(samples), "runs": len(samples)}


def memory_environment() -> dict[str, str]:
    """For a process whose memory is measured: every block of 64 KiB or more goes back to the system when
    freed, so that one call's leftovers do not hide the next one's needs."""
    return {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{key} is not in /proc/self/status")


def extra_memory(call: Callable[[], Any], release: Callable[[], None]) -> int | None:
    """Bytes by which the resident set of this process grew at its highest during a second call, results
    included; None where the kernel does not keep that mark. release(): frees what the first call kept."""
    call()
    release()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = call()
        grown = _status("VmHWM") - before
    except (OSError, RuntimeError):
        return None
    del result
    return max(0, grown)


def _output(*command: str) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """What a reader needs to compare numbers: processor, cores, versions, commit. No host name, no path."""
    versions = {name: _version(name) for name in PACKAGES}
    commit = _output("git", "rev-parse", "HEAD")
    edited = _output("git", "status", "--porcelain", "--untracked-files=no", "--", "python", "csrc", "bench")
    return {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "decoct": json.loads(_output(sys.executable, "-m", "decoct", "info", "--json") or "null"),
        "commit": (commit + (" with edits" if edited else "")) or None,
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, path)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    body = [list(row) for row in rows]
    width = [max(len(row[i]) for row in [list(header), *body]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        placed = [cells[0].ljust(width[0]), *map(str.rjust, cells[1:], width[1:])]
        return "| " + " | ".join(placed) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(width)) + "|"
    return "\n".join([line(header), rule, *map(line, body)])


def show_seconds(seconds: float) -> str:
    """In ms below a second, three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def show_bytes(count: float | None) -> str:
    """In MiB, three digits."""
    return "-" if count is None else f"{count / 2**20:.3g} MiB"
