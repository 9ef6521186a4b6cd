"""What bench_persample.py is to reach on two AVX-512 cores, and whether it did."""

from __future__ import annotations

from contenders import OURS
from targets import Row, line, seconds, with_most_threads

BEST = 0.95
HOOKS = 20.0
MATERIALISED = 100.0


def verdicts(rows: list[Row]) -> list[list[str]]:
    """Lines of (target, wanted, reached, met), of the rows with the most threads."""
    lines: list[list[str]] = []
    for row in with_most_threads(rows):
        name, found = row["name"], row["contenders"]
        mine = seconds(row, OURS)
        others = [e["seconds"] for e in found.values() if not e.get("ours") and "seconds" in e]
        if not mine or not others:
            continue
        linear = row["case"]["network"] == "mlp"
        if row["case"]["kind"] == "gram":
            wanted = MATERIALISED if linear else BEST
            lines.append(line(f"{name}: the best materialised over {OURS}", wanted, min(others) / mine))
            continue
        lines.append(line(f"{name}: the best of the others over {OURS}", BEST, min(others) / mine))
        hooks = seconds(row, "Opacus, hooks")
        if linear and hooks:
            lines.append(line(f"{name}: Opacus, hooks over {OURS}", HOOKS, hooks / mine))
    return lines
