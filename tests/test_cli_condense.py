"""`decoct condense` on small data: results on disk, bad input, interruption and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from decoct.__main__ import main
from decoct.cli._budgets import parse_budgets
from decoct.condense import checkpoint, export

FAST = ["--quiet", "--steps", "4", "--eval-seeds", "2", "--epochs", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_npz(path, counts=(20, 16, 12), shape=(8, 8), **changes):
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(len(counts)), counts)
    x = generator.uniform(0, 0.3, (len(y), *shape)).astype(np.float32) + 0.2 * y.reshape(
        -1, *[1] * len(shape)
    )
    np.savez(path, **{"x": x, "y": y, **changes})
    return x, y


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_writes_its_sets_and_report_and_can_be_evaluated_again(here, capsys):
    write_npz("mine.npz")
    assert main(["condense", "mine.npz", *FAST, "--ipc", "1,2", "--ipc", "1,2=3", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    run = here / "runs" / "mine-mmd-seed5"
    assert str(run.relative_to(here)) in out
    assert "report.html" in out
    for name in ("condensed", "random", "k-means centroids", "herding", "nearest to centroids", "full data"):
        assert name in out
    assert " keep " in out
    sets = {path.parent.name: export.read(path.parent) for path in run.glob("*/condensed.safetensors")}
    assert {name: torch.bincount(item.y).tolist() for name, item in sets.items()} == {
        "ipc-1": [1, 1, 1],
        "ipc-2": [2, 2, 2],
        "ipc-1-1-3": [1, 1, 3],
    }
    two = sets["ipc-2"]
    assert two.x.shape == (6, 1, 8, 8)
    assert torch.equal(torch.load(run / "ipc-2" / "images.pt", weights_only=True), two.x)
    assert torch.equal(torch.load(run / "ipc-2" / "labels.pt", weights_only=True), two.y)
    assert not torch.equal(two.x, two.initial)
    facts = two.metadata
    assert facts["method"] == "mmd"
    assert facts["counts"] == [2, 2, 2]
    assert facts["recipe"]["steps"] == 4
    assert facts["loop"]["updates"] == "joint"
    assert "once per group" in facts["loop"]["augmentation_drawn"]
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!")
    assert json.loads((run / "run.json").read_text())["seed"] == 5
    assert main(["evaluate", str(run), "--quiet", "--learners", "logistic_regression", "--seeds", "1"]) == 0


@pytest.mark.parametrize("method", ["dc", "dsa", "idc"])
def test_gradient_matching_from_data_to_report(here, capsys, method):
    write_npz("mine.npz")
    options = ["--method", method, "--ipc", "1,2", "--outer", "2", "--inner", "1", "--factor", "2"]
    assert main(["condense", "mine.npz", *FAST, *options, "--full-seeds", "0"]) == 0
    out = capsys.readouterr().out
    assert f"condensed, {method}" in out
    run = here / "runs" / f"mine-{method}-seed0"
    for rows in (1, 2):
        found = export.read(run / f"ipc-{rows}")
        assert found.kept[0].shape == (3 * rows, 1, 8, 8)
        assert found.x.shape == (12 * rows, 1, 8, 8)
        assert torch.bincount(found.y).tolist() == [4 * rows] * 3
        assert not torch.equal(found.kept[0], found.initial)
        assert "TrainedNetworks: kept for 2 steps, 1 epochs" in found.metadata["loop"]["network"]
        cells = torch.nn.functional.interpolate(found.kept[0][:1, :, :4, 4:], (8, 8), mode="bilinear")
        torch.testing.assert_close(found.x[1:2], cells)
    results = json.loads((run / "results.json").read_text())["results"]["rows"]
    assert {row["size"] for row in results} == {3, 6}  # what is stored, not what is decoded
    assert {row["name"] for row in results} >= {
        f"condensed, {method}",
        "random",
        "k-means centroids",
        "herding",
    }
    assert (
        main(["evaluate", str(run), "--quiet", "--learners", "nearest_neighbours", "--full-seeds", "0"]) == 0
    )


@pytest.mark.parametrize("method", ["datadam", "ncfm"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (5,)])
def test_attention_and_characteristic_functions_from_data_to_report(here, capsys, method, shape):
    write_npz("mine.npz", shape=shape)
    assert main(["condense", "mine.npz", *FAST, "--method", method, "--ipc", "2", "--full-seeds", "0"]) == 0
    assert f"condensed, {method}" in capsys.readouterr().out
    found = export.read(here / "runs" / f"mine-{method}-seed0" / "ipc-2")
    assert found.x.shape == (6, *shape)
    assert not torch.equal(found.x, found.initial)
    assert found.metadata["recipe"]["method"] == method


def test_gradient_matching_resumes_and_knows_its_options(here):
    write_npz("mine.npz")

    def rows(out, *options):
        command = [
            "condense",
            "mine.npz",
            "--quiet",
            "--method",
            "idc",
            "--steps",
            "4",
            "--no-eval",
            "--ipc",
            "1",
        ]
        assert main([*command, "--out", out, *options]) == 0
        return torch.load(here / out / "ipc-1" / "images.pt", weights_only=True)

    first = rows("a")
    (here / "a" / "ipc-1" / "images.pt").unlink()
    assert torch.equal(first, rows("a", "--resume"))
    for number, changed in enumerate(
        (["--outer", "1"], ["--inner", "2"], ["--metric", "sse"], ["--factor", "2"])
    ):
        other = rows(f"b{number}", *changed)
        assert other.shape != first.shape or not torch.equal(first, other)


def test_tables_by_gradient_matching(here):
    write_npz("mine.npz", shape=(5,))
    for method in ("dc", "dsa", "idc"):
        assert main(["condense", "mine.npz", *FAST, "--method", method, "--ipc", "1", "--no-eval"]) == 0
        assert export.read(here / "runs" / f"mine-{method}-seed0" / "ipc-1").x.shape == (3, 5)
    with pytest.raises(SystemExit):
        main(["condense", "mine.npz", *FAST, "--method", "idc", "--factor", "two"])


def test_the_full_data_can_be_left_out(here, capsys):
    write_npz("mine.npz")
    assert main(["condense", "mine.npz", *FAST, "--ipc", "1", "--full-seeds", "0"]) == 0
    out = capsys.readouterr().out
    assert "condensed, mmd" in out
    assert "full data" not in out


def test_equal_commands_give_equal_sets_and_seeds_change_them(here):
    write_npz("mine.npz")

    def rows(*options):
        assert main(["condense", "mine.npz", *FAST, "--no-eval", "--ipc", "2", *options]) == 0
        newest = max((here / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return torch.load(newest / "ipc-2" / "images.pt", weights_only=True)

    first = rows()
    assert torch.equal(first, rows())
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["mine-mmd-seed0", "mine-mmd-seed0-2"]
    for changed in (["--seed", "1"], ["--updates", "per-group"], ["--method", "dm"], ["--kernel", "energy"]):
        assert not torch.equal(first, rows(*changed))
    for changed in (
        ["--features", "identity"],
        ["--augment", "none"],
        ["--init", "random"],
        ["--bandwidth", "2"],
    ):
        assert not torch.equal(first, rows(*changed))


def test_table_data_from_csv(here, capsys):
    generator = np.random.default_rng(1)
    lines = ["a,b,kind"]
    for name, middle in (("red", 0.0), ("green", 3.0)):
        lines += [f"{v[0]:.4f},{v[1]:.4f},{name}" for v in generator.normal(middle, 1, (30, 2))]
    (here / "table.csv").write_text("\n".join(lines))
    options = ["--label", "kind", "--ipc", "red=2,green=1", "--out", "out", "--no-eval"]
    assert main(["condense", "table.csv", *FAST, *options]) == 0
    condensed = export.read(here / "out" / "ipc-1-2")
    assert condensed.metadata["classes"] == ["green", "red"]
    assert condensed.y.tolist() == [0, 1, 1]
    assert condensed.x.shape == (3, 2)
    assert "out/ipc-1-2" in capsys.readouterr().out


def bad(capsys, *arguments):
    """Run a command that must fail as bad input does; returns its one line."""
    try:
        code = main(["condense", *arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": None}, "y"),
        ({"x": "nan"}, "NaN|finite"),
        ({"counts": (20, 1, 12)}, "class"),
        ({"y": np.zeros(48, dtype=np.int64)}, "class"),
        ({"y": np.zeros(7, dtype=np.int64)}, "7"),
    ],
)
def test_bad_data_is_one_line_and_leaves_nothing(here, capsys, changes, says):
    import re

    x, y = write_npz("mine.npz", changes.pop("counts", (20, 16, 12)))
    arrays = {"x": x, "y": y}
    for name, value in changes.items():
        arrays[name] = value
    if isinstance(arrays["x"], str):
        x[3, 2, 1] = np.nan
        arrays["x"] = x
    np.savez("mine.npz", **{name: value for name, value in arrays.items() if value is not None})
    assert re.search(says, bad(capsys, "mine.npz", *FAST, "--ipc", "1"))
    assert files(here) == ["mine.npz"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "fashion-mnist"),
        (["missing.npz"], "no such file"),
        (["fashion-mnist", "--data-dir", "empty"], "train-images|dataset-fashion-mnist|IDX"),
        (["mine.npz", "--ipc", "0"], "at least 1"),
        (["mine.npz", "--ipc", "two"], "whole numbers"),
        (["mine.npz", "--ipc", "500"], "training split has"),
        (["mine.npz", "--ipc", "7=1"], "names class '7'"),
        (["mine.npz", "--ipc", "0=1"], "no count for class '1'"),
        (["mine.npz", "--steps", "0"], "--steps"),
        (["mine.npz", "--lr", "0"], "--lr"),
        (["mine.npz", "--threads", "0"], "--threads"),
        (["mine.npz", "--eval-seeds", "0"], "seeds"),
        (["mine.npz", "--full-seeds", "-1"], "full-seeds"),
        (["mine.npz", "--batch-real", "0"], "batch_real"),
        (["mine.npz", "--bandwidth", "-1"], "positive"),
        (["mine.npz", "--features", "pixels"], "--features"),
        (["mine.npz", "--features", "identity=0,convnet=0"], "positive weight"),
        (["mine.npz", "--augment", "shear"], "strategies"),
        (["mine.npz", "--learners", "oracle"], "oracle"),
        (["mine.npz", "--method", "magic"], "invalid choice"),
        (["mine.npz", "--method", "dm", "--kernel", "gaussian"], "belongs to --method mmd"),
        (["mine.npz", "--blur", "0.1"], "belongs to --method sinkhorn"),
        (["mine.npz", "--method", "sinkhorn", "--reach", "0"], "positive"),
        (["mine.npz", "--method", "sinkhorn", "--bandwidth", "2"], "belongs to --method mmd"),
        (
            ["mine.npz", "--frequencies", "2"],
            "--frequencies belongs to --method ncfm or dp-merf, got --method mmd",
        ),
        (["mine.npz", "--method", "ncfm", "--frequencies", "0"], "frequencies must be at least 1"),
        (
            ["mine.npz", "--method", "datadam", "--features", "both"],
            "--features belongs to --method mmd or dm or sinkhorn or ncfm, got --method datadam",
        ),
        (
            ["mine.npz", "--outer", "2"],
            "--outer belongs to --method dc or dsa or idc or dp-dc, got --method mmd",
        ),
        (["mine.npz", "--method", "dc", "--features", "identity"], "--features belongs to"),
        (["mine.npz", "--method", "dsa", "--bf16"], "--bf16 belongs to"),
        (["mine.npz", "--method", "dc", "--outer", "0"], "--outer must be at least 1"),
        (["mine.npz", "--method", "dc", "--inner", "-1"], "epochs must be at least 0"),
        (["mine.npz", "--method", "dc", "--metric", "l2"], "invalid choice"),
        (["mine.npz", "--factor", "0"], "--factor must be at least 1"),
        (["mine.npz", "--factor", "9"], "needs 81 rows a class|factor must be between 1"),
        (["mine.npz", "--factor", "4", "--ipc", "1"], "needs 16 rows a class to begin with"),
        (["mine.npz", "--label", "kind"], "label"),
        (["mine.npz", "--resume"], "no run to continue"),
        (["mine.npz", "--out", "full"], "--resume"),
        (["mine.npz", "--out", "mine.npz/run"], "folder"),
        (["mine.npz", "--unknown"], "--unknown"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(here, capsys, arguments, says):
    import re

    write_npz("mine.npz")
    (here / "empty").mkdir()
    (here / "full").mkdir()
    (here / "full" / "note.txt").write_text("mine")
    threads = torch.get_num_threads()
    assert re.search(
        says,
        bad(capsys, *FAST, "--ipc", "1", *arguments)
        if "--ipc" not in arguments
        else bad(capsys, *FAST, *arguments),
    )
    assert files(here) == ["full/note.txt", "mine.npz"]
    assert not (here / "runs").exists()
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(here, capsys):
    write_npz("mine.npz")
    (here / "locked").mkdir(mode=0o500)
    assert "not writable" in bad(capsys, "mine.npz", *FAST, "--ipc", "1", "--out", "locked/run")


def test_a_folder_that_takes_no_files_is_refused_even_for_root(here, capsys, monkeypatch):
    write_npz("mine.npz")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not writable" in bad(capsys, "mine.npz", *FAST, "--ipc", "1")
    assert files(here) == ["mine.npz"]


def test_interrupted_run_resumes_to_the_uninterrupted_result(here):
    write_npz("mine.npz")
    command = [sys.executable, "-m", "decoct", "condense", "mine.npz", "--ipc", "1,2", "--no-eval"]
    command += ["--steps", "300", "--threads", "1", "--batch-real", "2", "--out"]
    subprocess.run([*command, "whole"], check=True, capture_output=True, timeout=300)

    process = subprocess.Popen([*command, "part"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    saved = here / "part" / "ipc-1" / "checkpoint.pt"
    deadline = time.monotonic() + 240
    while not saved.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1
    assert "--resume --out part" in errors
    assert 100 <= checkpoint.load(saved)["step"] < 300
    assert not (here / "part" / "ipc-1" / "images.pt").exists()

    done = subprocess.run(
        [*command, "part", "--resume"], check=True, capture_output=True, text=True, timeout=300
    )
    assert "part/ipc-2" in done.stdout
    for budget in ("ipc-1", "ipc-2"):
        whole, part = (
            torch.load(here / run / budget / "images.pt", weights_only=True) for run in ("whole", "part")
        )
        assert torch.equal(whole, part)
    other = subprocess.run(
        [*command, "part", "--resume", "--seed", "1"], capture_output=True, text=True, timeout=300
    )
    assert other.returncode == 2
    assert "another run" in other.stderr


def test_a_traceback_can_be_asked_for(here, monkeypatch):
    monkeypatch.setenv("DECOCT_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="no such file"):
        main(["condense", "missing.npz"])


def test_budgets_are_parsed():
    classes, rows = ["a", "b", "c"], [50, 50, 9]

    def counts(*texts):
        return {budget.name: budget.counts for budget in parse_budgets(texts, classes, rows)}

    assert counts("1, 5") == {"ipc-1": (1, 1, 1), "ipc-5": (5, 5, 5)}
    assert counts("2", "2") == {"ipc-2": (2, 2, 2)}
    assert counts("10,c=3") == {"ipc-10-10-3": (10, 10, 3)}
    assert counts("a=1,b=2,c=0") == {"ipc-1-2-0": (1, 2, 0)}
    for wrong, says in (
        ("10", "has 9"),
        ("a=0,b=0,c=0", "no rows"),
        ("1,2,c=3", "more than one"),
        ("", "rows per class"),
    ):
        with pytest.raises(ValueError, match=says):
            counts(wrong)
