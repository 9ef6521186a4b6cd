"""`decoct evaluate` from a run folder to table, results and report."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decoct.cli import evaluate
from decoct.condense import export
from decoct.tasks import ClassificationTask, Dataset, load, random_rows


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 20)
    np.savez(tmp_path / "shapes.npz", x=rng.standard_normal((60, 6, 6)) + 2 * y[:, None, None], y=y)
    return load(tmp_path / "shapes.npz")


@pytest.fixture
def run_folder(tmp_path: Path, data: Dataset) -> Path:
    folder = tmp_path / "run"
    for count in (1, 4):
        x, y = random_rows(data, [count] * 3, 9)
        about = {**data.metadata(), "method": "mmd", "command": "decoct condense shapes.npz", "seed": 0}
        export.write(folder / f"ipc-{count}", x, y, about, initial=x + 0.1)
    return folder


def call(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="decoct")
    evaluate.register(parser.add_subparsers())
    arguments = parser.parse_args(["evaluate", *words])
    code: int = arguments.run(arguments)
    return code


QUICKLY = ("--seeds", "2", "--selection-seeds", "2", "--epochs", "3", "--quiet")


def stored(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_end_to_end(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(run_folder), "--learners", "mlp,nearest_neighbours", *QUICKLY) == 0
    output = capsys.readouterr().out
    for text in (
        "condensed, mmd",
        "random",
        "k-means centroids",
        "nearest to centroids",
        "herding",
        "full data",
    ):
        assert text in output
    assert "On shapes, 3 images keep" in output
    assert str(run_folder / "report.html") in output
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    assert html.count("<img ") == 4  # two sets, before and after
    rows = stored(run_folder)["results"]["rows"]
    mine = [row for row in rows if row["name"] == "condensed, mmd"]
    assert [(row["size"], row["seeds"]) for row in mine if row["learner"].startswith("mlp")] == [
        (3, 2),
        (12, 2),
    ]
    assert {row["size"] for row in rows if row["name"] == "full data"} == {48}
    assert sorted(os.listdir(run_folder)) == [
        "ipc-1",
        "ipc-4",
        "report.html",
        "results.json",
        "trainings.jsonl",
    ]


def test_a_second_evaluation_adds_to_the_first(run_folder: Path) -> None:
    call(str(run_folder), "--learners", "nearest_neighbours", *QUICKLY)
    first = stored(run_folder)["results"]["rows"]
    call(str(run_folder), "--learners", "logistic_regression,nearest_neighbours", *QUICKLY)
    second = stored(run_folder)
    learners = [row["learner"] for row in second["results"]["rows"]]
    assert learners.count("nearest_neighbours") == len(first) == learners.count("logistic_regression")
    assert len(second["evaluations"]) == 2
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "nearest neighbour</th>" in html
    assert "logistic regression</th>" in html


def test_seeds_change_training_and_repeat(run_folder: Path) -> None:
    def accuracies(first: int) -> list[list[float]]:
        (run_folder / "trainings.jsonl").unlink(missing_ok=True)
        call(str(run_folder), "--learners", "mlp", "--first-seed", str(first), *QUICKLY)
        return [row["accuracies"] for row in stored(run_folder)["results"]["rows"]]

    once, again, other = accuracies(0), accuracies(0), accuracies(50)
    assert once == again
    assert once != other


def test_an_interrupted_evaluation_goes_on(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (str(run_folder), "--learners", "mlp", "--full-seeds", "0", *QUICKLY)
    assert call(*words) == 0
    whole = stored(run_folder)["results"]["rows"]
    journal = run_folder / "trainings.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == sum(len(row["accuracies"]) for row in whole)

    kept = "".join(lines[:5]) + lines[5][:20]  # the process died while it wrote
    journal.write_text(kept)
    fit, fitted = ClassificationTask.fit, []

    def interrupted(*arguments: Any) -> Any:
        fitted.append(arguments)
        if len(fitted) == 4:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(ClassificationTask, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt, match="what ended is kept"):
        call(*words)
    assert call(*words) == 0
    # The interrupted training runs again, and the torn line's; nothing else that had ended does.
    assert len(fitted) == len(lines) - 5 + 1
    complete = [line for line in journal.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    assert {json.loads(line)["key"] for line in complete} == {json.loads(line)["key"] for line in lines}
    again = stored(run_folder)["results"]["rows"]
    assert [row["accuracies"] for row in again] == [row["accuracies"] for row in whole]
    before = len(fitted)
    call(*words, "--first-seed", "1")
    assert 0 < len(fitted) - before < len(lines)  # of two seeds one is known


def test_progress_is_told_without_a_terminal(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in QUICKLY if word != "--quiet"]
    call(str(run_folder), "--learners", "nearest_neighbours", *words)
    assert capsys.readouterr().err == ""  # too short for a line
    monkeypatch.setattr("decoct.cli._shared.LINE_EVERY", 0.0)
    call(str(run_folder), "--learners", "mlp", *words)
    assert "evaluating: 3 of " in capsys.readouterr().err


def test_full_data_can_be_left_out(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(str(run_folder), "--learners", "nearest_neighbours", "--full-seeds", "0", *QUICKLY)
    assert "full data" not in capsys.readouterr().out
    assert "full data" not in (run_folder / "results.json").read_text()


def test_protocols_stand_in_their_own_columns(run_folder: Path) -> None:
    words = ("--learners", "mlp", "--seeds", "1", "--selection-seeds", "1", "--quiet")
    call(str(run_folder), *words)
    call(str(run_folder), "--protocol", "published-augmented", "--epochs", "2", *words)
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "MLP</th>" in html
    assert "MLP, published-augmented, 2 epochs</th>" in html


def test_snapshots_become_a_curve_that_later_evaluations_keep(run_folder: Path, data: Dataset) -> None:
    x, y = random_rows(data, [4] * 3, 9)
    settings = evaluate.EvaluationSettings(("nearest_neighbours",), seeds=1, selection_seeds=1)
    snapshots = {12: [(0.0, torch.zeros_like(x), y), (1.5, x, y)]}
    evaluate.evaluate_run(run_folder, data, settings, snapshots=snapshots, quiet=True)
    call(str(run_folder), "--learners", "nearest_neighbours", *QUICKLY)
    (curve,) = stored(run_folder)["curves"]
    assert (curve["size"], curve["seconds"]) == (12, [0.0, 1.5])
    assert curve["accuracies"][0] < curve["accuracies"][1]
    assert "seconds of condensation" in (run_folder / "report.html").read_text(encoding="utf-8")


def test_a_folder_that_is_one_set(tmp_path: Path, data: Dataset) -> None:
    x, y = random_rows(data, [2, 0, 1], 0)
    export.write(tmp_path / "alone", x, y, {**data.metadata(), "method": "dm"})
    call(str(tmp_path / "alone"), "--learners", "nearest_neighbours", *QUICKLY)
    rows = stored(tmp_path / "alone")["results"]["rows"]
    assert {row["size"] for row in rows if row["name"] != "full data"} == {3}


def test_unusable_folders(tmp_path: Path, run_folder: Path, data: Dataset) -> None:
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        call(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no condensed set"):
        call(str(tmp_path / "empty"))
    export.write(tmp_path / "bare", data.train_x[:3], data.train_y[:3], {"method": "mmd"})
    with pytest.raises(ValueError, match="does not say which data"):
        call(str(tmp_path / "bare"))
    (run_folder / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a table of results"):
        call(str(run_folder), "--learners", "nearest_neighbours", *QUICKLY)


def test_changed_data_are_refused(tmp_path: Path, run_folder: Path) -> None:
    with np.load(tmp_path / "shapes.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    np.savez(tmp_path / "shapes.npz", x=x + 1e-3 * y[:, None, None], y=y)
    with pytest.raises(ValueError, match=r"are not those that .* was made from"):
        call(str(run_folder), "--learners", "nearest_neighbours", *QUICKLY)
    assert not (run_folder / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--learners", "forest"), "--learners: expected some of convnet, .*, got 'forest'"),
        (("--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("--selection-seeds", "0"), "--selection-seeds must be at least 1"),
        (("--full-seeds", "-1"), "--full-seeds must not be negative"),
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("--learners", ""), "--learners: expected"),
    ],
)
def test_unusable_options(run_folder: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(str(run_folder), *words)
