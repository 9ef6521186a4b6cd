"""bench/gpu.py on the CUDA kernels executed on the CPU, at toy size, and what it does when something dies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import decoct

BENCH = Path(__file__).resolve().parent.parent / "bench"
PATTERNS = (
    "mmd 5000x5000x64, high",
    "mmd 10x(256,10)x2048, highest*",
    "sinkhorn 1000x1000x64, highest*",
    "sinkhorn 100x(256,50)x512, highest",
    "gradients distance convnet 10, highest*",
    "gradients class gradients 10x256, highest",
    "gradients norm * 640x128x32x32, highest",
    "gradients dc step 10x(256,10), high",
    "samples * convnet 64*, highest",
    "means characteristic 1024x10x(256,10)x256, high",
)
BUILT = ", built at run time"
ROWS = [
    PATTERNS[0],
    "mmd 10x(256,10)x2048, highest",
    f"mmd 10x(256,10)x2048, highest{BUILT}",
    "sinkhorn 1000x1000x64, highest",
    f"sinkhorn 1000x1000x64, highest{BUILT}",
    PATTERNS[3],
    "gradients distance convnet 10, highest",
    f"gradients distance convnet 10, highest{BUILT}",
    PATTERNS[5],
    *(f"gradients norm {stage} 640x128x32x32, highest" for stage in ("forward", "backward", "second")),
    PATTERNS[7],
    *(
        f"samples {kind}, highest"
        for kind in ("norms convnet 64", "clipped convnet 64", "gram convnet 64x16")
    ),
    PATTERNS[9],
]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The benchmarks' modules, importable."""
    monkeypatch.syspath_prepend(str(BENCH))
    return BENCH


@pytest.fixture
def emulated(bench: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Takes the place of the CPU's own kernels until the test ends, as do precisions that it sets."""
    from gpu_device import Emulated

    monkeypatch.setitem(decoct.ops.backends, "cpu", decoct.ops.backends["cpu"])
    precision = torch.get_float32_matmul_precision()
    yield Emulated()
    torch.set_float32_matmul_precision(precision)


def test_a_run_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, BENCH / "gpu.py", "--device", "emulated", "--seconds", "540"]
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
    assert record["stages"]["graphs"]["passed"] == 60 + 28 + 30 + 20 + 10 + 30 + 20
    rows = {row["name"]: row["contenders"] for row in record["stages"]["timings"]["rows"]}
    assert sorted(rows) == sorted(ROWS)
    for name, contenders in rows.items():
        # Of networks without a closed count of operations there is no bound.
        assert name.startswith("samples") or contenders["decoct"]["share"] > 0, name
        assert contenders["decoct"]["ratio"]["median"] == 1, name
        peers = [entry for entry in contenders.values() if not entry["ours"]]
        assert len(peers) >= 1, name
        least = {"mmd": 2, "gradients": 1}.get(name.partition(" ")[0], 0)
        assert sum("seconds" in entry for entry in peers) >= least, name
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


def test_a_failed_check_is_a_failure(
    bench: Path, emulated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu
    import gpu_checks

    def broken() -> None:
        raise AssertionError("on purpose")

    checks = [("good", lambda: None), ("bad", broken)]
    for checked, status in ((checks[:1], "passed"), (checks, "failed"), ([], "failed")):
        monkeypatch.setitem(gpu_checks.KINDS, "graphs", lambda device, ops, checked=checked: iter(checked))
        job = {"device": "emulated", "kind": "graphs", "ops": ["mmd"], "until": time.time() + 60}
        assert gpu_checks.main(job, tmp_path / "out.json") == (len(checked) > 1)
        found = gpu._checked(json.loads((tmp_path / "out.json").read_text()))
        assert found["status"] == status
        assert ("bad: AssertionError: on purpose" in found.get("why", "")) == (len(checked) > 1)


@pytest.mark.parametrize(
    "op", ["Mmd", "Sinkhorn", "Distance", "Norm", "Step", "Samples", "Characteristic", "Projection"]
)
def test_what_the_checks_of_graphs_find(op: str, emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_checks

    problem = getattr(gpu_checks, op)(emulated, 7, "dense", getattr(gpu_checks, op).rules[0])
    gpu_checks._graph(problem)
    kept = problem.call()
    monkeypatch.setattr(emulated, "capture", lambda call: lambda: kept)
    with pytest.raises(AssertionError, match="a replay with other inputs: other bits"):
        gpu_checks._graph(problem)
    monkeypatch.setattr(emulated, "on_stream", lambda call: (kept[0] + 1, kept[1]))
    with pytest.raises(AssertionError, match="a side stream: other bits"):
        gpu_checks._side_stream(problem)
    monkeypatch.setattr(emulated, "allocations", iter(range(9)).__next__)
    with pytest.raises(AssertionError, match="asked the driver for memory 1 times"):
        gpu_checks._no_waiting(problem)


def test_paths_of_transport(emulated: Any) -> None:
    """The names say what is called, and some of each kind run; gpu.py runs all of them."""
    import gpu_paths

    names = [name for name, _ in gpu_paths.transports(toy=False)]
    assert len(set(names)) == len(names)
    for part in ("kept", "ragged", "tiled", "mixed", "D=3,", "p=1", "second", "bfloat16", "float64"):
        assert sum(part in name for name in names) >= 4, part
    for variant in gpu_paths.VARIANTS:
        assert sum(variant in name for name in names) >= 4, variant
    for _, call in [*gpu_paths.transports(toy=True)][:24:6]:
        call(emulated)
    with pytest.raises(AssertionError, match="a result is not finite"):
        gpu_paths.finite(emulated, [decoct.mmd(*[torch.full((2, 3), torch.nan)] * 2)])


def test_paths_of_gradient_matching(emulated: Any) -> None:
    """Each kind of list, image and layer in each dtype; one of each runs, gpu.py runs all of them."""
    import gpu_gradient_paths as paths

    kinds = {
        paths.distances: (paths.LISTS, ("float32", "bfloat16", "float64", "float16"), 2),
        paths.norms: (paths.IMAGES, ("float32", "bfloat16", "float64", "float16", "bare"), 4),
        paths.layers: (paths.LAYERS, ("highest", "high", "medium", "bfloat16", "float64", "weighted"), 4),
    }
    for listed, (forms, words, each) in kinds.items():
        names = [name for name, _ in listed(toy=False)]
        assert len(set(names)) == len(names)
        for form in forms:
            assert sum(f", {form}" in name for name in names) >= each, form
            for word in words:
                assert any(f", {form}" in name and word in name for name in names), (form, word)
        calls = {name.split(", ")[-2 - ("weighted" in name)]: call for name, call in listed(toy=True)}
        for call in calls.values():
            call(emulated)


def test_paths_of_samples_and_means(emulated: Any) -> None:
    """Each kind of layer, width and size in each dtype and precision; one of each runs."""
    import gpu_sample_paths as paths

    kinds = {
        paths.of_samples: [f", {layer}" for layer in paths.LAYERS],
        paths.of_means: ["D=33, dense", "D=3, ragged", "D=300, dense"],
        paths.of_projections: [", 5", ", 300, transposed"],
    }
    for listed, forms in kinds.items():
        names = [name for name, _ in listed(toy=False)]
        assert len(set(names)) == len(names)
        for form in forms:
            for word in ("highest", "high,", "medium", "bfloat16", "float64"):
                assert any(form in name and word in name for name in names), (form, word)
        calls = {name.split(", ", 3)[3]: call for name, call in listed(toy=True)}
        for call in calls.values():
            call(emulated)


def test_ops_can_be_chosen(emulated: Any) -> None:
    import gpu
    import gpu_checks

    for kind in gpu_checks.KINDS.values():
        every = [name for name, _ in kind(emulated, [*gpu.TESTS])]
        assert len(set(every)) == len(every)
        alone = {op: [name for name, _ in kind(emulated, [op])] for op in gpu.TESTS}
        assert all(alone.values())
        assert sorted(every) == sorted(name for names in alone.values() for name in names)
    every = gpu.parse([]).names
    alone = [name for op in gpu.TESTS for name in gpu.parse(["--ops", op]).names]
    assert sorted(every) == sorted(alone)


def test_each_ops_tests_are_there(bench: Path) -> None:
    """Every op of the contract is somebody's, by the words that its tests are chosen by."""
    import gpu
    from samples import OPS

    for op in OPS:
        assert sum(any(word in op for word in words) for words in gpu.WORDS.values()) == 1, op
    for op, names in gpu.TESTS.items():
        for name in names:
            assert (bench.parent / "tests" / name).is_file(), name
            assert any(word in name for word in gpu.WORDS[op]), name
    contract = (bench.parent / "tests" / "test_contract.py").read_text()
    rules = re.findall(r"^def (test_\w+)", contract, re.MULTILINE)
    assert not [rule for rule in rules for words in gpu.WORDS.values() for word in words if word in rule]


@pytest.mark.parametrize("op", ["mmd", "sinkhorn"])
def test_wrong_results_are_not_timed(op: str, bench: Path) -> None:
    import gpu_rows
    import gpu_timings
    import mmd_cases
    import sinkhorn_cases

    kind, cases = (
        (gpu_rows.MmdRow, mmd_cases.QUICK) if op == "mmd" else (gpu_rows.SinkhornRow, sinkhorn_cases.QUICK)
    )
    row = kind(cases[0], "highest", False)
    x, y = row.case.rows()
    answers = row.answers(row.case, x, y)
    for contender in row.offered():
        if not contender.ours:
            continue
        values, gradient = contender.build(row.case, x, y)()
        found = gpu_timings.compared(row, contender, answers, values, gradient)
        assert "note" not in found, (contender.name, found)
        for wrong in ((values + 1, gradient), (values, gradient * 1.2)):
            found = gpu_timings.compared(row, contender, answers, *wrong)
            assert "differs from float64" in found["note"], contender.name
        for wrong in ((values * torch.nan, gradient), (values, gradient * torch.nan)):
            assert gpu_timings.compared(row, contender, answers, *wrong)["note"] == "not finite"
        assert gpu_timings.compared(row, contender, [], values, gradient)["note"] == "nothing to compare with"


@pytest.mark.parametrize(
    "name",
    [
        "distance convnet 10, highest",
        "class gradients 10x256, highest",
        "norm second 10x128x32x32, highest",
        "dc step 10x(256,1), highest",
        "dm step 10x(256,1), highest",
    ],
)
def test_wrong_gradients_are_not_timed(name: str, bench: Path, emulated: Any) -> None:
    import gpu_rows
    import gpu_timings

    (row,) = gpu_rows.listed([f"gradients {name}"])
    case = row.at(toy=True)
    x, y = row.inputs(case, emulated)
    answers = row.answers(case, x, y)
    for contender in row.contenders(emulated):
        values, gradient = contender.build(case, x, y)()
        flat = gpu_timings.together(gradient)
        assert "note" not in gpu_timings.compared(row, contender, answers, values, flat), contender.name
        wrong = [(values, flat * 1.2), *([(values + 1, flat)] if values.numel() else [])]
        for results in wrong:
            found = gpu_timings.compared(row, contender, answers, *results)
            assert "differs from float64" in found["note"], contender.name
        assert gpu_timings.compared(row, contender, answers, values, flat * torch.nan)["note"] == "not finite"


def test_another_eps_is_not_timed(bench: Path) -> None:
    import gpu_rows
    import gpu_timings
    from sinkhorn_cases import BLUR, QUICK, diameter
    from sinkhorn_contenders import ours

    row = gpu_rows.SinkhornRow(QUICK[1], "high", False)
    x, y = row.case.rows()
    other = ours("decoct", blur=2**0.5 * BLUR * diameter(x, y))
    answers = row.answers(row.case, x, y)
    assert "note" in gpu_timings.compared(row, other, answers, *other.build(row.case, x, y)())


def test_every_case_of_bench_mmd_is_timed(bench: Path) -> None:
    import gpu_rows
    import gradients_cases
    from mmd_cases import FULL

    rows = gpu_rows.listed()
    first = [row for row in rows if row.precision == "highest" and not row.built]
    assert {row.case for row in first if row.op == "mmd"} == set(FULL)
    assert len({row.name for row in rows}) == len(rows)
    assert {row.case.name for row in first if row.op == "sinkhorn"} == set(gpu_rows.SINKHORN)
    assert {row.case for row in first if row.op == "gradients"} >= set(gradients_cases.FULL)
    sinkhorn = gpu_rows.listed(["sinkhorn*"])
    assert sinkhorn
    assert all(row.op == "sinkhorn" for row in sinkhorn)


def test_contenders_of_sinkhorn(bench: Path, emulated: Any) -> None:
    import gpu_rows

    def names(row: str) -> list[str]:
        (found,) = gpu_rows.listed([row])
        return [contender.name for contender in found.contenders(emulated)]

    ours = ["decoct", "decoct, CUDA graph"]
    flash = ["flash-sinkhorn", "flash-sinkhorn, CUDA graph"]
    assert names("sinkhorn 5000x5000x64, highest") == [
        *ours,
        "decoct, no real-real",
        "decoct, to tol",
        "GeomLoss tensorized",
    ]
    assert names(f"sinkhorn 5000x5000x64, high{BUILT}") == [*ours, *flash]
    assert names(f"sinkhorn 5000x5000x64, highest{BUILT}") == [*ours, *flash, "GeomLoss online (KeOps)"]
    batch = ["GeomLoss, batch", "POT, batch"]
    assert names("sinkhorn 100x(256,50)x512, highest")[-3:] == ["GeomLoss, loop", *batch]
    assert names("sinkhorn 1000x(256,50)x512, highest")[-3:] == ["decoct, to tol", *batch]
    assert "decoct, to tol" not in names("sinkhorn 20000x20000x16, highest")


def test_stages_share_what_is_left(bench: Path) -> None:
    import gpu

    skipped = ["timings", "ceilings"]
    assert gpu.allowance("build", skipped, 300, 300) == pytest.approx(180)
    assert gpu.allowance("tests", skipped, 300, 120) == pytest.approx(60)
    assert gpu.allowance("graphs", skipped, 300, 50) == pytest.approx(50)
    assert gpu.allowance("timings", [], 300, 70) == pytest.approx(70)
    assert gpu.allowance("tests", [], 480, 400) == pytest.approx(96)


def test_unknown_rows_are_refused(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu

    with pytest.raises(SystemExit):
        gpu.parse(["--rows", "nothing"])
    assert "--rows nothing matches none of: mmd 5000x5000x64, highest; " in capsys.readouterr().err
