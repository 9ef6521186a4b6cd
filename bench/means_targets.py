"""What bench_means.py is to reach on two AVX-512 cores, and whether it did."""

from __future__ import annotations

from contenders import OURS
from targets import Row, line, seconds, with_most_threads

SPEED = [
    # case, peer, how many times faster
    ("characteristic 4096x(1024,2048)", "four products", 1.8),
    ("characteristic 4096x(1024,2048)", "two products", 1.0),
    ("moments 100x256x2048", "index_add", 1.0),
    ("moments 100x256x2048", "class loop", 1.0),
]


def verdicts(rows: list[Row]) -> list[list[str]]:
    """Lines of (target, wanted, reached, met), of the rows with the most threads."""
    lines: list[list[str]] = []
    for row in with_most_threads(rows):
        mine = seconds(row, OURS)
        for case, peer, wanted in SPEED:
            theirs = seconds(row, peer)
            if row["name"] == case and theirs and mine:
                lines.append(line(f"{case}: {peer} over {OURS}", wanted, theirs / mine))
    return lines
