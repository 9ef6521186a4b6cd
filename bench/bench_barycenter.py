"""Class-wise free-support barycentres: decoct, all classes in one call, beside a loop over POT.

    python bench/bench_barycenter.py --quick                    # toy sizes, some seconds
    python bench/bench_barycenter.py --json bench/results/barycenter.json

All begin with the same points, have uniform masses and are compared by the unregularised objective: the sum
over classes of the exact transport cost |x - y|^2 of a class's rows to its points. POT's solver is exact and
its loop ends where the points stand still; it is single-threaded but for products of matrices. Rows are
float32 mixtures of Gaussians: ten modes a class, of unequal masses.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import harness

TARGET = 20.0
BLUR, TOL, MARGINAL = 0.12, 1e-2, 1e-2
"""At which the objective is no larger than POT's; the lengths in units of the root mean squared distance of a
class's rows."""


@dataclass(frozen=True)
class Case:
    classes: int
    rows: int = 1300
    points: int = 10
    columns: int = 512
    modes: int = 10

    @property
    def name(self) -> str:
        return f"{self.classes}x({self.rows},{self.points})x{self.columns}"

    def data(self) -> Tensor:
        """(classes, rows, columns)."""
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(self.classes, self.modes, self.columns, generator=generator)
        share = torch.rand(self.classes, self.modes, generator=generator) + 0.2
        mode = torch.multinomial(share, self.rows, replacement=True, generator=generator)
        x = torch.randn(self.classes, self.rows, self.columns, generator=generator)
        return x + centres.gather(1, mode[:, :, None].expand(-1, -1, self.columns))


FULL = [Case(10), Case(100)]
QUICK = [Case(3, 100, 4, 16, 4)]


def _pot(x: Tensor, start: Tensor) -> Tensor:
    """Class by class, in float64 as its exact solver computes."""
    import ot

    points = []
    for rows, first in zip(x.double().numpy(), start.double().numpy(), strict=True):
        mass = ot.unif(len(rows))
        points.append(torch.from_numpy(ot.lp.free_support_barycenter([rows], [mass], first, numItermax=100)))
    return torch.stack(points)


def _objective(x: Tensor, points: Tensor) -> float:
    import ot

    total = 0.0
    for rows, found in zip(x.double(), points.double(), strict=True):
        cost = torch.cdist(rows, found, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
        total += float(ot.emd2(ot.unif(len(rows)), ot.unif(len(found)), cost))
    return total


def measure(case: Case, threads: int, budget: float) -> dict[str, Any]:
    import decoct

    torch.set_num_threads(threads)
    x = case.data()
    unit = float((x - x.mean(1, keepdim=True)).square().sum(2).mean().mul(2).sqrt())
    start = decoct.free_support_barycenter(x, case.points, iterations=0).points
    settings: dict[str, dict[str, Any]] = {
        "decoct": {},
        "decoct, k-means++ in the time": {"init": "kmeans++"},
    }
    found: dict[str, Any] = {}

    def ours(**options: Any) -> Callable[[], Any]:
        return lambda: decoct.free_support_barycenter(
            x,
            case.points,
            **{"init": start, "blur": BLUR * unit, "tol": TOL * unit, "marginal_tol": MARGINAL, **options},
        )

    calls = {name: ours(**options) for name, options in settings.items()}
    calls["POT, class by class"] = lambda: _pot(x, start)
    first = {}
    for name, call in calls.items():
        begun = time.perf_counter()
        result = call()
        first[name] = time.perf_counter() - begun
        points = result if isinstance(result, Tensor) else result.points
        found[name] = {"objective": _objective(x, points)}
        if not isinstance(result, Tensor):
            found[name]["iterations"] = [int(result.iterations.min()), int(result.iterations.max())]
            found[name]["converged"] = int(result.converged.sum())
    for name, samples in harness.interleave(calls, first, budget).items():
        found[name] |= harness.summary(samples)
    return {"name": case.name, "case": asdict(case), "threads": threads, "contenders": found}


def show(row: dict[str, Any]) -> str:
    base = row["contenders"]["decoct"]
    lines = [
        [
            name,
            harness.show_seconds(entry["seconds"]),
            f"{entry['seconds'] / base['seconds']:.3g}",
            f"{entry['objective']:.7g}",
            f"{entry['objective'] / row['contenders']['POT, class by class']['objective']:.5f}",
            str(entry["runs"]),
        ]
        for name, entry in row["contenders"].items()
    ]
    header = ("", "time", "ratio", "objective", "over POT's", "runs")
    return f"\n### {row['name']}, {row['threads']} thread(s)\n\n{harness.table(header, lines)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that everything runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of ours and of torch")
    parser.add_argument("--classes", type=int, nargs="+", help="rows with these numbers of classes alone")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds for each contender of a row")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything measured here")
    options = parser.parse_args(arguments)
    cases = [
        case
        for case in (QUICK if options.quick else FULL)
        if options.classes is None or case.classes in options.classes
    ]
    record: dict[str, Any] = {"machine": harness.machine(), "quick": options.quick, "rows": []}
    for case in cases:
        row = measure(case, options.threads, options.budget)
        record["rows"].append(row)
        print(show(row), flush=True)
    record["targets"] = [
        [row["name"], f">= {TARGET:g}", f"{_ratio(row):.3g}", "yes" if _ratio(row) >= TARGET else "no"]
        for row in record["rows"]
    ]
    print("\n" + harness.table(("POT's loop over decoct", "wanted", "reached", "met"), record["targets"]))
    if options.json:
        harness.write_json(options.json, record)
    return 0


def _ratio(row: dict[str, Any]) -> float:
    found = row["contenders"]
    return float(found["POT, class by class"]["seconds"] / found["decoct"]["seconds"])


if __name__ == "__main__":
    sys.exit(main())
