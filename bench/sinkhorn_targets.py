"""What bench_sinkhorn.py is to reach on two AVX-512 cores, and whether it did."""

from __future__ import annotations

from contenders import OURS
from sinkhorn_contenders import GEOMLOSS, LOOPS, OURS_KEPT, OURS_NO_XX, OURS_TOL, OURS_TOL_NO_XX
from targets import Row, line, seconds, with_most_threads

SPEED = [
    # case, ours, how many times faster than the faster backend of GeomLoss
    ("1000x1000x64", OURS, 10.0),
    ("5000x5000x64", OURS, 20.0),
    ("5000x5000x64", OURS_KEPT, 30.0),
]
MEMORY = ("5000x5000x64", "20000x20000x16")
"""Without a budget; one matrix of the smaller takes 95 MiB."""
LOOP_SPEED = 10.0
NO_XX = {OURS: OURS_NO_XX, OURS_TOL: OURS_TOL_NO_XX}
"""What condensation calls, for the real-real term moves no synthetic row; the loops compute it."""
ROUNDING_OF_POTENTIALS = 1e-5
BELOW_ZERO = 1e-6
"""Of the blunt value, of which the debiased one is a difference in float32."""


def _speeds(row: Row) -> list[list[str]]:
    lines = []
    for case, ours, wanted in SPEED:
        theirs = [found for name in GEOMLOSS if (found := seconds(row, name))]
        mine = seconds(row, ours)
        if row["name"] == case and theirs and mine:
            what = f"{case}: GeomLoss's faster backend over {ours}"
            lines.append(line(what, wanted, min(theirs) / mine))
    for peer in LOOPS if row["case"]["groups"] == 100 else ():
        same = row["contenders"].get(peer, {}).get("against", OURS)
        for ours in (same, NO_XX[same]):
            loop, mine = seconds(row, peer), seconds(row, ours)
            if loop and mine:
                lines.append(line(f"{row['name']}: {peer} over {ours}", LOOP_SPEED, loop / mine))
    return lines


def verdicts(rows: list[Row]) -> list[list[str]]:
    """Lines of (target, wanted, reached, met), of the rows with the most threads."""
    lines: list[list[str]] = []
    for row in with_most_threads(rows):
        name, found = row["name"], row["contenders"]
        lines += _speeds(row)
        memory = found.get(OURS, {}).get("memory")
        if name in MEMORY and memory is not None:
            lines.append(line(f"{name}: extra memory, MiB", 64.0, memory / 2**20, at_most=True))
        for ours in (OURS, OURS_KEPT):
            if "share" in found.get(ours, {}):
                lines.append(line(f"{name}: share of the bound, {ours}", 0.7, found[ours]["share"]))
        potentials = found.get(OURS, {}).get("rounding", {}).get("potentials")
        if potentials is not None:
            what = f"{name}: potentials against float64"
            lines.append(line(what, ROUNDING_OF_POTENTIALS, potentials, at_most=True))
        neighbours = found.get(OURS_TOL, {}).get("of_neighbours")
        if neighbours is not None:
            what = f"{name}: divergence of neighbours over the blunt value, to tol"
            lines.append(line(what, -BELOW_ZERO, neighbours))
    return lines
