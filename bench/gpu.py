"""The day of the GPU: builds, checks and times the CUDA kernels, in under 8 minutes.

    python bench/gpu.py                                  # everything
    python bench/gpu.py --skip timings ceilings          # some of it: the checks
    python bench/gpu.py --ops gradients                  # all of it for some ops, as --ops gradients samples
    python bench/gpu.py --rows 'sinkhorn 5000*'          # some rows of the timings; --list prints their names
    python bench/gpu.py --device emulated                # the same at toy size, without a GPU

It takes what `pip install ".[test,bench]"` brings; a peer that is not there says so in its row.
Stages, in this order: build, tests, sanitizer, graphs, ceilings, timings. Each gets a share of what is left
of --seconds; one that fails does not stop the others. An installed decoct with CUDA kernels is used as it
is; one without them is built from this tree for this device alone, which takes nvcc and about a minute.
bench/README.md says what the columns of the timings mean.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_jobs
import harness
from contenders import OURS
from gpu_rows import listed
from gpu_timings import NO_TIME

HERE = Path(__file__).resolve().parent
TESTS = {
    "gradients": ("test_gradient_distance.py", "test_norm.py", "test_class_gradients.py"),
    "samples": ("test_per_sample.py", "test_projected_gradients.py"),
    "means": ("test_characteristic_mean.py", "test_segment_moments.py"),
    "sinkhorn": (
        "test_sinkhorn.py",
        "test_sinkhorn_edges.py",
        "test_sinkhorn_schedule.py",
        "test_barycenter.py",
    ),
    "mmd": ("test_mmd.py",),
}
"""By op; the contract's tests come with all of them, those of the op alone."""
WORDS = {
    "gradients": ("gradient_distance", "class_gradients", "_norm", "segment_outer", "segment_convolve"),
    "samples": ("image_", "per_sample", "projection", "projected"),
    "means": ("characteristic", "segment_moments"),
    "sinkhorn": ("sinkhorn", "apply_plan", "barycenter"),
    "mmd": ("mmd", "kernel_m"),
}
"""Of the names of an op's tests, in the contract and in files of its own."""
TOY_TESTS = (
    "test_values_and_gradients and (gaussian-5 or p1-reach or row_cosine-classes or side-8 or tokens) and "
    "float32 or test_all_points_in_one_place"
)
SANITIZERS = ("memcheck", "racecheck")
PEERS_ENVIRONMENT = {f"POT_BACKEND_DISABLE_{name}": "1" for name in ("JAX", "CUPY", "TENSORFLOW")}
"""POT would load these, and they take memory of the device; it is timed on torch's tensors."""
Result = dict[str, Any]


@dataclass
class Run:
    """One run: what was asked for, and what was found so far."""

    options: argparse.Namespace
    record: dict[str, Any]
    deadline: float
    """Of the stage under way, on the clock of time.time()."""

    @property
    def emulated(self) -> bool:
        return bool(self.options.device == "emulated")

    @property
    def environment(self) -> dict[str, str]:
        # At toy size it is not torch.compile that is tried, and threads only wait for each other.
        return {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"} if self.emulated else {}

    def __post_init__(self) -> None:
        self.begun: set[Path] = set()

    def log(self, name: str) -> Path:
        """Where a process writes; empty at first."""
        path = Path(self.options.logs) / f"{name}.log"
        if path not in self.begun:
            path.unlink(missing_ok=True)
            self.begun.add(path)
        return path

    def left(self) -> float:
        return max(1.0, self.deadline - time.time())

    def worker(
        self,
        script: str,
        job: Result,
        name: str,
        before: tuple[str | Path, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> Result:
        """What a worker wrote, and how it ended where that was not well."""
        out = self.log(name).with_suffix(".json")
        out.unlink(missing_ok=True)
        job = {"device": self.options.device, "until": self.deadline - 5, **job}
        command = [*before, sys.executable, "-X", "faulthandler", HERE / script, json.dumps(job), out]
        log = self.log(name)
        environment = {**self.environment, **(environment or {})}
        ended = gpu_jobs.run(command, log, self.left(), environment=environment)
        found: Result = json.loads(out.read_text()) if out.exists() else {}
        if ended:
            found["ended"] = ended
            found["log"] = gpu_jobs.tail(log)
        return found

    def probe(self) -> Result:
        """What device and which backends a fresh process sees."""
        log = self.log("device")
        command = [sys.executable, HERE / "gpu_device.py", self.options.device]
        ended = gpu_jobs.run(command, log, self.left())
        if ended:
            return {"error": f"{ended}\n{gpu_jobs.tail(log)}"}
        lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
        found: Result = json.loads(lines[-1])
        return found


def failed(why: str, **more: Any) -> Result:
    return {"status": "failed", "why": why, **more}


# ---- stages


def build(run: Run) -> Result:
    found = run.record["gpu"] = run.probe()
    if "error" in found:
        return failed(found["error"])
    wanted = "cpu" if run.emulated else "cuda"
    if wanted in found["backends"]:
        return {"status": "passed", "how": "emulated" if run.emulated else "installed with kernels"}
    capability = found["capability"].replace(".", "")
    tools = ("scikit_build_core", "pybind11", "ninja", "cmake")
    here = all(importlib.util.find_spec(tool) or shutil.which(tool) for tool in tools)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--force-reinstall", "-v"]
    command += ["-C", "cmake.define.DECOCT_CUDA=ON", "-C", f"build-dir=build/gpu/{capability}"]
    command += ["--no-build-isolation"] if here else []
    command.append(str(harness.ROOT))
    environment = {"CUDAARCHS": f"{capability}-real"}
    log = run.log("build")
    ended = gpu_jobs.run(command, log, run.left(), environment=environment)
    if ended:
        again = "; what is compiled is kept for another run" if "stopped" in ended else ""
        return failed(f"pip install {ended}{again}; the end of {log}:\n{gpu_jobs.tail(log)}")
    found = run.record["gpu"] = run.probe()
    if "error" in found:
        return failed(found["error"])
    if wanted not in found["backends"]:
        return failed("built, but Python imports another decoct, without CUDA kernels: is PYTHONPATH set?")
    return {"status": "passed", "how": f"built for {capability}"}


def tests(run: Run) -> Result:
    chosen = [op for op in TESTS if op in run.options.ops]
    names = ["test_contract.py", *(name for op in chosen for name in TESTS[op])]
    paths = [str(harness.ROOT / "tests" / name) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *paths]
    command += ["-c", str(harness.ROOT / "pyproject.toml")]
    command += ["--backend", "cuda_on_cpu" if run.emulated else "cuda"]
    words = " or ".join(word for op in chosen for word in WORDS[op])
    if run.emulated:
        command += ["-k", f"({words}) and ({TOY_TESTS})"]
    elif len(chosen) < len(TESTS):
        command += ["-k", words]
    if not run.emulated and importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
        command += ["-p", "no:benchmark"]  # that plugin warns of the other, and warnings are errors
    log = run.log("tests")
    ended = gpu_jobs.run(command, log, run.left(), environment=run.environment)
    text = log.read_text(errors="replace")
    counts = re.findall(r"^=*\s*(\d+ (?:passed|failed|error).*? in .*?)\s*=*$", text, re.MULTILINE)
    result = {"counts": counts[-1] if counts else None}
    if ended:
        names = re.findall(r"^(?:FAILED|ERROR) .*", text, re.MULTILINE)
        return failed(f"{ended}\n{gpu_jobs.tail(log)}", **result, failures=names[:50])
    return {"status": "passed", **result}


def _checked(found: Result) -> Result:
    """The result of gpu_checks.py as that of a stage."""
    count = f"{found.get('passed', 0)} checks passed"
    if found.get("not_run"):
        count += f", {found['not_run']} not run: budget"
    if found.get("failed"):
        listed = "\n".join(f"  {name}: {why}" for name, why in list(found["failed"].items())[:20])
        return failed(f"{count}, {len(found['failed'])} failed:\n{listed}", **found)
    if found.get("ended") or not found.get("passed"):
        return failed(f"{count}; {found.get('ended', '')}\n{found.get('log', '')}", **found)
    return {"status": "passed", **found, "counts": count}


def sanitizer(run: Run) -> Result:
    if run.emulated:
        return _checked(
            run.worker("gpu_checks.py", {"kind": "sanitized", "ops": run.options.ops}, "sanitized")
        )
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    program = shutil.which("compute-sanitizer", path=search)
    if program is None:
        return {"status": "not installed", "why": "no compute-sanitizer on PATH"}
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that each tensor has bounds of its own
    results: Result = {}
    end, begun = run.deadline, time.time()
    each = (end - begun) / len(SANITIZERS)
    for number, tool in enumerate(SANITIZERS, 1):
        run.deadline = begun + each * number
        # The last check is begun early: racecheck slows one down to a minute.
        job = {"kind": "sanitized", "ops": run.options.ops, "until": run.deadline - each / 2}
        before = (program, "--tool", tool, "--kernel-name", "kns=decoct", "--error-exitcode", "9")
        name = f"sanitizer-{tool}"
        found = run.worker("gpu_checks.py", job, name, before, environment)
        told = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", gpu_jobs.tail(run.log(name), 200))
        results[tool] = {**_checked(found), "summary": told[-1] if told else None}
    wrong = [f"{tool}: {found['why']}" for tool, found in results.items() if found["status"] != "passed"]
    if wrong:
        return failed("\n".join(wrong), tools=results)
    counts = "; ".join(f"{tool}: {found['counts']}" for tool, found in results.items())
    return {"status": "passed", "counts": counts, "tools": results}


def graphs(run: Run) -> Result:
    result = _checked(run.worker("gpu_checks.py", {"kind": "graphs", "ops": run.options.ops}, "graphs"))
    if result.get("missing"):
        result["counts"] = f"{result.get('counts', '')}; not here: {', '.join(result['missing'])}"
    return result


def ceilings(run: Run) -> Result:
    found = run.worker("gpu_timings.py", {"kind": "ceilings"}, "ceilings")
    if "ended" in found:
        return failed(f"{found['ended']}\n{found['log']}")
    giga = {name: None if rate is None else rate / 1e9 for name, rate in found.items()}
    text = ", ".join(f"{name} {rate:.4g}" for name, rate in giga.items() if rate is not None)
    return {"status": "passed", "rates": found, "counts": f"G/s: {text}"}


def timings(run: Run) -> Result:
    rates = run.record["stages"].get("ceilings", {}).get("rates")
    job = {"device": run.options.device, "kind": "timings", "rows": run.options.rows, "rates": rates}
    job["budget"] = 0.02 if run.emulated else 0.3
    log = run.log("timings")
    out = log.with_suffix(".json")
    worker = gpu_jobs.Supervised(
        HERE / "gpu_timings.py", job, out, log, {**run.environment, **PEERS_ENVIRONMENT}
    )
    ended = worker.until(run.deadline - 10)
    measured = {row["name"]: row for row in worker.rows}
    left_out = {"contenders": {}, "note": ended or NO_TIME}
    rows = [measured.get(name, {"name": name, **left_out}) for name in run.options.names]
    print(f"\n{summary(rows)}")
    result: Result = {"rows": rows, "status": "passed"}
    wrong = [ended] if ended else []
    for row in rows:
        # Peers may fail, as their rows say.
        for name, entry in row["contenders"].items():
            if entry["ours"] and "seconds" not in entry and entry.get("note") != NO_TIME:
                stopped = "; ".join(row.get("stopped", {}).values())
                wrong.append(f"{row['name']}, {name}: {entry.get('note') or stopped or 'not timed'}")
    if wrong:
        return {**result, **failed("\n".join(dict.fromkeys(wrong)) + f"\n{gpu_jobs.tail(log)}")}
    return result


def summary(rows: list[Result]) -> str:
    """One line for each row: ours, and the fastest peer."""
    lines = []
    for row in rows:
        timed = {name: entry for name, entry in row["contenders"].items() if "seconds" in entry}
        ours = timed.get(OURS)
        if ours is None:
            lines.append([row["name"], row.get("note", "-"), "-", "-", "-"])
            continue
        peers = [(e["ratio"]["median"], name) for name, e in timed.items() if not e["ours"]]
        best = min(peers, default=None)
        share = f"{ours['share']:.2g}" if "share" in ours else "-"
        shown = ["-", "-"] if best is None else [best[1], f"{best[0]:.3g}"]
        lines.append([row["name"], harness.show_seconds(ours["seconds"]), share, *shown])
    return harness.table(("row", OURS, "share of bound", "fastest peer", "its ratio"), lines)


STAGES: dict[str, tuple[str, float, Callable[[Run], Result]]] = {
    "build": ("Build, where there are no kernels yet", 0.6, build),
    "tests": ("Tests against float64", 0.3, tests),
    "sanitizer": ("compute-sanitizer on every kernel path", 0.2, sanitizer),
    "graphs": ("CUDA graphs, streams, repeats", 0.1, graphs),
    "ceilings": ("Measured ceilings", 0.15, ceilings),
    "timings": ("Ops and their gradients beside their peers", 0.5, timings),
}
"""Title, share of the time, and the stage."""
KERNELS_NEEDED = ("tests", "sanitizer", "graphs", "timings")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "emulated"), default="cuda", help="cuda unless given")
    parser.add_argument("--seconds", type=float, default=480, help="for everything together (480)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="default: bench/results/gpu.json")
    parser.add_argument("--skip", nargs="+", choices=[*STAGES][1:], default=[], help="stages to leave out")
    parser.add_argument("--ops", nargs="+", choices=[*TESTS], default=[*TESTS], help="all unless given")
    parser.add_argument(
        "--rows", nargs="+", metavar="PATTERN", help="rows of the timings; default: of the ops"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--logs", type=Path, default=harness.ROOT / "build" / "gpu", metavar="FOLDER")
    options = parser.parse_args(arguments)
    results = options.logs if options.device == "emulated" else HERE / "results"
    options.json = options.json or results / "gpu.json"

    options.rows = options.rows or [f"{op} *" for op in options.ops]
    options.names = [row.name for row in listed(options.rows)]
    if not options.names:
        parser.error(
            f"--rows {' '.join(options.rows)} matches none of: {'; '.join(r.name for r in listed())}"
        )
    return options


def allowance(name: str, skipped: list[str], total: float, left: float) -> float:
    """Seconds that a stage may take: the build of all, the others of what is left, which they share with the
    stages after them."""
    share = STAGES[name][1]
    if name == "build":
        return share * total
    names = [*STAGES]
    following = sum(STAGES[other][1] for other in names[names.index(name) + 1 :] if other not in skipped)
    return share / (share + following) * left


def stage(run: Run, name: str, total: float, begun: float) -> Result:
    """One stage within its share of the time; whatever it raises is its failure."""
    title, _, action = STAGES[name]
    now = time.time()
    print(f"\n=== {title}", flush=True)
    if name in run.options.skip:
        return {"status": "skipped"}
    if name != "build" and "error" in run.record.get("gpu", {}):
        return failed("not run: no device")
    if name in KERNELS_NEEDED and run.record["stages"]["build"]["status"] != "passed":
        return failed("not run: no kernels")
    if now > begun + total - min(10.0, total / 10):
        return failed("not run: budget")
    run.deadline = now + allowance(name, run.options.skip, total, begun + total - now)
    try:
        return action(run)
    except Exception as error:
        return failed(f"{type(error).__name__}: {error}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print("\n".join(options.names))
        return 0
    begun = time.time()
    record: dict[str, Any] = {"machine": harness.machine(), "device": options.device, "stages": {}}
    run = Run(options, record, begun + options.seconds)
    for name in STAGES:
        start = time.time()
        result = stage(run, name, options.seconds, begun)
        record["stages"][name] = {"seconds": time.time() - start, **result}
        told = result.get("counts") or result.get("how") or result.get("why") or ""
        print(f"=== {name}: {result['status']} in {time.time() - start:.0f} s{': ' if told else ''}{told}")
        record["seconds"] = time.time() - begun
        record["passed"] = all(r["status"] != "failed" for r in record["stages"].values())
        harness.write_json(options.json, record)
    print(f"\n{'passed' if record['passed'] else 'FAILED'} in {record['seconds']:.0f} s; {options.json}")
    return 0 if record["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
