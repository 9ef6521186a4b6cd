"""What the CPU benchmarks share, and the Sinkhorn rows at toy size."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The benchmarks' modules, importable."""
    monkeypatch.syspath_prepend(str(BENCH))
    return BENCH


def test_a_process_that_makes_no_progress_is_stopped(bench: Path, tmp_path: Path) -> None:
    import runner

    out = tmp_path / "out"
    steps = "[(Path(sys.argv[1]).write_text('x'), time.sleep(0.6)) for _ in range(4)]"
    code = f"import sys, time; from pathlib import Path; {steps}; time.sleep(60)"
    assert runner._ended([sys.executable, "-c", code, str(out)], {}, out, 2.0) == "over 2 s"
    assert runner._ended([sys.executable, "-c", "pass"], {}, out, 60.0) == ""
    died = runner._ended([sys.executable, "-c", "import sys; sys.exit('why')"], {}, out, 60.0)
    assert died == "ended with 1: why\n"


def test_the_bound_of_a_sinkhorn_divergence(bench: Path) -> None:
    import peaks

    kept = peaks.sinkhorn_work(1000, 500, 64, 9.0, with_xx=True)
    pairs = 1000 * 500 + 500**2 / 2 + 1000**2 / 2
    assert kept.exps == 9 * pairs
    assert kept.flops == 128 * (pairs + 1000 * 500 + 500**2)
    again = peaks.sinkhorn_work(5000, 500, 64, 9.0)
    assert again.flops == 128 * (10 * 5000 * 500 + 9 * 500**2 / 2 + 500**2)
    assert peaks.sinkhorn_work(5000, 500, 64, 9.0, budget=2**28).flops < again.flops


def test_exact_transport_solves_the_problem(bench: Path) -> None:
    """On the line it is that of sorted points, but for eps times an entropy."""
    import sinkhorn_exact

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    blur = 0.3
    start = sinkhorn_exact.annealed(x, y, 8.0, blur, 0.9)
    found = sinkhorn_exact.converged(start, 1e-7)
    wanted = (x.sort(0).values - y.sort(0).values).square().mean() / 2
    value, _ = found.value(with_xx=False, debias=False)
    assert 0 <= value - wanted <= blur**2 * torch.log(torch.tensor(30.0))
    assert found.missed(found.f, found.g) < 1e-6 < found.missed(start.f, start.g)


@pytest.mark.parametrize("number", [1, 2], ids=["dense", "ragged"])
def test_a_sinkhorn_row(bench: Path, tmp_path: Path, number: int) -> None:
    """Peers are there or say that they are not; ours has what the tables and targets need."""
    import bench_sinkhorn
    import row

    case = bench_sinkhorn.OP.quick[number]
    fields = {"rows_x": 40, "rows_y": 30, "columns": case.columns, "groups": case.groups}
    out = tmp_path / "row.json"
    job = {"op": "sinkhorn", "case": fields, "threads": 2, "stage": "time", "budget": 0.01, "skip": []}
    row.main(job, out)
    found = json.loads(out.read_text())["contenders"]
    for entry in found.values():
        assert "seconds" in entry or "not installed" in entry["note"], entry
    for name in ("decoct", "decoct, costs kept", "decoct, no real-real"):
        assert max(found[name]["rounding"].values()) < 1e-5
        assert found[name]["passes"] == 9
        assert bench_sinkhorn.OP.work(bench_sinkhorn.OP.case(**fields), found[name]) is not None
    to_tol = found["decoct, to tol"]
    assert to_tol["marginal"] < 2e-3 < found["decoct"]["marginal"]
    assert to_tol["of_neighbours"] > -1e-6
    whole = {"name": "toy", "case": fields, "threads": 2, "contenders": found}
    assert all(met == "yes" for *_, met in bench_sinkhorn.OP.verdicts([whole]))


def test_accuracy_runs_end_and_go_on(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import accuracy

    command = [
        "--data",
        "digits",
        "--methods",
        "dc,idc",
        "--steps",
        "2",
        "--batch-real",
        "4",
        "--epochs",
        "2",
    ]
    command += ["--trainings", "2", "--folder", str(tmp_path / "kept"), "--json", str(tmp_path / "out.json")]
    assert accuracy.main(command) == 0
    first, table = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert {row["set"] for row in first["rows"]} >= {"dc", "idc", "random", "herding", "k-means centroids"}
    assert first["machine"]["versions"]["torch"] == torch.__version__
    assert "digits, 1 a class, published, 2 epochs" in table
    monkeypatch.setattr(accuracy.Condenser, "step", None)  # nothing is condensed twice
    monkeypatch.setattr("decoct.tasks.classification.ClassificationTask.fit", None)  # nor trained
    assert accuracy.main(command) == 0
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == first["rows"]
    with pytest.raises(ValueError, match="other settings"):
        accuracy.main([*command, "--steps", "3"])


def test_published_recipes(bench: Path) -> None:
    import accuracy
    from decoct.tasks import load

    digits = load("digits")
    dc, dsa, idc = (accuracy.published_recipe(name, digits, [10] * 10) for name in ("dc", "dsa", "idc"))
    assert (dc.steps, dc.loops([10] * 10), dc.batch_real, dc.lr, dc.init) == (
        10000,
        (10, 50),
        256,
        0.1,
        "noise",
    )
    assert (dsa.init, "flip" in dsa.augment, dsa.net_augment) == ("random", False, dsa.augment)
    assert (idc.train_on, idc.outer, idc.tensors, idc.factor) == ("real", 100, "convolutions", 2)
    assert accuracy.training("dsa", digits, None).epochs == 1000
    assert accuracy.training("dc", digits, None).epochs == 300
    with pytest.raises(ValueError, match="no published recipe"):
        accuracy.published_recipe("sinkhorn", digits, [1] * 10)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["distance", "dc", "dm"])
def test_a_gradient_row(bench: Path, tmp_path: Path, number: int) -> None:
    """The same numbers as the plain code in float64, by fewer ops. What is compiled is left out: it takes
    minutes."""
    import bench_gradients
    import row

    case = bench_gradients.OP.quick[number]
    out = tmp_path / "row.json"
    compiled = ["match_loss, compiled", "functional transforms, compiled"]
    job = {"op": "gradients", "case": asdict(case), "threads": 1, "stage": "time", "budget": 0.01}
    row.main({**job, "skip": compiled}, out)
    found = json.loads(out.read_text())["contenders"]
    ours, plain = found.values()
    assert max(ours["error"].values()) < 1e-5
    assert ours["ops"] < plain["ops"]
    assert bench_gradients.OP.work(case, ours) is not None
    whole = {"name": case.name, "case": asdict(case), "threads": 1, "contenders": found}
    compared = [what for what, *_ in bench_gradients.OP.verdicts([whole])]
    lines = {"distance": 0, "dc": 2, "dm": 1}  # times, and for gradient matching the ops too
    assert len(compared) == lines[case.kind]
    assert all(what.startswith(f"{case.name}: ") for what in compared)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["norms", "clipped", "gram"])
def test_a_row_of_per_sample_gradients(bench: Path, tmp_path: Path, number: int) -> None:
    """The same numbers as one pass for each sample in float64, here and by torch.func."""
    import bench_persample
    import row

    case = bench_persample.OP.quick[number]
    out = tmp_path / "row.json"
    others = ["Opacus, hooks", "Opacus, ghost clipping"]
    job = {"op": "persample", "case": asdict(case), "threads": 1, "stage": "time", "budget": 0.01}
    row.main({**job, "skip": others}, out)
    found = json.loads(out.read_text())["contenders"]
    timed = {name: entry for name, entry in found.items() if "seconds" in entry}
    assert len(timed) >= 4
    assert all(entry["error"]["value"] < 1e-5 for entry in timed.values())
    whole = {"name": case.name, "case": asdict(case), "threads": 1, "contenders": found}
    assert len(bench_persample.OP.verdicts([whole])) == 1


@pytest.mark.parametrize("number", range(4), ids=["frequencies", "classes", "moments", "clipped"])
def test_a_row_of_means(bench: Path, tmp_path: Path, number: int) -> None:
    """The same numbers as plain code in float64. What is compiled is left out: it takes minutes."""
    import bench_means
    import row

    case = bench_means.OP.quick[number]
    out = tmp_path / "row.json"
    job = {"op": "means", "case": asdict(case), "threads": 1, "stage": "time", "budget": 0.01}
    row.main({**job, "skip": ["four products, compiled"]}, out)
    found = json.loads(out.read_text())["contenders"]
    timed = {name: entry for name, entry in found.items() if "seconds" in entry}
    assert len(timed) == 3
    assert all(max(entry["error"].values()) < 1e-5 for entry in timed.values())
    assert bench_means.OP.work(case, found["decoct"]) is not None
    full = {"name": bench_means.OP.full[0].name, "case": {}, "threads": 1, "contenders": found}
    assert len(bench_means.OP.verdicts([full])) == (2 if number < 2 else 0)


def test_a_row_of_barycentres(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With POT in its place: the points that the first turn of exact transport makes."""
    import bench_barycenter

    def one_turn(x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        return torch.stack([_assigned(*pair)[1] for pair in zip(x.double(), start.double(), strict=True)])

    def objective(x: torch.Tensor, points: torch.Tensor) -> float:
        return float(sum(_assigned(*pair)[0] for pair in zip(x.double(), points.double(), strict=True)))

    monkeypatch.setattr(bench_barycenter, "_pot", one_turn)
    monkeypatch.setattr(bench_barycenter, "_objective", objective)
    out = tmp_path / "out.json"
    command = ["--quick", "--threads", "1", "--budget", "0.01", "--json", str(out)]
    assert bench_barycenter.main(command) == 0
    (row,) = json.loads(out.read_text())["rows"]
    found = row["contenders"]
    assert found["decoct"]["converged"] == 3
    assert found["decoct"]["objective"] < 1.01 * found["POT, class by class"]["objective"]
    assert "POT's loop over decoct" in capsys.readouterr().out


def _assigned(x: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact transport to points of equal masses, each of which takes as many rows: its cost, and the means
    of the rows of each."""
    from scipy.optimize import linear_sum_assignment

    each = len(x) // len(points)
    cost = torch.cdist(x, points).square()
    rows, taken = linear_sum_assignment(cost.repeat_interleave(each, 1).numpy())
    rows, owner = torch.from_numpy(rows), torch.from_numpy(taken) // each
    sums = torch.zeros_like(points).index_add(0, owner, x[rows])
    return cost[rows, owner].mean(), sums / each
