"""bench/gpu.py on the CUDA kernels executed on the CPU, at toy size, and what it does when something dies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
PATTERNS = ("5000x5000x64, high", "10x(256,10)x2048, highest*")
ROWS = [PATTERNS[0], "10x(256,10)x2048, highest", "10x(256,10)x2048, highest, built at run time"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The benchmarks' modules, importable."""
    monkeypatch.syspath_prepend(str(BENCH))
    return BENCH


def test_a_run_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, BENCH / "gpu.py", "--device", "emulated", "--seconds", "500"]
    command += [
        "--skip",
        "tests",
        "sanitizer",
        "--rows",
        *PATTERNS,
        "--json",
        out,
        "--logs",
        tmp_path / "logs",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    record = json.loads(out.read_text())
    assert record["passed"]
    assert record["machine"]["versions"]["torch"]
    statuses = {name: found["status"] for name, found in record["stages"].items()}
    skipped = dict.fromkeys(("tests", "sanitizer"), "skipped")
    assert statuses == {**dict.fromkeys(("build", "graphs", "ceilings", "timings"), "passed"), **skipped}
    assert record["stages"]["graphs"]["passed"] == 60
    rows = {row["name"]: row["contenders"] for row in record["stages"]["timings"]["rows"]}
    assert sorted(rows) == sorted(ROWS)
    for name, contenders in rows.items():
        assert contenders["decoct"]["share"] > 0, name
        assert contenders["decoct"]["ratio"]["median"] == 1, name
        assert sum("seconds" in entry and not entry["ours"] for entry in contenders.values()) >= 2, name
        for entry in contenders.values():
            assert "seconds" in entry or "not installed" in entry["note"], (name, entry)
        assert f"### {name}\n" in ran.stdout


def test_a_stage_that_fails(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu

    def broken(run: Any) -> dict[str, Any]:
        raise ValueError("on purpose")

    monkeypatch.setitem(gpu.STAGES, "graphs", ("Broken", 1.0, broken))
    out = tmp_path / "gpu.json"
    arguments = ["--device", "emulated", "--skip", "tests", "sanitizer", "timings"]
    assert gpu.main([*arguments, "--json", str(out), "--logs", str(tmp_path)]) == 1
    record = json.loads(out.read_text())
    assert not record["passed"]
    assert record["stages"]["graphs"]["why"] == "ValueError: on purpose"
    assert record["stages"]["ceilings"]["status"] == "passed"
    assert record["stages"]["timings"]["status"] == "skipped"


def test_no_time_left(bench: Path, tmp_path: Path) -> None:
    """Each stage and row is listed all the same."""
    import gpu

    out = tmp_path / "gpu.json"
    arguments = ["--device", "emulated", "--skip", "tests", "sanitizer", "graphs", "ceilings"]
    run = gpu.Run(gpu.parse([*arguments, "--rows", *PATTERNS, "--logs", str(tmp_path)]), {"stages": {}}, 0.0)
    assert [row["note"] for row in gpu.timings(run)["rows"]] == ["not run: budget"] * len(ROWS)
    assert gpu.main([*arguments, "--seconds", "0", "--json", str(out), "--logs", str(tmp_path)]) == 1
    assert json.loads(out.read_text())["stages"]["timings"]["status"] == "failed"


WORKER = """
import json, os, sys, time
from pathlib import Path
job, out = json.loads(sys.argv[1]), Path(sys.argv[2])
rows = []
for name in ("first", "second"):
    if name in job["done"]:
        continue
    for step in ("well", "dies", "hangs"):
        out.write_text(json.dumps({"running": [name, step], "rows": rows}))
        if step in job["stopped"].get(name, {}) or name == "first":
            continue
        if step == "dies":
            os._exit(7)
        if step == "hangs":
            time.sleep(60)
    rows.append({"name": name, "stopped": job["stopped"].get(name, {})})
out.write_text(json.dumps({"running": None, "rows": rows}))
"""


def test_a_worker_that_dies_and_hangs(bench: Path, tmp_path: Path) -> None:
    import gpu_jobs

    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    worker = gpu_jobs.Supervised(script, {}, tmp_path / "out.json", tmp_path / "log", stall=3.0)
    assert worker.until(time.time() + 60) == ""
    assert [row["name"] for row in worker.rows] == ["first", "second"]
    assert worker.rows[1]["stopped"] == {"dies": "ended with 7", "hangs": "no progress in 3 s"}


def test_a_process_that_is_too_slow(bench: Path, tmp_path: Path) -> None:
    """It is stopped together with what it started."""
    import gpu_jobs

    marker = tmp_path / "marker"
    begun = time.time()
    ended = gpu_jobs.run(["sh", "-c", f"(sleep 3; touch {marker}) & sleep 60"], tmp_path / "log", 0.5)
    assert ended == "stopped after 0 s"
    assert time.time() - begun < 2.5
    time.sleep(3)
    assert not marker.exists()


def test_wrong_results_are_not_timed(bench: Path) -> None:
    import torch

    import gpu_timings
    from mmd_cases import QUICK, exact
    from mmd_contenders import DENSE

    case, peer = QUICK[0], DENSE[3]
    x, y = case.rows()
    values, gradient = peer.build(case, x, y)()
    answers = exact(case, x, y)
    assert "note" not in gpu_timings.compared(peer, answers, values, gradient)
    for wrong in ((values * 1.01, gradient), (values, gradient * 1.2)):
        assert "differs from float64" in gpu_timings.compared(peer, answers, *wrong)["note"]
    for wrong in ((values * torch.nan, gradient), (values, gradient * torch.nan)):
        assert gpu_timings.compared(peer, answers, *wrong)["note"] == "not finite"


def test_every_case_of_bench_mmd_is_timed(bench: Path) -> None:
    import gpu_timings
    from mmd_cases import FULL

    rows = gpu_timings.listed()
    assert {row.case for row in rows if row.precision == "highest" and not row.built} == set(FULL)
    assert len({row.name for row in rows}) == len(rows)


def test_unknown_rows_are_refused(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu

    with pytest.raises(SystemExit):
        gpu.parse(["--rows", "nothing"])
    assert "--rows nothing matches none of: 5000x5000x64, highest; " in capsys.readouterr().err
