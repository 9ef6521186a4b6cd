"""Measured ceilings of this machine, and the least time that work of a known size takes under them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("peaks.cpp")
SCALING_WANTED = 1.8


class NoPeaks(Exception):
    """The ceilings could not be measured; the message says why."""


def _program() -> Path:
    """Compile peaks.cpp for this machine, once for each version of its text."""
    named = [os.environ["CXX"]] if os.environ.get("CXX") else []
    compiler = next((found for c in [*named, "g++", "c++", "clang++"] if (found := shutil.which(c))), None)
    if compiler is None:
        raise NoPeaks("no C++ compiler (g++, c++ or clang++) on PATH")
    text = SOURCE.read_bytes() + compiler.encode() + platform.processor().encode()
    folder = Path(tempfile.gettempdir()) / f"decoct-peaks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    program = folder / hashlib.sha256(text).hexdigest()[:16]
    if not program.exists():
        native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
        partial = f"{program}.{os.getpid()}"
        command = [compiler, "-O3", native, "-std=c++17", "-pthread", "-w", str(SOURCE), "-o", partial]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            raise NoPeaks(f"{' '.join(command)} failed: {built.stderr.strip()[:500]}")
        os.replace(partial, program)
    return program


def measure(threads: int) -> dict[str, Any]:
    """Rates a second over all `threads` together: fma (FLOP), exp, read (bytes); best and median window."""
    ran = subprocess.run([_program(), str(threads)], capture_output=True, text=True)
    if ran.returncode:
        raise NoPeaks(f"peaks {threads} ended with {ran.returncode}: {ran.stderr.strip()[:500]}")
    rates: dict[str, Any] = json.loads(ran.stdout)
    return rates


def measure_all(thread_counts: list[int]) -> dict[int, dict[str, Any]]:
    """By number of threads; 1 and 2 always, where there are two cores, for the validity of a run."""
    wanted = {1, *thread_counts} | ({2} if (os.cpu_count() or 1) >= 2 else set())
    return {threads: measure(threads) for threads in sorted(wanted)}


def scaling(rates: dict[int, dict[str, Any]]) -> float | None:
    """FMA rate of two threads over that of one, medians; below 1.8 something else used the cores."""
    if 2 not in rates:
        return None
    ratio: float = rates[2]["fma_median"] / rates[1]["fma_median"]
    return ratio


def higher(before: dict[int, dict[str, Any]], after: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The higher rate of two measurements, which is the stricter bound."""
    return {
        threads: {key: max(value, after[threads][key]) for key, value in rates.items()}
        for threads, rates in before.items()
    }


@dataclass
class Work:
    """What the value and the gradient of y cannot do without."""

    flops: float
    """2 D for each pair and product; one differentiated side makes that two products, two sides three."""
    exps: float
    bytes: float
    """Rows read once, the gradient written once."""

    def seconds(self, rates: dict[str, Any]) -> float:
        """The larger of operations and bytes at the measured rates."""
        return float(max(self.flops / rates["fma"] + self.exps / rates["exp"], self.bytes / rates["read"]))


def mmd_work(rows_x: int, rows_y: int, columns: int, groups: int = 1, with_xx: bool = False) -> Work:
    """Work of `groups` squared MMDs of (rows_x, columns) and (rows_y, columns) with the gradient of y.

    Symmetric blocks: half the pairs. The real-real block is not differentiated: one product."""
    cross, synthetic, real = rows_x * rows_y, rows_y * rows_y / 2, rows_x * rows_x / 2 if with_xx else 0.0
    return Work(
        flops=groups * 2.0 * columns * (2 * cross + 3 * synthetic + real),
        exps=groups * float(cross + synthetic + real),
        bytes=groups * 4.0 * columns * (rows_x + 2 * rows_y),
    )


CACHED = 4 << 20
"""Bytes of scores that decoct keeps whatever its budget; and four times those of the rows."""


def sinkhorn_work(
    rows_x: int,
    rows_y: int,
    columns: int,
    passes: float,
    groups: int = 1,
    with_xx: bool = False,
    budget: int = 0,
) -> Work:
    """Work of `groups` debiased Sinkhorn divergences with the gradient of y, each term in `passes` passes.

    One exponential for each pair and pass, one product for each pair: once where the scores of a term may be
    kept, else in every pass; and one product for each side that is differentiated. Symmetric terms: half the
    pairs."""
    cross, synthetic, real = rows_x * rows_y, rows_y * rows_y / 2, rows_x * rows_x / 2 if with_xx else 0.0
    pairs = cross + synthetic + real
    kept = 4 * max(rows_x, rows_y) ** 2 <= max(CACHED, budget, 16 * (rows_x + rows_y) * columns)
    return Work(
        flops=groups * 2.0 * columns * (pairs * (1 if kept else passes) + cross + 2 * synthetic),
        exps=groups * pairs * passes,
        bytes=groups * 4.0 * columns * (rows_x + 2 * rows_y),
    )
