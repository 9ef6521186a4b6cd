"""What bench_gradients.py is to reach on two AVX-512 cores, and whether it did."""

from __future__ import annotations

from contenders import OURS
from targets import Row, line, seconds, with_most_threads

SPEED = [
    # case, peer, how many times faster
    ("distance convnet 1", "match_loss", 5.0),
    ("distance convnet 1", "match_loss, compiled", 1.7),
    ("distance convnet 10", "match_loss", 8.0),
    ("distance convnet 10", "match_loss, compiled", 3.0),
    ("distance resnet18 1", "match_loss", 7.0),
    ("distance resnet18 1", "match_loss, compiled", 4.0),
]
SHARE = 0.7
FEWER_OPS = 10.0


def verdicts(rows: list[Row]) -> list[list[str]]:
    """Lines of (target, wanted, reached, met), of the rows with the most threads."""
    lines: list[list[str]] = []
    for row in with_most_threads(rows):
        name, found = row["name"], row["contenders"]
        mine = seconds(row, OURS)
        for case, peer, wanted in SPEED:
            theirs = seconds(row, peer)
            if name == case and theirs and mine:
                lines.append(line(f"{name}: {peer} over {OURS}", wanted, theirs / mine))
        if row["case"]["kind"] == "distance" and "share" in found.get(OURS, {}):
            lines.append(line(f"{name}: share of the bound", SHARE, found[OURS]["share"]))
        if row["case"]["kind"] != "distance" and mine:
            for peer, entry in found.items():
                if not entry.get("ours") and "seconds" in entry:
                    lines.append(line(f"{name}: {peer} over {OURS}", 1.0, entry["seconds"] / mine))
        ops, plain = (found.get(contender, {}).get("ops") for contender in (OURS, "plain code"))
        if ops and plain and row["case"]["kind"] == "dc":
            lines.append(
                line(f"{name}: dispatched ops of the plain code over {OURS}", FEWER_OPS, plain / ops)
            )
    return lines
